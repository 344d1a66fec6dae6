//! What is to be done on each host, decoded once and without its secrets.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use muster_proto::v1::{self, action::Kind};
use prost::{DecodeError, Message as _};

use super::redaction::{self, REDACTED};

/// Values by the names of their variables.
pub(crate) type Values = BTreeMap<String, String>;

/// An action as it was checked. `[redacted]` stands in it for each value that looks secret: those stand apart, in
/// [`Order::secrets`](super::Order::secrets), so an action never changes once its job is accepted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Action {
    /// As hosts keep it: receipts sign these very bytes.
    bytes: Bytes,
    said: v1::Action,
}

impl Action {
    /// An action as a caller gives it, and the values that were taken out of it because they look secret.
    pub(crate) fn new(mut said: v1::Action) -> (Self, Values) {
        let values = redaction::take(&mut said);
        let bytes = said.encode_to_vec().into();
        (Self { bytes, said }, values)
    }

    /// An action that is written down: what looked secret was taken out of it then.
    pub(crate) fn read(bytes: Bytes) -> Result<Self, DecodeError> {
        let said = v1::Action::decode(Bytes::clone(&bytes))?;
        Ok(Self { bytes, said })
    }

    /// Serialized.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The action in the contract's words, as people see it.
    pub(crate) fn said(&self) -> &v1::Action {
        &self.said
    }

    /// The names of the variables whose values stand apart, in the order of the environment.
    pub(crate) fn withheld(&self) -> impl Iterator<Item = &str> {
        let env = match &self.said.kind {
            Some(Kind::Command(command)) => Some(command.env.iter()),
            _ => None,
        };
        let withheld = env.into_iter().flatten();
        withheld
            .filter(|(_, value)| *value == REDACTED)
            .map(|(name, _)| name.as_str())
    }

    /// The action with these values in it again; `None` if one that it needs is not among them.
    pub(crate) fn with(&self, values: &HashMap<String, String>) -> Option<v1::Action> {
        let mut said = self.said.clone();
        if let Some(Kind::Command(command)) = &mut said.kind {
            for (name, value) in &mut command.env {
                if value == REDACTED {
                    values.get(name)?.clone_into(value);
                }
            }
        }
        Some(said)
    }

    /// Whether the output of its tasks is kept with its times.
    pub(crate) fn records_times(&self) -> bool {
        matches!(&self.said.kind, Some(Kind::Command(command)) if command.record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(env: &[(&str, &str)]) -> v1::Action {
        let env = env.iter();
        let command = v1::Command {
            argv: vec!["deploy".to_owned()],
            env: env
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..v1::Command::default()
        };
        v1::Action {
            kind: Some(Kind::Command(command)),
        }
    }

    #[test]
    fn what_looks_secret_stands_apart_and_goes_in_again() {
        let given = action(&[("A_TOKEN", "hush"), ("LANG", "C"), ("B_KEY", "quiet")]);
        let (kept, values) = Action::new(given.clone());
        assert_eq!(kept.withheld().collect::<Vec<_>>(), ["A_TOKEN", "B_KEY"]);
        assert_eq!(values["A_TOKEN"], "hush");
        for word in ["hush", "quiet"] {
            assert!(
                !kept
                    .bytes()
                    .windows(word.len())
                    .any(|part| part == word.as_bytes())
            );
        }
        assert_eq!(Action::read(kept.bytes().clone()), Ok(kept.clone()));

        let mut values: HashMap<_, _> = values.into_iter().collect();
        assert_eq!(kept.with(&values), Some(given));
        values.remove("B_KEY");
        assert_eq!(kept.with(&values), None);
    }

    #[test]
    fn an_action_without_secrets_stays_as_it_is() {
        let given = action(&[("LANG", "C"), ("API_TOKEN", "")]);
        let (kept, values) = Action::new(given.clone());
        assert!(values.is_empty());
        assert_eq!(kept.withheld().count(), 0);
        assert_eq!(
            (kept.said(), &**kept.bytes()),
            (&given, &*given.encode_to_vec())
        );
        assert_eq!(kept.with(&HashMap::new()), Some(given));
        assert!(Action::read(Bytes::from_static(b"\xff")).is_err());
    }
}
