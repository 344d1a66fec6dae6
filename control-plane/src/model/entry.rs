//! One entry of the audit log, and its text.

use std::{borrow::Cow, sync::Arc};

use data_encoding::HEXLOWER;
use muster_proto::ids::HostId;
use serde::{Serialize, Serializer};

use crate::clock::now;

/// Hosts that an entry names. Of more it says how many, and the digest of all.
const HOSTS_NAMED_MAX: usize = 64;

/// Characters of anything in an entry that a caller chose.
const TEXT_MAX: usize = 200;

/// How something was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// It may be.
    #[default]
    Allow,
    /// It may not.
    Deny,
    /// Not before others have agreed.
    NeedsApproval,
    /// Not before the caller has confirmed it.
    NeedsConfirmation,
}

/// Who did what, how it was decided, and what came of it. Empty parts are left out of the text.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Entry {
    /// Unix milliseconds.
    pub(crate) time: i64,
    /// As "operator/ada"; empty while nobody has proved who calls.
    pub(crate) principal: Arc<str>,
    /// The certificate that the call came by, if it is not the principal's own: "gateway/local".
    pub(crate) via: Arc<str>,
    /// Where the call came from.
    pub(crate) address: Arc<str>,
    /// "muster.v1.JobService/RunJob"; what is no call has a name such as "task.end".
    pub(crate) method: Cow<'static, str>,
    /// SHA-256 of the request.
    pub(crate) request_digest: Option<[u8; 32]>,
    /// The hosts that it is about.
    pub(crate) hosts: Vec<HostId>,
    /// How it was decided.
    pub(crate) verdict: Verdict,
    /// What decided.
    pub(crate) rules: Vec<Arc<str>>,
    /// The reason of a refusal or failure, from the contract's list.
    pub(crate) reason: Cow<'static, str>,
    /// What came of it: ("job", "j-…"), ("exit_code", "0").
    pub(crate) effect: Vec<(&'static str, String)>,
    /// How many this entry stands for, beside one of them.
    pub(crate) repeated: u64,
    /// The id of the call's trace, 32 hex digits; empty without one.
    pub(crate) trace_id: Arc<str>,
}

/// An entry that has no number yet: its text is complete but for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryText {
    /// Unix milliseconds.
    time: i64,
    /// The members of its object behind the number, without the braces.
    members: Arc<str>,
}

impl EntryText {
    /// An entry of this time with the members of a JSON object, written without its braces.
    pub(crate) fn new(time: i64, members: impl Into<Arc<str>>) -> Self {
        let members = members.into();
        Self { time, members }
    }

    /// When.
    pub(crate) fn time(&self) -> i64 {
        self.time
    }

    /// Members of the JSON object, without braces.
    pub(crate) fn members(&self) -> &str {
        &self.members
    }

    /// How large it is, bytes.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }
}

#[derive(Serialize)]
struct Members<'a> {
    time: i64,
    method: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    principal: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    via: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    address: &'a str,
    verdict: Verdict,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    rules: Vec<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    hosts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_count: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hosts_digest: Option<String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "pairs")]
    effect: &'a [(&'static str, String)],
    #[serde(skip_serializing_if = "is_zero")]
    repeated: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    trace: &'a str,
}

fn pairs<S: Serializer>(pairs: &&[(&str, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (name, shown(value))))
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// At most so much of what a caller chose.
fn shown(text: &str) -> &str {
    text.char_indices()
        .nth(TEXT_MAX)
        .map_or(text, |(end, _)| &text[..end])
}

impl Entry {
    /// An entry of this moment.
    pub(crate) fn new(method: impl Into<Cow<'static, str>>) -> Self {
        Self {
            time: now(),
            method: method.into(),
            ..Self::default()
        }
    }

    /// By this principal.
    pub(crate) fn by(mut self, principal: impl Into<Arc<str>>) -> Self {
        self.principal = principal.into();
        self
    }

    /// With this effect.
    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.effect.push((name, value.to_string()));
        self
    }

    /// About this host.
    pub(crate) fn on(mut self, host: HostId) -> Self {
        self.hosts.push(host);
        self
    }

    /// So many entries found no room and were not written.
    pub(crate) fn unwritten(entries: u64, time: i64) -> Self {
        let entry = Self {
            time,
            repeated: entries,
            ..Self::new("audit.unwritten")
        };
        entry.by("control-plane")
    }

    /// Its text, but for the number.
    pub(crate) fn text(&self) -> EntryText {
        let named = self.hosts.len() <= HOSTS_NAMED_MAX;
        let hosts: Vec<_> = self.hosts.iter().map(ToString::to_string).collect();
        let digest = (!named).then(|| digest(&hosts));
        let members = Members {
            time: self.time,
            method: shown(&self.method),
            principal: shown(&self.principal),
            via: shown(&self.via),
            address: &self.address,
            verdict: self.verdict,
            rules: self.rules.iter().map(|rule| shown(rule)).collect(),
            reason: shown(&self.reason),
            request: self.request_digest.map(|digest| HEXLOWER.encode(&digest)),
            host_count: (!named).then_some(hosts.len()),
            hosts: if named { hosts } else { Vec::new() },
            hosts_digest: digest,
            effect: &self.effect,
            repeated: self.repeated,
            trace: &self.trace_id,
        };
        let object = serde_json::to_string(&members).expect("texts and numbers are JSON");
        EntryText::new(self.time, &object[1..object.len() - 1])
    }
}

/// SHA-256 over the ids in order, each with a line break behind it.
fn digest(ids: &[String]) -> String {
    let mut sorted: Vec<_> = ids.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for id in sorted {
        context.update(id.as_bytes());
        context.update(b"\n");
    }
    HEXLOWER.encode(context.finish().as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_is_left_out_and_what_is_long_is_cut() {
        let mut entry = Entry::new("task.end").with("task", "t-1");
        entry.time = 7;
        assert_eq!(
            entry.text().members(),
            r#""time":7,"method":"task.end","verdict":"allow","effect":{"task":"t-1"}"#
        );
        let entry = entry.by("x".repeat(5000)).with("words", "ä\"".repeat(500));
        assert!(entry.text().len() < 1500);
    }

    #[test]
    fn of_many_hosts_the_digest_is_told_whatever_their_order() {
        let ids: Vec<_> = (0..=HOSTS_NAMED_MAX)
            .map(|number| HostId::from_bytes(&[number as u8; 32]))
            .collect();
        let text = |hosts: Vec<HostId>| {
            let mut entry = Entry::new("m");
            (entry.time, entry.hosts) = (7, hosts);
            entry.text()
        };
        let all = text(ids.clone());
        assert!(all.members().contains(r#""host_count":65"#));
        assert!(!all.members().contains("h-"));
        assert_eq!(all, text(ids.iter().rev().copied().collect()));
        assert!(
            text(ids[1..].to_vec())
                .members()
                .contains(&ids[1].to_string())
        );
    }
}
