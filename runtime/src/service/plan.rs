//! What an installation consists of: decided from what is there, then shown or done.

use std::{
    fmt, fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::{BOOTED, Layout, Manager, Scope, Service, ServiceError, Unit, step::Step, unit::word};

/// Where packages put their units.
const PACKAGED: [&str; 2] = ["/usr/lib/systemd", "/lib/systemd"];

/// Above this, an id belongs to a person (`SYS_UID_MAX` of login.defs).
const SYSTEM_ID_MAX: u32 = 999;

/// What is there before anything is done.
#[derive(Debug, Clone, Default)]
pub struct Ground {
    /// Whether root asks.
    pub is_root: bool,
    /// What is missing of a service manager, if there is none to ask.
    pub no_manager: Option<PathBuf>,
    /// The unit that is there already.
    pub unit: Option<String>,
    /// A unit of the same name in a place that is not ours.
    pub elsewhere: Option<PathBuf>,
    /// Whether nobody but root can change the program where it stands.
    pub program_is_safe: bool,
    /// Ids of the accounts that matter, as far as they exist.
    pub accounts: Vec<(String, u32)>,
}

impl Ground {
    /// Looks.
    pub fn look(service: &Service, layout: &Layout, program: &Path, accounts: &[&str]) -> Self {
        let manager = match layout.scope {
            Scope::System => PathBuf::from(BOOTED),
            Scope::User => std::env::var_os("XDG_RUNTIME_DIR")
                .map_or_else(|| "/run/user".into(), PathBuf::from)
                .join("systemd/private"),
        };
        let part = match layout.scope {
            Scope::System => "system",
            Scope::User => "user",
        };
        let packaged = PACKAGED
            .iter()
            .map(|root| Path::new(root).join(part).join(service.unit()));
        let id = |name: &&str| {
            let found = nix::unistd::User::from_name(name).ok().flatten()?;
            Some(((*name).to_owned(), found.uid.as_raw()))
        };
        Self {
            is_root: nix::unistd::geteuid().is_root(),
            no_manager: (!manager.exists()).then_some(manager),
            unit: fs::read_to_string(layout.unit(service)).ok(),
            elsewhere: packaged.into_iter().find(|path| path.exists()),
            program_is_safe: only_root_can_change(program),
            accounts: accounts.iter().filter_map(id).collect(),
        }
    }

    fn account(&self, name: &str) -> Option<u32> {
        self.accounts
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, id)| *id)
    }

    /// What stands in the way of any change.
    pub(super) fn obstacles(
        &self,
        service: &Service,
        scope: Scope,
        command: &str,
    ) -> Vec<ServiceError> {
        let mut obstacles = Vec::new();
        match (&self.no_manager, scope) {
            (Some(_), Scope::System) => obstacles.push(ServiceError::NoSystemd {
                serve: service.serve(),
            }),
            (Some(path), Scope::User) => {
                obstacles.push(ServiceError::NoUserManager(path.clone()));
            }
            (None, _) => {}
        }
        if scope == Scope::System && !self.is_root {
            obstacles.push(ServiceError::NotRoot {
                command: command.to_owned(),
                // A role that has a system user is no user's own.
                user: service.account.is_none(),
            });
        }
        obstacles
    }
}

/// Whether root alone can change a program or any directory above it.
fn only_root_can_change(program: &Path) -> bool {
    program.ancestors().all(|path| {
        fs::symlink_metadata(path).is_ok_and(|found| {
            // A directory such as /tmp lets everybody put something in another's place.
            found.uid() == 0 && found.permissions().mode() & 0o022 == 0
        })
    })
}

/// What is to be installed.
#[derive(Debug, Clone)]
pub struct Installation<'a> {
    /// The role.
    pub service: &'a Service,
    /// The places that the service's parts will have.
    pub layout: &'a Layout,
    /// The program, as it stands now.
    pub program: &'a Path,
    /// Whom it runs as from now on; else as whom it did, or as the template says.
    pub run_as: Option<&'a str>,
    /// A directory that moves to where the service keeps its state: from, to.
    pub takes_along: Option<(PathBuf, PathBuf)>,
    /// The command that was asked for, as people type it.
    pub command: String,
}

impl Installation<'_> {
    /// Decides what there is to do.
    pub fn plan(&self, ground: &Ground) -> Result<Plan, ServiceError> {
        let (service, layout) = (self.service, self.layout);
        let mut obstacles = ground.obstacles(service, layout.scope, &self.command);
        let path = layout.unit(service);
        let foreign = ground
            .unit
            .as_deref()
            .is_some_and(|text| !Unit::is_ours(text));
        if foreign {
            obstacles.push(ServiceError::Foreign(path.clone()));
        } else if let Some(elsewhere) = &ground.elsewhere {
            obstacles.push(ServiceError::Foreign(elsewhere.clone()));
        }
        obstacles.extend(self.account_problem(ground));

        let mut steps = Vec::new();
        if let (Scope::System, Some(name)) = (layout.scope, service.account) {
            steps.push(Step::Account {
                name: name.to_owned(),
                home: layout.data_dir.clone(),
                words: format!("Muster, {}", service.command),
            });
        }
        if layout.scope == Scope::System {
            steps.push(Step::Directory(layout.data_dir.clone()));
        }
        if let Some((from, to)) = self.takes_along.clone() {
            steps.push(Step::Move { from, to });
        }
        let program = match layout.program(service) {
            Some(copy) if !ground.program_is_safe && copy != self.program => {
                steps.push(Step::Program {
                    from: self.program.to_owned(),
                    to: copy.clone(),
                });
                copy
            }
            _ => self.program.to_owned(),
        };
        let text = self.unit(&program, ground)?.text().to_owned();
        steps.extend([
            Step::Unit { path, text },
            Step::Reload,
            Step::Enable(service.unit()),
            Step::Restart(service.unit()),
        ]);
        Ok(Plan {
            manager: Manager(layout.scope),
            obstacles,
            steps,
        })
    }

    fn account_problem(&self, ground: &Ground) -> Option<ServiceError> {
        if let Some(name) = self.run_as {
            let missing = ground.account(name).is_none();
            return missing
                .then(|| ServiceError::Account(format!("this machine has no user {name:?}")));
        }
        let name = self.service.account?;
        let id = ground.account(name).filter(|id| *id > SYSTEM_ID_MAX)?;
        Some(ServiceError::Account(format!(
            "the user {name} ({id}) is a person's account, and {} needs that name for itself",
            self.service.command
        )))
    }

    /// The user that an earlier installation chose: one that says nothing of it must not make the commands root's.
    pub fn kept_user<'b>(&self, ground: &'b Ground) -> Option<&'b str> {
        let chosen = self.run_as.is_some() || self.service.account.is_some();
        let unit = ground.unit.as_deref().filter(|text| Unit::is_ours(text))?;
        Unit::value(unit, "User").filter(|_| !chosen)
    }

    fn unit(&self, program: &Path, ground: &Ground) -> Result<Unit, ServiceError> {
        let (service, layout) = (self.service, self.layout);
        // Quoted, since paths may hold spaces.
        let program = format!("\"{}\" {}", word(program)?, service.arguments.join(" "));
        let data_dir = format!("\"MUSTER_DATA_DIR={}\"", word(&layout.data_dir)?);
        let install = format!("{} install", service.command);
        let mut unit = Unit::new(service.template, &install, service.name)
            .with("Service", "ExecStart", &program)
            .with("Service", "Environment", &data_dir);
        if let Some(name) = self.run_as.or(self.kept_user(ground)) {
            unit = unit.with("Service", "User", name);
        }
        if layout.scope == Scope::User {
            // The network is the machine's business, and a user has one account and one home.
            unit = unit
                .without(&[
                    "Wants",
                    "After",
                    "User",
                    "Group",
                    "StateDirectory",
                    "StateDirectoryMode",
                ])
                .with("Install", "WantedBy", "default.target");
        }
        Ok(unit)
    }
}

/// What will be done, in order.
#[derive(Debug)]
pub struct Plan {
    pub(super) manager: Manager,
    pub(super) obstacles: Vec<ServiceError>,
    pub(super) steps: Vec<Step>,
}

impl Plan {
    /// What stands in the way, the first of it.
    pub fn obstacle(self) -> Result<Self, ServiceError> {
        let mut obstacles = self.obstacles;
        if obstacles.is_empty() {
            return Ok(Self { obstacles, ..self });
        }
        Err(obstacles.remove(0))
    }

    /// Does it all. Blocks until the service is ready.
    pub fn carry_out(self) -> Result<(), ServiceError> {
        let plan = self.obstacle()?;
        for step in &plan.steps {
            tracing::debug!("{step}");
            step.take(plan.manager)?;
        }
        Ok(())
    }

    /// Does what comes before the first step that needs the program: accounts and directories.
    pub fn prepare(&self) -> Result<(), ServiceError> {
        let early = |step: &&Step| matches!(step, Step::Account { .. } | Step::Directory(_));
        self.steps
            .iter()
            .take_while(early)
            .try_for_each(|step| step.take(self.manager))
    }

    /// What has been done, or would be, a line each.
    pub fn steps(&self) -> impl Iterator<Item = String> {
        self.steps.iter().map(ToString::to_string)
    }
}

/// The plan and the whole unit, for people who want to see before they do.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for obstacle in &self.obstacles {
            writeln!(f, "not yet: {obstacle}\n  next: {}", obstacle.next())?;
        }
        for step in self.steps() {
            writeln!(f, "would {step}")?;
        }
        for step in &self.steps {
            if let Step::Unit { path, text } = step {
                write!(f, "\n{}:\n\n{text}", path.display())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: Service = Service {
        name: "muster-agent",
        command: "muster agent",
        arguments: &["agent", "run"],
        template: "[Unit]\nWants=network-online.target\n\n[Service]\nType=notify\nExecStart=/usr/bin/muster agent run\nEnvironment=MUSTER_DATA_DIR=/var/lib/muster\nStateDirectory=muster/agent\n\n[Install]\nWantedBy=multi-user.target\n",
        account: None,
        directories: &["agent"],
        needs_identity: true,
    };

    fn ready() -> Ground {
        Ground {
            is_root: true,
            accounts: vec![("ada".to_owned(), 1000)],
            ..Ground::default()
        }
    }

    fn installation<'a>(service: &'a Service, layout: &'a Layout) -> Installation<'a> {
        Installation {
            service,
            layout,
            program: Path::new("/home/ada/muster"),
            run_as: None,
            takes_along: None,
            command: "muster agent install".to_owned(),
        }
    }

    fn text(plan: &Plan) -> &str {
        let unit = plan.steps.iter().find_map(|step| match step {
            Step::Unit { text, .. } => Some(text.as_str()),
            _ => None,
        });
        unit.unwrap()
    }

    #[test]
    fn a_system_service_runs_a_copy_that_only_root_can_change() {
        let layout = Layout::system();
        let mut installation = installation(&SERVICE, &layout);
        installation.takes_along =
            Some(("/home/ada/m/agent".into(), "/var/lib/muster/agent".into()));
        let plan = installation.plan(&ready()).unwrap().obstacle().unwrap();
        let steps: Vec<String> = plan.steps().collect();
        assert_eq!(
            steps,
            [
                "make /var/lib/muster (0755)",
                "move /home/ada/m/agent to /var/lib/muster/agent (0700)",
                "copy /home/ada/muster to /usr/local/lib/muster/muster-agent (0755)",
                "write /etc/systemd/system/muster-agent.service",
                "have systemd read its units",
                "enable muster-agent.service",
                "start muster-agent.service, or start it again",
            ]
        );
        let unit = text(&plan);
        assert!(unit.contains("\nExecStart=\"/usr/local/lib/muster/muster-agent\" agent run\n"));
        assert!(unit.contains("\nEnvironment=\"MUSTER_DATA_DIR=/var/lib/muster\"\n"));
        assert!(Unit::is_ours(unit));

        let safe = Ground {
            program_is_safe: true,
            unit: Some(unit.to_owned()),
            ..ready()
        };
        let again = installation.plan(&safe).unwrap().obstacle().unwrap();
        assert!(text(&again).contains("ExecStart=\"/home/ada/muster\" agent run"));
    }

    #[test]
    fn whom_it_runs_as_stays_unless_it_is_said_anew() {
        let layout = Layout::system();
        let mut installation = installation(&SERVICE, &layout);
        installation.run_as = Some("ada");
        let first = installation.plan(&ready()).unwrap();
        assert!(text(&first).contains("\nUser=ada\n"));

        let installed = Ground {
            unit: Some(text(&first).to_owned()),
            accounts: vec![("root".to_owned(), 0)],
            ..ready()
        };
        installation.run_as = None;
        assert_eq!(installation.kept_user(&installed), Some("ada"));
        let again = installation.plan(&installed).unwrap();
        assert!(text(&again).contains("\nUser=ada\n"));
        installation.run_as = Some("root");
        let roots = installation.plan(&installed).unwrap();
        assert!(text(&roots).contains("\nUser=root\n"));
    }

    #[test]
    fn a_users_service_stays_with_its_user() {
        let layout = Layout::user("/home/ada/.config".into(), "/home/ada/my data".into());
        let plan = installation(&SERVICE, &layout)
            .plan(&Ground::default())
            .unwrap()
            .obstacle()
            .unwrap();
        assert_eq!(
            plan.steps().next().unwrap(),
            "write /home/ada/.config/systemd/user/muster-agent.service"
        );
        let unit = text(&plan);
        assert!(unit.contains("\nEnvironment=\"MUSTER_DATA_DIR=/home/ada/my data\"\n"));
        assert!(unit.contains("\nWantedBy=default.target\n"));
        assert!(!unit.contains("StateDirectory") && !unit.contains("network-online"));
    }

    #[test]
    fn each_obstacle_says_what_to_do() {
        let layout = Layout::system();
        let refusal = |ground: Ground, run_as: Option<&str>| {
            let mut installation = installation(&SERVICE, &layout);
            installation.run_as = run_as;
            let plan = installation.plan(&ground).unwrap();
            let error = plan.obstacle().unwrap_err();
            format!("{error} | {}", error.next())
        };
        let not_root = Ground::default();
        assert_eq!(
            refusal(not_root, None),
            "a system service is root's to change | sudo muster agent install, or add --user for a service of your own"
        );
        let no_systemd = Ground {
            no_manager: Some(BOOTED.into()),
            ..ready()
        };
        assert_eq!(
            refusal(no_systemd, None),
            "systemd is not in charge of this machine | let what starts services here start `muster agent run`"
        );
        let foreign = Ground {
            unit: Some("[Unit]\n".to_owned()),
            ..ready()
        };
        assert!(refusal(foreign, None).contains("/etc/systemd/system/muster-agent.service"));
        let packaged = Ground {
            elsewhere: Some("/usr/lib/systemd/system/muster-agent.service".into()),
            ..ready()
        };
        assert!(refusal(packaged, None).contains("/usr/lib/"));
        assert!(refusal(ready(), Some("nobody-here")).contains("no user \"nobody-here\""));
    }

    #[test]
    fn an_account_of_a_role_is_no_persons() {
        let service = Service {
            account: Some("ada"),
            ..SERVICE
        };
        let layout = Layout::system();
        let plan = installation(&service, &layout).plan(&ready()).unwrap();
        let error = plan.obstacle().unwrap_err().to_string();
        assert!(error.contains("a person's account"), "{error}");
    }

    #[test]
    fn a_program_below_a_directory_of_others_is_not_safe() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("muster");
        fs::write(&program, "").unwrap();
        assert!(!only_root_can_change(&program));
    }
}
