use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use muster_proto::v1::read_output_request::{Grep, Range, Tail};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::output::{Chunk, Gap, OutputLimits};

/// A task with output, and whether that is complete.
struct Fixture {
    store: OutputStore,
    task_id: TaskId,
    complete: Arc<AtomicBool>,
    changed: watch::Sender<()>,
    _directory: TempDir,
}

impl Fixture {
    async fn new() -> Fixture {
        let directory = TempDir::new().unwrap();
        let limits = OutputLimits {
            free_bytes: 0,
            ..OutputLimits::default()
        };
        Fixture {
            store: OutputStore::open(directory.path(), limits).await.unwrap(),
            task_id: TaskId::from_bytes(&[1; 32]),
            complete: Arc::new(AtomicBool::new(true)),
            changed: watch::Sender::new(()),
            _directory: directory,
        }
    }

    async fn with(pieces: &[(Stream, &[u8])]) -> Fixture {
        let fixture = Fixture::new().await;
        for (stream, data) in pieces {
            fixture.append(*stream, data).await;
        }
        fixture
    }

    async fn append(&self, stream: Stream, data: &[u8]) {
        let chunk = Chunk {
            sequence: self.store.last_sequence(self.task_id).await.unwrap() + 1,
            stream,
            offset: self.store.end(self.task_id, Some(stream)).await.unwrap(),
            data: Bytes::copy_from_slice(data),
            time: None,
        };
        self.store.append(self.task_id, chunk).await.unwrap();
        self.changed.send_replace(());
    }

    async fn gap(&self, stream: Stream, length: i64) {
        let gap = Gap {
            sequence: self.store.last_sequence(self.task_id).await.unwrap() + 1,
            stream,
            offset: self.store.end(self.task_id, Some(stream)).await.unwrap(),
            length,
            cause: "spool full".to_owned(),
        };
        self.store.gap(self.task_id, gap).await.unwrap();
    }

    fn request(&self, part: Option<AskedPart>) -> ReadOutputRequest {
        ReadOutputRequest {
            task_id: self.task_id.to_string(),
            part,
            ..ReadOutputRequest::default()
        }
    }

    async fn read(&self, request: ReadOutputRequest) -> Result<ReadOutputResponse, Status> {
        self.read_as("operator/ada", request).await
    }

    async fn read_as(
        &self,
        principal: &str,
        request: ReadOutputRequest,
    ) -> Result<ReadOutputResponse, Status> {
        let look = || async {
            Ok(v1::Task {
                output_complete: self.complete.load(Ordering::SeqCst),
                ..v1::Task::default()
            })
        };
        read(
            &self.store,
            principal,
            request,
            look,
            Some(self.changed.subscribe()),
        )
        .await
    }

    /// Reads page by page until there is no next one.
    async fn pages(&self, mut request: ReadOutputRequest) -> Vec<ReadOutputResponse> {
        let mut pages = Vec::new();
        loop {
            let page = self.read(request.clone()).await.unwrap();
            request.page_token = page.next_page_token.clone();
            pages.push(page);
            if request.page_token.is_empty() {
                return pages;
            }
        }
    }
}

fn bytes(pages: &[ReadOutputResponse]) -> Vec<u8> {
    let chunks = pages.iter().flat_map(|page| &page.chunks);
    chunks.flat_map(|chunk| chunk.data.to_vec()).collect()
}

fn tail(lines: i32) -> Option<AskedPart> {
    Some(AskedPart::Tail(Tail { lines }))
}

fn range(from: i64, length: i64) -> Option<AskedPart> {
    Some(AskedPart::Range(Range { from, length }))
}

#[tokio::test]
async fn a_page_token_serves_the_principal_that_it_was_made_for() {
    let fixture = Fixture::new().await;
    fixture
        .append(Stream::Stdout, &b"line\n".repeat(1000))
        .await;
    for part in [None, range(0, 5000)] {
        let mut request = fixture.request(part);
        request.max_bytes = 1000;
        let page = fixture.read(request.clone()).await.unwrap();
        assert!(!page.next_page_token.is_empty());
        request.page_token = page.next_page_token;
        let other = fixture.read_as("operator/eve", request.clone()).await;
        let refused = other.unwrap_err();
        assert_eq!(status::reason(&refused), "PAGE_TOKEN_INVALID");
        fixture.read(request).await.unwrap();
    }
}

#[tokio::test]
async fn pages_cover_everything_once() {
    let text: Vec<u8> = (0..20_000)
        .flat_map(|n| format!("{n}\n").into_bytes())
        .collect();
    let fixture = Fixture::new().await;
    for piece in text.chunks(7_001) {
        fixture.append(Stream::Stdout, piece).await;
        fixture.append(Stream::Stderr, b"warning\n").await;
    }
    let mut request = fixture.request(None);
    request.stream = OutputStream::Stdout.into();
    request.max_bytes = 10_000;
    let pages = fixture.pages(request).await;
    assert_eq!(bytes(&pages), text);
    assert!(
        pages
            .iter()
            .all(|page| bytes(std::slice::from_ref(page)).len() <= 10_000)
    );
    let last = pages.last().unwrap();
    assert_eq!(last.end_position, text.len() as i64);
    assert_eq!(last.size.unwrap().stdout_bytes, text.len() as i64);

    let all = fixture.pages(fixture.request(None)).await;
    let size = all[0].size.unwrap();
    assert_eq!(
        bytes(&all).len() as i64,
        size.stdout_bytes + size.stderr_bytes
    );

    let middle = fixture
        .read(fixture.request(range(5_000, 3_000)))
        .await
        .unwrap();
    assert_eq!(
        bytes(std::slice::from_ref(&middle)),
        text[5_000..7_001]
            .iter()
            .chain(b"warning\n")
            .chain(&text[7_001..7_992])
            .copied()
            .collect::<Vec<u8>>()
    );
    assert_eq!(
        (middle.chunks[0].position, middle.end_position),
        (5_000, 8_000)
    );
}

#[tokio::test]
async fn the_tail_is_the_last_lines() {
    let fixture = Fixture::with(&[
        (Stream::Stdout, b"one\ntwo\nth"),
        (Stream::Stderr, b"oops\n"),
        (Stream::Stdout, b"ree\nfour\n"),
    ])
    .await;
    let text =
        |page: &ReadOutputResponse| String::from_utf8(bytes(std::slice::from_ref(page))).unwrap();
    for (lines, expected) in [
        (1, "four\n"),
        (2, "three\nfour\n"),
        (3, "two\nthree\nfour\n"),
        (9, "one\ntwo\nthree\nfour\n"),
        (0, ""),
    ] {
        let mut request = fixture.request(tail(lines));
        request.stream = OutputStream::Stdout.into();
        let page = fixture.read(request).await.unwrap();
        assert_eq!(text(&page), expected);
        assert_eq!(page.next_page_token, "");
    }
    let page = fixture.read(fixture.request(tail(2))).await.unwrap();
    assert_eq!(text(&page), "ree\nfour\n");
    // No more than asked for, and of the tail its end.
    let mut request = fixture.request(tail(9));
    request.max_bytes = 7;
    let page = fixture.read(request).await.unwrap();
    assert_eq!(text(&page), "e\nfour\n");
    assert_eq!(page.chunks[0].position, 17);
}

#[tokio::test]
async fn gaps_are_shown_where_they_are() {
    let fixture = Fixture::with(&[(Stream::Stdout, b"head\n")]).await;
    fixture.gap(Stream::Stdout, 1_000).await;
    fixture.append(Stream::Stdout, b"needle\ntail\n").await;
    let page = fixture.read(fixture.request(tail(3))).await.unwrap();
    assert_eq!(bytes(std::slice::from_ref(&page)), b"head\nneedle\ntail\n");
    assert_eq!((page.gaps[0].position, page.gaps[0].length), (5, 1_000));
    assert_eq!(page.gaps[0].cause, "spool full");
    assert_eq!(page.size.unwrap().dropped_bytes, 1_000);
    let part = fixture
        .read(fixture.request(range(100, 200)))
        .await
        .unwrap();
    assert_eq!((part.gaps[0].offset, part.gaps[0].length), (100, 200));
    assert_eq!(part.end_position, 300);
    let grep = AskedPart::Grep(Grep {
        pattern: "NEEDLE".to_owned(),
        ignore_case: true,
        after: 1,
        ..Grep::default()
    });
    let page = fixture.read(fixture.request(Some(grep))).await.unwrap();
    assert_eq!(
        (page.match_count, page.lines.len(), page.gaps.len()),
        (1, 2, 1)
    );
    assert_eq!(page.lines[0].position, 1_005);
    assert_eq!(page.next_page_token, "");
}

#[tokio::test]
async fn grep_pages_through_more_than_one_answer_holds() {
    let fixture = Fixture::new().await;
    let mut expected = 0;
    for piece in 0..300 {
        let text: String = (0..100).map(|n| format!("line {piece} {n}\n")).collect();
        expected += 1;
        fixture.append(Stream::Stdout, text.as_bytes()).await;
    }
    let grep = AskedPart::Grep(Grep {
        pattern: " 42$".to_owned(),
        max_matches: 7,
        before: 1,
        ..Grep::default()
    });
    let pages = fixture.pages(fixture.request(Some(grep.clone()))).await;
    assert_eq!(
        pages.iter().map(|page| page.match_count).sum::<i32>(),
        expected
    );
    let numbers: Vec<i64> = pages
        .iter()
        .flat_map(|page| &page.lines)
        .filter(|line| line.r#match)
        .map(|line| line.number)
        .collect();
    assert_eq!(
        numbers,
        (0..300).map(|n| n * 100 + 43).collect::<Vec<i64>>()
    );

    // A line without an end is one only if nothing is added to it any more.
    fixture.append(Stream::Stdout, b"the end 42").await;
    fixture.complete.store(false, Ordering::SeqCst);
    let mut request = fixture.request(Some(grep));
    request.page_token = pages[pages.len() - 2].next_page_token.clone();
    let page = fixture.read(request.clone()).await.unwrap();
    assert!(page.lines.iter().all(|line| line.data != "the end 42"));
    fixture.complete.store(true, Ordering::SeqCst);
    request.page_token = page.next_page_token;
    let page = fixture.read(request).await.unwrap();
    assert_eq!(page.lines.last().unwrap().data, "the end 42");
}

#[tokio::test]
async fn a_reader_can_wait_for_more_and_for_the_end() {
    let fixture = Fixture::with(&[(Stream::Stdout, b"first\n")]).await;
    fixture.complete.store(false, Ordering::SeqCst);
    let mut request = fixture.request(None);
    request.wait = Some(prost_types::Duration {
        seconds: 50,
        nanos: 0,
    });
    let page = fixture.read(request.clone()).await.unwrap();
    assert_eq!(bytes(std::slice::from_ref(&page)), b"first\n");
    request.page_token = page.next_page_token;
    let (page, ()) = tokio::join!(
        fixture.read(request.clone()),
        fixture.append(Stream::Stderr, b"second\n")
    );
    let page = page.unwrap();
    assert_eq!(bytes(std::slice::from_ref(&page)), b"second\n");
    request.page_token = page.next_page_token;
    let (page, ()) = tokio::join!(fixture.read(request.clone()), async {
        fixture.complete.store(true, Ordering::SeqCst);
        fixture.changed.send_replace(());
    });
    let page = page.unwrap();
    assert!(page.output_complete && page.next_page_token.is_empty());

    fixture.complete.store(false, Ordering::SeqCst);
    request.wait = Some(prost_types::Duration {
        seconds: 0,
        nanos: 1_000_000,
    });
    let page = fixture.read(request).await.unwrap();
    assert!(page.chunks.is_empty() && !page.next_page_token.is_empty());
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let fixture = Fixture::with(&[(Stream::Stdout, b"text\n")]).await;
    fixture.complete.store(false, Ordering::SeqCst);
    let good = fixture.request(None);
    let token = fixture.read(good.clone()).await.unwrap().next_page_token;
    let grep = |pattern: &str| {
        Some(AskedPart::Grep(Grep {
            pattern: pattern.to_owned(),
            ..Grep::default()
        }))
    };
    for request in [
        fixture.request(range(-1, 0)),
        fixture.request(tail(10_001)),
        fixture.request(grep("(")),
        fixture.request(grep("((a{100}){100}){100}")),
        ReadOutputRequest {
            max_bytes: -1,
            ..good.clone()
        },
        ReadOutputRequest {
            page_token: "nonsense".to_owned(),
            ..good.clone()
        },
        ReadOutputRequest {
            page_token: token.clone(),
            ..fixture.request(grep("a"))
        },
        ReadOutputRequest {
            page_token: token,
            stream: 2,
            ..good.clone()
        },
        ReadOutputRequest {
            task_id: "t-1".to_owned(),
            ..good
        },
    ] {
        assert!(fixture.read(request.clone()).await.is_err(), "{request:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_range_and_tail_is_what_a_plain_text_gives(
        pieces in prop::collection::vec((0..2usize, prop::collection::vec(prop::sample::select(b"ab\n".to_vec()), 1..30)), 1..12),
        from in 0..200i64,
        length in 1..200i64,
        lines in 0..8usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let pieces: Vec<(Stream, &[u8])> =
                pieces.iter().map(|(stream, data)| (Stream::ALL[*stream], data.as_slice())).collect();
            let fixture = Fixture::with(&pieces).await;
            for only in [None, Some(Stream::Stderr)] {
                let text: Vec<u8> = pieces
                    .iter()
                    .filter(|(stream, _)| only.is_none_or(|only| only == *stream))
                    .flat_map(|(_, data)| data.to_vec())
                    .collect();
                let stream = only.map_or(OutputStream::Unspecified, crate::wire::streams::named);
                let mut request = fixture.request(range(from, length));
                request.stream = stream.into();
                let page = fixture.read(request).await.unwrap();
                let end = text.len().min((from + length) as usize);
                prop_assert_eq!(bytes(&[page]), text[end.min(from as usize)..end].to_vec());

                let mut request = fixture.request(tail(lines as i32));
                request.stream = stream.into();
                let page = fixture.read(request).await.unwrap();
                let kept: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
                let expected = kept[kept.len().saturating_sub(lines)..].concat();
                prop_assert_eq!(bytes(&[page]), expected);
            }
            Ok(())
        })?;
    }
}
