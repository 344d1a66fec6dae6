//! How much output there is.

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
