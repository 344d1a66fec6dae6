//! The door to principals, tokens and the authority.

use std::sync::Arc;

use muster_proto::v1::{
    self, AnswerApprovalRequest, AnswerApprovalResponse, CreatePrincipalRequest,
    CreatePrincipalResponse, CreateTokenRequest, CreateTokenResponse, ExchangeTokenRequest,
    ExchangeTokenResponse, ExplainAccessRequest, ExplainAccessResponse, GetApprovalRequest,
    GetApprovalResponse, GetAuthoritiesRequest, GetAuthoritiesResponse, GetCallerRequest,
    GetCallerResponse, GetPolicyRequest, GetPolicyResponse, ListApprovalsRequest,
    ListApprovalsResponse, ListGrantsRequest, ListGrantsResponse, ListPolicyVersionsRequest,
    ListPolicyVersionsResponse, ListPrincipalsRequest, ListPrincipalsResponse, ListTokensRequest,
    ListTokensResponse, LockPrincipalRequest, LockPrincipalResponse, LockTokenRequest,
    LockTokenResponse, Reason, RequestGrantRequest, RequestGrantResponse, ResumePrincipalRequest,
    ResumePrincipalResponse, RevokeGrantRequest, RevokeGrantResponse, RevokeTokenRequest,
    RevokeTokenResponse, RotateAuthorityRequest, RotateAuthorityResponse, SetPolicyRequest,
    SetPolicyResponse, UnlockPrincipalRequest, UnlockPrincipalResponse, UnlockTokenRequest,
    UnlockTokenResponse, UpdatePrincipalRequest, UpdatePrincipalResponse,
    access_service_server::AccessService, exchange_token_request::Subject,
    lock_principal_request::Tasks,
};
use muster_runtime::tls::SpiffeId;
use tonic::{Request, Response, Status};

use super::{
    approvals::ApprovalDoor,
    authorities,
    caller::{self, Caller},
    enrollment::{place, ttl},
    page::{self, Query},
    policies,
};
use crate::{
    access::{Access, AccessError, Member, Scope, Sealed, Token},
    hosts::Inventory,
    jobs::Jobs,
    model::{Principal, PrincipalKind},
    oauth::{Oauth, OauthError},
    rotation::Rotation,
    store::LockRow,
    times,
    wire::status,
};

/// `muster.v1.AccessService`.
pub(crate) struct AccessDoor {
    /// Principals and tokens.
    pub(crate) access: Access,
    /// What a locked principal runs.
    pub(crate) jobs: Jobs,
    /// The authority, as it gives way to another.
    pub(crate) rotation: Rotation,
    /// Whose access tokens count, if any do.
    pub(crate) oauth: Option<Oauth>,
    /// The hosts.
    pub(crate) inventory: Inventory,
    /// Approvals and grants.
    pub(crate) approvals: ApprovalDoor,
    /// The id of this control plane.
    pub(crate) control_plane_id: Arc<str>,
    /// Likewise.
    pub(crate) trust_domain: Arc<str>,
}

impl AccessDoor {
    fn principal(&self, principal: &Principal) -> v1::Principal {
        match self.access.member(principal) {
            Some(known) => member(known),
            // Hosts are in the inventory.
            None => v1::Principal {
                kind: caller::kind(principal.kind).into(),
                name: principal.name.clone(),
                ..v1::Principal::default()
            },
        }
    }

    fn token(&self, token: &Token) -> v1::Token {
        v1::Token {
            token_id: token.id.clone(),
            principal: Some(self.principal(&token.principal)),
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
        let verified = verified.map_err(|error| status::of(&error))?;
        let limit = (verified.expire_time, verified.scopes);
        self.access
            .exchange_verified(&verified.principal, limit, gateway)
            .map_err(|error: AccessError| status::of(&error))
    }

    /// Cancels every open job of a principal and of those that it owns; says how many.
    async fn cancel_jobs(&self, principal: &Principal, by: &Arc<str>) -> Result<i32, Status> {
        let family = self.access.family(principal);
        let names: Vec<String> = family.iter().map(ToString::to_string).collect();
        let cancelled = self.jobs.cancel_all_of(&names, by).await;
        let cancelled = cancelled.map_err(|error| status::of(&error))?;
        Ok(i32::try_from(cancelled).unwrap_or(i32::MAX))
    }
}

/// Whose access tokens count, as the wire says it.
fn oauth(oauth: &Oauth) -> v1::OAuth {
    v1::OAuth {
        issuer: oauth.issuer().to_owned(),
        audience: oauth.audience().to_owned(),
        scopes: Scope::ALL.map(|scope| scope.text().to_owned()).into(),
    }
}

fn member(member: Member) -> v1::Principal {
    v1::Principal {
        kind: caller::kind(member.principal.kind).into(),
        name: member.principal.name,
        owner: member.owner,
        roles: member.roles,
        lock: member.lock.map(lock),
        create_time: Some(times::timestamp(member.create_time)),
        last_used_time: member.last_used_time.map(times::timestamp),
    }
}

fn lock(lock: LockRow) -> v1::Lock {
    v1::Lock {
        create_time: Some(times::timestamp(lock.time)),
        author: lock.author,
        note: lock.note,
    }
}

/// A principal that a caller names, as "operator/ada".
fn named(text: &str) -> Result<Principal, Status> {
    text.parse().map_err(|_| {
        status::invalid(
            "principal",
            "is no principal; one looks like \"operator/ada\"",
        )
    })
}

/// The kind of a principal that can be made and can have tokens.
fn made_kind(kind: v1::PrincipalKind) -> Result<PrincipalKind, Status> {
    match kind {
        v1::PrincipalKind::Operator => Ok(PrincipalKind::Operator),
        v1::PrincipalKind::Ai => Ok(PrincipalKind::Ai),
        v1::PrincipalKind::Automation => Ok(PrincipalKind::Automation),
        _ => Err(status::invalid(
            "kind",
            "is an operator, an ai or an automation",
        )),
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
            expire_time: Some(times::timestamp(caller.proven().expire_time)),
            control_plane_id: self.control_plane_id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.trust_domain.to_string(),
            scopes: caller.proven().scopes.texts(),
            oauth: self.oauth.as_ref().map(oauth),
        }))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let kind = made_kind(request.kind())?;
        let principal = Principal::new(kind, request.name);
        policies::may_make_token_for(&caller, &principal)?;
        let (token, secret) = self
            .access
            .create_token(
                principal,
                ttl(request.ttl)?,
                &request.scopes,
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
        let caller = Caller::of(&request)?;
        let id = request.into_inner().token_id;
        if let Some(token) = self.access.tokens().iter().find(|token| token.id == id) {
            policies::may_make_token_for(&caller, &token.principal)?;
        }
        self.access
            .revoke_token(&id)
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
        let sealed = exchanged.map_err(|error| status::of(&error))?;
        Ok(Response::new(ExchangeTokenResponse {
            bearer_token: sealed.token,
            expire_time: Some(times::timestamp(sealed.expire_time)),
            principal: Some(self.principal(&sealed.principal)),
            scopes: sealed.scopes.texts(),
        }))
    }

    async fn list_principals(
        &self,
        request: Request<ListPrincipalsRequest>,
    ) -> Result<Response<ListPrincipalsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let query = Query::new(&["ListPrincipals", &caller.principal]);
        let size = page::size(request.page_size, 100, 1000)?;
        let after = match query.place(&request.page_token)? {
            Some(place) => Some(named(&place)?),
            None => None,
        };
        let mut members = self.access.members();
        members.retain(|member| after.as_ref().is_none_or(|after| member.principal > *after));
        let more = members.len() > size;
        members.truncate(size);
        let next_page_token = match members.last() {
            Some(last) if more => query.token(&last.principal.to_string()),
            _ => String::new(),
        };
        Ok(Response::new(ListPrincipalsResponse {
            principals: members.into_iter().map(member).collect(),
            next_page_token,
        }))
    }

    async fn create_principal(
        &self,
        request: Request<CreatePrincipalRequest>,
    ) -> Result<Response<CreatePrincipalResponse>, Status> {
        let request = request.into_inner();
        let kind = made_kind(request.kind())?;
        let made = self
            .access
            .create_principal(&Principal::new(kind, request.name), &request.roles)
            .await
            .map_err(|error| status::of(&error))?;
        let principal = Some(member(made));
        Ok(Response::new(CreatePrincipalResponse { principal }))
    }

    async fn update_principal(
        &self,
        request: Request<UpdatePrincipalRequest>,
    ) -> Result<Response<UpdatePrincipalResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let changed = self
            .access
            .set_roles(&named(&request.principal)?, &request.roles)
            .await
            .map_err(|error| status::of(&error))?;
        caller.rights.policy.touch();
        let principal = Some(member(changed));
        Ok(Response::new(UpdatePrincipalResponse { principal }))
    }

    async fn lock_principal(
        &self,
        request: Request<LockPrincipalRequest>,
    ) -> Result<Response<LockPrincipalResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let principal = named(&request.principal)?;
        let locked = self
            .access
            .lock_principal(&principal, &caller.principal, &request.note)
            .await
            .map_err(|error| status::of(&error))?;
        // From here on it creates no more of them.
        let cancelled_jobs = match request.tasks() {
            Tasks::Cancel => self.cancel_jobs(&principal, &caller.principal).await?,
            Tasks::Leave | Tasks::Unspecified => 0,
        };
        Ok(Response::new(LockPrincipalResponse {
            principal: Some(member(locked)),
            cancelled_jobs,
        }))
    }

    async fn unlock_principal(
        &self,
        request: Request<UnlockPrincipalRequest>,
    ) -> Result<Response<UnlockPrincipalResponse>, Status> {
        let unlocked = self
            .access
            .unlock_principal(&named(&request.into_inner().principal)?)
            .await
            .map_err(|error| status::of(&error))?;
        let principal = Some(member(unlocked));
        Ok(Response::new(UnlockPrincipalResponse { principal }))
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
            .map_err(|error| status::of(&error))?;
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
            .map_err(|error| status::of(&error))?;
        let token = Some(self.token(&token));
        Ok(Response::new(UnlockTokenResponse { token }))
    }

    async fn get_authorities(
        &self,
        request: Request<GetAuthoritiesRequest>,
    ) -> Result<Response<GetAuthoritiesResponse>, Status> {
        let caller = Caller::of(&request)?;
        let is_operator = caller.kind == v1::PrincipalKind::Operator;
        Ok(Response::new(authorities::answer(
            &self.rotation,
            is_operator,
        )))
    }

    async fn rotate_authority(
        &self,
        request: Request<RotateAuthorityRequest>,
    ) -> Result<Response<RotateAuthorityResponse>, Status> {
        let request = request.into_inner();
        let step = authorities::step(request.step(), request.distrust)?;
        let progress = self
            .rotation
            .step(step, request.force)
            .await
            .map_err(|error| status::of(&error))?;
        let rotation = Some(authorities::progress(progress));
        Ok(Response::new(RotateAuthorityResponse { rotation }))
    }

    async fn get_policy(
        &self,
        request: Request<GetPolicyRequest>,
    ) -> Result<Response<GetPolicyResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answer = policies::get(&caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn set_policy(
        &self,
        request: Request<SetPolicyRequest>,
    ) -> Result<Response<SetPolicyResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answer = policies::set(&caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn list_policy_versions(
        &self,
        request: Request<ListPolicyVersionsRequest>,
    ) -> Result<Response<ListPolicyVersionsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answer = policies::versions(&caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }

    async fn explain_access(
        &self,
        request: Request<ExplainAccessRequest>,
    ) -> Result<Response<ExplainAccessResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answer = policies::explain(&caller, &self.inventory, request.into_inner())?;
        Ok(Response::new(answer))
    }

    async fn resume_principal(
        &self,
        request: Request<ResumePrincipalRequest>,
    ) -> Result<Response<ResumePrincipalResponse>, Status> {
        let caller = Caller::of(&request)?;
        let principal: Principal = request
            .into_inner()
            .principal
            .parse()
            .map_err(|_| status::invalid("principal", "looks like \"ai/claude\""))?;
        caller
            .rights
            .resume(&principal)
            .await
            .map_err(|error| status::of(&error))?;
        tracing::info!("{} resumed {principal}", caller.principal);
        Ok(Response::new(ResumePrincipalResponse {}))
    }

    async fn list_approvals(
        &self,
        request: Request<ListApprovalsRequest>,
    ) -> Result<Response<ListApprovalsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let page = self.approvals.list(&caller, request.into_inner()).await?;
        Ok(Response::new(page))
    }

    async fn get_approval(
        &self,
        request: Request<GetApprovalRequest>,
    ) -> Result<Response<GetApprovalResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = request.into_inner().approval_id;
        let approval = Some(self.approvals.get(&caller, &id).await?);
        Ok(Response::new(GetApprovalResponse { approval }))
    }

    async fn answer_approval(
        &self,
        request: Request<AnswerApprovalRequest>,
    ) -> Result<Response<AnswerApprovalResponse>, Status> {
        let caller = Caller::of(&request)?;
        let approval = Some(self.approvals.answer(&caller, request.into_inner()).await?);
        Ok(Response::new(AnswerApprovalResponse { approval }))
    }

    async fn request_grant(
        &self,
        request: Request<RequestGrantRequest>,
    ) -> Result<Response<RequestGrantResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let approval = Some(self.approvals.request_grant(&caller, request).await?);
        Ok(Response::new(RequestGrantResponse { approval }))
    }

    async fn list_grants(
        &self,
        request: Request<ListGrantsRequest>,
    ) -> Result<Response<ListGrantsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let grants = self.approvals.list_grants(&caller, request).await?;
        Ok(Response::new(grants))
    }

    async fn revoke_grant(
        &self,
        request: Request<RevokeGrantRequest>,
    ) -> Result<Response<RevokeGrantResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let grant = self.approvals.revoke_grant(&caller, request).await?;
        Ok(Response::new(RevokeGrantResponse { grant }))
    }
}
