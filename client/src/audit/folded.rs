//! Receipts without what whoever keeps them knows anyhow, which is most of each.

use bytes::Bytes;
use muster_proto::v1::Receipt;
use prost::Message as _;

/// A receipt, as far as it was not expected.
#[derive(Clone, PartialEq, prost::Message)]
struct Folded {
    /// The fields that are as expected: bits with the numbers of their tags.
    #[prost(uint32, tag = "1")]
    same: u32,
    /// The other fields.
    #[prost(message, optional, tag = "2")]
    rest: Option<Receipt>,
    /// The receipt as it is, where it is written otherwise than this version writes it.
    #[prost(bytes = "bytes", tag = "3")]
    whole: Bytes,
}

/// Calls `$each!(tag, field)` for every field of a receipt.
macro_rules! fields {
    ($each:ident) => {
        $each!(1, task_id);
        $each!(2, job_id);
        $each!(3, host_id);
        $each!(4, offer_digest);
        $each!(5, state);
        $each!(6, reason);
        $each!(7, exit_code);
        $each!(8, signal);
        $each!(9, start_time);
        $each!(10, end_time);
        $each!(11, run_time);
        $each!(12, output_digest);
        $each!(13, confinement);
        $each!(14, result_digest);
    };
}

/// The serialized receipt without what is as expected.
pub fn fold(receipt: &Bytes, expected: &Receipt) -> Bytes {
    let folded = try_fold(receipt, expected).unwrap_or_else(|| Folded {
        whole: receipt.clone(),
        ..Folded::default()
    });
    folded.encode_to_vec().into()
}

/// `None` if the receipt would not come back to the byte.
fn try_fold(receipt: &Bytes, expected: &Receipt) -> Option<Folded> {
    let mut rest = Receipt::decode(receipt.clone()).ok()?;
    let mut same = 0;
    macro_rules! leave_out {
        ($tag:literal, $field:ident) => {
            if rest.$field == expected.$field {
                rest.$field = Default::default();
                same |= 1 << $tag;
            }
        };
    }
    fields!(leave_out);
    let folded = Folded {
        same,
        rest: (rest != Receipt::default()).then_some(rest),
        whole: Bytes::new(),
    };
    (put_together(folded.clone(), expected) == *receipt).then_some(folded)
}

/// The serialized receipt again, to the byte, if the same is expected as when it was folded; `None` if this was not folded.
pub fn unfold(folded: &Bytes, expected: &Receipt) -> Option<Bytes> {
    let folded = Folded::decode(folded.clone()).ok()?;
    if !folded.whole.is_empty() {
        return Some(folded.whole);
    }
    (folded != Folded::default()).then(|| put_together(folded, expected))
}

fn put_together(folded: Folded, expected: &Receipt) -> Bytes {
    let same = folded.same;
    let mut receipt = folded.rest.unwrap_or_default();
    macro_rules! take_over {
        ($tag:literal, $field:ident) => {
            if same & (1 << $tag) != 0 {
                receipt.$field = expected.$field.clone();
            }
        };
    }
    fields!(take_over);
    receipt.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Receipts of few values, so that two have much in common.
    fn receipts() -> impl Strategy<Value = Receipt> {
        let texts = || prop::sample::select(vec!["", "t-1", "t-2"]);
        let codes = prop::option::of(0..2_i32);
        let times = prop::option::of(
            (0..2_i64).prop_map(|seconds| prost_types::Timestamp { seconds, nanos: 7 }),
        );
        (texts(), texts(), texts(), codes, times, 0..3_i32).prop_map(
            |(task_id, signal, digest, exit_code, end_time, state)| Receipt {
                task_id: task_id.to_owned(),
                signal: signal.to_owned(),
                output_digest: digest.into(),
                exit_code,
                end_time,
                state,
                ..Receipt::default()
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_folded_comes_back_to_the_byte(receipt in receipts(), expected in receipts()) {
            let written = Bytes::from(receipt.encode_to_vec());
            let folded = fold(&written, &expected);
            prop_assert_eq!(unfold(&folded, &expected), Some(written));
        }

        #[test]
        fn what_another_version_wrote_comes_back_too(rest in prop::collection::vec(any::<u8>(), 1..40), expected in receipts()) {
            // No field of a receipt has this tag.
            let written = Bytes::from([&expected.encode_to_vec()[..], &[0x9a, 0x06, rest.len() as u8], &rest].concat());
            prop_assert_eq!(unfold(&fold(&written, &expected), &expected), Some(written));
        }
    }

    #[test]
    fn what_is_expected_takes_a_few_bytes() {
        let receipt = Receipt {
            task_id: "t-wsdt62jxq96s0mt8h9pf".to_owned(),
            output_digest: vec![7; 32].into(),
            ..Receipt::default()
        };
        let written = Bytes::from(receipt.encode_to_vec());
        assert_eq!(fold(&written, &receipt).len(), 4);
        assert_eq!(unfold(&Bytes::from_static(b"\xff"), &receipt), None);
        assert_eq!(unfold(&Bytes::new(), &receipt), None);
    }
}
