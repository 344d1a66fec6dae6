//! Running and watching jobs: created once, watched without gap or repeat, through broken connections.

use std::{fmt::Write as _, time::Duration};

use futures_util::Stream;
use muster_proto::v1::{
    CancelJobRequest, CreateJobRequest, Job, JobUpdate, RunJobRequest, RunJobResponse,
    WatchJobRequest, WatchJobResponse, job_event,
};
use muster_runtime::backoff::Backoff;
use tokio::time::Instant;
use tonic::Streaming;
use tracing::warn;

use crate::{connect::Client, error::ClientError, lines::Seat};

/// How long a call that may be repeated is repeated while nobody answers, since something last worked.
const PATIENCE: Duration = Duration::from_secs(120);

impl Client {
    /// Creates a job and watches it. A `request_id` is drawn unless one is given. Returns once the job is
    /// durable. Dropping the watch detaches; it does not cancel.
    pub async fn run(&self, mut request: CreateJobRequest) -> Result<JobWatch, ClientError> {
        if request.request_id.is_empty() {
            request.request_id = draw_request_id();
        }
        let mut watch = JobWatch::new(self, Place::Creating(Box::new(request)));
        let first = watch.receive().await?;
        let first = first.ok_or(ClientError::Answer("no job was named"))?;
        if !matches!(watch.place, Place::Within(_)) {
            return Err(ClientError::Answer("the first update names no job"));
        }
        watch.first = Some(first);
        Ok(watch)
    }

    /// Creates a job without watching it. A `request_id` is drawn unless one is given; the call is repeated
    /// with it while nobody answers.
    pub async fn create(&self, mut request: CreateJobRequest) -> Result<Job, ClientError> {
        if request.request_id.is_empty() {
            request.request_id = draw_request_id();
        }
        let answer = repeated(|| {
            let (mut jobs, request) = (self.jobs(), request.clone());
            async move { jobs.create_job(request).await }
        })
        .await?;
        answer.job.ok_or(ClientError::Answer("it holds no job"))
    }

    /// Watches a job from the beginning, or after a resume token.
    pub fn watch(&self, job_id: &str, resume_token: &str) -> JobWatch {
        JobWatch::new(self, Place::within(job_id, resume_token, false))
    }

    /// Watches the states of a job, without its output.
    pub fn watch_states(&self, job_id: &str) -> JobWatch {
        JobWatch::new(self, Place::within(job_id, "", true))
    }

    /// Asks for the tasks of a job to be ended; those that match `selector`, or all if it is empty.
    /// Without `grace` the trees have as long to end as their action says.
    pub async fn cancel(
        &self,
        job_id: &str,
        selector: &str,
        grace: Option<Duration>,
    ) -> Result<Job, ClientError> {
        let request = CancelJobRequest {
            job_id: job_id.to_owned(),
            selector: selector.to_owned(),
            grace: grace.and_then(|grace| grace.try_into().ok()),
        };
        let answer = repeated(|| {
            let (mut jobs, request) = (self.jobs(), request.clone());
            async move { jobs.cancel_job(request).await }
        })
        .await?;
        answer.job.ok_or(ClientError::Answer("it holds no job"))
    }
}

/// A fresh request id: 128 random bits.
pub fn draw_request_id() -> String {
    rand::random::<[u8; 16]>()
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Makes a call that may be made twice, again while nobody answers. The closure is no `AsyncFn`: the future of
/// one that borrows cannot be sent to another thread.
pub(crate) async fn repeated<T, Answer>(call: impl Fn() -> Answer) -> Result<T, ClientError>
where
    Answer: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
{
    let mut retry = Retry::default();
    loop {
        match call().await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => retry.noted_after(status.into())?.wait().await,
        }
    }
}

/// Whether and when to try again.
#[derive(Default)]
pub(crate) struct Retry {
    backoff: Backoff,
    failing_since: Option<Instant>,
}

impl Retry {
    /// Gives the error back if trying again is of no use, or was tried for long enough.
    pub(crate) fn after(&mut self, error: ClientError) -> Result<&mut Backoff, ClientError> {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if !error.is_transient() || since.elapsed() >= PATIENCE {
            return Err(error);
        }
        Ok(&mut self.backoff)
    }

    /// The same where nobody else would say so: a line of the log stands askew in a terminal that somebody works in.
    fn noted_after(&mut self, error: ClientError) -> Result<&mut Backoff, ClientError> {
        let said = error.to_string();
        let backoff = self.after(error)?;
        warn!(error = said, "trying again: {said}");
        Ok(backoff)
    }

    /// Something worked.
    pub(crate) fn worked(&mut self) {
        *self = Self::default();
    }
}

/// Where a watch stands.
#[derive(Clone)]
enum Place {
    /// The job is asked for; the same id again is the same job.
    Creating(Box<CreateJobRequest>),
    /// The job is known, and so is what was taken in.
    Within(WatchJobRequest),
}

impl Place {
    fn within(job_id: &str, resume_token: &str, states_only: bool) -> Self {
        Self::Within(WatchJobRequest {
            job_id: job_id.to_owned(),
            resume_token: resume_token.to_owned(),
            states_only,
        })
    }
}

enum Updates {
    Run(Streaming<RunJobResponse>),
    Watch(Streaming<WatchJobResponse>),
}

/// What happens to a job, as it happens. Ends when every task is final and its output complete.
pub struct JobWatch {
    client: Client,
    place: Place,
    updates: Option<(Updates, Seat)>,
    first: Option<JobUpdate>,
    retry: Retry,
    waiting_until: Option<Instant>,
    ended: bool,
}

impl std::fmt::Debug for JobWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "watch of {}", self.job_id())
    }
}

impl JobWatch {
    fn new(client: &Client, place: Place) -> Self {
        Self {
            client: client.clone(),
            place,
            updates: None,
            first: None,
            retry: Retry::default(),
            waiting_until: None,
            ended: false,
        }
    }

    /// Which job.
    pub fn job_id(&self) -> &str {
        match &self.place {
            Place::Creating(_) => "",
            Place::Within(request) => &request.job_id,
        }
    }

    /// Continues after what [`JobWatch::next`] gave last.
    pub fn resume_token(&self) -> &str {
        match &self.place {
            Place::Creating(_) => "",
            Place::Within(request) => &request.resume_token,
        }
    }

    /// The next update; `None` at the end of the job. A broken connection is mended on the way. Nothing is
    /// lost when the future is dropped before it is done. After an error the watch is over.
    pub async fn next(&mut self) -> Option<Result<JobUpdate, ClientError>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        if self.ended {
            return None;
        }
        let next = self.receive().await.transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        if self.ended {
            self.updates = None;
        }
        next
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<JobUpdate, ClientError>> + Send {
        futures_util::stream::unfold(self, |mut watch| async move {
            let next = watch.next().await?;
            Some((next, watch))
        })
    }

    async fn receive(&mut self) -> Result<Option<JobUpdate>, ClientError> {
        loop {
            if let Some(until) = self.waiting_until {
                tokio::time::sleep_until(until).await;
                self.waiting_until = None;
            }
            let broken = match self.receive_once().await {
                Ok(update) => {
                    self.retry.worked();
                    if let Some(update) = &update {
                        self.take_in(update);
                    }
                    return Ok(update);
                }
                Err(error) => error,
            };
            self.updates = None;
            let wait = self.retry.noted_after(broken)?.next_wait();
            self.waiting_until = Some(Instant::now() + wait);
        }
    }

    async fn receive_once(&mut self) -> Result<Option<JobUpdate>, ClientError> {
        let updates = match &mut self.updates {
            Some(updates) => updates,
            empty => {
                let seat = self.client.seat()?;
                let mut jobs = self.client.jobs_on(&seat);
                let updates = match self.place.clone() {
                    Place::Creating(create) => {
                        let request = RunJobRequest {
                            create: Some(*create),
                        };
                        Updates::Run(jobs.run_job(request).await?.into_inner())
                    }
                    Place::Within(request) => {
                        Updates::Watch(jobs.watch_job(request).await?.into_inner())
                    }
                };
                empty.insert((updates, seat))
            }
        };
        let update = match &mut updates.0 {
            Updates::Run(stream) => stream.message().await?.map(|answer| answer.update),
            Updates::Watch(stream) => stream.message().await?.map(|answer| answer.update),
        };
        match update {
            None => Ok(None),
            Some(update) => Ok(Some(update.ok_or(ClientError::Answer("an empty update"))?)),
        }
    }

    fn take_in(&mut self, update: &JobUpdate) {
        if let Place::Creating(_) = self.place {
            let job = update.events.iter().find_map(|event| match &event.event {
                Some(job_event::Event::Job(job)) => Some(&job.job_id),
                _ => None,
            });
            if let Some(job_id) = job {
                self.place = Place::within(job_id, "", false);
            }
        }
        if let Place::Within(request) = &mut self.place {
            request.resume_token.clone_from(&update.resume_token);
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn request_ids_are_drawn() {
        let id = draw_request_id();
        assert_eq!(id.len(), 32);
        assert_ne!(id, draw_request_id());
    }

    #[test]
    fn calls_can_be_made_from_any_task() {
        fn is_send<T: Send>(_: impl FnOnce(&'static Client) -> T) {}
        is_send(|client| client.create(CreateJobRequest::default()));
        is_send(|client| client.run(CreateJobRequest::default()));
        is_send(|client| client.cancel("", "", None));
        is_send(|client| client.read_output(Default::default()));
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends() {
        let mut retry = Retry::default();
        assert!(retry.after(Status::not_found("no").into()).is_err());
        retry.worked();
        retry.after(Status::unavailable("").into()).unwrap();
        tokio::time::advance(PATIENCE).await;
        assert!(retry.after(Status::unavailable("").into()).is_err());
    }
}
