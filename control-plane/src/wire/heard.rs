//! What hosts say, cut to what a host has reason to say: it is kept and shown, and an agent may be in the wrong hands.

use bytes::Bytes;
use muster_proto::{
    agent::v1::task_state::Ended,
    v1::{self, Confinement, task},
};
use prost::Message as _;

use crate::model::{Ceiling, Ending, Facts, Network, ReceiptRecord, State};

/// Bytes of a text that an agent sends for people to read.
const WORDS_MAX: usize = 1024;

/// Bytes of a receipt: one has about 200, with its own signature and certificate 900.
pub(crate) const RECEIPT_MAX: usize = 16 << 10;

/// Bytes of what a task found out, serialized; the contract says so.
const RESULT_MAX: usize = 64 << 10;

/// Roots, features and addresses of a confinement that a host reports.
const CONFINEMENT_PARTS_MAX: usize = 32;

/// A text from an agent, cut to what people read.
pub(crate) fn words(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(WORDS_MAX));
    text
}

/// How a task ended, by our clock at `time`; `None` if the state is not final.
pub(crate) fn ending(ended: Ended, time: i64) -> Option<Ending> {
    let state = match ended.state() {
        task::State::Succeeded => State::Succeeded,
        task::State::Failed => State::Failed,
        task::State::Rejected => State::Rejected,
        task::State::Expired => State::Expired,
        task::State::TimedOut => State::TimedOut,
        task::State::Cancelled => State::Cancelled,
        task::State::Lost => State::Lost,
        task::State::Unspecified
        | task::State::AwaitingApproval
        | task::State::Pending
        | task::State::Running => return None,
    };
    Some(Ending {
        // Whether it verifies is found out later; what is not kept is missed then.
        receipt: receipt(&ended).map_or_else(Bytes::new, |record| record.write()),
        result: Some(ended.result.clone())
            .filter(|result| result.len() <= RESULT_MAX)
            .unwrap_or_default(),
        state,
        reason: ended.reason(),
        exit_code: ended.exit_code,
        run_time: ended.run_time.as_ref().map(|run| {
            run.seconds
                .saturating_mul(1_000_000)
                .saturating_add(i64::from(run.nanos) / 1000)
        }),
        message: words(ended.message),
        signal: words(ended.signal),
        time,
    })
}

/// What is kept of the receipt that came with an end; `None` without one.
fn receipt(ended: &Ended) -> Option<ReceiptRecord> {
    let fits = |receipt: &Bytes| (1..=RECEIPT_MAX).contains(&receipt.len());
    let pending = Some(&ended.unsigned_receipt).filter(|receipt| fits(receipt));
    let alone = Some(&ended.receipt).filter(|receipt| fits(receipt));
    pending
        .map(|receipt| ReceiptRecord::pending(receipt.clone()))
        .or_else(|| alone.map(|sent| ReceiptRecord::alone(sent.clone())))
}

/// How far a host says that a task is confined, cut to what a host has reason to say; empty if it does not.
pub(crate) fn confinement_in(applied: Option<Confinement>) -> Bytes {
    let Some(mut applied) = applied else {
        return Bytes::new();
    };
    let cut_all = |texts: &mut Vec<String>| {
        texts.truncate(CONFINEMENT_PARTS_MAX);
        texts
            .iter_mut()
            .for_each(|text| *text = words(std::mem::take(text)));
    };
    cut_all(&mut applied.roots);
    cut_all(&mut applied.features);
    if let Some(network) = &mut applied.network {
        cut_all(&mut network.allow);
    }
    applied.encode_to_vec().into()
}

/// Facts as an agent reports them. Each text is cut to what a host has reason to say: facts are kept
/// and shown, and an agent may be in the wrong hands.
pub(crate) fn facts(message: v1::Facts) -> Facts {
    const TEXT_MAX: usize = 256;
    const ADDRESSES_MAX: usize = 64;
    const PATHS_MAX: usize = 64;
    const MODES: usize = 4;
    let cut = |text: String| -> String {
        text.chars()
            .filter(|c| !c.is_control())
            .take(TEXT_MAX)
            .collect()
    };
    let cut_all = |texts: Vec<String>, most: usize| -> Vec<String> {
        texts.into_iter().take(most).map(cut).collect()
    };
    Facts {
        os: cut(message.os),
        distro: cut(message.distro),
        distro_version: cut(message.distro_version),
        kernel: cut(message.kernel),
        arch: cut(message.arch),
        cpus: message.cpus,
        memory_bytes: message.memory_bytes,
        shell: cut(message.shell),
        agent_version: cut(message.agent_version),
        addresses: cut_all(message.addresses, ADDRESSES_MAX),
        hostname: cut(message.hostname),
        user: cut(message.user),
        boot_id: cut(message.boot_id),
        ceiling: message.ceiling.map(|ceiling| Ceiling {
            mode: ceiling.mode,
            network: ceiling.network.map(|network| Network {
                access: network.access,
                allow: cut_all(network.allow, ADDRESSES_MAX),
            }),
            roots: cut_all(ceiling.roots, PATHS_MAX),
            unenforceable: ceiling
                .unenforceable
                .into_iter()
                .take(MODES)
                .map(|missing| (missing.mode, cut(missing.cause)))
                .collect(),
        }),
        audit_conflict: cut(message.audit_conflict),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confinement_is_cut_to_what_a_host_has_reason_to_say() {
        assert!(confinement_in(None).is_empty());
        let applied = Confinement {
            roots: vec!["/srv".repeat(10_000); 10_000],
            features: vec!["x".to_owned()],
            ..Confinement::default()
        };
        let kept = Confinement::decode(confinement_in(Some(applied))).unwrap();
        assert_eq!(kept.roots.len(), CONFINEMENT_PARTS_MAX);
        assert_eq!(kept.roots[0].len(), WORDS_MAX);
        assert_eq!(kept.features, ["x"]);
    }

    #[test]
    fn words_are_cut_between_characters() {
        assert_eq!(words("é".repeat(1000)).len(), WORDS_MAX);
        assert_eq!(words("x".into()), "x");
    }
}
