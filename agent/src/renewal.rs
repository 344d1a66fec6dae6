//! Keeps the host's certificate fresh: a new key and certificate at half of the lifetime, used from
//! the next handshake on, while open streams go on.

use std::time::Duration;

use muster_client::{
    enrollment::{self, EnrollmentError},
    identity::Identity,
};
use muster_proto::v1::Reason;
use muster_runtime::{backoff::Backoff, tls::ClientTls};
use rustls_pki_types::CertificateDer;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::receipts::Receipts;

/// Waits after a failed renewal, and at most.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(300);

/// Certificates are renewed within this time once another authority issues.
const RENEWALS_WITHIN: Duration = Duration::from_secs(3);

/// Timers that sleep longer would not notice that the host slept.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// The identity of this host, and the TLS that presents it.
pub(crate) struct Renewal {
    tls: ClientTls,
    // Held over a call on purpose: whoever comes second finds the new certificate.
    identity: Mutex<Identity>,
    receipts: Receipts,
}

impl Renewal {
    pub(crate) fn new(identity: Identity, tls: ClientTls, receipts: Receipts) -> Self {
        Self {
            tls,
            receipts,
            identity: Mutex::new(identity),
        }
    }

    /// Renews in time, until told to stop.
    pub(crate) async fn keep(&self, stop: CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
        loop {
            let due = self.identity.lock().await.renew_in(rand::random());
            let wait = if due.is_zero() {
                if let Err(error) = self.renew().await {
                    tracing::warn!(%error, "the certificate was not renewed: {error}");
                }
                let due = self.identity.lock().await.renew_in(0.0);
                wait_after(due, &mut backoff)
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
        let next = enrollment::renew_or_rejoin(&identity).await?;
        next.put_into(&self.tls)?;
        tracing::info!("renewed the certificate");
        self.receipts.set(&next);
        *identity = next;
        Ok(())
    }

    /// Trusts these authorities, and has a certificate of the first one, which issues. Goes on trying until both are so.
    pub(crate) async fn take(&self, authorities: Vec<CertificateDer<'static>>) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
        loop {
            match self.try_to_take(&authorities).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%error, "the authorities are not taken yet: {error}");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }

    async fn try_to_take(
        &self,
        authorities: &[CertificateDer<'static>],
    ) -> Result<(), EnrollmentError> {
        let Some(issuing) = authorities.first() else {
            return Err(EnrollmentError::Answer("it names no authority".to_owned()));
        };
        {
            let mut identity = self.identity.lock().await;
            if identity.authorities() != authorities {
                identity.set_authorities(authorities.to_vec());
                identity.store()?;
                identity.put_into(&self.tls)?;
                tracing::info!("trusting {} authorities", authorities.len());
            }
            if identity.is_of(issuing) {
                return Ok(());
            }
        }
        // With jitter, or the whole fleet asks at once.
        tokio::time::sleep(RENEWALS_WITHIN.mul_f64(rand::random())).await;
        self.renew().await
    }

    /// Gets a new certificate with the old key, after the control plane called ours expired.
    pub(crate) async fn rejoin(&self) {
        let mut identity = self.identity.lock().await;
        let rejoined = match enrollment::rejoin(&identity).await {
            Ok(next) => next
                .put_into(&self.tls)
                .map(|()| next)
                .map_err(EnrollmentError::from),
            Err(error) => Err(error),
        };
        match rejoined {
            Ok(next) => {
                self.receipts.set(&next);
                *identity = next;
            }
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

/// How long to wait before looking again after a renewal; `due` is when the certificate that there is now may
/// be renewed at the earliest.
fn wait_after(due: Duration, backoff: &mut Backoff) -> Duration {
    if due.is_zero() {
        // It failed, or the clock of this host is so far ahead that no certificate is young enough: then
        // trying at once would never end.
        return backoff.next_wait();
    }
    backoff.reset();
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_always_due_is_not_renewed_without_pause() {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LAST);
        let waits: Vec<Duration> = (0..12)
            .map(|_| wait_after(Duration::ZERO, &mut backoff))
            .collect();
        assert!(waits.iter().all(|wait| !wait.is_zero()));
        assert!(*waits.last().unwrap() >= RETRY_LAST / 4);
        assert!(wait_after(Duration::from_secs(60), &mut backoff).is_zero());
        assert!(wait_after(Duration::ZERO, &mut backoff) <= RETRY_FIRST);
    }
}
