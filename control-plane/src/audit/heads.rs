//! Signed heads: every minute it is signed where the log stands, and every host is given that.
//!
//! The key is made anew at each start and lives in memory only; the authority certifies it for this purpose alone. What
//! is signed is durable: a power cut must not make a log look cut.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use muster_client::{
    audit::{Head, Position, Purpose},
    identity::generate_key,
};
use muster_proto::v1::AuditHead;
use muster_runtime::tls::SpiffeKind;
use parking_lot::Mutex;
use rcgen::{KeyPair, SigningKey as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Audit;
use crate::{
    authority::{Authority, AuthorityError},
    clock::now,
    store::{Store, StoreError},
};

/// How often a head is signed, if the log has grown.
const EVERY: Duration = Duration::from_secs(60);

/// How long a signer's certificate lives.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(400 * 24 * 3600);

/// How long one is used: heads show by what authority they were signed in these days.
const CERTIFY_EVERY_MS: i64 = 24 * 3600 * 1000;

/// Why no head was signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("the head could not be signed: {0}")]
    Sign(#[from] rcgen::Error),
}

/// Says which generation of the ledger stands.
pub(crate) type GenerationNow = Arc<dyn Fn() -> Arc<str> + Send + Sync>;

/// Signs heads. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Heads(Arc<Shared>);

struct Shared {
    store: Store,
    audit: Audit,
    authority: Arc<Authority>,
    generation: GenerationNow,
    key: KeyPair,
    // Held to certify the key, which takes some microseconds.
    certificate: Mutex<Certificate>,
    latest: watch::Sender<Option<AuditHead>>,
}

#[derive(Default)]
struct Certificate {
    chain: Vec<Bytes>,
    time: i64,
    /// The version of the authorities that it was issued under.
    version: i64,
}

impl Heads {
    /// With a new key.
    pub(crate) fn new(
        store: Store,
        audit: Audit,
        authority: Arc<Authority>,
        generation: GenerationNow,
    ) -> Self {
        Self(Arc::new(Shared {
            store,
            audit,
            authority,
            generation,
            key: generate_key(),
            certificate: Mutex::default(),
            latest: watch::Sender::new(None),
        }))
    }

    /// The newest head, now and from now on.
    pub(crate) fn latest(&self) -> watch::Receiver<Option<AuditHead>> {
        self.0.latest.subscribe()
    }

    /// Signs where the log stands, and lets every host know: an export is written down by this head.
    pub(crate) async fn publish(&self) -> Result<Head, HeadError> {
        let head = self.sign().await?;
        self.0.latest.send_replace(Some(head.signed.clone()));
        Ok(head)
    }

    /// Signs where the log stands, with all that was recorded until now.
    pub(crate) async fn sign(&self) -> Result<Head, HeadError> {
        let shared = &self.0;
        shared.audit.flush(&shared.store.writer).await?;
        let generation = (shared.generation)();
        let position = shared.store.audit_position().await?;
        shared
            .store
            .writer
            .flush()
            .await
            .map_err(StoreError::from)?;
        self.signed(&generation, position)
    }

    fn signed(&self, generation: &str, position: Position) -> Result<Head, HeadError> {
        let time = now();
        let statement = Head::statement(&self.0.store.control_plane_id, generation, position, time);
        let signature = self
            .0
            .key
            .sign(&Purpose::Head.message(statement.as_bytes()))?;
        let signed = AuditHead {
            statement,
            signature: signature.into(),
            certificate_chain: self.chain(time)?,
        };
        Ok(Head::read(signed).expect("it was just written"))
    }

    fn chain(&self, time: i64) -> Result<Vec<Bytes>, AuthorityError> {
        // The version first: what is issued is never of an older authority than it says.
        let version = self.0.authority.version();
        let mut certificate = self.0.certificate.lock();
        if certificate.chain.is_empty()
            || certificate.version != version
            || time - certificate.time >= CERTIFY_EVERY_MS
        {
            let id = &self.0.store.control_plane_id;
            let id = self.0.authority.id(SpiffeKind::ControlPlane, &**id);
            let issued =
                self.0
                    .authority
                    .issue_head_signer(&id, &self.0.key, CERTIFICATE_LIFETIME)?;
            let chain = issued.chain.iter().map(|der| Bytes::copy_from_slice(der));
            *certificate = Certificate {
                chain: chain.collect(),
                time,
                version,
            };
        }
        Ok(certificate.chain.clone())
    }

    /// Signs now and then, and at each step of a rotation of the authority, until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut versions = self.0.authority.versions();
        let mut signed = (Position::EMPTY, 0);
        loop {
            let version = *versions.borrow_and_update();
            match self.0.store.audit_position().await {
                Ok(position) if (position, version) == signed => {}
                Ok(_) => match self.publish().await {
                    Ok(head) => signed = (head.position, version),
                    Err(error) => tracing::warn!(%error, "no head was signed: {error}"),
                },
                Err(error) => tracing::warn!(%error, "no head was signed: {error}"),
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                // The authority outlives this.
                _ = versions.changed() => {}
                () = stop.cancelled() => return,
            }
        }
    }
}
