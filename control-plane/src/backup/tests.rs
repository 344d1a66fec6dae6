//! Backups of a real ledger, and what is refused.

use std::{fs, os::unix::fs::PermissionsExt as _};

use tempfile::TempDir;

use super::*;
use crate::store::{Batch, Store};

/// A control plane's directory with a ledger that has a little in it.
async fn control_plane(root: &Path, name: &str) -> (PathBuf, Store) {
    let directory = root.join(name);
    let store = Store::open(&directory).await.unwrap();
    for name in KEYS {
        fs::write(directory.join(name), name).unwrap();
    }
    commit(&store).await;
    (directory, store)
}

async fn commit(store: &Store) {
    let batch = Batch::new().with("UPDATE ledger SET starts = starts", []);
    store.writer.commit(batch).await.unwrap();
}

fn root() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn a_backup_taken_while_it_runs_begins_a_generation_where_it_is_restored() {
    let root = root();
    let (directory, store) = control_plane(root.path(), "plane").await;
    for (name, target) in [("folder", "backup"), ("tar", "backup.tar")] {
        let to = root.path().join(target);
        let made = back_up(&directory, &to).await.unwrap();
        assert_eq!(made.files, 5, "ledger and keys");
        let again = back_up(&directory, &to).await;
        assert!(matches!(again, Err(BackupError::Exists(_))), "{again:?}");

        let other = root.path().join(name);
        let restored = restore(&other, &to, false).await.unwrap();
        assert_eq!(restored.ledger_position, made.ledger_position);
        assert_eq!(restored.replaced, None);
        assert_eq!(fs::read(other.join("seal.key")).unwrap(), b"seal.key");
        let mode = fs::metadata(other.join("seal.key")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);

        let opened = Store::open(&other).await.unwrap();
        assert_eq!(opened.control_plane_id, store.control_plane_id);
        assert_ne!(opened.generation, store.generation);
        let generation = opened.generation.clone();
        drop(opened);
        // Once: the next start is a start like any other.
        assert_eq!(reopened(&other).await.generation, generation);
    }
    let left: Vec<_> = fs::read_dir(root.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The one before lets go when its last task has ended.
async fn reopened(directory: &Path) -> Store {
    loop {
        match Store::open(directory).await {
            Err(OpenError::Held(_)) => tokio::task::yield_now().await,
            opened => return opened.unwrap(),
        }
    }
}

#[tokio::test]
async fn what_would_be_lost_is_not_replaced() {
    let root = root();
    let (directory, store) = control_plane(root.path(), "plane").await;
    let backup = root.path().join("backup");
    back_up(&directory, &backup).await.unwrap();
    let running = restore(&directory, &backup, true).await;
    assert!(
        matches!(running, Err(BackupError::Running(_))),
        "{running:?}"
    );

    commit(&store).await;
    drop(store);
    drop(reopened(&directory).await);
    let newer = restore_when_free(&directory, &backup, false).await;
    assert!(
        matches!(newer, Err(BackupError::Present { .. })),
        "{newer:?}"
    );
    let forced = restore_when_free(&directory, &backup, true).await.unwrap();
    let replaced = forced.replaced.unwrap();
    assert!(replaced.join("ledger.db").exists(), "it is kept");
}

async fn restore_when_free(
    directory: &Path,
    from: &Path,
    force: bool,
) -> Result<Restored, BackupError> {
    loop {
        match restore(directory, from, force).await {
            Err(BackupError::Running(_)) => tokio::task::yield_now().await,
            done => return done,
        }
    }
}

#[tokio::test]
async fn a_damaged_or_half_backup_is_refused_and_leaves_nothing() {
    let root = root();
    let (directory, _store) = control_plane(root.path(), "plane").await;
    let target = root.path().join("other");
    let refused = async |backup: &Path| {
        let refused = restore(&target, backup, true).await;
        assert!(
            matches!(refused, Err(BackupError::NotABackup { .. })),
            "{refused:?}"
        );
        assert!(!target.join("ledger.db").exists());
    };
    let backup = root.path().join("backup");
    back_up(&directory, &backup).await.unwrap();
    fs::write(backup.join("seal.key"), "seal.kez").unwrap();
    refused(&backup).await;
    fs::remove_file(backup.join("seal.key")).unwrap();
    refused(&backup).await;
    fs::remove_file(backup.join(NAME)).unwrap();
    refused(&backup).await;

    let tar = root.path().join("backup.tar");
    back_up(&directory, &tar).await.unwrap();
    let whole = fs::read(&tar).unwrap();
    fs::write(&tar, &whole[..whole.len() / 2]).unwrap();
    refused(&tar).await;
    fs::write(&tar, "no tar").unwrap();
    refused(&tar).await;
    refused(&root.path().join("nothing")).await;
    let nothing = back_up(&target, &root.path().join("third")).await;
    assert!(
        matches!(nothing, Err(BackupError::NoControlPlane(_))),
        "{nothing:?}"
    );
}
