//! Requests that cannot be carried out: each says why, and disturbs nothing else.

use std::{fs, time::Duration};

use muster_proto::v1::{Command, OutputStream, Reason, task::State};
use muster_tests::{
    fleet::Fleet,
    operator::{command, reason, request, script},
};
use tonic_types::StatusExt as _;

#[tokio::test]
async fn a_bad_selection_is_refused_with_its_reason() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    for (selector, expected) in [
        ("no-such-host", Reason::HostNotFound),
        ("web-1,no-such-host", Reason::HostNotFound),
        ("env=nowhere", Reason::NoHostMatches),
        ("env in (prod", Reason::SelectorInvalid),
        ("", Reason::SelectorInvalid),
    ] {
        let refused = operator
            .create(request(selector, script("true")))
            .await
            .unwrap_err();
        assert_eq!(reason(&refused), expected, "{selector:?}: {refused:?}");
        assert!(!refused.message().is_empty());
    }
    let refused = operator
        .create(request("env=prod,role in (web", script("true")))
        .await
        .unwrap_err();
    let details = refused.get_details_error_info().unwrap();
    let position: usize = details.metadata["position"].parse().unwrap();
    assert!((9..=21).contains(&position), "{position}");
}

#[tokio::test]
async fn a_command_that_cannot_start_says_why() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    let plain = fleet.directory().join("plain.txt");
    fs::write(&plain, "no program").unwrap();
    let argv = |argv: &[&str]| Command {
        argv: argv.iter().map(|each| each.to_string()).collect(),
        cwd: "/".to_owned(),
        ..Command::default()
    };
    let long = "x".repeat(600 << 10);
    let cases = [
        (argv(&["no-such-program"]), Reason::CommandNotFound),
        (argv(&["/no/such/program"]), Reason::CommandNotFound),
        (
            argv(&[plain.to_str().unwrap()]),
            Reason::CommandNotExecutable,
        ),
        (
            Command {
                cwd: "/no/such/directory".to_owned(),
                ..argv(&["true"])
            },
            Reason::WorkingDirectoryMissing,
        ),
        (
            Command {
                user: "no-such-user".to_owned(),
                ..argv(&["true"])
            },
            Reason::UserNotPermitted,
        ),
        (argv(&["true", &long]), Reason::ArgumentListTooLong),
    ];
    for (wanted, expected) in cases {
        let job = operator
            .create(request("web-1", command(wanted)))
            .await
            .unwrap();
        let task = job.reaches(State::Failed).await;
        assert_eq!(task.reason(), expected, "{task:?}");
        assert!(!task.message.is_empty(), "no next step: {task:?}");
        assert_eq!(task.exit_code, None);
        assert!(job.complete().await.output_complete);
    }
    operator.run("web-1", "true").await.succeeds().await;
}

#[tokio::test]
async fn a_malformed_command_is_refused_at_the_door() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    let argv = || vec!["true".to_owned()];
    let cases = [
        Command::default(),
        Command {
            argv: argv(),
            cwd: "relative".to_owned(),
            ..Command::default()
        },
        Command {
            argv: vec!["tr\0ue".to_owned()],
            ..Command::default()
        },
        Command {
            argv: argv(),
            env: [("A=B".to_owned(), "c".to_owned())].into(),
            ..Command::default()
        },
        Command {
            argv: argv(),
            script: Some(Default::default()),
            ..Command::default()
        },
    ];
    for wanted in cases {
        let refused = operator
            .create(request("web-1", command(wanted.clone())))
            .await
            .unwrap_err();
        assert_eq!(reason(&refused), Reason::ArgumentInvalid, "{wanted:?}");
    }
    let huge = vec!["x".repeat(2 << 20)];
    let wanted = Command {
        argv: huge,
        ..Command::default()
    };
    let refused = operator
        .create(request("web-1", command(wanted)))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::LimitExceeded);
}

#[tokio::test]
async fn binary_output_comes_back_as_it_was() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let kept = fleet.directory().join("random");
    let text = format!("head -c 300000 /dev/urandom | tee {}", kept.display());
    let job = fleet.operator().run("web-1", text).await;
    let seen = job.watch().await;
    let expected = fs::read(kept).unwrap();
    assert!(seen.stdout() == expected);
    assert!(job.output(OutputStream::Stdout).await == expected);
}

#[tokio::test]
async fn endless_output_ends_with_its_timeout_and_keeps_head_and_tail() {
    let fleet = Fleet::plan().set("MUSTER_OUTPUT_OF_TASK", 1).start().await;
    let _host = fleet.host("web-1").await;
    let operator = fleet.operator();
    let wanted = Command {
        argv: vec!["yes".to_owned(), "endless".to_owned()],
        cwd: "/".to_owned(),
        timeout: Some(Duration::from_secs(3).try_into().unwrap()),
        ..Command::default()
    };
    let flood = operator
        .create(request("web-1", command(wanted)))
        .await
        .unwrap();
    assert_eq!(
        operator
            .run("web-1", "echo quick")
            .await
            .watch()
            .await
            .stdout(),
        b"quick\n"
    );
    let task = flood.reaches(State::TimedOut).await;
    assert_eq!(task.reason(), Reason::Timeout);
    let task = flood.complete().await;
    let size = task.output_size.unwrap();
    assert!(size.stdout_bytes > 1 << 20, "{size:?}");
    assert!(
        size.dropped_bytes > 0,
        "beyond the limit it says what is missing: {size:?}"
    );
    let tail = muster_proto::v1::ReadOutputRequest {
        task_id: task.task_id,
        part: Some(muster_proto::v1::read_output_request::Part::Tail(
            muster_proto::v1::read_output_request::Tail { lines: 2 },
        )),
        ..Default::default()
    };
    let tail = operator
        .jobs()
        .read_output(tail)
        .await
        .unwrap()
        .into_inner();
    let bytes: Vec<u8> = tail
        .chunks
        .iter()
        .flat_map(|chunk| chunk.data.to_vec())
        .collect();
    assert!(bytes.starts_with(b"endless\n"), "{bytes:?}");
    assert!(fleet.processes("yes").is_empty());
}
