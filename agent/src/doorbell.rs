//! A socket in the agent's directory, for its owner alone: whoever connects is told how things are, as one
//! line of JSON. A file would say how they were when somebody last wrote it.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::{
    policy::Permits,
    standing::Standing,
    tasks::{Tasks, journal::Phase},
};

/// Name of the socket in the agent's directory.
const NAME: &str = "status.sock";

/// How long an answer may take to be written, or to come.
const LIMIT: Duration = Duration::from_secs(5);

/// An answer is shorter than this, bytes.
const ANSWER_MAX: u64 = 64 << 10;

/// How often a broken socket is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// How things are with a running agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Version of the program.
    pub version: String,
    /// Its process id.
    pub process_id: u32,
    /// The agent's standing with its control plane.
    pub connection: Standing,
    /// The agent's tasks.
    pub tasks: Load,
    /// What this host permits; absent from an agent that knows no modes.
    #[serde(default)]
    pub permits: Option<Permits>,
}

/// The tasks that an agent holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Taken, and not started yet.
    pub waiting: usize,
    /// Running, or about to.
    pub running: usize,
    /// Over, and the control plane does not have all of them yet.
    pub unreported: usize,
}

impl Load {
    fn of(tasks: &Tasks) -> Self {
        let mut load = Self::default();
        let held = tasks.held();
        for task_id in held.iter().filter_map(|text| text.parse().ok()) {
            match tasks.journal().find(&task_id).map(|held| held.phase) {
                Some(Phase::Accepted) => load.waiting += 1,
                Some(Phase::Starting | Phase::Started) => load.running += 1,
                Some(Phase::Ended(_) | Phase::Barred) => load.unreported += 1,
                Some(Phase::Settled { .. }) | None => {}
            }
        }
        load
    }
}

/// The socket, and what is needed to answer.
pub(crate) struct Doorbell {
    path: PathBuf,
    listener: Option<UnixListener>,
    standing: watch::Receiver<Standing>,
    tasks: Tasks,
}

impl Doorbell {
    /// Opens the socket. Without one, as where the path is too long for it, the agent serves all the same.
    /// Whoever calls holds the directory's lock, so what is there is of an agent that is gone.
    pub(crate) fn open(
        directory: &Path,
        standing: watch::Receiver<Standing>,
        tasks: &Tasks,
    ) -> Self {
        let path = directory.join(NAME);
        let listener = bind(&path)
            .inspect_err(|error| {
                tracing::warn!(%error, "nobody can ask this agent how it is: {}: {error}", path.display());
            })
            .ok();
        Self {
            path,
            listener,
            standing,
            tasks: tasks.clone(),
        }
    }

    /// Answers one after the other, until told to stop.
    pub(crate) async fn answer(self, stop: CancellationToken) {
        let Some(listener) = &self.listener else {
            return;
        };
        let answering = async {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        // Whoever does not take it asks again.
                        let _ = tokio::time::timeout(LIMIT, self.tell(stream)).await;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "nobody was answered: {error}");
                        tokio::time::sleep(TRY_AGAIN).await;
                    }
                }
            }
        };
        tokio::select! {
            () = answering => {}
            () = stop.cancelled() => {}
        }
        // The next agent removes what is left.
        let _ = fs::remove_file(&self.path);
    }

    async fn tell(&self, mut stream: UnixStream) -> io::Result<()> {
        let answer = Answer {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process_id: process::id(),
            connection: self.standing.borrow().clone(),
            tasks: Load::of(&self.tasks),
            permits: Some(self.tasks.policy().permits()),
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        stream.shutdown().await
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The directory is 0700 already, so there is no moment at which another could connect.
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Asks the agent that runs in this directory. `None` if none does.
pub async fn ask(directory: &Path) -> io::Result<Option<Answer>> {
    let asked = async {
        let stream = match UnixStream::connect(directory.join(NAME)).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut line = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut line).await?;
        Ok(Some(serde_json::from_slice(&line)?))
    };
    tokio::time::timeout(LIMIT, asked)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
