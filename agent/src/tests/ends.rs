//! Processes that end in unusual ways.

use std::time::Duration;

use muster_proto::v1::{Reason, task::State};

use super::{FakeControlPlane, Host, script};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_without_a_name_ends_a_task_as_any_other_does() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    let task_id = control_plane.offer(script("echo last; kill -34 $$")).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(
        (task.state(), task.out().as_str()),
        (State::Failed, "last\n")
    );
    let ended = task.ended.unwrap();
    assert_eq!((ended.exit_code, ended.signal.as_str()), (None, "SIG34"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_that_such_a_signal_ends_leaves_no_other_uncleared() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    // The supervisor sleeps until both have ended, and so hears of them at once. Each ends only once it is an orphan:
    // the shell that started it would clear it away.
    let text = "
        state() { sed 's/.*) //; s/ .*//' /proc/$1/stat 2>/dev/null; }
        ended() { case $(state $1) in ''|Z) ;; *) false;; esac; }
        orphan='echo $$; exec >/dev/null
            until read -r pid name state parent rest </proc/$$/stat && [ $parent = $0 ]; do sleep 0.01; done'
        kill -STOP $PPID
        first=$(sh -c \"$orphan; kill -34 \\$\\$\" $PPID & echo)
        second=$(sh -c \"$orphan; exit 0\" $PPID & echo)
        until ended $first && ended $second; do sleep 0.01; done
        kill -CONT $PPID
        until [ -z \"$(state $first)$(state $second)\" ]; do sleep 0.01; done";
    let mut wanted = script(text);
    wanted.timeout = Some(Duration::from_secs(60).try_into().unwrap());
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Succeeded, "{task:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_stops_its_supervisor_runs_out_of_time_as_any_other_does() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    let mut wanted = script("kill -STOP $PPID; echo stopped; exec sleep 3600");
    wanted.timeout = Some(Duration::from_secs(1).try_into().unwrap());
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(
        (task.state(), task.out().as_str()),
        (State::TimedOut, "stopped\n")
    );
    assert!(task.started.is_some(), "{task:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_stops_it_again_and_again_is_ended_and_lost() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    let text = "trap '' TERM; while kill -STOP $PPID; do sleep 0.01; done; exec sleep 3600";
    let task_id = control_plane.offer(script(text)).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Lost, "{task:?}");
    assert_eq!(task.ended.unwrap().reason(), Reason::SupervisorDied);
}
