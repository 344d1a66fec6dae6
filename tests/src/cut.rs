//! A wire that can be cut, stalled and slowed: a TCP proxy between an agent and the control plane.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::PATIENCE;

/// What the wire does with what is put on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Carries everything.
    Whole,
    /// Carries nothing and says nothing: bytes wait, connections stay open. A network that went away.
    Stalled,
    /// Carries only what goes up, to the control plane: a half-open connection.
    UpOnly,
    /// Carries everything, this much later.
    Slow(Duration),
    /// Refuses: open connections are reset, new ones are closed at once.
    Cut,
}

/// A proxy with a stable address of its own.
#[derive(Debug)]
pub struct Cut {
    address: SocketAddr,
    wire: watch::Sender<Wire>,
    carried: Carried,
    _accepting: AbortOnDropHandle<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

impl Cut {
    /// A whole wire to `target`.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let wire = watch::Sender::new(Wire::Whole);
        let carried = Carried::default();
        let accepting = tokio::spawn(accept(listener, target, wire.clone(), carried.clone()));
        Self {
            address,
            wire,
            carried,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    /// Where to dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the wire.
    pub fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }

    /// Resets every connection and refuses new ones.
    pub fn cut(&self) {
        self.set(Wire::Cut);
    }

    /// Returns once no connection is open: after a cut, once every one was reset.
    pub async fn has_no_connection(&self) {
        let mut open = self.carried.open.subscribe();
        let none = tokio::time::timeout(PATIENCE, open.wait_for(|open| *open == 0)).await;
        assert!(
            none.is_ok(),
            "not within {PATIENCE:?}: no connection is open"
        );
    }

    /// Carries everything again.
    pub fn mend(&self) {
        self.set(Wire::Whole);
    }

    /// Returns once `bytes` more than now have been carried to the control plane.
    pub async fn carried_up(&self, bytes: u64) {
        more(&self.carried.up, bytes).await;
    }

    /// Returns once `bytes` more than now have been carried from the control plane.
    pub async fn carried_down(&self, bytes: u64) {
        more(&self.carried.down, bytes).await;
    }
}

async fn more(carried: &watch::Sender<u64>, bytes: u64) {
    let mut carried = carried.subscribe();
    let goal = *carried.borrow() + bytes;
    let reached = carried.wait_for(|so_far| *so_far >= goal);
    let reached = tokio::time::timeout(PATIENCE, reached).await;
    assert!(
        reached.is_ok(),
        "not within {PATIENCE:?}: {bytes} bytes more are carried"
    );
}

/// What goes through.
#[derive(Debug, Clone, Default)]
struct Carried {
    /// Bytes so far.
    up: watch::Sender<u64>,
    down: watch::Sender<u64>,
    /// Connections now.
    open: watch::Sender<u64>,
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    wire: watch::Sender<Wire>,
    carried: Carried,
) {
    while let Ok((near, _)) = listener.accept().await {
        if *wire.borrow() == Wire::Cut {
            reset(&near);
            continue;
        }
        let (wire, carried) = (wire.subscribe(), carried.clone());
        carried.open.send_modify(|open| *open += 1);
        tokio::spawn(async move {
            if let Ok(far) = TcpStream::connect(target).await {
                carry(near, far, wire, &carried).await;
            }
            carried.open.send_modify(|open| *open -= 1);
        });
    }
}

/// Closes with a reset instead of a goodbye, as a crash or a firewall does.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

async fn carry(
    mut near: TcpStream,
    mut far: TcpStream,
    mut wire: watch::Receiver<Wire>,
    carried: &Carried,
) {
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    let over = CancellationToken::new();
    let (near_read, near_write) = near.split();
    let (far_read, far_write) = far.split();
    tokio::select! {
        () = pump(near_read, far_write, Direction::Up, wire.clone(), &carried.up) => over.cancel(),
        () = pump(far_read, near_write, Direction::Down, wire.clone(), &carried.down) => over.cancel(),
        _ = wire.wait_for(|wire| *wire == Wire::Cut) => {}
    }
    if !over.is_cancelled() {
        reset(&near);
        reset(&far);
    }
}

async fn pump(
    mut from: tcp::ReadHalf<'_>,
    mut to: tcp::WriteHalf<'_>,
    direction: Direction,
    mut wire: watch::Receiver<Wire>,
    carried: &watch::Sender<u64>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let open = |wire: &Wire| match wire {
            Wire::Whole | Wire::Slow(_) => true,
            Wire::UpOnly => direction == Direction::Up,
            Wire::Stalled | Wire::Cut => false,
        };
        let state = match wire.wait_for(open).await {
            Ok(state) => *state,
            Err(_) => return,
        };
        let count = match from.read(&mut buffer).await {
            Ok(count) if count > 0 => count,
            _ => return,
        };
        if let Wire::Slow(delay) = state {
            tokio::time::sleep(delay).await;
        }
        // What was read while the wire stalled waits too.
        let still_there = wire.wait_for(open).await.is_ok();
        if !still_there || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        carried.send_modify(|total| *total += count as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    /// How long an answer is waited for that must not come.
    const SILENCE: Duration = Duration::from_millis(200);

    async fn says_back(stream: &mut TcpStream, within: Duration) -> bool {
        let mut answer = [0; 4];
        let asking = async {
            stream.write_all(b"ping").await?;
            stream.read_exact(&mut answer).await
        };
        matches!(tokio::time::timeout(within, asking).await, Ok(Ok(_)))
    }

    #[tokio::test]
    async fn a_wire_carries_stalls_and_is_cut() {
        let cut = Cut::to(echo().await).await;
        let mut stream = TcpStream::connect(cut.address()).await.unwrap();
        assert!(says_back(&mut stream, PATIENCE).await);

        cut.set(Wire::Stalled);
        assert!(!says_back(&mut stream, SILENCE).await);
        cut.mend();
        let mut late = [0; 4];
        stream.read_exact(&mut late).await.unwrap();
        assert_eq!(&late, b"ping", "what waited arrives");

        cut.set(Wire::UpOnly);
        let asked = async { assert!(!says_back(&mut stream, SILENCE).await) };
        tokio::join!(cut.carried_up(4), asked);

        cut.cut();
        assert!(stream.read_exact(&mut late).await.is_err());
        let mut refused = TcpStream::connect(cut.address()).await.unwrap();
        assert!(!says_back(&mut refused, SILENCE).await);
        cut.mend();
        let mut again = TcpStream::connect(cut.address()).await.unwrap();
        assert!(says_back(&mut again, PATIENCE).await);
    }
}
