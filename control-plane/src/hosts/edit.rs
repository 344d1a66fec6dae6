//! What operators change about a host. Each change is durable before it shows.

use std::sync::Arc;

use muster_proto::ids::HostId;

use super::{Bar, Host, Inventory};
use crate::{
    clock::now,
    model::{Instruction, Labels, Lock, Mode, NameError, check_labels, check_name, etag},
    policy::Traits,
    store::{Batch, StoreError},
};

/// Bytes of an instruction: it goes into a model's context, so it is short.
const INSTRUCTION_MAX: usize = 16 << 10;

/// Characters of a lock's note.
const NOTE_MAX: usize = 500;

/// A change of name and labels.
#[derive(Debug, Default)]
pub(crate) struct Edit {
    /// The new name.
    pub(crate) name: Option<String>,
    /// The whole new set of labels.
    pub(crate) labels: Option<Labels>,
    /// Labels to set, or with `None` to remove, one by one.
    pub(crate) label: Vec<(String, Option<String>)>,
}

/// Why a host was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EditError {
    #[error("there is no host {0}")]
    HostNotFound(HostId),
    #[error(transparent)]
    Name(NameError),
    #[error("the name {0:?} is taken by another host")]
    NameTaken(String),
    #[error("an instruction has at most {INSTRUCTION_MAX} bytes; this one has {0}")]
    InstructionTooLong(usize),
    #[error("policy does not let the host become that")]
    NotAllowed,
    #[error("a note has at most {NOTE_MAX} characters; this one has {0}")]
    NoteTooLong(usize),
    #[error("the instruction has changed: its etag is {found:?}, not {given:?}; read it again")]
    EtagMismatch { given: String, found: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Inventory {
    /// Changes name and labels, if `may` lets the host be what it would become.
    pub(crate) async fn update(
        &self,
        id: HostId,
        edit: Edit,
        may: impl FnOnce(&Host, &Arc<Traits>) -> bool,
    ) -> Result<Arc<Host>, EditError> {
        if let Some(name) = &edit.name {
            check_name(name)?;
        }
        let _turn = self.shared().editing.lock().await;
        let host = self.get(id).ok_or(EditError::HostNotFound(id))?;
        let mut labels = edit.labels.unwrap_or_else(|| host.labels.clone());
        for (key, value) in edit.label {
            match value {
                Some(value) => labels.insert(key, value),
                None => labels.remove(&key),
            };
        }
        check_labels(&labels)?;
        let name = edit.name.unwrap_or_else(|| host.name.clone());
        if name != host.name && self.name_is_taken(&name) {
            return Err(EditError::NameTaken(name));
        }
        if !may(&host, &self.traits_of(&labels, host.mode_limit)) {
            return Err(EditError::NotAllowed);
        }
        self.write(id, |host| {
            host.name = name;
            host.labels = labels;
        })
        .await
    }

    /// Changes a host in the ledger, then in memory.
    pub(super) async fn edit(
        &self,
        id: HostId,
        change: impl FnOnce(&mut Host),
    ) -> Result<Arc<Host>, EditError> {
        let _turn = self.shared().editing.lock().await;
        self.write(id, change).await
    }

    /// The part of an edit for those who hold the turn.
    async fn write(
        &self,
        id: HostId,
        change: impl FnOnce(&mut Host),
    ) -> Result<Arc<Host>, EditError> {
        let host = self.get(id).ok_or(EditError::HostNotFound(id))?;
        let mut changed = Host::clone(&host);
        change(&mut changed);
        let mut batch = Batch::new();
        batch.update_host(&changed.stored());
        self.commit(batch).await?;
        self.replace(id, |host| *host = changed)
            .ok_or(EditError::HostNotFound(id))
    }

    async fn commit(&self, batch: Batch) -> Result<(), EditError> {
        let committed = self.shared().store.writer.commit(batch).await?;
        Ok(committed.durable.wait().await.map_err(StoreError::from)?)
    }

    /// Replaces the instruction. An empty etag replaces whatever stands there.
    pub(crate) async fn set_instruction(
        &self,
        id: HostId,
        text: &str,
        given: &str,
        author: &str,
    ) -> Result<Instruction, EditError> {
        if text.len() > INSTRUCTION_MAX {
            return Err(EditError::InstructionTooLong(text.len()));
        }
        let _turn = self.shared().editing.lock().await;
        let host = self.get(id).ok_or(EditError::HostNotFound(id))?;
        let version = host.instruction.as_ref().map_or(0, |one| one.version);
        if !given.is_empty() && given != etag(version) {
            return Err(EditError::EtagMismatch {
                given: given.to_owned(),
                found: etag(version),
            });
        }
        let instruction = Instruction {
            text: text.to_owned(),
            version: version + 1,
            author: author.to_owned(),
            create_time: now(),
        };
        let mut batch = Batch::new();
        batch.add_instruction(id, &instruction);
        self.commit(batch).await?;
        self.replace(id, |host| host.instruction = Some(instruction.clone()));
        Ok(instruction)
    }

    /// Versions of the instruction below `before`, newest first.
    pub(crate) async fn instructions(
        &self,
        id: HostId,
        before: i64,
        limit: i64,
    ) -> Result<Vec<Instruction>, StoreError> {
        self.shared().store.instructions(id, before, limit).await
    }

    /// Locks a host; those who listen end its streams. A second lock keeps the first one's time.
    pub(crate) async fn lock(
        &self,
        id: HostId,
        author: &str,
        note: &str,
    ) -> Result<Arc<Host>, EditError> {
        let length = note.chars().count();
        if length > NOTE_MAX {
            return Err(EditError::NoteTooLong(length));
        }
        let lock = Lock {
            create_time: now(),
            author: author.to_owned(),
            note: note.to_owned(),
        };
        let host = self
            .edit(id, |host| {
                host.lock.get_or_insert(lock);
            })
            .await?;
        self.tell(Bar::Locked(id));
        Ok(host)
    }

    /// Lets a host attach again: takes its lock away and forgets an identity conflict.
    pub(crate) async fn unlock(&self, id: HostId) -> Result<Arc<Host>, EditError> {
        self.edit(id, |host| {
            host.lock = None;
            host.identity_conflict.clear();
        })
        .await
    }

    /// Lowers how far tasks may reach on the host, or with `None` leaves that to its own policy.
    pub(crate) async fn set_mode_limit(
        &self,
        id: HostId,
        limit: Option<Mode>,
        note: &str,
    ) -> Result<Arc<Host>, EditError> {
        let length = note.chars().count();
        if length > NOTE_MAX {
            return Err(EditError::NoteTooLong(length));
        }
        self.edit(id, |host| {
            host.mode_limit = limit;
            host.mode_note = note.to_owned();
        })
        .await
    }

    /// Sets a host aside because two agents present its identity.
    pub(crate) async fn set_aside(&self, id: HostId, seen: &str) -> Result<(), EditError> {
        self.edit(id, |host| host.identity_conflict = seen.to_owned())
            .await?;
        self.tell(Bar::Locked(id));
        Ok(())
    }

    /// Notes when the host's new certificate expires.
    pub(crate) async fn certificate_renewed(
        &self,
        id: HostId,
        expire_time: i64,
    ) -> Result<(), EditError> {
        self.edit(id, |host| host.certificate_expire_time = Some(expire_time))
            .await
            .map(drop)
    }

    /// Removes a host and retires its id.
    pub(crate) async fn remove(&self, id: HostId) -> Result<(), EditError> {
        let _turn = self.shared().editing.lock().await;
        if self.get(id).is_none() {
            return Err(EditError::HostNotFound(id));
        }
        let mut batch = Batch::new();
        batch.remove_host(id, now());
        self.commit(batch).await?;
        self.take_out(id);
        self.tell(Bar::Removed(id));
        Ok(())
    }
}
