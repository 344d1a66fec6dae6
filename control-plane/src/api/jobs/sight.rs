//! What a caller may see of jobs, and do to those of others. What it may not see is not there.

use muster_proto::{
    ids::{HostId, JobId, TaskId},
    v1::Reason,
};
use tonic::Status;

use super::{JobDoor, no_job, no_task};
use crate::{
    api::caller::Caller,
    jobs::TaskRef,
    model::Summary,
    orders::targets::TARGETS_MAX,
    policy::{Circumstances, Right},
    rights::{Sight, some_names},
    store::jobs::{JobFilter, TaskFilter},
    wire::status,
};

impl JobDoor {
    /// The job, if the caller may see it or a part of it.
    pub(super) async fn visible(&self, caller: &Caller, id: JobId) -> Result<Summary, Status> {
        let job = self.jobs.get(id).await.map_err(status::of)?;
        let job = job.ok_or_else(|| no_job(id))?;
        if caller.owns(&job.order.principal) {
            return Ok(job);
        }
        let Sight::Some(visible) = caller.sight(&self.inventory) else {
            return Ok(job);
        };
        let filter = JobFilter {
            job: Some(id),
            visible: Some(visible),
            ..JobFilter::default()
        };
        let seen = self.jobs.list(&filter, None, 1).await;
        let seen = seen.map_err(status::of)?;
        seen.first().map(|_| job).ok_or_else(|| no_job(id))
    }

    /// Whether the caller may see a task in memory.
    pub(super) fn sees(&self, caller: &Caller, task: &TaskRef) -> bool {
        caller.owns(&task.job.order.principal)
            || caller.sees_tasks_on(&self.inventory, task.look(|task| task.host_id))
    }

    /// Whether the task is of a job of the caller's own.
    pub(super) async fn owns_task(&self, caller: &Caller, id: TaskId) -> Result<bool, Status> {
        let found = self.jobs.task(id).await.map_err(status::of)?;
        let (job, _) = found.ok_or_else(|| no_task(id))?;
        let job = self.jobs.get(job).await.map_err(status::of)?;
        Ok(job.is_some_and(|job| caller.owns(&job.order.principal)))
    }

    /// Refused unless the caller may put something into the task.
    pub(super) fn may_type(&self, caller: &Caller, task: &TaskRef) -> Result<(), Status> {
        let host = task.look(|task| task.host_id);
        let own = caller.owns(&task.job.order.principal);
        match self.inventory.get(host) {
            // There is nobody to type to; the room says so.
            None => Ok(()),
            Some(host) => {
                let how = Circumstances {
                    own,
                    ..Circumstances::default()
                };
                Ok(caller.need(Right::JobInput, &host, how)?)
            }
        }
    }

    /// Refused unless the token reaches as far as jobs of this kind, and the job is the caller's own, or it may cancel on
    /// each host that is meant.
    pub(super) async fn may_cancel(
        &self,
        caller: &Caller,
        id: JobId,
        hosts: Option<&[HostId]>,
    ) -> Result<(), Status> {
        let job = self.visible(caller, id).await?;
        if let Some(kind) = job.order.kind() {
            caller.may_reach(kind)?;
        }
        if caller.owns(&job.order.principal) {
            return Ok(());
        }
        let filter = TaskFilter {
            job: Some(id),
            hosts: hosts.map(<[HostId]>::to_vec),
            ..TaskFilter::default()
        };
        let limit = i64::try_from(TARGETS_MAX).unwrap_or(i64::MAX);
        let tasks = self.jobs.list_tasks(&filter, None, limit).await;
        let tasks = tasks.map_err(status::of)?;
        let mut denied = Vec::new();
        for row in &tasks {
            let may = self
                .inventory
                .get(row.task.host_id)
                .is_none_or(|host| caller.may(Right::JobCancel, &host));
            if !may {
                denied.push(&*row.task.host_name);
            }
        }
        if denied.is_empty() {
            return Ok(());
        }
        let names = some_names(denied.into_iter());
        Err(status::refuse(
            Reason::PolicyDenied,
            &format!(
                "{} may not cancel what {} runs on {names}; `muster policy explain {} job.cancel` says why",
                caller.principal, job.order.principal, caller.principal
            ),
        ))
    }
}
