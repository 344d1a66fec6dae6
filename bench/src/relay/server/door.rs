//! The four calls that the relay knows, as the code that tonic generates serves them. By hand, so that a call which is
//! added to Muster's services does not touch the relay. Frozen with the rest of it.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::{Status, body::Body, server::Grpc};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use super::Relay;

/// Everything comes in here.
#[derive(Clone)]
pub(super) struct Door(pub(super) Relay);

impl Service<Request<Body>> for Door {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let relay = self.0.clone();
        match request.uri().path() {
            "/muster.v1.JobService/RunJob" => Box::pin(async move {
                let call = service_fn(move |request| relay.clone().run_job(request));
                let mut grpc = Grpc::new(ProstCodec::default());
                Ok(grpc.server_streaming(call, request).await)
            }),
            "/muster.v1.JobService/AttachTask" => Box::pin(async move {
                let call = service_fn(move |request| relay.clone().attach_task(request));
                let mut grpc = Grpc::new(ProstCodec::default());
                Ok(grpc.streaming(call, request).await)
            }),
            "/muster.agent.v1.AgentService/Attach" => Box::pin(async move {
                let call = service_fn(move |request| relay.clone().attach(request));
                let mut grpc = Grpc::new(ProstCodec::default());
                Ok(grpc.streaming(call, request).await)
            }),
            "/muster.agent.v1.AgentService/Report" => Box::pin(async move {
                let call = service_fn(move |request| relay.clone().report(request));
                let mut grpc = Grpc::new(ProstCodec::default());
                Ok(grpc.streaming(call, request).await)
            }),
            _ => Box::pin(async {
                let unknown = Status::unimplemented("the relay does not know this call");
                Ok(unknown.into_http())
            }),
        }
    }
}
