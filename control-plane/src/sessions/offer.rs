//! An offer on the wire: sealed when it leaves, opened when it comes back.

use std::collections::HashMap;

use bytes::Bytes;
use muster_proto::agent::v1::{self as wire, AttachResponse, attach_response::Message};
use prost::Message as _;

use crate::{
    model::{Order, Task, order::record::OrderRecord},
    seal::Sealer,
    times,
};

/// An offer's bytes and the seal over them.
pub(crate) struct Sealed {
    bytes: Bytes,
    seal: Vec<u8>,
}

/// Seals all that the ledger needs to know a task again.
pub(crate) fn seal(sealer: &Sealer, offer: &OrderRecord) -> Sealed {
    let bytes: Bytes = offer.encode_to_vec().into();
    let seal = sealer.seal(&bytes);
    Sealed { bytes, seal }
}

/// Opens an offer; `None` unless this control plane sealed these very bytes.
pub(crate) fn unseal(
    sealer: &Sealer,
    control_plane_id: &str,
    bytes: &[u8],
    seal: &[u8],
) -> Option<OrderRecord> {
    if !sealer.holds(bytes, seal) {
        return None;
    }
    let offer = OrderRecord::decode(bytes).ok()?;
    (offer.control_plane_id == control_plane_id).then_some(offer)
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
        ids::{HostId, JobId, TaskId},
        v1::{self, Command, Confinement, Mode, action::Kind},
    };

    use super::*;
    use crate::{
        model::{Action, Values, redaction::REDACTED},
        secrets::Secrets,
    };

    fn command(env: &[(&str, &str)]) -> v1::Action {
        let env = env.iter();
        v1::Action {
            kind: Some(Kind::Command(Command {
                argv: vec!["true".to_owned()],
                env: env
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
                ..Command::default()
            })),
        }
    }

    fn order(action: Action, secrets: Values) -> Order {
        Order {
            job_id: JobId::from_bytes(&[1; 32]),
            principal: "operator/ada".into(),
            request_id: "r-1".into(),
            request_digest: [2; 32],
            selector: "all".into(),
            action,
            secrets,
            confinement: Confinement {
                mode: Mode::Edit.into(),
                ..Confinement::default()
            },
            reason: "to see".into(),
            approval_id: "p-1".into(),
            create_time: 5,
            start_deadline_time: 605,
            lost_after: 7,
        }
    }

    fn record(order: &Order) -> OrderRecord {
        let (task, host) = (TaskId::from_bytes(&[3; 32]), HostId::from_bytes(&[4; 32]));
        let task = Task::new(task, host, "web-1".into(), None, 5);
        OrderRecord::offer("c-1", order, 9, &task)
    }

    #[test]
    fn an_offer_reads_as_the_contract_has_it_and_is_the_same_each_time() {
        let names: Vec<String> = (0..20).map(|number| format!("V{number}")).collect();
        let env: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "x")).collect();
        let given = command(&env);
        let (action, secrets) = Action::new(given.clone());
        let order = order(action, secrets);
        let first = record(&order).encode_to_vec();
        assert_eq!(first, record(&order).encode_to_vec());
        let read = wire::SealedOffer::decode(&*first).unwrap();
        assert_eq!(read.action, Some(given));
        assert_eq!(read.confinement.as_ref(), Some(&order.confinement));
        assert_eq!((read.ordinal, &*read.control_plane_id), (9, "c-1"));
        assert_eq!((&*read.reason, &*read.approval_id), ("to see", "p-1"));
        // Nothing of the contract is left out.
        assert_eq!(first, read.encode_to_vec());
        // It comes back as the order that it was made of.
        let again = OrderRecord::decode(&*first).unwrap();
        assert_eq!(again.read(Values::new()), Ok(order));
    }

    /// The offer of versions before orders had one record, which receipts are signed for.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Before {
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

    #[test]
    fn an_offer_has_the_bytes_that_receipts_were_signed_for() {
        let (action, secrets) = Action::new(command(&[("API_TOKEN", "hush"), ("LANG", "C")]));
        for confinement in [
            Confinement::default(),
            Confinement {
                mode: Mode::Edit.into(),
                ..Confinement::default()
            },
        ] {
            let order = Order {
                confinement: confinement.clone(),
                ..order(action.clone(), secrets.clone())
            };
            let shown = command(&[("API_TOKEN", REDACTED), ("LANG", "C")]);
            let before = Before {
                task_id: TaskId::from_bytes(&[3; 32]).to_string(),
                job_id: JobId::from_bytes(&[1; 32]).to_string(),
                host_id: HostId::from_bytes(&[4; 32]).to_string(),
                host_name: "web-1".into(),
                principal: "operator/ada".into(),
                request_id: "r-1".into(),
                request_digest: vec![2; 32].into(),
                selector: "all".into(),
                action: shown.encode_to_vec().into(),
                not_after: Some(times::timestamp(605)),
                create_time: Some(times::timestamp(5)),
                ordinal: 9,
                lost_after: Some(times::duration_ms(7)),
                control_plane_id: "c-1".into(),
                confinement: confinement.encode_to_vec().into(),
                reason: "to see".into(),
                approval_id: "p-1".into(),
                secret_env: vec!["API_TOKEN".into()],
            };
            assert_eq!(record(&order).encode_to_vec(), before.encode_to_vec());
        }
    }

    #[test]
    fn secrets_are_beside_the_action_or_for_older_agents_in_it() {
        let given = command(&[("API_TOKEN", "hush"), ("LANG", "C")]);
        let shown = command(&[("API_TOKEN", REDACTED), ("LANG", "C")]);
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::open(directory.path()).unwrap();
        let (action, values) = Action::new(given.clone());
        let asked = order(action.clone(), secrets.close(values).unwrap());
        let read =
            |record: &OrderRecord| wire::SealedOffer::decode(&*record.encode_to_vec()).unwrap();

        let beside = read(&record(&asked));
        assert_eq!(beside.action, Some(shown));
        assert_eq!(beside.secret_env, ["API_TOKEN"]);
        assert_eq!(secrets.values(&asked)["API_TOKEN"], "hush");
        let mut inside = record(&asked).with_values_inside(secrets.open_action(&asked));
        assert_eq!(read(&inside).action, Some(given));
        assert!(read(&inside).secret_env.is_empty());

        // Adopted from such an agent, the action is as it was, and its secrets stand apart again.
        assert_eq!(inside.take_secrets().unwrap()["API_TOKEN"], "hush");
        assert_eq!(inside.read(Values::new()).unwrap().action, action);

        // Where a value is gone, nothing is to be done.
        let elsewhere = tempfile::tempdir().unwrap();
        let other = Secrets::open(elsewhere.path()).unwrap();
        assert!(other.values(&asked).is_empty(), "the agent refuses it");
        let inside = record(&asked).with_values_inside(other.open_action(&asked));
        assert_eq!(read(&inside).action, None);

        // Once the job is over and history has forgotten the value, the offer is still the one that was signed for.
        let forgotten = order(action, Values::new());
        assert_eq!(record(&asked), record(&forgotten));
        assert_eq!(secrets.open_action(&forgotten), None);
    }
}
