use muster_proto::{agent::v1::task_state, v1::task::State};
use proptest::prelude::*;

use super::*;

fn task(n: u8) -> TaskId {
    TaskId::from_bytes(&[n; 32])
}

fn accepted(n: u8, not_after_ms: i64) -> Event {
    Event::Accepted(Accepted {
        task_id: task(n).to_string(),
        sealed_offer: vec![n; 100].into(),
        seal: vec![n; 32].into(),
        not_after_ms,
    })
}

fn step(n: u8, kind: u8) -> Event {
    let task_id = task(n).to_string();
    match kind {
        0 => accepted(n, 0),
        1 => Event::Starting(Starting {
            task_id,
            supervisor_pid: 9,
            supervisor_start_time: 13,
        }),
        2 => Event::Started(Started {
            task_id,
            started: Some(task_state::Started {
                pid: 7,
                ..Default::default()
            }),
            start_time: Some(11),
        }),
        3 => Event::Ended(Ended {
            task_id,
            ended: Some(task_state::Ended {
                message: format!("{n}"),
                ..Default::default()
            }),
            ..Default::default()
        }),
        4 => Event::Settled(Settled {
            task_id,
            last_sequence: i64::from(n),
        }),
        _ => Event::Barred(Barred {
            task_id,
            not_after_ms: 5,
        }),
    }
}

#[test]
fn a_new_journal_has_an_id_that_lasts() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, unsettled) = Journal::open(directory.path(), "boot", 0).unwrap();
    assert!(unsettled.is_empty());
    assert_eq!(journal.position(), 1);
    let id = journal.id().to_owned();
    drop(journal);
    let (journal, _) = Journal::open(directory.path(), "boot", 0).unwrap();
    assert_eq!(journal.id(), id);
    assert_eq!(journal.position(), 2);
}

#[test]
fn a_task_is_known_after_reopening_until_it_may_be_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(directory.path(), "one", 0).unwrap();
    journal
        .write(0, vec![accepted(1, 1000), step(1, 1)])
        .unwrap();
    drop(journal);

    let (journal, unsettled) = Journal::open(directory.path(), "two", 0).unwrap();
    assert_eq!(unsettled.len(), 1);
    assert_eq!(unsettled[0].phase, Phase::Starting);
    assert_eq!(unsettled[0].boot_id, "one");
    journal.write(0, vec![step(1, 3), step(1, 4)]).unwrap();
    drop(journal);

    let week_ms = 7 * 24 * 3600 * 1000;
    let (journal, unsettled) = Journal::open(directory.path(), "two", week_ms - 1).unwrap();
    assert!(unsettled.is_empty());
    assert!(matches!(
        journal.find(&task(1)).unwrap().phase,
        Phase::Settled {
            last_sequence: 1,
            ..
        }
    ));
    drop(journal);
    let (journal, _) = Journal::open(directory.path(), "two", week_ms).unwrap();
    assert!(journal.find(&task(1)).is_none());
}

#[test]
fn a_task_that_is_settled_again_keeps_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(directory.path(), "boot", 0).unwrap();
    let steps = vec![accepted(1, 0), step(1, 1), step(1, 3), step(1, 4)];
    journal.write(0, steps).unwrap();
    let settled = journal.find(&task(1));
    journal.write(0, vec![step(1, 4)]).unwrap();
    assert_eq!(journal.find(&task(1)), settled);
    assert!(matches!(
        settled.unwrap().phase,
        Phase::Settled { ended: Some(_), .. }
    ));
}

#[test]
fn a_task_that_may_have_run_is_never_one_that_could_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(directory.path(), "boot", 0).unwrap();
    let settled = |steps: Vec<Event>| {
        journal.write(0, steps).unwrap();
        match journal.find(&task(1)).unwrap().phase {
            Phase::Settled { ended, .. } => ended.map(|ended| ended.state()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(settled(vec![accepted(1, 0), step(1, 4)]), None);
    let lost = settled(vec![accepted(1, 0), step(1, 1), step(1, 4)]);
    assert_eq!(lost, Some(State::Lost));
}

#[test]
fn a_torn_end_is_dropped_and_damage_before_it_is_not_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let (journal, _) = Journal::open(directory.path(), "boot", 0).unwrap();
    journal.write(0, vec![accepted(1, 0)]).unwrap();
    journal.write(0, vec![accepted(2, 0)]).unwrap();
    drop(journal);
    let whole = std::fs::read(&path).unwrap();

    std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    let (journal, unsettled) = Journal::open(directory.path(), "boot", 0).unwrap();
    assert_eq!(unsettled.len(), 1);
    assert_eq!(journal.position(), 3);
    drop(journal);

    let mut damaged = whole.clone();
    let middle = whole.len() - 300;
    damaged[middle] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    assert!(Journal::open(directory.path(), "boot", 0).is_err());
}

#[test]
fn a_settled_task_takes_little_room() {
    const TASKS: u64 = 2_000;
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(directory.path(), "boot", 0).unwrap();
    let number = |n: u64| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        TaskId::from_bytes(&bytes)
    };
    for n in 0..TASKS {
        let task_id = number(n).to_string();
        let steps = (0..5).map(|kind| {
            let mut event = step(0, kind);
            let ended = match &mut event {
                Event::Accepted(Accepted { task_id: id, .. })
                | Event::Starting(Starting { task_id: id, .. })
                | Event::Started(Started { task_id: id, .. })
                | Event::Settled(Settled { task_id: id, .. }) => {
                    id.clone_from(&task_id);
                    return event;
                }
                Event::Ended(ended) => ended,
                _ => return event,
            };
            ended.task_id.clone_from(&task_id);
            ended.ended = Some(task_state::Ended {
                state: 4,
                exit_code: Some(3),
                message: "x".repeat(10_000),
                run_time: Some(
                    std::time::Duration::from_micros(123_456)
                        .try_into()
                        .unwrap(),
                ),
                time: Some(std::time::SystemTime::now().into()),
                receipt: vec![7; 1_300].into(),
                unsigned_receipt: vec![7; 300].into(),
                ..Default::default()
            });
            event
        });
        journal.write(1_700_000_000_000, steps.collect()).unwrap();
    }
    let before = journal.inner.lock().file.size();
    assert!(journal.inner.lock().is_long(), "{before} bytes");
    journal.rewrite(0).unwrap();
    let after = journal.inner.lock().file.size();
    assert!(after / TASKS < 600, "{} bytes a task", after / TASKS);
    let ended = |journal: &Journal| match journal.find(&number(7)).unwrap().phase {
        Phase::Settled { ended, .. } => ended.unwrap(),
        phase => panic!("{phase:?}"),
    };
    let kept = ended(&journal);
    assert_eq!((kept.exit_code, kept.message.len()), (Some(3), 256));
    assert!(kept.receipt.is_empty() && kept.unsigned_receipt.is_empty());
    assert!(kept.time.is_some());
    // A restart does not put off the next rewriting.
    drop(journal);
    let (journal, _) = Journal::open(directory.path(), "boot", 0).unwrap();
    assert_eq!(ended(&journal), kept);
    let kept_bytes = journal.inner.lock().kept_bytes;
    assert!((after - 100..after).contains(&kept_bytes), "{kept_bytes}");
}

#[test]
fn what_is_written_while_the_file_is_rewritten_is_in_both() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(directory.path(), "boot", 0).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..=u8::MAX {
                for kind in [0, 1, 2, 3, 4] {
                    journal.write(0, vec![step(n, kind)]).unwrap();
                }
            }
        });
        while !writer.is_finished() {
            journal.rewrite(0).unwrap();
        }
    });
    let (position, all) = (journal.position(), 0..=u8::MAX);
    let known: Vec<_> = all.clone().map(|n| journal.find(&task(n))).collect();
    assert_eq!(position, 1 + 5 * 256);
    drop(journal);
    let (journal, unsettled) = Journal::open(directory.path(), "boot", 0).unwrap();
    assert!(unsettled.is_empty());
    assert_eq!(journal.position(), position + 1);
    let again: Vec<_> = all.map(|n| journal.find(&task(n))).collect();
    assert_eq!(again, known);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is written, and however often the file is reopened or rewritten between: what is known
    /// about each task is the same, and the position only counts up.
    #[test]
    fn rewriting_and_reopening_change_nothing(
        steps in proptest::collection::vec((0..6u8, 0..6u8, 0..12u8), 1..60)
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut plain = Book::new(0);
        plain.begin("boot");
        let (mut journal, _) = Journal::open(directory.path(), "boot", 0).unwrap();
        let mut position = journal.position();
        for (n, kind, what_else) in steps {
            let event = step(n, kind);
            plain.enter(Entry::new(0, event.clone()));
            let now = journal.write(0, vec![event]).unwrap();
            prop_assert_eq!(now, position + 1);
            position = now;
            match what_else {
                0 => journal.rewrite(0).unwrap(),
                1 => {
                    drop(journal);
                    journal = Journal::open(directory.path(), "boot", 0).unwrap().0;
                    position += 1;
                }
                _ => {}
            }
            prop_assert_eq!(journal.position(), position);
        }
        for n in 0..6 {
            prop_assert_eq!(journal.find(&task(n)), plain.find(&task(n)));
        }
    }
}
