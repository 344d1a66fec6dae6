//! The one task that somebody means.

use muster_client::Client;
use muster_proto::v1::{ReadOutputRequest, Task};

use super::tasks;
use crate::{failure::Failure, screen::clean};

/// The task with that id, or the job's only one, or its one on that host.
pub(super) async fn task(client: &Client, id: &str, host: Option<&str>) -> Result<Task, Failure> {
    if id.starts_with("t-") {
        let request = ReadOutputRequest {
            task_id: id.to_owned(),
            max_bytes: 1,
            ..ReadOutputRequest::default()
        };
        let answer = client.read_output(request).await?;
        return answer
            .task
            .ok_or_else(|| Failure::internal("the answer names no task"));
    }
    let mut tasks = tasks(client, id.to_owned()).await?;
    if let Some(host) = host {
        tasks.retain(|task| task.host_name == *host || task.host_id == *host);
        if tasks.is_empty() {
            let shown = format!("`muster job get {}` shows its tasks", clean(id));
            let message = format!("the job has no task on {}", clean(host));
            return Err(Failure::usage(message).next(shown));
        }
    }
    match (tasks.pop(), tasks.len()) {
        (Some(task), 0) => Ok(task),
        (None, _) => Err(Failure::usage("the job has no tasks")),
        (Some(last), others) => Err(Failure::usage(format!("the job has {} tasks", others + 1))
            .next(format!(
                "name a host behind it, as {}",
                clean(&last.host_name)
            ))),
    }
}
