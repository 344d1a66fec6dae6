//! The contract: messages and services generated from the `.proto` files, the descriptor set for
//! reflection, and the ids that both sides agree on.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod ids;
mod modes;

/// What operators, scripts and gateways call.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("muster.v1");
}

/// What agents call.
pub mod agent {
    /// Version 1.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("muster.agent.v1");
    }
}

/// Every proto with its comments, serialized as a `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/muster.binpb"));

/// The same without comments, which are three quarters of it: for programs that look fields up.
pub const BARE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/muster.bare.binpb"));

/// The domain of every `google.rpc.ErrorInfo` that Muster sends.
pub const ERROR_DOMAIN: &str = "muster";

/// The name that every control plane's certificate carries. Our own clients verify it whatever the
/// address they dial: the authority is private, so the name needs no address in it.
pub const CONTROL_PLANE_NAME: &str = "control-plane.muster.internal";

impl v1::Reason {
    /// The name as `ErrorInfo.reason` carries it: `HOST_NOT_FOUND`.
    pub fn name(self) -> &'static str {
        self.as_str_name().trim_start_matches("REASON_")
    }

    /// The reason of that name; `None` if this version does not know it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::from_str_name(&format!("REASON_{name}"))
    }
}
