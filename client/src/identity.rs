//! A directory that holds a key, its certificate and whom to trust.
//!
//! `key.pem`, `cert.pem` (leaf first), `ca.pem`, `address` ("HOST:PORT" of the control plane), all 0600. Files are
//! replaced whole. A new pair is written as `cert.next.pem`, then `key.pem`, then `cert.pem`: whatever moment a
//! crash chooses, `key.pem` fits one of the two certificates.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use muster_runtime::tls::{ClientTls, PeerCertificate, SpiffeId, SpiffeKind, TlsError};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};

const KEY: &str = "key.pem";
const CERTIFICATE: &str = "cert.pem";
const NEXT_CERTIFICATE: &str = "cert.next.pem";
const AUTHORITIES: &str = "ca.pem";
const ADDRESS: &str = "address";
const NAME: &str = "name";

/// Why a directory gives no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is none yet.
    #[error("{} holds no identity yet", .0.display())]
    Missing(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} cannot be used: {cause}", path.display())]
    Malformed {
        /// Which one.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

/// Who we are to a control plane, and where it is.
pub struct Identity {
    directory: PathBuf,
    key: KeyPair,
    chain: Vec<CertificateDer<'static>>,
    authorities: Vec<CertificateDer<'static>>,
    address: String,
    name: String,
    leaf: PeerCertificate,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.leaf.spiffe_id, self.address)
    }
}

impl Identity {
    /// Reads the identity of a directory. [`IdentityError::Missing`] if there is none yet.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        Self::find(directory).map(|(identity, _)| identity)
    }

    /// The identity of a directory, and whether its certificate still has to take its place. Changes nothing:
    /// whoever reads may be another process than the one that writes.
    fn find(directory: &Path) -> Result<(Self, bool), IdentityError> {
        let key_path = directory.join(KEY);
        if !key_path.exists() {
            return Err(IdentityError::Missing(directory.to_owned()));
        }
        let key = load_key(&key_path)?;
        let authorities = read_certificates(&directory.join(AUTHORITIES))?;
        let address = read_line(&directory.join(ADDRESS))?;
        let name = read_line(&directory.join(NAME)).unwrap_or_default();
        let next = directory.join(NEXT_CERTIFICATE);
        let current = directory.join(CERTIFICATE);
        let identity = |path: &Path| -> Result<Self, IdentityError> {
            Self::new(
                directory,
                copy_of(&key),
                read_certificates(path)?,
                authorities.clone(),
                address.clone(),
                name.clone(),
            )
            .map_err(|error| malformed(path, error))
        };
        match identity(&current) {
            Ok(identity) => Ok((identity, false)),
            // If it is gone, it has just taken its place.
            Err(_) if next.exists() => match identity(&next) {
                Ok(identity) => Ok((identity, true)),
                Err(_) => identity(&current).map(|identity| (identity, false)),
            },
            Err(_) => identity(&current).map(|identity| (identity, false)),
        }
    }

    /// Puts an identity together; `directory` is where it will be stored.
    pub fn new(
        directory: &Path,
        key: KeyPair,
        chain: Vec<CertificateDer<'static>>,
        authorities: Vec<CertificateDer<'static>>,
        address: String,
        name: String,
    ) -> Result<Self, TlsError> {
        let missing = || TlsError::SpiffeId("the chain is empty".to_owned());
        let leaf_der = chain.first().ok_or_else(missing)?;
        let leaf = PeerCertificate::from_der(leaf_der)?;
        let identity = Self {
            directory: directory.to_owned(),
            key,
            chain,
            authorities,
            address,
            name,
            leaf,
        };
        // Key and certificate must belong together.
        identity.client_tls()?;
        Ok(identity)
    }

    /// Writes the identity to its directory, which is made if it is not there.
    pub fn store(&self) -> Result<(), IdentityError> {
        let at = |name: &str| self.directory.join(name);
        create_directory(&self.directory)?;
        // What a crash left half done is finished first, or the key would be left without its certificate.
        if let Ok((_, true)) = Self::find(&self.directory) {
            fs::rename(at(NEXT_CERTIFICATE), at(CERTIFICATE))
                .map_err(|source| file_error(&at(CERTIFICATE), source))?;
        }
        let chain = pem(&self.chain);
        write_file(&at(AUTHORITIES), pem(&self.authorities).as_bytes(), 0o600)?;
        write_file(
            &at(ADDRESS),
            format!("{}\n", self.address).as_bytes(),
            0o600,
        )?;
        write_file(&at(NAME), format!("{}\n", self.name).as_bytes(), 0o600)?;
        write_file(&at(NEXT_CERTIFICATE), chain.as_bytes(), 0o600)?;
        write_file(&at(KEY), self.key.serialize_pem().as_bytes(), 0o600)?;
        fs::rename(at(NEXT_CERTIFICATE), at(CERTIFICATE))
            .and_then(|()| File::open(&self.directory)?.sync_all())
            .map_err(|source| file_error(&at(CERTIFICATE), source))
    }

    /// TLS as this identity, trusting its authorities.
    pub fn client_tls(&self) -> Result<ClientTls, TlsError> {
        let tls = ClientTls::new(&self.authorities)?;
        self.present_in(&tls)?;
        Ok(tls)
    }

    /// Presents this identity in `tls` from the next handshake on, as after a renewal.
    pub fn present_in(&self, tls: &ClientTls) -> Result<(), TlsError> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        tls.set_identity(self.chain.clone(), key)
    }

    /// Trusts these authorities from now on; to be stored and put into TLS by the caller.
    pub fn set_authorities(&mut self, authorities: Vec<CertificateDer<'static>>) {
        self.authorities = authorities;
    }

    /// Trusts its authorities in `tls` from the next handshake on, and presents itself there.
    pub fn put_into(&self, tls: &ClientTls) -> Result<(), TlsError> {
        tls.set_authorities(&self.authorities)?;
        self.present_in(tls)
    }

    /// The certificate is of this authority.
    pub fn is_of(&self, authority: &CertificateDer<'_>) -> bool {
        self.chain.get(1) == Some(authority)
    }

    /// TLS without a certificate of ours, trusting the same authorities.
    pub fn anonymous_tls(&self) -> Result<ClientTls, TlsError> {
        ClientTls::new(&self.authorities)
    }

    /// The same identity at another address of the control plane.
    #[must_use]
    pub fn at_address(mut self, address: impl Into<String>) -> Self {
        self.address = address.into();
        self
    }

    /// The directory that holds the identity.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the control plane listens, as "HOST:PORT".
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whom the certificate speaks for.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.leaf.spiffe_id
    }

    /// The host id, if this is a host's identity.
    pub fn host_id(&self) -> Option<&str> {
        let id = &self.leaf.spiffe_id;
        (id.kind == SpiffeKind::Host).then_some(id.name.as_str())
    }

    /// The name that the control plane gave at the last enrollment or renewal; hosts may be renamed since.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The certificate and what signed it, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Whom to trust.
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// The key of the certificate. It does not leave this machine.
    pub fn key(&self) -> &KeyPair {
        &self.key
    }

    /// When the certificate expires.
    pub fn expires(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// The certificate has expired, by this machine's clock.
    pub fn is_expired(&self) -> bool {
        self.expires() <= SystemTime::now()
    }

    /// How long to wait before renewing: until half of the lifetime is over, ± 10 %. `jitter` is a random
    /// number from 0 to 1. Zero if that moment has passed.
    pub fn renew_in(&self, jitter: f64) -> Duration {
        // Certificates are backdated against clock skew; that part is no lifetime.
        let begin = self.leaf.not_before + BACKDATED;
        let lifetime = self.expires().duration_since(begin).unwrap_or_default();
        let share = 0.5 + (jitter.clamp(0.0, 1.0) - 0.5) * 0.2;
        (begin + lifetime.mul_f64(share))
            .duration_since(SystemTime::now())
            .unwrap_or_default()
    }
}

/// How much earlier than now an authority lets its certificates begin.
const BACKDATED: Duration = Duration::from_secs(300);

fn copy_of(key: &KeyPair) -> KeyPair {
    KeyPair::try_from(key.serialized_der()).expect("it was read from the same bytes")
}

/// Makes a fresh key.
pub fn generate_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("P-256 is always supported")
}

pub(crate) fn load_key(path: &Path) -> Result<KeyPair, IdentityError> {
    let text = fs::read_to_string(path).map_err(|source| file_error(path, source))?;
    KeyPair::from_pem(&text).map_err(|error| malformed(path, error))
}

/// Reads the certificates of authorities (PEM).
pub fn load_authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    read_certificates(path)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let bytes = fs::read(path).map_err(|source| file_error(path, source))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| malformed(path, format!("{error:?}")))?;
    if certificates.is_empty() {
        return Err(malformed(path, "it holds no certificate"));
    }
    Ok(certificates)
}

fn read_line(path: &Path) -> Result<String, IdentityError> {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|source| file_error(path, source))
}

/// Certificates as PEM, in order.
pub fn pem(certificates: &[CertificateDer<'_>]) -> String {
    use base64::Engine as _;
    let mut text = String::new();
    for certificate in certificates {
        let encoded = base64::engine::general_purpose::STANDARD.encode(certificate);
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in encoded.as_bytes().chunks(64) {
            text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

/// Makes a directory that only its owner may enter.
pub fn create_directory(path: &Path) -> Result<(), IdentityError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| file_error(path, source))
}

/// Replaces a file whole: a reader, or a crash, finds the old or the new one.
pub fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), IdentityError> {
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        // A leftover may have another mode.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| file_error(path, source))
}

fn file_error(path: &Path, source: io::Error) -> IdentityError {
    IdentityError::File {
        path: path.to_owned(),
        source,
    }
}

fn malformed(path: &Path, cause: impl ToString) -> IdentityError {
    IdentityError::Malformed {
        path: path.to_owned(),
        cause: cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, SanType};

    fn identity(directory: &Path) -> Identity {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, generate_key()).unwrap();
        let key = generate_key();
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = vec![SanType::URI(
            "spiffe://muster.internal/host/h-1".try_into().unwrap(),
        )];
        let leaf = leaf.signed_by(&key, &ca).unwrap();
        let chain = vec![leaf.der().clone()];
        let authorities = vec![ca.der().clone()];
        Identity::new(
            directory,
            key,
            chain,
            authorities,
            "127.0.0.1:1".to_owned(),
            "web-1".to_owned(),
        )
        .unwrap()
    }

    #[test]
    fn an_identity_reads_back_as_stored() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("agent");
        assert!(matches!(
            Identity::load(&directory),
            Err(IdentityError::Missing(_))
        ));
        identity(&directory).store().unwrap();
        let read = Identity::load(&directory).unwrap();
        assert_eq!(read.host_id(), Some("h-1"));
        assert_eq!(read.address(), "127.0.0.1:1");
        assert_eq!(read.name(), "web-1");
        let mode = |path: &Path| {
            use std::os::unix::fs::PermissionsExt as _;
            fs::metadata(path).unwrap().permissions().mode() & 0o777
        };
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join(KEY)), 0o600);
    }

    #[test]
    fn a_crash_between_key_and_certificate_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        identity(directory).store().unwrap();
        let old = fs::read(directory.join(CERTIFICATE)).unwrap();
        identity(directory).store().unwrap();
        // As if the last rename had not happened.
        fs::rename(
            directory.join(CERTIFICATE),
            directory.join(NEXT_CERTIFICATE),
        )
        .unwrap();
        fs::write(directory.join(CERTIFICATE), old).unwrap();
        // The authority is the new one's, so the repaired pair is whole.
        let loaded = Identity::load(directory).unwrap();
        // Reading changes nothing; writing finishes it.
        assert!(directory.join(NEXT_CERTIFICATE).exists());
        loaded.store().unwrap();
        assert!(!directory.join(NEXT_CERTIFICATE).exists());
        Identity::load(directory).unwrap();
    }
}
