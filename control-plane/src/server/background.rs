//! What goes on behind the doors while the control plane serves.

use std::{sync::Arc, time::Duration};

use muster_proto::ids::HostId;
use muster_runtime::tls::{ServerTls, SpiffeKind};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Server, ServerError, certificate};
use crate::{
    access::Access,
    api::hosts::Load,
    authority::Authority,
    connections::Rooms,
    hosts::{Bar, Inventory},
    jobs::Jobs,
    model::PrincipalKind,
    output::OutputStore,
    store::StoreError,
    sweeper,
};

/// How often output that is too old or too much is deleted.
const SWEEP_OUTPUT_EVERY: Duration = Duration::from_secs(60);

/// What hosts have to do, as their door asks for it.
pub(super) fn load_of(jobs: Jobs) -> impl Fn(HostId) -> Load + Send + Sync {
    let count = |tasks: u32| i32::try_from(tasks).unwrap_or(i32::MAX);
    move |host| {
        let (running, pending, held) = jobs.load_of(host);
        Load {
            running: count(running),
            pending: count(pending),
            held: count(held),
        }
    }
}

impl Server {
    /// Writes what is not written yet, once nothing is served any more.
    pub(super) async fn close(&self) -> Result<(), ServerError> {
        self.rooms.jobs.close().await;
        self.rooms.output.close().await;
        if let Err(error) = self.rooms.audit.flush(&self.store.writer).await {
            tracing::error!(%error, "the last entries of the audit log were not written: {error}");
        }
        self.store.writer.flush().await.map_err(StoreError::from)?;
        Ok(())
    }

    pub(super) fn start_background(&self, stop: &CancellationToken) -> TaskTracker {
        let background = TaskTracker::new();
        let Rooms {
            jobs,
            connections,
            inventory,
            output,
            syncer,
            ..
        } = &self.rooms;
        background.spawn(inventory.clone().run(stop.clone()));
        background.spawn(self.access.clone().run(stop.clone()));
        background.spawn(keep_out(
            inventory.clone(),
            self.access.clone(),
            self.tls.clone(),
            self.authority.clone(),
            stop.clone(),
        ));
        background.spawn(certificate::renew(
            self.config.clone(),
            self.authority.clone(),
            self.store.control_plane_id.clone(),
            self.tls.clone(),
            stop.clone(),
        ));
        background.spawn(sweeper::run(
            jobs.clone(),
            self.approvals.clone(),
            connections.clone(),
            syncer.clone(),
            inventory.clone(),
            self.config.job_age,
            stop.clone(),
        ));
        background.spawn(self.heads.clone().run(stop.clone()));
        background.spawn(self.secrets.clone().run(stop.clone()));
        background.spawn(sweep_output(output.clone(), stop.clone()));
        background.spawn((self.rooms.audit.clone()).run(self.store.writer.clone(), stop.clone()));
        background.close();
        background
    }
}

/// Closes the connections of hosts that are locked, set aside or removed, and of principals that are locked.
async fn keep_out(
    inventory: Inventory,
    access: Access,
    tls: ServerTls,
    authority: Arc<Authority>,
    stop: CancellationToken,
) {
    let mut bars = inventory.bars();
    let mut locked = access.locked();
    loop {
        let shut_out = tokio::select! {
            bar = bars.recv() => bar.map(|bar| match bar {
                Bar::Locked(host) | Bar::Removed(host) => (SpiffeKind::Host, host.to_string()),
            }),
            locked = locked.recv() => match locked {
                // An ai or an automation has no connection of its own; its calls have ended.
                Ok(principal) => match principal.kind {
                    PrincipalKind::Operator => Ok((SpiffeKind::Operator, principal.name)),
                    PrincipalKind::Gateway => Ok((SpiffeKind::Gateway, principal.name)),
                    _ => continue,
                },
                Err(error) => Err(error),
            },
            () = stop.cancelled() => return,
        };
        match shut_out {
            Ok((kind, name)) => {
                tls.close(&authority.id(kind, name));
            }
            // Some were missed: look at everybody who is connected.
            Err(RecvError::Lagged(_)) => tls.close_refused(),
            Err(RecvError::Closed) => return,
        }
    }
}

async fn sweep_output(output: OutputStore, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP_OUTPUT_EVERY) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = output.sweep().await {
            tracing::warn!(%error, "old output was not deleted: {error}");
        }
    }
}
