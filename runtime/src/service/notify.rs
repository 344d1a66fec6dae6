//! What a service tells its manager: `sd_notify(3)`, over the datagram socket that NOTIFY_SOCKET names.
//! Without the variable, as in a shell, nothing is said.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    pin::pin,
    process,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

/// Bytes of a status line that are sent; `systemctl status` shows one line.
const STATUS_MAX: usize = 512;

/// Speaks to the service manager.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// Without a sign of life for so long, the manager ends this process and starts it again.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As this process was started.
    pub fn from_environment() -> Self {
        Self::new(&|name| env::var_os(name)).unwrap_or_else(|error| {
            tracing::warn!(%error, "the service manager cannot be told anything: {error}");
            Self::default()
        })
    }

    fn new(environment: &dyn Fn(&str) -> Option<OsString>) -> io::Result<Self> {
        let Some(path) = environment("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
            return Ok(Self::default());
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not listen loses news; it never holds up a role.
        socket.set_nonblocking(true)?;
        let number = |name: &str| environment(name)?.to_str()?.parse::<u64>().ok();
        let meant =
            number("WATCHDOG_PID").is_none_or(|process_id| process_id == u64::from(process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|limit| *limit > 0 && meant);
        Ok(Self {
            socket: Some((socket, address(&path)?)),
            watchdog: watchdog.map(Duration::from_micros),
        })
    }

    /// The role serves.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", line(status)));
    }

    /// What the role does now, in a line.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", line(status)));
    }

    /// The role has begun to stop.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping");
    }

    /// Runs the main loop of a role that serves from the beginning: ready now, stopping once `stop` is
    /// cancelled, with signs of life until it has ended.
    pub async fn serve<T>(
        &self,
        status: &str,
        stop: &CancellationToken,
        main: impl Future<Output = T>,
    ) -> T {
        self.ready(status);
        let stopping = async {
            stop.cancelled().await;
            self.stopping();
            std::future::pending().await
        };
        let serving = async {
            tokio::select! {
                served = main => served,
                never = stopping => never,
            }
        };
        self.watch(serving).await
    }

    /// Runs the main loop of a role, with signs of life beside it while the manager wants them. They come
    /// from the same task: while the loop hangs in a call or a lock, none leaves. And each has gone through
    /// a worker of the runtime, so none leaves either while all of those hang.
    pub async fn watch<T>(&self, main: impl Future<Output = T>) -> T {
        let Some(limit) = self.watchdog else {
            return main.await;
        };
        let mut main = pin!(main);
        loop {
            let alive = async {
                tokio::time::sleep(limit / 2).await;
                // Its only result is that it ran.
                let _ = tokio::spawn(async {}).await;
            };
            tokio::select! {
                done = &mut main => return done,
                () = alive => self.send("WATCHDOG=1"),
            }
        }
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(message.as_bytes(), address)
        {
            tracing::debug!(%error, "the service manager was not told: {error}");
        }
    }
}

/// A path, or after `@` a name in the abstract namespace.
fn address(path: &OsStr) -> io::Result<SocketAddr> {
    match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    }
}

/// One line of a limited length: a line end would begin another message.
fn line(text: &str) -> String {
    let mut end = text.len().min(STATUS_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn notifier(variables: &[(&str, &str)]) -> Notifier {
        let variables: HashMap<String, OsString> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.into()))
            .collect();
        Notifier::new(&|name| variables.get(name).cloned()).unwrap()
    }

    fn received(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        manager
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_hears_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        notifier(&[("NOTIFY_SOCKET", path.to_str().unwrap())]).ready("attached\nREADY=0");
        assert_eq!(received(&by_path), "READY=1\nSTATUS=attached READY=0");

        let name = format!("muster-test-{}", process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        notifier(&[("NOTIFY_SOCKET", &format!("@{name}"))]).stopping();
        assert_eq!(received(&by_name), "STOPPING=1\nSTATUS=stopping");
    }

    #[test]
    fn without_a_manager_nothing_is_said() {
        let silent = notifier(&[("WATCHDOG_USEC", "1000000")]);
        silent.ready("nobody listens");
        assert_eq!(silent.watchdog, None);
        notifier(&[("NOTIFY_SOCKET", "/nowhere/at/all")]).ready("nobody listens");
    }

    #[test]
    fn a_watchdog_meant_for_another_process_is_none_of_ours() {
        let own = process::id().to_string();
        let wanted = |process_id: &str| {
            notifier(&[
                ("NOTIFY_SOCKET", "@nobody"),
                ("WATCHDOG_USEC", "2000000"),
                ("WATCHDOG_PID", process_id),
            ])
            .watchdog
        };
        assert_eq!(wanted(&own), Some(Duration::from_secs(2)));
        assert_eq!(wanted("1"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn signs_of_life_come_twice_in_the_time_and_only_beside_a_main_loop() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = notifier(&[
            ("NOTIFY_SOCKET", path.to_str().unwrap()),
            ("WATCHDOG_USEC", "10000000"),
        ]);
        let main = tokio::time::timeout(Duration::from_secs(16), std::future::pending::<()>());
        assert!(notifier.watch(main).await.is_err());
        for _ in 0..3 {
            assert_eq!(received(&manager), "WATCHDOG=1");
        }
        manager.set_nonblocking(true).unwrap();
        assert!(manager.recv(&mut [0; 64]).is_err());
    }

    #[test]
    fn a_status_is_one_line_of_a_limited_length() {
        assert_eq!(line("a\nb"), "a b");
        assert!(line(&"ä".repeat(STATUS_MAX)).len() <= STATUS_MAX);
    }
}
