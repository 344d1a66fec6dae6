//! The gateway as a role: its identity, its road to the control plane, and its doors.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use muster_client::{
    Client,
    enrollment::{self, EnrollmentError},
    identity::{Identity, IdentityError},
    join::JoinString,
};
use muster_runtime::{
    backoff::Backoff,
    shutdown,
    tls::{ClientTls, ConnectError, TlsError},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    config::Config,
    control_plane::{CHANNELS, ControlPlane},
    handler::{Shared, Who},
    http,
    slots::Slots,
};

/// Name of the gateway's directory within the data directory.
pub const DIRECTORY: &str = "gateway";

/// How often it is asked which authority issues: over a connection that is there anyway.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Why a gateway does not start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// It has no identity, or one that cannot be read.
    #[error("{0}; a gateway joins by: MUSTER_JOIN=… muster gateway join")]
    Identity(#[from] IdentityError),
    /// It has no certificate that counts.
    #[error(transparent)]
    Enrollment(#[from] EnrollmentError),
    /// Its certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It cannot listen or accept.
    #[error("HTTP: {0}")]
    Http(#[from] io::Error),
}

/// An MCP gateway with its identity.
pub struct Gateway {
    config: Config,
    identity: Identity,
    tls: ClientTls,
}

/// Exchanges a join token of kind gateway for an identity in `data_dir`.
pub async fn join(data_dir: &Path, join: &JoinString) -> Result<(), GatewayError> {
    let identity = enrollment::join(&directory(data_dir), join, "").await?;
    info!("joined as {}", identity.spiffe_id());
    Ok(())
}

/// Whether `data_dir` holds an identity of a gateway.
pub fn has_joined(data_dir: &Path) -> bool {
    !matches!(
        Identity::load(&directory(data_dir)),
        Err(IdentityError::Missing(_))
    )
}

fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join(DIRECTORY)
}

impl Gateway {
    /// Opens the gateway whose identity is in `data_dir`. A certificate that has expired is replaced by a
    /// signature of its key. The control plane need not be there yet: [`Gateway::serve`] goes on trying.
    pub async fn open(config: Config, data_dir: &Path) -> Result<Self, GatewayError> {
        let mut identity = Identity::load(&directory(data_dir))?;
        if identity.is_expired() {
            match enrollment::rejoin(&identity).await {
                Ok(fresh) => identity = fresh,
                Err(error) if error.reason().is_some() => return Err(error.into()),
                Err(error) => warn!("the expired certificate is not replaced yet: {error}"),
            }
        }
        let tls = identity.client_tls()?;
        Ok(Self {
            config,
            identity,
            tls,
        })
    }

    /// Serves MCP over HTTP until `stop`, and keeps the certificate fresh meanwhile.
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> Result<(), GatewayError> {
        let address = self.identity.address();
        let client = |_| Client::with_tls(address, &self.tls);
        let asking = client(0);
        let shared = Arc::new(Shared {
            control_plane: Arc::new(ControlPlane::new((0..CHANNELS).map(client))),
            who: Who::Request,
            slots: Slots::default(),
        });
        let ended = stop.child_token();
        let _end = ended.clone().drop_guard();
        let renewal = tokio::spawn(keep_fresh(self.identity, self.tls, asking, ended.clone()));
        info!(address = %listener.local_addr()?, "serving MCP");
        let serving = http::serve(shared, &self.config, listener, stop.clone());
        tokio::pin!(serving);
        tokio::select! {
            () = &mut serving => {}
            () = stop.cancelled() => {
                shutdown::finish("the gateway", serving).await;
            }
        }
        ended.cancel();
        let _ = renewal.await;
        Ok(())
    }
}

/// Renews the certificate at half of its life, or once another authority issues, for as long as it takes. Open
/// connections keep the old one; the next handshake presents the new one. `client` asks who issues.
pub async fn keep_fresh(
    mut identity: Identity,
    tls: ClientTls,
    client: Client,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::default();
    let mut wait = identity.renew_in(jitter());
    // At once the first time: its authority may have been dropped while nobody ran here.
    let mut look_in = Duration::ZERO;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = behind(&client, &identity, look_in) => {}
            () = stop.cancelled() => return,
        }
        look_in = LOOK_EVERY;
        let renewed = tokio::select! {
            renewed = enrollment::renew_or_rejoin(&identity) => renewed,
            () = stop.cancelled() => return,
        };
        match renewed.and_then(|renewed| {
            renewed.put_into(&tls)?;
            Ok(renewed)
        }) {
            Ok(renewed) => {
                info!("renewed the certificate of {}", renewed.spiffe_id());
                identity = renewed;
                backoff.reset();
                wait = identity.renew_in(jitter());
            }
            Err(error) => {
                warn!(
                    "the certificate of {} is not renewed: {error}",
                    identity.spiffe_id()
                );
                wait = backoff.next_wait();
            }
        }
    }
}

/// Returns once the control plane trusts other authorities than the identity does, or another one issues.
async fn behind(client: &Client, identity: &Identity, mut look_in: Duration) {
    loop {
        tokio::time::sleep(look_in.mul_f64(0.5 + jitter())).await;
        look_in = LOOK_EVERY;
        match enrollment::is_behind(client, identity).await {
            Ok(true) => return,
            Ok(false) => {}
            // Its authority may have been dropped meanwhile.
            Err(error) if error.connect_error().is_some_and(ConnectError::is_outdated) => return,
            Err(error) => debug!("nobody says which authority issues: {error}"),
        }
    }
}

/// A random number from 0 to 1, so that many gateways do not come at once.
fn jitter() -> f64 {
    let mut byte = [0];
    aws_lc_rs::rand::fill(&mut byte).expect("the system has random bytes");
    f64::from(byte[0]) / 255.0
}
