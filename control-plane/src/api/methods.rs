//! The one table of methods: who may call each, what it takes, and how a call is carried out. What has no line here is
//! refused.

use self::{
    Effect::{Acts, Changes, Looks, Orders},
    Need::{Fleet, Hosts, Job, Nothing},
    Rule::Anyone,
};
use crate::{
    access::Scope,
    model::PrincipalKind::{self, Ai, Automation, Gateway, Host, Operator},
    policy::Right::{
        self, AccessRead, AccessWrite, ApprovalAnswer, ApprovalRead, AuditRead, AuthorityWrite,
        EnrollWrite, GrantRequest, HostInstruct, HostLock, HostMode, HostRead, HostRemove,
        HostUpdate, JobCancel, JobInput, JobRead, JobRelease, PolicyRead, PolicyWrite, TokenRead,
        TokenWrite,
    },
};

/// A method that is served.
#[derive(Debug)]
pub(super) struct Method {
    name: &'static str,
    /// Who may call it.
    pub(super) rule: Rule,
    /// What policy has to permit, behind the rule.
    pub(super) need: Need,
    /// The scopes of which a token needs one; none are within reach of every token. Where several are enough, the door
    /// asks for the one that the kind of action needs.
    pub(super) scopes: &'static [Scope],
    /// What a call does.
    pub(super) effect: Effect,
}

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Anybody, without a credential too.
    Anyone,
    /// These kinds of principal.
    Kinds(&'static [PrincipalKind]),
}

/// What policy has to permit.
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

/// What a call does: whether it is recorded when it is let through, and whether it goes on when its caller goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing that is recorded here: it only looks, or it is a host's stream, whose news are recorded where they are
    /// taken.
    Looks,
    /// It changes first the ledger and then memory. It goes on without its caller: cut off between the two, a lock would
    /// be durable and not hold, and an instruction could never be set again.
    Changes,
    /// It acts on jobs. It may wait long, and sees to its end itself.
    Acts,
    /// It acts on jobs, and the digest of its request is no matter of the bytes that come in: of an order it is taken
    /// whatever the order of its maps, and a stream has no one request.
    Orders,
}

const PEOPLE: Rule = Rule::Kinds(&[Operator, Ai, Automation]);
/// Never an ai. Whether they may answer approvals is policy's to say.
const NO_AI: Rule = Rule::Kinds(&[Operator, Automation]);
const OPERATOR: Rule = Rule::Kinds(&[Operator]);
const ENROLLED: Rule = Rule::Kinds(&[Host, Gateway, Operator]);
const HOST: Rule = Rule::Kinds(&[Host]);
const EXCHANGER: Rule = Rule::Kinds(&[Gateway, Operator]);
const CREDENTIAL: Rule = Rule::Kinds(&PrincipalKind::ALL);

const ANY: &[Scope] = &[];
const FLEET_READ: &[Scope] = &[Scope::FleetRead];
const FLEET_WRITE: &[Scope] = &[Scope::FleetWrite];
const JOBS_READ: &[Scope] = &[Scope::JobsRead];
const JOBS_RUN: &[Scope] = &[Scope::JobsRun];
const TO_RUN: &[Scope] = Scope::TO_RUN;
const ADMIN: &[Scope] = &[Scope::Admin];

/// The methods by their services. In a line: the name, who may call, what policy has to permit, how far a token has to
/// reach, what a call does.
#[rustfmt::skip] // It is read by its columns.
const METHODS: &[(&str, &[Method])] = &[
    ("grpc.health.v1.Health", &[
        method("Check",              Anyone,     Nothing,               ANY,         Looks),
        method("Watch",              Anyone,     Nothing,               ANY,         Looks),
    ]),
    ("grpc.reflection.v1.ServerReflection", &[
        method("ServerReflectionInfo", PEOPLE,     Nothing,               ANY,         Looks),
    ]),
    ("grpc.reflection.v1alpha.ServerReflection", &[
        method("ServerReflectionInfo", PEOPLE,     Nothing,               ANY,         Looks),
    ]),
    ("muster.agent.v1.AgentService", &[
        method("Attach",             HOST,       Nothing,               ADMIN,       Looks),
        method("Report",             HOST,       Nothing,               ADMIN,       Looks),
        method("Upload",             HOST,       Nothing,               ADMIN,       Looks),
    ]),
    ("muster.v1.ApprovalService", &[
        method("AnswerApproval",     NO_AI,      Fleet(ApprovalAnswer), ADMIN,       Changes),
        method("GetApproval",        PEOPLE,     Fleet(ApprovalRead),   JOBS_READ,   Looks),
        method("ListApprovals",      PEOPLE,     Fleet(ApprovalRead),   JOBS_READ,   Looks),
    ]),
    ("muster.v1.AuditService", &[
        method("ExportAudit",        OPERATOR,   Fleet(AuditRead),      ADMIN,       Looks),
        method("GetAuditHead",       OPERATOR,   Fleet(AuditRead),      ADMIN,       Looks),
        method("ListAudit",          OPERATOR,   Fleet(AuditRead),      ADMIN,       Looks),
    ]),
    ("muster.v1.AuthorityService", &[
        method("GetAuthorities",     CREDENTIAL, Nothing,               ANY,         Looks),
        method("RotateAuthority",    OPERATOR,   Fleet(AuthorityWrite), ADMIN,       Changes),
    ]),
    ("muster.v1.EnrollmentService", &[
        method("CreateJoinToken",    OPERATOR,   Fleet(EnrollWrite),    ADMIN,       Changes),
        method("Enroll",             Anyone,     Nothing,               ANY,         Changes),
        method("ListJoinTokens",     OPERATOR,   Fleet(EnrollWrite),    ADMIN,       Looks),
        method("RenewCertificate",   ENROLLED,   Nothing,               ADMIN,       Changes),
        method("RevokeJoinToken",    OPERATOR,   Fleet(EnrollWrite),    ADMIN,       Changes),
    ]),
    ("muster.v1.GrantService", &[
        method("ListGrants",         PEOPLE,     Fleet(ApprovalRead),   JOBS_READ,   Looks),
        method("RequestGrant",       PEOPLE,     Fleet(GrantRequest),   JOBS_RUN,    Changes),
        method("RevokeGrant",        PEOPLE,     Fleet(GrantRequest),   JOBS_RUN,    Changes),
    ]),
    ("muster.v1.HostService", &[
        method("GetHost",            PEOPLE,     Hosts(HostRead),       FLEET_READ,  Looks),
        method("ListHosts",          PEOPLE,     Hosts(HostRead),       FLEET_READ,  Looks),
        method("ListInstructions",   PEOPLE,     Hosts(HostRead),       FLEET_READ,  Looks),
        method("LockHost",           OPERATOR,   Hosts(HostLock),       ADMIN,       Changes),
        method("RemoveHost",         OPERATOR,   Hosts(HostRemove),     ADMIN,       Changes),
        method("SetHostMode",        NO_AI,      Hosts(HostMode),       ADMIN,       Changes),
        method("SetInstruction",     PEOPLE,     Hosts(HostInstruct),   FLEET_WRITE, Changes),
        method("UnlockHost",         OPERATOR,   Hosts(HostLock),       ADMIN,       Changes),
        method("UpdateHost",         PEOPLE,     Hosts(HostUpdate),     FLEET_WRITE, Changes),
        method("WatchHosts",         PEOPLE,     Hosts(HostRead),       FLEET_READ,  Looks),
    ]),
    ("muster.v1.JobService", &[
        method("AttachTask",         PEOPLE,     Hosts(JobRead),        JOBS_RUN,    Orders),
        method("CancelJob",          PEOPLE,     Hosts(JobCancel),      TO_RUN,      Acts),
        method("CreateJob",          PEOPLE,     Job,                   TO_RUN,      Orders),
        method("GetJob",             PEOPLE,     Hosts(JobRead),        JOBS_READ,   Looks),
        method("ListJobs",           PEOPLE,     Hosts(JobRead),        JOBS_READ,   Looks),
        method("ListTasks",          PEOPLE,     Hosts(JobRead),        JOBS_READ,   Looks),
        method("ReadOutput",         PEOPLE,     Hosts(JobRead),        JOBS_READ,   Looks),
        method("ReleaseJobs",        OPERATOR,   Fleet(JobRelease),     ADMIN,       Acts),
        method("RunJob",             PEOPLE,     Job,                   TO_RUN,      Orders),
        method("SendInput",          PEOPLE,     Hosts(JobInput),       JOBS_RUN,    Acts),
        method("WatchJob",           PEOPLE,     Hosts(JobRead),        JOBS_READ,   Looks),
    ]),
    ("muster.v1.PolicyService", &[
        method("ExplainAccess",      PEOPLE,     Fleet(PolicyRead),     FLEET_READ,  Looks),
        method("GetPolicy",          PEOPLE,     Fleet(PolicyRead),     FLEET_READ,  Looks),
        method("ListPolicyVersions", PEOPLE,     Fleet(PolicyRead),     FLEET_READ,  Looks),
        method("SetPolicy",          OPERATOR,   Fleet(PolicyWrite),    ADMIN,       Changes),
    ]),
    ("muster.v1.PrincipalService", &[
        method("CreatePrincipal",    OPERATOR,   Fleet(AccessWrite),    ADMIN,       Changes),
        method("GetCaller",          CREDENTIAL, Nothing,               ANY,         Looks),
        method("ListPrincipals",     OPERATOR,   Fleet(AccessRead),     ADMIN,       Looks),
        method("LockPrincipal",      OPERATOR,   Fleet(AccessWrite),    ADMIN,       Changes),
        method("ResumePrincipal",    OPERATOR,   Fleet(AccessWrite),    ADMIN,       Changes),
        method("UnlockPrincipal",    OPERATOR,   Fleet(AccessWrite),    ADMIN,       Changes),
        method("UpdatePrincipal",    OPERATOR,   Fleet(AccessWrite),    ADMIN,       Changes),
    ]),
    ("muster.v1.TokenService", &[
        method("CreateToken",        OPERATOR,   Fleet(TokenWrite),     ADMIN,       Changes),
        method("ExchangeToken",      EXCHANGER,  Nothing,               ADMIN,       Changes),
        method("ListTokens",         OPERATOR,   Fleet(TokenRead),      ADMIN,       Looks),
        method("LockToken",          OPERATOR,   Fleet(AccessWrite),    ADMIN,       Changes),
        method("RevokeToken",        OPERATOR,   Fleet(TokenWrite),     ADMIN,       Changes),
        method("UnlockToken",        OPERATOR,   Fleet(AccessWrite),    ADMIN,       Changes),
    ]),
];

const fn method(
    name: &'static str,
    rule: Rule,
    need: Need,
    scopes: &'static [Scope],
    effect: Effect,
) -> Method {
    Method {
        name,
        rule,
        need,
        scopes,
        effect,
    }
}

/// The method by the path of its request, "/package.Service/Method".
pub(super) fn of(path: &str) -> Option<&'static Method> {
    let (service, name) = path.strip_prefix('/')?.split_once('/')?;
    let (_, methods) = METHODS.iter().find(|(known, _)| *known == service)?;
    methods.iter().find(|method| method.name == name)
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

impl Need {
    /// Whether whoever is suspended may still call.
    pub(super) fn is_harmless(self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Fleet(right) | Self::Hosts(right) => right.is_harmless(),
            Self::Job => false,
        }
    }
}

impl Effect {
    /// Whether a call is recorded when it is let through.
    pub(super) fn is_recorded(self) -> bool {
        self != Self::Looks
    }

    /// Whether the digest of the request is taken on its way in.
    pub(super) fn is_digested(self) -> bool {
        matches!(self, Self::Changes | Self::Acts)
    }

    /// Whether a call goes on when its caller goes away.
    pub(super) fn goes_on(self) -> bool {
        self == Self::Changes
    }
}

#[cfg(test)]
pub(crate) mod tests;
