//! Receipts that a host signs: what does not verify is kept and marked, and what verifies does so without a control plane.

use std::time::SystemTime;

use bytes::Bytes;
use muster_client::{
    audit::{Purpose, ReceiptSigner, leaf_hash, sha256},
    identity::Identity,
};
use muster_proto::{
    agent::v1::{
        AttachRequest, Offer, ReportRequest, ReportResponse, SignedReceipts, attach_request,
        report_request::Message as Up, task_state::Ended,
    },
    v1::{Confinement, Mode, Receipt, SignedReceipt, task::State},
};
use muster_tests::{
    fleet::Fleet,
    operator::{Watched, request, script},
};
use prost::Message as _;
use rcgen::SigningKey as _;
use tokio::sync::mpsc;
use tonic::Streaming;

use super::{World, chunk, end, ended, said, sealed, started};

/// Sends this of a receipt with the end of its task, and signs for it.
struct Lie<'a> {
    /// What the doubt says of it; nothing speaks against it if this is empty.
    words: &'static str,
    leaf: Box<dyn Fn(&mut Receipt) + 'a>,
    sign: Box<dyn Fn(&Bytes) -> SignedReceipts + 'a>,
}

#[tokio::test]
async fn a_receipt_that_does_not_verify_is_kept_and_marked_and_holds_nothing_up() {
    let mut world = World::start().await;
    let (own, theirs) = (world.signer("evil"), world.signer("good"));
    let host_id = world.operator.host("evil").await.host_id;
    let signed_by = |signer: &ReceiptSigner, name: &str, leaf: &Bytes| {
        let leaves = [leaf_hash(b"another receipt"), leaf_hash(leaf)];
        signer
            .sign(name, SystemTime::now().into(), &leaves)
            .unwrap()
    };
    let honestly = |leaf: &Bytes| signed_by(&own, &host_id, leaf);
    type Change = fn(&mut Receipt);
    let leaves: [(&str, Change); 10] = [
        ("", |_| {}),
        ("its task", |receipt| receipt.task_id = "t-1".to_owned()),
        ("its job", |receipt| receipt.job_id.clear()),
        ("its host", |receipt| receipt.host_id = "h-1".to_owned()),
        ("its offer", |receipt| {
            receipt.offer_digest = sha256(b"something else")
        }),
        ("its state", |receipt| receipt.set_state(State::Failed)),
        ("its exit code", |receipt| receipt.exit_code = Some(1)),
        ("its signal", |receipt| {
            receipt.signal = "SIGKILL".to_owned()
        }),
        ("its output", |receipt| {
            receipt.output_digest = sha256(b"something else")
        }),
        ("its confinement", |receipt| {
            let applied = Confinement {
                mode: Mode::Edit.into(),
                ..Confinement::default()
            };
            receipt.confinement = applied.encode_to_vec().into();
        }),
    ];
    let mut lies: Vec<Lie<'_>> = Vec::new();
    for (words, leaf) in leaves {
        lies.push(Lie {
            words,
            leaf: Box::new(leaf),
            sign: Box::new(honestly),
        });
    }
    type Sign<'a> = Box<dyn Fn(&Bytes) -> SignedReceipts + 'a>;
    let signatures: [(&str, Sign<'_>); 6] = [
        ("host/", Box::new(|leaf| signed_by(&theirs, &host_id, leaf))),
        (
            "another host's name",
            Box::new(|leaf| signed_by(&own, "h-1", leaf)),
        ),
        (
            "the signature is not the certificate's",
            Box::new(|leaf| {
                let mut signed = honestly(leaf);
                signed.certificate_chain = signed_by(&theirs, &host_id, leaf).certificate_chain;
                signed
            }),
        ),
        (
            "there is no certificate",
            Box::new(|leaf| {
                let mut signed = honestly(leaf);
                signed.certificate_chain.clear();
                signed
            }),
        ),
        (
            "the root is not that of its receipts",
            Box::new(|leaf| {
                let mut signed = honestly(leaf);
                signed.leaf_hashes = leaf_hash(leaf).to_vec().into();
                signed
            }),
        ),
        (
            "the signature is not the certificate's",
            Box::new(|leaf| {
                let mut signed = honestly(leaf);
                signed.root = Bytes::from_static(b"\xff\xff");
                signed
            }),
        ),
    ];
    for (words, sign) in signatures {
        lies.push(Lie {
            words,
            leaf: Box::new(|_| {}),
            sign,
        });
    }

    for (number, lie) in lies.into_iter().enumerate() {
        let words = lie.words;
        let (job, offer) = world.offered(request("evil", script("true"))).await;
        let mut last = ended(State::Succeeded, Some(0));
        let mut receipt = honest(&offer, &last);
        (lie.leaf)(&mut receipt);
        let leaf = Bytes::from(receipt.encode_to_vec());
        last.unsigned_receipt = leaf.clone();
        // Now before the report, now after it: whichever comes first waits for the other.
        let sign = async |world: &World| world.says((lie.sign)(&leaf)).await;
        if number % 2 == 0 {
            sign(&world).await;
            world.tells(&offer, last).await;
        } else {
            tokio::join!(world.tells(&offer, last), sign(&world));
        }
        job.succeeds().await;
        world.finds(&job, words).await;
    }
    // Receipts too long, or none at all, wait for nothing.
    for (leaf, words) in [
        (Bytes::from(vec![7; 1 << 20]), "was not kept"),
        (Bytes::from_static(b"\xff\xff"), "it cannot be read"),
    ] {
        let (job, offer) = world.offered(request("evil", script("true"))).await;
        let mut last = ended(State::Succeeded, Some(0));
        last.unsigned_receipt = leaf.clone();
        world.says(honestly(&leaf)).await;
        world.tells(&offer, last).await;
        job.succeeds().await;
        world.finds(&job, words).await;
    }
    // Rubbish in place of a signature is passed over, and the session goes on.
    world.says(SignedReceipts::default()).await;
    let long = SignedReceipts {
        signature: vec![7; 1 << 20].into(),
        ..SignedReceipts::default()
    };
    world.says(long).await;
    world.nobody_is_harmed().await;
}

#[tokio::test]
async fn a_host_that_signs_late_is_waited_for_and_one_that_says_something_else_is_in_doubt() {
    let mut world = World::start().await;
    let own = world.signer("evil");
    let host_id = world.operator.host("evil").await.host_id;
    let (job, offer) = world.offered(request("evil", script("true"))).await;
    let mut first = ended(State::Succeeded, Some(0));
    first.unsigned_receipt = honest(&offer, &first).encode_to_vec().into();
    let told = sealed(&offer);
    let say = |last: &Ended| {
        vec![
            world.open(&told.task_id),
            started(None),
            chunk(1, 0, "hi\n"),
            said(last.clone()),
            end(1),
        ]
    };
    // Nobody waits for the signature but the host, which holds the task until then.
    let (up, mut down) = world.opened(say(&first)).await;
    job.succeeds().await;
    let shown = world.receipt(&told.task_id).await;
    assert_eq!(shown["pending"], true, "{shown}");
    let unsigned = world.fleet.directory().join("unsigned");
    let path = unsigned.display().to_string();
    let args = ["job", "receipt", &told.task_id, "--save", &path];
    let refused = world.fleet.cli(&args).await;
    assert!(refused.stderr.contains("is pending"), "{}", refused.stderr);
    assert!(refused.code() != 0 && !unsigned.exists());
    drop((up, down));
    // It reports again, as after a broken stream, and with another receipt.
    let mut second = first.clone();
    second.unsigned_receipt = {
        let mut receipt = honest(&offer, &first);
        receipt.end_time = Some(prost_types::Timestamp::default());
        receipt.encode_to_vec().into()
    };
    world.report(say(&second)).await.unwrap();
    world.finds(&job, "another receipt came later").await;
    // The first one counts, once it is signed.
    (_, down) = world.opened(say(&first)).await;
    let leaves = [leaf_hash(&first.unsigned_receipt)];
    world
        .says(
            own.sign(&host_id, SystemTime::now().into(), &leaves)
                .unwrap(),
        )
        .await;
    while down.message().await.unwrap().is_some() {}
    let verified = ["job", "receipt", &told.task_id, "--verify"];
    let verified = world.fleet.cli(&verified).await;
    assert_eq!(verified.code(), 0, "{}", verified.stderr);
}

/// As earlier agents sent it.
#[tokio::test]
async fn a_receipt_that_was_signed_alone_counts_as_before() {
    let mut world = World::start().await;
    let identity = |host: &str| {
        let directory = world.fleet.directory().join(host).join("agent");
        Identity::load(&directory).unwrap()
    };
    let (own, theirs) = (identity("evil"), identity("good"));
    let cases: [(&str, Option<&Identity>, i32); 4] = [
        ("", Some(&own), 0),
        ("host/", Some(&theirs), 0),
        ("its exit code", Some(&own), 1),
        ("it cannot be read", None, 0),
    ];
    for (words, signer, code) in cases {
        let (job, offer) = world.offered(request("evil", script("true"))).await;
        let mut last = ended(State::Succeeded, Some(0));
        let mut receipt = honest(&offer, &last);
        receipt.exit_code = Some(code);
        last.receipt = match signer {
            Some(signer) => alone(signer, &receipt),
            None => Bytes::from_static(b"\xff\xff"),
        };
        world.tells(&offer, last).await;
        job.succeeds().await;
        world.finds(&job, words).await;
    }
}

fn alone(signer: &Identity, receipt: &Receipt) -> Bytes {
    let receipt = Bytes::from(receipt.encode_to_vec());
    let text = Purpose::Receipt.message(&receipt);
    let signed = SignedReceipt {
        receipt,
        signature: signer.key().sign(&text).unwrap().into(),
        certificate_chain: vec![Bytes::copy_from_slice(&signer.chain()[0])],
        ..SignedReceipt::default()
    };
    signed.encode_to_vec().into()
}

/// What an honest host says of a task that wrote "hi" and ended so.
fn honest(offer: &Offer, last: &Ended) -> Receipt {
    let told = sealed(offer);
    Receipt {
        task_id: told.task_id,
        job_id: told.job_id,
        host_id: told.host_id,
        offer_digest: sha256(&offer.sealed_offer),
        state: last.state,
        exit_code: last.exit_code,
        end_time: last.time,
        run_time: last.run_time,
        output_digest: output_digest(b"hi\n"),
        ..Receipt::default()
    }
}

impl World {
    fn signer(&self, host: &str) -> ReceiptSigner {
        let directory = self.fleet.directory().join(host).join("agent");
        ReceiptSigner::of(&Identity::load(&directory).unwrap()).unwrap()
    }

    /// The hostile host signs for receipts.
    async fn says(&self, signed: SignedReceipts) {
        let message = Some(attach_request::Message::SignedReceipts(signed));
        let sent = self.attached.up.send(AttachRequest { message }).await;
        sent.expect("it is attached");
    }

    /// The hostile host tells how a task ended that wrote "hi", until it is settled.
    async fn tells(&self, offer: &Offer, last: Ended) {
        let all = vec![
            self.open(&sealed(offer).task_id),
            started(None),
            chunk(1, 0, "hi\n"),
            said(last),
            end(1),
        ];
        self.report(all).await.unwrap();
    }

    /// A report in which this was said; it goes on.
    async fn opened(
        &self,
        messages: Vec<Up>,
    ) -> (mpsc::Sender<ReportRequest>, Streaming<ReportResponse>) {
        let mut messages = messages.into_iter().map(|message| ReportRequest {
            message: Some(message),
        });
        let opened = self.agent.open_report(messages.next().unwrap()).await;
        let (up, down) = opened.unwrap();
        for message in messages {
            up.send(message).await.unwrap();
        }
        (up, down)
    }

    /// What is shown of a task's receipt.
    async fn receipt(&self, task_id: &str) -> serde_json::Value {
        let args = ["job", "receipt", task_id, "--json"];
        let shown = self.fleet.cli(&args).await;
        serde_json::from_str(&shown.stdout).unwrap_or_else(|_| panic!("{}", shown.stderr))
    }

    /// Something with these words speaks against a task, wherever it is shown; nothing does if there are none.
    async fn finds(&self, job: &Watched, words: &str) {
        if words.is_empty() {
            assert_eq!(job.task().await.doubt, "", "an honest one");
            return;
        }
        let task = self.doubted(job).await;
        assert!(task.doubt.contains(words), "{words}: {}", task.doubt);
        let log = self
            .fleet
            .cli(&["audit", "list", "--method", "task.doubt", "--json"])
            .await;
        assert!(log.stdout.contains(&task.task_id), "{}", log.stdout);
    }
}

fn output_digest(stdout: &[u8]) -> Bytes {
    let mut digest = muster_client::audit::OutputDigest::default();
    digest.add(0, stdout);
    Bytes::copy_from_slice(&digest.digest().unwrap())
}

#[tokio::test]
async fn a_receipt_that_was_kept_is_checked_without_a_control_plane() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let stranger = Fleet::start().await;
    let job = fleet.operator().run("web-1", "echo hi").await;
    let task = job.succeeds().await;
    let at = |name: &str| fleet.directory().join(name).display().to_string();
    let kept = at("kept.receipt");
    let task_id = &task.task_id;
    let saved = fleet
        .cli(&["job", "receipt", task_id, "--verify", "--save", &kept])
        .await;
    assert_eq!(saved.code(), 0, "{}", saved.stderr);
    assert!(saved.stdout.contains("unrestricted"), "{}", saved.stdout);
    // A control plane that is started anew has it from the ledger alone, and says the same.
    fleet.stop_control_plane().await;
    fleet.start_control_plane().await;
    let again = ["job", "receipt", task_id, "--verify", "--json"];
    let again = fleet.cli(&again).await;
    assert_eq!(again.code(), 0, "{}", again.stderr);
    let again: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    let before: serde_json::Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
    assert_eq!(again["signed_receipt"], before["signed_receipt"]);
    let ca = fleet
        .data_dir()
        .join("operator/ca.pem")
        .display()
        .to_string();
    let other_ca = stranger
        .data_dir()
        .join("operator/ca.pem")
        .display()
        .to_string();
    fleet.stop_control_plane().await;

    let verify = async |file: &str, ca: &str| {
        let args = ["job", "receipt", "verify", file, "--ca", ca, "--json"];
        // A machine that knows nothing of the fleet does it.
        let elsewhere = fleet.muster(&args).env("MUSTER_DATA_DIR", at("elsewhere"));
        elsewhere.run(&fleet.logs()).await
    };
    let verified = verify(&kept, &ca).await;
    assert_eq!(verified.code(), 0, "{}", verified.stderr);
    let told: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!(told["task_id"], task_id.as_str());
    assert_eq!(told["verified"], true);
    assert_eq!(told["confinement"]["mode"], "unrestricted");

    let signed = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        told["signed_receipt"].as_str().unwrap(),
    )
    .unwrap();
    let (plain, changed, rubbish) = (at("plain"), at("changed"), at("rubbish"));
    std::fs::write(&plain, &signed).unwrap();
    let mut lie = SignedReceipt::decode(&signed[..]).unwrap();
    let mut receipt = Receipt::decode(lie.receipt.clone()).unwrap();
    receipt.exit_code = Some(1);
    lie.receipt = receipt.encode_to_vec().into();
    std::fs::write(&changed, lie.encode_to_vec()).unwrap();
    std::fs::write(&rubbish, "{}").unwrap();
    assert_eq!(verify(&plain, &ca).await.code(), 0);
    for (file, ca, words) in [
        (&changed, &ca, "it is not among those that were signed"),
        (&kept, &other_ca, "none of these authorities vouches for it"),
        (&rubbish, &ca, "it holds no receipt"),
    ] {
        let refused = verify(file, ca).await;
        assert_eq!(refused.code(), 1, "{file}: {}", refused.stdout);
        assert!(refused.stderr.contains(words), "{file}: {}", refused.stderr);
    }
}
