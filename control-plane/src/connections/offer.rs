//! An offer on the wire: sealed when it leaves, opened when it comes back.

use std::collections::HashMap;

use bytes::Bytes;
use muster_proto::{
    agent::v1::{self as wire, AttachResponse, attach_response::Message},
    ids::{HostId, TaskId},
    v1::{Action, Confinement},
};
use prost::Message as _;

use crate::{
    api::convert,
    jobs::{Order, Task},
    seal::Sealer,
};

/// An offer's bytes and the seal over them.
pub(crate) struct Sealed {
    bytes: Bytes,
    seal: Vec<u8>,
}

/// What an offer says that came back under our seal.
pub(crate) struct Unsealed {
    /// The job.
    pub(crate) order: Order,
    /// The task.
    pub(crate) task_id: TaskId,
    /// Its host.
    pub(crate) host_id: HostId,
    /// The host's name when the job was created.
    pub(crate) host_name: String,
}

/// Seals all that the ledger needs to know a task again.
pub(crate) fn seal(
    sealer: &Sealer,
    control_plane_id: &str,
    order: &Order,
    ordinal: u32,
    task: &Task,
) -> Sealed {
    let offer = wire::SealedOffer {
        task_id: task.task_id.to_string(),
        job_id: order.job_id.to_string(),
        host_id: task.host_id.to_string(),
        host_name: task.host_name.to_string(),
        principal: order.principal.to_string(),
        request_id: order.request_id.to_string(),
        request_digest: Bytes::copy_from_slice(&order.request_digest),
        selector: order.selector.to_string(),
        // The rooms keep actions as the bytes that the door checked.
        action: Action::decode(order.action.clone()).ok(),
        not_after: Some(convert::timestamp(order.start_deadline_time)),
        create_time: Some(convert::timestamp(order.create_time)),
        ordinal: i32::try_from(ordinal).unwrap_or(i32::MAX),
        lost_after: Some(convert::duration_ms(order.lost_after)),
        control_plane_id: control_plane_id.to_owned(),
        confinement: (!order.confinement.is_empty())
            .then(|| Confinement::decode(order.confinement.clone()).ok())
            .flatten(),
        reason: order.reason.to_string(),
        approval_id: order.approval_id.to_string(),
    };
    let bytes = Bytes::from(offer.encode_to_vec());
    let seal = sealer.seal(&bytes);
    Sealed { bytes, seal }
}

/// Opens an offer; `None` unless this control plane sealed these very bytes.
pub(crate) fn unseal(
    sealer: &Sealer,
    control_plane_id: &str,
    bytes: &[u8],
    seal: &[u8],
) -> Option<Unsealed> {
    if !sealer.holds(bytes, seal) {
        return None;
    }
    let offer = wire::SealedOffer::decode(bytes).ok()?;
    if offer.control_plane_id != control_plane_id {
        return None;
    }
    Some(Unsealed {
        task_id: offer.task_id.parse().ok()?,
        host_id: offer.host_id.parse().ok()?,
        host_name: offer.host_name,
        order: Order {
            job_id: offer.job_id.parse().ok()?,
            principal: offer.principal.into(),
            request_id: offer.request_id.into(),
            request_digest: offer.request_digest.as_ref().try_into().ok()?,
            selector: offer.selector.into(),
            action: offer.action?.encode_to_vec().into(),
            confinement: offer
                .confinement
                .map(|confinement| confinement.encode_to_vec())
                .unwrap_or_default()
                .into(),
            reason: offer.reason.into(),
            approval_id: offer.approval_id.into(),
            create_time: convert::millis(&offer.create_time?),
            start_deadline_time: convert::millis(&offer.not_after?),
            lost_after: convert::duration_millis(&offer.lost_after?),
        },
    })
}

/// The message that offers a task.
pub(crate) fn message(sealed: Sealed, trace: HashMap<String, String>) -> AttachResponse {
    down(Message::Offer(wire::Offer {
        sealed_offer: sealed.bytes,
        seal: sealed.seal.into(),
        trace,
    }))
}

/// The message that ends a task.
pub(crate) fn cancel(order: &Order, task: &Task) -> AttachResponse {
    down(Message::Cancel(wire::Cancel {
        task_id: task.task_id.to_string(),
        grace: task.cancel_grace.map(convert::duration_ms),
        not_after: Some(convert::timestamp(order.start_deadline_time)),
    }))
}

/// A message down to an agent.
pub(super) fn down(message: Message) -> AttachResponse {
    AttachResponse {
        message: Some(message),
    }
}
