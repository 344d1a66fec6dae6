//! Judging by one set of policies. Nothing here looks at a clock or waits; what was judged once is remembered.

use std::{collections::HashMap, sync::Arc};

use cedar_policy::{
    Authorizer, Context, Decision as Answer, Entities, Entity, EntityUid, PolicyId, PolicySet,
    Request, RestrictedExpression,
};
use parking_lot::RwLock;

use super::{
    Circumstances, Right, Traits, Verdict, Who,
    entities::{Type, action_uid, bare},
    set::{Need, Set, Slice},
};
use crate::model::Kind;

/// Judgements that are remembered; then it begins anew.
const REMEMBERED_MAX: usize = 200_000;

/// Slices of the policies that are kept, each for an action and some roles; then it begins anew.
const SLICES_MAX: usize = 1000;

/// The rule of what is allowed by a grant and by no policy.
pub(crate) const BY_GRANT: &str = "grant";

/// What an action is about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Resource<'a> {
    /// All hosts together.
    Fleet,
    /// A host by its id, with what policy sees of it.
    Host(&'a str, &'a Arc<Traits>),
}

/// Hour and weekday in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Hour {
    /// 0 to 23.
    hour: u8,
    /// 1 for Monday to 7 for Sunday.
    weekday: u8,
}

impl Hour {
    /// The hour of a time in Unix milliseconds.
    pub(crate) fn of(time: i64) -> Self {
        let hours = time.div_euclid(3_600_000);
        let days = hours.div_euclid(24);
        Self {
            hour: u8::try_from(hours.rem_euclid(24)).unwrap_or(0),
            // The first day of 1970 was a Thursday.
            weekday: u8::try_from((days + 3).rem_euclid(7) + 1).unwrap_or(1),
        }
    }
}

/// A verdict with the ids of the policies that gave it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) verdict: Verdict,
    pub(crate) rules: Vec<Arc<str>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    who: Who,
    right: Right,
    traits: Option<Arc<Traits>>,
    /// Only of a host that policies name.
    host: Option<String>,
    circumstances: Circumstances,
    hour: Hour,
}

/// Roles of a principal, as they were given.
type Roles = Arc<[Arc<str>]>;

/// A set of policies that is asked.
pub(crate) struct Judge {
    pub(crate) set: Set,
    /// As in the ledger; 0 is the shipped one.
    pub(crate) version: i64,
    remembered: RwLock<HashMap<Key, Arc<Judgement>>>,
    slices: RwLock<HashMap<(Right, Roles), Arc<Slice>>>,
    authorizer: Authorizer,
    actions: HashMap<Right, EntityUid>,
}

impl Judge {
    /// Judges by `set`.
    pub(crate) fn new(set: Set, version: i64) -> Self {
        Self {
            set,
            version,
            remembered: RwLock::default(),
            slices: RwLock::default(),
            authorizer: Authorizer::new(),
            actions: Right::all()
                .map(|(right, _)| (right, action_uid(right)))
                .collect(),
        }
    }

    /// Whether `who` may do it.
    pub(crate) fn judge(
        &self,
        who: &Who,
        right: Right,
        resource: Resource<'_>,
        circumstances: Circumstances,
        hour: Hour,
    ) -> Arc<Judgement> {
        let (host, traits) = match resource {
            Resource::Fleet => (None, None),
            Resource::Host(id, traits) => {
                (self.set.named.get(id).cloned(), Some(Arc::clone(traits)))
            }
        };
        let key = Key {
            who: who.clone(),
            right,
            traits,
            host,
            circumstances: Circumstances {
                // What nobody looks at makes no difference.
                hosts: if self.set.looks_at_count {
                    circumstances.hosts
                } else {
                    0
                },
                ..circumstances
            },
            hour: if self.set.looks_at_time {
                hour
            } else {
                Hour::default()
            },
        };
        if let Some(known) = self.remembered.read().get(&key) {
            return Arc::clone(known);
        }
        let judgement = Arc::new(self.ask(who, right, &key, circumstances, hour));
        let mut remembered = self.remembered.write();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(key, Arc::clone(&judgement));
        judgement
    }

    fn ask(
        &self,
        who: &Who,
        right: Right,
        key: &Key,
        circumstances: Circumstances,
        hour: Hour,
    ) -> Judgement {
        let slice = self.slice(who, right);
        match self.question(who, right, key, circumstances, hour) {
            Ok((request, entities)) => self.answer(&slice, &request, &entities, circumstances),
            // Nothing that anybody may write makes an entity that cannot be; if one is, it may nothing.
            Err(error) => {
                tracing::error!(%error, "a question to policy could not be put: {error}");
                Judgement {
                    verdict: Verdict::Deny,
                    rules: Vec::new(),
                }
            }
        }
    }

    /// The policies that may have a say.
    fn slice(&self, who: &Who, right: Right) -> Arc<Slice> {
        let key = (right, Arc::clone(&who.roles));
        if let Some(known) = self.slices.read().get(&key) {
            return Arc::clone(known);
        }
        let slice = Arc::new(self.set.slice(right, &who.all_roles()));
        let mut slices = self.slices.write();
        if slices.len() >= SLICES_MAX {
            slices.clear();
        }
        slices.insert(key, Arc::clone(&slice));
        slice
    }

    fn question(
        &self,
        who: &Who,
        right: Right,
        key: &Key,
        circumstances: Circumstances,
        hour: Hour,
    ) -> Result<(Request, Entities), Box<dyn std::error::Error>> {
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let number = |number: u32| RestrictedExpression::new_long(number.into());
        let asker = Type::Principal.uid(&who.principal);
        let principal = Entity::new_with_tags(
            asker.clone(),
            [
                ("kind".to_owned(), text(who.kind())),
                ("name".to_owned(), text(who.name())),
                ("owner".to_owned(), text(&who.owner)),
            ],
            who.all_roles().into_iter().map(|role| Type::Role.uid(role)),
            [],
        )?;
        let fleet = Type::Fleet.uid("all");
        let (about, resource) = match &key.traits {
            None => (fleet.clone(), bare(fleet)),
            Some(traits) => {
                let host = Type::Host.uid(key.host.as_deref().unwrap_or_default());
                let mode = traits.limit.map_or("unrestricted", |limit| limit.text());
                let labels = traits.labels.iter();
                let entity = Entity::new_with_tags(
                    host.clone(),
                    [("mode".to_owned(), text(mode))],
                    [fleet],
                    labels.map(|(key, value)| (key.clone(), text(value))),
                )?;
                (host, entity)
            }
        };
        let context = Context::from_pairs([
            (
                "action".to_owned(),
                text(right.kind().map_or("", Kind::name)),
            ),
            (
                "mode".to_owned(),
                text(circumstances.mode.map_or("", |mode| mode.text())),
            ),
            (
                "network".to_owned(),
                text(circumstances.network.map_or("", |network| network.text())),
            ),
            ("hosts".to_owned(), number(circumstances.hosts)),
            ("source".to_owned(), text(circumstances.source.text())),
            ("hour".to_owned(), number(hour.hour.into())),
            ("weekday".to_owned(), number(hour.weekday.into())),
            (
                "confirmed".to_owned(),
                RestrictedExpression::new_bool(circumstances.confirmed),
            ),
            ("approvals".to_owned(), number(circumstances.approvals)),
            (
                "own".to_owned(),
                RestrictedExpression::new_bool(circumstances.own),
            ),
        ])?;
        let action = self.actions[&right].clone();
        let request = Request::new(asker, action, about, context, None)?;
        Ok((
            request,
            Entities::from_entities([principal, resource], None)?,
        ))
    }

    fn answer(
        &self,
        slice: &Slice,
        request: &Request,
        entities: &Entities,
        circumstances: Circumstances,
    ) -> Judgement {
        let (answer, mut rules) = self.authorize(&slice.plain, request, entities);
        let mut needs = Vec::new();
        let mut by_grant = false;
        if answer == Answer::Deny && rules.is_empty() && circumstances.granted {
            // A grant is a permit, and lifts nothing that forbids.
            by_grant = true;
        } else if answer == Answer::Deny {
            if !rules.is_empty() || slice.permits.is_empty() {
                return self.judgement(Verdict::Deny, &rules);
            }
            // Nothing forbids it and nothing permits it as it is: perhaps something does once more is there.
            let (answer, found) = self.authorize(&slice.permits, request, entities);
            if answer == Answer::Deny {
                return self.judgement(Verdict::Deny, &[]);
            }
            // The least of them is enough.
            let least = found
                .into_iter()
                .map(|id| (self.missing(&id, circumstances), id));
            let (need, id) = least
                .min_by_key(|(need, _)| weight(need.as_ref()))
                .expect("what is allowed is allowed by something");
            needs.extend(need);
            rules = vec![id];
        }
        if !slice.forbids.is_empty() {
            let (_, found) = self.authorize(&slice.forbids, request, entities);
            let missing: Vec<(Need, PolicyId)> = found
                .into_iter()
                .filter_map(|id| Some((self.missing(&id, circumstances)?, id)))
                .collect();
            if !missing.is_empty() {
                rules = missing.iter().map(|(_, id)| id.clone()).collect();
                needs.extend(missing.into_iter().map(|(need, _)| need));
            }
        }
        // All of what forbids must be lifted.
        let verdict = needs.into_iter().fold(Verdict::Allow, |verdict, need| {
            verdict.and(&match need {
                Need::Confirmation => Verdict::NeedsConfirmation,
                Need::Approval { count, from } => Verdict::NeedsApproval { count, from },
            })
        });
        let mut judgement = self.judgement(verdict, &rules);
        if by_grant && judgement.rules.is_empty() {
            judgement.rules.push(BY_GRANT.into());
        }
        judgement
    }

    /// What a policy still needs.
    fn missing(&self, id: &PolicyId, circumstances: Circumstances) -> Option<Need> {
        let need = self.set.rules.get(id)?.need.clone()?;
        let there = match &need {
            Need::Confirmation => circumstances.confirmed,
            Need::Approval { count, .. } => circumstances.approvals >= *count,
        };
        (!there).then_some(need)
    }

    fn authorize(
        &self,
        policies: &PolicySet,
        request: &Request,
        entities: &Entities,
    ) -> (Answer, Vec<PolicyId>) {
        let response = self.authorizer.is_authorized(request, policies, entities);
        let diagnostics = response.diagnostics();
        // A policy that cannot be evaluated is left out, which must not let anybody in: one that forbids then does.
        let broken = diagnostics.errors().filter_map(|error| {
            let cedar_policy::AuthorizationError::PolicyEvaluationError(error) = error;
            let rule = self.set.rules.get(error.policy_id())?;
            (!rule.permits).then(|| error.policy_id().clone())
        });
        let broken: Vec<PolicyId> = broken.collect();
        if broken.is_empty() {
            let reasons = diagnostics.reason().cloned().collect();
            (response.decision(), reasons)
        } else {
            (Answer::Deny, broken)
        }
    }

    fn judgement(&self, verdict: Verdict, rules: &[PolicyId]) -> Judgement {
        let mut rules: Vec<Arc<str>> = rules
            .iter()
            .filter_map(|id| self.set.rules.get(id))
            .map(|rule| Arc::clone(&rule.id))
            .collect();
        rules.sort();
        Judgement { verdict, rules }
    }
}

/// How much is asked for.
fn weight(need: Option<&Need>) -> u32 {
    match need {
        None => 0,
        Some(Need::Confirmation) => 1,
        Some(Need::Approval { count, .. }) => 1 + count,
    }
}

#[cfg(test)]
mod tests;
