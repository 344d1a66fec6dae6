//! Reading files of hosts: content and what a file is, together and checked against each other.

mod reading;
mod words;

use muster_proto::v1::{Action, FileRead, FileReadResult, Task, action, task, task_result};

pub use reading::{FileContent, FileReading};
pub use words::{bytes_text, description, lines_text, permissions, type_name};

/// The most content of one reading, bytes; a file may have more.
pub const CONTENT_MAX: i64 = 256 << 20;
/// How much content is read unless more is asked for, bytes.
pub const CONTENT_DEFAULT: i64 = 1 << 20;

/// Why a task gave no content that can be relied on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// The task did not succeed, or has not yet; its reason says why.
    #[error("it was not read")]
    NotRead,
    /// The task succeeded and says nothing of a file.
    #[error("its host told nothing of the file")]
    NoResult,
    /// Content was lost on the way, or its host sent more than it read.
    #[error("{expected} bytes were read and {came} came: the content is not what the file has")]
    Incomplete {
        /// What the host read, bytes.
        expected: i64,
        /// What came of it, bytes.
        came: u64,
    },
}

/// The action that reads a file.
pub fn action(file: FileRead) -> Action {
    Action {
        kind: Some(action::Kind::FileRead(file)),
    }
}

/// What an action asks of a file; `None` if it does not read one.
pub fn asked(action: Option<&Action>) -> Option<&FileRead> {
    match action?.kind.as_ref()? {
        action::Kind::FileRead(file) => Some(file),
        // No other kind asks for a file, whatever kinds there will be.
        _ => None,
    }
}

/// What a task says of the file that it read; `None` while it has said nothing.
pub fn result(task: &Task) -> Option<&FileReadResult> {
    match task.result.as_ref()?.kind.as_ref()? {
        task_result::Kind::FileRead(read) => Some(read),
    }
}

/// What a task says of the file that it read, if exactly the content of which it speaks came: `came` bytes without those
/// that were lost.
pub fn checked(task: &Task, came: u64) -> Result<&FileReadResult, FileFault> {
    if task.state() != task::State::Succeeded {
        return Err(FileFault::NotRead);
    }
    let read = result(task).ok_or(FileFault::NoResult)?;
    if u64::try_from(read.length) != Ok(came) {
        return Err(FileFault::Incomplete {
            expected: read.length,
            came,
        });
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::TaskResult;

    use super::*;

    #[test]
    fn content_counts_only_with_the_result_that_speaks_of_it() {
        let mut task = Task {
            state: task::State::Running.into(),
            ..Task::default()
        };
        assert_eq!(checked(&task, 0), Err(FileFault::NotRead));
        task.state = task::State::Succeeded.into();
        assert_eq!(checked(&task, 0), Err(FileFault::NoResult));
        let read = FileReadResult {
            length: 3,
            ..FileReadResult::default()
        };
        task.result = Some(TaskResult {
            kind: Some(task_result::Kind::FileRead(read.clone())),
        });
        assert_eq!(checked(&task, 3), Ok(&read));
        for came in [2, 4] {
            let fault = FileFault::Incomplete { expected: 3, came };
            assert_eq!(checked(&task, came), Err(fault));
        }
        let failed = Task {
            state: task::State::Failed.into(),
            ..task
        };
        assert_eq!(checked(&failed, 3), Err(FileFault::NotRead));
    }
}
