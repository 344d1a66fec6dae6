//! Values of an environment that look secret: whoever reads history does not see them, they are encrypted while they are
//! needed (`secrets.rs`), and then the ledger forgets them. By looks only: what is secret and looks like nothing special
//! stays.

use bytes::Bytes;
use muster_proto::v1::{Action, Command, action};
use prost::Message as _;

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

fn redact(action: &mut Action) -> bool {
    let Some(action::Kind::Command(Command { env, .. })) = &mut action.kind else {
        return false;
    };
    let mut any = false;
    for (name, value) in env.iter_mut() {
        if looks_secret(name, value) {
            REDACTED.clone_into(value);
            any = true;
        }
    }
    any
}

/// A serialized action with something else in the place of each value that looks secret; `None` if none does.
pub(crate) fn replaced<E>(
    action: &Bytes,
    mut other: impl FnMut(&str, &str) -> Result<String, E>,
) -> Result<Option<Bytes>, E> {
    let Ok(mut action) = Action::decode(Bytes::clone(action)) else {
        return Ok(None);
    };
    let Some(action::Kind::Command(Command { env, .. })) = &mut action.kind else {
        return Ok(None);
    };
    let mut any = false;
    for (name, value) in env.iter_mut() {
        if looks_secret(name, value) {
            *value = other(name, value)?;
            any = true;
        }
    }
    Ok(any.then(|| action.encode_to_vec().into()))
}

/// Whether values were taken out of an action for good.
pub(crate) fn lacks_secrets(action: &Bytes) -> bool {
    let kind = Action::decode(Bytes::clone(action)).map(|action| action.kind);
    match kind {
        Ok(Some(action::Kind::Command(command))) => {
            command.env.values().any(|value| value == REDACTED)
        }
        _ => false,
    }
}

/// The action as history shows it.
pub(crate) fn shown(mut action: Action) -> Action {
    redact(&mut action);
    action
}

/// A serialized action without what looks secret; `None` if nothing in it does.
pub(crate) fn without_secrets(action: &Bytes) -> Option<Bytes> {
    let mut action = Action::decode(Bytes::clone(action)).ok()?;
    redact(&mut action).then(|| action.encode_to_vec().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(env: &[(&str, &str)]) -> Action {
        Action {
            kind: Some(action::Kind::Command(Command {
                argv: vec!["deploy".to_owned()],
                env: env
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
                ..Command::default()
            })),
        }
    }

    fn shown_value(name: &str, value: &str) -> String {
        match shown(action(&[(name, value)])).kind {
            Some(action::Kind::Command(command)) => command.env[name].clone(),
            _ => unreachable!("it is a command"),
        }
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

    #[test]
    fn an_action_without_secrets_stays_as_it_is() {
        let bytes = |action: &Action| Bytes::from(action.encode_to_vec());
        assert_eq!(without_secrets(&bytes(&action(&[("LANG", "C")]))), None);
        let redacted = without_secrets(&bytes(&action(&[("TOKEN", "hush")]))).unwrap();
        assert!(!redacted.windows(4).any(|window| window == b"hush"));
        assert_eq!(without_secrets(&redacted), None, "once is enough");
        assert_eq!(without_secrets(&Bytes::from_static(b"\xff")), None);
    }
}
