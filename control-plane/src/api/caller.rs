//! Before every door: who calls, may they, and until when.

mod shut_out;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;
use muster_proto::{
    ids::HostId,
    v1::{self, Reason},
};
use muster_runtime::{
    telemetry::trace,
    tls::{Peer, SpiffeId},
};
use tonic::{Code, Request, Status, body::Body};
use tower::{Layer, Service};
use tracing::Instrument as _;

use self::shut_out::{UntilShutOut, shut_out};
use super::{
    measured::Measured,
    methods::{self, Method, Need, Rule},
};
use crate::{
    access::{self, CredentialError, Scope},
    audit::{Audit, Call},
    model::{Entry, Kind, PrincipalKind, entry::Verdict},
    policy::Source,
    rights::{Asker, Rights, suspended},
    wire::status,
};

/// Who calls, as doors see it.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) kind: v1::PrincipalKind,
    pub(super) proven: Arc<access::Caller>,
    /// Whom rights are asked for.
    pub(super) asker: Asker,
}

impl std::ops::Deref for Caller {
    type Target = Asker;

    fn deref(&self) -> &Asker {
        &self.asker
    }
}

impl Caller {
    /// Who makes this call. Calls that anyone may make have no caller.
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .ok_or_else(|| status::of(CredentialError::Missing))
    }

    fn new(proven: access::Caller, rights: Rights) -> Self {
        let principal: Arc<str> = proven.principal.to_string().into();
        Self {
            kind: kind(proven.principal.kind),
            asker: Asker {
                who: rights.access.who(&principal),
                source: source_of(&proven),
                principal,
                rights,
            },
            proven: Arc::new(proven),
        }
    }

    /// The caller as it stands now: what policy sees of it may have changed since the call began.
    pub(crate) fn renewed(&self) -> Self {
        Self {
            asker: self.asker.renewed(),
            ..self.clone()
        }
    }

    /// The caller as it has proved itself, for rooms behind the doors.
    pub(crate) fn proven(&self) -> &access::Caller {
        &self.proven
    }

    /// Refused unless its token reaches as far as jobs of this kind, to create or to cancel them.
    pub(crate) fn may_reach(&self, kind: Kind) -> Result<(), Status> {
        let scope = Scope::to_run(kind);
        match self.proven.scopes.reaches(scope) {
            true => Ok(()),
            false => Err(status::out_of_scope(&[scope.text()])),
        }
    }

    /// The host, if a host's agent calls.
    pub(crate) fn host_id(&self) -> Result<HostId, Status> {
        self.proven
            .host_id()
            .ok_or_else(|| status::refuse(Reason::NotAllowed, "only a host's agent may call this"))
    }

    /// The certificate's identity; refused if a token decided who calls.
    pub(crate) fn certificate(&self) -> Result<&SpiffeId, Status> {
        self.proven.certificate().ok_or_else(|| {
            status::refuse(
                Reason::NotAllowed,
                "this needs a client certificate, without a bearer token",
            )
        })
    }
}

/// How a call comes in, as policies see it.
fn source_of(proven: &access::Caller) -> Source {
    match proven.credential {
        access::Credential::Exchanged => Source::Mcp,
        access::Credential::Certificate(_) | access::Credential::Token => Source::Grpc,
    }
}

/// The kind as the contract writes it.
pub(super) fn kind(kind: PrincipalKind) -> v1::PrincipalKind {
    match kind {
        PrincipalKind::Operator => v1::PrincipalKind::Operator,
        PrincipalKind::Ai => v1::PrincipalKind::Ai,
        PrincipalKind::Gateway => v1::PrincipalKind::Gateway,
        PrincipalKind::Host => v1::PrincipalKind::Host,
        PrincipalKind::Automation => v1::PrincipalKind::Automation,
    }
}

/// Lets a call into the services or refuses it, and records that.
#[derive(Clone)]
pub(crate) struct Admit {
    pub(crate) rights: Rights,
    pub(crate) audit: Audit,
}

impl<S> Layer<S> for Admit {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted {
            rights: self.rights.clone(),
            audit: self.audit.clone(),
            inner,
        }
    }
}

/// Services that see admitted calls only.
#[derive(Clone)]
pub(crate) struct Admitted<S> {
    rights: Rights,
    audit: Audit,
    inner: S,
}

impl<S> Admitted<S> {
    /// The method and who calls it; nobody calls one that anyone may call. `entry` is told who calls, as soon as that is
    /// known.
    fn admit<B>(
        &self,
        request: &http::Request<B>,
        entry: &mut Entry,
    ) -> Result<(&'static Method, Option<Caller>), Status> {
        let method = methods::of(request.uri().path());
        if let Some(method) = method.filter(|method| method.rule == Rule::Anyone) {
            entry.rules.push("anyone".into());
            return Ok((method, None));
        }
        let peer = peer(request).ok_or_else(|| status::of(CredentialError::Missing))?;
        let caller = self
            .rights
            .access
            .authenticate(peer, bearer(request)?)
            .map_err(status::of)?;
        if peer.certificate.is_none() {
            peer.vouched_for();
        }
        entry.principal = caller.principal.to_string().into();
        if let (None, Some(id)) = (caller.certificate(), peer.spiffe_id()) {
            entry.via = format!("{}/{}", id.kind.segment(), id.name).into();
        }
        entry.rules.push("kinds".into());
        let allowed = |method: &&Method| method.rule.allows(caller.principal.kind);
        let Some(method) = method.filter(allowed) else {
            let message = format!(
                "{} may not call {}",
                caller.principal,
                request.uri().path().trim_start_matches('/')
            );
            return Err(status::refuse(Reason::NotAllowed, &message));
        };
        if !caller.scopes.reaches_any(method.scopes) {
            let texts: Vec<&str> = method.scopes.iter().map(|scope| scope.text()).collect();
            return Err(status::out_of_scope(&texts));
        }
        let caller = Caller::new(caller, self.rights.clone());
        if !method.need.is_harmless()
            && let Some((_, cause)) = self.rights.access.suspended(&caller.principal)
        {
            return Err(suspended(&caller.principal, &cause).into());
        }
        match method.need {
            // The door asks for each host.
            Need::Nothing | Need::Hosts(_) | Need::Job => {}
            Need::Fleet(action) => {
                let judged = caller.judged_fleet(action);
                entry.rules.clone_from(&judged.rules);
                caller.allowed_fleet(action, &judged)?;
            }
        }
        Ok((method, Some(caller)))
    }
}

fn peer<B>(request: &http::Request<B>) -> Option<&Arc<Peer>> {
    request.extensions().get::<Arc<Peer>>()
}

/// What is known of a call before it is judged.
fn entry<B>(request: &http::Request<B>) -> Entry {
    let path = request.uri().path();
    // What is no method of ours is chosen by the caller, and there are many such words.
    let method = match methods::of(path) {
        Some(_) => path.trim_start_matches('/').to_owned(),
        None => "unknown".to_owned(),
    };
    let mut entry = Entry::new(method);
    if let Some(peer) = peer(request) {
        entry.address = peer.address.to_string().into();
    }
    entry.trace_id = trace_id(request.headers()).unwrap_or_default().into();
    entry
}

/// The id of a trace, from the W3C trace context: "00-TRACE-SPAN-FLAGS".
fn trace_id(headers: &http::HeaderMap) -> Option<&str> {
    let id = headers.get("traceparent")?.to_str().ok()?.get(3..35)?;
    id.bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then_some(id)
}

/// Runs a call that is recorded.
async fn recorded(
    call: Arc<Call>,
    response: impl Future<Output = Result<http::Response<Body>, Infallible>>,
) -> Result<http::Response<Body>, Infallible> {
    let response = Arc::clone(&call).run(response).await;
    if let Ok(response) = &response
        && let Some(failure) = Status::from_header_map(response.headers())
    {
        let reason = status::reason(&failure);
        call.failed(reason, failure.code() == Code::PermissionDenied);
    }
    response
}

/// The body of a request, whose digest its call is told.
struct Digested {
    body: Body,
    call: Arc<Call>,
}

impl http_body::Body for Digested {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.call.read(data);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The token of `authorization: Bearer …`, if there is such a header.
fn bearer<B>(request: &http::Request<B>) -> Result<Option<&str>, Status> {
    let Some(value) = request.headers().get(http::header::AUTHORIZATION) else {
        return Ok(None);
    };
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    match token {
        Some(token) => Ok(Some(token)),
        None => Err(status::of(CredentialError::Invalid(
            "the authorization header is not \"Bearer TOKEN\"",
        ))),
    }
}

impl<S> Service<http::Request<Body>> for Admitted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let mut entry = entry(&request);
        let (method, caller) = match self.admit(&request, &mut entry) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                entry.verdict = Verdict::Deny;
                entry.reason = status::reason(&refusal).into();
                self.audit.record(entry);
                tracing::debug!(
                    method = request.uri().path(),
                    reason = refusal.message(),
                    "a call was refused: {}",
                    refusal.message()
                );
                return Box::pin(async move { Ok(refusal.into_http()) });
            }
        };
        let span = tracing::info_span!(
            "call",
            otel.name = request.uri().path().trim_start_matches('/'),
            otel.kind = "server",
            principal = caller.as_ref().map(|caller| &*caller.principal),
        );
        trace::adopt(&span, request.headers());
        let effect = method.effect;
        let shut_out = caller.as_ref().map(|caller| shut_out(&caller.proven));
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        let call = (effect.is_recorded()).then(|| Call::new(self.audit.clone(), entry));
        if let Some(call) = call.clone().filter(|_| effect.is_digested()) {
            request = request.map(|body| Body::new(Digested { body, call }));
        }
        if let Some(peer) = peer(&request).cloned() {
            let known = shut_out.is_some();
            request = request.map(|body| Body::new(Measured::new(body, &peer, known)));
        }
        // tower: what was polled ready must be what is called.
        let response = self.inner.call(request);
        let response: Self::Future = match call {
            Some(call) if effect.goes_on() => Box::pin(to_its_end(
                recorded(call, response).instrument(span.clone()),
            )),
            Some(call) => Box::pin(recorded(call, response)),
            None => Box::pin(response),
        };
        let Some(mut shut_out) = shut_out else {
            return Box::pin(response.instrument(span));
        };
        Box::pin(
            async move {
                // The answer first: whoever revokes the token of this very call is told that it was done.
                let response = tokio::select! {
                    biased;
                    response = response => response?,
                    refusal = &mut shut_out => return Ok(refusal.into_http()),
                };
                let ended = false;
                Ok(response.map(|body| {
                    Body::new(UntilShutOut {
                        body,
                        shut_out,
                        ended,
                    })
                }))
            }
            .instrument(span),
        )
    }
}

/// Runs a call to its end, even if nobody waits for its answer any more.
async fn to_its_end(
    call: impl Future<Output = Result<http::Response<Body>, Infallible>> + Send + 'static,
) -> Result<http::Response<Body>, Infallible> {
    match tokio::spawn(call).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(%error, "a call broke off: {error}");
            let refusal = status::refuse(
                Reason::Internal,
                "something broke inside; the control plane's log says what",
            );
            Ok(refusal.into_http())
        }
    }
}
