//! What to do about how a task ended.

use muster_proto::v1::Reason;

/// What to do about a task that ended for this reason; `None` where the reason says it all.
pub(crate) fn next_step(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::StartDeadlinePassed => {
            "it never ran; host_list shows whether the host is back, then run again"
        }
        Reason::Timeout => {
            "run again with a larger timeout_s, or without one and wait with job_get"
        }
        Reason::CommandNotFound => {
            "the program is not in the host's PATH: name it by its path, or use command= for shell syntax"
        }
        Reason::CommandNotExecutable => "it may not be executed there: run it by its interpreter",
        Reason::WorkingDirectoryMissing => "correct cwd, or create the directory first",
        Reason::UserNotPermitted => "leave the user out, or ask an operator to allow it",
        Reason::ArgumentListTooLong => "pass the data by stdin",
        Reason::StartFailed => "the message above says what the host lacks",
        Reason::DiskFull => "free space on the host's disk, then run again",
        Reason::ActionUnsupported => "the host's agent is too old for this",
        Reason::HostBusy => "the host runs as much as it may: run again later",
        Reason::LimitUnsupported => "run it without that limit, or on a host that can enforce it",
        Reason::ModeTooHigh => "run it with a lower mode, or ask an operator to raise the host's",
        Reason::ModeUnenforceable => {
            "run it on a host whose kernel can enforce the mode; host_list shows which cannot"
        }
        Reason::ModeDisabled => "the host is disabled: an operator has to enable it",
        Reason::NetworkUnenforceable => {
            "ask for no network, for all of it, or for ports of every address (*:443)"
        }
        Reason::ActionDenied | Reason::PathDenied | Reason::ProgramDenied => {
            "the host's own policy refuses this: do something else, or ask whoever owns the host"
        }
        Reason::FileNotFound => {
            "look for it: run command=\"ls -la DIRECTORY\" mode=read-only; a path that is relative begins in the home directory"
        }
        Reason::FileNotPermitted => {
            "the user, the mode or the host's policy does not let it: a higher mode may, else ask whoever owns the host"
        }
        Reason::FileType => {
            "only a regular file has content: run command=\"ls -la PATH\" mode=read-only lists a directory"
        }
        Reason::FileUnreadable => "the message above says what stands in the way",
        Reason::WorkerDied => {
            "run it again; if it stays, an operator has to look at the agent's log"
        }
        Reason::OutputLimit => "let it write less, or run it again with another output limit",
        Reason::AmbiguousStart
        | Reason::HostRebooted
        | Reason::HostRolledBack
        | Reason::AgentDied
        | Reason::SupervisorDied
        | Reason::HostGone => {
            "nobody can prove what became of it: look at the host before you run it again"
        }
        Reason::Locked => "an operator has locked the host; its task waits until it is unlocked",
        Reason::ApprovalExpired => {
            "nobody approved it in time: ask a person first, then run it again"
        }
        Reason::ApprovalDeclined => "a person declined it: do not run it again, ask them why",
        Reason::ApprovalDrift => {
            "hosts or policy changed before it was approved: look again, then run it again"
        }
        Reason::NotAllowed => {
            "the host's policy refuses this: do something else, or ask an operator"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_a_task_has_a_next_step() {
        for number in (50..80).chain(120..130).chain(160..170) {
            let Ok(reason) = Reason::try_from(number) else {
                continue;
            };
            assert!(
                reason == Reason::CancelRequested || next_step(reason).is_some(),
                "{reason:?}"
            );
        }
    }
}
