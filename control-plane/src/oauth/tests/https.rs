//! Keys over HTTPS, from a server whose certificate is of an authority of its own.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyUsagePurpose};
use rustls_pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::*;

/// What the server does with a request.
enum Answer {
    /// Gives the issuer's keys.
    Keys,
    /// Gives this.
    Raw(Vec<u8>),
    /// Says nothing.
    Silence,
}

/// A server of keys at `https://localhost:PORT/keys`.
struct KeyServer {
    address: SocketAddr,
    directory: tempfile::TempDir,
    answer: Mutex<Answer>,
    requests: AtomicUsize,
    keys: PathBuf,
}

impl KeyServer {
    async fn start(issuer: &Issuer) -> Arc<Self> {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = CertifiedIssuer::self_signed(ca, muster_client::identity::generate_key()).unwrap();
        let key = muster_client::identity::generate_key();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &ca).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), ca.pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            directory,
            answer: Mutex::new(Answer::Keys),
            requests: AtomicUsize::new(0),
            keys: issuer.path(),
        });
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(Arc::clone(&server).serve(listener, acceptor));
        server
    }

    async fn serve(self: Arc<Self>, listener: TcpListener, acceptor: TlsAcceptor) {
        while let Ok((socket, _)) = listener.accept().await {
            let (server, acceptor) = (Arc::clone(&self), acceptor.clone());
            tokio::spawn(async move {
                // Whoever does not trust the certificate hangs up.
                let Ok(mut stream) = acceptor.accept(socket).await else {
                    return;
                };
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                server.requests.fetch_add(1, Ordering::SeqCst);
                let answer = match &*server.answer.lock().unwrap() {
                    Answer::Keys => {
                        let keys = std::fs::read(&server.keys).unwrap();
                        let head =
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", keys.len());
                        Some([head.into_bytes(), keys].concat())
                    }
                    Answer::Raw(bytes) => Some(bytes.clone()),
                    Answer::Silence => None,
                };
                match answer {
                    Some(bytes) => {
                        let _ = stream.write_all(&bytes).await;
                        let _ = stream.shutdown().await;
                    }
                    None => std::future::pending().await,
                }
            });
        }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    fn oauth(&self, issuer: &Issuer, host: &str) -> Oauth {
        let config = OauthConfig {
            oauth_jwks: Some(format!("https://{host}:{}/keys", self.address.port())),
            oauth_ca: Some(self.directory.path().join("ca.pem")),
            ..issuer.config()
        };
        Oauth::new(&config).unwrap().unwrap()
    }
}

/// Lets so much time pass at once.
async fn later(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn keys_are_kept_and_looked_for_again_no_more_than_every_ten_seconds() {
    let issuer = Issuer::new();
    issuer.publish(&["ec"]);
    let server = KeyServer::start(&issuer).await;
    let oauth = server.oauth(&issuer, "localhost");
    for _ in 0..20 {
        oauth.verify(&issuer.token("ec", &claims())).await.unwrap();
    }
    assert_eq!(server.requests(), 1, "they are kept");

    issuer.publish(&["ed"]);
    let rotated = issuer.token("ed", &claims());
    for _ in 0..50 {
        assert!(oauth.verify(&rotated).await.is_err());
    }
    assert_eq!(server.requests(), 1, "who makes up key ids is no nuisance");
    later(11).await;
    oauth.verify(&rotated).await.unwrap();
    assert_eq!(server.requests(), 2, "an unknown key is looked for");
    // At once from many: one look serves them all.
    later(601).await;
    let many = (0..50).map(|_| oauth.verify(&rotated));
    let many = futures_util::future::join_all(many).await;
    assert!(many.iter().all(Result::is_ok));
    assert_eq!(server.requests(), 3, "old keys are looked for");
}

#[tokio::test]
async fn who_cannot_be_trusted_gives_no_keys() {
    let issuer = Issuer::new();
    let server = KeyServer::start(&issuer).await;
    let refused = async |oauth: Oauth, word: &str| {
        let refused = oauth.verify(&issuer.token("ec", &claims())).await;
        let Err(OauthError::Keys(words)) = refused else {
            panic!("{word}: {refused:?}");
        };
        assert!(words.contains(word), "{word}: {words}");
    };
    // The name is not the certificate's.
    refused(server.oauth(&issuer, "127.0.0.1"), "certificate").await;
    // The authority is another one's.
    let stranger = KeyServer::start(&issuer).await;
    let config = OauthConfig {
        oauth_jwks: Some(format!("https://localhost:{}/keys", server.address.port())),
        oauth_ca: Some(stranger.directory.path().join("ca.pem")),
        ..issuer.config()
    };
    refused(Oauth::new(&config).unwrap().unwrap(), "certificate").await;
    assert_eq!(server.requests(), 0, "nothing was asked");

    // Somewhere else, without a certificate: it is not followed.
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = elsewhere.local_addr().unwrap();
    let answer = |text: String| Answer::Raw(text.into_bytes());
    for (word, reply) in [
        (
            "302",
            answer(format!(
                "HTTP/1.1 302 Found\r\nlocation: http://{to}/keys\r\ncontent-length: 0\r\n\r\n"
            )),
        ),
        (
            "500",
            answer("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_owned()),
        ),
        (
            "limit",
            answer(format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}",
                2 << 20,
                " ".repeat(2 << 20)
            )),
        ),
        (
            "no key set",
            answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned()),
        ),
    ] {
        *server.answer.lock().unwrap() = reply;
        refused(server.oauth(&issuer, "localhost"), word).await;
    }
    let dialled = tokio::time::timeout(Duration::from_millis(1), elsewhere.accept()).await;
    assert!(dialled.is_err(), "it was followed");
    *server.answer.lock().unwrap() = Answer::Keys;
    let oauth = server.oauth(&issuer, "localhost");
    oauth.verify(&issuer.token("ec", &claims())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_waited_for_five_seconds() {
    let issuer = Issuer::new();
    let server = KeyServer::start(&issuer).await;
    *server.answer.lock().unwrap() = Answer::Silence;
    let started = tokio::time::Instant::now();
    let oauth = server.oauth(&issuer, "localhost");
    let refused = oauth.verify(&issuer.token("ec", &claims())).await;
    assert!(
        matches!(&refused, Err(OauthError::Keys(words)) if words.contains("within 5 s")),
        "{refused:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(6));
}
