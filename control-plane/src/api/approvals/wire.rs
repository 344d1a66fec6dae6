//! Approvals and grants on the wire.

use bytes::Bytes;
use muster_proto::{
    ids::HostId,
    v1::{self, ApprovalAnswer, approval},
};

use crate::{
    jobs::Job,
    model::{
        approval::{Approval, State, Subject},
        mode_out,
    },
    times,
};

fn state(state: State) -> approval::State {
    match state {
        State::Awaiting => approval::State::Awaiting,
        State::Approved => approval::State::Approved,
        State::Declined => approval::State::Declined,
        State::Expired => approval::State::Expired,
        State::Drifted => approval::State::Drifted,
        State::Cancelled => approval::State::Cancelled,
    }
}

/// A state that somebody names.
pub(super) fn state_in(number: i32) -> Option<State> {
    let wanted = approval::State::try_from(number).ok()?;
    State::ALL
        .into_iter()
        .map(|(one, _)| one)
        .find(|one| state(*one) == wanted)
}

/// An approval, with what it is about.
pub(super) fn on_wire(approval: &Approval, job: Option<&Job>) -> v1::Approval {
    let mut wire = v1::Approval {
        approval_id: approval.id.to_string(),
        state: state(approval.state).into(),
        principal: approval.principal.clone(),
        owner: approval.owner.clone(),
        reason: approval.reason.clone(),
        digest: Bytes::copy_from_slice(&approval.digest),
        count: i32::try_from(approval.count).unwrap_or(i32::MAX),
        from: approval.from.to_string(),
        answers: approval
            .answers
            .iter()
            .map(|answer| approval::Answer {
                principal: answer.principal.clone(),
                answer: match answer.approves {
                    true => ApprovalAnswer::Approve.into(),
                    false => ApprovalAnswer::Decline.into(),
                },
                note: answer.note.clone(),
                time: Some(times::timestamp(answer.time)),
            })
            .collect(),
        create_time: Some(times::timestamp(approval.create_time)),
        expire_time: Some(times::timestamp(approval.expire_time)),
        end_time: approval.end_time.map(times::timestamp),
        cause: approval.cause.clone(),
        rules: approval.rules.clone(),
        grant: grant_on_wire(approval),
        ..v1::Approval::default()
    };
    match &approval.subject {
        Subject::Grant(_) => wire.set_kind(approval::Kind::Grant),
        Subject::Job { job_id, .. } => {
            wire.set_kind(approval::Kind::Job);
            wire.job_id = job_id.to_string();
        }
    }
    if let Some(job) = job {
        let order = &job.order;
        wire.selector = order.selector.to_string();
        wire.action = Some(order.action.said().clone());
        wire.mode = order.confinement.mode;
        wire.network = order.confinement.network.clone();
        wire.hosts = job
            .tasks(|_| true)
            .into_iter()
            .map(|(_, task)| host(task.host_id, &task.host_name))
            .collect();
        wire.host_count = i32::try_from(wire.hosts.len()).unwrap_or(i32::MAX);
    }
    wire
}

fn host(id: HostId, name: &str) -> approval::Host {
    approval::Host {
        host_id: id.to_string(),
        host_name: name.to_owned(),
    }
}

/// The grant that an approval is about.
pub(super) fn grant_on_wire(approval: &Approval) -> Option<v1::Grant> {
    let Subject::Grant(terms) = &approval.subject else {
        return None;
    };
    let began = approval
        .end_time
        .filter(|_| approval.state == State::Approved);
    let (revoke_time, revoked_by) = terms.revoked.clone().unzip();
    Some(v1::Grant {
        grant_id: approval.id.to_string(),
        principal: approval.principal.clone(),
        selector: terms.selector.clone(),
        mode: mode_out(Some(terms.mode)).into(),
        actions: terms.actions.clone(),
        ttl: Some(times::duration_ms(terms.ttl)),
        reason: approval.reason.clone(),
        approvers: approval
            .approvers()
            .map(|answer| answer.principal.clone())
            .collect(),
        start_time: began.map(times::timestamp),
        expire_time: approval.grant_end().map(times::timestamp),
        revoke_time: revoke_time.map(times::timestamp),
        revoked_by: revoked_by.unwrap_or_default(),
    })
}
