//! The store on real files, through its doors.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::model::OutputSize;

const LIMIT: Duration = Duration::from_secs(20);

fn small() -> OutputLimits {
    OutputLimits {
        task_bytes: 4 << 20,
        free_bytes: 0,
        segment_bytes: 1 << 20,
        ..OutputLimits::default()
    }
}

fn id(number: u8) -> TaskId {
    TaskId::from_bytes(&[number; 32])
}

/// The bytes that a task's stream has from an offset: different at every offset.
fn pattern(task: u8, offset: i64, length: usize) -> Bytes {
    (offset..)
        .take(length)
        .map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ (at >> 16) as u8 ^ task)
        .collect::<Vec<u8>>()
        .into()
}

fn chunk(task: u8, sequence: i64, offset: i64, length: usize) -> Chunk {
    Chunk {
        sequence,
        stream: Stream::Stdout,
        offset,
        data: pattern(task, offset, length),
        time: None,
    }
}

/// Appends `count` chunks after what is there; returns the bytes of the stream afterwards.
async fn fill(store: &OutputStore, task: u8, count: usize, length: usize) -> i64 {
    let size = store.size(id(task)).await.unwrap();
    let (mut sequence, mut offset) = (size.last_sequence, size.stdout_bytes);
    for _ in 0..count {
        sequence += 1;
        store
            .append(id(task), chunk(task, sequence, offset, length))
            .await
            .unwrap();
        offset += length as i64;
    }
    offset
}

/// Reads everything and checks that it is what was written, but for gaps. Returns the missing bytes.
async fn check(store: &OutputStore, task: u8) -> i64 {
    let size = store.size(id(task)).await.unwrap();
    let (mut sequence, mut position, mut missing) = (0, 0, 0);
    loop {
        let items = store.read_after(id(task), sequence, 100_000).await.unwrap();
        if items.is_empty() {
            break;
        }
        for item in items {
            assert!(item.sequence > sequence);
            assert_eq!((item.position, item.offset), (position, position));
            match &item.content {
                Content::Data(data) => assert!(*data == pattern(task, item.offset, data.len())),
                Content::Missing { length, .. } => missing += length,
            }
            sequence = item.sequence;
            position = item.end_position();
        }
    }
    assert_eq!(
        (sequence, position),
        (size.last_sequence, size.stdout_bytes)
    );
    assert_eq!(missing, size.dropped_bytes);
    missing
}

async fn until_durable(store: &OutputStore, task: u8) {
    let last = store.last_sequence(id(task)).await.unwrap();
    let mut durable = store.watch_durable(id(task)).await.unwrap();
    timeout(LIMIT, durable.wait_for(|durable| *durable >= last))
        .await
        .unwrap()
        .unwrap();
}

/// The directory as a kill would leave it now.
fn as_killed(directory: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut segments: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "segment"))
        .collect();
    segments.sort();
    segments
}

fn disk_bytes(directory: &Path) -> u64 {
    let blocks = |path: &PathBuf| fs::metadata(path).unwrap().blocks();
    segments(directory).iter().map(blocks).sum::<u64>() * 512
}

#[tokio::test]
async fn output_is_there_at_once_and_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    store.begin(id(1));
    let end = fill(&store, 1, 40, 70_000).await;
    let gap = Gap {
        sequence: 41,
        stream: Stream::Stdout,
        offset: end,
        length: 1_000,
        cause: "spool full".to_owned(),
    };
    store.gap(id(1), gap).await.unwrap();
    fill(&store, 1, 5, 10).await;
    fill(&store, 2, 300, 33).await;
    assert_eq!(check(&store, 1).await, 1_000);
    store.complete(id(1), 46).await.unwrap();
    assert!(store.complete(id(1), 47).await.is_err());
    store.close().await;
    assert!(store.append(id(1), chunk(1, 47, 0, 1)).await.is_err());

    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    assert_eq!(store.durable(id(1)).await.unwrap(), 46);
    assert_eq!(check(&store, 1).await, 1_000);
    assert_eq!(check(&store, 2).await, 0);
    let size = store.size(id(1)).await.unwrap();
    assert_eq!(size.stdout_bytes, 40 * 70_000 + 1_000 + 50);
    fill(&store, 1, 3, 5).await;
    check(&store, 1).await;
}

#[tokio::test]
async fn repeats_are_ignored_and_holes_refused() {
    let directory = TempDir::new().unwrap();
    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    for sequence in [1, 1, 2, 1, 2, 3] {
        let chunk = chunk(1, sequence, (sequence - 1) * 10, 10);
        store.append(id(1), chunk).await.unwrap();
    }
    let error = store.append(id(1), chunk(1, 5, 40, 10)).await.unwrap_err();
    assert!(matches!(
        error,
        OutputError::OutOfOrder(OutOfOrder::Sequence {
            expected: 4,
            got: 5
        })
    ));
    assert_eq!(check(&store, 1).await, 0);
    assert_eq!(store.last_sequence(id(1)).await.unwrap(), 3);
}

#[tokio::test]
async fn a_kill_loses_nothing_that_was_durable() {
    let directory = TempDir::new().unwrap();
    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    for round in 1..=5 {
        fill(&store, 1, 7, 50_000).await;
        fill(&store, 2, 90, 77).await;
        until_durable(&store, 1).await;
        until_durable(&store, 2).await;
        let copy = as_killed(directory.path());
        let again = OutputStore::open(copy.path(), small()).await.unwrap();
        assert_eq!(again.last_sequence(id(1)).await.unwrap(), 7 * round);
        assert_eq!(again.last_sequence(id(2)).await.unwrap(), 90 * round);
        check(&again, 1).await;
        check(&again, 2).await;
        fill(&again, 1, 2, 50_000).await;
        check(&again, 1).await;
    }
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_the_host_sends_it_again() {
    let directory = TempDir::new().unwrap();
    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    fill(&store, 1, 10, 1_000).await;
    fill(&store, 2, 10, 1_000).await;
    until_durable(&store, 1).await;
    until_durable(&store, 2).await;
    let whole = as_killed(directory.path());
    // As before any checkpoint.
    for file in ["index.db", "index.db-wal", "index.db-shm"] {
        let _ = fs::remove_file(whole.path().join(file));
    }
    let length = fs::metadata(&segments(whole.path())[0]).unwrap().len();
    for keep in (0..length).step_by(611) {
        let torn = as_killed(whole.path());
        let segment = &segments(torn.path())[0];
        let file = fs::OpenOptions::new().write(true).open(segment).unwrap();
        file.set_len(keep).unwrap();
        let store = OutputStore::open(torn.path(), small()).await.unwrap();
        let last =
            store.last_sequence(id(1)).await.unwrap() + store.last_sequence(id(2)).await.unwrap();
        assert_eq!(last, keep as i64 / 1_072);
        check(&store, 1).await;
        fill(&store, 1, 2, 1_000).await;
        fill(&store, 2, 2, 1_000).await;
        check(&store, 1).await;
        check(&store, 2).await;
        store.close().await;
    }
}

#[tokio::test]
async fn the_middle_of_too_much_output_is_dropped_and_counted() {
    let directory = TempDir::new().unwrap();
    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    for _ in 0..10 {
        fill(&store, 1, 20, 65_536).await;
        fill(&store, 2, 1, 500).await;
        // What is durable has been placed, so no drop comes between the looks of the check.
        until_durable(&store, 1).await;
        check(&store, 1).await;
    }
    let missing = check(&store, 1).await;
    let written = 200 * 65_536;
    assert!(missing > written - (4 << 20), "{missing}");
    assert!(missing < written - (3 << 20), "{missing}");
    let first = &store.read_after(id(1), 0, 10).await.unwrap()[0];
    assert_eq!(first.content, Content::Data(pattern(1, 0, 65_536)));
    assert_eq!(check(&store, 2).await, 0);
    store.close().await;
    assert!(disk_bytes(directory.path()) < 6 << 20);

    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    assert_eq!(check(&store, 1).await, missing);
    assert_eq!(check(&store, 2).await, 0);
    fill(&store, 1, 100, 65_536).await;
    until_durable(&store, 1).await;
    assert!(check(&store, 1).await > missing);
}

#[tokio::test]
async fn a_full_disk_refuses_and_reads_go_on() {
    let directory = TempDir::new().unwrap();
    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    fill(&store, 1, 10, 10_000).await;
    store.close().await;

    let full = OutputLimits {
        free_bytes: 1 << 60,
        ..small()
    };
    let store = OutputStore::open(directory.path(), full).await.unwrap();
    // What is taken before the disk refuses stays in memory; it is never called durable.
    let refusal = timeout(LIMIT, async {
        for sequence in 11.. {
            let chunk = chunk(1, sequence, (sequence - 1) * 10_000, 10_000);
            if let Err(error) = store.append(id(1), chunk).await {
                return error;
            }
            tokio::task::yield_now().await;
        }
        unreachable!("the loop ends with a refusal")
    })
    .await
    .unwrap();
    assert!(refusal.to_string().contains("free"), "{refusal}");
    assert_eq!(store.durable(id(1)).await.unwrap(), 10);
    check(&store, 1).await;
    store.close().await;

    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    assert_eq!(store.last_sequence(id(1)).await.unwrap(), 10);
    check(&store, 1).await;
}

#[tokio::test]
async fn removed_and_old_output_gives_its_space_back() {
    let directory = TempDir::new().unwrap();
    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    fill(&store, 1, 40, 65_536).await;
    fill(&store, 2, 40, 65_536).await;
    store.close().await;
    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    assert_eq!(check(&store, 1).await, 0);
    let before = disk_bytes(directory.path());
    store.remove(&[id(1)]).await.unwrap();
    store.sweep().await.unwrap();
    assert!(disk_bytes(directory.path()) < before - (2 << 20));
    assert_eq!(store.size(id(1)).await.unwrap(), OutputSize::default());
    assert_eq!(check(&store, 2).await, 0);
    store.close().await;

    let tight = OutputLimits {
        total_bytes: 1 << 20,
        ..small()
    };
    let store = OutputStore::open(directory.path(), tight).await.unwrap();
    check(&store, 2).await;
    store.sweep().await.unwrap();
    let missing = check(&store, 2).await;
    assert!(missing > 1 << 20, "{missing}");
    fill(&store, 2, 1, 10).await;
    assert_eq!(check(&store, 2).await, missing);
    store.close().await;
    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    assert_eq!(check(&store, 2).await, missing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_at_once_keep_apart() {
    let directory = TempDir::new().unwrap();
    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    let mut writers = Vec::new();
    for task in 1..=20u8 {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            for round in 0..20 {
                fill(&store, task, 10, 17 * usize::from(task) + round).await;
                if task % 4 == 0 {
                    check(&store, task).await;
                }
            }
        }));
    }
    for writer in writers {
        timeout(LIMIT, writer).await.unwrap().unwrap();
    }
    store.close().await;
    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    for task in 1..=20 {
        assert_eq!(check(&store, task).await, 0);
    }
}

#[tokio::test]
async fn many_small_chunks_come_in_messages_that_clients_take() {
    let directory = TempDir::new().unwrap();
    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    fill(&store, 1, 5_000, 1).await;
    let wire_bytes = |items: Vec<Item>| items.iter().map(Item::weight).sum::<usize>();
    let recent = store.read_after(id(1), 0, 64 << 10).await.unwrap();
    assert!(wire_bytes(recent) <= 64 << 10);
    store.close().await;

    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    let stored = store.read_after(id(1), 0, 64 << 10).await.unwrap();
    assert!(wire_bytes(stored) <= 64 << 10);
    assert_eq!(check(&store, 1).await, 0);
}

#[tokio::test]
async fn what_is_recorded_keeps_its_times_through_a_restart() {
    let directory = TempDir::new().unwrap();
    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    for (sequence, time) in [(1, Some(1_000)), (2, None), (3, Some(1_763_707_200_123))] {
        let timed = Chunk {
            time,
            ..chunk(1, sequence, (sequence - 1) * 10, 10)
        };
        store.append(id(1), timed).await.unwrap();
    }
    let times = async |store: &OutputStore| {
        let items = store.read_after(id(1), 0, 1 << 20).await.unwrap();
        let bytes: usize = items.iter().map(Item::kept).sum();
        assert_eq!(bytes, 30, "times are no output");
        items.iter().map(|item| item.time).collect::<Vec<_>>()
    };
    let expected = [Some(1_000), None, Some(1_763_707_200_123)];
    assert_eq!(times(&store).await, expected);
    store.close().await;
    drop(store);
    let store = OutputStore::open(directory.path(), small()).await.unwrap();
    assert_eq!(times(&store).await, expected);
    store.close().await;
}
