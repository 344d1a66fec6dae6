//! Values of an environment that look secret: whoever reads history does not see them, they are encrypted while they are
//! needed (`secrets.rs`), and then the ledger forgets them. By looks only: what is secret and looks like nothing special
//! stays.

use std::{collections::BTreeMap, mem};

use muster_proto::v1::{Action, Command, action};

/// What stands in the place of such a value.
pub(crate) const REDACTED: &str = "[redacted]";

/// What a value that was encrypted begins with; behind it the key's id, a colon, and base64.
pub(crate) const CLOSED_START: &str = "muster-secret-1:";

/// A name that holds one of these, in whatever case, looks secret: the agent withholds the same from processes.
const SECRET_NAMES: [&str; 6] = ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "KEY", "CREDENTIAL"];

/// How credentials of well-known makers begin.
const SECRET_STARTS: [&str; 18] = [
    "mst_",
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "AKIA",
    "ASIA",
    "sk-",
    "sk_live_",
    "xoxb-",
    "xoxp-",
    "AIza",
    "eyJ",
    "npm_",
    "-----BEGIN ",
];

/// Shorter values begin so by chance.
const STARTED_MIN: usize = 12;

/// Whether a value was encrypted.
pub(crate) fn is_closed(value: &str) -> bool {
    value.starts_with(CLOSED_START)
}

fn looks_secret(name: &str, value: &str) -> bool {
    if is_closed(value) {
        return true;
    }
    let name = name.to_ascii_uppercase();
    let by_name = SECRET_NAMES.iter().any(|word| name.contains(word));
    let by_value = value.len() >= STARTED_MIN
        && SECRET_STARTS
            .iter()
            .any(|start| value.trim_start().starts_with(start));
    // A password inside an address: "postgres://ada:secret@db/…".
    let in_address = value
        .split_once("://")
        .and_then(|(_, rest)| rest.split('/').next()?.split_once('@'))
        .is_some_and(|(login, _)| {
            login
                .split_once(':')
                .is_some_and(|(_, word)| !word.is_empty())
        });
    (by_name || by_value || in_address) && !value.is_empty() && value != REDACTED
}

/// Takes the values that look secret out of an action, and puts [`REDACTED`] in their places. Returns them by the names of
/// their variables.
pub(crate) fn take(action: &mut Action) -> BTreeMap<String, String> {
    let mut taken = BTreeMap::new();
    let Some(action::Kind::Command(Command { env, .. })) = &mut action.kind else {
        return taken;
    };
    for (name, value) in env.iter_mut() {
        if looks_secret(name, value) {
            taken.insert(name.clone(), mem::replace(value, REDACTED.to_owned()));
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown_value(name: &str, value: &str) -> String {
        let mut action = Action {
            kind: Some(action::Kind::Command(Command {
                env: [(name.to_owned(), value.to_owned())].into(),
                ..Command::default()
            })),
        };
        let taken = take(&mut action);
        let Some(action::Kind::Command(command)) = action.kind else {
            unreachable!("it is a command");
        };
        let shown = command.env[name].clone();
        assert_eq!(
            taken.get(name).map(|_| &*shown),
            (shown == REDACTED).then_some(REDACTED)
        );
        shown
    }

    #[test]
    fn what_looks_secret_by_name_or_value_is_not_shown() {
        for (name, value) in [
            ("DB_PASSWORD", "x"),
            ("github_token", "x"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
            ("AUTH", "ghp_0123456789abcdef"),
            ("AUTH", "mst_0123456789abcdef"),
            ("AUTH", "AKIA0123456789ABCDEF"),
            ("AUTH", "eyJhbGciOiJIUzI1NiJ9.e30.x"),
            ("DATABASE_URL", "postgres://ada:word@db/app"),
        ] {
            assert_eq!(shown_value(name, value), REDACTED, "{name}={value}");
        }
        for (name, value) in [
            ("LANG", "C.UTF-8"),
            ("URL", "https://example.org/a@b"),
            ("DATABASE_URL", "postgres://ada@db/app"),
            ("NAME", "sk-1"),
            ("API_TOKEN", ""),
        ] {
            assert_eq!(shown_value(name, value), value);
        }
    }
}
