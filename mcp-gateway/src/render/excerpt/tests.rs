use muster_proto::v1::OutputStream;
use proptest::prelude::*;

use super::*;

const HOW: &str = "job_get job_id=j-0 host=web-1";

fn kept(raw: &[u8], limit: usize) -> Kept {
    let mut kept = Kept::new(limit, false);
    for chunk in raw.chunks(777) {
        kept.push(OutputStream::Stdout, chunk);
    }
    kept
}

#[test]
fn what_fits_is_shown_whole() {
    let excerpt = head_and_tail(&kept(b"one\ntwo", 1_000), 1_000, HOW, "7f3a");
    assert_eq!(excerpt.text, "one\ntwo\n");
    assert_eq!((excerpt.shown, excerpt.omitted), (7, 0));
}

#[test]
fn what_does_not_fit_loses_its_middle_and_says_so() {
    let raw: String = (0..10_000).map(|n| format!("line {n}\n")).collect();
    let excerpt = head_and_tail(&kept(raw.as_bytes(), 2_000), 2_000, HOW, "7f3a");
    let lines: Vec<&str> = excerpt.text.lines().collect();
    assert_eq!(lines[0], "line 0");
    assert_eq!(lines.last(), Some(&"line 9999"));
    let mark = lines.iter().position(|l| l.starts_with('…')).unwrap();
    let shown_lines = lines.len() - 1;
    assert!(
        lines[mark].starts_with(&format!(
            "…7f3a {} ({})",
            words::plural(10_000 - shown_lines as u64, "line"),
            words::plural(excerpt.omitted, "byte")
        )),
        "{}",
        lines[mark]
    );
    // The cursor is the position of the first byte that is missing.
    let cursor: usize = lines[mark]
        .split("cursor=")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(raw[cursor..].starts_with(&format!("line {mark}\n")));
    assert!(excerpt.text.len() <= 2_000);
    let (front, back) = (mark, lines.len() - mark - 1);
    assert!(back > front, "{front} lines before, {back} after");
}

#[test]
fn one_long_line_shows_both_ends() {
    let raw = format!("{}END", "x".repeat(100_000));
    let excerpt = head_and_tail(&kept(raw.as_bytes(), 4_000), 4_000, HOW, "7f3a");
    assert!(excerpt.text.starts_with("xxx"));
    assert!(excerpt.text.ends_with("END\n"));
    assert_eq!(excerpt.shown + excerpt.omitted, 100_003);
}

#[test]
fn a_long_line_among_others_is_cut() {
    let raw = format!("{}\n{}\nlast\n", "a\n".repeat(9_000), "y".repeat(5_000));
    let excerpt = head_and_tail(&kept(raw.as_bytes(), 9_000), 9_000, HOW, "7f3a");
    assert!(
        excerpt.text.contains("…[+3,000 bytes]\nlast\n"),
        "{}",
        excerpt.text
    );
}

#[test]
fn binary_is_named_and_not_shown() {
    let mut raw = b"\x7fELF\0\x01".to_vec();
    raw.extend([0; 500]);
    let excerpt = head_and_tail(&kept(&raw, 1_000), 1_000, HOW, "7f3a");
    assert!(
        excerpt
            .text
            .starts_with("[binary output, 506 bytes, not shown; begins 7f 45 4c 46 00 01")
    );
    assert_eq!((excerpt.shown, excerpt.omitted), (0, 506));
}

#[test]
fn pages_follow_each_other_without_gap() {
    let raw: String = (0..500)
        .map(|n| format!("{n} {}\n", "z".repeat(n * 7 % 90)))
        .collect();
    let (mut from, mut text) = (0, String::new());
    while from < raw.len() {
        let (page, used) = page(&raw.as_bytes()[from..], 1_000);
        assert!(used > 0 && page.len() <= 1_000);
        text.push_str(&page);
        from += used;
    }
    assert_eq!(text, raw);
}

/// Text, escapes, long lines, bytes that are no text: what programs write.
fn output() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => "[ -~]{0,80}\n".prop_map(String::into_bytes),
        1 => "[ -~]{0,200}".prop_map(String::into_bytes),
        1 => "\\PC{0,40}\n".prop_map(String::into_bytes),
        1 => Just(b"\x1b[1;32mok\x1b[0m 10%\r20%\n".to_vec()),
        1 => proptest::collection::vec(1_u8.., 0..6),
        1 => (1_usize..6_000).prop_map(|n| vec![b'w'; n]),
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn shown_and_omitted_make_the_whole(raw in output(), budget in 600_usize..6_000, lost in 0_u64..3) {
        let mut kept = kept(&raw, budget);
        if lost > 0 {
            kept.gap(lost);
            kept.push(OutputStream::Stdout, b"after\n");
        }
        let excerpt = head_and_tail(&kept, budget, HOW, "7f3a");
        prop_assert_eq!(excerpt.shown + excerpt.omitted + excerpt.lost, kept.total());
        prop_assert_eq!(excerpt.lost, lost);
        prop_assert!(excerpt.text.len() <= budget, "{} > {budget}", excerpt.text.len());
        prop_assert!(excerpt.text.is_empty() || excerpt.text.ends_with('\n'));
    }

    #[test]
    fn a_page_never_stands_still(raw in output(), budget in 200_usize..3_000) {
        let (text, used) = page(&raw, budget);
        prop_assert!(used > 0 || raw.is_empty());
        prop_assert!(used <= raw.len());
        prop_assert!(text.len() <= budget + 1);
    }
}
