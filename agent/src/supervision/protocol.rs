//! What an agent and a supervisor say to each other: frames of a length and a message. Fields are only ever
//! added, because either may be older than the other.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use muster_proto::agent::v1::{Input, InputResult, task_state};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};

/// What this build speaks, and the oldest that it understands.
pub(crate) const VERSION: u32 = 1;
pub(crate) const OLDEST: u32 = 1;

/// No message is longer: a start has at most 1 MiB of arguments and 1 MiB of input.
const LONGEST: usize = 8 << 20;

const LENGTH: usize = 4;

/// From the agent.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ToSupervisor {
    #[prost(oneof = "Order", tags = "1, 2, 3, 4, 5, 6")]
    pub(crate) order: Option<Order>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
#[allow(clippy::large_enum_variant)] // It is made to be sent, and never kept.
pub(crate) enum Order {
    /// The first word of an agent that takes up a task.
    #[prost(message, tag = "1")]
    Resume(Resume),
    /// Start a process.
    #[prost(message, tag = "2")]
    Start(Start),
    /// The agent has written this much down.
    #[prost(message, tag = "3")]
    Taken(Reached),
    /// End the tree.
    #[prost(message, tag = "4")]
    Cancel(Cancel),
    /// Something for the process.
    #[prost(message, tag = "5")]
    Input(Input),
    /// The end stands in the journal: forget the task.
    #[prost(message, tag = "6")]
    Release(Release),
}

/// From the supervisor.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ToAgent {
    #[prost(oneof = "News", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub(crate) news: Option<News>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum News {
    /// The first word on every connection.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// The process runs.
    #[prost(message, tag = "2")]
    Started(Started),
    /// It could not be started.
    #[prost(message, tag = "3")]
    NotStarted(NotStarted),
    /// Some output.
    #[prost(message, tag = "4")]
    Output(Output),
    /// Output that was not kept.
    #[prost(message, tag = "5")]
    Gap(Gap),
    /// All is over, and all output was said.
    #[prost(message, tag = "6")]
    Ended(Ended),
    /// What became of an input.
    #[prost(message, tag = "7")]
    InputResult(InputResult),
}

/// How far the streams of a task have come, bytes.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct Reached {
    #[prost(int64, tag = "1")]
    pub(crate) stdout: i64,
    #[prost(int64, tag = "2")]
    pub(crate) stderr: i64,
    #[prost(int64, tag = "3")]
    pub(crate) pty: i64,
}

/// An agent takes up a task, and has this much of its output.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Resume {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(message, required, tag = "2")]
    pub(crate) reached: Reached,
}

/// A process to start: a program by `argv` and what follows it, or a worker.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Start {
    #[prost(string, tag = "1")]
    pub(crate) task_id: String,
    #[prost(string, repeated, tag = "2")]
    pub(crate) argv: Vec<String>,
    /// Empty means the home directory of the user.
    #[prost(string, tag = "3")]
    pub(crate) cwd: String,
    #[prost(message, repeated, tag = "4")]
    pub(crate) env: Vec<Variable>,
    /// Empty means the agent's own.
    #[prost(string, tag = "5")]
    pub(crate) user: String,
    #[prost(bytes = "bytes", tag = "6")]
    pub(crate) stdin: Bytes,
    #[prost(bool, tag = "7")]
    pub(crate) open_stdin: bool,
    #[prost(message, optional, tag = "8")]
    pub(crate) terminal: Option<muster_proto::v1::Terminal>,
    #[prost(uint64, optional, tag = "9")]
    pub(crate) timeout_ms: Option<u64>,
    #[prost(uint64, tag = "10")]
    pub(crate) grace_ms: u64,
    /// Bytes of output kept on disk while the agent is away.
    #[prost(uint64, tag = "11")]
    pub(crate) spool_bytes: u64,
    /// Percent of the disk that output leaves free.
    #[prost(uint64, tag = "12")]
    pub(crate) spool_free_percent: u64,
    /// What the process gets of the host's environment.
    #[prost(message, optional, tag = "13")]
    pub(crate) inherited: Option<muster_proto::v1::Environment>,
    /// What the process may use, with all that it starts.
    #[prost(message, optional, tag = "14")]
    pub(crate) limits: Option<muster_proto::v1::Limits>,
    /// The process waits while so many bytes of output are kept, and nothing is dropped.
    #[prost(uint64, optional, tag = "15")]
    pub(crate) block_at_bytes: Option<u64>,
    /// The newest output matters most where not all is kept.
    #[prost(bool, tag = "16")]
    pub(crate) keep_newest: bool,
    /// How far the process is confined; `None` is not at all.
    #[prost(message, optional, tag = "17")]
    pub(crate) sandbox: Option<crate::process::Sandbox>,
    /// Bytes that the agent's spools and those of all supervisors may take together.
    #[prost(uint64, optional, tag = "18")]
    pub(crate) spools_bytes: Option<u64>,
    /// The work of a worker; there is no program then. Only for a supervisor that has never had a task, and that says
    /// that it knows this kind.
    #[prost(message, optional, tag = "19")]
    pub(crate) worker: Option<muster_proto::v1::Action>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Variable {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Cancel {
    #[prost(uint64, tag = "1")]
    pub(crate) grace_ms: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Release {}

/// Who speaks, and which task it holds.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(int32, tag = "2")]
    pub(crate) pid: i32,
    #[prost(uint64, tag = "3")]
    pub(crate) start_time: u64,
    /// Empty if it holds none.
    #[prost(string, tag = "4")]
    pub(crate) task_id: String,
    /// The kinds of action that it has workers for, by their names.
    #[prost(string, repeated, tag = "5")]
    pub(crate) workers: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Started {
    #[prost(message, required, tag = "1")]
    pub(crate) started: task_state::Started,
    /// When the process began, in clock ticks since boot.
    #[prost(uint64, optional, tag = "2")]
    pub(crate) start_time: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NotStarted {
    #[prost(enumeration = "muster_proto::v1::Reason", tag = "1")]
    pub(crate) reason: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Output {
    #[prost(uint32, tag = "1")]
    pub(crate) stream: u32,
    /// How many bytes of this stream come before.
    #[prost(int64, tag = "2")]
    pub(crate) offset: i64,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) data: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Gap {
    #[prost(uint32, tag = "1")]
    pub(crate) stream: u32,
    #[prost(int64, tag = "2")]
    pub(crate) offset: i64,
    #[prost(int64, tag = "3")]
    pub(crate) length: i64,
    #[prost(string, tag = "4")]
    pub(crate) cause: String,
}

/// Why a process is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
pub(crate) enum Cause {
    ByItself = 0,
    TimedOut = 1,
    Cancelled = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ended {
    #[prost(int32, optional, tag = "1")]
    pub(crate) exit_code: Option<i32>,
    /// Name of the signal that ended it, as "SIG34" where it has none.
    #[prost(string, tag = "2")]
    pub(crate) signal: String,
    #[prost(enumeration = "Cause", tag = "3")]
    pub(crate) cause: i32,
    #[prost(uint64, tag = "4")]
    pub(crate) run_time_us: u64,
    /// What a reader should know about the output; usually nothing.
    #[prost(string, tag = "5")]
    pub(crate) note: String,
    #[prost(message, optional, tag = "6")]
    pub(crate) time: Option<prost_types::Timestamp>,
    /// The supervisor takes no other task: something of this one goes on below it, or it was a worker's.
    #[prost(bool, tag = "7")]
    pub(crate) leaves: bool,
    /// How much it wrote, so that a loss shows; `None` of a supervisor that does not say.
    #[prost(message, optional, tag = "8")]
    pub(crate) written: Option<Reached>,
    /// Why a worker could not do its work; `UNSPECIFIED` if it could.
    #[prost(enumeration = "muster_proto::v1::Reason", tag = "9")]
    pub(crate) reason: i32,
    /// The same in words.
    #[prost(string, tag = "10")]
    pub(crate) message: String,
    /// What a worker found out: a serialized `muster.v1.TaskResult`, or nothing.
    #[prost(bytes = "bytes", tag = "11")]
    pub(crate) result: Bytes,
}

/// How a task ended while its agent was away: a file.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Record {
    #[prost(message, optional, tag = "1")]
    pub(crate) started: Option<Started>,
    #[prost(message, optional, tag = "2")]
    pub(crate) not_started: Option<NotStarted>,
    #[prost(message, optional, tag = "3")]
    pub(crate) ended: Option<Ended>,
}

impl Reached {
    pub(crate) fn new([stdout, stderr, pty]: [i64; 3]) -> Self {
        Self {
            stdout,
            stderr,
            pty,
        }
    }

    pub(crate) fn streams(&self) -> [i64; 3] {
        [self.stdout, self.stderr, self.pty]
    }
}

/// Puts a message behind what is there.
pub(crate) fn put(bytes: &mut BytesMut, message: &impl Message) {
    let length = message.encoded_len();
    bytes.reserve(LENGTH + length);
    bytes.put_u32_le(u32::try_from(length).expect("messages are short"));
    message.encode(bytes).expect("there is room");
}

/// An order as it is sent.
pub(crate) fn frame(order: Order) -> Bytes {
    let mut bytes = BytesMut::new();
    put(&mut bytes, &ToSupervisor { order: Some(order) });
    bytes.freeze()
}

/// The part of an output's frame before its bytes, so that these need not be copied.
pub(crate) fn head_of_output(stream: usize, offset: i64, length: usize) -> Bytes {
    let output = Output {
        stream: stream as u32,
        offset,
        data: Bytes::new(),
    };
    let data = key_len(3) + encoded_len_varint(length as u64) + length;
    let inner = output.encoded_len() + data;
    let outer = key_len(4) + encoded_len_varint(inner as u64) + inner;
    let mut head = BytesMut::with_capacity(64);
    head.put_u32_le(u32::try_from(outer).expect("a piece is short"));
    encode_key(4, WireType::LengthDelimited, &mut head);
    encode_varint(inner as u64, &mut head);
    output.encode(&mut head).expect("there is room");
    encode_key(3, WireType::LengthDelimited, &mut head);
    encode_varint(length as u64, &mut head);
    head.freeze()
}

/// How many bytes the first message lacks, as far as that can be told.
pub(crate) fn missing(bytes: &[u8]) -> usize {
    let length = bytes
        .first_chunk()
        .map(|length| u32::from_le_bytes(*length) as usize);
    let whole = LENGTH + length.unwrap_or(0).min(LONGEST);
    whole.saturating_sub(bytes.len())
}

/// Takes the first whole message; `None` if there is none yet.
pub(crate) fn take<M: Message + Default>(bytes: &mut BytesMut) -> io::Result<Option<M>> {
    let Some(length) = bytes.get(..LENGTH) else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(length.try_into().expect("4 bytes")) as usize;
    if length > LONGEST {
        return Err(io::Error::other("a message is too long"));
    }
    if bytes.len() < LENGTH + length {
        return Ok(None);
    }
    bytes.advance(LENGTH);
    let message = bytes.split_to(length).freeze();
    M::decode(message).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_in_two_parts_is_read_as_one_message() {
        for length in [0, 1, 127, 128, 20_000, 300_000] {
            let data = Bytes::from(vec![b'x'; length]);
            let mut bytes = BytesMut::new();
            bytes.extend_from_slice(&head_of_output(2, 1 << 40, length));
            bytes.extend_from_slice(&data);
            let expected = Output {
                stream: 2,
                offset: 1 << 40,
                data,
            };
            let message: ToAgent = take(&mut bytes).unwrap().unwrap();
            assert_eq!(message.news, Some(News::Output(expected)));
            assert!(bytes.is_empty());
        }
    }

    /// What version 1 says, byte by byte. Either side may be older than the other, so this may only grow.
    #[test]
    fn what_the_first_version_said_is_understood_for_ever() {
        let recorded = [
            // Hello: version 1, process 4711, started at 99, holds "t-1".
            "0e0000000a0c080110e72418632203742d31",
            // Started: process 7 at 1 s, its start time 5.
            "0c000000120a0a060a0208011007 1005",
            // Output: standard error, after 3 bytes, "hi".
            "0a0000002208080110031a026869",
            // Ended: exit code 2 after 1000 us.
            "070000003205080220e807",
        ];
        let news: Vec<News> = recorded
            .iter()
            .map(|text| {
                let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
                let bytes: Vec<u8> = digits
                    .chunks(2)
                    .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                    .collect();
                let mut bytes = BytesMut::from(&bytes[..]);
                let message: ToAgent = take(&mut bytes).unwrap().unwrap();
                message.news.unwrap()
            })
            .collect();
        let hello = Hello {
            version: 1,
            pid: 4711,
            start_time: 99,
            task_id: "t-1".to_owned(),
            workers: Vec::new(),
        };
        let output = Output {
            stream: 1,
            offset: 3,
            data: Bytes::from_static(b"hi"),
        };
        assert_eq!(news[0], News::Hello(hello));
        assert!(matches!(&news[1], News::Started(started)
            if started.started.pid == 7 && started.start_time == Some(5)));
        assert_eq!(news[2], News::Output(output));
        assert!(matches!(&news[3], News::Ended(ended)
            if ended.exit_code == Some(2) && ended.run_time_us == 1000));
    }

    #[test]
    fn messages_are_taken_when_they_are_whole() {
        let order = ToSupervisor {
            order: Some(Order::Cancel(Cancel { grace_ms: 5 })),
        };
        let mut whole = BytesMut::new();
        put(&mut whole, &order);
        put(&mut whole, &order);
        let mut bytes = BytesMut::new();
        let mut found = 0;
        for byte in whole {
            bytes.put_u8(byte);
            while let Some(message) = take::<ToSupervisor>(&mut bytes).unwrap() {
                assert_eq!(message, order);
                found += 1;
            }
        }
        assert_eq!(found, 2);
        let mut long = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert!(take::<ToSupervisor>(&mut long).is_err());
    }
}
