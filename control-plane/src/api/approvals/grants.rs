//! Grants: asked for, shown, taken back.

use std::time::Duration;

use muster_proto::{
    ids::ApprovalId,
    v1::{
        self, ListGrantsRequest, ListGrantsResponse, RequestGrantRequest, RequestGrantResponse,
        RevokeGrantRequest, RevokeGrantResponse, grant_service_server::GrantService,
    },
};
use tonic::{Request, Response, Status};

use super::{ApprovalDoor, TEXT_MAX, wire::grant_on_wire};
use crate::{
    api::caller::Caller,
    approvals::{ApprovalError, Check, grant_selector, webhook::About},
    audit,
    clock::now,
    jobs::digest,
    model::{
        Kind, Mode,
        approval::{Approval, State, Subject, Terms},
    },
    policy::Right,
    selector::Selector,
    store::approvals::ApprovalFilter,
    times,
    wire::status,
};

/// Bytes of the selector of a grant.
const SELECTOR_MAX: usize = 4096;

/// Characters of a request id.
const REQUEST_ID_MAX: usize = 128;

/// How long a grant lasts, if nobody says, and at most.
const TTL: Duration = Duration::from_secs(3600);
const TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Grants in one answer.
const GRANTS_MAX: i64 = 1000;

/// What policy has to permit whoever gives a grant.
const GIVE: Right = Right::GrantWrite;

/// The rule that holds a grant back.
const GRANT_RULE: &str = "grants-need-approval";

impl ApprovalDoor {
    /// Whether whoever approves a grant may do all of it themselves, on the hosts that it chooses now.
    pub(super) fn check_grant(&self, approver: &str, terms: &Terms) -> Check {
        let Ok(selector) = Selector::parse(&terms.selector) else {
            return Check::Drifted("its selector cannot be read".to_owned());
        };
        let mut hosts = self.inventory.everything();
        hosts.retain(|host| selector.matches(&**host));
        for action in &terms.actions {
            let Some(known) = Right::from_text(action) else {
                return Check::Drifted(format!("there is no action {action}"));
            };
            if let Some(host) = self
                .rights
                .may_not_give(approver, known, terms.mode, &hosts)
            {
                return Check::Exceeds(format!(
                    "{approver} may not do {action} in the mode {} on {} themselves, without an approval",
                    terms.mode, host.name
                ));
            }
        }
        Check::Same
    }
}

#[tonic::async_trait]
impl GrantService for ApprovalDoor {
    async fn request_grant(
        &self,
        request: Request<RequestGrantRequest>,
    ) -> Result<Response<RequestGrantResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let terms = terms(&request)?;
        let id = ApprovalId::from_bytes(&digest(&[
            b"muster-grant-v1",
            caller.principal.as_bytes(),
            request.request_id.as_bytes(),
        ]));
        let time = now();
        let approval = Approval {
            id,
            digest: grant_digest(&caller.principal, &terms),
            subject: Subject::Grant(terms),
            state: State::Awaiting,
            principal: caller.principal.to_string(),
            owner: caller.who.owner.to_string(),
            reason: request.reason,
            count: 1,
            from: GIVE.text().into(),
            rules: vec![GRANT_RULE.to_owned()],
            source: caller.source.text().to_owned(),
            confirmed: false,
            create_time: time,
            expire_time: time + self.approvals.expires_after(),
            end_time: None,
            cause: String::new(),
            answers: Vec::new(),
        };
        let known = self.approvals.get(id).await;
        let known = known.map_err(|error| status::of(ApprovalError::from(error)))?;
        match known {
            Some(known) if known.digest != approval.digest => {
                return Err(status::of(ApprovalError::RequestIdReused));
            }
            Some(known) => {
                let approval = Some(self.on_wire(&known, None));
                return Ok(Response::new(RequestGrantResponse { approval }));
            }
            None => {}
        }
        // Asked for again and again it would fill lists and chats, so it counts like a job.
        caller.count_job(1, || 0)?;
        audit::effect("approval", approval.id);
        let added = self.approvals.add(&approval).await;
        added.map_err(status::of)?;
        self.approvals.announce(&approval, About::default());
        let approval = Some(self.on_wire(&approval, None));
        Ok(Response::new(RequestGrantResponse { approval }))
    }

    async fn list_grants(
        &self,
        request: Request<ListGrantsRequest>,
    ) -> Result<Response<ListGrantsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let filter = ApprovalFilter {
            states: vec![State::Approved],
            grants: true,
        };
        let rows = self.approvals.list(&filter, None, GRANTS_MAX).await;
        let rows = rows.map_err(|error| status::of(ApprovalError::from(error)))?;
        let time = now();
        let lasts = |approval: &Approval| {
            let revoked =
                matches!(&approval.subject, Subject::Grant(terms) if terms.revoked.is_some());
            !revoked && approval.grant_end().is_some_and(|end| time < end)
        };
        let shown = rows
            .iter()
            .filter(|row| self.may_see(&caller, row) && (request.ended || lasts(row)));
        let grants = shown.filter_map(grant_on_wire).collect();
        Ok(Response::new(ListGrantsResponse { grants }))
    }

    async fn revoke_grant(
        &self,
        request: Request<RevokeGrantRequest>,
    ) -> Result<Response<RevokeGrantResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let seen = self.visible(&caller, &request.grant_id).await?;
        audit::effect("grant", seen.id);
        let revoked = self.approvals.revoke(seen.id, &caller.principal).await;
        let revoked = revoked.map_err(|error| status::of(ApprovalError::from(error)))?;
        let revoked =
            revoked.ok_or_else(|| status::of(ApprovalError::NotFound(request.grant_id)))?;
        let grant = grant_on_wire(&revoked);
        Ok(Response::new(RevokeGrantResponse { grant }))
    }
}

/// SHA-256 of who asks for which grant.
fn grant_digest(principal: &str, terms: &Terms) -> [u8; 32] {
    digest(&[
        b"muster-grant-terms-v1",
        principal.as_bytes(),
        terms.mode.text().as_bytes(),
        terms.ttl.to_string().as_bytes(),
        terms.actions.join(",").as_bytes(),
        terms.selector.as_bytes(),
    ])
}

fn terms(request: &RequestGrantRequest) -> Result<Terms, Status> {
    let id = &request.request_id;
    if id.is_empty()
        || id.len() > REQUEST_ID_MAX
        || !id.bytes().all(|c| c.is_ascii_graphic() || c == b' ')
    {
        return Err(status::invalid(
            "request_id",
            "has 1 to 128 printable ASCII characters; a UUID does well",
        ));
    }
    match request.reason.chars().count() {
        1..=TEXT_MAX => {}
        _ => return Err(status::invalid("reason", "has 1 to 1,000 characters")),
    }
    if request.selector.len() > SELECTOR_MAX {
        return Err(status::invalid("selector", "has at most 4,096 bytes"));
    }
    grant_selector(&request.selector).map_err(status::of)?;
    let mode = match request.mode() {
        v1::Mode::ReadOnly => Mode::ReadOnly,
        v1::Mode::Edit => Mode::Edit,
        v1::Mode::Unrestricted => Mode::Unrestricted,
        v1::Mode::Disabled | v1::Mode::Unspecified => {
            return Err(status::invalid(
                "mode",
                "is READ_ONLY, EDIT or UNRESTRICTED",
            ));
        }
    };
    let mut actions = request.actions.clone();
    if actions.is_empty() {
        actions.push(Right::Run(Kind::Command).text().to_owned());
    }
    actions.sort_unstable();
    actions.dedup();
    let grantable = |one: &String| Right::from_text(one).is_some_and(Right::is_grantable);
    if !actions.iter().all(grantable) {
        let all = Right::all().filter(|(right, _)| right.is_grantable());
        let names: Vec<&str> = all.map(|(_, name)| name).collect();
        return Err(status::invalid(
            "actions",
            &format!("holds some of {}", names.join(", ")),
        ));
    }
    let ttl = match request.ttl {
        None => TTL,
        Some(given) => Duration::try_from(given)
            .ok()
            .filter(|given| !given.is_zero() && *given <= TTL_MAX)
            .ok_or_else(|| status::invalid("ttl", "is more than 0 and at most 7 d"))?,
    };
    Ok(Terms {
        selector: request.selector.clone(),
        mode,
        actions,
        ttl: times::duration_millis(&times::duration(ttl)),
        revoked: None,
    })
}

#[cfg(test)]
mod tests;
