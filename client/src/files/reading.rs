//! A reading under way: what each host has sent so far, and what it says of its file.

use std::collections::BTreeMap;

use muster_proto::v1::{
    CreateJobRequest, FileReadResult, JobUpdate, OutputStream, Task, job_event::Event,
};

use super::{CONTENT_DEFAULT, CONTENT_MAX, FileFault, asked, checked};
use crate::{connect::Client, error::ClientError, jobs::JobWatch};

impl Client {
    /// Reads a file of every host that the request's selector chooses; its action is one of [`super::action`]. Creates
    /// the job exactly once, whatever is lost in between. Content is held in memory, up to the `max_bytes` of the action
    /// for each host; [`Client::run`] gives it piece by piece.
    pub async fn read_file(&self, request: CreateJobRequest) -> Result<FileReading, ClientError> {
        let limit = limit(&request);
        let watch = self.run(request).await?;
        Ok(FileReading {
            watch,
            files: Files {
                limit,
                by_task: BTreeMap::new(),
            },
        })
    }
}

/// How much content of a host is kept, bytes: as much as was asked for.
fn limit(request: &CreateJobRequest) -> usize {
    let asked = asked(request.action.as_ref()).map_or(0, |file| file.max_bytes);
    let most = match asked {
        1.. => asked.min(CONTENT_MAX),
        _ => CONTENT_DEFAULT,
    };
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// A reading on one host or several. Dropping it detaches; it does not cancel.
#[derive(Debug)]
pub struct FileReading {
    watch: JobWatch,
    files: Files,
}

impl FileReading {
    /// Which job.
    pub fn job_id(&self) -> &str {
        self.watch.job_id()
    }

    /// The next update, so that somebody who waits can be told why; `None` once every host has answered.
    pub async fn next(&mut self) -> Option<Result<JobUpdate, ClientError>> {
        let update = self.watch.next().await?;
        if let Ok(update) = &update {
            self.files.take(update);
        }
        Some(update)
    }

    /// What came so far, by name of the host.
    pub fn into_files(self) -> Vec<FileContent> {
        let mut files: Vec<FileContent> = self.files.by_task.into_values().collect();
        files.sort_by(|one, other| one.task.host_name.cmp(&other.task.host_name));
        files
    }

    /// Waits until every host has answered.
    pub async fn finish(mut self) -> Result<Vec<FileContent>, ClientError> {
        while let Some(update) = self.next().await {
            update?;
        }
        Ok(self.into_files())
    }
}

#[derive(Debug)]
struct Files {
    limit: usize,
    by_task: BTreeMap<String, FileContent>,
}

impl Files {
    fn take(&mut self, update: &JobUpdate) {
        for event in &update.events {
            match &event.event {
                Some(Event::Task(task)) => {
                    let file = self.by_task.entry(task.task_id.clone()).or_default();
                    file.task = task.clone();
                }
                Some(Event::Output(chunk)) if chunk.stream() == OutputStream::Stdout => {
                    let file = self.by_task.entry(chunk.task_id.clone()).or_default();
                    file.came += chunk.data.len() as u64;
                    let room = self.limit.saturating_sub(file.content.len());
                    let kept = &chunk.data[..chunk.data.len().min(room)];
                    file.content.extend_from_slice(kept);
                }
                // Bytes in a gap did not come, which the result tells.
                Some(Event::Output(_) | Event::Gap(_) | Event::Job(_)) | None => {}
            }
        }
    }
}

/// What one host answered.
#[derive(Debug, Clone, Default)]
pub struct FileContent {
    /// The task as it stands: whether it succeeded, and why not.
    pub task: Task,
    /// What came of the content, no more than was asked for.
    pub content: Vec<u8>,
    /// How many bytes came; more than `content` has where the host sent more than was asked for.
    pub came: u64,
}

impl FileContent {
    /// What the file is and which part of it the content is, if that came whole.
    pub fn checked(&self) -> Result<&FileReadResult, FileFault> {
        checked(&self.task, self.came)
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::{
        Action, Command, FileRead, JobEvent, OutputChunk, TaskResult, action, task, task_result,
    };

    use super::*;

    fn update(events: Vec<Event>) -> JobUpdate {
        JobUpdate {
            events: events
                .into_iter()
                .map(|event| JobEvent { event: Some(event) })
                .collect(),
            ..JobUpdate::default()
        }
    }

    fn output(task_id: &str, stream: OutputStream, data: &'static [u8]) -> Event {
        Event::Output(OutputChunk {
            task_id: task_id.to_owned(),
            stream: stream.into(),
            data: data.into(),
            ..OutputChunk::default()
        })
    }

    fn done(task_id: &str, length: i64) -> Event {
        let read = FileReadResult {
            length,
            ..FileReadResult::default()
        };
        Event::Task(Task {
            task_id: task_id.to_owned(),
            state: task::State::Succeeded.into(),
            result: Some(TaskResult {
                kind: Some(task_result::Kind::FileRead(read)),
            }),
            ..Task::default()
        })
    }

    #[test]
    fn content_is_gathered_by_host_and_no_more_than_was_asked_for() {
        let mut files = Files {
            limit: 4,
            by_task: BTreeMap::new(),
        };
        files.take(&update(vec![
            output("t-1", OutputStream::Stdout, b"ab"),
            output("t-2", OutputStream::Stdout, b"abcdef"),
            output("t-1", OutputStream::Stderr, b"said beside"),
        ]));
        files.take(&update(vec![
            output("t-1", OutputStream::Stdout, b"c"),
            done("t-1", 3),
            done("t-2", 4),
        ]));
        let one = &files.by_task["t-1"];
        assert_eq!(one.content, b"abc");
        assert_eq!(one.checked().unwrap().length, 3);
        let two = &files.by_task["t-2"];
        assert_eq!(two.content, b"abcd");
        let fault = FileFault::Incomplete {
            expected: 4,
            came: 6,
        };
        assert_eq!(two.checked(), Err(fault));
    }

    #[test]
    fn as_much_is_kept_as_was_asked_for() {
        let kept = |max_bytes| {
            let file = FileRead {
                max_bytes,
                ..FileRead::default()
            };
            limit(&CreateJobRequest {
                action: Some(crate::files::action(file)),
                ..CreateJobRequest::default()
            })
        };
        assert_eq!(kept(0), 1 << 20);
        assert_eq!(kept(10), 10);
        assert_eq!(kept(i64::MAX), 256 << 20);
        let command = CreateJobRequest {
            action: Some(Action {
                kind: Some(action::Kind::Command(Command::default())),
            }),
            ..CreateJobRequest::default()
        };
        assert_eq!(limit(&command), 1 << 20);
    }
}
