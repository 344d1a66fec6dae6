use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::{FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto};

use super::*;

/// The methods of the services that are deprecated, or of the others, as "package.Service/Method".
fn described(deprecated: bool) -> BTreeSet<String> {
    let sets = [
        muster_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut names = BTreeSet::new();
    for file in sets
        .map(|bytes| FileDescriptorSet::decode(bytes).unwrap().file)
        .into_iter()
        .flatten()
    {
        let is_asked_for = |service: &&ServiceDescriptorProto| {
            let options = service.options.as_ref();
            options.is_some_and(|options| options.deprecated()) == deprecated
        };
        for service in file.service.iter().filter(is_asked_for) {
            let name = |method: &MethodDescriptorProto| {
                format!("{}.{}/{}", file.package(), service.name(), method.name())
            };
            names.extend(service.method.iter().map(name));
        }
    }
    names
}

/// Every method that is served by its own name.
pub(crate) fn methods() -> BTreeSet<String> {
    described(false)
}

/// Every method that is served by a former name.
pub(crate) fn deprecated() -> BTreeSet<String> {
    described(true)
}

/// Every line with its full name.
fn lines() -> impl Iterator<Item = (String, &'static Method)> {
    METHODS.iter().flat_map(|(service, methods)| {
        methods
            .iter()
            .map(move |method| (format!("{service}/{}", method.name), method))
    })
}

/// The names of the lines that are like this.
fn named(like: impl Fn(&Method) -> bool) -> Vec<String> {
    let found = lines().filter(|(_, method)| like(method));
    found.map(|(name, _)| name).collect()
}

#[test]
fn every_method_has_one_line_and_every_line_a_method() {
    let names = named(|_| true);
    assert_eq!(methods(), names.iter().cloned().collect());
    assert_eq!(methods().len(), names.len(), "no line stands twice");
    for name in names {
        assert!(of(&format!("/{name}")).is_some(), "{name}");
    }
}

#[test]
fn what_has_no_line_is_not_found() {
    for path in [
        "/muster.v1.HostService/Nothing",
        "/muster.v1.HostService/",
        "muster.v1.HostService/GetHost",
        "/grpc.health.v1.Health/GetHost",
        "",
    ] {
        assert!(of(path).is_none(), "{path}");
    }
}

#[test]
fn without_a_credential_there_is_enrolling_and_health() {
    assert_eq!(
        named(|method| method.rule == Anyone),
        [
            "grpc.health.v1.Health/Check",
            "grpc.health.v1.Health/Watch",
            "muster.v1.EnrollmentService/Enroll",
        ]
    );
}

#[test]
fn an_ai_locks_removes_and_creates_no_tokens() {
    for method in [
        "HostService/LockHost",
        "HostService/UnlockHost",
        "HostService/RemoveHost",
        "JobService/ReleaseJobs",
        "ApprovalService/AnswerApproval",
        "PrincipalService/CreatePrincipal",
        "TokenService/CreateToken",
        "PrincipalService/ListPrincipals",
        "TokenService/ListTokens",
        "PrincipalService/LockPrincipal",
        "TokenService/LockToken",
        "TokenService/RevokeToken",
        "AuthorityService/RotateAuthority",
        "PrincipalService/UnlockPrincipal",
        "TokenService/UnlockToken",
        "PrincipalService/UpdatePrincipal",
        "AuditService/ListAudit",
        "AuditService/ExportAudit",
        "EnrollmentService/CreateJoinToken",
        "EnrollmentService/RevokeJoinToken",
    ] {
        let rule = of(&format!("/muster.v1.{method}")).unwrap().rule;
        assert!(!rule.allows(Ai), "{method}");
        assert!(rule.allows(Operator), "{method}");
    }
}

#[test]
fn a_gateway_of_its_own_may_exchange_renew_and_ask_who_it_is() {
    assert_eq!(
        named(|method| method.rule != Anyone && method.rule.allows(Gateway)),
        [
            "muster.v1.AuthorityService/GetAuthorities",
            "muster.v1.EnrollmentService/RenewCertificate",
            "muster.v1.PrincipalService/GetCaller",
            "muster.v1.TokenService/ExchangeToken",
        ]
    );
}

/// A name that does not say that it only looks is taken to change something.
#[test]
fn what_changes_something_is_recorded() {
    const LOOKS: [&str; 6] = ["Explain", "Export", "Get", "List", "Read", "Watch"];
    for (name, method) in lines().filter(|(name, _)| name.starts_with("muster.v1.")) {
        let looks = LOOKS.iter().any(|look| method.name.starts_with(look));
        assert_eq!(method.effect.is_recorded(), !looks, "{name}");
    }
}

#[test]
fn only_calls_about_jobs_see_to_their_end_themselves() {
    for (name, method) in lines() {
        let about_jobs = name.starts_with("muster.v1.JobService/");
        assert_eq!(
            matches!(method.effect, Acts | Orders),
            method.effect.is_recorded() && about_jobs,
            "{name}"
        );
    }
}

#[test]
fn whatever_people_may_call_policy_decides() {
    let for_people = |rule: Rule| {
        let mut people = [Operator, Ai, Automation].iter();
        rule != Anyone && people.any(|kind| rule.allows(*kind))
    };
    assert_eq!(
        named(|method| for_people(method.rule) && method.need == Nothing),
        [
            "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "muster.v1.AuthorityService/GetAuthorities",
            "muster.v1.EnrollmentService/RenewCertificate",
            "muster.v1.PrincipalService/GetCaller",
            "muster.v1.TokenService/ExchangeToken",
        ],
        "these are about the caller itself and the contract"
    );
    for (name, method) in lines() {
        match method.need {
            Nothing | Job => {}
            Fleet(right) => assert!(!right.is_about_hosts(), "{name}"),
            Hosts(right) => assert!(right.is_about_hosts(), "{name}"),
        }
    }
}

/// Whatever an ai may not call is no matter of a narrow token either.
#[test]
fn what_only_operators_may_needs_admin() {
    for (name, method) in lines() {
        if !method.rule.allows(Ai) {
            assert_eq!(method.scopes, ADMIN, "{name}");
        }
    }
}

#[test]
fn who_is_suspended_may_look_and_cancel() {
    let still = named(|method| {
        method.rule != Anyone && method.rule.allows(Ai) && method.need.is_harmless()
    });
    let is_still = |method: &str| still.iter().any(|name| name.ends_with(method));
    assert!(is_still("/CancelJob") && is_still("/GetJob"));
    for method in [
        "/CreateJob",
        "/RunJob",
        "/SendInput",
        "/SetInstruction",
        "/UpdateHost",
    ] {
        assert!(!is_still(method), "{method}");
    }
}
