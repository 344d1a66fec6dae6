//! What an agent hears of a task, and what is written down for the next while there is none.

use std::{io, path::Path, time::Instant};

use super::Running;
use crate::{
    spool::Content,
    supervision::{
        protocol::{Gap, News, Record},
        record::Left,
        supervisor::peer::Peer,
    },
};

impl Running {
    /// What an agent that takes the task up has to hear first.
    pub(in crate::supervision::supervisor) fn introduce(&mut self, peer: &mut Peer) {
        self.unsaid = None;
        if let Some(started) = &self.started {
            peer.say(News::Started(started.clone()));
        }
        if let Some(not_started) = &self.not_started {
            peer.say(News::NotStarted(not_started.clone()));
        }
    }

    pub(super) fn say(&mut self, peer: &mut Peer, now: Instant) {
        if let Some(until) = self.unsaid {
            if until > now && self.ended.is_none() && self.output.is_said() {
                return;
            }
            self.introduce(peer);
        }
        let goes_along = !self.output.is_said() || self.ended.is_some();
        for answer in self.answers.take(goes_along, now) {
            peer.say(News::InputResult(answer));
        }
        while peer.has_room()
            && let Some(next) = self.output.next()
        {
            match next.content {
                Content::Data(data) => peer.say_output(next.stream, next.offset, data),
                Content::Missing { length, cause } => peer.say(News::Gap(Gap {
                    stream: next.stream as u32,
                    offset: next.offset,
                    length,
                    cause,
                })),
            }
        }
        if let Some((ended, _)) = &self.ended
            && !self.end_said
            && peer.resumed
            && self.output.is_said()
        {
            peer.say(News::Ended(ended.clone()));
            self.end_said = true;
        }
    }

    /// Without an agent: all goes to the disk, so that even the end of this process loses nothing.
    pub(super) fn wait_for_an_agent(&mut self, now: Instant) -> bool {
        if !self.output.is_taken() {
            self.output.spill();
        }
        let over = self.over_since();
        if over.is_some() && !self.recorded {
            self.recorded = true;
            let record = Record {
                started: self.started.clone(),
                not_started: self.not_started.clone(),
                ended: self.ended.as_ref().map(|(ended, _)| ended.clone()),
            };
            // A record that cannot be written is still known here; unless nobody can find this process any more.
            let written = Left::new(Path::new("."), self.task_id).write(&record);
            match written {
                Ok(()) => self.safe = self.output.is_safe(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
                Err(_) => {}
            }
        }
        over.is_none_or(|since| now.duration_since(since) < self.retention())
    }
}
