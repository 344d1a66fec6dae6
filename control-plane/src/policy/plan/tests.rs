use std::collections::BTreeMap;

use super::*;
use crate::policy::{set::Set, traits::TraitsKept};

fn who(role: &str) -> Who {
    Who {
        principal: "ai/claude".into(),
        owner: "".into(),
        roles: [role.into()].into(),
    }
}

/// A command.
fn planned(
    judge: &Judge,
    who: &Who,
    envs: &[&str],
    asked: (Option<Mode>, Option<NetworkAccess>),
) -> Plan {
    planned_kind(judge, who, Kind::Command, envs, asked)
}

fn planned_kind(
    judge: &Judge,
    who: &Who,
    kind: Kind,
    envs: &[&str],
    asked: (Option<Mode>, Option<NetworkAccess>),
) -> Plan {
    let mut kept = TraitsKept::default();
    let traits: Vec<_> = envs
        .iter()
        .map(|env| {
            kept.of(
                &BTreeMap::from([("env".to_owned(), (*env).to_owned())]),
                None,
            )
        })
        .collect();
    let targets: Vec<_> = traits
        .iter()
        .map(|traits| Target {
            id: "h-1",
            traits,
            granted: false,
        })
        .collect();
    plan(
        judge,
        who,
        &targets,
        kind,
        asked,
        Circumstances::default(),
        Hour::default(),
    )
}

fn judge(text: &str) -> Judge {
    Judge::new(
        Set::read([("a.cedar".to_owned(), text.to_owned())].into()).unwrap(),
        3,
    )
}

#[test]
fn who_asks_for_no_mode_gets_the_highest_that_is_allowed() {
    let shipped = Judge::new(Set::shipped(), 0);
    let ai = planned(&shipped, &who("ai"), &["dev"], (None, None));
    assert_eq!(
        (ai.decision.verdict, ai.mode, ai.network),
        (Verdict::Allow, Mode::Edit, NetworkAccess::All)
    );
    assert!(!ai.is_unbounded);
    let operator = planned(&shipped, &who("operator"), &["dev"], (None, None));
    assert!(operator.is_unbounded && operator.mode == Mode::Unrestricted);
}

#[test]
fn who_asks_for_too_much_hears_what_is_possible() {
    let shipped = Judge::new(Set::shipped(), 0);
    let ai = planned(
        &shipped,
        &who("ai"),
        &["dev"],
        (Some(Mode::Unrestricted), None),
    );
    assert_eq!(ai.decision.verdict, Verdict::Deny);
    assert_eq!(ai.decision.mode_at_most, Mode::Edit);
    assert_eq!(ai.denied, [0]);
    let viewer = planned(&shipped, &who("viewer"), &["dev"], (None, None));
    assert_eq!(viewer.decision.mode_at_most, Mode::Disabled);
}

#[test]
fn one_host_that_is_denied_denies_the_job_and_is_named() {
    let dev_only = judge(
        "permit(principal, action, resource) when { resource.hasTag(\"env\") && resource.getTag(\"env\") == \"dev\" };",
    );
    let some = planned(
        &dev_only,
        &who("ai"),
        &["dev", "prod", "dev", "prod"],
        (None, None),
    );
    assert_eq!(
        (some.decision.verdict, some.denied),
        (Verdict::Deny, vec![1, 3])
    );
    let all = planned(&dev_only, &who("ai"), &["dev", "dev"], (None, None));
    assert_eq!(
        (all.decision.verdict, all.decision.policy_version),
        (Verdict::Allow, 3)
    );
    assert_eq!(
        planned(&dev_only, &who("ai"), &[], (None, None))
            .decision
            .verdict,
        Verdict::Deny
    );
}

#[test]
fn the_count_of_hosts_counts() {
    let few = judge("permit(principal, action, resource) when { context.hosts <= 2 };");
    assert_eq!(
        planned(&few, &who("ai"), &["a", "b"], (None, None))
            .decision
            .verdict,
        Verdict::Allow
    );
    assert_eq!(
        planned(&few, &who("ai"), &["a", "b", "c"], (None, None))
            .decision
            .verdict,
        Verdict::Deny
    );
}

#[test]
fn a_closed_network_closes_what_did_not_say() {
    let closed = judge(
        "permit(principal, action, resource);\nforbid(principal, action, resource) when { context.network == \"all\" };",
    );
    let silent = planned(&closed, &who("ai"), &["a"], (Some(Mode::Edit), None));
    assert_eq!(
        (silent.decision.verdict, silent.network),
        (Verdict::Allow, NetworkAccess::None)
    );
    let open = planned(
        &closed,
        &who("ai"),
        &["a"],
        (None, Some(NetworkAccess::All)),
    );
    assert_eq!(open.decision.verdict, Verdict::Deny);
    assert_eq!(open.decision.network_at_most, NetworkAccess::List);
}

#[test]
fn what_may_be_without_asking_comes_before_what_needs_somebody() {
    let guarded = judge(
        "permit(principal, action, resource);\n@needs(\"approval\") \
         forbid(principal, action, resource) when { context.mode == \"unrestricted\" };",
    );
    let silent = planned(&guarded, &who("ai"), &["a"], (None, None));
    assert_eq!(
        (silent.decision.verdict, silent.mode),
        (Verdict::Allow, Mode::Edit)
    );
    let asked = planned(
        &guarded,
        &who("ai"),
        &["a"],
        (Some(Mode::Unrestricted), None),
    );
    assert!(matches!(
        asked.decision.verdict,
        Verdict::NeedsApproval { .. }
    ));
}

/// A read of a file on one host that no label tells from others.
fn read(judge: &Judge, role: &str, asked: (Option<Mode>, Option<NetworkAccess>)) -> Plan {
    planned_kind(judge, &who(role), Kind::FileRead, &["dev"], asked)
}

#[test]
fn who_reads_a_file_gets_no_further_than_that_needs() {
    let shipped = Judge::new(Set::shipped(), 0);
    for role in ["ai", "operator", "admin"] {
        let plan = read(&shipped, role, (None, None));
        assert_eq!(plan.decision.verdict, Verdict::Allow, "{role}");
        let reach = (plan.mode, plan.network, plan.is_unbounded);
        assert_eq!(
            reach,
            (Mode::ReadOnly, NetworkAccess::None, false),
            "{role}"
        );
        // What is asked for is never changed in silence; the network that it leaves open is the least.
        let edit = read(&shipped, role, (Some(Mode::Edit), None));
        assert_eq!((edit.mode, edit.network), (Mode::Edit, NetworkAccess::None));
    }
    let viewer = read(&shipped, "viewer", (None, None));
    let denied = (viewer.decision.verdict, viewer.decision.mode_at_most);
    assert_eq!(denied, (Verdict::Deny, Mode::Disabled));
    let too_much = read(&shipped, "ai", (Some(Mode::Unrestricted), None));
    let denied = (too_much.decision.verdict, too_much.decision.mode_at_most);
    assert_eq!(denied, (Verdict::Deny, Mode::Edit));
}

#[test]
fn a_read_goes_up_only_where_policy_permits_it_no_lower() {
    let in_edit = judge("permit(principal, action, resource) when { context.mode == \"edit\" };");
    let plan = read(&in_edit, "ai", (None, None));
    assert_eq!(
        (plan.decision.verdict, plan.mode, plan.network),
        (Verdict::Allow, Mode::Edit, NetworkAccess::None)
    );
    let nowhere = judge("permit(principal, action == Muster::Action::\"command.run\", resource);");
    let plan = read(&nowhere, "ai", (None, None));
    assert_eq!(
        (plan.decision.verdict, plan.mode, plan.denied),
        (Verdict::Deny, Mode::ReadOnly, vec![0])
    );
}

#[test]
fn the_same_is_meant_whether_it_is_asked_for_or_not() {
    for kind in Kind::ALL {
        let all = candidates(kind, (None, None));
        assert!(!all.is_empty(), "{kind:?}");
        for (mode, network) in &all {
            assert!(
                kind.enough().is_none_or(|enough| *mode >= enough),
                "{kind:?}"
            );
            let asked = (Some(*mode), Some(*network));
            assert_eq!(candidates(kind, asked), [(*mode, *network)], "{kind:?}");
        }
        let up = all.is_sorted_by_key(|(mode, _)| *mode);
        assert_eq!(up, kind.enough().is_some(), "{kind:?}");
    }
}
