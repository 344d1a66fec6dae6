//! What a host and its labels may be called. Pure.

use muster_proto::ids::HostId;

use super::{FactKey, Labels};

/// Labels that one host may have.
const LABELS_MAX: usize = 64;

/// Characters of a name, a label's key or its value.
const LENGTH_MAX: usize = 63;

/// Why a name or label is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} {problem}")]
pub(crate) struct NameError {
    what: &'static str,
    value: String,
    problem: String,
}

fn error(what: &'static str, value: &str, problem: impl Into<String>) -> NameError {
    NameError {
        what,
        value: value.chars().take(80).collect(),
        problem: problem.into(),
    }
}

/// Checks the name of a host or principal: 1 to 63 of a-z, 0-9, "-" and ".", ending in letters or
/// digits. A name that reads as a host id or as a word of the selector grammar would be ambiguous.
pub(crate) fn check_name(name: &str) -> Result<(), NameError> {
    let edge = |character: Option<char>| {
        character.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.len() > LENGTH_MAX
        || !name.chars().all(inside)
        || !edge(name.chars().next())
        || !edge(name.chars().next_back())
    {
        return Err(error(
            "name",
            name,
            "is not 1 to 63 of a-z, 0-9, \"-\" and \".\", with a letter or digit at both ends",
        ));
    }
    if matches!(name, "all" | "in" | "notin") || name.parse::<HostId>().is_ok() {
        return Err(error("name", name, "means something else in a selector"));
    }
    Ok(())
}

/// Makes a name of a text such as a hostname, as near to it as `check_name` allows.
pub(crate) fn make_name(text: &str) -> String {
    let short = text.split('.').next().unwrap_or_default();
    let mut name: String = short
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(LENGTH_MAX - 8)
        .collect();
    name = name.trim_matches('-').to_owned();
    if check_name(&name).is_ok() {
        name
    } else {
        "host".to_owned()
    }
}

/// Checks a whole set of labels.
pub(crate) fn check_labels(labels: &Labels) -> Result<(), NameError> {
    if labels.len() > LABELS_MAX {
        return Err(error(
            "label",
            labels.keys().next_back().map_or("", String::as_str),
            format!("is one too many: a host has at most {LABELS_MAX}"),
        ));
    }
    for (key, value) in labels {
        check_key(key)?;
        if value.is_empty() || value.len() > LENGTH_MAX || !value.chars().all(is_label_character) {
            return Err(error(
                "label value",
                value,
                format!("of {key:?} is not 1 to 63 of letters, digits and - _ . / : + ~"),
            ));
        }
    }
    Ok(())
}

fn check_key(key: &str) -> Result<(), NameError> {
    if FactKey::from_text(key).is_some() || matches!(key, "all" | "in" | "notin") {
        return Err(error("label key", key, "is a word of the selector grammar"));
    }
    let inside = |c: char| is_label_character(c) && !matches!(c, ':' | '+' | '~');
    if key.is_empty() || key.len() > LENGTH_MAX || !key.chars().all(inside) {
        return Err(error(
            "label key",
            key,
            "is not 1 to 63 of letters, digits and - _ . /",
        ));
    }
    Ok(())
}

fn is_label_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '+' | '~')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hostnames_that_no_selector_misreads() {
        for name in ["web-1", "a", "10.0.0.7", "db-1.internal"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in [
            "",
            "Web",
            "-a",
            "a-",
            "a_b",
            "all",
            "in",
            "h-00000000000000000000",
            "a,b",
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name(&"a".repeat(64)).is_err());
    }

    #[test]
    fn any_hostname_becomes_a_name() {
        for (text, name) in [
            ("Web-1.example.org", "web-1"),
            ("my_laptop", "my-laptop"),
            ("", "host"),
            ("---", "host"),
            ("all", "host"),
        ] {
            assert_eq!(make_name(text), name);
            assert_eq!(check_name(&make_name(text)), Ok(()));
        }
    }

    #[test]
    fn labels_are_what_selectors_can_say() {
        let labels = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
        for (key, value) in [("env", "prod"), ("team/x", "a.b_c"), ("v", "1.2.3+x")] {
            assert_eq!(check_labels(&labels(key, value)), Ok(()), "{key}={value}");
        }
        for (key, value) in [
            ("os", "linux"),
            ("", "x"),
            ("a b", "x"),
            ("a", ""),
            ("a", "x y"),
            ("a", "é"),
        ] {
            assert!(check_labels(&labels(key, value)).is_err(), "{key}={value}");
        }
    }
}
