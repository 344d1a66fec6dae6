//! What waits for somebody's word: jobs that policy holds back, and grants that somebody asks for.
//!
//! Everything here goes at the pace of people, so each change is durable before it counts, and the ledger is read
//! where memory would do. Memory holds what is awaited, for its expiry, and the grants that permit something now.

mod grants;
pub(crate) mod webhook;

use std::{collections::HashMap, sync::Arc, time::Duration};

use muster_proto::{
    ids::{ApprovalId, JobId},
    v1::{Action, Reason},
};
use parking_lot::Mutex;

pub(crate) use self::{
    grants::{Grant, Grants, selector as grant_selector},
    webhook::{Notice, Webhook},
};
use crate::{
    audit,
    clock::now,
    jobs::{Job, Jobs, digest},
    model::{
        Entry, Explain, Order, Principal, Withdrawal,
        approval::{Answer, AnswerRefusal, Answerer, Approval, State, Step, Subject},
    },
    policy::Policy,
    store::{
        Batch, Store, StoreError,
        approvals::{self as rows, ApprovalFilter},
        jobs::After,
    },
};

/// Approvals that may be awaited at once.
const OPEN_MAX: usize = 10_000;

/// Approvals that one principal may have awaited at once: a loop that asks again and again fills no list.
const OPEN_OF_ONE_MAX: usize = 100;

/// An approval is durable before its job is accepted; one without a job for so long belongs to none.
const JOBLESS_MAX_MS: i64 = 60_000;

/// Why an approval ends whose job was cancelled, or turned out to have run.
const NOTHING_AWAITS: &str = "nothing of its job awaits approval any more";

/// Why an approval was not made, found or answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApprovalError {
    /// There is none that this caller may see.
    #[error("there is no approval {0:?}; `approval list` shows those there are")]
    NotFound(String),
    /// The answer does not count.
    #[error(transparent)]
    Answer(#[from] AnswerRefusal),
    /// What was to be approved changed.
    #[error("{0}: it is refused, and has to be asked for anew")]
    Drift(String),
    /// Whoever approves may not do it themselves.
    #[error("a grant never exceeds what who approves it may do: {0}")]
    Exceeds(String),
    /// The id was used for other terms.
    #[error("request_id: it was used before for another grant; choose a new one")]
    RequestIdReused,
    /// Too many are awaited.
    #[error("{0} approvals are awaited already; have them answered, or cancel their jobs")]
    TooMany(usize),
    /// The ledger does not work.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether what was asked for may still happen, once an answer has made it enough.
pub(crate) enum Check {
    /// It may.
    Same,
    /// It changed; says how.
    Drifted(String),
    /// Who answers may not do it; says what.
    Exceeds(String),
}

/// Approvals. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Approvals(Arc<Shared>);

struct Shared {
    store: Store,
    jobs: Jobs,
    webhook: Webhook,
    expires_after: Duration,
    // Held for a look only.
    open: Mutex<HashMap<ApprovalId, Open>>,
    grants: Grants,
    policy: Policy,
    /// Held while an approval changes, so that one change is durable before the next is judged.
    changing: tokio::sync::Mutex<()>,
}

/// What is remembered of an approval that is awaited.
struct Open {
    principal: String,
    job: Option<JobId>,
    create_time: i64,
    expire_time: i64,
}

/// An answer as it was given.
pub(crate) struct NewAnswer<'a> {
    /// Who answers.
    pub(crate) who: &'a Principal,
    /// Approves; otherwise declines.
    pub(crate) approves: bool,
    /// Why; may be empty.
    pub(crate) note: &'a str,
    /// The digest of what was looked at.
    pub(crate) digest: &'a [u8],
}

/// The approval that a job waits for; follows from the job.
pub(crate) fn id_of_job(job: JobId) -> ApprovalId {
    ApprovalId::from_bytes(&digest(&[
        b"muster-approval-v1",
        job.to_string().as_bytes(),
    ]))
}

impl Approvals {
    /// Reads what is awaited and granted, and does what a kill left half done.
    pub(crate) async fn load(
        store: Store,
        jobs: Jobs,
        (grants, policy): (Grants, Policy),
        webhook: Webhook,
        expires_after: Duration,
        who_can: impl Fn(&Approval) -> Vec<String>,
    ) -> Result<Self, StoreError> {
        let open = rows::load_open(&store.readers).await?;
        let given = rows::load_grants(&store.readers, now()).await?;
        let given: Vec<_> = given.iter().filter_map(Grant::of).collect();
        grants.change(|grants| grants.clone_from(&given));
        let approvals = Self(Arc::new(Shared {
            open: Mutex::new(open.iter().map(|one| (one.id, Open::of(one))).collect()),
            grants,
            policy,
            store,
            jobs,
            webhook,
            expires_after,
            changing: tokio::sync::Mutex::default(),
        }));
        approvals.settle_jobs(who_can).await?;
        Ok(approvals)
    }

    /// How long an approval is awaited, milliseconds.
    pub(crate) fn expires_after(&self) -> i64 {
        i64::try_from(self.0.expires_after.as_millis()).unwrap_or(i64::MAX)
    }

    /// What a job is to do, with its secrets; `None` if one of them is gone.
    pub(crate) fn action_of(&self, order: &Order) -> Option<Action> {
        self.0.jobs.action_of(order)
    }

    /// Brings jobs that await approval in line with what the ledger says of their approvals.
    async fn settle_jobs(
        &self,
        who_can: impl Fn(&Approval) -> Vec<String>,
    ) -> Result<(), StoreError> {
        for job in self.0.jobs.all_awaiting() {
            let approval = match job.order.approval_id.parse() {
                Ok(id) => rows::get(&self.0.store.readers, id).await?,
                Err(_) => None,
            };
            match approval {
                Some(approval) if approval.state == State::Awaiting => {
                    let awaits = approval.awaits(&who_can(&approval));
                    self.0.jobs.tell_awaiting(&job, &awaits);
                }
                Some(approval) if approval.state == State::Approved => {
                    // The same commit let its tasks go; what still awaits came back by a restore.
                    self.approve_job(&job, &approval, Batch::new(), now())
                        .await?;
                }
                Some(approval) => {
                    self.refuse_job(&job, approval.state, &approval.cause)
                        .await?
                }
                None => {
                    let cause = "its approval is not in the ledger";
                    self.refuse_job(&job, State::Expired, cause).await?;
                }
            }
        }
        Ok(())
    }

    /// Makes an approval, durably. What waits for it comes after.
    pub(crate) async fn add(&self, approval: &Approval) -> Result<(), ApprovalError> {
        {
            let open = self.0.open.lock();
            let own = |open: &&Open| open.principal == approval.principal;
            let of_one = open.values().filter(own).count();
            if open.len() >= OPEN_MAX || of_one >= OPEN_OF_ONE_MAX {
                return Err(ApprovalError::TooMany(of_one));
            }
        }
        let _changing = self.0.changing.lock().await;
        let mut batch = Batch::new();
        batch.put_approval(approval);
        self.commit(batch).await?;
        self.0.open.lock().insert(approval.id, Open::of(approval));
        Ok(())
    }

    /// Tells people that an approval is awaited.
    pub(crate) fn announce(&self, approval: &Approval, about: webhook::About) {
        self.0.webhook.tell(Notice::awaited(approval, about));
    }

    /// An approval as it stands.
    pub(crate) async fn get(&self, id: ApprovalId) -> Result<Option<Approval>, StoreError> {
        rows::get(&self.0.store.readers, id).await
    }

    /// A page of approvals, newest first.
    pub(crate) async fn list(
        &self,
        filter: &ApprovalFilter,
        after: Option<&After>,
        limit: i64,
    ) -> Result<Vec<Approval>, StoreError> {
        rows::list(&self.0.store.readers, filter, after, limit).await
    }

    /// The job that an approval is about, while it is there.
    pub(crate) async fn job_of(&self, approval: &Approval) -> Result<Option<Arc<Job>>, StoreError> {
        match &approval.subject {
            Subject::Job { job_id, .. } => self.0.jobs.find_job(*job_id).await,
            Subject::Grant(_) => Ok(None),
        }
    }

    /// Answers an approval. `is_among`: whether somebody is one of those who may, now; what they said before counts no
    /// more once they are not. `check`: whether what was asked for may still happen, with so many approvals.
    pub(crate) async fn answer(
        &self,
        id: ApprovalId,
        answer: NewAnswer<'_>,
        is_among: impl Fn(&str, &Approval) -> bool,
        who_can: impl Fn(&Approval) -> Vec<String>,
        check: impl Fn(&Approval, Option<&Job>, u32) -> Check,
    ) -> Result<Approval, ApprovalError> {
        let _changing = self.0.changing.lock().await;
        let mut approval = self
            .get(id)
            .await?
            .ok_or_else(|| ApprovalError::NotFound(id.to_string()))?;
        let time = now();
        let name = answer.who.to_string();
        let who = Answerer {
            principal: answer.who,
            is_among: is_among(&name, &approval),
        };
        let counting = |one: &&Answer| one.principal != name && is_among(&one.principal, &approval);
        let earlier = approval.approvers().filter(counting).count();
        let earlier = u32::try_from(earlier).unwrap_or(u32::MAX);
        let step = approval.answer(&who, answer.approves, answer.digest, earlier, time)?;
        if step == Step::Nothing {
            return Ok(approval);
        }
        let said = Answer {
            principal: name,
            approves: answer.approves,
            note: answer.note.to_owned(),
            time,
        };
        let mut batch = Batch::new();
        batch.put_answer(id, &said);
        approval
            .answers
            .retain(|one| one.principal != said.principal);
        approval.answers.push(said);
        let job = match &approval.subject {
            Subject::Job { job_id, .. } => self.0.jobs.awaiting(*job_id).await?,
            Subject::Grant(_) => None,
        };
        if matches!(approval.subject, Subject::Job { .. }) && job.is_none() {
            self.end(
                &mut approval,
                State::Cancelled,
                NOTHING_AWAITS,
                Batch::new(),
                None,
            )
            .await?;
            return Err(AnswerRefusal::Over(id, State::Cancelled).into());
        }
        // Whoever begins to approve what is not theirs to give is told so at once, and not after the others.
        let checked = match step {
            Step::Decline | Step::Nothing => Check::Same,
            Step::Note | Step::Approve => {
                check(&approval, job.as_deref(), earlier.saturating_add(1))
            }
        };
        match (step, checked) {
            (_, Check::Exceeds(what)) => return Err(ApprovalError::Exceeds(what)),
            (Step::Approve, Check::Drifted(cause)) => {
                self.end(&mut approval, State::Drifted, &cause, batch, job.as_ref())
                    .await?;
                return Err(ApprovalError::Drift(cause));
            }
            (Step::Approve, Check::Same) => {
                self.end(&mut approval, State::Approved, "", batch, job.as_ref())
                    .await?;
            }
            (Step::Decline, _) => {
                let mut cause = format!("declined by {}", answer.who);
                if !answer.note.is_empty() {
                    cause.push_str(&format!(": {}", answer.note));
                }
                self.end(&mut approval, State::Declined, &cause, batch, job.as_ref())
                    .await?;
            }
            (Step::Note | Step::Nothing, _) => {
                self.commit(batch).await?;
                if let Some(job) = &job {
                    let awaits = approval.awaits(&who_can(&approval));
                    self.0.jobs.tell_awaiting(job, &awaits);
                }
                self.0.webhook.tell(Notice::answered(&approval));
            }
        }
        Ok(approval)
    }

    /// Ends an approval with what else is in `batch`, and lets go or takes back what waits for it.
    async fn end(
        &self,
        approval: &mut Approval,
        state: State,
        cause: &str,
        mut batch: Batch,
        job: Option<&Arc<Job>>,
    ) -> Result<(), StoreError> {
        let time = now();
        audit::effect("state", state.name());
        batch.end_approval(approval.id, state, cause, time);
        approval.state = state;
        approval.cause = cause.to_owned();
        approval.end_time = Some(time);
        match job {
            Some(job) if state == State::Approved => {
                self.approve_job(job, approval, batch, time).await?;
            }
            _ => self.commit(batch).await?,
        }
        self.0.open.lock().remove(&approval.id);
        if let Some(job) = job.filter(|_| state != State::Approved) {
            self.refuse_job(job, state, cause).await?;
        }
        if state == State::Approved
            && let Some(grant) = Grant::of(approval)
        {
            self.change_grants(|grants| grants.push(grant.clone()));
        }
        tracing::info!(
            approval.id = %approval.id,
            "{} of {} is {}{}{}",
            approval.id,
            approval.principal,
            state.name(),
            if cause.is_empty() { "" } else { ": " },
            cause
        );
        self.0.webhook.tell(Notice::decided(approval));
        Ok(())
    }

    async fn approve_job(
        &self,
        job: &Arc<Job>,
        approval: &Approval,
        batch: Batch,
        time: i64,
    ) -> Result<(), StoreError> {
        let start_deadline = match &approval.subject {
            Subject::Job { start_deadline, .. } => *start_deadline,
            Subject::Grant(_) => 0,
        };
        let deadline = time.saturating_add(start_deadline);
        self.0.jobs.approve(job, deadline, batch, time).await
    }

    async fn refuse_job(
        &self,
        job: &Arc<Job>,
        state: State,
        cause: &str,
    ) -> Result<(), StoreError> {
        let (withdrawal, reason) = match state {
            State::Declined => (Withdrawal::Rejected, Reason::ApprovalDeclined),
            State::Drifted => (Withdrawal::Rejected, Reason::ApprovalDrift),
            State::Cancelled => (Withdrawal::Cancelled, Reason::CancelRequested),
            State::Expired | State::Awaiting | State::Approved => {
                (Withdrawal::Expired, Reason::ApprovalExpired)
            }
        };
        let message = format!("{cause}; it never ran");
        self.0.jobs.refuse(job, withdrawal, reason, &message).await
    }

    /// Ends what nobody decided in time, and what nothing waits for any more.
    pub(crate) async fn sweep(&self) {
        let time = now();
        let due: Vec<(ApprovalId, bool)> = {
            let open = self.0.open.lock();
            open.iter()
                .filter_map(|(id, open)| {
                    if time >= open.expire_time {
                        return Some((*id, true));
                    }
                    let job = open.job?;
                    let settled = time - open.create_time >= JOBLESS_MAX_MS;
                    let over = match self.0.jobs.awaits_now(job) {
                        Some(awaits) => !awaits,
                        None => settled,
                    };
                    over.then_some((*id, false))
                })
                .collect()
        };
        for (id, expired) in due {
            if let Err(error) = self.lapse(id, expired).await {
                tracing::warn!(%error, approval.id = %id, "an approval was not ended: {error}");
                break;
            }
        }
        if self.0.grants.have_lapsed(time) {
            self.change_grants(|grants| grants.retain(|grant| time < grant.end_time));
        }
    }

    async fn lapse(&self, id: ApprovalId, expired: bool) -> Result<(), StoreError> {
        let _changing = self.0.changing.lock().await;
        let Some(mut approval) = self.get(id).await? else {
            self.0.open.lock().remove(&id);
            return Ok(());
        };
        if approval.state != State::Awaiting {
            self.0.open.lock().remove(&id);
            return Ok(());
        }
        let job = match &approval.subject {
            Subject::Job { job_id, .. } => self.0.jobs.awaiting(*job_id).await?,
            Subject::Grant(_) => None,
        };
        let (state, cause) = match (expired, &job, &approval.subject) {
            (true, _, Subject::Grant(_)) | (true, Some(_), _) => {
                let asked = approval.count - approval.approved().min(approval.count);
                let cause = format!(
                    "nobody with {} decided in time ({asked} of {} missing)",
                    approval.needed(),
                    approval.count
                );
                (State::Expired, cause)
            }
            (_, None, Subject::Job { .. }) => (State::Cancelled, NOTHING_AWAITS.to_owned()),
            _ => return Ok(()),
        };
        // Nobody calls for this, so no call has an entry of it.
        let mut batch = Batch::new();
        let entry = Entry::new("approval.end")
            .by(approval.principal.as_str())
            .with("approval", id)
            .with("state", state.name());
        batch.record(entry.text());
        self.end(&mut approval, state, &cause, batch, job.as_ref())
            .await
    }

    /// Forgets what was decided before `time`.
    pub(crate) async fn forget_before(&self, time: i64) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.forget_approvals(time);
        self.0.store.writer.commit(batch).await?;
        Ok(())
    }

    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let committed = self.0.store.writer.commit(batch).await?;
        Ok(committed.durable.wait().await?)
    }

    /// Changes which grants there are: what runs is judged anew.
    fn change_grants(&self, change: impl Fn(&mut Vec<Arc<Grant>>)) {
        self.0.grants.change(change);
        self.0.policy.touch();
    }

    /// Ends a grant.
    pub(crate) async fn revoke(
        &self,
        id: ApprovalId,
        by: &str,
    ) -> Result<Option<Approval>, StoreError> {
        let _changing = self.0.changing.lock().await;
        let Some(approval) = self.get(id).await? else {
            return Ok(None);
        };
        if !matches!(approval.subject, Subject::Grant(_)) {
            return Ok(None);
        }
        let mut batch = Batch::new();
        if approval.state == State::Awaiting {
            let cause = format!("taken back by {by}");
            batch.end_approval(id, State::Cancelled, &cause, now());
        }
        batch.revoke_grant(id, by, now());
        self.commit(batch).await?;
        self.0.open.lock().remove(&id);
        self.change_grants(|grants| grants.retain(|grant| grant.id != id));
        self.get(id).await
    }
}

impl Open {
    fn of(approval: &Approval) -> Self {
        Self {
            principal: approval.principal.clone(),
            job: match &approval.subject {
                Subject::Job { job_id, .. } => Some(*job_id),
                Subject::Grant(_) => None,
            },
            create_time: approval.create_time,
            expire_time: approval.expire_time,
        }
    }
}

impl Explain for ApprovalError {
    fn reason(&self) -> Reason {
        match self {
            Self::NotFound(_) => Reason::ApprovalNotFound,
            Self::Answer(refusal) => match refusal {
                AnswerRefusal::Oneself(..) | AnswerRefusal::Owner(..) | AnswerRefusal::Ai(_) => {
                    Reason::SelfApproval
                }
                AnswerRefusal::NotAmong(..) => Reason::PolicyDenied,
                AnswerRefusal::OtherDigest(_) => Reason::ApprovalDrift,
                AnswerRefusal::Expired(_) => Reason::ApprovalExpired,
                AnswerRefusal::Over(_, State::Declined) => Reason::ApprovalDeclined,
                AnswerRefusal::Over(_, State::Expired) => Reason::ApprovalExpired,
                AnswerRefusal::Over(..) => Reason::ApprovalDrift,
            },
            Self::Drift(_) => Reason::ApprovalDrift,
            Self::Exceeds(_) => Reason::PolicyDenied,
            Self::RequestIdReused => Reason::RequestIdReused,
            Self::TooMany(_) => Reason::LimitExceeded,
            Self::Store(StoreError::Broken(_) | StoreError::NotDurable(_)) => {
                Reason::LedgerUnavailable
            }
            Self::Store(error) => error.reason(),
        }
    }
}
