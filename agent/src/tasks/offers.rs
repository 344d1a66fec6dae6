//! What the control plane asks for: offers, and cancels.

use std::{collections::HashMap, io, sync::Arc};

use bytes::Bytes;
use muster_proto::{
    agent::v1::{Cancel, Offer, SealedOffer, task_state},
    ids::TaskId,
    v1::{Reason, task::State},
};
use muster_runtime::telemetry::trace;
use prost::Message;
use tracing::info_span;

use super::{
    Admitted, Tasks,
    journal::{Accepted, Barred, Ended, Event, Held, Phase},
    not_after_ms,
    overflow::Overflow,
    spool::Spool,
    starting,
    task::Task,
};
use crate::{
    actions::{self, Kind},
    connection::Session,
    failpoint,
    supervision::Link,
};

/// Where the environment of a process carries the trace that asked for it.
const TRACE_VARIABLES: [(&str, &str); 2] =
    [("traceparent", "TRACEPARENT"), ("tracestate", "TRACESTATE")];

impl Tasks {
    /// Takes an offer. A task that the journal holds is answered, not started.
    pub(crate) fn offer(&self, offer: Offer, session: &Arc<Session>) {
        if self.0.stopping.is_cancelled() {
            // Not taken, so that it is offered again.
            return;
        }
        let mut sealed = match SealedOffer::decode(offer.sealed_offer.clone()) {
            Ok(sealed) => sealed,
            Err(error) => {
                tracing::error!(%error, "an offer cannot be read: {error}");
                return;
            }
        };
        let Ok(task_id) = sealed.task_id.parse::<TaskId>() else {
            tracing::error!(task.id = sealed.task_id, "an offer has a malformed task id");
            return;
        };
        if self.answer(task_id, session, Some(&offer)) {
            return;
        }

        let span = info_span!("task", task.id = %task_id, job.id = sealed.job_id);
        trace::adopt(&span, &offer.trace);
        let _entered = span.enter();
        let not_after_ms = not_after_ms(&sealed);
        let accepted = Accepted {
            task_id: task_id.to_string(),
            sealed_offer: offer.sealed_offer.clone(),
            seal: offer.seal.clone(),
            not_after_ms,
        };
        let kind = sealed.action.take().and_then(actions::of);
        let wanted = kind.as_ref().map(|kind| kind.output_limit());
        let overflow = Overflow::of(wanted.unwrap_or_default(), self.0.limits.task_spool);
        let spool = Arc::new(Spool::new(
            task_id,
            Arc::clone(&self.0.room),
            overflow.keep(),
        ));
        let task = Task::new(task_id, offer.sealed_offer, offer.seal, spool);
        self.0.held.lock().insert(task_id, Arc::clone(&task));

        match self.admit(&sealed, kind, not_after_ms, offer.secret_env) {
            Ok(mut admitted) => {
                for (key, variable) in TRACE_VARIABLES {
                    if let Some(env) = admitted.kind.environment()
                        && let Some(value) = offer.trace.get(key)
                    {
                        env.entry(variable.to_owned())
                            .or_insert_with(|| value.clone());
                    }
                }
                // Both in one write where a supervisor waits: a task that is taken is started at once.
                let link = self.supervisor_at_hand(admitted.kind.declared().worker());
                let mut events = vec![Event::Accepted(accepted)];
                events.extend(link.as_ref().map(|link| starting(task_id, link.id())));
                match self.write(events) {
                    Ok(_) => self.run(Arc::clone(&task), admitted, link),
                    Err(error) => {
                        self.give_back(link);
                        self.refuse_unwritten(&task, &error);
                    }
                }
            }
            Err(refusal) => {
                tracing::info!(
                    reason = refusal.reason().as_str_name(),
                    "refused a task: {}",
                    refusal.message
                );
                let ended = Ended {
                    task_id: task_id.to_string(),
                    ended: Some(refusal.clone()),
                    ..Default::default()
                };
                let events = vec![Event::Accepted(accepted), Event::Ended(ended)];
                match self.write(events) {
                    Ok(position) => task.ended(position, refusal),
                    Err(error) => self.refuse_unwritten(&task, &error),
                }
            }
        }
        self.report(task, session, true);
    }

    /// What an offer comes to, or why it is not started. `kind`: its action, if this agent knows the kind. `secret_env`:
    /// values that are said beside the sealed offer.
    #[allow(clippy::result_large_err)] // An end is what an offer comes to, not a rare error.
    pub(super) fn admit(
        &self,
        sealed: &SealedOffer,
        kind: Option<Box<dyn Kind>>,
        not_after_ms: i64,
        mut secret_env: HashMap<String, String>,
    ) -> Result<Admitted, task_state::Ended> {
        let refuse = |state, reason, message: String| Err(self.over(state, reason, message));
        if sealed.host_id != self.0.host_id {
            let message = format!("the offer is for host {}", sealed.host_id);
            return refuse(State::Rejected, Reason::SealInvalid, message);
        }
        if self.0.clock.now_ms() > not_after_ms {
            let message = "the offer came after the start deadline".to_owned();
            return refuse(State::Expired, Reason::StartDeadlinePassed, message);
        }
        let Some(mut kind) = kind else {
            let message = "this agent does not know this kind of action; update it".to_owned();
            return refuse(State::Rejected, Reason::ActionUnsupported, message);
        };
        for name in &sealed.secret_env {
            let Some(value) = secret_env.remove(name) else {
                let message = format!(
                    "the value of {name} looks secret, was in memory only, and is gone, so the task did not start: \
                     run it again"
                );
                return refuse(State::Rejected, Reason::StartFailed, message);
            };
            if let Some(env) = kind.environment() {
                env.insert(name.clone(), value);
            }
        }
        let limit = self.0.limits.tasks;
        if self.0.running.len() >= limit {
            let message = format!("this host already runs {limit} tasks, its limit");
            return refuse(State::Rejected, Reason::HostBusy, message);
        }
        let asked = sealed.confinement.clone().unwrap_or_default();
        match self.0.policy.confine(&asked, kind.as_ref()) {
            Ok(sandbox) => Ok(Admitted { kind, sandbox }),
            Err(refusal) => refuse(State::Rejected, refusal.reason, refusal.message),
        }
    }

    /// A supervisor that waits for a task, if there is one; for a `worker` of this kind, one that may fork it. A failpoint
    /// that stands before the start takes the slow road, which has a place to hold.
    fn supervisor_at_hand(&self, worker: Option<&str>) -> Option<Link> {
        let supervisors = &self.0.supervisors;
        match worker {
            _ if failpoint::is_armed() => None,
            None => supervisors.take(),
            Some(kind) => {
                let link = supervisors.take_new()?;
                if link.can_work(kind) {
                    return Some(link);
                }
                supervisors.put(link);
                None
            }
        }
    }

    /// Nothing starts that is not in the journal first.
    pub(super) fn refuse_unwritten(&self, task: &Task, error: &io::Error) {
        let ended = self.unwritten(task, error);
        task.ended(self.0.journal.position(), ended);
    }

    pub(super) fn unwritten(&self, task: &Task, error: &io::Error) -> task_state::Ended {
        tracing::error!(task.id = %task.id, %error, "the journal cannot be written, so the task does not start: {error}");
        let reason = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Reason::DiskFull,
            _ => Reason::StartFailed,
        };
        let message = format!("the agent's journal cannot be written: {error}");
        self.over(State::Rejected, reason, message)
    }

    /// Answers for a task that is known already; `false` if it is not.
    pub(super) fn answer(
        &self,
        task_id: TaskId,
        session: &Arc<Session>,
        offer: Option<&Offer>,
    ) -> bool {
        if let Some(task) = self.find(&task_id) {
            self.report(task, session, false);
            return true;
        }
        let Some(held) = self.0.journal.find(&task_id) else {
            return false;
        };
        let held = Held {
            sealed_offer: offer.map_or_else(Bytes::new, |offer| offer.sealed_offer.clone()),
            seal: offer.map_or_else(Bytes::new, |offer| offer.seal.clone()),
            ..held
        };
        let task = self.past(held);
        self.0.held.lock().insert(task_id, Arc::clone(&task));
        self.report(task, session, false);
        true
    }

    /// A task that was settled or barred before, as far as it is still known.
    fn past(&self, held: Held) -> Arc<Task> {
        let spool = Arc::new(Spool::new(
            held.task_id,
            Arc::clone(&self.0.room),
            self.0.limits.task_spool,
        ));
        if let Phase::Settled { last_sequence, .. } = held.phase {
            // Its output was taken and is gone; asked for again, it must not pass for none.
            spool.acknowledge(last_sequence);
        }
        let task = Task::new(held.task_id, held.sealed_offer, held.seal, spool);
        let ended = match held.phase {
            Phase::Settled {
                ended: Some(ended), ..
            }
            | Phase::Ended(ended) => ended,
            _ => self.cancelled_before_start(),
        };
        task.ended(self.0.journal.position(), ended);
        task
    }

    /// Ends a task. One that was never seen is barred from ever starting.
    pub(crate) fn cancel(&self, cancel: Cancel, session: &Arc<Session>) {
        let Ok(task_id) = cancel.task_id.parse::<TaskId>() else {
            tracing::error!(task.id = cancel.task_id, "a cancel has a malformed task id");
            return;
        };
        if let Some(task) = self.find(&task_id) {
            let grace = match cancel.grace {
                Some(grace) => grace.try_into().unwrap_or_default(),
                None => actions::grace(&task.sealed_offer),
            };
            tracing::info!(task.id = %task_id, "cancelling");
            task.cancel.send_replace(Some(grace));
            return;
        }
        if self.answer(task_id, session, None) {
            return;
        }
        let barred = Barred {
            task_id: task_id.to_string(),
            not_after_ms: cancel
                .not_after
                .map_or(i64::MAX, |time| time.seconds.saturating_mul(1000)),
        };
        match self.write(vec![Event::Barred(barred)]) {
            Ok(_) => drop(self.answer(task_id, session, None)),
            // Unanswered, so that the control plane asks again.
            Err(error) => {
                tracing::error!(task.id = %task_id, %error, "the journal cannot be written: {error}")
            }
        }
    }
}
