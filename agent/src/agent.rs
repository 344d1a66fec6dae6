//! The agent as a whole: opened, run, stopped.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_client::identity::{Identity, IdentityError};
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    config::Config,
    connection::Connection,
    doorbell::Doorbell,
    facts,
    policy::{Policy, PolicyError},
    process::{self, Host},
    receipts::Receipts,
    renewal::Renewal,
    standing::Standing,
    supervision::{self, Pool},
    tasks::{Limits, Tasks},
};

/// Why an agent does not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// This host has not joined.
    #[error(
        "this host has not joined a control plane yet: `muster agent join` does that, with a join string from `muster token create host`"
    )]
    NotJoined,
    /// The identity in the directory cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The identity is not a host's.
    #[error("the certificate in {0} is not a host's")]
    NotAHost(String),
    /// Another agent runs in this directory.
    #[error("another agent runs in {0}")]
    Taken(String),
    /// The directory, the journal or the host itself cannot be used.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] muster_runtime::tls::TlsError),
    /// The host's policy cannot be taken.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The control plane does not want this host any more.
    #[error("{0}; join again to come back under a new id")]
    Refused(String),
}

impl AgentError {
    /// Whether only an operator can help: to start again by itself changes nothing.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::NotJoined | Self::NotAHost(_) | Self::Refused(_) | Self::Policy(_)
        )
    }
}

/// An agent that is ready to run.
pub struct Agent {
    connection: Connection,
    tasks: Tasks,
    supervisors: Arc<Pool>,
    clock: Arc<Clock>,
    renewal: Arc<Renewal>,
    host_id: String,
    directory: PathBuf,
    _lock: Flock<fs::File>,
}

impl Agent {
    /// Opens identity, journal and spool, and takes up what an earlier agent left. Call it inside the
    /// runtime that will run it.
    pub async fn open(config: Config) -> Result<Self, AgentError> {
        let directory = config.directory();
        let lock = lock(&directory)?;
        let mut identity = match Identity::load(&directory) {
            Err(IdentityError::Missing(_)) => return Err(AgentError::NotJoined),
            loaded => loaded?,
        };
        if let Some(address) = config.control_plane {
            identity = identity.at_address(address);
        }
        let host_id = identity
            .host_id()
            .ok_or_else(|| AgentError::NotAHost(directory.display().to_string()))?
            .to_owned();
        let tls = identity.client_tls()?;

        let host = Host::new().map_err(io("this host cannot be read"))?;
        if let Err(errno) = process::adopt_orphans() {
            tracing::warn!(%errno, "processes that tasks leave behind cannot be adopted: {errno}");
        }
        let host = Arc::new(host);
        let missing = missing(&host, config.supervisor.clone(), directory.clone()).await;
        let policy = Policy::load(
            config.policy.as_deref(),
            &config.data_dir,
            &directory,
            host.user(),
            missing,
        )?;
        let policy = Arc::new(policy);
        let facts = facts::Source::new(host.user().clone(), Arc::clone(&policy))
            .map_err(io("the boot id cannot be read"))?;
        let clock = Arc::new(Clock::default());
        let supervisors = directory.join(supervision::DIRECTORY);
        private(&supervisors).map_err(io(&supervisors.display().to_string()))?;
        let supervisors = Pool::open(host, config.supervisor, supervisors)
            .map(Arc::new)
            .map_err(io("the process that supervises tasks cannot be started"))?;
        let limits = Limits {
            tasks: config.max_tasks,
            task_spool: config.task_spool << 20,
            spool: config.spool << 20,
            free_percent: config.spool_free,
        };
        let receipts = Receipts::default();
        receipts.set(&identity);
        let tasks = Tasks::open(
            directory.clone(),
            Arc::clone(&supervisors),
            host_id.clone(),
            facts.boot_id().to_owned(),
            Arc::clone(&clock),
            policy,
            limits,
            receipts.clone(),
        )
        .map_err(io(&format!("the journal in {}", directory.display())))?;
        let address = identity.address().to_owned();
        let renewal = Arc::new(Renewal::new(identity, tls.clone(), receipts));
        let connection = Connection::new(
            address,
            &directory,
            tls,
            tasks.clone(),
            Arc::clone(&clock),
            facts,
            Arc::clone(&renewal),
        );
        Ok(Self {
            connection,
            tasks,
            supervisors,
            clock,
            renewal,
            host_id,
            directory,
            _lock: lock,
        })
    }

    /// The id of this host.
    pub fn host_id(&self) -> &str {
        &self.host_id
    }

    /// Where this host stands with its control plane, now and from now on.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.connection.standing()
    }

    /// Serves this host until told to stop; then leaves what runs to its supervisors, reports what is over, and says
    /// goodbye. Returns early only if the control plane does not want this host any more; then what runs is ended.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), AgentError> {
        let detach = CancellationToken::new();
        let end = CancellationToken::new();
        let clock = Arc::clone(&self.clock);
        let journal = Arc::clone(self.tasks.journal());
        let journal = tokio::spawn(journal.keep(move || clock.now_ms(), end.clone()));
        let orphans = tokio::spawn(process::reap_orphans(end.clone()));
        let renewal = {
            let (renewal, end) = (Arc::clone(&self.renewal), end.clone());
            tokio::spawn(async move { renewal.keep(end).await })
        };

        let supervisors = tokio::spawn(Arc::clone(&self.supervisors).keep(end.clone()));
        let awake = tokio::spawn(self.tasks.clone().keep_awake(end.clone()));
        let answering = {
            let doorbell = Doorbell::open(&self.directory, self.connection.standing(), &self.tasks);
            tokio::spawn(doorbell.answer(end.clone()))
        };

        let stopping = async {
            stop.cancelled().await;
            self.tasks.leave().await;
            self.tasks.settle_all().await;
            detach.cancel();
        };
        let serving = self.connection.run(detach.clone());
        let served = tokio::select! {
            served = serving => served,
            never = async { stopping.await; std::future::pending().await } => never,
        };
        match &served {
            Ok(()) => self.tasks.leave().await,
            // Nobody will ever ask for them.
            Err(_) => self.tasks.end_all().await,
        }
        end.cancel();
        for part in [journal, orphans, renewal, supervisors, awake, answering] {
            // They end by themselves; a panic in one has been reported already.
            let _ = part.await;
        }
        served.map_err(|reason| AgentError::Refused(reason.to_string()))
    }
}

/// What this host lacks to confine tasks, in words.
async fn missing(host: &Arc<Host>, program: PathBuf, directory: PathBuf) -> Option<String> {
    let host = Arc::clone(host);
    let missing =
        tokio::task::spawn_blocking(move || supervision::missing(&host, &program, &directory));
    let missing = missing
        .await
        .unwrap_or_else(|error| Some(format!("it could not be found out: {error}")));
    if let Some(missing) = &missing {
        tracing::warn!(
            "tasks cannot be confined here, and those that are to be are refused: {missing}"
        );
    }
    missing
}

/// A directory is held by one agent.
fn lock(directory: &Path) -> Result<Flock<fs::File>, AgentError> {
    let shown = directory.display().to_string();
    private(directory).map_err(io(&shown))?;
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(directory.join("lock"))
        .map_err(io(&shown))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| AgentError::Taken(shown))
}

/// Makes a directory for nobody else.
fn private(directory: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> AgentError {
    let what = what.to_owned();
    move |source| AgentError::Io { what, source }
}
