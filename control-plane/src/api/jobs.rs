//! The door of jobs: `JobService`.

pub(crate) mod attach;
mod input;
mod messages;
mod request;
mod sight;
mod watch;

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use muster_proto::{
    ids::{HostId, JobId, TaskId},
    v1::{
        AttachTaskRequest, AttachTaskResponse, CancelJobRequest, CancelJobResponse,
        CreateJobRequest, CreateJobResponse, GetJobRequest, GetJobResponse, ListJobsRequest,
        ListJobsResponse, ListTasksRequest, ListTasksResponse, ReadOutputRequest,
        ReadOutputResponse, Reason, ReleaseJobsRequest, ReleaseJobsResponse, RunJobRequest,
        RunJobResponse, SendInputRequest, SendInputResponse, WatchJobRequest, WatchJobResponse,
        job_service_server::JobService,
    },
};
use tonic::{Request, Response, Status, Streaming};

use super::{
    caller::Caller,
    output,
    page::{self, Query},
};
use crate::{
    audit,
    hosts::Inventory,
    jobs::{CreateError, Created, Jobs},
    model::Kind,
    orders::{Orders, targets},
    output::OutputStore,
    selector::Selector,
    store::{
        StoreError,
        jobs::{After, JobFilter, TaskFilter},
    },
    times,
    wire::status,
};

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves jobs.
#[derive(Clone)]
pub(crate) struct JobDoor {
    /// Jobs and tasks.
    pub(crate) jobs: Jobs,
    /// The hosts.
    pub(crate) inventory: Inventory,
    /// The output of tasks.
    pub(crate) output: OutputStore,
    /// How whoever attaches is looked after.
    pub(crate) attach: attach::AttachSettings,
    /// Where jobs are ordered.
    pub(crate) orders: Orders,
}

fn job_id(text: &str) -> Result<JobId, Status> {
    text.parse().map_err(|_| no_job(text))
}

fn no_job(id: impl std::fmt::Display) -> Status {
    let id: String = id.to_string().chars().take(80).collect();
    status::refuse(
        Reason::JobNotFound,
        &format!("there is no job {id:?}; `job list` shows those there are"),
    )
}

fn no_task(id: TaskId) -> Status {
    status::refuse(Reason::TaskNotFound, &format!("there is no task {id}"))
}

impl JobDoor {
    async fn create(&self, caller: &Caller, request: CreateJobRequest) -> Result<Created, Status> {
        if let Some(kind) = request.action.as_ref().and_then(Kind::of) {
            caller.may_reach(kind)?;
        }
        let wanted = request::create(request)?;
        Ok(self.orders.place(caller, wanted).await?)
    }

    /// Hosts that a filter names; `None` for an empty one.
    fn hosts(&self, caller: &Caller, selector: &str) -> Result<Option<Vec<HostId>>, Status> {
        if selector.is_empty() {
            return Ok(None);
        }
        let selector = Selector::parse(selector).map_err(status::of)?;
        let hosts = targets::select(&self.inventory, caller, &selector)?;
        Ok(Some(hosts.iter().map(|host| host.id).collect()))
    }
}

#[tonic::async_trait]
impl JobService for JobDoor {
    async fn create_job(
        &self,
        request: Request<CreateJobRequest>,
    ) -> Result<Response<CreateJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        let created = self.create(&caller, request.into_inner()).await?;
        durable(&created).await?;
        Ok(Response::new(CreateJobResponse {
            job: Some(messages::job(&created.job.summary())),
        }))
    }

    type RunJobStream = Messages<RunJobResponse>;

    async fn run_job(
        &self,
        request: Request<RunJobRequest>,
    ) -> Result<Response<Self::RunJobStream>, Status> {
        let caller = Caller::of(&request)?;
        let create = request
            .into_inner()
            .create
            .ok_or_else(|| status::invalid("create", "is missing"))?;
        let created = self.create(&caller, create).await?;
        let watch = self
            .watch(&caller, created.job.order.job_id, "", false)
            .await?;
        durable(&created).await?;
        Ok(Response::new(
            self.updates(watch, |update| RunJobResponse { update }),
        ))
    }

    type WatchJobStream = Messages<WatchJobResponse>;

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let caller = Caller::of(&request)?;
        let WatchJobRequest {
            job_id: id,
            resume_token,
            states_only,
        } = request.into_inner();
        let watch = self
            .watch(&caller, job_id(&id)?, &resume_token, states_only)
            .await?;
        Ok(Response::new(
            self.updates(watch, |update| WatchJobResponse { update }),
        ))
    }

    async fn get_job(
        &self,
        request: Request<GetJobRequest>,
    ) -> Result<Response<GetJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = request.into_inner().job_id;
        let job = self.visible(&caller, job_id(&id)?).await?;
        Ok(Response::new(GetJobResponse {
            job: Some(messages::job(&job)),
        }))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let size = page::size(request.page_size, 50, 1000)?;
        let from = request.create_time_from.as_ref().map(times::millis);
        let to = request.create_time_to.as_ref().map(times::millis);
        let query = Query::new(&[
            "ListJobs",
            &caller.principal,
            &request.selector,
            &request.principal,
            &format!("{:?} {from:?} {to:?}", request.states),
        ]);
        let after = after(query.place(&request.page_token)?)?;
        let states = request.states.iter().map(|state| {
            messages::job_state_in(*state)
                .ok_or_else(|| status::invalid("states", "holds an unknown state"))
        });
        let filter = JobFilter {
            job: None,
            states: states.collect::<Result<_, _>>()?,
            hosts: self.hosts(&caller, &request.selector)?,
            principal: request.principal,
            from,
            to,
            visible: caller.sight(&self.inventory).filter(),
        };
        let jobs = self
            .jobs
            .list(&filter, after.as_ref(), limit(size))
            .await
            .map_err(status::of)?;
        let next = (jobs.len() > size).then(|| &jobs[size - 1].order);
        let next_page_token = next
            .map(|last| query.token(&format!("{} {}", last.create_time, last.job_id)))
            .unwrap_or_default();
        Ok(Response::new(ListJobsResponse {
            jobs: jobs.iter().take(size).map(messages::job).collect(),
            next_page_token,
        }))
    }

    async fn list_tasks(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let size = page::size(request.page_size, 100, 1000)?;
        let query = Query::new(&[
            "ListTasks",
            &caller.principal,
            &request.selector,
            &request.job_id,
            &format!("{:?}", request.states),
        ]);
        let after = after(query.place(&request.page_token)?)?;
        let job = match request.job_id.as_str() {
            "" => None,
            id => {
                let id = job_id(id)?;
                self.visible(&caller, id).await?;
                Some(id)
            }
        };
        let states = request.states.iter().map(|state| {
            messages::task_state_in(*state)
                .ok_or_else(|| status::invalid("states", "holds an unknown state"))
        });
        let filter = TaskFilter {
            task: None,
            job,
            states: states.collect::<Result<_, _>>()?,
            hosts: self.hosts(&caller, &request.selector)?,
            visible: caller.sight(&self.inventory).filter(),
        };
        let mut rows = self
            .jobs
            .list_tasks(&filter, after.as_ref(), limit(size))
            .await
            .map_err(status::of)?;
        let next_page_token = match rows.get(size) {
            None => String::new(),
            Some(_) => {
                rows.truncate(size);
                let last = &rows[size - 1];
                let place = if job.is_some() {
                    last.ordinal
                } else {
                    last.create_time
                };
                query.token(&format!("{place} {}", last.task.task_id))
            }
        };
        let mut tasks = Vec::with_capacity(rows.len());
        for mut row in rows {
            if let Some(size) = self.output.size_now(row.task.task_id) {
                row.task.output_size = size;
            }
            let id = row.job_id.to_string();
            tasks.push(messages::task_of(&self.inventory, &id, &row.task));
        }
        Ok(Response::new(ListTasksResponse {
            tasks,
            next_page_token,
        }))
    }

    async fn read_output(
        &self,
        request: Request<ReadOutputRequest>,
    ) -> Result<Response<ReadOutputResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let id: TaskId = request.task_id.parse().map_err(|_| {
            let id: String = request.task_id.chars().take(80).collect();
            status::refuse(Reason::TaskNotFound, &format!("there is no task {id:?}"))
        })?;
        let own = self.owns_task(&caller, id).await?;
        let changed = self.jobs.changed(id);
        let look = || async {
            let found = self.jobs.task(id).await.map_err(status::of)?;
            let (job, mut task) = found.ok_or_else(|| no_task(id))?;
            if !own
                && !caller
                    .renewed()
                    .sees_tasks_on(&self.inventory, task.host_id)
            {
                return Err(no_task(id));
            }
            if let Some(size) = self.output.size_now(id) {
                task.output_size = size;
            }
            let mut shown = messages::task_of(&self.inventory, &job.to_string(), &task);
            if !task.receipt.is_empty() {
                let shown_receipt = self.jobs.shown_receipt(id).await;
                shown.receipt = shown_receipt.map_err(status::of)?;
            }
            Ok(shown)
        };
        let response =
            output::read(&self.output, &caller.principal, request, look, changed).await?;
        Ok(Response::new(response))
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let id = job_id(&request.job_id)?;
        let hosts = self.hosts(&caller, &request.selector)?;
        self.may_cancel(&caller, id, hosts.as_deref()).await?;
        let grace = match request.grace {
            None => None,
            Some(grace) if grace.seconds < 0 || grace.nanos < 0 => {
                return Err(status::invalid("grace", "is not negative"));
            }
            Some(grace) => Some(times::duration_millis(&grace)),
        };
        let hosts = hosts.map(|hosts| hosts.into_iter().collect());
        let job = self
            .jobs
            .cancel(id, hosts, grace, Arc::clone(&caller.principal))
            .await
            .map_err(status::of)?
            .ok_or_else(|| no_job(id))?;
        Ok(Response::new(CancelJobResponse {
            job: Some(messages::job(&job)),
        }))
    }

    async fn send_input(
        &self,
        request: Request<SendInputRequest>,
    ) -> Result<Response<SendInputResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        Ok(Response::new(self.put_in(&caller, request).await?))
    }

    type AttachTaskStream = Messages<AttachTaskResponse>;

    async fn attach_task(
        &self,
        request: Request<Streaming<AttachTaskRequest>>,
    ) -> Result<Response<Self::AttachTaskStream>, Status> {
        let caller = Caller::of(&request)?;
        let messages = attach::attach(self, &caller, request.into_inner()).await?;
        Ok(Response::new(messages))
    }

    async fn release_jobs(
        &self,
        request: Request<ReleaseJobsRequest>,
    ) -> Result<Response<ReleaseJobsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let ids = request::released(request.get_ref())?;
        let released = self
            .jobs
            .release(ids, &caller.principal)
            .await
            .map_err(status::of)?
            .map_err(no_job)?;
        audit::effect("released", released.tasks);
        let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        Ok(Response::new(ReleaseJobsResponse {
            released_jobs: count(released.jobs),
            released_tasks: count(released.tasks),
        }))
    }
}

/// The caller is told only what a power cut cannot take back.
async fn durable(created: &Created) -> Result<(), Status> {
    let durable = created.durable.wait().await.map_err(StoreError::from);
    durable.map_err(|error| status::of(CreateError::Ledger(error)))
}

/// One more than a page, to know whether another follows.
fn limit(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX - 1) + 1
}

fn after(place: Option<String>) -> Result<Option<After>, Status> {
    let Some(place) = place else { return Ok(None) };
    let parsed = place
        .split_once(' ')
        .and_then(|(time, id)| Some((time.parse().ok()?, id.to_owned())));
    parsed
        .map(|(time, id)| Some(After { time, id }))
        .ok_or_else(|| status::refuse(Reason::PageTokenInvalid, "page_token: it is malformed"))
}
