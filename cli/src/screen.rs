//! What people see: tables that fit the terminal, and text that cannot steer it.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write as _},
};

use comfy_table::{ColumnConstraint, ContentArrangement, Table};
use serde_json::Value;

/// Text from elsewhere, with control characters and direction marks escaped, so that it cannot move the
/// cursor, hide itself or pass for another line.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_unsafe(character) {
            cleaned.extend(character.escape_default());
        } else {
            cleaned.push(character);
        }
    }
    Cow::Owned(cleaned)
}

/// Like [`clean`], but keeps line ends and tabs: for texts of several lines.
pub(crate) fn clean_lines(text: &str) -> String {
    text.split_inclusive(['\n', '\t'])
        .map(|piece| match piece.char_indices().next_back() {
            Some((at, end @ ('\n' | '\t'))) => format!("{}{end}", clean(&piece[..at])),
            _ => clean(piece).into_owned(),
        })
        .collect()
}

fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A terminal narrower than this has no room for columns.
const WIDTH_MIN: u16 = 40;

/// A table. To a terminal it is as wide as that, with headings; elsewhere each row is one line.
pub(crate) struct Rows {
    table: Table,
}

impl Rows {
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(headings.to_vec());
        // Elsewhere, and where a terminal does not know its width, lines stay whole.
        if io::stdout().is_terminal() && table.width().is_some_and(|width| width >= WIDTH_MIN) {
            table.set_content_arrangement(ContentArrangement::Dynamic);
            // What stands first is copied into the next command.
            if let Some(first) = table.column_mut(0) {
                first.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        Self { table }
    }

    pub(crate) fn add<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let cells: Vec<String> = cells
            .into_iter()
            .map(|cell| clean(cell.as_ref()).into_owned())
            .collect();
        self.table.add_row(cells);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The lines, without spaces at their ends.
    pub(crate) fn render(&self) -> String {
        self.table
            .lines()
            .map(|line| format!("{}\n", line.trim_end()))
            .collect()
    }
}

/// Names and values below each other; empty values are left out.
pub(crate) struct Fields(Vec<(&'static str, String)>);

impl Fields {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn add(&mut self, name: &'static str, value: impl AsRef<str>) -> &mut Self {
        let value = value.as_ref();
        if !value.is_empty() && value != "-" {
            self.0.push((name, clean(value).into_owned()));
        }
        self
    }

    pub(crate) fn render(&self) -> String {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        self.0
            .iter()
            .map(|(name, value)| format!("{name:width$}  {value}\n"))
            .collect()
    }
}

/// Writes text to standard output.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes one JSON document to standard output.
pub(crate) fn print_json(value: &Value) -> io::Result<()> {
    print(&format!("{value:#}\n"))
}

/// Writes one JSON object of a stream as a line to standard output.
pub(crate) fn print_json_line(value: &Value) -> io::Result<()> {
    print(&format!("{value}\n"))
}

/// Says something beside the output, on standard error.
pub(crate) fn say(text: &str) {
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Somebody can be asked: questions go to standard error, answers come from the terminal.
pub(crate) fn can_ask() -> bool {
    io::stderr().is_terminal() && io::stdin().is_terminal()
}

/// Asks on a terminal and waits for a line.
pub(crate) async fn ask(question: &str) -> io::Result<String> {
    eprint!("{question} ");
    let (send, receive) = tokio::sync::oneshot::channel();
    // A thread of its own: a blocking read of a terminal can be neither cancelled nor waited out.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = io::stdin().read_line(&mut line);
        let _ = send.send(read.map(|_| line.trim().to_lowercase()));
    });
    receive
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::UnexpectedEof.into()))
}

/// Bytes in a unit that people read: "512 B", "4.0 KiB", "1.5 GiB".
pub(crate) fn bytes(count: i64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1_024 {
        return format!("{count} B");
    }
    let mut amount = count as f64 / 1_024.0;
    let mut unit = 0;
    while amount >= 1_024.0 && unit + 1 < UNITS.len() {
        amount /= 1_024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_elsewhere_cannot_steer_the_terminal() {
        assert_eq!(clean("plain täxt"), "plain täxt");
        assert_eq!(
            clean("\u{1b}[2Jx\r\n\u{9b}1m"),
            "\\u{1b}[2Jx\\r\\n\\u{9b}1m"
        );
        assert_eq!(clean("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(clean_lines("a\n\tb\u{7}\n"), "a\n\tb\\u{7}\n");
    }

    #[test]
    fn rows_are_aligned_and_clean() {
        let mut rows = Rows::new(&["NAME", "STATE"]);
        rows.add(["web-1", "online"]);
        rows.add(["a\u{7}", "x"]);
        assert_eq!(
            rows.render(),
            " NAME    STATE\n web-1   online\n a\\u{7}  x\n"
        );
    }

    #[test]
    fn empty_fields_are_left_out() {
        let mut fields = Fields::new();
        fields
            .add("name", "web-1")
            .add("note", "")
            .add("last heard", "-")
            .add("kernel", "6.1");
        assert_eq!(fields.render(), "name    web-1\nkernel  6.1\n");
    }

    #[test]
    fn bytes_have_units() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(4_096), "4.0 KiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
    }
}
