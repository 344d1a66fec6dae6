//! Secrets: drawn, recognised by their prefix, kept as hashes.

use std::fmt;

use aws_lc_rs::digest;
use data_encoding::{Encoding, Specification};
use rand::Rng as _;
use std::sync::LazyLock;

/// Random bytes of a secret: 160 bits.
const SECRET_BYTES: usize = 20;

/// Random bytes of the id that names a secret: 80 bits.
const ID_BYTES: usize = 10;

static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification
        .symbols
        .push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("32 symbols, no padding")
});

/// A secret in the clear. Prints without itself.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// Draws one that begins with `prefix`.
    pub(crate) fn draw(prefix: &str) -> Self {
        let random = rand::rng().random::<[u8; SECRET_BYTES]>();
        Self(format!("{prefix}{}", BASE32.encode(&random)))
    }

    /// The secret itself, to be handed over once.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// What is kept of it.
    pub(crate) fn hash(&self) -> Vec<u8> {
        hash(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("...")
    }
}

/// SHA-256 of a secret. No salt and no slow hash: the secret is random and long, nobody guesses it.
pub(crate) fn hash(secret: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, secret.as_bytes())
        .as_ref()
        .to_vec()
}

/// Draws the id of a secret, which is none itself.
pub(crate) fn draw_id(prefix: &str) -> String {
    let random = rand::rng().random::<[u8; ID_BYTES]>();
    format!("{prefix}{}", BASE32.encode(&random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_do_not_print() {
        let (one, other) = (Secret::draw("mst_ai_"), Secret::draw("mst_ai_"));
        assert_ne!(one, other);
        assert_eq!(one.expose().len(), "mst_ai_".len() + 32);
        assert_eq!(format!("{one:?}"), "...");
        assert_eq!(one.hash(), hash(one.expose()));
    }
}
