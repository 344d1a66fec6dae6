//! Keys of a keyboard by name, as the bytes that a terminal sends for them.

use bytes::Bytes;

/// Keys with names of their own, as a VT220 in normal mode sends them.
const NAMED: [(&str, &str); 33] = [
    ("backspace", "\x7f"),
    ("delete", "\x1b[3~"),
    ("down", "\x1b[B"),
    ("end", "\x1b[F"),
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
    ("home", "\x1b[H"),
    ("insert", "\x1b[2~"),
    ("left", "\x1b[D"),
    ("page-down", "\x1b[6~"),
    ("page-up", "\x1b[5~"),
    ("pagedown", "\x1b[6~"),
    ("pageup", "\x1b[5~"),
    ("return", "\r"),
    ("right", "\x1b[C"),
    ("shift-tab", "\x1b[Z"),
    ("space", " "),
    ("tab", "\t"),
    ("up", "\x1b[A"),
    ("ctrl-space", "\0"),
];

/// The bytes of a key: a single character, "enter", "up", "f5", "ctrl-c", "alt-x". `None` for a name of no key.
pub fn key(name: &str) -> Option<Bytes> {
    let mut characters = name.chars();
    if let (Some(_), None) = (characters.next(), characters.next()) {
        return Some(Bytes::copy_from_slice(name.as_bytes()));
    }
    let lower = name.to_ascii_lowercase().replace(['_', '+'], "-");
    if let Some((_, bytes)) = NAMED.iter().find(|(known, _)| *known == lower) {
        return Some(Bytes::from_static(bytes.as_bytes()));
    }
    let control = lower
        .strip_prefix("ctrl-")
        .or_else(|| lower.strip_prefix("c-"))
        .or_else(|| lower.strip_prefix('^'));
    if let Some(&[key]) = control.map(str::as_bytes) {
        let code = key.to_ascii_uppercase();
        return (0x40..=0x5f)
            .contains(&code)
            .then(|| Bytes::copy_from_slice(&[code & 0x1f]));
    }
    let with_alt = name.get(..4)?;
    if !with_alt.eq_ignore_ascii_case("alt-") {
        return None;
    }
    let inner = key(&name[4..])?;
    Some([b"\x1b".as_slice(), &inner].concat().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_bytes() {
        for (name, bytes) in [
            ("enter", "\r"),
            ("Up", "\x1b[A"),
            ("ctrl-c", "\x03"),
            ("Ctrl+C", "\x03"),
            ("^d", "\x04"),
            ("ctrl-[", "\x1b"),
            ("alt-x", "\x1bx"),
            ("Alt-Enter", "\x1b\r"),
            ("page_up", "\x1b[5~"),
            ("q", "q"),
            ("ä", "ä"),
        ] {
            assert_eq!(key(name).unwrap(), bytes, "{name}");
        }
        for name in [
            "",
            "entr",
            "ctrl-",
            "ctrl-é",
            "ctrl-cc",
            "f13",
            "alt-nothing",
        ] {
            assert_eq!(key(name), None, "{name}");
        }
    }
}
