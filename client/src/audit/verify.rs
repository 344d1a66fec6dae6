//! Verifies a log that was written down, line by line, without a control plane.

use std::io::{self, BufRead};

use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::HEXLOWER;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;

use super::{BEFORE_THE_FIRST, ENTRY_DOMAIN, Hash, Head, Position};

/// What stands behind an entry in its line: `,"hash":"` and 64 hex digits and `"}`.
const TAIL_BYTES: usize = 9 + 64 + 2;

/// A line may not be longer, bytes: an entry has at most some tens of kilobytes.
const LINE_MAX: u64 = 1 << 20;

/// What is wrong with a log. The worst kind comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// The chain is broken here: nothing behind this was looked at.
    Broken {
        /// The number of the entry that should stand here.
        number: u64,
        /// The time that the line gives, Unix milliseconds, if it gives one.
        time: Option<i64>,
        /// What differs, in words.
        what: String,
    },
    /// A head says otherwise: the log was written anew.
    Rewritten {
        /// The head's count.
        count: u64,
        /// Up to here an earlier head agrees; what was rewritten lies between.
        agreed: u64,
        /// When the head was signed, Unix milliseconds.
        time: i64,
    },
    /// The log ends before a head that was signed for it.
    Cut {
        /// How many entries there are.
        entries: u64,
        /// How many there were, if a head says so; otherwise the log has no head, and may have had any number.
        count: Option<u64>,
    },
    /// A head's signature does not count.
    Forged {
        /// The head's count.
        count: u64,
        /// Why.
        cause: String,
    },
    /// Entries that a head covers were lost when the control plane was restored from a backup. The log says so itself.
    LostByRestore {
        /// The entry that tells of the restore.
        number: u64,
        /// The head's count.
        count: u64,
    },
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The first entry looked at.
    pub first: u64,
    /// Where the log stands as far as it holds together.
    pub position: Position,
    /// The time of the last entry looked at, Unix milliseconds.
    pub time: Option<i64>,
    /// Whose log it is, as its header says.
    pub control_plane: String,
    /// Heads that agree, the log's own among them.
    pub agreed: usize,
    /// Heads about entries that this part of the log does not reach back to.
    pub before: usize,
    /// Whether signatures were checked.
    pub signatures: bool,
    /// What is wrong, the worst first; empty if nothing is.
    pub findings: Vec<Finding>,
}

#[derive(Deserialize)]
struct Header {
    muster_audit: u32,
    #[serde(default)]
    control_plane: String,
    after: u64,
    before: String,
}

#[derive(Deserialize)]
struct Restore {
    effect: RestoreEffect,
}

#[derive(Deserialize)]
struct RestoreEffect {
    replaced: String,
}

#[derive(Deserialize)]
struct LastLine {
    head: serde_json::Value,
}

/// Verifies what `input` holds against its own head and `heads` of elsewhere. With authorities their signatures are
/// checked too; without any, whoever can write the file can write a head.
pub fn verify(
    mut input: impl BufRead,
    heads: &[Head],
    authorities: &[CertificateDer<'_>],
) -> io::Result<Report> {
    let mut bytes = Vec::new();
    read_line(&mut input, &mut bytes)?;
    let mut chain = match header(&String::from_utf8_lossy(&bytes)) {
        Ok(chain) => chain,
        Err(what) => {
            let finding = Finding::Broken {
                number: 0,
                time: None,
                what,
            };
            return Ok(report(Chain::empty(), vec![finding], authorities));
        }
    };
    chain.heads = heads.to_vec();
    chain.heads.sort_by_key(|head| head.position.count);
    chain.meet();
    let mut findings = Vec::new();
    let mut own = None;
    loop {
        if read_line(&mut input, &mut bytes)? == 0 {
            break;
        }
        // A line without an end that is neither entry nor head is where the writing of it was cut short.
        let torn = !bytes.ends_with(b"\n") && input.fill_buf()?.is_empty();
        let line = str::from_utf8(bytes.strip_suffix(b"\n").unwrap_or(&bytes));
        let Ok(line) = line else {
            if !torn {
                findings.push(chain.broken("the line is no text in UTF-8", None));
            }
            break;
        };
        if torn && split(line).is_none() && own_head(line).is_err() {
            break;
        }
        if own.is_some() {
            findings.push(chain.broken("there are lines behind the head", None));
            break;
        }
        if line.starts_with("{\"head\":") {
            match own_head(line) {
                Ok(head) => own = Some(head),
                Err(what) => {
                    findings.push(chain.broken(&what, None));
                    break;
                }
            }
        } else if let Err(broken) = chain.follow(line) {
            findings.push(broken);
            break;
        }
    }
    if findings.is_empty() {
        if own.is_none() {
            findings.push(Finding::Cut {
                entries: chain.position.count,
                count: None,
            });
        }
        if let Some(own) = &own {
            chain.judge_own(own, &mut findings);
        }
        chain.judge_rest(&mut findings);
    }
    let all = chain.heads.iter().chain(own.as_ref());
    if !authorities.is_empty() {
        for head in all {
            if let Err(error) = head.check(authorities) {
                findings.push(Finding::Forged {
                    count: head.position.count,
                    cause: error.to_string(),
                });
            }
        }
    }
    findings.sort();
    findings.dedup();
    Ok(report(chain, findings, authorities))
}

fn report(chain: Chain, findings: Vec<Finding>, authorities: &[CertificateDer<'_>]) -> Report {
    Report {
        first: chain.after + 1,
        position: chain.position,
        time: chain.time,
        control_plane: chain.control_plane,
        agreed: chain.agreed,
        before: chain.before,
        signatures: !authorities.is_empty(),
        findings,
    }
}

fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    io::Read::take(&mut *input, LINE_MAX).read_until(b'\n', line)
}

fn header(line: &str) -> Result<Chain, String> {
    let header: Header = serde_json::from_str(line)
        .map_err(|error| format!("the first line is no header of an audit log: {error}"))?;
    if header.muster_audit != 1 {
        return Err(format!(
            "the format is {}, and this version reads 1",
            header.muster_audit
        ));
    }
    let hash = read_hash(&header.before).ok_or("the header's hash is none")?;
    if header.after == 0 && hash != BEFORE_THE_FIRST {
        return Err("the header begins the log with a hash that is not all zeros".to_owned());
    }
    let position = Position {
        count: header.after,
        hash,
    };
    Ok(Chain {
        control_plane: header.control_plane,
        after: header.after,
        position,
        ..Chain::empty()
    })
}

fn own_head(line: &str) -> Result<Head, String> {
    let last: LastLine = serde_json::from_str(line).map_err(|error| error.to_string())?;
    Head::from_line(&last.head.to_string()).map_err(|error| error.to_string())
}

fn read_hash(text: &str) -> Option<Hash> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// A log as far as it was read.
struct Chain {
    control_plane: String,
    after: u64,
    position: Position,
    time: Option<i64>,
    heads: Vec<Head>,
    /// How many of the heads were met.
    met: usize,
    agreed: usize,
    before: usize,
    /// The highest count that a head agrees with.
    agreed_upto: u64,
    /// Heads that do not agree.
    against: Vec<usize>,
    /// Number of each restore, and the generation that it replaced.
    restores: Vec<(u64, String)>,
}

impl Chain {
    fn empty() -> Self {
        Self {
            control_plane: String::new(),
            after: 0,
            position: Position::EMPTY,
            time: None,
            heads: Vec::new(),
            met: 0,
            agreed: 0,
            before: 0,
            agreed_upto: 0,
            against: Vec::new(),
            restores: Vec::new(),
        }
    }

    fn broken(&self, what: &str, time: Option<i64>) -> Finding {
        Finding::Broken {
            number: self.position.count + 1,
            time,
            what: what.to_owned(),
        }
    }

    /// Takes the next line.
    fn follow(&mut self, line: &str) -> Result<(), Finding> {
        let Some((entry, stored)) = split(line) else {
            return Err(self.broken("the line is no entry with a hash", None));
        };
        let Some((number, time)) = number_and_time(entry) else {
            return Err(self.broken("the entry does not begin with its number and time", None));
        };
        let expected = self.position.count + 1;
        if number != expected {
            let what = format!("entry {number} stands where entry {expected} belongs");
            return Err(self.broken(&what, Some(time)));
        }
        let mut context = Context::new(&SHA256);
        context.update(ENTRY_DOMAIN);
        context.update(&self.position.hash);
        context.update(entry.as_bytes());
        context.update(b"}");
        let hash = context.finish();
        if hash.as_ref() != stored {
            let what = format!(
                "the entry and the hash before it give {}, and the line says {}: this entry was changed, or the hash \
                 of the one before",
                HEXLOWER.encode(hash.as_ref()),
                HEXLOWER.encode(&stored)
            );
            return Err(self.broken(&what, Some(time)));
        }
        self.position = Position {
            count: number,
            hash: stored,
        };
        self.time = Some(time);
        if entry.contains("\"method\":\"ledger.restore\"")
            && let Ok(restore) = serde_json::from_str::<Restore>(&format!("{entry}}}"))
        {
            self.restores.push((number, restore.effect.replaced));
        }
        self.meet();
        Ok(())
    }

    /// Looks at the heads that were signed here.
    fn meet(&mut self) {
        while let Some(head) = self.heads.get(self.met) {
            if head.position.count > self.position.count {
                return;
            }
            if head.position.count < self.after {
                self.before += 1;
            } else if head.position == self.position && self.is_own(head) {
                self.agreed += 1;
                self.agreed_upto = self.agreed_upto.max(head.position.count);
            } else {
                self.against.push(self.met);
            }
            self.met += 1;
        }
    }

    fn is_own(&self, head: &Head) -> bool {
        self.control_plane.is_empty() || head.control_plane == self.control_plane
    }

    fn judge_own(&mut self, own: &Head, findings: &mut Vec<Finding>) {
        let count = own.position.count;
        if own.position == self.position && self.is_own(own) {
            self.agreed += 1;
        } else if count > self.position.count {
            findings.push(Finding::Cut {
                entries: self.position.count,
                count: Some(count),
            });
        } else {
            findings.push(Finding::Rewritten {
                count,
                agreed: self.agreed_upto,
                time: own.time,
            });
        }
    }

    fn judge_rest(&self, findings: &mut Vec<Finding>) {
        let lost = |head: &Head| {
            let mut restores = self.restores.iter();
            restores.find(|(number, replaced)| {
                *replaced == head.generation && *number <= head.position.count
            })
        };
        for index in &self.against {
            let head = &self.heads[*index];
            let count = head.position.count;
            findings.push(match lost(head) {
                Some((number, _)) => Finding::LostByRestore {
                    number: *number,
                    count,
                },
                None => Finding::Rewritten {
                    count,
                    agreed: self.agreed_upto,
                    time: head.time,
                },
            });
        }
        // One finding tells of all that is missing at the end.
        let missing = self.heads.iter().skip(self.met);
        for head in missing.clone() {
            if let Some((number, _)) = lost(head) {
                findings.push(Finding::LostByRestore {
                    number: *number,
                    count: head.position.count,
                });
            }
        }
        let longest = missing.filter(|head| lost(head).is_none());
        if let Some(count) = longest.map(|head| head.position.count).max() {
            findings.push(Finding::Cut {
                entries: self.position.count,
                count: Some(count),
            });
        }
    }
}

/// An entry without its last brace, and the hash that its line gives.
fn split(line: &str) -> Option<(&str, Hash)> {
    let cut = line.len().checked_sub(TAIL_BYTES)?;
    let (entry, tail) = (line.get(..cut)?, line.get(cut..)?);
    let hash = tail.strip_prefix(",\"hash\":\"")?.strip_suffix("\"}")?;
    Some((entry, read_hash(hash)?))
}

/// Every entry begins so: `{"number":1,"time":2,`.
fn number_and_time(entry: &str) -> Option<(u64, i64)> {
    let (number, rest) = entry.strip_prefix("{\"number\":")?.split_once(',')?;
    let (time, _) = rest.strip_prefix("\"time\":")?.split_once(',')?;
    Some((number.parse().ok()?, time.parse().ok()?))
}

#[cfg(test)]
mod tests;
