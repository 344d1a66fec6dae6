//! Following a job at the door: what the caller may see of it, and for as long as it may.

use std::{collections::HashSet, sync::Arc};

use futures_util::stream;
use muster_proto::{
    ids::{JobId, TaskId},
    v1::{JobEvent, JobUpdate, Reason, job_event::Event},
};
use tokio::sync::watch;
use tonic::Status;

use super::{JobDoor, Messages, messages, no_job};
use crate::{
    api::{caller::Caller, output, page::Query},
    hosts::Inventory,
    jobs::{Update, Watch, WatchError, WatchEvent},
    wire::status,
};

/// A watch with the one who watches.
pub(super) struct Watched {
    watch: Watch,
    caller: Caller,
    /// The job is the caller's own, and all of it is shown.
    own: bool,
    /// Moves when the caller's rights may have changed.
    rights: watch::Receiver<u64>,
    /// Binds resume tokens to the caller and the job.
    query: Query,
    inventory: Inventory,
}

impl JobDoor {
    /// Follows a job that the caller may see.
    pub(super) async fn watch(
        &self,
        caller: &Caller,
        id: JobId,
        token: &str,
        states_only: bool,
    ) -> Result<Watched, Status> {
        let rights = caller.policy_changed();
        let job = self.visible(caller, id).await?;
        let query = Query::new(&["WatchJob", &caller.principal, &id.to_string()]);
        let token = query
            .unbind(token)
            .ok_or_else(|| status::of(WatchError::Token))?;
        let watch = self
            .jobs
            .watch(id, token, states_only)
            .await
            .map_err(status::of)?
            .ok_or_else(|| no_job(id))?;
        Ok(Watched {
            watch,
            own: caller.owns(&job.order.principal),
            caller: caller.clone(),
            rights,
            query,
            inventory: self.inventory.clone(),
        })
    }

    /// The stream of a watch.
    pub(super) fn updates<T: Send + 'static>(
        &self,
        watched: Watched,
        wrap: impl Fn(Option<JobUpdate>) -> T + Clone + Send + 'static,
    ) -> Messages<T> {
        let stopping = self.jobs.stopping();
        Box::pin(stream::try_unfold(watched, move |mut watched| {
            let (wrap, stopping) = (wrap.clone(), stopping.clone());
            async move {
                tokio::select! {
                    update = watched.next() => {
                        let update = update?;
                        Ok(update.map(|update| (wrap(Some(update)), watched)))
                    }
                    () = stopping.cancelled() => Err(status::refuse(
                        Reason::ShuttingDown,
                        "the control plane is stopping; watch again with the resume token",
                    )),
                }
            }
        }))
    }
}

impl Watched {
    async fn next(&mut self) -> Result<Option<JobUpdate>, Status> {
        loop {
            tokio::select! {
                biased;
                Ok(()) = self.rights.changed() => self.judge_anew()?,
                update = self.watch.next() => {
                    let Some(update) = update.map_err(status::of)? else {
                        return Ok(None);
                    };
                    return Ok(Some(self.on_wire(update)));
                }
            }
        }
    }

    fn judge_anew(&mut self) -> Result<(), Status> {
        self.caller = self.caller.renewed();
        let job = self.watch.job();
        self.own = self.caller.owns(&job.order.principal);
        let sees_some = self.own || {
            let mut hosts: Vec<_> = job
                .tasks(|_| true)
                .into_iter()
                .map(|(_, task)| task.host_id)
                .collect();
            hosts.dedup();
            hosts
                .into_iter()
                .any(|host| self.caller.sees_tasks_on(&self.inventory, host))
        };
        if sees_some {
            Ok(())
        } else {
            Err(self.caller.no_longer().into())
        }
    }

    /// Tasks of somebody else's job that the caller may see; `None` for all of its own.
    fn seen(&self) -> Option<HashSet<TaskId>> {
        if self.own {
            return None;
        }
        let tasks = self
            .watch
            .job()
            .tasks(|task| self.caller.sees_tasks_on(&self.inventory, task.host_id));
        Some(tasks.into_iter().map(|(_, task)| task.task_id).collect())
    }

    fn on_wire(&self, update: Update) -> JobUpdate {
        let seen = self.seen();
        let sees = |task: &TaskId| seen.as_ref().is_none_or(|seen| seen.contains(task));
        let job = Arc::clone(self.watch.job());
        let events = update.events.into_iter().filter_map(|event| {
            Some(match event {
                WatchEvent::Job(job) => Event::Job(messages::job(&job)),
                WatchEvent::Task(task) if sees(&task.task_id) => {
                    Event::Task(messages::task(&self.inventory, &job, &task))
                }
                WatchEvent::Output(task_id, item) if sees(&task_id) => {
                    output::event(&task_id.to_string(), item)
                }
                WatchEvent::Task(_) | WatchEvent::Output(..) => return None,
            })
        });
        JobUpdate {
            events: events
                .map(|event| JobEvent { event: Some(event) })
                .collect(),
            resume_token: self.query.bind(&update.token),
        }
    }
}
