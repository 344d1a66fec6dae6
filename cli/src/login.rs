//! `muster login` and `muster logout`: how a person becomes an operator on a machine, and stops being one.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use muster_agent::Join;
use muster_client::{enrollment, identity::IdentityError};
use serde_json::json;

use crate::{
    failure::{Failure, exit},
    operator::known,
    screen::{self, clean, say},
    time,
};

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  MUSTER_JOIN='mst_join_…' muster login
  muster login --join-file invitation
An operator makes the join string: muster access invite NAME. It works once, for one key that is made here.")]
pub(crate) struct Login {
    /// File that holds the join string; without it, MUSTER_JOIN or standard input does
    #[arg(long, value_name = "FILE")]
    join_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Logout {}

impl Login {
    pub(crate) async fn run(self, data_dir: &Path) -> Result<u8, Failure> {
        let directory = data_dir.join("operator");
        if let Some(identity) = known(&directory)
            && !identity.is_expired()
        {
            return Err(Failure::usage(format!(
                "you are {} at {} already",
                identity.spiffe_id(),
                identity.address()
            ))
            .next("`muster logout` first, or choose another --data-dir"));
        }
        let source = Join {
            join_file: self.join_file,
            name: None,
        };
        let join = source
            .join_string()
            .map_err(|error| Failure::usage(error.to_string()))?;
        let identity =
            enrollment::join(&directory, &join, "")
                .await
                .map_err(|error| match error.reason() {
                    Some(reason) => Failure {
                        reason: Some(reason),
                        ..Failure::new(exit::NOT_ALLOWED, clean(&error.to_string()))
                    }
                    .next("ask an operator for another join string: muster access invite NAME"),
                    None => Failure::new(exit::UNAVAILABLE, error.to_string()),
                })?;
        if self.json {
            screen::print_json(&json!({
                "principal": format!("operator/{}", identity.name()),
                "address": identity.address(),
                "expire_time": time::rfc3339(Some(&identity.expires().into())),
            }))?;
            return Ok(0);
        }
        screen::print(&format!(
            "operator/{} at {}, until {}\n",
            clean(identity.name()),
            identity.address(),
            time::local(Some(&identity.expires().into())),
        ))?;
        say("the certificate renews itself while you use it; `muster logout` forgets it");
        Ok(0)
    }
}

impl Logout {
    pub(crate) fn run(self, data_dir: &Path) -> Result<u8, Failure> {
        let directory = data_dir.join("operator");
        match fs::remove_dir_all(&directory) {
            Ok(()) => {
                say("the operator's key and certificate are gone from this machine");
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let missing = IdentityError::Missing(directory);
                Err(Failure::usage(missing.to_string()))
            }
            Err(error) => Err(Failure::file(&directory, &error)),
        }
    }
}
