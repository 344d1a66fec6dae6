//! Signs for what is reported in a session: many receipts by one signature, after whoever waits for the tasks has an answer.

use std::{sync::Arc, time::Duration};

use muster_proto::agent::v1::{AttachRequest, attach_request::Message};
use tokio::{sync::mpsc, time::sleep};

use crate::{clock::Clock, failpoint, receipts::Receipts, session::Session};

/// How long a receipt waits for others to be signed with it. The control plane hears one such message a time, and settles
/// no task before its receipt is signed.
const GATHER: Duration = Duration::from_millis(25);

/// Runs until the session's stream is gone.
pub(super) async fn sign(
    session: Arc<Session>,
    receipts: Receipts,
    host_id: String,
    clock: Arc<Clock>,
    outgoing: mpsc::Sender<AttachRequest>,
) {
    loop {
        session.unsigned().some().await;
        sleep(GATHER).await;
        failpoint::reached("signing").await;
        let leaves = session.unsigned().take();
        let Some(signed) = receipts.sign(&host_id, clock.host_time(), &leaves) else {
            tracing::error!(
                receipts = leaves.len(),
                "receipts stay unsigned until this host has a key that can sign, and is attached anew"
            );
            continue;
        };
        let message = AttachRequest {
            message: Some(Message::SignedReceipts(signed)),
        };
        if outgoing.send(message).await.is_err() {
            return;
        }
    }
}
