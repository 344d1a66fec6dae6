//! What a process is given when it starts, and what is said where none can.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_gets_its_input_environment_and_directory() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let mut wanted = script(
        "pwd; echo $WORD; wc -c; echo $MUSTER_TASK_ID; ps -o sid= -p $$ | tr -d ' '; echo $$",
    );
    wanted.cwd = "/usr".to_owned();
    wanted.env.insert("WORD".to_owned(), "a=b c".to_owned());
    wanted.stdin = vec![b'x'; 300_000].into();
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane.settled(&task_id).await;
    let out = task.out();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(&lines[..4], ["/usr", "a=b c", "300000", &task_id]);
    assert_eq!(lines[4], lines[5], "the process leads a session of its own");
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_inherits_no_open_files() {
    use std::os::fd::AsRawFd as _;
    // Unlike those of the standard library, inherited unless somebody prevents it.
    let (left_open, _writer) = nix::unistd::pipe().unwrap();
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let look = format!(
        "test -e /proc/self/fd/{} || echo none",
        left_open.as_raw_fd()
    );
    let task_id = control_plane.offer(script(&look)).await;
    assert_eq!(control_plane.settled(&task_id).await.out(), "none\n");
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_may_open_as_many_files_as_the_agent_was_given() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let given = soft.min(hard - 1);
    setrlimit(Resource::RLIMIT_NOFILE, given, hard).unwrap();
    muster_runtime::descriptors::raise().unwrap();
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    // The process has begun when the limit is set.
    let look = format!("until [ $(ulimit -n) = {given} ]; do sleep 0.01; done");
    let mut wanted = script(&look);
    wanted.timeout = Some(Duration::from_secs(10).try_into().unwrap());
    let task_id = control_plane.offer(wanted).await;
    assert_eq!(
        control_plane.settled(&task_id).await.state(),
        State::Succeeded
    );
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    fs::write(host.path("plain"), "no program").unwrap();
    let plain = host.path("plain").display().to_string();
    let with = |change: fn(&mut Command)| {
        let mut command = command(&["true"]);
        change(&mut command);
        command
    };
    let cases = [
        (command(&["no-such-program"]), Reason::CommandNotFound),
        (command(&["/no/such/program"]), Reason::CommandNotFound),
        (command(&[&plain]), Reason::CommandNotExecutable),
        (
            with(|c| c.cwd = "/no/such/place".to_owned()),
            Reason::WorkingDirectoryMissing,
        ),
        (
            with(|c| c.cwd = "/etc/passwd".to_owned()),
            Reason::WorkingDirectoryMissing,
        ),
        (
            with(|c| c.user = "nobody-of-that-name".to_owned()),
            Reason::UserNotPermitted,
        ),
        (
            with(|c| c.argv.push("x".repeat(200 << 10))),
            Reason::ArgumentListTooLong,
        ),
        (
            with(|c| c.argv.push("a\0b".to_owned())),
            Reason::StartFailed,
        ),
        (with(|c| c.argv.clear()), Reason::ArgumentInvalid),
    ];
    for (command, reason) in cases {
        let task_id = control_plane.offer(command).await;
        let task = control_plane.settled(&task_id).await;
        let ended = task.ended.clone().unwrap();
        assert_eq!(ended.reason(), reason, "{}", ended.message);
        assert_eq!(task.state(), State::Failed);
        assert!(!ended.message.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_runs_commands_as_others_and_nobody_else_does() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let mut wanted = script("id -un; id -Gn; echo $USER $HOME; pwd; ps -o sid= -p $$; echo $$");
    wanted.user = "nobody".to_owned();
    wanted.cwd = "/".to_owned();
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane.settled(&task_id).await;
    if nix::unistd::geteuid().is_root() {
        let out = task.out();
        let lines: Vec<&str> = out.lines().map(str::trim).collect();
        assert_eq!(lines[0], "nobody");
        assert!(!lines[1].split(' ').any(|group| group == "root"), "{out}");
        assert!(lines[2].starts_with("nobody /"));
        assert_eq!(lines[3], "/");
        assert_eq!(lines[4], lines[5]);
    } else {
        assert_eq!(task.ended.unwrap().reason(), Reason::UserNotPermitted);
    }
    drop(host);
}

#[tokio::test]
async fn an_agent_that_has_not_joined_says_so_and_a_directory_has_one_agent() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config::new(directory.path().to_owned());
    assert!(matches!(
        Agent::open(config).await,
        Err(AgentError::NotJoined)
    ));

    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    control_plane.attached(1).await;
    let second = Agent::open(host.config()).await.map(|_| ());
    assert!(matches!(second, Err(AgentError::Taken(_))), "{second:?}");
}
