//! Whether hosts are there: signs of life, and what is made of their absence.

use std::{collections::HashMap, time::Duration};

use muster_proto::ids::HostId;
use tokio_util::sync::CancellationToken;

use super::Inventory;
use crate::{
    clock::now,
    hosts::{Host, host::Pulse},
    store::Batch,
};

/// How often presence is judged anew. A watcher learns of silence this late at most.
const TICK: Duration = Duration::from_secs(1);

/// How often the ledger hears when hosts were last heard.
const WRITE_PULSES_EVERY: u32 = 60;

impl Inventory {
    /// The agent attached.
    pub(crate) fn attached(&self, id: HostId) {
        self.with_pulse(id, |pulse| pulse.set_attached(true));
        self.heard(id);
    }

    /// The agent gave a sign of life.
    pub(crate) fn heard(&self, id: HostId) {
        let monotonic = self.monotonic();
        self.with_pulse(id, |pulse| pulse.beat(monotonic, now()));
    }

    /// The agent's clock was so far ahead of ours, in milliseconds.
    pub(crate) fn clock_offset(&self, id: HostId, milliseconds: i64) {
        self.with_pulse(id, |pulse| pulse.set_clock_offset(milliseconds));
    }

    /// The host owes what it knows since before a restore, or has uploaded it.
    pub(crate) fn set_owes_upload(&self, id: HostId, owes: bool) {
        self.with_pulse(id, |pulse| pulse.set_owes_upload(owes));
    }

    /// Whether the host owes what it knows since before a restore.
    pub(crate) fn owes_upload(&self, id: HostId) -> bool {
        self.get(id).is_some_and(|host| host.pulse.owes_upload())
    }

    /// The connection ended; with a goodbye, the host is offline at once.
    pub(crate) fn detached(&self, id: HostId, goodbye: bool) {
        self.with_pulse(id, |pulse| {
            pulse.set_attached(false);
            if goodbye {
                pulse.silence();
            }
        });
    }

    fn with_pulse(&self, id: HostId, change: impl FnOnce(&Pulse)) {
        let Some(host) = self.get(id) else { return };
        change(&host.pulse);
        if host.pulse.presence(&self.shared.limits, self.monotonic()) != host.presence {
            self.replace(id, |_| {});
        }
    }

    /// Judges presence once a second and writes pulses once a minute, until stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        // Short limits, as in a trial, are judged often enough to be seen.
        let limit = (self.shared.limits.suspect_after / 4).max(Duration::from_millis(10));
        let mut ticks = tokio::time::interval(TICK.min(limit));
        let mut written = HashMap::new();
        for tick in 1_u32.. {
            tokio::select! {
                _ = ticks.tick() => self.renew_presence(),
                () = stop.cancelled() => break,
            }
            if tick.is_multiple_of(WRITE_PULSES_EVERY) {
                self.write_pulses(&mut written).await;
            }
        }
        self.write_pulses(&mut written).await;
    }

    fn renew_presence(&self) {
        let monotonic = self.monotonic();
        let stale: Vec<HostId> = self
            .shared
            .hosts
            .read()
            .by_id
            .values()
            .filter(|host| host.pulse.presence(&self.shared.limits, monotonic) != host.presence)
            .map(|host| host.id)
            .collect();
        for id in stale {
            self.replace(id, |_| {});
        }
    }

    async fn write_pulses(&self, written: &mut HashMap<HostId, i64>) {
        let heard: Vec<(HostId, String, i64)> = self
            .shared
            .hosts
            .read()
            .by_id
            .values()
            .filter_map(|host| Some((host.id, host.id_text.clone(), host.pulse.heard_time()?)))
            .filter(|(id, _, time)| written.get(id) != Some(time))
            .collect();
        if heard.is_empty() {
            return;
        }
        let mut batch = Batch::new();
        let rows: Vec<_> = heard
            .iter()
            .map(|(_, id, time)| (id.clone(), *time))
            .collect();
        batch.set_last_heard(&rows);
        match self.shared.store.writer.commit(batch).await {
            Ok(_) => written.extend(heard.into_iter().map(|(id, _, time)| (id, time))),
            Err(error) => {
                tracing::warn!(%error, "when hosts were last heard is not written: {error}")
            }
        }
    }

    pub(super) fn monotonic(&self) -> i64 {
        i64::try_from(self.shared.epoch.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// How old the evidence of a host's presence is; `None` if it was never heard.
    pub(crate) fn age(host: &Host) -> Option<Duration> {
        let heard = host.pulse.heard_time()?;
        Some(Duration::from_millis((now() - heard).max(0).unsigned_abs()))
    }
}
