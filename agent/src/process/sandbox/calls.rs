//! Which system calls a confined task may not make.
//!
//! What files it may write is for the mounts and Landlock to say; here is what neither of them sees. The groups have
//! names, so that a test can leave one out and see that it is missed.

use nix::libc::{self, EPERM};

use super::{
    Layers, Sockets,
    filter::{Instruction, Rule, Table, Test, UNKNOWN, compile},
};

/// Calls that only their number decides.
const REFUSED: [(&str, &[libc::c_long]); 9] = [
    (
        "mounting",
        &[
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            libc::SYS_mount_setattr,
            OPEN_TREE_ATTR,
            libc::SYS_swapon,
            libc::SYS_swapoff,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
        ],
    ),
    ("namespaces", &[libc::SYS_unshare, libc::SYS_setns]),
    (
        "handles",
        &[libc::SYS_name_to_handle_at, libc::SYS_open_by_handle_at],
    ),
    (
        "tracing",
        &[
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_process_madvise,
            libc::SYS_process_mrelease,
            libc::SYS_pidfd_getfd,
            libc::SYS_kcmp,
            libc::SYS_perf_event_open,
        ],
    ),
    (
        "kernel",
        &[
            libc::SYS_bpf,
            libc::SYS_userfaultfd,
            libc::SYS_kexec_load,
            libc::SYS_kexec_file_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_reboot,
            libc::SYS_acct,
            libc::SYS_syslog,
            libc::SYS_vhangup,
            libc::SYS_lookup_dcookie,
            libc::SYS_nfsservctl,
            libc::SYS_fanotify_init,
            libc::SYS_fanotify_mark,
        ],
    ),
    (
        "clock",
        &[
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_clock_adjtime,
            libc::SYS_adjtimex,
        ],
    ),
    ("names", &[libc::SYS_sethostname, libc::SYS_setdomainname]),
    (
        "keys",
        &[libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl],
    ),
    ("machine", MACHINE),
];

#[cfg(target_arch = "x86_64")]
const MACHINE: &[libc::c_long] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const MACHINE: &[libc::c_long] = &[];

/// Known to the kernel and not yet to the C library.
const OPEN_TREE_ATTR: libc::c_long = 467;

/// Those that a program can do without, and does once it hears that there are none.
const MISSING: [(&str, &[libc::c_long]); 2] = [
    (
        "io-uring",
        &[
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
        ],
    ),
    // Its flags lie in memory, where a filter cannot look; `clone` shows them.
    ("namespaces", &[libc::SYS_clone3]),
];

/// What makes a namespace among the flags of `clone`. That for time is none: its bit is a part of the signal.
const NEW_NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// The type of a socket without its flags.
const SOCKET_TYPE: u32 = 0xf;

/// Connects and sends at once, past `connect`.
const MSG_FASTOPEN: u32 = 0x2000_0000;

/// The filter of a task that may open these sockets.
pub(super) fn filter(sockets: Sockets, layers: &Layers) -> Vec<Instruction> {
    compile(&table(sockets, layers))
}

fn table(sockets: Sockets, layers: &Layers) -> Table {
    let mut table = Table::new();
    let mut add = |group: &str, call: libc::c_long, rule: Rule| {
        if layers.has(&format!("seccomp:{group}"))
            && let Ok(number) = u32::try_from(call)
        {
            debug_assert!(number < UNKNOWN);
            table.insert(number, rule);
        }
    };
    for (group, calls) in REFUSED {
        for call in calls {
            add(group, *call, Rule::Refuse(EPERM));
        }
    }
    for (group, calls) in MISSING {
        for call in calls {
            add(group, *call, Rule::Refuse(libc::ENOSYS));
        }
    }
    let namespaces = NEW_NAMESPACES.map(|bit| vec![Test::masked(0, bit as u32, bit.into())]);
    add(
        "namespaces",
        libc::SYS_clone,
        Rule::Unless(namespaces.into(), EPERM),
    );

    // Others are named by their id: 0 is the caller.
    let own = |argument| Rule::Only(vec![vec![Test::is(argument, 0)]], EPERM);
    for call in [
        libc::SYS_prlimit64,
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_setparam,
        libc::SYS_sched_setattr,
        libc::SYS_migrate_pages,
        libc::SYS_move_pages,
    ] {
        add("others", call, own(0));
    }
    let own_process = |process| {
        let tests = vec![Test::is(0, process), Test::is(1, 0)];
        Rule::Only(vec![tests], EPERM)
    };
    add(
        "others",
        libc::SYS_setpriority,
        own_process(libc::PRIO_PROCESS.into()),
    );
    // IOPRIO_WHO_PROCESS
    add("others", libc::SYS_ioprio_set, own_process(1));

    // What stands now, asked for and set anew.
    let personality = [0xffff_ffff, 0].map(|value| vec![Test::is(0, value)]);
    add(
        "personality",
        libc::SYS_personality,
        Rule::Only(personality.into(), EPERM),
    );
    let terminal = [libc::TIOCSTI, libc::TIOCLINUX].map(|command| {
        // The kernel reads a command as 32 bits.
        vec![Test::is(1, i64::from(command as u32))]
    });
    add(
        "terminal",
        libc::SYS_ioctl,
        Rule::Unless(terminal.into(), EPERM),
    );
    let lease = vec![vec![Test::is(1, libc::F_SETLEASE.into())]];
    add("leases", libc::SYS_fcntl, Rule::Unless(lease, EPERM));
    let devices = |argument| {
        let kinds = [libc::S_IFCHR, libc::S_IFBLK];
        let tests = kinds.map(|kind| vec![Test::masked(argument, libc::S_IFMT, kind.into())]);
        Rule::Unless(tests.into(), EPERM)
    };
    #[cfg(target_arch = "x86_64")]
    add("devices", libc::SYS_mknod, devices(1));
    add("devices", libc::SYS_mknodat, devices(2));

    // A datagram can be sent to any socket that has a path; of the other pairs, neither end reaches a third.
    let pairs = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET].map(|kind| {
        vec![
            Test::is(0, libc::AF_UNIX.into()),
            Test::masked(1, SOCKET_TYPE, kind.into()),
        ]
    });
    add(
        "sockets",
        libc::SYS_socketpair,
        Rule::Only(pairs.into(), EPERM),
    );
    add("sockets", libc::SYS_socket, socket(sockets));
    if sockets == Sockets::Ports {
        // Landlock looks at `connect` and `bind`.
        let fast = |argument| {
            let tests = vec![vec![Test::masked(
                argument,
                MSG_FASTOPEN,
                MSG_FASTOPEN.into(),
            )]];
            Rule::Unless(tests, EPERM)
        };
        add("ports", libc::SYS_sendto, fast(3));
        add("ports", libc::SYS_sendmsg, fast(2));
        add("ports", libc::SYS_sendmmsg, fast(3));
        add("ports", libc::SYS_listen, Rule::Refuse(EPERM));
    }
    table
}

/// Which sockets can be made. Never one with a path: behind it may be a program of root that does what it is told.
fn socket(sockets: Sockets) -> Rule {
    let one = |family: libc::c_int, kind: libc::c_int, protocol: libc::c_int| {
        vec![
            Test::is(0, family.into()),
            Test::masked(1, SOCKET_TYPE, kind.into()),
            Test::is(2, protocol.into()),
        ]
    };
    let mut allowed = Vec::new();
    if sockets == Sockets::None {
        return Rule::Refuse(EPERM);
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        for protocol in [0, libc::IPPROTO_TCP] {
            allowed.push(one(family, libc::SOCK_STREAM, protocol));
        }
        if sockets == Sockets::All {
            for protocol in [0, libc::IPPROTO_UDP] {
                allowed.push(one(family, libc::SOCK_DGRAM, protocol));
            }
        }
    }
    if sockets == Sockets::All {
        // Ping.
        allowed.push(one(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP));
        allowed.push(one(libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6));
        // Names are resolved by what addresses there are; to change them needs a capability.
        for kind in [libc::SOCK_RAW, libc::SOCK_DGRAM] {
            allowed.push(one(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE));
        }
    }
    Rule::Only(allowed, EPERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_can_be_left_out_and_the_others_stay() {
        let all = table(Sockets::None, &Layers::default());
        let less = table(Sockets::None, &Layers::without("seccomp:mounting"));
        let number = |call: libc::c_long| u32::try_from(call).unwrap();
        assert!(all.contains_key(&number(libc::SYS_mount)));
        assert!(!less.contains_key(&number(libc::SYS_mount)));
        assert!(less.contains_key(&number(libc::SYS_bpf)));
    }

    #[test]
    fn no_socket_has_a_path() {
        for sockets in [Sockets::None, Sockets::Ports, Sockets::All] {
            let unix = Test::is(0, libc::AF_UNIX.into());
            match socket(sockets) {
                Rule::Refuse(_) => {}
                Rule::Only(allowed, _) => {
                    assert!(!allowed.iter().any(|tests| tests.contains(&unix)))
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
