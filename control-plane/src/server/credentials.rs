//! What the machine that runs the control plane may have made for itself: whoever can read the data directory holds
//! the authority's key anyway.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use muster_client::identity::{Identity, IdentityError, generate_key, write_file};
use muster_runtime::tls::SpiffeKind;

use super::{Server, ServerError, certificate::local_address};
use crate::{
    access::ADMIN,
    clock::now,
    enrollment::{JoinKind, NewJoinToken},
    model::{Principal, PrincipalKind},
    store::Batch,
};

/// How long an operator's certificate lives; renewed at a start past half of it.
const OPERATOR_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// How long the token for AI clients on this machine lives; replaced at a start past half of it.
const AI_TOKEN_TTL: Duration = Duration::from_secs(366 * 24 * 3600);

/// Who makes what is made at a start.
const AUTHOR: &str = "operator/local";

impl Server {
    /// Makes the credential of an operator in `directory`, or renews it: if its certificate is past half of its
    /// life, or was made by another authority.
    pub async fn bootstrap_operator(
        &self,
        name: &str,
        directory: &Path,
    ) -> Result<(), ServerError> {
        let principal = Principal::new(PrincipalKind::Operator, name);
        // Whoever holds this machine's data directory could make itself an admin anyway.
        self.access
            .add_principal(&principal, "", &[ADMIN.to_owned()], Batch::new())
            .await?;
        // Whoever can read this machine's data directory holds the authority's key: nothing is given away.
        self.access.add_role(&principal, "admin").await?;
        let id = self.authority.id(SpiffeKind::Operator, name);
        let address = local_address(&self.config);
        let key = match Identity::load(directory) {
            Ok(identity)
                if *identity.spiffe_id() == id
                    && identity.authorities() == self.authority.trusted()
                    && identity.chain().get(1) == Some(&self.authority.certificate())
                    && !identity.renew_in(0.5).is_zero() =>
            {
                if identity.address() != address {
                    identity.at_address(address).store()?;
                }
                return Ok(());
            }
            Ok(_) | Err(IdentityError::Missing(_)) => generate_key(),
            Err(error) => return Err(error.into()),
        };
        let issued = self.authority.issue_local(&id, &key, OPERATOR_LIFETIME)?;
        let identity = Identity::new(
            directory,
            key,
            issued.chain,
            self.authority.trusted(),
            address,
            name.to_owned(),
        )?;
        identity.store()?;
        Ok(())
    }

    /// Whether an identity is of this control plane: it trusts an authority that issues here, or did before it was
    /// dropped.
    pub fn recognizes(&self, identity: &Identity) -> bool {
        let known = self.authority.recognized();
        identity
            .authorities()
            .iter()
            .any(|authority| known.contains(authority))
    }

    /// Makes a join token for one host or gateway and the string that hands it over: the command line's way without
    /// a connection. An empty name lets the joiner choose.
    pub async fn create_join_string(
        &self,
        kind: JoinKind,
        name: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<String, ServerError> {
        let new = NewJoinToken {
            kind,
            name: name.to_owned(),
            labels,
            ttl: None,
            uses_max: 1,
            roles: Vec::new(),
        };
        let (_, secret) = self.enrollment.create_join_token(new, AUTHOR).await?;
        Ok(self
            .enrollment
            .join_string(&secret, &local_address(&self.config)))
    }

    /// Writes a bearer token of the principal "ai/NAME" to `path` (0600), unless the one there still counts.
    pub async fn ensure_ai_token(&self, name: &str, path: &Path) -> Result<(), ServerError> {
        let principal = Principal::new(PrincipalKind::Ai, name);
        let half = i64::try_from(AI_TOKEN_TTL.as_millis() / 2).unwrap_or(i64::MAX);
        if let Ok(text) = fs::read_to_string(path)
            && let Ok((token, _)) = self.access.bearer(text.trim())
            && token.principal == principal
            && token.expire_time - now() > half
        {
            return Ok(());
        }
        let (_, secret) = self
            .access
            .create_token(principal, Some(AI_TOKEN_TTL), &[], AUTHOR)
            .await?;
        write_file(path, format!("{}\n", secret.expose()).as_bytes(), 0o600)?;
        Ok(())
    }
}
