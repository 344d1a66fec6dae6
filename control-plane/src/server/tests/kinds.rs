//! Kinds of action at the doors: each has its right, its scope and its grants.

use muster_proto::v1::{
    AnswerApprovalRequest, ApprovalAnswer, CancelJobRequest, CreateJobRequest, FileRead,
    ListAuditRequest, RequestGrantRequest, action, audit_service_client::AuditServiceClient,
};

use super::{
    policy::{by, job},
    *,
};
use crate::{
    hosts::Host,
    model::{Kind, Mode},
    policy::{Circumstances, Verdict},
};

/// What was shipped when every job ran a command.
const BEFORE: [(&str, &str); 4] = [
    (
        "admin.cedar",
        include_str!("../../policy/readings/before/admin.cedar"),
    ),
    (
        "ai.cedar",
        include_str!("../../policy/readings/before/ai.cedar"),
    ),
    (
        "operator.cedar",
        include_str!("../../policy/readings/before/operator.cedar"),
    ),
    (
        "viewer.cedar",
        include_str!("../../policy/readings/before/viewer.cedar"),
    ),
];

fn read(request_id: &str) -> CreateJobRequest {
    let mut request = job(request_id, "web-1");
    let path = "/etc/hostname".to_owned();
    let read = FileRead {
        path,
        ..FileRead::default()
    };
    request.action = Some(v1::Action {
        kind: Some(action::Kind::FileRead(read)),
    });
    request
}

impl Plane {
    /// A token of ada's that is narrowed to these.
    async fn narrow(&self, scopes: &[&str]) -> String {
        let request = CreateTokenRequest {
            kind: PrincipalKind::Operator.into(),
            name: "ada".to_owned(),
            ttl: None,
            scopes: scopes.iter().map(ToString::to_string).collect(),
        };
        let created = self.tokens().create_token(request).await.unwrap();
        created.into_inner().bearer_token
    }

    /// What policy and grants say of a job of this kind on web-1, and the mode that it would get.
    fn planned(&self, principal: &str, kind: Kind, mode: Option<Mode>) -> (Verdict, Mode) {
        let hosts: Vec<Arc<Host>> = self.inventory.find("web-1").into_iter().collect();
        let who = self.rights.access.who(&principal.into());
        let how = Circumstances::default();
        let plan = self.rights.plan(&who, &hosts, kind, (mode, None), how);
        (plan.decision.verdict, plan.mode)
    }

    async fn explained(
        &self,
        principal: &str,
        action: &str,
    ) -> Result<v1::ExplainAccessResponse, Status> {
        let request = v1::ExplainAccessRequest {
            principal: principal.to_owned(),
            action: action.to_owned(),
            selector: "all".to_owned(),
            ..Default::default()
        };
        let answer = self.policy().explain_access(request).await?;
        Ok(answer.into_inner())
    }
}

#[tokio::test]
async fn a_token_reaches_the_kinds_of_its_scopes() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    let runs = plane.narrow(&["jobs:run"]).await;
    let reads = plane.narrow(&["files:read"]).await;
    let looks = plane.narrow(&["jobs:read"]).await;
    let mut jobs = JobServiceClient::new(plane.operator.clone());
    let created = jobs.create_job(by(&runs, job("r-1", "web-1"))).await;
    let command = created.unwrap().into_inner().job.unwrap();
    for (token, request, needed) in [
        (&runs, read("r-2"), "files:read"),
        (&reads, job("r-3", "web-1"), "jobs:run"),
        (&looks, job("r-4", "web-1"), "jobs:run files:read"),
        (&looks, read("r-5"), "jobs:run files:read"),
    ] {
        let refused = jobs.create_job(by(token, request)).await.unwrap_err();
        let info = refused.get_details_error_info().unwrap();
        assert_eq!(info.reason, "SCOPE_INSUFFICIENT", "{refused}");
        assert_eq!(info.metadata["scope"], needed, "{refused}");
    }
    // What somebody may not start by a token they do not end by it either.
    let cancel = || CancelJobRequest {
        job_id: command.job_id.clone(),
        ..CancelJobRequest::default()
    };
    let refused = jobs.cancel_job(by(&reads, cancel())).await.unwrap_err();
    assert_eq!(reason(&refused), "SCOPE_INSUFFICIENT");
    jobs.cancel_job(by(&runs, cancel())).await.unwrap();
    plane.stop().await;
}

#[tokio::test]
async fn each_kind_is_explained_by_its_right_and_gets_its_mode() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    plane.token(PrincipalKind::Ai, "claude", &["ai"]).await;
    plane
        .token(PrincipalKind::Automation, "vera", &["viewer"])
        .await;
    for (action, mode) in [
        ("command.run", v1::Mode::Edit),
        ("job.create", v1::Mode::Edit),
        ("file.read", v1::Mode::ReadOnly),
    ] {
        let answer = plane.explained("ai/claude", action).await.unwrap();
        assert_eq!(answer.answers[0].verdict(), v1::Verdict::Allow, "{action}");
        assert_eq!(answer.answers[0].rules[0].id, "ai-edits", "{action}");
        assert_eq!(answer.mode(), mode, "{action}");
        let viewer = plane.explained("automation/vera", action).await.unwrap();
        assert_eq!(viewer.answers[0].verdict(), v1::Verdict::Deny, "{action}");
    }
    let unknown = plane
        .explained("ai/claude", "file.write")
        .await
        .unwrap_err();
    assert!(unknown.message().contains("file.read"), "{unknown}");
    plane.stop().await;
}

#[tokio::test]
async fn a_set_from_before_there_were_kinds_means_what_it_meant_after_a_restart() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    plane.token(PrincipalKind::Ai, "claude", &["ai"]).await;
    plane
        .token(PrincipalKind::Operator, "bob", &["operator"])
        .await;
    plane.set_policy(&BEFORE).await.unwrap();
    let plane = Plane::start_at(plane.end().await, |_| {}).await;
    for (principal, highest) in [
        ("ai/claude", Mode::Edit),
        ("operator/bob", Mode::Unrestricted),
    ] {
        let command = plane.planned(principal, Kind::Command, None);
        assert_eq!(command, (Verdict::Allow, highest), "{principal}");
        let (verdict, _) = plane.planned(principal, Kind::FileRead, None);
        assert_eq!(verdict, Verdict::Deny, "{principal}");
    }
    let admin = plane.planned("operator/ada", Kind::FileRead, None);
    assert_eq!(admin, (Verdict::Allow, Mode::ReadOnly));
    // And what it forbids it forbids to whom everything is permitted.
    let closed = "forbid(principal, action == Muster::Action::\"job.create\", resource) \
                  when { resource.hasTag(\"env\") && resource.getTag(\"env\") == \"prod\" };";
    plane.set_policy(&[("prod.cedar", closed)]).await.unwrap();
    for kind in Kind::ALL {
        let (verdict, _) = plane.planned("operator/ada", kind, None);
        assert_eq!(verdict, Verdict::Deny, "{kind:?}");
    }
    plane.label("web-1", "dev").await;
    for kind in Kind::ALL {
        let (verdict, _) = plane.planned("operator/ada", kind, None);
        assert_eq!(verdict, Verdict::Allow, "{kind:?}");
    }
    plane.stop().await;
}

#[tokio::test]
async fn a_grant_is_for_the_kind_that_it_names() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    for (name, actions, permitted) in [
        ("silent", &[][..], Kind::Command),
        ("old", &["job.create"], Kind::Command),
        ("runs", &["command.run"], Kind::Command),
        ("reads", &["file.read"], Kind::FileRead),
    ] {
        let token = plane.token(PrincipalKind::Ai, name, &["ai", "guest"]).await;
        let principal = format!("ai/{name}");
        let request = RequestGrantRequest {
            reason: "to see why it fails".to_owned(),
            selector: "env=prod".to_owned(),
            mode: v1::Mode::Unrestricted.into(),
            actions: actions.iter().map(ToString::to_string).collect(),
            request_id: "g-1".to_owned(),
            ..RequestGrantRequest::default()
        };
        let asked = plane.grants().request_grant(by(&token, request)).await;
        let asked = asked.unwrap().into_inner().approval.unwrap();
        let before =
            Kind::ALL.map(|kind| plane.planned(&principal, kind, Some(Mode::Unrestricted)));
        assert!(before.iter().all(|(verdict, _)| *verdict == Verdict::Deny));
        let answer = AnswerApprovalRequest {
            approval_id: asked.approval_id,
            answer: ApprovalAnswer::Approve.into(),
            digest: asked.digest,
            ..AnswerApprovalRequest::default()
        };
        plane.approvals().answer_approval(answer).await.unwrap();
        for kind in Kind::ALL {
            let (verdict, _) = plane.planned(&principal, kind, Some(Mode::Unrestricted));
            assert_eq!(
                verdict == Verdict::Allow,
                kind == permitted,
                "{name}: {kind:?}"
            );
        }
    }
    plane.stop().await;
}

#[tokio::test]
async fn the_entry_of_a_job_names_its_kind() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    let mut jobs = JobServiceClient::new(plane.operator.clone());
    jobs.create_job(job("r-1", "web-1")).await.unwrap();
    let list = ListAuditRequest {
        method: "muster.v1.JobService/CreateJob".to_owned(),
        ..ListAuditRequest::default()
    };
    let mut audit = AuditServiceClient::new(plane.operator.clone());
    let entries = audit.list_audit(list).await.unwrap().into_inner().entries;
    let entry: serde_json::Value = serde_json::from_str(&entries[0].entry).unwrap();
    assert_eq!(entry["effect"]["action"], "command", "{entry}");
    plane.stop().await;
}
