//! Modes and networks as people write them.

use muster_proto::v1::{Mode, Network, network::Access};

use crate::failure::Failure;

/// How far a job may reach.
#[derive(clap::Args, Debug, Clone, Default)]
pub(crate) struct Reach {
    /// How far it may reach: read-only, edit or unrestricted (plan and bypass are taken too) [default: as far as
    /// policy and host allow]
    #[arg(long, value_name = "MODE", value_parser = task_mode)]
    mode: Option<Mode>,

    /// Which sockets it may open: none, all, or a list of addresses with ports (10.0.0.0/8:443,[::1]:80,*:53)
    /// [default: none in read-only, else all]
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    network: Option<Network>,

    /// Why: for whoever approves it, and for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Reach {
    /// Writes it into a request.
    pub(crate) fn fill(&self, request: &mut muster_proto::v1::CreateJobRequest) {
        request.mode = self.mode.unwrap_or_default().into();
        request.network = self.network.clone();
        request.reason = self.reason.clone().unwrap_or_default();
    }
}

/// A mode of a job.
pub(crate) fn task_mode(text: &str) -> Result<Mode, String> {
    match host_mode(text)? {
        Mode::Disabled | Mode::Unspecified => Err("nothing starts in that mode".to_owned()),
        mode => Ok(mode),
    }
}

/// A mode of a host; "own" leaves it to the host's own policy.
pub(crate) fn host_mode(text: &str) -> Result<Mode, String> {
    match text {
        "own" => Ok(Mode::Unspecified),
        _ => Mode::from_text(text)
            .ok_or_else(|| "expected read-only, edit, unrestricted or disabled".to_owned()),
    }
}

fn network(text: &str) -> Result<Network, String> {
    let (access, allow) = match text {
        "none" => (Access::None, Vec::new()),
        "all" => (Access::All, Vec::new()),
        "" => return Err("expected none, all, or ADDRESS:PORT,…".to_owned()),
        list => (
            Access::List,
            list.split(',').map(|one| one.trim().to_owned()).collect(),
        ),
    };
    Ok(Network {
        access: access.into(),
        allow,
    })
}

/// A mode of a job as an argument of a command that asks about one.
pub(crate) fn asked(text: Option<&str>) -> Result<Mode, Failure> {
    match text {
        None => Ok(Mode::Unspecified),
        Some(text) => host_mode(text).map_err(Failure::usage),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_networks_are_read() {
        assert_eq!(task_mode("plan"), Ok(Mode::ReadOnly));
        assert_eq!(task_mode("bypass"), Ok(Mode::Unrestricted));
        assert!(task_mode("disabled").is_err() && task_mode("root").is_err());
        assert_eq!(host_mode("own"), Ok(Mode::Unspecified));
        assert_eq!(network("none").unwrap().access(), Access::None);
        let list = network("10.0.0.0/8:443, [::1]:80").unwrap();
        assert_eq!(list.allow, ["10.0.0.0/8:443", "[::1]:80"]);
    }
}
