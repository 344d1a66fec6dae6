//! Text of a file by lines, with their numbers, as much of it as fits; nothing is left out in between but what is said.

use super::{clean, excerpt::boundary, words};

/// A longer line is cut where others stand beside it, bytes.
const LINE_MAX: usize = 2_000;
/// Room for the mark at the end of a cut line and its number, bytes.
const MARKS_MAX: usize = 60;

/// Some lines as they are shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Lines {
    /// The text; empty, or ends with a line end.
    pub(crate) text: String,
    /// How many lines it shows, the cut ones among them.
    pub(crate) count: u64,
    /// Bytes up to where the next line, or the rest of the last one, begins.
    pub(crate) used: usize,
    /// The first line that is cut: how many lines stand before it, and where its rest begins.
    pub(crate) cut: Option<(u64, usize)>,
    /// Every line ends with carriage return and line feed, which is not shown.
    pub(crate) crlf: bool,
}

/// Lines with their numbers, from `first` on. With `is_end` the last one is whole though no line end follows; otherwise it
/// is left for the next page, unless it is the only one.
pub(crate) fn numbered(raw: &[u8], first: u64, is_end: bool, room: usize) -> Lines {
    let crlf = ends_with_crlf(raw);
    let mut lines = Lines {
        crlf,
        ..Lines::default()
    };
    let mut rest = raw.split_inclusive(|&byte| byte == b'\n').peekable();
    let alone = |count: u64, more: bool| count == 0 && !more;
    while let Some(line) = rest.next() {
        let is_whole = is_end || line.ends_with(b"\n");
        if !is_whole && lines.count > 0 {
            break;
        }
        let limit = match alone(lines.count, rest.peek().is_some()) {
            true => room.saturating_sub(MARKS_MAX),
            false => LINE_MAX.min(room.saturating_sub(MARKS_MAX)),
        };
        let bare = without_end(line, crlf);
        let (text, shown) = piece(bare, limit);
        let mut numbered = format!("{}\t{text}", first + lines.count);
        let is_cut = shown < bare.len();
        if is_cut {
            let left = words::plural((bare.len() - shown) as u64, "byte");
            numbered.push_str(&format!("…[+{left}]"));
        }
        numbered.push('\n');
        if lines.count > 0 && lines.text.len() + numbered.len() > room {
            break;
        }
        if is_cut || !is_whole {
            lines.cut.get_or_insert((lines.count, lines.used + shown));
        }
        lines.text.push_str(&numbered);
        lines.used += line.len();
        lines.count += 1;
    }
    lines
}

/// Text from a byte on, which knows no numbers of lines. A line that does not fit is cut, and goes on with the next page.
pub(crate) fn plain(raw: &[u8], room: usize) -> Lines {
    let mut lines = Lines {
        crlf: ends_with_crlf(raw),
        ..Lines::default()
    };
    for line in raw.split_inclusive(|&byte| byte == b'\n') {
        let bare = without_end(line, lines.crlf);
        let left = room.saturating_sub(lines.text.len() + 1);
        let (text, shown) = piece(bare, left.max(if lines.count == 0 { 8 } else { 0 }));
        if shown < bare.len() && lines.count > 0 {
            break;
        }
        lines.text.push_str(&text);
        lines.text.push('\n');
        lines.count += 1;
        if shown < bare.len() {
            lines.used += shown;
            break;
        }
        lines.used += line.len();
    }
    lines
}

fn ends_with_crlf(raw: &[u8]) -> bool {
    let mut ends = raw
        .split_inclusive(|&byte| byte == b'\n')
        .filter(|line| line.ends_with(b"\n"))
        .peekable();
    ends.peek().is_some() && ends.all(|line| line.ends_with(b"\r\n"))
}

fn without_end(line: &[u8], crlf: bool) -> &[u8] {
    let bare = line.strip_suffix(b"\n").unwrap_or(line);
    match crlf {
        true => bare.strip_suffix(b"\r").unwrap_or(bare),
        false => bare,
    }
}

/// The beginning of a line in at most `limit` bytes of text, and how many bytes of the line it shows.
fn piece(line: &[u8], limit: usize) -> (String, usize) {
    let mut keep = line.len().min(limit);
    loop {
        let shown = &line[..boundary(line, keep)];
        let text = clean::verbatim(shown);
        if text.len() <= limit || keep < 8 {
            return (text, shown.len());
        }
        // Escapes made it longer.
        keep /= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_their_numbers() {
        let lines = numbered(b"one\n\ttwo\n\nfour", 7, true, 1_000);
        assert_eq!(lines.text, "7\tone\n8\t\ttwo\n9\t\n10\tfour\n");
        assert_eq!((lines.count, lines.used, lines.cut), (4, 14, None));
        assert_eq!(numbered(b"", 1, true, 1_000), Lines::default());
    }

    #[test]
    fn a_line_that_goes_on_is_left_for_the_next_page() {
        let lines = numbered(b"one\ntwo\nthr", 1, false, 1_000);
        assert_eq!(lines.text, "1\tone\n2\ttwo\n");
        assert_eq!((lines.count, lines.used), (2, 8));
        // Nothing else would ever be shown of this one.
        let lines = numbered(b"endless", 1, false, 1_000);
        assert_eq!(lines.text, "1\tendless\n");
        assert_eq!(lines.cut, Some((0, 7)));
    }

    #[test]
    fn what_does_not_fit_is_left_at_a_line_end() {
        let raw: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let lines = numbered(raw.as_bytes(), 1, true, 200);
        assert!(lines.text.len() <= 200 && lines.count > 10);
        let after = &raw[lines.used..];
        assert!(after.starts_with(&format!("line {}\n", lines.count)));
    }

    #[test]
    fn a_long_line_is_cut_and_says_where_it_goes_on() {
        let raw = format!("short\n{}\nlast\n", "ü".repeat(2_000));
        let lines = numbered(raw.as_bytes(), 1, true, 16_000);
        assert_eq!(lines.count, 3);
        let (before, at) = lines.cut.unwrap();
        assert_eq!(before, 1);
        assert!(raw.is_char_boundary(at) && lines.text.contains("…[+2,000 bytes]\n3\tlast\n"));
        // A line that is alone has all the room.
        let lines = numbered("x".repeat(9_000).as_bytes(), 1, true, 16_000);
        assert_eq!(lines.cut, None);
    }

    #[test]
    fn windows_line_ends_are_told_and_not_shown() {
        let lines = numbered(b"one\r\ntwo\r\n", 1, true, 1_000);
        assert_eq!(
            (lines.text.as_str(), lines.crlf),
            ("1\tone\n2\ttwo\n", true)
        );
        let mixed = numbered(b"one\r\ntwo\n", 1, true, 1_000);
        assert_eq!(mixed.text, "1\tone\\x0d\n2\ttwo\n");
        assert!(!mixed.crlf);
    }

    #[test]
    fn text_from_a_byte_is_read_to_its_end_without_a_gap() {
        let raw = format!("ne\n{}\nlast", "y".repeat(500));
        let (mut at, mut read) = (0, String::new());
        while at < raw.len() {
            let page = plain(&raw.as_bytes()[at..], 100);
            assert!(page.used > 0 && page.text.len() <= 110, "{page:?}");
            read.push_str(&raw[at..at + page.used]);
            at += page.used;
        }
        assert_eq!(read, raw);
    }
}
