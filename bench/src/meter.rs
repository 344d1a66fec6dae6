//! CPU time of all that takes part in a measurement, so that nothing hides in a process nobody looks at.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::task::JoinHandle;

use crate::{
    family::{Cpu, FamilyCpu},
    process::{self, Program},
};

/// How often the supervisors are looked at, as some may end meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Until work that was put off is done.
pub(crate) const SETTLED: Duration = Duration::from_secs(3);

/// Measures from its start.
pub(crate) struct Meter {
    control_plane: u32,
    agent: u32,
    before: [Duration; 2],
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
    /// CPU time of the programs that the tasks ran.
    pub(crate) programs: Duration,
}

impl Meter {
    /// Measures a control plane, an agent, and the processes below the agent.
    pub(crate) fn start(control_plane: &Program, agent: &Program) -> Self {
        let (control_plane, agent) = (control_plane.id(), agent.id());
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
            control_plane,
            agent,
            before: Self::now(control_plane, agent),
            supervisors_before,
            supervisors,
            looking,
        }
    }

    fn now(control_plane: u32, agent: u32) -> [Duration; 2] {
        let cpu = |pid| process::cpu(pid).unwrap_or_default();
        [cpu(control_plane), cpu(agent)]
    }

    /// The CPU time since the start.
    pub(crate) fn stop(self) -> Usage {
        let now = Self::now(self.control_plane, self.agent);
        self.looking.abort();
        let supervisors = look(&self.supervisors, self.agent);
        let since = |index: usize| now[index].saturating_sub(self.before[index]);
        Usage {
            control_plane: since(0),
            agent: since(1),
            supervisors: supervisors.own.saturating_sub(self.supervisors_before.own),
            programs: supervisors
                .children
                .saturating_sub(self.supervisors_before.children),
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
}

/// Microseconds of CPU for one of many.
pub(crate) struct Each(Usage, f64);

impl Each {
    fn micros(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.1
    }

    /// CPU time of the programs that the tasks ran.
    pub(crate) fn programs(&self) -> f64 {
        self.micros(self.0.programs)
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
