//! `SendInput`, and what an input may be.

use std::{sync::Arc, time::Duration};

use muster_proto::{
    ids::TaskId,
    v1::{InputStatus, Reason, SendInputRequest, SendInputResponse, TaskInput, task_input::Kind},
};
use tonic::Status;

use super::{JobDoor, no_task};
use crate::{
    api::caller::Caller,
    jobs::{Answer, Input, TaskRef, Writer},
    orders::actions::command::SIDE_MAX,
    wire::status,
};

/// How long the host may take to say what became of an input.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Bytes of one input.
const DATA_MAX: usize = 64 << 10;

/// Characters of a name that a client chooses.
const NAME_MAX: usize = 128;

/// The signals of POSIX that have a use for whoever sends them.
const SIGNALS: [&str; 15] = [
    "SIGABRT", "SIGALRM", "SIGCONT", "SIGHUP", "SIGINT", "SIGKILL", "SIGPIPE", "SIGQUIT",
    "SIGSTOP", "SIGTERM", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2",
];

/// Checks a name that a client has chosen; `least` is 0 for one that may be left out.
pub(super) fn name(field: &'static str, name: &str, least: usize) -> Result<Arc<str>, Status> {
    let printable = name.bytes().all(|c| c.is_ascii_graphic() || c == b' ');
    if name.len() < least || name.len() > NAME_MAX || !printable {
        return Err(status::invalid(
            field,
            "has 1 to 128 printable ASCII characters; a UUID does well",
        ));
    }
    Ok(name.into())
}

/// Checks an input.
pub(super) fn input(input: Option<TaskInput>) -> Result<Input, Status> {
    let kind = input
        .and_then(|input| input.kind)
        .ok_or_else(|| status::invalid("input", "is missing"))?;
    match kind {
        Kind::Data(data) if data.is_empty() => Err(status::invalid(
            "input.data",
            "is empty; close_stdin ends standard input",
        )),
        Kind::Data(data) if data.len() > DATA_MAX => Err(status::refuse(
            Reason::LimitExceeded,
            "input.data: has at most 64 KiB; send more in pieces",
        )),
        Kind::Data(data) => Ok(Input::Data(data)),
        Kind::CloseStdin(_) => Ok(Input::Close),
        Kind::Resize(size) => {
            let sides = 1..=SIDE_MAX;
            if !sides.contains(&size.rows) || !sides.contains(&size.columns) {
                return Err(status::invalid(
                    "input.resize",
                    "rows and columns are 1 to 1,000",
                ));
            }
            Ok(Input::Resize {
                rows: size.rows,
                columns: size.columns,
            })
        }
        Kind::Signal(name) if SIGNALS.contains(&&*name) => Ok(Input::Signal(name)),
        Kind::Signal(_) => Err(status::invalid(
            "input.signal",
            "is no signal that can be sent; they are written as \"SIGINT\"",
        )),
    }
}

/// Why somebody may not put anything in: another writes.
pub(super) fn refused_for(writer: &Writer) -> String {
    format!(
        "{} writes to the task; attach and take over, or wait until it detaches",
        writer.client.principal
    )
}

impl JobDoor {
    /// The task of that id, if the caller may see it: else there is none.
    pub(super) async fn task(&self, caller: &Caller, text: &str) -> Result<TaskRef, Status> {
        let id: TaskId = text.parse().map_err(|_| {
            let id: String = text.chars().take(80).collect();
            status::refuse(Reason::TaskNotFound, &format!("there is no task {id:?}"))
        })?;
        let found = self.jobs.find(id).await.map_err(status::of)?;
        found
            .filter(|task| self.sees(caller, task))
            .ok_or_else(|| no_task(id))
    }

    pub(super) async fn put_in(
        &self,
        caller: &Caller,
        request: SendInputRequest,
    ) -> Result<SendInputResponse, Status> {
        let write_id = name("write_id", &request.write_id, 1)?;
        let input = input(request.input)?;
        let task = self.task(caller, &request.task_id).await?;
        self.may_type(caller, &task)?;
        let writer = self.jobs.writer(task.look(|task| task.task_id));
        if let Some(writer) = writer.filter(|writer| writer.client.exclusive) {
            return Ok(SendInputResponse {
                status: InputStatus::Refused.into(),
                reason: Reason::NotWriter.into(),
                message: refused_for(&writer),
            });
        }
        let answer = self.jobs.put_in(&task, write_id, input, ANSWER_LIMIT).await;
        Ok(on_wire(&answer))
    }
}

fn on_wire(answer: &Answer) -> SendInputResponse {
    let (status, reason, message) = answer_out(answer);
    SendInputResponse {
        status: status.into(),
        reason: reason.into(),
        message: message.to_owned(),
    }
}

/// What became of an input: status, reason and words for whoever put it in.
pub(super) fn answer_out(answer: &Answer) -> (InputStatus, Reason, &'static str) {
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
    use muster_proto::v1::{CloseStdin, Terminal};

    use super::*;

    fn checked(kind: Kind) -> Result<Input, Status> {
        input(Some(TaskInput { kind: Some(kind) }))
    }

    fn resize(rows: i32, columns: i32) -> Kind {
        Kind::Resize(Terminal {
            rows,
            columns,
            term: String::new(),
        })
    }

    #[test]
    fn an_input_is_checked() {
        assert!(SIGNALS.is_sorted());
        let good = [
            Kind::Data(vec![0; DATA_MAX].into()),
            Kind::CloseStdin(CloseStdin {}),
            resize(1, 1000),
            Kind::Signal("SIGINT".into()),
        ];
        for kind in good {
            checked(kind).unwrap();
        }
        let bad = [
            Kind::Data(vec![0; DATA_MAX + 1].into()),
            Kind::Data(Default::default()),
            resize(0, 80),
            resize(24, 1001),
            Kind::Signal("INT".into()),
        ];
        for kind in bad {
            assert!(checked(kind.clone()).is_err(), "{kind:?}");
        }
        assert!(input(None).is_err());
        assert!(name("write_id", "", 1).is_err() && name("attach_id", "", 0).is_ok());
        assert!(name("write_id", "a\nb", 1).is_err());
    }
}
