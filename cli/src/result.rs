//! What a task came to, in words and as an exit code.

use std::collections::BTreeMap;

use muster_proto::v1::{Reason, Task, task::State};
use nix::sys::signal::Signal;

use crate::{failure::exit, json, screen::clean, time};

/// The exit code that stands for these tasks.
pub(crate) fn exit_code<'a>(tasks: impl Iterator<Item = &'a Task> + Clone) -> u8 {
    let mut alone = tasks.clone();
    match (alone.next(), alone.next()) {
        (Some(task), None) => code_of(task),
        _ => {
            let mut tasks = tasks;
            let all = tasks.all(|task| task.state() == State::Succeeded);
            if all { 0 } else { exit::SOME_FAILED }
        }
    }
}

fn code_of(task: &Task) -> u8 {
    match task.state() {
        State::Succeeded => 0,
        State::Failed => failed(task),
        State::TimedOut => exit::TIMED_OUT,
        State::Cancelled => exit::INTERRUPTED,
        _ => exit::NO_RESULT,
    }
}

fn failed(task: &Task) -> u8 {
    if let Some(code) = task.exit_code {
        // Exit codes have a byte; whatever does not fit must not become a success.
        return u8::try_from(code).unwrap_or(exit::NO_RESULT);
    }
    if let Some(number) = signal_number(&task.signal) {
        return number.checked_add(128).unwrap_or(exit::NO_RESULT);
    }
    match task.reason() {
        Reason::CommandNotFound => exit::NOT_FOUND,
        Reason::CommandNotExecutable => exit::NOT_EXECUTABLE,
        Reason::FileNotFound => exit::NO_FILE,
        Reason::FileNotPermitted => exit::NOT_ALLOWED,
        Reason::FileType => exit::FILE_TYPE,
        Reason::FileUnreadable => exit::FILE_UNREADABLE,
        _ => exit::NO_RESULT,
    }
}

/// The number of a signal by its name. One without a name of its own has it there: "SIG34".
fn signal_number(name: &str) -> Option<u8> {
    let named = name.parse().ok().map(|signal: Signal| signal as u8);
    named.or_else(|| name.strip_prefix("SIG")?.parse().ok())
}

/// What a final task came to: "exit code 3", "lost: HOST_REBOOTED: …".
pub(crate) fn outcome(task: &Task) -> String {
    let mut text = match (task.state(), task.exit_code) {
        (State::Failed, Some(code)) => format!("exit code {code}"),
        (State::Failed, None) if !task.signal.is_empty() => {
            format!("ended by {}", clean(&task.signal))
        }
        _ => json::task_state(task).replace('_', " "),
    };
    if let Some(reason) = json::reason(task) {
        text.push_str(&format!(" [{reason}]"));
    }
    if !task.message.is_empty() {
        text.push_str(&format!(": {}", clean(&task.message)));
    }
    if !task.late_result.is_empty() {
        text.push_str(&format!("; heard later: {}", clean(&task.late_result)));
    }
    text
}

/// Its end needs words: the exit code of a command speaks for itself.
pub(crate) fn speaks(task: &Task) -> bool {
    match task.state() {
        State::Succeeded => false,
        State::Failed => task.exit_code.is_none(),
        _ => true,
    }
}

/// Why an open task does not go on, if that is worth a line.
pub(crate) fn hold_up(task: &Task) -> Option<String> {
    if let (State::Running, Some(since)) = (task.state(), &task.disconnect_time) {
        return Some(format!("host disconnected {}", time::ago(Some(since))));
    }
    if task.state() == State::AwaitingApproval {
        return Some(clean(&task.message).into_owned());
    }
    if task.state() != State::Pending {
        return None;
    }
    Some(match &*json::wait(task)? {
        "for_host" => "waits for its host, which is not online".to_owned(),
        "for_unlock" => "waits: its host is locked".to_owned(),
        "for_release" => format!(
            "held since the control plane was restored {}; `muster job release` lets it go",
            time::ago(task.state_time.as_ref())
        ),
        "for_upload" => "released; its host first uploads what it knows".to_owned(),
        "for_answer" if task.disconnect_time.is_some() => {
            "was offered; its host disconnected before it answered".to_owned()
        }
        _ => return None,
    })
}

/// "3 succeeded, 1 failed".
pub(crate) fn tally<'a>(tasks: impl Iterator<Item = &'a Task>) -> String {
    let mut counts: BTreeMap<i32, (String, usize)> = BTreeMap::new();
    for task in tasks {
        let word = || json::task_state(task).replace('_', " ");
        counts.entry(task.state).or_insert_with(|| (word(), 0)).1 += 1;
    }
    counts
        .values()
        .map(|(state, count)| format!("{count} {state}"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::task::Wait;

    use super::*;

    fn task(state: State) -> Task {
        Task {
            state: state.into(),
            ..Task::default()
        }
    }

    fn exited(code: i32) -> Task {
        Task {
            exit_code: Some(code),
            ..task(State::Failed)
        }
    }

    #[test]
    fn one_task_gives_its_own_code() {
        let ended_by = |signal: &str| Task {
            signal: signal.to_owned(),
            ..task(State::Failed)
        };
        let missing = Task {
            reason: Reason::CommandNotFound.into(),
            ..task(State::Failed)
        };
        let unread = |reason: Reason| Task {
            reason: reason.into(),
            ..task(State::Failed)
        };
        for (task, code) in [
            (task(State::Succeeded), 0),
            (exited(3), 3),
            (exited(256), exit::NO_RESULT),
            (ended_by("SIGKILL"), 137),
            (ended_by("SIG34"), 162),
            (ended_by("SIG200"), exit::NO_RESULT),
            (missing, 127),
            (unread(Reason::FileNotFound), 66),
            (unread(Reason::FileNotPermitted), 77),
            (unread(Reason::FileType), 65),
            (unread(Reason::FileUnreadable), 74),
            (unread(Reason::WorkerDied), 125),
            (task(State::TimedOut), 124),
            (task(State::Lost), 125),
            (task(State::Expired), 125),
            (task(State::Cancelled), 130),
        ] {
            assert_eq!(exit_code([&task].into_iter()), code, "{task:?}");
        }
    }

    #[test]
    fn several_tasks_succeed_together_or_not() {
        let (good, bad) = (task(State::Succeeded), exited(3));
        assert_eq!(exit_code([&good, &good].into_iter()), 0);
        assert_eq!(exit_code([&good, &bad].into_iter()), 1);
        assert_eq!(
            tally([&good, &bad, &good].into_iter()),
            "2 succeeded, 1 failed"
        );
    }

    #[test]
    fn an_outcome_says_why() {
        assert_eq!(outcome(&exited(3)), "exit code 3");
        let lost = Task {
            reason: Reason::HostRebooted.into(),
            message: "the host was restarted".to_owned(),
            ..task(State::Lost)
        };
        assert_eq!(
            outcome(&lost),
            "lost [HOST_REBOOTED]: the host was restarted"
        );
        let waiting = Task {
            wait: Wait::ForHost.into(),
            ..task(State::Pending)
        };
        assert!(hold_up(&waiting).unwrap().contains("not online"));
        assert_eq!(hold_up(&task(State::Running)), None);
    }
}
