//! OpenSSH beside Muster: one open connection, over which commands run one by one.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

/// A connection of OpenSSH that stays open. Dropping it closes it.
pub(crate) struct Ssh {
    socket: PathBuf,
    destination: Vec<String>,
}

impl Ssh {
    /// Connects. `destination` holds ssh's arguments, as "-p 2222 root@127.0.0.1"; it must work without a
    /// password.
    pub(crate) fn open(directory: &Path, destination: &str) -> anyhow::Result<Ssh> {
        let ssh = Ssh {
            socket: directory.join("ssh.socket"),
            destination: destination.split_whitespace().map(str::to_owned).collect(),
        };
        let status = ssh
            .command(&["-M", "-N", "-f", "-o", "BatchMode=yes"])
            .status()
            .context("ssh does not start")?;
        ensure!(status.success(), "ssh {destination} ended with {status}");
        Ok(ssh)
    }

    /// What to run here so that a command runs there.
    pub(crate) fn argv(&self, command: &[impl AsRef<str>]) -> Vec<String> {
        let quoted = command
            .iter()
            .map(|word| format!("'{}'", word.as_ref().replace('\'', r"'\''")));
        let mut argv = vec!["ssh".to_owned(), "-S".to_owned()];
        argv.push(self.socket.to_string_lossy().into_owned());
        argv.extend(self.destination.iter().cloned());
        argv.extend(quoted);
        argv
    }

    fn command(&self, options: &[&str]) -> Command {
        // The reference is a process of this program and nothing between.
        #[allow(clippy::disallowed_methods)]
        let mut command = Command::new("ssh");
        command
            .arg("-S")
            .arg(&self.socket)
            .args(options)
            .args(&self.destination)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        let _ = self.command(&["-q", "-O", "exit"]).status();
    }
}
