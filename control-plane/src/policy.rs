//! Who may do what, on which hosts, and how far.
//!
//! One set of policies stands; whoever asks takes it as it is and never waits. A change is checked, durable, and then
//! in force for the next question; who follows something for long hears of it and asks again.

mod decision;
mod entities;
mod judgement;
mod limits;
mod offline;
mod plan;
mod question;
mod readings;
mod right;
mod set;
mod traits;
mod usage;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use muster_proto::v1::Reason;
use tokio::sync::{Mutex, watch};

pub(crate) use self::{
    decision::{Decision, Verdict},
    judgement::{BY_GRANT, Hour, Judge, Judgement, Resource},
    limits::{Limit, Trip},
    plan::{Plan, Target, candidates, plan},
    question::{Circumstances, Source, Who},
    right::Right,
    set::{LIMITS_FILE, Need, Rule, SCHEMA, Set},
    traits::{Traits, TraitsKept, unknown as unknown_traits},
    usage::Usage,
};
pub use self::{
    offline::{DecisionTimes, PolicyFiles, TriedCase},
    set::PolicyError,
};
use crate::{
    clock::now,
    model::{Explain, Files},
    store::{Batch, Store, StoreError, StoredPolicies},
};

/// Where an operator may put files, below the data directory.
const DIRECTORY: &str = "policies";

/// Characters of the note with a change.
const NOTE_MAX: usize = 500;

/// Why policies were not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetError {
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("the policies have changed: their etag is {found:?}, not {given:?}; read them again")]
    EtagMismatch { given: String, found: String },
    #[error("a note has at most {NOTE_MAX} characters; this one has {0}")]
    NoteTooLong(usize),
    #[error(
        "with these policies {0} could not change policies again; keep a policy that lets it policy.write"
    )]
    LockedOut(Arc<str>),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The policies that stand. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Policy(Arc<Shared>);

struct Shared {
    judge: ArcSwap<Judge>,
    /// Counts whatever may change an answer.
    changed: watch::Sender<u64>,
    store: Store,
    /// Changes are rare and come one at a time.
    setting: Mutex<()>,
}

impl Policy {
    /// Reads the policies that stand, and takes in those that an operator put into the data directory. Files that do
    /// not fit are left out, with a word in the log: what stood before goes on.
    pub(crate) async fn load(store: Store, directory: &Path) -> Result<Self, StoreError> {
        let (set, version) = match store.newest_policies().await? {
            None => (Set::shipped(), 0),
            Some(stored) => match Set::read(stored.files) {
                Ok(set) => (set, stored.version),
                Err(error) => {
                    return Err(StoreError::Broken(
                        format!(
                            "the policies in the ledger (version {}) do not fit: {error}",
                            stored.version
                        )
                        .into(),
                    ));
                }
            },
        };
        let policy = Self(Arc::new(Shared {
            judge: ArcSwap::from_pointee(Judge::new(set, version)),
            changed: watch::Sender::new(0),
            store,
            setting: Mutex::default(),
        }));
        policy.take_in(&directory.join(DIRECTORY)).await?;
        Ok(policy)
    }

    async fn take_in(&self, directory: &Path) -> Result<(), StoreError> {
        let found = match read_directory(directory) {
            Ok(found) if found.is_empty() => return Ok(()),
            Ok(found) => found,
            Err((path, error)) => {
                tracing::error!(%error, "policies in {} cannot be read: {error}", path.display());
                return Ok(());
            }
        };
        let mut files = self.judge().set.files.clone();
        files.extend(found);
        // An empty file takes away the one that is shipped under its name.
        files.retain(|_, text| !text.trim().is_empty());
        if files == self.judge().set.files {
            return Ok(());
        }
        let author = format!("files in {DIRECTORY}");
        match self.set(files, "", &author, "found at start", None).await {
            Ok(judge) => {
                tracing::info!(
                    "policies from {} stand as version {}",
                    directory.display(),
                    judge.version
                );
                Ok(())
            }
            Err(SetError::Store(error)) => Err(error),
            Err(error) => {
                tracing::error!(%error, "policies in {} were not taken: {error}", directory.display());
                Ok(())
            }
        }
    }

    /// The set that stands now.
    pub(crate) fn judge(&self) -> arc_swap::Guard<Arc<Judge>> {
        self.0.judge.load()
    }

    /// Moves when an answer may have changed.
    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Something that answers follow from has changed, as somebody's roles.
    pub(crate) fn touch(&self) {
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// Replaces the policies, once the new ones are durable. An empty etag replaces whatever stands. With `keeper`,
    /// refuses what would keep that principal from changing them back.
    pub(crate) async fn set(
        &self,
        files: Files,
        given: &str,
        author: &str,
        note: &str,
        keeper: Option<&Who>,
    ) -> Result<Arc<Judge>, SetError> {
        let length = note.chars().count();
        if length > NOTE_MAX {
            return Err(SetError::NoteTooLong(length));
        }
        let set = Set::read(files)?;
        let _turn = self.0.setting.lock().await;
        let version = self.judge().version;
        if !given.is_empty() && given != etag(version) {
            return Err(SetError::EtagMismatch {
                given: given.to_owned(),
                found: etag(version),
            });
        }
        let judge = Arc::new(Judge::new(set, version + 1));
        if let Some(who) = keeper {
            let (how, hour) = (Circumstances::default(), Hour::of(now()));
            let may = judge.judge(who, Right::PolicyWrite, Resource::Fleet, how, hour);
            if may.verdict != Verdict::Allow {
                return Err(SetError::LockedOut(Arc::clone(&who.principal)));
            }
        }
        let mut batch = Batch::new();
        batch.add_policies(&StoredPolicies {
            version: judge.version,
            files: judge.set.files.clone(),
            author: author.to_owned(),
            note: note.to_owned(),
            create_time: now(),
        });
        let committed = self.0.store.writer.commit(batch).await?;
        committed.durable.wait().await.map_err(StoreError::from)?;
        self.0.judge.store(Arc::clone(&judge));
        self.touch();
        Ok(judge)
    }

    /// Versions below `before`, newest first, and none for the shipped one.
    pub(crate) async fn versions(
        &self,
        before: i64,
        limit: i64,
    ) -> Result<Vec<StoredPolicies>, StoreError> {
        self.0.store.policies(before, limit).await
    }
}

/// The etag of a version; version 0 is what is shipped.
pub(crate) fn etag(version: i64) -> String {
    format!("v{version}")
}

/// The files of a directory that may hold policies; none if there is no directory.
fn read_directory(directory: &Path) -> Result<Files, (PathBuf, io::Error)> {
    let failed = |error| (directory.to_owned(), error);
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Files::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Files::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if name == LIMITS_FILE || (name.ends_with(".cedar") && !name.starts_with('.')) {
            let text = std::fs::read_to_string(&path).map_err(|error| (path.clone(), error))?;
            files.insert(name.to_owned(), text);
        }
    }
    Ok(files)
}

impl Explain for SetError {
    fn reason(&self) -> Reason {
        match self {
            Self::Policy(error) => error.reason(),
            Self::EtagMismatch { .. } => Reason::EtagMismatch,
            Self::NoteTooLong(_) => Reason::ArgumentInvalid,
            Self::LockedOut(_) => Reason::PolicyInvalid,
            Self::Store(error) => error.reason(),
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Policy(error) => error.metadata(),
            _ => Vec::new(),
        }
    }
}
