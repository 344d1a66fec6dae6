//! Who may call what. Whatever has no rule here is refused.

use self::Need::{Fleet, Hosts, Job, Nothing};
use crate::{
    model::PrincipalKind::{self, Ai, Automation, Gateway, Host, Operator},
    policy::Right::{
        self, AccessRead, AccessWrite, ApprovalAnswer, ApprovalRead, AuditRead, AuthorityWrite,
        EnrollWrite, GrantRequest, HostInstruct, HostLock, HostMode, HostRead, HostRemove,
        HostUpdate, JobCancel, JobInput, JobRead, JobRelease, PolicyRead, PolicyWrite, TokenRead,
        TokenWrite,
    },
};

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Anybody, without a credential too.
    Anyone,
    /// These kinds of principal.
    Kinds(&'static [PrincipalKind]),
}

/// What policy has to permit, behind the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing: it is about the caller itself, or the caller is a host or a gateway, to which policies do not speak.
    Nothing,
    /// This, to the fleet; decided before the door.
    Fleet(Right),
    /// This, to each host; decided by the door, which knows them.
    Hosts(Right),
    /// The right of whichever kind of action is asked for, to each host; decided by the door, which knows both.
    Job,
}

impl Need {
    /// Whether whoever is suspended may still call.
    pub(super) fn is_harmless(self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Fleet(action) | Self::Hosts(action) => action.is_harmless(),
            Self::Job => false,
        }
    }
}

/// Whoever may look at the fleet and run jobs.
const PEOPLE: Rule = Rule::Kinds(&[Operator, Ai, Automation]);
const OPERATORS_AND_SCRIPTS: Rule = Rule::Kinds(&[Operator, Automation]);
const OPERATOR: Rule = Rule::Kinds(&[Operator]);
/// Whoever may answer approvals, if policy says so; never an ai.
const APPROVER: Rule = OPERATORS_AND_SCRIPTS;
const ENROLLED: Rule = Rule::Kinds(&[Host, Gateway, Operator]);
const HOST: Rule = Rule::Kinds(&[Host]);
const EXCHANGER: Rule = Rule::Kinds(&[Gateway, Operator]);
const ANY_CREDENTIAL: Rule = Rule::Kinds(&PrincipalKind::ALL);

/// The rule of each method, as "package.Service/Method", and what policy has to permit.
const RULES: &[(&str, Rule, Need)] = &[
    ("grpc.health.v1.Health/Check", Rule::Anyone, Nothing),
    ("grpc.health.v1.Health/Watch", Rule::Anyone, Nothing),
    (
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        PEOPLE,
        Nothing,
    ),
    (
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        PEOPLE,
        Nothing,
    ),
    ("muster.agent.v1.AgentService/Attach", HOST, Nothing),
    ("muster.agent.v1.AgentService/Report", HOST, Nothing),
    ("muster.agent.v1.AgentService/Upload", HOST, Nothing),
    (
        "muster.v1.AccessService/AnswerApproval",
        APPROVER,
        Fleet(ApprovalAnswer),
    ),
    (
        "muster.v1.AccessService/CreatePrincipal",
        OPERATOR,
        Fleet(AccessWrite),
    ),
    (
        "muster.v1.AccessService/CreateToken",
        OPERATOR,
        Fleet(TokenWrite),
    ),
    ("muster.v1.AccessService/ExchangeToken", EXCHANGER, Nothing),
    (
        "muster.v1.AccessService/ExplainAccess",
        PEOPLE,
        Fleet(PolicyRead),
    ),
    (
        "muster.v1.AccessService/GetApproval",
        PEOPLE,
        Fleet(ApprovalRead),
    ),
    (
        "muster.v1.AccessService/GetAuthorities",
        ANY_CREDENTIAL,
        Nothing,
    ),
    ("muster.v1.AccessService/GetCaller", ANY_CREDENTIAL, Nothing),
    (
        "muster.v1.AccessService/GetPolicy",
        PEOPLE,
        Fleet(PolicyRead),
    ),
    (
        "muster.v1.AccessService/ListApprovals",
        PEOPLE,
        Fleet(ApprovalRead),
    ),
    (
        "muster.v1.AccessService/ListGrants",
        PEOPLE,
        Fleet(ApprovalRead),
    ),
    (
        "muster.v1.AccessService/ListPolicyVersions",
        PEOPLE,
        Fleet(PolicyRead),
    ),
    (
        "muster.v1.AccessService/ListPrincipals",
        OPERATOR,
        Fleet(AccessRead),
    ),
    (
        "muster.v1.AccessService/ListTokens",
        OPERATOR,
        Fleet(TokenRead),
    ),
    (
        "muster.v1.AccessService/LockPrincipal",
        OPERATOR,
        Fleet(AccessWrite),
    ),
    (
        "muster.v1.AccessService/LockToken",
        OPERATOR,
        Fleet(AccessWrite),
    ),
    (
        "muster.v1.AccessService/RequestGrant",
        PEOPLE,
        Fleet(GrantRequest),
    ),
    (
        "muster.v1.AccessService/ResumePrincipal",
        OPERATOR,
        Fleet(AccessWrite),
    ),
    (
        "muster.v1.AccessService/RevokeGrant",
        PEOPLE,
        Fleet(GrantRequest),
    ),
    (
        "muster.v1.AccessService/RevokeToken",
        OPERATOR,
        Fleet(TokenWrite),
    ),
    (
        "muster.v1.AccessService/RotateAuthority",
        OPERATOR,
        Fleet(AuthorityWrite),
    ),
    (
        "muster.v1.AccessService/SetPolicy",
        OPERATOR,
        Fleet(PolicyWrite),
    ),
    (
        "muster.v1.AccessService/UnlockPrincipal",
        OPERATOR,
        Fleet(AccessWrite),
    ),
    (
        "muster.v1.AccessService/UnlockToken",
        OPERATOR,
        Fleet(AccessWrite),
    ),
    (
        "muster.v1.AccessService/UpdatePrincipal",
        OPERATOR,
        Fleet(AccessWrite),
    ),
    (
        "muster.v1.AuditService/ExportAudit",
        OPERATOR,
        Fleet(AuditRead),
    ),
    (
        "muster.v1.AuditService/GetAuditHead",
        OPERATOR,
        Fleet(AuditRead),
    ),
    (
        "muster.v1.AuditService/ListAudit",
        OPERATOR,
        Fleet(AuditRead),
    ),
    (
        "muster.v1.EnrollmentService/CreateJoinToken",
        OPERATOR,
        Fleet(EnrollWrite),
    ),
    ("muster.v1.EnrollmentService/Enroll", Rule::Anyone, Nothing),
    (
        "muster.v1.EnrollmentService/ListJoinTokens",
        OPERATOR,
        Fleet(EnrollWrite),
    ),
    (
        "muster.v1.EnrollmentService/RenewCertificate",
        ENROLLED,
        Nothing,
    ),
    (
        "muster.v1.EnrollmentService/RevokeJoinToken",
        OPERATOR,
        Fleet(EnrollWrite),
    ),
    ("muster.v1.HostService/GetHost", PEOPLE, Hosts(HostRead)),
    ("muster.v1.HostService/ListHosts", PEOPLE, Hosts(HostRead)),
    (
        "muster.v1.HostService/ListInstructions",
        PEOPLE,
        Hosts(HostRead),
    ),
    ("muster.v1.HostService/LockHost", OPERATOR, Hosts(HostLock)),
    (
        "muster.v1.HostService/RemoveHost",
        OPERATOR,
        Hosts(HostRemove),
    ),
    (
        "muster.v1.HostService/SetHostMode",
        OPERATORS_AND_SCRIPTS,
        Hosts(HostMode),
    ),
    (
        "muster.v1.HostService/SetInstruction",
        PEOPLE,
        Hosts(HostInstruct),
    ),
    (
        "muster.v1.HostService/UnlockHost",
        OPERATOR,
        Hosts(HostLock),
    ),
    (
        "muster.v1.HostService/UpdateHost",
        PEOPLE,
        Hosts(HostUpdate),
    ),
    ("muster.v1.HostService/WatchHosts", PEOPLE, Hosts(HostRead)),
    ("muster.v1.JobService/AttachTask", PEOPLE, Hosts(JobRead)),
    ("muster.v1.JobService/CancelJob", PEOPLE, Hosts(JobCancel)),
    ("muster.v1.JobService/CreateJob", PEOPLE, Job),
    ("muster.v1.JobService/GetJob", PEOPLE, Hosts(JobRead)),
    ("muster.v1.JobService/ListJobs", PEOPLE, Hosts(JobRead)),
    ("muster.v1.JobService/ListTasks", PEOPLE, Hosts(JobRead)),
    ("muster.v1.JobService/ReadOutput", PEOPLE, Hosts(JobRead)),
    (
        "muster.v1.JobService/ReleaseJobs",
        OPERATOR,
        Fleet(JobRelease),
    ),
    ("muster.v1.JobService/RunJob", PEOPLE, Job),
    ("muster.v1.JobService/SendInput", PEOPLE, Hosts(JobInput)),
    ("muster.v1.JobService/WatchJob", PEOPLE, Hosts(JobRead)),
];

/// The rule of a method by the path of its request, "/package.Service/Method", and what policy has to permit.
pub(super) fn of(path: &str) -> Option<(Rule, Need)> {
    let method = path.strip_prefix('/')?;
    RULES
        .binary_search_by_key(&method, |(name, _, _)| name)
        .ok()
        .map(|found| (RULES[found].1, RULES[found].2))
}

/// Whether a call goes on when its caller goes away. What these services change is first in the ledger and then in
/// memory: cut off between the two, a lock would be durable and not hold, and an instruction could never be set again.
/// Calls about jobs may wait long, and see to this themselves.
pub(super) fn goes_on(path: &str) -> bool {
    [
        "/muster.v1.AccessService/",
        "/muster.v1.EnrollmentService/",
        "/muster.v1.HostService/",
    ]
    .iter()
    .any(|service| path.starts_with(service))
}

/// Whether a call is recorded when it is let through. By its name: what does not say that it only looks is taken to
/// change something. What agents do on their streams is recorded where it is taken.
pub(super) fn recorded(path: &str) -> bool {
    const LOOKS: [&str; 6] = ["Explain", "Export", "Get", "List", "Read", "Watch"];
    let Some((service, method)) = path.rsplit_once('/') else {
        return true;
    };
    match service {
        "/muster.agent.v1.AgentService" => false,
        service if service.starts_with("/grpc.") => false,
        _ => !LOOKS.iter().any(|look| method.starts_with(look)),
    }
}

/// Whether the digest of the request is taken on its way in. A stream has no one request, and of a job's request the
/// digest is taken anyway, whatever the order of its maps.
pub(super) fn has_one_request(path: &str) -> bool {
    ![
        "/muster.v1.JobService/AttachTask",
        "/muster.v1.JobService/CreateJob",
        "/muster.v1.JobService/RunJob",
    ]
    .contains(&path)
}

impl Rule {
    /// Whether this kind of principal may call.
    pub(super) fn allows(self, kind: PrincipalKind) -> bool {
        match self {
            Self::Anyone => true,
            Self::Kinds(kinds) => kinds.contains(&kind),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// Every method that the server offers.
    pub(crate) fn methods() -> BTreeSet<String> {
        [
            muster_proto::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ]
        .into_iter()
        .flat_map(|bytes| FileDescriptorSet::decode(bytes).unwrap().file)
        .flat_map(|file| {
            let package = file.package().to_owned();
            file.service.into_iter().flat_map(move |service| {
                let service_name = format!("{package}.{}", service.name());
                service
                    .method
                    .into_iter()
                    .map(move |method| format!("{service_name}/{}", method.name()))
            })
        })
        .collect()
    }

    #[test]
    fn every_method_has_a_rule_and_every_rule_a_method() {
        let ruled: BTreeSet<String> = RULES
            .iter()
            .map(|(name, _, _)| (*name).to_owned())
            .collect();
        assert_eq!(methods(), ruled);
        assert!(
            RULES.is_sorted_by_key(|(name, _, _)| name),
            "searched by halves"
        );
    }

    #[test]
    fn without_a_credential_there_is_enrolling_and_health() {
        let open: Vec<_> = RULES
            .iter()
            .filter(|(_, rule, _)| *rule == Rule::Anyone)
            .map(|(name, _, _)| *name)
            .collect();
        assert_eq!(
            open,
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
            "AccessService/AnswerApproval",
            "AccessService/CreatePrincipal",
            "AccessService/CreateToken",
            "AccessService/ListPrincipals",
            "AccessService/ListTokens",
            "AccessService/LockPrincipal",
            "AccessService/LockToken",
            "AccessService/RevokeToken",
            "AccessService/RotateAuthority",
            "AccessService/UnlockPrincipal",
            "AccessService/UnlockToken",
            "AccessService/UpdatePrincipal",
            "AuditService/ListAudit",
            "AuditService/ExportAudit",
            "EnrollmentService/CreateJoinToken",
            "EnrollmentService/RevokeJoinToken",
        ] {
            let (rule, _) = of(&format!("/muster.v1.{method}")).unwrap();
            assert!(!rule.allows(Ai), "{method}");
            assert!(rule.allows(Operator), "{method}");
        }
    }

    #[test]
    fn a_gateway_of_its_own_may_exchange_renew_and_ask_who_it_is() {
        let allowed: Vec<_> = RULES
            .iter()
            .filter(|(_, rule, _)| *rule != Rule::Anyone && rule.allows(Gateway))
            .map(|(name, _, _)| *name)
            .collect();
        assert_eq!(
            allowed,
            [
                "muster.v1.AccessService/ExchangeToken",
                "muster.v1.AccessService/GetAuthorities",
                "muster.v1.AccessService/GetCaller",
                "muster.v1.EnrollmentService/RenewCertificate",
            ]
        );
    }

    #[test]
    fn what_changes_something_is_recorded() {
        let silent: Vec<_> = RULES
            .iter()
            .map(|(name, _, _)| *name)
            .filter(|name| name.starts_with("muster.v1") && !recorded(&format!("/{name}")))
            .collect();
        assert_eq!(
            silent,
            [
                "muster.v1.AccessService/ExplainAccess",
                "muster.v1.AccessService/GetApproval",
                "muster.v1.AccessService/GetAuthorities",
                "muster.v1.AccessService/GetCaller",
                "muster.v1.AccessService/GetPolicy",
                "muster.v1.AccessService/ListApprovals",
                "muster.v1.AccessService/ListGrants",
                "muster.v1.AccessService/ListPolicyVersions",
                "muster.v1.AccessService/ListPrincipals",
                "muster.v1.AccessService/ListTokens",
                "muster.v1.AuditService/ExportAudit",
                "muster.v1.AuditService/GetAuditHead",
                "muster.v1.AuditService/ListAudit",
                "muster.v1.EnrollmentService/ListJoinTokens",
                "muster.v1.HostService/GetHost",
                "muster.v1.HostService/ListHosts",
                "muster.v1.HostService/ListInstructions",
                "muster.v1.HostService/WatchHosts",
                "muster.v1.JobService/GetJob",
                "muster.v1.JobService/ListJobs",
                "muster.v1.JobService/ListTasks",
                "muster.v1.JobService/ReadOutput",
                "muster.v1.JobService/WatchJob",
            ]
        );
    }

    #[test]
    fn whatever_people_may_call_policy_decides() {
        let undecided: Vec<_> = RULES
            .iter()
            .filter(|(_, rule, need)| {
                let for_people = [Operator, Ai, Automation]
                    .iter()
                    .any(|kind| rule.allows(*kind));
                for_people && *rule != Rule::Anyone && *need == Nothing
            })
            .map(|(name, _, _)| *name)
            .collect();
        assert_eq!(
            undecided,
            [
                "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                "muster.v1.AccessService/ExchangeToken",
                "muster.v1.AccessService/GetAuthorities",
                "muster.v1.AccessService/GetCaller",
                "muster.v1.EnrollmentService/RenewCertificate",
            ],
            "these are about the caller itself and the contract"
        );
        for (name, _, need) in RULES {
            match need {
                Nothing | Job => {}
                Fleet(action) => assert!(!action.is_about_hosts(), "{name}"),
                Hosts(action) => assert!(action.is_about_hosts(), "{name}"),
            }
        }
    }

    #[test]
    fn who_is_suspended_may_look_and_cancel() {
        let still: Vec<_> = RULES
            .iter()
            .filter(|(_, rule, need)| {
                rule.allows(Ai) && *rule != Rule::Anyone && need.is_harmless()
            })
            .map(|(name, _, _)| name.rsplit('/').next().unwrap())
            .collect();
        assert!(still.contains(&"CancelJob") && still.contains(&"GetJob"));
        for method in [
            "CreateJob",
            "RunJob",
            "SendInput",
            "SetInstruction",
            "UpdateHost",
        ] {
            assert!(!still.contains(&method), "{method}");
        }
    }

    #[test]
    fn what_has_no_rule_is_refused() {
        assert_eq!(of("/muster.v1.HostService/Nothing"), None);
        assert_eq!(of("muster.v1.HostService/GetHost"), None);
        assert_eq!(of(""), None);
    }
}
