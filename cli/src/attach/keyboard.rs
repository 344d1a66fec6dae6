//! Standard input on its way to a task.

use std::io::{self, Read as _};

use bytes::Bytes;
use muster_client::Writing;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{PIECE, Piece};
use crate::screen::say;

/// Pieces that are read and not written yet.
const PIECES: usize = 2;

/// The same of keys, so that the one that detaches is still read while the task takes none.
const KEYS: usize = 1024;

/// The key that detaches: Ctrl-].
const DETACH: u8 = 0x1d;

/// The key that interrupts: Ctrl-C.
const INTERRUPT: u8 = 0x03;

/// What somebody wants beside typing.
pub(super) enum Typed {
    /// To detach.
    Detach,
    /// To interrupt; the key goes to the task too.
    Interrupt,
    /// Nothing: standard input has ended, and so many pieces of it were passed on.
    End(u64),
}

/// Passes standard input on to its end, no faster than the task takes it, or what of it is read once somebody leaves.
/// Raw: one key detaches.
pub(super) fn read(
    writing: Writing,
    raw: bool,
    typed: mpsc::Sender<Typed>,
    leaving: CancellationToken,
) {
    let (pieces, read) = mpsc::channel(if raw { KEYS } else { PIECES });
    let noticed = typed.clone();
    // A thread of its own: a blocking read of a terminal can be neither cancelled nor waited out.
    std::thread::spawn(move || read_pieces(&pieces, raw, &noticed));
    tokio::spawn(pass_on(writing, raw, read, typed, leaving));
}

fn read_pieces(pieces: &mpsc::Sender<Piece>, raw: bool, noticed: &mpsc::Sender<Typed>) {
    let mut stdin = io::stdin().lock();
    let mut buffer = vec![0; PIECE];
    loop {
        let piece = match stdin.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => Ok(Bytes::copy_from_slice(&buffer[..count])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let piece = match piece {
            Ok(keys) if raw => {
                let (keys, detaches) = notice(keys, noticed);
                if detaches {
                    // Where not even these find room, whoever leaves hears that not all of it has got there.
                    let _ = pieces.try_send(Ok(keys));
                    let _ = noticed.blocking_send(Typed::Detach);
                    return;
                }
                Ok(keys)
            }
            piece => piece,
        };
        let failed = piece.is_err();
        if pieces.blocking_send(piece).is_err() || failed {
            return;
        }
    }
}

/// Looks for keys that mean something here: what goes to the task, and whether somebody detaches behind it.
fn notice(mut keys: Bytes, noticed: &mpsc::Sender<Typed>) -> (Bytes, bool) {
    let detach = keys.iter().position(|key| *key == DETACH);
    keys.truncate(detach.unwrap_or(keys.len()));
    if keys.contains(&INTERRUPT) {
        // One that waits already says the same.
        let _ = noticed.try_send(Typed::Interrupt);
    }
    (keys, detach.is_some())
}

async fn pass_on(
    writing: Writing,
    raw: bool,
    mut read: mpsc::Receiver<Piece>,
    typed: mpsc::Sender<Typed>,
    leaving: CancellationToken,
) {
    let mut pieces = 0;
    loop {
        let piece = tokio::select! {
            piece = read.recv() => piece,
            () = leaving.cancelled(), if !read.is_closed() => {
                // What is read is passed on, and no more is read.
                read.close();
                continue;
            }
        };
        let Some(piece) = piece else { break };
        match piece {
            Ok(piece) => {
                pieces += 1;
                if writing.write(piece).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // Half of it must not pass for the whole.
                say(&format!("muster: standard input cannot be read: {error}"));
                let _ = typed.send(Typed::Detach).await;
                return;
            }
        }
    }
    // Whoever waits for the last of it must not wait for this too.
    drop(writing);
    // A raw terminal ends when somebody detaches, or when it is taken away; the end of input is a key like any other.
    let end = if raw {
        Typed::Detach
    } else {
        Typed::End(pieces)
    };
    let _ = typed.send(end).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_detaches_and_another_is_noticed() {
        let (noticed, mut typed) = mpsc::channel(4);
        let keys = |text: &'static str| Bytes::from_static(text.as_bytes());
        assert_eq!(notice(keys("ls\x03"), &noticed), (keys("ls\x03"), false));
        assert!(matches!(typed.try_recv(), Ok(Typed::Interrupt)));
        let (before, detaches) = notice(keys("ls\r\x1dxx"), &noticed);
        assert_eq!(before, "ls\r", "what was typed before still counts");
        assert!(detaches);
        assert_eq!(notice(keys("plain"), &noticed), (keys("plain"), false));
        assert!(typed.try_recv().is_err());
    }
}
