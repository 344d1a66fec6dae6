//! The output of a task, from the process to the moment that the agent has written it down. In memory while the
//! agent keeps up; on disk, with the limits of a spool, once it does not.

use std::{collections::VecDeque, path::PathBuf, sync::Arc, task::Waker};

use bytes::Bytes;
use muster_proto::{ids::TaskId, v1::OutputStream};

use crate::spool::{self, Content, Keep, Next, Piece, Position, Room, Spool};

/// Kept in memory, or sent and not yet taken, bytes.
const WINDOW: usize = 1 << 20;

/// What a piece costs beside its bytes, about.
const PIECE: usize = 128;

/// Where output is kept on disk, and how much of it.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) directory: PathBuf,
    pub(super) keep: Keep,
    pub(super) free_percent: u64,
    /// Bytes that this and all other spools of the agent may take together; nobody's business where nothing is dropped.
    pub(super) all: Option<u64>,
    /// The process waits while so much is kept, and nothing is dropped.
    pub(super) block_at: Option<u64>,
}

/// The output of one task.
pub(super) struct Output {
    task_id: TaskId,
    limits: Limits,
    /// How far each stream has come, and how much of it the agent has.
    ends: [i64; 3],
    taken: [i64; 3],
    /// Not taken, in order; the first `said` were sent.
    kept: VecDeque<Kept>,
    said: usize,
    weight: usize,
    spilled: Option<Spilled>,
}

struct Kept {
    stream: usize,
    offset: i64,
    data: Bytes,
}

/// On disk, because the agent does not keep up.
struct Spilled {
    spool: Spool,
    position: Position,
    /// The sequence that was sent last.
    said: i64,
    /// Read from the files and not sent.
    ready: VecDeque<Piece>,
    /// Sent and not taken: sequence, stream, where it ends there, what it weighs.
    flying: VecDeque<(i64, usize, i64, usize)>,
    weight: usize,
}

/// The next thing to send.
pub(super) struct ToSend {
    pub(super) stream: usize,
    pub(super) offset: i64,
    pub(super) content: Content,
}

impl Output {
    pub(super) fn new(task_id: TaskId, limits: Limits) -> Self {
        Self {
            task_id,
            limits,
            ends: [0; 3],
            taken: [0; 3],
            kept: VecDeque::new(),
            said: 0,
            weight: 0,
            spilled: None,
        }
    }

    /// Whether it goes to the disk.
    pub(super) fn is_spilled(&self) -> bool {
        self.spilled.is_some()
    }

    /// Whether more is taken: by memory, or by the disk.
    pub(super) fn has_room(&self) -> bool {
        match (&self.spilled, self.limits.block_at) {
            (None, _) => self.weight < WINDOW,
            (Some(_), None) => true,
            (Some(spilled), Some(most)) => spilled.spool.waiting() < most,
        }
    }

    /// Whether the process waits for an agent that is there and takes nothing.
    pub(super) fn may_block(&self) -> bool {
        self.limits.block_at.is_some()
    }

    /// How far each stream has come.
    pub(super) fn ends(&self) -> [i64; 3] {
        self.ends
    }

    /// Takes output of the process.
    pub(super) fn append(&mut self, stream: usize, data: Bytes) {
        let offset = self.ends[stream];
        self.ends[stream] += data.len() as i64;
        match &self.spilled {
            Some(spilled) => spilled.spool.append(named(stream), data),
            None => {
                self.weight += data.len() + PIECE;
                self.kept.push_back(Kept {
                    stream,
                    offset,
                    data,
                });
            }
        }
    }

    /// The next thing to send, which then counts as sent.
    pub(super) fn next(&mut self) -> Option<ToSend> {
        loop {
            let Some(spilled) = &mut self.spilled else {
                let kept = self.kept.get(self.said)?;
                self.said += 1;
                return Some(ToSend {
                    stream: kept.stream,
                    offset: kept.offset,
                    content: Content::Data(kept.data.clone()),
                });
            };
            if spilled.weight >= WINDOW {
                return None;
            }
            let piece = spilled.next()?;
            let (stream, offset) = (piece.stream_index(), piece.offset);
            if offset + piece.content.length() > self.taken[stream] {
                return Some(ToSend {
                    stream,
                    offset,
                    content: piece.content,
                });
            }
            // The agent had written it down before it was away.
            self.let_go();
        }
    }

    /// Whether everything was sent.
    pub(super) fn is_said(&mut self) -> bool {
        match &mut self.spilled {
            None => self.said == self.kept.len(),
            Some(spilled) => spilled.ready.is_empty() && spilled.look(),
        }
    }

    /// The agent has this much.
    pub(super) fn taken(&mut self, reached: [i64; 3]) {
        for (taken, reached) in self.taken.iter_mut().zip(reached) {
            *taken = reached.max(*taken);
        }
        self.let_go();
    }

    /// Another agent goes on, and has this much.
    pub(super) fn resume(&mut self, reached: [i64; 3]) {
        self.said = 0;
        if let Some(spilled) = &mut self.spilled {
            spilled.said = spilled.spool.acknowledged();
            spilled.ready.clear();
            spilled.flying.clear();
            spilled.weight = 0;
        }
        self.taken(reached);
    }

    /// Keeps on disk from now on what the agent does not have, until it has caught up.
    pub(super) fn spill(&mut self) {
        if self.spilled.is_some() {
            return;
        }
        let directory = self.limits.directory.clone();
        let mut room = Room::new(
            directory.clone(),
            self.limits.keep.bytes,
            self.limits.free_percent,
        );
        if let Some(all) = self.limits.all {
            let agents = directory.join("..").join(spool::DIRECTORY);
            room = room.shared(vec![directory, agents], all);
        }
        let spool = Spool::new_at(self.task_id, Arc::new(room), self.limits.keep, self.begin());
        for kept in self.kept.drain(..) {
            spool.append(named(kept.stream), kept.data);
        }
        self.said = 0;
        self.weight = 0;
        self.spilled = Some(Spilled {
            spool,
            position: Position::default(),
            said: 0,
            ready: VecDeque::new(),
            flying: VecDeque::new(),
            weight: 0,
        });
    }

    /// Whether the agent lacks nothing.
    pub(super) fn is_taken(&self) -> bool {
        self.kept.is_empty() && self.spilled.is_none()
    }

    /// Whether what the agent lacks would outlive this process.
    pub(super) fn is_safe(&self) -> bool {
        let spilled = self.spilled.as_ref();
        self.kept.is_empty() && spilled.is_none_or(|spilled| spilled.spool.is_in_files())
    }

    /// Throws away what is on disk.
    pub(super) fn forget(&mut self) {
        if let Some(spilled) = self.spilled.take() {
            spilled.spool.forget();
        }
    }

    /// Where each stream begins in what is kept in memory.
    fn begin(&self) -> [i64; 3] {
        let mut begin = self.ends;
        for kept in self.kept.iter().rev() {
            begin[kept.stream] = kept.offset;
        }
        begin
    }

    fn let_go(&mut self) {
        while let Some(first) = self.kept.front()
            && first.offset + first.data.len() as i64 <= self.taken[first.stream]
        {
            self.weight -= first.data.len() + PIECE;
            self.kept.pop_front();
            self.said = self.said.saturating_sub(1);
        }
        let Some(spilled) = &mut self.spilled else {
            return;
        };
        while let Some(&(sequence, stream, end, weight)) = spilled.flying.front()
            && end <= self.taken[stream]
        {
            spilled.flying.pop_front();
            spilled.weight -= weight;
            spilled.spool.acknowledge(sequence);
        }
        if spilled.spool.is_acknowledged() {
            spilled.spool.forget();
            self.spilled = None;
        }
    }
}

impl Spilled {
    /// The next piece, which is on its way from now on.
    fn next(&mut self) -> Option<Piece> {
        self.look();
        let piece = self.ready.pop_front()?;
        let end = piece.offset + piece.content.length();
        let weight = piece.content.kept() + PIECE;
        self.said = piece.sequence;
        self.weight += weight;
        self.flying
            .push_back((piece.sequence, piece.stream_index(), end, weight));
        Some(piece)
    }

    /// Looks for pieces to send; says whether there are none.
    fn look(&mut self) -> bool {
        if self.ready.is_empty() {
            match self.spool.next(self.said, Waker::noop()) {
                Next::Piece(piece) => self.ready.push_back(piece),
                Next::Stored => {
                    if let Ok(pieces) = self.spool.read(self.said, &mut self.position) {
                        self.ready = pieces.into();
                    }
                }
                Next::Nothing | Next::Gone | Next::End { .. } => {}
            }
        }
        self.ready.is_empty()
    }
}

fn named(stream: usize) -> OutputStream {
    match stream {
        0 => OutputStream::Stdout,
        1 => OutputStream::Stderr,
        _ => OutputStream::Pty,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What can happen to output.
    #[derive(Debug, Clone)]
    enum Step {
        /// The process writes so many bytes.
        Write { stream: usize, length: usize },
        /// So many pieces are sent.
        Send(usize),
        /// The agent says what it has.
        Take,
        /// The agent does not keep up, or is away.
        Spill,
        /// Another agent comes; the last one may have written down less than it was sent.
        Resume,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3usize, 1..40_000usize).prop_map(|(stream, length)| Step::Write { stream, length }),
            4 => (1..6usize).prop_map(Step::Send),
            2 => Just(Step::Take),
            1 => Just(Step::Spill),
            1 => Just(Step::Resume),
        ]
    }

    /// The agent's side: what came, in order, and what of it was written down.
    #[derive(Default)]
    struct Agent {
        streams: [Vec<u8>; 3],
        written_down: [i64; 3],
    }

    impl Agent {
        fn reached(&self) -> [i64; 3] {
            [0, 1, 2].map(|stream| self.streams[stream].len() as i64)
        }

        fn take(&mut self, next: ToSend) {
            let Content::Data(data) = next.content else {
                panic!("a gap though there is room");
            };
            let stream = &mut self.streams[next.stream];
            let known = stream.len() - next.offset as usize;
            stream.extend(data.iter().skip(known));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever happens in between: in the end the agent has what the process wrote, and nothing is kept.
        #[test]
        fn nothing_is_lost_on_the_way(steps in proptest::collection::vec(step(), 1..120)) {
            let directory = tempfile::tempdir().unwrap();
            let limits = Limits {
                directory: directory.path().to_owned(),
                keep: Keep::from(64 << 20),
                free_percent: 0,
                all: None,
                block_at: None,
            };
            let mut output = Output::new(TaskId::from_bytes(&[7; 32]), limits);
            let mut written: [Vec<u8>; 3] = Default::default();
            let mut agent = Agent::default();
            let mut counter = 0u8;
            for step in steps {
                match step {
                    Step::Write { stream, length } => {
                        counter = counter.wrapping_add(1);
                        let data = vec![counter; length];
                        written[stream].extend(&data);
                        output.append(stream, data.into());
                    }
                    Step::Send(pieces) => {
                        for _ in 0..pieces {
                            output.next().into_iter().for_each(|next| agent.take(next));
                        }
                    }
                    Step::Take => {
                        agent.written_down = agent.reached();
                        output.taken(agent.written_down);
                    }
                    Step::Spill => output.spill(),
                    Step::Resume => {
                        for (stream, kept) in agent.streams.iter_mut().zip(agent.written_down) {
                            stream.truncate(kept as usize);
                        }
                        output.resume(agent.reached());
                    }
                }
            }
            while !output.is_said() || !output.is_taken() {
                output.next().into_iter().for_each(|next| agent.take(next));
                output.taken(agent.reached());
            }
            prop_assert!(agent.streams == written);
            prop_assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }
}
