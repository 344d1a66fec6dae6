//! What `job.create` means in a policy.
//!
//! It was the one right to create jobs when every job ran a command; since then each kind of action has a right of its own.
//! Whoever wrote it to permit something permitted commands. Whoever wrote it to forbid something, or to hold it back until
//! somebody has approved it, meant whatever a job may do, other kinds included.
//!
//! A question about a kind finds such a policy in two readings: in one `job.create` stands for the right that the question
//! is about, in the other for a right that nobody asks about. Commands know the first alone. For any other kind a policy
//! permits only what it permits in both readings, and forbids whatever it forbids in either. Both are worked out when a set
//! is read, and a policy that does not say `job.create` has one reading, its own.

use std::collections::BTreeMap;

use cedar_policy::{Effect, Policy};
use serde_json::{Value, json};

use super::{entities::Type, set::is_about_action};
use crate::model::{ANY_JOB, Kind};

/// A policy that says `job.create`, as each kind of action finds it.
pub(super) struct Readings(Vec<Option<Policy>>);

impl Readings {
    /// The readings of a policy; `None` if it has but its own. An error is in words.
    pub(super) fn of(policy: &Policy) -> Result<Option<Self>, String> {
        let literals = policy.entity_literals();
        if !literals.contains(&Type::Action.uid(ANY_JOB)) {
            return Ok(None);
        }
        let readings = Kind::ALL.into_iter().map(|kind| read(policy, kind));
        Ok(Some(Self(readings.collect::<Result<_, _>>()?)))
    }

    /// The policy as it speaks about a kind; `None` if it says nothing about it.
    pub(super) fn about(&self, kind: Kind) -> Option<&Policy> {
        self.0[kind as usize].as_ref()
    }
}

/// What a policy says about a kind.
fn read(policy: &Policy, kind: Kind) -> Result<Option<Policy>, String> {
    let right = Type::Action.uid(kind.right());
    let mapping = BTreeMap::from([(Type::Action.uid(ANY_JOB), right.clone())]);
    let named = policy.sub_entity_literals(mapping).map_err(words)?;
    if !is_about_action(&named, &right) {
        return Ok(None);
    }
    let also_unnamed = is_about_action(policy, &right);
    Ok(match (kind, policy.effect(), also_unnamed) {
        (Kind::Command, _, _) | (_, Effect::Forbid, false) => Some(named),
        (_, Effect::Permit, false) => None,
        (_, effect, true) => Some(joined(&named, policy, effect)?),
    })
}

/// One policy for two readings whose heads are about the same: it permits where both do, and forbids where one does.
fn joined(named: &Policy, unnamed: &Policy, effect: Effect) -> Result<Policy, String> {
    let mut whole = named.to_json().map_err(words)?;
    let conditions = |json: &Value| json["conditions"].as_array().cloned().unwrap_or_default();
    let (first, second) = (
        conditions(&whole),
        conditions(&unnamed.to_json().map_err(words)?),
    );
    if first == second {
        return Ok(named.clone());
    }
    whole["conditions"] = match effect {
        Effect::Permit => first.into_iter().chain(second).collect(),
        Effect::Forbid => {
            let either = json!({"||": {"left": all(first), "right": all(second)}});
            json!([{"kind": "when", "body": either}])
        }
    };
    Policy::from_json(Some(named.id().clone()), whole).map_err(words)
}

/// All conditions of a policy in one.
fn all(conditions: Vec<Value>) -> Value {
    let bodies = conditions.into_iter().map(|mut condition| {
        let body = condition["body"].take();
        match condition["kind"] == "unless" {
            true => json!({"!": {"arg": body}}),
            false => body,
        }
    });
    bodies
        .reduce(|left, right| json!({"&&": {"left": left, "right": right}}))
        .unwrap_or_else(|| json!({"Value": true}))
}

fn words(error: impl std::error::Error) -> String {
    format!("cannot be read for each kind of action: {error}")
}

#[cfg(test)]
mod tests;
