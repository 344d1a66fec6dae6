//! Who may do what, at every door.

use std::collections::BTreeMap;

use muster_proto::v1::{
    CancelJobRequest, CreateJobRequest, GetJobRequest, GetPolicyRequest, SetPolicyRequest,
    WatchHostsRequest, WatchJobRequest,
};

use super::*;

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

    pub(super) fn hosts(&self) -> HostServiceClient<Channel> {
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
    pub(super) async fn ledger(&self) -> BTreeMap<String, Vec<String>> {
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
    let mut policy = plane.policy();
    let standing = || plane.policy();
    let set = |text: &str, etag: &str| SetPolicyRequest {
        files: [("a.cedar".to_owned(), text.to_owned())].into(),
        etag: etag.to_owned(),
        ..Default::default()
    };
    let all = "permit(principal, action, resource);";
    let broken = policy
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
        reason(&policy.set_policy(set("", "")).await.unwrap_err()),
        "POLICY_INVALID"
    );
    assert_eq!(
        reason(&policy.set_policy(set(all, "v7")).await.unwrap_err()),
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
    policy.set_policy(dry).await.unwrap();
    let taken = policy
        .set_policy(set(all, "v0"))
        .await
        .unwrap()
        .into_inner()
        .policy
        .unwrap();
    assert_eq!((taken.version, &*taken.author), (1, "operator/ada"));
    let versions = policy
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
    let mut policy = plane.policy();
    let no = policy
        .explain_access(ask(v1::Mode::Unrestricted))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(no.answers[0].verdict(), v1::Verdict::Deny);
    assert_eq!(
        (no.mode_at_most(), no.grantors),
        (v1::Mode::Edit, vec!["operator/ada".to_owned()])
    );
    let yes = policy
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
