//! Doors: gRPC in and out.

pub(crate) mod approvals;
pub(crate) mod audit;
pub(crate) mod authorities;
pub(crate) mod caller;
pub(crate) mod enrollment;
pub(crate) mod former;
pub(crate) mod hosts;
pub(crate) mod jobs;
mod measured;
mod methods;
pub(crate) mod output;
pub(crate) mod page;
pub(crate) mod policies;
pub(crate) mod principals;
pub(crate) mod tokens;

#[cfg(test)]
pub(crate) use methods::tests::{deprecated, methods};
