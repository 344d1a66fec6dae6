//! A file that tells how often something ran: each run appends a line, so that a second start shows.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A file to which every run appends one line.
#[derive(Debug, Clone)]
pub struct Tally {
    path: PathBuf,
}

impl Tally {
    /// A tally in `dir`; the file comes with the first line.
    pub fn new(dir: &Path) -> Self {
        Self {
            path: dir.join("ran.txt"),
        }
    }

    /// A shell command that appends a line. `>>` opens with `O_APPEND`, so lines never overwrite each other.
    pub fn mark(&self) -> String {
        format!("echo ran >> '{}'", self.path.display())
    }

    /// How many lines there are.
    pub fn runs(&self) -> usize {
        fs::read_to_string(&self.path).map_or(0, |text| text.lines().count())
    }
}
