//! The audit log's format: how entries are chained. `docs/audit.md` says the same to those who write a verifier.
//!
//! What is hashed is the text of an entry, a JSON object, exactly as it stands: nothing is ever written anew to be
//! checked.

mod folded;
mod head;
mod output;
mod receipt;
mod signed;
mod tree;
mod verify;

use aws_lc_rs::digest::{Context, SHA256, digest};
use bytes::Bytes;
use data_encoding::HEXLOWER;

pub use self::{
    folded::{fold, unfold},
    head::{Head, HeadError},
    output::{OUTPUT_DIGESTED_MAX, OutputDigest},
    receipt::{LEAVES_MAX, ReceiptSigner, SignedTogether, check_receipt, is_pending, read_receipt},
    signed::{Purpose, SignatureError},
    tree::leaf_hash,
    verify::{Finding, Report, verify},
};

/// Ahead of everything that is hashed for the chain, so that the hash is of use for nothing else.
const ENTRY_DOMAIN: &[u8] = b"muster audit entry 1\n";

/// SHA-256.
pub type Hash = [u8; 32];

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(digest(&SHA256, bytes).as_ref())
}

/// The digest of a task's serialized result as receipts have it: empty where there is no result.
pub fn digest_of_result(result: &[u8]) -> Bytes {
    match result.is_empty() {
        true => Bytes::new(),
        false => sha256(result),
    }
}

/// What the first entry is chained to.
pub const BEFORE_THE_FIRST: Hash = [0; 32];

/// Where a log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// How many entries it has.
    pub count: u64,
    /// The hash of the last one.
    pub hash: Hash,
}

impl Position {
    /// A log without entries.
    pub const EMPTY: Self = Self {
        count: 0,
        hash: BEFORE_THE_FIRST,
    };

    /// Where the log stands with one entry more.
    #[must_use]
    pub fn with(&self, entry: &str) -> Self {
        Self {
            count: self.count + 1,
            hash: link(&self.hash, entry),
        }
    }
}

/// The hash of an entry, given the one before it.
pub fn link(before: &Hash, entry: &str) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(ENTRY_DOMAIN);
    context.update(before);
    context.update(entry.as_bytes());
    context
        .finish()
        .as_ref()
        .try_into()
        .expect("SHA-256 has 32 bytes")
}

/// An entry as a line of an export: the same object, with its hash as the last member.
pub fn line(entry: &str, hash: &Hash) -> String {
    let open = entry.strip_suffix('}').unwrap_or(entry);
    format!("{open},\"hash\":\"{}\"}}", HEXLOWER.encode(hash))
}

/// The first line of a log that is written down after an entry; after none it is the whole log.
pub fn header(control_plane: &str, after: Position) -> String {
    serde_json::json!({
        "muster_audit": 1,
        "control_plane": control_plane,
        "after": after.count,
        "before": HEXLOWER.encode(&after.hash),
    })
    .to_string()
}

/// The last line.
pub fn last_line(head: &Head) -> String {
    format!("{{\"head\":{}}}", head.to_line())
}
