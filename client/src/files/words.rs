//! How parts of files and what a file is are written.

use muster_proto::v1::{ByteRange, FileStat, LineRange, file_stat::Type};

/// Letters of permissions by bit, from the highest: owner, group, others.
const LETTERS: [char; 9] = ['r', 'w', 'x', 'r', 'w', 'x', 'r', 'w', 'x'];
/// The bits above them: set-user-ID, set-group-ID and sticky, with the place of the letter that shows each.
const SPECIAL: [(u32, usize, char); 3] = [(0o4000, 2, 's'), (0o2000, 5, 's'), (0o1000, 8, 't')];

/// A type of file in words.
pub fn type_name(kind: Type) -> &'static str {
    match kind {
        Type::Unspecified => "file of another type",
        Type::Regular => "regular file",
        Type::Directory => "directory",
        Type::Link => "symbolic link",
        Type::Pipe => "named pipe",
        Type::Socket => "socket",
        Type::BlockDevice => "block device",
        Type::CharacterDevice => "character device",
    }
}

/// Type and permissions as ls(1) writes them: "-rw-r--r--".
pub fn permissions(stat: &FileStat) -> String {
    let mut letters: Vec<char> = LETTERS
        .iter()
        .enumerate()
        .map(|(place, letter)| match stat.mode >> (8 - place) & 1 {
            1 => *letter,
            _ => '-',
        })
        .collect();
    for (bit, place, letter) in SPECIAL {
        if stat.mode & bit != 0 {
            letters[place] = match letters[place] {
                'x' => letter,
                _ => letter.to_ascii_uppercase(),
            };
        }
    }
    let first = match stat.r#type() {
        Type::Unspecified => '?',
        Type::Regular => '-',
        Type::Directory => 'd',
        Type::Link => 'l',
        Type::Pipe => 'p',
        Type::Socket => 's',
        Type::BlockDevice => 'b',
        Type::CharacterDevice => 'c',
    };
    std::iter::once(first).chain(letters).collect()
}

/// What a file is, in a line: "regular file, 312 bytes, text/plain".
pub fn description(stat: &FileStat) -> String {
    let mut text = type_name(stat.r#type()).to_owned();
    if stat.r#type() == Type::Regular {
        let end = if stat.size == 1 { "" } else { "s" };
        text.push_str(&format!(", {} byte{end}", stat.size));
    }
    if !stat.mime_type.is_empty() {
        text.push_str(&format!(", {}", stat.mime_type));
    }
    text
}

/// Bytes from the first up to, and without, the last: "100..200", "-100..".
pub fn bytes_text(range: &ByteRange) -> String {
    let end = range.offset.saturating_add(range.length);
    // Counted from the end, 0 is the end.
    if range.length <= 0 || (range.offset < 0 && end >= 0) {
        return format!("{}..", range.offset);
    }
    format!("{}..{end}", range.offset)
}

/// Lines from the first to the last, which is one of them: "1..20", "-20..".
pub fn lines_text(range: &LineRange) -> String {
    let last = range.first.saturating_add(range.count.saturating_sub(1));
    if range.count <= 0 || (range.first < 0 && last >= -1) {
        return format!("{}..", range.first);
    }
    format!("{}..{last}", range.first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_look_as_in_a_listing() {
        for (kind, mode, text) in [
            (Type::Regular, 0o644, "-rw-r--r--"),
            (Type::Directory, 0o1777, "drwxrwxrwt"),
            (Type::Regular, 0o4755, "-rwsr-xr-x"),
            (Type::Regular, 0o2640, "-rw-r-S---"),
            (Type::Link, 0o777, "lrwxrwxrwx"),
            (Type::CharacterDevice, 0, "c---------"),
        ] {
            let stat = FileStat {
                r#type: kind.into(),
                mode,
                ..FileStat::default()
            };
            assert_eq!(permissions(&stat), text);
        }
    }

    #[test]
    fn parts_are_written_as_they_are_asked_for() {
        for (offset, length, text) in [
            (0, 0, "0.."),
            (100, 100, "100..200"),
            (-100, 0, "-100.."),
            (-100, 50, "-100..-50"),
            (-100, 100, "-100.."),
            (5, i64::MAX, "5..9223372036854775807"),
        ] {
            assert_eq!(bytes_text(&ByteRange { offset, length }), text);
        }
        for (first, count, text) in [
            (1, 0, "1.."),
            (1, 1, "1..1"),
            (10, 11, "10..20"),
            (-20, 0, "-20.."),
            (-20, 11, "-20..-10"),
            (-20, 20, "-20.."),
        ] {
            assert_eq!(lines_text(&LineRange { first, count }), text);
        }
    }
}
