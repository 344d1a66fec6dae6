//! The door to principals.

use std::sync::Arc;

use muster_proto::v1::{
    self, CreatePrincipalRequest, CreatePrincipalResponse, GetCallerRequest, GetCallerResponse,
    ListPrincipalsRequest, ListPrincipalsResponse, LockPrincipalRequest, LockPrincipalResponse,
    ResumePrincipalRequest, ResumePrincipalResponse, UnlockPrincipalRequest,
    UnlockPrincipalResponse, UpdatePrincipalRequest, UpdatePrincipalResponse,
    lock_principal_request::Tasks, principal_service_server::PrincipalService,
};
use tonic::{Request, Response, Status};

use super::{
    caller::{self, Caller},
    page::{self, Query},
};
use crate::{
    access::{Access, Member, Scope},
    jobs::Jobs,
    model::{Principal, PrincipalKind},
    oauth::Oauth,
    store::LockRow,
    times,
    wire::status,
};

/// `muster.v1.PrincipalService`.
pub(crate) struct PrincipalDoor {
    /// The principals.
    pub(crate) access: Access,
    /// What a locked principal runs.
    pub(crate) jobs: Jobs,
    /// Whose access tokens count, if any do.
    pub(crate) oauth: Option<Oauth>,
    /// Names this control plane.
    pub(crate) control_plane_id: Arc<str>,
    /// Stands in the SPIFFE ids of this control plane.
    pub(crate) trust_domain: Arc<str>,
}

impl PrincipalDoor {
    /// Cancels every open job of a principal and of those that it owns; says how many.
    async fn cancel_jobs(&self, principal: &Principal, by: &Arc<str>) -> Result<i32, Status> {
        let family = self.access.family(principal);
        let names: Vec<String> = family.iter().map(ToString::to_string).collect();
        let cancelled = self.jobs.cancel_all_of(&names, by).await;
        let cancelled = cancelled.map_err(status::of)?;
        Ok(i32::try_from(cancelled).unwrap_or(i32::MAX))
    }
}

/// A principal as the wire says it.
pub(super) fn message(access: &Access, principal: &Principal) -> v1::Principal {
    match access.member(principal) {
        Some(known) => member(known),
        // Hosts are in the inventory.
        None => v1::Principal {
            kind: caller::kind(principal.kind).into(),
            name: principal.name.clone(),
            ..v1::Principal::default()
        },
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

/// A lock as the wire says it.
pub(super) fn lock(lock: LockRow) -> v1::Lock {
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
pub(super) fn made_kind(kind: v1::PrincipalKind) -> Result<PrincipalKind, Status> {
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
impl PrincipalService for PrincipalDoor {
    async fn get_caller(
        &self,
        request: Request<GetCallerRequest>,
    ) -> Result<Response<GetCallerResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(GetCallerResponse {
            principal: Some(message(&self.access, &caller.proven().principal)),
            expire_time: Some(times::timestamp(caller.proven().expire_time)),
            control_plane_id: self.control_plane_id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.trust_domain.to_string(),
            scopes: caller.proven().scopes.texts(),
            oauth: self.oauth.as_ref().map(oauth),
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
            .map_err(status::of)?;
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
            .map_err(status::of)?;
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
            .map_err(status::of)?;
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
            .map_err(status::of)?;
        let principal = Some(member(unlocked));
        Ok(Response::new(UnlockPrincipalResponse { principal }))
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
        caller.rights.resume(&principal).await.map_err(status::of)?;
        tracing::info!("{} resumed {principal}", caller.principal);
        Ok(Response::new(ResumePrincipalResponse {}))
    }
}
