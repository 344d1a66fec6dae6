//! `muster job receipt`: what a task's host signed when it was over.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use muster_client::{Client, audit::check_receipt, identity::load_authorities};
use muster_proto::v1::{ReadOutputRequest, SignedReceipt};
use prost::Message as _;
use serde_json::json;

use crate::{
    failure::{Failure, exit},
    json::word,
    operator::Operator,
    screen::{self, Fields},
    time::{local, rfc3339, seconds},
};

#[derive(clap::Args, Debug)]
pub(crate) struct Receipt {
    /// The task
    task_id: String,
    /// Check that the host signed it, by the word of the authority
    #[arg(long)]
    verify: bool,
}

impl Receipt {
    pub(super) async fn run(self, client: &Client, operator: &Operator) -> Result<(), Failure> {
        let request = ReadOutputRequest {
            task_id: self.task_id.clone(),
            max_bytes: 1,
            ..ReadOutputRequest::default()
        };
        let answer = client.jobs().read_output(request).await?.into_inner();
        let bytes = answer.task.unwrap_or_default().receipt;
        if bytes.is_empty() {
            return Err(Failure::new(
                exit::NO_RESULT,
                format!("task {} has no receipt", screen::clean(&self.task_id)),
            )
            .next(
                "a host signs one when a task is over; one that never ran, or is lost, has none",
            ));
        }
        let wrong = |error: String| Failure::new(exit::SOME_FAILED, error);
        let signed = SignedReceipt::decode(bytes.clone()).map_err(|e| wrong(e.to_string()))?;
        let receipt = muster_proto::v1::Receipt::decode(signed.receipt.clone())
            .map_err(|error| wrong(error.to_string()))?;
        if self.verify {
            let authorities = load_authorities(&operator.authority())
                .map_err(|error| Failure::usage(error.to_string()))?;
            check_receipt(&signed, &authorities)
                .map_err(|error| wrong(format!("the receipt does not count: {error}")))?;
            if receipt.task_id != self.task_id {
                return Err(wrong(format!("it is the receipt of {}", receipt.task_id)));
            }
        }
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        let state = word(receipt.state().as_str_name(), "STATE_");
        if operator.json {
            screen::print_json(&json!({
                "task_id": receipt.task_id,
                "job_id": receipt.job_id,
                "host_id": receipt.host_id,
                "offer_digest": hex(&receipt.offer_digest),
                "state": state,
                "reason": receipt.reason().name(),
                "exit_code": receipt.exit_code,
                "signal": receipt.signal,
                "start_time": rfc3339(receipt.start_time.as_ref()),
                "end_time": rfc3339(receipt.end_time.as_ref()),
                "run_time_s": seconds(receipt.run_time.as_ref()),
                "output_digest": hex(&receipt.output_digest),
                "confinement": hex(&receipt.confinement),
                "verified": self.verify,
                "signed_receipt": STANDARD.encode(&bytes),
            }))?;
            return Ok(());
        }
        let mut fields = Fields::new();
        fields
            .add("task", &receipt.task_id)
            .add("job", &receipt.job_id)
            .add("host", &receipt.host_id)
            .add("state", state)
            .add(
                "exit code",
                receipt
                    .exit_code
                    .map_or_else(String::new, |code| code.to_string()),
            )
            .add("signal", &receipt.signal)
            .add("started", local(receipt.start_time.as_ref()))
            .add("ended", local(receipt.end_time.as_ref()))
            .add("offer", hex(&receipt.offer_digest))
            .add("output", hex(&receipt.output_digest))
            .add(
                "signature",
                if self.verify {
                    "the host's, by the authority's word"
                } else {
                    "not checked: --verify"
                },
            );
        screen::print(&fields.render())?;
        Ok(())
    }
}
