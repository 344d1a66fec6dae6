use std::{collections::BTreeMap, sync::Arc};

use cedar_policy::{
    Authorizer, Context, Decision as Answer, Entities, Entity, PolicySet, Request,
    RestrictedExpression,
};
use proptest::prelude::*;

use crate::{
    model::{Kind, Mode},
    policy::{
        Circumstances, Hour, Judge, Judgement, Resource, Right, Traits, TraitsKept, Verdict, Who,
        entities::Type, set::Set,
    },
};

/// What was shipped when every job ran a command.
const BEFORE: [(&str, &str); 4] = [
    ("admin.cedar", include_str!("before/admin.cedar")),
    ("ai.cedar", include_str!("before/ai.cedar")),
    ("operator.cedar", include_str!("before/operator.cedar")),
    ("viewer.cedar", include_str!("before/viewer.cedar")),
];

const MODES: [Mode; 3] = [Mode::ReadOnly, Mode::Edit, Mode::Unrestricted];

fn judge(text: &str) -> Judge {
    let files = [("a.cedar".to_owned(), text.to_owned())];
    Judge::new(
        Set::read(files.into()).unwrap_or_else(|error| panic!("{error}\n{text}")),
        1,
    )
}

fn before() -> String {
    BEFORE.map(|(_, text)| text).concat()
}

fn who(role: &str) -> Who {
    Who {
        principal: "automation/w".into(),
        owner: "".into(),
        roles: [role.into()].into(),
    }
}

fn host(env: &str) -> Arc<Traits> {
    TraitsKept::default().of(&BTreeMap::from([("env".to_owned(), env.to_owned())]), None)
}

fn ask(judge: &Judge, role: &str, kind: Kind, env: &str, how: Circumstances) -> Arc<Judgement> {
    let traits = host(env);
    let about = Resource::Host("h-1", &traits);
    judge.judge(&who(role), Right::Run(kind), about, how, Hour::default())
}

fn in_mode(mode: Mode) -> Circumstances {
    Circumstances {
        mode: Some(mode),
        ..Circumstances::default()
    }
}

/// What a policy says of a job, or of reading a file, on a host of production in the mode edit.
fn says(text: &str, kind: Kind) -> Verdict {
    ask(&judge(text), "ai", kind, "prod", in_mode(Mode::Edit))
        .verdict
        .clone()
}

/// Puts a question to the engine itself, as it was put before there were kinds: whether it is permitted, and the texts
/// that have a say.
fn plainly(
    texts: &[String],
    action: &str,
    role: &str,
    env: &str,
    how: Circumstances,
) -> (bool, Vec<usize>) {
    let policies = texts.iter().enumerate().map(|(place, text)| {
        let id = cedar_policy::PolicyId::new(place.to_string());
        cedar_policy::Policy::parse(Some(id), text).unwrap()
    });
    let policies = PolicySet::from_policies(policies).unwrap();
    let asker = Type::Principal.uid("automation/w");
    let host = Type::Host.uid("");
    let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let entities = [
        Entity::new(asker.clone(), [].into(), [Type::Role.uid(role)].into()).unwrap(),
        Entity::new_with_tags(
            host.clone(),
            [],
            [Type::Fleet.uid("all")],
            [("env".to_owned(), text(env))],
        )
        .unwrap(),
    ];
    let mode = how.mode.map_or("", Mode::text);
    let context = Context::from_pairs([
        ("mode".to_owned(), text(mode)),
        (
            "hosts".to_owned(),
            RestrictedExpression::new_long(how.hosts.into()),
        ),
    ]);
    let request = Request::new(
        asker,
        Type::Action.uid(action),
        host,
        context.unwrap(),
        None,
    );
    let entities = Entities::from_entities(entities, None).unwrap();
    let answer = Authorizer::new().is_authorized(&request.unwrap(), &policies, &entities);
    let reasons = answer.diagnostics().reason();
    let places = reasons.map(|id| id.to_string().parse().unwrap()).collect();
    (answer.decision() == Answer::Allow, places)
}

/// Heads and conditions, whether commands may run by them, and whether files may be read. `J` is "job.create", `C` and `R`
/// are the rights of the two kinds, and `L` is another one.
const PERMITS: [(&str, &str, bool, bool); 15] = [
    ("action == J", "", true, false),
    ("action in J", "", true, false),
    ("action in [J, L]", "", true, false),
    ("action in [J, R]", "", true, true),
    ("action == C", "", true, false),
    ("action == R", "", false, true),
    ("action in [C, R]", "", true, true),
    ("action", "", true, true),
    ("action", "when { action == J }", true, false),
    ("action", "when { [J, L].contains(action) }", true, false),
    ("action", "when { action == R || action == J }", true, true),
    ("action", "when { action != J }", false, false),
    ("action", "unless { action == J }", false, false),
    ("action in [J, R]", "unless { action == J }", false, false),
    (
        "action",
        "when { context.action == \"file_read\" }",
        false,
        true,
    ),
];

/// Likewise, where everything is permitted, whether commands and reads are forbidden by them.
const FORBIDS: [(&str, &str, bool, bool); 13] = [
    ("action == J", "", true, true),
    ("action in J", "", true, true),
    ("action in [J, L]", "", true, true),
    ("action == L", "", false, false),
    ("action == C", "", true, false),
    ("action == R", "", false, true),
    ("action", "when { action == J }", true, true),
    ("action", "when { [J, L].contains(action) }", true, true),
    ("action", "when { action != J }", false, true),
    ("action", "unless { action == J }", false, true),
    ("action", "unless { action in [J, R] }", false, false),
    (
        "action in [J, R]",
        "unless { context.mode == \"edit\" } when { action == J }",
        false,
        false,
    ),
    (
        "action in [J, R]",
        "when { action == J } unless { context.mode == \"read-only\" }",
        true,
        true,
    ),
];

/// A policy with the names of rights for their letters.
fn spelled(effect: &str, head: &str, condition: &str) -> String {
    let names = [
        ('J', "job.create"),
        ('C', "command.run"),
        ('R', "file.read"),
        ('L', "host.lock"),
    ];
    let letter = |c: char| names.iter().find(|(letter, _)| *letter == c);
    let spell = |text: &str| -> String {
        let letters = text.chars().map(|c| match letter(c) {
            Some((_, name)) => format!("Muster::Action::\"{name}\""),
            None => c.to_string(),
        });
        letters.collect()
    };
    format!(
        "{effect}(principal, {}, resource) {};",
        spell(head),
        spell(condition)
    )
}

#[test]
fn what_permits_job_create_permits_commands_alone() {
    for (head, condition, command, read) in PERMITS {
        let plain = spelled("permit", head, condition);
        let asks = format!("@needs(\"confirmation\") {plain}");
        for (kind, permitted) in [(Kind::Command, command), (Kind::FileRead, read)] {
            let (is, needs) = match permitted {
                true => (Verdict::Allow, Verdict::NeedsConfirmation),
                false => (Verdict::Deny, Verdict::Deny),
            };
            assert_eq!(says(&plain, kind), is, "{kind:?}: {plain}");
            assert_eq!(says(&asks, kind), needs, "{kind:?}: {asks}");
        }
    }
}

#[test]
fn what_forbids_job_create_or_holds_it_back_does_so_for_every_kind() {
    for (head, condition, command, read) in FORBIDS {
        let forbid = spelled("forbid", head, condition);
        let plain = format!("permit(principal, action, resource);\n{forbid}");
        let asks =
            format!("permit(principal, action, resource);\n@needs(\"confirmation\") {forbid}");
        for (kind, forbidden) in [(Kind::Command, command), (Kind::FileRead, read)] {
            let (is, needs) = match forbidden {
                true => (Verdict::Deny, Verdict::NeedsConfirmation),
                false => (Verdict::Allow, Verdict::Allow),
            };
            assert_eq!(says(&plain, kind), is, "{kind:?}: {plain}");
            assert_eq!(says(&asks, kind), needs, "{kind:?}: {asks}");
        }
    }
}

#[test]
fn what_was_shipped_before_permits_the_commands_that_it_did_and_no_more() {
    let (old, new) = (judge(&before()), Judge::new(Set::shipped(), 0));
    assert_eq!(old.set.rules().len(), 9, "the whole set is here");
    for role in ["viewer", "operator", "admin", "ai", "guest"] {
        for mode in MODES {
            let of = |judge, kind| {
                ask(judge, role, kind, "prod", in_mode(mode))
                    .verdict
                    .clone()
            };
            let commands = of(&old, Kind::Command);
            let permitted = match role {
                "operator" | "admin" => true,
                "ai" => mode != Mode::Unrestricted,
                _ => false,
            };
            assert_eq!(commands == Verdict::Allow, permitted, "{role} {mode}");
            assert_eq!(of(&new, Kind::Command), commands, "{role} {mode}");
            // Who may run any command may read by it; so what is shipped now says it.
            assert_eq!(of(&new, Kind::FileRead), commands, "{role} {mode}");
            let reads = of(&old, Kind::FileRead) == Verdict::Allow;
            assert_eq!(reads, role == "admin", "{role} {mode}");
        }
    }
}

#[test]
fn what_holds_a_command_back_holds_a_read_back_and_is_lifted_alike() {
    let guarded = judge(
        "permit(principal, action, resource);\n\
         @id(\"two\") @needs(\"approval\") @count(\"2\") @approvers(\"dba\")\n\
         forbid(principal, action == Muster::Action::\"job.create\", resource)\n\
         when { resource.hasTag(\"env\") && resource.getTag(\"env\") == \"prod\" };",
    );
    let two = Verdict::NeedsApproval {
        count: 2,
        from: "dba".into(),
    };
    for kind in Kind::ALL {
        let how = in_mode(Mode::ReadOnly);
        let held = ask(&guarded, "ai", kind, "prod", how);
        assert_eq!((&held.verdict, &*held.rules[0]), (&two, "two"), "{kind:?}");
        assert_eq!(
            ask(&guarded, "ai", kind, "dev", how).verdict,
            Verdict::Allow
        );
        let approved = Circumstances {
            approvals: 2,
            ..how
        };
        assert_eq!(
            ask(&guarded, "ai", kind, "prod", approved).verdict,
            Verdict::Allow
        );
    }
}

/// A condition of an old policy.
fn condition() -> impl Strategy<Value = String> {
    let name = |name: &str| format!("Muster::Action::\"{name}\"");
    let leaf = prop::sample::select(vec![
        format!("action == {}", name("job.create")),
        format!("action != {}", name("job.create")),
        format!("{} == action", name("job.create")),
        format!("action == {}", name("host.read")),
        format!("action in [{}, {}]", name("job.create"), name("host.read")),
        format!(
            "[{}, {}].contains(action)",
            name("job.input"),
            name("job.create")
        ),
        "context.mode == \"edit\"".to_owned(),
        "context.hosts > 2".to_owned(),
        "resource.hasTag(\"env\") && resource.getTag(\"env\") == \"prod\"".to_owned(),
    ]);
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("(({a}) && ({b}))")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("(({a}) || ({b}))")),
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone(), inner)
                .prop_map(|(a, b, c)| format!("(if {a} then {b} else {c})")),
        ]
    })
}

/// A policy as somebody may have written it before there were kinds.
fn old_policy() -> impl Strategy<Value = String> {
    let name = |name: &str| format!("Muster::Action::\"{name}\"");
    let head = prop::sample::select(vec![
        "action".to_owned(),
        format!("action == {}", name("job.create")),
        format!("action in {}", name("job.create")),
        format!("action in [{}, {}]", name("job.create"), name("host.read")),
        format!("action in [{}, {}]", name("host.read"), name("job.input")),
    ]);
    let whom = prop::sample::select(vec!["principal", "principal in Muster::Role::\"ai\""]);
    let clauses = prop::collection::vec((any::<bool>(), condition()), 0..3);
    (any::<bool>(), whom, head, clauses).prop_map(|(permits, whom, head, clauses)| {
        let effect = if permits { "permit" } else { "forbid" };
        let clauses: String = clauses
            .iter()
            .map(|(when, what)| format!(" {} {{ {what} }}", if *when { "when" } else { "unless" }))
            .collect();
        format!("{effect}({whom}, {head}, resource){clauses};")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever somebody wrote: for commands it means what it meant, and for reads no more than both readings permit.
    #[test]
    fn old_policies_mean_what_they_meant(
        texts in prop::collection::vec(old_policy(), 1..6),
        role in prop::sample::select(vec!["ai", "guest"]),
        env in prop::sample::select(vec!["prod", "dev"]),
        mode in prop::sample::select(MODES.to_vec()),
        hosts in 1_u32..5,
    ) {
        let how = Circumstances { hosts, ..in_mode(mode) };
        let judge = judge(&texts.join("\n"));
        let (allowed, reasons) = plainly(&texts, "job.create", role, env, how);
        let command = ask(&judge, role, Kind::Command, env, how);
        prop_assert_eq!(command.verdict == Verdict::Allow, allowed);
        let mut said: Vec<String> = reasons.iter().map(|place| format!("a.cedar:{}", place + 1)).collect();
        said.sort();
        let rules: Vec<String> = command.rules.iter().map(ToString::to_string).collect();
        prop_assert_eq!(rules, said);

        // A permit has to hold by both readings, and one is enough to forbid.
        let holds = |text: &String| {
            let named = text.replace("job.create", "file.read");
            [&named, text].map(|text| {
                !plainly(std::slice::from_ref(text), "file.read", role, env, how).1.is_empty()
            })
        };
        let of = |effect: &str| texts.iter().filter(|text| text.starts_with(effect)).map(holds).collect::<Vec<_>>();
        let permitted = of("permit").iter().any(|[named, unnamed]| *named && *unnamed);
        let forbidden = of("forbid").iter().any(|[named, unnamed]| *named || *unnamed);
        let read = ask(&judge, role, Kind::FileRead, env, how).verdict == Verdict::Allow;
        prop_assert_eq!(read, permitted && !forbidden);
        prop_assert!(!read || allowed, "who reads may run what reads");
    }
}
