//! Standard input on its way to a task.

use std::io::{self, Read as _};

use bytes::Bytes;
use muster_client::Writing;
use tokio::sync::mpsc;

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
}

/// Passes standard input on to its end, no faster than the task takes it. Raw: one key detaches.
pub(super) fn read(writing: Writing, raw: bool, typed: mpsc::Sender<Typed>) {
    let (pieces, read) = mpsc::channel(if raw { KEYS } else { PIECES });
    let noticed = typed.clone();
    // A thread of its own: a blocking read of a terminal can be neither cancelled nor waited out.
    std::thread::spawn(move || read_pieces(&pieces, raw, &noticed));
    tokio::spawn(pass_on(writing, raw, read, typed));
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
            Ok(keys) if raw => match notice(keys, noticed) {
                Some(keys) => Ok(keys),
                None => return,
            },
            piece => piece,
        };
        let failed = piece.is_err();
        if pieces.blocking_send(piece).is_err() || failed {
            return;
        }
    }
}

/// Looks for keys that mean something here; what goes to the task, or nothing once somebody detaches.
fn notice(mut keys: Bytes, noticed: &mpsc::Sender<Typed>) -> Option<Bytes> {
    if let Some(at) = keys.iter().position(|key| *key == DETACH) {
        keys.truncate(at);
        let _ = noticed.blocking_send(Typed::Detach);
        return None;
    }
    if keys.contains(&INTERRUPT) {
        // One that waits already says the same.
        let _ = noticed.try_send(Typed::Interrupt);
    }
    Some(keys)
}

async fn pass_on(
    writing: Writing,
    raw: bool,
    mut read: mpsc::Receiver<Piece>,
    typed: mpsc::Sender<Typed>,
) {
    while let Some(piece) = read.recv().await {
        match piece {
            Ok(piece) => {
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
    if raw {
        // A raw terminal ends when somebody detaches, or when it is taken away; the end of input is a key like any
        // other.
        let _ = typed.send(Typed::Detach).await;
    } else {
        let _ = writing.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_detaches_and_another_is_noticed() {
        let (noticed, mut typed) = mpsc::channel(4);
        let keys = |text: &'static str| Bytes::from_static(text.as_bytes());
        assert_eq!(notice(keys("ls\x03"), &noticed), Some(keys("ls\x03")));
        assert!(matches!(typed.try_recv(), Ok(Typed::Interrupt)));
        assert_eq!(notice(keys("ls\x1dxx"), &noticed), None);
        assert!(matches!(typed.try_recv(), Ok(Typed::Detach)));
        assert_eq!(notice(keys("plain"), &noticed), Some(keys("plain")));
        assert!(typed.try_recv().is_err());
    }
}
