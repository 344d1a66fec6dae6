//! Reads a task's output: as it goes on, by position, its last lines, or the lines that match.

use crate::model::Stream;
use muster_proto::ids::TaskId;

use super::{
    Content, Item, OutputError, OutputStore, Resume, Search, Searching, blocking,
    task::{Next, Task},
};

/// Bytes read at a time while a part is put together.
const STEP_BYTES: usize = 256 << 10;
/// Bytes searched for one answer; the next goes on from there.
const SEARCH_BYTES: usize = 64 << 20;
/// Bytes searched at a time.
const SEARCH_STEP_BYTES: usize = 1 << 20;

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
    /// What comes after a sequence, in order: about `max_bytes`, and at least one item if there is any.
    pub(crate) async fn read_after(
        &self,
        task_id: TaskId,
        sequence: i64,
        max_bytes: usize,
    ) -> Result<Vec<Item>, OutputError> {
        self.read_task(&*self.task(task_id).await?, sequence, max_bytes)
            .await
    }

    async fn read_task(
        &self,
        task: &Task,
        sequence: i64,
        max_bytes: usize,
    ) -> Result<Vec<Item>, OutputError> {
        let mut after = sequence;
        loop {
            let extents = match task.after(after, max_bytes) {
                Next::Nothing => return Ok(Vec::new()),
                Next::Items(items) => return Ok(items),
                Next::Stored(extents) => extents,
            };
            let Some(last) = extents.last().map(|e| e.last) else {
                return Ok(Vec::new());
            };
            let key = task.key;
            let items = blocking(&self.shared.segments, move |segments| {
                let mut items = Vec::new();
                let mut bytes = 0;
                for extent in &extents {
                    for item in segments.items(extent, &key)? {
                        if item.sequence <= sequence {
                            continue;
                        }
                        bytes += item.weight();
                        if bytes > max_bytes && !items.is_empty() {
                            return Ok(items);
                        }
                        items.push(item);
                    }
                }
                Ok(items)
            })
            .await?;
            if !items.is_empty() {
                return Ok(items);
            }
            // Only a drop of chunks without bytes leaves nothing to show.
            after = last;
        }
    }

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

    /// Looks for lines in the output of a task, of one stream or of all. `complete` says that nothing is
    /// added any more, so that what has no end yet is a line too. Stops after a bounded amount of work;
    /// says whether it has come to the end.
    pub(crate) async fn grep(
        &self,
        task_id: TaskId,
        stream: Option<Stream>,
        search: Search,
        from: Resume,
        complete: bool,
    ) -> Result<(Searching, bool), OutputError> {
        let task = self.task(task_id).await?;
        let streams = Stream::ALL
            .into_iter()
            .filter(|s| stream.is_none_or(|only| only == *s));
        let mut after = streams
            .map(|stream| task.before(Some(stream), from.offsets[stream.index()]))
            .min()
            .unwrap_or(0);
        let mut searching = Searching::new(search, from);
        let mut room = SEARCH_BYTES;
        while room > 0 && !searching.is_stopped() {
            let items = self.read_task(&task, after, SEARCH_STEP_BYTES).await?;
            let Some(last) = items.last() else {
                if complete {
                    searching.finish();
                }
                let ended = !searching.is_stopped();
                return Ok((searching, ended));
            };
            after = last.sequence;
            room = room.saturating_sub(items.iter().map(Item::kept).sum::<usize>().max(1));
            // Matching may take long: not where others wait.
            searching = blocking(&self.shared.segments, move |_| {
                for item in items {
                    if stream.is_none_or(|only| only == item.stream) {
                        searching.feed(item);
                    }
                }
                Ok(searching)
            })
            .await?;
        }
        Ok((searching, false))
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
