//! Attempts to read what is closed, through the worker that reads files for a task.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use super::{Try, Whom, World, can_confine, may_play_all_parts, policy, said};

/// What nobody is to see.
const SECRET: &str = "nobody is to see this";

/// Reads tried while a link is set anew all the time.
const RACES: usize = 60;

/// A world in which what is denied holds the secret, and with more ways to it.
fn world(whom: Whom) -> World {
    let world = World::new(whom);
    for closed in [
        "out/denied",
        "root/private",
        "root/below/data/agent/key.pem",
    ] {
        fs::write(world.at(closed), SECRET).unwrap();
    }
    symlink("../out/denied", world.at("root/to-denied")).unwrap();
    symlink("to-denied", world.at("root/to-link")).unwrap();
    symlink("below/data/agent", world.at("root/to-agent")).unwrap();
    fs::hard_link(world.at("out/denied"), world.at("out/another-name")).unwrap();
    let all = nix::sys::stat::Mode::from_bits_truncate(0o777);
    nix::unistd::mkfifo(&world.at("out/pipe"), all).unwrap();
    world
}

/// Every way to something that is closed.
fn ways(world: &World) -> Vec<PathBuf> {
    let below =
        |prefix: &str, path: PathBuf| Path::new(prefix).join(path.strip_prefix("/").unwrap());
    let victim = world.victim();
    let mut ways: Vec<PathBuf> = [
        "out/denied",
        "out/denied-link",
        "out/../out/./denied",
        "root/private",
        "root/to-denied",
        "root/to-link",
        "root/to-agent/key.pem",
        "root/below/data/agent/key.pem",
    ]
    .iter()
    .map(|name| world.at(name))
    .collect();
    let roots = ["/proc/self/root", "/proc/1/root", "/proc/thread-self/root"].map(str::to_owned);
    for root in roots.into_iter().chain([format!("/proc/{victim}/root")]) {
        ways.push(below(&root, world.at("out/denied")));
        ways.push(below(&root, world.at("root/below/data/agent/key.pem")));
    }
    for way in [
        format!("/proc/{victim}/cwd/denied"),
        format!("/proc/{victim}/environ"),
        format!("/proc/{victim}/mem"),
        format!("/proc/{victim}/fd/9"),
        // What a careless parent has left open.
        "/proc/self/fd/9".to_owned(),
        "/dev/fd/8/denied".to_owned(),
        "/dev/mem".to_owned(),
        "/dev/kmsg".to_owned(),
        "/proc/kcore".to_owned(),
    ] {
        ways.push(way.into());
    }
    let disks = fs::read_dir("/dev").unwrap().flatten().filter(|entry| {
        let kind = entry.file_type().unwrap();
        std::os::unix::fs::FileTypeExt::is_block_device(&kind)
    });
    ways.extend(disks.map(|entry| entry.path()).take(2));
    ways
}

/// A policy that lists programs has to name what else may run.
fn reads(mode: &str, world: &World) -> String {
    let actions = "[actions]\nallow = [\"command\", \"file_read\"]";
    format!("{}\n{actions}", policy(mode, world))
}

fn read(world: &World, policy: &str, flags: &[&str], path: &Path) -> (Vec<u8>, String) {
    let path = path.display().to_string();
    let flags = [flags, &["--read", &path]].concat();
    let output = world.attempt(&Try {
        policy,
        flags: &flags,
        without: "",
        argv: &[],
    });
    let words = said(&output);
    (output.stdout, words)
}

#[track_caller]
fn nothing_is_read(whom: Whom, mode: &str) {
    if !may_play_all_parts() || !can_confine(&World::new(whom)) {
        return;
    }
    let world = world(whom);
    let policy = reads(mode, &world);
    // What is open is read: so it would show.
    let (content, words) = read(&world, &policy, &[], &world.at("out/quiet"));
    assert_eq!(content, b"before", "{words}");
    let ways = ways(&world);
    let mut found = Vec::new();
    for way in &ways {
        let (content, words) = read(&world, &policy, &[], way);
        let is_refused = words.contains("[FILE_");
        if !content.is_empty() || !is_refused {
            found.push(format!("{}: {words}", way.display()));
        }
    }
    eprintln!(
        "{} reads as {whom:?} in {mode}: {} came through",
        ways.len(),
        found.len()
    );
    assert!(found.is_empty(), "{found:#?}");
    let (_, words) = read(&world, &policy, &[], &world.at("out/pipe"));
    assert!(words.contains("[FILE_TYPE]"), "{words}");
}

#[test]
fn nothing_closed_is_read_in_read_only() {
    for whom in [Whom::Root, Whom::UserOfRoot, Whom::User] {
        nothing_is_read(whom, "read-only");
    }
}

#[test]
fn nothing_closed_is_read_in_edit() {
    for whom in [Whom::Root, Whom::UserOfRoot, Whom::User] {
        nothing_is_read(whom, "edit");
    }
}

/// The ways are real: they lead to the secret where nothing confines.
#[test]
fn what_is_closed_is_read_where_nothing_confines() {
    if !may_play_all_parts() {
        return;
    }
    let world = world(Whom::Root);
    let flags = ["--mode", "unrestricted"];
    let mut seen = 0;
    for way in ways(&world) {
        if way.starts_with("/dev") || way.ends_with("kcore") {
            continue;
        }
        let (content, _) = read(&world, "mode = \"unrestricted\"", &flags, &way);
        seen += usize::from(content == SECRET.as_bytes());
    }
    assert!(seen >= 14, "{seen}");
}

/// A second name of a denied file is read, by whatever means: a worker has no more than a command, and no less.
#[test]
fn a_second_name_of_a_denied_file_is_read_as_by_a_command() {
    if !may_play_all_parts() || !can_confine(&World::new(Whom::Root)) {
        return;
    }
    let world = world(Whom::Root);
    let policy = reads("read-only", &world);
    let name = world.at("out/another-name");
    let by_command = world.attempt(&Try {
        policy: &policy,
        flags: &[],
        without: "",
        argv: &["cat", name.to_str().unwrap()],
    });
    let (by_worker, _) = read(&world, &policy, &[], &name);
    assert_eq!(by_worker, by_command.stdout);
}

#[test]
fn a_link_that_is_set_anew_meanwhile_leads_to_nothing_closed() {
    if !may_play_all_parts() || !can_confine(&World::new(Whom::User)) {
        return;
    }
    let world = world(Whom::Root);
    let policy = reads("edit", &world);
    let (link, done) = (world.at("root/swapped"), AtomicBool::new(false));
    symlink(world.at("out/quiet"), &link).unwrap();
    let (mut open, mut refused) = (0, 0);
    let (next, targets) = (
        world.at("root/next"),
        ["out/denied", "out/quiet"].map(|name| world.at(name)),
    );
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for target in targets.iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                symlink(target, &next).unwrap();
                fs::rename(&next, &link).unwrap();
            }
        });
        for _ in 0..RACES {
            let (content, words) = read(&world, &policy, &[], &link);
            match &content[..] {
                b"before" => open += 1,
                b"" => refused += 1,
                _ => break,
            }
            if content.is_empty() && !words.contains("[FILE_NOT_PERMITTED]") {
                refused -= 1;
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(
        open + refused,
        RACES,
        "each read the open one or was refused"
    );
    assert!(open > 0 && refused > 0, "{open} {refused}");
}
