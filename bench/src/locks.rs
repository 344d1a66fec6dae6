//! From a lock to the last stream's end, with many streams open.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use muster_client::Client;
use muster_proto::v1::{
    CreateTokenRequest, LockPrincipalRequest, LockTokenRequest, PrincipalKind,
    UnlockPrincipalRequest, UnlockTokenRequest, WatchHostsRequest, lock_principal_request::Tasks,
};
use tokio::task::JoinSet;

use crate::{
    figures::{Samples, heading, millis},
    fleet::Fleet,
};

/// Streams on one connection; the control plane takes 200.
const PER_CONNECTION: usize = 150;

/// A stream that has not ended by then never does.
const LIMIT: Duration = Duration::from_secs(30);

/// What is locked.
#[derive(Debug, Clone, Copy)]
enum What {
    Token,
    Principal,
}

/// Locks a token, then a principal, under so many streams, so many times.
pub(crate) async fn run(fleet: &Fleet, streams: usize, rounds: usize) -> anyhow::Result<()> {
    let create = CreateTokenRequest {
        kind: PrincipalKind::Automation.into(),
        name: "locked".to_owned(),
        ..CreateTokenRequest::default()
    };
    let made = fleet.client.tokens().create_token(create).await?;
    let made = made.into_inner();
    let token_id = made.token.unwrap_or_default().token_id;
    heading(&format!("{streams} streams, {rounds} locks of each"));
    for what in [What::Token, What::Principal] {
        let (mut each, mut last) = (Samples::default(), Samples::default());
        for _ in 0..rounds {
            let ended = round(fleet, what, &token_id, &made.bearer_token, streams).await?;
            for time in &ended {
                each.add(*time);
            }
            last.add(ended.iter().max().copied().unwrap_or_default());
        }
        for (name, samples) in [
            ("each stream's end", &each),
            ("the last stream's end", &last),
        ] {
            println!(
                "{what:?}: {name:<24} median {:>7.1} ms  p99 {:>7.1} ms  max {:>7.1} ms",
                millis(samples.median()),
                millis(samples.percentile(99)),
                millis(samples.percentile(100)),
            );
        }
    }
    Ok(())
}

/// How long each stream took to end, from the call that locks.
async fn round(
    fleet: &Fleet,
    what: What,
    token_id: &str,
    bearer: &str,
    streams: usize,
) -> anyhow::Result<Vec<Duration>> {
    let directory = fleet.directory().join("control-plane/operator");
    let mut open = JoinSet::new();
    let mut client = None;
    for number in 0..streams {
        if number % PER_CONNECTION == 0 {
            client = Some(
                Client::from_directory(&directory)
                    .await?
                    .with_token(bearer)?,
            );
        }
        let Some(client) = &client else { continue };
        let mut hosts = client.hosts();
        let watch = hosts.watch_hosts(WatchHostsRequest::default()).await?;
        let mut watch = watch.into_inner();
        watch.message().await?.context("the watch begins")?;
        open.spawn(async move {
            while let Ok(Some(_)) = watch.message().await {}
            Instant::now()
        });
    }
    let begun = Instant::now();
    set(fleet, what, token_id, true).await?;
    let ended = tokio::time::timeout(LIMIT, open.join_all()).await;
    let Ok(ended) = ended else {
        bail!("streams go on {} s after the lock", LIMIT.as_secs());
    };
    set(fleet, what, token_id, false).await?;
    let since = |end: Instant| end.saturating_duration_since(begun);
    Ok(ended.into_iter().map(since).collect())
}

async fn set(fleet: &Fleet, what: What, token_id: &str, locked: bool) -> anyhow::Result<()> {
    let (mut principals, mut tokens) = (fleet.client.principals(), fleet.client.tokens());
    let token_id = token_id.to_owned();
    let principal = "automation/locked".to_owned();
    let note = String::new();
    match (what, locked) {
        (What::Token, true) => {
            tokens
                .lock_token(LockTokenRequest { token_id, note })
                .await?;
        }
        (What::Token, false) => {
            tokens.unlock_token(UnlockTokenRequest { token_id }).await?;
        }
        (What::Principal, true) => {
            let request = LockPrincipalRequest {
                principal,
                note,
                tasks: Tasks::Leave.into(),
            };
            principals.lock_principal(request).await?;
        }
        (What::Principal, false) => {
            let request = UnlockPrincipalRequest { principal };
            principals.unlock_principal(request).await?;
        }
    }
    Ok(())
}
