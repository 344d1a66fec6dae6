use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::FactKey;

struct Web1(BTreeMap<&'static str, &'static str>);

impl Web1 {
    fn new() -> Self {
        Self(BTreeMap::from([("env", "prod"), ("role", "web")]))
    }
}

impl Subject for Web1 {
    fn label(&self, key: &str) -> Option<&str> {
        self.0.get(key).copied()
    }

    fn fact(&self, key: FactKey) -> Option<&str> {
        match key {
            FactKey::Name => Some("web-1"),
            FactKey::Id => Some("h-00000000000000000000"),
            FactKey::Os => Some("linux"),
            FactKey::Kernel => Some("6.1.0-26-amd64"),
            _ => None,
        }
    }
}

#[test]
fn what_matches_web_1() {
    for text in [
        "all",
        " all ",
        "web-1",
        "db-1, web-1",
        "h-00000000000000000000",
        "env=prod",
        "env==prod,role in (api, web),!retired,os=linux",
        "role notin (db)",
        "role!=db",
        "gpu!=yes",
        "gpu notin (a,b)",
        "env=*",
        "name=web-1",
        "kernel=6.1.0-26-amd64",
        "! retired",
    ] {
        let selector = Selector::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(selector.matches(&Web1::new()), "{text}");
    }
}

#[test]
fn what_does_not_match_web_1() {
    for text in [
        "web-2",
        "env=dev",
        "env!=prod",
        "!env",
        "gpu=*",
        "gpu in (a,b)",
        "role notin (web,api)",
        "distro=debian",
        "env=prod,role=db",
    ] {
        assert!(
            !Selector::parse(text).unwrap().matches(&Web1::new()),
            "{text}"
        );
    }
}

#[test]
fn a_mistake_is_shown_where_it_is() {
    for (text, position) in [
        ("", 0),
        ("   ", 3),
        ("env=prod,", 9),
        ("env=", 4),
        ("env prod", 4),
        ("role in web", 8),
        ("role in (web", 12),
        ("web-1,env=prod", 6),
        ("env=prod,web-1", 9),
        ("é=1", 0),
        ("env=prod role=web", 9),
        ("env!prod", 4),
        ("all=1", 0),
        ("a;b", 1),
    ] {
        let error = Selector::parse(text).expect_err(text);
        assert_eq!(error.position, position, "{text}: {error}");
    }
}

#[test]
fn all_among_others_is_a_host_name() {
    assert_eq!(
        Selector::parse("all,web-1"),
        Ok(Selector::Hosts(vec!["all".to_owned(), "web-1".to_owned()]))
    );
}

proptest! {
    #[test]
    fn no_text_panics_and_positions_lie_within(text in ".{0,60}") {
        if let Err(error) = Selector::parse(&text) {
            prop_assert!(error.position <= text.chars().count());
        }
    }

    #[test]
    fn a_label_and_its_negation_never_agree(key in "[a-z]{1,8}x", value in "[a-z0-9]{1,8}") {
        let yes = Selector::parse(&format!("{key}={value}")).unwrap();
        let no = Selector::parse(&format!("{key}!={value}")).unwrap();
        prop_assert_ne!(yes.matches(&Web1::new()), no.matches(&Web1::new()));
    }
}
