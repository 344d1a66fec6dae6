//! What an attempt is made against: a directory that must not change, a process, sockets, memory; all looked at from
//! outside after each attempt.

#![allow(unsafe_code)] // shared memory and queues, which nobody offers in a safe way

use std::{
    fs, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
            net::{SocketAddr, UnixDatagram, UnixListener},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicI32, Ordering},
    },
};

use muster_tests::process;
use nix::libc;
use tempfile::TempDir;

/// Nobody in particular.
pub(crate) const NOBODY: u32 = 65534;

/// Whom agent and task run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whom {
    /// Both are root's.
    Root,
    /// An agent of root's, and a task of somebody else's.
    UserOfRoot,
    /// Both are somebody else's.
    User,
}

impl Whom {
    fn task(self) -> u32 {
        match self {
            Self::Root => 0,
            Self::UserOfRoot | Self::User => NOBODY,
        }
    }

    fn agent(self) -> u32 {
        match self {
            Self::Root | Self::UserOfRoot => 0,
            Self::User => NOBODY,
        }
    }
}

/// Everything that an attempt could reach for.
pub(crate) struct World {
    directory: TempDir,
    whom: Whom,
    name: String,
    key: i32,
    victim: Child,
    facts: String,
    daemon: UnixListener,
    agent: UnixListener,
    hidden: UnixListener,
    datagrams: UnixDatagram,
    tcp: std::net::TcpListener,
    udp: std::net::UdpSocket,
    memory: (i32, *mut u8),
    queues: [i32; 2],
    messages: libc::mqd_t,
    files: Vec<String>,
}

/// What is to be tried.
pub(crate) struct Try<'a> {
    /// The policy that holds.
    pub(crate) policy: &'a str,
    /// Arguments of `try` beside it.
    pub(crate) flags: &'a [&'a str],
    /// Layers that are left out.
    pub(crate) without: &'a str,
    /// The program and its arguments; `$ESCAPE` alone means the helper.
    pub(crate) argv: &'a [&'a str],
}

/// A process that was killed: the signal waits for it, or it is on its way out. On a busy machine that takes a while.
fn is_dying(pid: u32) -> bool {
    const EXITING: u64 = 4;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let waits = status.lines().any(|line| {
        let set = line
            .strip_prefix("SigPnd:")
            .or_else(|| line.strip_prefix("ShdPnd:"));
        set.is_some_and(|set| !set.trim().bytes().all(|digit| digit == b'0'))
    });
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| {
        let flags = rest.split_ascii_whitespace().nth(6)?;
        flags.parse::<u64>().ok()
    });
    waits || flags.is_some_and(|flags| flags & EXITING != 0)
}

impl World {
    pub(crate) fn new(whom: Whom) -> Self {
        static NEXT: AtomicI32 = AtomicI32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("muster-escape-{}-{number}", std::process::id());
        let key = (std::process::id() as i32) << 8 | number & 0xff;
        let directory = tempfile::Builder::new()
            .prefix("escape-")
            .tempdir()
            .unwrap();
        let at = |name: &str| directory.path().join(name);
        open_to_all(directory.path(), 0o755);
        for name in [
            "out",
            "out/empty",
            "out/.ssh",
            "root",
            "root/below",
            "scratch",
            "bin",
        ] {
            fs::create_dir(at(name)).unwrap();
        }
        let data = at("root/below/data/agent");
        fs::create_dir_all(&data).unwrap();
        for name in [
            "out/victim",
            "out/quiet",
            "out/denied",
            "out/.ssh/authorized_keys",
            "root/file",
            "root/private",
        ] {
            fs::write(at(name), "before").unwrap();
        }
        fs::write(data.join("key.pem"), "KEY").unwrap();
        symlink("../out/victim", at("root/link")).unwrap();
        symlink("denied", at("out/denied-link")).unwrap();
        for (from, to) in [
            (helper(), "bin/escape"),
            (process::muster_agent(), "bin/muster-agent"),
        ] {
            fs::copy(from, at(to)).unwrap();
            open_to_all(&at(to), 0o755);
        }
        for name in ["setuid", "capable", "denied-program", "other-program"] {
            fs::copy(helper(), at("out").join(name)).unwrap();
            open_to_all(&at("out").join(name), 0o755);
        }
        let daemon = UnixListener::bind(at("out/daemon.sock")).unwrap();
        let datagrams = UnixDatagram::bind(at("out/datagram.sock")).unwrap();
        let agent = UnixListener::bind(data.join("status.sock")).unwrap();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let hidden = UnixListener::bind_addr(&address).unwrap();
        for path in walk(directory.path()) {
            let owner = if path.starts_with(at("root/below/data")) {
                whom.agent()
            } else {
                whom.task()
            };
            std::os::unix::fs::lchown(&path, Some(owner), Some(owner)).unwrap();
        }
        open_to_all(&at("root/below/data"), 0o700);
        for name in ["out/daemon.sock", "out/datagram.sock"] {
            open_to_all(&at(name), 0o777);
        }
        let setuid = at("out/setuid");
        chown(&setuid, Some(0), Some(0)).unwrap();
        open_to_all(&setuid, 0o4755);
        let capable = at("out/capable");
        chown(&capable, Some(0), Some(0)).unwrap();
        let capabilities: Vec<u8> = [0x0200_0001u32, u32::MAX, 0, 0x1ff, 0]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        let path = std::ffi::CString::new(capable.to_str().unwrap()).unwrap();
        // SAFETY: the value is as long as it says, and read during the call only.
        let set = unsafe {
            libc::setxattr(
                path.as_ptr(),
                c"security.capability".as_ptr(),
                capabilities.as_ptr().cast(),
                capabilities.len(),
                0,
            )
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());

        let victim = victim(&at("out"), whom.task());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for socket in [&daemon, &agent, &hidden] {
            socket.set_nonblocking(true).unwrap();
        }
        datagrams.set_nonblocking(true).unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        let queue = std::ffi::CString::new(format!("/{name}")).unwrap();
        fs::write(format!("/dev/shm/{name}"), "before").unwrap();
        chown(format!("/dev/shm/{name}"), Some(whom.task()), None).unwrap();
        // SAFETY: plain calls; the memory stays until the world is dropped.
        let (memory, queues, messages) = unsafe {
            let shared = libc::shmget(key, 4096, libc::IPC_CREAT | 0o666);
            let memory = libc::shmat(shared, std::ptr::null(), 0).cast::<u8>();
            assert_ne!(memory as isize, -1);
            let before = libc::umask(0);
            let messages = libc::mq_open(
                queue.as_ptr(),
                libc::O_CREAT | libc::O_RDWR,
                0o666,
                std::ptr::null_mut::<libc::mq_attr>(),
            );
            libc::umask(before);
            let queues = [
                libc::semget(key, 1, libc::IPC_CREAT | 0o666),
                libc::msgget(key, libc::IPC_CREAT | 0o666),
            ];
            ((shared, memory), queues, messages)
        };
        let mut world = Self {
            whom,
            name,
            key,
            facts: String::new(),
            victim,
            daemon,
            agent,
            hidden,
            datagrams,
            tcp,
            udp,
            memory,
            queues,
            messages,
            files: Vec::new(),
            directory,
        };
        world.facts = world.victim_facts();
        world.files = world.snapshot();
        world
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The process id of the other process.
    pub(crate) fn victim(&self) -> u32 {
        self.victim.id()
    }

    /// The port that may be connected to where only one may.
    pub(crate) fn port(&self) -> u16 {
        self.tcp.local_addr().unwrap().port()
    }

    /// Makes an attempt as a task would.
    pub(crate) fn attempt(&self, wanted: &Try<'_>) -> Output {
        let policy = self.at("policy.toml");
        fs::write(&policy, wanted.policy).unwrap();
        chown(&policy, Some(self.whom.agent()), None).unwrap();
        open_to_all(&policy, 0o644);
        #[allow(clippy::disallowed_methods)] // the attempt runs the program under test
        let mut command = Command::new("/bin/sh");
        // Left open, as a careless parent would.
        command
            .args([
                "-c",
                "exec 9<>\"$OUT/victim\" 8<\"$OUT\"; exec \"$0\" \"$@\"",
            ])
            .arg(self.at("bin/muster-agent"))
            .arg("--data-dir")
            .arg(self.at("root/below/data"))
            .arg("try")
            .arg("--policy")
            .arg(policy)
            .args(wanted.flags);
        if self.whom == Whom::UserOfRoot {
            command.args(["--user", "nobody"]);
        }
        command.arg("--");
        for argument in wanted.argv {
            match *argument {
                "$ESCAPE" => command.arg(self.at("bin/escape")),
                other => command.arg(other),
            };
        }
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("OUT", self.at("out"))
            .env("ROOT", self.at("root"))
            .env("DATA", self.at("root/below/data"))
            .env("VICTIM", self.victim.id().to_string())
            .env("TCP", self.port().to_string())
            .env("UDP", self.udp.local_addr().unwrap().port().to_string())
            .env("SHARED", self.key.to_string())
            .env("NAME", &self.name)
            .env("MUSTER_SANDBOX_WITHOUT", wanted.without)
            .current_dir("/")
            .stdin(Stdio::null());
        if wanted.flags.contains(&"unrestricted") {
            command.env("TMPDIR", self.at("scratch"));
        }
        if self.whom == Whom::User {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.output().unwrap()
    }

    /// What has changed; nothing, if the attempt had no effect.
    pub(crate) fn changes(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        let files = self.snapshot();
        if files != self.files {
            let new = files.iter().filter(|file| !self.files.contains(file));
            found.push(format!("files: {:?}", new.collect::<Vec<_>>()));
        }
        if is_dying(self.victim.id()) || self.victim.try_wait().unwrap().is_some() {
            found.push("the other process has ended".to_owned());
        } else {
            let facts = self.victim_facts();
            if facts != self.facts {
                found.push(format!("the other process: {facts}"));
            }
        }
        for (what, socket) in [
            ("path", &self.daemon),
            ("agent's", &self.agent),
            ("abstract", &self.hidden),
        ] {
            if socket.accept().is_ok() {
                found.push(format!("the {what} socket was connected to"));
            }
        }
        let mut bytes = [0; 64];
        if self.datagrams.recv(&mut bytes).is_ok() {
            found.push("a datagram came".to_owned());
        }
        if self.tcp.accept().is_ok() {
            found.push("somebody connected by TCP".to_owned());
        }
        if self.udp.recv(&mut bytes).is_ok() {
            found.push("something came by UDP".to_owned());
        }
        // SAFETY: the segment stays attached while the world lives.
        if unsafe { *self.memory.1 } != 0 {
            found.push("shared memory was written".to_owned());
        }
        let shared = format!("/dev/shm/{}", self.name);
        if fs::read(&shared).is_ok_and(|bytes| bytes != b"before") {
            found.push("a file of shared memory was written".to_owned());
        }
        for directory in ["/etc", "/etc/cron.d"] {
            let path = Path::new(directory).join(&self.name);
            if fs::remove_file(&path).is_ok() {
                found.push(format!("{} was made", path.display()));
            }
        }
        found
    }

    /// Directory and agent's data, as far as anybody could have changed them.
    fn snapshot(&self) -> Vec<String> {
        let mut files: Vec<String> = ["out", "root/below"]
            .iter()
            .flat_map(|name| walk(&self.at(name)))
            .filter_map(|path| {
                let found = fs::symlink_metadata(&path).ok()?;
                let text = match found.is_file() && found.len() < 100 {
                    true => fs::read_to_string(&path).unwrap_or_default(),
                    false => String::new(),
                };
                Some(format!(
                    "{} {:o} {}:{} {} {}.{} {}.{} {text}",
                    path.display(),
                    found.mode(),
                    found.uid(),
                    found.gid(),
                    found.len(),
                    found.mtime(),
                    found.mtime_nsec(),
                    found.ctime(),
                    found.ctime_nsec(),
                ))
            })
            .collect();
        files.sort();
        files
    }

    fn victim_facts(&self) -> String {
        let pid = self.victim.id();
        let read =
            |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split(' ').collect();
        let affinity = read("status");
        let affinity = affinity
            .lines()
            .find(|line| line.starts_with("Cpus_allowed:"));
        // SAFETY: the call takes integers.
        let priority = unsafe { libc::syscall(libc::SYS_ioprio_get, 1, pid) };
        format!(
            "nice {} policy {} input and output {priority} {affinity:?} {} oom {}",
            fields[17],
            fields[39],
            read("limits"),
            read("oom_score_adj"),
        )
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
        let _ = fs::remove_file(format!("/dev/shm/{}", self.name));
        let queue = std::ffi::CString::new(format!("/{}", self.name)).unwrap();
        // SAFETY: nobody uses the memory any more.
        unsafe {
            libc::shmdt(self.memory.1.cast());
            libc::shmctl(self.memory.0, libc::IPC_RMID, std::ptr::null_mut());
            libc::semctl(self.queues[0], 0, libc::IPC_RMID);
            libc::msgctl(self.queues[1], libc::IPC_RMID, std::ptr::null_mut());
            libc::mq_close(self.messages);
            libc::mq_unlink(queue.as_ptr());
        }
    }
}

/// A process that does nothing, with a file open that could be written.
fn victim(out: &Path, user: u32) -> Child {
    #[allow(clippy::disallowed_methods)] // the process that attempts are made against
    let mut command = Command::new("/bin/sh");
    let child = command
        .args(["-c", "exec 9<>victim; echo ready; exec sleep 1000"])
        .current_dir(out)
        .uid(user)
        .gid(user)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    let mut ready = [0; 6];
    io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    // It says so before it becomes the other program.
    let named = || fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap_or_default();
    while named().trim() != "sleep" {
        std::thread::yield_now();
    }
    child
}

/// The program that makes attempts. Cargo builds it with all tests, and not with this one alone.
fn helper() -> PathBuf {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        #[allow(clippy::disallowed_methods)] // the test needs the program
        let mut build = Command::new(env!("CARGO"));
        build.args([
            "build",
            "--quiet",
            "--offline",
            "--package",
            "muster-tests",
            "--example",
            "escape",
        ]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status();
        assert!(
            built.is_ok_and(|status| status.success()),
            "it does not build"
        );
        let test = std::env::current_exe().unwrap();
        test.parent()
            .unwrap()
            .parent()
            .unwrap()
            .join("examples/escape")
    });
    BUILT.clone()
}

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A directory and all below it.
fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut at = 0;
    while at < found.len() {
        let path = found[at].clone();
        if path.is_dir() && !path.is_symlink() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| entry.path()));
        }
        at += 1;
    }
    found
}
