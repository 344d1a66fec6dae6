//! What policy says of a job as a whole: every host is judged, hosts that are alike together.

use std::{collections::HashMap, sync::Arc};

use super::{
    Circumstances, Decision, Right, Traits, Verdict, Who,
    judgement::{Hour, Judge, Resource},
};
use crate::model::{Kind, Mode, NetworkAccess};

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
    /// The kind of the job's tasks.
    pub(crate) kind: Kind,
    /// The answer, for `mode` and `network`.
    pub(crate) decision: Decision,
    /// The mode that was asked for. Where none was: the lowest that is enough for the kind, or else the highest that is
    /// allowed.
    pub(crate) mode: Mode,
    /// Likewise.
    pub(crate) network: NetworkAccess,
    /// Neither had to be lowered below what is not confined at all. Never so of a kind for which less is enough.
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

/// Decides about a job of a kind on `targets`, in the mode and with the network that were asked for, if they were.
pub(crate) fn plan(
    judge: &Judge,
    who: &Who,
    targets: &[Target<'_>],
    kind: Kind,
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
        combine(judge, who, kind, &groups, how, hour)
    };
    let candidates = candidates(kind, asked);
    let mut best: Option<(usize, Combined)> = None;
    for (place, (mode, network)) in candidates.iter().enumerate() {
        let found = ask(*mode, *network);
        if found.verdict == Verdict::Allow {
            best = Some((place, found));
            break;
        }
        // What needs something is better than what is denied; of equals the first, as it is the one that is meant most.
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
        kind,
        decision: Decision {
            verdict: found.verdict,
            rules: found.rules,
            mode_at_most,
            network_at_most,
            policy_version: judge.version,
        },
        mode,
        network,
        is_unbounded: asked == (None, None) && kind.enough().is_none() && place == 0,
        denied: found.denied,
    }
}

/// What may be meant by what was asked for. What reaches furthest comes first; but what reaches least, where the kind says
/// which mode is enough.
pub(crate) fn candidates(
    kind: Kind,
    asked: (Option<Mode>, Option<NetworkAccess>),
) -> Vec<(Mode, NetworkAccess)> {
    let lowest = kind.enough().unwrap_or(Mode::ReadOnly);
    let modes = match asked.0 {
        Some(mode) => vec![mode],
        None => [Mode::Unrestricted, Mode::Edit, Mode::ReadOnly]
            .into_iter()
            .filter(|mode| *mode >= lowest)
            .collect(),
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
    if kind.enough().is_some() {
        candidates.reverse();
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
    kind: Kind,
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
        let judged = judge.judge(who, Right::Run(kind), about, how, hour);
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
mod tests;
