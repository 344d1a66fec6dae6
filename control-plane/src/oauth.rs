//! Access tokens (JWT) of an authorization server, beside tokens of our own.
//!
//! Only gateways hand them over, and only to have them exchanged. What a token says is believed if a key of the
//! issuer signed it, for this resource, and it has not expired; whom it speaks for is decided here, by settings, and
//! must be a principal that somebody made.

mod config;
mod fetch;
mod keys;

use std::sync::Arc;

use jsonwebtoken::{Validation, decode_header, errors::ErrorKind};
use serde_json::{Map, Value};

pub use self::config::OauthConfig;
use self::keys::Keys;
pub(crate) use self::keys::Source;
use crate::{
    access::Scopes,
    model::{Principal, PrincipalKind},
};

/// No access token is longer, bytes.
const TOKEN_MAX: usize = 8 << 10;

/// How far clocks may differ, seconds.
const LEEWAY_S: u64 = 30;

/// Why an access token is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OauthError {
    /// No issuer is set.
    #[error(
        "this control plane takes no access tokens; set --oauth-issuer, --oauth-audience and --oauth-jwks"
    )]
    Off,
    /// It is not what it should be; says what is wrong.
    #[error("the access token is not valid: {0}")]
    Invalid(&'static str),
    /// It is over.
    #[error("the access token has expired")]
    Expired,
    /// It reaches nothing here.
    #[error(
        "the access token has none of the scopes fleet:read, fleet:write, jobs:read, jobs:run and admin"
    )]
    NoScope,
    /// The issuer's keys cannot be had.
    #[error("the keys of the authorization server cannot be had: {0}")]
    Keys(String),
}

/// What an access token says, once it is believed.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) principal: Principal,
    pub(crate) scopes: Scopes,
    /// Unix milliseconds.
    pub(crate) expire_time: i64,
}

/// Whose access tokens count. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Oauth(Arc<Shared>);

struct Shared {
    issuer: String,
    audience: String,
    claim: String,
    kind: PrincipalKind,
    named: Vec<(String, Principal)>,
    keys: Keys,
}

impl Oauth {
    /// As the settings say; `None` if they name no issuer. A mistake is a text for people.
    pub(crate) fn new(config: &OauthConfig) -> Result<Option<Self>, String> {
        let (issuer, audience, jwks) = match (
            &config.oauth_issuer,
            &config.oauth_audience,
            &config.oauth_jwks,
        ) {
            (None, None, None) => return Ok(None),
            (Some(issuer), Some(audience), Some(jwks)) => (issuer, audience, jwks),
            _ => {
                return Err(
                    "--oauth-issuer, --oauth-audience and --oauth-jwks belong together".to_owned(),
                );
            }
        };
        let named = config.oauth_principals.iter().map(|text| {
            let (claim, principal) = text
                .split_once('=')
                .ok_or("--oauth-principals: expected CLAIM=KIND/NAME")?;
            let principal: Principal = principal
                .parse()
                .map_err(|error| format!("--oauth-principals: {error}"))?;
            if !takes_tokens(principal.kind) {
                return Err("--oauth-principals: name an operator, an ai or an automation".into());
            }
            Ok((claim.to_owned(), principal))
        });
        let kind: Principal = format!("{}/x", config.oauth_principal_kind)
            .parse()
            .map_err(|_| "--oauth-principal-kind: operator, ai or automation")?;
        if !takes_tokens(kind.kind) {
            return Err("--oauth-principal-kind: operator, ai or automation".to_owned());
        }
        Ok(Some(Self(Arc::new(Shared {
            issuer: issuer.clone(),
            audience: audience.clone(),
            claim: config.oauth_principal_claim.clone(),
            kind: kind.kind,
            named: named.collect::<Result<_, String>>()?,
            keys: Keys::new(Source::new(jwks, config.oauth_ca.as_deref())?),
        }))))
    }

    /// The authorization server.
    pub(crate) fn issuer(&self) -> &str {
        &self.0.issuer
    }

    /// The resource that tokens must be for.
    pub(crate) fn audience(&self) -> &str {
        &self.0.audience
    }

    /// Whom an access token speaks for, and how far it reaches.
    pub(crate) async fn verify(&self, token: &str) -> Result<Verified, OauthError> {
        if token.len() > TOKEN_MAX {
            return Err(OauthError::Invalid("it is longer than 8 KiB"));
        }
        let header = decode_header(token).map_err(|_| OauthError::Invalid("it is malformed"))?;
        let key = self.0.keys.find(header.kid.as_deref()).await?;
        // By what the key is for, never by what the token says of itself.
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.0.issuer]);
        validation.set_audience(&[&self.0.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let claims = jsonwebtoken::decode::<Map<String, Value>>(token, &key.decoding, &validation)
            .map_err(|error| refusal(error.kind()))?
            .claims;
        self.believe(&claims)
    }

    fn believe(&self, claims: &Map<String, Value>) -> Result<Verified, OauthError> {
        let who = claims
            .get(&self.0.claim)
            .and_then(Value::as_str)
            .ok_or(OauthError::Invalid(
                "it lacks the claim that names the principal",
            ))?;
        let named = self.0.named.iter().find(|(claim, _)| claim == who);
        let principal = match named {
            Some((_, principal)) => principal.clone(),
            None => Principal::new(self.0.kind, who),
        };
        let scopes = scopes(claims);
        if scopes.texts().is_empty() {
            return Err(OauthError::NoScope);
        }
        let seconds = claims.get("exp").and_then(Value::as_f64).unwrap_or(0.0);
        // Saturates; a time that far away is cut down by the exchange.
        let expire_time = (seconds * 1000.0) as i64;
        Ok(Verified {
            principal,
            scopes,
            expire_time,
        })
    }
}

fn takes_tokens(kind: PrincipalKind) -> bool {
    matches!(
        kind,
        PrincipalKind::Operator | PrincipalKind::Ai | PrincipalKind::Automation
    )
}

/// Scopes as RFC 9068 writes them ("scope", a text), or as some servers do ("scp", a list or a text).
fn scopes(claims: &Map<String, Value>) -> Scopes {
    let texts = ["scope", "scp"]
        .into_iter()
        .filter_map(|name| claims.get(name));
    let words = texts.flat_map(|value| match value {
        Value::String(text) => text.split(' ').collect::<Vec<_>>(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    });
    Scopes::only(words)
}

fn refusal(kind: &ErrorKind) -> OauthError {
    match kind {
        ErrorKind::ExpiredSignature => OauthError::Expired,
        ErrorKind::InvalidIssuer => OauthError::Invalid("another issuer made it"),
        ErrorKind::InvalidAudience => OauthError::Invalid("it is for another resource"),
        ErrorKind::ImmatureSignature => OauthError::Invalid("it is not valid yet"),
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => {
            OauthError::Invalid("its algorithm is not the key's")
        }
        ErrorKind::InvalidSignature => OauthError::Invalid("its signature is wrong"),
        ErrorKind::MissingRequiredClaim(_) => OauthError::Invalid("it lacks exp, iss or aud"),
        _ => OauthError::Invalid("it is malformed"),
    }
}

#[cfg(test)]
mod tests;
