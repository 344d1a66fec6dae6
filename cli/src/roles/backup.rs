//! `muster control-plane backup`, `muster control-plane restore`.

use std::path::{Path, PathBuf};

use muster_control_plane::{BackedUp, BackupError, Restored, back_up, default_target, restore};
use serde_json::json;

use crate::{
    failure::{Failure, exit},
    screen::{self, bytes, say},
};

/// Back up a control plane, while it runs or not
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  muster control-plane backup
  muster control-plane backup --to /mnt/backups/monday
  muster control-plane backup --to /mnt/backups/monday.tar

A backup holds the ledger as one moment has it, the output, the authority and the keys: whoever reads it can act as \
this control plane. It is checked when it is made, and never written over another.")]
pub(crate) struct Backup {
    /// A new folder, or a new tar file if the name ends in ".tar" [default: the time, in backups/ of the data directory]
    #[arg(long, value_name = "PATH")]
    to: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Restore a control plane from a backup, while it does not run
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  muster control-plane restore ~/.local/share/muster/backups/20261125T190315Z
  muster control-plane restore /mnt/backups/monday.tar --data-dir /var/lib/muster

Every file is checked first, and what was there is kept beside it. At its next start the control plane asks all hosts \
for what they still know, so that its history is whole again. Jobs that were pending in the backup are not offered to \
anybody before `muster job release`: they may have run since. What was locked, removed or revoked after the backup \
has to be again.")]
pub(crate) struct Restore {
    /// The backup: a folder or a tar file
    #[arg(value_name = "PATH")]
    from: PathBuf,
    /// Restore over a ledger that is newer, another control plane's, or cannot be read; it is kept beside it
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Backup {
    pub(crate) async fn run(self, data_dir: &Path) -> Result<u8, Failure> {
        let to = self.to.unwrap_or_else(|| default_target(data_dir));
        let made = back_up(&data_dir.join("control-plane"), &to).await;
        let BackedUp {
            path,
            ledger_position,
            files,
            bytes: size,
        } = made.map_err(failure)?;
        if self.json {
            screen::print_json(&json!({"backup": {
                "path": path,
                "ledger_position": ledger_position,
                "files": files,
                "bytes": size,
            }}))?;
        } else {
            let size = bytes(i64::try_from(size).unwrap_or(i64::MAX));
            screen::print(&format!(
                "{}: {files} files, {size}, ledger position {ledger_position}\n",
                path.display()
            ))?;
            say("keep it as safe as the control plane itself: it holds the authority's key");
        }
        Ok(0)
    }
}

impl Restore {
    pub(crate) async fn run(self, data_dir: &Path) -> Result<u8, Failure> {
        let directory = data_dir.join("control-plane");
        let Restored {
            create_time,
            ledger_position,
            pending_tasks,
            replaced,
            other_authority,
        } = restore(&directory, &self.from, self.force)
            .await
            .map_err(failure)?;
        if self.json {
            screen::print_json(&json!({"restored": {
                "directory": directory,
                "create_time": create_time,
                "ledger_position": ledger_position,
                "pending_tasks": pending_tasks,
                "replaced": replaced,
                "other_authority": other_authority,
            }}))?;
            return Ok(0);
        }
        screen::print(&format!(
            "{}: restored from a backup of {create_time}, ledger position {ledger_position}\n",
            directory.display()
        ))?;
        if let Some(replaced) = replaced {
            say(&format!("what was there is in {}", replaced.display()));
        }
        if other_authority {
            say(
                "the backup is of before a rotation of the authority: hosts, gateways and operators that trust the \
                 other one by now do not trust this control plane, and have to join again; to spare them that, restore \
                 a backup of after it",
            );
        }
        say("start it: hosts then upload what they know since");
        if pending_tasks > 0 {
            say(&format!(
                "{pending_tasks} tasks were pending and may have run since: look with `muster job list --state \
                 pending`, then `muster job release` or `muster job cancel`"
            ));
        }
        say("what was locked, removed or revoked after the backup has to be again");
        Ok(0)
    }
}

fn failure(error: BackupError) -> Failure {
    let code = match error {
        BackupError::NoControlPlane(_)
        | BackupError::Exists(_)
        | BackupError::NotABackup { .. }
        | BackupError::Present { .. } => exit::USAGE,
        _ => exit::UNAVAILABLE,
    };
    Failure::new(code, error.to_string())
}
