//! A job as the intake holds it: all that the database needs to know it as it was accepted.

use std::sync::Arc;

use bytes::Bytes;
use muster_proto::ids::HostId;
use prost::Message as _;

use super::{Job, ids};
use crate::model::{
    EntryText, Fence, State, Task,
    order::record::{Before, OrderRecord, SecretsRecord},
};

#[derive(Clone, PartialEq, prost::Message)]
struct JobRecord {
    /// In the order of their ordinals.
    #[prost(message, repeated, tag = "10")]
    tasks: Vec<TaskRecord>,
    /// What the audit log says of it; empty in the records of versions without one.
    #[prost(string, tag = "30")]
    entry: String,
    #[prost(int64, tag = "31")]
    entry_time: i64,
    /// Missing in the records of the version before, which have [`OrderBefore`] instead.
    #[prost(message, optional, tag = "40")]
    order: Option<OrderRecord>,
    #[prost(message, optional, tag = "41")]
    secrets: Option<SecretsRecord>,
}

/// The part of a record that said what was asked for, one version back.
#[derive(Clone, PartialEq, prost::Message)]
struct OrderBefore {
    #[prost(string, tag = "1")]
    job_id: String,
    #[prost(string, tag = "2")]
    principal: String,
    #[prost(string, tag = "3")]
    request_id: String,
    #[prost(bytes = "bytes", tag = "4")]
    request_digest: Bytes,
    #[prost(string, tag = "5")]
    selector: String,
    #[prost(bytes = "bytes", tag = "6")]
    action: Bytes,
    #[prost(int64, tag = "7")]
    create_time: i64,
    #[prost(int64, tag = "8")]
    start_deadline_time: i64,
    #[prost(int64, tag = "9")]
    lost_after: i64,
    #[prost(bytes = "bytes", tag = "11")]
    confinement: Bytes,
    #[prost(string, tag = "12")]
    reason: String,
    #[prost(string, tag = "13")]
    approval_id: String,
}

impl From<OrderBefore> for Before {
    fn from(order: OrderBefore) -> Self {
        Self {
            job_id: order.job_id,
            principal: order.principal,
            request_id: order.request_id,
            request_digest: order.request_digest,
            selector: order.selector,
            action: order.action,
            confinement: order.confinement,
            reason: order.reason,
            approval_id: order.approval_id,
            create_time: order.create_time,
            start_deadline_time: order.start_deadline_time,
            lost_after: order.lost_after,
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct TaskRecord {
    #[prost(string, tag = "1")]
    host_id: String,
    #[prost(string, tag = "2")]
    host_name: String,
    /// Under what it is offered at once; empty if it waits.
    #[prost(string, tag = "3")]
    offered_boot: String,
    #[prost(string, tag = "4")]
    offered_journal: String,
}

/// Writes down a job that was just accepted, with what the audit log will say of it.
pub(super) fn encode(job: &Job, entry: Option<&EntryText>) -> Vec<u8> {
    let order = &job.order;
    let tasks = job.tasks(|_| true).into_iter().map(|(_, task)| {
        let (offered_boot, offered_journal) = task
            .offered
            .map(|fence| (fence.boot_id.to_string(), fence.journal_id.to_string()))
            .unwrap_or_default();
        TaskRecord {
            host_id: task.host_id.to_string(),
            host_name: task.host_name.to_string(),
            offered_boot,
            offered_journal,
        }
    });
    let secrets = (!order.secrets.is_empty()).then(|| SecretsRecord {
        values: order.secrets.clone(),
    });
    JobRecord {
        tasks: tasks.collect(),
        order: Some(OrderRecord::of(order)),
        secrets,
        entry: entry.map_or(String::new(), |entry| entry.members().to_owned()),
        entry_time: entry.map_or(0, EntryText::time),
    }
    .encode_to_vec()
}

/// The job of a record with its entry; `None` if this version cannot read it.
pub(super) fn decode(bytes: &[u8]) -> Option<(Job, Option<EntryText>)> {
    let record = JobRecord::decode(bytes).ok()?;
    let (order, values) = match record.order {
        Some(order) => (order, record.secrets.unwrap_or_default().values),
        None => Before::from(OrderBefore::decode(bytes).ok()?).now().ok()?,
    };
    let order = order.read(values).ok()?;
    let tasks = record.tasks.into_iter().map(|task| {
        let host_id: HostId = task.host_id.parse().ok()?;
        let offered = (!task.offered_boot.is_empty()).then(|| Fence {
            boot_id: task.offered_boot.into(),
            journal_id: task.offered_journal.into(),
        });
        let task_id = ids::task_id(order.job_id, host_id);
        let name = task.host_name.into();
        let mut task = Task::new(task_id, host_id, name, offered, order.create_time);
        if !order.approval_id.is_empty() {
            // As it was accepted: had it been approved, the ledger would have it.
            task.state = State::AwaitingApproval;
        }
        Some(task)
    });
    let tasks = tasks.collect::<Option<_>>()?;
    let entry = (!record.entry.is_empty()).then(|| EntryText::new(record.entry_time, record.entry));
    Some((Job::new(Arc::new(order), tasks, None, "".into()), entry))
}

#[cfg(test)]
mod tests {
    use muster_proto::{
        ids::JobId,
        v1::{self, Command, Confinement, Mode, action::Kind},
    };

    use super::*;
    use crate::model::{Action, Order, Values};

    const CLOSED: &str = "muster-secret-1:0:AAAA";

    fn action(value: &str) -> v1::Action {
        v1::Action {
            kind: Some(Kind::Command(Command {
                argv: vec!["true".into()],
                env: [("API_TOKEN".to_owned(), value.to_owned())].into(),
                ..Command::default()
            })),
        }
    }

    fn job(approval_id: &str) -> Job {
        let job_id = JobId::from_bytes(&[1; 32]);
        let order = Order {
            job_id,
            principal: "operator/ada".into(),
            request_id: "r-1".into(),
            request_digest: [2; 32],
            selector: "all".into(),
            action: Action::new(action("hush")).0,
            secrets: Values::from([("API_TOKEN".to_owned(), CLOSED.to_owned())]),
            confinement: Confinement {
                mode: Mode::Edit.into(),
                ..Confinement::default()
            },
            reason: "to see".into(),
            approval_id: approval_id.into(),
            create_time: 5,
            start_deadline_time: 605,
            lost_after: 7,
        };
        let task = |number: u8, offered: Option<Fence>| {
            let host_id = HostId::from_bytes(&[number; 32]);
            let id = ids::task_id(job_id, host_id);
            let mut task = Task::new(id, host_id, "web".into(), offered, 5);
            if !approval_id.is_empty() {
                (task.state, task.offered) = (State::AwaitingApproval, None);
            }
            task
        };
        let fence = Fence {
            boot_id: "boot".into(),
            journal_id: "journal".into(),
        };
        let tasks = vec![task(1, Some(fence)), task(2, None)];
        Job::new(Arc::new(order), tasks, None, "".into())
    }

    fn tasks(job: &Job) -> String {
        format!("{:?}", job.tasks(|_| true))
    }

    #[test]
    fn a_job_reads_back_as_it_was_accepted() {
        // Every task of one with an approval awaits it, whatever the record says of offers.
        for approval_id in ["", "p-1"] {
            let job = job(approval_id);
            let entry = EntryText::new(6, r#""time":6"#);
            let (again, entry_again) = decode(&encode(&job, Some(&entry))).unwrap();
            assert_eq!(entry_again, Some(entry));
            assert_eq!(decode(&encode(&job, None)).unwrap().1, None);
            assert_eq!(again.order, job.order);
            assert_eq!(tasks(&again), tasks(&job));
        }
        assert!(decode(b"rubbish").is_none());
    }

    #[test]
    fn a_job_of_the_version_before_reads_as_it_was_accepted_then() {
        let job = job("");
        let order = &job.order;
        let before = OrderBefore {
            job_id: order.job_id.to_string(),
            principal: "operator/ada".into(),
            request_id: "r-1".into(),
            request_digest: vec![2; 32].into(),
            selector: "all".into(),
            action: action(CLOSED).encode_to_vec().into(),
            create_time: 5,
            start_deadline_time: 605,
            lost_after: 7,
            confinement: order.confinement.encode_to_vec().into(),
            reason: "to see".into(),
            approval_id: String::new(),
        };
        let rest = JobRecord {
            order: None,
            secrets: None,
            ..JobRecord::decode(&*encode(&job, None)).unwrap()
        };
        // Two messages in a row are one with the fields of both.
        let bytes = [before.encode_to_vec(), rest.encode_to_vec()].concat();
        let (again, _) = decode(&bytes).unwrap();
        assert_eq!(again.order, job.order);
        assert_eq!(tasks(&again), tasks(&job));
    }
}
