//! The digest of what a task wrote, which its receipt has.

use aws_lc_rs::digest::{Context, SHA256};

use super::Hash;

/// More output than this gets no digest, bytes: it would cost more than the rest of the way that output takes.
pub const OUTPUT_DIGESTED_MAX: u64 = 1 << 20;

/// Streams of a task: standard output, standard error, terminal.
const STREAMS: usize = 3;

/// The digest of what a task wrote, taken while it comes.
pub struct OutputDigest {
    streams: [Context; STREAMS],
    bytes: u64,
    complete: bool,
}

impl Default for OutputDigest {
    fn default() -> Self {
        Self {
            streams: std::array::from_fn(|_| Context::new(&SHA256)),
            bytes: 0,
            complete: true,
        }
    }
}

impl OutputDigest {
    /// These bytes of a stream come next: 0 is standard output, 1 standard error, 2 the terminal.
    pub fn add(&mut self, stream: usize, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if self.bytes > OUTPUT_DIGESTED_MAX {
            self.complete = false;
        } else if self.complete
            && let Some(stream) = self.streams.get_mut(stream)
        {
            stream.update(bytes);
        }
    }

    /// The digest of a task that wrote nothing.
    pub fn of_nothing() -> Hash {
        Self::default().digest().expect("all of nothing was seen")
    }

    /// Something was not seen: there will be no digest.
    pub fn miss(&mut self) {
        self.complete = false;
    }

    /// SHA-256 over the three streams' SHA-256 in a row; `None` if there was too much, or not all was seen.
    pub fn digest(&self) -> Option<Hash> {
        if !self.complete {
            return None;
        }
        let mut whole = Context::new(&SHA256);
        for stream in &self.streams {
            whole.update(stream.clone().finish().as_ref());
        }
        whole.finish().as_ref().try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_of_each_stream_whatever_the_pieces() {
        let mut once = OutputDigest::default();
        once.add(0, b"hello");
        once.add(1, b"world");
        let mut pieces = OutputDigest::default();
        pieces.add(1, b"wor");
        pieces.add(0, b"hel");
        pieces.add(0, b"lo");
        pieces.add(1, b"ld");
        assert_eq!(once.digest(), pieces.digest());
        let mut swapped = OutputDigest::default();
        swapped.add(1, b"hello");
        swapped.add(0, b"world");
        assert_ne!(once.digest(), swapped.digest());
    }

    #[test]
    fn of_too_much_and_of_what_was_missed_there_is_none() {
        let mut digest = OutputDigest::default();
        let half = vec![0; OUTPUT_DIGESTED_MAX as usize / 2];
        digest.add(0, &half);
        digest.add(1, &half);
        assert!(digest.digest().is_some());
        digest.add(0, b"x");
        assert_eq!(digest.digest(), None);
        let mut digest = OutputDigest::default();
        digest.miss();
        assert_eq!(digest.digest(), None);
    }
}
