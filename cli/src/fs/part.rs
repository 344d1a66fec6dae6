//! Parts of a file as people write them: two ends with ".." between, either of which may be left out. A negative number
//! counts from the end of the file.

use muster_proto::v1::{ByteRange, LineRange};

/// Some bytes: from the first end up to, and without, the second one.
pub(super) fn bytes(text: &str) -> Result<ByteRange, String> {
    let wrong = || {
        "expected FROM..TO in bytes, as 0..1024, 1048576.. or -512..; TO is not among them"
            .to_owned()
    };
    let (from, to) = ends(text).ok_or_else(wrong)?;
    let offset = match (from, to) {
        (Some(from), _) => from,
        // From the beginning; the end of the file is no place to count from to somewhere before it.
        (None, Some(to)) if to < 0 => return Err(mixed()),
        (None, _) => 0,
    };
    let length = match to {
        None => 0,
        Some(to) if offset >= 0 && to < 0 || offset < 0 && to > 0 => return Err(mixed()),
        Some(to) => to.checked_sub(offset).ok_or_else(wrong)?,
    };
    if to.is_some() && length <= 0 {
        return Err("it holds no bytes".to_owned());
    }
    Ok(ByteRange { offset, length })
}

/// Some lines: from the first end to the second one, both among them.
pub(super) fn lines(text: &str) -> Result<LineRange, String> {
    let wrong =
        || "expected FROM..TO in lines, as 1..20, 200.. or -20..; or a line, as 7".to_owned();
    let (from, to) = match text.parse::<i64>() {
        Ok(line) => (Some(line), Some(line)),
        Err(_) => ends(text).ok_or_else(wrong)?,
    };
    if from == Some(0) || to == Some(0) {
        return Err("lines count from 1".to_owned());
    }
    let first = from.unwrap_or(1);
    let count = match to {
        None => 0,
        Some(-1) if first > 0 => 0,
        Some(to) if (first > 0) != (to > 0) => return Err(mixed()),
        Some(to) => match to.checked_sub(first).and_then(|more| more.checked_add(1)) {
            Some(count @ 1..) => count,
            Some(_) => return Err("it holds no lines".to_owned()),
            None => return Err(wrong()),
        },
    };
    Ok(LineRange { first, count })
}

fn ends(text: &str) -> Option<(Option<i64>, Option<i64>)> {
    let (from, to) = text.split_once("..")?;
    let end = |text: &str| match text {
        "" => Some(None),
        number => number.parse().ok().map(Some),
    };
    Some((end(from)?, end(to)?))
}

fn mixed() -> String {
    "both ends have to count from the same side".to_owned()
}

#[cfg(test)]
mod tests {
    use muster_client::files::{bytes_text, lines_text};

    use super::*;

    #[test]
    fn bytes_end_before_the_second_end() {
        for (text, offset, length) in [
            ("0..1024", 0, 1024),
            ("..1024", 0, 1024),
            ("1048576..", 1 << 20, 0),
            ("-512..", -512, 0),
            ("-512..-12", -512, 500),
            ("-512..0", -512, 512),
            ("..", 0, 0),
        ] {
            assert_eq!(bytes(text), Ok(ByteRange { offset, length }), "{text}");
        }
        for text in [
            "",
            "5",
            "5..5",
            "9..5",
            "5..-5",
            "-5..5",
            "..-5",
            "..0",
            "a..b",
            "1...3",
            "1..2..3",
            "-9223372036854775808..0",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lines_end_with_the_second_end() {
        for (text, first, count) in [
            ("1..20", 1, 20),
            ("..20", 1, 20),
            ("200..", 200, 0),
            ("7", 7, 1),
            ("-1", -1, 1),
            ("-20..", -20, 0),
            ("-20..-1", -20, 20),
            ("-20..-11", -20, 10),
            ("5..-1", 5, 0),
        ] {
            assert_eq!(lines(text), Ok(LineRange { first, count }), "{text}");
        }
        for text in [
            "", "0", "0..5", "5..0", "9..5", "5..-2", "-5..5", "x", "1..x",
        ] {
            assert!(lines(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_can_be_asked_for_again() {
        for text in ["0..1024", "1048576..", "-512..", "-512..-12"] {
            assert_eq!(bytes_text(&bytes(text).unwrap()), text);
        }
        for text in ["1..20", "200..", "7..7", "-20..", "-20..-11"] {
            assert_eq!(lines_text(&lines(text).unwrap()), text);
        }
    }
}
