//! The client's end: dial, verify, notice a refusal, and give tonic a channel that dials again by itself.

mod verifiers;

use std::{fmt, io, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use hyper_util::rt::TokioIo;
use rustls::{
    AlertDescription, SignatureScheme,
    client::{ResolvesClientCert, Resumption, danger::ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    sign::CertifiedKey,
};
use tokio::{io::AsyncBufReadExt as _, net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use self::verifiers::{Authorities, PinnedAuthority, chain_verifier};
use super::{TlsError, certified_key, provider};

/// The name that a control plane's certificate carries, whatever the address that is dialled: the authority is
/// private, so the name needs no address in it.
const SERVER_NAME: &str = "control-plane.muster.internal";

/// Dialling and handshake together take no longer.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Between signs of life of the connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Without an answer for this long the connection is dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What one stream may send ahead of its reader.
const STREAM_WINDOW: u32 = 2 << 20;

/// Exceeds what the streams of a connection may send ahead together, so that a stream whose reader is slow
/// never holds up the others.
const CONNECTION_WINDOW: u32 = 200 * STREAM_WINDOW;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers at the address, or the address means nothing.
    #[error("{address} cannot be reached: {source}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// It took too long.
    #[error("{address} did not answer within {} s", CONNECT_LIMIT.as_secs())]
    TimedOut {
        /// Where.
        address: String,
    },
    /// Whoever answers is not the control plane that is trusted: wrong authority, wrong pin, wrong name.
    #[error("what answers at {address} is not the control plane that is trusted here: {source}")]
    Untrusted {
        /// Where.
        address: String,
        /// What is wrong with its certificate.
        source: rustls::Error,
    },
    /// The control plane refuses our certificate.
    #[error("{address} refuses this certificate: {}", refusal(.alert))]
    Refused {
        /// Where.
        address: String,
        /// The server's words: `CertificateRevoked` is a lock or a removal, `CertificateExpired` speaks for itself.
        alert: AlertDescription,
    },
    /// The conversation broke off before it began.
    #[error("the handshake with {address} failed: {source}")]
    Handshake {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
}

fn refusal(alert: &AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateRevoked => "its owner is locked or was removed",
        AlertDescription::CertificateExpired => "it has expired",
        AlertDescription::UnknownCA => "another authority issued it",
        _ => "it is not valid there",
    }
}

impl ConnectError {
    /// Finds the reason behind an error of a channel, as in a `Status` of a call that could not connect.
    pub fn behind<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }

    /// Our certificate has expired; an old key may still get another.
    pub fn is_expired(&self) -> bool {
        matches!(self, Self::Refused { alert, .. } if *alert == AlertDescription::CertificateExpired)
    }

    /// The control plane does not know the authority of our certificate any more; an old key may still get another.
    pub fn is_outdated(&self) -> bool {
        matches!(self, Self::Refused { alert, .. } if *alert == AlertDescription::UnknownCA)
    }

    /// The control plane does not want us. Trying again soon is of no use.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

/// The client's end of TLS: whom to trust and, optionally, who we are. Clones share both.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<rustls::ClientConfig>,
    identity: Arc<ClientIdentity>,
    authorities: Option<Arc<Authorities>>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls")
    }
}

impl ClientTls {
    /// Trusts control planes with a certificate of these authorities. Anonymous until an identity is set.
    pub fn new(authorities: &[CertificateDer<'_>]) -> Result<Self, TlsError> {
        let verifier = Arc::new(Authorities(ArcSwap::new(chain_verifier(authorities)?)));
        let mut tls = Self::with_verifier(verifier.clone());
        tls.authorities = Some(verifier);
        Ok(tls)
    }

    /// Trusts these authorities, and no others, from the next handshake on. A pin stays as it is.
    pub fn set_authorities(&self, authorities: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        if let Some(trusted) = &self.authorities {
            trusted.0.store(chain_verifier(authorities)?);
        }
        Ok(())
    }

    /// Trusts the control plane whose authority's certificate has this SHA-256: the pin of a join string.
    pub fn pinned(pin: [u8; 32]) -> Self {
        Self::with_verifier(Arc::new(PinnedAuthority { pin }))
    }

    fn with_verifier(verifier: Arc<dyn ServerCertVerifier>) -> Self {
        let identity = Arc::new(ClientIdentity::default());
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(identity.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Self {
            config: Arc::new(config),
            identity,
            authorities: None,
        }
    }

    /// Presents this certificate (leaf first) from the next handshake on; open connections keep theirs.
    pub fn set_identity(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), TlsError> {
        self.identity.0.store(Some(certified_key(chain, key)?));
        Ok(())
    }

    /// Dials and shakes hands. Waits for the server's first byte: in TLS 1.3 a client is done before the server
    /// has judged its certificate, and a refusal would otherwise look like a broken network.
    async fn dial(&self, address: &str) -> Result<TlsStream<TcpStream>, ConnectError> {
        timeout(CONNECT_LIMIT, self.dial_unlimited(address))
            .await
            .unwrap_or_else(|_| {
                Err(ConnectError::TimedOut {
                    address: address.to_owned(),
                })
            })
    }

    async fn dial_unlimited(&self, address: &str) -> Result<TlsStream<TcpStream>, ConnectError> {
        let unreachable = |source| ConnectError::Unreachable {
            address: address.to_owned(),
            source,
        };
        let socket = TcpStream::connect(address).await.map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        let name = ServerName::try_from(SERVER_NAME).expect("the name is a valid DNS name");
        let judged = |source: io::Error| judge(address, source);
        let mut stream = TlsConnector::from(self.config.clone())
            .connect(name, socket)
            .await
            .map_err(judged)?;
        if stream.fill_buf().await.map_err(judged)?.is_empty() {
            return Err(judged(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(stream)
    }
}

/// Tells a refusal and a stranger from a broken conversation.
fn judge(address: &str, error: io::Error) -> ConnectError {
    let address = address.to_owned();
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(source @ rustls::Error::InvalidCertificate(_)) => ConnectError::Untrusted {
            address,
            source: source.clone(),
        },
        Some(rustls::Error::AlertReceived(
            alert @ (AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        )) => ConnectError::Refused {
            address,
            alert: *alert,
        },
        _ => ConnectError::Handshake {
            address,
            source: error,
        },
    }
}

fn endpoint() -> Endpoint {
    // The connector does TLS itself, so for tonic the scheme of the address is plain; the origin is what the
    // other end sees.
    Endpoint::from_static("http://control-plane.muster.internal")
        .origin(http::Uri::from_static(
            "https://control-plane.muster.internal",
        ))
        .user_agent(concat!("muster/", env!("CARGO_PKG_VERSION")))
        .expect("the user agent is a valid header")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

fn connector(
    address: &str,
    tls: &ClientTls,
) -> impl tower::Service<
    http::Uri,
    Response = TokioIo<TlsStream<TcpStream>>,
    Error = ConnectError,
    Future = impl Future<Output = Result<TokioIo<TlsStream<TcpStream>>, ConnectError>> + Send,
> + Send
+ 'static {
    let (address, tls): (Arc<str>, _) = (address.into(), tls.clone());
    tower::service_fn(move |_| {
        let (address, tls) = (address.clone(), tls.clone());
        async move { tls.dial(&address).await.map(TokioIo::new) }
    })
}

/// Connects to the control plane at `address` ("HOST:PORT"). The channel dials again by itself when a call finds
/// the connection gone; [`ConnectError::behind`] then says why a call could not.
pub async fn connect(address: &str, tls: &ClientTls) -> Result<Channel, ConnectError> {
    // The first connection is made here and handed over, so that its error stays typed.
    let first = tls.dial(address).await?;
    let mut first = Some(TokioIo::new(first));
    let (address, tls): (Arc<str>, _) = (address.into(), tls.clone());
    let connector = {
        let (address, tls) = (address.clone(), tls.clone());
        tower::service_fn(move |_: http::Uri| {
            let (address, tls, first) = (address.clone(), tls.clone(), first.take());
            async move {
                match first {
                    Some(first) => Ok(first),
                    None => tls.dial(&address).await.map(TokioIo::new),
                }
            }
        })
    };
    endpoint()
        .connect_with_connector(connector)
        .await
        .map_err(|error| ConnectError::Handshake {
            address: address.to_string(),
            source: io::Error::other(error),
        })
}

/// Like [`connect`], but dials at the first call.
pub fn connect_lazily(address: &str, tls: &ClientTls) -> Channel {
    endpoint().connect_with_connector_lazy(connector(address, tls))
}

/// The certificate that is presented, exchangeable while connections are open.
#[derive(Debug, Default)]
struct ClientIdentity(ArcSwapOption<CertifiedKey>);

impl ResolvesClientCert for ClientIdentity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }

    fn has_certs(&self) -> bool {
        self.0.load().is_some()
    }
}
