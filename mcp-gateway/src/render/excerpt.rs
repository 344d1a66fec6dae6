//! What of an output is shown: all of it, or head and tail and one line that says exactly what
//! was left out. Every byte is either shown or counted.

use super::{
    clean,
    kept::{Between, Kept, line_ends},
    words,
};

/// A longer line is cut once the whole does not fit, bytes.
const LINE_MAX: usize = 2_000;
/// The head's part of what does not fit whole, in percent; the end says more than the beginning.
const HEAD_PERCENT: usize = 30;
/// Room for the line that says what was left out, bytes.
const ELISION_MAX: usize = 340;
/// Room for the mark at the end of a cut line, bytes.
const CUT_MARK_MAX: usize = 36;
/// The least budget in which [`head_and_tail`] shows anything but what it left out, bytes.
pub(crate) const EXCERPT_MIN: usize = ELISION_MAX + 120;

/// An output as an answer shows it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Excerpt {
    /// The text; empty, or ends with a line end.
    pub(crate) text: String,
    /// Bytes of the output that the text shows.
    pub(crate) shown: u64,
    /// Bytes that it does not show and that can be read.
    pub(crate) omitted: u64,
    /// Bytes that nobody has any more.
    pub(crate) lost: u64,
}

/// Shows `kept` in at most `budget` bytes of text. `how` is the tool call that reads the rest, to
/// which a cursor is added; `fence` marks our own line among those of the host.
pub(crate) fn head_and_tail(kept: &Kept, budget: usize, how: &str, fence: &str) -> Excerpt {
    let (head, between, tail) = kept.parts();
    let touching = between.bytes + between.lost == 0;
    if clean::is_binary(&head) {
        return binary(&head, kept.total(), between.lost);
    }
    if touching && let Some(text) = whole(&head, budget) {
        let shown = head.len() as u64;
        return Excerpt {
            text,
            shown,
            ..Excerpt::default()
        };
    }
    let room = budget.saturating_sub(ELISION_MAX);
    let head_room = room * HEAD_PERCENT / 100;
    let line_max = LINE_MAX.min(head_room.saturating_sub(CUT_MARK_MAX));
    let (head, tail) = (lines(&head, line_max), lines(&tail, line_max));

    let (front, after_front) = head.split_at(fitting(head.iter(), head_room));
    let (source, passed) = if touching {
        (after_front, &[][..])
    } else {
        (tail.as_slice(), after_front)
    };
    let tail_room = room - size_of(front);
    let (left, back) = source.split_at(source.len() - fitting(source.iter().rev(), tail_room));

    let between = Between {
        bytes: between.bytes + raw_of(passed) + raw_of(left),
        lines: between
            .lines
            .map(|lines| lines + ends_of(passed) + ends_of(left)),
        lost: between.lost,
    };
    let cut: u64 = front.iter().chain(back).map(|line| line.cut as u64).sum();
    let mut text = String::with_capacity(budget);
    front.iter().for_each(|line| line.write(&mut text));
    if between.bytes + between.lost > 0 {
        text.push_str(&elision(between, raw_of(front), how, fence));
    }
    back.iter().for_each(|line| line.write(&mut text));
    Excerpt {
        text,
        shown: raw_of(front) + raw_of(back) - cut,
        omitted: between.bytes + cut,
        lost: between.lost,
    }
}

/// Shows `raw` from its beginning, as much as fits into `budget` bytes of text, nothing left out in
/// between. Returns the text and how many bytes of `raw` it shows.
pub(crate) fn page(raw: &[u8], budget: usize) -> (String, usize) {
    if let Some(text) = whole(raw, budget) {
        return (text, raw.len());
    }
    // No line is cut here: a line that is too long goes on with the next page.
    let pieces = pieces(raw, budget.min(LINE_MAX));
    let (shown, _) = pieces.split_at(fitting(pieces.iter(), budget).max(1).min(pieces.len()));
    let mut text = String::new();
    for piece in shown {
        text.push_str(&piece.text);
        if piece.raw.ends_with(b"\n") {
            text.push('\n');
        }
    }
    end_line(&mut text);
    (text, raw_of(shown) as usize)
}

/// Shows the end of `raw`, as much as fits into `budget` bytes of text. Returns how many bytes of `raw` come
/// before it, too.
pub(crate) fn end(raw: &[u8], budget: usize) -> (String, u64) {
    let lines = lines(raw, LINE_MAX.min(budget.saturating_sub(CUT_MARK_MAX)));
    let (left, shown) = lines.split_at(lines.len() - fitting(lines.iter().rev(), budget));
    let mut text = String::new();
    shown.iter().for_each(|line| line.write(&mut text));
    (text, raw_of(left))
}

/// One line found by grep or shown alone, at most [`LINE_MAX`] bytes of it.
pub(crate) fn single(raw: &[u8]) -> String {
    let line = Line::new(raw, LINE_MAX);
    let mut text = String::new();
    line.write(&mut text);
    text.pop();
    text
}

/// What stands for output that is no text.
pub(crate) fn binary(head: &[u8], total: u64, lost: u64) -> Excerpt {
    let bytes: Vec<String> = head[..head.len().min(16)]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Excerpt {
        text: format!(
            "[binary output, {}, not shown; begins {}; to read it, run the command again through base64 or xxd]\n",
            words::plural(total, "byte"),
            bytes.join(" ")
        ),
        shown: 0,
        omitted: total - lost,
        lost,
    }
}

/// The mark for bytes that were not kept.
pub(crate) fn gap(length: u64, cause: &str) -> String {
    let cause = words::shortened(&clean::words(cause), 120);
    let because = if cause.is_empty() { "" } else { ": " };
    format!(
        "[{} were not kept{because}{cause}]\n",
        words::plural(length, "byte")
    )
}

fn elision(between: Between, from: u64, how: &str, fence: &str) -> String {
    let mut what = Vec::new();
    match between.lines {
        Some(lines @ 1..) => what.push(format!(
            "{} ({})",
            words::plural(lines, "line"),
            words::plural(between.bytes, "byte")
        )),
        _ if between.bytes > 0 => what.push(words::plural(between.bytes, "byte")),
        _ => {}
    }
    let mut text = match what.pop() {
        Some(what) => format!(
            "…{fence} {what} omitted; {how} cursor={from} reads on here, tail= or grep= looks for more …\n"
        ),
        None => String::new(),
    };
    if between.lost > 0 {
        text.push_str(&gap(between.lost, "over the limit"));
    }
    text
}

/// All of it, if it fits.
fn whole(raw: &[u8], budget: usize) -> Option<String> {
    // No byte becomes less than nothing, but escape sequences do: a generous limit before the work.
    if raw.len() > budget.saturating_mul(4) {
        return None;
    }
    let mut text = String::with_capacity(raw.len() + 1);
    for line in raw.split_inclusive(|&byte| byte == b'\n') {
        text.push_str(&clean::line(line));
        text.push('\n');
        if text.len() > budget {
            return None;
        }
    }
    Some(text)
}

struct Line<'a> {
    raw: &'a [u8],
    text: String,
    /// Bytes of `raw` that the text leaves out.
    cut: usize,
}

impl<'a> Line<'a> {
    fn new(raw: &'a [u8], limit: usize) -> Self {
        let end = raw.strip_suffix(b"\n").unwrap_or(raw).len();
        let mut keep = end.min(limit);
        loop {
            let shown = &raw[..boundary(raw, keep)];
            let text = clean::line(shown);
            if text.len() <= limit || keep < 8 {
                let cut = end - shown.len().min(end);
                return Self { raw, text, cut };
            }
            // Escapes made it longer.
            keep /= 2;
        }
    }

    fn write(&self, text: &mut String) {
        text.push_str(&self.text);
        if self.cut > 0 {
            text.push_str(&cut_mark(self.cut));
        }
        text.push('\n');
    }

    fn size(&self) -> usize {
        let mark = if self.cut > 0 {
            cut_mark(self.cut).len()
        } else {
            0
        };
        self.text.len() + mark + 1
    }
}

fn cut_mark(bytes: usize) -> String {
    format!("…[+{}]", words::plural(bytes as u64, "byte"))
}

/// Lines, the long ones cut; or, where there is but one long line, its pieces, so that its end can
/// be shown too.
fn lines(raw: &[u8], limit: usize) -> Vec<Line<'_>> {
    if line_ends(raw) <= 1 {
        return pieces(raw, limit);
    }
    raw.split_inclusive(|&byte| byte == b'\n')
        .map(|line| Line::new(line, limit))
        .collect()
}

fn pieces(raw: &[u8], limit: usize) -> Vec<Line<'_>> {
    let mut pieces = Vec::new();
    for mut rest in raw.split_inclusive(|&byte| byte == b'\n') {
        while !rest.is_empty() {
            let line = Line::new(rest, limit.max(8));
            let shown = rest.len() - line.cut;
            // The end of the line belongs to its last piece.
            let shown = if line.cut > 0 && rest.ends_with(b"\n") {
                shown - 1
            } else {
                shown
            };
            let (piece, after) = rest.split_at(shown);
            pieces.push(Line {
                raw: piece,
                text: line.text,
                cut: 0,
            });
            rest = after;
        }
    }
    pieces
}

/// The last place at or before `at` that is no middle of a character.
pub(super) fn boundary(raw: &[u8], at: usize) -> usize {
    if at >= raw.len() {
        return raw.len();
    }
    (at.saturating_sub(3)..=at)
        .rev()
        .find(|&place| raw[place] & 0xc0 != 0x80)
        .filter(|&place| place > 0)
        .unwrap_or(at)
}

/// How many of these lines fit.
fn fitting<'a, 'b: 'a>(lines: impl Iterator<Item = &'a Line<'b>>, room: usize) -> usize {
    let mut used = 0;
    lines
        .take_while(|line| {
            used += line.size();
            used <= room
        })
        .count()
}

fn size_of(lines: &[Line<'_>]) -> usize {
    lines.iter().map(Line::size).sum()
}

fn raw_of(lines: &[Line<'_>]) -> u64 {
    lines.iter().map(|line| line.raw.len() as u64).sum()
}

fn ends_of(lines: &[Line<'_>]) -> u64 {
    lines.iter().map(|line| line_ends(line.raw)).sum()
}

fn end_line(text: &mut String) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
}

#[cfg(test)]
mod tests;
