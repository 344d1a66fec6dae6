//! What somebody may have to be allowed to do. Policies write a right where Cedar says action.

/// The right to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Right {
    HostRead,
    HostUpdate,
    HostInstruct,
    HostLock,
    HostRemove,
    HostMode,
    JobCreate,
    JobRead,
    JobCancel,
    JobInput,
    JobRelease,
    TokenRead,
    TokenWrite,
    EnrollWrite,
    AccessRead,
    AccessWrite,
    PolicyRead,
    PolicyWrite,
    ApprovalRead,
    ApprovalAnswer,
    GrantRequest,
    GrantWrite,
    AuditRead,
    AuthorityWrite,
}

impl Right {
    /// Every right with its name.
    pub(crate) const ALL: [(Self, &'static str); 24] = [
        (Self::HostRead, "host.read"),
        (Self::HostUpdate, "host.update"),
        (Self::HostInstruct, "host.instruct"),
        (Self::HostLock, "host.lock"),
        (Self::HostRemove, "host.remove"),
        (Self::HostMode, "host.mode"),
        (Self::JobCreate, "job.create"),
        (Self::JobRead, "job.read"),
        (Self::JobCancel, "job.cancel"),
        (Self::JobInput, "job.input"),
        (Self::JobRelease, "job.release"),
        (Self::TokenRead, "token.read"),
        (Self::TokenWrite, "token.write"),
        (Self::EnrollWrite, "enroll.write"),
        (Self::AccessRead, "access.read"),
        (Self::AccessWrite, "access.write"),
        (Self::PolicyRead, "policy.read"),
        (Self::PolicyWrite, "policy.write"),
        (Self::ApprovalRead, "approval.read"),
        (Self::ApprovalAnswer, "approval.answer"),
        (Self::GrantRequest, "grant.request"),
        (Self::GrantWrite, "grant.write"),
        (Self::AuditRead, "audit.read"),
        (Self::AuthorityWrite, "authority.write"),
    ];

    /// As policies write it.
    pub(crate) fn text(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The right of that name.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|(_, name)| *name == text).map(|(right, _)| right)
    }

    /// Whether it is about a host, and not about the fleet as a whole.
    pub(crate) fn is_about_hosts(self) -> bool {
        self <= Self::JobInput
    }

    /// Whether whoever is suspended may still do it: to look, and to cancel.
    pub(crate) fn is_harmless(self) -> bool {
        matches!(
            self,
            Self::HostRead
                | Self::JobRead
                | Self::JobCancel
                | Self::TokenRead
                | Self::AccessRead
                | Self::PolicyRead
                | Self::ApprovalRead
                | Self::AuditRead
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_found_by_their_names() {
        for (index, (right, name)) in Right::ALL.into_iter().enumerate() {
            assert_eq!(right as usize, index, "{name}");
            assert_eq!(Right::from_text(name), Some(right));
        }
        assert_eq!(Right::from_text("job.destroy"), None);
    }
}
