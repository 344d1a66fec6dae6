//! Between the rooms' words and the wire's.

use std::time::Duration;

use bytes::Bytes;
use muster_proto::{
    agent::v1::{self as agent, task_state::Ended},
    v1::{self, Action, Confinement, InputStatus, Reason, job, task, task_input},
};
use prost::Message as _;

pub(crate) use super::hosts::facts;
use super::output;
use crate::{
    dispatcher::{Decision, HostView, TaskView, Wait, decide},
    hosts::Inventory,
    jobs::{Answer, Input, Job},
    model::{Ending, JobState, Mode, NetworkAccess, State, Summary, Task, mode_in, mode_out},
    output::Stream,
    policy::Plan,
    redaction,
    times::{duration, duration_ms, timestamp},
};

/// Bytes of a text that an agent sends for people to read.
const WORDS_MAX: usize = 1024;

/// Bytes of a receipt, with a certificate: it has about 900.
pub(crate) const RECEIPT_MAX: usize = 16 << 10;

/// Roots, features and addresses of a confinement that a host reports.
const CONFINEMENT_PARTS_MAX: usize = 32;

/// A text from an agent, cut to what people read.
pub(crate) fn words(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(WORDS_MAX));
    text
}

/// The stream of an agent's chunk.
pub(crate) fn stream_in(stream: v1::OutputStream) -> Option<Stream> {
    output::stream(stream.into())
}

/// How a task ended, by our clock at `time`; `None` if the state is not final.
pub(crate) fn ending(ended: Ended, time: i64) -> Option<Ending> {
    let state = match ended.state() {
        task::State::Succeeded => State::Succeeded,
        task::State::Failed => State::Failed,
        task::State::Rejected => State::Rejected,
        task::State::Expired => State::Expired,
        task::State::TimedOut => State::TimedOut,
        task::State::Cancelled => State::Cancelled,
        task::State::Lost => State::Lost,
        task::State::Unspecified
        | task::State::AwaitingApproval
        | task::State::Pending
        | task::State::Running => return None,
    };
    Some(Ending {
        // Whether it verifies is found out later; what is not kept is missed then.
        receipt: Some(ended.receipt.clone())
            .filter(|receipt| receipt.len() <= RECEIPT_MAX)
            .unwrap_or_default(),
        state,
        reason: ended.reason(),
        exit_code: ended.exit_code,
        run_time: ended.run_time.as_ref().map(|run| {
            run.seconds
                .saturating_mul(1_000_000)
                .saturating_add(i64::from(run.nanos) / 1000)
        }),
        message: words(ended.message),
        signal: words(ended.signal),
        time,
    })
}

/// How far a host says that a task is confined, cut to what a host has reason to say; empty if it does not.
pub(crate) fn confinement_in(applied: Option<Confinement>) -> Bytes {
    let Some(mut applied) = applied else {
        return Bytes::new();
    };
    let cut_all = |texts: &mut Vec<String>| {
        texts.truncate(CONFINEMENT_PARTS_MAX);
        texts
            .iter_mut()
            .for_each(|text| *text = words(std::mem::take(text)));
    };
    cut_all(&mut applied.roots);
    cut_all(&mut applied.features);
    if let Some(network) = &mut applied.network {
        cut_all(&mut network.allow);
    }
    applied.encode_to_vec().into()
}

/// A task's state.
pub(crate) fn task_state(state: State) -> task::State {
    match state {
        State::AwaitingApproval => task::State::AwaitingApproval,
        State::Pending => task::State::Pending,
        State::Running => task::State::Running,
        State::Succeeded => task::State::Succeeded,
        State::Failed => task::State::Failed,
        State::Rejected => task::State::Rejected,
        State::Expired => task::State::Expired,
        State::TimedOut => task::State::TimedOut,
        State::Cancelled => task::State::Cancelled,
        State::Lost => task::State::Lost,
    }
}

/// The task state of that number; `None` if there is none, or it is never stored.
pub(crate) fn task_state_in(number: i32) -> Option<State> {
    let wanted = task::State::try_from(number).ok()?;
    State::ALL
        .into_iter()
        .map(|(state, _)| state)
        .find(|state| task_state(*state) == wanted)
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
    let confinement = Confinement::decode(Bytes::clone(&order.confinement)).unwrap_or_default();
    let (cancel_time, cancelled_by) = job.cancel.clone().unzip();
    v1::Job {
        job_id: order.job_id.to_string(),
        request_id: order.request_id.to_string(),
        principal: order.principal.to_string(),
        selector: order.selector.to_string(),
        action: Action::decode(Bytes::clone(&order.action))
            .ok()
            .map(redaction::shown),
        state: job_state(job.state).into(),
        counts: job
            .counts
            .iter()
            .map(|(state, tasks)| job::Count {
                state: task_state(state).into(),
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
        mode: confinement.mode,
        network: confinement.network,
        approval_id: order.approval_id.to_string(),
        reason: order.reason.to_string(),
    }
}

/// The mode and network that a request asks for; `None` where it leaves them open.
pub(crate) fn asked(confinement: &Bytes) -> (Option<Mode>, Option<NetworkAccess>) {
    let asked = Confinement::decode(Bytes::clone(confinement)).unwrap_or_default();
    (
        mode_in(asked.mode()),
        asked.network.as_ref().and_then(network_in),
    )
}

/// How much of the network is asked for; `None` if it says nothing.
pub(crate) fn network_in(network: &v1::Network) -> Option<NetworkAccess> {
    match network.access() {
        v1::network::Access::None => Some(NetworkAccess::None),
        v1::network::Access::List => Some(NetworkAccess::List),
        v1::network::Access::All => Some(NetworkAccess::All),
        v1::network::Access::Unspecified => None,
    }
}

/// What was asked for, with what policy lowered where nothing was said. Empty where nothing is confined.
pub(crate) fn confinement(asked: &Bytes, plan: &Plan) -> Bytes {
    if plan.is_unbounded {
        return Bytes::clone(asked);
    }
    let mut confinement = Confinement::decode(Bytes::clone(asked)).unwrap_or_default();
    confinement.set_mode(mode_out(Some(plan.mode)));
    let closes = plan.network == NetworkAccess::None && plan.mode != Mode::ReadOnly;
    if confinement.network.is_none() && closes {
        confinement.network = Some(v1::Network {
            access: v1::network::Access::None.into(),
            allow: Vec::new(),
        });
    }
    confinement.encode_to_vec().into()
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
        state: task_state(task.state).into(),
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
        result: None,
    }
}

/// Whether the output of an action is kept with its times.
pub(crate) fn is_recorded(action: &Bytes) -> bool {
    let action = Action::decode(Bytes::clone(action)).ok();
    let kind = action.and_then(|action| action.kind);
    matches!(kind, Some(v1::action::Kind::Command(command)) if command.record)
}

/// An input on its way to a host.
pub(crate) fn input_out(write_id: &str, input: Input) -> agent::Input {
    let kind = match input {
        Input::Data(data) => task_input::Kind::Data(data),
        Input::Close => task_input::Kind::CloseStdin(v1::CloseStdin {}),
        Input::Resize { rows, columns } => task_input::Kind::Resize(v1::Terminal {
            rows,
            columns,
            term: String::new(),
        }),
        Input::Signal(name) => task_input::Kind::Signal(name),
    };
    agent::Input {
        write_id: write_id.to_owned(),
        input: Some(v1::TaskInput { kind: Some(kind) }),
    }
}

/// What a host says became of an input.
pub(crate) fn answer_in(status: InputStatus) -> Answer {
    match status {
        InputStatus::Accepted => Answer::Accepted,
        InputStatus::Starting => Answer::Starting,
        InputStatus::Closed => Answer::Closed,
        InputStatus::Full => Answer::Full,
        InputStatus::Unknown | InputStatus::Refused | InputStatus::Unspecified => Answer::Unknown,
    }
}

/// What became of an input: status, reason and words for whoever put it in.
pub(crate) fn answer_out(answer: &Answer) -> (InputStatus, Reason, &'static str) {
    match answer {
        Answer::Accepted => (InputStatus::Accepted, Reason::Unspecified, ""),
        Answer::Starting => (
            InputStatus::Starting,
            Reason::Unspecified,
            "the process has not started; try again once it runs",
        ),
        Answer::Closed => (
            InputStatus::Closed,
            Reason::Unspecified,
            "standard input is closed, or the process has ended",
        ),
        Answer::Full => (
            InputStatus::Full,
            Reason::Unspecified,
            "the process has not read what was put in before; try again with the same write id",
        ),
        Answer::Unknown => (
            InputStatus::Unknown,
            Reason::Unspecified,
            "the host does not know the task",
        ),
        Answer::Away(Reason::HostSilent) => (
            InputStatus::Unknown,
            Reason::HostSilent,
            "the host did not answer in time; trying again with the same write id is safe",
        ),
        Answer::Away(reason) => (
            InputStatus::Unknown,
            *reason,
            "the host is not connected; trying again with the same write id is safe",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confinement_is_cut_to_what_a_host_has_reason_to_say() {
        assert!(confinement_in(None).is_empty());
        let applied = Confinement {
            roots: vec!["/srv".repeat(10_000); 10_000],
            features: vec!["x".to_owned()],
            ..Confinement::default()
        };
        let kept = Confinement::decode(confinement_in(Some(applied))).unwrap();
        assert_eq!(kept.roots.len(), CONFINEMENT_PARTS_MAX);
        assert_eq!(kept.roots[0].len(), WORDS_MAX);
        assert_eq!(kept.features, ["x"]);
    }

    #[test]
    fn words_are_cut_between_characters() {
        assert_eq!(words("é".repeat(1000)).len(), WORDS_MAX);
        assert_eq!(words("x".into()), "x");
    }
}
