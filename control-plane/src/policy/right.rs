//! What somebody may have to be allowed to do. Policies write a right where Cedar says action.

use crate::model::Kind;

/// The right to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Right {
    HostRead,
    HostUpdate,
    HostInstruct,
    HostLock,
    HostRemove,
    HostMode,
    /// To create jobs of this kind.
    Run(Kind),
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
    /// Those that are about no kind of action, with their names.
    const PLAIN: [(Self, &'static str); 23] = [
        (Self::HostRead, "host.read"),
        (Self::HostUpdate, "host.update"),
        (Self::HostInstruct, "host.instruct"),
        (Self::HostLock, "host.lock"),
        (Self::HostRemove, "host.remove"),
        (Self::HostMode, "host.mode"),
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

    /// Every right with its name.
    pub(crate) fn all() -> impl Iterator<Item = (Self, &'static str)> {
        let of_kinds = Kind::ALL.into_iter();
        of_kinds
            .map(|kind| (Self::Run(kind), kind.right()))
            .chain(Self::PLAIN)
    }

    /// As policies write it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Run(kind) => kind.right(),
            plain => {
                let mut all = Self::PLAIN.into_iter();
                all.find(|(right, _)| *right == plain)
                    .map_or("", |(_, name)| name)
            }
        }
    }

    /// The right of that name. "job.create" is that to run commands, as it was when jobs did nothing else.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut plain = Self::PLAIN.into_iter();
        Kind::of_right(text).map(Self::Run).or_else(|| {
            plain
                .find(|(_, name)| *name == text)
                .map(|(right, _)| right)
        })
    }

    /// The kind of the jobs that it is to create.
    pub(crate) fn kind(self) -> Option<Kind> {
        match self {
            Self::Run(kind) => Some(kind),
            _ => None,
        }
    }

    /// Whether a grant may be for it: work on hosts, and nothing that widens anybody's rights.
    pub(crate) fn is_grantable(self) -> bool {
        matches!(self, Self::Run(_) | Self::JobInput | Self::JobCancel)
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
        for (right, name) in Right::all() {
            assert_eq!(right.text(), name);
            assert_eq!(Right::from_text(name), Some(right));
            assert_eq!(right.kind().is_some(), Kind::of_right(name).is_some());
        }
        assert_eq!(Right::from_text("job.destroy"), None);
        let commands = Some(Right::Run(Kind::Command));
        assert_eq!(Right::from_text("job.create"), commands);
    }

    #[test]
    fn a_right_is_about_hosts_if_it_is_about_work_or_a_host() {
        for (right, name) in Right::all() {
            let about_hosts = right.kind().is_some()
                || ["host.", "job."].iter().any(|word| name.starts_with(word));
            let about_hosts = about_hosts && name != "job.release";
            assert_eq!(right.is_about_hosts(), about_hosts, "{name}");
        }
    }
}
