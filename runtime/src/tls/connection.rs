//! An accepted connection, and who is at its other end.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicUsize},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::Sleep,
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use super::{SpiffeId, TlsError, crowd::Place, server::Registration};

/// How HTTP/2 begins has so many bytes, always the same.
const PREFACE_BYTES: usize = 24;

/// What a client certificate says, once it was verified.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Whom it speaks for.
    pub spiffe_id: SpiffeId,
    /// Its serial number, big endian.
    pub serial: Vec<u8>,
    /// When its validity begins.
    pub not_before: SystemTime,
    /// When it expires.
    pub not_after: SystemTime,
}

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.spiffe_id)
    }
}

impl PeerCertificate {
    /// Reads the facts of a certificate without judging it.
    pub fn from_der(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let wrong = |cause: &str| TlsError::SpiffeId(cause.to_owned());
        let (_, x509) = x509_parser::certificate::X509Certificate::from_der(certificate)
            .map_err(|_| wrong("it is malformed"))?;
        let names = x509
            .subject_alternative_name()
            .map_err(|_| wrong("its names are malformed"))?
            .ok_or_else(|| wrong("it has no SPIFFE id"))?;
        let mut uris = names.value.general_names.iter().filter_map(|n| match n {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        // A SPIFFE certificate has exactly one URI; with two, checks could look at different ones.
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err(wrong("it has not exactly one URI"));
        };
        let time = |time: x509_parser::time::ASN1Time| {
            SystemTime::UNIX_EPOCH
                + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
        };
        Ok(Self {
            spiffe_id: uri
                .parse()
                .map_err(|error: super::SpiffeIdError| wrong(&error.to_string()))?,
            serial: x509.raw_serial().to_vec(),
            not_before: time(x509.validity().not_before),
            not_after: time(x509.validity().not_after),
        })
    }
}

/// Who is at the other end of a connection. In the extensions of each request as `Arc<Peer>`.
pub struct Peer {
    /// Where the connection comes from.
    pub address: SocketAddr,
    /// The certificate, if the other end presented one.
    pub certificate: Option<PeerCertificate>,
    /// Bytes of messages that are on their way in, on all connections of this identity: to be counted by whoever reads
    /// them, so that there is a limit to what can be begun and never ended.
    pub incoming: Arc<AtomicUsize>,
    /// A place among strangers, while the other end is one.
    // A plain mutex: held to put and to take.
    stranger: Mutex<Option<Place>>,
    closing: CancellationToken,
    cut: CancellationToken,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.certificate {
            Some(certificate) => write!(f, "{certificate:?} from {}", self.address),
            None => write!(f, "somebody from {}", self.address),
        }
    }
}

impl Peer {
    pub(super) fn new(
        address: SocketAddr,
        certificate: Option<PeerCertificate>,
        incoming: Arc<AtomicUsize>,
        cut: CancellationToken,
    ) -> Self {
        Self {
            address,
            certificate,
            incoming,
            stranger: Mutex::default(),
            closing: CancellationToken::new(),
            cut,
        }
    }

    /// Whom the certificate speaks for.
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        self.certificate.as_ref().map(|c| &c.spiffe_id)
    }

    /// Cancelled when this connection's identity is shut out: streams say why and end. A moment later the
    /// connection is cut, whether they did or not.
    pub fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// How long streams have to say why they end.
    const LAST_WORDS: Duration = Duration::from_millis(250);

    /// Takes a place among strangers, who give way where more of them come.
    pub(super) fn stand(&self, place: Place) {
        *self.stranger.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }

    /// The other end has proved who it is, by a token: it gives way to strangers no more.
    pub fn vouched_for(&self) {
        drop(
            self.stranger
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    /// Cancelled, it cuts the connection.
    pub(super) fn gives_way(&self) -> CancellationToken {
        self.cut.clone()
    }

    pub(super) fn close(self: &Arc<Self>) {
        self.closing.cancel();
        let cut = self.cut.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Self::LAST_WORDS).await;
            cut.cancel();
        });
    }
}

/// An accepted connection after its handshake.
pub struct TlsConnection {
    stream: TlsStream<TcpStream>,
    peer: Arc<Peer>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Until when HTTP/2 has to begin: a server of it would wait without limit.
    begins: Option<(Pin<Box<Sleep>>, usize)>,
    _registration: Option<Registration>,
    _slot: OwnedSemaphorePermit,
}

impl TlsConnection {
    pub(super) fn new(
        stream: TlsStream<TcpStream>,
        peer: Arc<Peer>,
        registration: Option<Registration>,
        slot: OwnedSemaphorePermit,
        preface: Duration,
    ) -> Self {
        let cut = Box::pin(peer.cut.clone().cancelled_owned());
        Self {
            stream,
            peer,
            cut,
            begins: Some((Box::pin(tokio::time::sleep(preface)), PREFACE_BYTES)),
            _registration: registration,
            _slot: slot,
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }
}

impl fmt::Debug for TlsConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.peer.fmt(f)
    }
}

impl Connected for TlsConnection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        self.peer.clone()
    }
}

impl Drop for TlsConnection {
    fn drop(&mut self) {
        // A call that goes on by itself may keep the peer; the place among strangers is free with the connection.
        self.peer.vouched_for();
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A server always waits in a read, so this is where a cut is noticed.
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some((limit, left)) = &mut self.begins {
            *left = left.saturating_sub(buf.filled().len() - before);
            if *left == 0 {
                self.begins = None;
            } else if read.is_pending() && limit.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
