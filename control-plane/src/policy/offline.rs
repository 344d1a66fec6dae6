//! Policies without a control plane: files that are checked and tried before anybody sets them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Deserialize;

use super::{
    Circumstances, Hour, Judge, PolicyError, Resource, Right, Set, Source, Target, TraitsKept,
    Verdict, Who, plan,
};
use crate::model::{Files, Kind, Mode, ModeError, NetworkAccess};

/// Cases of one table.
const CASES_MAX: usize = 10_000;

/// Files that fit the schema.
pub struct PolicyFiles(Judge);

/// A case of a table, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriedCase {
    /// Its name, or its number.
    pub name: String,
    /// What the table says: "allow", "deny", "needs-approval" or "needs-confirmation".
    pub expected: String,
    /// What the policies say.
    pub found: String,
    /// The policies that decided.
    pub rules: Vec<String>,
}

impl TriedCase {
    /// The policies say what the table says.
    pub fn holds(&self) -> bool {
        self.expected == self.found
    }
}

/// How long decisions took.
#[derive(Debug, Clone)]
pub struct DecisionTimes {
    /// Each decision that had to be thought about.
    pub thought: Vec<Duration>,
    /// A whole job, the first time.
    pub first: Duration,
    /// The same job again.
    pub again: Duration,
    /// On how many hosts it was denied.
    pub denied: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default)]
    case: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: Option<String>,
    principal: String,
    #[serde(default)]
    owner: String,
    /// Those of its kind, unless it says others.
    roles: Option<Vec<String>>,
    action: String,
    /// The id of the host, where a policy names hosts.
    #[serde(default)]
    host: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// What an operator lowered the host to.
    limit: Option<String>,
    mode: Option<String>,
    network: Option<String>,
    #[serde(default = "one")]
    hosts: u32,
    #[serde(default)]
    source: String,
    #[serde(default)]
    confirmed: bool,
    #[serde(default)]
    approvals: u32,
    #[serde(default)]
    own: bool,
    /// Unix seconds; what depends on the time is tried at this one.
    #[serde(default)]
    time: i64,
    expect: String,
}

fn one() -> u32 {
    1
}

impl PolicyFiles {
    /// The files that are shipped.
    pub fn shipped() -> Self {
        Self(Judge::new(Set::shipped(), 0))
    }

    /// Reads files by name and checks them against the schema.
    pub fn read(files: BTreeMap<String, String>) -> Result<Self, PolicyError> {
        let files: Files = files;
        Ok(Self(Judge::new(Set::read(files)?, 0)))
    }

    /// How many policies there are.
    pub fn count(&self) -> usize {
        self.0.set.rules().len()
    }

    /// The files by name.
    pub fn files(&self) -> &BTreeMap<String, String> {
        &self.0.set.files
    }

    /// Tries a table of cases, in TOML. What is wrong with the table is said in words.
    pub fn try_cases(&self, text: &str) -> Result<Vec<TriedCase>, String> {
        let table: Table = toml::from_str(text).map_err(|error| error.to_string())?;
        if table.case.is_empty() {
            return Err("there is no [[case]]".to_owned());
        }
        if table.case.len() > CASES_MAX {
            return Err(format!("there are more than {CASES_MAX} cases"));
        }
        let cases = table.case.iter().enumerate();
        cases
            .map(|(index, case)| {
                let name = case.name.clone();
                let name = name.unwrap_or_else(|| format!("case {}", index + 1));
                self.try_case(case, &name)
                    .map_err(|problem| format!("{name}: {problem}"))
            })
            .collect()
    }

    /// How long it takes to decide about a job of an ai on so many hosts with so many different sets of labels: each
    /// decision that has to be thought about, a whole job the first time, and a whole job once it is remembered.
    pub fn time(&self, hosts: usize, sets: usize) -> DecisionTimes {
        let who = Who {
            principal: "ai/claude".into(),
            owner: "operator/ada".into(),
            roles: ["ai".into()].into(),
        };
        let mut kept = TraitsKept::default();
        let traits: Vec<_> = (0..hosts)
            .map(|host| {
                let set = (host % sets.max(1)).to_string();
                let labels = [("env", "prod"), ("role", "web"), ("set", &*set)];
                let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
                kept.of(&labels.into(), None)
            })
            .collect();
        let targets: Vec<Target<'_>> = traits
            .iter()
            .map(|traits| Target {
                id: "h-1",
                traits,
                granted: false,
            })
            .collect();
        let how = Circumstances {
            mode: Some(Mode::Edit),
            network: Some(NetworkAccess::All),
            ..Circumstances::default()
        };
        let fresh = || {
            let set = Set::read(self.0.set.files.clone()).expect("it was read before");
            Judge::new(set, 0)
        };
        let judge = fresh();
        let timed = traits.iter().take(sets).map(|traits| {
            let begun = Instant::now();
            let about = Resource::Host("h-1", traits);
            judge.judge(&who, Right::Run(Kind::Command), about, how, Hour::default());
            begun.elapsed()
        });
        let thought = timed.collect();
        let judge = fresh();
        let job = || {
            let begun = Instant::now();
            let (command, any) = (Kind::Command, (None, None));
            let plan = plan(&judge, &who, &targets, command, any, how, Hour::default());
            (begun.elapsed(), plan.denied.len())
        };
        let (first, denied) = job();
        DecisionTimes {
            thought,
            first,
            again: job().0,
            denied,
        }
    }

    fn try_case(&self, case: &Case, name: &str) -> Result<TriedCase, String> {
        let right = Right::from_text(&case.action)
            .ok_or_else(|| format!("there is no action {:?}", case.action))?;
        let expected = ["allow", "deny", "needs-approval", "needs-confirmation"];
        if !expected.contains(&&*case.expect) {
            return Err(format!("expect is one of {}", expected.join(", ")));
        }
        let mode = |text: &Option<String>| -> Result<Option<Mode>, String> {
            let mode = text.as_deref().map(str::parse).transpose();
            mode.map_err(|error: ModeError| error.to_string())
        };
        let network = match case.network.as_deref() {
            None => None,
            Some("none") => Some(NetworkAccess::None),
            Some("list") => Some(NetworkAccess::List),
            Some("all") => Some(NetworkAccess::All),
            Some(_) => return Err("network is none, list or all".to_owned()),
        };
        let source = match case.source.as_str() {
            "" | "grpc" => Source::Grpc,
            "mcp" => Source::Mcp,
            _ => return Err("source is grpc or mcp".to_owned()),
        };
        let traits = TraitsKept::default().of(&case.labels, mode(&case.limit)?);
        let about = if right.is_about_hosts() {
            Resource::Host(&case.host, &traits)
        } else {
            Resource::Fleet
        };
        let how = Circumstances {
            mode: mode(&case.mode)?,
            network,
            hosts: case.hosts,
            source,
            confirmed: case.confirmed,
            approvals: case.approvals,
            own: case.own,
            granted: false,
        };
        let hour = Hour::of(case.time.saturating_mul(1000));
        let judged = self.0.judge(&who(case)?, right, about, how, hour);
        Ok(TriedCase {
            name: name.to_owned(),
            expected: case.expect.clone(),
            found: match judged.verdict {
                Verdict::Allow => "allow",
                Verdict::Deny => "deny",
                Verdict::NeedsApproval { .. } => "needs-approval",
                Verdict::NeedsConfirmation => "needs-confirmation",
            }
            .to_owned(),
            rules: judged.rules.iter().map(ToString::to_string).collect(),
        })
    }
}

fn who(case: &Case) -> Result<Who, String> {
    let usual: HashMap<&str, &str> = [
        ("operator", "operator"),
        ("automation", "operator"),
        ("ai", "ai"),
    ]
    .into();
    let kind = case.principal.split_once('/').map(|(kind, _)| kind);
    let usual = kind
        .and_then(|kind| usual.get(kind))
        .ok_or("principal looks like \"ai/claude\"")?;
    let roles: Vec<Arc<str>> = match &case.roles {
        Some(roles) => roles.iter().map(|role| role.as_str().into()).collect(),
        None => vec![(*usual).into()],
    };
    Ok(Who {
        principal: case.principal.as_str().into(),
        owner: case.owner.as_str().into(),
        roles: roles.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_tried_line_by_line() {
        let table = r#"
[[case]]
name = "an ai edits"
principal = "ai/claude"
action = "job.create"
labels = { env = "prod" }
mode = "edit"
expect = "allow"

[[case]]
principal = "ai/claude"
action = "job.create"
mode = "bypass"
expect = "allow"
"#;
        let tried = PolicyFiles::shipped().try_cases(table).unwrap();
        assert!(tried[0].holds() && tried[0].rules == ["ai-edits"]);
        assert!(!tried[1].holds());
        assert_eq!((&*tried[1].name, &*tried[1].found), ("case 2", "deny"));
    }

    #[test]
    fn a_job_that_is_timed_is_decided() {
        let times = PolicyFiles::shipped().time(50, 5);
        assert_eq!((times.thought.len(), times.denied), (5, 0));
    }

    #[test]
    fn a_table_that_cannot_be_tried_says_why() {
        let shipped = PolicyFiles::shipped();
        for (table, word) in [
            ("", "case"),
            ("[[case]]\nprincipal = 3", "principal"),
            (
                "[[case]]\nprincipal=\"ai/x\"\naction=\"a\"\nexpect=\"allow\"",
                "action",
            ),
            (
                "[[case]]\nprincipal=\"x\"\naction=\"job.read\"\nexpect=\"allow\"",
                "principal",
            ),
            (
                "[[case]]\nprincipal=\"ai/x\"\naction=\"job.read\"\nexpect=\"yes\"",
                "expect",
            ),
            (
                "[[case]]\nprincipal=\"ai/x\"\naction=\"job.read\"\nexpect=\"deny\"\nmood=1",
                "mood",
            ),
        ] {
            let error = shipped.try_cases(table).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
