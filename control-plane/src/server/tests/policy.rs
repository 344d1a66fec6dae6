//! Who may do what, at every door.

use std::collections::BTreeMap;

use bytes::{Buf as _, BufMut as _};
use muster_proto::v1::{
    CancelJobRequest, CreateJobRequest, GetJobRequest, GetPolicyRequest, ListTasksRequest,
    SetPolicyRequest, WatchHostsRequest, WatchJobRequest,
};
use prost::Message as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::*;

/// Messages as they are.
#[derive(Default)]
pub(super) struct Raw;

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

pub(super) fn job(request_id: &str, selector: &str) -> CreateJobRequest {
    CreateJobRequest {
        request_id: request_id.to_owned(),
        selector: selector.to_owned(),
        action: Some(v1::Action {
            kind: Some(v1::action::Kind::Command(v1::Command {
                argv: vec!["true".to_owned()],
                ..Default::default()
            })),
        }),
        ..Default::default()
    }
}

impl Plane {
    /// A principal with these roles, and its token.
    pub(super) async fn token(&self, kind: PrincipalKind, name: &str, roles: &[&str]) -> String {
        let request = CreateTokenRequest {
            kind: kind.into(),
            name: name.to_owned(),
            ttl: None,
            scopes: Vec::new(),
        };
        let created = self.tokens().create_token(request).await.unwrap();
        let kind = match kind {
            PrincipalKind::Ai => crate::model::PrincipalKind::Ai,
            PrincipalKind::Automation => crate::model::PrincipalKind::Automation,
            _ => crate::model::PrincipalKind::Operator,
        };
        let principal = crate::model::Principal::new(kind, name);
        let roles: Vec<String> = roles.iter().map(ToString::to_string).collect();
        self.rights
            .access
            .set_roles(&principal, &roles)
            .await
            .unwrap();
        self.rights.policy.touch();
        created.into_inner().bearer_token
    }

    pub(super) async fn set_policy(&self, files: &[(&str, &str)]) -> Result<(), Status> {
        let mut standing = self
            .policy()
            .get_policy(GetPolicyRequest::default())
            .await?;
        let mut all = standing.get_mut().policy.take().unwrap().files;
        for (name, text) in files {
            all.insert((*name).to_owned(), (*text).to_owned());
        }
        let request = SetPolicyRequest {
            files: all,
            ..Default::default()
        };
        self.policy().set_policy(request).await.map(drop)
    }

    fn hosts(&self) -> HostServiceClient<Channel> {
        HostServiceClient::new(self.operator.clone())
    }

    pub(super) async fn label(&self, host: &str, env: &str) {
        let request = v1::UpdateHostRequest {
            host: host.to_owned(),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["labels".to_owned()],
            }),
            labels: [("env".to_owned(), env.to_owned())].into(),
            ..Default::default()
        };
        self.hosts().update_host(request).await.unwrap();
    }

    /// Everything that is written, but when tokens were used and hosts were heard.
    async fn ledger(&self) -> BTreeMap<String, Vec<String>> {
        let mut found = BTreeMap::new();
        for (table, columns) in [
            (
                "hosts",
                "host_id, name, labels, lock_time, mode_limit, remove_time",
            ),
            ("instructions", "host_id, version"),
            ("jobs", "job_id, state, cancel_time"),
            ("tasks", "task_id, state, cancel_time, released"),
            ("principals", "principal, roles, suspend_time, lock_time"),
            ("tokens", "token_id, revoke_time"),
            ("join_tokens", "token_id, uses, revoke_time"),
            ("policies", "version, files"),
            ("approvals", "approval_id, state, revoke_time"),
            ("approval_answers", "approval_id, principal, answer"),
        ] {
            let query = format!("SELECT json_array({columns}) FROM {table} ORDER BY 1");
            let rows: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(query))
                .fetch_all(&self.store.readers)
                .await
                .unwrap();
            found.insert(table.to_owned(), rows);
        }
        found
    }
}

pub(super) fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    request
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

#[tokio::test]
async fn a_job_that_one_may_not_see_is_not_there() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    plane.host("db-1").await;
    plane.label("db-1", "dev").await;
    let ai = plane.token(PrincipalKind::Ai, "claude", &["ai"]).await;
    let other = plane.token(PrincipalKind::Ai, "other", &["ai"]).await;
    let created = plane
        .jobs()
        .create_job(by(&ai, job("its", "all")))
        .await
        .unwrap();
    let job_id = created.into_inner().job.unwrap().job_id;
    let tasks = || ListTasksRequest {
        job_id: job_id.clone(),
        ..Default::default()
    };
    let own = plane
        .jobs()
        .list_tasks(by(&ai, tasks()))
        .await
        .unwrap()
        .into_inner()
        .tasks;
    assert_eq!(own.len(), 2);

    let mut jobs = plane.jobs();
    let get = || GetJobRequest {
        job_id: job_id.clone(),
    };
    let watch = || WatchJobRequest {
        job_id: job_id.clone(),
        ..Default::default()
    };
    let cancel = || CancelJobRequest {
        job_id: job_id.clone(),
        ..Default::default()
    };
    let read = |task: &str| v1::ReadOutputRequest {
        task_id: task.to_owned(),
        ..Default::default()
    };
    assert_eq!(
        reason(&jobs.get_job(by(&other, get())).await.unwrap_err()),
        "JOB_NOT_FOUND"
    );
    assert_eq!(
        reason(&jobs.watch_job(by(&other, watch())).await.err().unwrap()),
        "JOB_NOT_FOUND"
    );
    assert_eq!(
        reason(&jobs.list_tasks(by(&other, tasks())).await.unwrap_err()),
        "JOB_NOT_FOUND"
    );
    assert_eq!(
        reason(&jobs.cancel_job(by(&other, cancel())).await.unwrap_err()),
        "JOB_NOT_FOUND"
    );
    let output = jobs.read_output(by(&other, read(&own[0].task_id))).await;
    assert_eq!(reason(&output.unwrap_err()), "TASK_NOT_FOUND");
    let list = v1::ListJobsRequest::default;
    assert!(
        jobs.list_jobs(by(&other, list()))
            .await
            .unwrap()
            .into_inner()
            .jobs
            .is_empty()
    );
    assert_eq!(
        jobs.list_jobs(by(&ai, list()))
            .await
            .unwrap()
            .into_inner()
            .jobs
            .len(),
        1
    );
    assert_eq!(
        jobs.list_jobs(list())
            .await
            .unwrap()
            .into_inner()
            .jobs
            .len(),
        1,
        "the admin sees all"
    );

    // Whoever may read one of its hosts sees what ran there, and nothing else of it.
    plane
        .set_policy(&[(
            "dev.cedar",
            "permit(principal in Muster::Role::\"dev\", action in \
            [Muster::Action::\"host.read\", Muster::Action::\"job.read\"], resource) \
            when { resource.hasTag(\"env\") && resource.getTag(\"env\") == \"dev\" };",
        )])
        .await
        .unwrap();
    let dev = plane.token(PrincipalKind::Operator, "dev", &["dev"]).await;
    jobs.get_job(by(&dev, get())).await.unwrap();
    let seen = jobs
        .list_tasks(by(&dev, tasks()))
        .await
        .unwrap()
        .into_inner()
        .tasks;
    assert_eq!(
        seen.iter().map(|task| &*task.host_name).collect::<Vec<_>>(),
        ["db-1"]
    );
    let mut watching = jobs
        .watch_job(by(&dev, watch()))
        .await
        .unwrap()
        .into_inner();
    let update = watching.message().await.unwrap().unwrap().update.unwrap();
    let shown = update.events.iter().filter_map(|event| match &event.event {
        Some(v1::job_event::Event::Task(task)) => Some(&*task.host_name),
        _ => None,
    });
    assert_eq!(shown.collect::<Vec<_>>(), ["db-1"]);
    // Its place serves whoever it was told to.
    let stolen = WatchJobRequest {
        resume_token: update.resume_token,
        ..watch()
    };
    let stolen = jobs.watch_job(by(&ai, stolen)).await.err().unwrap();
    assert_eq!(reason(&stolen), "PAGE_TOKEN_INVALID");
    let mut hosts = plane.hosts();
    let get_host = v1::GetHostRequest {
        host: "web-1".to_owned(),
    };
    assert_eq!(
        reason(&hosts.get_host(by(&dev, get_host)).await.unwrap_err()),
        "HOST_NOT_FOUND"
    );
    let listed = hosts
        .list_hosts(by(&dev, v1::ListHostsRequest::default()))
        .await
        .unwrap();
    assert_eq!(listed.into_inner().total_size, 1);

    // Cancelling is always its owner's.
    jobs.cancel_job(by(&ai, cancel())).await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn a_change_of_policy_counts_for_what_runs() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    let created = plane.jobs().create_job(job("theirs", "all")).await.unwrap();
    let job_id = created.into_inner().job.unwrap().job_id;
    let viewer = plane
        .token(PrincipalKind::Operator, "vic", &["viewer"])
        .await;
    let mut hosts = plane.hosts();
    let watch = by(&viewer, WatchHostsRequest::default());
    let mut hosts = hosts.watch_hosts(watch).await.unwrap().into_inner();
    assert_eq!(hosts.message().await.unwrap().unwrap().hosts.len(), 1);
    let mut jobs = plane.jobs();
    let watch = by(
        &viewer,
        WatchJobRequest {
            job_id,
            ..Default::default()
        },
    );
    let mut job = jobs.watch_job(watch).await.unwrap().into_inner();
    job.message().await.unwrap().unwrap();
    plane
        .set_policy(&[(
            "viewer.cedar",
            "@id(\"nobody-looks\") forbid(principal in Muster::Role::\"viewer\", \
            action in [Muster::Action::\"host.read\", Muster::Action::\"job.read\"], resource) \
            unless { principal in Muster::Role::\"admin\" };",
        )])
        .await
        .unwrap();
    let ended = loop {
        match hosts.message().await {
            Ok(update) => assert!(
                update.unwrap().hosts.is_empty(),
                "what it saw is taken away"
            ),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&ended), "POLICY_DENIED");
    let ended = loop {
        match job.message().await {
            Ok(update) => assert!(update.is_some(), "it says why it ends"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&ended), "POLICY_DENIED");
    plane.stop().await;
}

#[tokio::test]
async fn policies_are_checked_versioned_and_never_lock_their_keeper_out() {
    let plane = Plane::start().await;
    let mut policies = plane.policy();
    let standing = || plane.policy();
    let set = |text: &str, etag: &str| SetPolicyRequest {
        files: [("a.cedar".to_owned(), text.to_owned())].into(),
        etag: etag.to_owned(),
        ..Default::default()
    };
    let all = "permit(principal, action, resource);";
    let broken = policies
        .set_policy(set(
            "permit(principal, action, resource) when { context.mood };",
            "",
        ))
        .await;
    let broken = broken.unwrap_err();
    assert_eq!(reason(&broken), "POLICY_INVALID");
    let metadata = broken.get_details_error_info().unwrap().metadata;
    assert_eq!(
        (&*metadata["file"], &*metadata["position"]),
        ("a.cedar", "1:1")
    );
    assert_eq!(
        reason(&policies.set_policy(set("", "")).await.unwrap_err()),
        "POLICY_INVALID"
    );
    assert_eq!(
        reason(&policies.set_policy(set(all, "v7")).await.unwrap_err()),
        "ETAG_MISMATCH"
    );
    let found = standing()
        .get_policy(GetPolicyRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(found.policy.unwrap().version, 0, "nothing has changed");
    let dry = SetPolicyRequest {
        validate_only: true,
        ..set(all, "")
    };
    policies.set_policy(dry).await.unwrap();
    let taken = policies
        .set_policy(set(all, "v0"))
        .await
        .unwrap()
        .into_inner()
        .policy
        .unwrap();
    assert_eq!((taken.version, &*taken.author), (1, "operator/ada"));
    let versions = policies
        .list_policy_versions(v1::ListPolicyVersionsRequest::default())
        .await
        .unwrap();
    assert_eq!(versions.into_inner().policies.len(), 1);
    let shipped = standing()
        .get_policy(GetPolicyRequest { version: Some(0) })
        .await
        .unwrap();
    assert!(
        shipped
            .into_inner()
            .policy
            .unwrap()
            .files
            .contains_key("ai.cedar")
    );
    plane.stop().await;
}

#[tokio::test]
async fn labels_are_changed_only_to_what_one_has_a_right_to() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    plane.label("web-1", "dev").await;
    plane
        .set_policy(&[(
            "dev.cedar",
            "permit(principal in Muster::Role::\"dev\", action in \
            [Muster::Action::\"host.read\", Muster::Action::\"host.update\"], resource) \
            when { resource.hasTag(\"env\") && resource.getTag(\"env\") == \"dev\" };",
        )])
        .await
        .unwrap();
    let dev = plane.token(PrincipalKind::Operator, "dev", &["dev"]).await;
    let set = |key: &str, value: &str| v1::UpdateHostRequest {
        host: "web-1".to_owned(),
        update_mask: Some(prost_types::FieldMask {
            paths: vec![format!("labels.{key}")],
        }),
        labels: [(key.to_owned(), value.to_owned())].into(),
        ..Default::default()
    };
    let mut hosts = plane.hosts();
    hosts
        .update_host(by(&dev, set("role", "web")))
        .await
        .unwrap();
    let away = hosts
        .update_host(by(&dev, set("env", "prod")))
        .await
        .unwrap_err();
    assert_eq!(reason(&away), "POLICY_DENIED");
    plane.label("web-1", "prod").await;
    let home = hosts
        .update_host(by(&dev, set("env", "dev")))
        .await
        .unwrap_err();
    assert_eq!(reason(&home), "HOST_NOT_FOUND");
    let ai = plane.token(PrincipalKind::Ai, "claude", &["ai"]).await;
    let ai = hosts
        .update_host(by(&ai, set("env", "dev")))
        .await
        .unwrap_err();
    assert_eq!(reason(&ai), "POLICY_DENIED");
    plane.stop().await;
}

#[tokio::test]
async fn nobody_makes_a_token_for_more_than_he_is() {
    let plane = Plane::start().await;
    let operator = plane
        .token(PrincipalKind::Operator, "olga", &["operator"])
        .await;
    let token = |kind: PrincipalKind, name: &str| CreateTokenRequest {
        kind: kind.into(),
        name: name.to_owned(),
        ttl: None,
        scopes: Vec::new(),
    };
    let mut tokens = plane.tokens();
    let admin = tokens
        .create_token(by(&operator, token(PrincipalKind::Operator, "ada")))
        .await;
    assert_eq!(reason(&admin.unwrap_err()), "POLICY_DENIED");
    for (kind, name) in [
        (PrincipalKind::Ai, "claude"),
        (PrincipalKind::Operator, "olaf"),
    ] {
        tokens
            .create_token(by(&operator, token(kind, name)))
            .await
            .unwrap();
    }
    plane.stop().await;
}

#[tokio::test]
async fn an_ai_is_held_to_edit_and_suspended_when_it_does_too_much() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    let ai = plane.token(PrincipalKind::Ai, "claude", &["ai"]).await;
    let mut jobs = plane.jobs();
    let much = CreateJobRequest {
        mode: v1::Mode::Unrestricted.into(),
        ..job("much", "all")
    };
    let refused = jobs.create_job(by(&ai, much)).await.unwrap_err();
    assert_eq!(reason(&refused), "MODE_TOO_HIGH");
    let metadata = refused.get_details_error_info().unwrap().metadata;
    assert_eq!(
        (&*metadata["mode_at_most"], &*metadata["grantors"]),
        ("edit", "operator/ada")
    );
    assert!(
        metadata["next"].contains("--mode edit"),
        "{}",
        metadata["next"]
    );
    let silent = jobs
        .create_job(by(&ai, job("silent", "all")))
        .await
        .unwrap()
        .into_inner()
        .job
        .unwrap();
    assert_eq!(silent.mode(), v1::Mode::Edit);
    let operator = jobs
        .create_job(job("free", "all"))
        .await
        .unwrap()
        .into_inner()
        .job
        .unwrap();
    assert_eq!(
        operator.mode(),
        v1::Mode::Unspecified,
        "the host's ceiling decides"
    );

    plane
        .set_policy(&[(
            "limits.toml",
            "[principal.\"ai/claude\"]\njobs_per_minute = 2",
        )])
        .await
        .unwrap();
    jobs.create_job(by(&ai, job("one", "all"))).await.unwrap();
    let mut tripped = None;
    for number in 0..5 {
        let answer = jobs
            .create_job(by(&ai, job(&format!("n-{number}"), "all")))
            .await;
        tripped = tripped.or(answer.err());
    }
    assert_eq!(reason(&tripped.unwrap()), "PRINCIPAL_SUSPENDED");
    jobs.get_job(by(
        &ai,
        GetJobRequest {
            job_id: silent.job_id.clone(),
        },
    ))
    .await
    .unwrap();
    jobs.cancel_job(by(
        &ai,
        CancelJobRequest {
            job_id: silent.job_id,
            ..Default::default()
        },
    ))
    .await
    .unwrap();
    let still = jobs
        .create_job(by(&ai, job("more", "all")))
        .await
        .unwrap_err();
    assert_eq!(reason(&still), "PRINCIPAL_SUSPENDED");
    let resume = v1::ResumePrincipalRequest {
        principal: "ai/claude".to_owned(),
    };
    plane.principals().resume_principal(resume).await.unwrap();
    jobs.create_job(by(&ai, job("again", "all"))).await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn a_host_is_lowered_and_nothing_starts_on_one_that_is_disabled() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    let mut hosts = plane.hosts();
    let set = |mode: v1::Mode| v1::SetHostModeRequest {
        host: "web-1".to_owned(),
        mode: mode.into(),
        note: "freeze".to_owned(),
    };
    let host = hosts
        .set_host_mode(set(v1::Mode::ReadOnly))
        .await
        .unwrap()
        .into_inner()
        .host
        .unwrap();
    assert_eq!(
        (host.mode_limit(), &*host.mode_note),
        (v1::Mode::ReadOnly, "freeze")
    );
    hosts.set_host_mode(set(v1::Mode::Disabled)).await.unwrap();
    let refused = plane
        .jobs()
        .create_job(job("one", "all"))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "MODE_DISABLED");
    hosts
        .set_host_mode(set(v1::Mode::Unspecified))
        .await
        .unwrap();
    plane.jobs().create_job(job("one", "all")).await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn it_is_explained_by_which_policy_and_who_could_grant_it() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    plane.token(PrincipalKind::Ai, "claude", &["ai"]).await;
    let ask = |mode: v1::Mode| v1::ExplainAccessRequest {
        principal: "ai/claude".to_owned(),
        action: "job.create".to_owned(),
        selector: "all".to_owned(),
        mode: mode.into(),
        ..Default::default()
    };
    let mut policies = plane.policy();
    let no = policies
        .explain_access(ask(v1::Mode::Unrestricted))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(no.answers[0].verdict(), v1::Verdict::Deny);
    assert_eq!(
        (no.mode_at_most(), no.grantors),
        (v1::Mode::Edit, vec!["operator/ada".to_owned()])
    );
    let yes = policies
        .explain_access(ask(v1::Mode::Unspecified))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(yes.mode(), v1::Mode::Edit);
    assert_eq!(yes.answers[0].rules[0].id, "ai-edits");
    assert_eq!(
        (&*yes.answers[0].hosts[0], yes.answers[0].host_count),
        ("web-1", 1)
    );
    plane.stop().await;
}
