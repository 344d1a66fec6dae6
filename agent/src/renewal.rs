//! Keeps the host's certificate fresh: a new key and certificate at half of the lifetime, used from
//! the next handshake on, while open streams go on.

use std::time::Duration;

use muster_client::{
    enrollment::{self, EnrollmentError},
    identity::Identity,
};
use muster_proto::v1::Reason;
use muster_runtime::{backoff::Backoff, tls::ClientTls};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Waits after a failed renewal, and at most.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(300);

/// Timers that sleep longer would not notice that the host slept.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// The identity of this host, and the TLS that presents it.
pub(crate) struct Renewal {
    tls: ClientTls,
    // Held over a call on purpose: whoever comes second finds the new certificate.
    identity: Mutex<Identity>,
}

impl Renewal {
    pub(crate) fn new(identity: Identity, tls: ClientTls) -> Self {
        Self {
            tls,
            identity: Mutex::new(identity),
        }
    }

    /// Renews in time, until told to stop.
    pub(crate) async fn keep(&self, stop: CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
        loop {
            let due = self.identity.lock().await.renew_in(rand::random());
            let wait = if due.is_zero() {
                match self.renew().await {
                    Ok(()) => {
                        backoff.reset();
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the certificate was not renewed: {error}");
                        backoff.next_wait()
                    }
                }
            } else {
                due.min(LOOK_EVERY)
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn renew(&self) -> Result<(), EnrollmentError> {
        let mut identity = self.identity.lock().await;
        let next = if identity.is_expired() {
            enrollment::rejoin(&identity).await?
        } else {
            enrollment::renew(&identity).await?
        };
        next.present_in(&self.tls)?;
        tracing::info!("renewed the certificate");
        *identity = next;
        Ok(())
    }

    /// Gets a new certificate with the old key, after the control plane called ours expired.
    pub(crate) async fn rejoin(&self) {
        let mut identity = self.identity.lock().await;
        let rejoined = match enrollment::rejoin(&identity).await {
            Ok(next) => next
                .present_in(&self.tls)
                .map(|()| next)
                .map_err(EnrollmentError::from),
            Err(error) => Err(error),
        };
        match rejoined {
            Ok(next) => *identity = next,
            Err(error) => match error.reason() {
                Some(Reason::Locked) => {
                    tracing::error!("this host is locked; `muster host unlock` lets it back in")
                }
                Some(Reason::HostRemoved) => tracing::error!(
                    "this host was removed; join again with a new join string to come back under a new id"
                ),
                _ => tracing::error!(%error, "no new certificate: {error}"),
            },
        }
    }
}
