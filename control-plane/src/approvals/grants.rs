//! Grants that permit something now. Pure.

use std::sync::Arc;

use arc_swap::ArcSwap;
use muster_proto::{ids::ApprovalId, v1::Reason};

use crate::{
    model::{
        Explain, FactKey, Kind, Mode,
        approval::{Approval, Subject},
    },
    selector::{Key, ParseError, Selector},
};

/// A grant that began and has not been revoked.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    /// Its approval's id.
    pub(crate) id: ApprovalId,
    /// Whom it permits something.
    pub(crate) principal: String,
    /// On which hosts.
    pub(crate) selector: Selector,
    /// In which mode at most.
    pub(crate) mode: Mode,
    /// What, by the names of rights as policies have them.
    pub(crate) actions: Vec<String>,
    /// Who approved it: it permits no more than each of them may do now.
    pub(crate) approvers: Vec<String>,
    /// When it ends by itself, Unix milliseconds.
    pub(crate) end_time: i64,
}

/// The grants that permit something now. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Grants(Arc<ArcSwap<Vec<Arc<Grant>>>>);

impl Grants {
    /// Those under which `principal` has the right `action` at `now`, on the hosts and in the modes that each of them says.
    pub(crate) fn of(&self, principal: &str, action: &str, now: i64) -> Vec<Arc<Grant>> {
        let all = self.0.load();
        let permits = |grant: &&Arc<Grant>| grant.permits(principal, action, now);
        all.iter().filter(permits).cloned().collect()
    }

    /// Whether some have ended by themselves.
    pub(super) fn have_lapsed(&self, now: i64) -> bool {
        self.0.load().iter().any(|grant| now >= grant.end_time)
    }

    /// Changes which there are.
    pub(super) fn change(&self, change: impl Fn(&mut Vec<Arc<Grant>>)) {
        self.0.rcu(|grants| {
            let mut grants = Vec::clone(grants);
            change(&mut grants);
            grants
        });
    }
}

/// Why a selector chooses no hosts for a grant.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrantSelectorError {
    /// It does not parse.
    #[error(transparent)]
    Selector(#[from] ParseError),
    /// It looks at what agents report.
    #[error(
        "selector: a grant chooses hosts by name, id or labels; {0:?} is what their agents report"
    )]
    Fact(&'static str),
}

/// Reads the selector of a grant: what agents report about themselves decides no rights.
pub(crate) fn selector(text: &str) -> Result<Selector, GrantSelectorError> {
    let selector = Selector::parse(text)?;
    if let Selector::Requirements(all) = &selector {
        for requirement in all {
            if let Key::Fact(fact) = &requirement.key
                && !matches!(fact, FactKey::Name | FactKey::Id)
            {
                let names = FactKey::ALL.iter();
                let name = names
                    .filter(|(_, key)| key == fact)
                    .map(|(name, _)| *name)
                    .next();
                return Err(GrantSelectorError::Fact(name.unwrap_or_default()));
            }
        }
    }
    Ok(selector)
}

/// A right by its name of today.
fn named(text: &str) -> String {
    match Kind::of_right(text) {
        Some(kind) => kind.right().to_owned(),
        None => text.to_owned(),
    }
}

impl Grant {
    /// The grant that came of an approval, if it permits something.
    pub(crate) fn of(approval: &Approval) -> Option<Arc<Self>> {
        let Subject::Grant(terms) = &approval.subject else {
            return None;
        };
        if terms.revoked.is_some() {
            return None;
        }
        Some(Arc::new(Self {
            id: approval.id,
            principal: approval.principal.clone(),
            selector: selector(&terms.selector).ok()?,
            mode: terms.mode,
            actions: terms.actions.iter().map(|text| named(text)).collect(),
            approvers: approval
                .approvers()
                .map(|answer| answer.principal.clone())
                .collect(),
            end_time: approval.grant_end()?,
        }))
    }

    /// Whether it lets `principal` do this at `now`, on the hosts that it chooses and in no higher mode than it says.
    fn permits(&self, principal: &str, action: &str, now: i64) -> bool {
        self.principal == principal
            && now < self.end_time
            && self.actions.iter().any(|one| one == action)
    }
}

impl Explain for GrantSelectorError {
    fn reason(&self) -> Reason {
        Reason::SelectorInvalid
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::approval::{Answer, State, Terms, tests::approval};

    fn granted() -> Approval {
        let mut approval = approval(1);
        approval.subject = Subject::Grant(Terms {
            selector: "env=dev".into(),
            mode: Mode::Edit,
            actions: vec!["job.create".into()],
            ttl: 1_000,
            revoked: None,
        });
        approval.answers.push(Answer {
            principal: "operator/ada".into(),
            approves: true,
            note: String::new(),
            time: 5_000,
        });
        (approval.state, approval.end_time) = (State::Approved, Some(5_000));
        approval
    }

    #[test]
    fn a_grant_permits_its_terms_and_nothing_else() {
        let grant = Grant::of(&granted()).unwrap();
        assert_eq!(grant.approvers, ["operator/ada"]);
        let grants = Grants::default();
        grants.change(|all| all.push(Arc::clone(&grant)));
        let permits = |who, action, now| !grants.of(who, action, now).is_empty();
        // "job.create", as it stands in the ledger from before there were kinds, is for commands alone.
        assert!(permits("ai/claude", "command.run", 5_999));
        for other in ["file.read", "job.input"] {
            assert!(!permits("ai/claude", other, 5_000), "{other}");
        }
        assert!(!permits("ai/other", "command.run", 5_000));
        assert!(!permits("ai/claude", "command.run", 6_000));
        assert!(grants.have_lapsed(6_000) && !grants.have_lapsed(5_999));
    }

    #[test]
    fn what_is_awaited_declined_or_revoked_permits_nothing() {
        for state in State::ALL.map(|(state, _)| state) {
            let mut approval = granted();
            approval.state = state;
            assert_eq!(Grant::of(&approval).is_some(), state == State::Approved);
        }
        let mut revoked = granted();
        if let Subject::Grant(terms) = &mut revoked.subject {
            terms.revoked = Some((5_500, "operator/ada".into()));
        }
        assert!(Grant::of(&revoked).is_none());
    }

    #[test]
    fn what_an_agent_says_of_itself_widens_no_rights() {
        for text in ["all", "env=prod,!retired", "web-1,web-2", "name=web-1"] {
            selector(text).unwrap();
        }
        for text in ["os=linux", "env=prod,kernel=*", "hostname=web-1"] {
            assert!(
                matches!(selector(text), Err(GrantSelectorError::Fact(_))),
                "{text}"
            );
        }
        assert!(selector("env=").is_err());
    }
}
