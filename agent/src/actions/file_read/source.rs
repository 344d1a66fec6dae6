//! The bytes of a file by their place in it.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use nix::sys::statfs::{SYSFS_MAGIC, fstatfs};

/// What the kernel makes up when it is read is taken in one go up to so many bytes. It says no size, or a wrong one, and may
/// be whole only from its beginning.
const MADE_UP_MAX: usize = 16 << 20;

/// A file that can be read.
pub(super) enum Source<'a> {
    /// One whose size is known; `None`: it is found by reading.
    File { file: &'a File, size: Option<u64> },
    /// What was read of one that the kernel made up.
    Memory(Vec<u8>),
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        // Files of the kernel's objects all say that they have one page.
        let is_sysfs = fstatfs(file).is_ok_and(|found| found.filesystem_type() == SYSFS_MAGIC);
        let is_made_up = size == 0 || is_sysfs;
        if !is_made_up {
            let size = Some(size);
            return Ok(Self::File { file, size });
        }
        // What cannot be read from its beginning, as the memory of a process, may have its parts.
        Ok(match whole(file) {
            Ok(Some(bytes)) => Self::Memory(bytes),
            Err(error) if error.raw_os_error() != Some(nix::libc::EIO) => return Err(error),
            _ => Self::File { file, size: None },
        })
    }

    /// Reads what is at this place; 0 is the end.
    pub(super) fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File { file, .. } => loop {
                match file.read_at(buffer, at) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => return read,
                }
            },
            Self::Memory(bytes) => {
                let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..));
                let rest = rest.unwrap_or_default();
                let length = rest.len().min(buffer.len());
                buffer[..length].copy_from_slice(&rest[..length]);
                Ok(length)
            }
        }
    }

    /// Fills the buffer as far as the file goes.
    pub(super) fn read_whole_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_at(at + filled as u64, &mut buffer[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(filled)
    }

    /// Where the file ends.
    pub(super) fn end(&self) -> io::Result<u64> {
        match self {
            Self::File {
                size: Some(size), ..
            } => Ok(*size),
            Self::Memory(bytes) => Ok(bytes.len() as u64),
            Self::File { size: None, .. } => {
                let (mut piece, mut at) = (vec![0; 128 << 10], 0);
                loop {
                    match self.read_at(at, &mut piece)? {
                        0 => return Ok(at),
                        read => at += read as u64,
                    }
                }
            }
        }
    }
}

/// All of a file, if it is not too long.
fn whole(mut file: &File) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let most = MADE_UP_MAX as u64 + 1;
    io::Read::read_to_end(&mut io::Read::take(&mut file, most), &mut bytes)?;
    Ok((bytes.len() <= MADE_UP_MAX).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_makes_up_is_read_to_its_end() {
        for path in [
            "/proc/self/status",
            "/proc/sys/kernel/ostype",
            "/sys/kernel/mm/hugepages",
        ] {
            let Ok(file) = File::open(path) else { continue };
            if !file.metadata().unwrap().is_file() {
                continue;
            }
            let source = Source::new(&file).unwrap();
            let end = source.end().unwrap();
            assert!(matches!(source, Source::Memory(_)) && end > 0, "{path}");
            let mut tail = [0; 2];
            assert_eq!(source.read_whole_at(end - 1, &mut tail).unwrap(), 1);
            assert_eq!(&tail[..1], b"\n");
        }
    }

    #[test]
    fn the_memory_of_a_process_is_read_by_its_places() {
        static WORD: [u8; 8] = *b"a word \n";
        let file = File::open("/proc/self/mem").unwrap();
        let source = Source::new(&file).unwrap();
        let mut read = [0; 8];
        let at = WORD.as_ptr() as u64;
        assert_eq!(source.read_whole_at(at, &mut read).unwrap(), 8);
        assert_eq!(read, WORD);
    }

    #[test]
    fn an_empty_file_ends_where_it_begins() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Source::new(&file).unwrap().end().unwrap(), 0);
    }
}
