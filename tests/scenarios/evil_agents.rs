//! Hosts that are hostile to their control plane: refused with the reason, bounded, and nobody else is harmed.
//!
//! "evil" has a certificate of its own and says what it likes. "good" has a real agent, and goes on all the while.

mod floods;
mod identities;
mod receipts;
mod reports;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use muster_proto::{
    agent::v1::{
        Chunk, Gap, Offer, Open, OutputEnd, ReportRequest, SealedOffer, TaskState, attach_response,
        report_request::Message as Up,
        report_response::Message as Down,
        task_state::{Ended, Event, Started},
    },
    v1::{Confinement, CreateJobRequest, OutputStream, Reason, Task, task::State},
};
use muster_tests::{
    PATIENCE, eventually,
    fake_agent::{Attached, FakeAgent, hello},
    fleet::{Agent, Fleet},
    operator::{Operator, Watched, reason},
    process,
};
use prost::Message as _;
use tonic::Status;

/// A job of an innocent host is done within this while another host does its worst, on few cores and without
/// optimizations. A host that was locked out would wait for ever.
const SOON: Duration = Duration::from_secs(6);

/// A fleet of two.
struct World {
    fleet: Fleet,
    operator: Operator,
    _good: Arc<Agent>,
    evil: Arc<Agent>,
    agent: FakeAgent,
    attached: Attached,
}

impl World {
    async fn start() -> Self {
        Self::of(Fleet::start().await).await
    }

    async fn of(fleet: Fleet) -> Self {
        let good = fleet.host("good").await;
        let evil = fleet.joined("evil", &[]).await;
        let agent = FakeAgent::new(evil.dial(fleet.address()).await.unwrap());
        let attached = agent.attach(hello("boot", "journal")).await.unwrap();
        Self {
            operator: fleet.operator(),
            _good: good,
            fleet,
            evil,
            agent,
            attached,
        }
    }

    fn epoch(&self) -> i64 {
        self.attached.welcome.session_epoch
    }

    /// The most memory that the control plane has had so far, bytes.
    fn memory(&self) -> u64 {
        process::peak_memory(self.fleet.control_plane_pid()).unwrap()
    }

    /// The control plane's memory has grown by less than so many MiB.
    #[track_caller]
    fn took_less_than(&self, mebibytes: u64, before: u64) {
        let grown = self.memory().saturating_sub(before) >> 10;
        eprintln!("the control plane had {before} bytes, and {grown} KiB more");
        assert!(grown < mebibytes << 10, "{grown} KiB more");
    }

    /// A job for the hostile host, and what it is offered.
    async fn offered(&mut self, request: CreateJobRequest) -> (Watched, Offer) {
        let job = self.operator.create(request).await.unwrap();
        let offer = async {
            loop {
                match self.attached.next().await.unwrap().expect("it is attached") {
                    attach_response::Message::Offer(offer) => return offer,
                    _ => continue,
                }
            }
        };
        let offer = tokio::time::timeout(PATIENCE, offer).await.unwrap();
        (job, offer)
    }

    /// A report of a task of this session, opened as a new one.
    fn open(&self, task_id: &str) -> Up {
        Up::Open(Open {
            task_id: task_id.to_owned(),
            session_epoch: self.epoch(),
            fresh: true,
            ..Open::default()
        })
    }

    /// Says this, and hears until the report is settled or refused.
    async fn report(&self, messages: Vec<Up>) -> Result<(), Status> {
        let mut messages = messages.into_iter().map(|message| ReportRequest {
            message: Some(message),
        });
        let (up, mut down) = self.agent.open_report(messages.next().unwrap()).await?;
        let hearing = async {
            loop {
                match down.message().await {
                    Ok(Some(answer)) if matches!(answer.message, Some(Down::Settled(_))) => {
                        return Ok(());
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return Err(Status::unknown("it ended without a word")),
                    Err(status) => return Err(status),
                }
            }
        };
        let saying = async {
            for message in messages {
                // Refused, nobody listens any more.
                let _ = up.send(message).await;
            }
            std::future::pending::<()>().await;
        };
        let talk = async {
            tokio::select! {
                heard = hearing => heard,
                () = saying => unreachable!("it never ends"),
            }
        };
        let talked = tokio::time::timeout(PATIENCE, talk).await;
        talked.expect("the report is settled or refused")
    }

    /// Others are served, and soon.
    async fn nobody_is_harmed(&self) {
        let since = Instant::now();
        for _ in 0..3 {
            self.operator.run("good", "true").await.succeeds().await;
        }
        let each = since.elapsed() / 3;
        assert!(each < SOON, "{each:?} a job");
    }

    /// Waits until something that speaks against a task is shown.
    async fn doubted(&self, job: &Watched) -> Task {
        eventually(PATIENCE, "the doubt shows", || async {
            let task = job.task().await;
            (!task.doubt.is_empty()).then_some(task)
        })
        .await
    }
}

fn started(confinement: Option<Confinement>) -> Up {
    Up::State(TaskState {
        journal_position: 1,
        event: Some(Event::Started(Started {
            time: Some(std::time::SystemTime::now().into()),
            pid: 7,
            confinement,
        })),
    })
}

fn ended(state: State, code: Option<i32>) -> Ended {
    Ended {
        state: state.into(),
        exit_code: code,
        run_time: Some(prost_types::Duration::default()),
        time: Some(std::time::SystemTime::now().into()),
        ..Ended::default()
    }
}

fn said(ended: Ended) -> Up {
    Up::State(TaskState {
        journal_position: 2,
        event: Some(Event::Ended(ended)),
    })
}

fn end(last_sequence: i64) -> Up {
    Up::OutputEnd(OutputEnd { last_sequence })
}

fn chunk(sequence: i64, offset: i64, data: impl Into<Bytes>) -> Up {
    Up::Chunk(Chunk {
        sequence,
        stream: OutputStream::Stdout.into(),
        offset,
        data: data.into(),
    })
}

fn gap(sequence: i64, offset: i64, length: i64) -> Up {
    Up::Gap(Gap {
        sequence,
        stream: OutputStream::Stdout.into(),
        offset,
        length,
        cause: "none of your business".to_owned(),
    })
}

fn sealed(offer: &Offer) -> SealedOffer {
    SealedOffer::decode(offer.sealed_offer.clone()).unwrap()
}

fn is_refused(outcome: Result<(), Status>, expected: Reason, what: &str) {
    let status = outcome.expect_err(what);
    assert_eq!(reason(&status), expected, "{what}: {status:?}");
}
