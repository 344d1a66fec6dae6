//! Processes that end in unusual ways.

use std::time::Duration;

use muster_proto::v1::task::State;

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
    // The supervisor sleeps until both have ended, and so hears of them at once.
    let text = "
        state() { sed 's/.*) //; s/ .*//' /proc/$1/stat 2>/dev/null; }
        kill -STOP $PPID
        first=$(sh -c 'echo $$; exec >/dev/null; kill -34 $$' & echo)
        second=$(sh -c 'echo $$; exec >/dev/null; exit 0' & echo)
        until [ \"$(state $first)$(state $second)\" = ZZ ]; do sleep 0.01; done
        kill -CONT $PPID
        until [ -z \"$(state $first)$(state $second)\" ]; do sleep 0.01; done";
    let mut wanted = script(text);
    wanted.timeout = Some(Duration::from_secs(10).try_into().unwrap());
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Succeeded, "{task:?}");
}
