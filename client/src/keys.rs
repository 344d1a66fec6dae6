//! Keys of a keyboard by name, as the bytes that a terminal sends for them.

use bytes::Bytes;
use muster_proto::v1::Action;

use crate::actions;

/// Keys with names of their own, as a VT220 sends them.
const NAMED: [(&str, &str); 27] = [
    ("backspace", "\x7f"),
    ("delete", "\x1b[3~"),
    ("enter", "\r"),
    ("esc", "\x1b"),
    ("escape", "\x1b"),
    ("f1", "\x1bOP"),
    ("f10", "\x1b[21~"),
    ("f11", "\x1b[23~"),
    ("f12", "\x1b[24~"),
    ("f2", "\x1bOQ"),
    ("f3", "\x1bOR"),
    ("f4", "\x1bOS"),
    ("f5", "\x1b[15~"),
    ("f6", "\x1b[17~"),
    ("f7", "\x1b[18~"),
    ("f8", "\x1b[19~"),
    ("f9", "\x1b[20~"),
    ("insert", "\x1b[2~"),
    ("page-down", "\x1b[6~"),
    ("page-up", "\x1b[5~"),
    ("pagedown", "\x1b[6~"),
    ("pageup", "\x1b[5~"),
    ("return", "\r"),
    ("shift-tab", "\x1b[Z"),
    ("space", " "),
    ("tab", "\t"),
    ("ctrl-space", "\0"),
];

/// The kind of a terminal where nobody says.
const TERM: &str = "xterm-256color";

/// Keys that terminals send in one form or in another: as "xterm" and most of the others, as "screen" and its like, and
/// as the console of Linux and its like.
const CURSOR: [(&str, [&str; 3]); 6] = [
    ("down", ["\x1bOB", "\x1bOB", "\x1b[B"]),
    ("end", ["\x1bOF", "\x1b[4~", "\x1b[4~"]),
    ("home", ["\x1bOH", "\x1b[1~", "\x1b[1~"]),
    ("left", ["\x1bOD", "\x1bOD", "\x1b[D"]),
    ("right", ["\x1bOC", "\x1bOC", "\x1b[C"]),
    ("up", ["\x1bOA", "\x1bOA", "\x1b[A"]),
];

/// How the names of terminals begin that send what "screen" and what the console of Linux sends.
const LIKE_SCREEN: [&str; 4] = ["screen", "tmux", "putty", "st-"];
const LIKE_LINUX: [&str; 5] = ["linux", "rxvt", "vt220", "ansi", "cygwin"];

/// The kind of the terminal that an action's process has, as its TERM.
pub fn term(action: Option<&Action>) -> &str {
    let given = actions::kind(action).and_then(|kind| kind.term());
    given.filter(|term| !term.is_empty()).unwrap_or(TERM)
}

/// The bytes of a key in a terminal of that kind: a single character, "enter", "up", "f5", "ctrl-c", "alt-x". `None` for
/// a name of no key.
pub fn key(name: &str, term: &str) -> Option<Bytes> {
    let mut characters = name.chars();
    if let (Some(_), None) = (characters.next(), characters.next()) {
        return Some(Bytes::copy_from_slice(name.as_bytes()));
    }
    let lower = name.to_ascii_lowercase().replace(['_', '+'], "-");
    if let Some((_, bytes)) = NAMED.iter().find(|(known, _)| *known == lower) {
        return Some(Bytes::from_static(bytes.as_bytes()));
    }
    if let Some((_, forms)) = CURSOR.iter().find(|(known, _)| *known == lower) {
        return Some(Bytes::from_static(forms[form(term)].as_bytes()));
    }
    let control = behind(name, "ctrl")
        .or_else(|| behind(name, "c"))
        .or_else(|| name.strip_prefix('^'));
    if let Some(&[key]) = control.map(str::as_bytes) {
        return control_key(key);
    }
    let inner = key(behind(name, "alt")?, term)?;
    Some([b"\x1b".as_slice(), &inner].concat().into())
}

/// Which form of the cursor keys a terminal sends: the one that its description names, which is the only one that
/// programs on ncurses know. It is that of the mode for applications. Which mode the terminal is in, only all of its
/// output would tell; but what reads keys outside of that mode, as readline, zsh and vim, takes both forms.
fn form(term: &str) -> usize {
    let like = |names: &[&str]| names.iter().any(|name| term.starts_with(name));
    match () {
        () if like(&LIKE_SCREEN) || term == "st" => 1,
        () if like(&LIKE_LINUX) => 2,
        () => 0,
    }
}

/// What stands behind a modifier, as "x" in "alt-x", "Alt+x" or "alt_x".
fn behind<'a>(name: &'a str, modifier: &str) -> Option<&'a str> {
    let (before, behind) = name.split_at_checked(modifier.len())?;
    if !before.eq_ignore_ascii_case(modifier) {
        return None;
    }
    behind.strip_prefix(['-', '+', '_'])
}

fn control_key(key: u8) -> Option<Bytes> {
    let code = match key.to_ascii_uppercase() {
        b'?' => 0x7f,
        code @ 0x40..=0x5f => code & 0x1f,
        _ => return None,
    };
    Some(Bytes::copy_from_slice(&[code]))
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::{Command, Terminal, action};

    use super::*;

    #[test]
    fn keys_have_their_bytes() {
        for (name, bytes) in [
            ("enter", "\r"),
            ("ctrl-c", "\x03"),
            ("Ctrl+C", "\x03"),
            ("^d", "\x04"),
            ("ctrl-[", "\x1b"),
            ("ctrl-_", "\x1f"),
            ("C-_", "\x1f"),
            ("ctrl-?", "\x7f"),
            ("ctrl+space", "\0"),
            ("alt-x", "\x1bx"),
            ("alt+x", "\x1bx"),
            ("alt-_", "\x1b_"),
            ("Alt-Enter", "\x1b\r"),
            ("page_up", "\x1b[5~"),
            ("q", "q"),
            ("ä", "ä"),
        ] {
            assert_eq!(key(name, TERM).unwrap(), bytes, "{name}");
        }
        for name in [
            "",
            "entr",
            "ctrl-",
            "ctrl-é",
            "ctrl-cc",
            "ctrl-1",
            "f13",
            "alt-nothing",
        ] {
            assert_eq!(key(name, TERM), None, "{name}");
        }
    }

    #[test]
    fn cursor_keys_are_those_of_the_terminal() {
        for (term, up, home) in [
            ("xterm-256color", "\x1bOA", "\x1bOH"),
            ("vt100", "\x1bOA", "\x1bOH"),
            ("tmux-256color", "\x1bOA", "\x1b[1~"),
            ("screen", "\x1bOA", "\x1b[1~"),
            ("linux", "\x1b[A", "\x1b[1~"),
            // What a program in a dumb terminal is told otherwise, or takes without being told.
            ("dumb", "\x1bOA", "\x1bOH"),
        ] {
            assert_eq!(key("Up", term).unwrap(), up, "{term}");
            assert_eq!(key("home", term).unwrap(), home, "{term}");
        }
    }

    #[test]
    fn the_terminal_is_that_of_the_process() {
        let mut command = Command {
            terminal: Some(Terminal::default()),
            ..Command::default()
        };
        let action = |command: &Command| Action {
            kind: Some(action::Kind::Command(command.clone())),
        };
        assert_eq!(term(None), TERM);
        assert_eq!(term(Some(&action(&command))), TERM);
        command.terminal.as_mut().unwrap().term = "dumb".to_owned();
        assert_eq!(term(Some(&action(&command))), "dumb");
        command.env.insert("TERM".to_owned(), "linux".to_owned());
        assert_eq!(term(Some(&action(&command))), "linux");
    }
}
