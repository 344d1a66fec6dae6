//! Seals offers, so that what a host hands back can be believed.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use aws_lc_rs::hmac;
use rand::Rng as _;

/// Bytes of the key.
const KEY_BYTES: usize = 32;

/// HMAC-SHA256 by a key that never leaves this control plane.
pub(crate) struct Sealer(hmac::Key);

impl Sealer {
    /// Reads the key, or makes it: durable before anything is sealed by it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let key = match fs::read(path) {
            Ok(key) => key,
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(path)?,
            Err(error) => return Err(error),
        };
        if key.len() != KEY_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a seal key has 32 bytes; restore it from a backup",
            ));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// The seal over `bytes`.
    pub(crate) fn seal(&self, bytes: &[u8]) -> Vec<u8> {
        hmac::sign(&self.0, bytes).as_ref().to_vec()
    }

    /// Whether `seal` is ours over `bytes`; takes the same time either way.
    pub(crate) fn holds(&self, bytes: &[u8], seal: &[u8]) -> bool {
        hmac::verify(&self.0, bytes, seal).is_ok()
    }
}

fn make(path: &Path) -> io::Result<Vec<u8>> {
    let key = rand::rng().random::<[u8; KEY_BYTES]>().to_vec();
    let temporary = path.with_extension("new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&key)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_holds_over_its_bytes_and_across_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seal.key");
        let seal = Sealer::open(&path).unwrap().seal(b"offer");
        let again = Sealer::open(&path).unwrap();
        assert!(again.holds(b"offer", &seal));
        assert!(!again.holds(b"other", &seal));
        assert!(!again.holds(b"offer", &seal[1..]));
        assert!(!again.holds(b"offer", b""));
    }
}
