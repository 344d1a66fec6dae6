//! Jobs and their output as text that fits.

pub(crate) mod clean;
pub(crate) mod excerpt;
pub(crate) mod job;
pub(crate) mod kept;
mod next;
pub(crate) mod part;
pub(crate) mod words;
