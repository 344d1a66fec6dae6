//! A stream that is attached: what comes in is done, signs of life and news go out, until one end says goodbye.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use muster_proto::{
    agent::v1::{
        AttachRequest, AttachResponse, Authorities, AuthoritiesTaken, Goodbye, Heartbeat, NotHeld,
        Welcome, attach_request, attach_response,
    },
    v1::Facts,
};
use rand::Rng;
use rustls_pki_types::CertificateDer;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::{Connection, Detached};
use crate::session::Session;

/// Without a word for so many heartbeats, the other end is gone.
const SILENT_HEARTBEATS: u32 = 3;

/// How often the facts are looked at for changes.
const FACTS_EVERY: Duration = Duration::from_secs(60);

/// How long a goodbye may take to leave.
const GOODBYE_LIMIT: Duration = Duration::from_millis(500);

/// An attached stream.
pub(super) struct Live<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) session: Arc<Session>,
    pub(super) incoming: Streaming<AttachResponse>,
    pub(super) outgoing: mpsc::Sender<AttachRequest>,
    pub(super) heard: Instant,
    pub(super) heartbeat: Duration,
    /// Takes authorities; gone with the stream, after which they are told again.
    pub(super) taking: Option<AbortOnDrop>,
}

/// A task that ends when this is dropped.
pub(super) struct AbortOnDrop(pub(super) tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Live<'_> {
    pub(super) async fn live(&mut self, welcome: Welcome, stop: &CancellationToken) -> Detached {
        if let Err(reason) = self.begin(welcome).await {
            return reason;
        }
        let mut facts = tokio::time::interval_at(Instant::now() + FACTS_EVERY, FACTS_EVERY);
        let mut beat = Box::pin(tokio::time::sleep(self.jittered()));
        loop {
            let done = tokio::select! {
                message = self.incoming.message() => self.handle(message).await,
                () = &mut beat => {
                    beat.as_mut().reset(Instant::now() + self.jittered());
                    self.connection.tasks.give_memory_back();
                    self.send_heartbeat().await
                }
                _ = facts.tick() => self.send_changed_facts().await,
                () = stop.cancelled() => return self.say_goodbye().await,
            };
            if let Err(reason) = done {
                return reason;
            }
        }
    }

    /// Acts on the difference between what is held and what should be.
    async fn begin(&mut self, welcome: Welcome) -> Result<(), Detached> {
        let connection = &mut *self.connection;
        if let Some(time) = &welcome.time {
            connection.clock.set(time);
        }
        connection.tasks.policy().lower(welcome.mode_limit);
        tracing::info!(
            session_epoch = welcome.session_epoch,
            "attached to {} as {}",
            connection.address,
            welcome.host_name
        );
        connection
            .standing
            .attached(&connection.address, &welcome.host_name);
        connection.seen.note(
            &welcome.generation,
            welcome.ledger_position,
            &welcome.ledger_seal,
        );
        let news = match welcome.audit_head.clone() {
            Some(head) => connection.take_head(head),
            None => false,
        };
        let task_ids =
            connection
                .tasks
                .attach(&self.session, &welcome.expected_task_ids, welcome.upload);
        if news {
            self.send_changed_facts().await?;
        }
        if task_ids.is_empty() {
            return Ok(());
        }
        self.send(attach_request::Message::NotHeld(NotHeld { task_ids }))
            .await
    }

    async fn handle(
        &mut self,
        message: Result<Option<AttachResponse>, tonic::Status>,
    ) -> Result<(), Detached> {
        use attach_response::Message;
        let message = message?.ok_or(Detached::Closed)?;
        self.heard = Instant::now();
        match message.message {
            Some(Message::Offer(offer)) => self.connection.tasks.offer(offer, &self.session),
            Some(Message::Cancel(cancel)) => self.connection.tasks.cancel(cancel, &self.session),
            Some(Message::HeartbeatAck(ack)) => {
                if let Some(time) = &ack.time {
                    self.connection.clock.set(time);
                }
                let seen = &mut self.connection.seen;
                seen.advance(ack.ledger_position, &ack.ledger_seal);
            }
            Some(Message::Authorities(authorities)) => self.take(authorities),
            Some(Message::Policy(policy)) => {
                self.connection.tasks.policy().lower(policy.mode_limit)
            }
            Some(Message::AuditHead(head)) => {
                let news = self.connection.take_head(head);
                return match news {
                    true => self.send_changed_facts().await,
                    false => Ok(()),
                };
            }
            Some(Message::Drain(drain)) => return Err(Detached::drained(drain)),
            Some(Message::Welcome(_)) => return Err(Detached::Protocol("a second welcome")),
            // A later control plane may say what this agent does not know.
            None => {}
        }
        Ok(())
    }

    /// Takes authorities beside the stream, and then says so. What was being taken before is out of date.
    fn take(&mut self, authorities: Authorities) {
        let version = authorities.version;
        let der: Vec<CertificateDer<'static>> = authorities
            .authorities
            .iter()
            .map(|der| CertificateDer::from(der.to_vec()))
            .collect();
        let (renewal, taken) = (
            Arc::clone(&self.connection.renewal),
            Arc::clone(&self.connection.taken),
        );
        let outgoing = self.outgoing.clone();
        self.taking = Some(AbortOnDrop(tokio::spawn(async move {
            renewal.take(der).await;
            taken.store(version, Ordering::Relaxed);
            let message = AttachRequest {
                message: Some(attach_request::Message::AuthoritiesTaken(
                    AuthoritiesTaken { version },
                )),
            };
            // Where the stream is over, the next hello says it.
            let _ = outgoing.send(message).await;
        })));
    }

    async fn send_heartbeat(&mut self) -> Result<(), Detached> {
        if self.heard.elapsed() > self.heartbeat * SILENT_HEARTBEATS {
            return Err(Detached::Silent);
        }
        let heartbeat = Heartbeat {
            journal_position: self.connection.tasks.journal().position(),
            time: Some(self.connection.clock.host_time()),
        };
        self.send(attach_request::Message::Heartbeat(heartbeat))
            .await
    }

    async fn send_changed_facts(&mut self) -> Result<(), Detached> {
        let changed: Option<Facts> = self.connection.facts.look_for_change();
        match changed {
            Some(facts) => self.send(attach_request::Message::Facts(facts)).await,
            None => Ok(()),
        }
    }

    async fn say_goodbye(&mut self) -> Detached {
        let goodbye = Goodbye {
            cause: "the agent was told to stop".to_owned(),
        };
        let sent = self.send(attach_request::Message::Goodbye(goodbye));
        let _ = tokio::time::timeout(GOODBYE_LIMIT, sent).await;
        // Until the other end has closed, the goodbye may still be on its way.
        let closed = async { while let Ok(Some(_)) = self.incoming.message().await {} };
        let _ = tokio::time::timeout(GOODBYE_LIMIT, closed).await;
        Detached::Stopped
    }

    async fn send(&self, message: attach_request::Message) -> Result<(), Detached> {
        let message = AttachRequest {
            message: Some(message),
        };
        let sent = tokio::time::timeout(self.heartbeat, self.outgoing.send(message)).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Detached::Closed),
            Err(_) => Err(Detached::Silent),
        }
    }

    /// The next sign of life, ± 20 %, so that a fleet does not beat as one.
    fn jittered(&self) -> Duration {
        self.heartbeat.mul_f64(rand::rng().random_range(0.8..=1.2))
    }
}
