//! The agent as a service of the system: installed after it has joined, told apart from a command in a shell
//! only by a manager that it reports to.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_client::{
    enrollment::EnrollmentError,
    identity::{Identity, IdentityError},
};
use muster_runtime::{
    config::{DataDir, NoHome},
    service::{
        Ground, Installation, Layout, Manager, Notifier, Plan, Removal, Scope, Service,
        ServiceError,
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::{Agent, AgentError},
    config::Config,
    doorbell::{self, Answer},
    join::{Join, NoJoinString},
    process,
};

/// The agent, as `muster agent` serves it. The lean program has its own name and arguments.
pub const SERVICE: Service = Service {
    name: "muster-agent",
    command: "muster agent",
    arguments: &["agent", "run"],
    template: include_str!("../../deploy/systemd/muster-agent.service"),
    account: None,
    directories: &["agent"],
    needs_identity: true,
};

/// How long the manager waits for the first attempt to attach, before the agent is ready without.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// How long an installation waits for the agent to be attached, and how often it looks.
const ATTACHED_LIMIT: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How to install the agent.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct InstallArgs {
    /// Install a service of your own instead of the machine's; needs no root
    #[arg(long, conflicts_with = "run_as")]
    pub user: bool,

    /// Whom the agent runs as, and its commands with it [default: as installed before, else root, which may run
    /// them as anybody]
    #[arg(long, value_name = "USER")]
    pub run_as: Option<String>,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,

    /// How to join, if this machine has not yet.
    #[command(flatten)]
    pub join: Join,
}

/// How to take the agent away.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct UninstallArgs {
    /// The service of your own instead of the machine's
    #[arg(long)]
    pub user: bool,

    /// Remove identity, journal and output too; the host has to join again
    #[arg(long)]
    pub purge: bool,

    /// Also while tasks run; they end
    #[arg(long)]
    pub force: bool,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Why the agent is not installed, or not taken away.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is no data directory.
    #[error(transparent)]
    NoHome(#[from] NoHome),
    /// The system does not let us.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The identity that is there cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// This machine has not joined, and nobody said how.
    #[error("this machine has not joined a control plane: {0}")]
    NotJoined(NoJoinString),
    /// Joining failed.
    #[error(transparent)]
    Enrollment(#[from] EnrollmentError),
    /// Its tasks would go on without anybody who reports them.
    #[error("{0} tasks run")]
    TasksRun(usize),
    /// A part of this program panicked.
    #[error("the installation broke off: {0}")]
    Broken(#[from] tokio::task::JoinError),
}

impl InstallError {
    /// What to do about it, where that is not in its words.
    pub fn next(&self) -> Option<String> {
        match self {
            Self::NoHome(_) | Self::Identity(_) | Self::Enrollment(_) | Self::Broken(_) => None,
            Self::Service(error) => Some(error.next()),
            Self::NotJoined(_) => Some(
                "if you joined as another user, name that user's data directory with --data-dir"
                    .to_owned(),
            ),
            Self::TasksRun(_) => Some(
                "wait for them, cancel them with `muster job cancel`, or end them with --force"
                    .to_owned(),
            ),
        }
    }
}

/// What was done.
#[derive(Debug)]
pub struct Outcome {
    /// In a line.
    pub headline: String,
    /// Each step.
    pub steps: Vec<String>,
    /// What to know from now on: a word, and what it is about.
    pub notes: Vec<(&'static str, String)>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.headline)?;
        for step in &self.steps {
            writeln!(f, "  {step}")?;
        }
        let width = self.notes.iter().map(|(word, _)| word.len()).max();
        for (word, text) in &self.notes {
            writeln!(f, "{word:0$}  {text}", width.unwrap_or(0))?;
        }
        Ok(())
    }
}

/// Installs the agent, or with `dry_run` says what that would be.
pub async fn install(
    service: &Service,
    args: &InstallArgs,
    data_dir: &DataDir,
) -> Result<Outcome, InstallError> {
    let layout = Layout::of(args.user, data_dir)?;
    let target = layout.data_dir.join("agent");
    let (held, takes_along) = held(&target, data_dir)?;
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from(service.name));
    let accounts: Vec<&str> = args.run_as.iter().map(String::as_str).collect();
    let ground = Ground::look(service, &layout, &program, &accounts);
    let installation = Installation {
        service,
        layout: &layout,
        program: &program,
        run_as: args.run_as.as_deref(),
        takes_along: takes_along.clone(),
        command: format!("{} install", service.command),
    };
    let plan = installation.plan(&ground)?;
    let kept_user = installation.kept_user(&ground).map(str::to_owned);
    let joins = !held && takes_along.is_none();
    if args.dry_run {
        return Ok(Outcome {
            headline: match joins {
                true => "would join first, with the join string that is given".to_owned(),
                false => format!("would serve the identity in {}", target.display()),
            },
            steps: plan.to_string().lines().map(str::to_owned).collect(),
            notes: Vec::new(),
        });
    }
    let plan = plan.obstacle()?;
    let mut steps: Vec<String> = Vec::new();
    if joins {
        let join_string = args.join.join_string().map_err(InstallError::NotJoined)?;
        plan.prepare()?;
        let name = args.join.name.clone().unwrap_or_default();
        let config = Config::new(layout.data_dir.clone());
        let identity = crate::join(&config, &join_string, &name).await?;
        steps.push(format!(
            "join {} as {}",
            identity.address(),
            identity.name()
        ));
    }
    steps.extend(plan.steps());
    tokio::task::spawn_blocking(|| plan.carry_out()).await??;
    let answer = attached(&target).await;
    Ok(Outcome {
        headline: format!(
            "{} is installed and runs; {}",
            service.name,
            words(answer.as_ref())
        ),
        steps,
        notes: notes(service, args, &layout, kept_user),
    })
}

/// What somebody who has installed the agent wants to know.
fn notes(
    service: &Service,
    args: &InstallArgs,
    layout: &Layout,
    kept_user: Option<String>,
) -> Vec<(&'static str, String)> {
    let target = layout.data_dir.join("agent");
    let manager = Manager(layout.scope);
    let own = if args.user { " --user" } else { "" };
    let mut notes = vec![
        ("state", target.display().to_string()),
        (
            "settings",
            layout.data_dir.join("config.toml").display().to_string(),
        ),
        (
            "look",
            format!(
                "{} status, {}",
                service.command,
                manager.journal(service.name)
            ),
        ),
        (
            "upgrade",
            format!("{} install{own}, with the new program", service.command),
        ),
        ("undo", format!("{} uninstall{own}", service.command)),
    ];
    if let Some(user) = kept_user {
        notes.push((
            "user",
            format!("{user}, as before; --run-as chooses another"),
        ));
    }
    if args.user && !layout.lingers() {
        notes.push((
            "note",
            "it ends when you log out, unless you say `loginctl enable-linger`".to_owned(),
        ));
    }
    notes
}

/// Takes the agent away, or with `dry_run` says what that would be.
pub async fn uninstall(
    service: &Service,
    args: &UninstallArgs,
    data_dir: &DataDir,
) -> Result<Outcome, InstallError> {
    let layout = Layout::of(args.user, data_dir)?;
    let target = layout.data_dir.join("agent");
    let ground = Ground::look(service, &layout, &target, &[]);
    let removal = Removal {
        service,
        layout: &layout,
        purge: args.purge,
        end: args.force,
        groups: match layout.scope {
            Scope::System => process::groups_of_tasks(),
            Scope::User => Vec::new(),
        },
        command: format!("{} uninstall", service.command),
    };
    let plan = removal.plan(&ground);
    if args.dry_run {
        return Ok(removed(
            service,
            &plan,
            &layout,
            args.purge,
            Some(plan.to_string()),
        ));
    }
    let plan = plan.obstacle()?;
    // An agent that does not answer cannot be asked, and is taken away all the same.
    let running = match doorbell::ask(&target).await {
        Ok(Some(answer)) if !args.force => answer.tasks.running + answer.tasks.waiting,
        _ => 0,
    };
    if running > 0 {
        return Err(InstallError::TasksRun(running));
    }
    let done = removed(service, &plan, &layout, args.purge, None);
    tokio::task::spawn_blocking(|| plan.carry_out()).await??;
    Ok(done)
}

fn removed(
    service: &Service,
    plan: &Plan,
    layout: &Layout,
    purge: bool,
    dry: Option<String>,
) -> Outcome {
    let mut notes = Vec::new();
    if !purge && dry.is_none() {
        let kept = layout.data_dir.join("agent").display().to_string();
        notes.push((
            "kept",
            format!(
                "{kept}; {} uninstall --purge removes it too",
                service.command
            ),
        ));
        if layout.drop_ins(service).exists() {
            notes.push(("kept", layout.drop_ins(service).display().to_string()));
        }
    }
    let steps: Vec<String> = match &dry {
        Some(text) => text.lines().map(str::to_owned).collect(),
        None => plan.steps().collect(),
    };
    let headline = match (steps.is_empty(), dry.is_some()) {
        (true, _) => format!("{} is not installed here", service.name),
        (false, true) => format!("would take {} away", service.name),
        (false, false) => format!("{} is not installed any more", service.name),
    };
    Outcome {
        headline,
        steps,
        notes,
    }
}

/// Whether an identity is where the service needs it, and if not, the move that brings it there.
fn held(
    target: &Path,
    data_dir: &DataDir,
) -> Result<(bool, Option<(PathBuf, PathBuf)>), InstallError> {
    match Identity::load(target) {
        Ok(_) => return Ok((true, None)),
        Err(IdentityError::Missing(_)) => {}
        Err(error) => return Err(error.into()),
    }
    // Root has a home directory too, but need not.
    let Ok(source) = data_dir.path().map(|path| path.join("agent")) else {
        return Ok((false, None));
    };
    match Identity::load(&source) {
        Ok(_) if source != target => Ok((false, Some((source, target.to_owned())))),
        Ok(_) | Err(IdentityError::Missing(_)) => Ok((false, None)),
        Err(error) => Err(error.into()),
    }
}

/// Waits a moment for the agent to be attached, and says how it is then.
async fn attached(directory: &Path) -> Option<Answer> {
    let mut last = None;
    let attached = async {
        loop {
            if let Ok(Some(answer)) = doorbell::ask(directory).await {
                let done = answer.connection.attached;
                last = Some(answer);
                if done {
                    return;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let _ = tokio::time::timeout(ATTACHED_LIMIT, attached).await;
    last
}

fn words(answer: Option<&Answer>) -> String {
    match answer.map(|answer| &answer.connection) {
        Some(connection) if connection.attached => connection.words.clone(),
        Some(connection) => format!("not attached yet: {}; it goes on trying", connection.words),
        None => "it does not answer yet".to_owned(),
    }
}

/// Serves as [`Agent::run`] does, and keeps the service manager informed, where there is one: ready once the
/// first attempt to attach is over, whatever came of it. A host whose network comes late is a host that runs.
pub async fn serve(agent: Agent, stop: CancellationToken) -> Result<(), AgentError> {
    let notifier = Notifier::from_environment();
    let mut standing = agent.standing();
    let telling = async {
        let tried = standing.wait_for(|standing| standing.tried);
        let _ = tokio::time::timeout(READY_LIMIT, tried).await;
        let words = standing.borrow_and_update().words.clone();
        notifier.ready(&words);
        loop {
            tokio::select! {
                changed = standing.changed() => match changed {
                    Ok(()) => notifier.status(&standing.borrow_and_update().words),
                    Err(_) => return,
                },
                () = stop.cancelled() => return notifier.stopping(),
            }
        }
    };
    let main = async {
        let serving = agent.run(stop.clone());
        tokio::select! {
            served = serving => served,
            never = async { telling.await; std::future::pending().await } => never,
        }
    };
    notifier.watch(main).await
}
