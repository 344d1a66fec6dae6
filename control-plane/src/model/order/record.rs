//! An order as it is written down: in the intake, in the ledger, and in the offer that a host keeps.
//!
//! One layout for all three: `muster.agent.v1.SealedOffer`. With the part of a task it is an offer, without it it is what
//! intake and ledger keep. The same order gives the same bytes, whenever it is written: receipts sign the digest of them.

use bytes::Bytes;
use muster_proto::{
    ids::{HostId, TaskId},
    v1::{self, Confinement},
};
use prost::Message as _;

use super::Order;
use crate::{
    model::{Action, Task, Values},
    times,
};

/// A `SealedOffer`; its action is the bytes that were checked, which are not written anew.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OrderRecord {
    /// The task; empty outside an offer.
    #[prost(string, tag = "1")]
    task_id: String,
    #[prost(string, tag = "2")]
    job_id: String,
    /// Its host; empty outside an offer.
    #[prost(string, tag = "3")]
    host_id: String,
    /// The host's name when the job was created; empty outside an offer.
    #[prost(string, tag = "4")]
    pub(crate) host_name: String,
    #[prost(string, tag = "5")]
    principal: String,
    #[prost(string, tag = "6")]
    request_id: String,
    #[prost(bytes = "bytes", tag = "7")]
    request_digest: Bytes,
    #[prost(string, tag = "8")]
    selector: String,
    /// A serialized `muster.v1.Action`.
    #[prost(bytes = "bytes", tag = "9")]
    action: Bytes,
    #[prost(message, optional, tag = "10")]
    not_after: Option<prost_types::Timestamp>,
    #[prost(message, optional, tag = "11")]
    create_time: Option<prost_types::Timestamp>,
    /// The task's place in its job; 0 outside an offer.
    #[prost(int32, tag = "12")]
    ordinal: i32,
    #[prost(message, optional, tag = "13")]
    lost_after: Option<prost_types::Duration>,
    /// The control plane that sealed it; empty outside an offer.
    #[prost(string, tag = "14")]
    pub(crate) control_plane_id: String,
    #[prost(message, optional, tag = "15")]
    confinement: Option<Confinement>,
    #[prost(string, tag = "16")]
    reason: String,
    #[prost(string, tag = "17")]
    approval_id: String,
    /// Names of the variables whose values stand apart.
    #[prost(string, repeated, tag = "18")]
    secret_env: Vec<String>,
}

/// Values that look secret, as intake and ledger keep them beside an order: encrypted.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SecretsRecord {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(crate) values: Values,
}

/// An order that this version cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its {0} cannot be read")]
pub(crate) struct Unreadable(pub(crate) &'static str);

impl OrderRecord {
    /// An order without the part of a task.
    pub(crate) fn of(order: &Order) -> Self {
        let confinement = &order.confinement;
        Self {
            job_id: order.job_id.to_string(),
            principal: order.principal.to_string(),
            request_id: order.request_id.to_string(),
            request_digest: Bytes::copy_from_slice(&order.request_digest),
            selector: order.selector.to_string(),
            action: order.action.bytes().clone(),
            not_after: Some(times::timestamp(order.start_deadline_time)),
            create_time: Some(times::timestamp(order.create_time)),
            lost_after: Some(times::duration_ms(order.lost_after)),
            // Nothing said is not written, as it always was.
            confinement: (*confinement != Confinement::default()).then(|| confinement.clone()),
            reason: order.reason.to_string(),
            approval_id: order.approval_id.to_string(),
            secret_env: order.action.withheld().map(str::to_owned).collect(),
            ..Self::default()
        }
    }

    /// An order with the part of a task: its offer.
    pub(crate) fn offer(control_plane_id: &str, order: &Order, ordinal: u32, task: &Task) -> Self {
        Self {
            task_id: task.task_id.to_string(),
            host_id: task.host_id.to_string(),
            host_name: task.host_name.to_string(),
            ordinal: i32::try_from(ordinal).unwrap_or(i32::MAX),
            control_plane_id: control_plane_id.to_owned(),
            ..Self::of(order)
        }
    }

    /// The same with the values of its action in it; with nothing to be done where one is gone, which hosts refuse.
    pub(crate) fn with_values_inside(self, action: Option<v1::Action>) -> Self {
        Self {
            action: action.map_or_else(Bytes::new, |action| action.encode_to_vec().into()),
            secret_env: Vec::new(),
            ..self
        }
    }

    /// The task and its host; `None` outside an offer.
    pub(crate) fn task(&self) -> Option<(TaskId, HostId)> {
        Some((self.task_id.parse().ok()?, self.host_id.parse().ok()?))
    }

    /// Takes out of the action what looks secret: the offers of agents that do not know better have it there, and so has
    /// what was written before orders had one record. What has none stays as it is, to the byte.
    pub(crate) fn take_secrets(&mut self) -> Result<Values, Unreadable> {
        let said = v1::Action::decode(Bytes::clone(&self.action));
        let (action, values) = Action::new(said.map_err(|_| Unreadable("action"))?);
        if !values.is_empty() {
            self.action = action.bytes().clone();
        }
        Ok(values)
    }

    /// The order, with the values that stand apart from it.
    pub(crate) fn read(self, secrets: Values) -> Result<Order, Unreadable> {
        let time = |time: Option<prost_types::Timestamp>, what| {
            time.as_ref().map(times::millis).ok_or(Unreadable(what))
        };
        let lost_after = self.lost_after.as_ref().map(times::duration_millis);
        let digest = self.request_digest.as_ref().try_into();
        Ok(Order {
            job_id: self.job_id.parse().map_err(|_| Unreadable("job id"))?,
            principal: self.principal.into(),
            request_id: self.request_id.into(),
            request_digest: digest.map_err(|_| Unreadable("request digest"))?,
            selector: self.selector.into(),
            action: Action::read(self.action).map_err(|_| Unreadable("action"))?,
            secrets,
            confinement: self.confinement.unwrap_or_default(),
            reason: self.reason.into(),
            approval_id: self.approval_id.into(),
            create_time: time(self.create_time, "time of creation")?,
            start_deadline_time: time(self.not_after, "start deadline")?,
            lost_after: lost_after.ok_or(Unreadable("lost_after"))?,
        })
    }
}

/// The fields of an order as versions before the one record kept them, in the intake and in the ledger.
pub(crate) struct Before {
    pub(crate) job_id: String,
    pub(crate) principal: String,
    pub(crate) request_id: String,
    pub(crate) request_digest: Bytes,
    pub(crate) selector: String,
    /// A serialized `muster.v1.Action`, with encrypted values in it.
    pub(crate) action: Bytes,
    /// A serialized `muster.v1.Confinement`; empty if nothing was said.
    pub(crate) confinement: Bytes,
    pub(crate) reason: String,
    pub(crate) approval_id: String,
    /// Unix milliseconds, as is the next.
    pub(crate) create_time: i64,
    pub(crate) start_deadline_time: i64,
    /// Milliseconds.
    pub(crate) lost_after: i64,
}

impl Before {
    /// The record that it is now, and the values that stand apart from it now.
    pub(crate) fn now(self) -> Result<(OrderRecord, Values), Unreadable> {
        let confinement = Confinement::decode(self.confinement);
        let confinement = confinement.map_err(|_| Unreadable("confinement"))?;
        let mut record = OrderRecord {
            job_id: self.job_id,
            principal: self.principal,
            request_id: self.request_id,
            request_digest: self.request_digest,
            selector: self.selector,
            action: self.action,
            not_after: Some(times::timestamp(self.start_deadline_time)),
            create_time: Some(times::timestamp(self.create_time)),
            lost_after: Some(times::duration_ms(self.lost_after)),
            confinement: (confinement != Confinement::default()).then_some(confinement),
            reason: self.reason,
            approval_id: self.approval_id,
            ..OrderRecord::default()
        };
        let values = record.take_secrets()?;
        let action = Action::read(record.action.clone()).map_err(|_| Unreadable("action"))?;
        record.secret_env = action.withheld().map(str::to_owned).collect();
        Ok((record, values))
    }
}
