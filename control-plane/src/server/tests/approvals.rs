//! Approvals, confirmations and grants, from the doors to a host.

mod confirmations;
mod grants;

use std::collections::{BTreeMap, HashMap};

use muster_proto::v1::{
    Action, AnswerApprovalRequest, Approval, ApprovalAnswer, CancelJobRequest, Command,
    CreateJobRequest, GetApprovalRequest, GetJobRequest, Job, ListApprovalsRequest,
    ListGrantsRequest, ListTasksRequest, Mode, RequestGrantRequest, RevokeGrantRequest, Task,
    action, approval,
    task::{State, Wait},
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::time::timeout;

use self::grants::grant;
use super::{
    fake_host::{FakeHost, PATIENCE},
    *,
};
use crate::policy::Verdict;

/// A control plane with a policy that a test says, and people who may approve: ada by certificate, bob and eve by token.
struct Story {
    plane: Plane,
    says: Mutex<BTreeMap<String, Verdict>>,
    tokens: HashMap<&'static str, String>,
}

impl Story {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let plane = Plane::start_with(change).await;
        let mut tokens = HashMap::new();
        for (kind, name, role) in [
            (PrincipalKind::Operator, "bob", "admin"),
            (PrincipalKind::Operator, "eve", "admin"),
            (PrincipalKind::Ai, "claude", "ai"),
        ] {
            tokens.insert(name, plane.token(kind, name, &[role]).await);
        }
        let story = Self {
            plane,
            says: Mutex::default(),
            tokens,
        };
        story.set(&[]).await;
        story
    }

    /// Starts again over what was written.
    async fn again(self) -> Self {
        let directory = self.plane.end().await;
        let plane = Plane::start_at(directory, |_| {}).await;
        Self { plane, ..self }
    }

    /// From now on policy says this when `principal` asks for a job, and lets everybody do everything else.
    async fn says(&self, principal: &str, verdict: Verdict) {
        self.says.lock().insert(principal.to_owned(), verdict);
        self.set(&[]).await;
    }

    async fn two_approve(&self, principal: &str) {
        let from = "admin".into();
        let two = Verdict::NeedsApproval { count: 2, from };
        self.says(principal, two).await;
    }

    /// Sets what it says, and what else is in these files.
    async fn set(&self, more: &[(&str, &str)]) {
        let mut denied = Vec::new();
        let mut forbids = String::new();
        for (principal, verdict) in &*self.says.lock() {
            let who = format!("principal == Muster::Principal::\"{principal}\"");
            let needs = match verdict {
                Verdict::Allow => continue,
                Verdict::Deny => {
                    denied.push(who);
                    continue;
                }
                Verdict::NeedsConfirmation => "@needs(\"confirmation\")".to_owned(),
                Verdict::NeedsApproval { count, from } => {
                    format!("@needs(\"approval\") @count(\"{count}\") @approvers(\"{from}\")")
                }
            };
            forbids.push_str(&format!(
                "@id(\"{principal}\") {needs} forbid({who}, action == Muster::Action::\"job.create\", resource);\n"
            ));
        }
        let unless = match &*denied {
            [] => String::new(),
            denied => format!(
                " unless {{ action == Muster::Action::\"job.create\" && ({}) }}",
                denied.join(" || ")
            ),
        };
        let says = format!("permit(principal, action, resource){unless};\n{forbids}");
        let mut files = vec![
            ("admin.cedar", ""),
            ("ai.cedar", ""),
            ("operator.cedar", ""),
            ("viewer.cedar", ""),
            ("says.cedar", &*says),
        ];
        files.extend(more);
        self.plane.set_policy(&files).await.unwrap();
    }

    /// Gives somebody this role and no other.
    async fn role(&self, principal: &str, role: &str) {
        let principal = principal.parse().unwrap();
        let access = &self.plane.rights.access;
        access
            .set_roles(&principal, &[role.to_owned()])
            .await
            .unwrap();
    }

    /// A request of ada, or of somebody by token.
    fn by<T>(&self, who: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if who != "ada" {
            let value = format!("Bearer {}", self.tokens[who]).parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        request
    }

    fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.plane.operator.clone())
    }

    async fn create_as(&self, who: &str, request: CreateJobRequest) -> Result<Job, Status> {
        let created = self.jobs().create_job(self.by(who, request)).await?;
        Ok(created.into_inner().job.unwrap())
    }

    async fn create(&self, who: &str, id: &str) -> Result<Job, Status> {
        self.create_as(who, job(id)).await
    }

    async fn task(&self, job: &Job) -> Task {
        let request = ListTasksRequest {
            job_id: job.job_id.clone(),
            ..ListTasksRequest::default()
        };
        let tasks = self.jobs().list_tasks(request).await.unwrap();
        tasks.into_inner().tasks.remove(0)
    }

    async fn reaches(&self, job: &Job, state: State) -> Task {
        let looking = async {
            loop {
                let task = self.task(job).await;
                if task.state() == state {
                    return task;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, looking).await.unwrap()
    }

    async fn approval(&self, who: &str, id: &str) -> Result<Approval, Status> {
        let request = GetApprovalRequest {
            approval_id: id.to_owned(),
        };
        let mut approvals = self.plane.approvals();
        let found = approvals.get_approval(self.by(who, request)).await?;
        Ok(found.into_inner().approval.unwrap())
    }

    async fn answer(
        &self,
        who: &str,
        id: &str,
        answer: ApprovalAnswer,
    ) -> Result<Approval, Status> {
        let digest = self.approval("ada", id).await?.digest;
        let request = AnswerApprovalRequest {
            approval_id: id.to_owned(),
            answer: answer.into(),
            note: "looked at".to_owned(),
            digest,
        };
        let mut approvals = self.plane.approvals();
        let answered = approvals.answer_approval(self.by(who, request)).await?;
        Ok(answered.into_inner().approval.unwrap())
    }

    async fn approve(&self, who: &str, id: &str) -> Result<Approval, Status> {
        self.answer(who, id, ApprovalAnswer::Approve).await
    }
}

fn job(id: &str) -> CreateJobRequest {
    CreateJobRequest {
        request_id: id.to_owned(),
        selector: "web-1".to_owned(),
        action: Some(Action {
            kind: Some(action::Kind::Command(Command {
                argv: vec!["reboot".to_owned()],
                env: [("A", "1"), ("B", "2"), ("API_TOKEN", "hush")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
                ..Command::default()
            })),
        }),
        reason: "new kernel".to_owned(),
        ..CreateJobRequest::default()
    }
}

#[tokio::test]
async fn a_job_waits_for_two_who_are_not_who_asked_and_then_runs() {
    let story = Story::start().await;
    let mut host = FakeHost::attach(&story.plane, "web-1").await;
    story.two_approve("operator/eve").await;
    let job = story.create("eve", "r-1").await.unwrap();
    let id = job.approval_id.as_str();
    assert!(id.starts_with("p-"), "{job:?}");
    let waits = story.task(&job).await;
    assert_eq!(
        (waits.state(), waits.wait()),
        (State::AwaitingApproval, Wait::ForApproval)
    );
    assert!(
        waits
            .message
            .starts_with("awaits approval by somebody else with the role admin, 0 of 2, until "),
        "{}",
        waits.message
    );
    // The same request names the same job, and asks nobody anew.
    assert_eq!(story.create("eve", "r-1").await.unwrap().job_id, job.job_id);

    let shown = story.approval("bob", id).await.unwrap();
    assert_eq!(shown.kind(), approval::Kind::Job);
    assert_eq!(
        (&*shown.principal, &*shown.reason),
        ("operator/eve", "new kernel")
    );
    assert_eq!(shown.hosts[0].host_name, "web-1");
    assert_eq!(shown.action, job.action);

    let oneself = story.approve("eve", id).await.unwrap_err();
    assert_eq!(reason(&oneself), "SELF_APPROVAL");
    let ai = story.approve("claude", id).await.unwrap_err();
    assert_eq!(reason(&ai), "NOT_ALLOWED");
    let first = story.approve("bob", id).await.unwrap();
    assert_eq!(first.state(), approval::State::Awaiting);
    // Once more is no second approval.
    story.approve("bob", id).await.unwrap();
    let waits = story.task(&job).await;
    assert_eq!(waits.state(), State::AwaitingApproval);
    assert!(waits.message.contains("1 of 2"), "{}", waits.message);

    let second = story.approve("ada", id).await.unwrap();
    assert_eq!(second.state(), approval::State::Approved);
    let _task = host.start().await;
    let ran = story.reaches(&job, State::Running).await;
    assert_eq!(ran.message, "");
    let request = GetJobRequest {
        job_id: job.job_id.clone(),
    };
    let released = story
        .jobs()
        .get_job(request)
        .await
        .unwrap()
        .into_inner()
        .job
        .unwrap();
    let (before, now) = (
        job.start_deadline_time.unwrap(),
        released.start_deadline_time.unwrap(),
    );
    assert!(
        now.seconds < before.seconds,
        "the deadline counts from the release"
    );
    story.plane.stop().await;
}

#[tokio::test]
async fn nothing_is_approved_unseen() {
    let story = Story::start().await;
    let _host = FakeHost::attach(&story.plane, "web-1").await;
    story.two_approve("operator/eve").await;
    let job = story.create("eve", "r-1").await.unwrap();
    for digest in [bytes::Bytes::new(), bytes::Bytes::from_static(&[7; 32])] {
        let request = AnswerApprovalRequest {
            approval_id: job.approval_id.clone(),
            answer: ApprovalAnswer::Approve.into(),
            note: String::new(),
            digest,
        };
        let refused = story
            .plane
            .approvals()
            .answer_approval(request)
            .await
            .unwrap_err();
        assert_eq!(reason(&refused), "APPROVAL_DRIFT");
    }
    // Whoever may neither answer nor asked sees nothing.
    story.role("operator/bob", "operator").await;
    let hidden = story.approval("bob", &job.approval_id).await.unwrap_err();
    assert_eq!(reason(&hidden), "APPROVAL_NOT_FOUND");
    let hidden = story.approve("claude", &job.approval_id).await.unwrap_err();
    assert_eq!(reason(&hidden), "NOT_ALLOWED");
    let listed = |who: &'static str| {
        let story = &story;
        async move {
            let request = story.by(who, ListApprovalsRequest::default());
            let page = story
                .plane
                .approvals()
                .list_approvals(request)
                .await
                .unwrap();
            page.into_inner().approvals.len()
        }
    };
    assert_eq!((listed("ada").await, listed("eve").await), (1, 1));
    assert_eq!((listed("bob").await, listed("claude").await), (0, 0));
    story.plane.stop().await;
}

#[tokio::test]
async fn one_who_declines_ends_it_and_a_cancel_needs_nobody() {
    let story = Story::start().await;
    let _host = FakeHost::attach(&story.plane, "web-1").await;
    story.two_approve("ai/claude").await;
    let declined = story.create("claude", "r-1").await.unwrap();
    let id = declined.approval_id.as_str();
    story.approve("bob", id).await.unwrap();
    let ended = story
        .answer("eve", id, ApprovalAnswer::Decline)
        .await
        .unwrap();
    assert_eq!(ended.state(), approval::State::Declined);
    let task = story.reaches(&declined, State::Rejected).await;
    assert_eq!(task.reason(), Reason::ApprovalDeclined);
    assert!(
        task.message.contains("declined by operator/eve: looked at"),
        "{}",
        task.message
    );
    assert!(task.output_complete);
    let late = story.approve("ada", id).await.unwrap_err();
    assert_eq!(reason(&late), "APPROVAL_DECLINED");

    let cancelled = story.create("claude", "r-2").await.unwrap();
    let request = CancelJobRequest {
        job_id: cancelled.job_id.clone(),
        ..CancelJobRequest::default()
    };
    story
        .jobs()
        .cancel_job(story.by("claude", request))
        .await
        .unwrap();
    story.reaches(&cancelled, State::Cancelled).await;
    let late = story.approve("ada", &cancelled.approval_id).await;
    assert!(late.is_err(), "{late:?}");
    let over = story.approval("ada", &cancelled.approval_id).await.unwrap();
    assert_eq!(over.state(), approval::State::Cancelled);
    story.plane.stop().await;
}

#[tokio::test]
async fn what_changed_meanwhile_is_not_what_was_approved() {
    let story = Story::start().await;
    let _host = FakeHost::attach(&story.plane, "web-1").await;
    story.two_approve("operator/eve").await;
    let removed = story.create("eve", "r-1").await.unwrap();
    let denied = story.create("eve", "r-2").await.unwrap();
    story.approve("bob", &denied.approval_id).await.unwrap();
    story.says("operator/eve", Verdict::Deny).await;
    let refused = story.approve("ada", &denied.approval_id).await.unwrap_err();
    assert_eq!(reason(&refused), "APPROVAL_DRIFT");
    let task = story.reaches(&denied, State::Rejected).await;
    assert_eq!(task.reason(), Reason::ApprovalDrift);

    story.two_approve("operator/eve").await;
    story.approve("bob", &removed.approval_id).await.unwrap();
    let host = story.plane.inventory.find("web-1").unwrap().id;
    story.plane.inventory.remove(host).await.unwrap();
    let refused = story
        .approve("ada", &removed.approval_id)
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "APPROVAL_DRIFT");
    let task = story.reaches(&removed, State::Rejected).await;
    assert!(
        task.message.contains("web-1 was removed"),
        "{}",
        task.message
    );
    story.plane.stop().await;
}

#[tokio::test]
async fn what_nobody_decides_expires() {
    let story = Story::start_with(|config| {
        config.approval_expires_after = Duration::from_millis(50);
    })
    .await;
    let _host = FakeHost::attach(&story.plane, "web-1").await;
    story.two_approve("operator/eve").await;
    let job = story.create("eve", "r-1").await.unwrap();
    let task = story.reaches(&job, State::Expired).await;
    assert_eq!(task.reason(), Reason::ApprovalExpired);
    let late = story.approve("ada", &job.approval_id).await.unwrap_err();
    assert_eq!(reason(&late), "APPROVAL_EXPIRED");
    story.plane.stop().await;
}

#[tokio::test]
async fn what_waits_still_waits_after_a_restart() {
    let story = Story::start().await;
    let web = story.plane.host("web-1").await;
    story.two_approve("operator/eve").await;
    let job = story.create("eve", "r-1").await.unwrap();
    story.approve("bob", &job.approval_id).await.unwrap();
    let story = story.again().await;
    let address = story.plane.identity.address().to_owned();
    assert!(!address.is_empty());
    let waits = story.task(&job).await;
    assert_eq!(waits.state(), State::AwaitingApproval);
    assert!(waits.message.contains("1 of 2"), "{}", waits.message);
    story.approve("ada", &job.approval_id).await.unwrap();
    assert_eq!(story.task(&job).await.state(), State::Pending);
    drop(web);
    story.plane.stop().await;
}

#[tokio::test]
async fn a_host_that_holds_a_sealed_offer_proves_that_it_was_approved() {
    let story = Story::start().await;
    let mut host = FakeHost::attach(&story.plane, "web-1").await;
    story.two_approve("operator/eve").await;
    let job = story.create("eve", "r-1").await.unwrap();
    story.approve("bob", &job.approval_id).await.unwrap();
    story.approve("ada", &job.approval_id).await.unwrap();
    let task = host.start().await;
    let sealed = muster_proto::agent::v1::SealedOffer::decode(task.sealed_offer()).unwrap();
    assert_eq!(sealed.approval_id, job.approval_id);
    let not_after = sealed.not_after.unwrap().seconds;
    let created = job.create_time.unwrap().seconds;
    assert!(
        (created + 590..created + 700).contains(&not_after),
        "{not_after}"
    );
    story.plane.stop().await;
}

#[tokio::test]
async fn an_ai_is_no_second_person_for_who_owns_it() {
    let mut story = Story::start().await;
    let _host = FakeHost::attach(&story.plane, "web-1").await;
    let pet = "ai/pet".parse().unwrap();
    let access = &story.plane.rights.access;
    let owned = access.add_principal(&pet, "operator/bob", &[], crate::store::Batch::new());
    owned.await.unwrap();
    let token = story.plane.token(PrincipalKind::Ai, "pet", &["ai"]).await;
    story.tokens.insert("pet", token);
    let one = Verdict::NeedsApproval {
        count: 1,
        from: "admin".into(),
    };
    story.says("ai/pet", one).await;
    let job = story.create("pet", "r-1").await.unwrap();
    let id = job.approval_id.as_str();
    let shown = story.approval("bob", id).await.unwrap();
    assert_eq!(shown.owner, "operator/bob");
    assert_eq!(shown.answerers, ["operator/ada", "operator/eve"]);
    for answer in [ApprovalAnswer::Approve, ApprovalAnswer::Decline] {
        let own = story.answer("bob", id, answer).await.unwrap_err();
        assert_eq!(reason(&own), "SELF_APPROVAL");
        assert!(own.message().contains("owns the ai"), "{own}");
    }
    let other = story.approve("ada", id).await.unwrap();
    assert_eq!(other.state(), approval::State::Approved);

    // A grant gives no more than who gives it may do without anybody.
    story.says("ai/pet", Verdict::Deny).await;
    let asked = story.by("pet", grant("g-1", "web-1"));
    let asked = story.plane.grants().request_grant(asked).await.unwrap();
    let id = asked.into_inner().approval.unwrap().approval_id;
    let given = story.approve("bob", &id).await.unwrap();
    assert_eq!(given.state(), approval::State::Approved);
    story.create("pet", "r-2").await.unwrap();
    story.plane.stop().await;
}

#[tokio::test]
async fn who_may_not_answer_any_more_has_not_answered() {
    let story = Story::start().await;
    let _host = FakeHost::attach(&story.plane, "web-1").await;
    story.two_approve("ai/claude").await;
    let job = story.create("claude", "r-1").await.unwrap();
    let id = job.approval_id.as_str();
    story.approve("bob", id).await.unwrap();
    story.role("operator/bob", "operator").await;
    let one = story.approve("ada", id).await.unwrap();
    assert_eq!(one.state(), approval::State::Awaiting, "bob counts no more");
    let refused = story.approve("bob", id).await.unwrap_err();
    assert_eq!(reason(&refused), "APPROVAL_NOT_FOUND");
    // Nor does who is locked.
    story.role("operator/bob", "admin").await;
    let bob = "operator/bob".parse().unwrap();
    let access = &story.plane.rights.access;
    access
        .lock_principal(&bob, "operator/ada", "")
        .await
        .unwrap();
    story.approve("ada", id).await.unwrap();
    assert_eq!(
        story.approval("ada", id).await.unwrap().state(),
        approval::State::Awaiting
    );
    access.unlock_principal(&bob).await.unwrap();
    let both = story.approve("bob", id).await.unwrap();
    assert_eq!(both.state(), approval::State::Approved);
    story.plane.stop().await;
}

#[tokio::test]
async fn a_host_that_is_another_one_by_now_is_not_what_was_approved() {
    let story = Story::start().await;
    let _host = FakeHost::attach(&story.plane, "web-1").await;
    story.plane.label("web-1", "prod").await;
    let one = |from: &str| Verdict::NeedsApproval {
        count: 1,
        from: from.into(),
    };
    let prod = |id: &str| CreateJobRequest {
        selector: "env=prod".to_owned(),
        ..job(id)
    };
    let drifts = |id: String, word: &'static str| {
        let story = &story;
        async move {
            let refused = story.approve("ada", &id).await.unwrap_err();
            assert_eq!(reason(&refused), "APPROVAL_DRIFT");
            assert!(refused.message().contains(word), "{refused}");
            let after = story.approval("ada", &id).await.unwrap();
            assert_eq!(after.state(), approval::State::Drifted);
        }
    };
    story.says("operator/eve", one("admin")).await;
    let labelled = story.create_as("eve", prod("r-1")).await.unwrap();
    story.plane.label("web-1", "dev").await;
    drifts(labelled.approval_id.clone(), "env=prod").await;
    let task = story.reaches(&labelled, State::Rejected).await;
    assert_eq!(task.reason(), Reason::ApprovalDrift);

    story.plane.label("web-1", "prod").await;
    let others = story.create_as("eve", prod("r-2")).await.unwrap();
    story.says("operator/eve", one("dba")).await;
    drifts(others.approval_id, "dba").await;

    story.says("operator/eve", one("admin")).await;
    let locked = story.create_as("eve", prod("r-3")).await.unwrap();
    let eve = "operator/eve".parse().unwrap();
    let access = &story.plane.rights.access;
    access
        .lock_principal(&eve, "operator/ada", "")
        .await
        .unwrap();
    drifts(locked.approval_id, "locked").await;
    story.plane.stop().await;
}
