//! Many agents on one control plane: real connections with an identity each; commands are answered without
//! a process.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use futures_util::StreamExt as _;
use muster_client::{enrollment, identity::Identity, join::JoinString};
use muster_proto::{
    agent::v1::{
        AttachRequest, Heartbeat, Hello, Offer, Open, OutputEnd, ReportRequest, SealedOffer,
        TaskState, agent_service_client::AgentServiceClient, attach_request, attach_response,
        report_request, report_response, task_state,
    },
    v1::{Facts, JoinKind, job_event::Event, task},
};
use muster_runtime::tls::connect;
use prost::Message as _;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::{
    commands::run_true,
    figures::{Samples, heading, millis},
    fleet::{Fleet, HOST, command, join_string},
};

const PATIENCE: Duration = Duration::from_secs(600);
const ROUNDS: usize = 5;

/// Joins and attaches `count` agents, `at_once` at a time, and runs a command on all of them.
pub(crate) async fn run(fleet: &Fleet, count: usize, at_once: usize) -> anyhow::Result<()> {
    let uses = i32::try_from(count).context("too many agents")?;
    let join = Arc::new(join_string(&fleet.client, JoinKind::Host, "", uses).await?);
    let directory = fleet.directory().join("simulated");
    let identities = enroll(&directory, &join, count, at_once).await?;

    let (memory, cpu) = (fleet.control_plane.memory()?.0, fleet.control_plane.cpu());
    let (stop, stopped) = watch::channel(());
    let attached = Arc::new(AtomicUsize::new(0));
    let limit = Arc::new(Semaphore::new(at_once));
    let started = Instant::now();
    for identity in identities {
        let (attached, limit, stopped) = (attached.clone(), limit.clone(), stopped.clone());
        tokio::spawn(async move {
            if let Err(error) = agent(identity, &attached, &limit, stopped).await {
                println!("an agent gave up: {error:#}");
            }
        });
    }
    while attached.load(Ordering::Relaxed) < count {
        if started.elapsed() > PATIENCE {
            bail!(
                "only {} of {count} agents attached",
                attached.load(Ordering::Relaxed)
            );
        }
        time::sleep(Duration::from_millis(5)).await;
    }
    let time = started.elapsed();
    let memory_each =
        (fleet.control_plane.memory()?.0.saturating_sub(memory)) as f64 / count as f64;
    heading(&format!("{count} agents, {at_once} dialling at once"));
    println!("attached in {:.2} s", time.as_secs_f64());
    println!(
        "control plane: {:.2} CPU s to let them in, {memory_each:.0} KiB each",
        fleet.control_plane.cpu_since(cpu).as_secs_f64()
    );

    let (mut all, mut one, mut costs) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        let cpu = fleet.control_plane.cpu();
        let started = Instant::now();
        run_everywhere(fleet, count).await?;
        all.add(started.elapsed());
        costs.add(fleet.control_plane.cpu_since(cpu) / uses.unsigned_abs());
        for _ in 0..20 {
            let started = Instant::now();
            run_true(&fleet.client, "sim-0").await?;
            one.add(started.elapsed());
        }
    }
    println!("no-op on all of them: {:.0} ms", millis(all.median()));
    println!(
        "control plane: {:.0} us of CPU per task",
        millis(costs.median()) * 1e3
    );
    println!(
        "no-op on one of them: {:.2} ms, p99 {:.2} ms",
        millis(one.median()),
        millis(one.percentile(99))
    );
    let cpu = fleet.control_plane.cpu();
    time::sleep(Duration::from_secs(20)).await;
    println!(
        "idle: {:.1} ms/s of CPU, RSS {} MiB",
        millis(fleet.control_plane.cpu_since(cpu)) / 20.0,
        fleet.control_plane.memory()?.0 >> 10
    );
    drop(stop);
    Ok(())
}

async fn run_everywhere(fleet: &Fleet, count: usize) -> anyhow::Result<()> {
    let mut watch = fleet
        .client
        .run(command(&format!("name!={HOST}"), &["true"]))
        .await?;
    let mut states = BTreeMap::new();
    while let Some(update) = watch.next().await {
        for event in update?.events {
            if let Some(Event::Task(task)) = event.event {
                let state = task.state();
                states.insert(task.task_id, state);
            }
        }
    }
    let succeeded = |state: &&task::State| **state == task::State::Succeeded;
    let succeeded = states.values().filter(succeeded).count();
    ensure!(
        succeeded == count && states.len() == count,
        "{succeeded} of {} tasks on {count} hosts succeeded",
        states.len()
    );
    Ok(())
}

async fn enroll(
    directory: &std::path::Path,
    join: &Arc<JoinString>,
    count: usize,
    at_once: usize,
) -> anyhow::Result<Vec<Identity>> {
    let join_one = |number: usize| {
        let (directory, join): (PathBuf, _) = (directory.join(number.to_string()), join.clone());
        async move {
            std::fs::create_dir_all(&directory)?;
            anyhow::Ok(enrollment::join(&directory, &join, &format!("sim-{number}")).await?)
        }
    };
    futures_util::stream::iter((0..count).map(join_one))
        .buffer_unordered(at_once)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect()
}

/// One agent: attaches, and takes every offer at its word.
async fn agent(
    identity: Identity,
    attached: &AtomicUsize,
    limit: &Semaphore,
    mut stopped: watch::Receiver<()>,
) -> anyhow::Result<()> {
    let permit = limit.acquire().await?;
    let channel = connect(identity.address(), &identity.client_tls()?).await?;
    let name = identity.name().to_owned();
    let mut client = AgentServiceClient::new(channel.clone());
    let (requests, outgoing) = mpsc::channel(16);
    let hello = Hello {
        boot_id: name.clone(),
        journal_id: name.clone(),
        instance_id: name.clone(),
        facts: Some(Facts {
            os: "simulated".to_owned(),
            boot_id: name.clone(),
            hostname: name,
            ..Facts::default()
        }),
        ..Hello::default()
    };
    requests
        .send(attach(attach_request::Message::Hello(hello)))
        .await?;
    let mut incoming = client
        .attach(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    let mut position = 0;
    let mut epoch = 0;
    let mut heartbeat = time::interval(Duration::from_secs(10));
    heartbeat.tick().await;
    drop(permit);
    loop {
        let message = tokio::select! {
            message = incoming.message() => message?,
            _ = heartbeat.tick() => {
                let heartbeat = Heartbeat { journal_position: position, time: None };
                requests.send(attach(attach_request::Message::Heartbeat(heartbeat))).await?;
                continue;
            }
            _ = stopped.changed() => return Ok(()),
        };
        match message.and_then(|message| message.message) {
            Some(attach_response::Message::Welcome(welcome)) => {
                epoch = welcome.session_epoch;
                attached.fetch_add(1, Ordering::Relaxed);
            }
            Some(attach_response::Message::Offer(offer)) => {
                position += 2;
                tokio::spawn(report(channel.clone(), offer, epoch, position));
            }
            Some(_) => {}
            None => bail!("the control plane ended the attach"),
        }
    }
}

fn attach(message: attach_request::Message) -> AttachRequest {
    AttachRequest {
        message: Some(message),
    }
}

/// Reports a task as done.
async fn report(channel: Channel, offer: Offer, epoch: i64, position: i64) -> anyhow::Result<()> {
    let sealed = SealedOffer::decode(offer.sealed_offer)?;
    let state = |position, event| {
        report_request::Message::State(TaskState {
            journal_position: position,
            event: Some(event),
        })
    };
    let messages = [
        report_request::Message::Open(Open {
            task_id: sealed.task_id,
            session_epoch: epoch,
            fresh: true,
            ..Open::default()
        }),
        state(
            position - 1,
            task_state::Event::Started(task_state::Started {
                pid: 1,
                ..Default::default()
            }),
        ),
        state(
            position,
            task_state::Event::Ended(task_state::Ended {
                state: task::State::Succeeded.into(),
                exit_code: Some(0),
                ..task_state::Ended::default()
            }),
        ),
        report_request::Message::OutputEnd(OutputEnd { last_sequence: 0 }),
    ];
    let (requests, outgoing) = mpsc::channel(messages.len());
    for message in messages {
        let message = Some(message);
        requests.send(ReportRequest { message }).await?;
    }
    let mut answers = AgentServiceClient::new(channel)
        .report(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    while let Some(answer) = answers.message().await? {
        if let Some(report_response::Message::Settled(_)) = answer.message {
            break;
        }
    }
    drop(requests);
    Ok(())
}
