//! What one may not see is not there.

use muster_proto::v1::{CancelJobRequest, GetJobRequest, ListTasksRequest, WatchJobRequest};

use super::{
    policy::{by, job},
    *,
};

#[tokio::test]
async fn a_job_that_one_may_not_see_is_not_there() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    plane.host("db-1").await;
    plane.label("db-1", "dev").await;
    let ai = plane.token(PrincipalKind::Ai, "claude", &["ai"]).await;
    let other = plane.token(PrincipalKind::Ai, "other", &["ai"]).await;
    let created = plane
        .jobs()
        .create_job(by(&ai, job("its", "all")))
        .await
        .unwrap();
    let job_id = created.into_inner().job.unwrap().job_id;
    let tasks = || ListTasksRequest {
        job_id: job_id.clone(),
        ..Default::default()
    };
    let own = plane
        .jobs()
        .list_tasks(by(&ai, tasks()))
        .await
        .unwrap()
        .into_inner()
        .tasks;
    assert_eq!(own.len(), 2);

    let mut jobs = plane.jobs();
    let get = || GetJobRequest {
        job_id: job_id.clone(),
    };
    let watch = || WatchJobRequest {
        job_id: job_id.clone(),
        ..Default::default()
    };
    let cancel = || CancelJobRequest {
        job_id: job_id.clone(),
        ..Default::default()
    };
    let read = |task: &str| v1::ReadOutputRequest {
        task_id: task.to_owned(),
        ..Default::default()
    };
    assert_eq!(
        reason(&jobs.get_job(by(&other, get())).await.unwrap_err()),
        "JOB_NOT_FOUND"
    );
    assert_eq!(
        reason(&jobs.watch_job(by(&other, watch())).await.err().unwrap()),
        "JOB_NOT_FOUND"
    );
    assert_eq!(
        reason(&jobs.list_tasks(by(&other, tasks())).await.unwrap_err()),
        "JOB_NOT_FOUND"
    );
    assert_eq!(
        reason(&jobs.cancel_job(by(&other, cancel())).await.unwrap_err()),
        "JOB_NOT_FOUND"
    );
    let output = jobs.read_output(by(&other, read(&own[0].task_id))).await;
    assert_eq!(reason(&output.unwrap_err()), "TASK_NOT_FOUND");
    let list = v1::ListJobsRequest::default;
    assert!(
        jobs.list_jobs(by(&other, list()))
            .await
            .unwrap()
            .into_inner()
            .jobs
            .is_empty()
    );
    assert_eq!(
        jobs.list_jobs(by(&ai, list()))
            .await
            .unwrap()
            .into_inner()
            .jobs
            .len(),
        1
    );
    assert_eq!(
        jobs.list_jobs(list())
            .await
            .unwrap()
            .into_inner()
            .jobs
            .len(),
        1,
        "the admin sees all"
    );

    // Whoever may read one of its hosts sees what ran there, and nothing else of it.
    plane
        .set_policy(&[(
            "dev.cedar",
            "permit(principal in Muster::Role::\"dev\", action in \
            [Muster::Action::\"host.read\", Muster::Action::\"job.read\"], resource) \
            when { resource.hasTag(\"env\") && resource.getTag(\"env\") == \"dev\" };",
        )])
        .await
        .unwrap();
    let dev = plane.token(PrincipalKind::Operator, "dev", &["dev"]).await;
    jobs.get_job(by(&dev, get())).await.unwrap();
    let seen = jobs
        .list_tasks(by(&dev, tasks()))
        .await
        .unwrap()
        .into_inner()
        .tasks;
    assert_eq!(
        seen.iter().map(|task| &*task.host_name).collect::<Vec<_>>(),
        ["db-1"]
    );
    let mut watching = jobs
        .watch_job(by(&dev, watch()))
        .await
        .unwrap()
        .into_inner();
    let update = watching.message().await.unwrap().unwrap().update.unwrap();
    let shown = update.events.iter().filter_map(|event| match &event.event {
        Some(v1::job_event::Event::Task(task)) => Some(&*task.host_name),
        _ => None,
    });
    assert_eq!(shown.collect::<Vec<_>>(), ["db-1"]);
    // Its place serves whoever it was told to.
    let stolen = WatchJobRequest {
        resume_token: update.resume_token,
        ..watch()
    };
    let stolen = jobs.watch_job(by(&ai, stolen)).await.err().unwrap();
    assert_eq!(reason(&stolen), "PAGE_TOKEN_INVALID");
    let mut hosts = plane.hosts();
    let get_host = v1::GetHostRequest {
        host: "web-1".to_owned(),
    };
    assert_eq!(
        reason(&hosts.get_host(by(&dev, get_host)).await.unwrap_err()),
        "HOST_NOT_FOUND"
    );
    let listed = hosts
        .list_hosts(by(&dev, v1::ListHostsRequest::default()))
        .await
        .unwrap();
    assert_eq!(listed.into_inner().total_size, 1);

    // Cancelling is always its owner's.
    jobs.cancel_job(by(&ai, cancel())).await.unwrap();
    plane.stop().await;
}
