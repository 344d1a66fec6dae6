//! The road to the control plane: one warm channel for all, and a short-lived token for each caller.
//!
//! The gateway has no rights of its own. It exchanges what its caller presents for a token of a few
//! minutes that only this connection's certificate can use; the caller's own token goes no further
//! than that exchange and is not kept.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest;
use muster_proto::v1::{
    ExchangeTokenRequest, PrincipalKind, access_service_client::AccessServiceClient,
    exchange_token_request, host_service_client::HostServiceClient,
    job_service_client::JobServiceClient,
};
use muster_runtime::telemetry::trace;
use tokio::sync::Semaphore;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

/// Exchanged tokens kept at once; beyond it the one that expires first goes.
const TOKENS_MAX: usize = 1_024;
/// A token is exchanged again this long before it expires, so that no call meets its end.
const RENEW_BEFORE: Duration = Duration::from_secs(60);
/// Exchanges under way at once; a flood of wrong tokens waits here, not at the control plane.
const EXCHANGES_MAX: usize = 8;
/// How long an exchange may take.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(10);
/// One answer of the control plane: a page of hosts or jobs, an update of a job.
const MESSAGE_MAX: usize = 16 << 20;

/// Whom to act for.
#[derive(Clone, Copy)]
pub(crate) enum Subject<'a> {
    /// Whoever presents this bearer token.
    Bearer(&'a str),
    /// The AI of this name, which the operator whose certificate we hold owns.
    Ai(&'a str),
}

/// The control plane as the gateway sees it.
pub(crate) struct ControlPlane {
    channel: Channel,
    exchanged: parking_lot::Mutex<HashMap<[u8; 32], Caller>>,
    exchanges: Semaphore,
}

/// Somebody on whose behalf calls are made.
#[derive(Clone)]
pub(crate) struct Caller {
    /// Kind and name, as `ai/claude`.
    pub(crate) principal: Arc<str>,
    bearer: MetadataValue<Ascii>,
    renew_at: SystemTime,
    channel: Channel,
    /// Under which the token is remembered.
    key: [u8; 32],
}

impl ControlPlane {
    /// Over a channel that identifies itself by its certificate and connects again by itself.
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            channel,
            exchanged: parking_lot::Mutex::default(),
            exchanges: Semaphore::new(EXCHANGES_MAX),
        }
    }

    /// Who this is, and a token to act for it.
    pub(crate) async fn caller(&self, subject: Subject<'_>) -> Result<Caller, Status> {
        let key = key(subject);
        if let Some(caller) = self.known(&key) {
            return Ok(caller);
        }
        let turn = self.exchanges.acquire();
        let _turn = turn.await.map_err(|_| Status::internal("closed"))?;
        if let Some(caller) = self.known(&key) {
            return Ok(caller);
        }
        let caller = self.exchange(subject, key).await?;
        let mut exchanged = self.exchanged.lock();
        if exchanged.len() >= TOKENS_MAX {
            let first = exchanged.iter().min_by_key(|(_, caller)| caller.renew_at);
            if let Some(first) = first.map(|(key, _)| *key) {
                exchanged.remove(&first);
            }
        }
        exchanged.insert(key, caller.clone());
        Ok(caller)
    }

    /// Exchanges again at the next call: the control plane did not take the token.
    pub(crate) fn forget(&self, caller: &Caller) {
        self.exchanged.lock().remove(&caller.key);
    }

    fn known(&self, key: &[u8; 32]) -> Option<Caller> {
        let exchanged = self.exchanged.lock();
        let caller = exchanged.get(key)?;
        (SystemTime::now() < caller.renew_at).then(|| caller.clone())
    }

    async fn exchange(&self, subject: Subject<'_>, key: [u8; 32]) -> Result<Caller, Status> {
        let subject = match subject {
            Subject::Bearer(token) => {
                exchange_token_request::Subject::BearerToken(token.to_owned())
            }
            Subject::Ai(name) => exchange_token_request::Subject::AiName(name.to_owned()),
        };
        let mut request = Request::new(ExchangeTokenRequest {
            subject: Some(subject),
        });
        request.set_timeout(EXCHANGE_LIMIT);
        let answer = AccessServiceClient::new(self.channel.clone())
            .exchange_token(request)
            .await?
            .into_inner();
        let principal = answer
            .principal
            .ok_or_else(|| Status::internal("the exchange names no principal"))?;
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {}", answer.bearer_token)
            .parse()
            .map_err(|_| Status::internal("the exchanged token is no header value"))?;
        bearer.set_sensitive(true);
        let expires = answer
            .expire_time
            .and_then(|time| SystemTime::try_from(time).ok())
            .ok_or_else(|| Status::internal("the exchanged token has no end"))?;
        let kind = match principal.kind() {
            PrincipalKind::Operator => "operator",
            PrincipalKind::Ai => "ai",
            PrincipalKind::Automation => "automation",
            PrincipalKind::Gateway => "gateway",
            PrincipalKind::Host => "host",
            PrincipalKind::Unspecified => "unknown",
        };
        Ok(Caller {
            principal: format!("{kind}/{}", principal.name).into(),
            bearer,
            renew_at: renew_at(SystemTime::now(), expires),
            channel: self.channel.clone(),
            key,
        })
    }
}

/// A minute before the end; half-way for a token that does not live that long.
fn renew_at(now: SystemTime, expires: SystemTime) -> SystemTime {
    let lives = expires.duration_since(now).unwrap_or_default();
    now + (lives / 2).max(lives.saturating_sub(RENEW_BEFORE))
}

fn key(subject: Subject<'_>) -> [u8; 32] {
    let (kind, text) = match subject {
        Subject::Bearer(token) => ("bearer\0", token),
        Subject::Ai(name) => ("ai\0", name),
    };
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(kind.as_bytes());
    context.update(text.as_bytes());
    let mut key = [0; 32];
    key.copy_from_slice(context.finish().as_ref());
    key
}

/// Says on each call for whom it is made, and what trace it belongs to.
#[derive(Clone)]
pub(crate) struct Credential {
    bearer: MetadataValue<Ascii>,
    trace: Trace,
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("authorization", self.bearer.clone());
        self.trace.write(metadata);
        Ok(request)
    }
}

impl Caller {
    /// Jobs, as this caller may see and make them.
    pub(crate) fn jobs(
        &self,
        trace: &Trace,
    ) -> JobServiceClient<InterceptedService<Channel, Credential>> {
        JobServiceClient::with_interceptor(self.channel.clone(), self.credential(trace))
            .max_decoding_message_size(MESSAGE_MAX)
    }

    /// Hosts, as this caller may see and change them.
    pub(crate) fn hosts(
        &self,
        trace: &Trace,
    ) -> HostServiceClient<InterceptedService<Channel, Credential>> {
        HostServiceClient::with_interceptor(self.channel.clone(), self.credential(trace))
            .max_decoding_message_size(MESSAGE_MAX)
    }

    fn credential(&self, trace: &Trace) -> Credential {
        Credential {
            bearer: self.bearer.clone(),
            trace: trace.clone(),
        }
    }
}

/// The W3C trace context that the caller sent.
#[derive(Clone, Default)]
pub(crate) struct Trace(HashMap<String, String>);

impl Trace {
    /// Takes over what a carrier holds; what came before stays unless it is there.
    pub(crate) fn take(&mut self, get: impl Fn(&str) -> Option<String>) {
        if let Some(parent) = get("traceparent") {
            self.0.clear();
            self.0.insert("traceparent".to_owned(), parent);
            if let Some(state) = get("tracestate") {
                self.0.insert("tracestate".to_owned(), state);
            }
        }
    }

    /// Makes `span` a child of the caller's.
    pub(crate) fn adopt(&self, span: &tracing::Span) {
        trace::adopt(span, &self.0);
    }

    /// The current span's context; the caller's own where we trace nothing.
    fn write(&self, metadata: &mut MetadataMap) {
        trace::inject(metadata);
        if metadata.contains_key("traceparent") {
            return;
        }
        for (key, value) in &self.0 {
            trace::Carrier::set(metadata, key, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_it_ends() {
        let now = SystemTime::UNIX_EPOCH;
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(renew_at(now, after(300)), after(240));
        assert_eq!(renew_at(now, after(60)), after(30));
        assert_eq!(renew_at(after(10), now), after(10));
    }
}
