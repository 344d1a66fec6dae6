//! What a task may use, and what becomes of output that is more than is kept.

use muster_proto::v1::{
    Environment, Limits, OutputLimit, Reason, environment::Inherit, output_limit::Policy,
    task::State,
};

use super::{FakeControlPlane, Host, Reported, script, until};

fn limited(text: &str, policy: Policy, max_bytes: i64) -> muster_proto::v1::Command {
    let mut wanted = script(text);
    wanted.output_limit = Some(OutputLimit {
        policy: policy.into(),
        max_bytes,
    });
    wanted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_gets_the_environment_and_the_priority_that_were_asked_for() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    let mut wanted = script("env -0 | tr '\\0' '\\n' | cut -d= -f1 | sort | tr '\\n' ' '; nice");
    let mut environment = Environment::default();
    environment.set_inherit(Inherit::None);
    wanted.environment = Some(environment);
    wanted
        .env
        .insert("PATH".to_owned(), "/usr/bin:/bin".to_owned());
    wanted
        .env
        .insert("GIVEN_TOKEN".to_owned(), "kept".to_owned());
    wanted.limits = Some(Limits {
        nice: 7,
        ..Limits::default()
    });
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane.settled(&task_id).await;
    let out = task.out();
    let names: Vec<&str> = out.split_whitespace().collect();
    // PWD, OLDPWD and _ are the shell's own.
    let given: Vec<&&str> = names
        .iter()
        .filter(|name| !["PWD", "OLDPWD", "_", "SHLVL"].contains(*name))
        .collect();
    assert_eq!(given, [&"GIVEN_TOKEN", &"MUSTER_TASK_ID", &"PATH", &"7"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_the_host_cannot_enforce_refuses_the_task() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    // The process has begun when the limit is set.
    let mut wanted = script(
        "group=/sys/fs/cgroup/$(sed -n 's/^0:://p' /proc/self/cgroup)
        until [ $(cat $group/pids.max) = 50 ]; do sleep 0.01; done; cat $group/pids.max",
    );
    wanted.timeout = Some(std::time::Duration::from_secs(10).try_into().unwrap());
    wanted.limits = Some(Limits {
        processes: 50,
        ..Limits::default()
    });
    let task_id = control_plane.offer(wanted).await;
    let task = control_plane.settled(&task_id).await;
    match task.state() {
        // Where there is cgroup v2 and the tests are root, it is enforced.
        State::Succeeded => assert_eq!(task.out(), "50\n"),
        state => {
            assert_eq!(state, State::Rejected);
            let ended = task.ended.unwrap();
            assert_eq!(ended.reason(), Reason::LimitUnsupported);
            assert!(ended.message.contains("cgroup v2"), "{}", ended.message);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_may_block_waits_for_the_control_plane_and_loses_nothing() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    control_plane.behave(|behaviour| behaviour.acknowledges = false);
    let far = host.directory.path().join("far");
    let text = format!(
        "i=0; while [ $i -lt 300 ]; do head -c 65536 /dev/zero; i=$((i+1)); echo $i > {}; done",
        far.display()
    );
    let task_id = control_plane
        .offer(limited(&text, Policy::Block, 4 << 20))
        .await;
    let written = || {
        let text = std::fs::read_to_string(&far).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    // It comes to rest with what is kept, what is under way and what the pipe holds.
    control_plane
        .task(&task_id, |task| task.stdout.len() >= 4 << 20)
        .await;
    let kept = 4 << 20;
    let under_way = 4 << 20;
    assert!(written() * 65_536 < kept + under_way, "{}", written());
    // Nor does it go on when there is no agent, beyond as much again.
    host.start_agent().await;
    control_plane
        .task(&task_id, |task| task.opens.len() >= 2)
        .await;
    assert!(written() * 65_536 < 3 * (kept + under_way), "{}", written());
    control_plane.behave(|behaviour| behaviour.acknowledges = true);
    control_plane.cut();
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Succeeded);
    assert_eq!((task.stdout.len(), task.missing), (300 * 65_536, [0; 2]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_may_not_write_more_than_is_kept_is_ended() {
    let control_plane = FakeControlPlane::start().await;
    let _host = Host::start(&control_plane).await;
    control_plane.behave(|behaviour| behaviour.acknowledges = false);
    let endless = limited("yes", Policy::Fail, 1 << 20);
    let task_id = control_plane.offer(endless).await;
    let ended = |task: &Reported| task.ended.is_some();
    let task = control_plane.task(&task_id, ended).await;
    assert_eq!(task.state(), State::Failed);
    let ended = task.ended.unwrap();
    assert_eq!(ended.reason(), Reason::OutputLimit);
    assert!(ended.message.contains("1048576 bytes"), "{}", ended.message);
    assert_eq!(task.missing, [0; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_task_whose_newest_output_matters_the_rest_is_a_gap() {
    let control_plane = FakeControlPlane::start().await;
    let host = Host::start(&control_plane).await;
    control_plane.behave(|behaviour| behaviour.reads_nothing = true);
    let written = host.directory.path().join("written");
    let text = format!("seq 1 2000000; touch {}", written.display());
    let wanted = limited(&text, Policy::DropOldest, 1 << 20);
    let whole: i64 = (1..=2_000_000)
        .map(|line: i64| line.to_string().len() as i64 + 1)
        .sum();
    let task_id = control_plane.offer(wanted).await;
    until("all is written", || written.exists()).await;
    control_plane.behave(|behaviour| behaviour.reads_nothing = false);
    control_plane.cut();
    let task = control_plane.settled(&task_id).await;
    assert_eq!(task.state(), State::Succeeded);
    let out = task.out();
    assert!(out.ends_with("\n1999999\n2000000\n"));
    assert_eq!(out.len() as i64 + task.missing[0], whole);
    assert!(task.missing[0] > whole / 2, "{}", task.missing[0]);
    assert!(out.len() > 512 << 10, "{}", out.len());
}
