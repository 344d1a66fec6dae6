use std::{task::Waker, time::Instant};

use proptest::prelude::*;

use super::*;

fn task() -> TaskId {
    TaskId::from_bytes(&[9; 32])
}

fn room(directory: &std::path::Path, limit: u64) -> Arc<Room> {
    Arc::new(Room::new(directory.to_owned(), limit, 0))
}

/// Takes all that a report could take after a sequence.
fn drain(spool: &Spool, mut after: i64) -> Vec<Piece> {
    let (mut taken, mut position) = (Vec::new(), Position::default());
    loop {
        match spool.next(after, Waker::noop()) {
            Next::Piece(piece) => {
                after = piece.sequence;
                taken.push(piece);
            }
            Next::Stored => {
                let pieces = spool.read(after, &mut position).unwrap();
                assert!(!pieces.is_empty(), "nothing is stored after {after}");
                after = pieces.last().unwrap().sequence;
                taken.extend(pieces);
            }
            Next::Nothing | Next::End { .. } => return taken,
            Next::Gone => panic!("{after} was acknowledged"),
        }
    }
}

/// What a control plane would make of it: checks order, and returns bytes and holes of each stream.
#[derive(Default, Debug, PartialEq, Clone)]
struct Taken {
    sequence: i64,
    bytes: [Vec<Option<u8>>; 2],
}

impl Taken {
    fn take(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            if piece.sequence <= self.sequence {
                continue;
            }
            assert_eq!(piece.sequence, self.sequence + 1);
            self.sequence = piece.sequence;
            let bytes = &mut self.bytes[piece.stream];
            assert_eq!(piece.offset, bytes.len() as i64);
            match piece.content {
                Content::Data(data) => bytes.extend(data.iter().copied().map(Some)),
                Content::Missing { length, .. } => {
                    bytes.resize(bytes.len() + usize::try_from(length).unwrap(), None);
                }
            }
        }
    }

    /// Takes what another agent has, as report and control plane do. Says whether they had to go by offsets.
    fn go_on(&mut self, spool: &Spool) -> bool {
        let mut after = spool.resume(self.sequence);
        let mut kept = None;
        if spool.counts_otherwise() {
            kept = Some(spool.kept().map(|(_, kept)| kept).unwrap_or_default());
        } else if matches!(spool.next(after, Waker::noop()), Next::Gone) {
            let (first, later) = spool.kept().unwrap();
            (after, kept) = (first - 1, Some(later));
        }
        let Some(kept) = kept else {
            self.take(drain(spool, after));
            return false;
        };
        let begins = [kept.stdout_offset, kept.stderr_offset];
        for (bytes, begin) in self.bytes.iter_mut().zip(begins) {
            bytes.resize(bytes.len().max(usize::try_from(begin).unwrap()), None);
        }
        for piece in drain(spool, after) {
            let bytes = &mut self.bytes[piece.stream];
            let known = bytes.len() - usize::try_from(piece.offset).unwrap();
            let end = usize::try_from(piece.offset + piece.content.length()).unwrap();
            match piece.content {
                Content::Data(data) => bytes.extend(data.iter().skip(known).copied().map(Some)),
                Content::Missing { .. } => bytes.resize(bytes.len().max(end), None),
            }
        }
        true
    }

    fn missing(&self) -> usize {
        self.bytes
            .iter()
            .flatten()
            .filter(|byte| byte.is_none())
            .count()
    }
}

#[test]
fn what_is_written_comes_out_at_once_and_again_from_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::new(task(), room(directory.path(), 1 << 30), 1 << 30);
    spool.append(OutputStream::Stdout, "one".into());
    spool.append(OutputStream::Stderr, "two".into());
    let first = drain(&spool, 0);
    assert_eq!(first.len(), 2);
    assert_eq!(drain(&spool, 0), first);
    assert_eq!(drain(&spool, 1), first[1..]);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    spool.end();
    assert!(matches!(
        spool.next(2, Waker::noop()),
        Next::End { last_sequence: 2 }
    ));
    spool.forget();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn beyond_the_limit_beginning_and_end_are_kept_and_the_rest_is_a_gap() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::new(task(), room(directory.path(), 1 << 30), 64_000);
    let mut written = Vec::new();
    for n in 0..1000u32 {
        let line = format!("{n:0>999}\n");
        written.extend_from_slice(line.as_bytes());
        spool.append(OutputStream::Stdout, line.into());
    }
    spool.end();
    let mut taken = Taken::default();
    taken.take(drain(&spool, 0));
    let bytes = &taken.bytes[0];
    assert_eq!(bytes.len(), written.len());
    assert!(
        bytes
            .iter()
            .zip(&written)
            .all(|(kept, wrote)| kept.is_none_or(|kept| kept == *wrote))
    );
    let kept = bytes.len() - taken.missing();
    assert!((32_000..=64_000).contains(&kept), "{kept}");
    assert!(bytes[..20_000].iter().all(Option::is_some));
    assert!(bytes[bytes.len() - 20_000..].iter().all(Option::is_some));
    // The control plane asks again from the middle, and gets the same.
    let mut again = taken.clone();
    again.sequence = 10;
    for stream in &mut again.bytes {
        stream.truncate(10_000.min(stream.len()));
    }
    again.take(drain(&spool, 10));
    assert_eq!(again, taken);
}

#[test]
fn without_room_on_the_disk_output_still_flows() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::new(task(), room(directory.path(), 0), 1 << 30);
    let mut taken = Taken::default();
    for _ in 0..100 {
        spool.append(OutputStream::Stdout, vec![b'x'; 100_000].into());
        taken.take(drain(&spool, taken.sequence));
        spool.acknowledge(taken.sequence);
    }
    assert_eq!(taken.bytes[0].len(), 10_000_000);
    assert_eq!(taken.missing(), 0);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn damaged_files_become_gaps() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::new(task(), room(directory.path(), 1 << 30), 1 << 30);
    for _ in 0..10 {
        spool.append(OutputStream::Stdout, vec![b'x'; 100].into());
        spool.append(OutputStream::Stderr, vec![b'y'; 50].into());
    }
    drain(&spool, 0);
    let path = std::fs::read_dir(directory.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    spool.end();
    let mut taken = Taken::default();
    taken.take(drain(&spool, 0));
    assert_eq!(taken.sequence, 20);
    assert_eq!((taken.bytes[0].len(), taken.bytes[1].len()), (1000, 500));
    assert!((100..1000).contains(&taken.missing()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is written, taken, acknowledged and asked for again, with whatever room, and with another
    /// agent coming in between, be it after a power cut: sequences and offsets have no holes, and each byte comes out
    /// as it was written or is covered by a gap.
    #[test]
    fn nothing_is_lost_silently(
        task_limit in 200..4000u64,
        disk in prop_oneof![Just(0u64), Just(1 << 60)],
        steps in proptest::collection::vec((0..9u8, 1..200usize), 1..120),
        restart in proptest::option::of((any::<bool>(), any::<bool>(), prop_oneof![Just(100u64), 0..100u64])),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut has_room = room(directory.path(), disk);
        let mut is_full = false;
        let mut spool = Spool::new(task(), Arc::clone(&has_room), task_limit);
        let mut written: [Vec<u8>; 2] = Default::default();
        let mut taken = Taken::default();
        let mut resume = Taken::default();
        for (kind, size) in steps {
            match kind {
                0..=3 => {
                    let stream = usize::from(kind % 2);
                    let data: Vec<u8> = (0..size).map(|n| (n * 7 + written[stream].len()) as u8).collect();
                    written[stream].extend_from_slice(&data);
                    let name = [OutputStream::Stdout, OutputStream::Stderr][stream];
                    spool.append(name, data.into());
                }
                4 | 5 => taken.take(drain(&spool, taken.sequence)),
                6 => {
                    // What is acknowledged is never asked for again.
                    spool.acknowledge(taken.sequence);
                    resume = taken.clone();
                }
                7 => taken = resume.clone(),
                _ => {
                    is_full = !is_full;
                    has_room.fill(is_full);
                }
            }
        }
        let mut by_offsets = false;
        if let Some((has_more, is_over, percent)) = restart {
            let produced = spool.produced();
            drop(spool);
            for entry in std::fs::read_dir(directory.path()).unwrap() {
                let file = std::fs::File::options().write(true).open(entry.unwrap().path()).unwrap();
                file.set_len(file.metadata().unwrap().len() * percent / 100).unwrap();
            }
            has_room = room(directory.path(), disk);
            spool = Spool::recover(task(), has_room, task_limit, is_over.then_some(produced));
            // The supervisor of a task that goes on gives again what is missing.
            for (stream, name) in [OutputStream::Stdout, OutputStream::Stderr].into_iter().enumerate() {
                let reached = usize::try_from(spool.produced()[stream]).unwrap();
                for again in written[stream][reached..].chunks(50) {
                    spool.append(name, again.to_vec().into());
                }
            }
            if !has_more {
                taken = resume.clone();
            }
            spool.end();
            by_offsets = taken.go_on(&spool);
        } else {
            spool.end();
            taken.take(drain(&spool, taken.sequence));
        }
        for (stream, written) in written.iter().enumerate() {
            let out = &taken.bytes[stream];
            prop_assert_eq!(out.len(), written.len());
            prop_assert!(out.iter().zip(written).all(|(kept, wrote)| kept.is_none_or(|kept| kept == *wrote)));
        }
        if !by_offsets {
            let Next::End { last_sequence } = spool.next(taken.sequence, Waker::noop()) else {
                panic!("not the end");
            };
            prop_assert_eq!(last_sequence, taken.sequence);
        }
        spool.forget();
        drop(spool);
        let left = std::fs::read_dir(directory.path()).unwrap();
        let empty = left.filter(|entry| entry.as_ref().unwrap().metadata().unwrap().len() < 40);
        prop_assert!(empty.count() == std::fs::read_dir(directory.path()).unwrap().count());
    }
}

/// Not a benchmark, but a guard against a spool that would hold up a fast process.
#[test]
fn writing_is_not_the_bottleneck() {
    let data = Bytes::from(vec![b'x'; 256 << 10]);
    let rate = || {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::new(task(), room(directory.path(), 1 << 30), 1 << 30);
        let began = Instant::now();
        for _ in 0..256 {
            spool.append(OutputStream::Stdout, data.clone());
            let Next::Piece(piece) = spool.next(spool.last_sequence() - 1, Waker::noop()) else {
                panic!("not at once")
            };
            spool.acknowledge(piece.sequence);
        }
        64.0 / began.elapsed().as_secs_f64()
    };
    // The disk of a busy machine may be slow for a while.
    let mut tries = std::iter::repeat_with(rate).take(5);
    assert!(tries.any(|rate| rate > 20.0), "MiB/s, in all of five tries");
}

#[test]
fn what_no_file_has_any_more_is_a_gap() {
    // In memory only, for want of room; or in files whose bytes a power cut took.
    for (disk, has_some) in [(0, false), (0, true), (1 << 30, false), (1 << 30, true)] {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::new(task(), room(directory.path(), disk), 1 << 20);
        let mut taken = Taken::default();
        spool.append(OutputStream::Stdout, vec![b'x'; 100].into());
        if has_some {
            taken.take(drain(&spool, 0));
        }
        spool.append(OutputStream::Stdout, vec![b'x'; 200].into());
        spool.append(OutputStream::Stderr, vec![b'y'; 50].into());
        let produced = spool.produced();
        drop(spool);
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            std::fs::write(entry.unwrap().path(), "").unwrap();
        }
        let room = room(directory.path(), disk);
        let spool = Spool::recover(task(), room, 1 << 20, Some(produced));
        spool.end();
        assert_eq!(taken.go_on(&spool), has_some);
        assert_eq!(taken.bytes.each_ref().map(Vec::len), [300, 50]);
        assert_eq!(taken.missing(), if has_some { 250 } else { 350 });
    }
}

#[test]
fn where_what_is_kept_begins_is_known_after_acknowledgements() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::new(task(), room(directory.path(), 1 << 30), 1 << 30);
    let begin = |spool: &Spool| {
        spool
            .kept()
            .map(|(first, kept)| (first, kept.stdout_offset))
    };
    assert_eq!(begin(&spool), Some((1, 0)));
    for _ in 0..4 {
        spool.append(OutputStream::Stdout, vec![b'x'; 8 << 20].into());
    }
    spool.acknowledge(spool.last_sequence());
    let (first, offset) = begin(&spool).unwrap();
    assert!(first > 1 && offset > 0, "{first} {offset}");
    assert!(matches!(spool.next(0, Waker::noop()), Next::Gone));
    assert!(!matches!(spool.next(first - 1, Waker::noop()), Next::Gone));
    let past = Spool::new(task(), room(directory.path(), 1 << 30), 1 << 30);
    past.acknowledge(7);
    assert_eq!(begin(&past), None, "nobody knows how much it wrote");
}
