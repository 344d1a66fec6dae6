//! What a writer puts in, carried to the task in order and with patience.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use muster_proto::v1::{AttachInputResult, attach_task_response::Message as Down};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use super::{super::input::answer_out, Wire, down, refused};
use crate::{
    api::jobs::input::ANSWER_LIMIT,
    jobs::{Answer, Input, Jobs, TaskRef},
};

/// Inputs of one attachment that wait for their answers.
pub(super) const UNANSWERED_MAX: usize = 16;

/// How soon an input that found no room is tried again, at first and at last.
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Where a session puts what its client types.
pub(super) struct Typing {
    /// Bytes and their end: one after the other.
    ordered: mpsc::Sender<Typed>,
    /// Signals and sizes: at once.
    urgent: mpsc::Sender<Typed>,
    allowed: Arc<AtomicBool>,
    /// Inputs whose answers the client waits for.
    unanswered: Arc<watch::Sender<usize>>,
}

struct Typed {
    write_id: Arc<str>,
    input: Input,
    /// The client waits for an answer.
    is_answered: bool,
}

impl Typing {
    /// The place, and the work that carries what is put there. The work ends when the client is gone.
    pub(super) fn new(
        jobs: &Jobs,
        task: &TaskRef,
        wire: Wire,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (ordered, ordered_out) = mpsc::channel(UNANSWERED_MAX);
        let (urgent, urgent_out) = mpsc::channel(UNANSWERED_MAX);
        let allowed = Arc::new(AtomicBool::new(true));
        let unanswered = Arc::new(watch::Sender::new(0));
        let carrier = Carrier {
            jobs: jobs.clone(),
            task: task.clone(),
            wire,
            allowed: Arc::clone(&allowed),
            unanswered: Arc::clone(&unanswered),
        };
        let typing = Self {
            ordered,
            urgent,
            allowed,
            unanswered,
        };
        let carrying = async move {
            tokio::select! {
                () = carrier.carry(ordered_out, true) => {}
                () = carrier.carry(urgent_out, false) => {}
            }
        };
        (typing, carrying)
    }

    /// Whether this client writes: what waits is refused once it does not.
    pub(super) fn set_allowed(&self, allowed: bool) {
        self.allowed.store(allowed, Ordering::Relaxed);
    }

    /// Takes an input in, or says that there is no room.
    pub(super) fn put(&self, write_id: Arc<str>, input: Input) -> Result<(), AttachInputResult> {
        let way = if input.has_order() {
            &self.ordered
        } else {
            &self.urgent
        };
        let Ok(room) = way.try_reserve() else {
            return Err(result(&write_id, &Answer::Full));
        };
        self.unanswered.send_modify(|unanswered| *unanswered += 1);
        room.send(Typed {
            write_id,
            input,
            is_answered: true,
        });
        Ok(())
    }

    /// Returns once all that was put in is answered.
    pub(super) async fn answered(&self) {
        let mut unanswered = self.unanswered.subscribe();
        // Its sender is here.
        let _ = unanswered.wait_for(|unanswered| *unanswered == 0).await;
    }

    /// The client's terminal has this size. Nobody waits for an answer.
    pub(super) fn resize(&self, size: Input) {
        let write_id = format!("attach-{:032x}", rand::random::<u128>());
        let typed = Typed {
            write_id: write_id.into(),
            input: size,
            is_answered: false,
        };
        // There is room at the beginning.
        let _ = self.urgent.try_send(typed);
    }
}

struct Carrier {
    jobs: Jobs,
    task: TaskRef,
    wire: Wire,
    allowed: Arc<AtomicBool>,
    unanswered: Arc<watch::Sender<usize>>,
}

impl Carrier {
    async fn carry(&self, mut typed: mpsc::Receiver<Typed>, patiently: bool) {
        while let Some(Typed {
            write_id,
            input,
            is_answered,
        }) = typed.recv().await
        {
            let result = self.put(&write_id, &input, patiently).await;
            if !is_answered {
                continue;
            }
            let answer = Ok(down(Down::InputResult(result)));
            if self.wire.send(answer).await.is_err() {
                return;
            }
            self.unanswered.send_modify(|unanswered| *unanswered -= 1);
        }
    }

    /// Puts one in. Patiently means: waits for the task to start, its host to come back, and the process to read.
    async fn put(&self, write_id: &Arc<str>, input: &Input, patiently: bool) -> AttachInputResult {
        let mut pause = PAUSE_MIN;
        loop {
            if !self.allowed.load(Ordering::Relaxed) {
                let message = "somebody else writes to the task now";
                return refused(write_id, message.to_owned());
            }
            let answer = self
                .jobs
                .put_in(
                    &self.task,
                    Arc::clone(write_id),
                    input.clone(),
                    ANSWER_LIMIT,
                )
                .await;
            let may_pass = matches!(answer, Answer::Starting | Answer::Full | Answer::Away(_));
            if !(patiently && may_pass) {
                return result(write_id, &answer);
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

fn result(write_id: &str, answer: &Answer) -> AttachInputResult {
    let (status, reason, message) = answer_out(answer);
    AttachInputResult {
        write_id: write_id.to_owned(),
        status: status.into(),
        reason: reason.into(),
        message: message.to_owned(),
    }
}
