//! This program's own terminal: raw while somebody works in another, and as it was on every way out.

use std::{
    io::{self, IsTerminal as _, Write as _},
    os::fd::AsFd as _,
};

use muster_proto::v1::Terminal;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal is raw until this is dropped.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes the terminal on standard input raw.
    pub(super) fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // What was typed and not read is not for the shell that comes back.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Flush, &self.before);
    }
}

/// Lines, and characters in a line, of the terminal; `None` without one that knows.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout().as_fd())
        .or_else(|_| tcgetwinsize(io::stdin().as_fd()))
        .ok()?;
    let sides = (size.ws_row.min(1000), size.ws_col.min(1000));
    (sides.0 > 0 && sides.1 > 0).then_some(sides)
}

/// A terminal like this one; one of the usual size without one.
pub(crate) fn like_this() -> Terminal {
    let (rows, columns) = size().unwrap_or_default();
    let term = std::env::var("TERM").unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    Terminal {
        rows: rows.into(),
        columns: columns.into(),
        term: Some(term)
            .filter(|term| term.len() <= 64 && term.chars().all(plain) && term != "dumb")
            .unwrap_or_default(),
    }
}

/// Somebody types and reads here.
pub(crate) fn is_there() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Modes that would outlive a program which is left while it runs: the number of each, what enters and what leaves it.
const MODES: [(&str, char, char); 11] = [
    ("1", 'h', 'l'),
    ("25", 'l', 'h'),
    ("47", 'h', 'l'),
    ("1000", 'h', 'l'),
    ("1002", 'h', 'l'),
    ("1003", 'h', 'l'),
    ("1004", 'h', 'l'),
    ("1006", 'h', 'l'),
    ("1047", 'h', 'l'),
    ("1049", 'h', 'l'),
    ("2004", 'h', 'l'),
];

/// The longest control sequence that is looked at.
const SEQUENCE_MAX: usize = 64;

/// Which of `MODES` the output has entered and not left.
#[derive(Default)]
pub(crate) struct Modes {
    entered: [bool; MODES.len()],
    /// A sequence that has begun, without "ESC [".
    open: Option<String>,
    escaped: bool,
    /// The output has steered the terminal at all.
    steered: bool,
}

impl Modes {
    /// Looks at output on its way to the terminal.
    pub(crate) fn look(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(open) = &mut self.open {
                open.push(char::from(*byte));
                if byte.is_ascii_alphabetic() {
                    let sequence = self.open.take().unwrap_or_default();
                    self.took(&sequence);
                } else if open.len() >= SEQUENCE_MAX || !byte.is_ascii_graphic() {
                    self.open = None;
                }
            } else if self.escaped && *byte == b'[' {
                self.open = Some(String::new());
            }
            self.escaped = *byte == 0x1b;
            self.steered |= self.escaped;
        }
    }

    /// One sequence may enter or leave several.
    fn took(&mut self, sequence: &str) {
        let mut private = sequence.strip_prefix('?').unwrap_or_default().chars();
        let Some(letter) = private.next_back() else {
            return;
        };
        for number in private.as_str().split(';') {
            for (entered, (mode, enter, leave)) in self.entered.iter_mut().zip(MODES) {
                if number == mode && (letter == enter || letter == leave) {
                    *entered = letter == enter;
                }
            }
        }
    }

    /// What leaves them all.
    fn leave(&self) -> String {
        if !self.steered {
            return String::new();
        }
        let mut text: String = self
            .entered
            .iter()
            .zip(MODES)
            .filter(|(entered, _)| **entered)
            .map(|(_, (mode, _, leave))| format!("\x1b[?{mode}{leave}"))
            .collect();
        // The keypad is as it was, and so are the colours.
        text.push_str("\x1b>\x1b[0m");
        text
    }

    /// Leaves them all on this terminal, if there is one.
    pub(crate) fn reset(&self) {
        let mut out = io::stdout().lock();
        if !out.is_terminal() {
            return;
        }
        // Nobody is left to see it.
        let _ = out.write_all(self.leave().as_bytes());
        let _ = out.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_left_that_were_entered() {
        let mut modes = Modes::default();
        modes.look(b"plain ");
        assert_eq!(modes.leave(), "");
        modes.look(b"\x1b[1;31mred\x1b[?2004h\x1b[?1049h\x1b[?2");
        modes.look(b"5l text \x1b[?2004l");
        assert_eq!(modes.leave(), "\x1b[?25h\x1b[?1049l\x1b>\x1b[0m");
        modes.look(b"\x1b[?1049l\x1b[?25h");
        assert_eq!(modes.leave(), "\x1b>\x1b[0m");
    }

    #[test]
    fn one_sequence_enters_and_leaves_several_modes() {
        let mut modes = Modes::default();
        modes.look(b"\x1b[?1000;1002;1003;1006h\x1b[?12;25l\x1b[25h\x1b[?7h\x1b[?1000$p");
        assert_eq!(
            modes.leave(),
            "\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b>\x1b[0m"
        );
        modes.look(b"\x1b[?1006;1003;1002;1000l\x1b[?25h");
        assert_eq!(modes.leave(), "\x1b>\x1b[0m");
    }

    #[test]
    fn no_sequence_is_remembered_for_ever() {
        let mut modes = Modes::default();
        modes.look(b"\x1b[");
        modes.look(&[b'1'; 1000]);
        assert!(modes.open.is_none());
    }
}
