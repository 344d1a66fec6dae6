//! Input to a process, by its pipe or by its terminal.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_reaches_the_process_once() {
    use muster_proto::v1::{CloseStdin, InputStatus, task_input::Kind};
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let mut wanted = script(
        "echo ready; trap 'echo hup' HUP
         until [ \"$line\" = two ]; do line=; read line && echo got $line; done; cat; echo end",
    );
    wanted.open_stdin = true;
    wanted.stdin = "first\n".into();
    let task_id = control_plane.offer(wanted).await;
    control_plane
        .task(&task_id, |task| task.out().contains("got first"))
        .await;
    let data = |text: &str| Kind::Data(text.to_owned().into());
    for _ in 0..2 {
        let status = control_plane.put(&task_id, "1", data("one\n")).await;
        assert_eq!(status, InputStatus::Accepted);
    }
    control_plane
        .task(&task_id, |task| task.out().contains("got one"))
        .await;
    // Another agent puts in no more of it either.
    host.start_agent().await;
    control_plane
        .task(&task_id, |task| task.opens.len() >= 2)
        .await;
    let again = async {
        loop {
            match control_plane.put(&task_id, "1", data("one\n")).await {
                InputStatus::Starting => tokio::task::yield_now().await,
                status => return status,
            }
        }
    };
    assert_eq!(again.await, InputStatus::Accepted);
    let signal = Kind::Signal("SIGHUP".to_owned());
    assert_eq!(
        control_plane.put(&task_id, "2", signal).await,
        InputStatus::Accepted
    );
    assert_eq!(
        control_plane.put(&task_id, "3", data("two\n")).await,
        InputStatus::Accepted
    );
    let end = Kind::CloseStdin(CloseStdin {});
    assert_eq!(
        control_plane.put(&task_id, "4", end).await,
        InputStatus::Accepted
    );
    let task = control_plane.settled(&task_id).await;
    let out = task.out();
    assert!(out.contains("hup\n"), "{out}");
    let rest: Vec<&str> = out.lines().filter(|line| *line != "hup").collect();
    assert_eq!(rest, ["ready", "got first", "got one", "got two", "end"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_one_and_outlives_the_agent() {
    use muster_proto::v1::{InputStatus, Terminal, task_input::Kind};
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let mut wanted = script(
        "stty -echo; tty; echo $TERM; stty size; trap 'echo interrupted' INT; trap 'stty size' WINCH;
         echo ready; until [ \"$line\" = quit ]; do line=; read line && echo got $line; done; cat; echo end",
    );
    let terminal = |rows, columns| Terminal {
        rows,
        columns,
        term: "vt100".to_owned(),
    };
    wanted.terminal = Some(terminal(0, 132));
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane
        .task(&task_id, |task| task.out().contains("ready"))
        .await;
    let out = task.out();
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{out}");
    assert_eq!(&lines[1..], ["vt100", "24 132", "ready"]);

    host.start_agent().await;
    control_plane
        .task(&task_id, |task| task.opens.len() >= 2)
        .await;
    let resize = async {
        loop {
            let resize = Kind::Resize(terminal(40, 100));
            match control_plane.put(&task_id, "resize", resize).await {
                InputStatus::Starting => tokio::task::yield_now().await,
                status => return status,
            }
        }
    };
    assert_eq!(resize.await, InputStatus::Accepted);
    let data = |text: &str| Kind::Data(text.to_owned().into());
    control_plane.put(&task_id, "1", data("hello\r")).await;
    control_plane
        .task(&task_id, |task| {
            task.out().contains("40 100") && task.out().contains("got hello")
        })
        .await;
    // Both by name and by the character that the terminal makes a signal of.
    control_plane
        .put(&task_id, "2", Kind::Signal("SIGINT".to_owned()))
        .await;
    let says =
        |times: usize| move |task: &Reported| task.out().matches("interrupted").count() == times;
    control_plane.task(&task_id, says(1)).await;
    control_plane.put(&task_id, "3", data("\x03")).await;
    control_plane.task(&task_id, says(2)).await;
    control_plane.put(&task_id, "4", data("quit\r")).await;
    let quits = |task: &Reported| task.out().contains("got quit");
    control_plane.task(&task_id, quits).await;
    let end = Kind::CloseStdin(muster_proto::v1::CloseStdin {});
    control_plane.put(&task_id, "5", end).await;
    let task = control_plane.settled(&task_id).await;
    assert!(task.out().ends_with("end\r\n"), "{}", task.out());
    assert_eq!(task.state(), State::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_belongs_to_whoever_runs_in_it() {
    if !nix::unistd::geteuid().is_root() {
        return; // Nobody else runs commands as others.
    }
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let mut wanted =
        script("id -un; stat -c %U $(tty); echo > /dev/tty && ps -o tpgid= -p $$; echo $$");
    wanted.user = "nobody".to_owned();
    wanted.cwd = "/".to_owned();
    wanted.terminal = Some(muster_proto::v1::Terminal::default());
    let task_id = control_plane.offer(wanted).await;
    let out = control_plane.settled(&task_id).await.out();
    let lines: Vec<&str> = out.lines().map(str::trim).collect();
    assert_eq!(&lines[..3], ["nobody", "nobody", ""], "{out}");
    assert_eq!(lines[3], lines[4], "it controls the terminal");
    drop(host);
}
