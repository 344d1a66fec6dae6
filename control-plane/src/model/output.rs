//! Where output comes from, and how much there is.

/// Why output is missing that its host had handed over before the restore.
pub(crate) const GAP_CAUSE: &str =
    "handed over before the control plane was restored from a backup that does not hold it";

/// Where output comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A terminal, where both are one.
    Pty,
}

impl Stream {
    /// Every stream, in the order of their indexes.
    pub(crate) const ALL: [Stream; 3] = [Stream::Stdout, Stream::Stderr, Stream::Pty];

    /// Its place in arrays with one slot for each stream.
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// The stream at an index.
    pub(crate) fn at(index: usize) -> Option<Stream> {
        Self::ALL.get(index).copied()
    }
}

/// How much output a task has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct OutputSize {
    /// Bytes of standard output, or of the terminal.
    pub(crate) stdout_bytes: i64,
    /// Bytes of standard error.
    pub(crate) stderr_bytes: i64,
    /// Bytes that were not kept.
    pub(crate) dropped_bytes: i64,
    /// The highest sequence.
    pub(crate) last_sequence: i64,
}
