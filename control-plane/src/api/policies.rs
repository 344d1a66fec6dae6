//! Policies on the wire: shown, set, listed, explained. The RPCs are `AccessService`'s.

use std::{collections::BTreeMap, sync::Arc};

use muster_proto::v1::{
    self, ExplainAccessRequest, ExplainAccessResponse, GetPolicyRequest, GetPolicyResponse,
    ListPolicyVersionsRequest, ListPolicyVersionsResponse, Reason, SetPolicyRequest,
    SetPolicyResponse, explain_access_response::Answer,
};
use tonic::Status;

use super::{
    caller::Caller,
    page::{self, Query},
};
use crate::{
    access::default_roles,
    clock::now,
    hosts::Inventory,
    model::{Files, Principal, PrincipalKind, mode_in, mode_out},
    orders::{reach, targets},
    policy::{
        Circumstances, Hour, Judge, Judgement, Need, PolicyError, Resource, Right, Rule, SCHEMA,
        Set, Source, Target, Verdict, Who, plan, unknown_traits,
    },
    selector::Selector,
    store::StoredPolicies,
    times,
    wire::status,
};

/// Names of hosts in one answer.
const NAMED_MAX: usize = 20;

/// `GetPolicy`.
pub(super) async fn get(
    caller: &Caller,
    request: GetPolicyRequest,
) -> Result<GetPolicyResponse, Status> {
    let policy = &caller.rights.policy;
    let standing = policy.judge().version;
    let version = request.version.unwrap_or(standing);
    let no_such = || {
        status::invalid(
            "version",
            "there is none; `muster policy versions` shows those there are",
        )
    };
    let below = version.checked_add(1).ok_or_else(no_such)?;
    let stored = policy.versions(below, 1).await;
    let stored = stored.map_err(status::of)?.pop();
    let stored = stored.filter(|stored| stored.version == version);
    let policy = match stored {
        Some(stored) => message(&Set::read(stored.files.clone()), Some(&stored), version),
        None if version == 0 => message(&Ok(Set::shipped()), None, 0),
        None => return Err(no_such()),
    };
    Ok(GetPolicyResponse {
        policy: Some(policy),
        schema: SCHEMA.to_owned(),
    })
}

/// `SetPolicy`.
pub(super) async fn set(
    caller: &Caller,
    request: SetPolicyRequest,
) -> Result<SetPolicyResponse, Status> {
    let files: Files = request.files.into_iter().collect();
    if request.validate_only {
        let set = Set::read(files).map_err(status::of)?;
        return Ok(SetPolicyResponse {
            policy: Some(message(&Ok(set), None, 0)),
        });
    }
    let judge = caller
        .rights
        .policy
        .set(
            files,
            &request.etag,
            &caller.principal,
            &request.note,
            Some(&caller.who),
        )
        .await
        .map_err(status::of)?;
    tracing::info!(
        "{} set policies: version {}",
        caller.principal,
        judge.version
    );
    let get = GetPolicyRequest {
        version: Some(judge.version),
    };
    Ok(SetPolicyResponse {
        policy: self::get(caller, get).await?.policy,
    })
}

/// `ListPolicyVersions`.
pub(super) async fn versions(
    caller: &Caller,
    request: ListPolicyVersionsRequest,
) -> Result<ListPolicyVersionsResponse, Status> {
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
    Ok(ListPolicyVersionsResponse {
        policies: found
            .iter()
            .map(|stored| v1::Policy {
                files: Default::default(),
                ..about(Some(stored), stored.version)
            })
            .collect(),
        next_page_token,
    })
}

/// `ExplainAccess`.
pub(super) fn explain(
    caller: &Caller,
    inventory: &Inventory,
    request: ExplainAccessRequest,
) -> Result<ExplainAccessResponse, Status> {
    let who = asked_about(caller, &request.principal)?;
    let right = Right::from_text(&request.action).ok_or_else(|| {
        let names: Vec<&str> = Right::all().map(|(_, name)| name).collect();
        status::invalid("action", &format!("is one of {}", names.join(", ")))
    })?;
    let hosts = match request.selector.as_str() {
        "" => Vec::new(),
        text => {
            let selector = Selector::parse(text).map_err(status::of)?;
            targets::select(inventory, caller, &selector)?
        }
    };
    let candidate = if request.files.is_empty() {
        None
    } else {
        let files = request.files.clone().into_iter().collect();
        Some(Arc::new(Judge::new(
            Set::read(files).map_err(status::of)?,
            0,
        )))
    };
    let standing = caller.rights.policy.judge();
    let judge: &Judge = candidate.as_deref().unwrap_or(&standing);
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
    let hour = Hour::of(now());
    let unknown = unknown_traits();
    let mut response = ExplainAccessResponse {
        principal: who.principal.to_string(),
        roles: who.all_roles().into_iter().map(str::to_owned).collect(),
        policy_version: judge.version,
        grantors: caller
            .rights
            .grantors()
            .iter()
            .map(ToString::to_string)
            .collect(),
        suspended: caller
            .rights
            .access
            .suspended(&who.principal)
            .map(|(_, cause)| cause.to_string())
            .unwrap_or_default(),
        ..ExplainAccessResponse::default()
    };
    if let Some(kind) = right.kind() {
        let targets: Vec<Target<'_>> = if hosts.is_empty() {
            vec![Target {
                id: "",
                traits: &unknown,
                granted: false,
            }]
        } else {
            let targets = hosts.iter().map(|host| Target {
                id: &host.id_text,
                traits: &host.traits,
                granted: false,
            });
            targets.collect()
        };
        let network = request.network.as_ref().and_then(reach::network_in);
        let plan = plan(judge, &who, &targets, kind, (how.mode, network), how, hour);
        how.mode = Some(plan.mode);
        how.network = Some(plan.network);
        response.mode = mode_out(Some(plan.mode)).into();
        response.mode_at_most = mode_out(Some(plan.decision.mode_at_most)).into();
    }
    let ask = |about| judge.judge(&who, right, about, how, hour);
    response.answers = if !right.is_about_hosts() {
        vec![answer(judge, &ask(Resource::Fleet), &[])]
    } else if hosts.is_empty() {
        vec![answer(judge, &ask(Resource::Host("", &unknown)), &[])]
    } else {
        let mut answers: Vec<(Arc<Judgement>, Vec<&str>)> = Vec::new();
        for host in &hosts {
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
    };
    Ok(response)
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

/// Refused unless whoever makes a token for a principal has all of that principal's roles, or may change access:
/// nobody gets more by making tokens.
pub(super) fn may_make_token_for(caller: &Caller, principal: &Principal) -> Result<(), Status> {
    if caller.need_fleet(Right::AccessWrite).is_ok() {
        return Ok(());
    }
    let access = &caller.rights.access;
    let text: Arc<str> = principal.to_string().into();
    let theirs = if access.knows(principal) {
        access.who(&text)
    } else {
        Who {
            roles: default_roles(principal.kind)
                .into_iter()
                .map(Arc::from)
                .collect(),
            ..access.who(&text)
        }
    };
    let own = caller.who.all_roles();
    let beyond: Vec<&str> = theirs
        .all_roles()
        .into_iter()
        .filter(|role| *role != "ai" && !own.contains(role))
        .collect();
    if beyond.is_empty() {
        return Ok(());
    }
    Err(status::refuse(
        Reason::PolicyDenied,
        &format!(
            "{} may not make or revoke a token for {text}, which is {}: ask somebody who may change access",
            caller.principal,
            beyond.join(", ")
        ),
    ))
}
