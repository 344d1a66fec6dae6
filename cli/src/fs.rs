//! `muster fs …`: files of hosts.

mod cat;
mod part;
mod stat;

use std::time::Duration;

use muster_client::files;
use muster_proto::v1::{CreateJobRequest, FileRead, Mode};

use crate::{failure::Failure, mode, operator::Operator, run::confirm::Confirm, time};

#[derive(clap::Subcommand, Debug)]
pub(crate) enum FsCommand {
    /// Write the content of a file, or a part of it, to standard output
    Cat(cat::Cat),
    /// Show what a file is: type, size, permissions, owner, times
    Stat(stat::Stat),
}

pub(crate) async fn run(command: FsCommand, operator: &Operator) -> Result<u8, Failure> {
    match command {
        FsCommand::Cat(cat) => cat.run(operator).await,
        FsCommand::Stat(stat) => stat.run(operator).await,
    }
}

/// Which file, and as whom it is read.
#[derive(clap::Args, Debug)]
struct Place {
    /// Where and which, as web-1:/etc/hosts. Any selector may stand before the first colon
    #[arg(value_name = "HOST:PATH")]
    place: String,

    /// The path for itself: then the first argument is the selector, whatever colons it has
    path: Option<String>,

    /// Read as this user of the host, where its agent may
    #[arg(long, value_name = "USER")]
    user: Option<String>,

    /// How far the reading may reach: read-only, edit or unrestricted [default: as far as policy and host allow]
    #[arg(long, value_name = "MODE", value_parser = mode::task_mode)]
    mode: Option<Mode>,

    /// End it after this long [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,

    /// Why: for whoever approves it, and for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    #[command(flatten)]
    confirm: Confirm,
}

impl Place {
    /// The request of a job that does this with the file.
    fn request(&self, file: FileRead) -> Result<CreateJobRequest, Failure> {
        let (selector, path) = split(&self.place, self.path.as_deref())?;
        let file = FileRead {
            path: path.to_owned(),
            user: self.user.clone().unwrap_or_default(),
            timeout: self.timeout.and_then(time::wire),
            ..file
        };
        Ok(CreateJobRequest {
            selector: selector.to_owned(),
            action: Some(files::action(file)),
            mode: self.mode.unwrap_or_default().into(),
            reason: self.reason.clone().unwrap_or_default(),
            ..CreateJobRequest::default()
        })
    }
}

/// Selector and path. No name of a host holds a colon; values of labels may, and then the path stands for itself.
fn split<'a>(place: &'a str, path: Option<&'a str>) -> Result<(&'a str, &'a str), Failure> {
    let (selector, path) = match path {
        Some(path) => (place, path),
        None => place.split_once(':').unwrap_or((place, "")),
    };
    if selector.is_empty() || path.is_empty() {
        return Err(Failure::usage("it takes a host and a path").next(
            "write HOST:PATH, as web-1:/etc/hosts or 'env=prod:/etc/hosts'; a path that does not begin with / or ~ \
             begins in the user's home directory",
        ));
    }
    Ok((selector, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_selector_and_a_path() {
        for (place, path, selector, file) in [
            ("web-1:/etc/hosts", None, "web-1", "/etc/hosts"),
            ("web-1:notes:old", None, "web-1", "notes:old"),
            (
                "role in (web,api):~/.profile",
                None,
                "role in (web,api)",
                "~/.profile",
            ),
            ("web-1", Some("/etc/hosts"), "web-1", "/etc/hosts"),
            ("image=nginx:1.29", Some("/a:b"), "image=nginx:1.29", "/a:b"),
        ] {
            assert_eq!(split(place, path).unwrap(), (selector, file), "{place}");
        }
        for (place, path) in [
            ("web-1", None),
            ("web-1:", None),
            (":/etc/hosts", None),
            ("/etc/hosts", None),
            ("web-1", Some("")),
        ] {
            assert!(split(place, path).is_err(), "{place}");
        }
    }
}
