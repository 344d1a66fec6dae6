//! Jobs and tasks as people see them.

use muster_client::actions;
use muster_proto::v1::{Job, Task};

use crate::{
    json, result,
    screen::{Fields, Rows, bytes, clean},
    time,
};

/// A command longer than this is cut in tables.
const WHAT_MAX: usize = 60;

/// One line a job.
pub(super) fn table(jobs: &[Job]) -> String {
    let mut rows = Rows::new(&["JOB", "STATE", "CREATED", "BY", "HOSTS", "WHAT"]);
    for job in jobs {
        rows.add([
            job.job_id.clone(),
            standing(job),
            time::ago(job.create_time.as_ref()),
            job.principal.clone(),
            job.selector.clone(),
            cut(&actions::summary(job.action.as_ref())),
        ]);
    }
    rows.render()
}

/// A job and its tasks.
pub(super) fn details(job: &Job, tasks: &[Task]) -> String {
    let mut fields = Fields::new();
    fields
        .add("job", &job.job_id)
        .add("state", standing(job))
        .add("what", actions::summary(job.action.as_ref()))
        .add("hosts", &job.selector)
        .add("by", &job.principal)
        .add("request id", &job.request_id)
        .add("created", time::local(job.create_time.as_ref()))
        .add("started", time::local(job.start_time.as_ref()))
        .add("ended", time::local(job.end_time.as_ref()));
    if job.start_time.is_none() && job.end_time.is_none() {
        fields.add("expires", time::until(job.start_deadline_time.as_ref()));
    }
    if job.cancel_time.is_some() {
        let when = time::local(job.cancel_time.as_ref());
        fields.add("cancelled", format!("{when} by {}", job.cancelled_by));
    }
    fields
        .add("approval", &job.approval_id)
        .add("note", &job.note);
    if let [task] = tasks {
        fields.add("confined", confined(task));
    }
    let mut rows = Rows::new(&["HOST", "STATE", "MODE", "TIME", "OUTPUT", "TASK", "REMARK"]);
    for task in tasks {
        rows.add([
            task.host_name.clone(),
            json::task_state(task).replace('_', " "),
            applied_mode(task).to_owned(),
            run_time(task),
            output(task),
            task.task_id.clone(),
            remark(task),
        ]);
    }
    format!("{}\n{}", fields.render(), rows.render())
}

/// The mode that the host says it applied.
fn applied_mode(task: &Task) -> &'static str {
    let applied = task.confinement.as_ref();
    applied.map_or("", |applied| applied.mode().text())
}

/// "edit below /srv/app; network none; by landlock-7, seccomp"; empty where nothing was told.
fn confined(task: &Task) -> String {
    let Some(applied) = &task.confinement else {
        return String::new();
    };
    let mut words = applied.mode().text().to_owned();
    if !applied.roots.is_empty() {
        words.push_str(&format!(" below {}", applied.roots.join(", ")));
    }
    if let Some(network) = &applied.network {
        let access = json::word(network.access().as_str_name(), "ACCESS_");
        let network = match network.allow.is_empty() {
            true => access,
            false => network.allow.join(", "),
        };
        words.push_str(&format!("; network {network}"));
    }
    if !applied.features.is_empty() {
        words.push_str(&format!("; by {}", applied.features.join(", ")));
    }
    words
}

/// "failed (3 succeeded, 1 failed)"; the counts only where they say more.
pub(super) fn standing(job: &Job) -> String {
    let state = json::job_state(job);
    if job.counts.len() < 2 {
        return state;
    }
    let counts: Vec<String> = job
        .counts
        .iter()
        .map(|count| {
            let state = json::word(count.state().as_str_name(), "STATE_").replace('_', " ");
            format!("{} {state}", count.tasks)
        })
        .collect();
    format!("{state} ({})", counts.join(", "))
}

fn cut(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= WHAT_MAX && line.len() == text.len() {
        return line.to_owned();
    }
    let line: String = line.chars().take(WHAT_MAX - 1).collect();
    format!("{line}…")
}

fn run_time(task: &Task) -> String {
    match (
        time::span(task.run_time.as_ref()),
        &task.start_time,
        &task.end_time,
    ) {
        (Some(ran), ..) => time::short(ran),
        (None, Some(start), None) => {
            format!("since {}", time::ago(Some(start)).replace(" ago", ""))
        }
        _ => String::new(),
    }
}

fn output(task: &Task) -> String {
    let Some(size) = &task.output_size else {
        return String::new();
    };
    let total = size.stdout_bytes + size.stderr_bytes;
    match (total, size.dropped_bytes) {
        (0, _) => String::new(),
        (_, 0) => bytes(total),
        (_, dropped) => format!("{} ({} dropped)", bytes(total), bytes(dropped)),
    }
}

fn remark(task: &Task) -> String {
    if let Some(hold_up) = result::hold_up(task) {
        return hold_up;
    }
    let outcome = result::outcome(task);
    // The state stands beside it already.
    let state = json::task_state(task).replace('_', " ");
    let rest = outcome.strip_prefix(&state).unwrap_or(&outcome);
    let mut remarks = vec![clean(rest.trim_start_matches([':', ' '])).into_owned()];
    if let Some(result) = actions::result(task.result.as_ref()) {
        remarks.push(clean(&result).into_owned());
    }
    if !task.doubt.is_empty() {
        remarks.push(format!("in doubt: {}", clean(&task.doubt)));
    }
    remarks.retain(|remark| !remark.is_empty());
    remarks.join("; ")
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::{
        Action, Command, Confinement, FileReadResult, FileStat, Mode, Network, Reason, Script,
        TaskResult, action, file_stat, job, network, task, task_result,
    };

    use super::*;

    fn job(command: Command) -> Job {
        Job {
            job_id: "j-1".to_owned(),
            state: job::State::Failed.into(),
            counts: vec![
                job::Count {
                    state: task::State::Succeeded.into(),
                    tasks: 2,
                },
                job::Count {
                    state: task::State::TimedOut.into(),
                    tasks: 1,
                },
            ],
            action: Some(Action {
                kind: Some(action::Kind::Command(command)),
            }),
            ..Job::default()
        }
    }

    #[test]
    fn a_state_has_counts_where_they_say_more() {
        let job = job(Command::default());
        assert_eq!(standing(&job), "failed (2 succeeded, 1 timed out)");
    }

    #[test]
    fn long_scripts_are_cut_in_tables() {
        let script = Script {
            text: format!("echo {}\nls", "x".repeat(90)),
            shell: String::new(),
        };
        let job = job(Command {
            script: Some(script),
            ..Command::default()
        });
        let cut = cut(&actions::summary(job.action.as_ref()));
        assert!(
            cut.starts_with("sh: echo xxx") && cut.ends_with('…'),
            "{cut}"
        );
        assert_eq!(cut.chars().count(), WHAT_MAX);
    }

    #[test]
    fn a_remark_does_not_repeat_the_state() {
        let mut task = Task {
            state: task::State::Lost.into(),
            reason: Reason::HostGone.into(),
            message: "silent for 24h".to_owned(),
            ..Task::default()
        };
        assert_eq!(remark(&task), "[HOST_GONE]: silent for 24h");
        task = Task {
            state: task::State::Succeeded.into(),
            ..Task::default()
        };
        assert_eq!(remark(&task), "");
    }

    #[test]
    fn what_a_task_found_out_is_a_remark() {
        let read = FileReadResult {
            stat: Some(FileStat {
                r#type: file_stat::Type::Regular.into(),
                size: 1,
                ..FileStat::default()
            }),
            ..FileReadResult::default()
        };
        let task = Task {
            state: task::State::Succeeded.into(),
            result: Some(TaskResult {
                kind: Some(task_result::Kind::FileRead(read)),
            }),
            doubt: "no receipt".to_owned(),
            ..Task::default()
        };
        assert_eq!(remark(&task), "regular file, 1 byte; in doubt: no receipt");
    }

    #[test]
    fn what_a_host_applied_and_what_speaks_against_it_are_told() {
        let applied = Confinement {
            mode: Mode::Edit.into(),
            network: Some(Network {
                access: network::Access::None.into(),
                allow: Vec::new(),
            }),
            roots: vec!["/srv/app".to_owned()],
            features: vec!["landlock-7".to_owned(), "seccomp".to_owned()],
        };
        let task = Task {
            state: task::State::Succeeded.into(),
            confinement: Some(applied),
            doubt: "the receipt does not verify: it cannot be read".to_owned(),
            ..Task::default()
        };
        let words = "edit below /srv/app; network none; by landlock-7, seccomp";
        assert_eq!(confined(&task), words);
        assert_eq!(
            remark(&task),
            "in doubt: the receipt does not verify: it cannot be read"
        );
        assert_eq!(confined(&Task::default()), "");
    }
}
