//! A job as the intake holds it: all that the database needs to know it as it was accepted.

use std::sync::Arc;

use muster_proto::ids::HostId;
use prost::Message as _;

use super::{Job, ids};
use crate::model::{EntryText, Fence, Order, State, Task};

#[derive(Clone, PartialEq, prost::Message)]
struct JobRecord {
    #[prost(string, tag = "1")]
    job_id: String,
    #[prost(string, tag = "2")]
    principal: String,
    #[prost(string, tag = "3")]
    request_id: String,
    #[prost(bytes = "vec", tag = "4")]
    request_digest: Vec<u8>,
    #[prost(string, tag = "5")]
    selector: String,
    #[prost(bytes = "bytes", tag = "6")]
    action: bytes::Bytes,
    #[prost(int64, tag = "7")]
    create_time: i64,
    #[prost(int64, tag = "8")]
    start_deadline_time: i64,
    #[prost(int64, tag = "9")]
    lost_after: i64,
    /// In the order of their ordinals.
    #[prost(message, repeated, tag = "10")]
    tasks: Vec<TaskRecord>,
    #[prost(bytes = "bytes", tag = "11")]
    confinement: bytes::Bytes,
    #[prost(string, tag = "12")]
    reason: String,
    #[prost(string, tag = "13")]
    approval_id: String,
    /// What the audit log says of it; empty in the records of versions without one.
    #[prost(string, tag = "30")]
    entry: String,
    #[prost(int64, tag = "31")]
    entry_time: i64,
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
    JobRecord {
        job_id: order.job_id.to_string(),
        principal: order.principal.to_string(),
        request_id: order.request_id.to_string(),
        request_digest: order.request_digest.to_vec(),
        selector: order.selector.to_string(),
        action: order.action.clone(),
        create_time: order.create_time,
        start_deadline_time: order.start_deadline_time,
        lost_after: order.lost_after,
        tasks: tasks.collect(),
        confinement: order.confinement.clone(),
        reason: order.reason.to_string(),
        approval_id: order.approval_id.to_string(),
        entry: entry.map_or(String::new(), |entry| entry.members().to_owned()),
        entry_time: entry.map_or(0, EntryText::time),
    }
    .encode_to_vec()
}

/// The job of a record with its entry; `None` if this version cannot read it.
pub(super) fn decode(bytes: &[u8]) -> Option<(Job, Option<EntryText>)> {
    let record = JobRecord::decode(bytes).ok()?;
    let order = Order {
        job_id: record.job_id.parse().ok()?,
        principal: record.principal.into(),
        request_id: record.request_id.into(),
        request_digest: record.request_digest.try_into().ok()?,
        selector: record.selector.into(),
        action: record.action,
        confinement: record.confinement,
        reason: record.reason.into(),
        approval_id: record.approval_id.into(),
        create_time: record.create_time,
        start_deadline_time: record.start_deadline_time,
        lost_after: record.lost_after,
    };
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
    use muster_proto::ids::JobId;

    use super::*;

    #[test]
    fn a_job_reads_back_as_it_was_accepted() {
        reads_back("");
        // Every task of it awaits approval, whatever the record says of offers.
        reads_back("p-1");
    }

    fn reads_back(approval_id: &str) {
        let job_id = JobId::from_bytes(&[1; 32]);
        let order = Order {
            job_id,
            principal: "operator/ada".into(),
            request_id: "r-1".into(),
            request_digest: [2; 32],
            selector: "all".into(),
            action: bytes::Bytes::from_static(b"\x01\xff"),
            confinement: bytes::Bytes::from_static(b"\x08\x02"),
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
        let job = Job::new(Arc::new(order), tasks, None, "".into());
        let entry = EntryText::new(6, r#""time":6"#);
        let (again, entry_again) = decode(&encode(&job, Some(&entry))).unwrap();
        assert_eq!(entry_again, Some(entry));
        assert_eq!(decode(&encode(&job, None)).unwrap().1, None);
        assert_eq!(format!("{:?}", again.order), format!("{:?}", job.order));
        assert_eq!(
            format!("{:?}", again.tasks(|_| true)),
            format!("{:?}", job.tasks(|_| true))
        );
        assert!(decode(b"rubbish").is_none());
    }
}
