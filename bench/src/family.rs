//! The processes below an agent, found in /proc: the nursery, and the supervisors that it forks.

use std::{collections::BTreeMap, fs, time::Duration};

use crate::process;

/// How the nursery and the supervisors call themselves.
const NAMES: [&str; 2] = ["muster-nursery", "muster-task"];

/// The nurseries of an agent and their supervisors.
#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) nurseries: Vec<u32>,
    pub(crate) supervisors: Vec<u32>,
}

impl Family {
    /// Those that live now.
    pub(crate) fn of(agent: u32) -> Family {
        let nurseries = children(agent);
        let supervisors = nurseries.iter().copied().flat_map(children).collect();
        Family {
            nurseries,
            supervisors,
        }
    }
}

fn children(parent: u32) -> Vec<u32> {
    let is_ours = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        NAMES.contains(&name.trim_end())
    };
    // Each thread has the children that it started.
    let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else {
        return Vec::new();
    };
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .filter(is_ours)
                .collect::<Vec<u32>>()
        })
        .collect()
}

/// CPU time of a family. Nobody waits for a supervisor that ends, so no parent's count holds what it used: each is
/// remembered as it was last seen. It is let go after it has waited for long, so little is missed.
#[derive(Debug, Default)]
pub(crate) struct FamilyCpu {
    seen: BTreeMap<(u32, u64), Cpu>,
}

/// CPU time of processes, and of the children that they have waited for.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Cpu {
    pub(crate) own: Duration,
    /// In ticks of 10 ms.
    pub(crate) children: Duration,
}

impl FamilyCpu {
    /// Looks at those that live now.
    pub(crate) fn look(&mut self, agent: u32) {
        let family = Family::of(agent);
        for pid in family.nurseries.into_iter().chain(family.supervisors) {
            let Some(start) = process::start_time(pid) else {
                continue;
            };
            let cpu = Cpu {
                own: process::cpu(pid).unwrap_or_default(),
                children: process::children_cpu(pid),
            };
            let seen = self.seen.entry((pid, start)).or_default();
            // One that ends while it is looked at shows less.
            seen.own = seen.own.max(cpu.own);
            seen.children = seen.children.max(cpu.children);
        }
    }

    /// The time of all that were ever seen.
    pub(crate) fn sum(&self) -> Cpu {
        self.seen.values().fold(Cpu::default(), |sum, cpu| Cpu {
            own: sum.own + cpu.own,
            children: sum.children + cpu.children,
        })
    }
}
