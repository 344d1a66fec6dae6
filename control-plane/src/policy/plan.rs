//! What policy says of a job as a whole: every host is judged, hosts that are alike together.

use std::{collections::HashMap, sync::Arc};

use super::{
    Circumstances, Decision, Right, Traits, Verdict, Who,
    judgement::{Hour, Judge, Resource},
};
use crate::model::{Mode, NetworkAccess};

/// A host of a job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    /// Its id.
    pub(crate) id: &'a str,
    /// What policy sees of it.
    pub(crate) traits: &'a Arc<Traits>,
    /// A grant stands in for a permit that is missing here.
    pub(crate) granted: bool,
}

/// How far a job may reach, and whether it may be at all.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The answer, for `mode` and `network`.
    pub(crate) decision: Decision,
    /// The mode that was asked for, or the highest that is allowed where nothing was.
    pub(crate) mode: Mode,
    /// Likewise.
    pub(crate) network: NetworkAccess,
    /// Neither had to be lowered below what is not confined at all.
    pub(crate) is_unbounded: bool,
    /// Places of the hosts that the answer is no for.
    pub(crate) denied: Vec<usize>,
}

struct Group<'a> {
    first: Target<'a>,
    places: Vec<usize>,
}

struct Combined {
    verdict: Verdict,
    rules: Vec<Arc<str>>,
    denied: Vec<usize>,
}

/// Decides about a job on `targets`, in the mode and with the network that were asked for, if they were.
pub(crate) fn plan(
    judge: &Judge,
    who: &Who,
    targets: &[Target<'_>],
    asked: (Option<Mode>, Option<NetworkAccess>),
    how: Circumstances,
    hour: Hour,
) -> Plan {
    let groups = group(judge, targets);
    let how = Circumstances {
        hosts: u32::try_from(targets.len()).unwrap_or(u32::MAX),
        ..how
    };
    let ask = |mode: Mode, network: NetworkAccess| {
        let how = Circumstances {
            mode: Some(mode),
            network: Some(network),
            ..how
        };
        combine(judge, who, &groups, how, hour)
    };
    let candidates = candidates(asked);
    let mut best: Option<(usize, Combined)> = None;
    for (place, (mode, network)) in candidates.iter().enumerate() {
        let found = ask(*mode, *network);
        if found.verdict == Verdict::Allow {
            best = Some((place, found));
            break;
        }
        // What needs something is better than what is denied; of equals the first, which reaches furthest.
        let better = best.as_ref().is_none_or(|(_, best)| {
            best.verdict == Verdict::Deny && found.verdict != Verdict::Deny
        });
        if better {
            best = Some((place, found));
        }
    }
    let (place, found) = best.expect("there is always a candidate");
    let (mode, network) = candidates[place];
    let possible = |mode, network| ask(mode, network).verdict != Verdict::Deny;
    let (mode_at_most, network_at_most) = if found.verdict == Verdict::Deny {
        let widest = widest(possible);
        widest.unwrap_or((Mode::Disabled, NetworkAccess::None))
    } else {
        (mode, network)
    };
    Plan {
        decision: Decision {
            verdict: found.verdict,
            rules: found.rules,
            mode_at_most,
            network_at_most,
            policy_version: judge.version,
        },
        mode,
        network,
        is_unbounded: asked == (None, None) && place == 0,
        denied: found.denied,
    }
}

/// What may be meant by what was asked for; what reaches furthest comes first.
pub(crate) fn candidates(
    asked: (Option<Mode>, Option<NetworkAccess>),
) -> Vec<(Mode, NetworkAccess)> {
    let modes = match asked.0 {
        Some(mode) => vec![mode],
        None => vec![Mode::Unrestricted, Mode::Edit, Mode::ReadOnly],
    };
    let mut candidates = Vec::new();
    for mode in modes {
        match (asked.1, mode) {
            (Some(network), _) => candidates.push((mode, network)),
            (None, Mode::ReadOnly) => candidates.push((mode, NetworkAccess::None)),
            // Nothing closes the network of a task that nothing confines.
            (None, Mode::Unrestricted) => candidates.push((mode, NetworkAccess::All)),
            (None, _) => {
                candidates.push((mode, NetworkAccess::All));
                candidates.push((mode, NetworkAccess::None));
            }
        }
    }
    candidates
}

fn widest(possible: impl Fn(Mode, NetworkAccess) -> bool) -> Option<(Mode, NetworkAccess)> {
    let modes = [Mode::Unrestricted, Mode::Edit, Mode::ReadOnly];
    let networks = [NetworkAccess::All, NetworkAccess::List, NetworkAccess::None];
    modes
        .into_iter()
        .flat_map(|mode| networks.map(|network| (mode, network)))
        .find(|(mode, network)| possible(*mode, *network))
}

fn group<'a>(judge: &Judge, targets: &[Target<'a>]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut known: HashMap<(*const Traits, bool), usize> = HashMap::new();
    for (place, target) in targets.iter().enumerate() {
        let alone = judge.set.names(target.id);
        let alike = (Arc::as_ptr(target.traits), target.granted);
        let at = match known.get(&alike) {
            Some(at) if !alone => *at,
            _ => {
                if !alone {
                    known.insert(alike, groups.len());
                }
                groups.push(Group {
                    first: *target,
                    places: Vec::new(),
                });
                groups.len() - 1
            }
        };
        groups[at].places.push(place);
    }
    groups
}

fn combine(
    judge: &Judge,
    who: &Who,
    groups: &[Group<'_>],
    how: Circumstances,
    hour: Hour,
) -> Combined {
    let mut combined = Combined {
        verdict: Verdict::Allow,
        rules: Vec::new(),
        denied: Vec::new(),
    };
    let mut denied = Combined {
        verdict: Verdict::Deny,
        rules: Vec::new(),
        denied: Vec::new(),
    };
    for group in groups {
        let about = Resource::Host(group.first.id, group.first.traits);
        let how = Circumstances {
            granted: group.first.granted,
            ..how
        };
        let judged = judge.judge(who, Right::JobCreate, about, how, hour);
        if judged.verdict == Verdict::Deny {
            denied.denied.extend(&group.places);
            add(&mut denied.rules, &judged.rules);
        } else if judged.verdict == Verdict::Allow && combined.verdict != Verdict::Allow {
            // What holds the job back is what is told.
        } else {
            if judged.verdict != Verdict::Allow && combined.verdict == Verdict::Allow {
                combined.rules.clear();
            }
            combined.verdict = combined.verdict.and(&judged.verdict);
            add(&mut combined.rules, &judged.rules);
        }
    }
    if denied.denied.is_empty() && !groups.is_empty() {
        combined
    } else {
        denied.denied.sort_unstable();
        denied
    }
}

fn add(rules: &mut Vec<Arc<str>>, more: &[Arc<str>]) {
    for rule in more {
        if !rules.contains(rule) {
            rules.push(Arc::clone(rule));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::policy::{set::Set, traits::TraitsKept};

    fn who(role: &str) -> Who {
        Who {
            principal: "ai/claude".into(),
            owner: "".into(),
            roles: [role.into()].into(),
        }
    }

    fn planned(
        judge: &Judge,
        who: &Who,
        envs: &[&str],
        asked: (Option<Mode>, Option<NetworkAccess>),
    ) -> Plan {
        let mut kept = TraitsKept::default();
        let traits: Vec<_> = envs
            .iter()
            .map(|env| {
                kept.of(
                    &BTreeMap::from([("env".to_owned(), (*env).to_owned())]),
                    None,
                )
            })
            .collect();
        let targets: Vec<_> = traits
            .iter()
            .map(|traits| Target {
                id: "h-1",
                traits,
                granted: false,
            })
            .collect();
        plan(
            judge,
            who,
            &targets,
            asked,
            Circumstances::default(),
            Hour::default(),
        )
    }

    fn judge(text: &str) -> Judge {
        Judge::new(
            Set::read([("a.cedar".to_owned(), text.to_owned())].into()).unwrap(),
            3,
        )
    }

    #[test]
    fn who_asks_for_no_mode_gets_the_highest_that_is_allowed() {
        let shipped = Judge::new(Set::shipped(), 0);
        let ai = planned(&shipped, &who("ai"), &["dev"], (None, None));
        assert_eq!(
            (ai.decision.verdict, ai.mode, ai.network),
            (Verdict::Allow, Mode::Edit, NetworkAccess::All)
        );
        assert!(!ai.is_unbounded);
        let operator = planned(&shipped, &who("operator"), &["dev"], (None, None));
        assert!(operator.is_unbounded && operator.mode == Mode::Unrestricted);
    }

    #[test]
    fn who_asks_for_too_much_hears_what_is_possible() {
        let shipped = Judge::new(Set::shipped(), 0);
        let ai = planned(
            &shipped,
            &who("ai"),
            &["dev"],
            (Some(Mode::Unrestricted), None),
        );
        assert_eq!(ai.decision.verdict, Verdict::Deny);
        assert_eq!(ai.decision.mode_at_most, Mode::Edit);
        assert_eq!(ai.denied, [0]);
        let viewer = planned(&shipped, &who("viewer"), &["dev"], (None, None));
        assert_eq!(viewer.decision.mode_at_most, Mode::Disabled);
    }

    #[test]
    fn one_host_that_is_denied_denies_the_job_and_is_named() {
        let dev_only = judge(
            "permit(principal, action, resource) when { resource.hasTag(\"env\") && resource.getTag(\"env\") == \"dev\" };",
        );
        let some = planned(
            &dev_only,
            &who("ai"),
            &["dev", "prod", "dev", "prod"],
            (None, None),
        );
        assert_eq!(
            (some.decision.verdict, some.denied),
            (Verdict::Deny, vec![1, 3])
        );
        let all = planned(&dev_only, &who("ai"), &["dev", "dev"], (None, None));
        assert_eq!(
            (all.decision.verdict, all.decision.policy_version),
            (Verdict::Allow, 3)
        );
        assert_eq!(
            planned(&dev_only, &who("ai"), &[], (None, None))
                .decision
                .verdict,
            Verdict::Deny
        );
    }

    #[test]
    fn the_count_of_hosts_counts() {
        let few = judge("permit(principal, action, resource) when { context.hosts <= 2 };");
        assert_eq!(
            planned(&few, &who("ai"), &["a", "b"], (None, None))
                .decision
                .verdict,
            Verdict::Allow
        );
        assert_eq!(
            planned(&few, &who("ai"), &["a", "b", "c"], (None, None))
                .decision
                .verdict,
            Verdict::Deny
        );
    }

    #[test]
    fn a_closed_network_closes_what_did_not_say() {
        let closed = judge(
            "permit(principal, action, resource);\nforbid(principal, action, resource) when { context.network == \"all\" };",
        );
        let silent = planned(&closed, &who("ai"), &["a"], (Some(Mode::Edit), None));
        assert_eq!(
            (silent.decision.verdict, silent.network),
            (Verdict::Allow, NetworkAccess::None)
        );
        let open = planned(
            &closed,
            &who("ai"),
            &["a"],
            (None, Some(NetworkAccess::All)),
        );
        assert_eq!(open.decision.verdict, Verdict::Deny);
        assert_eq!(open.decision.network_at_most, NetworkAccess::List);
    }

    #[test]
    fn what_may_be_without_asking_comes_before_what_needs_somebody() {
        let guarded = judge(
            "permit(principal, action, resource);\n@needs(\"approval\") \
             forbid(principal, action, resource) when { context.mode == \"unrestricted\" };",
        );
        let silent = planned(&guarded, &who("ai"), &["a"], (None, None));
        assert_eq!(
            (silent.decision.verdict, silent.mode),
            (Verdict::Allow, Mode::Edit)
        );
        let asked = planned(
            &guarded,
            &who("ai"),
            &["a"],
            (Some(Mode::Unrestricted), None),
        );
        assert!(matches!(
            asked.decision.verdict,
            Verdict::NeedsApproval { .. }
        ));
    }
}
