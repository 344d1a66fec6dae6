//! `muster job receipt`: what a task's host signed when it was over, and whether that counts.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use muster_client::{
    Client,
    audit::{check_receipt, is_pending, read_receipt},
    identity::load_authorities,
};
use muster_proto::v1::{self, Confinement, ReadOutputRequest, SignedReceipt};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    failure::{Failure, exit},
    json::{self, word},
    operator::Operator,
    screen::{self, Fields},
    time::{local, rfc3339, seconds},
};

/// A host signs for a task this soon after its end, unless it is cut off.
const SIGNED_WITHIN: Duration = Duration::from_secs(3);

/// Between two looks for the signature.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Receipt {
    #[command(subcommand)]
    command: Option<ReceiptCommand>,
    /// The task
    #[arg(required = true)]
    task_id: Option<String>,
    /// Check that the host signed it, by the word of the authority
    #[arg(long)]
    verify: bool,
    /// Keep it in this file, for `receipt verify`
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

#[derive(clap::Subcommand, Debug)]
pub(crate) enum ReceiptCommand {
    /// Check receipts that were kept in files; needs no control plane, but the certificate of its authority (--ca)
    #[command(after_help = "Examples:
  muster job receipt verify t-wsdt62jxq96s0mt8h9pf.receipt --ca ca.pem

The authority's certificate is operator/ca.pem of whoever logged in. After a rotation, --ca may name a file that holds \
the certificates of both.

Exit codes: 0 the host that it names signed it; 1 a receipt does not count.")]
    Verify {
        /// Files of `receipt --save` or `receipt --json`, or serialized messages muster.v1.SignedReceipt
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

impl Receipt {
    pub(super) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        if let Some(ReceiptCommand::Verify { files }) = self.command {
            return verify_files(&files, operator);
        }
        let task_id = self.task_id.unwrap_or_default();
        let client = operator.connect().await?;
        let task = signed(&client, &task_id).await?;
        if task.receipt.is_empty() {
            return Err(Failure::new(
                exit::NO_RESULT,
                format!("task {} has no receipt", screen::clean(&task_id)),
            )
            .next(
                "a host signs one when a task is over; one that never ran, or is lost, has none",
            ));
        }
        let mut told = Told::read(&task.receipt)?;
        if self.verify {
            told.verify(operator)?;
            if told.receipt.task_id != task_id {
                let other = screen::clean(&told.receipt.task_id).into_owned();
                return Err(wrong(&format!("it is the receipt of {other}")));
            }
        }
        told.doubt = task.doubt;
        if self.save.is_some() && is_pending(&told.signed) {
            let task = screen::clean(&task_id);
            let words =
                format!("the receipt of task {task} is pending: its host has not signed it");
            return Err(Failure::new(exit::NO_RESULT, words)
                .next("a host that was cut off signs once it is attached again"));
        }
        if let Some(path) = &self.save {
            let mut text = told.json().to_string();
            text.push('\n');
            fs::write(path, text).map_err(|error| Failure::file(path, &error))?;
        }
        told.print(operator.json)
    }
}

/// The task, once its host has signed for it, or has had time to.
async fn signed(client: &Client, task_id: &str) -> Result<v1::Task, Failure> {
    let patience = Instant::now() + SIGNED_WITHIN;
    loop {
        let request = ReadOutputRequest {
            task_id: task_id.to_owned(),
            max_bytes: 1,
            ..ReadOutputRequest::default()
        };
        let answer = client.jobs().read_output(request).await?.into_inner();
        let task = answer.task.unwrap_or_default();
        let pending =
            SignedReceipt::decode(task.receipt.clone()).is_ok_and(|receipt| is_pending(&receipt));
        if !pending || Instant::now() > patience {
            return Ok(task);
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Checks every file, and fails if one does not count.
fn verify_files(files: &[PathBuf], operator: &Operator) -> Result<(), Failure> {
    for path in files {
        let named = |failure: Failure| failure.about(path);
        let mut told = Told::read(&kept(path)?).map_err(named)?;
        told.verify(operator).map_err(named)?;
        told.print(operator.json)?;
    }
    Ok(())
}

/// The receipt in a file.
fn kept(path: &Path) -> Result<Bytes, Failure> {
    let bytes = fs::read(path).map_err(|error| Failure::file(path, &error))?;
    let Ok(Value::Object(document)) = serde_json::from_slice(&bytes) else {
        return Ok(bytes.into());
    };
    let signed = document.get("signed_receipt").and_then(Value::as_str);
    signed
        .and_then(|text| STANDARD.decode(text).ok())
        .map(Bytes::from)
        .ok_or_else(|| wrong("it holds no receipt").about(path))
}

fn wrong(words: &str) -> Failure {
    Failure::new(exit::SOME_FAILED, words.to_owned())
}

/// A receipt, as far as it is known.
struct Told {
    bytes: Bytes,
    signed: SignedReceipt,
    receipt: v1::Receipt,
    verified: bool,
    /// What the control plane found when it came.
    doubt: String,
}

impl Told {
    fn read(bytes: &Bytes) -> Result<Self, Failure> {
        let unreadable = |error: String| wrong(&format!("the receipt cannot be read: {error}"));
        let signed =
            SignedReceipt::decode(bytes.clone()).map_err(|error| unreadable(error.to_string()))?;
        let receipt = read_receipt(&signed).map_err(|error| unreadable(error.to_string()))?;
        Ok(Self {
            bytes: bytes.clone(),
            signed,
            receipt,
            verified: false,
            doubt: String::new(),
        })
    }

    fn verify(&mut self, operator: &Operator) -> Result<(), Failure> {
        let authorities = load_authorities(&operator.authority())
            .map_err(|error| Failure::usage(error.to_string()))?;
        check_receipt(&self.signed, &authorities)
            .map_err(|error| wrong(&format!("the receipt does not count: {error}")))?;
        self.verified = true;
        Ok(())
    }

    fn confinement(&self) -> Option<Confinement> {
        let applied = &self.receipt.confinement;
        (!applied.is_empty())
            .then(|| Confinement::decode(applied.clone()).ok())
            .flatten()
    }

    fn json(&self) -> Value {
        let receipt = &self.receipt;
        json!({
            "task_id": receipt.task_id,
            "job_id": receipt.job_id,
            "host_id": receipt.host_id,
            "offer_digest": HEXLOWER.encode(&receipt.offer_digest),
            "state": word(receipt.state().as_str_name(), "STATE_"),
            "reason": receipt.reason().name(),
            "exit_code": receipt.exit_code,
            "signal": receipt.signal,
            "start_time": rfc3339(receipt.start_time.as_ref()),
            "end_time": rfc3339(receipt.end_time.as_ref()),
            "run_time_s": seconds(receipt.run_time.as_ref()),
            "output_digest": HEXLOWER.encode(&receipt.output_digest),
            "result_digest": HEXLOWER.encode(&receipt.result_digest),
            "confinement": self.confinement().as_ref().map(json::document),
            "pending": is_pending(&self.signed),
            "verified": self.verified,
            "doubt": (!self.doubt.is_empty()).then_some(&self.doubt),
            "signed_receipt": STANDARD.encode(&self.bytes),
        })
    }

    fn print(&self, as_json: bool) -> Result<(), Failure> {
        if as_json {
            screen::print_json(&self.json())?;
            return Ok(());
        }
        let receipt = &self.receipt;
        let applied = self.confinement();
        let mode = applied.map_or("", |applied| applied.mode().text());
        let code = receipt.exit_code.map(|code| code.to_string());
        let mut fields = Fields::new();
        fields
            .add("task", &receipt.task_id)
            .add("job", &receipt.job_id)
            .add("host", &receipt.host_id)
            .add("state", word(receipt.state().as_str_name(), "STATE_"))
            .add("exit code", code.unwrap_or_default())
            .add("signal", &receipt.signal)
            .add("mode", mode)
            .add("started", local(receipt.start_time.as_ref()))
            .add("ended", local(receipt.end_time.as_ref()))
            .add("offer", HEXLOWER.encode(&receipt.offer_digest))
            .add("output", HEXLOWER.encode(&receipt.output_digest))
            .add("result", HEXLOWER.encode(&receipt.result_digest))
            .add(
                "signature",
                match (is_pending(&self.signed), self.verified) {
                    (true, _) => "pending: the host signs once it is attached again",
                    (_, true) => "the host's, by the authority's word",
                    (_, false) => "not checked: --verify",
                },
            )
            .add("in doubt", &self.doubt);
        screen::print(&fields.render())?;
        Ok(())
    }
}
