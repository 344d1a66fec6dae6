//! `muster job …`: what was asked for, and what became of it.

mod attach;
mod chosen;
mod input;
mod output;
mod receipt;
mod replay;
mod view;

use std::time::{Duration, SystemTime};

use muster_client::Client;
use muster_proto::v1::{
    GetJobRequest, Job, ListJobsRequest, ListTasksRequest, ReleaseJobsRequest, Task, job::State,
};
use serde_json::json;

use crate::{
    failure::Failure,
    json,
    operator::Operator,
    run::follow,
    screen::{self, clean, say},
};

/// Tasks in one answer.
const PAGE: i32 = 500;

#[derive(clap::Subcommand, Debug)]
pub(crate) enum JobCommand {
    /// List jobs, newest first
    #[command(after_help = "Examples:
  muster job list
  muster job list --state running
  muster job list --host web-1 --since 1d
  muster job list --host 'env=prod' --state failed --principal ai/claude")]
    List(List),
    /// Show a job and its tasks
    Get {
        /// The job
        job_id: String,
    },
    /// Follow a job: everything from its beginning, then live
    Watch {
        /// The job
        job_id: String,
    },
    /// Attach to a task that runs: its output, and a way to write to it
    Attach(attach::Attach),
    /// Put text, keys, a signal or the end of input into a task that runs
    Input(input::Input),
    /// Play a recorded terminal again, or save it as asciicast
    Replay(replay::Replay),
    /// Read a task's output: all of it, its tail, matching lines or a range
    Output(output::Output),
    /// Show what a task's host signed when it was over
    #[command(after_help = "Examples:
  muster job receipt t-wsdt62jxq96s0mt8h9pf
  muster job receipt t-wsdt62jxq96s0mt8h9pf --verify --save t-wsdt62jxq96s0mt8h9pf.receipt
  muster job receipt verify t-wsdt62jxq96s0mt8h9pf.receipt --ca ca.pem

A host signs right after a task's end, for many tasks at once. While it is cut off a receipt is pending: it is shown, and \
cannot be verified or saved.")]
    Receipt(receipt::Receipt),
    /// End a job's processes: politely, then, after the grace, hard
    Cancel {
        /// The job
        job_id: String,
        /// Only on these hosts: names, ids or requirements
        #[arg(
            long,
            default_value = "",
            hide_default_value = true,
            value_name = "SELECTOR"
        )]
        host: String,
        /// How long they may take to end politely; 0s kills at once [default: as the job says]
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        grace: Option<Duration>,
        /// Do not wait for the hosts to confirm it
        #[arg(long, short)]
        detach: bool,
    },
    /// Let jobs go that wait since the control plane was restored from a backup
    #[command(after_help = "Examples:
  muster job list --state pending
  muster job get j-wsdt62jxq96s0mt8h9pf
  muster job release j-wsdt62jxq96s0mt8h9pf
  muster job release --all

A restored control plane cannot tell whether a job that was pending in its backup has run since. What hosts still \
know shows by itself, and a task that its host knows is never repeated; look before you release the rest, or cancel it.")]
    Release {
        /// The jobs
        #[arg(required_unless_present = "all", value_name = "JOB_ID")]
        job_ids: Vec<String>,
        /// Every job that waits for it
        #[arg(long, conflicts_with = "job_ids")]
        all: bool,
    },
}

#[derive(clap::Args, Debug)]
pub(crate) struct List {
    /// Keep jobs in this state; may be repeated
    #[arg(long = "state", value_name = "STATE")]
    states: Vec<JobState>,
    /// Keep jobs with a task on these hosts: names, ids or requirements
    #[arg(
        long,
        value_name = "SELECTOR",
        default_value = "",
        hide_default_value = true
    )]
    host: String,
    /// Keep jobs of this principal, as operator/ada
    #[arg(long, default_value = "", hide_default_value = true)]
    principal: String,
    /// Keep jobs that are not older than this
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// Keep jobs that are older than this
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    until: Option<Duration>,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

/// Where a job stands.
#[derive(clap::ValueEnum, Debug, Clone, Copy)]
pub(crate) enum JobState {
    /// No task has started
    Pending,
    /// Some task has started, and some are not final
    Running,
    /// Every task succeeded
    Succeeded,
    /// Some task neither succeeded nor was cancelled
    Failed,
    /// None failed, and some task was cancelled
    Cancelled,
}

impl JobState {
    fn wire(self) -> i32 {
        match self {
            Self::Pending => State::Pending,
            Self::Running => State::Running,
            Self::Succeeded => State::Succeeded,
            Self::Failed => State::Failed,
            Self::Cancelled => State::Cancelled,
        }
        .into()
    }
}

pub(crate) async fn run(command: JobCommand, operator: &Operator) -> Result<u8, Failure> {
    // Not every command needs one: a receipt that was kept in a file is checked without.
    let connect = || operator.connect();
    match command {
        JobCommand::List(list) => list.run(&connect().await?, operator.json).await?,
        JobCommand::Get { job_id } => get(&connect().await?, job_id, operator.json).await?,
        JobCommand::Watch { job_id } => {
            let client = connect().await?;
            let watch = client.watch(&job_id, "");
            return follow::follow(&client, watch, operator.json).await;
        }
        JobCommand::Attach(attach) => return attach.run(&connect().await?, operator.json).await,
        JobCommand::Input(input) => input.run(&connect().await?, operator.json).await?,
        JobCommand::Replay(replay) => return replay.run(&connect().await?).await,
        JobCommand::Receipt(receipt) => receipt.run(operator).await?,
        JobCommand::Output(output) => output.run(&connect().await?, operator.json).await?,
        JobCommand::Release { job_ids, all } => {
            let request = ReleaseJobsRequest { job_ids, all };
            let client = connect().await?;
            let answer = client.jobs().release_jobs(request).await?.into_inner();
            let (jobs, tasks) = (answer.released_jobs, answer.released_tasks);
            if operator.json {
                screen::print_json(&json!({"released": {"jobs": jobs, "tasks": tasks}}))?;
            } else {
                screen::print(&format!("released {tasks} tasks of {jobs} jobs\n"))?;
            }
        }
        JobCommand::Cancel {
            job_id,
            host,
            grace,
            detach,
        } => {
            let client = connect().await?;
            let job = client.cancel(&job_id, &host, grace).await;
            let mut job = job.map_err(|error| Failure::in_selector(error, &host))?;
            if !detach && host.is_empty() {
                job = ended(&client, job).await?;
            }
            if operator.json {
                screen::print_json(&json!({"job": json::document(&job)}))?;
            } else {
                screen::print(&format!(
                    "{} {}\n",
                    clean(&job.job_id),
                    view::standing(&job)
                ))?;
            }
        }
    }
    Ok(0)
}

/// Waits until every task is final.
async fn ended(client: &Client, mut job: Job) -> Result<Job, Failure> {
    let mut watch = client.watch_states(&job.job_id);
    loop {
        let update = tokio::select! {
            update = watch.next() => update,
            _ = tokio::signal::ctrl_c() => return Ok(job),
        };
        let Some(update) = update else {
            return Ok(job);
        };
        for event in update?.events {
            if let Some(muster_proto::v1::job_event::Event::Job(now)) = event.event {
                job = now;
            }
        }
    }
}

impl List {
    async fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        let before = |age: Option<Duration>| {
            age.and_then(|age| SystemTime::now().checked_sub(age))
                .map(Into::into)
        };
        let limit = self.limit as usize;
        let mut request = ListJobsRequest {
            states: self.states.iter().map(|state| state.wire()).collect(),
            selector: self.host.clone(),
            principal: self.principal.clone(),
            create_time_from: before(self.since),
            create_time_to: before(self.until),
            page_size: i32::try_from(limit.min(1_000)).unwrap_or(1_000),
            page_token: String::new(),
        };
        let mut jobs: Vec<Job> = Vec::new();
        let more = loop {
            let answer = client.jobs().list_jobs(request.clone()).await;
            let answer = answer
                .map_err(|status| Failure::in_selector(status.into(), &self.host))?
                .into_inner();
            jobs.extend(answer.jobs);
            request.page_token = answer.next_page_token;
            if request.page_token.is_empty() || jobs.len() >= limit {
                break !request.page_token.is_empty() || jobs.len() > limit;
            }
        };
        jobs.truncate(limit);
        if json {
            let jobs: Vec<_> = jobs.iter().map(json::document).collect();
            screen::print_json(&json!({"jobs": jobs, "more": more}))?;
            return Ok(());
        }
        if jobs.is_empty() {
            say("no jobs");
            return Ok(());
        }
        screen::print(&view::table(&jobs))?;
        if more {
            say(&format!("there are more; --limit {} shows them", limit * 4));
        }
        Ok(())
    }
}

async fn get(client: &Client, job_id: String, json: bool) -> Result<(), Failure> {
    let answer = client
        .jobs()
        .get_job(GetJobRequest {
            job_id: job_id.clone(),
        })
        .await?;
    let job = answer.into_inner().job.unwrap_or_default();
    let tasks = tasks(client, job_id).await?;
    if json {
        let tasks: Vec<_> = tasks.iter().map(json::document).collect();
        screen::print_json(&json!({"job": json::document(&job), "tasks": tasks}))?;
    } else {
        screen::print(&view::details(&job, &tasks))?;
    }
    Ok(())
}

/// All tasks of a job, by host name.
async fn tasks(client: &Client, job_id: String) -> Result<Vec<Task>, Failure> {
    let mut request = ListTasksRequest {
        job_id,
        page_size: PAGE,
        ..ListTasksRequest::default()
    };
    let mut tasks = Vec::new();
    loop {
        let answer = client
            .jobs()
            .list_tasks(request.clone())
            .await?
            .into_inner();
        tasks.extend(answer.tasks);
        request.page_token = answer.next_page_token;
        if request.page_token.is_empty() {
            return Ok(tasks);
        }
    }
}
