//! Who calls: a certificate or a token becomes a principal.

use std::sync::{Arc, atomic::Ordering};

use muster_proto::ids::HostId;
use muster_runtime::tls::{Peer, SpiffeId, SpiffeKind};
use tokio_util::sync::CancellationToken;

use super::{
    Access, Scopes, Token,
    exchange::{self, Exchanged},
    hash,
};
use crate::{
    clock::{millis, now},
    hosts::Bar,
    model::{Principal, PrincipalKind},
};

/// Why a credential is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CredentialError {
    #[error("this call needs a client certificate or a bearer token")]
    Missing,
    #[error("{0}")]
    Invalid(&'static str),
    #[error("{0} has expired")]
    Expired(&'static str),
    #[error("{0} is locked; an operator can unlock it")]
    Locked(String),
}

/// What a caller proved itself with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// The certificate of its connection.
    Certificate(SpiffeId),
    /// A bearer token, with or without a certificate.
    Token,
    /// An exchanged token: a gateway, or an operator's `muster mcp`, calls in the principal's name.
    Exchanged,
}

/// Who calls. In the extensions of each request that needed a credential, as `Arc<Caller>`.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) principal: Principal,
    pub(crate) credential: Credential,
    /// When the credential expires, Unix milliseconds.
    pub(crate) expire_time: i64,
    /// What the credential narrows the principal to.
    pub(crate) scopes: Scopes,
    /// Each of them ends this caller's streams.
    pub(crate) ends: Vec<CancellationToken>,
}

impl Caller {
    /// The certificate's identity, if that is what decided.
    pub(crate) fn certificate(&self) -> Option<&SpiffeId> {
        match &self.credential {
            Credential::Certificate(id) => Some(id),
            Credential::Token | Credential::Exchanged => None,
        }
    }

    /// The host, if a host's agent calls.
    pub(crate) fn host_id(&self) -> Option<HostId> {
        match self.principal.kind {
            PrincipalKind::Host => self.principal.name.parse().ok(),
            _ => None,
        }
    }
}

impl Access {
    /// Who calls. A bearer token decides where there are both.
    pub(crate) fn authenticate(
        &self,
        peer: &Peer,
        bearer: Option<&str>,
    ) -> Result<Caller, CredentialError> {
        match (bearer, &peer.certificate) {
            (Some(text), _) if text.starts_with(exchange::PREFIX) => self.by_exchange(text, peer),
            (Some(text), _) => {
                let (token, [own, principal]) = self.bearer(text)?;
                Ok(Caller {
                    principal: token.principal.clone(),
                    credential: Credential::Token,
                    expire_time: token.expire_time,
                    scopes: token.scopes,
                    ends: vec![own, principal, peer.closing().clone()],
                })
            }
            (None, Some(certificate)) => {
                let (principal, end) = self.certified(&certificate.spiffe_id)?;
                Ok(Caller {
                    principal,
                    credential: Credential::Certificate(certificate.spiffe_id.clone()),
                    expire_time: millis(certificate.not_after),
                    scopes: Scopes::ALL,
                    ends: end.into_iter().chain([peer.closing().clone()]).collect(),
                })
            }
            (None, None) => Err(CredentialError::Missing),
        }
    }

    /// The principal of a certificate that the authority signed, and what ends its calls; a host's end with its
    /// connections. Whether it expired was judged when the connection
    /// opened: renewal must not break a stream, and a lock closes the connection.
    pub(super) fn certified(
        &self,
        id: &SpiffeId,
    ) -> Result<(Principal, Option<CancellationToken>), CredentialError> {
        if *id.trust_domain != *self.0.trust_domain {
            return Err(CredentialError::Invalid(
                "the certificate belongs to another trust domain",
            ));
        }
        let kind = match id.kind {
            SpiffeKind::Host => PrincipalKind::Host,
            SpiffeKind::Operator => PrincipalKind::Operator,
            SpiffeKind::Gateway => PrincipalKind::Gateway,
            SpiffeKind::ControlPlane => {
                return Err(CredentialError::Invalid("a control plane calls nobody"));
            }
        };
        let principal = Principal::new(kind, id.name.clone());
        if kind == PrincipalKind::Host {
            let host = id
                .name
                .parse()
                .map_err(|_| CredentialError::Invalid("the certificate names no host id"))?;
            match self.0.inventory.bar(host) {
                None => {}
                Some(Bar::Locked(_)) => {
                    return Err(CredentialError::Locked(principal.to_string()));
                }
                Some(Bar::Removed(_)) => {
                    return Err(CredentialError::Invalid(
                        "the certificate's host was removed",
                    ));
                }
            }
            return Ok((principal, None));
        }
        let end = self.standing(&principal)?;
        Ok((principal, Some(end)))
    }

    /// The token with this secret, if it counts now, and what ends calls that are made with it.
    pub(crate) fn bearer(
        &self,
        secret: &str,
    ) -> Result<(Arc<Token>, [CancellationToken; 2]), CredentialError> {
        let token = self.0.state.read().by_hash.get(&hash(secret)).cloned();
        self.counts(token.ok_or(CredentialError::Invalid(
            "the bearer token is unknown, was revoked, or was made by another control plane",
        ))?)
    }

    fn counts(
        &self,
        token: Arc<Token>,
    ) -> Result<(Arc<Token>, [CancellationToken; 2]), CredentialError> {
        let now = now();
        if token.expire_time <= now {
            return Err(CredentialError::Expired("the bearer token"));
        }
        let ends = [token.end()?, self.standing(&token.principal)?];
        token.used.store(now, Ordering::Relaxed);
        Ok((token, ends))
    }

    fn by_exchange(&self, text: &str, peer: &Peer) -> Result<Caller, CredentialError> {
        let exchanged = Exchanged::open(text, &self.0.sealer).ok_or(CredentialError::Invalid(
            "the exchanged token was not made by this control plane",
        ))?;
        let bound = peer
            .spiffe_id()
            .is_some_and(|id| id.to_string() == exchanged.certificate);
        if !bound {
            return Err(CredentialError::Invalid(
                "the exchanged token is bound to another certificate",
            ));
        }
        if exchanged.expire_time <= now() {
            return Err(CredentialError::Expired("the exchanged token"));
        }
        let malformed = CredentialError::Invalid("the exchanged token names nobody");
        let principal: Principal = exchanged.principal.parse().map_err(|_| malformed)?;
        let mut ends = vec![peer.closing().clone()];
        if exchanged.token_id.is_empty() {
            ends.push(self.standing(&principal)?);
        } else {
            let source = self.0.state.read().by_id.get(&exchanged.token_id).cloned();
            let (_, of_source) = self.counts(source.ok_or(CredentialError::Invalid(
                "the token that this one was exchanged for was revoked",
            ))?)?;
            ends.extend(of_source);
        }
        let scopes = match exchanged.narrowed {
            true => Scopes::only(exchanged.scopes.iter().map(String::as_str)),
            false => Scopes::ALL,
        };
        Ok(Caller {
            principal,
            credential: Credential::Exchanged,
            expire_time: exchanged.expire_time,
            scopes,
            ends,
        })
    }
}
