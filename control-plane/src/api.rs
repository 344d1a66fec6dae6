//! Doors: gRPC in and out.

pub(crate) mod access;
pub(crate) mod approvals;
pub(crate) mod audit;
mod authorities;
pub(crate) mod caller;
pub(crate) mod enrollment;
pub(crate) mod hosts;
pub(crate) mod jobs;
mod measured;
mod methods;
pub(crate) mod output;
pub(crate) mod page;
mod policies;

#[cfg(test)]
pub(crate) use methods::tests::methods;
