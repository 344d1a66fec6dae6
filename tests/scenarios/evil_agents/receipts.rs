//! Receipts that a host signs: what does not verify is kept and marked, and what verifies does so without a control plane.

use bytes::Bytes;
use muster_client::{
    audit::{ReceiptSigner, sha256},
    identity::Identity,
};
use muster_proto::v1::{Confinement, Mode, Receipt, SignedReceipt, task::State};
use muster_tests::{
    fleet::Fleet,
    operator::{request, script},
};
use prost::Message as _;

use super::{World, chunk, end, ended, said, sealed, started};

#[tokio::test]
async fn a_receipt_that_does_not_verify_is_kept_and_marked_and_holds_nothing_up() {
    let mut world = World::start().await;
    let signer = |host: &str| {
        let directory = world.fleet.directory().join(host).join("agent");
        ReceiptSigner::of(&Identity::load(&directory).unwrap()).unwrap()
    };
    let (own, theirs) = (signer("evil"), signer("good"));
    let host_id = world.operator.host("evil").await.host_id;
    type Change = fn(&mut Receipt);
    let cases: [(&str, Change); 10] = [
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
    type Sign<'a> = Box<dyn Fn(&Receipt) -> Bytes + 'a>;
    let mut signed: Vec<(&str, Sign<'_>)> = Vec::new();
    for (words, change) in cases {
        let own = &own;
        signed.push((
            words,
            Box::new(move |receipt| {
                let mut receipt = receipt.clone();
                change(&mut receipt);
                own.sign(&receipt).unwrap().encode_to_vec().into()
            }),
        ));
    }
    signed.push((
        "host/",
        Box::new(|receipt| written(theirs.sign(receipt).unwrap())),
    ));
    signed.push((
        "the signature is not the certificate's",
        Box::new(|receipt| {
            let mut signed = own.sign(receipt).unwrap();
            signed.certificate_chain = theirs.sign(receipt).unwrap().certificate_chain;
            written(signed)
        }),
    ));
    signed.push((
        "there is no certificate",
        Box::new(|receipt| {
            let mut signed = own.sign(receipt).unwrap();
            signed.certificate_chain.clear();
            written(signed)
        }),
    ));
    signed.push((
        "it cannot be read",
        Box::new(|_| Bytes::from_static(b"\xff\xff")),
    ));
    signed.push(("was not kept", Box::new(|_| vec![7; 1 << 20].into())));

    for (words, sign) in signed {
        let (job, offer) = world.offered(request("evil", script("true"))).await;
        let told = sealed(&offer);
        let mut last = ended(State::Succeeded, Some(0));
        let receipt = Receipt {
            task_id: told.task_id.clone(),
            job_id: told.job_id.clone(),
            host_id: host_id.clone(),
            offer_digest: sha256(&offer.sealed_offer),
            state: last.state,
            exit_code: last.exit_code,
            end_time: last.time,
            run_time: last.run_time,
            output_digest: output_digest(b"hi\n"),
            ..Receipt::default()
        };
        last.receipt = sign(&receipt);
        let kept = last.receipt.clone();
        let all = vec![
            world.open(&told.task_id),
            started(None),
            chunk(1, 0, "hi\n"),
            said(last),
            end(1),
        ];
        world.report(all).await.unwrap();
        job.succeeds().await;
        if words.is_empty() {
            assert_eq!(job.task().await.doubt, "", "an honest one");
            continue;
        }
        let task = world.doubted(&job).await;
        assert!(task.doubt.contains(words), "{words}: {}", task.doubt);
        let shown = world
            .fleet
            .cli(&["job", "receipt", &task.task_id, "--json"])
            .await;
        if kept.len() < 16_000 && words != "it cannot be read" {
            assert!(shown.stdout.contains(words), "{words}: {}", shown.stdout);
        }
        let log = world
            .fleet
            .cli(&["audit", "list", "--method", "task.doubt", "--json"])
            .await;
        assert!(log.stdout.contains(&task.task_id), "{}", log.stdout);
    }
    // A real one verifies, and the mark stays over a restart.
    let job = world.operator.run("good", "echo hi").await;
    assert_eq!(job.succeeds().await.doubt, "");
    world.nobody_is_harmed().await;
}

fn written(signed: SignedReceipt) -> Bytes {
    signed.encode_to_vec().into()
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
        (&changed, &ca, "the signature is not the certificate's"),
        (&kept, &other_ca, "none of these authorities vouches for it"),
        (&rubbish, &ca, "it holds no receipt"),
    ] {
        let refused = verify(file, ca).await;
        assert_eq!(refused.code(), 1, "{file}: {}", refused.stdout);
        assert!(refused.stderr.contains(words), "{file}: {}", refused.stderr);
    }
}
