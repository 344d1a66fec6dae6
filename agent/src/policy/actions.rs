//! Which kinds of action a policy lets run.

use serde::Deserialize;

use crate::actions::Declared;

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Written {
    allow: Option<Vec<String>>,
    deny: Vec<String>,
}

/// The kinds that may run, by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Actions {
    /// Only these; `None` is all that nothing else refuses.
    allow: Option<Vec<String>>,
    deny: Vec<String>,
    /// The policy lists programs: whoever wrote it meant to say all that may run, and had no other kinds in mind.
    lists_programs: bool,
}

impl Actions {
    /// Reads what is written, where these are the kinds that there are.
    pub(super) fn read(
        written: Written,
        lists_programs: bool,
        known: &[&Declared],
    ) -> Result<Self, String> {
        let Written { allow, deny } = written;
        for name in allow.iter().flatten().chain(&deny) {
            if !known.iter().any(|kind| kind.name == name) {
                let known: Vec<&str> = known.iter().map(|kind| kind.name).collect();
                let known = known.join(", ");
                return Err(format!("[actions]: {name:?} is none of {known}"));
            }
        }
        if let Some(both) = allow.iter().flatten().find(|name| deny.contains(name)) {
            return Err(format!("[actions]: {both:?} is allowed and denied"));
        }
        Ok(Self {
            allow,
            deny,
            lists_programs,
        })
    }

    /// Why a task of this kind does not run; `None` if it may.
    pub(super) fn refuse(&self, kind: &Declared) -> Option<String> {
        let name = kind.name;
        if self.deny.iter().any(|denied| denied == name) {
            return Some(format!(
                "the policy of this host denies tasks of the kind {name} ([actions] deny)"
            ));
        }
        match &self.allow {
            Some(allowed) if allowed.iter().any(|allowed| allowed == name) => None,
            Some(allowed) => Some(format!(
                "the policy of this host lets tasks of no other kind than {allowed:?} run ([actions] allow), and this \
                 is {name}"
            )),
            None if self.lists_programs && !kind.starts_programs => Some(format!(
                "the policy of this host lists [programs] and does not name tasks of the kind {name}; its owner can: \
                 [actions] allow = [\"command\", \"{name}\"]"
            )),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::Mode;

    use super::*;

    const fn kind(name: &'static str, starts_programs: bool) -> Declared {
        Declared {
            name,
            needs: Mode::ReadOnly,
            starts_programs,
        }
    }

    const COMMAND: Declared = kind("command", true);
    const READ: Declared = kind("file_read", false);
    const WRITE: Declared = kind("file_write", false);
    const KNOWN: [&Declared; 3] = [&COMMAND, &READ, &WRITE];

    fn read(text: &str, lists_programs: bool) -> Result<Actions, String> {
        Actions::read(toml::from_str(text).unwrap(), lists_programs, &KNOWN)
    }

    fn may(actions: &Actions) -> Vec<&'static str> {
        let may = KNOWN.iter().filter(|kind| actions.refuse(kind).is_none());
        may.map(|kind| kind.name).collect()
    }

    #[test]
    fn a_policy_that_says_nothing_lets_every_kind_run() {
        let all = ["command", "file_read", "file_write"];
        assert_eq!(may(&read("", false).unwrap()), all);
        assert_eq!(may(&Actions::default()), all);
    }

    #[test]
    fn what_is_denied_or_not_among_the_allowed_does_not_run() {
        let denies = read("deny = [\"file_write\"]", false).unwrap();
        assert_eq!(may(&denies), ["command", "file_read"]);
        let allows = read("allow = [\"file_read\"]", false).unwrap();
        assert_eq!(may(&allows), ["file_read"]);
        assert_eq!(may(&read("allow = []", false).unwrap()), [""; 0]);
    }

    #[test]
    fn a_policy_that_lists_programs_refuses_kinds_that_it_does_not_name() {
        let old = read("", true).unwrap();
        assert_eq!(may(&old), ["command"]);
        let words = old.refuse(&READ).unwrap();
        assert!(words.contains("allow = [\"command\", \"file_read\"]"));
        let denies = read("deny = [\"file_write\"]", true).unwrap();
        assert_eq!(may(&denies), ["command"], "file_read is not named");
        let names = read("allow = [\"command\", \"file_read\"]", true).unwrap();
        assert_eq!(may(&names), ["command", "file_read"]);
    }

    #[test]
    fn what_is_unknown_or_makes_no_sense_is_refused() {
        assert!(read("allow = [\"file_raed\"]", false).is_err());
        assert!(read("deny = [\"shell\"]", false).is_err());
        let both = read("allow = [\"command\"]\ndeny = [\"command\"]", false);
        assert!(both.is_err());
        assert!(toml::from_str::<Written>("only = []").is_err());
    }
}
