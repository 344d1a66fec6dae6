//! Output that goes on until the story has seen enough: numbered lines, so that a lost or repeated byte shows.
//!
//! A fixed amount of output may be through before the story looks, however much it is; then a cut or a
//! kill that was to come in its middle never comes there.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines of one piece: some 130 KiB, two pipes full.
const LINES: u64 = 20_000;

/// The files by which a story and a script that writes agree on the end.
#[derive(Debug)]
pub struct Flow {
    stop: PathBuf,
    pieces: PathBuf,
}

impl Flow {
    /// A flow whose files are in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self {
            stop: dir.join("stop"),
            pieces: dir.join("pieces"),
        }
    }

    /// Shell text that writes the numbers from 1 on, a pause of `pause_s` seconds after each piece, until
    /// [`Flow::stop`].
    pub fn script(&self, pause_s: f64) -> String {
        format!(
            "i=0; until [ -e '{stop}' ]; do seq $((i*{LINES}+1)) $((i*{LINES}+{LINES})); i=$((i+1)); \
             sleep {pause_s}; done; echo $i > '{pieces}'",
            stop = self.stop.display(),
            pieces = self.pieces.display()
        )
    }

    /// Lets the script end with the piece it is at.
    pub fn stop(&self) {
        fs::write(&self.stop, "").unwrap();
    }

    /// How many lines the script wrote; it has ended.
    pub fn lines(&self) -> u64 {
        let pieces = fs::read_to_string(&self.pieces).unwrap();
        pieces.trim().parse::<u64>().unwrap() * LINES
    }
}

/// What a flow, or `seq` from 1, wrote: followed as it comes.
#[derive(Debug, Default)]
pub struct Lines {
    /// The last number that came whole.
    pub last: u64,
    /// Bytes so far.
    pub bytes: u64,
    /// The beginning of a line.
    rest: Vec<u8>,
}

impl Lines {
    /// These bytes are what comes next, to the byte.
    pub fn follow(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.rest.extend_from_slice(bytes);
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n');
        let after = self.rest.split_off(whole.map_or(0, |at| at + 1));
        let lines = std::mem::replace(&mut self.rest, after);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            self.last += 1;
            let expected = format!("{}\n", self.last);
            assert!(line == expected.as_bytes(), "{line:?} for {expected:?}");
        }
    }

    /// All `lines` came, and nothing after them.
    pub fn ended_with(&self, lines: u64) {
        assert_eq!(self.last, lines, "all lines came");
        assert!(self.rest.is_empty(), "{:?}", self.rest);
    }
}
