//! A join token, or an old key, becomes a certificate; and a certificate the next one.

mod join_tokens;
mod old_key;

use std::{sync::Arc, time::Duration};

use muster_proto::ids::HostId;
use muster_runtime::tls::{SpiffeId, SpiffeKind, TlsError};
use rand::Rng as _;

use crate::{
    access::{Access, AccessError, hash},
    audit,
    authority::{Authority, AuthorityError, Issued, RequestError, RequestedKey},
    clock::{millis, now},
    hosts::{Bar, EditError, Inventory},
    model::{NameError, NewHost, Principal, PrincipalKind, check_name, make_name},
    seal::Sealer,
    store::{Batch, JoinTokenRow, Store, StoreError},
};

pub use self::join_tokens::JoinKind;
pub(crate) use self::{
    join_tokens::NewJoinToken,
    old_key::{OldKey, OldKeyOutcome},
};

/// Why nobody was let in, or a join token was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrollmentError {
    #[error("the join token is unknown, was revoked, or another control plane made it")]
    TokenInvalid,
    #[error("the join token has expired; ask for a new one")]
    TokenExpired,
    #[error("the join token was used before, by another key; ask for a new one")]
    TokenUsed,
    #[error("there is no join token {0:?}")]
    TokenNotFound(String),
    #[error("{0}")]
    Argument(&'static str),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the proof does not hold: {0}")]
    Proof(&'static str),
    #[error("this host was removed and its id is retired; join anew with a join token")]
    Removed,
    #[error("{0} is locked; an operator can unlock it")]
    Locked(String),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("the name {0:?} is taken; choose another")]
    NameTaken(String),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Edit(#[from] EditError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Who somebody is from now on.
#[derive(Debug, Clone)]
pub(crate) struct Enrolled {
    pub(crate) id: SpiffeId,
    /// The host's, gateway's or operator's name.
    pub(crate) name: String,
    pub(crate) issued: Issued,
}

/// How long an operator's certificate lives: a person who stays away for longer logs in again.
const OPERATOR_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Lets hosts, gateways and operators in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Enrollment(Arc<Shared>);

struct Shared {
    authority: Arc<Authority>,
    store: Store,
    inventory: Inventory,
    access: Access,
    sealer: Sealer,
    certificate_lifetime: Duration,
    /// One join token is judged at a time, from reading it to the commit: enrolling is rare, and so two keys never
    /// both find the last use of a token free.
    turn: tokio::sync::Mutex<()>,
}

impl Enrollment {
    /// Signs with `authority`; certificates live for `certificate_lifetime`.
    pub(crate) fn new(
        authority: Arc<Authority>,
        store: Store,
        inventory: Inventory,
        access: Access,
        sealer: Sealer,
        certificate_lifetime: Duration,
    ) -> Self {
        Self(Arc::new(Shared {
            authority,
            store,
            inventory,
            access,
            sealer,
            certificate_lifetime,
            turn: tokio::sync::Mutex::default(),
        }))
    }

    /// Whom everybody is to trust; the first one issues.
    pub(crate) fn authorities(&self) -> Vec<rustls_pki_types::CertificateDer<'static>> {
        self.0.authority.trusted()
    }

    /// Lets in whoever holds a join token. The same token and key get the same identity again.
    pub(crate) async fn join(
        &self,
        secret: &str,
        request: &[u8],
        wanted: &str,
    ) -> Result<Enrolled, EnrollmentError> {
        let key = RequestedKey::from_request(request)?;
        let _turn = self.0.turn.lock().await;
        let token = self
            .0
            .store
            .join_token(&hash(secret))
            .await?
            .filter(|token| !token.revoked)
            .ok_or(EnrollmentError::TokenInvalid)?;
        if token.expire_time <= now() {
            return Err(EnrollmentError::TokenExpired);
        }
        if let Some(identity) = self.0.store.enrolled(&token.token_id, &key.hash()).await? {
            let principal: Principal = identity
                .parse()
                .map_err(|_| StoreError::Broken("an enrollment names nobody".into()))?;
            return self.certify(&self.known(&principal).await?, &key).await;
        }
        if token.uses >= token.uses_max {
            return Err(EnrollmentError::TokenUsed);
        }
        match JoinKind::of(&token) {
            JoinKind::Host => self.join_host(&token, &key, wanted).await,
            JoinKind::Gateway => self.join_gateway(&token, &key, wanted).await,
            JoinKind::Operator => self.join_operator(&token, &key).await,
        }
    }

    async fn join_host(
        &self,
        token: &JoinTokenRow,
        key: &RequestedKey,
        wanted: &str,
    ) -> Result<Enrolled, EnrollmentError> {
        let name = match (token.name.as_str(), wanted) {
            ("", "") => self.0.inventory.free_name(&make_name("")),
            ("", wanted) => wanted.to_owned(),
            (given, _) => given.to_owned(),
        };
        let id = HostId::from_bytes(&rand::rng().random());
        let spiffe_id = self.0.authority.id(SpiffeKind::Host, id.to_string());
        let issued = self
            .0
            .authority
            .issue_client(&spiffe_id, key, self.0.certificate_lifetime)?;
        let mut batch = Batch::new();
        let identity = Principal::new(PrincipalKind::Host, id.to_string()).to_string();
        batch.use_join_token(&token.token_id, &key.hash(), &identity, now());
        audit::principal(&identity);
        audit::hosts([id]);
        audit::effect("join_token", &token.token_id);
        let host = NewHost {
            name: name.clone(),
            labels: token.labels.clone(),
            certificate_expire_time: millis(issued.expires),
        };
        self.0.inventory.add(id, host, batch).await?;
        tracing::info!(host.id = %id, host.name = %name, "{name} joined");
        Ok(Enrolled {
            id: spiffe_id,
            name,
            issued,
        })
    }

    async fn join_gateway(
        &self,
        token: &JoinTokenRow,
        key: &RequestedKey,
        wanted: &str,
    ) -> Result<Enrolled, EnrollmentError> {
        let name = if token.name.is_empty() {
            wanted
        } else {
            &token.name
        };
        check_name(name)?;
        let principal = Principal::new(PrincipalKind::Gateway, name);
        // Whoever made a token for this name may replace the gateway; whoever just wishes for it may not.
        if token.name.is_empty() && self.0.access.knows(&principal) {
            return Err(EnrollmentError::NameTaken(name.to_owned()));
        }
        audit::principal(&principal);
        audit::effect("join_token", &token.token_id);
        let mut batch = Batch::new();
        batch.use_join_token(&token.token_id, &key.hash(), &principal.to_string(), now());
        self.0
            .access
            .add_principal(&principal, "", &[], batch)
            .await?;
        tracing::info!(gateway = name, "gateway {name} joined");
        let known = self.known(&principal).await?;
        self.certify(&known, key).await
    }

    /// An operator has the name that its token gives, and the roles too if it is new. One that is locked stays out,
    /// and its token stays good.
    async fn join_operator(
        &self,
        token: &JoinTokenRow,
        key: &RequestedKey,
    ) -> Result<Enrolled, EnrollmentError> {
        let principal = Principal::new(PrincipalKind::Operator, &token.name);
        if self.0.access.knows(&principal) {
            self.known(&principal).await?;
        }
        let mut batch = Batch::new();
        batch.use_join_token(&token.token_id, &key.hash(), &principal.to_string(), now());
        self.0
            .access
            .add_principal(&principal, "", &token.roles, batch)
            .await?;
        tracing::info!(%principal, "{principal} logged in");
        let known = self.known(&principal).await?;
        self.certify(&known, key).await
    }

    /// Exchanges a certificate that is still valid for a new one.
    pub(crate) async fn renew(
        &self,
        principal: &Principal,
        request: &[u8],
    ) -> Result<Enrolled, EnrollmentError> {
        let key = RequestedKey::from_request(request)?;
        self.certify(&self.known(principal).await?, &key).await
    }

    /// A certificate for somebody who may have one.
    async fn certify(
        &self,
        (id, name): &(SpiffeId, String),
        key: &RequestedKey,
    ) -> Result<Enrolled, EnrollmentError> {
        let lifetime = match id.kind {
            SpiffeKind::Operator => OPERATOR_LIFETIME,
            _ => self.0.certificate_lifetime,
        };
        let issued = self.0.authority.issue_client(id, key, lifetime)?;
        audit::principal(format_args!("{}/{}", id.kind.segment(), id.name));
        audit::effect("certificate_expire_time", millis(issued.expires));
        if let (SpiffeKind::Host, Ok(host)) = (id.kind, id.name.parse()) {
            self.0
                .inventory
                .certificate_renewed(host, millis(issued.expires))
                .await?;
        }
        Ok(Enrolled {
            id: id.clone(),
            name: name.clone(),
            issued,
        })
    }

    /// The SPIFFE id and name of a host, gateway or operator that may take part now.
    async fn known(&self, principal: &Principal) -> Result<(SpiffeId, String), EnrollmentError> {
        let locked = || EnrollmentError::Locked(principal.to_string());
        match principal.kind {
            PrincipalKind::Host => {
                let host: HostId = principal
                    .name
                    .parse()
                    .map_err(|_| EnrollmentError::Proof("it names no host"))?;
                match self.0.inventory.bar(host) {
                    Some(Bar::Locked(_)) => return Err(locked()),
                    Some(Bar::Removed(_)) if self.0.store.host_was_removed(host).await? => {
                        return Err(EnrollmentError::Removed);
                    }
                    // As after a restore from a backup that is older than the host.
                    Some(Bar::Removed(_)) => {
                        return Err(EnrollmentError::Proof(
                            "this control plane does not know the host; join anew with a join token",
                        ));
                    }
                    None => {}
                }
                let name = self
                    .0
                    .inventory
                    .get(host)
                    .ok_or(EnrollmentError::Removed)?
                    .name
                    .clone();
                Ok((
                    self.0.authority.id(SpiffeKind::Host, host.to_string()),
                    name,
                ))
            }
            PrincipalKind::Gateway | PrincipalKind::Operator => {
                let kind = match principal.kind {
                    PrincipalKind::Gateway => SpiffeKind::Gateway,
                    _ => SpiffeKind::Operator,
                };
                let id = self.0.authority.id(kind, &principal.name);
                if !self.0.access.knows(principal) {
                    return Err(EnrollmentError::Proof("there is nobody of this name"));
                }
                if !self.0.access.admits(&id) {
                    return Err(locked());
                }
                Ok((id, principal.name.clone()))
            }
            PrincipalKind::Ai | PrincipalKind::Automation => Err(EnrollmentError::Proof(
                "only hosts, gateways and operators get certificates this way",
            )),
        }
    }
}
