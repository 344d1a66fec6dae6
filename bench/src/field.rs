//! All that is measured side by side in one run: the relay, Muster once or twice, and OpenSSH.

use tempfile::TempDir;

use crate::{fleet::Fleet, programs::Programs, relay::Relay, ssh::Ssh};

/// The relay's name in what is printed.
pub(crate) const RELAY: &str = "relay";

/// OpenSSH's name in what is printed.
pub(crate) const SSH: &str = "ssh";

/// Everything under measurement. Dropping it stops the processes.
pub(crate) struct Field {
    pub(crate) sides: Vec<Side>,
    pub(crate) relay: Relay,
    /// OpenSSH, if it is to be measured too.
    pub(crate) ssh: Option<Ssh>,
    _directory: TempDir,
}

/// Muster as some programs make it.
pub(crate) struct Side {
    /// Its name beside other sides; empty if it is the only one.
    pub(crate) label: String,
    pub(crate) fleet: Fleet,
}

impl Side {
    /// Its name in a list.
    pub(crate) fn name(&self) -> &str {
        match self.label.as_str() {
            "" => "Muster",
            label => label,
        }
    }
}

impl Field {
    /// Starts everything.
    pub(crate) async fn start(
        programs: &[(String, Programs)],
        ssh: Option<&str>,
    ) -> anyhow::Result<Field> {
        let directory = tempfile::Builder::new().prefix("muster-bench-").tempdir()?;
        let ssh = ssh
            .map(|destination| Ssh::open(directory.path(), destination))
            .transpose()?;
        let relay = Relay::start().await?;
        let mut sides = Vec::new();
        for (label, programs) in programs {
            sides.push(Side {
                label: label.clone(),
                fleet: Fleet::start(programs).await?,
            });
        }
        Ok(Field {
            sides,
            relay,
            ssh,
            _directory: directory,
        })
    }

    /// The command that runs another one by OpenSSH, if that is measured.
    pub(crate) fn over_ssh(&self, argv: &[&str]) -> Option<Vec<String>> {
        self.ssh.as_ref().map(|ssh| ssh.argv(argv))
    }
}
