//! First trust: a join token or an old key becomes a certificate, and a certificate the next one.

use std::{fs, path::Path};

use bytes::Bytes;
use muster_proto::v1::{
    self, EnrollRequest, GetAuthoritiesRequest, Reason, RenewCertificateRequest, enroll_request,
    enroll_response, enrollment_service_client::EnrollmentServiceClient,
};
use muster_runtime::tls::{ClientTls, ConnectError, TlsError, connect};
use rcgen::{CertificateParams, KeyPair, SigningKey as _};
use rustls_pki_types::CertificateDer;
use tonic::{Code, Status};

use crate::{
    connect::Client,
    error::{ClientError, reason_of},
    identity::{Identity, IdentityError, create_directory, generate_key, load_key, write_file},
    join::JoinString,
};

/// The key of an identity that was asked for and has not come yet. Kept, so that asking again after a lost
/// answer names the same key and gets the same identity.
const PENDING_KEY: &str = "key.pending.pem";

/// What an old key signs, before the nonce.
const CONTEXT: &[u8] = b"muster-enroll-v1\0";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrollmentError {
    /// The control plane cannot be reached, or is not the right one.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The control plane says no.
    #[error("{message}")]
    Refused {
        /// Why.
        reason: Reason,
        /// The same in words.
        message: String,
    },
    /// The call broke off; trying again is safe.
    #[error("the control plane did not answer: {0}")]
    Interrupted(String),
    /// The answer makes no sense.
    #[error("the control plane's answer cannot be used: {0}")]
    Answer(String),
    /// The directory cannot be read or written.
    #[error(transparent)]
    Directory(#[from] IdentityError),
    /// A certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl EnrollmentError {
    /// Why the control plane said no, if it did.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused { reason, .. } => Some(*reason),
            _ => None,
        }
    }

    fn from_status(status: &Status) -> Self {
        let message = status.message().to_owned();
        let transient = matches!(status.code(), Code::Unavailable | Code::ResourceExhausted);
        match reason_of(status) {
            Some(reason) if !transient => Self::Refused { reason, message },
            _ => Self::Interrupted(message),
        }
    }
}

/// Exchanges a join token for an identity in `directory`. `name` is the name that a host would like; used where
/// the token names none. Safe to repeat after a failure: the same key is presented again.
pub async fn join(
    directory: &Path,
    join: &JoinString,
    name: &str,
) -> Result<Identity, EnrollmentError> {
    let key = pending_key(directory)?;
    let request = EnrollRequest {
        proof: Some(enroll_request::Proof::JoinToken(join.token().to_owned())),
        csr: signing_request(&key)?,
        name: name.to_owned(),
    };
    let tls = ClientTls::pinned(join.pin());
    let identity = match enroll(join.address(), &tls, request).await? {
        enroll_response::Outcome::Identity(identity) => identity,
        enroll_response::Outcome::Nonce(_) => {
            return Err(EnrollmentError::Answer(
                "a nonce for a join token".to_owned(),
            ));
        }
    };
    keep(directory, key, join.address(), identity)
}

/// Exchanges a certificate that has expired, or whose authority was dropped, for a new one, by a signature of its key.
pub async fn rejoin(old: &Identity) -> Result<Identity, EnrollmentError> {
    let key = pending_key(old.directory())?;
    let csr = signing_request(&key)?;
    let tls = old.anonymous_tls()?;
    let certificate = Bytes::copy_from_slice(
        old.chain()
            .first()
            .ok_or_else(|| EnrollmentError::Answer("there is no old certificate".to_owned()))?,
    );
    let mut nonce = Bytes::new();
    let mut signature = Bytes::new();
    // The first answer is a nonce; a second one means that the first grew old on the way.
    for _ in 0..3 {
        let request = EnrollRequest {
            proof: Some(enroll_request::Proof::OldKey(enroll_request::OldKey {
                certificate: certificate.clone(),
                nonce: nonce.clone(),
                signature: signature.clone(),
            })),
            csr: csr.clone(),
            name: String::new(),
        };
        match enroll(old.address(), &tls, request).await? {
            enroll_response::Outcome::Identity(identity) => {
                return keep(old.directory(), key, old.address(), identity);
            }
            enroll_response::Outcome::Nonce(fresh) => {
                let message = [CONTEXT, &fresh, b"\0", &csr].concat();
                signature = old
                    .key()
                    .sign(&message)
                    .map_err(|error| EnrollmentError::Answer(error.to_string()))?
                    .into();
                nonce = fresh;
            }
        }
    }
    Err(EnrollmentError::Answer(
        "the control plane asks for one signature after another".to_owned(),
    ))
}

/// Exchanges a certificate that is still valid for a new one, for a new key. Open connections keep the old one.
pub async fn renew(current: &Identity) -> Result<Identity, EnrollmentError> {
    let key = pending_key(current.directory())?;
    let channel = connect(current.address(), &current.client_tls()?).await?;
    let answer = EnrollmentServiceClient::new(channel)
        .renew_certificate(RenewCertificateRequest {
            csr: signing_request(&key)?,
        })
        .await
        .map_err(|status| EnrollmentError::from_status(&status))?;
    let identity = answer
        .into_inner()
        .identity
        .ok_or_else(|| EnrollmentError::Answer("it holds no identity".to_owned()))?;
    keep(current.directory(), key, current.address(), identity)
}

/// Like [`renew`], and like [`rejoin`] where the certificate has expired or its authority was dropped.
pub async fn renew_or_rejoin(current: &Identity) -> Result<Identity, EnrollmentError> {
    if current.is_expired() {
        return rejoin(current).await;
    }
    match renew(current).await {
        Err(EnrollmentError::Connect(error)) if error.is_outdated() => rejoin(current).await,
        renewed => renewed,
    }
}

/// Whether the control plane names other authorities than this identity trusts, or lets another one issue.
pub async fn is_behind(client: &Client, identity: &Identity) -> Result<bool, ClientError> {
    let answer = client
        .authorities()
        .get_authorities(GetAuthoritiesRequest {})
        .await?
        .into_inner();
    let told = answer.authorities.iter().map(AsRef::as_ref);
    let trusted = identity.authorities().iter().map(AsRef::<[u8]>::as_ref);
    let issuing = answer.authorities.first();
    let issuing = issuing.map(|der| CertificateDer::from(der.as_ref()));
    Ok(!told.eq(trusted) || issuing.is_some_and(|issuing| !identity.is_of(&issuing)))
}

async fn enroll(
    address: &str,
    tls: &ClientTls,
    request: EnrollRequest,
) -> Result<enroll_response::Outcome, EnrollmentError> {
    let channel = connect(address, tls).await?;
    EnrollmentServiceClient::new(channel)
        .enroll(request)
        .await
        .map_err(|status| EnrollmentError::from_status(&status))?
        .into_inner()
        .outcome
        .ok_or_else(|| EnrollmentError::Answer("it is empty".to_owned()))
}

fn pending_key(directory: &Path) -> Result<KeyPair, IdentityError> {
    let path = directory.join(PENDING_KEY);
    if path.exists() {
        return load_key(&path);
    }
    create_directory(directory)?;
    let key = generate_key();
    write_file(&path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

fn signing_request(key: &KeyPair) -> Result<Bytes, EnrollmentError> {
    CertificateParams::default()
        .serialize_request(key)
        .map(|request| Bytes::copy_from_slice(request.der()))
        .map_err(|error| EnrollmentError::Answer(error.to_string()))
}

fn keep(
    directory: &Path,
    key: KeyPair,
    address: &str,
    answer: v1::Identity,
) -> Result<Identity, EnrollmentError> {
    let der = |bytes: Vec<Bytes>| -> Vec<CertificateDer<'static>> {
        bytes
            .into_iter()
            .map(|bytes| CertificateDer::from(bytes.to_vec()))
            .collect()
    };
    let identity = Identity::new(
        directory,
        key,
        der(answer.certificate_chain),
        der(answer.authorities),
        address.to_owned(),
        answer.name,
    )?;
    identity.store()?;
    // Without it the next identity would get the same key; a leftover does no other harm.
    let _ = fs::remove_file(directory.join(PENDING_KEY));
    Ok(identity)
}
