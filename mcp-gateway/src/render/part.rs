//! Parts of output that were asked for: a page, the last lines, the lines that match.

use std::{collections::HashMap, fmt::Write as _};

use muster_proto::v1::{Job, Task};

use super::{
    clean,
    job::{self, Sheet, TaskView, fence},
    words,
};

/// A page of one task's output.
pub(crate) struct Page {
    /// The task as it stands.
    pub(crate) task: Task,
    /// What the page shows.
    pub(crate) text: String,
    /// The position of its first byte.
    pub(crate) from: u64,
    /// The position after its last byte.
    pub(crate) next: u64,
    /// All bytes written so far.
    pub(crate) total: u64,
    /// Nothing will be added.
    pub(crate) complete: bool,
}

/// What was found in one task's output.
#[derive(Default)]
pub(crate) struct Found {
    /// The lines.
    pub(crate) text: String,
    /// What stands beside the host's name: `3 matches`.
    pub(crate) note: String,
    /// Reads on; empty at the end.
    pub(crate) next: String,
    /// The task as it stands now, if it was told.
    pub(crate) task: Option<Task>,
}

/// The answer with a page.
pub(crate) fn page(job: &Job, page: Page, sheet: &Sheet) -> String {
    let host = clean::words(&page.task.host_name);
    let mut text = paged(job, &host, &page, sheet);
    let call = format!(
        "job_get job_id={} host={host} cursor={}",
        job.job_id, page.next
    );
    if page.next < page.total {
        let left = words::plural(page.total - page.next, "byte");
        let _ = writeln!(text, "next: {call} reads on; {left} follow");
    } else if !page.complete {
        let _ = writeln!(text, "next: {call} wait_s=25 waits for more");
    } else {
        text.push_str("end of output\n");
    }
    text
}

/// The answer to an input: what was written since.
pub(crate) fn typed(job: &Job, page: Page, note: &str, sheet: &Sheet) -> String {
    let host = clean::words(&page.task.host_name);
    let mut text = paged(job, &host, &page, sheet);
    text.push_str(note);
    let (id, next) = (&job.job_id, page.next);
    if page.next < page.total {
        let left = words::plural(page.total - page.next, "byte");
        let _ = writeln!(
            text,
            "next: job_get job_id={id} host={host} cursor={next} reads on; {left} follow"
        );
    } else if !page.complete {
        let _ = writeln!(
            text,
            "next: job_input job_id={id} host={host} cursor={next} types on, or only waits for more"
        );
    } else {
        text.push_str("end of output\n");
    }
    text
}

fn paged(job: &Job, host: &str, page: &Page, sheet: &Sheet) -> String {
    let mut text = format!(
        "job {} {host} {}\nbytes {} to {} of {}\n",
        job.job_id,
        job::task_line(&page.task, sheet.now),
        words::count(page.from),
        words::count(page.next),
        words::count(page.total)
    );
    text.push_str(&fence(host, &page.text, sheet));
    text
}

/// The answer with what was found on one host or several; equal findings are merged.
pub(crate) fn several(job: &Job, tasks: &[TaskView], found: Vec<Found>, sheet: &Sheet) -> String {
    let looked_at = found.len();
    let mut views: Vec<(&Task, &Found)> = tasks
        .iter()
        .zip(&found)
        .map(|(view, found)| (found.task.as_ref().unwrap_or(&view.task), found))
        .collect();
    let call = format!("job_get job_id={}", job.job_id);
    if let [(task, found)] = views.as_slice() {
        let host = clean::words(&task.host_name);
        let mut text = format!(
            "job {} {host} {}\n",
            job.job_id,
            job::task_line(task, sheet.now)
        );
        if !found.note.is_empty() {
            let _ = writeln!(text, "{}", found.note);
        }
        text.push_str(&fence(&host, &found.text, sheet));
        if !found.next.is_empty() {
            let _ = writeln!(
                text,
                "next: {call} host={host} cursor={} with the same grep reads on",
                found.next
            );
        }
        return text;
    }

    let mut groups: Vec<Vec<(&Task, &Found)>> = Vec::new();
    let mut known: HashMap<(&str, &str), usize> = HashMap::new();
    for view in views.drain(..) {
        let group = *known
            .entry((&view.1.text, &view.1.note))
            .or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
        groups[group].push(view);
    }
    // What was found first, and of that what most hosts said.
    groups.sort_by_key(|group| (group[0].1.text.is_empty(), std::cmp::Reverse(group.len())));

    let mut text = job::status_line(job, tasks, sheet.now);
    text.push('\n');
    let room = sheet.max_bytes.saturating_sub(200);
    let mut left_out = (tasks.len() - looked_at) as u64;
    for group in groups {
        let block = block(&group, sheet);
        if text.len() + block.len() <= room {
            text.push_str(&block);
        } else {
            left_out += group.len() as u64;
        }
    }
    if left_out > 0 {
        let _ = writeln!(
            text,
            "… {} not shown; {call} host=NAME shows one …",
            words::plural(left_out, "host")
        );
    }
    text
}

fn block(group: &[(&Task, &Found)], sheet: &Sheet) -> String {
    let found = group[0].1;
    let tasks: Vec<&Task> = group.iter().map(|(task, _)| *task).collect();
    let (who, label) = job::names(&tasks);
    let what = match (found.note.as_str(), found.text.is_empty()) {
        ("", true) => "no output",
        (note, _) => note,
    };
    format!("{who}: {what}\n{}", fence(&label, &found.text, sheet))
}
