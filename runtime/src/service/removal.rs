//! Taking a service away again.

use std::path::PathBuf;

use super::{Ground, Layout, Manager, Plan, Service, ServiceError, Unit, step::Step};

/// What is to be taken away.
#[derive(Debug, Clone)]
pub struct Removal<'a> {
    /// The role.
    pub service: &'a Service,
    /// The places of the service's parts.
    pub layout: &'a Layout,
    /// Whether its state goes too.
    pub purge: bool,
    /// Whether what it has started ends with it, if it would go on.
    pub end: bool,
    /// Control groups outside of its unit's that hold what it has started.
    pub groups: Vec<PathBuf>,
    /// The command that was asked for, as people type it.
    pub command: String,
}

impl Removal<'_> {
    /// Decides what there is to do. Nothing, if it was never installed and no state is to go.
    pub fn plan(&self, ground: &Ground) -> Plan {
        let (service, layout) = (self.service, self.layout);
        let mut obstacles = ground.obstacles(service, layout.scope, &self.command);
        let path = layout.unit(service);
        let mut steps = Vec::new();
        match &ground.unit {
            Some(text) if !Unit::is_ours(text) => {
                obstacles.push(ServiceError::Foreign(path));
            }
            Some(_) => {
                steps.push(Step::Disable(service.unit()));
                if self.end {
                    steps.push(Step::End(service.unit()));
                    steps.extend(self.groups.iter().cloned().map(Step::Clear));
                }
                steps.extend([Step::Remove(path), Step::Reload]);
            }
            None => {}
        }
        // What a package runs is the package's to stop, and its state in use.
        if let Some(elsewhere) = &ground.elsewhere
            && (ground.unit.is_none() || self.purge)
        {
            obstacles.push(ServiceError::Foreign(elsewhere.clone()));
        }
        if let (Some(program), Some(programs)) = (layout.program(service), &layout.programs)
            && (ground.unit.is_some() || program.exists())
        {
            steps.extend([Step::Remove(program), Step::Tidy(programs.clone())]);
        }
        if self.purge {
            let directories = service.directories.iter();
            steps.extend(directories.map(|name| Step::Purge(layout.data_dir.join(name))));
            steps.push(Step::Purge(layout.drop_ins(service)));
            steps.push(Step::Tidy(layout.data_dir.clone()));
            if let (super::Scope::System, Some(name)) = (layout.scope, service.account) {
                steps.push(Step::Dismiss(name.to_owned()));
            }
        }
        Plan {
            manager: Manager(layout.scope),
            obstacles,
            steps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: Service = Service {
        name: "muster-control-plane",
        command: "muster control-plane",
        arguments: &["control-plane"],
        template: "[Service]\n",
        account: Some("muster"),
        directories: &["control-plane", "operator"],
        needs_identity: false,
    };

    fn steps(purge: bool, ground: &Ground) -> Vec<String> {
        let layout = Layout::system();
        let removal = Removal {
            service: &SERVICE,
            layout: &layout,
            purge,
            end: false,
            groups: Vec::new(),
            command: "muster control-plane uninstall".to_owned(),
        };
        let plan = removal.plan(ground).obstacle().unwrap();
        plan.steps().collect()
    }

    #[test]
    fn what_a_service_has_started_ends_wherever_it_is() {
        let layout = Layout::system();
        let directory = tempfile::tempdir().unwrap();
        let removal = Removal {
            service: &SERVICE,
            layout: &layout,
            purge: false,
            end: true,
            groups: vec![directory.path().to_owned()],
            command: "muster control-plane uninstall".to_owned(),
        };
        let ground = Ground {
            is_root: true,
            unit: Some(Unit::new("[Service]\n", "x", "y").text().to_owned()),
            ..Ground::default()
        };
        let plan = removal.plan(&ground).obstacle().unwrap();
        let steps: Vec<String> = plan.steps().collect();
        let group = format!("end all that is in {}", directory.path().display());
        assert_eq!(
            steps[1..3],
            [
                "end what muster-control-plane.service has left running",
                group.as_str()
            ]
        );
        plan.steps[2].take(plan.manager).unwrap();
        let told = std::fs::read_to_string(directory.path().join("cgroup.kill"));
        assert_eq!(told.unwrap(), "1");
    }

    #[test]
    fn state_stays_unless_it_is_to_go() {
        let installed = Ground {
            is_root: true,
            unit: Some(Unit::new("[Service]\n", "x", "y").text().to_owned()),
            ..Ground::default()
        };
        let kept = steps(false, &installed);
        assert_eq!(
            kept,
            [
                "stop and disable muster-control-plane.service",
                "remove /etc/systemd/system/muster-control-plane.service",
                "have systemd read its units",
                "remove /usr/local/lib/muster/muster-control-plane",
                "remove /usr/local/lib/muster if it is empty",
            ]
        );
        let purged = steps(true, &installed);
        assert_eq!(purged[..5], kept);
        assert_eq!(
            purged[5..],
            [
                "remove /var/lib/muster/control-plane and all in it",
                "remove /var/lib/muster/operator and all in it",
                "remove /etc/systemd/system/muster-control-plane.service.d and all in it",
                "remove /var/lib/muster if it is empty",
                "remove the system user muster",
            ]
        );
    }

    #[test]
    fn what_a_package_runs_keeps_its_state() {
        let ours = Unit::new("[Service]\n", "x", "y").text().to_owned();
        let refuses = |purge: bool, unit: Option<&String>| {
            let layout = Layout::system();
            let removal = Removal {
                service: &SERVICE,
                layout: &layout,
                purge,
                end: false,
                groups: Vec::new(),
                command: "muster control-plane uninstall".to_owned(),
            };
            let ground = Ground {
                is_root: true,
                unit: unit.cloned(),
                elsewhere: Some("/usr/lib/systemd/system/muster-control-plane.service".into()),
                ..Ground::default()
            };
            let obstacle = removal.plan(&ground).obstacle();
            matches!(obstacle, Err(ServiceError::Foreign(_)))
        };
        assert!(refuses(false, None) && refuses(true, None));
        assert!(refuses(true, Some(&ours)));
        // Ours goes, and the package's is what is left.
        assert!(!refuses(false, Some(&ours)));
    }

    #[test]
    fn what_was_never_installed_leaves_nothing_to_do() {
        let bare = Ground {
            is_root: true,
            ..Ground::default()
        };
        assert_eq!(steps(false, &bare), Vec::<String>::new());
    }
}
