//! Sends a part of a file, and says what it is: how long, how many lines, whether it is text. All of it in pieces, so that a
//! file of any size takes the same memory.

use std::{io, os::fd::BorrowedFd};

use aws_lc_rs::digest::{Context, SHA256};
use memchr::{memchr, memchr_iter};
use muster_proto::v1::{FileReadResult, FileStat};
use nix::errno::Errno;

use super::{part::Beginning, source::Source};

/// Read at once, bytes.
const PIECE: usize = 128 << 10;

/// A character has at most so many bytes.
const CHARACTER: usize = 4;

/// Why a file was not read to the end of what was wanted.
#[derive(Debug)]
pub(super) enum Failure {
    /// It could not be read.
    Read(io::Error),
    /// Nobody takes what was read.
    Write(Errno),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// What was sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    offset: u64,
    length: u64,
    /// The number of its first line, if that was asked for.
    line: i64,
    lines: u64,
    is_text: bool,
    has_more: bool,
}

impl Content {
    /// As the contract has it, of the file that is so.
    pub(super) fn result(self, stat: FileStat) -> FileReadResult {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        FileReadResult {
            stat: Some(stat),
            offset: number(self.offset),
            length: number(self.length),
            first_line: if self.length > 0 { self.line } else { 0 },
            lines: number(self.lines),
            is_text: self.is_text,
            has_more: self.has_more,
            changed: false,
        }
    }
}

/// Sends what begins there, at most so many bytes. The digest takes along what it can use.
pub(super) fn send(
    source: &Source<'_>,
    beginning: &Beginning,
    most: u64,
    mut digest: Option<&mut Digest>,
    to: BorrowedFd<'_>,
) -> Result<Content, Failure> {
    let mut piece = vec![0; PIECE];
    let mut text = Text::new(beginning.at > 0);
    let (mut at, mut newlines, mut ends_line) = (beginning.at, 0, true);
    let mut left = beginning.bytes.map_or(most, |bytes| bytes.min(most));
    let mut lines_left = beginning.lines;
    while left > 0 && lines_left != Some(0) {
        let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let read = source.read_at(at, &mut piece[..wanted])?;
        if read == 0 {
            break;
        }
        let (used, ended) = up_to_line(&piece[..read], lines_left);
        lines_left = lines_left.map(|lines| lines - ended);
        let used = &piece[..used];
        write_all(to, used).map_err(Failure::Write)?;
        if let Some(digest) = &mut digest {
            digest.take(at, used);
        }
        text.take(used);
        newlines += ended;
        ends_line = used.ends_with(b"\n");
        at += used.len() as u64;
        left -= used.len() as u64;
    }
    let has_more = source.read_at(at, &mut [0])? > 0;
    Ok(Content {
        offset: beginning.at,
        length: at - beginning.at,
        line: beginning.line,
        lines: newlines + u64::from(!ends_line),
        is_text: text.is_text(has_more),
        has_more,
    })
}

/// How much of a piece there is until so many lines have ended, and how many have.
fn up_to_line(piece: &[u8], lines: Option<u64>) -> (usize, u64) {
    let Some(lines) = lines else {
        return (piece.len(), memchr_iter(b'\n', piece).count() as u64);
    };
    let mut ended = 0;
    for at in memchr_iter(b'\n', piece) {
        ended += 1;
        if ended == lines {
            return (at + 1, ended);
        }
    }
    (piece.len(), ended)
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The SHA-256 of a whole file, taken from its beginning on.
pub(super) struct Digest {
    context: Context,
    /// How far it has come.
    at: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self {
            context: Context::new(&SHA256),
            at: 0,
        }
    }
}

impl Digest {
    /// What was read for another purpose, if it goes on from where this is.
    fn take(&mut self, at: u64, bytes: &[u8]) {
        if at == self.at {
            self.context.update(bytes);
            self.at += bytes.len() as u64;
        }
    }

    /// Reads the rest of the file.
    pub(super) fn finish(mut self, source: &Source<'_>) -> Result<Vec<u8>, Failure> {
        let mut piece = vec![0; PIECE];
        loop {
            let read = source.read_at(self.at, &mut piece)?;
            if read == 0 {
                return Ok(self.context.finish().as_ref().to_vec());
            }
            self.take(self.at, &piece[..read]);
        }
    }
}

/// Whether what comes in pieces is UTF-8 without NUL.
#[derive(Debug)]
struct Text {
    is_text: bool,
    /// So many bytes of a character that began before may come first.
    cut: usize,
    /// The beginning of a character whose rest has not come.
    begun: Vec<u8>,
}

impl Text {
    /// `inside`: it begins inside of a file, perhaps of a character.
    fn new(inside: bool) -> Self {
        Self {
            is_text: true,
            cut: if inside { CHARACTER - 1 } else { 0 },
            begun: Vec::with_capacity(CHARACTER),
        }
    }

    fn take(&mut self, mut piece: &[u8]) {
        self.is_text = self.is_text && memchr(0, piece).is_none();
        while self.cut > 0 && !piece.is_empty() {
            match piece[0] & 0xc0 {
                0x80 => {
                    piece = &piece[1..];
                    self.cut -= 1;
                }
                _ => self.cut = 0,
            }
        }
        while self.is_text && !self.begun.is_empty() && !piece.is_empty() {
            self.begun.push(piece[0]);
            piece = &piece[1..];
            match std::str::from_utf8(&self.begun) {
                Ok(_) => self.begun.clear(),
                Err(error) => self.is_text = error.error_len().is_none(),
            }
        }
        if !self.is_text {
            return;
        }
        if let Err(error) = std::str::from_utf8(piece) {
            self.is_text = error.error_len().is_none();
            self.begun.extend(&piece[error.valid_up_to()..]);
        }
    }

    /// `cut`: the file goes on, so that the last character need not be whole.
    fn is_text(&self, cut: bool) -> bool {
        self.is_text && (cut || self.begun.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::fd::AsFd as _};

    use proptest::prelude::*;

    use super::*;

    /// What is sent of this file, and what is said about it.
    fn sent(file: &[u8], beginning: Beginning, most: u64) -> (Vec<u8>, Content, Vec<u8>) {
        let source = Source::Memory(file.to_owned());
        let (mut reader, writer) = io::pipe().unwrap();
        let receiving = std::thread::spawn(move || {
            let mut received = Vec::new();
            reader.read_to_end(&mut received).unwrap();
            received
        });
        let mut digest = Digest::default();
        let content = send(&source, &beginning, most, Some(&mut digest), writer.as_fd()).unwrap();
        drop(writer);
        let digest = digest.finish(&source).unwrap();
        (receiving.join().unwrap(), content, digest)
    }

    fn from(at: u64) -> Beginning {
        Beginning {
            at,
            line: 0,
            bytes: None,
            lines: None,
        }
    }

    #[test]
    fn a_part_is_sent_and_described() {
        let file = "one\ntwo\nthrée".as_bytes();
        let (all, content, _) = sent(file, from(0), 100);
        assert_eq!(all, file);
        assert_eq!((content.lines, content.has_more), (3, false));
        assert!(content.is_text);

        let lines = Beginning {
            line: 2,
            lines: Some(1),
            ..from(4)
        };
        let (two, content, _) = sent(file, lines, 100);
        assert_eq!(two, b"two\n");
        assert_eq!(
            (content.line, content.lines, content.has_more),
            (2, 1, true)
        );

        let bytes = Beginning {
            bytes: Some(2),
            ..from(1)
        };
        assert_eq!(sent(file, bytes, 100).0, b"ne");
        let (cut, content, _) = sent(file, from(0), 5);
        assert_eq!((&cut[..], content.has_more), (&b"one\nt"[..], true));
        let (nothing, content, _) = sent(file, from(99), 5);
        assert_eq!((nothing.len(), content.lines), (0, 0));
        assert!(!content.has_more && content.is_text);
    }

    #[test]
    fn a_character_that_a_part_cuts_does_not_make_it_binary() {
        let file = "aé€𝄞z".as_bytes();
        for from_byte in 0..file.len() as u64 {
            for length in 0..=file.len() as u64 - from_byte {
                let part = Beginning {
                    bytes: Some(length),
                    ..from(from_byte)
                };
                assert!(sent(file, part, 100).1.is_text, "{from_byte} {length}");
            }
        }
        assert!(!sent(b"a\0b", from(0), 9).1.is_text);
        assert!(!sent(&file[..2], from(0), 9).1.is_text, "the file ends so");
        assert!(!sent(b"a\x80b", from(0), 9).1.is_text);
        assert!(!sent(b"a\x80\x80\x80\x80b", from(1), 9).1.is_text);
    }

    #[test]
    fn what_a_digest_takes_along_changes_nothing_in_it() {
        let file: Vec<u8> = (0..400_000u32).map(|number| number as u8).collect();
        let expected = aws_lc_rs::digest::digest(&SHA256, &file);
        for (at, most) in [(0, 1 << 20), (0, 150_000), (7, 1 << 20), (0, 0)] {
            assert_eq!(sent(&file, from(at), most).2, expected.as_ref());
        }
    }

    proptest! {
        #[test]
        fn text_in_pieces_is_text(text in "\\PC{0,200}", sizes in prop::collection::vec(1usize..9, 1..60)) {
            let mut check = Text::new(false);
            let mut rest = text.as_bytes();
            for size in sizes.iter().cycle().take(text.len()) {
                let (piece, after) = rest.split_at((*size).min(rest.len()));
                check.take(piece);
                rest = after;
            }
            check.take(rest);
            prop_assert!(check.is_text(false));
        }

        #[test]
        fn bytes_in_pieces_are_judged_as_a_whole(bytes in prop::collection::vec(any::<u8>(), 0..12), at in 0usize..12) {
            let mut check = Text::new(false);
            let (first, second) = bytes.split_at(at.min(bytes.len()));
            check.take(first);
            check.take(second);
            let expected = std::str::from_utf8(&bytes).is_ok() && !bytes.contains(&0);
            prop_assert_eq!(check.is_text(false), expected);
        }
    }
}
