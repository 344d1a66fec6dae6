//! Connections whose other end has not proved who it is. There is room for so many; where more come, the oldest gives
//! way. So whoever holds many connections and does nothing keeps nobody out: a handshake takes milliseconds, and to push
//! one out as many others have to come in that time as there is room for.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// A crowd with room for so many.
pub(super) struct Crowd {
    room: usize,
    // A plain mutex: held for a look-up, never across an await.
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    /// By when they came.
    tokens: BTreeMap<u64, CancellationToken>,
}

impl Crowd {
    /// Room for at least one.
    pub(super) fn new(room: usize) -> Arc<Self> {
        Arc::new(Self {
            room: room.max(1),
            waiting: Mutex::default(),
        })
    }

    /// Takes one in. `gives_way` is cancelled once it has to go.
    pub(super) fn enter(self: &Arc<Self>, gives_way: CancellationToken) -> Place {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let number = waiting.next;
        waiting.next += 1;
        waiting.tokens.insert(number, gives_way);
        if waiting.tokens.len() > self.room
            && let Some((_, oldest)) = waiting.tokens.pop_first()
        {
            oldest.cancel();
        }
        Place {
            number,
            crowd: Arc::clone(self),
        }
    }
}

/// One of a crowd, until it is dropped.
pub(super) struct Place {
    number: u64,
    crowd: Arc<Crowd>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let waiting = self.crowd.waiting.lock();
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        waiting.tokens.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_gives_way_and_whoever_left_does_not_count() {
        let crowd = Crowd::new(2);
        let tokens: Vec<_> = (0..4).map(|_| CancellationToken::new()).collect();
        let first = crowd.enter(tokens[0].clone());
        let second = crowd.enter(tokens[1].clone());
        drop(first);
        let third = crowd.enter(tokens[2].clone());
        assert!(tokens.iter().all(|token| !token.is_cancelled()));
        let _fourth = crowd.enter(tokens[3].clone());
        let gone: Vec<_> = tokens.iter().map(CancellationToken::is_cancelled).collect();
        assert_eq!(gone, [false, true, false, false]);
        drop((second, third));
    }
}
