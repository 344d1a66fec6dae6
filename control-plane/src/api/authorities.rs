//! The door to the authority and its rotation.

use bytes::Bytes;
use muster_proto::v1::{
    AuthorityRotation, GetAuthoritiesRequest, GetAuthoritiesResponse, PrincipalKind,
    RotateAuthorityRequest, RotateAuthorityResponse, authority_rotation,
    authority_service_server::AuthorityService, rotate_authority_request,
};
use tonic::{Request, Response, Status};

use super::caller::Caller;
use crate::{
    rotation::{Phase, Progress, Rotation, Step},
    times,
    wire::status,
};

/// `muster.v1.AuthorityService`.
pub(crate) struct AuthorityDoor(pub(crate) Rotation);

/// Whom to trust; how far the rotation is, only for operators.
fn answer(rotation: &Rotation, is_operator: bool) -> GetAuthoritiesResponse {
    let (authorities, version) = rotation.authorities();
    GetAuthoritiesResponse {
        authorities: authorities
            .iter()
            .map(|authority| Bytes::copy_from_slice(authority))
            .collect(),
        version,
        rotation: is_operator.then(|| progress(rotation.progress())),
    }
}

/// How far it is.
fn progress(progress: Progress) -> AuthorityRotation {
    let phase = match progress.phase {
        Phase::Standby => authority_rotation::Phase::Standby,
        Phase::Begun => authority_rotation::Phase::Begun,
        Phase::Issuing => authority_rotation::Phase::Issuing,
        Phase::Serving => authority_rotation::Phase::Serving,
        Phase::RollingBack => authority_rotation::Phase::RollingBack,
    };
    AuthorityRotation {
        phase: phase.into(),
        phase_time: (progress.phase_time != 0).then(|| times::timestamp(progress.phase_time)),
        issuing: progress.issuing,
        other: progress.other.unwrap_or_default(),
        hosts: i32::try_from(progress.hosts).unwrap_or(i32::MAX),
        taken: i32::try_from(progress.taken).unwrap_or(i32::MAX),
        missing_hosts: progress.missing,
    }
}

/// The step that somebody asks for.
fn step(step: rotate_authority_request::Step, distrust: bool) -> Result<Step, Status> {
    use rotate_authority_request::Step as Asked;
    Ok(match step {
        Asked::Begin => Step::Begin,
        Asked::Issue => Step::Issue,
        Asked::Serve => Step::Serve,
        Asked::Finish => Step::Finish { distrust },
        Asked::Rollback => Step::Rollback,
        Asked::Unspecified => {
            return Err(status::invalid(
                "step",
                "is missing: begin, issue, serve, finish or rollback",
            ));
        }
    })
}

#[tonic::async_trait]
impl AuthorityService for AuthorityDoor {
    async fn get_authorities(
        &self,
        request: Request<GetAuthoritiesRequest>,
    ) -> Result<Response<GetAuthoritiesResponse>, Status> {
        let caller = Caller::of(&request)?;
        let is_operator = caller.kind == PrincipalKind::Operator;
        Ok(Response::new(answer(&self.0, is_operator)))
    }

    async fn rotate_authority(
        &self,
        request: Request<RotateAuthorityRequest>,
    ) -> Result<Response<RotateAuthorityResponse>, Status> {
        let request = request.into_inner();
        let step = step(request.step(), request.distrust)?;
        let taken = self.0.step(step, request.force).await.map_err(status::of)?;
        let rotation = Some(progress(taken));
        Ok(Response::new(RotateAuthorityResponse { rotation }))
    }
}
