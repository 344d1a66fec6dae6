//! Tells people by a webhook what waits for them and what was decided.
//!
//! One queue, one sender: notices go out in order, each at most for a while, and never hold anybody up. What a hook
//! misses stands in `approval list`.

mod post;

use std::{fs, io, os::unix::fs::MetadataExt as _, path::PathBuf, sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use http::Uri;
use muster_runtime::backoff::Backoff;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use self::post::{Outcome, Poster};
use crate::{
    clock::now,
    model::{
        Kind,
        approval::{Approval, Subject},
    },
    store::random_name,
};

/// Notices that wait to be sent; more are dropped, and the log says so.
const QUEUE: usize = 256;

/// How long one notice is tried.
const TRY_FOR: Duration = Duration::from_secs(300);

/// How long one try may take.
const TRY_LIMIT: Duration = Duration::from_secs(10);

/// Names of hosts in one notice.
const NAMES_MAX: usize = 20;

/// Characters of the reason in one notice.
const REASON_MAX: usize = 500;

/// Bytes of a secret: a longer file is another one.
const SECRET_MAX: u64 = 4096;

/// The variable that carries the secret, for who has no file.
const SECRET_VARIABLE: &str = "MUSTER_APPROVAL_WEBHOOK_SECRET";

/// How the webhook is reached.
#[derive(clap::Args, Debug, Clone, Default)]
#[group(skip)]
pub struct WebhookConfig {
    /// Where notices of approvals are posted: https, or http to this machine. They are signed with the secret of
    /// MUSTER_APPROVAL_WEBHOOK_SECRET or of --approval-webhook-secret-file.
    #[arg(
        long,
        env = "MUSTER_APPROVAL_WEBHOOK",
        value_name = "URL",
        value_parser = address
    )]
    pub approval_webhook: Option<Uri>,

    /// A file, which only its owner can read, with the secret that signs notices.
    #[arg(
        long,
        env = "MUSTER_APPROVAL_WEBHOOK_SECRET_FILE",
        value_name = "FILE",
        requires = "approval_webhook"
    )]
    pub approval_webhook_secret_file: Option<PathBuf>,

    /// Certificates of the authorities that may vouch for the webhook's server, as PEM; the system's otherwise.
    #[arg(
        long,
        env = "MUSTER_APPROVAL_WEBHOOK_CA",
        value_name = "FILE",
        requires = "approval_webhook"
    )]
    pub approval_webhook_ca: Option<PathBuf>,
}

/// Reads where a webhook is.
fn address(text: &str) -> Result<Uri, String> {
    let uri: Uri = text
        .parse()
        .map_err(|error| format!("it is no URL: {error}"))?;
    let host = uri.host().unwrap_or_default();
    let here = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    match uri.scheme_str() {
        _ if host.is_empty() => Err("it names no host".to_owned()),
        _ if uri.authority().is_some_and(|a| a.as_str().contains('@')) => {
            Err("it holds a password; a hook is known by its secret".to_owned())
        }
        Some("https") => Ok(uri),
        Some("http") if here => Ok(uri),
        Some("http") => Err("it must be https, but for this machine itself".to_owned()),
        _ => Err("it must begin with https://".to_owned()),
    }
}

/// Why a webhook cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebhookError {
    /// A file cannot be used.
    #[error("{}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why, and what to do.
        cause: String,
    },
    /// There is no secret.
    #[error(
        "--approval-webhook needs a secret: set {SECRET_VARIABLE}, or --approval-webhook-secret-file"
    )]
    NoSecret,
    /// The certificates cannot be used.
    #[error("--approval-webhook-ca: {0}")]
    Authorities(String),
}

/// What a job does, in few words, and where: what the ledger does not say of an approval.
#[derive(Debug, Clone, Default)]
pub(crate) struct About {
    /// The kind of action; none of a grant.
    pub(crate) action: Option<Kind>,
    /// The program or the shell of a command; never its arguments, which may be secret.
    pub(crate) program: String,
    /// In which mode, if it says.
    pub(crate) mode: &'static str,
    /// Names of its hosts.
    pub(crate) hosts: Vec<Arc<str>>,
}

/// Something to tell.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Notice(Value);

impl Notice {
    /// Somebody has to answer.
    pub(crate) fn awaited(approval: &Approval, about: About) -> Self {
        let mut notice = Self::of("approval.awaited", approval);
        let names: Vec<_> = about.hosts.iter().take(NAMES_MAX).collect();
        notice.0["action"] = about.action.map(Kind::name).into();
        notice.0["program"] = about.program.into();
        notice.0["mode"] = about.mode.into();
        notice.0["host_count"] = about.hosts.len().into();
        notice.0["hosts"] = json!(names);
        notice
    }

    /// Somebody has approved, and others have to.
    pub(crate) fn answered(approval: &Approval) -> Self {
        Self::of("approval.answered", approval)
    }

    /// It is decided.
    pub(crate) fn decided(approval: &Approval) -> Self {
        Self::of("approval.decided", approval)
    }

    fn of(event: &str, approval: &Approval) -> Self {
        let (kind, job_id) = match &approval.subject {
            Subject::Job { job_id, .. } => ("job", Some(job_id.to_string())),
            Subject::Grant(_) => ("grant", None),
        };
        let grant = match &approval.subject {
            Subject::Job { .. } => Value::Null,
            Subject::Grant(terms) => json!({
                "selector": terms.selector,
                "mode": terms.mode.text(),
                "actions": terms.actions,
                "ttl_s": terms.ttl / 1000,
            }),
        };
        let reason: String = approval.reason.chars().take(REASON_MAX).collect();
        let id = approval.id.to_string();
        Self(json!({
            "event": event,
            "delivery_id": random_name(),
            "time_ms": now(),
            "approval_id": id,
            "kind": kind,
            "state": approval.state.name(),
            "principal": approval.principal,
            "reason": reason,
            "from": &*approval.from,
            "count": approval.count,
            "approved": approval.approved(),
            "cause": approval.cause,
            "expire_time_ms": approval.expire_time,
            "job_id": job_id,
            "grant": grant,
            "next": format!("muster approval show {id}"),
        }))
    }
}

/// Takes notices, if there is a webhook. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Webhook(Option<mpsc::Sender<Notice>>);

/// Sends notices.
pub(crate) struct Sender {
    notices: mpsc::Receiver<Notice>,
    poster: Poster,
    key: hmac::Key,
    target: String,
}

impl Webhook {
    /// Opens the webhook that the settings name; without one, what is told goes nowhere.
    pub(crate) fn open(config: &WebhookConfig) -> Result<(Self, Option<Sender>), WebhookError> {
        let Some(uri) = &config.approval_webhook else {
            return Ok((Self::default(), None));
        };
        let secret = secret(config)?;
        let poster = Poster::new(uri.clone(), config.approval_webhook_ca.as_deref())?;
        let (queue, notices) = mpsc::channel(QUEUE);
        let sender = Sender {
            notices,
            poster,
            key: hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
            target: uri.host().unwrap_or_default().to_owned(),
        };
        Ok((Self(Some(queue)), Some(sender)))
    }

    /// Tells, sooner or later. Never waits.
    pub(crate) fn tell(&self, notice: Notice) {
        let Some(queue) = &self.0 else { return };
        if queue.try_send(notice).is_err() {
            tracing::warn!("the approval webhook is too far behind: a notice was dropped");
        }
    }
}

/// The secret of the file, or else of the environment.
fn secret(config: &WebhookConfig) -> Result<String, WebhookError> {
    let Some(path) = &config.approval_webhook_secret_file else {
        return std::env::var(SECRET_VARIABLE)
            .ok()
            .filter(|secret| !secret.trim().is_empty())
            .map(|secret| secret.trim().to_owned())
            .ok_or(WebhookError::NoSecret);
    };
    let fail = |cause: String| WebhookError::File {
        path: path.clone(),
        cause,
    };
    let looked = fs::metadata(path).and_then(|metadata| {
        if metadata.mode() & 0o077 != 0 {
            let cause = "others can read it; make it private with chmod 600";
            return Err(io::Error::other(cause));
        }
        if metadata.len() > SECRET_MAX {
            return Err(io::Error::other("it is too long for a secret"));
        }
        fs::read_to_string(path)
    });
    let text = looked.map_err(|error| fail(error.to_string()))?;
    match text.trim() {
        "" => Err(fail("it is empty".to_owned())),
        secret => Ok(secret.to_owned()),
    }
}

/// "t=SECONDS,v1=HEX": HMAC-SHA256 over the time, a dot and the body.
fn signature(key: &hmac::Key, seconds: i64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(seconds.to_string().as_bytes());
    context.update(b".");
    context.update(body);
    format!(
        "t={seconds},v1={}",
        HEXLOWER.encode(context.sign().as_ref())
    )
}

impl Sender {
    /// Sends until stopped.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let notice = tokio::select! {
                notice = self.notices.recv() => notice,
                () = stop.cancelled() => return,
            };
            let Some(notice) = notice else { return };
            tokio::select! {
                () = self.deliver(&notice) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn deliver(&self, notice: &Notice) {
        let body = notice.0.to_string();
        let until = Instant::now() + TRY_FOR;
        let mut backoff = Backoff::default();
        loop {
            let signed = signature(&self.key, now() / 1000, body.as_bytes());
            let limit = until.min(Instant::now() + TRY_LIMIT);
            let tried = timeout_at(limit, self.poster.post(&body, &signed)).await;
            let cause = match tried {
                Ok(Outcome::Taken) => return,
                Ok(Outcome::Refused(cause)) => {
                    tracing::warn!(
                        webhook = self.target,
                        "the approval webhook takes no such notice: {cause}"
                    );
                    return;
                }
                Ok(Outcome::Failed(cause)) => cause,
                Err(_) => "no answer in time".to_owned(),
            };
            let wait = backoff.next_wait();
            if Instant::now() + wait >= until {
                tracing::warn!(
                    webhook = self.target,
                    "a notice for the approval webhook was dropped: {cause}"
                );
                return;
            }
            tracing::debug!(
                webhook = self.target,
                "the approval webhook is tried again: {cause}"
            );
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests;
