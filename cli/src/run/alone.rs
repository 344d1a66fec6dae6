//! One host, for what only one can do: a terminal or a pipe of its own.

use muster_client::{Attach, Client};
use muster_proto::v1::{CreateJobRequest, ListHostsRequest, ListTasksRequest, attach_open::Access};

use super::confirm::Confirm;
use crate::{
    attach::{self, Session, terminal},
    failure::Failure,
    operator::Operator,
    screen::clean,
};

/// How somebody works in the task.
pub(crate) struct Manner {
    /// The task has a terminal.
    pub(crate) terminal: bool,
    /// Standard input is passed on.
    pub(crate) input: bool,
    /// Whether what policy wants confirmed is.
    pub(crate) confirm: Confirm,
}

/// Creates a job on the one host that the selector names, and works in its task.
pub(crate) async fn run(
    client: &Client,
    request: CreateJobRequest,
    manner: Manner,
    operator: &Operator,
) -> Result<u8, Failure> {
    let selector = request.selector.clone();
    check_host(client, &selector).await?;
    let create = |request| client.create(request);
    let job = manner.confirm.run(request, create).await?;
    let request = ListTasksRequest {
        job_id: job.job_id.clone(),
        page_size: 2,
        ..ListTasksRequest::default()
    };
    let tasks = client.jobs().list_tasks(request).await?.into_inner().tasks;
    let [task] = tasks.as_slice() else {
        return Err(several(&selector));
    };
    let raw = manner.terminal && manner.input && terminal::is_there() && !operator.json;
    let attach = Attach {
        access: if manner.input {
            Access::Write
        } else {
            Access::Read
        },
        terminal: None,
        ..Attach::default()
    };
    let session = Session {
        job_id: job.job_id,
        raw,
        input: manner.input,
        closes: true,
        json: operator.json,
        own: Some(client.clone()),
    };
    attach::run(session, client.attach(&task.task_id, attach)).await
}

/// Refuses a selector that is not one host.
async fn check_host(client: &Client, selector: &str) -> Result<(), Failure> {
    let request = ListHostsRequest {
        selector: selector.to_owned(),
        page_size: 2,
        ..ListHostsRequest::default()
    };
    let answer = client.hosts().list_hosts(request).await;
    let answer = answer.map_err(|status| Failure::in_selector(status.into(), selector))?;
    match answer.into_inner().hosts.len() {
        1 => Ok(()),
        0 => Err(
            Failure::usage(format!("no host matches {:?}", clean(selector)))
                .next("`muster host list` shows hosts with their labels"),
        ),
        _ => Err(several(selector)),
    }
}

fn several(selector: &str) -> Failure {
    Failure::usage(format!(
        "{:?} is more than one host, and one terminal or pipe goes to one",
        clean(selector)
    ))
    .next("name one host")
}
