//! The door to policies: shown, set, listed, explained.

use std::{collections::BTreeMap, sync::Arc};

use muster_proto::v1::{
    self, ExplainAccessRequest, ExplainAccessResponse, GetPolicyRequest, GetPolicyResponse,
    ListPolicyVersionsRequest, ListPolicyVersionsResponse, SetPolicyRequest, SetPolicyResponse,
    explain_access_response::Answer, policy_service_server::PolicyService,
};
use tonic::{Request, Response, Status};

use super::{
    caller::Caller,
    page::{self, Query},
};
use crate::{
    clock::now,
    hosts::{Host, Inventory},
    model::{Files, Kind, NetworkAccess, Principal, PrincipalKind, mode_in, mode_out},
    orders::{reach, targets},
    policy::{
        Circumstances, Hour, Judge, Judgement, Need, Plan, PolicyError, Resource, Right, Rule,
        SCHEMA, Set, Source, Target, Verdict, Who, plan, unknown_traits,
    },
    selector::Selector,
    store::StoredPolicies,
    times,
    wire::status,
};

/// Names of hosts in one answer.
const NAMED_MAX: usize = 20;

/// `muster.v1.PolicyService`.
pub(crate) struct PolicyDoor {
    /// The hosts.
    pub(crate) inventory: Inventory,
}

#[tonic::async_trait]
impl PolicyService for PolicyDoor {
    async fn get_policy(
        &self,
        request: Request<GetPolicyRequest>,
    ) -> Result<Response<GetPolicyResponse>, Status> {
        let caller = Caller::of(&request)?;
        let standing = caller.rights.policy.judge().version;
        let version = request.into_inner().version.unwrap_or(standing);
        Ok(Response::new(GetPolicyResponse {
            policy: Some(policy(&caller, version).await?),
            schema: SCHEMA.to_owned(),
        }))
    }

    async fn set_policy(
        &self,
        request: Request<SetPolicyRequest>,
    ) -> Result<Response<SetPolicyResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let files: Files = request.files.into_iter().collect();
        if request.validate_only {
            let set = Set::read(files).map_err(status::of)?;
            let policy = Some(message(&Ok(set), None, 0));
            return Ok(Response::new(SetPolicyResponse { policy }));
        }
        let policies = &caller.rights.policy;
        let (author, keeper) = (&caller.principal, Some(&caller.who));
        let set = policies.set(files, &request.etag, author, &request.note, keeper);
        let version = set.await.map_err(status::of)?.version;
        tracing::info!("{author} set policies: version {version}");
        let policy = Some(policy(&caller, version).await?);
        Ok(Response::new(SetPolicyResponse { policy }))
    }

    async fn list_policy_versions(
        &self,
        request: Request<ListPolicyVersionsRequest>,
    ) -> Result<Response<ListPolicyVersionsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let query = Query::new(&["ListPolicyVersions", &caller.principal]);
        let before = query
            .place(&request.page_token)?
            .and_then(|place| place.parse().ok())
            .unwrap_or(i64::MAX);
        let size = page::size(request.page_size, 20, 100)?;
        let limit = i64::try_from(size + 1).unwrap_or(i64::MAX);
        let found = caller.rights.policy.versions(before, limit).await;
        let mut found = found.map_err(status::of)?;
        let more = found.len() > size;
        found.truncate(size);
        let next_page_token = found
            .last()
            .filter(|_| more)
            .map(|last| query.token(&last.version.to_string()))
            .unwrap_or_default();
        let policies = found
            .iter()
            .map(|stored| about(Some(stored), stored.version));
        Ok(Response::new(ListPolicyVersionsResponse {
            policies: policies.collect(),
            next_page_token,
        }))
    }

    async fn explain_access(
        &self,
        request: Request<ExplainAccessRequest>,
    ) -> Result<Response<ExplainAccessResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let who = asked_about(&caller, &request.principal)?;
        let right = Right::from_text(&request.action).ok_or_else(|| {
            let names: Vec<&str> = Right::all().map(|(_, name)| name).collect();
            status::invalid("action", &format!("is one of {}", names.join(", ")))
        })?;
        let hosts = match request.selector.as_str() {
            "" => Vec::new(),
            text => {
                let selector = Selector::parse(text).map_err(status::of)?;
                targets::select(&self.inventory, &caller, &selector)?
            }
        };
        let judge = asked(&caller, &request)?;
        let mut how = Circumstances {
            hosts: u32::try_from(hosts.len().max(1)).unwrap_or(u32::MAX),
            source: if request.mcp {
                Source::Mcp
            } else {
                Source::Grpc
            },
            own: request.own,
            mode: mode_in(request.mode()),
            ..Circumstances::default()
        };
        let mut response = person(&caller, &who, judge.version);
        if let Some(kind) = right.kind() {
            let network = request.network.as_ref().and_then(reach::network_in);
            let plan = planned(&judge, &who, &hosts, kind, network, how);
            how.mode = Some(plan.mode);
            how.network = Some(plan.network);
            response.mode = mode_out(Some(plan.mode)).into();
            response.mode_at_most = mode_out(Some(plan.decision.mode_at_most)).into();
        }
        response.answers = answers(&judge, &who, right, &hosts, how);
        Ok(Response::new(response))
    }
}

/// A version of the policies, with its files.
async fn policy(caller: &Caller, version: i64) -> Result<v1::Policy, Status> {
    let no_such = || {
        status::invalid(
            "version",
            "there is none; `muster policy versions` shows those there are",
        )
    };
    let below = version.checked_add(1).ok_or_else(no_such)?;
    let stored = caller.rights.policy.versions(below, 1).await;
    let stored = stored.map_err(status::of)?.pop();
    match stored.filter(|stored| stored.version == version) {
        Some(stored) => Ok(message(
            &Set::read(stored.files.clone()),
            Some(&stored),
            version,
        )),
        None if version == 0 => Ok(message(&Ok(Set::shipped()), None, 0)),
        None => Err(no_such()),
    }
}

/// Whoever is to judge: the policies of the request if it has any, else those that stand.
fn asked(caller: &Caller, request: &ExplainAccessRequest) -> Result<Arc<Judge>, Status> {
    if request.files.is_empty() {
        return Ok(Arc::clone(&caller.rights.policy.judge()));
    }
    let files = request.files.clone().into_iter().collect();
    let set = Set::read(files).map_err(status::of)?;
    Ok(Arc::new(Judge::new(set, 0)))
}

/// An answer without its verdicts: the principal, and whoever could grant it something.
fn person(caller: &Caller, who: &Who, policy_version: i64) -> ExplainAccessResponse {
    let suspended = caller.rights.access.suspended(&who.principal);
    let grantors = caller.rights.grantors();
    ExplainAccessResponse {
        principal: who.principal.to_string(),
        roles: who.all_roles().into_iter().map(str::to_owned).collect(),
        policy_version,
        grantors: grantors.iter().map(ToString::to_string).collect(),
        suspended: suspended
            .map(|(_, cause)| cause.to_string())
            .unwrap_or_default(),
        ..ExplainAccessResponse::default()
    }
}

/// How far a job of this kind would reach on these hosts; on one without labels if there are none.
fn planned(
    judge: &Judge,
    who: &Who,
    hosts: &[Arc<Host>],
    kind: Kind,
    network: Option<NetworkAccess>,
    how: Circumstances,
) -> Plan {
    let unknown = unknown_traits();
    let target = |id, traits| Target {
        id,
        traits,
        granted: false,
    };
    let targets: Vec<Target<'_>> = match hosts {
        [] => vec![target("", &unknown)],
        hosts => {
            let targets = hosts.iter().map(|host| target(&host.id_text, &host.traits));
            targets.collect()
        }
    };
    let asked = (how.mode, network);
    plan(judge, who, &targets, kind, asked, how, Hour::of(now()))
}

/// What policy answers, hosts with the same answer together.
fn answers(
    judge: &Judge,
    who: &Who,
    right: Right,
    hosts: &[Arc<Host>],
    how: Circumstances,
) -> Vec<Answer> {
    let hour = Hour::of(now());
    let ask = |about| judge.judge(who, right, about, how, hour);
    if !right.is_about_hosts() {
        return vec![answer(judge, &ask(Resource::Fleet), &[])];
    }
    if hosts.is_empty() {
        let unknown = unknown_traits();
        return vec![answer(judge, &ask(Resource::Host("", &unknown)), &[])];
    }
    let mut answers: Vec<(Arc<Judgement>, Vec<&str>)> = Vec::new();
    for host in hosts {
        let judged = ask(Resource::Host(&host.id_text, &host.traits));
        match answers.iter_mut().find(|(other, _)| *other == judged) {
            Some((_, names)) => names.push(&host.name),
            None => answers.push((judged, vec![&host.name])),
        }
    }
    let answers = answers.iter();
    answers
        .map(|(judged, names)| answer(judge, judged, names))
        .collect()
}

/// Who is asked about: the caller, or with the right to it anybody.
fn asked_about(caller: &Caller, text: &str) -> Result<Who, Status> {
    if text.is_empty() || text == &*caller.principal {
        return Ok(caller.who.clone());
    }
    caller.need_fleet(Right::AccessRead)?;
    let principal: Principal = text
        .parse()
        .map_err(|_| status::invalid("principal", "looks like \"operator/ada\""))?;
    if matches!(principal.kind, PrincipalKind::Host | PrincipalKind::Gateway) {
        return Err(status::invalid(
            "principal",
            "policies do not speak of hosts and gateways",
        ));
    }
    if !caller.rights.access.knows(&principal) {
        return Err(status::invalid("principal", "there is none of that name"));
    }
    Ok(caller.rights.access.who(&text.into()))
}

fn answer(judge: &Judge, judged: &Judgement, names: &[&str]) -> Answer {
    Answer {
        verdict: verdict(&judged.verdict).into(),
        rules: judged
            .rules
            .iter()
            .filter_map(|id| judge.set.rule(id))
            .map(rule)
            .collect(),
        hosts: names
            .iter()
            .take(NAMED_MAX)
            .map(|name| (*name).to_owned())
            .collect(),
        host_count: i32::try_from(names.len()).unwrap_or(i32::MAX),
    }
}

fn verdict(verdict: &Verdict) -> v1::Verdict {
    match verdict {
        Verdict::Allow => v1::Verdict::Allow,
        Verdict::Deny => v1::Verdict::Deny,
        Verdict::NeedsApproval { .. } => v1::Verdict::NeedsApproval,
        Verdict::NeedsConfirmation => v1::Verdict::NeedsConfirmation,
    }
}

fn message(
    set: &Result<Set, PolicyError>,
    stored: Option<&StoredPolicies>,
    version: i64,
) -> v1::Policy {
    let files = match (stored, set) {
        (Some(stored), _) => stored.files.clone(),
        (None, Ok(set)) => set.files.clone(),
        (None, Err(_)) => BTreeMap::new(),
    };
    v1::Policy {
        files: files.into_iter().collect(),
        // An old version may not fit the schema of today; it is still shown.
        rules: set
            .as_ref()
            .map(|set| set.rules().into_iter().map(rule).collect())
            .unwrap_or_default(),
        ..about(stored, version)
    }
}

fn about(stored: Option<&StoredPolicies>, version: i64) -> v1::Policy {
    v1::Policy {
        version,
        etag: crate::policy::etag(version),
        author: stored
            .map(|stored| stored.author.clone())
            .unwrap_or_default(),
        note: stored.map(|stored| stored.note.clone()).unwrap_or_default(),
        create_time: stored.map(|stored| times::timestamp(stored.create_time)),
        ..v1::Policy::default()
    }
}

fn rule(rule: &Rule) -> v1::PolicyRule {
    let (needs, approvals, approvers) = match &rule.need {
        None => ("", 0, ""),
        Some(Need::Confirmation) => ("confirmation", 0, ""),
        Some(Need::Approval { count, from }) => ("approval", *count, &**from),
    };
    v1::PolicyRule {
        id: rule.id.to_string(),
        text: rule.text.clone(),
        file: rule.file.clone(),
        line: i32::try_from(rule.line).unwrap_or(i32::MAX),
        permits: rule.permits,
        needs: needs.to_owned(),
        approvals: i32::try_from(approvals).unwrap_or(i32::MAX),
        approvers: approvers.to_owned(),
    }
}
