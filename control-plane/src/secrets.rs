//! Values of an environment that look secret are encrypted wherever a job is written down: intake, ledger, backup. Hosts
//! are given them beside the offer, which they keep, and not in it.
//!
//! The keys stand in a file of their own. A new one is made each day, and one that no job can need any more is
//! forgotten: with it goes what may be left of values in pages that were freed.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use data_encoding::HEXLOWER;
use muster_client::identity::write_file;
use muster_proto::v1::Action;
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::now,
    model::{
        Order, Values,
        redaction::{CLOSED_START, is_closed},
    },
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

    /// Encrypts values, each for the name of its variable.
    pub(crate) fn close(&self, values: Values) -> Result<Values, NotEncrypted> {
        let closed = values.into_iter().map(|(name, value)| {
            let text = self.encrypt(&name, &value)?;
            Ok((name, text))
        });
        closed.collect()
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

    /// The values that stand apart from an order, by name, but for those that are gone.
    pub(crate) fn values(&self, order: &Order) -> HashMap<String, String> {
        let opened = order.secrets.iter().filter_map(|(name, text)| {
            let value = match is_closed(text) {
                true => self.open_value(name, text)?,
                // As versions that did not encrypt wrote it.
                false => text.clone(),
            };
            Some((name.clone(), value))
        });
        opened.collect()
    }

    /// The action as it was given; `None` if a value in it is gone.
    pub(crate) fn open_action(&self, order: &Order) -> Option<Action> {
        order.action.with(&self.values(order))
    }

    /// The value of a variable that was encrypted; `None` if it is not, or its key is gone.
    fn open_value(&self, name: &str, text: &str) -> Option<String> {
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
    use super::*;

    fn closed(secrets: &Secrets, value: &str) -> String {
        let values = [("API_TOKEN".to_owned(), value.to_owned())];
        let mut closed = secrets.close(values.into()).unwrap();
        closed.remove("API_TOKEN").unwrap()
    }

    #[test]
    fn a_value_is_encrypted_for_its_name_and_read_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::open(directory.path()).unwrap();
        let text = closed(&secrets, "hush");
        assert!(!text.contains("hush"));
        assert_ne!(closed(&secrets, "hush"), text);

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
    fn what_a_caller_gives_as_encrypted_is_but_a_value() {
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::open(directory.path()).unwrap();
        let stolen = closed(&secrets, "hush");
        let opened = secrets.open_value("API_TOKEN", &closed(&secrets, &stolen));
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
        let text = closed(&secrets, "hush");
        let time = now();
        secrets.turn(time + KEY_AGE_MS).unwrap();
        assert!(secrets.open_value("API_TOKEN", &text).is_some());
        secrets.turn(time + KEY_AGE_MS + KEY_NEEDED_MS).unwrap();
        assert_eq!(secrets.open_value("API_TOKEN", &text), None);
        let again = Secrets::open(directory.path()).unwrap();
        assert_eq!(again.open_value("API_TOKEN", &text), None);
    }
}
