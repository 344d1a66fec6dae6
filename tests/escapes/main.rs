//! Attempts to get out of a sandbox, made as a task makes them, and looked at from outside. Each has to fail in each
//! mode, for root as for others. For each rule there is an attempt that comes through once the rule is left out.
//!
//! They need root, to play all parts; without it they say so and do nothing.
#![allow(clippy::unwrap_used)]

mod attempts;
mod files;
mod layers;
mod world;

use std::process::Output;

use attempts::{CALLS, NETWORK, SHELL};
use world::{Try, Whom, World};

/// The policy of a mode.
fn policy(mode: &str, world: &World) -> String {
    format!(
        "mode = \"{mode}\"
        [edit]
        roots = [\"{root}\"]
        [paths]
        deny = [\"{out}/denied\", \"{root}/private\"]
        [programs]
        deny = [\"{out}/denied-program\"]
        [scratch]
        mebibytes = 64",
        root = world.at("root").display(),
        out = world.at("out").display(),
    )
}

fn may_play_all_parts() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: the attempts need root");
    }
    root
}

/// Whether a task could be confined at all; a kernel that cannot is not tested here.
fn can_confine(world: &World) -> bool {
    let wanted = Try {
        policy: &policy("read-only", world),
        flags: &[],
        without: "",
        argv: &["true"],
    };
    let output = world.attempt(&wanted);
    let refused = String::from_utf8_lossy(&output.stderr).contains("MODE_UNENFORCEABLE");
    if refused {
        eprintln!("skipped: {}", said(&output));
    }
    !refused
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// Makes all attempts; returns those that came through.
fn escapes(whom: Whom, mode: &str) -> Vec<String> {
    let mut world = World::new(whom);
    let mut found = Vec::new();
    let mut count = 0;
    // The network of edit is open.
    let network = NETWORK.iter().filter(|_| mode == "read-only");
    for name in CALLS.iter().chain(network) {
        count += 1;
        let wanted = Try {
            policy: &policy(mode, &world),
            flags: &[],
            without: "",
            argv: &["$ESCAPE", name],
        };
        let output = world.attempt(&wanted);
        let changes = world.changes();
        assert!(
            !matches!(output.status.code(), Some(64 | 69 | 77)),
            "{name} was not made: {}",
            said(&output)
        );
        // Killed is held back: a call of another architecture ends the process.
        if output.status.success() || !changes.is_empty() {
            found.push(format!("{name}: {changes:?} {}", said(&output)));
            world = World::new(whom);
        }
    }
    for (name, script) in SHELL {
        count += 1;
        let wanted = Try {
            policy: &policy(mode, &world),
            flags: &[],
            without: "",
            argv: &["sh", "-c", script],
        };
        let output = world.attempt(&wanted);
        let changes = world.changes();
        if !changes.is_empty() {
            found.push(format!("{name}: {changes:?} {}", said(&output)));
            world = World::new(whom);
        }
    }
    eprintln!(
        "{count} attempts as {whom:?} in {mode}: {} came through",
        found.len()
    );
    assert!(count >= 60);
    found
}

#[track_caller]
fn none_comes_through(whom: Whom, mode: &str) {
    if !may_play_all_parts() || !can_confine(&World::new(whom)) {
        return;
    }
    let found = escapes(whom, mode);
    assert!(found.is_empty(), "{:#?}", found);
}

#[test]
fn nothing_of_root_gets_out_of_read_only() {
    none_comes_through(Whom::Root, "read-only");
}

#[test]
fn nothing_of_root_gets_out_of_edit() {
    none_comes_through(Whom::Root, "edit");
}

#[test]
fn nothing_that_root_runs_for_others_gets_out_of_read_only() {
    none_comes_through(Whom::UserOfRoot, "read-only");
}

#[test]
fn nothing_that_root_runs_for_others_gets_out_of_edit() {
    none_comes_through(Whom::UserOfRoot, "edit");
}

#[test]
fn nothing_of_a_user_gets_out_of_read_only() {
    none_comes_through(Whom::User, "read-only");
}

#[test]
fn nothing_of_a_user_gets_out_of_edit() {
    none_comes_through(Whom::User, "edit");
}

/// Attempts that would do harm to the host where nothing holds them back, or that only make sense for others than
/// root, or that most kernels know nothing of.
const NOT_UNCONFINED: [&str; 24] = [
    "remount",
    "bind",
    "mount-tmpfs",
    "umount",
    "mount-setattr",
    "pivot-root",
    "setpriority-of-all",
    "hangup",
    "become-root",
    "setuid-program",
    "new-privileges",
    "drop-filter",
    "pair-reconnected",
    "pair-of-packets",
    "unknown-call",
    "netlink-netfilter",
    "multipath-tcp",
    "dev-mem",
    "uevent-helper",
    "set-flags",
    "sysrq",
    "lease",
    "i386",
    "x32",
];

/// The attempts are real: without a sandbox they come through. What this kernel does not have at all is counted.
#[test]
fn the_attempts_come_through_where_nothing_confines() {
    if !may_play_all_parts() {
        return;
    }
    let (mut through, mut held) = (0, Vec::new());
    for name in CALLS.iter().chain(NETWORK) {
        if NOT_UNCONFINED.contains(name) {
            continue;
        }
        let mut world = World::new(Whom::Root);
        let wanted = Try {
            policy: "mode = \"unrestricted\"",
            flags: &["--mode", "unrestricted"],
            without: "",
            argv: &["$ESCAPE", name],
        };
        let output = world.attempt(&wanted);
        match output.status.success() || !world.changes().is_empty() {
            true => through += 1,
            false => held.push(format!("{name}: {}", said(&output))),
        }
    }
    for (name, script) in SHELL {
        let mut world = World::new(Whom::Root);
        let wanted = Try {
            policy: "mode = \"unrestricted\"",
            flags: &["--mode", "unrestricted"],
            without: "",
            argv: &["sh", "-c", script],
        };
        // It would remount the host's root.
        if *name == "mount" {
            continue;
        }
        let output = world.attempt(&wanted);
        match !world.changes().is_empty() {
            true => through += 1,
            false => held.push(format!("{name}: {}", said(&output))),
        }
    }
    eprintln!(
        "{through} attempts come through, {} do not: {held:#?}",
        held.len()
    );
    assert!(through >= 120, "{through} only; not: {held:#?}");
}
