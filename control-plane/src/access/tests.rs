use std::path::Path;

use muster_runtime::tls::SpiffeKind;

use super::*;
use crate::{
    hosts::PresenceLimits,
    model::{Principal, PrincipalKind},
};

async fn access(directory: &Path) -> Access {
    let store = Store::open(directory).await.unwrap();
    let inventory = Inventory::load(store.clone(), PresenceLimits::default())
        .await
        .unwrap();
    let sealer = Sealer::open(&directory.join("access.key")).unwrap();
    Access::load(store, inventory, sealer, "muster.internal".into())
        .await
        .unwrap()
}

fn gateway() -> SpiffeId {
    SpiffeId::new("muster.internal", SpiffeKind::Gateway, "local")
}

fn ai() -> Principal {
    Principal::new(PrincipalKind::Ai, "claude")
}

#[tokio::test]
async fn a_token_counts_until_it_is_revoked_and_across_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let first = access(directory.path()).await;
    let (token, secret) = first
        .create_token(ai(), None, &[], "operator/ada")
        .await
        .unwrap();
    assert!(secret.expose().starts_with("mst_ai_"));
    drop(first);

    let second = access(directory.path()).await;
    let (found, [end, _]) = second.bearer(secret.expose()).unwrap();
    assert_eq!((&found.id, &found.principal), (&token.id, &ai()));
    assert!(found.last_used_time().is_some());
    second.revoke_token(&token.id).await.unwrap();
    assert!(end.is_cancelled());
    assert!(second.bearer(secret.expose()).is_err());
    assert!(matches!(
        second.revoke_token(&token.id).await,
        Err(AccessError::TokenNotFound(_))
    ));
}

#[tokio::test]
async fn a_token_expires() {
    let directory = tempfile::tempdir().unwrap();
    let access = access(directory.path()).await;
    let (token, secret) = access
        .create_token(ai(), Some(Duration::from_millis(1)), &[], "operator/ada")
        .await
        .unwrap();
    while now() <= token.expire_time {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        access.bearer(secret.expose()).unwrap_err(),
        CredentialError::Expired("the bearer token")
    );
}

#[tokio::test]
async fn an_ai_belongs_to_the_operator_that_named_it_first() {
    let directory = tempfile::tempdir().unwrap();
    let access = access(directory.path()).await;
    let ada = Principal::new(PrincipalKind::Operator, "ada");
    let eve = Principal::new(PrincipalKind::Operator, "eve");
    for operator in [&ada, &eve] {
        access
            .add_principal(operator, "", &[], Batch::new())
            .await
            .unwrap();
    }
    let sealed = access
        .exchange_ai(&ada, "ada-mcp", &gateway())
        .await
        .unwrap();
    let principal = sealed.principal;
    assert_eq!(principal.to_string(), "ai/ada-mcp");
    assert!(sealed.expire_time <= now() + EXCHANGED_TTL_MS);
    assert_eq!(access.owner(&principal), "operator/ada");
    assert!(matches!(
        access.exchange_ai(&eve, "ada-mcp", &gateway()).await,
        Err(AccessError::NotYours { .. })
    ));
}

#[tokio::test]
async fn hosts_and_gateways_get_no_bearer_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let access = access(directory.path()).await;
    for kind in [PrincipalKind::Gateway, PrincipalKind::Host] {
        let principal = Principal::new(kind, "x");
        assert!(matches!(
            access
                .create_token(principal, None, &[], "operator/ada")
                .await,
            Err(AccessError::Kind)
        ));
    }
}
