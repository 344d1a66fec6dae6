//! Whom processes run as.

use std::{ffi::CString, io, path::PathBuf};

use muster_proto::v1::Reason;
use nix::unistd::{Gid, Uid, geteuid, getgrouplist};

use super::StartError;

/// A user of this host.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) groups: Vec<Gid>,
}

impl User {
    /// Whom we run as.
    pub(super) fn current() -> io::Result<Self> {
        let uid = geteuid();
        if let Some(user) = nix::unistd::User::from_uid(uid)? {
            return Ok(Self::from_entry(user));
        }
        // A container may run under an id that its user database does not have.
        Ok(Self {
            name: uid.to_string(),
            home: std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from),
            shell: PathBuf::from("/bin/sh"),
            uid,
            gid: nix::unistd::getegid(),
            groups: Vec::new(),
        })
    }

    /// The other user, if we may run as that one.
    pub(super) fn switch_to(&self, name: &str) -> Result<Self, StartError> {
        let not_permitted = |message| StartError::new(Reason::UserNotPermitted, message);
        let found = nix::unistd::User::from_name(name)
            .ok()
            .flatten()
            .ok_or_else(|| not_permitted(format!("this host has no user {name:?}")))?;
        if !self.uid.is_root() {
            return Err(not_permitted(format!(
                "the agent runs as {:?}, and only an agent that runs as root may run commands as {name:?}",
                self.name
            )));
        }
        let groups = CString::new(name)
            .ok()
            .and_then(|name| getgrouplist(&name, found.gid).ok())
            .ok_or_else(|| not_permitted(format!("the groups of {name:?} cannot be read")))?;
        Ok(Self {
            groups,
            ..Self::from_entry(found)
        })
    }

    /// What a login would set.
    pub(super) fn variables(&self) -> [(&'static str, String); 4] {
        [
            ("HOME", self.home.display().to_string()),
            ("USER", self.name.clone()),
            ("LOGNAME", self.name.clone()),
            ("SHELL", self.shell.display().to_string()),
        ]
    }

    fn from_entry(user: nix::unistd::User) -> Self {
        let shell = if user.shell.as_os_str().is_empty() {
            PathBuf::from("/bin/sh")
        } else {
            user.shell
        };
        Self {
            name: user.name,
            home: user.dir,
            shell,
            uid: user.uid,
            gid: user.gid,
            groups: Vec::new(),
        }
    }
}
