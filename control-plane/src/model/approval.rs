//! An approval: what waits for whose word, and what was said. Pure.

use std::sync::Arc;

use muster_proto::ids::{ApprovalId, JobId};

use super::{Mode, Principal, PrincipalKind};

/// Stands between the roles that somebody has to have all of. No role has it in its name.
pub(crate) const ROLES: &str = "+";

/// Where an approval stands. Everything but `Awaiting` is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Not enough of those who may have approved it.
    Awaiting,
    /// Enough have.
    Approved,
    /// One of them declined it.
    Declined,
    /// Nobody decided in time.
    Expired,
    /// What was to be approved changed meanwhile.
    Drifted,
    /// It was cancelled before anybody decided.
    Cancelled,
}

impl State {
    /// Every state with its name in the ledger.
    pub(crate) const ALL: [(Self, &'static str); 6] = [
        (Self::Awaiting, "awaiting"),
        (Self::Approved, "approved"),
        (Self::Declined, "declined"),
        (Self::Expired, "expired"),
        (Self::Drifted, "drifted"),
        (Self::Cancelled, "cancelled"),
    ];

    /// The name in the ledger.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The state of that name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|(_, known)| *known == name)
            .map(|(state, _)| state)
    }
}

/// What is to be approved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A job whose tasks wait.
    Job {
        /// Which.
        job_id: JobId,
        /// How long its hosts may take to start it, milliseconds from its release.
        start_deadline: i64,
    },
    /// A temporary permit.
    Grant(Terms),
}

/// What a grant would permit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    /// On which hosts, by their labels: resolved anew at each decision.
    pub(crate) selector: String,
    /// In which mode at most.
    pub(crate) mode: Mode,
    /// What, as policies name it.
    pub(crate) actions: Vec<String>,
    /// For how long from its approval, milliseconds.
    pub(crate) ttl: i64,
    /// When it was revoked, and by whom.
    pub(crate) revoked: Option<(i64, String)>,
}

/// Somebody's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Who, as "operator/ada".
    pub(crate) principal: String,
    /// Approved; otherwise declined.
    pub(crate) approves: bool,
    /// Why; may be empty.
    pub(crate) note: String,
    /// When, Unix milliseconds.
    pub(crate) time: i64,
}

/// An approval. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Approval {
    /// Its id.
    pub(crate) id: ApprovalId,
    /// What is to be approved.
    pub(crate) subject: Subject,
    /// The approval's state.
    pub(crate) state: State,
    /// Who asks.
    pub(crate) principal: String,
    /// The operator that owns an ai which asks; empty if none does.
    pub(crate) owner: String,
    /// Why, as whoever asks says.
    pub(crate) reason: String,
    /// SHA-256 of what is to happen.
    pub(crate) digest: [u8; 32],
    /// How many have to approve it.
    pub(crate) count: u32,
    /// The role whose principals may, or several that each of them has, as "admin+dba". Of a grant, the action that
    /// policy has to permit them.
    pub(crate) from: Arc<str>,
    /// The policies that hold it back.
    pub(crate) rules: Vec<String>,
    /// By which way it came.
    pub(crate) source: String,
    /// The person at the client of whoever asks has confirmed it.
    pub(crate) confirmed: bool,
    /// When it was asked for.
    pub(crate) create_time: i64,
    /// When it expires unless it is decided.
    pub(crate) expire_time: i64,
    /// When it was decided.
    pub(crate) end_time: Option<i64>,
    /// Why it ended as it did; may be empty.
    pub(crate) cause: String,
    /// The answers so far, in order; one of each principal.
    pub(crate) answers: Vec<Answer>,
}

/// Who answers.
#[derive(Debug, Clone)]
pub(crate) struct Answerer<'a> {
    /// Its principal.
    pub(crate) principal: &'a Principal,
    /// It is one of those who may answer.
    pub(crate) is_among: bool,
}

/// What an answer leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: it was said before.
    Nothing,
    /// It is noted, and others have to answer too.
    Note,
    /// It was the last that was needed.
    Approve,
    /// It ends here.
    Decline,
}

/// Why an answer does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AnswerRefusal {
    /// Whoever asks does not decide.
    #[error("{0} asked for it; somebody else has to answer, with {1}")]
    Oneself(String, String),
    /// The ai that asks acts for who owns it.
    #[error(
        "{0} owns the ai that asked for it, which acts for {0}; somebody else has to answer, with {1}"
    )]
    Owner(String, String),
    /// An ai approves nothing.
    #[error("an ai answers no approvals; a person with {0} has to")]
    Ai(String),
    /// Whoever answers is none of those who may.
    #[error("{0} may not answer this; who may has {1}, and approval.answer by policy")]
    NotAmong(String, String),
    /// What was looked at is not what is to happen.
    #[error(
        "what was looked at is not what is to happen: look at {0} again, then approve with its digest"
    )]
    OtherDigest(ApprovalId),
    /// Nobody decided in time.
    #[error("{0} expired before this answer")]
    Expired(ApprovalId),
    /// It was decided.
    #[error("{0} is {name} already", name = .1.name())]
    Over(ApprovalId, State),
}

impl Approval {
    /// Who has approved it.
    pub(crate) fn approvers(&self) -> impl Iterator<Item = &Answer> {
        self.answers.iter().filter(|answer| answer.approves)
    }

    /// How many have approved it. Answers are one of each principal, so these are distinct.
    pub(crate) fn approved(&self) -> u32 {
        u32::try_from(self.approvers().count()).unwrap_or(u32::MAX)
    }

    /// Who may answer has this, in words.
    pub(crate) fn needed(&self) -> String {
        match (&self.subject, self.from.contains(ROLES)) {
            (Subject::Grant(_), _) => format!("{} by policy", self.from),
            (Subject::Job { .. }, false) => format!("the role {}", self.from),
            (Subject::Job { .. }, true) => {
                format!("the roles {}", self.from.replace(ROLES, " and "))
            }
        }
    }

    /// Whether it was asked for by this principal, or in its name: an ai acts for who owns it. Who gives a grant gives
    /// no more than they may do without anybody, so it may be to an ai of their own.
    pub(crate) fn is_by(&self, principal: &str) -> bool {
        let owns = self.owner == principal && matches!(self.subject, Subject::Job { .. });
        self.principal == principal || owns
    }

    /// Decides about an answer at `now`. `digest`: of what whoever answers has looked at; a refusal needs none. `earlier`:
    /// how many others have approved it that still count.
    pub(crate) fn answer(
        &self,
        who: &Answerer<'_>,
        approves: bool,
        digest: &[u8],
        earlier: u32,
        now: i64,
    ) -> Result<Step, AnswerRefusal> {
        let name = who.principal.to_string();
        if who.principal.kind == PrincipalKind::Ai {
            return Err(AnswerRefusal::Ai(self.needed()));
        }
        if name == self.principal {
            return Err(AnswerRefusal::Oneself(name, self.needed()));
        }
        if self.is_by(&name) {
            return Err(AnswerRefusal::Owner(name, self.needed()));
        }
        if !who.is_among {
            return Err(AnswerRefusal::NotAmong(name, self.needed()));
        }
        let before = self.answers.iter().find(|answer| answer.principal == name);
        let said_before = before.is_some_and(|answer| answer.approves == approves);
        match self.state {
            State::Awaiting => {}
            State::Approved | State::Declined if said_before => return Ok(Step::Nothing),
            State::Expired => return Err(AnswerRefusal::Expired(self.id)),
            state => return Err(AnswerRefusal::Over(self.id, state)),
        }
        if now >= self.expire_time {
            return Err(AnswerRefusal::Expired(self.id));
        }
        if !approves {
            return Ok(Step::Decline);
        }
        if digest != self.digest {
            return Err(AnswerRefusal::OtherDigest(self.id));
        }
        Ok(match earlier.saturating_add(1) >= self.count {
            true => Step::Approve,
            false if said_before => Step::Nothing,
            false => Step::Note,
        })
    }

    /// The answers that an approval waits for, in words that stand with each task. `who`: some who may answer.
    pub(crate) fn awaits(&self, who: &[String]) -> String {
        let until = std::time::UNIX_EPOCH
            + std::time::Duration::from_millis(self.expire_time.max(0).unsigned_abs());
        let who = match who {
            [] => "nobody can answer now".to_owned(),
            who => format!("{} can answer", who.join(", ")),
        };
        format!(
            "awaits approval by somebody else with {}, {} of {}, until {}; {who}: muster approval show {}",
            self.needed(),
            self.approved(),
            self.count,
            humantime::format_rfc3339_seconds(until),
            self.id
        )
    }

    /// When a grant that began ends by itself.
    pub(crate) fn grant_end(&self) -> Option<i64> {
        match (&self.subject, self.state, self.end_time) {
            (Subject::Grant(terms), State::Approved, Some(began)) => {
                Some(began.saturating_add(terms.ttl))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn approval(count: u32) -> Approval {
        Approval {
            id: ApprovalId::from_bytes(&[1; 32]),
            subject: Subject::Job {
                job_id: JobId::from_bytes(&[2; 32]),
                start_deadline: 600_000,
            },
            state: State::Awaiting,
            principal: "ai/claude".into(),
            owner: "operator/ada".into(),
            reason: "to see".into(),
            digest: [3; 32],
            count,
            from: "admin".into(),
            rules: vec!["prod-needs-two".into()],
            source: "mcp".into(),
            confirmed: false,
            create_time: 1_000,
            expire_time: 61_000,
            end_time: None,
            cause: String::new(),
            answers: Vec::new(),
        }
    }

    fn said(principal: &str, approves: bool) -> Answer {
        Answer {
            principal: principal.into(),
            approves,
            note: String::new(),
            time: 2_000,
        }
    }

    fn answer(
        approval: &Approval,
        who: &str,
        is_among: bool,
        approves: bool,
    ) -> Result<Step, AnswerRefusal> {
        let principal: Principal = who.parse().unwrap();
        let others = approval.approvers().filter(|one| one.principal != who);
        let earlier = u32::try_from(others.count()).unwrap();
        let who = Answerer {
            principal: &principal,
            is_among,
        };
        approval.answer(&who, approves, &[3; 32], earlier, 5_000)
    }

    #[test]
    fn nobody_approves_what_they_asked_for_and_an_ai_approves_nothing() {
        let mut own = approval(1);
        own.principal = "operator/ada".into();
        assert!(matches!(
            answer(&own, "operator/ada", true, true),
            Err(AnswerRefusal::Oneself(..))
        ));
        for ai in ["ai/claude", "ai/other"] {
            assert!(matches!(
                answer(&approval(1), ai, true, true),
                Err(AnswerRefusal::Ai(_))
            ));
        }
        // The ai acts for who owns it: else they would only have to let it ask.
        for approves in [true, false] {
            assert!(matches!(
                answer(&approval(1), "operator/ada", true, approves),
                Err(AnswerRefusal::Owner(..))
            ));
        }
        assert_eq!(
            answer(&approval(1), "operator/bob", true, true),
            Ok(Step::Approve)
        );
        let mut grant = approval(1);
        grant.subject = Subject::Grant(Terms {
            selector: "all".into(),
            mode: Mode::Edit,
            actions: vec!["job.create".into()],
            ttl: 1_000,
            revoked: None,
        });
        assert_eq!(
            answer(&grant, "operator/ada", true, true),
            Ok(Step::Approve)
        );
        grant.principal = "operator/ada".into();
        assert!(answer(&grant, "operator/ada", true, true).is_err());
        assert!(matches!(
            answer(&approval(1), "operator/bob", false, true),
            Err(AnswerRefusal::NotAmong(..))
        ));
    }

    #[test]
    fn so_many_distinct_ones_are_needed_and_one_refusal_ends_it() {
        let mut two = approval(2);
        two.owner = String::new();
        assert_eq!(answer(&two, "operator/ada", true, true), Ok(Step::Note));
        two.answers.push(said("operator/ada", true));
        assert_eq!(answer(&two, "operator/ada", true, true), Ok(Step::Nothing));
        assert_eq!(answer(&two, "operator/bob", true, true), Ok(Step::Approve));
        assert_eq!(answer(&two, "operator/bob", true, false), Ok(Step::Decline));
        // Who approved may think again while it is awaited.
        assert_eq!(answer(&two, "operator/ada", true, false), Ok(Step::Decline));
        assert!(two.awaits(&["operator/bob".to_owned()]).starts_with(
            "awaits approval by somebody else with the role admin, 1 of 2, until \
                 1970-01-01T00:01:01Z; operator/bob can answer"
        ));
        two.from = "admin+dba".into();
        assert_eq!(two.needed(), "the roles admin and dba");
    }

    #[test]
    fn who_may_not_answer_any_more_has_not_answered() {
        let mut two = approval(2);
        two.answers.push(said("operator/bob", true));
        let eve = Principal::new(PrincipalKind::Operator, "eve");
        let who = Answerer {
            principal: &eve,
            is_among: true,
        };
        let with = |earlier| two.answer(&who, true, &[3; 32], earlier, 5_000);
        assert_eq!((with(0), with(1)), (Ok(Step::Note), Ok(Step::Approve)));
    }

    #[test]
    fn only_what_was_looked_at_is_approved_and_only_in_time() {
        let one = approval(1);
        let bob = Principal::new(PrincipalKind::Operator, "bob");
        let who = Answerer {
            principal: &bob,
            is_among: true,
        };
        let refused = one.answer(&who, true, &[4; 32], 0, 5_000);
        assert_eq!(refused, Err(AnswerRefusal::OtherDigest(one.id)));
        assert_eq!(
            one.answer(&who, true, b"", 0, 5_000),
            Err(AnswerRefusal::OtherDigest(one.id))
        );
        assert_eq!(one.answer(&who, false, b"", 0, 5_000), Ok(Step::Decline));
        assert_eq!(
            one.answer(&who, true, &[3; 32], 0, 61_000),
            Err(AnswerRefusal::Expired(one.id))
        );
    }

    #[test]
    fn names_read_back() {
        for (state, name) in State::ALL {
            assert_eq!(state.name(), name);
            assert_eq!(State::from_name(name), Some(state));
        }
    }

    proptest! {
        #[test]
        fn nothing_is_approved_by_fewer_than_are_needed(
            count in 1_u32..5,
            answers in prop::collection::vec((0_u8..4, any::<bool>()), 0..12),
        ) {
            let mut approval = approval(count);
            let mut yes = std::collections::BTreeSet::new();
            for (who, approves) in answers {
                let name = format!("operator/o{who}");
                match answer(&approval, &name, true, approves) {
                    Ok(Step::Note) => {
                        yes.insert(who);
                        approval.answers.retain(|answer| answer.principal != name);
                        approval.answers.push(said(&name, true));
                    }
                    Ok(Step::Approve) => {
                        yes.insert(who);
                        prop_assert!(yes.len() as u32 >= count);
                        approval.state = State::Approved;
                    }
                    Ok(Step::Decline) => approval.state = State::Declined,
                    Ok(Step::Nothing) | Err(_) => {}
                }
                prop_assert!(approval.state != State::Approved || yes.len() as u32 >= count);
            }
        }

        #[test]
        fn what_is_over_stays_over(
            state in proptest::sample::select(State::ALL.map(|(state, _)| state)[1..].to_vec()),
            approves: bool, is_among: bool,
        ) {
            let mut over = approval(1);
            over.state = state;
            over.answers.push(said("operator/bob", true));
            let step = answer(&over, "operator/bob", is_among, approves);
            prop_assert!(matches!(step, Err(_) | Ok(Step::Nothing)));
        }
    }
}
