//! `muster fs stat`: what a file is.

use std::collections::HashMap;

use data_encoding::HEXLOWER;
use muster_client::{
    Client,
    files::{self, FileContent, FileReading},
};
use muster_proto::v1::{
    CreateJobRequest, FileRead, FileStat, JobUpdate, file_stat::Type, job_event::Event,
};
use serde_json::json;

use super::Place;
use crate::{
    failure::{Failure, exit},
    json,
    operator::Operator,
    result,
    screen::{self, Fields, Rows, bytes, clean, say},
    time,
};

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  muster fs stat web-1:/etc/hosts
  muster fs stat web-1:/usr/bin/python3 --no-follow
  muster fs stat 'role=web:/srv/app/release.tar' --sha256
  muster fs stat web-1:/etc/hosts --json | jq '.tasks[0].result.file_read.stat'

Exit codes: as those of `muster fs cat`.")]
pub(crate) struct Stat {
    #[command(flatten)]
    place: Place,

    /// Add the SHA-256 of the whole content, however long it takes; --timeout gives it more time
    #[arg(long)]
    sha256: bool,

    /// Describe a link itself, and not what it leads to
    #[arg(long)]
    no_follow: bool,
}

impl Stat {
    pub(super) async fn run(self, operator: &Operator) -> Result<u8, Failure> {
        let request = self.request()?;
        let client = operator.connect().await?;
        let read = |request| client.read_file(request);
        let reading = self.place.confirm.run(request, read).await?;
        let Some(files) = finish(&client, reading).await? else {
            return Ok(exit::INTERRUPTED);
        };
        if operator.json {
            let tasks: Vec<_> = files
                .iter()
                .map(|file| json::document(&file.task))
                .collect();
            screen::print_json(&json!({"tasks": tasks}))?;
        } else {
            screen::print(&shown(&files))?;
        }
        Ok(code(&files))
    }

    fn request(&self) -> Result<CreateJobRequest, Failure> {
        self.place.request(FileRead {
            stat_only: true,
            sha256: self.sha256,
            no_follow: self.no_follow,
            ..FileRead::default()
        })
    }
}

/// Waits until every host has answered, and says what it waits for; `None` if somebody interrupts.
async fn finish(
    client: &Client,
    mut reading: FileReading,
) -> Result<Option<Vec<FileContent>>, Failure> {
    let mut told = HashMap::new();
    loop {
        tokio::select! {
            update = reading.next() => match update {
                Some(update) => tell(&update?, &mut told),
                None => return Ok(Some(reading.into_files())),
            },
            _ = tokio::signal::ctrl_c() => {
                client.cancel(reading.job_id(), "", None).await?;
                return Ok(None);
            }
        }
    }
}

/// Says what holds a host up, once.
fn tell(update: &JobUpdate, told: &mut HashMap<String, String>) {
    for event in &update.events {
        let Some(Event::Task(task)) = &event.event else {
            continue;
        };
        let Some(hold_up) = result::hold_up(task) else {
            continue;
        };
        if told.get(&task.task_id) != Some(&hold_up) {
            say(&format!("muster: {}: {hold_up}", clean(&task.host_name)));
            told.insert(task.task_id.clone(), hold_up);
        }
    }
}

/// The exit code: the tasks' own, unless a host that succeeded says nothing of the file.
fn code(files: &[FileContent]) -> u8 {
    let code = result::exit_code(files.iter().map(|file| &file.task));
    if code == 0 && files.iter().any(|file| described(file).is_none()) {
        return exit::NO_RESULT;
    }
    code
}

fn described(file: &FileContent) -> Option<&FileStat> {
    file.checked().ok()?.stat.as_ref()
}

/// One file in full, or a line for each of several; what failed is said on standard error.
fn shown(files: &[FileContent]) -> String {
    let mut good = Vec::new();
    for file in files {
        match described(file) {
            Some(stat) => good.push((file, stat)),
            None => say(&format!(
                "muster: {}: {}",
                clean(&file.task.host_name),
                failure(file)
            )),
        }
    }
    match good.as_slice() {
        [] => String::new(),
        [(_, stat)] if files.len() == 1 => details(stat),
        several => table(several),
    }
}

fn failure(file: &FileContent) -> String {
    match file.checked() {
        Err(files::FileFault::NotRead) => result::outcome(&file.task),
        Err(fault) => fault.to_string(),
        Ok(_) => files::FileFault::NoResult.to_string(),
    }
}

fn details(stat: &FileStat) -> String {
    let mut fields = Fields::new();
    fields
        .add("path", &stat.path)
        .add("link to", &stat.link_target)
        .add("type", files::type_name(stat.r#type()))
        .add("size", size(stat))
        .add(
            "mode",
            format!("{} ({:04o})", files::permissions(stat), stat.mode),
        )
        .add("owner", name(&stat.owner, stat.uid))
        .add("group", name(&stat.group, stat.gid))
        .add("links", stat.links.to_string())
        .add("modified", time::local(stat.modify_time.as_ref()))
        .add("changed", time::local(stat.change_time.as_ref()))
        .add("accessed", time::local(stat.access_time.as_ref()))
        .add("mime type", &stat.mime_type)
        .add("sha256", HEXLOWER.encode(&stat.sha256));
    fields.render()
}

/// "312 B", "1.5 GiB (1610612736)".
fn size(stat: &FileStat) -> String {
    match stat.size {
        size @ ..1_024 => bytes(size),
        size => format!("{} ({size})", bytes(size)),
    }
}

/// "root (0)"; the number alone where nobody has a name for it.
fn name(name: &str, number: u32) -> String {
    match name {
        "" => number.to_string(),
        name => format!("{name} ({number})"),
    }
}

fn table(files: &[(&FileContent, &FileStat)]) -> String {
    let mut headings = vec!["HOST", "MODE", "OWNER", "GROUP", "SIZE", "MODIFIED", "PATH"];
    let summed = files.iter().any(|(_, stat)| !stat.sha256.is_empty());
    if summed {
        headings.push("SHA-256");
    }
    let mut rows = Rows::new(&headings);
    for (file, stat) in files {
        let or_number = |name: &String, number: u32| match name.as_str() {
            "" => number.to_string(),
            name => name.to_owned(),
        };
        let path = match (stat.r#type(), stat.link_target.as_str()) {
            (Type::Link, target) if !target.is_empty() => format!("{} -> {target}", stat.path),
            _ => stat.path.clone(),
        };
        let mut cells = vec![
            file.task.host_name.clone(),
            files::permissions(stat),
            or_number(&stat.owner, stat.uid),
            or_number(&stat.group, stat.gid),
            stat.size.to_string(),
            time::local(stat.modify_time.as_ref()),
            path,
        ];
        if summed {
            cells.push(HEXLOWER.encode(&stat.sha256));
        }
        rows.add(cells);
    }
    rows.render()
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::{FileReadResult, Reason, Task, TaskResult, task, task_result};

    use super::*;

    fn found(host: &str, stat: FileStat) -> FileContent {
        let read = FileReadResult {
            stat: Some(stat),
            ..FileReadResult::default()
        };
        FileContent {
            task: Task {
                host_name: host.to_owned(),
                state: task::State::Succeeded.into(),
                result: Some(TaskResult {
                    kind: Some(task_result::Kind::FileRead(read)),
                }),
                ..Task::default()
            },
            ..FileContent::default()
        }
    }

    fn missing(host: &str) -> FileContent {
        FileContent {
            task: Task {
                host_name: host.to_owned(),
                state: task::State::Failed.into(),
                reason: Reason::FileNotFound.into(),
                message: "there is no /srv/x".to_owned(),
                ..Task::default()
            },
            ..FileContent::default()
        }
    }

    fn program() -> FileStat {
        FileStat {
            path: "/usr/bin/true\u{1b}[2J".to_owned(),
            r#type: Type::Regular.into(),
            size: 1 << 20,
            mode: 0o4755,
            owner: "root".to_owned(),
            gid: 4_711,
            links: 1,
            mime_type: "application/x-executable".to_owned(),
            sha256: vec![0xab; 32].into(),
            ..FileStat::default()
        }
    }

    #[test]
    fn one_file_is_described_in_full() {
        let shown = shown(&[found("web-1", program())]);
        for line in [
            "path       /usr/bin/true\\u{1b}[2J\n",
            "type       regular file\n",
            "size       1.0 MiB (1048576)\n",
            "mode       -rwsr-xr-x (4755)\n",
            "owner      root (0)\n",
            "group      4711\n",
            "mime type  application/x-executable\n",
        ] {
            assert!(shown.contains(line), "{line:?} in {shown}");
        }
        assert!(shown.ends_with(&format!("sha256     {}\n", "ab".repeat(32))));
        assert!(!shown.contains("modified"), "what is not known is left out");
    }

    #[test]
    fn several_files_are_a_line_each() {
        let link = FileStat {
            path: "/usr/bin/python3".to_owned(),
            r#type: Type::Link.into(),
            mode: 0o777,
            link_target: "python3.13".to_owned(),
            ..FileStat::default()
        };
        let files = [found("a", link), missing("b"), found("c", program())];
        let shown = shown(&files);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 3, "{shown}");
        assert!(lines[0].contains("HOST") && lines[0].ends_with("SHA-256"));
        assert!(
            lines[1].contains("lrwxrwxrwx") && lines[1].contains("/usr/bin/python3 -> python3.13"),
            "{shown}"
        );
        assert_eq!(code(&files), exit::SOME_FAILED);
    }

    #[test]
    fn the_exit_code_says_what_became_of_it() {
        assert_eq!(code(&[found("a", program())]), 0);
        assert_eq!(code(&[missing("a")]), exit::NO_FILE);
        let silent = FileContent {
            task: Task {
                state: task::State::Succeeded.into(),
                ..Task::default()
            },
            ..FileContent::default()
        };
        assert_eq!(code(std::slice::from_ref(&silent)), exit::NO_RESULT);
        assert_eq!(failure(&silent), "its host told nothing of the file");
        assert_eq!(
            failure(&missing("a")),
            "failed [FILE_NOT_FOUND]: there is no /srv/x"
        );
    }
}
