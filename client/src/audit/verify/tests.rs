use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, SigningKey as _,
};

use super::*;
use crate::{
    audit::{Purpose, header, last_line, line},
    identity::generate_key,
};
use muster_proto::v1::AuditHead;

struct Signer {
    authority: CertificateDer<'static>,
    chain: Vec<Vec<u8>>,
    key: KeyPair,
}

impl Signer {
    fn new(usage: ExtendedKeyUsagePurpose) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = CertifiedIssuer::self_signed(params, generate_key()).unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![usage];
        params.subject_alt_names = vec![SanType::URI(
            "spiffe://muster.internal/control-plane/cp"
                .try_into()
                .unwrap(),
        )];
        let key = generate_key();
        let leaf = params.signed_by(&key, &authority).unwrap();
        Self {
            authority: authority.der().clone(),
            chain: vec![leaf.der().to_vec()],
            key,
        }
    }

    fn head(&self, generation: &str, position: Position) -> Head {
        let statement = Head::statement("cp", generation, position, 1_790_000_000_000);
        let signature = self
            .key
            .sign(&Purpose::Head.message(statement.as_bytes()))
            .unwrap();
        Head::read(AuditHead {
            statement,
            signature: signature.into(),
            certificate_chain: self.chain.iter().map(|der| der.clone().into()).collect(),
        })
        .unwrap()
    }
}

fn entry(number: u64, text: &str) -> String {
    format!(
        r#"{{"number":{number},"time":{},"method":"{text}","verdict":"allow"}}"#,
        1_780_000_000_000 + number
    )
}

/// A log of so many entries, with the position after each.
struct Log {
    lines: Vec<String>,
    positions: Vec<Position>,
}

impl Log {
    fn new(entries: u64, text: impl Fn(u64) -> String) -> Self {
        let mut position = Position::EMPTY;
        let mut log = Self {
            lines: vec![header("cp", position)],
            positions: vec![position],
        };
        for number in 1..=entries {
            let entry = entry(number, &text(number));
            position = position.with(&entry);
            log.lines.push(line(&entry, &position.hash));
            log.positions.push(position);
        }
        log
    }

    fn last(&self) -> Position {
        *self.positions.last().unwrap()
    }

    /// With its own head behind.
    fn ended(mut self, signer: &Signer) -> Self {
        self.lines.push(last_line(&signer.head("a", self.last())));
        self
    }
}

fn check(lines: &[String], heads: &[Head], signer: &Signer) -> Vec<Finding> {
    let text = lines.join("\n") + "\n";
    let authority = std::slice::from_ref(&signer.authority);
    verify(text.as_bytes(), heads, authority).unwrap().findings
}

fn plain(number: u64) -> String {
    format!("m{number}")
}

#[test]
fn a_log_that_nobody_touched_is_whole() {
    let signer = Signer::new(ExtendedKeyUsagePurpose::TimeStamping);
    for entries in [0, 1, 2, 50] {
        let log = Log::new(entries, plain).ended(&signer);
        let text = log.lines.join("\n") + "\n";
        let heads: Vec<_> = log.positions.iter().map(|p| signer.head("a", *p)).collect();
        let authority = std::slice::from_ref(&signer.authority);
        let report = verify(text.as_bytes(), &heads, authority).unwrap();
        assert_eq!(report.findings, []);
        assert_eq!(report.agreed, heads.len() + 1);
        assert_eq!(report.position.count, entries);
    }
}

#[test]
fn any_row_that_was_changed_removed_or_moved_is_found() {
    let signer = Signer::new(ExtendedKeyUsagePurpose::TimeStamping);
    let log = Log::new(120, plain).ended(&signer);
    for at in 1..=120_usize {
        let number = at as u64;
        let broken = |lines: &[String], expected: &[u64]| {
            let findings = check(lines, &[], &signer);
            let Finding::Broken { number, .. } = &findings[0] else {
                panic!("{at}: {findings:?}");
            };
            assert!(expected.contains(number), "{at}: {findings:?}");
        };
        // One character, anywhere in the line: also in its number, its time and its hash.
        let mut position = 0;
        while position < log.lines[at].len() {
            let mut lines = log.lines.clone();
            let mut bytes = lines[at].clone().into_bytes();
            bytes[position] = if bytes[position] == b'7' { b'8' } else { b'7' };
            lines[at] = String::from_utf8(bytes).unwrap();
            broken(&lines, &[number]);
            position += 7;
        }
        // A whole new entry with a hash of its own: the next one does not follow from it.
        if at < 120 {
            let mut lines = log.lines.clone();
            let other = entry(number, "other");
            let hash = log.positions[at - 1].with(&other).hash;
            lines[at] = line(&other, &hash);
            broken(&lines, &[number + 1]);
            let mut lines = log.lines.clone();
            lines.swap(at, at + 1);
            broken(&lines, &[number]);
            let mut lines = log.lines.clone();
            lines.insert(at, lines[at].clone());
            broken(&lines, &[number + 1]);
            let mut lines = log.lines.clone();
            lines.remove(at);
            broken(&lines, &[number]);
        }
    }
    // The last one, removed: the head tells.
    let mut lines = log.lines.clone();
    lines.remove(120);
    let cut = Finding::Cut {
        entries: 119,
        count: Some(120),
    };
    assert_eq!(check(&lines, &[], &signer), [cut]);
    // With the head as well: only that there is none.
    lines.pop();
    let cut = Finding::Cut {
        entries: 119,
        count: None,
    };
    assert_eq!(check(&lines, &[], &signer), [cut]);
}

#[test]
fn a_byte_that_is_no_text_breaks_the_chain_where_it_is() {
    let signer = Signer::new(ExtendedKeyUsagePurpose::TimeStamping);
    let log = Log::new(5, plain).ended(&signer);
    let text = log.lines.join("\n") + "\n";
    let at = text.find("\"number\":3").unwrap();
    let mut bytes = text.into_bytes();
    bytes[at + 40] = 0xff;
    let authorities = std::slice::from_ref(&signer.authority);
    let report = verify(bytes.as_slice(), &[], authorities).unwrap();
    assert!(
        matches!(&report.findings[..], [Finding::Broken { number: 3, .. }]),
        "{:?}",
        report.findings
    );
}

#[test]
fn an_export_that_broke_off_is_cut_wherever_that_was() {
    let signer = Signer::new(ExtendedKeyUsagePurpose::TimeStamping);
    let log = Log::new(3, plain).ended(&signer);
    let text = log.lines.join("\n") + "\n";
    let header = log.lines[0].len() + 1;
    let authorities = std::slice::from_ref(&signer.authority);
    for end in header..text.len() - 1 {
        let report = verify(&text.as_bytes()[..end], &[], authorities).unwrap();
        let entries = text[..end].matches("\"hash\":\"").count();
        let [
            Finding::Cut {
                entries: found,
                count: None,
            },
        ] = report.findings[..]
        else {
            panic!("{end}: {:?}", report.findings);
        };
        assert!(found as usize <= entries, "{end}");
    }
    assert!(
        verify(text.as_bytes(), &[], authorities)
            .unwrap()
            .findings
            .is_empty()
    );
}

/// The promise is about a log of this size; every kind of change, at the ends and in between.
#[test]
fn in_a_hundred_thousand_rows_each_kind_of_change_is_found() {
    let signer = Signer::new(ExtendedKeyUsagePurpose::TimeStamping);
    let log = Log::new(100_000, plain).ended(&signer);
    assert_eq!(check(&log.lines, &[], &signer), []);
    for at in [1_usize, 2, 777, 50_000, 99_999, 100_000] {
        let mut changed = log.lines.clone();
        changed[at] = changed[at].replacen("allow", "denyx", 1);
        let mut removed = log.lines.clone();
        removed.remove(at);
        let mut moved = log.lines.clone();
        let other = if at == 100_000 { 3 } else { at + 1 };
        moved.swap(at, other);
        for (what, lines) in [("changed", changed), ("removed", removed), ("moved", moved)] {
            let findings = check(&lines, &[], &signer);
            assert!(!findings.is_empty(), "{what} at {at}");
            let first = at.min(other) as u64;
            match &findings[0] {
                Finding::Broken { number, .. } => {
                    assert!(
                        *number == at as u64 || *number == first,
                        "{what} at {at}: {number}"
                    );
                }
                Finding::Cut { entries, count } => {
                    assert_eq!((*entries, *count), (99_999, Some(100_000)));
                    assert_eq!((what, at), ("removed", 100_000));
                }
                finding => panic!("{what} at {at}: {finding:?}"),
            }
        }
    }
}

#[test]
fn a_log_that_was_written_anew_contradicts_the_heads_that_hosts_keep() {
    let signer = Signer::new(ExtendedKeyUsagePurpose::TimeStamping);
    let old = Log::new(100, plain);
    let heads: Vec<_> = [10, 40, 70, 100]
        .map(|at| signer.head("a", old.positions[at]))
        .into();
    // Everything from entry 50 on is other, and the chain, and the head at its end, are right.
    let anew = |entries| {
        Log::new(entries, |number| match number {
            50.. => format!("forged{number}"),
            _ => plain(number),
        })
        .ended(&signer)
    };
    assert_eq!(
        check(&anew(100).lines, &[], &signer),
        [],
        "by itself it is whole"
    );
    let rewritten = |count| Finding::Rewritten {
        count,
        agreed: 40,
        time: 1_790_000_000_000,
    };
    assert_eq!(
        check(&anew(100).lines, &heads, &signer),
        [rewritten(70), rewritten(100)]
    );
    // Cut as well.
    let cut = Finding::Cut {
        entries: 90,
        count: Some(100),
    };
    assert_eq!(
        check(&anew(90).lines, &heads, &signer),
        [rewritten(70), cut]
    );
}

#[test]
fn what_a_restore_lost_is_told_apart_from_what_was_cut() {
    let signer = Signer::new(ExtendedKeyUsagePurpose::TimeStamping);
    let old = Log::new(100, plain);
    let heads = [70, 100].map(|at| signer.head("a", old.positions[at]));
    let mut restored = Log::new(80, plain);
    let mut position = restored.last();
    for number in 81..=120 {
        let text = match number {
            81 => r#"ledger.restore","effect":{"replaced":"a","generation":"b"},"x":""#.to_owned(),
            number => format!("new{number}"),
        };
        let entry = entry(number, &text);
        position = position.with(&entry);
        restored.lines.push(line(&entry, &position.hash));
    }
    let own = signer.head("b", position);
    restored.lines.push(last_line(&own));
    let lost = Finding::LostByRestore {
        number: 81,
        count: 100,
    };
    assert_eq!(check(&restored.lines, &heads, &signer), [lost]);
}

#[test]
fn a_head_counts_only_by_the_authority_and_for_its_purpose() {
    let signer = Signer::new(ExtendedKeyUsagePurpose::TimeStamping);
    let stranger = Signer::new(ExtendedKeyUsagePurpose::TimeStamping);
    let log = Log::new(5, plain).ended(&stranger);
    let findings = check(&log.lines, &[], &signer);
    assert!(
        matches!(findings[..], [Finding::Forged { count: 5, .. }]),
        "{findings:?}"
    );

    // The certificate of a server, though of our authority.
    let server = Signer::new(ExtendedKeyUsagePurpose::ServerAuth);
    let log = Log::new(5, plain).ended(&server);
    let findings = check(&log.lines, &[], &server);
    assert!(
        matches!(findings[..], [Finding::Forged { count: 5, .. }]),
        "{findings:?}"
    );

    // A statement that says more than was signed.
    let log = Log::new(5, plain);
    let mut head = signer.head("a", log.positions[4]);
    head.signed.statement = head.signed.statement.replace("\"count\":4", "\"count\":5");
    let mut lines = log.lines.clone();
    lines.push(last_line(&Head::read(head.signed).unwrap()));
    let findings = check(&lines, &[], &signer);
    assert!(
        findings
            .iter()
            .any(|finding| matches!(finding, Finding::Forged { .. })),
        "{findings:?}"
    );
}

#[test]
fn a_part_of_a_log_goes_on_where_another_ended() {
    let signer = Signer::new(ExtendedKeyUsagePurpose::TimeStamping);
    let log = Log::new(50, plain).ended(&signer);
    let mut part = vec![header("cp", log.positions[30])];
    part.extend_from_slice(&log.lines[31..]);
    let head = |at: usize| signer.head("a", log.positions[at]);
    assert_eq!(check(&part, &[head(10), head(30), head(40)], &signer), []);
    // Begun with the wrong hash, it does not follow.
    part[0] = header("cp", log.positions[29]);
    assert!(!check(&part, &[], &signer).is_empty());
}

#[test]
fn what_is_no_log_is_said_to_be_none() {
    let signer = Signer::new(ExtendedKeyUsagePurpose::TimeStamping);
    for text in [
        "",
        "{}",
        "hello",
        r#"{"muster_audit":2,"after":0,"before":""}"#,
    ] {
        let findings = check(&[text.to_owned()], &[], &signer);
        assert!(
            matches!(findings[0], Finding::Broken { number: 0, .. }),
            "{text}"
        );
    }
}
