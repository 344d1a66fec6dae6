//! SPIFFE ids: who a certificate speaks for.

use std::{fmt, str::FromStr};

/// What a certificate speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SpiffeKind {
    /// A host's agent; the name is the host id.
    Host,
    /// An operator.
    Operator,
    /// An MCP gateway.
    Gateway,
    /// A control plane; the name is its id.
    ControlPlane,
}

impl SpiffeKind {
    const ALL: [Self; 4] = [
        Self::Host,
        Self::Operator,
        Self::Gateway,
        Self::ControlPlane,
    ];

    /// The first part of the path.
    pub fn segment(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Operator => "operator",
            Self::Gateway => "gateway",
            Self::ControlPlane => "control-plane",
        }
    }
}

/// `spiffe://TRUST-DOMAIN/KIND/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// The trust domain.
    pub trust_domain: String,
    /// What the certificate speaks for.
    pub kind: SpiffeKind,
    /// Which one of its kind.
    pub name: String,
}

/// Why a text is no SPIFFE id of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no SPIFFE id of a host, an operator, a gateway or a control plane")]
pub struct SpiffeIdError(String);

impl SpiffeId {
    /// Names one of a kind.
    pub fn new(trust_domain: impl Into<String>, kind: SpiffeKind, name: impl Into<String>) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            kind,
            name: name.into(),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/{}/{}",
            self.trust_domain,
            self.kind.segment(),
            self.name
        )
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let wrong = || SpiffeIdError(text.chars().take(256).collect());
        let path = text.strip_prefix("spiffe://").ok_or_else(wrong)?;
        let mut parts = path.split('/');
        let (Some(trust_domain), Some(segment), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let plain = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        };
        let kind = SpiffeKind::ALL
            .into_iter()
            .find(|kind| kind.segment() == segment)
            .filter(|_| plain(trust_domain) && plain(name))
            .ok_or_else(wrong)?;
        Ok(Self::new(trust_domain, kind, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_written() {
        for kind in SpiffeKind::ALL {
            let id = SpiffeId::new("muster.internal", kind, "a-1");
            assert_eq!(id.to_string().parse::<SpiffeId>().unwrap(), id);
        }
    }

    #[test]
    fn other_texts_are_no_ids() {
        for text in [
            "",
            "spiffe://",
            "https://muster.internal/host/a",
            "spiffe://muster.internal/host",
            "spiffe://muster.internal/host/",
            "spiffe://muster.internal/host/a/b",
            "spiffe:///host/a",
            "spiffe://muster.internal/root/a",
            "spiffe://muster.internal/host/a b",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
