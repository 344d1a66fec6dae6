//! Hosts as people see them.

use muster_proto::v1::{Facts, Host, Instruction, Mode};

use crate::{
    json,
    screen::{Fields, Rows, bytes, clean_lines},
    time,
};

/// One line a host.
pub(crate) fn table(hosts: &[Host]) -> String {
    let mut rows = Rows::new(&[
        "NAME", "PRESENCE", "HEARD", "MODE", "SYSTEM", "TASKS", "LABELS",
    ]);
    for host in hosts {
        rows.add([
            host.name.as_str(),
            &presence(host),
            &heard(host),
            host.mode().text(),
            &system(host.facts.as_ref()),
            &tasks(host),
            &labels(host),
        ]);
    }
    rows.render()
}

/// Everything about one host.
pub(crate) fn details(host: &Host) -> String {
    let mut fields = Fields::new();
    fields
        .add("name", &host.name)
        .add("id", &host.host_id)
        .add("presence", presence(host))
        .add("last heard", heard(host));
    if let Some(lock) = &host.lock {
        let since = time::local(lock.create_time.as_ref());
        fields.add(
            "locked",
            format!("since {since} by {}: {}", lock.author, lock.note),
        );
    }
    add_mode(&mut fields, host);
    fields.add("identity conflict", &host.identity_conflict);
    let facts = host.facts.as_ref();
    fields.add(
        "audit conflict",
        facts.map_or("", |facts| facts.audit_conflict.as_str()),
    );
    if host.owes_upload {
        fields.add(
            "history",
            "not uploaded yet since the control plane was restored",
        );
    }
    fields.add("labels", labels(host)).add("tasks", tasks(host));
    if let Some(facts) = &host.facts {
        fields
            .add("system", system(Some(facts)))
            .add("kernel", &facts.kernel)
            .add("hostname", &facts.hostname)
            .add("cpus", facts.cpus.to_string())
            .add("memory", bytes(facts.memory_bytes))
            .add("user", &facts.user)
            .add("shell", &facts.shell)
            .add("addresses", facts.addresses.join(", "))
            .add("agent", &facts.agent_version);
    }
    if let Some(offset) = time::seconds(host.clock_offset.as_ref())
        && offset.abs() >= 1.0
    {
        fields.add("clock", format!("{offset:+.1} s from the control plane's"));
    }
    fields
        .add("joined", time::local(host.create_time.as_ref()))
        .add(
            "certificate until",
            time::local(host.certificate_expire_time.as_ref()),
        );
    let mut text = fields.render();
    if let Some(instruction) = &host.instruction {
        text.push_str(&instruction_text(instruction));
    }
    text
}

/// The mode of a host, and the one that an operator lowered it to.
fn add_mode(fields: &mut Fields, host: &Host) {
    fields.add("mode", host.mode().text());
    if host.mode_limit() != Mode::Unspecified {
        let limit = host.mode_limit().text();
        let lowered = match host.mode_note.as_str() {
            "" => limit.to_owned(),
            note => format!("{limit}: {note}"),
        };
        fields.add("lowered to", lowered);
    }
}

/// The instruction of a host behind a line that says whose it is; empty if it has no text.
fn instruction_text(instruction: &Instruction) -> String {
    if instruction.text.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\ninstruction (version {} by {}, {}; etag {})\n",
        instruction.version,
        instruction.author,
        time::ago(instruction.create_time.as_ref()),
        instruction.etag,
    );
    text.push_str(&clean_lines(&instruction.text));
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Presence, and what is more important than it.
pub(crate) fn presence(host: &Host) -> String {
    if !host.identity_conflict.is_empty() {
        return "identity conflict".to_owned();
    }
    match host.lock {
        Some(_) => "locked".to_owned(),
        None => json::presence(host),
    }
}

fn heard(host: &Host) -> String {
    match time::span(host.last_heard_age.as_ref()) {
        Some(age) => format!("{} ago", time::short(age)),
        None => "never".to_owned(),
    }
}

fn system(facts: Option<&Facts>) -> String {
    let Some(facts) = facts else {
        return String::new();
    };
    [&facts.distro, &facts.distro_version, &facts.arch]
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(" ")
}

fn tasks(host: &Host) -> String {
    let part = |count: i32, what: &str| (count > 0).then(|| format!("{count} {what}"));
    [
        part(host.running_tasks, "running"),
        part(host.pending_tasks - host.held_tasks, "pending"),
        part(host.held_tasks, "held"),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<_>>()
    .join(", ")
}

fn labels(host: &Host) -> String {
    let mut labels: Vec<String> = host
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.sort_unstable();
    labels.join(" ")
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::{Instruction, Lock, host::Presence};

    use super::*;

    fn host() -> Host {
        Host {
            name: "web-1".to_owned(),
            presence: Presence::Online.into(),
            last_heard_age: time::wire(std::time::Duration::from_secs(3)),
            labels: [("role", "web"), ("env", "prod")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            facts: Some(Facts {
                distro: "debian".to_owned(),
                distro_version: "12".to_owned(),
                arch: "x86_64".to_owned(),
                hostname: "evil\u{1b}[2J".to_owned(),
                ..Facts::default()
            }),
            running_tasks: 2,
            mode: Mode::Edit.into(),
            ..Host::default()
        }
    }

    #[test]
    fn a_host_is_a_line() {
        assert_eq!(
            table(&[host()]),
            " NAME   PRESENCE  HEARD     MODE  SYSTEM            TASKS      LABELS\n web-1  online    3.0s ago  edit  debian 12 x86_64  2 running  env=prod role=web\n"
        );
    }

    #[test]
    fn details_cannot_steer_the_terminal() {
        let mut host = host();
        host.lock = Some(Lock {
            author: "operator/ada".to_owned(),
            note: "maintenance".to_owned(),
            ..Lock::default()
        });
        host.instruction = Some(Instruction {
            text: "Be careful.\nVery\u{7}.".to_owned(),
            version: 2,
            author: "operator/ada".to_owned(),
            ..Instruction::default()
        });
        let text = details(&host);
        assert!(text.contains("presence    locked"), "{text}");
        assert!(text.contains("evil\\u{1b}[2J"), "{text}");
        assert!(text.ends_with("Be careful.\nVery\\u{7}.\n"), "{text}");
    }
}
