//! Join tokens: made, listed, revoked.

use std::{collections::BTreeMap, time::Duration};

use super::{Enrollment, EnrollmentError};
use crate::{
    access::{Secret, checked_roles as checked, draw_id},
    audit,
    clock::now,
    hosts::SelectError,
    model::{PrincipalKind, check_labels, check_name},
    store::{Batch, JoinTokenRow, StoreError},
};

/// What a join token begins with.
const PREFIX: &str = "mst_join_";

/// How long a join token lives if nobody says.
const TTL: Duration = Duration::from_secs(3600);

/// How long a join token may live.
const TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// How often a join token may be used.
const USES_MAX: i64 = 10_000;

/// What a join token lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinKind {
    /// A host.
    Host,
    /// A gateway.
    Gateway,
    /// An operator.
    Operator,
}

impl JoinKind {
    fn text(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Gateway => "gateway",
            Self::Operator => "operator",
        }
    }

    pub(crate) fn of(token: &JoinTokenRow) -> Self {
        let kind = [Self::Gateway, Self::Operator]
            .into_iter()
            .find(|kind| kind.text() == token.kind);
        kind.unwrap_or(Self::Host)
    }
}

/// Asks for a join token.
#[derive(Debug, Clone)]
pub(crate) struct NewJoinToken {
    pub(crate) kind: JoinKind,
    /// Empty lets the joiner choose.
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) uses_max: i64,
    /// What an operator that is new gets; empty for others.
    pub(crate) roles: Vec<String>,
}

fn checked_roles(roles: &[String]) -> Result<Vec<String>, EnrollmentError> {
    Ok(checked(roles, PrincipalKind::Operator)?)
}

impl Enrollment {
    /// Makes a join token.
    pub(crate) async fn create_join_token(
        &self,
        new: NewJoinToken,
        author: &str,
    ) -> Result<(JoinTokenRow, Secret), EnrollmentError> {
        let ttl = new.ttl.unwrap_or(TTL);
        if ttl.is_zero() || ttl > TTL_MAX {
            return Err(EnrollmentError::Argument(
                "ttl: at most 30 days, and more than nothing",
            ));
        }
        let uses_max = if new.uses_max == 0 { 1 } else { new.uses_max };
        if !(1..=USES_MAX).contains(&uses_max) {
            return Err(EnrollmentError::Argument("max_uses: 1 to 10,000"));
        }
        if new.kind != JoinKind::Host && !new.labels.is_empty() {
            return Err(EnrollmentError::Argument("labels: only a host has some"));
        }
        if new.kind != JoinKind::Operator && !new.roles.is_empty() {
            return Err(EnrollmentError::Argument(
                "roles: only an operator has some",
            ));
        }
        if new.kind == JoinKind::Operator && new.name.is_empty() {
            return Err(EnrollmentError::Argument("name: an operator needs one"));
        }
        let roles = match new.kind {
            JoinKind::Operator => checked_roles(&new.roles)?,
            _ => Vec::new(),
        };
        check_labels(&new.labels)?;
        if !new.name.is_empty() {
            check_name(&new.name)?;
            if uses_max != 1 {
                return Err(EnrollmentError::Argument(
                    "name: must be empty where max_uses is not 1",
                ));
            }
            let free = matches!(
                self.0.inventory.find(&new.name),
                Err(SelectError::HostNotFound(_))
            );
            if new.kind == JoinKind::Host && !free {
                return Err(EnrollmentError::NameTaken(new.name));
            }
        }
        let secret = Secret::draw(PREFIX);
        let create_time = now();
        let token = JoinTokenRow {
            token_id: draw_id("jt-"),
            hash: secret.hash(),
            kind: new.kind.text().to_owned(),
            name: new.name,
            labels: new.labels,
            author: author.to_owned(),
            create_time,
            expire_time: create_time + i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX),
            uses: 0,
            uses_max,
            revoked: false,
            roles,
        };
        let mut batch = Batch::new();
        batch.add_join_token(&token);
        audit::effect("join_token", &token.token_id);
        self.commit(batch).await?;
        Ok((token, secret))
    }

    /// The string that hands a join token over: address, token and pin in one.
    pub(crate) fn join_string(&self, secret: &Secret, address: &str) -> String {
        format!("{}@{address}#{}", secret.expose(), self.0.authority.pin())
    }

    /// Join tokens that can still be used, after that one, newest first.
    pub(crate) async fn join_tokens(
        &self,
        after: Option<(i64, String)>,
        limit: i64,
    ) -> Result<Vec<JoinTokenRow>, EnrollmentError> {
        let (time, id) = after.unwrap_or((i64::MAX, String::new()));
        Ok(self.0.store.join_tokens(now(), (time, &id), limit).await?)
    }

    /// Makes a join token useless.
    pub(crate) async fn revoke_join_token(&self, id: &str) -> Result<(), EnrollmentError> {
        // In turn, so that no use of it is under way.
        let _turn = self.0.turn.lock().await;
        let unknown = || EnrollmentError::TokenNotFound(id.chars().take(80).collect());
        // Looked for first: a commit that changes nothing would have the audit log say that it did.
        if !self.0.store.has_join_token(id).await? {
            return Err(unknown());
        }
        let mut batch = Batch::new();
        batch.revoke_join_token(id, now());
        audit::effect("join_token", id);
        if self.commit(batch).await? == 0 {
            return Err(unknown());
        }
        Ok(())
    }

    /// How many rows the first statement changed.
    async fn commit(&self, batch: Batch) -> Result<u64, StoreError> {
        let committed = self.0.store.writer.commit(batch).await?;
        committed.durable.wait().await?;
        Ok(committed.outcomes.first().map_or(0, |first| first.affected))
    }
}
