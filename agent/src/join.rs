//! How this host joins: a join string becomes an identity.

use std::{
    env, fs,
    io::{self, IsTerminal, Read},
    path::PathBuf,
};

use muster_client::{
    enrollment::{self, EnrollmentError},
    identity::Identity,
    join::{JoinString, JoinStringError},
};

use crate::{config::Config, facts};

/// The environment variable that may hold the join string.
const VARIABLE: &str = "MUSTER_JOIN";

/// A join string is shorter than this, bytes.
const LENGTH_MAX: u64 = 4096;

/// How this host joins. The join string is a secret, so no argument holds it: it comes from MUSTER_JOIN,
/// from a file, or from standard input.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct Join {
    /// File that holds the join string; without it, MUSTER_JOIN or standard input does
    #[arg(long, value_name = "FILE")]
    pub join_file: Option<PathBuf>,

    /// What this host would like to be called, unless the join token says [default: its host name]
    #[arg(long, env = "MUSTER_HOST_NAME", value_name = "NAME")]
    pub name: Option<String>,
}

/// Why there is no join string.
#[derive(Debug, thiserror::Error)]
pub enum NoJoinString {
    /// Nobody gave one.
    #[error(
        "no join string: set {VARIABLE}, say --join-file FILE, or write it to standard input; `muster token create host NAME` makes one"
    )]
    Missing,
    /// The join string cannot be read.
    #[error("{place}: {source}")]
    Unreadable {
        /// The place where the join string should be.
        place: String,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// It is malformed.
    #[error("the join string in {place} cannot be used: {source}")]
    Malformed {
        /// The place that the join string came from.
        place: String,
        /// What is wrong.
        source: JoinStringError,
    },
}

impl Join {
    /// Reads the join string: from the file if one is named, else from MUSTER_JOIN, else from standard
    /// input unless that is a terminal.
    pub fn join_string(&self) -> Result<JoinString, NoJoinString> {
        let (place, text) = match &self.join_file {
            Some(path) => {
                let place = path.display().to_string();
                (place, fs::File::open(path).and_then(limited))
            }
            None => match env::var(VARIABLE) {
                Ok(text) if !text.is_empty() => (VARIABLE.to_owned(), Ok(text)),
                _ if io::stdin().is_terminal() => return Err(NoJoinString::Missing),
                _ => ("standard input".to_owned(), limited(io::stdin())),
            },
        };
        match text {
            Err(source) => Err(NoJoinString::Unreadable { place, source }),
            Ok(text) if text.trim().is_empty() => Err(NoJoinString::Missing),
            Ok(text) => text
                .parse()
                .map_err(|source| NoJoinString::Malformed { place, source }),
        }
    }
}

fn limited(source: impl Read) -> io::Result<String> {
    let mut text = String::new();
    source.take(LENGTH_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Exchanges a join string for an identity of this host, in the agent's part of the data directory. `name`
/// is what the host would like to be called; empty means its host name. Safe to repeat.
pub async fn join(
    config: &Config,
    join_string: &JoinString,
    name: &str,
) -> Result<Identity, EnrollmentError> {
    let hostname = facts::hostname();
    let name = if name.is_empty() { &hostname } else { name };
    enrollment::join(&config.directory(), join_string, name).await
}
