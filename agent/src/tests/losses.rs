//! What is lost when power is cut, a supervisor is killed or a disk is full: it is told, and nothing else is lost with
//! it.

use std::os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::*;

/// As the disk has a file that was not synced when power was cut.
fn cut_power_on(directory: &Path, task_id: &str) {
    let mut cut = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        let number = name.strip_prefix(&format!("{task_id}."));
        if number.is_some_and(|number| number.parse::<u64>().is_ok()) {
            fs::write(&path, "").unwrap();
            cut += 1;
        }
    }
    assert!(cut > 0, "there was output on disk");
}

/// Whether everything that a process wrote into its pipe was read from it.
fn is_drained(process: i32) -> bool {
    let pipe = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/{process}/fd/1"))
        .unwrap();
    let mut file = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut file, PollTimeout::ZERO).unwrap() == 0
}

/// Whether a process waits for something to come.
fn waits(process: i32) -> bool {
    let line = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    line[line.rfind(')').unwrap()..].starts_with(") S")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_a_power_cut_took_after_the_end_is_a_gap() {
    let control_plane = FakeControlPlane::start().await;
    control_plane.behave(|behaviour| {
        behaviour.acknowledges = false;
        behaviour.settles = false;
    });
    let mut host = Host::start(&control_plane).await;
    let task_id = control_plane
        .offer(script("seq 1 1000; echo bad >&2"))
        .await;
    let task = control_plane.task(&task_id, |task| task.output_ended).await;
    host.die();
    // All that was on its way is lost too.
    control_plane.forget(&task_id);
    cut_power_on(&host.path("agent/spool"), &task_id);
    control_plane.behave(|behaviour| behaviour.settles = true);
    host.start_agent().await;
    let told = control_plane.settled(&task_id).await;
    assert_eq!(told.state(), State::Succeeded);
    assert_eq!(told.missing, [task.stdout.len() as i64, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_a_power_cut_took_while_the_agent_was_away_is_a_gap() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let go_on = host.path("go-on");
    let wanted = waiter("echo $PPID", &go_on, "seq 1 1000; echo bad >&2");
    let (task_id, supervisor) = control_plane.begun(wanted).await;
    host.die();
    fs::write(go_on, "").unwrap();
    let directory = host.path("agent/supervisors");
    let record = directory.join(format!("{task_id}.ended"));
    until("the record", || record.exists()).await;
    kill(supervisor);
    until("its end", || !alive(supervisor)).await;
    cut_power_on(&directory, &task_id);
    host.start_agent().await;
    let told = control_plane.settled(&task_id).await;
    assert_eq!(told.state(), State::Succeeded);
    assert_eq!(told.out(), format!("{supervisor}\n"));
    let numbers: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    assert_eq!(told.missing, [numbers.len() as i64, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_supervisor_had_on_disk_is_taken_over() {
    let control_plane = FakeControlPlane::start().await;
    let directory = tempfile::tempdir().unwrap();
    control_plane.enroll(&directory.path().join("agent"));
    let agent = Process::start(directory.path());
    control_plane.attached(1).await;
    let (go_on, done) = (
        directory.path().join("go-on"),
        directory.path().join("done"),
    );
    let then = format!("seq 1 500000; touch {}; exec sleep 600", done.display());
    let wanted = waiter("echo $PPID $$", &go_on, &then);
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane
        .task(&task_id, |task| !task.stdout.is_empty())
        .await;
    let out = task.out();
    let pids: Vec<i32> = out
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect();
    let [supervisor, process] = pids[..] else {
        panic!("{out}");
    };
    // The agent does not move, and more comes than fits memory.
    agent.signal(Signal::SIGSTOP);
    fs::write(go_on, "").unwrap();
    until("all is written", || done.exists()).await;
    until("all is read", || is_drained(process) && waits(supervisor)).await;
    let left = || {
        let entries = fs::read_dir(directory.path().join("agent/supervisors")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().starts_with(&task_id))
            .count()
    };
    assert!(left() > 0, "the supervisor keeps it on disk");
    kill(supervisor);
    agent.signal(Signal::SIGCONT);
    let told = control_plane.settled(&task_id).await;
    assert_eq!(
        told.ended.as_ref().unwrap().reason(),
        Reason::SupervisorDied
    );
    let numbers: String = (1..=500_000).map(|n| format!("{n}\n")).collect();
    assert!(told.out() == task.out() + &numbers);
    assert_eq!(left(), 0);
}

/// A task that has ended with 3, as the control plane has heard, while its agent could not write that down.
async fn unwritten(control_plane: &FakeControlPlane, agent: &Process, data_dir: &Path) -> String {
    control_plane.behave(|behaviour| behaviour.settles = false);
    let go_on = data_dir.join("go-on");
    let task_id = control_plane.offer(waiter(":", &go_on, "exit 3")).await;
    control_plane
        .task(&task_id, |task| task.started.is_some())
        .await;
    let journal = fs::metadata(data_dir.join("agent/journal")).unwrap();
    agent.limit_files(Some(journal.len()));
    fs::write(go_on, "").unwrap();
    control_plane
        .task(&task_id, |task| task.ended.is_some())
        .await;
    control_plane.behave(|behaviour| behaviour.settles = true);
    task_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_the_journal_has_no_room_for_is_kept_below_the_supervisor() {
    let control_plane = FakeControlPlane::start().await;
    let directory = tempfile::tempdir().unwrap();
    control_plane.enroll(&directory.path().join("agent"));
    let agent = Process::start(directory.path());
    control_plane.attached(1).await;
    let task_id = unwritten(&control_plane, &agent, directory.path()).await;
    drop(agent);
    let _agent = Process::start(directory.path());
    let told = control_plane.settled(&task_id).await;
    assert_eq!(told.state(), State::Failed);
    assert_eq!(told.ended.unwrap().exit_code, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_the_journal_had_no_room_for_is_written_before_it_is_settled() {
    let control_plane = FakeControlPlane::start().await;
    let directory = tempfile::tempdir().unwrap();
    control_plane.enroll(&directory.path().join("agent"));
    let agent = Process::start(directory.path());
    control_plane.attached(1).await;
    let task_id = unwritten(&control_plane, &agent, directory.path()).await;
    agent.limit_files(None);
    control_plane.cut();
    control_plane.settled(&task_id).await;
    agent.stop();
    // Restored from a backup, the control plane asks for it again.
    control_plane.forget(&task_id);
    control_plane.behave(|behaviour| behaviour.expected = vec![task_id.clone()]);
    let _agent = Process::start(directory.path());
    let told = control_plane.settled(&task_id).await;
    assert_eq!(told.state(), State::Failed);
    assert_eq!(told.ended.unwrap().exit_code, Some(3));
    let record = directory
        .path()
        .join(format!("agent/supervisors/{task_id}.ended"));
    assert!(!record.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_proved_is_lost() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    host.stop().await.unwrap();
    host.die();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let mut cases = Vec::new();
    for (boot_id, steps, reason) in [
        ("another-boot", 1, Reason::HostRebooted),
        ("another-boot", 2, Reason::HostRebooted),
        (boot_id.trim(), 2, Reason::AmbiguousStart),
        // Taken, and surely not started.
        (boot_id.trim(), 1, Reason::Unspecified),
    ] {
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
        let mut events = vec![accepted, starting];
        events.truncate(steps);
        let (journal, _) = Journal::open(&host.path("agent"), boot_id, 0).unwrap();
        journal.write(0, events).unwrap();
        cases.push((task_id, reason));
    }
    host.start_agent().await;
    for (task_id, reason) in cases {
        let task = control_plane.settled(&task_id).await;
        let started = reason == Reason::Unspecified;
        let state = if started {
            State::Succeeded
        } else {
            State::Lost
        };
        assert_eq!(task.state(), state);
        assert_eq!(task.ended.unwrap().reason(), reason);
        assert!(!task.opens[0].sealed_offer.is_empty());
    }
}
