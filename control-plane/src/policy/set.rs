//! A set of policies: files in, checked against the schema, and made ready to be asked.

mod files;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, LazyLock},
};

use cedar_policy::{
    ActionConstraint, EntityUid, Policy, PolicyId, PolicySet, PrincipalConstraint, Schema,
    ValidationMode, Validator,
};

pub use self::files::PolicyError;
use self::files::{about_all, about_rule, at, check_names, read_file};
use super::{
    Right,
    entities::{TYPES, Type, action_uid},
    limits::Limits,
    readings::Readings,
};
use crate::model::Files;

/// The files that are shipped, in force until somebody sets others.
pub(crate) const SHIPPED: [(&str, &str); 5] = [
    ("admin.cedar", include_str!("../../policies/admin.cedar")),
    ("ai.cedar", include_str!("../../policies/ai.cedar")),
    ("limits.toml", include_str!("../../policies/limits.toml")),
    (
        "operator.cedar",
        include_str!("../../policies/operator.cedar"),
    ),
    ("viewer.cedar", include_str!("../../policies/viewer.cedar")),
];

/// What policies speak of.
pub(crate) const SCHEMA: &str = include_str!("../../policies/muster.cedarschema");

/// The file with limits; every other one holds policies.
pub(crate) const LIMITS_FILE: &str = "limits.toml";

/// Policies of one set.
const POLICIES_MAX: usize = 2000;

static CHECKER: LazyLock<Validator> = LazyLock::new(|| {
    let (schema, _) = Schema::from_cedarschema_str(SCHEMA).expect("the schema is our own");
    Validator::new(schema)
});

/// What lifts a policy that does not count by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Need {
    /// So many approvals by principals of a role.
    Approval { count: u32, from: Arc<str> },
    /// A person's confirmation.
    Confirmation,
}

/// One policy.
#[derive(Debug)]
pub(crate) struct Rule {
    /// Its `@id`, or its file and line.
    pub(crate) id: Arc<str>,
    /// Its `@text`.
    pub(crate) text: String,
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) need: Option<Need>,
    pub(crate) permits: bool,
}

/// The policies that may have a say about one action of whoever has certain roles.
pub(super) struct Slice {
    /// Those that need nothing.
    pub(super) plain: PolicySet,
    /// Those that permit once something is there.
    pub(super) permits: PolicySet,
    /// Those that forbid until something is there.
    pub(super) forbids: PolicySet,
}

/// A set that fits the schema.
pub(crate) struct Set {
    pub(crate) files: Files,
    pub(crate) limits: Limits,
    pub(super) rules: HashMap<PolicyId, Rule>,
    policies: Vec<Policy>,
    /// Those of the policies that each kind of action finds in words of its own.
    readings: HashMap<PolicyId, Readings>,
    /// Hosts that policies name by their ids.
    pub(super) named: HashSet<String>,
    /// Words of the context that policies may look at, and that change from call to call.
    pub(super) looks_at_time: bool,
    pub(super) looks_at_count: bool,
}

impl Set {
    /// The set that is shipped.
    pub(crate) fn shipped() -> Self {
        let files = SHIPPED.map(|(name, text)| (name.to_owned(), text.to_owned()));
        Self::read(files.into()).expect("the files are our own, and a test reads them")
    }

    /// Reads files and checks them.
    pub(crate) fn read(files: Files) -> Result<Self, PolicyError> {
        check_names(&files)?;
        let mut policies = Vec::new();
        let mut rules: HashMap<PolicyId, Rule> = HashMap::new();
        let mut limits = Limits::default();
        for (file, text) in &files {
            if file == LIMITS_FILE {
                limits =
                    Limits::read(text).map_err(|(offset, cause)| at(file, text, offset, cause))?;
                continue;
            }
            for (policy, rule) in read_file(file, text)? {
                if let Some(other) = rules.get(policy.id()) {
                    let cause = format!(
                        "@id({:?}) is also in {}:{}",
                        &*rule.id, other.file, other.line
                    );
                    return Err(PolicyError {
                        file: file.clone(),
                        line: rule.line,
                        column: 1,
                        cause,
                    });
                }
                rules.insert(policy.id().clone(), rule);
                policies.push(policy);
            }
        }
        if policies.len() > POLICIES_MAX {
            return Err(about_all(format!(
                "a set has at most {POLICIES_MAX} policies"
            )));
        }
        validate(&policies, &rules)?;
        let readings = readings(&policies, &rules)?;
        let named = policies.iter().flat_map(Policy::entity_literals);
        let named = named
            .filter(|uid| *uid.type_name() == TYPES[Type::Host as usize])
            .map(|uid| uid.id().unescaped().to_owned())
            .collect();
        let texts = || files.values();
        // A word may be written with escapes, then it is not found as text.
        let says = |word: &str| texts().any(|text| text.contains(word) || text.contains('\\'));
        Ok(Self {
            named,
            policies,
            readings,
            looks_at_time: says("hour") || says("weekday"),
            looks_at_count: says("hosts"),
            limits,
            rules,
            files,
        })
    }

    /// The policies to ask about an action of whoever has these roles: each that is asked costs time, whether it
    /// applies or not.
    pub(super) fn slice(&self, right: Right, roles: &[&str]) -> Slice {
        let action = action_uid(right);
        let concerned = self
            .policies
            .iter()
            .filter(|policy| is_about_roles(policy, roles))
            .filter_map(|policy| self.found_by(policy, right))
            .filter(|policy| is_about_action(policy, &action));
        let concerned: Vec<&Policy> = concerned.collect();
        let of = |wanted: fn(&Rule) -> bool| {
            let chosen = concerned
                .iter()
                .filter(|policy| wanted(&self.rules[policy.id()]));
            PolicySet::from_policies(chosen.map(|policy| (*policy).clone()))
                .expect("the ids are distinct in the whole set")
        };
        Slice {
            plain: of(|rule| rule.need.is_none()),
            permits: of(|rule| rule.need.is_some() && rule.permits),
            forbids: of(|rule| rule.need.is_some() && !rule.permits),
        }
    }

    /// A policy as a question about this right finds it; `None` if it says nothing about that.
    fn found_by<'a>(&'a self, policy: &'a Policy, right: Right) -> Option<&'a Policy> {
        match (right.kind(), self.readings.get(policy.id())) {
            (Some(kind), Some(readings)) => readings.about(kind),
            _ => Some(policy),
        }
    }

    /// Whether a policy names this host by its id.
    pub(crate) fn names(&self, host: &str) -> bool {
        self.named.contains(host)
    }

    /// The policy of this id.
    pub(crate) fn rule(&self, id: &str) -> Option<&Rule> {
        self.rules.values().find(|rule| &*rule.id == id)
    }

    /// Every policy, in the order of files and lines.
    pub(crate) fn rules(&self) -> Vec<&Rule> {
        let mut rules: Vec<&Rule> = self.rules.values().collect();
        rules.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        rules
    }
}

fn validate(policies: &[Policy], rules: &HashMap<PolicyId, Rule>) -> Result<(), PolicyError> {
    let all = PolicySet::from_policies(policies.iter().cloned())
        .map_err(|error| about_all(error.to_string()))?;
    let result = CHECKER.validate(&all, ValidationMode::Strict);
    let mut errors: Vec<PolicyError> = result
        .validation_errors()
        .map(|error| about_rule(rules.get(error.policy_id()), error.to_string()))
        .collect();
    errors.sort_by(|a, b| (&a.file, a.line, &a.cause).cmp(&(&b.file, b.line, &b.cause)));
    errors.into_iter().next().map_or(Ok(()), Err)
}

/// The readings of those policies that have more than one.
fn readings(
    policies: &[Policy],
    rules: &HashMap<PolicyId, Rule>,
) -> Result<HashMap<PolicyId, Readings>, PolicyError> {
    let mut found = HashMap::new();
    for policy in policies {
        match Readings::of(policy) {
            Ok(None) => {}
            Ok(Some(readings)) => {
                found.insert(policy.id().clone(), readings);
            }
            Err(cause) => return Err(about_rule(rules.get(policy.id()), cause)),
        }
    }
    Ok(found)
}

/// Whether a policy is about this action, as far as its head says.
pub(super) fn is_about_action(policy: &Policy, action: &EntityUid) -> bool {
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(only) => only == *action,
        ActionConstraint::In(some) => some.contains(action),
    }
}

/// Whether a policy is about somebody with these roles, as far as its head says.
fn is_about_roles(policy: &Policy, roles: &[&str]) -> bool {
    match policy.principal_constraint() {
        PrincipalConstraint::In(whole) | PrincipalConstraint::IsIn(_, whole) => {
            *whole.type_name() != TYPES[Type::Role as usize]
                || roles.contains(&whole.id().unescaped())
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::{files::BYTES_MAX, *};
    use crate::model::ANY_JOB;

    fn one(text: &str) -> Result<Set, PolicyError> {
        Set::read([("a.cedar".to_owned(), text.to_owned())].into())
    }

    #[test]
    fn what_is_shipped_fits_its_schema() {
        let set = Set::shipped();
        assert_eq!(set.rules().len(), 9);
        assert!(set.rules().iter().all(|rule| !rule.text.is_empty()));
    }

    #[test]
    fn the_examples_of_the_documentation_fit() {
        let page = include_str!("../../../docs/policy.md");
        let examples = page.split("```cedar\n").skip(1);
        let examples: Vec<&str> = examples
            .map(|rest| rest.split("```").next().unwrap())
            .collect();
        let set = one(&examples.join("\n")).unwrap();
        let needs = |id: &str| set.rule(id).unwrap().need.clone();
        assert_eq!(needs("ai-asks-first"), Some(Need::Confirmation));
        let two = Need::Approval {
            count: 2,
            from: "admin".into(),
        };
        assert_eq!(needs("production-in-numbers"), Some(two));
    }

    #[test]
    fn every_action_stands_in_the_schema_and_no_other() {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).unwrap();
        let mut named: Vec<_> = schema
            .actions()
            .map(|uid| uid.id().unescaped().to_owned())
            .collect();
        let ours = Right::all().map(|(_, name)| name);
        let mut ours: Vec<_> = ours.chain([ANY_JOB]).map(str::to_owned).collect();
        named.sort();
        ours.sort();
        assert_eq!(named, ours);
    }

    #[test]
    fn a_bad_file_is_refused_with_its_place() {
        let broken =
            one("permit(principal, action, resource);\n\npermit(principal, action resource);")
                .err()
                .unwrap();
        assert_eq!((&*broken.file, broken.line), ("a.cedar", 3), "{broken}");
        let unknown =
            one("permit(principal, action == Muster::Action::\"job.destroy\", resource);")
                .err()
                .unwrap();
        assert_eq!(unknown.line, 1, "{unknown}");
        let mistyped = one("\npermit(principal, action, resource) when { context.mode == 3 };")
            .err()
            .unwrap();
        assert_eq!(mistyped.line, 2, "{mistyped}");
        let fact = one("permit(principal, action, resource) when { resource.os == \"linux\" };")
            .err()
            .unwrap();
        assert!(fact.cause.contains("os"), "{fact}");
        let twice = one(
            "@id(\"x\") permit(principal, action, resource);\n@id(\"x\") forbid(principal, action, resource);",
        );
        assert_eq!(twice.err().unwrap().line, 2);
        let count =
            one("@needs(\"approval\") @count(\"many\") forbid(principal, action, resource);");
        assert!(count.err().unwrap().cause.contains("@count"));
        let role =
            one("@needs(\"approval\") @approvers(\"a b\") forbid(principal, action, resource);");
        assert!(role.err().unwrap().cause.contains("@approvers"));
        let need = one("@needs(\"luck\") forbid(principal, action, resource);");
        assert!(need.err().unwrap().cause.contains("luck"));
    }

    #[test]
    fn a_label_is_looked_at_only_where_it_was_asked_for() {
        let sure = "permit(principal, action == Muster::Action::\"host.read\", resource) \
                    when { resource.hasTag(\"env\") && resource.getTag(\"env\") == \"dev\" };";
        one(sure).unwrap();
        let unsure = "permit(principal, action == Muster::Action::\"host.read\", resource) \
                      when { resource.getTag(\"env\") == \"dev\" };";
        assert!(
            one(unsure).is_err(),
            "a host without the label would be an error"
        );
    }

    #[test]
    fn files_have_names_and_limits() {
        let named = |name: &str| Set::read([(name.to_owned(), String::new())].into());
        for name in ["a.cedar", "web-team_2.cedar"] {
            named(name).unwrap();
        }
        for name in ["", ".cedar", "..cedar", "a.txt", "../a.cedar", "a/b.cedar"] {
            assert!(named(name).is_err(), "{name:?}");
        }
        let long = Set::read([("a.cedar".to_owned(), "/".repeat(BYTES_MAX + 1))].into());
        assert!(long.is_err());
    }
}
