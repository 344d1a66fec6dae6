//! Jobs, their output and files as text that fits.

pub(crate) mod clean;
pub(crate) mod dump;
pub(crate) mod excerpt;
pub(crate) mod file;
pub(crate) mod image;
pub(crate) mod job;
pub(crate) mod kept;
pub(crate) mod lines;
mod next;
pub(crate) mod part;
pub(crate) mod words;
