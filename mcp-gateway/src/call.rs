//! One call of a tool: on whose behalf, and by which client.

use std::{sync::Arc, time::Duration};

use muster_client::{Client, ClientError};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::{
    confirm::Asker,
    control_plane::{Caller, ControlPlane, Place},
    error::Refusal,
    progress::Progress,
};

/// How long the control plane may take for what needs no waiting.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// One call of a tool.
pub(crate) struct Call {
    /// On whose behalf.
    pub(crate) caller: Caller,
    /// Where the caller's token came from.
    pub(crate) control_plane: Arc<ControlPlane>,
    /// Calls in its name, within its trace.
    pub(crate) client: Client,
    /// Its place on the channel of this client.
    pub(crate) _place: Place,
    /// Whom to tell how it goes.
    pub(crate) progress: Progress,
    /// Whom to ask for a confirmation.
    pub(crate) asker: Asker,
    /// The caller has gone: detach.
    pub(crate) stop: CancellationToken,
}

impl Call {
    /// What a failed call becomes. A token that was not taken is not used again.
    pub(crate) fn refused(&self, error: impl Into<ClientError>) -> Refusal {
        let error = error.into();
        if error.code() == Some(Code::Unauthenticated) {
            self.control_plane.forget(&self.caller);
        }
        Refusal::from(error)
    }

    /// Waits for an answer that needs no waiting, unless the caller goes.
    pub(crate) async fn ask<T>(
        &self,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Refusal> {
        self.ask_for(Duration::ZERO, answer).await
    }

    /// Waits for an answer that may take `wait` and a little longer.
    pub(crate) async fn ask_for<T>(
        &self,
        wait: Duration,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Refusal> {
        tokio::select! {
            answer = timeout(wait + ANSWER_LIMIT, answer) => match answer {
                Ok(answer) => answer.map(tonic::Response::into_inner).map_err(|status| self.refused(status)),
                Err(_) => Err(Refusal::new(
                    "the control plane did not answer in time",
                    "call again in a few seconds; if it stays, an operator has to look after the control plane",
                )),
            },
            () = self.stop.cancelled() => Err(Refusal::new("the caller has gone", "call again")),
        }
    }
}
