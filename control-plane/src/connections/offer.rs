//! An offer on the wire: sealed when it leaves, opened when it comes back.

use std::collections::HashMap;

use bytes::Bytes;
use muster_proto::{
    agent::v1::{self as wire, AttachResponse, attach_response::Message},
    ids::{HostId, TaskId},
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

/// A `SealedOffer` whose action and confinement are the bytes that the rooms keep: read and written anew, a map could
/// come out in another order, and an offer that is made again must be the same to the byte.
#[derive(Clone, PartialEq, prost::Message)]
struct Kept {
    #[prost(string, tag = "1")]
    task_id: String,
    #[prost(string, tag = "2")]
    job_id: String,
    #[prost(string, tag = "3")]
    host_id: String,
    #[prost(string, tag = "4")]
    host_name: String,
    #[prost(string, tag = "5")]
    principal: String,
    #[prost(string, tag = "6")]
    request_id: String,
    #[prost(bytes = "bytes", tag = "7")]
    request_digest: Bytes,
    #[prost(string, tag = "8")]
    selector: String,
    #[prost(bytes = "bytes", tag = "9")]
    action: Bytes,
    #[prost(message, optional, tag = "10")]
    not_after: Option<prost_types::Timestamp>,
    #[prost(message, optional, tag = "11")]
    create_time: Option<prost_types::Timestamp>,
    #[prost(int32, tag = "12")]
    ordinal: i32,
    #[prost(message, optional, tag = "13")]
    lost_after: Option<prost_types::Duration>,
    #[prost(string, tag = "14")]
    control_plane_id: String,
    #[prost(bytes = "bytes", tag = "15")]
    confinement: Bytes,
    #[prost(string, tag = "16")]
    reason: String,
    #[prost(string, tag = "17")]
    approval_id: String,
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
    let bytes = bytes(control_plane_id, order, ordinal, task);
    let seal = sealer.seal(&bytes);
    Sealed { bytes, seal }
}

/// An offer as it is sealed: the same for the same task, whenever it is made.
pub(crate) fn bytes(control_plane_id: &str, order: &Order, ordinal: u32, task: &Task) -> Bytes {
    let offer = Kept {
        task_id: task.task_id.to_string(),
        job_id: order.job_id.to_string(),
        host_id: task.host_id.to_string(),
        host_name: task.host_name.to_string(),
        principal: order.principal.to_string(),
        request_id: order.request_id.to_string(),
        request_digest: Bytes::copy_from_slice(&order.request_digest),
        selector: order.selector.to_string(),
        action: order.action.clone(),
        not_after: Some(convert::timestamp(order.start_deadline_time)),
        create_time: Some(convert::timestamp(order.create_time)),
        ordinal: i32::try_from(ordinal).unwrap_or(i32::MAX),
        lost_after: Some(convert::duration_ms(order.lost_after)),
        control_plane_id: control_plane_id.to_owned(),
        confinement: order.confinement.clone(),
        reason: order.reason.to_string(),
        approval_id: order.approval_id.to_string(),
    };
    offer.encode_to_vec().into()
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
    let offer = Kept::decode(bytes).ok()?;
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
            action: offer.action,
            confinement: offer.confinement,
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

#[cfg(test)]
mod tests {
    use muster_proto::{
        ids::JobId,
        v1::{Action, Command, Confinement, Mode, action},
    };

    use super::*;

    #[test]
    fn an_offer_reads_as_the_contract_has_it_and_is_the_same_each_time() {
        let environment = (0..20).map(|number| (format!("V{number}"), "x".to_owned()));
        let action = Action {
            kind: Some(action::Kind::Command(Command {
                argv: vec!["true".to_owned()],
                env: environment.collect(),
                ..Command::default()
            })),
        };
        let confinement = Confinement {
            mode: Mode::Edit.into(),
            ..Confinement::default()
        };
        let order = Order {
            job_id: JobId::from_bytes(&[1; 32]),
            principal: "operator/ada".into(),
            request_id: "r-1".into(),
            request_digest: [2; 32],
            selector: "all".into(),
            action: action.encode_to_vec().into(),
            confinement: confinement.encode_to_vec().into(),
            reason: "to see".into(),
            approval_id: "p-1".into(),
            create_time: 5,
            start_deadline_time: 605,
            lost_after: 7,
        };
        let (task, host) = (TaskId::from_bytes(&[3; 32]), HostId::from_bytes(&[4; 32]));
        let task = Task::new(task, host, "web-1".into(), None, 5);
        let offer = bytes("c-1", &order, 9, &task);
        assert_eq!(offer, bytes("c-1", &order, 9, &task));
        let read = wire::SealedOffer::decode(offer.clone()).unwrap();
        assert_eq!(read.action, Some(action));
        assert_eq!(read.confinement, Some(confinement));
        assert_eq!(read.task_id, task.task_id.to_string());
        assert_eq!((read.ordinal, &*read.control_plane_id), (9, "c-1"));
        assert_eq!((&*read.reason, &*read.approval_id), ("to see", "p-1"));
        // Nothing of the contract is left out.
        let again = Kept::decode(&read.encode_to_vec()[..]).unwrap();
        let kept = Kept::decode(offer).unwrap();
        assert_eq!(
            (again.host_name, again.request_digest, again.selector),
            (kept.host_name, kept.request_digest, kept.selector)
        );
        assert_eq!(
            (again.not_after, again.create_time, again.lost_after),
            (kept.not_after, kept.create_time, kept.lost_after)
        );
    }
}
