//! Tasks that are confined, from the offer to the report; the escapes themselves are tried in the workspace's tests.

use std::{fs, time::Duration};

use muster_proto::{
    agent::v1::{HostPolicy, attach_response},
    v1::{Confinement, Limits, Mode, Network, Reason, Terminal, network::Access, task::State},
};

use super::{FakeControlPlane, Host, Reported, alive, command, script};

fn asking(mode: Mode) -> Confinement {
    Confinement {
        mode: mode.into(),
        ..Confinement::default()
    }
}

/// Whether this kernel confines; what cannot is refused, and there is nothing more to see.
fn was_refused(task: &Reported) -> bool {
    let refused = task
        .ended
        .as_ref()
        .is_some_and(|ended| ended.reason() == Reason::ModeUnenforceable);
    if refused {
        assert_eq!(task.state(), State::Rejected);
        eprintln!("skipped: {}", task.ended.as_ref().unwrap().message);
    }
    refused
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_confined_as_its_offer_says_and_its_report_says_how() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    let file = host.path("written");
    let text = format!(
        "echo x > {}; echo x > $TMPDIR/y && echo scratch; cat {}",
        file.display(),
        host.path("agent/journal").display()
    );
    let task_id = control_plane
        .offer_with(script(&text), asking(Mode::ReadOnly))
        .await;
    let task = control_plane.settled(&task_id).await;
    if was_refused(&task) {
        return;
    }
    assert_eq!(task.out(), "scratch\n");
    assert!(!file.exists());
    let confinement = task.started.unwrap().confinement.unwrap();
    assert_eq!(confinement.mode(), Mode::ReadOnly);
    assert_eq!(confinement.network.unwrap().access(), Access::None);
    for feature in ["seccomp", "mount-namespace", "no-capabilities"] {
        assert!(confinement.features.iter().any(|name| name == feature));
    }
    assert!(
        confinement
            .features
            .iter()
            .any(|name| name.starts_with("landlock-"))
    );

    // The next one, which nobody confines, is as free as before: its supervisor may be the same.
    let task_id = control_plane
        .offer(script(&format!("echo x > {}", file.display())))
        .await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Succeeded);
    let applied = task.started.unwrap().confinement;
    assert_eq!(applied, Some(asking(Mode::Unrestricted)));
    assert!(file.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edit_writes_below_its_roots_and_nowhere_else() {
    let control_plane = FakeControlPlane::start().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("part")).unwrap();
    let policy = format!("mode = \"edit\"\n[edit]\nroots = [{:?}]", root.path());
    let _host = Host::start_with(&control_plane, &policy).await;
    let text = format!(
        "cd {}; echo x > a && mkdir b && mv a b/ && chmod 600 b/a && echo done; echo x > part/c && echo part; \
         echo x > {}/d",
        root.path().display(),
        elsewhere.path().display()
    );
    let task_id = control_plane.offer(script(&text)).await;
    let task = control_plane.settled(&task_id).await;
    if was_refused(&task) {
        return;
    }
    assert_eq!(task.out(), "done\npart\n");
    assert!(root.path().join("b/a").exists() && !elsewhere.path().join("d").exists());

    // A part of the roots is asked for.
    let part = Confinement {
        roots: vec![root.path().join("part").display().to_string()],
        ..Confinement::default()
    };
    let task_id = control_plane.offer_with(script(&text), part).await;
    assert_eq!(control_plane.settled(&task_id).await.out(), "part\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_says_what_it_permits_and_refuses_more() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start_with(&control_plane, "mode = \"read-only\"").await;
    let ceiling = control_plane
        .until("a hello", |seen| {
            Some(seen.hellos.first()?.facts.clone()?.ceiling)
        })
        .await
        .unwrap();
    assert_eq!(ceiling.mode(), Mode::ReadOnly);
    for mode in [Mode::Edit, Mode::Unrestricted] {
        let task_id = control_plane
            .offer_with(command(&["true"]), asking(mode))
            .await;
        let task = control_plane.settled(&task_id).await;
        assert_eq!(task.state(), State::Rejected);
        assert_eq!(task.ended.unwrap().reason(), Reason::ModeTooHigh);
        assert_eq!(task.started, None);
    }
    let task_id = control_plane.offer(command(&["true"])).await;
    let task = control_plane.settled(&task_id).await;
    if !was_refused(&task) {
        let confinement = task.started.unwrap().confinement.unwrap();
        assert_eq!(confinement.mode(), Mode::ReadOnly);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_host_runs_nothing_and_still_cancels() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let running = control_plane.offer(command(&["sleep", "600"])).await;
    let pid = control_plane
        .task(&running, |task| task.started.is_some())
        .await
        .started
        .unwrap()
        .pid;
    let disabled = HostPolicy {
        mode_limit: Mode::Disabled.into(),
    };
    control_plane
        .send(attach_response::Message::Policy(disabled))
        .await;
    control_plane.behave(|behaviour| behaviour.mode_limit = Mode::Disabled);
    let refused = |task: Reported| {
        assert_eq!(task.state(), State::Rejected);
        assert_eq!(task.ended.unwrap().reason(), Reason::ModeDisabled);
    };
    let task_id = control_plane.offer(command(&["true"])).await;
    refused(control_plane.settled(&task_id).await);
    control_plane.cancel(&running, None).await;
    let task = control_plane.settled(&running).await;
    assert_eq!(task.state(), State::Cancelled);
    assert!(!alive(pid));

    // A restart raises nothing.
    let kept = fs::read_to_string(host.path("agent/mode-limit")).unwrap();
    assert_eq!(kept, "disabled\n");
    host.start_agent().await;
    control_plane.attached(2).await;
    let task_id = control_plane.offer(command(&["true"])).await;
    refused(control_plane.settled(&task_id).await);
    let lifted = HostPolicy::default();
    control_plane
        .send(attach_response::Message::Policy(lifted))
        .await;
    let task_id = control_plane.offer(command(&["true"])).await;
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_else_a_task_has_works_while_it_is_confined() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    // A terminal, a priority, a user, an environment, a directory.
    let mut wanted = script("id -u; nice; pwd; echo $WORD; tty && echo hello > /dev/tty; wc -c");
    wanted.script = None;
    wanted.argv = [
        "sh",
        "-c",
        "id -u; nice; pwd; echo $WORD; tty >/dev/null && echo on a terminal",
    ]
    .map(str::to_owned)
    .into();
    wanted.terminal = Some(Terminal {
        rows: 24,
        columns: 80,
        ..Terminal::default()
    });
    wanted.cwd = "/usr".to_owned();
    wanted.env.insert("WORD".to_owned(), "word".to_owned());
    wanted.limits = Some(Limits {
        nice: 7,
        ..Limits::default()
    });
    let root = nix::unistd::geteuid().is_root();
    if root {
        wanted.user = "nobody".to_owned();
    }
    let task_id = control_plane
        .offer_with(wanted, asking(Mode::ReadOnly))
        .await;
    let task = control_plane.settled(&task_id).await;
    if was_refused(&task) {
        return;
    }
    assert_eq!(task.state(), State::Succeeded, "{:?}", task.ended);
    let out = task.out();
    let lines: Vec<&str> = out.lines().map(str::trim_end).collect();
    if root {
        assert_eq!(lines[0], "65534");
    }
    assert_eq!(&lines[1..], ["7", "/usr", "word", "on a terminal"]);

    // Input, and an end of the whole tree.
    let mut wanted = script("wc -c");
    wanted.stdin = vec![b'x'; 300_000].into();
    let task_id = control_plane
        .offer_with(wanted, asking(Mode::ReadOnly))
        .await;
    assert_eq!(control_plane.settled(&task_id).await.out().trim(), "300000");
    let text = "sleep 600 & echo $!; setsid sleep 601 & echo $!; trap '' TERM; wait; wait";
    let task_id = control_plane
        .offer_with(script(text), asking(Mode::ReadOnly))
        .await;
    let task = control_plane
        .task(&task_id, |task| task.out().lines().count() == 2)
        .await;
    let pids: Vec<i32> = task.out().lines().map(|pid| pid.parse().unwrap()).collect();
    let grace = Some(Duration::from_millis(300));
    control_plane.cancel(&task_id, grace).await;
    assert_eq!(
        control_plane.settled(&task_id).await.state(),
        State::Cancelled
    );
    assert!(!pids.iter().any(|&pid| alive(pid)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_names_what_stands_in_the_way() {
    let control_plane = FakeControlPlane::start().await;
    let private = tempfile::tempdir().unwrap();
    let program = private.path().join("program");
    fs::copy("/bin/true", &program).unwrap();
    let policy = format!(
        "mode = \"edit\"\nusers = []\n[edit]\nroots = [\"/usr\"]\n[paths]\ndeny = [{:?}]\n[programs]\ndeny = [\"/usr/bin/env\"]",
        private.path()
    );
    let _host = Host::start_with(&control_plane, &policy).await;
    let with = |cwd: &std::path::Path| {
        let mut wanted = command(&["true"]);
        wanted.cwd = cwd.display().to_string();
        wanted
    };
    let mut as_another = command(&["true"]);
    as_another.user = "daemon".to_owned();
    let list = Confinement {
        network: Some(Network {
            access: Access::List.into(),
            allow: vec!["10.0.0.0/8:443".to_owned()],
        }),
        ..Confinement::default()
    };
    let cases = [
        (with(private.path()), None, Reason::PathDenied),
        (command(&["/usr/bin/env"]), None, Reason::ProgramDenied),
        (as_another, None, Reason::UserNotPermitted),
        (command(&["true"]), Some(list), Reason::NetworkUnenforceable),
    ];
    for (command, confinement, reason) in cases {
        let task_id = control_plane
            .offer_with(command, confinement.unwrap_or_default())
            .await;
        let task = control_plane.settled(&task_id).await;
        if was_refused(&task) {
            return;
        }
        let ended = task.ended.clone().unwrap();
        assert_eq!(ended.reason(), reason, "{}", ended.message);
        assert_eq!(task.state(), State::Rejected);
        assert_eq!(task.started, None);
    }
}
