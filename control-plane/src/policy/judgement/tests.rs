use std::collections::BTreeMap;

use super::*;
use crate::{
    model::{Kind, Mode},
    policy::traits::TraitsKept,
};

fn who(principal: &str, roles: &[&str]) -> Who {
    Who {
        principal: principal.into(),
        owner: "".into(),
        roles: roles.iter().map(|role| (*role).into()).collect(),
    }
}

fn judge(text: &str) -> Judge {
    Judge::new(
        Set::read([("a.cedar".to_owned(), text.to_owned())].into()).unwrap(),
        1,
    )
}

fn host(env: &str) -> Arc<Traits> {
    TraitsKept::default().of(&BTreeMap::from([("env".to_owned(), env.to_owned())]), None)
}

fn in_mode(mode: Mode) -> Circumstances {
    Circumstances {
        mode: Some(mode),
        ..Circumstances::default()
    }
}

fn create(judge: &Judge, who: &Who, how: Circumstances) -> Verdict {
    let traits = host("prod");
    let judged = judge.judge(
        who,
        Right::Run(Kind::Command),
        Resource::Host("h-1", &traits),
        how,
        Hour::default(),
    );
    judged.verdict.clone()
}

#[test]
fn nothing_is_allowed_that_nothing_permits() {
    let shipped = Judge::new(Set::shipped(), 0);
    let nobody = who("operator/eve", &[]);
    let empty = judge("");
    let admin = who("operator/ada", &["admin"]);
    for (right, name) in Right::all() {
        let traits = host("prod");
        let about = if right.is_about_hosts() {
            Resource::Host("h-1", &traits)
        } else {
            Resource::Fleet
        };
        let ask = |judge: &Judge, who: &Who| {
            judge
                .judge(who, right, about, Circumstances::default(), Hour::default())
                .verdict
                .clone()
        };
        assert_eq!(ask(&shipped, &nobody), Verdict::Deny, "{name}");
        assert_eq!(ask(&empty, &admin), Verdict::Deny, "{name}");
        assert_eq!(ask(&shipped, &admin), Verdict::Allow, "{name}");
    }
}

#[test]
fn what_is_shipped_lets_each_role_do_its_own() {
    let shipped = Judge::new(Set::shipped(), 0);
    let allowed = |who: &Who| -> Vec<&str> {
        let traits = host("prod");
        let about = |right: Right| {
            if right.is_about_hosts() {
                Resource::Host("h-1", &traits)
            } else {
                Resource::Fleet
            }
        };
        Right::all()
            .filter(|(right, _)| {
                let how = in_mode(Mode::Edit);
                shipped
                    .judge(who, *right, about(*right), how, Hour::default())
                    .verdict
                    == Verdict::Allow
            })
            .map(|(_, name)| name)
            .collect()
    };
    assert_eq!(
        allowed(&who("operator/v", &["viewer"])),
        ["host.read", "job.read", "policy.read", "approval.read"]
    );
    assert_eq!(
        allowed(&who("ai/claude", &["ai"])),
        [
            "command.run",
            "file.read",
            "host.read",
            "host.instruct",
            "policy.read",
            "approval.read",
            "grant.request"
        ]
    );
    let operator = allowed(&who("operator/o", &["operator"]));
    for right in [
        "access.write",
        "policy.write",
        "grant.write",
        "authority.write",
    ] {
        assert!(!operator.contains(&right), "{right} widens rights");
    }
    assert_eq!(operator.len(), 21);
}

#[test]
fn an_ai_gets_no_more_than_edit() {
    let shipped = Judge::new(Set::shipped(), 0);
    let ai = who("ai/claude", &["ai"]);
    assert_eq!(
        create(&shipped, &ai, in_mode(Mode::ReadOnly)),
        Verdict::Allow
    );
    assert_eq!(create(&shipped, &ai, in_mode(Mode::Edit)), Verdict::Allow);
    assert_eq!(
        create(&shipped, &ai, in_mode(Mode::Unrestricted)),
        Verdict::Deny
    );
    assert_eq!(
        create(&shipped, &ai, Circumstances::default()),
        Verdict::Deny
    );
}

#[test]
fn labels_and_names_decide() {
    let by_label = judge(
        "permit(principal, action == Muster::Action::\"job.create\", resource) \
         when { resource.hasTag(\"env\") && resource.getTag(\"env\") == \"dev\" };\n\
         @id(\"that-one\") permit(principal, action, resource == Muster::Host::\"h-7\");",
    );
    let ada = who("operator/ada", &["operator"]);
    let ask = |id: &str, traits: &Arc<Traits>| {
        let about = Resource::Host(id, traits);
        by_label.judge(
            &ada,
            Right::Run(Kind::Command),
            about,
            Circumstances::default(),
            Hour::default(),
        )
    };
    let (dev, prod) = (host("dev"), host("prod"));
    assert_eq!(ask("h-1", &dev).verdict, Verdict::Allow);
    assert_eq!(ask("h-1", &prod).verdict, Verdict::Deny);
    assert_eq!(&*ask("h-7", &prod).rules[0], "that-one");
    assert_eq!(
        ask("h-8", &prod).verdict,
        Verdict::Deny,
        "as before, whatever was remembered"
    );
}

#[test]
fn a_need_is_told_and_lifted_by_what_it_asks_for() {
    let guarded = judge(
        "permit(principal, action, resource);\n\
         @id(\"ask\") @needs(\"confirmation\") forbid(principal, action == Muster::Action::\"job.create\", resource);\n\
         @id(\"two\") @needs(\"approval\") @count(\"2\") @approvers(\"dba\")\n\
         forbid(principal, action == Muster::Action::\"job.create\", resource) when { context.mode == \"unrestricted\" };",
    );
    let ada = who("operator/ada", &["operator"]);
    let how = in_mode(Mode::Unrestricted);
    let two = Verdict::NeedsApproval {
        count: 2,
        from: "dba".into(),
    };
    assert_eq!(create(&guarded, &ada, how), two);
    assert_eq!(
        create(
            &guarded,
            &ada,
            Circumstances {
                approvals: 1,
                confirmed: true,
                ..how
            }
        ),
        two
    );
    let approved = Circumstances {
        approvals: 2,
        ..how
    };
    assert_eq!(create(&guarded, &ada, approved), Verdict::NeedsConfirmation);
    assert_eq!(
        create(
            &guarded,
            &ada,
            Circumstances {
                confirmed: true,
                ..approved
            }
        ),
        Verdict::Allow
    );
    assert_eq!(
        create(&guarded, &ada, in_mode(Mode::Edit)),
        Verdict::NeedsConfirmation
    );
}

#[test]
fn a_need_never_lifts_what_forbids() {
    let closed = judge(
        "@id(\"if-asked\") @needs(\"approval\") permit(principal, action, resource);\n\
         @id(\"never\") forbid(principal, action, resource) when { context.mode == \"unrestricted\" };",
    );
    let ada = who("operator/ada", &["operator"]);
    let one = Verdict::NeedsApproval {
        count: 1,
        from: "admin".into(),
    };
    assert_eq!(create(&closed, &ada, in_mode(Mode::Edit)), one);
    let approved = |mode| Circumstances {
        approvals: 9,
        confirmed: true,
        ..in_mode(mode)
    };
    assert_eq!(create(&closed, &ada, approved(Mode::Edit)), Verdict::Allow);
    assert_eq!(
        create(&closed, &ada, approved(Mode::Unrestricted)),
        Verdict::Deny
    );
}

#[test]
fn a_policy_that_forbids_and_breaks_forbids() {
    let broken = judge(
        "permit(principal, action, resource);\n\
         forbid(principal, action == Muster::Action::\"job.create\", resource) \
         when { context.hosts + 9223372036854775807 == 5 };",
    );
    assert_eq!(
        create(
            &broken,
            &who("operator/ada", &["admin"]),
            Circumstances::default()
        ),
        Verdict::Deny
    );
}

#[test]
fn the_hour_counts_where_a_policy_looks_at_it() {
    let by_day = judge(
        "permit(principal, action, resource) when { context.weekday <= 5 && context.hour >= 8 && context.hour < 18 };",
    );
    let ada = who("operator/ada", &["operator"]);
    let traits = host("prod");
    let at = |time: i64| {
        let about = Resource::Host("h-1", &traits);
        by_day
            .judge(
                &ada,
                Right::Run(Kind::Command),
                about,
                Circumstances::default(),
                Hour::of(time),
            )
            .verdict
            .clone()
    };
    // Friday the 21st of November 2025, 12:00 and 20:00; then Saturday at noon.
    let noon = 1_763_726_400_000;
    assert_eq!(at(noon), Verdict::Allow);
    assert_eq!(at(noon + 8 * 3_600_000), Verdict::Deny);
    assert_eq!(at(noon + 24 * 3_600_000), Verdict::Deny);
    assert_eq!(
        Hour::of(-1),
        Hour {
            hour: 23,
            weekday: 3
        }
    );
}

#[test]
fn only_policies_of_other_roles_are_not_asked() {
    let judge = judge(
        "permit(principal in Muster::Role::\"viewer\", action == Muster::Action::\"job.create\", resource);
         forbid(principal is Muster::Principal in Muster::Role::\"guest\", action, resource);
         forbid(principal == Muster::Principal::\"operator/eve\", action, resource);",
    );
    let may = |name: &str, roles: &[&str]| {
        create(&judge, &who(name, roles), Circumstances::default()) == Verdict::Allow
    };
    // An admin is a viewer too.
    assert!(may("operator/ada", &["admin"]) && may("operator/bob", &["viewer"]));
    assert!(!may("operator/cy", &["dba"]) && !may("operator/dan", &["viewer", "guest"]));
    assert!(!may("operator/eve", &["admin"]));
    let asked = |roles: &[&str]| {
        let slice = judge.set.slice(Right::Run(Kind::Command), roles);
        slice.plain.policies().count()
    };
    assert_eq!(
        (asked(&["dba"]), asked(&["viewer"]), asked(&["guest"])),
        (1, 2, 2)
    );
}

#[test]
fn a_grant_is_a_permit_and_lifts_nothing_that_forbids() {
    let guarded = judge(
        "permit(principal in Muster::Role::\"operator\", action, resource);\n\
         @id(\"never\") forbid(principal, action, resource) when { context.mode == \"unrestricted\" };\n\
         @needs(\"approval\") forbid(principal, action == Muster::Action::\"job.create\", resource)\n\
         when { context.mode == \"edit\" };",
    );
    let ai = who("ai/claude", &["ai"]);
    let granted = |mode| Circumstances {
        granted: true,
        ..in_mode(mode)
    };
    assert_eq!(
        create(&guarded, &ai, in_mode(Mode::ReadOnly)),
        Verdict::Deny
    );
    assert_eq!(
        create(&guarded, &ai, granted(Mode::ReadOnly)),
        Verdict::Allow
    );
    assert_eq!(
        create(&guarded, &ai, granted(Mode::Unrestricted)),
        Verdict::Deny
    );
    let one = Verdict::NeedsApproval {
        count: 1,
        from: "admin".into(),
    };
    assert_eq!(create(&guarded, &ai, granted(Mode::Edit)), one);
    let traits = host("prod");
    let about = Resource::Host("h-1", &traits);
    let judged = guarded.judge(
        &ai,
        Right::Run(Kind::Command),
        about,
        granted(Mode::ReadOnly),
        Hour::default(),
    );
    assert_eq!(judged.rules, [BY_GRANT.into()]);
}

#[test]
fn whoever_approves_for_several_policies_has_the_roles_of_all() {
    let guarded = judge(
        "permit(principal, action, resource);\n\
         @needs(\"approval\") @approvers(\"dba\") @count(\"2\") forbid(principal, action, resource);\n\
         @needs(\"approval\") @approvers(\"admin\") forbid(principal, action, resource);",
    );
    let both = Verdict::NeedsApproval {
        count: 2,
        from: "admin+dba".into(),
    };
    assert_eq!(
        create(&guarded, &who("ai/claude", &["ai"]), in_mode(Mode::Edit)),
        both
    );
}
