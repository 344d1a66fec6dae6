//! The door to first trust.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use muster_proto::v1::{
    self, CreateJoinTokenRequest, CreateJoinTokenResponse, EnrollRequest, EnrollResponse,
    ListJoinTokensRequest, ListJoinTokensResponse, Reason, RenewCertificateRequest,
    RenewCertificateResponse, RevokeJoinTokenRequest, RevokeJoinTokenResponse, enroll_request,
    enroll_response, enrollment_service_server::EnrollmentService,
};
use muster_runtime::tls::SpiffeKind;
use tonic::{Request, Response, Status};

use super::{
    caller::Caller,
    page::{self, Query},
};
use crate::{
    clock::millis,
    enrollment::{Enrolled, Enrollment, JoinKind, NewJoinToken, OldKey, OldKeyOutcome},
    policy::Right,
    store::JoinTokenRow,
    times,
    wire::status,
};

/// `muster.v1.EnrollmentService`.
pub(crate) struct EnrollmentDoor {
    enrollment: Enrollment,
    /// Where hosts that join find the control plane.
    address: String,
}

impl EnrollmentDoor {
    /// A door to `enrollment`; join strings say `address`.
    pub(crate) fn new(enrollment: Enrollment, address: String) -> Self {
        Self {
            enrollment,
            address,
        }
    }

    fn identity(&self, enrolled: Enrolled) -> v1::Identity {
        let der = |certificate: &[u8]| Bytes::copy_from_slice(certificate);
        v1::Identity {
            spiffe_id: enrolled.id.to_string(),
            host_id: match enrolled.id.kind {
                SpiffeKind::Host => enrolled.id.name,
                _ => String::new(),
            },
            name: enrolled.name,
            certificate_chain: enrolled.issued.chain.iter().map(|c| der(c)).collect(),
            authorities: self
                .enrollment
                .authorities()
                .iter()
                .map(|authority| der(authority))
                .collect(),
            expire_time: Some(times::timestamp(millis(enrolled.issued.expires))),
        }
    }
}

fn join_token(row: JoinTokenRow) -> v1::JoinToken {
    let kind = match JoinKind::of(&row) {
        JoinKind::Host => v1::JoinKind::Host,
        JoinKind::Gateway => v1::JoinKind::Gateway,
        JoinKind::Operator => v1::JoinKind::Operator,
    };
    v1::JoinToken {
        join_token_id: row.token_id,
        kind: kind.into(),
        name: row.name,
        labels: row.labels.into_iter().collect(),
        create_time: Some(times::timestamp(row.create_time)),
        expire_time: Some(times::timestamp(row.expire_time)),
        max_uses: i32::try_from(row.uses_max).unwrap_or(i32::MAX),
        uses: i32::try_from(row.uses).unwrap_or(i32::MAX),
        author: row.author,
    }
}

/// A duration that a caller gave, if any.
pub(super) fn ttl(given: Option<prost_types::Duration>) -> Result<Option<Duration>, Status> {
    given
        .map(|given| Duration::try_from(given).map_err(|_| status::invalid("ttl", "is negative")))
        .transpose()
}

/// Where a page of things ordered by time and id goes on: "TIME ID".
pub(super) fn place(query: &Query, token: &str) -> Result<Option<(i64, String)>, Status> {
    let Some(place) = query.place(token)? else {
        return Ok(None);
    };
    place
        .split_once(' ')
        .and_then(|(time, id)| Some((time.parse().ok()?, id.to_owned())))
        .map(Some)
        .ok_or_else(|| status::refuse(Reason::PageTokenInvalid, "page_token: it is malformed"))
}

#[tonic::async_trait]
impl EnrollmentService for EnrollmentDoor {
    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let kind = match request.kind() {
            v1::JoinKind::Host => JoinKind::Host,
            v1::JoinKind::Gateway => JoinKind::Gateway,
            v1::JoinKind::Operator => {
                // It comes with roles, and nobody gives away more than it may.
                caller.need_fleet(Right::AccessWrite)?;
                JoinKind::Operator
            }
            v1::JoinKind::Unspecified => {
                return Err(status::invalid(
                    "kind",
                    "is missing: host, gateway or operator",
                ));
            }
        };
        let new = NewJoinToken {
            kind,
            name: request.name,
            labels: request.labels.into_iter().collect::<BTreeMap<_, _>>(),
            ttl: ttl(request.ttl)?,
            uses_max: request.max_uses.into(),
            roles: request.roles,
        };
        let (row, secret) = self
            .enrollment
            .create_join_token(new, &caller.principal)
            .await
            .map_err(status::of)?;
        Ok(Response::new(CreateJoinTokenResponse {
            join_string: self.enrollment.join_string(&secret, &self.address),
            join_token: Some(join_token(row)),
        }))
    }

    async fn list_join_tokens(
        &self,
        request: Request<ListJoinTokensRequest>,
    ) -> Result<Response<ListJoinTokensResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let query = Query::new(&["ListJoinTokens", &caller.principal]);
        let size = page::size(request.page_size, 100, 1000)?;
        let mut rows = self
            .enrollment
            .join_tokens(
                place(&query, &request.page_token)?,
                i64::try_from(size + 1).unwrap_or(i64::MAX),
            )
            .await
            .map_err(status::of)?;
        let more = rows.len() > size;
        rows.truncate(size);
        let next_page_token = match rows.last() {
            Some(last) if more => query.token(&format!("{} {}", last.create_time, last.token_id)),
            _ => String::new(),
        };
        Ok(Response::new(ListJoinTokensResponse {
            join_tokens: rows.into_iter().map(join_token).collect(),
            next_page_token,
        }))
    }

    async fn revoke_join_token(
        &self,
        request: Request<RevokeJoinTokenRequest>,
    ) -> Result<Response<RevokeJoinTokenResponse>, Status> {
        self.enrollment
            .revoke_join_token(&request.into_inner().join_token_id)
            .await
            .map_err(status::of)?;
        Ok(Response::new(RevokeJoinTokenResponse {}))
    }

    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let request = request.into_inner();
        let outcome = match request.proof {
            None => return Err(status::invalid("proof", "is missing")),
            Some(enroll_request::Proof::JoinToken(token)) => {
                let enrolled = self
                    .enrollment
                    .join(&token, &request.csr, &request.name)
                    .await
                    .map_err(status::of)?;
                enroll_response::Outcome::Identity(self.identity(enrolled))
            }
            Some(enroll_request::Proof::OldKey(old)) => {
                let old = OldKey {
                    certificate: &old.certificate,
                    nonce: &old.nonce,
                    signature: &old.signature,
                };
                match self
                    .enrollment
                    .rejoin(old, &request.csr)
                    .await
                    .map_err(status::of)?
                {
                    OldKeyOutcome::Nonce(nonce) => enroll_response::Outcome::Nonce(nonce.into()),
                    OldKeyOutcome::Enrolled(enrolled) => {
                        enroll_response::Outcome::Identity(self.identity(enrolled))
                    }
                }
            }
        };
        Ok(Response::new(EnrollResponse {
            outcome: Some(outcome),
        }))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let caller = Caller::of(&request)?;
        caller.certificate()?;
        let enrolled = self
            .enrollment
            .renew(&caller.proven().principal, &request.into_inner().csr)
            .await
            .map_err(status::of)?;
        Ok(Response::new(RenewCertificateResponse {
            identity: Some(self.identity(enrolled)),
        }))
    }
}
