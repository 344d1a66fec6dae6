//! Bytes of a terminal as text that is safe to show: one line at a time.
//!
//! What a terminal would show stays: colours and cursor movement go, `\r` and backspace overwrite.
//! What a reader could not see, or that would reorder what is seen, is shown escaped (`\xff`,
//! `\u{202e}`). Secrets of Muster itself become `[redacted]`.

/// Begins every secret that Muster hands out.
const SECRET_PREFIX: &str = "mst_";
/// As far to the right as a cursor is moved.
const COLUMNS_MAX: usize = 200;
/// A secret is at least this long; shorter words that begin alike are left alone.
const SECRET_MIN: usize = 20;

/// One line, without its end, as it would look.
pub(crate) fn line(raw: &[u8]) -> String {
    let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
    let raw = raw.strip_suffix(b"\r").unwrap_or(raw);
    match std::str::from_utf8(raw) {
        Ok(text) if !text.chars().any(is_special) => redact(text.to_owned()),
        _ => redact(overwrite(raw)),
    }
}

/// One line of a file, without its end: nothing is played, since what stands in a file is what counts.
pub(crate) fn verbatim(raw: &[u8]) -> String {
    let mut shown = String::with_capacity(raw.len());
    for chunk in raw.utf8_chunks() {
        for c in chunk.valid().chars() {
            match is_special(c) {
                true => shown.push_str(&escaped(c)),
                false => shown.push(c),
            }
        }
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    redact(shown)
}

/// Text that stands inside one of our own lines: a name, a message.
pub(crate) fn words(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => shown.push(' '),
            c if is_special(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    redact(shown)
}

/// Text of several lines, as an instruction.
pub(crate) fn text(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(|l| line(l.as_bytes())).collect();
    lines.join("\n")
}

/// Whether the bytes are no text at all: a NUL, or every third character one that cannot be shown.
pub(crate) fn is_binary(raw: &[u8]) -> bool {
    let sample = &raw[..raw.len().min(8 << 10)];
    if sample.contains(&0) {
        return true;
    }
    let (mut characters, mut odd) = (0_usize, 0_usize);
    for chunk in sample.utf8_chunks() {
        characters += chunk.valid().chars().count();
        odd += chunk
            .valid()
            .chars()
            .filter(|&c| c != '\x1b' && c != '\r' && c != '\x08' && is_special(c))
            .count();
        // A sample may end inside a character.
        if sample.len() == raw.len() || chunk.invalid().len() > 3 {
            characters += chunk.invalid().len();
            odd += chunk.invalid().len();
        }
    }
    odd >= 8 && odd * 3 > characters
}

/// Needs more than being copied.
fn is_special(c: char) -> bool {
    match c {
        '\t' | '\n' => false,
        c if c.is_control() => true,
        // Marks that turn the direction of text, or that nobody sees.
        '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{feff}' => true,
        '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' => true,
        '\u{180b}'..='\u{180f}' | '\u{3164}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' => true,
        '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' => true,
        '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => true,
        '\u{e0000}'..='\u{e0fff}' => true,
        _ => false,
    }
}

/// Plays the line on a terminal of one row.
fn overwrite(raw: &[u8]) -> String {
    let mut row = Row::default();
    for chunk in raw.utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match c {
                '\r' => row.column = 0,
                '\x08' => row.column = row.column.saturating_sub(1),
                '\x1b' => rest = row.escape(rest),
                '\u{9b}' => rest = row.control_sequence(rest),
                c if is_special(c) => row.put_all(&escaped(c)),
                c => row.put(c),
            }
        }
        for byte in chunk.invalid() {
            row.put_all(&format!("\\x{byte:02x}"));
        }
    }
    row.cells.into_iter().collect()
}

fn escaped(c: char) -> String {
    match u32::from(c) {
        code @ 0..=0x7f => format!("\\x{code:02x}"),
        code => format!("\\u{{{code:x}}}"),
    }
}

#[derive(Default)]
struct Row {
    cells: Vec<char>,
    column: usize,
}

impl Row {
    fn put(&mut self, c: char) {
        match self.cells.get_mut(self.column) {
            Some(cell) => *cell = c,
            None => {
                self.cells.resize(self.column, ' ');
                self.cells.push(c);
            }
        }
        self.column += 1;
    }

    fn put_all(&mut self, text: &str) {
        text.chars().for_each(|c| self.put(c));
    }

    /// Moves right; what was never written is blank.
    fn go(&mut self, column: usize) {
        self.column = column.min(COLUMNS_MAX.max(self.cells.len()));
    }

    fn erase(&mut self, parameters: &str) {
        match parameters {
            "" | "0" => self.cells.truncate(self.column),
            "1" => {
                let cells = self.cells.iter_mut().take(self.column + 1);
                cells.for_each(|cell| *cell = ' ');
            }
            "2" => self.cells.iter_mut().for_each(|cell| *cell = ' '),
            _ => {}
        }
    }

    /// After ESC: takes the whole sequence away and returns what follows it.
    fn escape<'a>(&mut self, rest: &'a str) -> &'a str {
        let mut characters = rest.char_indices();
        match characters.next() {
            Some((_, '[')) => self.control_sequence(&rest[1..]),
            // Operating system commands and their like end with BEL or ESC \.
            Some((_, ']' | 'P' | 'X' | '^' | '_')) => {
                let end = rest.find(['\x07', '\x1b']).unwrap_or(rest.len());
                let after = &rest[end..];
                after
                    .strip_prefix('\x07')
                    .or_else(|| after.strip_prefix("\x1b\\"))
                    .unwrap_or(after)
            }
            // Character sets and the like: intermediates, then one final character.
            Some((_, ' '..='/')) => match rest.find(|c| !(' '..='/').contains(&c)) {
                Some(at) => skip_character(&rest[at..]),
                None => "",
            },
            Some(_) => skip_character(rest),
            None => rest,
        }
    }

    /// After CSI: parameters, then a final character. Only what moves, erases or shifts within a line matters to one
    /// row.
    fn control_sequence<'a>(&mut self, rest: &'a str) -> &'a str {
        let Some(end) = rest.find(|c| !(' '..='?').contains(&c)) else {
            return "";
        };
        let last = rest[end..].chars().next();
        let parameters = &rest[..end];
        let count = parameters.parse().unwrap_or(1).clamp(1, COLUMNS_MAX);
        match last {
            Some('C') => self.go(self.column + count),
            Some('D') => self.column = self.column.saturating_sub(count),
            Some('G' | '`') => self.go(count - 1),
            Some('K') => self.erase(parameters),
            Some('P') => {
                let from = self.column.min(self.cells.len());
                let to = (from + count).min(self.cells.len());
                self.cells.drain(from..to);
            }
            Some('@') if self.column < self.cells.len() => {
                let blanks = std::iter::repeat_n(' ', count);
                self.cells.splice(self.column..self.column, blanks);
            }
            Some('X') => {
                let cells = self.cells.iter_mut().skip(self.column).take(count);
                cells.for_each(|cell| *cell = ' ');
            }
            _ => {}
        }
        match last {
            Some('@'..='~') => skip_character(&rest[end..]),
            // Not a control sequence after all: nothing of what follows is lost.
            _ => &rest[end..],
        }
    }
}

fn skip_character(text: &str) -> &str {
    let mut characters = text.chars();
    characters.next();
    characters.as_str()
}

fn redact(text: String) -> String {
    if !text.contains(SECRET_PREFIX) {
        return text;
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find(SECRET_PREFIX) {
        let (before, found) = rest.split_at(at);
        let end = found
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-')
            .unwrap_or(found.len());
        let (secret, after) = found.split_at(end);
        shown.push_str(before);
        shown.push_str(if secret.len() < SECRET_MIN {
            secret
        } else {
            "[redacted]"
        });
        rest = after;
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_looks_as_on_a_terminal() {
        for (raw, shown) in [
            (&b"plain\n"[..], "plain"),
            (b"windows\r\n", "windows"),
            (b" 10%\r 50%\r100% done\n", "100% done"),
            (b"abcdef\rXY\n", "XYcdef"),
            (b"abcdef\rXY\x1b[K\n", "XY"),
            (
                b"\x1b[1;31mred\x1b[0m and \x1b[38;5;12mblue\x1b[m",
                "red and blue",
            ),
            (
                b"\x1b]0;title\x07text\x1b]8;;http://x\x1b\\link",
                "textlink",
            ),
            (b"\x1b(Bset", "set"),
            (
                b"\x1b[?2004h>>> pr\x1b[6D>>> pri\x1b[7D\x1b[7Cnt\x1b[K",
                ">>> print",
            ),
            (b"abcd\x1b[2D\x1b[PX\x1b[1GZ", "ZbX"),
            (b"ab\x1b[5Cc", "ab     c"),
            (b"a b\x1b[2D\x1b[2@cc", "acc b"),
            (b"typo\x08\x08\x08\x08good", "good"),
            (b"cut \x1b[3", "cut "),
            ("über 日本\tx".as_bytes(), "über 日本\tx"),
        ] {
            assert_eq!(line(raw), shown, "{raw:?}");
        }
    }

    #[test]
    fn what_nobody_sees_is_shown() {
        assert_eq!(line(b"a\xff\xfeb\x07"), "a\\xff\\xfeb\\x07");
        assert_eq!(
            line("x\u{202e}y\u{200b}".as_bytes()),
            "x\\u{202e}y\\u{200b}"
        );
        assert_eq!(line("hi\u{e0041}".as_bytes()), "hi\\u{e0041}");
        assert_eq!(words("two\nlines\u{2066}"), "two lines\\u{2066}");
        assert_eq!(line("a\u{ad}b\u{3164}".as_bytes()), "a\\u{ad}b\\u{3164}");
    }

    #[test]
    fn a_line_of_a_file_is_what_it_is() {
        for (raw, shown) in [
            (&b"plain\ttext"[..], "plain\ttext"),
            (b"\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
            (b"over\rwritten\x08", "over\\x0dwritten\\x08"),
            (b"caf\xe9", "caf\\xe9"),
            ("x\u{202e}y".as_bytes(), "x\\u{202e}y"),
            (b"key=mst_ai_abcdefghijklmnop234567", "key=[redacted]"),
        ] {
            assert_eq!(verbatim(raw), shown, "{raw:?}");
        }
    }

    #[test]
    fn our_own_secrets_are_not_shown() {
        assert_eq!(
            line(b"token=mst_ai_abcdefghijklmnop234567, next"),
            "token=[redacted], next"
        );
        // An exchanged token is base64url: it may have dashes.
        assert_eq!(
            line(b"mst_x_abcdefgh-ijklmnop-qrstuvwxyz next"),
            "[redacted] next"
        );
        assert_eq!(
            line(b"the prefix mst_ai_ itself"),
            "the prefix mst_ai_ itself"
        );
    }

    #[test]
    fn binary_is_told_from_text() {
        assert!(is_binary(b"\x7fELF\x02\x01\x01\0\0"));
        assert!(is_binary(&[0x80; 64]));
        assert!(!is_binary("日本語のテキスト".as_bytes()));
        assert!(!is_binary(b"\x1b[31mred\x1b[0m\n50%\r60%\r"));
        assert!(!is_binary(b"mostly text with one \xff byte"));
        assert!(!is_binary(b""));
    }
}
