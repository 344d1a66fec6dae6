//! The doors of the fake control plane.

use std::{
    pin::Pin,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, stream};
use muster_proto::v1::{host_service_server::*, job_service_server::*, token_service_server::*, *};
use tonic::{Code, Request, Response, Status};

use super::{Answers, Fake, chunk, error, timestamp};

/// Methods that the gateway never calls. As `async_trait` would write them, which does not look into macros.
macro_rules! refused {
    ($($method:ident($request:ty) -> $response:ty;)*) => {$(
        fn $method<'a, 'async_trait>(&'a self, _: Request<$request>) -> Answer<'async_trait, $response>
        where
            'a: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($method))) })
        }
    )*};
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send + 'a>>;

#[tonic::async_trait]
impl TokenService for Fake {
    async fn exchange_token(
        &self,
        request: Request<ExchangeTokenRequest>,
    ) -> Result<Response<ExchangeTokenResponse>, Status> {
        if self.state.lock().down {
            return Err(Status::unavailable("down"));
        }
        let name = match request.into_inner().subject {
            Some(exchange_token_request::Subject::BearerToken(token)) => {
                self.state.lock().exchanges.push(token.clone());
                match token.strip_prefix("mst_ai_") {
                    Some("locked") => {
                        return Err(error(
                            Code::PermissionDenied,
                            Reason::Locked,
                            "the token is locked",
                        ));
                    }
                    Some(name) if name.len() < 8 => name.to_owned(),
                    _ => {
                        return Err(error(
                            Code::Unauthenticated,
                            Reason::CredentialInvalid,
                            "unknown token",
                        ));
                    }
                }
            }
            Some(exchange_token_request::Subject::AiName(name)) => name,
            Some(exchange_token_request::Subject::Jwt(_)) => {
                return Err(Status::unimplemented("jwt"));
            }
            None => return Err(Status::invalid_argument("no subject")),
        };
        Ok(Response::new(ExchangeTokenResponse {
            bearer_token: format!("mst_x_{name}"),
            expire_time: Some((SystemTime::now() + Duration::from_secs(300)).into()),
            principal: Some(Principal {
                kind: PrincipalKind::Ai.into(),
                name,
                ..Principal::default()
            }),
            scopes: Vec::new(),
        }))
    }

    refused! {
        create_token(CreateTokenRequest) -> CreateTokenResponse;
        list_tokens(ListTokensRequest) -> ListTokensResponse;
        revoke_token(RevokeTokenRequest) -> RevokeTokenResponse;
        lock_token(LockTokenRequest) -> LockTokenResponse;
        unlock_token(UnlockTokenRequest) -> UnlockTokenResponse;
    }
}

#[tonic::async_trait]
impl HostService for Fake {
    async fn list_hosts(
        &self,
        request: Request<ListHostsRequest>,
    ) -> Result<Response<ListHostsResponse>, Status> {
        self.called(request.metadata())?;
        let request = request.into_inner();
        let mut hosts = self.select(&request.selector)?;
        hosts.retain(|host| host.name.contains(&request.query));
        let total_size = hosts.len() as i32;
        let from: usize = request.page_token.parse().unwrap_or(0);
        let size = request.page_size.max(1) as usize;
        let more = from + size < hosts.len();
        Ok(Response::new(ListHostsResponse {
            hosts: hosts.into_iter().skip(from).take(size).collect(),
            next_page_token: if more {
                (from + size).to_string()
            } else {
                String::new()
            },
            total_size,
        }))
    }

    async fn get_host(
        &self,
        request: Request<GetHostRequest>,
    ) -> Result<Response<GetHostResponse>, Status> {
        self.called(request.metadata())?;
        let host = self.select(&request.into_inner().host)?.pop();
        Ok(Response::new(GetHostResponse { host }))
    }

    type WatchHostsStream = Answers<WatchHostsResponse>;

    async fn watch_hosts(
        &self,
        _: Request<WatchHostsRequest>,
    ) -> Result<Response<Self::WatchHostsStream>, Status> {
        Ok(Response::new(Box::pin(stream::empty())))
    }

    async fn update_host(
        &self,
        request: Request<UpdateHostRequest>,
    ) -> Result<Response<UpdateHostResponse>, Status> {
        self.called(request.metadata())?;
        let request = request.into_inner();
        let mut state = self.state.lock();
        let host = state
            .hosts
            .iter_mut()
            .find(|host| host.host_id == request.host)
            .unwrap();
        for path in request.update_mask.unwrap_or_default().paths {
            let key = path.strip_prefix("labels.").unwrap();
            match request.labels.get(key) {
                Some(value) => host.labels.insert(key.to_owned(), value.clone()),
                None => host.labels.remove(key),
            };
        }
        Ok(Response::new(UpdateHostResponse {
            host: Some(host.clone()),
        }))
    }

    async fn set_instruction(
        &self,
        request: Request<SetInstructionRequest>,
    ) -> Result<Response<SetInstructionResponse>, Status> {
        self.called(request.metadata())?;
        let request = request.into_inner();
        let mut state = self.state.lock();
        let host = state
            .hosts
            .iter_mut()
            .find(|host| host.host_id == request.host)
            .unwrap();
        let old = host.instruction.take().unwrap_or_default();
        if !request.etag.is_empty() && request.etag != old.etag {
            host.instruction = Some(old);
            return Err(error(
                Code::Aborted,
                Reason::EtagMismatch,
                "the instruction has changed",
            ));
        }
        host.instruction = Some(Instruction {
            text: request.text,
            version: old.version + 1,
            etag: format!("e{}", old.version + 1),
            author: "ai/one".into(),
            create_time: Some(timestamp()),
        });
        Ok(Response::new(SetInstructionResponse {
            instruction: host.instruction.clone(),
        }))
    }

    refused! {
        set_host_mode(SetHostModeRequest) -> SetHostModeResponse;
        list_instructions(ListInstructionsRequest) -> ListInstructionsResponse;
        lock_host(LockHostRequest) -> LockHostResponse;
        unlock_host(UnlockHostRequest) -> UnlockHostResponse;
        remove_host(RemoveHostRequest) -> RemoveHostResponse;
    }
}

#[tonic::async_trait]
impl JobService for Fake {
    type RunJobStream = Answers<RunJobResponse>;

    async fn run_job(
        &self,
        request: Request<RunJobRequest>,
    ) -> Result<Response<Self::RunJobStream>, Status> {
        self.called(request.metadata())?;
        let principal = request
            .metadata()
            .get("authorization")
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let create = request.into_inner().create.unwrap();
        let breaks = format!("{:?}", create.action).contains("break");
        let job_id = self.create(create, &principal)?;
        let updates = self.watch(job_id, String::new(), false);
        let answers = updates.map(|update| {
            update.map(|update| RunJobResponse {
                update: Some(update),
            })
        });
        if breaks {
            self.state.lock().broken += 1;
            let broken = stream::once(async { Err(Status::unavailable("cut")) });
            return Ok(Response::new(Box::pin(answers.take(1).chain(broken))));
        }
        Ok(Response::new(Box::pin(answers)))
    }

    type WatchJobStream = Answers<WatchJobResponse>;

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        self.called(request.metadata())?;
        let request = request.into_inner();
        let breaks = self.find(&request.job_id, |job| {
            format!("{:?}", job.job.action).contains("break")
        })?;
        if breaks {
            self.finish(&request.job_id);
        }
        let updates = self.watch(request.job_id, request.resume_token, request.states_only);
        Ok(Response::new(Box::pin(updates.map(|update| {
            update.map(|update| WatchJobResponse {
                update: Some(update),
            })
        }))))
    }

    async fn get_job(
        &self,
        request: Request<GetJobRequest>,
    ) -> Result<Response<GetJobResponse>, Status> {
        self.called(request.metadata())?;
        let job = self.find(&request.into_inner().job_id, |job| job.job.clone())?;
        Ok(Response::new(GetJobResponse { job: Some(job) }))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        self.called(request.metadata())?;
        let state = self.state.lock();
        let jobs = state.jobs.iter().rev().map(|job| job.job.clone()).collect();
        Ok(Response::new(ListJobsResponse {
            jobs,
            next_page_token: String::new(),
        }))
    }

    async fn list_tasks(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        self.called(request.metadata())?;
        let request = request.into_inner();
        let hosts = self.select(&request.selector)?;
        let tasks = self.find(&request.job_id, |job| job.tasks.clone())?;
        let tasks = tasks
            .into_iter()
            .filter(|task| hosts.iter().any(|host| host.host_id == task.host_id));
        Ok(Response::new(ListTasksResponse {
            tasks: tasks.collect(),
            next_page_token: String::new(),
        }))
    }

    async fn read_output(
        &self,
        request: Request<ReadOutputRequest>,
    ) -> Result<Response<ReadOutputResponse>, Status> {
        use read_output_request::Part;
        self.called(request.metadata())?;
        let request = request.into_inner();
        let from = match &request.part {
            Some(Part::Range(range)) => range.from as usize,
            _ => 0,
        };
        let wait = request.wait.unwrap_or_default();
        let wait = Duration::new(wait.seconds as u64, wait.nanos as u32);
        self.more(&request.task_id, from, wait).await;
        let state = self.state.lock();
        let (task, output) = state
            .jobs
            .iter()
            .find_map(|job| {
                let task = job
                    .tasks
                    .iter()
                    .find(|task| task.task_id == request.task_id)?;
                Some((task.clone(), job.output[&request.task_id].clone()))
            })
            .ok_or_else(|| {
                error(
                    Code::NotFound,
                    Reason::TaskNotFound,
                    "there is no such task",
                )
            })?;
        let mut answer = ReadOutputResponse {
            size: task.output_size,
            output_complete: task.output_complete,
            ..ReadOutputResponse::default()
        };
        let max = request.max_bytes as usize;
        let text = String::from_utf8(output.clone()).unwrap();
        let (from, to) = match request.part.unwrap() {
            Part::Range(range) => {
                let from = (range.from as usize).min(output.len());
                let length = if range.length == 0 {
                    max
                } else {
                    max.min(range.length as usize)
                };
                (from, (from + length).min(output.len()))
            }
            Part::Tail(tail) => {
                let lines: Vec<&str> = text
                    .split_inclusive('\n')
                    .rev()
                    .take(tail.lines as usize)
                    .collect();
                let bytes: usize = lines.iter().map(|line| line.len()).sum();
                (output.len() - bytes.min(max), output.len())
            }
            Part::Grep(grep) => {
                let pattern = regex::Regex::new(&grep.pattern).map_err(|e| {
                    error(
                        Code::InvalidArgument,
                        Reason::PatternInvalid,
                        &e.to_string(),
                    )
                })?;
                let mut bytes = 0;
                let skip: usize = request.page_token.parse().unwrap_or(0);
                for (n, line) in text
                    .lines()
                    .enumerate()
                    .skip(skip)
                    .filter(|(_, line)| pattern.is_match(line))
                {
                    bytes += line.len();
                    if bytes > max {
                        answer.next_page_token = n.to_string();
                        break;
                    }
                    answer.match_count += 1;
                    answer.lines.push(OutputLine {
                        number: n as i64 + 1,
                        data: line.as_bytes().to_vec().into(),
                        r#match: true,
                        ..OutputLine::default()
                    });
                }
                (0, 0)
            }
        };
        if from < to {
            answer.chunks.push(chunk(&task, &output[from..to], from));
        }
        answer.end_position = to as i64;
        answer.task = Some(task);
        Ok(Response::new(answer))
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        self.called(request.metadata())?;
        let job_id = request.into_inner().job_id;
        let job = self.find(&job_id, |job| {
            for task in &mut job.tasks {
                if matches!(task.state(), task::State::Running | task::State::Pending) {
                    task.set_state(task::State::Cancelled);
                    task.set_reason(Reason::CancelRequested);
                    task.output_complete = true;
                }
            }
            job.job.clone()
        })?;
        self.state.lock().cancelled.push(job_id);
        self.changed.send_modify(|n| *n += 1);
        Ok(Response::new(CancelJobResponse { job: Some(job) }))
    }

    async fn send_input(
        &self,
        request: Request<SendInputRequest>,
    ) -> Result<Response<SendInputResponse>, Status> {
        self.called(request.metadata())?;
        let request = request.into_inner();
        let status = self.typed(&request.task_id, request.input.unwrap().kind.unwrap());
        Ok(Response::new(SendInputResponse {
            status: status.into(),
            ..SendInputResponse::default()
        }))
    }

    type AttachTaskStream = Answers<AttachTaskResponse>;

    async fn attach_task(
        &self,
        _: Request<tonic::Streaming<AttachTaskRequest>>,
    ) -> Result<Response<Self::AttachTaskStream>, Status> {
        Err(Status::unimplemented("attach_task"))
    }

    async fn release_jobs(
        &self,
        _: Request<ReleaseJobsRequest>,
    ) -> Result<Response<ReleaseJobsResponse>, Status> {
        Err(error(
            Code::PermissionDenied,
            Reason::NotAllowed,
            "only an operator releases",
        ))
    }

    refused! {
        create_job(CreateJobRequest) -> CreateJobResponse;
    }
}
