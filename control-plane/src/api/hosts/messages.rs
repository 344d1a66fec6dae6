//! Hosts on the wire, and facts back from it.

use muster_proto::v1;

use super::Load;
use crate::{
    hosts::{Host, Inventory, Presence},
    model::{Ceiling, Facts, Instruction, Network, mode_out},
    times::{signed_duration, timestamp},
};

/// A host as callers see it.
pub(crate) fn host_message(host: &Host, load: Load) -> v1::Host {
    let presence = match host.presence {
        Presence::Online => v1::host::Presence::Online,
        Presence::Suspect => v1::host::Presence::Suspect,
        Presence::Offline => v1::host::Presence::Offline,
    };
    v1::Host {
        host_id: host.id_text.clone(),
        name: host.name.clone(),
        labels: host.labels.clone().into_iter().collect(),
        facts: host.facts.clone().map(facts_message),
        instruction: host.current_instruction().map(instruction_message),
        presence: presence.into(),
        last_heard_time: host.pulse.heard_time().map(timestamp),
        last_heard_age: Inventory::age(host).and_then(|age| age.try_into().ok()),
        create_time: Some(timestamp(host.create_time)),
        lock: host.lock.as_ref().map(|lock| v1::Lock {
            create_time: Some(timestamp(lock.create_time)),
            author: lock.author.clone(),
            note: lock.note.clone(),
        }),
        running_tasks: load.running,
        pending_tasks: load.pending,
        held_tasks: load.held,
        owes_upload: host.pulse.owes_upload(),
        certificate_expire_time: host.certificate_expire_time.map(timestamp),
        clock_offset: Some(signed_duration(host.pulse.clock_offset())),
        identity_conflict: host.identity_conflict.clone(),
        mode: mode_out(host.mode()).into(),
        mode_limit: mode_out(host.mode_limit).into(),
        mode_note: host.mode_note.clone(),
    }
}

/// An instruction as callers see it.
pub(crate) fn instruction_message(instruction: &Instruction) -> v1::Instruction {
    v1::Instruction {
        text: instruction.text.clone(),
        version: instruction.version,
        etag: instruction.etag(),
        author: instruction.author.clone(),
        create_time: Some(timestamp(instruction.create_time)),
    }
}

fn facts_message(facts: Facts) -> v1::Facts {
    v1::Facts {
        os: facts.os,
        distro: facts.distro,
        distro_version: facts.distro_version,
        kernel: facts.kernel,
        arch: facts.arch,
        cpus: facts.cpus,
        memory_bytes: facts.memory_bytes,
        shell: facts.shell,
        agent_version: facts.agent_version,
        addresses: facts.addresses,
        hostname: facts.hostname,
        user: facts.user,
        boot_id: facts.boot_id,
        audit_conflict: facts.audit_conflict,
        ceiling: facts.ceiling.map(ceiling_message),
    }
}

fn ceiling_message(ceiling: Ceiling) -> v1::Ceiling {
    v1::Ceiling {
        mode: ceiling.mode,
        network: ceiling.network.map(|network| v1::Network {
            access: network.access,
            allow: network.allow,
        }),
        roots: ceiling.roots,
        unenforceable: ceiling
            .unenforceable
            .into_iter()
            .map(|(mode, cause)| v1::ceiling::Unenforceable { mode, cause })
            .collect(),
    }
}

/// Facts as an agent reports them. Each text is cut to what a host has reason to say: facts are kept
/// and shown, and an agent may be in the wrong hands.
pub(crate) fn facts(message: v1::Facts) -> Facts {
    const TEXT_MAX: usize = 256;
    const ADDRESSES_MAX: usize = 64;
    const PATHS_MAX: usize = 64;
    const MODES: usize = 4;
    let cut = |text: String| -> String {
        text.chars()
            .filter(|c| !c.is_control())
            .take(TEXT_MAX)
            .collect()
    };
    let cut_all = |texts: Vec<String>, most: usize| -> Vec<String> {
        texts.into_iter().take(most).map(cut).collect()
    };
    Facts {
        os: cut(message.os),
        distro: cut(message.distro),
        distro_version: cut(message.distro_version),
        kernel: cut(message.kernel),
        arch: cut(message.arch),
        cpus: message.cpus,
        memory_bytes: message.memory_bytes,
        shell: cut(message.shell),
        agent_version: cut(message.agent_version),
        addresses: cut_all(message.addresses, ADDRESSES_MAX),
        hostname: cut(message.hostname),
        user: cut(message.user),
        boot_id: cut(message.boot_id),
        ceiling: message.ceiling.map(|ceiling| Ceiling {
            mode: ceiling.mode,
            network: ceiling.network.map(|network| Network {
                access: network.access,
                allow: cut_all(network.allow, ADDRESSES_MAX),
            }),
            roots: cut_all(ceiling.roots, PATHS_MAX),
            unenforceable: ceiling
                .unenforceable
                .into_iter()
                .take(MODES)
                .map(|missing| (missing.mode, cut(missing.cause)))
                .collect(),
        }),
        audit_conflict: cut(message.audit_conflict),
    }
}
