//! TLS and HTTP/2 by hand, for ends that do not keep to them.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use muster_client::identity::Identity;
use parking_lot::Mutex;
use rcgen::KeyPair;
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Kinds of frames.
pub mod kind {
    /// Bytes of a stream.
    pub const DATA: u8 = 0;
    /// Begins a stream.
    pub const HEADERS: u8 = 1;
    /// Ends a stream at once.
    pub const RST_STREAM: u8 = 3;
    /// What an end can do.
    pub const SETTINGS: u8 = 4;
    /// The connection is over.
    pub const GOAWAY: u8 = 7;
    /// More headers.
    pub const CONTINUATION: u8 = 9;
}

/// No more headers follow.
pub const END_HEADERS: u8 = 4;

/// A certificate and a key, whether they belong together or not.
#[derive(Debug)]
pub struct Presented(Arc<CertifiedKey>);

impl Presented {
    /// What a host has.
    pub fn of(directory: &Path) -> Self {
        let identity = Identity::load(directory).unwrap();
        Self::new(identity.chain().to_vec(), identity.key())
    }

    /// This certificate with that key.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Self {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = provider().key_provider.load_private_key(key).unwrap();
        Self(Arc::new(CertifiedKey::new(chain, key)))
    }
}

impl ResolvesClientCert for Presented {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Takes whoever answers for the control plane.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// What came over a wire.
#[derive(Debug, Default)]
struct Heard {
    frames: Mutex<BTreeMap<u8, usize>>,
    over: AtomicBool,
}

/// A connection after its handshake, on which nothing is said by itself.
#[derive(Debug)]
pub struct Wire {
    up: WriteHalf<TlsStream<TcpStream>>,
    heard: Arc<Heard>,
    listening: tokio::task::JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Wire {
    /// Shakes hands as this, or as nobody.
    pub async fn shake(address: SocketAddr, presented: Option<Presented>) -> io::Result<Self> {
        let config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = match presented {
            Some(presented) => config.with_client_cert_resolver(Arc::new(presented)),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from("control-plane.muster.internal").unwrap();
        let socket = TcpStream::connect(address).await?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, socket)
            .await?;
        let (down, up) = tokio::io::split(stream);
        let heard = Arc::<Heard>::default();
        let listening = tokio::spawn(listen(down, Arc::clone(&heard)));
        Ok(Self {
            up,
            heard,
            listening,
        })
    }

    /// The same, and begins HTTP/2.
    pub async fn open(address: SocketAddr, presented: Option<Presented>) -> io::Result<Self> {
        let mut wire = Self::shake(address, presented).await?;
        wire.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        wire.frame(kind::SETTINGS, 0, 0, &[]).await?;
        Ok(wire)
    }

    /// Writes bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.up.write_all(bytes).await?;
        self.up.flush().await
    }

    /// Writes a frame.
    pub async fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        self.write(&frame(kind, flags, stream, payload)).await
    }

    /// How many frames of a kind came.
    pub fn frames(&self, kind: u8) -> usize {
        self.heard.frames.lock().get(&kind).copied().unwrap_or(0)
    }

    /// Whether the other end has closed it.
    pub fn is_over(&self) -> bool {
        self.heard.over.load(Ordering::Relaxed)
    }
}

async fn listen(mut down: ReadHalf<TlsStream<TcpStream>>, heard: Arc<Heard>) {
    let mut payload = Vec::new();
    loop {
        let mut head = [0; 9];
        if down.read_exact(&mut head).await.is_err() {
            break;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        payload.resize(length, 0);
        if down.read_exact(&mut payload).await.is_err() {
            break;
        }
        *heard.frames.lock().entry(head[3]).or_default() += 1;
    }
    heard.over.store(true, Ordering::Relaxed);
}

/// A frame as it is written.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The headers of a call of this method, as HTTP/2 packs them.
pub fn call(path: &str) -> Vec<u8> {
    // POST and https of the table; the rest literal, and not to be remembered.
    let mut bytes = vec![0x83, 0x87];
    let mut literal = |name: &[u8], value: &str| {
        bytes.extend(name);
        bytes.push(u8::try_from(value.len()).unwrap());
        bytes.extend(value.as_bytes());
    };
    literal(&[0x04], path);
    literal(&[0x01], "control-plane.muster.internal");
    literal(&[0x0f, 0x10], "application/grpc");
    literal(b"\x00\x02te", "trailers");
    bytes
}
