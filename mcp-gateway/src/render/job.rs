//! A job as text: a status line, then what its hosts said. Hosts that said the same are merged, so
//! an answer grows with the number of different outputs, not with the number of hosts.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    time::SystemTime,
};

use muster_client::actions::{self, ActionKind};
use muster_proto::v1::{Confinement, Job, Mode, Reason, Task, task};

use super::{
    clean,
    excerpt::{self, EXCERPT_MIN},
    kept::Kept,
    next, words,
};

/// Hosts of a group that are named.
const NAMES_MAX: usize = 6;
/// Room for the fence around one output, bytes.
pub(crate) const FENCE_MAX: usize = 130;

/// A task and what of its output is at hand; `None` if its output was not looked at.
pub(crate) struct TaskView {
    /// The task.
    pub(crate) task: Task,
    /// Its output.
    pub(crate) output: Option<Kept>,
}

/// How an answer is written.
pub(crate) struct Sheet {
    /// The whole text is at most this long, bytes.
    pub(crate) max_bytes: usize,
    /// Random, so that no output can pretend to end.
    pub(crate) fence: String,
    /// Against which the age of running tasks is told.
    pub(crate) now: SystemTime,
}

/// The whole answer about a job.
pub(crate) fn answer(job: &Job, tasks: &[TaskView], sheet: &Sheet) -> String {
    let mut text = status_line(job, tasks, sheet.now);
    text.push('\n');
    if !job.note.is_empty() {
        let note = words::shortened(&clean::words(&job.note), 300);
        let _ = writeln!(text, "note: {note}");
    }
    let end = next_steps(job, tasks);
    let room = sheet.max_bytes.saturating_sub(text.len() + end.len());
    let how = format!("job_get job_id={}", job.job_id);
    match tasks {
        [one] => {
            let details = details(&one.task);
            text.push_str(&details);
            if let Some(output) = &one.output {
                let room = room.saturating_sub(details.len());
                text.push_str(&fenced(&one.task.host_name, output, room, &how, sheet));
            }
        }
        several => text.push_str(&groups(several, room, &how, sheet)),
    }
    text.push_str(&end);
    text
}

/// The first line: `job j-… web-1 succeeded exit=0 2.1s 312B`.
pub(crate) fn status_line(job: &Job, tasks: &[TaskView], now: SystemTime) -> String {
    match tasks {
        [one] => format!(
            "job {} {} {}",
            job.job_id,
            clean::words(&one.task.host_name),
            task_line(&one.task, now)
        ),
        several => format!(
            "job {} {}: {}",
            job.job_id,
            words::plural(several.len() as u64, "host"),
            counts(several.iter().map(|view| view.task.state()))
        ),
    }
}

/// `14 succeeded, 2 failed`.
pub(crate) fn counts(states: impl Iterator<Item = task::State>) -> String {
    let mut counts = BTreeMap::new();
    for state in states {
        *counts.entry(state as i32).or_insert(0_u64) += 1;
    }
    let parts: Vec<String> = counts
        .into_iter()
        .map(|(state, tasks)| {
            let state = task::State::try_from(state).unwrap_or_default();
            format!("{} {}", words::count(tasks), words::task_state(state))
        })
        .collect();
    parts.join(", ")
}

/// Where one task stands: `succeeded exit=0 2.1s 312B`.
pub(crate) fn task_line(task: &Task, now: SystemTime) -> String {
    let mut line = words::task_state(task.state()).to_owned();
    if let Some(code) = task.exit_code {
        let _ = write!(line, " exit={code}");
    }
    if !task.signal.is_empty() {
        let _ = write!(line, " signal={}", clean::words(&task.signal));
    }
    if task.reason() != Reason::Unspecified {
        let _ = write!(line, " reason={}", task.reason().name());
    }
    // Only where it explains why something may not have worked.
    match task.confinement.as_ref().map(Confinement::mode) {
        Some(Mode::ReadOnly) => line.push_str(" mode=read-only"),
        Some(Mode::Edit) => line.push_str(" mode=edit"),
        _ => {}
    }
    let started = task
        .start_time
        .and_then(|time| SystemTime::try_from(time).ok());
    if let Some(time) = &task.run_time {
        let _ = write!(line, " {}", words::duration(words::wire_duration(time)));
    } else if let (task::State::Running, Some(started)) = (task.state(), started) {
        let age = now.duration_since(started).unwrap_or_default();
        let _ = write!(line, " {}", words::duration(age));
    }
    if let Some(size) = &task.output_size {
        let bytes = size.stdout_bytes + size.stderr_bytes;
        let _ = write!(line, " {bytes}B");
        if size.stdout_bytes > 0 && size.stderr_bytes > 0 {
            let _ = write!(line, " (stderr {}B)", size.stderr_bytes);
        }
    }
    if words::is_final(task.state()) && !task.output_complete {
        line.push_str(" (output still arriving)");
    }
    if !task.doubt.is_empty() {
        line.push_str(" (in doubt)");
    }
    line
}

/// What the states mean for `run`: nothing was done that was asked for, on any host.
///
/// A program that ran and failed did run: its exit code is the answer, not an error of the tool.
pub(crate) fn nothing_done(tasks: &[TaskView]) -> bool {
    !tasks.is_empty()
        && tasks.iter().all(|view| {
            let task = &view.task;
            match task.state() {
                task::State::Rejected
                | task::State::Expired
                | task::State::TimedOut
                | task::State::Lost => true,
                task::State::Failed => task.exit_code.is_none() && task.signal.is_empty(),
                task::State::Pending => {
                    matches!(
                        task.wait(),
                        task::Wait::ForHost | task::Wait::ForUnlock | task::Wait::ForRelease
                    )
                }
                _ => false,
            }
        })
}

/// Output between marks that it cannot foresee: what stands there is data.
pub(crate) fn fence(label: &str, text: &str, sheet: &Sheet) -> String {
    if text.is_empty() {
        return String::new();
    }
    let label = words::shortened(&clean::words(label), 64);
    format!("<<<{0} output {label}\n{text}>>>{0}\n", sheet.fence)
}

fn fenced(host: &str, output: &Kept, room: usize, how: &str, sheet: &Sheet) -> String {
    let shown = excerpt::head_and_tail(output, room.saturating_sub(FENCE_MAX), how, &sheet.fence);
    fence(host, &shown.text, sheet)
}

/// Lines below the status line: what a state alone does not say.
pub(crate) fn details(task: &Task) -> String {
    let mut lines = String::new();
    if task.state() == task::State::Pending {
        let _ = write!(lines, "pending: {}", words::wait(task.wait()));
        if let Some(since) = &task.state_time {
            let _ = write!(lines, ", since {}", words::time(since));
        }
        lines.push('\n');
    }
    if let Some(since) = &task.disconnect_time {
        let _ = writeln!(
            lines,
            "its host is disconnected since {}; the task may go on there",
            words::time(since)
        );
    }
    if !task.message.is_empty() {
        let message = words::shortened(&clean::words(&task.message), 400);
        let _ = writeln!(lines, "{message}");
    }
    if let Some(result) = actions::result(task.result.as_ref()) {
        let result = words::shortened(&clean::words(&result), 300);
        let _ = writeln!(lines, "{result}");
    }
    if !task.doubt.is_empty() {
        let doubt = words::shortened(&clean::words(&task.doubt), 400);
        let _ = writeln!(lines, "in doubt: {doubt}");
    }
    if !task.late_result.is_empty() {
        let result = words::shortened(&clean::words(&task.late_result), 300);
        let _ = writeln!(lines, "late result: {result}");
    }
    lines
}

#[derive(PartialEq, Eq, Hash)]
struct Likeness {
    state: i32,
    reason: i32,
    wait: i32,
    exit_code: Option<i32>,
    signal: String,
    message: String,
    disconnected: bool,
    /// The task's result, as it is shown.
    result: Option<String>,
    /// Which output; tasks whose output is not known whole are like no other.
    output: Result<Option<[u8; 64]>, usize>,
}

impl Likeness {
    fn of(view: &TaskView, ordinal: usize) -> Self {
        let task = &view.task;
        let output = match &view.output {
            None => Ok(None),
            Some(kept) if kept.total() == 0 => Ok(None),
            Some(kept) => kept.sum().map(Some).ok_or(ordinal),
        };
        Self {
            state: task.state,
            reason: task.reason,
            wait: task.wait,
            exit_code: task.exit_code,
            signal: task.signal.clone(),
            message: task.message.clone(),
            disconnected: task.disconnect_time.is_some(),
            result: actions::result(task.result.as_ref()),
            output,
        }
    }
}

/// Hosts that said the same, the largest group first.
pub(crate) fn alike(tasks: &[TaskView]) -> Vec<Vec<&TaskView>> {
    let mut groups: Vec<Vec<&TaskView>> = Vec::new();
    let mut known = HashMap::new();
    for (ordinal, view) in tasks.iter().enumerate() {
        let group = *known.entry(Likeness::of(view, ordinal)).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push(view);
    }
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    groups
}

/// What each group of hosts said.
fn groups(tasks: &[TaskView], room: usize, how: &str, sheet: &Sheet) -> String {
    let groups = alike(tasks);
    let (names, headers): (Vec<(String, String)>, Vec<String>) = groups
        .iter()
        .map(|group| {
            let tasks: Vec<&Task> = group.iter().map(|view| &view.task).collect();
            let names = names(&tasks);
            let header = header(group, &names.0, sheet.now);
            (names, header)
        })
        .unzip();
    let sizes: Vec<usize> = groups
        .iter()
        .map(|group| {
            group[0]
                .output
                .as_ref()
                .map_or(0, |kept| kept.total() as usize)
        })
        .collect();
    // As many groups as can be shown at all; what remains is one line.
    let mut left = room.saturating_sub(200);
    let shown = (0..groups.len())
        .take_while(|&group| {
            let output = match sizes[group] {
                0 => 0,
                size => FENCE_MAX + size.saturating_mul(4).min(EXCERPT_MIN),
            };
            let least = headers[group].len() + output;
            let fits = least <= left;
            left = left.saturating_sub(least);
            fits
        })
        .count();

    let mut left =
        room.saturating_sub(200 + headers[..shown].iter().map(String::len).sum::<usize>());
    let mut by_size: Vec<usize> = (0..shown).filter(|&group| sizes[group] > 0).collect();
    by_size.sort_by_key(|&group| sizes[group]);
    let mut outputs = vec![String::new(); shown];
    let open = by_size.len();
    // The smallest first: what it does not need, the larger ones share.
    for (done, group) in by_size.into_iter().enumerate() {
        let view = groups[group][0];
        let Some(kept) = &view.output else { continue };
        let how = format!("{how} host={}", view.task.host_name);
        let share = left / (open - done);
        outputs[group] = fenced(&names[group].1, kept, share, &how, sheet);
        left = left.saturating_sub(outputs[group].len());
    }

    let mut text = String::new();
    for (header, output) in headers.iter().zip(&outputs) {
        text.push_str(header);
        text.push_str(output);
    }
    let rest: u64 = groups[shown..].iter().map(|group| group.len() as u64).sum();
    if rest > 0 {
        let _ = writeln!(
            text,
            "… {} with other answers not shown; {how} host=NAME shows one, grep= looks in all …",
            words::plural(rest, "host")
        );
    }
    text
}

/// Who said the same, for a line of ours (`2 hosts (db-3, db-7)`) and for the label of a fence.
pub(crate) fn names(group: &[&Task]) -> (String, String) {
    if let [one] = group {
        return (clean::words(&one.host_name), one.host_name.clone());
    }
    let count = words::count(group.len() as u64);
    let named = group.iter().take(NAMES_MAX);
    let mut names: Vec<String> = named.map(|task| clean::words(&task.host_name)).collect();
    if group.len() > NAMES_MAX {
        let more = words::count((group.len() - NAMES_MAX) as u64);
        names.push(format!("{more} more"));
    }
    (
        format!("{count} hosts ({})", names.join(", ")),
        format!("of each of {count} hosts"),
    )
}

/// `2 hosts (db-3, db-7): failed exit=1 40B`.
pub(crate) fn header(group: &[&TaskView], who: &str, now: SystemTime) -> String {
    let first = &group[0].task;
    let mut alike = first.clone();
    if group.len() > 1 {
        // Times differ from host to host; only the longest says something.
        alike.run_time = group
            .iter()
            .filter_map(|view| view.task.run_time)
            .max_by_key(|time| (time.seconds, time.nanos));
    }
    format!("{who}: {}\n{}", task_line(&alike, now), details(first))
}

/// What to do now, if the job is not over or did not work.
pub(crate) fn next_steps(job: &Job, tasks: &[TaskView]) -> String {
    let open = tasks
        .iter()
        .filter(|view| !words::is_final(view.task.state()))
        .count();
    let mut text = String::new();
    if open > 0 {
        let id = &job.job_id;
        let awaits = |view: &TaskView| view.task.state() == task::State::AwaitingApproval;
        let first = match tasks.iter().any(awaits) {
            true => "do not run it again, it runs once a person has approved it; ",
            false => "",
        };
        let _ = write!(
            text,
            "next: {first}job_get job_id={id} wait_s=25 waits on; job_cancel job_id={id} ends it"
        );
        if actions::kind(job.action.as_ref()).is_some_and(ActionKind::has_terminal) {
            let _ = write!(text, "; job_input job_id={id} types into it");
        }
        let waiting = tasks.iter().any(|view| {
            matches!(
                view.task.wait(),
                task::Wait::ForHost | task::Wait::ForUnlock | task::Wait::ForRelease
            )
        });
        if let (true, Some(deadline)) = (waiting, &job.start_deadline_time) {
            let _ = write!(
                text,
                "; expires unless started by {}",
                words::time(deadline)
            );
        }
        text.push('\n');
    }
    let mut reasons: Vec<Reason> = tasks.iter().map(|view| view.task.reason()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    for reason in reasons.into_iter().take(3) {
        if let Some(step) = next::next_step(reason) {
            let _ = writeln!(text, "next: {step}");
        }
    }
    text
}

#[cfg(test)]
mod tests;
