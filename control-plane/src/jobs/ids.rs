//! Ids that follow from what they name, so that a retry names the same ones whatever was lost.

use aws_lc_rs::digest::{Context, SHA256};
use muster_proto::ids::{HostId, JobId, TaskId};

/// SHA-256 over parts with a NUL between them. No part but the last may hold one.
pub(crate) fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            context.update(b"\0");
        }
        context.update(part);
    }
    context
        .finish()
        .as_ref()
        .try_into()
        .expect("SHA-256 has 32 bytes")
}

/// The id of the job that a principal asked for with a request id.
pub(crate) fn job_id(control_plane_id: &str, principal: &str, request_id: &str) -> JobId {
    JobId::from_bytes(&digest(&[
        b"muster-job-v1",
        control_plane_id.as_bytes(),
        principal.as_bytes(),
        request_id.as_bytes(),
    ]))
}

/// The id of a job's task on a host.
pub(crate) fn task_id(job_id: JobId, host_id: HostId) -> TaskId {
    TaskId::from_bytes(&digest(&[
        b"muster-task-v1",
        job_id.to_string().as_bytes(),
        host_id.to_string().as_bytes(),
    ]))
}
