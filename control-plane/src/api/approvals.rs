//! The door to approvals and grants.

mod grants;
mod wire;

use std::sync::Arc;

use muster_proto::{
    ids::ApprovalId,
    v1::{
        self, AnswerApprovalRequest, AnswerApprovalResponse, ApprovalAnswer, GetApprovalRequest,
        GetApprovalResponse, ListApprovalsRequest, ListApprovalsResponse, Reason,
        approval_service_server::ApprovalService,
    },
};
use tonic::{Request, Response, Status};

use self::wire::{on_wire, state_in};
use super::{
    caller::Caller,
    page::{self, Query},
};
use crate::{
    approvals::{ApprovalError, Approvals, NewAnswer},
    audit,
    hosts::Inventory,
    jobs::Job,
    model::approval::{Approval, State, Subject},
    orders::Orders,
    rights::Rights,
    store::{approvals::ApprovalFilter, jobs::After},
    wire::status,
};

/// Characters of a note, and of the reason for a grant.
const TEXT_MAX: usize = 1000;

/// `muster.v1.ApprovalService`, and in [`grants`] `muster.v1.GrantService`.
#[derive(Clone)]
pub(crate) struct ApprovalDoor {
    /// The approvals.
    pub(crate) approvals: Approvals,
    /// The hosts.
    pub(crate) inventory: Inventory,
    /// What policy says.
    pub(crate) rights: Rights,
    /// Whether a job is still what was ordered.
    pub(crate) orders: Orders,
}

impl ApprovalDoor {
    /// Whether the caller may see an approval: its own, one of its ai's, or one that it may answer.
    fn may_see(&self, caller: &Caller, approval: &Approval) -> bool {
        let me = &*caller.principal;
        approval.principal == me
            || approval.owner == me
            || self.rights.is_among(&caller.who, approval)
    }

    async fn visible(&self, caller: &Caller, id: &str) -> Result<Approval, Status> {
        let none = || status::of(ApprovalError::NotFound(id.chars().take(80).collect()));
        let parsed: ApprovalId = id.parse().map_err(|_| none())?;
        let found = self.approvals.get(parsed).await;
        let found = found.map_err(|error| status::of(ApprovalError::from(error)))?;
        found
            .filter(|approval| self.may_see(caller, approval))
            .ok_or_else(none)
    }

    fn on_wire(&self, approval: &Approval, job: Option<&Job>) -> v1::Approval {
        let mut wire = on_wire(approval, job);
        if approval.state == State::Awaiting {
            wire.answerers = self.rights.answerers(approval);
        }
        wire
    }

    async fn job_of(&self, approval: &Approval) -> Result<Option<Arc<Job>>, Status> {
        let job = self.approvals.job_of(approval).await;
        job.map_err(|error| status::of(ApprovalError::from(error)))
    }
}

#[tonic::async_trait]
impl ApprovalService for ApprovalDoor {
    async fn list_approvals(
        &self,
        request: Request<ListApprovalsRequest>,
    ) -> Result<Response<ListApprovalsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let size = page::size(request.page_size, 50, 1000)?;
        let states: Vec<State> = request
            .states
            .iter()
            .map(|number| state_in(*number))
            .collect::<Option<_>>()
            .ok_or_else(|| status::invalid("states", "holds an unknown state"))?;
        let query = Query::new(&[
            "ListApprovals",
            &caller.principal,
            &format!("{:?}", request.states),
        ]);
        let mut after = match query.place(&request.page_token)? {
            None => None,
            Some(place) => Some(self::after(&place)?),
        };
        let filter = ApprovalFilter {
            states,
            ..ApprovalFilter::default()
        };
        let mut shown = Vec::new();
        // Who may answer what is policy's to say, so what may not be seen is left out here.
        loop {
            let rows = self
                .approvals
                .list(&filter, after.as_ref(), 1000)
                .await
                .map_err(|error| status::of(ApprovalError::from(error)))?;
            let last = rows.last().map(|row| After {
                time: row.create_time,
                id: row.id.to_string(),
            });
            let whole = rows.len() == 1000;
            shown.extend(rows.into_iter().filter(|row| self.may_see(&caller, row)));
            if shown.len() > size || !whole {
                break;
            }
            after = last;
        }
        let more = shown.len() > size;
        shown.truncate(size);
        let next_page_token = match shown.last() {
            Some(last) if more => query.token(&format!("{} {}", last.create_time, last.id)),
            _ => String::new(),
        };
        let mut approvals = Vec::with_capacity(shown.len());
        for approval in &shown {
            let job = self.job_of(approval).await?;
            let mut wire = self.on_wire(approval, job.as_deref());
            wire.hosts = Vec::new();
            approvals.push(wire);
        }
        Ok(Response::new(ListApprovalsResponse {
            approvals,
            next_page_token,
        }))
    }

    async fn get_approval(
        &self,
        request: Request<GetApprovalRequest>,
    ) -> Result<Response<GetApprovalResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = request.into_inner().approval_id;
        let approval = self.visible(&caller, &id).await?;
        let job = self.job_of(&approval).await?;
        let approval = Some(self.on_wire(&approval, job.as_deref()));
        Ok(Response::new(GetApprovalResponse { approval }))
    }

    async fn answer_approval(
        &self,
        request: Request<AnswerApprovalRequest>,
    ) -> Result<Response<AnswerApprovalResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let approves = match request.answer() {
            ApprovalAnswer::Approve => true,
            ApprovalAnswer::Decline => false,
            ApprovalAnswer::Unspecified => {
                return Err(status::invalid("answer", "is APPROVE or DECLINE"));
            }
        };
        if request.note.chars().count() > TEXT_MAX {
            return Err(status::invalid("note", "has at most 1,000 characters"));
        }
        let who = &caller.proven().principal;
        let seen = self.visible(&caller, &request.approval_id).await?;
        audit::effect("approval", seen.id);
        audit::effect("answer", if approves { "approve" } else { "decline" });
        if let Subject::Job { job_id, .. } = &seen.subject {
            audit::effect("job", job_id);
        }
        let answer = NewAnswer {
            who,
            approves,
            note: &request.note,
            digest: &request.digest,
        };
        let check = |approval: &Approval, job: Option<&Job>, approvals: u32| match &approval.subject
        {
            Subject::Job { .. } => self.orders.check_job(approval, job, approvals),
            Subject::Grant(terms) => self.check_grant(&caller.principal, terms),
        };
        let answered = self
            .approvals
            .answer(
                seen.id,
                answer,
                |who, approval| self.rights.is_among_now(who, approval),
                |approval| self.rights.answerers(approval),
                check,
            )
            .await
            .map_err(status::of)?;
        let job = self.job_of(&answered).await?;
        let approval = Some(self.on_wire(&answered, job.as_deref()));
        Ok(Response::new(AnswerApprovalResponse { approval }))
    }
}

fn after(place: &str) -> Result<After, Status> {
    let parsed = place
        .split_once(' ')
        .and_then(|(time, id)| Some((time.parse().ok()?, id.to_owned())));
    parsed
        .map(|(time, id)| After { time, id })
        .ok_or_else(|| status::refuse(Reason::PageTokenInvalid, "page_token: it is malformed"))
}
