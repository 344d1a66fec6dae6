//! The road to the control plane: one warm channel, more of them when many calls wait at once, and a
//! short-lived token for each caller.
//!
//! The gateway has no rights of its own. It exchanges what its caller presents for a token of a few
//! minutes that only this connection's certificate can use; the caller's own token goes no further
//! than that exchange and is not kept.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use aws_lc_rs::digest;
use muster_client::{Client, ClientError};
use muster_proto::v1::{
    ExchangeTokenRequest, GetCallerRequest, OAuth, PrincipalKind, exchange_token_request,
};
use muster_runtime::telemetry::trace;
use tokio::sync::Semaphore;
use tonic::Request;

/// Exchanged tokens kept at once; beyond it the one that expires first goes.
const TOKENS_MAX: usize = 1_024;
/// A token is exchanged again this long before it expires: longer than any call waits, so that none meets
/// its end.
const RENEW_BEFORE: Duration = Duration::from_secs(60);
/// Exchanges under way at once; a flood of wrong tokens waits here, not at the control plane.
const EXCHANGES_MAX: usize = 8;
/// How long an exchange may take.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(10);

/// Channels to the control plane. It takes so many streams on each: with one alone, calls that wait would hold
/// up those that need not.
pub(crate) const CHANNELS: usize = 16;
/// Calls on one channel before the next one is used; below the control plane's limit of 200 streams, since a call
/// may have a few.
const CALLS_PER_CHANNEL: usize = 128;

/// Whom to act for.
#[derive(Clone, Copy)]
pub(crate) enum Subject<'a> {
    /// Whoever presents this bearer token.
    Bearer(&'a str),
    /// Whom this access token of an authorization server speaks for.
    Jwt(&'a str),
    /// The AI of this name, which the operator whose certificate we hold owns.
    Ai(&'a str),
}

/// How long it is believed whose access tokens count.
const OAUTH_FRESH: Duration = Duration::from_secs(60);

/// The control plane as the gateway sees it.
pub(crate) struct ControlPlane {
    channels: Vec<Arc<Channel>>,
    exchanged: parking_lot::Mutex<HashMap<[u8; 32], Caller>>,
    exchanges: Semaphore,
    oauth: parking_lot::Mutex<KnownOauth>,
}

/// Whose access tokens count, and when that was asked.
#[derive(Default)]
struct KnownOauth {
    oauth: Option<Arc<OAuth>>,
    asked: Option<Instant>,
}

/// One channel, and how many calls use it.
struct Channel {
    client: Client,
    calls: AtomicUsize,
}

/// A call's place on a channel; given back when dropped.
pub(crate) struct Place(Arc<Channel>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Somebody on whose behalf calls are made.
#[derive(Clone)]
pub(crate) struct Caller {
    /// Kind and name, as `ai/claude`.
    pub(crate) principal: Arc<str>,
    /// Scopes of the token; empty: all that the principal may.
    pub(crate) scopes: Arc<[String]>,
    bearer: Arc<str>,
    renew_at: SystemTime,
    /// Under which the token is remembered.
    key: [u8; 32],
}

impl ControlPlane {
    /// Over clients that identify themselves by one certificate and connect by themselves, at the first call.
    pub(crate) fn new(clients: impl IntoIterator<Item = Client>) -> Self {
        let channel = |client| {
            Arc::new(Channel {
                client,
                calls: AtomicUsize::new(0),
            })
        };
        Self {
            channels: clients.into_iter().map(channel).collect(),
            exchanged: parking_lot::Mutex::default(),
            exchanges: Semaphore::new(EXCHANGES_MAX),
            oauth: parking_lot::Mutex::default(),
        }
    }

    /// Who this is, and a token to act for it.
    pub(crate) async fn caller(&self, subject: Subject<'_>) -> Result<Caller, ClientError> {
        let key = key(subject);
        if let Some(caller) = self.known(&key) {
            return Ok(caller);
        }
        let turn = self.exchanges.acquire().await;
        let _turn = turn.expect("the semaphore is never closed");
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

    /// Whose access tokens count beside our own; `None` if nobody's do, or as long as nobody has said. One asks, and
    /// the others go on with what is known.
    pub(crate) async fn oauth(&self) -> Option<Arc<OAuth>> {
        {
            let mut known = self.oauth.lock();
            let fresh = known
                .asked
                .is_some_and(|asked| asked.elapsed() < OAUTH_FRESH);
            if fresh {
                return known.oauth.clone();
            }
            known.asked = Some(Instant::now());
        }
        let mut request = Request::new(GetCallerRequest {});
        request.set_timeout(EXCHANGE_LIMIT);
        let place = self.place();
        let answer = place.0.client.principals().get_caller(request).await;
        let mut known = self.oauth.lock();
        match answer {
            Ok(answer) => known.oauth = answer.into_inner().oauth.map(Arc::new),
            Err(error) => {
                tracing::debug!(%error, "nobody says whose access tokens count: {error}");
                known.asked = None;
            }
        }
        known.oauth.clone()
    }

    /// A place for a call: on the first channel that is not full, so that few calls keep one channel warm.
    fn place(&self) -> Place {
        let calls = |channel: &&Arc<Channel>| channel.calls.load(Ordering::Relaxed);
        let free = self.channels.iter().find(|c| calls(c) < CALLS_PER_CHANNEL);
        let channel = free.or_else(|| self.channels.iter().min_by_key(calls));
        let channel = channel.expect("there is at least one channel");
        channel.calls.fetch_add(1, Ordering::Relaxed);
        Place(channel.clone())
    }

    /// A client that calls in the name of `caller`, and its place.
    pub(crate) fn client(&self, caller: &Caller) -> Result<(Client, Place), ClientError> {
        let place = self.place();
        Ok((place.0.client.with_token(&caller.bearer)?, place))
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

    async fn exchange(&self, subject: Subject<'_>, key: [u8; 32]) -> Result<Caller, ClientError> {
        let subject = match subject {
            Subject::Bearer(token) => {
                exchange_token_request::Subject::BearerToken(token.to_owned())
            }
            Subject::Jwt(token) => exchange_token_request::Subject::Jwt(token.to_owned()),
            Subject::Ai(name) => exchange_token_request::Subject::AiName(name.to_owned()),
        };
        let mut request = Request::new(ExchangeTokenRequest {
            subject: Some(subject),
        });
        request.set_timeout(EXCHANGE_LIMIT);
        let place = self.place();
        let answer = place.0.client.tokens().exchange_token(request).await?;
        let answer = answer.into_inner();
        let principal = answer
            .principal
            .ok_or(ClientError::Answer("the exchange names no principal"))?;
        let expires = answer
            .expire_time
            .and_then(|time| SystemTime::try_from(time).ok())
            .ok_or(ClientError::Answer("the exchanged token has no end"))?;
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
            scopes: answer.scopes.into(),
            bearer: answer.bearer_token.into(),
            renew_at: renew_at(SystemTime::now(), expires),
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
        Subject::Jwt(token) => ("jwt\0", token),
        Subject::Ai(name) => ("ai\0", name),
    };
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(kind.as_bytes());
    context.update(text.as_bytes());
    let mut key = [0; 32];
    key.copy_from_slice(context.finish().as_ref());
    key
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

    /// The caller's client, whose calls carry this trace on.
    pub(crate) fn carried_by(self, client: Client) -> Client {
        if self.0.is_empty() {
            return client;
        }
        client.with_trace(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_fill_one_channel_before_the_next() {
        let channel =
            || tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let clients = (0..2).map(|_| Client::from_channel(channel()));
        let control_plane = ControlPlane::new(clients);
        let calls = |n: usize| control_plane.channels[n].calls.load(Ordering::Relaxed);
        let mut places: Vec<Place> = (0..CALLS_PER_CHANNEL + 2)
            .map(|_| control_plane.place())
            .collect();
        assert_eq!((calls(0), calls(1)), (CALLS_PER_CHANNEL, 2));
        places.remove(0);
        assert_eq!(calls(0), CALLS_PER_CHANNEL - 1);
        drop(places);
        assert_eq!((calls(0), calls(1)), (0, 0));
    }

    #[test]
    fn a_token_is_renewed_before_it_ends() {
        let now = SystemTime::UNIX_EPOCH;
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(renew_at(now, after(300)), after(240));
        assert_eq!(renew_at(now, after(60)), after(30));
        assert_eq!(renew_at(after(10), now), after(10));
    }
}
