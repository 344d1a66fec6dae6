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
pub(crate) mod output;
pub(crate) mod page;
mod policies;
mod rules;
mod scopes;

#[cfg(test)]
pub(crate) use rules::tests::methods;
