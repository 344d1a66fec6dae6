//! The door of agents: `AgentService`.

use std::pin::Pin;

use futures_util::Stream;
use muster_proto::agent::v1::{
    AttachRequest, AttachResponse, ReportRequest, ReportResponse, UploadRequest, UploadResponse,
    agent_service_server::AgentService,
};
use tonic::{Request, Response, Status, Streaming};

use crate::api::caller::Caller;
use crate::connections::{self, Rooms};

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves agents.
#[derive(Clone)]
pub(crate) struct Agents(pub(crate) Rooms);

#[tonic::async_trait]
impl AgentService for Agents {
    type AttachStream = Messages<AttachResponse>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let host_id = Caller::of(&request)?.host_id()?;
        let messages = connections::attach(self.0.clone(), host_id, request.into_inner()).await?;
        Ok(Response::new(Box::pin(messages)))
    }

    type ReportStream = Messages<ReportResponse>;

    async fn report(
        &self,
        request: Request<Streaming<ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let host_id = Caller::of(&request)?.host_id()?;
        let messages = connections::report(self.0.clone(), host_id, request.into_inner()).await?;
        Ok(Response::new(Box::pin(messages)))
    }

    type UploadStream = Messages<UploadResponse>;

    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<Self::UploadStream>, Status> {
        let host_id = Caller::of(&request)?.host_id()?;
        let messages = connections::upload(self.0.clone(), host_id, request.into_inner()).await?;
        Ok(Response::new(Box::pin(messages)))
    }
}
