//! Following a job: its states and output as they come, until it is over or nobody waits any more.
//! Ending the wait detaches; it never ends the job.

use std::{collections::HashMap, time::Duration};

use muster_client::JobWatch;
use muster_proto::v1::{CreateJobRequest, Job, JobUpdate, Task, job_event, task};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    call::Call,
    error::Refusal,
    render::{clean, job::TaskView, kept::Kept, words},
};

/// Output kept for one answer, over all tasks.
const KEPT_MAX: usize = 16 << 20;
/// The least that is kept of each end of a task's output.
const KEPT_MIN: usize = 256;
/// How long the control plane may take for what needs no waiting.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// What of a job has been seen.
pub(crate) struct Seen {
    /// The job as it stands.
    pub(crate) job: Job,
    /// Its tasks, in the order in which they were named.
    pub(crate) tasks: Vec<TaskView>,
    places: HashMap<String, usize>,
    /// Kept of each end of a task's output; 0 where output is not looked at.
    keep: usize,
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

    /// Nothing more will happen, and all output that is to come is there.
    pub(crate) fn is_over(&self) -> bool {
        let over = |task: &Task| match task.state() {
            // Whoever is lost may never say that its output is complete.
            task::State::Lost => true,
            state => words::is_final(state) && task.output_complete,
        };
        !self.tasks.is_empty() && self.tasks.iter().all(|view| over(&view.task))
    }

    /// Nothing happens before a person has approved it.
    fn awaits_approval(&self) -> bool {
        let awaits = |view: &TaskView| view.task.state() == task::State::AwaitingApproval;
        !self.tasks.is_empty() && self.tasks.iter().all(awaits)
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
            let seen = kept.total() as i64;
            // States come now and then; output may be ahead of what the last one counted.
            let size = self.tasks[place].task.output_size.get_or_insert_default();
            size.stdout_bytes = size.stdout_bytes.max(seen - size.stderr_bytes);
            self.latest = Some(place);
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
    call.progress.tell("asking".to_owned()).await;
    let client = call.client.clone();
    let accepted = tokio::select! {
        accepted = timeout_at(deadline + ANSWER_LIMIT, client.run(create)) => accepted,
        () = call.stop.cancelled() => return Err(detached()),
    };
    let mut watch = match accepted {
        Ok(Ok(watch)) => watch,
        Ok(Err(error)) if error.is_transient() => {
            return Err(may_have_started(&call.refused(error), &key));
        }
        Ok(Err(error)) => return Err(call.refused(error)),
        Err(_) => {
            let silence = Refusal::new("the control plane cannot be reached", "");
            return Err(may_have_started(&silence, &key));
        }
    };
    let mut seen = Seen::nothing(keep);
    // The first update is there already, and names the job and all its tasks.
    if let Some(first) = watch.next().await {
        seen.take(first.map_err(|error| call.refused(error))?);
    }
    // A person answers in minutes or hours, and whoever calls has to know that.
    if !seen.awaits_approval() {
        go_on(call, &mut seen, &mut watch, deadline).await?;
    }
    Ok(seen)
}

/// Follows the states of those tasks that `seen` names until they are final or `deadline` comes; other
/// tasks of the job do not hold the answer up.
pub(crate) async fn follow(
    call: &mut Call,
    mut seen: Seen,
    deadline: Instant,
) -> Result<Seen, Refusal> {
    if !seen.is_over() && Instant::now() < deadline {
        seen.closed = true;
        let mut watch = call.client.watch_states(&seen.job.job_id);
        go_on(call, &mut seen, &mut watch, deadline).await?;
    }
    Ok(seen)
}

async fn go_on(
    call: &mut Call,
    seen: &mut Seen,
    watch: &mut JobWatch,
    deadline: Instant,
) -> Result<(), Refusal> {
    while !seen.is_over() && Instant::now() < deadline {
        tokio::select! {
            update = watch.next() => match update {
                Some(Ok(update)) => seen.take(update),
                Some(Err(error)) => return Err(call.refused(error)),
                None => return Ok(()),
            },
            () = sleep_until(deadline) => return Ok(()),
            () = call.stop.cancelled() => return Err(detached()),
            () = call.progress.due() => call.progress.tell(seen.sign()).await,
        }
    }
    Ok(())
}

/// Nobody said whether the job was accepted: the key tells it apart from a second one.
fn may_have_started(refusal: &Refusal, key: &str) -> Refusal {
    Refusal::new(
        format!("{}; the job may have started", refusal.cause),
        format!(
            "call again with the same arguments and key={key}: it finds the same job, and starts nothing twice"
        ),
    )
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
