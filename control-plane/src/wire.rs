//! Between the nouns and the wire: what both kinds of doors need, those of operators and those of agents.
//!
//! A gRPC status is made in `status`, and nowhere else. What hosts say is cut in `heard` to what a host has reason to say,
//! since an agent may be in the wrong hands.

pub(crate) mod heard;
pub(crate) mod status;
pub(crate) mod streams;
