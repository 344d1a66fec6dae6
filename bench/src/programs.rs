//! Which programs are measured.

use std::path::{Path, PathBuf};

/// Paths of the programs of a release.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// Control plane, gateway and command line.
    pub(crate) muster: PathBuf,
    /// The agent.
    pub(crate) agent: PathBuf,
}

impl Programs {
    /// The programs in a directory.
    pub(crate) fn of(directory: &Path) -> Programs {
        Programs {
            muster: directory.join("muster"),
            agent: directory.join("muster-agent"),
        }
    }
}
