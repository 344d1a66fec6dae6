//! The door to principals and tokens.

use std::sync::Arc;

use muster_proto::v1::{
    self, CreateTokenRequest, CreateTokenResponse, ExchangeTokenRequest, ExchangeTokenResponse,
    GetCallerRequest, GetCallerResponse, ListTokensRequest, ListTokensResponse, Reason,
    RevokeTokenRequest, RevokeTokenResponse, access_service_server::AccessService,
    exchange_token_request::Subject,
};
use tonic::{Request, Response, Status};

use super::{
    caller::{self, Caller},
    enrollment::{place, ttl},
    hosts::timestamp,
    page::{self, Query},
    status,
};
use crate::access::{Access, Principal, PrincipalKind, Token};

/// `muster.v1.AccessService`.
pub(crate) struct AccessDoor {
    access: Access,
    control_plane_id: Arc<str>,
    trust_domain: Arc<str>,
}

impl AccessDoor {
    /// A door to `access` of this control plane.
    pub(crate) fn new(access: Access, control_plane_id: Arc<str>, trust_domain: Arc<str>) -> Self {
        Self {
            access,
            control_plane_id,
            trust_domain,
        }
    }

    fn principal(&self, principal: &Principal) -> v1::Principal {
        v1::Principal {
            kind: caller::kind(principal.kind).into(),
            name: principal.name.clone(),
            owner: self.access.owner(principal),
        }
    }

    fn token(&self, token: &Token) -> v1::Token {
        v1::Token {
            token_id: token.id.clone(),
            principal: Some(self.principal(&token.principal)),
            create_time: Some(timestamp(token.create_time)),
            expire_time: Some(timestamp(token.expire_time)),
            last_used_time: token.last_used_time().map(timestamp),
            author: token.author.clone(),
        }
    }
}

#[tonic::async_trait]
impl AccessService for AccessDoor {
    async fn get_caller(
        &self,
        request: Request<GetCallerRequest>,
    ) -> Result<Response<GetCallerResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(GetCallerResponse {
            principal: Some(self.principal(&caller.proven().principal)),
            expire_time: Some(timestamp(caller.proven().expire_time)),
            control_plane_id: self.control_plane_id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.trust_domain.to_string(),
        }))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let kind = match request.kind() {
            v1::PrincipalKind::Operator => PrincipalKind::Operator,
            v1::PrincipalKind::Ai => PrincipalKind::Ai,
            v1::PrincipalKind::Automation => PrincipalKind::Automation,
            _ => {
                return Err(status::invalid(
                    "kind",
                    "bearer tokens are for an operator, an ai or an automation",
                ));
            }
        };
        let (token, secret) = self
            .access
            .create_token(
                Principal::new(kind, request.name),
                ttl(request.ttl)?,
                &caller.principal,
            )
            .await
            .map_err(|error| status::of(&error))?;
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
        self.access
            .revoke_token(&request.into_inner().token_id)
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(RevokeTokenResponse {}))
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
            (PrincipalKind::Operator, Some(Subject::AiName(name))) => {
                self.access.exchange_ai(asking, &name, certificate).await
            }
            _ => {
                return Err(status::refuse(
                    Reason::NotAllowed,
                    "a gateway exchanges its caller's bearer_token, an operator names an ai",
                ));
            }
        };
        let (bearer_token, expire_time, principal) =
            exchanged.map_err(|error| status::of(&error))?;
        Ok(Response::new(ExchangeTokenResponse {
            bearer_token,
            expire_time: Some(timestamp(expire_time)),
            principal: Some(self.principal(&principal)),
        }))
    }
}
