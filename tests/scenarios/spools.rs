//! What is kept on a host that has little room, while nobody takes it.

use std::{fs, path::Path};

use muster_proto::v1::{OutputStream, ReadOutputRequest, read_output_request, task::State};
use muster_tests::{
    PATIENCE, eventually,
    fleet::{Agent, Fleet},
    operator::{Operator, Watched},
    tally::Tally,
};

/// How often an agent is killed that cannot write.
const KILLS: usize = 2;

/// A spool's segment on disk, bytes.
const SEGMENT: u64 = 8 << 20;

/// What of the expected output is kept, bytes; the rest has to be an explicit gap, and nothing else may have come.
async fn kept(operator: &Operator, job: &Watched, expected: &[u8]) -> usize {
    let task_id = job.task().await.task_id;
    let (mut reached, mut kept, mut page_token) = (0, 0, String::new());
    loop {
        let request = ReadOutputRequest {
            task_id: task_id.clone(),
            stream: OutputStream::Stdout.into(),
            part: Some(read_output_request::Part::Range(
                read_output_request::Range::default(),
            )),
            max_bytes: 1 << 20,
            page_token,
            ..ReadOutputRequest::default()
        };
        let page = operator.jobs().read_output(request).await.unwrap();
        let page = page.into_inner();
        let mut parts: Vec<(usize, usize, Option<&[u8]>)> = Vec::new();
        for chunk in &page.chunks {
            parts.push((chunk.offset as usize, chunk.data.len(), Some(&chunk.data)));
        }
        for gap in &page.gaps {
            parts.push((gap.offset as usize, gap.length as usize, None));
        }
        parts.sort_by_key(|part| part.0);
        let nothing = parts.is_empty();
        for (offset, length, data) in parts {
            assert_eq!(offset, reached, "neither a repeat nor a silent hole");
            reached += length;
            if let Some(data) = data {
                assert!(
                    data == &expected[offset..reached],
                    "other bytes at {offset}"
                );
                kept += length;
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() || nothing {
            break;
        }
    }
    assert_eq!(reached, expected.len(), "all is told");
    kept
}

fn size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).unwrap();
    entries
        .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
        .sum()
}

/// Bytes that agent and supervisors of a host keep on disk.
fn on_disk(host: &Agent) -> u64 {
    let agent = host.directory().join("agent");
    size(&agent.join("spool")) + size(&agent.join("supervisors"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_while_it_cannot_write_spoils_no_output() {
    // No segment fits, as on a full disk: what is not taken yet is in memory only.
    let fleet = Fleet::plan().set_agents("MUSTER_SPOOL", 1).start().await;
    let host = fleet.host("web-1").await;
    let operator = fleet.operator();
    let tally = Tally::new(fleet.directory());
    let (go, lines) = (
        fleet.directory().join("go"),
        fleet.directory().join("lines"),
    );
    // In pieces of many sizes, and more than a supervisor keeps until an agent has it.
    let text = format!(
        "{}; i=0; until [ -e '{}' ]; do seq $((i+1)) $((i+i%7*300+1)); i=$((i+i%7*300+1)); \
         echo $i > '{lines}.new'; mv '{lines}.new' '{lines}'; sleep 0.01; done; exit 3",
        tally.mark(),
        go.display(),
        lines = lines.display(),
    );
    let job = operator.run("web-1", text).await;
    let written =
        || -> usize { fs::read_to_string(&lines).map_or(0, |text| text.trim().parse().unwrap()) };
    let writes_on = async || {
        let goal = written() + 15_000;
        eventually(PATIENCE, "it writes on", || async {
            (written() >= goal).then_some(())
        })
        .await;
    };
    writes_on().await;
    for _ in 0..KILLS {
        host.kill();
        host.start(&fleet);
        operator.online("web-1").await;
        writes_on().await;
    }
    fs::write(go, "").unwrap();
    let task = job.reaches(State::Failed).await;
    assert_eq!(task.exit_code, Some(3));
    job.complete().await;
    let expected: String = (1..=written()).map(|line| format!("{line}\n")).collect();
    let kept = kept(&operator, &job, expected.as_bytes()).await;
    assert!(
        kept * 2 > expected.len(),
        "{kept} of {} bytes",
        expected.len()
    );
    assert_eq!(tally.runs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_of_all_spools_holds_while_there_is_no_agent() {
    const TASKS: usize = 2;
    const LIMIT_MIB: u64 = 24;
    let fleet = Fleet::plan()
        .set_agents("MUSTER_SPOOL", LIMIT_MIB)
        .start()
        .await;
    let host = fleet.host("web-1").await;
    let operator = fleet.operator();
    let go = fleet.directory().join("go");
    let mut jobs = Vec::new();
    for number in 0..TASKS {
        let done = fleet.directory().join(format!("done-{number}"));
        // Some 27 MB each.
        let text = format!(
            "echo begun; until [ -e '{}' ]; do sleep 0.01; done; seq 1 3500000; touch '{}'",
            go.display(),
            done.display()
        );
        let job = operator.run("web-1", text).await;
        jobs.push((job, done));
    }
    for (job, _) in &jobs {
        eventually(PATIENCE, "it has begun", || async {
            let size = job.task().await.output_size.unwrap_or_default();
            (size.stdout_bytes > 0).then_some(())
        })
        .await;
    }
    host.kill();
    fs::write(go, "").unwrap();
    for (_, done) in &jobs {
        eventually(PATIENCE, "the process ends", || async {
            done.exists().then_some(())
        })
        .await;
    }
    // Each may have begun a segment while there was room for one.
    let most = (LIMIT_MIB << 20) + (TASKS as u64 - 1) * SEGMENT;
    let used = on_disk(&host);
    assert!(used <= most, "{used} bytes are kept, of {most}");
    assert!(used > LIMIT_MIB << 19, "{used} bytes are kept");

    host.start(&fleet);
    let numbers: String = (1..=3_500_000)
        .map(|number| format!("{number}\n"))
        .collect();
    let expected = format!("begun\n{numbers}");
    for (job, _) in &jobs {
        job.succeeds().await;
        kept(&operator, job, expected.as_bytes()).await;
    }
}
