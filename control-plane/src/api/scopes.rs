//! How far a token has to reach for each method. What is not named here needs `admin`.

use crate::access::Scope::{self, Admin, FleetRead, FleetWrite, JobsRead, JobsRun};

/// Any token may say or learn who it is.
const NONE: &[Scope] = &[];

/// The scopes of which each method, as "package.Service/Method", needs one; `NONE` where it needs none. Where several are
/// enough, the door asks for the one that the kind of action needs.
const SCOPES: &[(&str, &[Scope])] = &[
    (
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        NONE,
    ),
    (
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        NONE,
    ),
    ("muster.v1.AccessService/ExplainAccess", &[FleetRead]),
    ("muster.v1.AccessService/GetApproval", &[JobsRead]),
    ("muster.v1.AccessService/GetAuthorities", NONE),
    ("muster.v1.AccessService/GetCaller", NONE),
    ("muster.v1.AccessService/GetPolicy", &[FleetRead]),
    ("muster.v1.AccessService/ListApprovals", &[JobsRead]),
    ("muster.v1.AccessService/ListGrants", &[JobsRead]),
    ("muster.v1.AccessService/ListPolicyVersions", &[FleetRead]),
    ("muster.v1.AccessService/RequestGrant", &[JobsRun]),
    ("muster.v1.AccessService/RevokeGrant", &[JobsRun]),
    ("muster.v1.HostService/GetHost", &[FleetRead]),
    ("muster.v1.HostService/ListHosts", &[FleetRead]),
    ("muster.v1.HostService/ListInstructions", &[FleetRead]),
    ("muster.v1.HostService/SetInstruction", &[FleetWrite]),
    ("muster.v1.HostService/UpdateHost", &[FleetWrite]),
    ("muster.v1.HostService/WatchHosts", &[FleetRead]),
    ("muster.v1.JobService/AttachTask", &[JobsRun]),
    ("muster.v1.JobService/CancelJob", Scope::TO_RUN),
    ("muster.v1.JobService/CreateJob", Scope::TO_RUN),
    ("muster.v1.JobService/GetJob", &[JobsRead]),
    ("muster.v1.JobService/ListJobs", &[JobsRead]),
    ("muster.v1.JobService/ListTasks", &[JobsRead]),
    ("muster.v1.JobService/ReadOutput", &[JobsRead]),
    ("muster.v1.JobService/RunJob", Scope::TO_RUN),
    ("muster.v1.JobService/SendInput", &[JobsRun]),
    ("muster.v1.JobService/WatchJob", &[JobsRead]),
];

/// The scopes of which a method needs one, by the path of its request; empty where it needs none.
pub(super) fn of(path: &str) -> &'static [Scope] {
    let method = path.trim_start_matches('/');
    SCOPES
        .binary_search_by_key(&method, |(name, _)| name)
        .map_or(&[Admin], |found| SCOPES[found].1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::rules::{self, tests::methods},
        model::PrincipalKind,
    };

    #[test]
    fn the_list_is_searched_by_halves_and_names_what_there_is() {
        assert!(SCOPES.is_sorted_by_key(|(name, _)| name));
        let methods = methods();
        for (name, _) in SCOPES {
            assert!(methods.contains(*name), "{name}");
        }
    }

    /// Whatever an ai may not call is no matter of a narrow token either.
    #[test]
    fn what_only_operators_may_needs_admin() {
        for method in methods() {
            let path = format!("/{method}");
            let (rule, _) = rules::of(&path).unwrap();
            if rule != rules::Rule::Anyone && !rule.allows(PrincipalKind::Ai) {
                assert_eq!(of(&path), [Admin], "{method}");
            }
        }
        assert_eq!(of("/muster.v1.HostService/Nothing"), [Admin]);
    }
}
