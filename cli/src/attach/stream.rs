//! Standard input as a stream: its end is passed on behind the whole of it, or not at all.

use muster_proto::v1::{AttachInputResult, InputStatus, Reason};

use crate::{
    failure::{Failure, exit},
    screen::clean,
};

/// What of a stream has got through.
#[derive(Default)]
pub(super) struct Stream {
    taken: u64,
    pieces: Option<u64>,
}

impl Stream {
    /// It has ended, after so many pieces.
    pub(super) fn ends(&mut self, pieces: u64) {
        self.pieces = Some(pieces);
    }

    /// Takes in what became of a piece. A stream ends with the first that the task has not taken, with the reason.
    pub(super) fn answered(
        &mut self,
        result: &AttachInputResult,
        job_id: &str,
    ) -> Result<(), Failure> {
        match result.status() {
            // A process that has ended, or reads no more, is no news to whoever pipes into it.
            InputStatus::Accepted | InputStatus::Closed => {
                self.taken += 1;
                Ok(())
            }
            _ => Err(cut_short(result, job_id)),
        }
    }

    /// Whether it has ended, and the task has taken all of it. That is so once.
    pub(super) fn is_through(&mut self) -> bool {
        let taken = self.taken;
        self.pieces.take_if(|pieces| *pieces == taken).is_some()
    }
}

fn cut_short(result: &AttachInputResult, job_id: &str) -> Failure {
    let code = match result.status() {
        InputStatus::Refused => exit::NOT_ALLOWED,
        _ => exit::UNAVAILABLE,
    };
    let message = format!(
        "standard input did not get through whole, and its end was not passed on: {}",
        clean(&result.message)
    );
    let job_id = clean(job_id);
    Failure {
        reason: Some(result.reason()).filter(|reason| *reason != Reason::Unspecified),
        ..Failure::new(code, message).next(format!(
            "the task goes on and waits for input: end it with `muster job cancel {job_id}`, \
             or write to it with `muster job attach {job_id} --input --take-over`"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(status: InputStatus) -> AttachInputResult {
        AttachInputResult {
            status: status.into(),
            message: "operator/ada writes to the task".into(),
            ..AttachInputResult::default()
        }
    }

    #[test]
    fn a_stream_ends_behind_all_of_its_pieces() {
        let mut stream = Stream::default();
        let taken = |stream: &mut Stream, status| stream.answered(&result(status), "j-1").unwrap();
        taken(&mut stream, InputStatus::Accepted);
        assert!(!stream.is_through(), "there may be more");
        stream.ends(2);
        assert!(!stream.is_through());
        taken(&mut stream, InputStatus::Closed);
        assert!(stream.is_through());
        // The answer to its end.
        taken(&mut stream, InputStatus::Accepted);
        assert!(!stream.is_through(), "it ends once");

        let mut empty = Stream::default();
        empty.ends(0);
        assert!(empty.is_through());
    }

    #[test]
    fn a_stream_that_is_cut_short_says_so() {
        for (status, code) in [
            (InputStatus::Refused, exit::NOT_ALLOWED),
            (InputStatus::Unknown, exit::UNAVAILABLE),
        ] {
            let cut = Stream::default().answered(&result(status), "j-1");
            let cut = cut.unwrap_err();
            assert_eq!(cut.code, code);
            assert!(cut.message.contains("operator/ada"), "{cut}");
            assert!(cut.next.unwrap().contains("job cancel j-1"));
        }
    }
}
