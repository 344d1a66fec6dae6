//! How far a job may reach: what a request asks for, and what policy makes of it.

use bytes::Bytes;
use muster_proto::v1::{self, Confinement};
use prost::Message as _;

use crate::{
    model::{Mode, NetworkAccess, mode_in, mode_out},
    policy::Plan,
};

/// The mode and network that a request asks for; `None` where it leaves them open.
pub(crate) fn asked(confinement: &Bytes) -> (Option<Mode>, Option<NetworkAccess>) {
    let asked = Confinement::decode(Bytes::clone(confinement)).unwrap_or_default();
    (
        mode_in(asked.mode()),
        asked.network.as_ref().and_then(network_in),
    )
}

/// How much of the network is asked for; `None` if it says nothing.
pub(crate) fn network_in(network: &v1::Network) -> Option<NetworkAccess> {
    match network.access() {
        v1::network::Access::None => Some(NetworkAccess::None),
        v1::network::Access::List => Some(NetworkAccess::List),
        v1::network::Access::All => Some(NetworkAccess::All),
        v1::network::Access::Unspecified => None,
    }
}

/// What was asked for, with what policy lowered where nothing was said. Empty where nothing is confined.
pub(crate) fn confinement(asked: &Bytes, plan: &Plan) -> Bytes {
    if plan.is_unbounded {
        return Bytes::clone(asked);
    }
    let mut confinement = Confinement::decode(Bytes::clone(asked)).unwrap_or_default();
    confinement.set_mode(mode_out(Some(plan.mode)));
    let closes = plan.network == NetworkAccess::None && plan.mode != Mode::ReadOnly;
    if confinement.network.is_none() && closes {
        confinement.network = Some(v1::Network {
            access: v1::network::Access::None.into(),
            allow: Vec::new(),
        });
    }
    confinement.encode_to_vec().into()
}

/// How far a confinement of a job lets it reach. One that says nothing says no less than all.
pub(crate) fn reach(confinement: &Bytes) -> (Option<Mode>, Option<NetworkAccess>) {
    let (mode, network) = asked(confinement);
    let mode = mode.unwrap_or(Mode::Unrestricted);
    let network = network.unwrap_or(match mode {
        Mode::ReadOnly | Mode::Disabled => NetworkAccess::None,
        Mode::Edit | Mode::Unrestricted => NetworkAccess::All,
    });
    (Some(mode), Some(network))
}
