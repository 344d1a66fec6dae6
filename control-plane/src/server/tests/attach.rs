//! Attaching to tasks and writing to them, from the operator's end of the wire to the host's.

use bytes::Bytes;
use muster_proto::v1::{
    Action, AttachDetach, AttachInput, AttachInputResult, AttachOpen, AttachPong,
    AttachTaskRequest, AttachTaskResponse, Attached, CloseStdin, Command, CreateJobRequest,
    InputStatus, ListTasksRequest, SendInputRequest, SendInputResponse, Task, TaskInput, Terminal,
    action, attach_open::Access, attach_task_request::Message as Up,
    attach_task_response::Message as Down, job_event::Event, task::State, task_input::Kind,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    fake_host::{FakeHost, PATIENCE},
    *,
};

/// Somebody who is attached.
struct Attacher {
    up: mpsc::Sender<AttachTaskRequest>,
    down: Streaming<AttachTaskResponse>,
    attached: Attached,
}

fn open(task_id: &str, access: Access) -> AttachOpen {
    AttachOpen {
        task_id: task_id.to_owned(),
        access: access.into(),
        ..AttachOpen::default()
    }
}

fn data(text: &'static str) -> TaskInput {
    TaskInput {
        kind: Some(Kind::Data(Bytes::from_static(text.as_bytes()))),
    }
}

impl Attacher {
    async fn open(channel: &Channel, open: AttachOpen) -> Result<Self, Status> {
        let (up, requests) = mpsc::channel(64);
        let message = Some(Up::Open(open));
        up.send(AttachTaskRequest { message }).await.unwrap();
        let mut jobs = JobServiceClient::new(channel.clone());
        let answer = jobs.attach_task(ReceiverStream::new(requests)).await?;
        let mut down = answer.into_inner();
        match down.message().await?.and_then(|answer| answer.message) {
            Some(Down::Attached(attached)) => Ok(Self { up, down, attached }),
            other => panic!("expected to be in, got {other:?}"),
        }
    }

    async fn say(&self, message: Up) {
        let message = Some(message);
        self.up.send(AttachTaskRequest { message }).await.unwrap();
    }

    async fn put(&self, write_id: &str, input: TaskInput) {
        self.say(Up::Input(AttachInput {
            write_id: write_id.to_owned(),
            input: Some(input),
        }))
        .await;
    }

    /// The next message but pings, which are answered; `None` at the end.
    async fn next(&mut self) -> Result<Option<Down>, Status> {
        loop {
            let message = timeout(PATIENCE, self.down.message()).await.unwrap()?;
            match message.and_then(|message| message.message) {
                Some(Down::Ping(_)) => {
                    let message = Some(Up::Pong(AttachPong {}));
                    let _ = self.up.send(AttachTaskRequest { message }).await;
                }
                other => return Ok(other),
            }
        }
    }

    async fn result(&mut self) -> AttachInputResult {
        loop {
            match self.next().await.unwrap() {
                Some(Down::InputResult(result)) => return result,
                Some(_) => {}
                None => panic!("the stream ended before the answer"),
            }
        }
    }

    async fn writer(&mut self) -> Option<v1::Writer> {
        loop {
            match self.next().await.unwrap() {
                Some(Down::WriterChanged(changed)) => return changed.writer,
                Some(_) => {}
                None => panic!("the stream ended before the writer changed"),
            }
        }
    }

    /// Output and task states until it holds for both, or to the end.
    async fn until(&mut self, enough: impl Fn(&[u8], &[Task]) -> bool) -> (Vec<u8>, Vec<Task>) {
        let (mut output, mut tasks) = (Vec::new(), Vec::new());
        while !enough(&output, &tasks) {
            match self.next().await.unwrap() {
                Some(Down::Update(update)) => {
                    for event in update.events {
                        match event.event.unwrap() {
                            Event::Output(chunk) => output.extend_from_slice(&chunk.data),
                            Event::Task(task) => tasks.push(task),
                            other => panic!("unexpected: {other:?}"),
                        }
                    }
                }
                Some(_) => {}
                None => return (output, tasks),
            }
        }
        (output, tasks)
    }
}

impl Plane {
    pub(super) fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.operator.clone())
    }

    /// Asks for a job on all hosts; the id of its task.
    async fn create(&self) -> String {
        let command = Command {
            argv: vec!["cat".into()],
            terminal: Some(Terminal::default()),
            ..Command::default()
        };
        let create = CreateJobRequest {
            request_id: format!("{:x}", rand::random::<u64>()),
            selector: "all".into(),
            action: Some(Action {
                kind: Some(action::Kind::Command(command)),
            }),
            ..CreateJobRequest::default()
        };
        let job = self.jobs().create_job(create).await.unwrap().into_inner();
        let tasks = ListTasksRequest {
            job_id: job.job.unwrap().job_id,
            ..ListTasksRequest::default()
        };
        let tasks = self.jobs().list_tasks(tasks).await.unwrap().into_inner();
        tasks.tasks[0].task_id.clone()
    }

    async fn send(&self, task_id: &str, write_id: &str, input: TaskInput) -> SendInputResponse {
        let request = SendInputRequest {
            task_id: task_id.to_owned(),
            write_id: write_id.to_owned(),
            input: Some(input),
        };
        self.jobs().send_input(request).await.unwrap().into_inner()
    }

    /// Waits until the task runs.
    async fn runs(&self, task_id: &str) {
        let mut watcher = Attacher::open(&self.operator, open(task_id, Access::Read))
            .await
            .unwrap();
        let running = |_: &[u8], tasks: &[Task]| tasks.iter().any(|t| t.state() == State::Running);
        watcher.until(running).await;
    }
}

#[tokio::test]
async fn what_was_written_comes_first_then_what_is_written_and_the_end_in_two_steps() {
    let plane = Plane::start().await;
    let mut host = FakeHost::attach(&plane, "web-1").await;
    plane.create().await;
    let mut task = host.start().await;
    task.write(b"before ").await;
    let mut ada = Attacher::open(&plane.operator, open(&task.task_id, Access::Write))
        .await
        .unwrap();
    assert!(ada.attached.writer.as_ref().unwrap().you);
    ada.until(|output, _| output == b"before ").await;

    ada.put("w-1", data("one")).await;
    ada.put("w-2", data("two")).await;
    let first = task.input().await;
    assert_eq!(first.write_id, "w-1");
    task.write(b"one ").await;
    task.answer(&first, InputStatus::Accepted).await;
    let second = task.input().await;
    assert_eq!(second.write_id, "w-2");
    task.answer(&second, InputStatus::Accepted).await;
    assert_eq!(ada.result().await.status(), InputStatus::Accepted);

    // Comes back after the first chunk: neither gap nor repeat.
    let again = AttachOpen {
        after_sequence: 1,
        ..open(&task.task_id, Access::Read)
    };
    let mut bob = Attacher::open(&plane.operator, again).await.unwrap();
    bob.until(|output, _| output == b"one ").await;

    task.say_ended().await;
    let (_, tasks) = bob
        .until(|_, tasks| tasks.iter().any(|t| t.end_time.is_some()))
        .await;
    assert!(!tasks.last().unwrap().output_complete, "it may write more");
    task.write(b"last words").await;
    task.say_complete().await;
    let (output, tasks) = bob.until(|_, _| false).await;
    assert_eq!(output, b"last words");
    assert!(tasks.last().unwrap().output_complete);

    let late = plane.send(&task.task_id, "w-3", data("x")).await;
    assert_eq!(late.status(), InputStatus::Closed);
    plane.stop().await;
}

#[tokio::test]
async fn one_writes_and_whoever_is_taken_over_is_told_by_whom() {
    let plane = Plane::start().await;
    let mut host = FakeHost::attach(&plane, "web-1").await;
    plane.create().await;
    let mut task = host.start().await;
    let id = task.task_id.clone();
    let open = |access| open(&id, access);
    let mut ada = Attacher::open(&plane.operator, open(Access::Write))
        .await
        .unwrap();
    let mut bob = Attacher::open(&plane.operator, open(Access::Write))
        .await
        .unwrap();
    let writer = bob.attached.writer.clone().unwrap();
    assert!(!writer.you && writer.principal == "operator/ada");

    let only = AttachOpen {
        exclusive: true,
        ..open(Access::TakeOver)
    };
    let mut carol = Attacher::open(&plane.operator, only).await.unwrap();
    let writer = ada.writer().await.unwrap();
    assert!(!writer.you && writer.exclusive);
    ada.put("w-1", data("x")).await;
    let refused = ada.result().await;
    assert_eq!(refused.status(), InputStatus::Refused);
    assert_eq!(refused.reason(), Reason::NotWriter);
    let refused = plane.send(&id, "w-2", data("x")).await;
    assert_eq!(refused.status(), InputStatus::Refused);
    assert!(
        refused.message.contains("operator/ada"),
        "{}",
        refused.message
    );

    carol.put("w-3", data("y")).await;
    let input = task.input().await;
    assert_eq!(input.write_id, "w-3");
    task.answer(&input, InputStatus::Accepted).await;
    assert_eq!(carol.result().await.status(), InputStatus::Accepted);
    carol.say(Up::Detach(AttachDetach {})).await;
    let writer = ada.writer().await.unwrap();
    assert!(!writer.you && !writer.exclusive, "who waited writes now");
    let writer = loop {
        if let Some(writer) = bob.writer().await.filter(|writer| writer.you) {
            break writer;
        }
    };
    assert!(!writer.exclusive);
    task.write(b"still here").await;
    ada.until(|output, _| output == b"still here").await;
    plane.stop().await;
}

#[tokio::test]
async fn what_is_typed_before_the_former_writer_is_gone_waits_for_that() {
    let plane = Plane::start().await;
    let mut host = FakeHost::attach(&plane, "web-1").await;
    plane.create().await;
    let mut task = host.start().await;
    let id = task.task_id.clone();
    let open = || open(&id, Access::Write);
    let ada = Attacher::open(&plane.operator, open()).await.unwrap();
    let mut bob = Attacher::open(&plane.operator, open()).await.unwrap();
    let mut carol = Attacher::open(&plane.operator, open()).await.unwrap();
    bob.put("w-1", data("one")).await;
    bob.put("w-2", data("two")).await;
    carol.put("w-3", data("no")).await;
    let refused = carol.result().await;
    assert_eq!(refused.reason(), Reason::NotWriter, "one is next in line");

    ada.say(Up::Detach(AttachDetach {})).await;
    for name in ["w-1", "w-2"] {
        let input = task.input().await;
        assert_eq!(input.write_id, name);
        task.answer(&input, InputStatus::Accepted).await;
        let result = bob.result().await;
        assert_eq!(
            (&*result.write_id, result.status()),
            (name, InputStatus::Accepted)
        );
    }

    // Who wrote stays: what waited is refused, with the reason.
    drop(carol);
    let mut dave = Attacher::open(&plane.operator, open()).await.unwrap();
    dave.put("w-4", data("late")).await;
    let refused = dave.result().await;
    assert_eq!(refused.status(), InputStatus::Refused);
    assert!(
        refused.message.contains("operator/ada"),
        "{}",
        refused.message
    );
    plane.stop().await;
}

#[tokio::test]
async fn a_client_that_vanishes_is_noticed_and_blocks_nobody() {
    let plane = Plane::start_with(|config| {
        config.client_gone_after = Duration::from_secs(3);
    })
    .await;
    let mut host = FakeHost::attach(&plane, "web-1").await;
    plane.create().await;
    let task = host.start().await;
    let mut silent = Attacher::open(&plane.operator, open(&task.task_id, Access::Write))
        .await
        .unwrap();
    let mut lively = Attacher::open(&plane.operator, open(&task.task_id, Access::Read))
        .await
        .unwrap();
    assert_eq!(lively.writer().await, None, "the silent one was let go");
    let ended = loop {
        match timeout(PATIENCE, silent.down.message()).await.unwrap() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&ended), "CLIENT_SILENT");
    plane.stop().await;
}

#[tokio::test]
async fn the_same_client_comes_back_as_the_writer() {
    let plane = Plane::start().await;
    let mut host = FakeHost::attach(&plane, "web-1").await;
    plane.create().await;
    let task = host.start().await;
    let named = AttachOpen {
        attach_id: "a-1".into(),
        ..open(&task.task_id, Access::Write)
    };
    let mut old = Attacher::open(&plane.operator, named.clone())
        .await
        .unwrap();
    let new = Attacher::open(&plane.operator, named).await.unwrap();
    assert!(new.attached.writer.unwrap().you);
    let ended = loop {
        match old.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&ended), "SESSION_SUPERSEDED");
    plane.stop().await;
}

#[tokio::test]
async fn input_waits_for_the_start_and_the_reader_and_survives_a_broken_report() {
    let plane = Plane::start().await;
    let id = {
        // Nobody is there yet: the task waits for its host.
        plane.host("web-0").await;
        plane.create().await
    };
    let early = plane.send(&id, "w-0", data("x")).await;
    assert_eq!(early.status(), InputStatus::Starting);
    let mut ada = Attacher::open(&plane.operator, open(&id, Access::Write))
        .await
        .unwrap();
    ada.put("w-1", data("early")).await;

    let identity = Identity::load(&plane.path("web-0")).unwrap();
    let mut host = FakeHost::with(&identity).await;
    let mut task = host.start().await;
    let full = task.input().await;
    assert_eq!(full.write_id, "w-1");
    task.answer(&full, InputStatus::Full).await;
    let again = task.input().await;
    assert_eq!(again.write_id, "w-1", "the same under the same name");
    task.break_off();
    task.report_again().await;
    let once_more = task.input().await;
    assert_eq!(once_more, again);
    task.answer(&once_more, InputStatus::Accepted).await;
    let result = ada.result().await;
    assert_eq!(
        (&*result.write_id, result.status()),
        ("w-1", InputStatus::Accepted)
    );

    task.break_off();
    ada.put(
        "s-1",
        TaskInput {
            kind: Some(Kind::Signal("SIGINT".into())),
        },
    )
    .await;
    let result = ada.result().await;
    assert_eq!(
        result.status(),
        InputStatus::Unknown,
        "a signal does not wait"
    );
    assert_eq!(result.reason(), Reason::HostDisconnected);
    plane.stop().await;
}

#[tokio::test]
async fn one_input_is_sent_and_answered_without_attaching() {
    let plane = Plane::start().await;
    let mut host = FakeHost::attach(&plane, "web-1").await;
    plane.create().await;
    let mut task = host.start().await;
    let id = task.task_id.clone();
    plane.runs(&id).await;
    let close = TaskInput {
        kind: Some(Kind::CloseStdin(CloseStdin {})),
    };
    let (answer, ()) = tokio::join!(plane.send(&id, "w-1", close.clone()), async {
        let input = task.input().await;
        assert_eq!(input.input, Some(close.clone()));
        task.answer(&input, InputStatus::Accepted).await;
    });
    assert_eq!(answer.status(), InputStatus::Accepted);

    let wrong = SendInputRequest {
        task_id: "t-00000000000000000000".into(),
        write_id: "w".into(),
        input: Some(data("x")),
    };
    let refused = plane.jobs().send_input(wrong).await.unwrap_err();
    assert_eq!(reason(&refused), "TASK_NOT_FOUND");
    let wrong = SendInputRequest {
        task_id: id,
        write_id: String::new(),
        input: Some(data("x")),
    };
    let refused = plane.jobs().send_input(wrong).await.unwrap_err();
    assert_eq!(reason(&refused), "ARGUMENT_INVALID");
    plane.stop().await;
}

#[tokio::test]
async fn whoever_only_half_closes_goes_on_watching() {
    let gone_after = Duration::from_secs(2);
    let plane = Plane::start_with(|config| config.client_gone_after = gone_after).await;
    let mut host = FakeHost::attach(&plane, "web-1").await;
    plane.create().await;
    let mut task = host.start().await;
    let mut watcher = Attacher::open(&plane.operator, open(&task.task_id, Access::Write))
        .await
        .unwrap();
    let mut other = Attacher::open(&plane.operator, open(&task.task_id, Access::Read))
        .await
        .unwrap();
    let (up, _) = mpsc::channel(1);
    watcher.up = up;
    assert_eq!(other.writer().await, None, "it writes no more");
    // It cannot answer a ping, and is not taken for one that is gone: for longer than that takes.
    let more = timeout(2 * gone_after, other.next()).await;
    assert!(more.is_err(), "{more:?}");
    task.write(b"x").await;
    task.say_ended().await;
    task.say_complete().await;
    let (output, tasks) = watcher.until(|_, _| false).await;
    assert_eq!(
        (&output[..], tasks.last().unwrap().output_complete),
        (&b"x"[..], true)
    );
    plane.stop().await;
}

#[tokio::test]
async fn what_was_typed_before_a_half_close_is_put_in() {
    let plane = Plane::start().await;
    let mut host = FakeHost::attach(&plane, "web-1").await;
    plane.create().await;
    let mut task = host.start().await;
    plane.runs(&task.task_id).await;
    let mut typist = Attacher::open(&plane.operator, open(&task.task_id, Access::Write))
        .await
        .unwrap();
    let mut other = Attacher::open(&plane.operator, open(&task.task_id, Access::Write))
        .await
        .unwrap();
    let names = ["w-1", "w-2", "w-3"];
    for name in names {
        typist.put(name, data("x")).await;
    }
    let (up, _) = mpsc::channel(1);
    typist.up = up;
    for name in names {
        let input = task.input().await;
        assert_eq!(input.write_id, name);
        task.answer(&input, InputStatus::Accepted).await;
        let result = typist.result().await;
        let answer = (&*result.write_id, result.status(), &*result.message);
        assert_eq!(answer, (name, InputStatus::Accepted, ""));
    }
    assert!(other.writer().await.unwrap().you, "then it writes no more");
    plane.stop().await;
}
