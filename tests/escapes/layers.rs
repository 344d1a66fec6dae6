//! Each rule is there for something: an attempt that it holds back comes through once the rule is left out.

use super::{Try, Whom, World, can_confine, may_play_all_parts, policy, said};

/// A rule, and what it alone holds back.
struct Case {
    /// The rule.
    layer: &'static str,
    /// Other rules that hold the same back, and are left out both times.
    others: &'static str,
    mode: &'static str,
    whom: Whom,
    attempt: &'static str,
}

const fn case(layer: &'static str, others: &'static str, attempt: &'static str) -> Case {
    Case {
        layer,
        others,
        mode: "read-only",
        whom: Whom::Root,
        attempt,
    }
}

const CASES: &[Case] = &[
    // What Landlock alone sees, and what it still holds back where the mounts do not.
    case("landlock:signals", "", "kill"),
    case("landlock:signals", "", "tgkill"),
    case("landlock:signals", "", "pidfd-kill"),
    case("landlock:signals", "", "owner-of-a-pipe"),
    case("landlock:abstract", "seccomp:sockets", "abstract-socket"),
    case("landlock:read-file", "", "block-device"),
    case("landlock:ioctl-dev", "landlock:read-file", "device-ioctl"),
    case("landlock:write-file", "read-only", "open-write"),
    case("landlock:truncate", "read-only", "truncate"),
    case("landlock:make-reg", "read-only", "create"),
    case("landlock:make-dir", "read-only", "mkdir"),
    case("landlock:remove-file", "read-only", "unlink"),
    case("landlock:remove-dir", "read-only", "rmdir"),
    case("landlock:make-sym", "read-only", "symlink"),
    case("landlock:make-fifo", "read-only", "mkfifo"),
    case("landlock:make-sock", "read-only", "mksocket"),
    case("landlock:make-char", "seccomp:devices", "make-whiteout"),
    case(
        "landlock:make-block",
        "seccomp:devices,capabilities",
        "make-block-device",
    ),
    case("landlock", "capabilities", "proc-victim-cwd"),
    case("landlock", "capabilities", "proc-victim-file"),
    case("landlock", "", "dev-kmsg"),
    // Mounts.
    case("read-only", "", "chmod"),
    case("read-only", "", "utimes"),
    case("read-only", "", "setxattr"),
    case("read-only", "", "chown"),
    case("hidden", "", "read-denied"),
    case("hidden", "", "run-denied"),
    case("covered", "hidden", "read-key"),
    Case {
        mode: "edit",
        ..case("hidden", "", "unhide-denied")
    },
    Case {
        mode: "edit",
        ..case("pins", "", "move-agent-away")
    },
    Case {
        mode: "edit",
        whom: Whom::User,
        ..case("pins", "", "move-agent-away")
    },
    Case {
        whom: Whom::User,
        ..case("read-only", "", "chmod")
    },
    Case {
        whom: Whom::User,
        ..case("landlock:signals", "", "kill")
    },
    Case {
        whom: Whom::UserOfRoot,
        ..case("read-only", "", "chmod")
    },
    // Memory of others, rights, files that were left open.
    case("ipc", "", "sysv-memory"),
    case("ipc", "landlock", "message-queue"),
    case("capabilities", "", "keep-capabilities"),
    case("descriptors", "", "inherited-file"),
    // The filter, group by group.
    case("seccomp:mounting", "capabilities,landlock", "mount-tmpfs"),
    case("seccomp:mounting", "capabilities,landlock", "remount"),
    case("seccomp:namespaces", "", "unshare-user"),
    case("seccomp:namespaces", "", "clone-user"),
    case("seccomp:namespaces", "", "clone3-user"),
    case(
        "seccomp:handles",
        "capabilities,read-only,landlock",
        "handle",
    ),
    case("seccomp:tracing", "landlock,capabilities", "ptrace"),
    case("seccomp:tracing", "landlock,capabilities", "vm-write"),
    case("seccomp:tracing", "landlock,capabilities", "pidfd-getfd"),
    case("seccomp:kernel", "capabilities", "reboot"),
    case("seccomp:kernel", "", "userfaultfd"),
    case("seccomp:clock", "capabilities", "set-clock"),
    case("seccomp:names", "capabilities", "host-name"),
    case("seccomp:keys", "", "add-key"),
    case("seccomp:machine", "", "modify-ldt"),
    case("seccomp:io-uring", "", "io-uring"),
    case("seccomp:others", "capabilities", "setpriority"),
    case("seccomp:others", "capabilities", "affinity"),
    case("seccomp:others", "capabilities", "ioprio"),
    case("seccomp:personality", "", "personality"),
    case("seccomp:terminal", "", "inject-input"),
    case("seccomp:leases", "", "lease"),
    case("seccomp:devices", "landlock:make-char", "make-whiteout"),
    case("seccomp:sockets", "", "path-socket"),
    case("seccomp:sockets", "", "datagram-socket"),
    case("seccomp:sockets", "", "pair-of-datagrams"),
    case("seccomp:sockets", "", "tcp"),
    case("seccomp:sockets", "", "udp"),
    case("seccomp:sockets", "", "netlink-uevent"),
];

/// Whether the attempt came through.
fn comes_through(case: &Case, without: &str) -> (bool, String) {
    let mut world = World::new(case.whom);
    let wanted = Try {
        policy: &policy(case.mode, &world),
        flags: &[],
        without,
        argv: &["$ESCAPE", case.attempt],
    };
    let output = world.attempt(&wanted);
    let changes = world.changes();
    let through = output.status.success() || !changes.is_empty();
    (through, format!("{changes:?} {}", said(&output)))
}

#[test]
fn each_rule_holds_something_back_that_nothing_else_does() {
    if !may_play_all_parts() || !can_confine(&World::new(Whom::Root)) {
        return;
    }
    let mut wrong = Vec::new();
    for case in CASES {
        let name = format!("{} as {:?}: {}", case.layer, case.whom, case.attempt);
        let (with, seen) = comes_through(case, case.others);
        if with {
            wrong.push(format!("{name}: comes through with it: {seen}"));
        }
        let (without, seen) = comes_through(case, &format!("{},{}", case.others, case.layer));
        if !without {
            wrong.push(format!("{name}: held back without it: {seen}"));
        }
    }
    eprintln!("{} rules were left out one by one", CASES.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The kernel takes none of the other rules from a process that could get new privileges.
#[test]
fn without_no_new_privileges_nothing_starts() {
    if !may_play_all_parts() || !can_confine(&World::new(Whom::User)) {
        return;
    }
    let world = World::new(Whom::User);
    let wanted = Try {
        policy: &policy("read-only", &world),
        flags: &[],
        without: "no-new-privileges",
        argv: &["true"],
    };
    let output = world.attempt(&wanted);
    assert!(
        said(&output).contains("MODE_UNENFORCEABLE"),
        "{}",
        said(&output)
    );
}

fn listed(port: u16, world: &World) -> String {
    let mut text = policy("edit", world);
    text.push_str(&format!(
        "\n[network]\naccess = \"list\"\nallow = [\"*:{port}\"]"
    ));
    text
}

#[test]
fn a_list_of_ports_is_held_to() {
    if !may_play_all_parts() || !can_confine(&World::new(Whom::User)) {
        return;
    }
    for whom in [Whom::Root, Whom::User] {
        let mut world = World::new(whom);
        let allows = listed(world.port(), &world);
        let allows_another = listed(9, &world);
        let mut through = |policy: &str, without: &str, attempt: &str| {
            let output = world.attempt(&Try {
                policy,
                flags: &[],
                without,
                argv: &["$ESCAPE", attempt],
            });
            // Looked at in any case: what was seen once is not seen again.
            let changes = world.changes();
            output.status.success() || !changes.is_empty()
        };
        assert!(through(&allows, "", "tcp"));
        for attempt in ["tcp", "tcp-fast-open", "multipath-tcp", "udp", "listen"] {
            assert!(!through(&allows_another, "", attempt), "{attempt}");
        }
        assert!(through(&allows_another, "landlock:ports", "tcp"));
        assert!(through(&allows_another, "seccomp:ports", "listen"));
        assert!(through(&allows_another, "seccomp:sockets", "udp"));
    }
}

#[test]
fn what_names_addresses_is_refused() {
    if !may_play_all_parts() || !can_confine(&World::new(Whom::Root)) {
        return;
    }
    let world = World::new(Whom::Root);
    let mut text = policy("edit", &world);
    text.push_str("\n[network]\naccess = \"list\"\nallow = [\"10.0.0.0/8:443\"]");
    let output = world.attempt(&Try {
        policy: &text,
        flags: &[],
        without: "",
        argv: &["true"],
    });
    assert!(
        said(&output).contains("NETWORK_UNENFORCEABLE"),
        "{}",
        said(&output)
    );
}

#[test]
fn lists_of_what_may_be_read_and_run_are_held_to() {
    if !may_play_all_parts() || !can_confine(&World::new(Whom::User)) {
        return;
    }
    for whom in [Whom::Root, Whom::User] {
        let mut world = World::new(whom);
        let base = format!(
            "mode = \"edit\"\n[edit]\nroots = [\"{}\"]\n",
            world.at("root").display()
        );
        let programs = format!(
            "{base}[programs]\nallow = [\"{}\"]",
            world.at("bin/escape").display()
        );
        let paths = format!(
            "{base}[paths]\nallow = [\"/usr\", \"/lib\", \"/lib64\", \"/etc\", \"{}\"]",
            world.at("bin").display()
        );
        let mut through = |policy: &str, without: &str, attempt: &str| {
            let output = world.attempt(&Try {
                policy,
                flags: &[],
                without,
                argv: &["$ESCAPE", attempt],
            });
            // Looked at in any case: what was seen once is not seen again.
            let changes = world.changes();
            output.status.success() || !changes.is_empty()
        };
        assert!(through(&programs, "", "succeed"), "what is listed runs");
        assert!(!through(&programs, "", "run-other"));
        assert!(through(&programs, "landlock:execute", "run-other"));
        assert!(through(&paths, "", "succeed"), "what is listed can be read");
        assert!(!through(&paths, "", "list-out"));
        assert!(!through(&paths, "", "read-denied"));
        assert!(through(&paths, "landlock:read-dir", "list-out"));
        assert!(through(&paths, "landlock:read-file", "read-denied"));
    }
}
