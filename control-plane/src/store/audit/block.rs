//! Blocks of the audit log: the entries of one transaction, compressed. Pure.
//!
//! An entry comes back to the byte, since its hash is over these. Entries are much alike, so a block of two takes a third of
//! their bytes by the dictionary, and one of forty a seventh.

use std::{
    io,
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

use muster_client::audit::{Position, link};
use parking_lot::Mutex;
use zstd::{
    bulk::{Compressor, Decompressor},
    dict::DecoderDictionary,
};

use super::AuditRow;

/// The dictionary that this version writes with. Another text gets another number, and this one stays: what was written
/// with it has to be read.
const DICTIONARY: i64 = 1;

/// What most entries hold, the most frequent last.
const ENTRIES: &str = r#"{"number":1,"time":1796125780464,"method":"muster.v1.ApprovalService/Approve","effect":{"approval":"p-","state":"approved"}}
{"number":1,"time":1796125780464,"method":"muster.v1.AccessService/CreateToken","principal":"operator/","verdict":"deny","reason":"NOT_ALLOWED","effect":{"token":"
{"number":1,"time":1796125780464,"method":"muster.v1.PolicyService/SetPolicies","verdict":"needs-approval","repeated":
{"number":1,"time":1796125780464,"method":"muster.v1.HostService/LockHost","principal":"operator/","source":"mcp","for":"ai/","trace":"
{"number":1,"time":1796125780464,"method":"muster.v1.EnrollmentService/Enroll","principal":"host/h-","verdict":"allow","rules":["anyone"],"request":"bfc1a174","hosts":["h-"],"effect":{"join_token":"jt-"}}
{"number":1,"time":1796125780464,"method":"host.attach","principal":"host/h-","verdict":"allow","hosts":["h-"],"effect":{"epoch":"4294967297","boot":"fb9c5bd8-","journal":"9cc47910"}}
{"number":1,"time":1796125780464,"method":"muster.v1.JobService/CancelJob","principal":"operator/","address":"10.0.0.1:5","verdict":"allow","rules":["admin-does-all","operator-works"],"request":"
{"number":1,"time":1796125780464,"method":"muster.v1.SessionService/Attach","principal":"ai/","source":"mcp","address":"127.0.0.1:5","verdict":"allow","rules":["ai-works"],"effect":{"task":"t-","state":"cancelled","signal":"SIGKILL"}}
{"number":1,"time":1796125783537,"method":"task.end","principal":"host/h-","verdict":"allow","reason":"REASON_TIMEOUT","hosts":["h-"],"effect":{"job":"j-","task":"t-","state":"failed","exit_code":"1"}}
{"number":1,"time":1796125783480,"method":"muster.v1.JobService/CreateJob","principal":"operator/","address":"127.0.0.1:58434","verdict":"allow","rules":["admin-does-all","operator-works"],"request":"
{"number":1,"time":1796125783480,"method":"muster.v1.JobService/RunJob","principal":"operator/","address":"127.0.0.1:58434","verdict":"allow","rules":["admin-does-all","operator-works"],"request":"05b82d9d","hosts":["h-"],"effect":{"action":"command","job":"j-"}}
{"number":1,"time":1796125783537,"method":"task.end","principal":"host/h-","verdict":"allow","hosts":["h-"],"effect":{"job":"j-","task":"t-","state":"succeeded","exit_code":"0"}}
"#;

/// A level above takes twice the time for two bytes of a hundred less.
const LEVEL: i32 = 3;

/// A block as it is written down.
pub(crate) struct Block {
    /// The dictionary that it is compressed by; 0 if it is not.
    pub(crate) dictionary: i64,
    /// Bytes of the entries.
    pub(crate) bytes: usize,
    pub(crate) entries: Vec<u8>,
}

// The ledger has one writer: nobody waits for this.
static COMPRESSOR: LazyLock<Option<Mutex<Compressor<'static>>>> =
    LazyLock::new(|| compressor().inspect_err(complain).ok().map(Mutex::new));

static READ_BY: LazyLock<DecoderDictionary<'static>> =
    LazyLock::new(|| DecoderDictionary::copy(ENTRIES.as_bytes()));

static COMPLAINED: AtomicBool = AtomicBool::new(false);

fn compressor() -> io::Result<Compressor<'static>> {
    let mut compressor = Compressor::with_dictionary(LEVEL, ENTRIES.as_bytes())?;
    compressor.include_contentsize(false)?;
    compressor.include_dictid(false)?;
    compressor.include_checksum(false)?;
    Ok(compressor)
}

fn complain(error: &io::Error) {
    if !COMPLAINED.swap(true, Ordering::Relaxed) {
        tracing::warn!(%error, "the audit log is written without compression: {error}");
    }
}

impl Block {
    /// A block of these entries, each of which ends with a line break.
    pub(super) fn of(entries: String) -> Self {
        let compressed = COMPRESSOR.as_ref().and_then(|compressor| {
            let compressed = compressor.lock().compress(entries.as_bytes());
            compressed.inspect_err(complain).ok()
        });
        match compressed {
            Some(compressed) => Self {
                dictionary: DICTIONARY,
                bytes: entries.len(),
                entries: compressed,
            },
            // It is the log: rather longer than not there.
            None => Self {
                dictionary: 0,
                bytes: entries.len(),
                entries: entries.into_bytes(),
            },
        }
    }

    /// The entries again.
    fn text(&self) -> io::Result<String> {
        let bytes = match self.dictionary {
            0 => self.entries.clone(),
            DICTIONARY => Decompressor::with_prepared_dictionary(&READ_BY)?
                .decompress(&self.entries, self.bytes)?,
            other => {
                let words = format!("this version does not know the dictionary {other}");
                return Err(io::Error::other(words));
            }
        };
        String::from_utf8(bytes).map_err(io::Error::other)
    }

    /// The entries with their numbers and hashes, given where the log stood before them and the hash of the last. An entry
    /// that was changed shows by that one: it does not follow from the one before it.
    pub(super) fn rows(&self, before: Position, last: &[u8]) -> io::Result<Vec<AuditRow>> {
        let mut hash = before.hash;
        let mut rows: Vec<AuditRow> = self
            .text()?
            .lines()
            .zip(before.count + 1..)
            .map(|(entry, number)| {
                hash = link(&hash, entry);
                AuditRow {
                    number: i64::try_from(number).unwrap_or(i64::MAX),
                    time: time_of(entry),
                    entry: entry.to_owned(),
                    hash: hash.to_vec(),
                }
            })
            .collect();
        if let Some(row) = rows.last_mut() {
            row.hash = last.to_vec();
        }
        Ok(rows)
    }
}

/// When an entry was made, Unix milliseconds: its second member.
fn time_of(entry: &str) -> i64 {
    let time = entry.split_once("\"time\":").map_or("", |(_, rest)| rest);
    let digits = time.bytes().take_while(u8::is_ascii_digit).count();
    time[..digits].parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(number: u64) -> String {
        let id = |prefix: char| {
            use muster_client::audit::sha256;
            let digest = sha256(format!("{prefix}{number}").as_bytes());
            let digest: [u8; 32] = digest[..].try_into().unwrap();
            muster_proto::ids::JobId::from_bytes(&digest).to_string()
        };
        format!(
            "{{\"number\":{number},\"time\":{},\"method\":\"task.end\",\"principal\":\"host/h-a2kxe688nrjp9am9g8cs\",\
             \"verdict\":\"allow\",\"hosts\":[\"h-a2kxe688nrjp9am9g8cs\"],\"effect\":{{\"job\":\"{}\",\"task\":\"{}\",\
             \"state\":\"succeeded\",\"exit_code\":\"0\"}}}}\n",
            1_796_125_783_537_u64 + number,
            id('j'),
            id('t'),
        )
    }

    #[test]
    fn entries_come_back_to_the_byte_with_their_hashes() {
        let texts: Vec<_> = (8..48).map(end).collect();
        let before = Position {
            count: 7,
            hash: [3; 32],
        };
        let after = texts
            .iter()
            .fold(before, |position, text| position.with(text.trim_end()));
        let block = Block::of(texts.concat());
        let rows = block.rows(before, &after.hash).unwrap();
        assert_eq!(rows.len(), 40);
        assert_eq!((rows[0].number, rows[39].number), (8, 47));
        assert_eq!(rows[1].time, 1_796_125_783_546);
        assert_eq!(rows[39].hash, after.hash);
        for (row, text) in rows.iter().zip(&texts) {
            assert_eq!(format!("{}\n", row.entry), *text);
        }
        assert!(
            block.entries.len() < block.bytes / 5,
            "{}",
            block.entries.len()
        );
        let two = Block::of(texts[..2].concat());
        assert!(two.entries.len() < two.bytes / 2, "{}", two.entries.len());
    }

    #[test]
    fn what_is_no_block_is_an_error() {
        let rows = |block: Block| block.rows(Position::EMPTY, &[]).is_err();
        let mut cut = Block::of(end(1));
        cut.entries.pop();
        assert!(rows(cut));
        let mut longer = Block::of(end(1));
        longer.bytes -= 1;
        assert!(rows(longer));
        let mut later = Block::of(end(1));
        later.dictionary = 2;
        assert!(rows(later));
    }
}
