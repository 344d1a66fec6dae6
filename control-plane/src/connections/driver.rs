//! The Attach stream of one host, from hello to goodbye.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use muster_proto::{
    agent::v1::{
        AttachRequest, AttachResponse, Authorities, Drain, HeartbeatAck, Hello, Welcome,
        attach_request::Message as Up, attach_response::Message as Down,
    },
    ids::{HostId, TaskId},
    v1::{AuditHead, Mode, Reason},
};
use tokio::{
    sync::watch,
    time::{Instant, interval, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::Instrument as _;

use super::{
    Rooms,
    reconcile::{self, Verdict},
};
use crate::{
    clock::now,
    hosts::Bar,
    model::{Entry, Fence},
    restores::Seen,
    sessions::{
        End, Session,
        arrivals::{MESSAGES, Pace},
        mode_limit,
        offer::down,
    },
    times,
    wire::{heard, status},
};

/// How long a stream may take to say hello.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// How long agents wait, plus jitter, before they come back to a control plane that stops.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// No clock is further off, milliseconds: a hundred years.
const CLOCK_OFFSET_MAX: i64 = 100 * 365 * 24 * 3600 * 1000;

/// Between two times that the facts of a host are written.
const WRITE_FACTS_EVERY: Duration = Duration::from_secs(1);

/// Characters of the ids that an agent makes.
const ID_MAX: usize = 128;

/// Serves one attach. The stream that is returned is what the agent hears.
pub(crate) async fn attach(
    rooms: Rooms,
    host_id: HostId,
    mut incoming: Streaming<AttachRequest>,
) -> Result<impl Stream<Item = Result<AttachResponse, Status>> + Send + use<>, Status> {
    let hello = match timeout(HELLO_LIMIT, incoming.message()).await {
        Ok(Ok(Some(AttachRequest {
            message: Some(Up::Hello(hello)),
        }))) => hello,
        Ok(Err(status)) => return Err(status),
        Ok(Ok(_)) => return Err(status::invalid("hello", "is the first message")),
        Err(_) => return Err(status::invalid("hello", "did not come within 10 s")),
    };
    let fence = fence(&hello)?;
    if !rooms.connections.may_attach(host_id) {
        return Err(status::refuse(
            Reason::RateLimited,
            "the host attaches too often; it may once a second",
        ));
    }
    challenge(&rooms, host_id, &fence).await?;
    refuse_barred(&rooms, host_id)?;
    notice_set_back(&rooms, host_id, &hello).await?;

    let rolled_back = rooms
        .connections
        .is_rolled_back(host_id, &fence, hello.journal_position);
    if rolled_back {
        tracing::warn!(host.id = %host_id, "the journal of {host_id} is older than what was heard from it");
    }
    let can = |what: &str| hello.capabilities.iter().any(|name| name == what);
    let (uploads, keeps_secrets_apart) = (can("upload"), can("secrets"));
    let (session, messages) =
        rooms
            .connections
            .open(host_id, fence.clone(), rolled_back, keeps_secrets_apart);
    if let Some(heard) = rooms
        .connections
        .hear(host_id, &fence, hello.journal_position)
    {
        rooms.jobs.heard(host_id, heard);
    }
    if let Some(time) = &hello.time {
        set_clock(&rooms, &session, times::millis(time));
    }
    if let Some(facts) = hello.facts {
        set_facts(&rooms, &session, facts);
    }
    // The older session ends first: what it offers after the welcome was written, nobody would ask for.
    rooms.connections.enter(&session);
    if !uploads {
        spare_upload(&rooms, host_id).await?;
    }
    // What comes after the one in the welcome.
    let mut head = rooms.head.clone();
    head.mark_unchanged();
    let told = mode_limit(&rooms.inventory, host_id);
    session.greet(welcome(&rooms, &session, told));
    // It may have been lowered between the two.
    if mode_limit(&rooms.inventory, host_id) != told {
        rooms.connections.tell_policy(host_id, &rooms.inventory);
    }
    rooms.inventory.attached(host_id);
    let trusted = hello.authorities_version;
    rooms.audit.record(
        Entry::new("host.attach")
            .by(format!("host/{host_id}"))
            .on(host_id)
            .with("epoch", session.epoch)
            .with("boot", &fence.boot_id)
            .with("journal", &fence.journal_id),
    );
    tracing::info!(host.id = %host_id, epoch = session.epoch, "host {host_id} attached");

    // Those that a later word may contradict; a host may name any number.
    let held = hello.held_task_ids.iter().filter_map(|id| id.parse().ok());
    let held: HashSet<TaskId> = held
        .filter(|id| rooms.jobs.find_live(*id).is_some())
        .collect();
    let span = tracing::info_span!("connection", host.id = %host_id, epoch = session.epoch);
    tokio::spawn(feed(rooms.clone(), Arc::clone(&session)).instrument(span.clone()));
    let driven = Arc::clone(&session);
    tokio::spawn(
        async move {
            if trusted > 0 {
                note_taken(&rooms, host_id, trusted).await;
            }
            let end = listen(&rooms, &driven, incoming, &held, trusted, head).await;
            driven.end(end);
            if rooms.connections.leave(&driven) {
                rooms.inventory.detached(host_id, end == End::Gone);
            }
            tracing::info!(?end, "host {host_id} detached: {end:?}");
        }
        .instrument(span),
    );

    let ended = Arc::clone(&session);
    let end =
        stream::once(async move { last_word(ended.ended().await) }).filter_map(std::future::ready);
    Ok(ReceiverStream::new(messages)
        .map(Ok)
        .take_until(session.ended.clone().cancelled_owned())
        .chain(end))
}

fn fence(hello: &Hello) -> Result<Fence, Status> {
    for (field, id) in [
        ("hello.boot_id", &hello.boot_id),
        ("hello.journal_id", &hello.journal_id),
        ("hello.instance_id", &hello.instance_id),
    ] {
        if id.is_empty() || id.len() > ID_MAX {
            return Err(status::invalid(field, "has 1 to 128 characters"));
        }
    }
    Ok(Fence {
        boot_id: hello.boot_id.as_str().into(),
        journal_id: hello.journal_id.as_str().into(),
    })
}

fn refuse_barred(rooms: &Rooms, host_id: HostId) -> Result<(), Status> {
    match rooms.inventory.bar(host_id) {
        None => Ok(()),
        Some(Bar::Removed(_)) => Err(refusal(End::Removed)),
        Some(Bar::Locked(_)) => {
            let conflict = rooms
                .inventory
                .get(host_id)
                .is_some_and(|host| !host.identity_conflict.is_empty());
            Err(refusal(if conflict { End::Conflict } else { End::Locked }))
        }
    }
}

/// A host that has seen a later ledger than this one shows that it was set back: a generation begins, before the host
/// is offered anything, and everybody attaches again.
async fn notice_set_back(rooms: &Rooms, host_id: HostId, hello: &Hello) -> Result<(), Status> {
    let seen = Seen {
        generation: &hello.seen_generation,
        position: hello.seen_ledger_position,
        seal: &hello.seen_ledger_seal,
    };
    if rooms.restores.judge(host_id, seen).is_none() {
        return Ok(());
    }
    let begun = rooms
        .restores
        .begin(host_id, seen, &rooms.jobs, &rooms.inventory)
        .await;
    if begun.map_err(status::of)? {
        rooms.connections.end_all(End::Restored);
    }
    Ok(())
}

/// An agent of a version that cannot upload has nothing that it could be waited for: its journal still answers for
/// every task that it has taken.
async fn spare_upload(rooms: &Rooms, host_id: HostId) -> Result<(), Status> {
    if !rooms.restores.owes_upload(host_id) {
        return Ok(());
    }
    tracing::warn!(host.id = %host_id, "the agent of {host_id} is too old to upload what it knows; its history stays as the backup has it");
    let generation = rooms.restores.generation();
    let spared = rooms
        .restores
        .uploaded(host_id, &generation, &rooms.inventory);
    spared.await.map_err(status::of)
}

/// Another boot or journal claims an identity whose older session is open: whoever is really there
/// answers. If the older one is heard again, there are two, and both are set aside; if it stays silent
/// longer than a heartbeat takes, the host was restarted.
async fn challenge(rooms: &Rooms, host_id: HostId, fence: &Fence) -> Result<(), Status> {
    let Some(old) = rooms.connections.current(host_id) else {
        return Ok(());
    };
    if old.fence == *fence {
        return Ok(());
    }
    let patience = rooms.settings.heartbeat_interval.mul_f64(1.5);
    // A challenger that gave up and comes again goes on where it was.
    let since = *old.challenged.lock().get_or_insert_with(Instant::now);
    loop {
        let heard = *old.heard.lock();
        if heard > since {
            let seen = format!(
                "an agent with boot {} and journal {} attached while another with boot {} and journal {} \
                 was answering; stop one of them, give it an identity of its own, then unlock the host",
                fence.boot_id, fence.journal_id, old.fence.boot_id, old.fence.journal_id
            );
            if let Err(error) = rooms.inventory.set_aside(host_id, &seen).await {
                tracing::error!(%error, "an identity conflict was not written: {error}");
            }
            old.end(End::Conflict);
            return Err(refusal(End::Conflict));
        }
        let limit = since + patience;
        if Instant::now() >= limit {
            return Ok(());
        }
        tokio::select! {
            _ = old.ended() => return Ok(()),
            () = sleep_until(limit.min(Instant::now() + Duration::from_millis(200))) => {}
        }
    }
}

fn welcome(rooms: &Rooms, session: &Session, mode_limit: Mode) -> AttachResponse {
    let host_name = rooms
        .inventory
        .get(session.host_id)
        .map(|host| host.name.clone())
        .unwrap_or_default();
    let expected = rooms.jobs.expected(session.host_id);
    // What is not durable may be lost without a restore, and must not look like one.
    let told = rooms.restores.tell(session.host_id, rooms.syncer.durable());
    down(Down::Welcome(Welcome {
        session_epoch: session.epoch,
        generation: rooms.restores.generation().to_string(),
        ledger_position: told.position,
        ledger_seal: told.seal,
        time: Some(times::timestamp(now())),
        heartbeat_interval: Some(times::duration(rooms.settings.heartbeat_interval)),
        expected_task_ids: expected.iter().map(ToString::to_string).collect(),
        host_name,
        upload: rooms.restores.owes_upload(session.host_id),
        mode_limit: mode_limit.into(),
        audit_head: rooms.head.borrow().clone(),
    }))
}

fn set_clock(rooms: &Rooms, session: &Session, theirs: i64) {
    // An agent may say anything.
    let offset = theirs
        .saturating_sub(now())
        .clamp(-CLOCK_OFFSET_MAX, CLOCK_OFFSET_MAX);
    session.set_clock_offset(offset);
    rooms.inventory.clock_offset(session.host_id, offset);
}

/// Shows what the host is, and writes it behind.
fn set_facts(rooms: &Rooms, session: &Arc<Session>, facts: muster_proto::v1::Facts) {
    let host_id = session.host_id;
    let facts = heard::facts(facts);
    if !facts.audit_conflict.is_empty() {
        let words = &facts.audit_conflict;
        tracing::error!(host.id = %host_id, "{host_id} keeps heads that contradict the audit log: {words}");
        rooms.audit.record(
            Entry::new("audit.conflict")
                .by(format!("host/{host_id}"))
                .on(host_id)
                .with("words", words),
        );
    }
    let inventory = &rooms.inventory;
    if !inventory.show_facts(host_id, facts) {
        return;
    }
    {
        let mut writing = session.facts.lock();
        if writing.busy {
            writing.again = true;
            return;
        }
        writing.busy = true;
    }
    let (inventory, session) = (inventory.clone(), Arc::clone(session));
    tokio::spawn(async move {
        loop {
            if let Err(error) = inventory.write_facts(host_id).await {
                tracing::warn!(%error, "the facts of {host_id} were not written: {error}");
            }
            // What changes meanwhile is written with what changes then.
            tokio::select! {
                () = tokio::time::sleep(WRITE_FACTS_EVERY) => {}
                _ = session.ended() => {}
            }
            let mut writing = session.facts.lock();
            if !writing.again {
                writing.busy = false;
                return;
            }
            writing.again = false;
        }
    });
}

/// Hands the host what waits for it, whenever there may be something.
async fn feed(rooms: Rooms, session: Arc<Session>) {
    loop {
        if let Err(error) = rooms.jobs.hand_over(&session).await {
            tracing::warn!(%error, "tasks wait for the ledger: {error}");
            tokio::select! {
                _ = session.ended() => return,
                () = rooms.syncer.recovered() => {}
            }
            // The queue may be full too: the wire gets a moment.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        tokio::select! {
            _ = session.ended() => return,
            () = session.looked.notified() => {}
        }
    }
}

/// A host has taken authorities; said by a message, or by the hello after one that was lost.
async fn note_taken(rooms: &Rooms, host_id: HostId, version: i64) {
    if let Err(error) = rooms.rotation.taken(host_id, version).await {
        tracing::warn!(%error, "what the host trusts is not written: {error}");
    }
}

async fn listen(
    rooms: &Rooms,
    session: &Arc<Session>,
    mut incoming: Streaming<AttachRequest>,
    held: &HashSet<TaskId>,
    mut trusted: i64,
    mut head: watch::Receiver<Option<AuditHead>>,
) -> End {
    let silence = rooms.settings.offline_after;
    let mut ticks = interval(silence / 4);
    let mut versions = rooms.rotation.versions();
    // Where nothing was ever rotated there is nothing to tell.
    versions.mark_changed();
    let mut pace = Pace::new(MESSAGES, Instant::now());
    loop {
        tokio::select! {
            end = session.ended() => return end,
            Ok(()) = versions.changed() => {
                if !tell_authorities(rooms, session, &mut trusted) {
                    versions.mark_changed();
                    // The queue is full; it gets a moment.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            _ = ticks.tick() => {
                if session.heard.lock().elapsed() > silence {
                    return End::Silent;
                }
            }
            // It ends with the control plane.
            Ok(()) = head.changed() => {
                if let Some(head) = head.borrow_and_update().clone() {
                    session.send(down(Down::AuditHead(head)));
                }
            }
            message = incoming.message() => {
                let message = match message {
                    Ok(Some(AttachRequest { message: Some(message) })) => message,
                    Ok(Some(AttachRequest { message: None })) => continue,
                    // Broken, not said goodbye: the host may come back any moment.
                    Ok(None) | Err(_) => return End::Silent,
                };
                session.hear();
                rooms.inventory.heard(session.host_id);
                if let Some(end) = handle(rooms, session, held, message).await {
                    return end;
                }
                // Whoever says more than any agent has to say is not read for a while, and waits.
                if let Err(pause) = pace.take(Instant::now()) {
                    tokio::select! {
                        end = session.ended() => return end,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }
}

/// Tells a host whom to trust, unless it was told; `false` if there was no room for that.
fn tell_authorities(rooms: &Rooms, session: &Session, trusted: &mut i64) -> bool {
    let (authorities, version) = rooms.rotation.authorities();
    if version == *trusted {
        return true;
    }
    let sent = session.send(down(Down::Authorities(Authorities {
        authorities: authorities
            .iter()
            .map(|authority| bytes::Bytes::copy_from_slice(authority))
            .collect(),
        version,
    })));
    if sent {
        *trusted = version;
    }
    // A session that has ended is told no more.
    sent || !session.is_open()
}

async fn handle(
    rooms: &Rooms,
    session: &Arc<Session>,
    held: &HashSet<TaskId>,
    message: Up,
) -> Option<End> {
    match message {
        Up::Hello(_) => {
            tracing::warn!("the agent says hello a second time");
            return Some(End::Silent);
        }
        Up::Heartbeat(beat) => {
            if let Some(time) = &beat.time {
                set_clock(rooms, session, times::millis(time));
            }
            let position = beat.journal_position;
            if let Some(heard) = rooms
                .connections
                .hear(session.host_id, &session.fence, position)
            {
                rooms.jobs.heard(session.host_id, heard);
            }
            let told = rooms.restores.tell(session.host_id, rooms.syncer.durable());
            // Lost if the queue is full: then the connection is busy, which is a sign of life too.
            session.send(down(Down::HeartbeatAck(HeartbeatAck {
                time: Some(times::timestamp(now())),
                ledger_position: told.position,
                ledger_seal: told.seal,
            })));
        }
        Up::Facts(facts) => set_facts(rooms, session, facts),
        Up::NotHeld(not_held) => {
            let mut contradicted = 0;
            for id in not_held.task_ids.iter().filter_map(|id| id.parse().ok()) {
                if held.contains(&id) {
                    contradicted += 1;
                } else {
                    judge(rooms, session, id);
                }
            }
            if contradicted > 0 {
                tracing::warn!("the host holds {contradicted} tasks and says that it does not");
            }
            session.look();
        }
        Up::SignedReceipts(signed) => rooms.take_signatures(session, signed),
        Up::AuthoritiesTaken(taken) => {
            note_taken(rooms, session.host_id, taken.version).await;
        }
        Up::Goodbye(goodbye) => {
            let cause = heard::words(goodbye.cause);
            tracing::info!(%cause, "the agent says goodbye: {cause}");
            return Some(End::Gone);
        }
    }
    None
}

fn judge(rooms: &Rooms, session: &Session, task_id: TaskId) {
    // What the welcome asked about is not final, so it is in memory; whatever else a host names costs no look at the
    // ledger.
    let Some(task) = rooms.jobs.find_live(task_id) else {
        return;
    };
    let verdict = task.look(|task| {
        // What was offered in this session left after the question that this answers.
        if task.host_id != session.host_id || task.offer_epoch == session.epoch {
            return Verdict::Nothing;
        }
        reconcile::not_held(
            task.state,
            task.offered.as_ref(),
            &session.fence,
            session.rolled_back,
        )
    });
    match verdict {
        Verdict::Nothing => {}
        Verdict::Waits => rooms.jobs.never_arrived(&task, session.epoch),
        Verdict::Lost(reason) => {
            rooms
                .jobs
                .give_up(&task, reason, reconcile::words(reason).to_owned());
        }
    }
}

/// What the agent hears last; nothing if the stream just ends.
fn last_word(end: End) -> Option<Result<AttachResponse, Status>> {
    match end {
        End::Gone | End::Silent => None,
        End::Stopping | End::Restored => Some(Ok(down(Down::Drain(Drain {
            retry_after: Some(times::duration(RETRY_AFTER)),
        })))),
        end => Some(Err(refusal(end))),
    }
}

/// Why an agent is sent away.
pub(super) fn refusal(end: End) -> Status {
    let (reason, message) = match end {
        End::Superseded => (
            Reason::SessionSuperseded,
            "a newer attach of this host took over",
        ),
        End::Conflict => (
            Reason::IdentityConflict,
            "two agents present this identity; an operator must decide and unlock the host",
        ),
        End::Locked => (Reason::Locked, "the host is locked"),
        End::Removed => (
            Reason::HostRemoved,
            "the host was removed; it must join anew",
        ),
        End::Stopping => (Reason::ShuttingDown, "the control plane is stopping"),
        End::Restored => (
            Reason::SessionSuperseded,
            "the control plane was restored; attach again",
        ),
        End::Gone | End::Silent => (
            Reason::SessionSuperseded,
            "the session is over; attach again",
        ),
    };
    status::refuse(reason, message)
}
