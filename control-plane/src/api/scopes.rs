//! How far a token has to reach for each method. What is not named here needs `admin`.

use crate::access::Scope::{self, FleetRead, FleetWrite, JobsRead, JobsRun};

/// The scope that each method needs, as "package.Service/Method"; `None`: any token may say or learn who it is.
const SCOPES: &[(&str, Option<Scope>)] = &[
    (
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        None,
    ),
    (
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        None,
    ),
    ("muster.v1.AccessService/ExplainAccess", Some(FleetRead)),
    ("muster.v1.AccessService/GetApproval", Some(JobsRead)),
    ("muster.v1.AccessService/GetAuthorities", None),
    ("muster.v1.AccessService/GetCaller", None),
    ("muster.v1.AccessService/GetPolicy", Some(FleetRead)),
    ("muster.v1.AccessService/ListApprovals", Some(JobsRead)),
    ("muster.v1.AccessService/ListGrants", Some(JobsRead)),
    (
        "muster.v1.AccessService/ListPolicyVersions",
        Some(FleetRead),
    ),
    ("muster.v1.AccessService/RequestGrant", Some(JobsRun)),
    ("muster.v1.AccessService/RevokeGrant", Some(JobsRun)),
    ("muster.v1.HostService/GetHost", Some(FleetRead)),
    ("muster.v1.HostService/ListHosts", Some(FleetRead)),
    ("muster.v1.HostService/ListInstructions", Some(FleetRead)),
    ("muster.v1.HostService/SetInstruction", Some(FleetWrite)),
    ("muster.v1.HostService/UpdateHost", Some(FleetWrite)),
    ("muster.v1.HostService/WatchHosts", Some(FleetRead)),
    ("muster.v1.JobService/AttachTask", Some(JobsRun)),
    ("muster.v1.JobService/CancelJob", Some(JobsRun)),
    ("muster.v1.JobService/CreateJob", Some(JobsRun)),
    ("muster.v1.JobService/GetJob", Some(JobsRead)),
    ("muster.v1.JobService/ListJobs", Some(JobsRead)),
    ("muster.v1.JobService/ListTasks", Some(JobsRead)),
    ("muster.v1.JobService/ReadOutput", Some(JobsRead)),
    ("muster.v1.JobService/RunJob", Some(JobsRun)),
    ("muster.v1.JobService/SendInput", Some(JobsRun)),
    ("muster.v1.JobService/WatchJob", Some(JobsRead)),
];

/// The scope that a method needs, by the path of its request.
pub(super) fn of(path: &str) -> Option<Scope> {
    let method = path.trim_start_matches('/');
    SCOPES
        .binary_search_by_key(&method, |(name, _)| name)
        .map_or(Some(Scope::Admin), |found| SCOPES[found].1)
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
                assert_eq!(of(&path), Some(Scope::Admin), "{method}");
            }
        }
        assert_eq!(of("/muster.v1.HostService/Nothing"), Some(Scope::Admin));
    }
}
