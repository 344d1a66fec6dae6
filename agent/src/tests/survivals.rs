//! Tasks that outlive an agent, or the supervisor that holds them.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_agent_leaves_what_runs_and_the_next_one_goes_on() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let go_on = host.path("go-on");
    let wanted = waiter("echo $$", &go_on, "echo after; exit 4");
    let (task_id, pid) = control_plane.begun(wanted).await;
    host.stop().await.unwrap();
    assert!(alive(pid));
    host.start_agent().await;
    control_plane.attached(2).await;
    fs::write(go_on, "").unwrap();
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Failed);
    assert_eq!(task.ended.as_ref().unwrap().exit_code, Some(4));
    assert_eq!(task.out(), format!("{pid}\nafter\n"));
    // The supervisor of an earlier agent is not kept.
    control_plane.offer(command(&["true"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_while_there_is_no_agent_is_reported_by_the_next() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let (go_on, done) = (host.path("go-on"), host.path("done"));
    let then = format!(
        "seq 1 500000; echo bad >&2; touch {}; exit 5",
        done.display()
    );
    let wanted = waiter("echo before", &go_on, &then);
    let task_id = control_plane.offer(wanted).await;
    control_plane
        .task(&task_id, |task| !task.stdout.is_empty())
        .await;
    host.die();
    fs::write(go_on, "").unwrap();
    // More than fits memory, and nobody takes it: the process is not held up.
    until("the process ends", || done.exists()).await;
    host.start_agent().await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.ended.as_ref().unwrap().exit_code, Some(5));
    let numbers: String = (1..=500_000).map(|n| format!("{n}\n")).collect();
    assert!(task.out() == format!("before\n{numbers}"));
    assert_eq!(task.stderr, b"bad\n");
    assert_eq!(task.missing, [0, 0]);
    let left = || {
        fs::read_dir(host.path("agent/supervisors"))
            .unwrap()
            .count()
    };
    until("nothing is left of it", || left() == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_speaks_for_a_supervisor_that_is_killed_too() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let go_on = host.path("go-on");
    let wanted = waiter("echo $PPID", &go_on, "seq 1 1000; exit 6");
    let (task_id, supervisor) = control_plane.begun(wanted).await;
    host.die();
    fs::write(go_on, "").unwrap();
    let record = host
        .path("agent/supervisors")
        .join(format!("{task_id}.ended"));
    until("the record", || record.exists()).await;
    kill(supervisor);
    until("its end", || !alive(supervisor)).await;
    host.start_agent().await;
    let ended = control_plane.settled(&task_id).await;
    assert_eq!(ended.ended.as_ref().unwrap().exit_code, Some(6));
    let numbers: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    assert_eq!(ended.out(), format!("{supervisor}\n{numbers}"));
    assert!(!record.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_the_next_agent_finds_is_one_all_the_same() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    host.stop().await.unwrap();
    host.die();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let (task_id, offer) = control_plane.offer_of(command(&["true"]));
    let accepted = Event::Accepted(Accepted {
        task_id: task_id.clone(),
        sealed_offer: offer.sealed_offer,
        seal: offer.seal,
        not_after_ms: 0,
    });
    let starting = Event::Starting(Starting {
        task_id: task_id.clone(),
        ..Default::default()
    });
    let (journal, _) = Journal::open(&host.path("agent"), boot_id.trim(), 0).unwrap();
    journal.write(0, vec![accepted, starting]).unwrap();
    drop(journal);
    let record = Record {
        not_started: Some(NotStarted {
            reason: Reason::ModeUnenforceable.into(),
            message: "this host cannot enforce the mode of the task".to_owned(),
        }),
        ..Record::default()
    };
    Left::new(&host.path("agent/supervisors"), task_id.parse().unwrap())
        .write(&record)
        .unwrap();
    host.start_agent().await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Rejected);
    assert_eq!(task.ended.unwrap().reason(), Reason::ModeUnenforceable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_supervisor_leaves_its_task_lost_and_nothing_running() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    let text = "ps -o ppid= -p $$; echo $$; setsid sleep 600 & echo $!; trap '' TERM; while :; do sleep 1; done";
    let mut wanted = script(text);
    wanted.grace = Some(Duration::from_millis(100).try_into().unwrap());
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane
        .task(&task_id, |task| task.out().lines().count() == 3)
        .await;
    let pids: Vec<i32> = task
        .out()
        .lines()
        .map(|pid| pid.trim().parse().unwrap())
        .collect();
    kill(pids[0]);
    let ended = control_plane.settled(&task_id).await;
    assert_eq!(ended.state(), State::Lost);
    assert_eq!(
        ended.ended.as_ref().unwrap().reason(),
        Reason::SupervisorDied
    );
    assert_eq!(ended.out(), task.out());
    assert!(!pids.iter().any(|&pid| alive(pid)));
    // The host is as good as new.
    let task_id = control_plane.offer(command(&["true"])).await;
    assert_eq!(
        control_plane.settled(&task_id).await.state(),
        State::Succeeded
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_supervisor_leaves_nothing_that_hides() {
    if crate::process::Cells::open().is_none() {
        eprintln!("skipped: this user may make no control groups here");
        return;
    }
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    for agent_is_there in [true, false] {
        let hidden = host.path(&format!("hidden-{agent_is_there}"));
        // In a session of its own, without its environment, and nobody's child.
        let text = format!(
            "ps -o ppid= -p $$; (env -i setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600' \
             >/dev/null 2>&1 &); exec sleep 600",
            hidden.display()
        );
        let task_id = control_plane.offer(script(&text)).await;
        let task = control_plane
            .task(&task_id, |task| task.out().lines().count() == 1)
            .await;
        let supervisor = task.out().trim().parse().unwrap();
        until("something hides", || hidden.exists()).await;
        let hidden = fs::read_to_string(hidden).unwrap().trim().parse().unwrap();
        if !agent_is_there {
            host.die();
        }
        kill(supervisor);
        if !agent_is_there {
            until("its end", || !alive(supervisor)).await;
            assert!(alive(hidden), "it hides well");
            host.start_agent().await;
        }
        let ended = control_plane.settled(&task_id).await;
        assert_eq!(ended.state(), State::Lost);
        assert!(!alive(hidden));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_stays_one_though_the_agent_stops_meanwhile() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let go_on = host.path("go-on");
    let wanted = waiter("trap 'echo asked' TERM; echo ready", &go_on, ":");
    let task_id = control_plane.offer(wanted).await;
    let says = |word: &'static str| move |task: &Reported| task.out().contains(word);
    control_plane.task(&task_id, says("ready")).await;
    let grace = Some(Duration::from_secs(600));
    control_plane.cancel(&task_id, grace).await;
    control_plane.task(&task_id, says("asked")).await;
    host.stop().await.unwrap();
    host.start_agent().await;
    control_plane.attached(2).await;
    fs::write(go_on, "").unwrap();
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Cancelled);
}
