//! Which programs are measured.

use std::path::{Path, PathBuf};

/// Where the programs of a release are.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// Control plane, gateway and command line.
    pub(crate) muster: PathBuf,
    /// The agent.
    pub(crate) agent: PathBuf,
}

impl Programs {
    /// Those in a directory.
    pub(crate) fn of(directory: &Path) -> Programs {
        Programs {
            muster: directory.join("muster"),
            agent: directory.join("muster-agent"),
        }
    }
}
