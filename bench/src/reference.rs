//! What bounds the measured: a local spawn, a pipe.

use std::{
    ffi::OsStr,
    fmt::Debug,
    io::{Read as _, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

/// Starts a program here and waits for its end: the least that anybody can do.
pub(crate) fn spawn_and_wait(argv: &[impl AsRef<OsStr> + Debug]) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let status = local(argv).stdout(Stdio::null()).status()?;
    let time = started.elapsed();
    ensure!(status.success(), "{argv:?} ended with {status}");
    Ok(time)
}

/// Starts a program here and waits for the first byte that it writes; in the end that is `written`.
pub(crate) fn first_byte(
    argv: &[impl AsRef<OsStr> + Debug],
    written: &[u8],
) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut child = local(argv).stdout(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().context("it has no standard output")?;
    let mut came = vec![0];
    stdout.read_exact(&mut came)?;
    let time = started.elapsed();
    stdout.read_to_end(&mut came)?;
    child.wait()?;
    ensure!(came == written, "{came:?} was written");
    Ok(time)
}

/// Reads all that a program writes, through a pipe: bytes and their checksum.
pub(crate) fn read_pipe(argv: &[impl AsRef<OsStr> + Debug]) -> anyhow::Result<(u64, u32)> {
    let mut bytes = 0;
    let mut checksum = crc32fast::Hasher::new();
    each_piece(argv, |piece| {
        bytes += piece.len() as u64;
        checksum.update(piece);
    })?;
    Ok((bytes, checksum.finalize()))
}

/// Calls `take` with each piece that a program writes.
pub(crate) fn each_piece(
    argv: &[impl AsRef<OsStr> + Debug],
    mut take: impl FnMut(&[u8]),
) -> anyhow::Result<()> {
    let mut child = local(argv).stdout(Stdio::piped()).spawn()?;
    let mut buffer = vec![0; 256 << 10];
    if let Some(stdout) = &mut child.stdout {
        loop {
            let count = stdout.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            take(&buffer[..count]);
        }
    }
    child.wait()?;
    Ok(())
}

/// A program here that writes what it reads, line by line.
pub(crate) struct Echo {
    child: Child,
    // Ends the program when it is closed.
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
}

impl Echo {
    /// Starts it.
    pub(crate) fn start(argv: &[impl AsRef<OsStr> + Debug]) -> anyhow::Result<Echo> {
        let mut child = local(argv)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        Ok(Echo {
            child,
            stdin,
            stdout: stdout.context("it has no standard output")?,
        })
    }

    /// Writes a line and waits until it has come back.
    pub(crate) fn line(&mut self, line: &[u8]) -> anyhow::Result<Duration> {
        let mut came = vec![0; line.len()];
        let started = Instant::now();
        if let Some(stdin) = &mut self.stdin {
            stdin.write_all(line)?;
        }
        self.stdout.read_exact(&mut came)?;
        let time = started.elapsed();
        ensure!(came == line, "{came:?} came back");
        Ok(time)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}

fn local(argv: &[impl AsRef<OsStr> + Debug]) -> Command {
    // The reference is a process of this program and nothing between.
    #[allow(clippy::disallowed_methods)]
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).stdin(Stdio::null());
    command
}
