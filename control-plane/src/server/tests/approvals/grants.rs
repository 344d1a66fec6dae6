//! Grants: asked for, given, used and revoked.

use super::*;

pub(super) fn grant(id: &str, selector: &str) -> RequestGrantRequest {
    RequestGrantRequest {
        reason: "the deploy needs it".to_owned(),
        selector: selector.to_owned(),
        mode: Mode::Edit.into(),
        request_id: id.to_owned(),
        ..RequestGrantRequest::default()
    }
}

#[tokio::test]
async fn a_grant_stands_in_for_a_permit_until_it_is_revoked() {
    let story = Story::start().await;
    let _host = FakeHost::attach(&story.plane, "web-1").await;
    story.says("ai/claude", Verdict::Deny).await;
    let in_edit = |id: &str| CreateJobRequest {
        mode: Mode::Edit.into(),
        ..job(id)
    };
    let denied = story.create_as("claude", in_edit("r-1")).await.unwrap_err();
    assert_eq!(reason(&denied), "POLICY_DENIED");

    let asked = story.by("claude", grant("g-1", "env=prod"));
    let asked = story.plane.grants().request_grant(asked).await.unwrap();
    let asked = asked.into_inner().approval.unwrap();
    let id = asked.approval_id.as_str();
    assert_eq!(asked.kind(), approval::Kind::Grant);
    assert_eq!(
        reason(&story.approve("claude", id).await.unwrap_err()),
        "NOT_ALLOWED"
    );
    // Nobody gives what they have not.
    story.says("operator/bob", Verdict::Deny).await;
    assert_eq!(
        reason(&story.approve("bob", id).await.unwrap_err()),
        "POLICY_DENIED"
    );
    assert!(story.create_as("claude", in_edit("r-1")).await.is_err());
    let begun = story.approve("ada", id).await.unwrap();
    assert_eq!(begun.state(), approval::State::Approved);
    story.create_as("claude", in_edit("r-1")).await.unwrap();
    // In no higher mode, for nobody else, on no other hosts.
    let higher = CreateJobRequest {
        mode: Mode::Unrestricted.into(),
        ..job("r-2")
    };
    assert!(story.create_as("claude", higher).await.is_err());
    let silent = story.create_as("claude", job("r-3")).await.unwrap();
    assert_eq!(silent.mode(), Mode::Edit);
    assert!(story.create_as("bob", in_edit("r-4")).await.is_err());
    story.plane.host("db-1").await;
    story.plane.label("db-1", "dev").await;
    let elsewhere = |selector: &str| CreateJobRequest {
        selector: selector.to_owned(),
        ..in_edit(&format!("r-{selector}"))
    };
    for selector in ["db-1", "all"] {
        let denied = story.create_as("claude", elsewhere(selector)).await;
        let denied = denied.unwrap_err();
        assert!(denied.message().contains("db-1"), "{denied}");
    }

    // It goes on after a restart, and no longer than who approved it may do it.
    let story = story.again().await;
    story.create_as("claude", in_edit("r-5")).await.unwrap();
    story.says("operator/ada", Verdict::Deny).await;
    assert!(story.create_as("claude", in_edit("r-6")).await.is_err());
    story.says("operator/ada", Verdict::Allow).await;
    let no_more = "forbid(principal == Muster::Principal::\"operator/ada\", \
                   action == Muster::Action::\"grant.write\", resource);";
    story.set(&[("no-more.cedar", no_more)]).await;
    assert!(story.create_as("claude", in_edit("r-6")).await.is_err());
    let other = story.by("claude", grant("g-2", "env=prod"));
    let other = story.plane.grants().request_grant(other).await.unwrap();
    let other = other.into_inner().approval.unwrap();
    let refused = story.approve("ada", &other.approval_id).await.unwrap_err();
    assert_eq!(reason(&refused), "APPROVAL_NOT_FOUND");
    story.set(&[("no-more.cedar", "")]).await;
    story.create_as("claude", in_edit("r-6")).await.unwrap();

    let revoke = RevokeGrantRequest {
        grant_id: id.to_owned(),
    };
    let revoked = story
        .plane
        .grants()
        .revoke_grant(story.by("claude", revoke))
        .await
        .unwrap();
    assert_eq!(revoked.into_inner().grant.unwrap().revoked_by, "ai/claude");
    assert!(story.create_as("claude", in_edit("r-7")).await.is_err());
    let list = |ended| ListGrantsRequest { ended };
    let live = story.plane.grants().list_grants(list(false)).await.unwrap();
    assert!(live.into_inner().grants.is_empty());
    let all = story.plane.grants().list_grants(list(true)).await.unwrap();
    assert_eq!(all.into_inner().grants.len(), 1);
    story.plane.stop().await;
}

#[tokio::test]
async fn a_grant_lifts_nothing_that_policy_forbids() {
    let story = Story::start().await;
    let _host = FakeHost::attach(&story.plane, "web-1").await;
    story.says("ai/claude", Verdict::Deny).await;
    let asked = story.by("claude", grant("g-1", "web-1"));
    let asked = story.plane.grants().request_grant(asked).await.unwrap();
    let id = asked.into_inner().approval.unwrap().approval_id;
    story.approve("ada", &id).await.unwrap();
    let held = "@needs(\"approval\") forbid(principal == Muster::Principal::\"ai/claude\", \
                action == Muster::Action::\"job.create\", resource);";
    story.set(&[("held.cedar", held)]).await;
    let waits = story.create("claude", "r-1").await.unwrap();
    assert_eq!(story.task(&waits).await.state(), State::AwaitingApproval);
    let never = "forbid(principal == Muster::Principal::\"ai/claude\", \
                 action == Muster::Action::\"job.create\", resource);";
    story.set(&[("held.cedar", never)]).await;
    let refused = story.create("claude", "r-2").await.unwrap_err();
    assert_eq!(reason(&refused), "POLICY_DENIED");
    story.plane.stop().await;
}
