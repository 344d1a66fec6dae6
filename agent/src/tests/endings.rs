//! Tasks that are cancelled or take too long, and what they leave running.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_the_whole_tree() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    // One child in the tree, one that has left session and parents, one that does not go politely.
    let text = "sleep 600 & echo $!
        setsid sh -c '(sleep 601 & echo $!) ' &
        sh -c 'trap \"\" TERM; echo $$; while :; do sleep 602; done' &
        wait";
    let task_id = control_plane.offer(script(text)).await;
    let task = control_plane
        .task(&task_id, |task| task.out().lines().count() == 3)
        .await;
    let pids: Vec<i32> = task.out().lines().map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.iter().all(|&pid| alive(pid)));
    control_plane
        .cancel(&task_id, Some(Duration::from_millis(300)))
        .await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Cancelled);
    assert_eq!(task.ended.unwrap().reason(), Reason::CancelRequested);
    assert!(!pids.iter().any(|&pid| alive(pid)));
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_a_process_whose_name_is_no_text() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    // The kernel keeps 15 bytes of a name, here seven characters and a half.
    let program = host.path("ääääääää");
    fs::copy("/bin/sleep", &program).unwrap();
    let task_id = control_plane
        .offer(command(&[program.to_str().unwrap(), "600"]))
        .await;
    control_plane
        .task(&task_id, |task| task.started.is_some())
        .await;
    control_plane.cancel(&task_id, None).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Cancelled);
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_ends_the_tree_too() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let mut wanted = script("sleep 600 & echo $!; wait");
    wanted.timeout = Some(Duration::from_secs(3).try_into().unwrap());
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::TimedOut);
    assert!(!alive(task.out().trim().parse().unwrap()));
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn something_left_running_does_not_hold_the_task() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let task_id = control_plane.offer(script("sleep 600 & echo $!")).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Succeeded);
    assert!(
        task.ended
            .as_ref()
            .unwrap()
            .message
            .contains("left running")
    );
    let left = task.out().trim().parse().unwrap();
    assert!(alive(left), "what a task leaves behind on purpose goes on");
    kill(left);
    drop(host);
}
