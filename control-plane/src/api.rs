//! Doors: gRPC in and out.

pub(crate) mod output;
pub(crate) mod page;
pub(crate) mod status;
