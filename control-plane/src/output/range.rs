//! Reads a part of a task's output: by position, or its last lines.

use muster_proto::ids::TaskId;

use super::{Content, Item, OutputError, OutputStore, Stream, task::Task};

/// Bytes read at a time while a part is put together.
const STEP_BYTES: usize = 256 << 10;

/// A part of a task's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// In order.
    pub(crate) items: Vec<Item>,
    /// The position after its last byte: of all streams, or of the one that was read.
    pub(crate) end: i64,
}

/// Where an item begins, counted in bytes of all streams or of one; `None` if it is of another.
fn begin(item: &Item, stream: Option<Stream>) -> Option<i64> {
    match stream {
        None => Some(item.position),
        Some(stream) => (item.stream == stream).then_some(item.offset),
    }
}

impl OutputStore {
    /// Reads from a position up to `to`, but no more than `max_bytes` of output. Positions count the bytes
    /// of all streams, or of the one given.
    pub(crate) async fn read_range(
        &self,
        task_id: TaskId,
        stream: Option<Stream>,
        from: i64,
        to: i64,
        max_bytes: usize,
    ) -> Result<Part, OutputError> {
        let task = self.task(task_id).await?;
        self.range(&task, stream, from, to, max_bytes).await
    }

    async fn range(
        &self,
        task: &Task,
        stream: Option<Stream>,
        from: i64,
        to: i64,
        max_bytes: usize,
    ) -> Result<Part, OutputError> {
        let mut part = Part {
            items: Vec::new(),
            end: from,
        };
        let mut room = max_bytes as i64;
        let mut after = 0;
        while part.end < to && room > 0 {
            // Extents that hold nothing of the stream are passed over.
            after = after.max(task.before(stream, part.end));
            let items = self.read_task(task, after, STEP_BYTES).await?;
            let Some(last) = items.last() else {
                break;
            };
            after = last.sequence;
            for item in items {
                let Some(start) = begin(&item, stream) else {
                    continue;
                };
                let end = (start + item.length()).min(to);
                if end <= part.end {
                    continue;
                }
                let is_data = matches!(item.content, Content::Data(_));
                let mut item = item.cut(part.end - start, end - start);
                if is_data {
                    item = item.cut(0, room);
                    room -= item.length();
                }
                part.end += item.length();
                part.items.push(item);
                if part.end >= to || room <= 0 {
                    break;
                }
            }
        }
        Ok(part)
    }

    /// Reads the last lines, and of these no more than the last `max_bytes`.
    pub(crate) async fn read_tail(
        &self,
        task_id: TaskId,
        stream: Option<Stream>,
        lines: usize,
        max_bytes: usize,
    ) -> Result<Part, OutputError> {
        let task = self.task(task_id).await?;
        let (mut until, end) = task.end(stream);
        let mut tail = Tail {
            lines,
            room: max_bytes as i64,
            from: end,
            end,
        };
        while until > 0 && !tail.is_found() {
            let after = task.block_before(until);
            let block = self.block(&task, after, until).await?;
            for item in block.iter().rev() {
                if let Some(start) = begin(item, stream)
                    && tail.step(start, &item.content)
                {
                    break;
                }
            }
            until = after;
        }
        self.range(&task, stream, tail.from, end, max_bytes).await
    }

    /// All items after one sequence up to another.
    async fn block(&self, task: &Task, after: i64, until: i64) -> Result<Vec<Item>, OutputError> {
        let mut block = Vec::new();
        let mut after = after;
        while after < until {
            let items = self.read_task(task, after, STEP_BYTES).await?;
            let Some(last) = items.last() else {
                break;
            };
            after = last.sequence;
            block.extend(items.into_iter().take_while(|item| item.sequence <= until));
        }
        Ok(block)
    }
}

/// Looks for the beginning of the last lines, from the end backwards.
struct Tail {
    lines: usize,
    room: i64,
    from: i64,
    end: i64,
}

impl Tail {
    fn is_found(&self) -> bool {
        self.lines == 0 || self.room == 0
    }

    /// Takes the item before those taken so far. Says whether the beginning is found.
    fn step(&mut self, start: i64, content: &Content) -> bool {
        let Content::Data(data) = content else {
            // What is missing ends no line: it is shown as a gap if lines on both sides are.
            self.from = start;
            return false;
        };
        for (at, byte) in data.iter().enumerate().rev() {
            let position = start + at as i64;
            // The newline at the very end ends the last line; every other one begins a later line.
            if *byte == b'\n' && position + 1 != self.end {
                self.lines -= 1;
            }
            if self.is_found() {
                return true;
            }
            self.from = position;
            self.room -= 1;
        }
        self.is_found()
    }
}
