//! What is asked of policy: who, what, on which host, how.

use crate::model::{Mode, NetworkAccess};
use std::sync::Arc;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Who {
    /// As "operator/ada".
    pub(crate) principal: Arc<str>,
    /// The operator that owns an ai; empty if none does.
    pub(crate) owner: Arc<str>,
    /// Its roles as they were given, without those that follow.
    pub(crate) roles: Arc<[Arc<str>]>,
}

impl Who {
    /// The part before the "/".
    pub(crate) fn kind(&self) -> &str {
        self.principal.split_once('/').map_or("", |(kind, _)| kind)
    }

    /// The part after it.
    pub(crate) fn name(&self) -> &str {
        self.principal.split_once('/').map_or("", |(_, name)| name)
    }

    /// Its roles with those that follow: an admin is an operator, and an operator a viewer.
    pub(crate) fn all_roles(&self) -> Vec<&str> {
        let mut roles: Vec<&str> = self.roles.iter().map(|role| &**role).collect();
        for (role, follows) in [("admin", "operator"), ("operator", "viewer")] {
            if roles.contains(&role) && !roles.contains(&follows) {
                roles.push(follows);
            }
        }
        roles
    }
}

/// What a call comes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum Source {
    /// The caller's own credential.
    #[default]
    Grpc,
    /// An MCP gateway, or `muster mcp`, in its name.
    Mcp,
}

impl Source {
    /// As policies see it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Mcp => "mcp",
        }
    }

    /// What this was the text of.
    pub(crate) fn from_text(text: &str) -> Self {
        match text {
            "mcp" => Self::Mcp,
            _ => Self::Grpc,
        }
    }
}

/// How it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Circumstances {
    /// The mode of a job, or the one that a host is set to.
    pub(crate) mode: Option<Mode>,
    /// The sockets of a job.
    pub(crate) network: Option<NetworkAccess>,
    /// How many hosts the call is about.
    pub(crate) hosts: u32,
    /// What the call comes through.
    pub(crate) source: Source,
    /// A person at the caller's client has confirmed it.
    pub(crate) confirmed: bool,
    /// How many others have approved it.
    pub(crate) approvals: u32,
    /// The job is the caller's own, or of an ai that it owns.
    pub(crate) own: bool,
    /// A grant stands in for a permit that is missing.
    pub(crate) granted: bool,
}

impl Default for Circumstances {
    fn default() -> Self {
        Self {
            mode: None,
            network: None,
            hosts: 1,
            source: Source::Grpc,
            confirmed: false,
            approvals: 0,
            own: false,
            granted: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_that_follow_are_there_once() {
        let who = |roles: &[&str]| Who {
            principal: "operator/ada".into(),
            owner: "".into(),
            roles: roles.iter().map(|role| (*role).into()).collect(),
        };
        assert_eq!(who(&["admin"]).all_roles(), ["admin", "operator", "viewer"]);
        assert_eq!(
            who(&["viewer", "operator"]).all_roles(),
            ["viewer", "operator"]
        );
        assert_eq!(who(&["ai", "dba"]).all_roles(), ["ai", "dba"]);
        assert_eq!((who(&[]).kind(), who(&[]).name()), ("operator", "ada"));
    }
}
