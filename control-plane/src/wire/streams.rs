//! Streams of output on the wire.

use muster_proto::v1::OutputStream;

use crate::model::Stream;

/// The stream that a message names; `None` if it names none.
pub(crate) fn stream(wire: i32) -> Option<Stream> {
    match OutputStream::try_from(wire) {
        Ok(OutputStream::Stdout) => Some(Stream::Stdout),
        Ok(OutputStream::Stderr) => Some(Stream::Stderr),
        Ok(OutputStream::Pty) => Some(Stream::Pty),
        Ok(OutputStream::Unspecified) | Err(_) => None,
    }
}

/// A stream as messages name it.
pub(crate) fn named(stream: Stream) -> OutputStream {
    match stream {
        Stream::Stdout => OutputStream::Stdout,
        Stream::Stderr => OutputStream::Stderr,
        Stream::Pty => OutputStream::Pty,
    }
}
