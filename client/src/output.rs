//! Reading kept output, piece by piece, to its end.

use muster_proto::v1::{ReadOutputRequest, ReadOutputResponse};

use crate::{connect::Client, error::ClientError, jobs::repeated};

/// How long one read waits for more.
const FOLLOW_WAIT: prost_types::Duration = prost_types::Duration {
    seconds: 30,
    nanos: 0,
};

impl Client {
    /// Reads output once.
    pub async fn read_output(
        &self,
        request: ReadOutputRequest,
    ) -> Result<ReadOutputResponse, ClientError> {
        repeated(|| {
            let (mut jobs, request) = (self.jobs(), request.clone());
            async move { jobs.read_output(request).await }
        })
        .await
    }

    /// Reads output piece by piece: to the end of what is kept now or, with `follow`, until it is complete.
    pub fn output(&self, request: ReadOutputRequest, follow: bool) -> OutputReader {
        OutputReader {
            client: self.clone(),
            request: Some(request),
            follow,
        }
    }
}

/// Pieces of a task's output.
#[derive(Debug)]
pub struct OutputReader {
    client: Client,
    request: Option<ReadOutputRequest>,
    follow: bool,
}

impl OutputReader {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<ReadOutputResponse>, ClientError> {
        let Some(request) = &mut self.request else {
            return Ok(None);
        };
        if self.follow {
            request.wait = Some(FOLLOW_WAIT);
        }
        let answer = self.client.read_output(request.clone()).await?;
        let nothing_new =
            answer.chunks.is_empty() && answer.gaps.is_empty() && answer.lines.is_empty();
        let at_the_end = answer.next_page_token.is_empty() || (nothing_new && !self.follow);
        if at_the_end {
            self.request = None;
        } else {
            request.page_token.clone_from(&answer.next_page_token);
        }
        Ok(Some(answer))
    }
}
