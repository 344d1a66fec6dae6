//! Standard input that goes along with a command.

use std::{
    io::{self, Read as _},
    time::Duration,
};

use nix::sys::stat::{SFlag, fstat};

use crate::{failure::Failure, screen::say};

/// What a command takes along at most.
const INPUT_MAX: usize = 1 << 20;

/// After this long it is said what is waited for: a pipe that nobody closes is a common mistake.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reads a pipe or file to its end. Terminals, devices and sockets are left alone.
pub(super) async fn read() -> Result<Vec<u8>, Failure> {
    let is_fed = fstat(io::stdin()).is_ok_and(|stat| {
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        kind == SFlag::S_IFIFO || kind == SFlag::S_IFREG
    });
    if !is_fed {
        return Ok(Vec::new());
    }
    let mut reading = tokio::task::spawn_blocking(|| {
        let mut bytes = Vec::new();
        let limit = INPUT_MAX as u64 + 1;
        io::stdin()
            .lock()
            .take(limit)
            .read_to_end(&mut bytes)
            .map(|_| bytes)
    });
    let read = match tokio::time::timeout(PATIENCE, &mut reading).await {
        Ok(read) => read,
        Err(_) => {
            say("reading standard input to its end; -n leaves it alone");
            reading.await
        }
    };
    let bytes = read
        .map_err(|error| Failure::internal(error.to_string()))?
        .map_err(|error| Failure::usage(format!("standard input: {error}")))?;
    if bytes.len() > INPUT_MAX {
        return Err(Failure::usage("standard input is longer than 1 MiB")
            .next("put it into a file on the host first, or leave it out with -n"));
    }
    Ok(bytes)
}
