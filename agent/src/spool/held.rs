//! What is held of a task's output: the newest in memory, the rest in segments.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    task::Waker,
};

use tokio::sync::Notify;

use super::{
    BACKLOG, Piece, RECENT_MAX,
    disk::SegmentFile,
    numbers::Numbers,
    plan::{Place, Plan, SegmentId},
};

pub(super) struct Inner {
    pub(super) plan: Plan,
    pub(super) place: Place,
    /// The newest pieces of the head that no report has taken.
    pub(super) recent: VecDeque<Piece>,
    pub(super) recent_bytes: usize,
    pub(super) files: HashMap<SegmentId, Arc<SegmentFile>>,
    pub(super) memory: HashMap<SegmentId, Vec<Piece>>,
    pub(super) numbers: Numbers,
    pub(super) ended: bool,
    pub(super) warned: bool,
    pub(super) waker: Option<Waker>,
    pub(super) backlog: Arc<Notify>,
}

impl Inner {
    pub(super) fn publish(&mut self, piece: Piece) {
        self.recent_bytes += piece.content.kept();
        self.recent.push_back(piece);
        if self.recent_bytes > BACKLOG {
            self.backlog.notify_one();
        }
        // The newest stays, as it may not be in its file yet.
        while self.recent_bytes > RECENT_MAX && self.recent.len() > 1 {
            self.pop();
        }
        self.wake();
    }

    pub(super) fn pop(&mut self) -> Option<Piece> {
        let piece = self.recent.pop_front()?;
        self.recent_bytes -= piece.content.kept();
        Some(piece)
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn remove(&mut self, segments: &[SegmentId]) -> Vec<Arc<SegmentFile>> {
        segments
            .iter()
            .filter_map(|id| {
                self.memory.remove(id);
                self.files.remove(id)
            })
            .collect()
    }
}
