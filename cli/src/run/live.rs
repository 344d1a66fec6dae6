//! Output as it comes, of one host or of many.
//!
//! The bytes of one host go through as they are. With several, each line begins with its host's name, and only
//! whole lines are written, so that hosts never mix within one.

use std::{
    collections::HashMap,
    io::{self, IsTerminal as _, Write},
};

use muster_proto::v1::{OutputChunk, OutputStream};

use crate::screen::clean;

/// A line that grows longer than this is written in pieces.
const LINE_MAX: usize = 64 << 10;

/// Where output goes.
pub(super) struct Live<O, E> {
    stdout: O,
    stderr: E,
    /// Prefix by task, empty with one host.
    prefixes: HashMap<String, String>,
    /// Lines that have not ended yet, by task and stream.
    open: HashMap<(String, OutputStream), Vec<u8>>,
}

impl Live<io::Stdout, io::Stderr> {
    /// To this process's standard output and error.
    pub(super) fn standard() -> Self {
        Self::to(io::stdout(), io::stderr())
    }
}

impl<O: Write, E: Write> Live<O, E> {
    fn to(stdout: O, stderr: E) -> Self {
        Self {
            stdout,
            stderr,
            prefixes: HashMap::new(),
            open: HashMap::new(),
        }
    }

    /// Says which hosts there are, as (task id, host name).
    pub(super) fn hosts<'a>(&mut self, hosts: impl Iterator<Item = (&'a str, &'a str)> + Clone) {
        if hosts.clone().count() < 2 {
            return;
        }
        let width = hosts
            .clone()
            .map(|(_, name)| name.chars().count())
            .max()
            .unwrap_or(0);
        for (task_id, name) in hosts {
            let name = clean(name);
            let prefix = format!(
                "{name}{:1$} | ",
                "",
                width.saturating_sub(name.chars().count())
            );
            self.prefixes.insert(task_id.to_owned(), prefix);
        }
    }

    /// Writes a chunk.
    pub(super) fn write(&mut self, chunk: &OutputChunk) -> io::Result<()> {
        let Some(prefix) = self.prefixes.get(&chunk.task_id) else {
            return write_to(
                &mut self.stdout,
                &mut self.stderr,
                chunk.stream(),
                &chunk.data,
            );
        };
        let key = (chunk.task_id.clone(), chunk.stream());
        let open = self.open.entry(key).or_default();
        let mut lines = Vec::with_capacity(chunk.data.len() + 256);
        for piece in chunk.data.split_inclusive(|byte| *byte == b'\n') {
            let ends = piece.ends_with(b"\n");
            if ends || open.len() + piece.len() >= LINE_MAX {
                lines.extend_from_slice(prefix.as_bytes());
                lines.append(open);
                lines.extend_from_slice(piece);
                if !ends {
                    lines.push(b'\n');
                }
            } else {
                open.extend_from_slice(piece);
            }
        }
        write_to(&mut self.stdout, &mut self.stderr, chunk.stream(), &lines)
    }

    /// Writes what is left of a task's lines: nothing more will come.
    pub(super) fn finish(&mut self, task_id: &str) -> io::Result<()> {
        for stream in [
            OutputStream::Stdout,
            OutputStream::Stderr,
            OutputStream::Pty,
        ] {
            let Some(mut line) = self.open.remove(&(task_id.to_owned(), stream)) else {
                continue;
            };
            if line.is_empty() {
                continue;
            }
            let prefix = self.prefixes.get(task_id).map_or("", String::as_str);
            line.splice(0..0, prefix.bytes());
            line.push(b'\n');
            write_to(&mut self.stdout, &mut self.stderr, stream, &line)?;
        }
        Ok(())
    }
}

fn write_to(
    stdout: &mut impl Write,
    stderr: &mut impl Write,
    stream: OutputStream,
    bytes: &[u8],
) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    if stream == OutputStream::Stderr {
        stderr.write_all(bytes)
    } else {
        stdout.write_all(bytes)?;
        stdout.flush()
    }
}

/// Output goes to a terminal, where remarks may stand beside it.
pub(super) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(task_id: &str, stream: OutputStream, data: &'static [u8]) -> OutputChunk {
        OutputChunk {
            task_id: task_id.to_owned(),
            stream: stream.into(),
            data: data.into(),
            ..OutputChunk::default()
        }
    }

    #[test]
    fn one_host_is_written_as_it_is() {
        let mut live = Live::to(Vec::new(), Vec::new());
        live.hosts([("t-1", "web-1")].into_iter());
        live.write(&chunk("t-1", OutputStream::Stdout, b"a\xff"))
            .unwrap();
        live.write(&chunk("t-1", OutputStream::Stderr, b"e"))
            .unwrap();
        live.finish("t-1").unwrap();
        assert_eq!(
            (&live.stdout[..], &live.stderr[..]),
            (&b"a\xff"[..], &b"e"[..])
        );
    }

    #[test]
    fn lines_of_several_hosts_never_mix() {
        let mut live = Live::to(Vec::new(), Vec::new());
        live.hosts([("t-1", "a"), ("t-2", "web-2")].into_iter());
        live.write(&chunk("t-1", OutputStream::Stdout, b"one\ntw"))
            .unwrap();
        live.write(&chunk("t-2", OutputStream::Stdout, b"1\n"))
            .unwrap();
        live.write(&chunk("t-1", OutputStream::Stdout, b"o\nend"))
            .unwrap();
        live.finish("t-1").unwrap();
        live.finish("t-2").unwrap();
        assert_eq!(
            String::from_utf8(live.stdout).unwrap(),
            "a     | one\nweb-2 | 1\na     | two\na     | end\n"
        );
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut live = Live::to(Vec::new(), Vec::new());
        live.hosts([("t-1", "a"), ("t-2", "b")].into_iter());
        let long: &'static [u8] = vec![b'x'; LINE_MAX].leak();
        live.write(&chunk("t-1", OutputStream::Stdout, long))
            .unwrap();
        assert!(live.stdout.len() > LINE_MAX);
        assert!(live.open.values().all(Vec::is_empty));
    }
}
