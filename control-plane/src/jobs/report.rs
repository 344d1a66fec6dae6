//! What hosts say about their tasks.

use std::{mem, sync::Arc};

use super::{Job, Jobs, ids};
use crate::{
    clock::now,
    model::{
        Ending, Entry, Fence, NotAllowed, State, Task,
        order::record::{OrderRecord, Unreadable},
    },
    store::{StoreError, jobs as rows},
};
use bytes::Bytes;
use muster_proto::{
    ids::{HostId, TaskId},
    v1::Reason,
};

/// Characters of one thing that speaks against a host's word.
const DOUBT_MAX: usize = 300;

/// A task of a job in memory.
#[derive(Clone)]
pub(crate) struct TaskRef {
    /// Its job.
    pub(crate) job: Arc<Job>,
    /// Its place in the job.
    pub(crate) ordinal: u32,
}

impl TaskRef {
    pub(super) fn new(job: Arc<Job>, ordinal: u32) -> Self {
        Self { job, ordinal }
    }

    /// The task as it stands now.
    pub(crate) fn get(&self) -> Task {
        self.job.task(self.ordinal)
    }

    /// Looks at the task without copying it.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Task) -> T) -> T {
        self.job.look(self.ordinal, look)
    }
}

/// Why a task was not adopted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    /// The ids in the offer do not follow from what it says.
    #[error("the offer's ids do not belong together")]
    Ids,
    /// The offer says what this version does not understand.
    #[error("the offer is not understood: {0}")]
    Unreadable(#[from] Unreadable),
    /// The ledger does not work.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Jobs {
    /// The task, from memory or from the ledger.
    pub(crate) async fn find(&self, id: TaskId) -> Result<Option<TaskRef>, StoreError> {
        if let Some(task) = self.find_live(id) {
            return Ok(Some(task));
        }
        let Some(job_id) = rows::job_of(&self.0.store.readers, &id.to_string()).await? else {
            return Ok(None);
        };
        let job = self.job(job_id).await?;
        Ok(job.and_then(|job| {
            let ordinal = job.ordinal(id)?;
            Some(TaskRef::new(job, ordinal))
        }))
    }

    /// The task, if it is in memory, as every task is that is not final.
    pub(crate) fn find_live(&self, id: TaskId) -> Option<TaskRef> {
        let live = self.0.live.lock().tasks.get(&id).cloned();
        live.map(|(job, ordinal)| TaskRef::new(job, ordinal))
    }

    /// Takes in a task that a host holds under our seal and the ledger has lost, with its job.
    pub(crate) async fn adopt(
        &self,
        mut offer: OrderRecord,
        fence: Fence,
    ) -> Result<TaskRef, AdoptError> {
        let (task_id, host_id) = offer.task().ok_or(AdoptError::Ids)?;
        let host_name = mem::take(&mut offer.host_name);
        // An agent that does not know better keeps secrets in the offer.
        let values = offer.take_secrets()?;
        let secrets = (self.0.dispatcher.secrets().close(values))
            .map_err(|error| StoreError::Broken(error.to_string().into()))?;
        let order = offer.read(secrets)?;
        let expected = ids::job_id(
            &self.0.store.control_plane_id,
            &order.principal,
            &order.request_id,
        );
        if order.job_id != expected || task_id != ids::task_id(expected, host_id) {
            return Err(AdoptError::Ids);
        }
        let _turn = self.turn(order.job_id).await;
        if let Some(task) = self.find(task_id).await? {
            return Ok(task);
        }
        let time = now();
        let name = host_name.as_str().into();
        let task = Task::new(task_id, host_id, name, Some(fence), time);
        let mut entry = Entry::new("task.adopt")
            .by(format!("host/{host_id}"))
            .on(host_id)
            .with("job", order.job_id)
            .with("task", task_id)
            .with("for", &order.principal);
        entry.request_digest = Some(order.request_digest);
        let entry = entry.text();
        let adopted = match self.job(order.job_id).await? {
            Some(job) => {
                let ordinal = job.len();
                let mut live = self.0.live.lock();
                job.push(task);
                live.enter(&job);
                drop(live);
                self.0.recorder.mark_for(&job, [ordinal], Some(entry));
                TaskRef::new(job, ordinal)
            }
            None => {
                let note = format!(
                    "adopted from host {host_name}, which held it under this control plane's seal: \
                     the ledger had lost it; tasks on other hosts appear when those report them"
                );
                self.0.known.add(order.job_id);
                let job = Job::new(Arc::new(order), vec![task], None, note.into());
                let job = self.0.live.lock().add(job);
                self.0.recorder.mark_new(&job, None, Some(entry));
                TaskRef::new(job, 0)
            }
        };
        let _ = self.written_now().await?;
        tracing::warn!(
            task.id = %task_id, job.id = %adopted.job.order.job_id, host.id = %host_id,
            "adopted task {task_id} from {host_name}: the ledger had lost it"
        );
        Ok(adopted)
    }

    /// The host holds the task under our seal: it did leave, whatever is written.
    pub(crate) fn proved_offered(&self, task: &TaskRef, fence: Fence, epoch: i64) {
        if task.look(|task| task.state == State::AwaitingApproval) {
            task.job.proved_approved(task.ordinal, now());
        }
        if task.job.set_offered(task.ordinal, fence, epoch, now()) {
            self.mark(&task.job, [task.ordinal]);
        }
    }

    /// The host says that the process runs since `time`, and how far it is confined.
    pub(crate) fn started(
        &self,
        task: &TaskRef,
        time: i64,
        confinement: Bytes,
    ) -> Result<(), NotAllowed> {
        if task.job.started(task.ordinal, time, confinement)? {
            self.mark(&task.job, [task.ordinal]);
        }
        Ok(())
    }

    /// Something speaks against what the host says of the task: it stands beside that, and in the audit log.
    pub(crate) fn doubt(&self, task: &TaskRef, words: &str) {
        let words: String = words.chars().take(DOUBT_MAX).collect();
        if !task.job.doubt(task.ordinal, &words) {
            return;
        }
        let (task_id, host_id) = task.look(|task| (task.task_id, task.host_id));
        let job_id = task.job.order.job_id;
        tracing::warn!(task.id = %task_id, host.id = %host_id, "a host's word about a task is in doubt: {words}");
        let entry = Entry::new("task.doubt")
            .by(format!("host/{host_id}"))
            .on(host_id)
            .with("job", job_id)
            .with("task", task_id)
            .with("words", &words);
        let recorder = &self.0.recorder;
        recorder.mark_for(&task.job, [task.ordinal], Some(entry.text()));
    }

    /// The host says how the task ended.
    pub(crate) fn ended(&self, task: &TaskRef, ending: Ending) -> Result<(), NotAllowed> {
        let never_ran = matches!(ending.state, State::Rejected | State::Expired);
        if task.job.ended(task.ordinal, ending)? {
            if never_ran {
                task.job.output_ended(task.ordinal, 0, None);
            }
            self.mark(&task.job, [task.ordinal]);
        }
        Ok(())
    }

    /// Output of the task was taken: watchers look again.
    pub(crate) fn output_taken(&self, task: &TaskRef) {
        task.job.output_taken(task.ordinal);
    }

    /// The host says that nothing more will be written after `last_sequence`, all of which was taken.
    pub(crate) fn output_ended(&self, task: &TaskRef, last_sequence: i64) {
        let size = self.0.output.size_now(task.look(|task| task.task_id));
        if task.job.output_ended(task.ordinal, last_sequence, size) {
            self.mark(&task.job, [task.ordinal]);
        }
    }

    /// Tasks that the host may have been offered and that are not final.
    pub(crate) fn expected(&self, host: HostId) -> Vec<TaskId> {
        self.of_host(host)
            .iter()
            .filter(|task| task.look(|task| task.offered.is_some() && !task.state.is_final()))
            .map(|task| task.look(|task| task.task_id))
            .collect()
    }

    /// The host's journal has never seen the task, and proves that it never will start: it waits again,
    /// unless it was offered in this session since.
    pub(crate) fn never_arrived(&self, task: &TaskRef, epoch: i64) {
        if task.job.never_arrived(task.ordinal, epoch, now()) {
            self.mark(&task.job, [task.ordinal]);
            self.settle_unoffered(task);
        }
    }

    /// The task's fate cannot be proved any more.
    pub(crate) fn give_up(&self, task: &TaskRef, reason: Reason, message: String) {
        match task.job.give_up(task.ordinal, reason, message, now()) {
            Ok(true) => self.mark(&task.job, [task.ordinal]),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "a task was not given up: {error}"),
        }
    }
}

impl Jobs {
    /// Opens the seal of an offer that came back.
    pub(crate) fn unseal(&self, bytes: &[u8], seal: &[u8]) -> Option<OrderRecord> {
        self.0.dispatcher.unseal(bytes, seal)
    }
}
