//! A terminal with a program in it, and whoever sits in front of it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use nix::{
    pty::{Winsize, openpty},
    sys::termios::{LocalFlags, tcgetattr},
};
use parking_lot::Mutex;

use crate::{PATIENCE, eventually};

/// A terminal, seen from in front of it.
#[derive(Debug)]
pub struct Console {
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Console {
    /// A terminal of that size, and the end of it that a program is given.
    pub(crate) fn open(rows: u16, columns: u16) -> (Self, OwnedFd) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).unwrap();
        let keyboard = File::from(pty.master);
        let screen: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (mut reader, seen) = (keyboard.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Ends when nobody holds the other end any more.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                seen.lock().extend_from_slice(&buffer[..count]);
            }
        });
        (Self { keyboard, screen }, pty.slave)
    }

    /// Types.
    pub fn type_in(&self, keys: &str) {
        (&self.keyboard).write_all(keys.as_bytes()).unwrap();
    }

    /// All that was shown so far.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock()).into_owned()
    }

    /// Waits until a text was shown.
    pub async fn shows(&self, text: &str) {
        let what = format!("{text:?} is shown");
        eventually(PATIENCE, &what, || async {
            self.screen().contains(text).then_some(())
        })
        .await;
    }

    /// Whether each key goes to the program by itself.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(self.keyboard.as_fd()).unwrap();
        !modes
            .local_flags
            .intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- screen\n{}", self.screen());
        }
    }
}
