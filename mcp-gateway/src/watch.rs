//! Following a job: its states and output as they come, until it is over or nobody waits any more.
//! Ending the wait detaches; it never ends the job.

use std::{collections::HashMap, time::Duration};

use futures_util::{Stream, StreamExt as _};
use muster_proto::v1::{
    CreateJobRequest, Job, JobUpdate, RunJobRequest, Task, WatchJobRequest, job_event,
};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Code, Status};

use crate::{
    error::{self, Refusal},
    render::{clean, job::TaskView, kept::Kept, words},
    tools::Call,
};

/// Output kept for one answer, over all tasks.
const KEPT_MAX: usize = 16 << 20;
/// The least that is kept of each end of a task's output.
const KEPT_MIN: usize = 256;
/// How long the control plane may take for what needs no waiting.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Pause before a broken stream is opened again.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// What of a job has been seen.
pub(crate) struct Seen {
    /// The job as it stands.
    pub(crate) job: Job,
    /// Its tasks, in the order in which they were named.
    pub(crate) tasks: Vec<TaskView>,
    places: HashMap<String, usize>,
    /// Kept of each end of a task's output; 0 where output is not looked at.
    keep: usize,
    resume_token: String,
    /// The task whose output came last.
    latest: Option<usize>,
    /// Tasks that are not named yet are none of ours.
    closed: bool,
}

impl Seen {
    /// Nothing yet. Keeps up to `keep` bytes of each end of each output, as long as there are few.
    pub(crate) fn nothing(keep: usize) -> Self {
        Self {
            job: Job::default(),
            tasks: Vec::new(),
            places: HashMap::new(),
            keep,
            resume_token: String::new(),
            latest: None,
            closed: false,
        }
    }

    /// A job whose tasks are known, without output.
    pub(crate) fn states(job: Job, tasks: Vec<Task>) -> Self {
        let mut seen = Self::nothing(0);
        seen.job = job;
        tasks.into_iter().for_each(|task| seen.task(task));
        seen
    }

    /// Nothing more will happen, and all output is there.
    pub(crate) fn is_over(&self) -> bool {
        !self.tasks.is_empty()
            && self.tasks.iter().all(|view| {
                words::is_final(view.task.state()) && (self.keep == 0 || view.task.output_complete)
            })
    }

    fn take(&mut self, update: JobUpdate) {
        // Tasks first: their number decides how much of each is kept.
        let mut output = Vec::new();
        for event in update.events {
            match event.event {
                Some(job_event::Event::Job(job)) => self.job = job,
                Some(job_event::Event::Task(task)) => self.task(task),
                Some(other) => output.push(other),
                None => {}
            }
        }
        let keep = self
            .keep
            .min((KEPT_MAX / 2 / self.tasks.len().max(1)).max(KEPT_MIN));
        let compare = self.tasks.len() > 1;
        for event in output {
            let (id, stream, what) = match &event {
                job_event::Event::Output(chunk) => {
                    (&chunk.task_id, chunk.stream(), Ok(&chunk.data))
                }
                job_event::Event::Gap(gap) => (&gap.task_id, gap.stream(), Err(gap.length)),
                _ => continue,
            };
            let Some(&place) = self.places.get(id) else {
                continue;
            };
            let kept = self.tasks[place]
                .output
                .get_or_insert_with(|| Kept::new(keep, compare));
            match what {
                Ok(data) => kept.push(stream, data),
                Err(length) => kept.gap(length.max(0) as u64),
            }
            self.latest = Some(place);
        }
        if !update.resume_token.is_empty() {
            self.resume_token = update.resume_token;
        }
    }

    fn task(&mut self, task: Task) {
        match self.places.get(&task.task_id) {
            Some(&place) => self.tasks[place].task = task,
            None if self.closed => {}
            None => {
                self.places.insert(task.task_id.clone(), self.tasks.len());
                let output = None;
                self.tasks.push(TaskView { task, output });
            }
        }
    }

    /// A sign of life: how far the job is, and the last line that was written.
    fn sign(&self) -> String {
        let over = |view: &&TaskView| words::is_final(view.task.state());
        let mut sign = match self.tasks.as_slice() {
            [] => "handed over".to_owned(),
            [one] => format!(
                "{} {}",
                clean::words(&one.task.host_name),
                words::task_state(one.task.state())
            ),
            several => format!(
                "{} of {} hosts done",
                several.iter().filter(over).count(),
                several.len()
            ),
        };
        let latest = self.latest.map(|place| &self.tasks[place]);
        let line = latest.and_then(|view| view.output.as_ref()?.last_line());
        if let (Some(view), Some(line)) = (latest, line) {
            let line = words::shortened(clean::line(&line).trim(), 160);
            if self.tasks.len() > 1 {
                sign = format!("{sign}; {}", clean::words(&view.task.host_name));
            }
            sign = format!("{sign}: {line}");
        }
        sign
    }
}

/// Creates a job and follows it for `wait`, in one call.
pub(crate) async fn run(
    call: &mut Call,
    create: CreateJobRequest,
    wait: Duration,
    keep: usize,
) -> Result<Seen, Refusal> {
    let deadline = Instant::now() + wait;
    let key = create.request_id.clone();
    let mut seen = Seen::nothing(keep);
    call.progress.tell("asking".to_owned()).await;
    let may_have_started = |refusal: Refusal| {
        Refusal::new(
            format!("{}; the job may have started", refusal.cause),
            format!(
                "call run again with the same arguments and key={key}: it finds the same job, and starts nothing twice"
            ),
        )
    };
    loop {
        let mut jobs = call.caller.jobs(&call.trace);
        let request = RunJobRequest {
            create: Some(create.clone()),
        };
        let attempt = async {
            let stream = jobs.run_job(request).await?.into_inner();
            let mut updates =
                stream.map(|answer| answer.map(|answer| answer.update.unwrap_or_default()));
            let first = updates.next().await.unwrap_or_else(|| Err(broken()))?;
            Ok::<_, Status>((first, updates))
        };
        let attempt = tokio::select! {
            attempt = timeout_at(deadline + ANSWER_LIMIT, attempt) => attempt,
            () = call.stop.cancelled() => return Err(detached()),
        };
        match attempt {
            Ok(Ok((first, updates))) => {
                seen.take(first);
                let ended = follow_stream(call, &mut seen, updates, deadline).await?;
                return go_on(call, seen, ended, deadline).await;
            }
            // The request id makes asking again safe: it finds the same job, if there is one.
            Ok(Err(status)) if error::is_passing(&status) && Instant::now() < deadline => {
                pause(call, deadline).await?;
            }
            Ok(Err(status)) => {
                let maybe = error::is_passing(&status);
                let refusal = call.refused(status);
                return Err(if maybe {
                    may_have_started(refusal)
                } else {
                    refusal
                });
            }
            Err(_) => return Err(may_have_started(Status::deadline_exceeded("").into())),
        }
    }
}

/// Follows a job that exists, from where `seen` stands, until `deadline`.
pub(crate) async fn follow(
    call: &mut Call,
    seen: Seen,
    deadline: Instant,
) -> Result<Seen, Refusal> {
    go_on(call, seen, Ended::Broken, deadline).await
}

/// Follows only the tasks that `seen` names; others of the job do not hold the answer up.
pub(crate) async fn follow_these(
    call: &mut Call,
    mut seen: Seen,
    deadline: Instant,
) -> Result<Seen, Refusal> {
    seen.closed = true;
    follow(call, seen, deadline).await
}

/// Why a stream was left.
enum Ended {
    /// The job is over, or the time is up.
    Enough,
    /// It broke off.
    Broken,
}

async fn go_on(
    call: &mut Call,
    mut seen: Seen,
    mut ended: Ended,
    deadline: Instant,
) -> Result<Seen, Refusal> {
    let mut first = true;
    while matches!(ended, Ended::Broken) && !seen.is_over() && Instant::now() < deadline {
        if !first {
            pause(call, deadline).await?;
        }
        first = false;
        let request = WatchJobRequest {
            job_id: seen.job.job_id.clone(),
            resume_token: seen.resume_token.clone(),
            states_only: seen.keep == 0,
        };
        let mut jobs = call.caller.jobs(&call.trace);
        let opened = tokio::select! {
            opened = timeout_at(deadline, jobs.watch_job(request)) => opened,
            () = call.stop.cancelled() => return Err(detached()),
        };
        ended = match opened {
            Ok(Ok(stream)) => {
                let updates = stream
                    .into_inner()
                    .map(|answer| answer.map(|answer| answer.update.unwrap_or_default()));
                follow_stream(call, &mut seen, updates, deadline).await?
            }
            Ok(Err(status)) if error::is_passing(&status) => Ended::Broken,
            Ok(Err(status)) => return Err(call.refused(status)),
            Err(_) => Ended::Enough,
        };
    }
    Ok(seen)
}

async fn follow_stream(
    call: &mut Call,
    seen: &mut Seen,
    mut updates: impl Stream<Item = Result<JobUpdate, Status>> + Unpin,
    deadline: Instant,
) -> Result<Ended, Refusal> {
    loop {
        if seen.is_over() || Instant::now() >= deadline {
            return Ok(Ended::Enough);
        }
        tokio::select! {
            update = updates.next() => match update {
                Some(Ok(update)) => seen.take(update),
                Some(Err(status)) if error::is_passing(&status) => return Ok(Ended::Broken),
                Some(Err(status)) => return Err(call.refused(status)),
                None => return Ok(Ended::Broken),
            },
            () = sleep_until(deadline) => return Ok(Ended::Enough),
            () = call.stop.cancelled() => return Err(detached()),
            () = call.progress.due() => call.progress.tell(seen.sign()).await,
        }
    }
}

async fn pause(call: &Call, deadline: Instant) -> Result<(), Refusal> {
    tokio::select! {
        () = sleep_until(deadline.min(Instant::now() + AGAIN_AFTER)) => Ok(()),
        () = call.stop.cancelled() => Err(detached()),
    }
}

fn broken() -> Status {
    Status::new(Code::Unavailable, "the stream ended without an answer")
}

/// Nobody reads this: the caller has gone. The job goes on.
fn detached() -> Refusal {
    Refusal::new(
        "the caller has gone; the job goes on",
        "job_get lists the jobs",
    )
}

/// When a wait of so many seconds ends.
pub(crate) fn deadline(seconds: i64) -> Instant {
    Instant::now() + Duration::from_secs(seconds.max(0) as u64)
}
