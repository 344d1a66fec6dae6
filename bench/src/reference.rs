//! What bounds the measured: a local spawn, a pipe.

use std::{
    ffi::OsStr,
    fmt::Debug,
    io::Read as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::ensure;

/// Starts a program here and waits for its end: the least that anybody can do.
pub(crate) fn spawn_and_wait(argv: &[impl AsRef<OsStr> + Debug]) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let status = local(argv).stdout(Stdio::null()).status()?;
    let time = started.elapsed();
    ensure!(status.success(), "{argv:?} ended with {status}");
    Ok(time)
}

/// Starts a program here and waits for the first byte that it writes.
pub(crate) fn first_byte(argv: &[impl AsRef<OsStr> + Debug]) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut child = local(argv).stdout(Stdio::piped()).spawn()?;
    let mut byte = [0];
    if let Some(stdout) = &mut child.stdout {
        stdout.read_exact(&mut byte)?;
    }
    let time = started.elapsed();
    child.wait()?;
    Ok(time)
}

/// Reads all that a program writes, through a pipe: bytes, checksum, and how long it took.
pub(crate) fn read_pipe(
    argv: &[impl AsRef<OsStr> + Debug],
) -> anyhow::Result<(u64, u32, Duration)> {
    let started = Instant::now();
    let mut bytes = 0;
    let mut checksum = crc32fast::Hasher::new();
    each_piece(argv, |piece| {
        bytes += piece.len() as u64;
        checksum.update(piece);
    })?;
    Ok((bytes, checksum.finalize(), started.elapsed()))
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

fn local(argv: &[impl AsRef<OsStr> + Debug]) -> Command {
    // The reference is a process of this program and nothing between.
    #[allow(clippy::disallowed_methods)]
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).stdin(Stdio::null());
    command
}
