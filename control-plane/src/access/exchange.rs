//! Exchanged tokens: short-lived, bound to a certificate, sealed instead of stored.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::seal::Sealer;

/// What an exchanged token begins with.
pub(super) const PREFIX: &str = "mst_x_";

/// Separates these seals from others by the same key.
const CONTEXT: &[u8] = b"muster-exchange-v1\0";

/// Bytes of a seal.
const SEAL: usize = 32;

/// What an exchanged token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exchanged {
    /// Whom it acts for, as "ai/claude".
    #[serde(rename = "p")]
    pub(super) principal: String,
    /// The token that it was exchanged for; empty where an operator asked for its own ai.
    #[serde(rename = "t")]
    pub(super) token_id: String,
    /// The SPIFFE id of the only certificate that may use it.
    #[serde(rename = "c")]
    pub(super) certificate: String,
    /// When it expires, Unix milliseconds.
    #[serde(rename = "e")]
    pub(super) expire_time: i64,
    /// Scopes to which the token's source narrows the principal, if it does.
    #[serde(rename = "s", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) scopes: Vec<String>,
    /// Its source narrows the principal, even where no scope is left.
    #[serde(rename = "n", default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) narrowed: bool,
}

impl Exchanged {
    /// The token as text.
    pub(super) fn seal(&self, sealer: &Sealer) -> String {
        let body = serde_json::to_vec(self).expect("texts and a number are JSON");
        let mut bytes = sealer.seal(&[CONTEXT, &body].concat());
        bytes.extend_from_slice(&body);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a token that this control plane sealed.
    pub(super) fn open(text: &str, sealer: &Sealer) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        let (seal, body) = bytes.split_at_checked(SEAL)?;
        sealer
            .holds(&[CONTEXT, body].concat(), seal)
            .then(|| serde_json::from_slice(body).ok())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sealed_here_opens() {
        let directory = tempfile::tempdir().unwrap();
        let sealer = Sealer::open(&directory.path().join("one")).unwrap();
        let other = Sealer::open(&directory.path().join("two")).unwrap();
        let token = Exchanged {
            principal: "ai/claude".to_owned(),
            token_id: "k-1".to_owned(),
            certificate: "spiffe://muster.internal/gateway/local".to_owned(),
            expire_time: 1,
            scopes: vec!["jobs:run".to_owned()],
            narrowed: true,
        };
        let text = token.seal(&sealer);
        assert_eq!(Exchanged::open(&text, &sealer), Some(token));
        assert_eq!(Exchanged::open(&text, &other), None);
        assert_eq!(Exchanged::open(&text[..text.len() - 1], &sealer), None);
        assert_eq!(Exchanged::open("mst_x_", &sealer), None);
    }
}
