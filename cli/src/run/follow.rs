//! Following a job to its end: output as it comes, remarks beside it, and what Ctrl-C means.

use std::collections::{BTreeMap, HashMap};

use muster_client::{Client, JobWatch};
use muster_proto::v1::{
    Job, JobUpdate, OutputChunk, OutputStream, Task, job_event::Event, task::State,
};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::live::{self, Live};
use crate::{
    content::{self, Content},
    failure::{Failure, exit},
    json, result,
    screen::{self, bytes, clean, say},
};

/// Follows a job and returns the exit code that stands for it.
pub(crate) async fn follow(
    client: &Client,
    mut watch: JobWatch,
    as_json: bool,
) -> Result<u8, Failure> {
    let mut signals = Signals::new()?;
    let mut view = View::new(as_json);
    loop {
        tokio::select! {
            update = watch.next() => match update {
                Some(update) => view.take(&update?)?,
                None => return view.end(),
            },
            interrupt = signals.next() => {
                if interrupt == Interrupt::Terminate || !screen::can_ask() {
                    return Ok(view.detach(watch.job_id()));
                }
                match choose(&mut signals).await? {
                    Choice::Detach => return Ok(view.detach(watch.job_id())),
                    Choice::GoOn => {}
                    Choice::Cancel => {
                        client.cancel(watch.job_id(), "", None).await?;
                        say("cancelling; waiting for the hosts to confirm it");
                    }
                }
            }
        }
    }
}

#[derive(PartialEq, Eq)]
enum Choice {
    Cancel,
    Detach,
    GoOn,
}

async fn choose(signals: &mut Signals) -> Result<Choice, Failure> {
    loop {
        let question = "\nCancel the job, detach from it, or go on? [c/d/g; Ctrl-C detaches]";
        let answer = tokio::select! {
            answer = screen::ask(question) => answer?,
            _ = signals.next() => return Ok(Choice::Detach),
        };
        match answer.as_str() {
            "c" | "cancel" => return Ok(Choice::Cancel),
            "g" | "go on" => return Ok(Choice::GoOn),
            // The end of input is no wish to cancel.
            "d" | "detach" | "" => return Ok(Choice::Detach),
            _ => {}
        }
    }
}

#[derive(PartialEq, Eq)]
enum Interrupt {
    Interrupt,
    Terminate,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::internal(format!("no signals: {error}")));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.interrupt.recv() => Interrupt::Interrupt,
            _ = self.terminate.recv() => Interrupt::Terminate,
        }
    }
}

/// What has been seen of a job.
struct View {
    as_json: bool,
    live: Live<std::io::Stdout, std::io::Stderr>,
    job: Job,
    tasks: BTreeMap<(String, String), Task>,
    /// Host name and what was last remarked, by task.
    places: HashMap<String, Place>,
    /// What was last said of an approval that it awaits.
    awaits: String,
}

#[derive(Default)]
struct Place {
    host: String,
    remark: Option<String>,
    finished: bool,
    /// Bytes of standard output that came.
    came: u64,
}

impl View {
    fn new(as_json: bool) -> Self {
        Self {
            as_json,
            live: Live::standard(),
            job: Job::default(),
            tasks: BTreeMap::new(),
            places: HashMap::new(),
            awaits: String::new(),
        }
    }

    /// Ending the command never ends the job.
    fn detach(&self, job_id: &str) -> u8 {
        let job_id = clean(job_id);
        let goes_on = match self.tasks.values().any(awaits) {
            true => "still waits for its approval, and runs without this command",
            false => "goes on",
        };
        say(&format!(
            "detached; {job_id} {goes_on}\n  follow it: muster job watch {job_id}\n  end it:    muster job cancel {job_id}"
        ));
        exit::INTERRUPTED
    }

    fn take(&mut self, update: &JobUpdate) -> Result<(), Failure> {
        if self.as_json {
            return self.take_as_json(update);
        }
        let before = self.tasks.len();
        for event in &update.events {
            if let Some(Event::Task(task)) = &event.event {
                self.remember(task);
            }
        }
        if self.tasks.len() != before {
            let names = self
                .tasks
                .values()
                .map(|task| (&*task.task_id, &*task.host_name));
            self.live.hosts(names);
        }
        for event in &update.events {
            match &event.event {
                Some(Event::Job(job)) => self.job = job.clone(),
                Some(Event::Task(task)) => self.remark(task)?,
                Some(Event::Output(chunk)) => {
                    self.count(chunk);
                    self.live.write(chunk)?;
                }
                Some(Event::Gap(gap)) => {
                    let host = self
                        .places
                        .get(&gap.task_id)
                        .map_or("", |place| &place.host);
                    say(&format!(
                        "muster: {}: {} of output are missing here: {}",
                        clean(host),
                        bytes(gap.length),
                        clean(&gap.cause)
                    ));
                }
                None => {}
            }
        }
        Ok(())
    }

    fn take_as_json(&mut self, update: &JobUpdate) -> Result<(), Failure> {
        for event in &update.events {
            let line = match &event.event {
                Some(Event::Job(job)) => {
                    self.job = job.clone();
                    json!({"job": json::document(job)})
                }
                Some(Event::Task(task)) => {
                    self.remember(task);
                    json!({"task": json::document(task)})
                }
                Some(Event::Output(chunk)) => {
                    self.count(chunk);
                    json!({"output": json::document(chunk)})
                }
                Some(Event::Gap(gap)) => json!({"gap": json::document(gap)}),
                None => continue,
            };
            screen::print_json_line(&line)?;
        }
        Ok(())
    }

    fn remember(&mut self, task: &Task) {
        let key = (task.host_name.clone(), task.task_id.clone());
        self.tasks.insert(key, task.clone());
        let place = self.places.entry(task.task_id.clone()).or_default();
        place.host.clone_from(&task.host_name);
    }

    fn count(&mut self, chunk: &OutputChunk) {
        if chunk.stream() == OutputStream::Stdout {
            let place = self.places.entry(chunk.task_id.clone()).or_default();
            place.came += chunk.data.len() as u64;
        }
    }

    /// What became of the content of a file, for a task that reads one.
    fn content(&self, task: &Task) -> Content {
        let came = self.places.get(&task.task_id).map_or(0, |place| place.came);
        content::of(self.job.action.as_ref(), task, came, live::is_watched())
    }

    /// Says what a reader could not guess: that a task waits, why it failed.
    fn remark(&mut self, task: &Task) -> Result<(), Failure> {
        let several = self.tasks.len() > 1;
        if awaits(task) {
            // Nobody would know why nothing happens, and who can do something about it. Once for all hosts.
            if self.awaits != task.message {
                self.awaits.clone_from(&task.message);
                say(&format!("muster: {}", clean(&task.message)));
            }
            return Ok(());
        }
        let place = self.places.entry(task.task_id.clone()).or_default();
        if !is_final(task) {
            let remark = result::hold_up(task);
            if place.remark != remark {
                let text = match &remark {
                    Some(remark) => remark.as_str(),
                    None => "goes on",
                };
                if live::is_watched() {
                    say(&format!("muster: {}: {text}", clean(&task.host_name)));
                }
                place.remark = remark;
            }
            return Ok(());
        }
        if !task.output_complete || std::mem::replace(&mut place.finished, true) {
            return Ok(());
        }
        self.finish(task, several)
    }

    /// Nothing more will come of a task.
    fn finish(&mut self, task: &Task, several: bool) -> Result<(), Failure> {
        self.live.finish(&task.task_id)?;
        // The exit code of a command on one host speaks for itself.
        let speaks = !several && task.state() == State::Failed && task.exit_code.is_some();
        if task.state() != State::Succeeded && !speaks {
            let host = clean(&task.host_name);
            say(&format!("muster: {host}: {}", result::outcome(task)));
        }
        for remark in self.content(task).remarks {
            say(&format!("muster: {}: {remark}", clean(&task.host_name)));
        }
        Ok(())
    }

    /// That of the tasks; content that is broken or cut is no success.
    fn exit_code(&self) -> u8 {
        let code = result::exit_code(self.tasks.values());
        let contents = || self.tasks.values().map(|task| self.content(task));
        match code {
            0 if contents().any(|content| content.is_broken) => exit::NO_RESULT,
            0 if contents().any(|content| content.is_cut) => exit::SOME_FAILED,
            code => code,
        }
    }

    fn end(mut self) -> Result<u8, Failure> {
        let code = self.exit_code();
        if !self.as_json {
            // Output of a lost task may never become complete.
            let finished = |task: &Task| self.places.get(&task.task_id).is_some_and(|p| p.finished);
            let rest: Vec<Task> = self
                .tasks
                .values()
                .filter(|task| !finished(task))
                .cloned()
                .collect();
            for task in rest {
                self.finish(&task, self.tasks.len() > 1)?;
            }
        }
        if !self.as_json && self.tasks.len() > 1 && (code != 0 || live::is_watched()) {
            say(&format!("muster: {}", result::tally(self.tasks.values())));
        }
        Ok(code)
    }
}

fn awaits(task: &Task) -> bool {
    task.state() == State::AwaitingApproval
}

fn is_final(task: &Task) -> bool {
    !matches!(
        task.state(),
        State::Unspecified | State::AwaitingApproval | State::Pending | State::Running
    )
}
