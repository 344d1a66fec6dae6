//! How much a principal may do, as `limits.toml` says it.

use std::collections::HashMap;

use serde::Deserialize;

/// Limits by principal and by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    principal: HashMap<String, Table>,
    kind: HashMap<Kind, Table>,
    default: Table,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Operator,
    Ai,
    Automation,
}

/// What happens to whoever goes over a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Trip {
    /// It may only look and cancel, until somebody lifts that.
    #[default]
    Suspend,
    /// Its call is refused.
    Refuse,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Table {
    jobs_per_minute: Option<u32>,
    hosts_per_job: Option<u32>,
    concurrent_tasks: Option<u32>,
    output_bytes_per_hour: Option<u64>,
    trip: Option<Trip>,
}

/// The limits of one principal; `None` is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Limit {
    /// Jobs created in any 60 s.
    pub(crate) jobs_per_minute: Option<u32>,
    /// Hosts of one job.
    pub(crate) hosts_per_job: Option<u32>,
    /// Tasks of its jobs that are not final.
    pub(crate) concurrent_tasks: Option<u32>,
    /// Output of its jobs' tasks in any hour.
    pub(crate) output_bytes_per_hour: Option<u64>,
    /// What happens at more.
    pub(crate) trip: Trip,
}

impl Limits {
    /// Reads the file. An error comes with its offset.
    pub(super) fn read(text: &str) -> Result<Self, (usize, String)> {
        toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            (offset, error.message().to_owned())
        })
    }

    /// The limits of a principal.
    pub(crate) fn of(&self, principal: &str) -> Limit {
        let kind = match principal.split_once('/').map_or("", |(kind, _)| kind) {
            "ai" => Some(Kind::Ai),
            "automation" => Some(Kind::Automation),
            "operator" => Some(Kind::Operator),
            _ => None,
        };
        let own = self.principal.get(principal);
        let kind = kind.and_then(|kind| self.kind.get(&kind));
        let tables = [own, kind, Some(&self.default)];
        let tables = || tables.into_iter().flatten();
        Limit {
            jobs_per_minute: tables().find_map(|table| table.jobs_per_minute),
            hosts_per_job: tables().find_map(|table| table.hosts_per_job),
            concurrent_tasks: tables().find_map(|table| table.concurrent_tasks),
            output_bytes_per_hour: tables().find_map(|table| table.output_bytes_per_hour),
            trip: tables().find_map(|table| table.trip).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_table_that_names_a_limit_has_it() {
        let text = "[default]\nhosts_per_job = 9\n[kind.ai]\njobs_per_minute = 5\n\
                    [principal.\"ai/fast\"]\njobs_per_minute = 50\ntrip = \"refuse\"";
        let limits = Limits::read(text).unwrap();
        let ai = limits.of("ai/claude");
        assert_eq!(
            (ai.jobs_per_minute, ai.hosts_per_job, ai.trip),
            (Some(5), Some(9), Trip::Suspend)
        );
        let fast = limits.of("ai/fast");
        assert_eq!((fast.jobs_per_minute, fast.trip), (Some(50), Trip::Refuse));
        assert_eq!(limits.of("operator/ada").jobs_per_minute, None);
    }

    #[test]
    fn a_word_that_means_nothing_is_refused() {
        let (offset, _) = Limits::read("[kind.ai]\njob_per_minute = 5").unwrap_err();
        assert!(offset >= 10, "{offset}");
        Limits::read("[kind.host]\n").unwrap_err();
    }
}
