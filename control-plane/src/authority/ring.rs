//! The authorities that there are, in one file that is replaced whole: whatever moment a crash chooses, the rotation
//! stands where it stood before or after a step.
//!
//! Before the first rotation there is no such file, only `ca.key` and `ca.pem`; afterwards these are a copy of the
//! authority that stays.

use std::{fs, path::Path, time::Duration};

use muster_client::identity::{generate_key, pem, write_file};
use rcgen::{Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};

use super::{AuthorityError, authority};

/// The ring's file.
pub(crate) const FILE: &str = "authorities.json";

const KEY: &str = "ca.key";
const CERTIFICATE: &str = "ca.pem";

/// How long after it was dropped an authority is still known: the longest that somebody can be away and come back by
/// an old key, and the longest life of a certificate.
const REMEMBERED: Duration = Duration::from_secs((32 + 90) * 24 * 3600);

/// Authorities that were dropped and are remembered.
const RETIRED_MAX: usize = 3;

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// There is one authority.
    Standby,
    /// The next one is trusted and does nothing yet.
    Begun,
    /// The next one issues.
    Issuing,
    /// The control plane itself shows a certificate of the next one.
    Serving,
    /// The old one issues and serves again; the next one is trusted until nobody needs it.
    RollingBack,
}

/// An authority with its key.
pub(super) struct Keyed {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) certificate: CertificateDer<'static>,
    key: String,
}

/// An authority that was dropped.
#[derive(Clone)]
pub(super) struct Retired {
    pub(super) certificate: CertificateDer<'static>,
    /// The certificate by which it vouches for the one after it; none where it never served.
    pub(super) voucher: Option<CertificateDer<'static>>,
    /// Somebody who has a certificate of it may come back by an old key.
    pub(super) recognized: bool,
    /// When it is forgotten, Unix milliseconds.
    pub(super) until: i64,
}

/// The authorities.
pub(super) struct Ring {
    pub(super) version: i64,
    pub(super) phase: Phase,
    /// Unix milliseconds.
    pub(super) phase_time: i64,
    /// The version with which the one that issues began to.
    pub(super) issue_version: i64,
    pub(super) current: std::sync::Arc<Keyed>,
    /// The next one, and the certificate by which the current one vouches for it.
    pub(super) next: Option<(std::sync::Arc<Keyed>, CertificateDer<'static>)>,
    pub(super) retired: Vec<Retired>,
}

impl Keyed {
    pub(super) fn make() -> Result<Self, AuthorityError> {
        let key = generate_key();
        let certificate = authority(&key).self_signed(&key)?.der().clone();
        Self::new(key, certificate)
    }

    fn new(key: KeyPair, certificate: CertificateDer<'static>) -> Result<Self, AuthorityError> {
        let text = key.serialize_pem();
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            certificate,
            key: text,
        })
    }

    /// A certificate of `other`'s key, by which this authority vouches for it: whoever trusts only this one, trusts
    /// what the other signs.
    pub(super) fn vouch_for(
        &self,
        other: &Self,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let key = KeyPair::from_pem(&other.key)?;
        let mut params = authority(&key);
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&key, &self.issuer)?.der().clone())
    }
}

impl Ring {
    pub(super) fn open(directory: &Path) -> Result<Self, AuthorityError> {
        let path = directory.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Self::first(directory);
            }
            Err(error) => return Err(AuthorityError::File { path, error }),
        };
        let ring = serde_json::from_str::<Kept>(&text)
            .map_err(|error| error.to_string())
            .and_then(Self::from_kept)
            .map_err(|cause| AuthorityError::Malformed { path, cause })?;
        // A crash may have come between the ring and its copy.
        if fs::read_to_string(directory.join(KEY)).ok().as_ref() != Some(&ring.current.key) {
            ring.copy_current(directory)?;
        }
        Ok(ring)
    }

    /// The one authority of a data directory that knows no rotation yet.
    fn first(directory: &Path) -> Result<Self, AuthorityError> {
        let key_path = directory.join(KEY);
        let certificate_path = directory.join(CERTIFICATE);
        let malformed = |path: &Path, cause: String| AuthorityError::Malformed {
            path: path.to_owned(),
            cause,
        };
        // The certificate is written last: without it the authority was never used.
        let current = if certificate_path.exists() {
            let text = fs::read_to_string(&key_path).map_err(|error| AuthorityError::File {
                path: key_path.clone(),
                error,
            })?;
            let key = KeyPair::from_pem(&text)
                .map_err(|error| malformed(&key_path, error.to_string()))?;
            let certificate = CertificateDer::from_pem_file(&certificate_path)
                .map_err(|error| malformed(&certificate_path, format!("{error:?}")))?;
            Keyed::new(key, certificate)
                .map_err(|error| malformed(&certificate_path, error.to_string()))?
        } else {
            Keyed::make()?
        };
        let ring = Self {
            version: 0,
            phase: Phase::Standby,
            phase_time: 0,
            issue_version: 0,
            current: current.into(),
            next: None,
            retired: Vec::new(),
        };
        if !certificate_path.exists() {
            ring.copy_current(directory)?;
        }
        Ok(ring)
    }

    /// Makes the ring durable. It counts once this returns.
    pub(super) fn store(&self, directory: &Path) -> Result<(), AuthorityError> {
        let text = serde_json::to_vec_pretty(&self.kept()).expect("texts and numbers are JSON");
        write_file(&directory.join(FILE), &text, 0o600)?;
        // The key that was dropped goes with it.
        self.copy_current(directory)
    }

    fn copy_current(&self, directory: &Path) -> Result<(), AuthorityError> {
        write_file(&directory.join(KEY), self.current.key.as_bytes(), 0o600)?;
        let text = pem(std::slice::from_ref(&self.current.certificate));
        write_file(&directory.join(CERTIFICATE), text.as_bytes(), 0o600)?;
        Ok(())
    }

    pub(super) fn issuing(&self) -> &Keyed {
        match (&self.next, self.phase) {
            (Some((next, _)), Phase::Issuing | Phase::Serving) => next,
            _ => &self.current,
        }
    }

    pub(super) fn serving(&self) -> &Keyed {
        match (&self.next, self.phase) {
            (Some((next, _)), Phase::Serving) => next,
            _ => &self.current,
        }
    }

    /// The authority that is trusted besides the one that issues.
    pub(super) fn other(&self) -> Option<&CertificateDer<'static>> {
        let (next, _) = self.next.as_ref()?;
        Some(match self.phase {
            Phase::Issuing | Phase::Serving => &self.current.certificate,
            _ => &next.certificate,
        })
    }

    pub(super) fn trusted(&self) -> Vec<CertificateDer<'static>> {
        let issuing = self.issuing().certificate.clone();
        std::iter::once(issuing)
            .chain(self.other().cloned())
            .collect()
    }

    pub(super) fn recognized(&self, now: i64) -> Vec<CertificateDer<'static>> {
        let retired = self.retired.iter();
        let retired = retired.filter(|retired| retired.recognized && retired.until > now);
        let retired = retired.map(|retired| retired.certificate.clone());
        self.trusted().into_iter().chain(retired).collect()
    }

    /// What the control plane shows besides its own certificate and the authority behind it, for those who trust only
    /// earlier ones.
    pub(super) fn vouchers(&self, now: i64) -> Vec<CertificateDer<'static>> {
        let mut shown = Vec::new();
        if let (Some((_, voucher)), Phase::Serving) = (&self.next, self.phase) {
            shown.extend([voucher.clone(), self.current.certificate.clone()]);
        }
        for retired in self.retired.iter().rev() {
            if let Some(voucher) = &retired.voucher
                && retired.until > now
            {
                shown.extend([voucher.clone(), retired.certificate.clone()]);
            }
        }
        shown
    }

    /// These dropped ones and `one` more, as far as they are still remembered.
    pub(super) fn retiring(&self, one: Retired, now: i64) -> Vec<Retired> {
        let known = self.retired.iter().filter(|retired| retired.until > now);
        let mut retired: Vec<Retired> = known.cloned().chain([one]).collect();
        let surplus = retired.len().saturating_sub(RETIRED_MAX);
        retired.drain(..surplus);
        retired
    }
}

/// When an authority that is dropped now is forgotten.
pub(super) fn remembered_until(now: i64) -> i64 {
    now + i64::try_from(REMEMBERED.as_millis()).unwrap_or(i64::MAX)
}

/// The ring as it is written; certificates and keys as PEM.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: i64,
    phase: Phase,
    phase_time: i64,
    issue_version: i64,
    current: KeptKeyed,
    next: Option<KeptNext>,
    retired: Vec<KeptRetired>,
}

#[derive(Serialize, Deserialize)]
struct KeptKeyed {
    key: String,
    certificate: String,
}

#[derive(Serialize, Deserialize)]
struct KeptNext {
    #[serde(flatten)]
    keyed: KeptKeyed,
    voucher: String,
}

#[derive(Serialize, Deserialize)]
struct KeptRetired {
    certificate: String,
    voucher: Option<String>,
    recognized: bool,
    until: i64,
}

impl Ring {
    fn kept(&self) -> Kept {
        let text = |certificate: &CertificateDer<'static>| pem(std::slice::from_ref(certificate));
        let keyed = |keyed: &Keyed| KeptKeyed {
            key: keyed.key.clone(),
            certificate: text(&keyed.certificate),
        };
        Kept {
            version: self.version,
            phase: self.phase,
            phase_time: self.phase_time,
            issue_version: self.issue_version,
            current: keyed(&self.current),
            next: self.next.as_ref().map(|(next, voucher)| KeptNext {
                keyed: keyed(next),
                voucher: text(voucher),
            }),
            retired: self
                .retired
                .iter()
                .map(|retired| KeptRetired {
                    certificate: text(&retired.certificate),
                    voucher: retired.voucher.as_ref().map(text),
                    recognized: retired.recognized,
                    until: retired.until,
                })
                .collect(),
        }
    }

    fn from_kept(kept: Kept) -> Result<Self, String> {
        let certificate = |text: &str| {
            CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| format!("{error:?}"))
        };
        let keyed = |kept: &KeptKeyed| {
            let key = KeyPair::from_pem(&kept.key).map_err(|error| error.to_string())?;
            Keyed::new(key, certificate(&kept.certificate)?)
                .map(std::sync::Arc::new)
                .map_err(|error| error.to_string())
        };
        let next = match &kept.next {
            Some(next) => Some((keyed(&next.keyed)?, certificate(&next.voucher)?)),
            None => None,
        };
        if next.is_none() != (kept.phase == Phase::Standby) {
            return Err("its phase does not fit its authorities".to_owned());
        }
        let retired = kept.retired.iter().map(|retired| {
            Ok(Retired {
                certificate: certificate(&retired.certificate)?,
                voucher: retired.voucher.as_deref().map(certificate).transpose()?,
                recognized: retired.recognized,
                until: retired.until,
            })
        });
        Ok(Self {
            version: kept.version,
            phase: kept.phase,
            phase_time: kept.phase_time,
            issue_version: kept.issue_version,
            current: keyed(&kept.current)?,
            next,
            retired: retired.collect::<Result<_, String>>()?,
        })
    }
}
