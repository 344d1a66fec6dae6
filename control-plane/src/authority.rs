//! The certificate authority, and the next one while they change places.
//!
//! Its key never leaves the data directory. Of a signing request only the public key is used: what a certificate
//! says is decided here.

mod ring;
mod steps;

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use muster_client::identity::IdentityError;
use muster_runtime::tls::{SpiffeId, SpiffeKind};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::sync::watch;

use self::ring::{Keyed, Ring};
pub(crate) use self::{
    ring::{FILE, Phase},
    steps::{Step, StepError},
};
use crate::clock::now;

/// How long an authority lives. It is not renewed: another takes its place, step by step.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How much earlier than now certificates begin, against clocks that are behind.
const BACKDATED: Duration = Duration::from_secs(300);

/// Why the authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] IdentityError),
    /// A file holds something else.
    #[error("{} cannot be used: {cause}; restore it from a backup, or every host has to join anew", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// A certificate could not be made.
    #[error("a certificate could not be issued: {0}")]
    Issue(#[from] rcgen::Error),
}

/// The request for a certificate is malformed, for a key of another kind, or not signed by it.
#[derive(Debug, thiserror::Error)]
#[error("the certificate signing request cannot be used: {0}")]
pub(crate) struct RequestError(String);

/// A public key that proved in its request that somebody holds its secret.
pub(crate) struct RequestedKey(rcgen::PublicKey);

impl RequestedKey {
    /// Reads a PKCS #10 request and checks its signature. Everything in it but the key is ignored.
    pub(crate) fn from_request(der: &[u8]) -> Result<Self, RequestError> {
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
                .map_err(|error| RequestError(error.to_string()))?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(RequestError("the key is not ECDSA P-256".to_owned()));
        }
        Ok(Self(request.public_key))
    }

    /// SHA-256 of the key.
    pub(crate) fn hash(&self) -> Vec<u8> {
        digest::digest(&digest::SHA256, self.0.der_bytes())
            .as_ref()
            .to_vec()
    }
}

/// A certificate and what signed it.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    /// Leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// When it expires.
    pub(crate) expires: SystemTime,
}

/// Signs certificates.
pub(crate) struct Authority {
    directory: PathBuf,
    trust_domain: Arc<str>,
    ring: ArcSwap<Ring>,
    /// The version of the ring, for whoever passes it on.
    version: watch::Sender<i64>,
}

impl Authority {
    /// Reads the authorities of a data directory, or makes one at the first start.
    pub(crate) fn open(directory: &Path, trust_domain: &str) -> Result<Self, AuthorityError> {
        let ring = Ring::open(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            trust_domain: trust_domain.into(),
            version: watch::channel(ring.version).0,
            ring: ArcSwap::from_pointee(ring),
        })
    }

    /// The certificate of the authority that issues.
    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.ring.load().issuing().certificate.clone()
    }

    /// Every authority whose certificates are taken; the one that issues is first.
    pub(crate) fn trusted(&self) -> Vec<CertificateDer<'static>> {
        self.ring.load().trusted()
    }

    /// Authorities by whose certificates somebody may still come back with an old key.
    pub(crate) fn recognized(&self) -> Vec<CertificateDer<'static>> {
        self.ring.load().recognized(now())
    }

    /// Grows with each step of a rotation; 0 before the first.
    pub(crate) fn version(&self) -> i64 {
        self.ring.load().version
    }

    /// The version now and from now on.
    pub(crate) fn versions(&self) -> watch::Receiver<i64> {
        self.version.subscribe()
    }

    /// The trust domain of the ids it signs.
    pub(crate) fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// What a join string pins: the authority whose certificate the control plane shows.
    pub(crate) fn pin(&self) -> String {
        pin(&self.ring.load().serving().certificate)
    }

    /// The SPIFFE id of this name under the trust domain.
    pub(crate) fn id(&self, kind: SpiffeKind, name: impl Into<String>) -> SpiffeId {
        SpiffeId::new(&*self.trust_domain, kind, name)
    }

    /// A client certificate for a key that was asked for.
    pub(crate) fn issue_client(
        &self,
        id: &SpiffeId,
        key: &RequestedKey,
        lifetime: Duration,
    ) -> Result<Issued, AuthorityError> {
        issue(self.ring.load().issuing(), client(id)?, &key.0, lifetime)
    }

    /// A client certificate for a key that was made here, as an operator's at the first start.
    pub(crate) fn issue_local(
        &self,
        id: &SpiffeId,
        key: &KeyPair,
        lifetime: Duration,
    ) -> Result<Issued, AuthorityError> {
        issue(self.ring.load().issuing(), client(id)?, key, lifetime)
    }

    /// The control plane's own certificate, valid for `names` and `addresses` besides the name that our own
    /// clients look for.
    pub(crate) fn issue_server(
        &self,
        id: &SpiffeId,
        key: &KeyPair,
        names: &[String],
        addresses: &[IpAddr],
        lifetime: Duration,
    ) -> Result<Issued, AuthorityError> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![
            SanType::URI(id.to_string().try_into()?),
            SanType::DnsName(muster_proto::CONTROL_PLANE_NAME.try_into()?),
        ];
        for name in names {
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into()?));
        }
        params
            .subject_alt_names
            .extend(addresses.iter().copied().map(SanType::IpAddress));
        let ring = self.ring.load();
        let mut issued = issue(ring.serving(), params, key, lifetime)?;
        issued.chain.extend(ring.vouchers(now()));
        Ok(issued)
    }

    /// A certificate for the key that signs heads of the audit log, and for nothing else: no end of a connection takes
    /// it.
    pub(crate) fn issue_head_signer(
        &self,
        id: &SpiffeId,
        key: &KeyPair,
        lifetime: Duration,
    ) -> Result<Issued, AuthorityError> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::TimeStamping];
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        issue(self.ring.load().issuing(), params, key, lifetime)
    }
}

fn issue(
    by: &Keyed,
    mut params: CertificateParams,
    key: &impl PublicKeyData,
    lifetime: Duration,
) -> Result<Issued, AuthorityError> {
    let now = SystemTime::now();
    let expires = now + lifetime;
    params.not_before = (now - BACKDATED).into();
    params.not_after = expires.into();
    params.distinguished_name = DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(key, &by.issuer)?;
    Ok(Issued {
        chain: vec![leaf.der().clone(), by.certificate.clone()],
        expires,
    })
}

/// SHA-256 of a certificate, as hex.
pub(crate) fn pin(certificate: &CertificateDer<'_>) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, certificate).as_ref())
}

fn client(id: &SpiffeId) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
    Ok(params)
}

/// What a certificate of an authority with this key says.
fn authority(key: &KeyPair) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + AUTHORITY_LIFETIME).into();
    // Each authority has a name of its own: with one name for all, a stranger's certificate would look like a
    // forged one of ours.
    let digest = digest::digest(&digest::SHA256, key.public_key_raw());
    let name = HEXLOWER.encode(&digest.as_ref()[..8]);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Muster authority {name}"));
    // Room for the authorities after it, for which it vouches.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(3));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

#[cfg(test)]
mod tests {
    use muster_client::identity::generate_key;
    use muster_runtime::tls::PeerCertificate;

    use super::*;

    #[test]
    fn an_authority_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let first = Authority::open(directory.path(), "muster.internal").unwrap();
        let second = Authority::open(directory.path(), "muster.internal").unwrap();
        assert_eq!(first.pin(), second.pin());
        assert_eq!(first.pin().len(), 64);
    }

    #[test]
    fn of_a_request_only_the_key_counts() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open(directory.path(), "muster.internal").unwrap();
        let key = generate_key();
        let mut wish = CertificateParams::default();
        wish.subject_alt_names = vec![SanType::URI(
            "spiffe://muster.internal/operator/root".try_into().unwrap(),
        )];
        let request = wish.serialize_request(&key).unwrap();
        let requested = RequestedKey::from_request(request.der()).unwrap();
        let id = authority.id(SpiffeKind::Host, "h-1");
        let issued = authority
            .issue_client(&id, &requested, Duration::from_secs(60))
            .unwrap();
        let leaf = PeerCertificate::from_der(&issued.chain[0]).unwrap();
        assert_eq!(leaf.spiffe_id, id);
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let request = CertificateParams::default()
            .serialize_request(&generate_key())
            .unwrap();
        let mut der = request.der().to_vec();
        *der.last_mut().unwrap() ^= 1;
        assert!(RequestedKey::from_request(&der).is_err());
        assert!(RequestedKey::from_request(b"no request").is_err());
    }
}
