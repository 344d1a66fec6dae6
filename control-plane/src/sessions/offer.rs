//! An offer on the wire: sealed when it leaves, opened when it comes back.

use std::collections::HashMap;

use bytes::Bytes;
use muster_proto::{
    agent::v1::{self as wire, AttachResponse, attach_response::Message},
    ids::{HostId, TaskId},
    v1::{Action, action::Kind},
};
use prost::Message as _;

use crate::{
    model::redaction::{REDACTED, is_closed},
    model::{Order, Task},
    seal::Sealer,
    secrets::Secrets,
    times,
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
    #[prost(string, repeated, tag = "18")]
    secret_env: Vec<String>,
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

/// Values of the environment that look secret, which a host is given beside what it keeps.
#[derive(Default)]
pub(crate) struct Apart {
    /// The names of all of them.
    pub(crate) names: Vec<String>,
    /// Their values by name, but for those that are gone.
    pub(crate) values: HashMap<String, String>,
}

/// What is to be done, serialized, and what is said beside it. To an agent that does not know of that, all is said in the
/// action; where that cannot be, there is none, which it refuses. Made again of the same order, it is the same: also once
/// its secrets are gone.
pub(crate) fn action(secrets: &Secrets, order: &Order, apart: bool) -> (Bytes, Apart) {
    let mut secret = Apart::default();
    if !apart {
        let said = secrets.open_action(&order.action).unwrap_or_default();
        return (said, secret);
    }
    // The rooms keep actions as the bytes that the door checked.
    let Ok(mut action) = Action::decode(order.action.clone()) else {
        return (Bytes::new(), secret);
    };
    let mut changed = false;
    if let Some(Kind::Command(command)) = &mut action.kind {
        for (name, value) in &mut command.env {
            if value != REDACTED && !is_closed(value) {
                continue;
            }
            changed = true;
            let opened = secrets.open_value(name, value);
            secret
                .values
                .extend(opened.map(|value| (name.clone(), value)));
            secret.names.push(name.clone());
            REDACTED.clone_into(value);
        }
    }
    if !changed {
        return (order.action.clone(), secret);
    }
    (action.encode_to_vec().into(), secret)
}

/// Seals all that the ledger needs to know a task again.
pub(crate) fn seal(
    sealer: &Sealer,
    control_plane_id: &str,
    order: &Order,
    said: (Bytes, &[String]),
    ordinal: u32,
    task: &Task,
) -> Sealed {
    let bytes = bytes(control_plane_id, order, said, ordinal, task);
    let seal = sealer.seal(&bytes);
    Sealed { bytes, seal }
}

/// An offer as it is sealed: the same for the same task, whenever it is made.
pub(crate) fn bytes(
    control_plane_id: &str,
    order: &Order,
    (action, secret_env): (Bytes, &[String]),
    ordinal: u32,
    task: &Task,
) -> Bytes {
    let offer = Kept {
        task_id: task.task_id.to_string(),
        job_id: order.job_id.to_string(),
        host_id: task.host_id.to_string(),
        host_name: task.host_name.to_string(),
        principal: order.principal.to_string(),
        request_id: order.request_id.to_string(),
        request_digest: Bytes::copy_from_slice(&order.request_digest),
        selector: order.selector.to_string(),
        action,
        secret_env: secret_env.to_vec(),
        not_after: Some(times::timestamp(order.start_deadline_time)),
        create_time: Some(times::timestamp(order.create_time)),
        ordinal: i32::try_from(ordinal).unwrap_or(i32::MAX),
        lost_after: Some(times::duration_ms(order.lost_after)),
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
            create_time: times::millis(&offer.create_time?),
            start_deadline_time: times::millis(&offer.not_after?),
            lost_after: times::duration_millis(&offer.lost_after?),
        },
    })
}

/// The message that offers a task.
pub(crate) fn message(
    sealed: Sealed,
    secret_env: HashMap<String, String>,
    trace: HashMap<String, String>,
) -> AttachResponse {
    down(Message::Offer(wire::Offer {
        sealed_offer: sealed.bytes,
        seal: sealed.seal.into(),
        secret_env,
        trace,
    }))
}

/// The message that ends a task.
pub(crate) fn cancel(order: &Order, task: &Task) -> AttachResponse {
    down(Message::Cancel(wire::Cancel {
        task_id: task.task_id.to_string(),
        grace: task.cancel_grace.map(times::duration_ms),
        not_after: Some(times::timestamp(order.start_deadline_time)),
    }))
}

/// A message down to an agent.
pub(crate) fn down(message: Message) -> AttachResponse {
    AttachResponse {
        message: Some(message),
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::{
        ids::JobId,
        v1::{Command, Confinement, Mode},
    };

    use super::*;

    fn command(env: &[(&str, &str)]) -> Action {
        let env = env.iter();
        Action {
            kind: Some(Kind::Command(Command {
                argv: vec!["true".to_owned()],
                env: env
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
                ..Command::default()
            })),
        }
    }

    fn order(action: Bytes, confinement: Bytes) -> Order {
        Order {
            job_id: JobId::from_bytes(&[1; 32]),
            principal: "operator/ada".into(),
            request_id: "r-1".into(),
            request_digest: [2; 32],
            selector: "all".into(),
            action,
            confinement,
            reason: "to see".into(),
            approval_id: "p-1".into(),
            create_time: 5,
            start_deadline_time: 605,
            lost_after: 7,
        }
    }

    fn offer(secrets: &Secrets, order: &Order) -> Bytes {
        let (task, host) = (TaskId::from_bytes(&[3; 32]), HostId::from_bytes(&[4; 32]));
        let task = Task::new(task, host, "web-1".into(), None, 5);
        let (action, apart) = action(secrets, order, true);
        bytes("c-1", order, (action, &apart.names), 9, &task)
    }

    fn said(action: Bytes) -> Action {
        Action::decode(action).unwrap()
    }

    #[test]
    fn an_offer_reads_as_the_contract_has_it_and_is_the_same_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::open(directory.path()).unwrap();
        let names: Vec<String> = (0..20).map(|number| format!("V{number}")).collect();
        let env: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "x")).collect();
        let action = command(&env);
        let confinement = Confinement {
            mode: Mode::Edit.into(),
            ..Confinement::default()
        };
        let order = order(
            action.encode_to_vec().into(),
            confinement.encode_to_vec().into(),
        );
        let first = offer(&secrets, &order);
        assert_eq!(first, offer(&secrets, &order));
        let read = wire::SealedOffer::decode(first.clone()).unwrap();
        assert_eq!(read.action, Some(action));
        assert_eq!(read.confinement, Some(confinement));
        assert_eq!((read.ordinal, &*read.control_plane_id), (9, "c-1"));
        assert_eq!((&*read.reason, &*read.approval_id), ("to see", "p-1"));
        // Nothing of the contract is left out.
        assert_eq!(first, read.encode_to_vec());
    }

    #[test]
    fn secrets_are_beside_the_action_or_for_older_agents_in_it() {
        let given = command(&[("API_TOKEN", "hush"), ("LANG", "C")]);
        let shown = command(&[("API_TOKEN", REDACTED), ("LANG", "C")]);
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::open(directory.path()).unwrap();
        let plain = Bytes::from(given.encode_to_vec());
        let closed = order(secrets.close(plain).unwrap(), Bytes::new());

        let (bytes, apart) = action(&secrets, &closed, true);
        assert_eq!(said(bytes), shown);
        assert_eq!(apart.names, ["API_TOKEN"]);
        assert_eq!(apart.values["API_TOKEN"], "hush");
        let (bytes, apart) = action(&secrets, &closed, false);
        assert_eq!(said(bytes), given);
        assert!(apart.names.is_empty() && apart.values.is_empty());

        // What is gone is named, or nothing is to be done.
        let elsewhere = tempfile::tempdir().unwrap();
        let other = Secrets::open(elsewhere.path()).unwrap();
        let (bytes, apart) = action(&other, &closed, true);
        assert_eq!(said(bytes), shown);
        assert_eq!(
            (apart.names.len(), apart.values.len()),
            (1, 0),
            "the agent refuses it"
        );
        assert!(action(&other, &closed, false).0.is_empty());

        // Once the job is over and history has forgotten the value, the offer is still the one that was signed for.
        let forgotten = order(shown.encode_to_vec().into(), Bytes::new());
        assert_eq!(offer(&secrets, &closed), offer(&secrets, &forgotten));
    }
}
