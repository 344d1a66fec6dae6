//! Between the rooms' words and the wire's.

use std::time::Duration;

use bytes::Bytes;
use muster_proto::v1::{self, Confinement, TaskResult, job, task};
use prost::Message as _;

use crate::api::output;
use crate::{
    hosts::Inventory,
    jobs::Job,
    model::{
        JobState, State, Summary, Task,
        dispatch::{Decision, HostView, TaskView, Wait, decide},
    },
    times::{duration, duration_ms, timestamp},
};

/// The task state of that number; `None` if there is none, or it is never stored.
pub(crate) fn task_state_in(number: i32) -> Option<State> {
    let wanted = task::State::try_from(number).ok()?;
    State::ALL
        .into_iter()
        .map(|(state, _)| state)
        .find(|state| task::State::from(*state) == wanted)
}

fn job_state(state: JobState) -> job::State {
    match state {
        JobState::Pending => job::State::Pending,
        JobState::Running => job::State::Running,
        JobState::Succeeded => job::State::Succeeded,
        JobState::Failed => job::State::Failed,
        JobState::Cancelled => job::State::Cancelled,
    }
}

/// The job state of that number; `None` if there is none, or it is never stored.
pub(crate) fn job_state_in(number: i32) -> Option<JobState> {
    let wanted = job::State::try_from(number).ok()?;
    JobState::ALL
        .into_iter()
        .map(|(state, _)| state)
        .find(|state| job_state(*state) == wanted)
}

/// A job on the wire.
pub(crate) fn job(job: &Summary) -> v1::Job {
    let order = &job.order;
    let (cancel_time, cancelled_by) = job.cancel.clone().unzip();
    v1::Job {
        job_id: order.job_id.to_string(),
        request_id: order.request_id.to_string(),
        principal: order.principal.to_string(),
        selector: order.selector.to_string(),
        action: Some(order.action.said().clone()),
        state: job_state(job.state).into(),
        counts: job
            .counts
            .iter()
            .map(|(state, tasks)| job::Count {
                state: task::State::from(state).into(),
                tasks: i32::try_from(tasks).unwrap_or(i32::MAX),
            })
            .collect(),
        create_time: Some(timestamp(order.create_time)),
        start_time: job.start_time.map(timestamp),
        end_time: job.end_time.map(timestamp),
        start_deadline_time: Some(timestamp(order.start_deadline_time)),
        cancel_time: cancel_time.map(timestamp),
        cancelled_by: cancelled_by.map(|by| by.to_string()).unwrap_or_default(),
        note: job.note.to_string(),
        lost_after: Some(duration_ms(order.lost_after)),
        mode: order.confinement.mode,
        network: order.confinement.network.clone(),
        approval_id: order.approval_id.to_string(),
        reason: order.reason.to_string(),
    }
}

/// A task of a live job on the wire.
pub(crate) fn task(inventory: &Inventory, job: &Job, task: &Task) -> v1::Task {
    task_of(inventory, &job.order.job_id.to_string(), task)
}

/// A task on the wire.
pub(crate) fn task_of(inventory: &Inventory, job_id: &str, task: &Task) -> v1::Task {
    let host = inventory.get(task.host_id);
    let standing = match &host {
        None => HostView::Gone,
        Some(host) if host.is_barred() => HostView::Barred,
        Some(host) if !host.pulse.attached() => HostView::Away,
        Some(host) if host.pulse.owes_upload() => HostView::Uploading,
        Some(_) => HostView::Attached,
    };
    let wait = match decide(TaskView::waiting(task), standing, true) {
        Decision::Nothing if task.state == State::AwaitingApproval => v1::task::Wait::ForApproval,
        Decision::Nothing => v1::task::Wait::Unspecified,
        Decision::Wait(Wait::Host) => v1::task::Wait::ForHost,
        Decision::Wait(Wait::Answer) => v1::task::Wait::ForAnswer,
        Decision::Wait(Wait::Unlock) => v1::task::Wait::ForUnlock,
        Decision::Wait(Wait::Release) => v1::task::Wait::ForRelease,
        Decision::Wait(Wait::Upload) => v1::task::Wait::ForUpload,
        Decision::Wait(Wait::Dispatch)
        | Decision::Offer
        | Decision::Withdraw(_)
        | Decision::WithdrawFromGone => v1::task::Wait::ForDispatch,
    };
    let disconnect_time = host
        .filter(|host| !task.state.is_final() && !host.pulse.attached())
        .and_then(|host| host.pulse.heard_time());
    v1::Task {
        task_id: task.task_id.to_string(),
        job_id: job_id.to_owned(),
        host_id: task.host_id.to_string(),
        host_name: task.host_name.to_string(),
        state: task::State::from(task.state).into(),
        reason: task.reason.into(),
        message: task.message.clone(),
        exit_code: task.exit_code,
        signal: task.signal.clone(),
        wait: wait.into(),
        state_time: Some(timestamp(task.state_time)),
        start_time: task.start_time.map(timestamp),
        end_time: task.end_time.map(timestamp),
        run_time: task
            .run_time
            .map(|micros| duration(Duration::from_micros(micros.max(0).unsigned_abs()))),
        output_size: Some(output::size(task.output_size)),
        output_complete: task.output_complete,
        cancel_time: task.cancel_time.map(timestamp),
        disconnect_time: disconnect_time.map(timestamp),
        late_result: task.late_result.clone(),
        confinement: (!task.confinement.is_empty())
            .then(|| Confinement::decode(Bytes::clone(&task.confinement)).ok())
            .flatten(),
        receipt: Bytes::new(),
        doubt: task.doubt.clone(),
        result: (!task.result.is_empty())
            .then(|| TaskResult::decode(Bytes::clone(&task.result)).ok())
            .flatten(),
    }
}
