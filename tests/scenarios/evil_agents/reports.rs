//! Reports that cannot be: they are refused, bounded or told beside the task, and hold nothing up.

use bytes::Bytes;
use muster_proto::{
    agent::v1::{
        Chunk, Kept, TaskState,
        report_request::Message as Up,
        task_state::{Event, Started},
    },
    v1::{Confinement, Mode, OutputStream, ReadOutputRequest, Reason, task::State},
};
use muster_tests::{
    PATIENCE, eventually,
    fleet::Fleet,
    operator::{request, script},
};

use super::{World, chunk, end, ended, gap, is_refused, said, sealed, started};

#[tokio::test]
async fn numbers_that_cannot_be_are_refused_and_what_overlaps_changes_nothing() {
    let mut world = World::start().await;
    let (job, offer) = world.offered(request("evil", script("true"))).await;
    let task = sealed(&offer).task_id;
    let unknown_stream = Up::Chunk(Chunk {
        sequence: 1,
        stream: 99,
        offset: 0,
        data: "x".into(),
    });
    for (what, message) in [
        ("a sequence ahead", chunk(2, 0, "x")),
        ("far ahead", chunk(i64::MAX, 0, "x")),
        ("none", chunk(0, 0, "x")),
        ("before any", chunk(-1, 0, "x")),
        ("the lowest", chunk(i64::MIN, 0, "x")),
        ("an offset ahead", chunk(1, 5, "x")),
        ("the farthest", chunk(1, i64::MAX, "x")),
        ("a negative one", chunk(1, -1, "x")),
        ("the lowest offset", chunk(1, i64::MIN, "x")),
        ("too much at once", chunk(1, 0, vec![7; (256 << 10) + 1])),
        ("of no stream", unknown_stream),
        ("a gap of less than nothing", gap(1, 0, -1)),
        ("of everything", gap(1, 0, i64::MAX)),
        ("ahead", gap(i64::MAX, i64::MAX, 1)),
        ("an end that was not reached", end(i64::MAX)),
        (
            "all that ever was, kept elsewhere",
            Up::Kept(Kept {
                stdout_offset: i64::MAX,
                stderr_offset: i64::MIN,
                pty_offset: -1,
            }),
        ),
        ("a second open", world.open(&task)),
    ] {
        let lie = vec![world.open(&task), started(None), message];
        is_refused(world.report(lie).await, Reason::ArgumentInvalid, what);
    }
    // Times and positions from elsewhere are taken as what they can be at most.
    let absurd = |seconds| prost_types::Timestamp { seconds, nanos: -1 };
    let mut lie = vec![world.open(&task)];
    for (position, seconds) in [
        (i64::MIN, i64::MIN),
        (i64::MAX, i64::MAX),
        (-1, -62_135_596_801),
    ] {
        lie.push(Up::State(TaskState {
            journal_position: position,
            event: Some(Event::Started(Started {
                time: Some(absurd(seconds)),
                pid: -7,
                confinement: None,
            })),
        }));
    }
    for state in [
        State::Running,
        State::Pending,
        State::AwaitingApproval,
        State::Unspecified,
    ] {
        lie.push(said(ended(state, Some(0))));
    }
    // It ran, so it was neither refused nor too late.
    lie.extend([
        said(ended(State::Rejected, None)),
        said(ended(State::Expired, None)),
    ]);
    // A chunk that was taken stands, however often and differently it is said again.
    lie.extend([
        chunk(1, 0, "abc"),
        chunk(1, 0, "xyz"),
        chunk(1, 2, "z"),
        chunk(2, 1, "bcd"),
        chunk(3, 0, "abcd"),
    ]);
    lie.extend([end(-5), end(0)]);
    // Nothing comes after the end.
    lie.extend([chunk(4, 4, "more"), gap(4, 4, 1 << 40)]);
    lie.extend([
        said(ended(State::Succeeded, Some(0))),
        said(ended(State::Failed, Some(1))),
    ]);
    world.report(lie).await.unwrap();
    let done = job.succeeds().await;
    assert_eq!(job.output(OutputStream::Stdout).await, b"abcd");
    let size = done.output_size.unwrap();
    assert_eq!((size.stdout_bytes, size.dropped_bytes), (4, 0));

    // A second end, in a report of its own, is heard and changes nothing.
    let second = said(ended(State::Failed, Some(1)));
    let again = vec![world.open(&task), started(None), second];
    world.report(again).await.unwrap();
    let again = vec![world.open(&task), end(9)];
    is_refused(
        world.report(again).await,
        Reason::ArgumentInvalid,
        "a later end",
    );
    let again = job.task().await;
    assert_eq!(
        (again.state(), again.exit_code),
        (State::Succeeded, Some(0))
    );
    world.nobody_is_harmed().await;
}

#[tokio::test]
async fn what_was_confined_less_than_asked_is_told_beside_the_task() {
    let mut world = World::start().await;
    let applied = |mode: Mode| Confinement {
        mode: mode.into(),
        ..Confinement::default()
    };
    for (asked, applied, words) in [
        (
            Mode::ReadOnly,
            Some(applied(Mode::Unrestricted)),
            "read-only was asked for, and the host says unrestricted",
        ),
        (
            Mode::ReadOnly,
            Some(applied(Mode::Edit)),
            "read-only was asked for, and the host says edit",
        ),
        (Mode::Edit, None, "does not say how the task is confined"),
        (Mode::Edit, Some(applied(Mode::ReadOnly)), ""),
        (Mode::Unrestricted, Some(applied(Mode::Unrestricted)), ""),
    ] {
        let mut request = request("evil", script("true"));
        request.mode = asked.into();
        let (job, offer) = world.offered(request).await;
        let task = sealed(&offer).task_id;
        let honest = vec![
            world.open(&task),
            started(applied.clone()),
            said(ended(State::Succeeded, Some(0))),
            end(0),
        ];
        world.report(honest).await.unwrap();
        let task = job.succeeds().await;
        assert_eq!(task.confinement, applied);
        assert!(task.doubt.contains(words), "{}", task.doubt);
        assert_eq!(task.doubt.is_empty(), words.is_empty(), "{}", task.doubt);
        let shown = world.fleet.cli(&["job", "get", &task.job_id]).await;
        assert_eq!(
            shown.stdout.contains("in doubt: "),
            !words.is_empty(),
            "{}",
            shown.stdout
        );
        let method = "task.doubt";
        let log = world
            .fleet
            .cli(&["audit", "list", "--method", method, "--json"])
            .await;
        assert_eq!(
            log.stdout.contains(&task.task_id),
            !words.is_empty(),
            "{}",
            log.stdout
        );
    }
    // The confinement that a host told is kept.
    let job = world.operator.run("good", "true").await;
    let before = job.succeeds().await.confinement;
    assert_eq!(before.clone().unwrap().mode(), Mode::Unrestricted);
    world.fleet.stop_control_plane().await;
    world.fleet.start_control_plane().await;
    assert_eq!(job.task().await.confinement, before);
}

#[tokio::test]
async fn output_beyond_the_limit_is_not_kept() {
    let fleet = Fleet::plan().set("MUSTER_OUTPUT_OF_TASK", 1).start().await;
    let mut world = World::of(fleet).await;
    let before = world.memory();
    let (job, offer) = world.offered(request("evil", script("true"))).await;
    let task = sealed(&offer).task_id;
    const CHUNK: i64 = 128 << 10;
    const CHUNKS: i64 = 512;
    let mut flood = vec![world.open(&task), started(None)];
    let data = Bytes::from(vec![b'x'; CHUNK as usize]);
    flood.extend((0..CHUNKS).map(|number| chunk(number + 1, number * CHUNK, data.clone())));
    // The same, over and over: it takes neither room nor what its principal may use.
    flood.extend((0..CHUNKS).map(|_| chunk(1, 0, data.clone())));
    flood.extend([said(ended(State::Succeeded, Some(0))), end(CHUNKS)]);
    let (reported, ()) = tokio::join!(world.report(flood), world.nobody_is_harmed());
    reported.unwrap();
    job.succeeds().await;
    eventually(PATIENCE, "the middle is dropped", || async {
        let request = ReadOutputRequest {
            task_id: task.clone(),
            max_bytes: 1,
            ..ReadOutputRequest::default()
        };
        let read = world.operator.jobs().read_output(request).await.unwrap();
        let size = read.into_inner().task.unwrap().output_size.unwrap();
        assert_eq!(size.stdout_bytes, CHUNK * CHUNKS);
        let kept = size.stdout_bytes - size.dropped_bytes;
        (1..=2 << 20).contains(&kept).then_some(())
    })
    .await;
    world.took_less_than(150, before);
}
