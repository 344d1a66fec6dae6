//! Values of an environment that look secret are encrypted wherever a job is written down: intake, ledger, backup. Hosts
//! are given them beside the offer, which they keep, and not in it.
//!
//! The keys stand in a file of their own. A new one is made each day, and one that no job can need any more is
//! forgotten: with it goes what may be left of values in pages that were freed.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use muster_client::identity::write_file;
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::now,
    model::redaction::{self, CLOSED_START, is_closed},
};

/// The file of the keys.
pub(crate) const FILE: &str = "secrets.json";

/// How long a key encrypts.
const KEY_AGE_MS: i64 = 24 * 3600 * 1000;

/// How much longer it decrypts: the longest that a job may wait for an approval and then to start, each seven days, and
/// a day more.
const KEY_NEEDED_MS: i64 = 15 * 24 * 3600 * 1000;

/// How often the keys are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// A value could not be encrypted.
#[derive(Debug, thiserror::Error)]
#[error("a secret value could not be encrypted")]
pub(crate) struct NotEncrypted;

/// Encrypts and decrypts. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Secrets(Arc<Shared>);

struct Shared {
    path: PathBuf,
    /// The newest last; it encrypts.
    keys: ArcSwap<Vec<Key>>,
}

/// A key as it is kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    id: String,
    /// Unix milliseconds.
    create_time: i64,
    /// Hex.
    key: String,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    keys: Vec<Key>,
}

impl Key {
    fn draw(now: i64) -> Self {
        Self {
            id: HEXLOWER.encode(&rand::rng().random::<[u8; 4]>()),
            create_time: now,
            key: HEXLOWER.encode(&rand::rng().random::<[u8; 32]>()),
        }
    }

    fn cipher(&self) -> Option<RandomizedNonceKey> {
        let key = HEXLOWER.decode(self.key.as_bytes()).ok()?;
        RandomizedNonceKey::new(&AES_256_GCM, &key).ok()
    }
}

/// The keys as they should be at this time; `None` if they are. The newest stays, whatever the clock says.
fn turned(keys: &[Key], now: i64) -> Option<Vec<Key>> {
    let (newest, older) = match keys.split_last() {
        None => return Some(vec![Key::draw(now)]),
        Some(split) => split,
    };
    let needed = |key: &&Key| now - key.create_time < KEY_AGE_MS + KEY_NEEDED_MS;
    let mut next: Vec<Key> = older.iter().filter(needed).cloned().collect();
    next.push(newest.clone());
    if now - newest.create_time >= KEY_AGE_MS {
        next.push(Key::draw(now));
    }
    (next != keys).then_some(next)
}

impl Secrets {
    /// Reads the keys of a data directory, or makes the first one.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join(FILE);
        let keys = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Kept>(&bytes)?.keys,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        if let Some(key) = keys.iter().find(|key| key.cipher().is_none()) {
            let message = format!("key {} is none; restore the file from a backup", key.id);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let first = keys.is_empty();
        let secrets = Self(Arc::new(Shared {
            path,
            keys: ArcSwap::from_pointee(keys),
        }));
        match secrets.turn(now()) {
            Err(error) if first => Err(error),
            Err(error) => {
                secrets.warn(&error);
                Ok(secrets)
            }
            Ok(()) => Ok(secrets),
        }
    }

    /// The keys that there are go on: a disk that is full is no reason not to start.
    fn warn(&self, error: &io::Error) {
        let path = self.0.path.display();
        tracing::warn!(%error, "{path} cannot be written, so the key for secret values stays: {error}");
    }

    /// Makes a new key and forgets those that nobody needs, if it is time. Waits for the disk.
    fn turn(&self, now: i64) -> io::Result<()> {
        let Some(keys) = turned(&self.0.keys.load(), now) else {
            return Ok(());
        };
        let path = &self.0.path;
        let old = File::options().write(true).open(path).ok();
        let text = serde_json::to_vec_pretty(&Kept { keys: keys.clone() })?;
        write_file(path, &text, 0o600).map_err(io::Error::other)?;
        self.0.keys.store(Arc::new(keys));
        // The file that was replaced has no name any more, and its bytes would stay on the disk.
        if let Some(mut old) = old {
            let length = usize::try_from(old.metadata()?.len()).unwrap_or_default();
            old.write_all(&vec![0; length])?;
            old.sync_data()?;
        }
        Ok(())
    }

    /// Looks at the keys now and then, until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return,
            }
            let secrets = self.clone();
            let turned = tokio::task::spawn_blocking(move || secrets.turn(now())).await;
            if let Ok(Err(error)) = turned {
                self.warn(&error);
            }
        }
    }

    /// A serialized action in which each value that looks secret is encrypted.
    pub(crate) fn close(&self, action: Bytes) -> Result<Bytes, NotEncrypted> {
        let closed = redaction::replaced(&action, |name, value| self.encrypt(name, value))?;
        Ok(closed.unwrap_or(action))
    }

    fn encrypt(&self, name: &str, value: &str) -> Result<String, NotEncrypted> {
        let keys = self.0.keys.load();
        let key = keys.last().ok_or(NotEncrypted)?;
        let cipher = key.cipher().ok_or(NotEncrypted)?;
        let mut bytes = value.as_bytes().to_vec();
        let nonce = cipher
            .seal_in_place_append_tag(Aad::from(name), &mut bytes)
            .map_err(|_| NotEncrypted)?;
        let mut sealed = nonce.as_ref().to_vec();
        sealed.append(&mut bytes);
        Ok(format!(
            "{CLOSED_START}{}:{}",
            key.id,
            STANDARD_NO_PAD.encode(sealed)
        ))
    }

    /// The action as it was given; `None` if a value in it is gone.
    pub(crate) fn open_action(&self, action: &Bytes) -> Option<Bytes> {
        let opened = redaction::replaced(action, |name, value| match is_closed(value) {
            true => self.open_value(name, value).ok_or(()),
            false => Ok(value.to_owned()),
        });
        let opened = opened.ok()?.unwrap_or_else(|| Bytes::clone(action));
        (!redaction::lacks_secrets(&opened)).then_some(opened)
    }

    /// The value of a variable that was encrypted; `None` if it is not, or its key is gone.
    pub(crate) fn open_value(&self, name: &str, text: &str) -> Option<String> {
        let (id, sealed) = text.strip_prefix(CLOSED_START)?.split_once(':')?;
        let sealed = STANDARD_NO_PAD.decode(sealed).ok()?;
        let (nonce, bytes) = sealed.split_at_checked(NONCE_LEN)?;
        let keys = self.0.keys.load();
        let cipher = keys.iter().find(|key| key.id == id)?.cipher()?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut bytes = bytes.to_vec();
        let value = cipher
            .open_in_place(nonce, Aad::from(name), &mut bytes)
            .ok()?;
        String::from_utf8(value.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::{Action, Command, action};
    use prost::Message as _;

    use super::*;

    fn action(value: &str) -> Bytes {
        let env = [("API_TOKEN", value), ("LANG", "C")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let command = Command {
            env: env.into(),
            ..Command::default()
        };
        let kind = Some(action::Kind::Command(command));
        Action { kind }.encode_to_vec().into()
    }

    fn value(action: &Bytes) -> String {
        match Action::decode(action.clone()).unwrap().kind {
            Some(action::Kind::Command(command)) => command.env["API_TOKEN"].clone(),
            _ => unreachable!("it is a command"),
        }
    }

    #[test]
    fn a_value_is_encrypted_for_its_name_and_read_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::open(directory.path()).unwrap();
        let closed = secrets.close(action("hush")).unwrap();
        assert!(!closed.windows(4).any(|window| window == b"hush"));
        let text = value(&closed);
        assert_ne!(value(&secrets.close(action("hush")).unwrap()), text);

        let again = Secrets::open(directory.path()).unwrap();
        assert_eq!(
            again.open_value("API_TOKEN", &text).as_deref(),
            Some("hush")
        );
        assert_eq!(again.open_value("OTHER_TOKEN", &text), None);
        assert_eq!(again.open_value("API_TOKEN", "hush"), None);
        assert_eq!(again.open_value("API_TOKEN", &text[..text.len() - 2]), None);
        let elsewhere = tempfile::tempdir().unwrap();
        let other = Secrets::open(elsewhere.path()).unwrap();
        assert_eq!(other.open_value("API_TOKEN", &text), None);
    }

    #[test]
    fn an_action_is_opened_as_it_was_given_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::open(directory.path()).unwrap();
        let closed = secrets.close(action("hush")).unwrap();
        assert_eq!(value(&secrets.open_action(&closed).unwrap()), "hush");
        let plain = action("");
        assert_eq!(secrets.open_action(&plain), Some(plain.clone()));
        let elsewhere = tempfile::tempdir().unwrap();
        let other = Secrets::open(elsewhere.path()).unwrap();
        assert_eq!(other.open_action(&closed), None);
        let forgotten = redaction::without_secrets(&closed).unwrap();
        assert_eq!(secrets.open_action(&forgotten), None);
    }

    #[test]
    fn what_a_caller_gives_as_encrypted_is_but_a_value() {
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::open(directory.path()).unwrap();
        let stolen = value(&secrets.close(action("hush")).unwrap());
        let closed = secrets.close(action(&stolen)).unwrap();
        let opened = secrets.open_value("API_TOKEN", &value(&closed));
        assert_eq!(opened, Some(stolen));
    }

    #[test]
    fn a_key_is_forgotten_once_no_job_can_need_it() {
        let day = KEY_AGE_MS;
        let mut keys = turned(&[], 0).unwrap();
        let first = keys[0].id.clone();
        assert!(turned(&keys, day - 1).is_none());
        for number in 1..30 {
            keys = turned(&keys, number * day).unwrap();
            assert_eq!(keys.iter().any(|key| key.id == first), number < 16);
            assert!(keys.len() <= 17);
            assert_eq!(keys.last().unwrap().create_time, number * day);
        }
        // A clock that jumps leaves something to encrypt with.
        assert!(!turned(&keys, i64::MAX / 2).unwrap().is_empty());
        assert!(turned(&keys, 0).is_none());
    }

    #[test]
    fn what_is_forgotten_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::open(directory.path()).unwrap();
        let text = value(&secrets.close(action("hush")).unwrap());
        let time = now();
        secrets.turn(time + KEY_AGE_MS).unwrap();
        assert!(secrets.open_value("API_TOKEN", &text).is_some());
        secrets.turn(time + KEY_AGE_MS + KEY_NEEDED_MS).unwrap();
        assert_eq!(secrets.open_value("API_TOKEN", &text), None);
        let again = Secrets::open(directory.path()).unwrap();
        assert_eq!(again.open_value("API_TOKEN", &text), None);
    }
}
