//! Who asks for what, where: targets, rights, plan and approval make an order of it.
//!
//! Whoever asks hands over an `Asker` and what is `Wanted`, and gets a job or a `Refusal` with its reason. A door does so for
//! its caller; what places orders by itself does so in its owner's name.

pub(crate) mod actions;
mod drift;
mod held;
mod permit;
pub(crate) mod reach;
pub(crate) mod targets;
mod wanted;

use std::{collections::HashMap, sync::Arc};

use muster_proto::v1::Confinement;
use muster_runtime::telemetry::trace;
use prost::Message as _;

pub(crate) use self::wanted::Wanted;
use crate::{
    approvals::Approvals,
    audit,
    clock::now,
    hosts::Inventory,
    jobs::{Created, Jobs, NewJob, Target},
    model::{Action, Order, Refusal},
    rights::{Asker, Rights},
};

/// Where orders are placed. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Orders {
    /// Jobs and tasks, which orders become.
    pub(crate) jobs: Jobs,
    /// The hosts.
    pub(crate) inventory: Inventory,
    /// What waits for somebody's word.
    pub(crate) approvals: Approvals,
    /// What policy says.
    pub(crate) rights: Rights,
}

impl Orders {
    /// Places an order: the job that came of it, which is accepted and perhaps waits for somebody's word, or why there is
    /// none. The same request id and digest give the same job.
    pub(crate) async fn place(&self, asker: &Asker, wanted: Wanted) -> Result<Created, Refusal> {
        let permitted = match self.permitted(asker, &wanted) {
            Ok(permitted) => permitted,
            // The fleet or the policies may have changed since an earlier request with this id was accepted.
            Err(refusal) => return self.earlier(asker, &wanted).await?.ok_or(refusal),
        };
        let awaited = permitted.awaited.as_ref();
        if let Some(approval) = awaited {
            // What was accepted before waits for what it waited for.
            if let Some(earlier) = self.earlier(asker, &wanted).await? {
                audit::effect("again", earlier.job.order.job_id);
                return Ok(earlier);
            }
            audit::about_job(wanted.digest, permitted.hosts.iter().map(|host| host.id));
            self.approvals.add(approval).await?;
        }
        let about = awaited.map(|approval| (approval, held::about(&wanted, &permitted)));
        let mut context = HashMap::new();
        trace::inject(&mut context);
        let (action, values) = Action::new(wanted.action);
        let time = now();
        // The latest that it can be: an approval sets it anew.
        let start_deadline = wanted.start_deadline
            + awaited.map_or(0, |approval| approval.expire_time - approval.create_time);
        let order = Order {
            job_id: self.jobs.id_of(&asker.principal, &wanted.request_id),
            principal: Arc::clone(&asker.principal),
            request_id: wanted.request_id,
            request_digest: wanted.digest,
            selector: wanted.selector_text,
            action,
            secrets: self.jobs.encrypted(values)?,
            confinement: Confinement::decode(permitted.confinement.clone()).unwrap_or_default(),
            reason: wanted.reason,
            approval_id: awaited
                .map_or_else(|| "".into(), |approval| approval.id.to_string().into()),
            create_time: time,
            start_deadline_time: time.saturating_add(start_deadline),
            lost_after: wanted.lost_after,
        };
        let new = NewJob {
            order,
            awaits: awaited.map(|approval| approval.awaits(&asker.rights.answerers(approval))),
            targets: permitted
                .hosts
                .iter()
                .map(|host| Target {
                    host_id: host.id,
                    host_name: host.name.as_str().into(),
                })
                .collect(),
            trace: context,
        };
        let created = self.jobs.create(new).await;
        if let Ok(created) = &created {
            // This changes nothing about an entry that is written already: so it names one who asks again.
            audit::effect("again", created.job.order.job_id);
            if let Some((approval, about)) = about {
                self.approvals.announce(approval, about);
            }
        }
        Ok(created?)
    }

    /// The job of an earlier request, if there was one.
    async fn earlier(&self, asker: &Asker, wanted: &Wanted) -> Result<Option<Created>, Refusal> {
        let (id, digest) = (&wanted.request_id, &wanted.digest);
        let earlier = self.jobs.earlier(&asker.principal, id, digest);
        Ok(earlier.await?)
    }
}
