//! Input that goes down a report, and the answers that come up.

use std::collections::HashMap;

use muster_proto::{
    agent::v1::{self as agent, InputResult, report_response::Message as Down},
    v1::{self, InputStatus, task_input},
};
use tokio::sync::oneshot;

use super::{Wire, down};
use crate::jobs::{Answer, Input, Put, Road};

/// Inputs that the host has and has not answered.
const UNANSWERED_MAX: usize = 32;

/// What goes down one report.
pub(super) struct Inputs {
    road: Road,
    wire: Wire,
    /// Who waits for an answer, by write id; several after a retry.
    waiting: HashMap<String, Vec<oneshot::Sender<Answer>>>,
}

impl Inputs {
    pub(super) fn new(road: Road, wire: Wire) -> Self {
        Self {
            road,
            wire,
            waiting: HashMap::new(),
        }
    }

    /// Passes the next input on, once there is one and room for it. Nothing is lost when the future is dropped
    /// before it is done.
    pub(super) async fn pass_on(&mut self) {
        if self.waiting.len() >= UNANSWERED_MAX {
            self.forget();
        }
        if self.waiting.len() >= UNANSWERED_MAX {
            // The next answer wakes the loop that this stands in.
            return std::future::pending().await;
        }
        // The room first: what was taken from the road must leave.
        let Ok(room) = self.wire.reserve().await else {
            return std::future::pending().await;
        };
        let Put {
            write_id,
            input,
            answer,
        } = self.road.next().await;
        let write_id = write_id.to_string();
        room.send(Ok(down(Down::Input(input_out(&write_id, input)))));
        let waiting = self.waiting.entry(write_id).or_default();
        waiting.retain(|waits| !waits.is_closed());
        waiting.push(answer);
    }

    /// The host says what became of one.
    pub(super) fn answered(&mut self, result: &InputResult) {
        let Some(waiting) = self.waiting.remove(&result.write_id) else {
            return;
        };
        let answer = answer_in(result.status());
        for waits in waiting {
            // Whoever does not wait any more asks again.
            let _ = waits.send(answer.clone());
        }
    }

    /// Lets go of those that nobody waits for any more.
    fn forget(&mut self) {
        self.waiting.retain(|_, waiting| {
            waiting.retain(|waits| !waits.is_closed());
            !waiting.is_empty()
        });
    }
}

/// An input on its way to a host.
fn input_out(write_id: &str, input: Input) -> agent::Input {
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
fn answer_in(status: InputStatus) -> Answer {
    match status {
        InputStatus::Accepted => Answer::Accepted,
        InputStatus::Starting => Answer::Starting,
        InputStatus::Closed => Answer::Closed,
        InputStatus::Full => Answer::Full,
        InputStatus::Unknown | InputStatus::Refused | InputStatus::Unspecified => Answer::Unknown,
    }
}
