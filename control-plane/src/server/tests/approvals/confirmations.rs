//! What has to be confirmed: exactly what was shown.

use super::*;

#[tokio::test]
async fn a_confirmation_is_for_exactly_what_was_shown() {
    let story = Story::start().await;
    let mut host = FakeHost::attach(&story.plane, "web-1").await;
    story.says("ai/claude", Verdict::NeedsConfirmation).await;
    let asked = story.create("claude", "r-1").await.unwrap_err();
    assert_eq!(asked.code(), Code::FailedPrecondition);
    let info = asked.get_details_error_info().unwrap();
    assert_eq!(info.reason, "CONFIRMATION_REQUIRED");
    assert_eq!(info.metadata["hosts"], "web-1");
    let digest = data_encoding::HEXLOWER
        .decode(info.metadata["digest"].as_bytes())
        .unwrap();
    let mut other = job("r-1");
    other.confirmed_digest = digest.clone().into();
    other.action = Some(Action {
        kind: Some(action::Kind::Command(Command {
            argv: vec!["rm".to_owned()],
            ..Command::default()
        })),
    });
    let refused = story.create_as("claude", other).await.unwrap_err();
    assert_eq!(reason(&refused), "CONFIRMATION_REQUIRED");
    let mut confirmed = job("r-1");
    confirmed.confirmed_digest = digest.into();
    let ran = story.create_as("claude", confirmed).await.unwrap();
    assert_eq!(ran.approval_id, "", "a confirmation is no approval");
    let _task = host.start().await;
    // A retry that carries no confirmation names the job that was confirmed.
    assert_eq!(
        story.create("claude", "r-1").await.unwrap().job_id,
        ran.job_id
    );

    // Where policy wants somebody else's word, one's own confirmation is none.
    story.two_approve("ai/claude").await;
    let mut own = job("r-2");
    own.confirmed_digest = bytes::Bytes::from_static(&[1; 32]);
    let waits = story.create_as("claude", own).await.unwrap();
    assert_eq!(story.task(&waits).await.state(), State::AwaitingApproval);
    story.plane.stop().await;
}

/// The digest that a refusal wants confirmed.
fn to_confirm(refusal: &Status) -> bytes::Bytes {
    let info = refusal.get_details_error_info().unwrap();
    assert_eq!(info.reason, "CONFIRMATION_REQUIRED", "{refusal}");
    let digest = data_encoding::HEXLOWER.decode(info.metadata["digest"].as_bytes());
    digest.unwrap().into()
}

#[tokio::test]
async fn what_has_to_be_confirmed_and_approved_is_both() {
    let story = Story::start().await;
    let mut host = FakeHost::attach(&story.plane, "web-1").await;
    let both = "@needs(\"confirmation\") forbid(principal, action == Muster::Action::\"job.create\", resource);\n\
                @needs(\"approval\") forbid(principal, action == Muster::Action::\"job.create\", resource);";
    story.set(&[("both.cedar", both)]).await;
    let asked = story.create("eve", "r-1").await.unwrap_err();
    let confirmed = CreateJobRequest {
        confirmed_digest: to_confirm(&asked),
        ..job("r-1")
    };
    let waits = story.create_as("eve", confirmed).await.unwrap();
    assert_eq!(story.task(&waits).await.state(), State::AwaitingApproval);
    story.approve("ada", &waits.approval_id).await.unwrap();
    let _task = host.start().await;
    story.plane.stop().await;
}
