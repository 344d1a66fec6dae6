//! The door to bearer tokens.

use std::sync::Arc;

use muster_proto::v1::{
    self, CreateTokenRequest, CreateTokenResponse, ExchangeTokenRequest, ExchangeTokenResponse,
    ListTokensRequest, ListTokensResponse, LockTokenRequest, LockTokenResponse, Reason,
    RevokeTokenRequest, RevokeTokenResponse, UnlockTokenRequest, UnlockTokenResponse,
    exchange_token_request::Subject, token_service_server::TokenService,
};
use muster_runtime::tls::SpiffeId;
use tonic::{Request, Response, Status};

use super::{
    caller::Caller,
    enrollment::{place, ttl},
    page::{self, Query},
    principals::{self, lock, made_kind},
};
use crate::{
    access::{Access, Sealed, Token, default_roles},
    model::{Principal, PrincipalKind},
    oauth::{Oauth, OauthError},
    policy::{Right, Who},
    times,
    wire::status,
};

/// `muster.v1.TokenService`.
pub(crate) struct TokenDoor {
    /// The tokens.
    pub(crate) access: Access,
    /// Whose access tokens count, if any do.
    pub(crate) oauth: Option<Oauth>,
}

impl TokenDoor {
    fn token(&self, token: &Token) -> v1::Token {
        v1::Token {
            token_id: token.id.clone(),
            principal: Some(principals::message(&self.access, &token.principal)),
            create_time: Some(times::timestamp(token.create_time)),
            expire_time: Some(times::timestamp(token.expire_time)),
            last_used_time: token.last_used_time().map(times::timestamp),
            author: token.author.clone(),
            scopes: token.scopes.texts(),
            lock: token.lock().map(lock),
        }
    }

    /// A short-lived token for whom an access token speaks for, which is judged here and not by the gateway.
    async fn exchange_jwt(&self, jwt: &str, gateway: &SpiffeId) -> Result<Sealed, Status> {
        let oauth = self.oauth.as_ref().ok_or(OauthError::Off);
        let verified = match oauth {
            Ok(oauth) => oauth.verify(jwt).await,
            Err(error) => Err(error),
        };
        let verified = verified.map_err(status::of)?;
        let limit = (verified.expire_time, verified.scopes);
        self.access
            .exchange_verified(&verified.principal, limit, gateway)
            .map_err(status::of)
    }
}

/// Refused unless whoever makes a token for a principal has all of that principal's roles, or may change access:
/// nobody gets more by making tokens.
fn may_make_token_for(caller: &Caller, principal: &Principal) -> Result<(), Status> {
    if caller.need_fleet(Right::AccessWrite).is_ok() {
        return Ok(());
    }
    let access = &caller.rights.access;
    let text: Arc<str> = principal.to_string().into();
    let theirs = if access.knows(principal) {
        access.who(&text)
    } else {
        Who {
            roles: default_roles(principal.kind)
                .into_iter()
                .map(Arc::from)
                .collect(),
            ..access.who(&text)
        }
    };
    let own = caller.who.all_roles();
    let beyond: Vec<&str> = theirs
        .all_roles()
        .into_iter()
        .filter(|role| *role != "ai" && !own.contains(role))
        .collect();
    if beyond.is_empty() {
        return Ok(());
    }
    Err(status::refuse(
        Reason::PolicyDenied,
        &format!(
            "{} may not make or revoke a token for {text}, which is {}: ask somebody who may change access",
            caller.principal,
            beyond.join(", ")
        ),
    ))
}

#[tonic::async_trait]
impl TokenService for TokenDoor {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let kind = made_kind(request.kind())?;
        let principal = Principal::new(kind, request.name);
        may_make_token_for(&caller, &principal)?;
        let (token, secret) = self
            .access
            .create_token(
                principal,
                ttl(request.ttl)?,
                &request.scopes,
                &caller.principal,
            )
            .await
            .map_err(status::of)?;
        Ok(Response::new(CreateTokenResponse {
            token: Some(self.token(&token)),
            bearer_token: secret.expose().to_owned(),
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let query = Query::new(&["ListTokens", &caller.principal]);
        let size = page::size(request.page_size, 100, 1000)?;
        let after = place(&query, &request.page_token)?;
        let mut tokens: Vec<_> = self
            .access
            .tokens()
            .into_iter()
            .filter(|token| {
                after
                    .as_ref()
                    .is_none_or(|(time, id)| (token.create_time, &token.id) < (*time, id))
            })
            .take(size + 1)
            .collect();
        let more = tokens.len() > size;
        tokens.truncate(size);
        let next_page_token = match tokens.last() {
            Some(last) if more => query.token(&format!("{} {}", last.create_time, last.id)),
            _ => String::new(),
        };
        Ok(Response::new(ListTokensResponse {
            tokens: tokens.iter().map(|token| self.token(token)).collect(),
            next_page_token,
        }))
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = request.into_inner().token_id;
        if let Some(token) = self.access.tokens().iter().find(|token| token.id == id) {
            may_make_token_for(&caller, &token.principal)?;
        }
        self.access.revoke_token(&id).await.map_err(status::of)?;
        Ok(Response::new(RevokeTokenResponse {}))
    }

    async fn lock_token(
        &self,
        request: Request<LockTokenRequest>,
    ) -> Result<Response<LockTokenResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let token = self
            .access
            .lock_token(&request.token_id, &caller.principal, &request.note)
            .await
            .map_err(status::of)?;
        let token = Some(self.token(&token));
        Ok(Response::new(LockTokenResponse { token }))
    }

    async fn unlock_token(
        &self,
        request: Request<UnlockTokenRequest>,
    ) -> Result<Response<UnlockTokenResponse>, Status> {
        let token = self
            .access
            .unlock_token(&request.into_inner().token_id)
            .await
            .map_err(status::of)?;
        let token = Some(self.token(&token));
        Ok(Response::new(UnlockTokenResponse { token }))
    }

    async fn exchange_token(
        &self,
        request: Request<ExchangeTokenRequest>,
    ) -> Result<Response<ExchangeTokenResponse>, Status> {
        let caller = Caller::of(&request)?;
        let certificate = caller.certificate()?;
        let asking = &caller.proven().principal;
        let exchanged = match (asking.kind, request.into_inner().subject) {
            (_, None) => return Err(status::invalid("subject", "is missing")),
            (PrincipalKind::Gateway, Some(Subject::BearerToken(bearer))) => {
                self.access.exchange_bearer(&bearer, certificate)
            }
            (PrincipalKind::Gateway, Some(Subject::Jwt(jwt))) => {
                Ok(self.exchange_jwt(&jwt, certificate).await?)
            }
            (PrincipalKind::Operator, Some(Subject::AiName(name))) => {
                self.access.exchange_ai(asking, &name, certificate).await
            }
            _ => {
                return Err(status::refuse(
                    Reason::NotAllowed,
                    "a gateway exchanges its caller's bearer_token or jwt, an operator names an ai",
                ));
            }
        };
        let sealed = exchanged.map_err(status::of)?;
        Ok(Response::new(ExchangeTokenResponse {
            bearer_token: sealed.token,
            expire_time: Some(times::timestamp(sealed.expire_time)),
            principal: Some(principals::message(&self.access, &sealed.principal)),
            scopes: sealed.scopes.texts(),
        }))
    }
}
