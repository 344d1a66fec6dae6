//! The rotation of the authority, as the wire says it.

use bytes::Bytes;
use muster_proto::v1::{
    AuthorityRotation, GetAuthoritiesResponse, authority_rotation, rotate_authority_request,
};
use tonic::Status;

use super::status;
use crate::{
    rotation::{Phase, Progress, Rotation, Step},
    times,
};

/// Whom to trust; how far the rotation is, only for operators.
pub(super) fn answer(rotation: &Rotation, is_operator: bool) -> GetAuthoritiesResponse {
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
pub(super) fn progress(progress: Progress) -> AuthorityRotation {
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
pub(super) fn step(step: rotate_authority_request::Step, distrust: bool) -> Result<Step, Status> {
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
