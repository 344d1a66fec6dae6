//! Whoever only views has no effect, by any method there is.

use std::collections::BTreeMap;

use bytes::{Buf as _, BufMut as _};
use muster_proto::v1::{CancelJobRequest, ListTasksRequest, SetPolicyRequest};
use prost::Message as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::{
    policy::{by, job},
    *,
};

/// Messages as they are.
#[derive(Default)]
pub(in crate::server::tests) struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

/// What each method that changes something is asked for, so that it would.
fn asked(job_id: &str, task_id: &str, approval_id: &str) -> BTreeMap<&'static str, Vec<u8>> {
    let host = || "web-1".to_owned();
    let job_id = || job_id.to_owned();
    let task_id = || task_id.to_owned();
    let label = v1::UpdateHostRequest {
        host: host(),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["name".to_owned()],
        }),
        name: "mine".to_owned(),
        ..Default::default()
    };
    let input = v1::SendInputRequest {
        task_id: task_id(),
        write_id: "w".to_owned(),
        input: Some(v1::TaskInput {
            kind: Some(v1::task_input::Kind::Data("x".into())),
        }),
    };
    let open = v1::AttachTaskRequest {
        message: Some(v1::attach_task_request::Message::Open(v1::AttachOpen {
            task_id: task_id(),
            access: v1::attach_open::Access::TakeOver.into(),
            ..Default::default()
        })),
    };
    let token = CreateTokenRequest {
        kind: PrincipalKind::Ai.into(),
        name: "mine".to_owned(),
        ttl: None,
        scopes: Vec::new(),
    };
    let policy = SetPolicyRequest {
        files: [(
            "a.cedar".to_owned(),
            "permit(principal, action, resource);".to_owned(),
        )]
        .into(),
        ..Default::default()
    };
    [
        (
            "ApprovalService/AnswerApproval",
            v1::AnswerApprovalRequest {
                approval_id: approval_id.to_owned(),
                answer: v1::ApprovalAnswer::Decline.into(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        ("TokenService/CreateToken", token.encode_to_vec()),
        (
            "GrantService/RequestGrant",
            v1::RequestGrantRequest {
                reason: "to see".to_owned(),
                selector: "all".to_owned(),
                mode: v1::Mode::Edit.into(),
                request_id: "g-1".to_owned(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "GrantService/RevokeGrant",
            v1::RevokeGrantRequest {
                grant_id: approval_id.to_owned(),
            }
            .encode_to_vec(),
        ),
        (
            "PrincipalService/ResumePrincipal",
            v1::ResumePrincipalRequest {
                principal: "operator/ada".to_owned(),
            }
            .encode_to_vec(),
        ),
        (
            "TokenService/RevokeToken",
            v1::RevokeTokenRequest {
                token_id: "k-1".to_owned(),
            }
            .encode_to_vec(),
        ),
        ("PolicyService/SetPolicy", policy.encode_to_vec()),
        (
            "EnrollmentService/CreateJoinToken",
            super::host("mine").encode_to_vec(),
        ),
        (
            "EnrollmentService/RevokeJoinToken",
            v1::RevokeJoinTokenRequest {
                join_token_id: "j-1".to_owned(),
            }
            .encode_to_vec(),
        ),
        (
            "PrincipalService/CreatePrincipal",
            v1::CreatePrincipalRequest {
                kind: PrincipalKind::Operator.into(),
                name: "mine".to_owned(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "PrincipalService/UpdatePrincipal",
            v1::UpdatePrincipalRequest {
                principal: "operator/vic".to_owned(),
                roles: vec!["admin".to_owned()],
            }
            .encode_to_vec(),
        ),
        (
            "PrincipalService/LockPrincipal",
            v1::LockPrincipalRequest {
                principal: "operator/local".to_owned(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "PrincipalService/UnlockPrincipal",
            v1::UnlockPrincipalRequest {
                principal: "operator/local".to_owned(),
            }
            .encode_to_vec(),
        ),
        (
            "TokenService/LockToken",
            v1::LockTokenRequest {
                token_id: "k-1".to_owned(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "TokenService/UnlockToken",
            v1::UnlockTokenRequest {
                token_id: "k-1".to_owned(),
            }
            .encode_to_vec(),
        ),
        (
            "AuthorityService/RotateAuthority",
            v1::RotateAuthorityRequest {
                step: v1::rotate_authority_request::Step::Begin.into(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "HostService/LockHost",
            v1::LockHostRequest {
                host: host(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "HostService/RemoveHost",
            v1::RemoveHostRequest { host: host() }.encode_to_vec(),
        ),
        (
            "HostService/SetHostMode",
            v1::SetHostModeRequest {
                host: host(),
                mode: v1::Mode::Disabled.into(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "HostService/SetInstruction",
            v1::SetInstructionRequest {
                host: host(),
                text: "mine".to_owned(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "HostService/UnlockHost",
            v1::UnlockHostRequest { host: host() }.encode_to_vec(),
        ),
        ("HostService/UpdateHost", label.encode_to_vec()),
        ("JobService/AttachTask", open.encode_to_vec()),
        (
            "JobService/CancelJob",
            CancelJobRequest {
                job_id: job_id(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        ("JobService/CreateJob", job("mine", "all").encode_to_vec()),
        (
            "JobService/ReleaseJobs",
            v1::ReleaseJobsRequest {
                all: true,
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "JobService/RunJob",
            v1::RunJobRequest {
                create: Some(job("mine-too", "all")),
            }
            .encode_to_vec(),
        ),
        ("JobService/SendInput", input.encode_to_vec()),
    ]
    .into()
}

/// Methods that change nothing, whoever calls.
fn looks(method: &str) -> bool {
    let name = method.rsplit('/').next().unwrap();
    ["Get", "List", "Watch", "Read", "Explain", "Export"]
        .iter()
        .any(|verb| name.starts_with(verb))
}

#[tokio::test]
async fn whoever_only_views_has_no_effect_anywhere() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    let created = plane.jobs().create_job(job("theirs", "all")).await.unwrap();
    let job_id = created.into_inner().job.unwrap().job_id;
    let tasks = ListTasksRequest {
        job_id: job_id.clone(),
        ..Default::default()
    };
    let tasks = plane
        .jobs()
        .list_tasks(tasks)
        .await
        .unwrap()
        .into_inner()
        .tasks;
    let grant = v1::RequestGrantRequest {
        reason: "to see".to_owned(),
        selector: "all".to_owned(),
        mode: v1::Mode::Edit.into(),
        request_id: "g-0".to_owned(),
        ..Default::default()
    };
    let grant = plane.grants().request_grant(grant).await.unwrap();
    let grant = grant.into_inner().approval.unwrap().approval_id;
    let asked = asked(&job_id, &tasks[0].task_id, &grant);
    let viewer = plane
        .token(PrincipalKind::Operator, "vic", &["viewer"])
        .await;
    let nothing = plane
        .token(PrincipalKind::Operator, "nil", &["nobody"])
        .await;
    let before = plane.ledger().await;
    for token in [&viewer, &nothing] {
        for method in crate::api::methods() {
            let Some(own) = method.strip_prefix("muster.v1.") else {
                continue;
            };
            // These are for agents and gateways, by certificate; and one begins with no credential at all.
            if ["ExchangeToken", "Enroll", "RenewCertificate"]
                .iter()
                .any(|name| own.ends_with(name))
            {
                continue;
            }
            let body = asked.get(own).cloned();
            assert!(
                body.is_some() || looks(own),
                "{own} changes something: say what to ask it for"
            );
            let mut grpc = tonic::client::Grpc::new(plane.anonymous().await);
            grpc.ready().await.unwrap();
            let path = format!("/{method}").parse().unwrap();
            let call =
                grpc.server_streaming(by(token, body.clone().unwrap_or_default()), path, Raw);
            let answer = match call.await {
                // What streams may say no with its first message.
                Ok(mut stream) => stream.get_mut().message().await.map(drop),
                Err(status) => Err(status),
            };
            if body.is_some() {
                let why = reason(&answer.expect_err(own));
                let hidden = [
                    "HOST_NOT_FOUND",
                    "NO_HOST_MATCHES",
                    "JOB_NOT_FOUND",
                    "TASK_NOT_FOUND",
                ];
                let ok =
                    why == "POLICY_DENIED" || (token == &nothing && hidden.contains(&why.as_str()));
                assert!(ok, "{own}: {why}");
            }
        }
    }
    assert_eq!(plane.ledger().await, before);
    plane.stop().await;
}
