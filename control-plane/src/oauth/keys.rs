//! The issuer's keys: kept, bounded, and looked for again when a token names one that is not there.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde_json::Value;
use tokio::time::Instant;

use super::{OauthError, fetch};

/// Keys of one issuer; more are left out.
const KEYS_MAX: usize = 64;

/// How old keys may be before they are looked for again.
const FRESH: Duration = Duration::from_secs(600);

/// Keys that could not be looked for again count for this long.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Between two looks: whoever makes up key ids must not make us a nuisance to the issuer.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Where the keys are.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// In a file.
    File(PathBuf),
    /// At an address, and the file of authorities to check it by; the system's where there is none.
    Address(fetch::Address, Option<PathBuf>),
}

impl Source {
    /// An address begins with https://, or with http:// on this machine; anything else is a file.
    pub(crate) fn new(text: &str, authorities: Option<&Path>) -> Result<Self, String> {
        if text.contains("://") {
            let address = fetch::Address::parse(text)?;
            return Ok(Self::Address(address, authorities.map(Path::to_owned)));
        }
        Ok(Self::File(text.into()))
    }

    async fn read(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::File(path) => tokio::fs::read(path)
                .await
                .map_err(|error| format!("{}: {error}", path.display())),
            Self::Address(address, authorities) => {
                fetch::get(address, authorities.as_deref()).await
            }
        }
    }
}

/// A key and what it is for.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

/// The keys of one look.
#[derive(Default)]
struct Found {
    by_id: HashMap<String, Key>,
    /// A key without an id, if it is the only one.
    only: Option<Key>,
    time: Option<Instant>,
}

/// The issuer's keys.
pub(super) struct Keys {
    source: Source,
    found: ArcSwap<Found>,
    /// When it was last looked. Held over a look on purpose: whoever comes second finds what the first one found.
    looked: tokio::sync::Mutex<Option<Instant>>,
}

impl Keys {
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            found: ArcSwap::default(),
            looked: tokio::sync::Mutex::default(),
        }
    }

    /// The key of this id.
    pub(super) async fn find(&self, id: Option<&str>) -> Result<Key, OauthError> {
        let unknown = OauthError::Invalid("no key of the issuer has its key id");
        let found = self.found.load_full();
        if let (Some(key), true) = (found.get(id), found.is_younger_than(FRESH)) {
            return Ok(key);
        }
        match self.look().await {
            Ok(found) => found.get(id).ok_or(unknown),
            // What was there is better than nothing, for a while.
            Err(error) => match found.get(id) {
                Some(key) if found.is_younger_than(STALE) => Ok(key),
                _ => Err(error),
            },
        }
    }

    /// Looks for the keys, unless somebody just did.
    async fn look(&self) -> Result<Arc<Found>, OauthError> {
        let mut looked = self.looked.lock().await;
        if looked.is_some_and(|time| time.elapsed() < LOOK_AGAIN_AFTER) {
            let found = self.found.load_full();
            return match found.time {
                Some(_) => Ok(found),
                None => Err(OauthError::Keys(
                    "they were looked for a moment ago".to_owned(),
                )),
            };
        }
        let read = self.source.read().await;
        *looked = Some(Instant::now());
        let found = read
            .and_then(|bytes| Found::parse(&bytes))
            .inspect_err(|error| tracing::warn!("the keys of the authorization server: {error}"))
            .map_err(OauthError::Keys)?;
        let found = Arc::new(found);
        self.found.store(Arc::clone(&found));
        Ok(found)
    }
}

impl Found {
    /// Reads a key set (RFC 7517). Keys of kinds that are not taken are left out.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let set: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let keys = set["keys"].as_array().ok_or("it is no key set")?;
        let mut found = Self {
            time: Some(Instant::now()),
            ..Self::default()
        };
        let mut without_id = Vec::new();
        for key in keys.iter().take(KEYS_MAX) {
            // One key of tomorrow must not hide the others.
            let Ok(jwk) = serde_json::from_value::<Jwk>(key.clone()) else {
                continue;
            };
            let Some(key) = usable(&jwk) else { continue };
            match jwk.common.key_id {
                Some(id) => {
                    found.by_id.insert(id, key);
                }
                None => without_id.push(key),
            }
        }
        if found.by_id.is_empty() && without_id.len() == 1 {
            found.only = without_id.pop();
        }
        Ok(found)
    }

    fn get(&self, id: Option<&str>) -> Option<Key> {
        match id {
            Some(id) => self.by_id.get(id).or(self.only.as_ref()).cloned(),
            None if self.by_id.len() == 1 => self.by_id.values().next().cloned(),
            None => self.only.clone(),
        }
    }

    fn is_younger_than(&self, age: Duration) -> bool {
        self.time.is_some_and(|time| time.elapsed() < age)
    }
}

/// A public key to verify with, if it is of a kind that is taken. Shared secrets are not.
fn usable(jwk: &Jwk) -> Option<Key> {
    if !matches!(
        jwk.common.public_key_use,
        None | Some(PublicKeyUse::Signature)
    ) {
        return None;
    }
    let algorithm = match (&jwk.algorithm, jwk.common.key_algorithm) {
        (AlgorithmParameters::RSA(_), None | Some(KeyAlgorithm::RS256)) => Algorithm::RS256,
        (AlgorithmParameters::RSA(_), Some(KeyAlgorithm::PS256)) => Algorithm::PS256,
        (AlgorithmParameters::EllipticCurve(curve), None | Some(KeyAlgorithm::ES256))
            if curve.curve == EllipticCurve::P256 =>
        {
            Algorithm::ES256
        }
        (AlgorithmParameters::EllipticCurve(curve), None | Some(KeyAlgorithm::ES384))
            if curve.curve == EllipticCurve::P384 =>
        {
            Algorithm::ES384
        }
        (AlgorithmParameters::OctetKeyPair(curve), None | Some(KeyAlgorithm::EdDSA))
            if curve.curve == EllipticCurve::Ed25519 =>
        {
            Algorithm::EdDSA
        }
        _ => return None,
    };
    let decoding = DecodingKey::from_jwk(jwk).ok()?;
    Some(Key {
        algorithm,
        decoding,
    })
}
