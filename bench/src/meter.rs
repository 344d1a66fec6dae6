//! CPU time of all that takes part in a measurement, so that nothing hides in a process nobody looks at.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::task::JoinHandle;

use crate::{
    family::{Cpu, FamilyCpu},
    fleet::Fleet,
    process::own_cpu,
};

/// How often the supervisors are looked at, as some may end meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Measures from its start.
pub(crate) struct Meter<'fleet> {
    fleet: &'fleet Fleet,
    before: [Duration; 3],
    supervisors_before: Cpu,
    supervisors: Arc<Mutex<FamilyCpu>>,
    looking: JoinHandle<()>,
}

/// CPU time that was used.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) control_plane: Duration,
    pub(crate) agent: Duration,
    pub(crate) supervisors: Duration,
    /// Of the programs that the tasks ran.
    pub(crate) programs: Duration,
    pub(crate) client: Duration,
}

impl<'fleet> Meter<'fleet> {
    pub(crate) fn start(fleet: &'fleet Fleet) -> Self {
        let agent = fleet.agent.id();
        let mut family = FamilyCpu::default();
        family.look(agent);
        let supervisors_before = family.sum();
        let supervisors = Arc::new(Mutex::new(family));
        let shared = supervisors.clone();
        let looking = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(LOOK_EVERY);
            loop {
                ticks.tick().await;
                look(&shared, agent);
            }
        });
        Meter {
            fleet,
            before: Self::now(fleet),
            supervisors_before,
            supervisors,
            looking,
        }
    }

    fn now(fleet: &Fleet) -> [Duration; 3] {
        [fleet.control_plane.cpu(), fleet.agent.cpu(), own_cpu()]
    }

    /// What was used since.
    pub(crate) fn stop(self) -> Usage {
        let now = Self::now(self.fleet);
        self.looking.abort();
        let supervisors = look(&self.supervisors, self.fleet.agent.id());
        let since = |index: usize| now[index].saturating_sub(self.before[index]);
        Usage {
            control_plane: since(0),
            agent: since(1),
            supervisors: supervisors.own.saturating_sub(self.supervisors_before.own),
            programs: supervisors
                .children
                .saturating_sub(self.supervisors_before.children),
            client: since(2),
        }
    }
}

fn look(family: &Mutex<FamilyCpu>, agent: u32) -> Cpu {
    let mut family = family.lock().unwrap_or_else(PoisonError::into_inner);
    family.look(agent);
    family.sum()
}

impl Usage {
    /// The share of one of so many.
    pub(crate) fn each(self, count: usize) -> Each {
        Each(self, count.max(1) as f64)
    }

    /// Both.
    pub(crate) fn and(self, other: Usage) -> Usage {
        Usage {
            control_plane: self.control_plane + other.control_plane,
            agent: self.agent + other.agent,
            supervisors: self.supervisors + other.supervisors,
            programs: self.programs + other.programs,
            client: self.client + other.client,
        }
    }
}

/// Microseconds of CPU for one of many, without those of the client, which measures and starts references too.
pub(crate) struct Each(Usage, f64);

impl Each {
    /// Those of one process.
    pub(crate) fn micros(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.1
    }
}

impl fmt::Display for Each {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "control plane {:.0}, agent {:.0}, supervisors {:.0}",
            self.micros(self.0.control_plane),
            self.micros(self.0.agent),
            self.micros(self.0.supervisors)
        )
    }
}
