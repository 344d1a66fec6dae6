//! Bytes that are no text, as xxd(1) shows them.

use std::fmt::Write as _;

/// Bytes in a line.
const WIDTH: usize = 16;
/// How long a line is, bytes.
const LINE: usize = 79;

/// As many lines as fit into `room`, at least one; how many bytes they show stands beside them. The first byte stands at
/// `offset` of its file.
pub(crate) fn dump(bytes: &[u8], offset: u64, room: usize) -> (String, usize) {
    let lines = (room / LINE).max(1);
    let shown = &bytes[..bytes.len().min(lines * WIDTH)];
    let mut text = String::with_capacity(lines * LINE);
    for (place, line) in shown.chunks(WIDTH).enumerate() {
        let at = offset + (place * WIDTH) as u64;
        let _ = write!(text, "{at:08x} ");
        for byte in line {
            let _ = write!(text, " {byte:02x}");
        }
        let blank = (WIDTH - line.len()) * 3 + 2;
        text.extend(std::iter::repeat_n(' ', blank));
        text.extend(line.iter().map(|&byte| match byte {
            b' '..=b'~' => char::from(byte),
            _ => '.',
        }));
        text.push('\n');
    }
    (text, shown.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stand_beside_what_can_be_read_of_them() {
        let bytes = b"\x7fELF\x02\x01\x01\0 and 16 more.\n\xff";
        let (text, shown) = dump(bytes, 0x40, 1_000);
        assert_eq!(
            text,
            "00000040  7f 45 4c 46 02 01 01 00 20 61 6e 64 20 31 36 20  .ELF.... and 16 \n\
             00000050  6d 6f 72 65 2e 0a ff                             more...\n"
        );
        assert_eq!(shown, bytes.len());
        assert!(text.lines().all(|line| line.len() < LINE));
    }

    #[test]
    fn no_more_is_shown_than_fits() {
        let (text, shown) = dump(&[0; 1_000], 0, 200);
        assert!(text.len() <= 200, "{}", text.len());
        assert_eq!(shown, 32);
        assert_eq!(dump(&[0; 20], 0, 0).1, 16, "one line at least");
    }
}
