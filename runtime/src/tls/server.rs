//! The server's end: an acceptor whose handshakes run side by side, and the connections that are open.

mod gatekeeper;
mod open;

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer},
    server::NoServerSessionStorage,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::LazyConfigAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

pub(super) use self::open::Registration;
use self::{
    gatekeeper::{Gatekeeper, ServerIdentity, chain_verifier},
    open::OpenConnections,
};
use super::{
    Peer, PeerCertificate, SpiffeId, TlsConnection, TlsError, certified_key, crowd::Crowd, provider,
};

/// Decides who may open a connection, after the certificate itself was found good.
pub trait Admission: Send + Sync {
    /// Whether this identity may connect now. Must not block.
    fn admits(&self, identity: &SpiffeId) -> bool;
}

/// How much an acceptor takes on.
#[derive(Debug, Clone)]
pub struct AcceptLimits {
    /// Handshakes that are worked on at once.
    pub handshakes: usize,
    /// How long a handshake may take, waiting included; and HTTP/2, to begin after it.
    pub handshake_timeout: Duration,
    /// Open connections; more are dropped as they come. Those with neither a certificate nor, so far, a token that counts
    /// are at most a quarter of them, and so many more may be shaking hands; of both, the oldest gives way.
    pub connections: usize,
}

impl Default for AcceptLimits {
    fn default() -> Self {
        Self {
            handshakes: 64,
            handshake_timeout: Duration::from_secs(10),
            connections: 32_768,
        }
    }
}

/// How long a handshake keeps its permit, waiting for the other end included. Without it, as many strangers as there
/// are permits could keep everybody out.
const PROMPT: Duration = Duration::from_millis(250);

/// Connections that may wait to be accepted: a fleet that dials in at once finds room. The kernel caps it at
/// `net.core.somaxconn`, 4096 since Linux 5.4.
pub const BACKLOG: u32 = 4096;

/// Takes an address without listening yet: whoever dials is refused until [`TcpSocket::listen`].
pub fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // So that a restart can bind while connections of the process before linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Opens a listener with room for [`BACKLOG`] waiting connections.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address)?.listen(BACKLOG)
}

/// The server's end of TLS.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<rustls::ServerConfig>,
    identity: Arc<ServerIdentity>,
    gatekeeper: Arc<Gatekeeper>,
    admission: Arc<dyn Admission>,
    open: Arc<OpenConnections>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

impl ServerTls {
    /// A server that presents `chain` (leaf first, authority included, so that it can be pinned) and takes
    /// client certificates of `authorities`.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        authorities: &[CertificateDer<'_>],
        admission: Arc<dyn Admission>,
    ) -> Result<Self, TlsError> {
        let identity = Arc::new(ServerIdentity(ArcSwap::new(certified_key(chain, key)?)));
        let gatekeeper = Arc::new(Gatekeeper {
            chain: ArcSwap::from_pointee(chain_verifier(authorities)?),
            admission: admission.clone(),
        });
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Identity)?
            .with_client_cert_verifier(gatekeeper.clone())
            .with_cert_resolver(identity.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
            identity,
            gatekeeper,
            admission,
            open: Arc::default(),
        })
    }

    /// Presents another certificate from the next handshake on.
    pub fn set_identity(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), TlsError> {
        self.identity.0.store(certified_key(chain, key)?);
        Ok(())
    }

    /// Takes client certificates of these authorities, and no others, from the next handshake on.
    pub fn set_authorities(&self, authorities: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        let verifier = chain_verifier(authorities)?;
        self.gatekeeper.chain.store(Arc::new(verifier));
        Ok(())
    }

    /// Closes every connection of an identity: streams get a moment to say why, then the connection is cut.
    /// To be called once [`Admission`] refuses the identity. Returns how many there were.
    pub fn close(&self, identity: &SpiffeId) -> usize {
        let peers = self.open.of(identity);
        for peer in &peers {
            peer.close();
        }
        peers.len()
    }

    /// Closes every connection whose identity [`Admission`] refuses now.
    pub fn close_refused(&self) {
        for peer in self.open.identified() {
            if peer
                .spiffe_id()
                .is_some_and(|id| !self.admission.admits(id))
            {
                peer.close();
            }
        }
    }

    /// Cuts every connection at once, and those that still come.
    pub fn cut_all(&self) {
        self.open.all.cancel();
    }

    /// Accepts connections until `stop` is cancelled. Each item is a connection after its handshake.
    pub fn incoming(
        &self,
        listener: TcpListener,
        limits: AcceptLimits,
        stop: CancellationToken,
    ) -> ReceiverStream<io::Result<TlsConnection>> {
        // The other side only spawns what it receives, so a short queue is enough.
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(self.clone().accept(listener, limits, stop, sender));
        ReceiverStream::new(receiver)
    }

    async fn accept(
        self,
        listener: TcpListener,
        limits: AcceptLimits,
        stop: CancellationToken,
        sender: mpsc::Sender<io::Result<TlsConnection>>,
    ) {
        let rooms = Rooms {
            slots: Arc::new(Semaphore::new(limits.connections)),
            handshakes: Arc::new(Semaphore::new(limits.handshakes)),
            strangers: Crowd::new(limits.connections / 4),
            preface: limits.handshake_timeout,
        };
        let shaking = Crowd::new(limits.connections / 4);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let (socket, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, as a rule; accepting again at once would spin.
                    tracing::warn!(%error, "a connection could not be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let gives_way = CancellationToken::new();
            let place = shaking.enter(gives_way.clone());
            let handshake = self.clone().handshake(socket, address, rooms.clone());
            let sender = sender.clone();
            let limit = limits.handshake_timeout;
            let stop = stop.clone();
            tokio::spawn(async move {
                let outcome = tokio::select! {
                    outcome = tokio::time::timeout(limit, handshake) => outcome,
                    () = gives_way.cancelled() => {
                        return tracing::debug!(%address, "a handshake gave way to newer ones");
                    }
                    () = stop.cancelled() => return,
                };
                drop(place);
                match outcome {
                    Ok(Ok(connection)) => {
                        // The receiver is gone only while the server stops.
                        let _ = sender.send(Ok(connection)).await;
                    }
                    Ok(Err(error)) => {
                        tracing::debug!(%address, %error, "a handshake failed: {error}");
                    }
                    Err(_) => tracing::debug!(%address, "a handshake took too long"),
                }
            });
        }
    }

    async fn handshake(
        self,
        socket: TcpStream,
        address: SocketAddr,
        rooms: Rooms,
    ) -> io::Result<TlsConnection> {
        // Without it, Nagle and delayed acknowledgements cost 40 ms a message.
        socket.set_nodelay(true)?;
        // Whoever sends nothing occupies no handshake: the permit is taken once the hello is here.
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket).await?;
        let permit = rooms.handshakes.acquire_owned().await;
        let permit = permit.map_err(io::Error::other)?;
        // Nor does whoever says hello and then nothing more: it goes on without one, and its time runs out.
        let mut shaking = std::pin::pin!(hello.into_stream(self.config.clone()));
        let prompt = tokio::time::timeout(PROMPT, &mut shaking).await;
        drop(permit);
        let stream = match prompt {
            Ok(stream) => stream?,
            Err(_) => shaking.await?,
        };
        let certificate = match stream.get_ref().1.peer_certificates() {
            Some([leaf, ..]) => Some(PeerCertificate::from_der(leaf).map_err(io::Error::other)?),
            _ => None,
        };
        let incoming = match &certificate {
            Some(certificate) => self.open.incoming(&certificate.spiffe_id),
            None => Arc::default(),
        };
        let cut = self.open.all.child_token();
        let peer = Arc::new(Peer::new(address, certificate, incoming, cut));
        let Ok(slot) = rooms.slots.try_acquire_owned() else {
            tracing::warn!(%address, "a connection was dropped: there is no room for more");
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let registration = peer.spiffe_id().map(|id| self.open.register(id, &peer));
        if registration.is_none() {
            peer.stand(rooms.strangers.enter(peer.gives_way()));
        }
        // Locked between the verifier's look and the registration: `close` may have missed this one.
        if let Some(id) = peer.spiffe_id()
            && !self.admission.admits(id)
        {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(TlsConnection::new(
            stream,
            peer,
            registration,
            slot,
            rooms.preface,
        ))
    }
}

/// What there is room for. Cheap to clone.
#[derive(Clone)]
struct Rooms {
    slots: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    /// Those who have not proved who they are, after their handshake.
    strangers: Arc<Crowd>,
    /// How long HTTP/2 may take to begin.
    preface: Duration,
}
