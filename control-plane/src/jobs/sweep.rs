//! What follows from time and from a host's coming: offers, expiry, loss.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use muster_proto::{ids::HostId, v1::Reason};

use super::{Job, Jobs, TaskRef};
use crate::{
    clock::now,
    model::{
        State, Task, Withdrawal,
        dispatch::{Decision, TaskView, decide},
    },
    sessions::{Session, offer},
    store::{
        StoreError,
        jobs::{self as rows, OldJob},
    },
};

/// Tasks that are handed to a host in one go, each go after one sync.
const HAND_OVER_MAX: usize = 64;

impl Jobs {
    /// Offers a host that has come what waits for it, once the ledger says so durably, and tells it
    /// what to end.
    pub(crate) async fn hand_over(&self, session: &Session) -> Result<(), StoreError> {
        let host = session.host_id;
        for task in self.of_host(host) {
            let wished = |task: &Task| {
                task.cancel_time.is_some() && task.offered.is_some() && !task.state.is_final()
            };
            // Waits for room: a host that does not read is not asked again and again.
            if task.look(wished)
                && !session
                    .send_patiently(offer::cancel(&task.job.terms(), &task.get()))
                    .await
            {
                return Ok(());
            }
        }
        loop {
            let mut due: Vec<TaskRef> = self
                .of_host(host)
                .into_iter()
                .filter(|task| self.decide(task) == Decision::Offer)
                .take(HAND_OVER_MAX)
                .collect();
            let (fence, epoch) = (&session.fence, session.epoch);
            due.retain(|task| {
                task.job
                    .set_offered(task.ordinal, fence.clone(), epoch, now())
            });
            if due.is_empty() {
                return Ok(());
            }
            for task in &due {
                self.mark(&task.job, [task.ordinal]);
            }
            let durable = async { Ok(self.written_now().await?.wait().await?) }.await;
            let mut stuck = durable.is_err();
            for task in due {
                let sent = !stuck
                    && self.0.dispatcher.offer(
                        &task.job.terms(),
                        task.ordinal,
                        &task.get(),
                        &HashMap::new(),
                    );
                if !sent {
                    stuck = true;
                    if task.job.offer_failed(task.ordinal, epoch, now()) {
                        self.mark(&task.job, [task.ordinal]);
                    }
                }
            }
            if stuck {
                if !session.is_open() {
                    // A newer one may stand already and have found nothing to take up.
                    self.0.dispatcher.look(host);
                }
                return durable;
            }
        }
    }

    fn decide(&self, task: &TaskRef) -> Decision {
        let deadline = task.job.terms().start_deadline_time;
        let (view, host) = task.look(|look| (TaskView::of(deadline, look, now()), look.host_id));
        decide(
            view,
            self.0.dispatcher.host(host),
            self.0.dispatcher.ledger_works(),
        )
    }

    /// Takes back a task that was never offered, if time or a wish says so.
    pub(super) fn settle_unoffered(&self, task: &TaskRef) {
        let host_name = task.look(|task| Arc::clone(&task.host_name));
        let (withdrawal, reason, message) = match self.decide(task) {
            Decision::Withdraw(Withdrawal::Cancelled) => (
                Withdrawal::Cancelled,
                Reason::CancelRequested,
                format!("cancelled before {host_name} took it"),
            ),
            Decision::Withdraw(withdrawal) => (
                withdrawal,
                Reason::StartDeadlinePassed,
                format!("{host_name} did not take it before its start deadline; it never ran"),
            ),
            Decision::WithdrawFromGone => (
                Withdrawal::Expired,
                Reason::HostGone,
                format!("{host_name} was removed before it was offered; it never ran"),
            ),
            Decision::Offer => {
                self.0.dispatcher.look(task.look(|task| task.host_id));
                return;
            }
            Decision::Nothing | Decision::Wait(_) => return,
        };
        let now = now();
        if let Err(error) = task
            .job
            .withdraw(task.ordinal, withdrawal, reason, message, now)
        {
            // Offered in between: its host decides.
            tracing::debug!(%error, "a task was not taken back: {error}");
            return;
        }
        self.mark(&task.job, [task.ordinal]);
    }

    /// Looks at every live task once. `since`: hosts count as heard at that time at least, since a
    /// control plane that was down heard nobody.
    pub(crate) fn sweep(&self, since: i64) {
        let held = |job: &Weak<Job>| job.strong_count() > 0;
        self.0.live.lock().retired.retain(|_, job| held(job));
        for job in self.live_jobs() {
            let open = job.tasks(|task| !task.is_done());
            for (ordinal, task) in open {
                let task_ref = TaskRef::new(Arc::clone(&job), ordinal);
                if task.state == State::AwaitingApproval {
                    // Nobody is asked before: its hosts are looked at when it is approved.
                } else if task.state == State::Pending && task.offered.is_none() {
                    self.settle_unoffered(&task_ref);
                } else if let Some(why) = self.is_gone(&job, task.host_id, since) {
                    if task.state.is_final() {
                        // The rest of its output is not coming any more.
                        job.output_abandoned(ordinal, self.0.output.size_now(task.task_id));
                        self.mark(&job, [ordinal]);
                    } else {
                        let message = format!("{}: {why}", task.host_name);
                        self.give_up(&task_ref, Reason::HostGone, message);
                    }
                }
            }
        }
    }

    fn is_gone(&self, job: &Job, host: HostId, since: i64) -> Option<String> {
        use crate::model::dispatch::HostView;
        match self.0.dispatcher.host(host) {
            HostView::Gone => return Some("the host was removed".into()),
            HostView::Attached | HostView::Uploading => return None,
            HostView::Away | HostView::Barred => {}
        }
        let heard = self
            .0
            .dispatcher
            .heard_time(host)
            .unwrap_or(job.order.create_time)
            .max(since);
        let silence = now() - heard;
        (silence >= job.order.lost_after).then(|| {
            let seconds = silence / 1000;
            format!("the host has been silent for {seconds} s, longer than lost_after allows")
        })
    }

    /// Looks at the tasks of one host, as when it was removed.
    pub(crate) fn sweep_host(&self, host: HostId) {
        for task in self.of_host(host) {
            let look = task.get();
            if look.state == State::AwaitingApproval {
                // Its job is refused when it is approved: it is for other hosts by then.
            } else if look.state == State::Pending && look.offered.is_none() {
                self.settle_unoffered(&task);
            } else if !look.state.is_final()
                && let Some(why) = self.is_gone(&task.job, host, 0)
            {
                self.give_up(
                    &task,
                    Reason::HostGone,
                    format!("{}: {why}", look.host_name),
                );
            }
        }
    }

    /// Drops output that is older or more than the limits allow.
    pub(crate) async fn sweep_output(&self) {
        if let Err(error) = self.0.output.sweep().await {
            tracing::warn!(%error, "old output was not dropped: {error}");
        }
    }

    /// Deletes jobs that ended before `time`, with their output; says how many.
    pub(crate) async fn forget_before(&self, time: i64, limit: i64) -> Result<usize, StoreError> {
        // What is in memory may still change, and a change needs its row.
        let is_over = |job: &OldJob| {
            let id = job.job_id.parse();
            id.is_ok_and(|id| self.live_job(id).is_none())
        };
        let mut old = rows::old_jobs(&self.0.store.readers, time, None, limit).await?;
        while !old.iter().any(is_over) {
            // Those that stay longer, as their hosts owe something, hold up no other.
            let Some(last) = old.last() else { return Ok(0) };
            old = rows::old_jobs(&self.0.store.readers, time, Some(last), limit).await?;
        }
        old.retain(is_over);
        let ids: Vec<_> = old.iter().map(|job| job.job_id.clone()).collect();
        let tasks = old.iter().flat_map(|job| &job.tasks);
        let tasks: Vec<_> = tasks.filter_map(|id| id.parse().ok()).collect();
        self.0.store.writer.commit(rows::delete(&ids)).await?;
        if let Err(error) = self.0.output.remove(&tasks).await {
            tracing::warn!(%error, "output of old jobs was not removed: {error}");
        }
        Ok(ids.len())
    }
}
