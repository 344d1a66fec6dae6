//! House rules that no lint knows. Each can fail, and says where and why.
#![allow(clippy::unwrap_used)]

mod kinds;
mod lengths;
mod rooms;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use muster_proto::v1::{approval, job, task};

/// A file of the project.
struct Source {
    /// Its path from the root of the workspace, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_below(&self, directories: &[&str]) -> bool {
        directories.iter().any(|start| self.path.starts_with(start))
    }

    /// Whether the whole file is a test.
    fn is_test(&self) -> bool {
        self.is_below(&["tests/"])
            || self.path.contains("/tests/")
            || self.path.ends_with("/tests.rs")
    }

    /// Numbered lines of the program itself: without comments, and without tests where they stand at the end
    /// or in a file of their own.
    fn program(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_test = self.is_below(&["bench/"]) || self.is_test();
        self.text
            .lines()
            .take_while(move |line| !is_test && !line.starts_with("#[cfg(test)]"))
            .enumerate()
            .map(|(index, line)| (index + 1, line))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Every file below a directory, without what Git, Cargo and Python made.
fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["target", ".git", "__pycache__"].contains(&name.as_str()) {
                walk(&path, found);
            }
        } else if name != ".git" {
            found.push(path);
        }
    }
}

/// Every text file of the project.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    walk(root(), &mut found);
    found.sort();
    found
        .into_iter()
        .filter_map(|path| {
            let text = fs::read_to_string(&path).ok()?;
            let path = path.strip_prefix(root()).unwrap().to_str()?.to_owned();
            Some(Source { path, text })
        })
        .collect()
}

fn rust() -> impl Iterator<Item = Source> {
    sources().into_iter().filter(Source::is_rust)
}

#[track_caller]
fn none(rule: &str, breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{rule}:\n{}", breaches.join("\n"));
}

/// Lines of programs outside `home` that hold one of `words`.
fn strays(home: &[&str], words: &[&str]) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in rust().filter(|source| !source.is_below(home)) {
        for (number, line) in source.program() {
            if words.iter().any(|word| line.contains(word)) {
                breaches.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    breaches
}

#[test]
fn sql_ends_at_the_store() {
    let home = ["control-plane/src/store", "control-plane/src/output"];
    none(
        "only the store, and the index of the output store, know SQL",
        strays(
            &home,
            &[
                "sqlx::",
                "SELECT ",
                "INSERT INTO",
                "UPDATE tasks",
                "DELETE FROM",
            ],
        ),
    );
}

#[test]
fn a_status_is_made_in_one_file() {
    let made = [
        "Status::new(",
        "Status::with_",
        "Status::aborted(",
        "Status::already_exists(",
        "Status::cancelled(",
        "Status::data_loss(",
        "Status::deadline_exceeded(",
        "Status::failed_precondition(",
        "Status::internal(",
        "Status::invalid_argument(",
        "Status::not_found(",
        "Status::out_of_range(",
        "Status::permission_denied(",
        "Status::resource_exhausted(",
        "Status::unauthenticated(",
        "Status::unavailable(",
        "Status::unimplemented(",
        "Status::unknown(",
    ];
    // The other programs only receive them; what they put in a status of their own stays inside.
    let home = [
        "control-plane/src/wire/status.rs",
        "agent/",
        "cli/",
        "client/",
        "mcp-gateway/",
    ];
    none(
        "errors meet the outside in wire/status.rs, where each has its reason",
        strays(&home, &made),
    );
}

#[test]
fn tonic_stays_at_the_doors() {
    let home = [
        "agent/",
        "bench/",
        "cli/",
        "client/",
        "control-plane/src/api",
        "control-plane/src/connections",
        "control-plane/src/server",
        "control-plane/src/wire",
        "mcp-gateway/",
        "proto/",
        "runtime/",
    ];
    none(
        "inside the control plane only the doors and the connections know gRPC",
        strays(&home, &["tonic::", "Status>"]),
    );
}

#[test]
fn nothing_is_left_unfinished() {
    let words = [
        "todo!(",
        "unimplemented!(",
        "TODO",
        "FIXME",
        "XXX",
        "not implemented",
    ];
    let mut breaches = Vec::new();
    for source in sources() {
        if source.path == "tests/tidy/main.rs" || source.path == "LICENSE" {
            continue;
        }
        for (index, line) in source.text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                breaches.push(format!("{}:{}: {}", source.path, index + 1, line.trim()));
            }
        }
    }
    none("say it in an issue, or do it", breaches);
}

#[test]
fn a_comment_names_its_subject() {
    // "Of all frames.", "Where it begins.": whoever reads has to look for what is meant.
    let leans = |comment: &str| {
        let mut words = comment.trim_start_matches(['/', '!']).split_whitespace();
        match (words.next(), words.next()) {
            (Some("Of"), _) => true,
            (Some("Who" | "Whose" | "What" | "Where"), Some(word)) => {
                ["it", "its", "they", "he", "she"].contains(&word)
            }
            _ => false,
        }
    };
    let mut breaches = Vec::new();
    for source in rust() {
        let mut goes_on = false;
        for (index, line) in source.text.lines().map(str::trim_start).enumerate() {
            let is_comment = line.starts_with("//");
            if is_comment && !goes_on && leans(line) {
                breaches.push(format!("{}:{}: {line}", source.path, index + 1));
            }
            goes_on = is_comment;
        }
    }
    none("say of what, in the comment itself", breaches);
}

#[test]
fn a_module_is_named_for_its_job() {
    let strangers = [
        "mod", "util", "utils", "common", "helpers", "manager", "types", "misc",
    ];
    let breaches = rust()
        .filter(|source| {
            let stem = Path::new(&source.path).file_stem().unwrap();
            strangers.contains(&stem.to_str().unwrap())
        })
        .map(|source| source.path)
        .collect();
    none(
        "a drawer with such a name fills up with strangers",
        breaches,
    );
}

#[test]
fn the_yardstick_stays_as_it_is() {
    // FNV-1a over the relay's files, in the order of their names.
    const AS_IT_WAS: u64 = 0x2694_eb3b_f1b9_7927;
    let mut relay: Vec<_> = rust()
        .filter(|source| source.is_below(&["bench/src/relay.rs", "bench/src/relay/"]))
        .collect();
    relay.sort_by(|one, other| one.path.cmp(&other.path));
    let bytes = relay.iter().flat_map(|source| source.text.bytes());
    let sum = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    assert_eq!(
        sum, AS_IT_WAS,
        "bench/src/relay is what figures of different days are held against, and is not tuned; where it has to change \
         to be built at all, show in the commit that it takes what it took: {sum:#018x}"
    );
}

#[test]
fn no_test_sleeps() {
    let allowed = ["tests/src/patience.rs", "tests/src/cut.rs", "tests/tidy/"];
    let mut breaches = Vec::new();
    for source in rust().filter(|source| !source.is_below(&allowed)) {
        let whole = source.is_test();
        let lines = source.text.lines().enumerate();
        for (index, line) in lines.skip_while(|(_, line)| !whole && *line != "#[cfg(test)]") {
            if line.contains("sleep(") && !line.trim_start().starts_with("//") {
                breaches.push(format!("{}:{}: {}", source.path, index + 1, line.trim()));
            }
        }
    }
    none("wait for what must come true, with a limit", breaches);
}

#[test]
fn no_page_names_a_machine() {
    let words = ["/root/", "/work/", "/Users/"];
    // Not where it goes on from a longer path, as in an address.
    let named = |line: &str| {
        words.iter().any(|word| {
            let before = line.find(word).map(|at| line[..at].chars().next_back());
            before.is_some_and(|before| before.is_none_or(|c| !c.is_ascii_alphanumeric()))
        })
    };
    let mut breaches = Vec::new();
    for source in sources() {
        for (index, line) in source.text.lines().enumerate() {
            if named(line) && source.path != "tests/tidy/main.rs" {
                breaches.push(format!("{}:{}: {}", source.path, index + 1, line.trim()));
            }
        }
    }
    none("paths of a particular machine", breaches);
}

#[test]
fn the_crates_lean_one_way() {
    // What each may build on. `cli`, `tests` and `bench` may know everybody.
    let allowed: [(&str, &[&str]); 6] = [
        ("proto", &[]),
        ("runtime", &["muster-proto"]),
        ("client", &["muster-proto", "muster-runtime"]),
        (
            "control-plane",
            &["muster-proto", "muster-runtime", "muster-client"],
        ),
        (
            "agent",
            &["muster-proto", "muster-runtime", "muster-client"],
        ),
        (
            "mcp-gateway",
            &["muster-proto", "muster-runtime", "muster-client"],
        ),
    ];
    let mut breaches = Vec::new();
    for (name, allowed) in allowed {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        for line in manifest.lines().filter(|line| line.starts_with("muster-")) {
            let dependency = line.split(['.', ' ', '=']).next().unwrap();
            if !allowed.contains(&dependency) {
                breaches.push(format!("{name} builds on {dependency}"));
            }
        }
    }
    none("the three roles do not know each other", breaches);
}

#[test]
fn versions_stand_in_one_place() {
    let mut breaches = Vec::new();
    for source in sources() {
        if !source.path.ends_with("/Cargo.toml") {
            continue;
        }
        let mut section = "";
        for line in source.text.lines() {
            if line.starts_with('[') {
                section = line;
            } else if section.contains("dependencies")
                && line.contains('=')
                && !line.contains("workspace = true")
            {
                breaches.push(format!("{}: {line}", source.path));
            }
        }
    }
    none(
        "every version and feature is declared in the root, so that all commands share one build",
        breaches,
    );
}

#[test]
fn every_rpc_says_who_may_call_it() {
    let mut breaches = Vec::new();
    for source in sources() {
        // The former names of methods: the comment names the one that says it.
        let former = source.text.contains("\n  option deprecated = true;\n");
        if !source.path.ends_with(".proto") || former {
            continue;
        }
        let mut comment = String::new();
        for line in source.text.lines().map(str::trim) {
            if line.starts_with("//") {
                comment.push_str(line);
            } else {
                if line.starts_with("rpc ") && !comment.contains("Callers") {
                    breaches.push(format!("{}: {line}", source.path));
                }
                comment.clear();
            }
        }
    }
    none("an RPC's comment names its callers", breaches);
}

fn migrations() -> Vec<Source> {
    sources()
        .into_iter()
        .filter(|source| source.path.starts_with("migrations/") && source.path.ends_with(".sql"))
        .collect()
}

#[test]
fn migrations_are_numbered_without_gap() {
    for (index, migration) in migrations().iter().enumerate() {
        let number = format!("migrations/{:04}_", index + 1);
        assert!(
            migration.path.starts_with(&number),
            "{} is not {number}…",
            migration.path
        );
    }
}

#[test]
fn the_state_texts_of_the_ledger_are_those_of_the_contract() {
    let text = |name: &str| name.trim_start_matches("STATE_").to_lowercase();
    let of_jobs: BTreeSet<String> = (1..)
        .map_while(|number| job::State::try_from(number).ok())
        .map(|state| text(state.as_str_name()))
        .collect();
    let of_tasks: BTreeSet<String> = (1..)
        .map_while(|number| task::State::try_from(number).ok())
        .map(|state| text(state.as_str_name()))
        .collect();
    let of_approvals: BTreeSet<String> = (1..)
        .map_while(|number| approval::State::try_from(number).ok())
        .map(|state| text(state.as_str_name()))
        .collect();
    let mut checked = Vec::new();
    for migration in migrations() {
        for table in migration.text.split("CREATE TABLE ").skip(1) {
            let Some((_, rest)) = table.split_once("CHECK (state IN (") else {
                continue;
            };
            let ledger: BTreeSet<String> = rest
                .split(')')
                .next()
                .unwrap()
                .split(',')
                .map(|state| state.trim().trim_matches('\'').to_owned())
                .collect();
            let name = table.split_whitespace().next().unwrap().to_owned();
            let contract = match &*name {
                "jobs" => &of_jobs,
                "approvals" => &of_approvals,
                _ => &of_tasks,
            };
            assert_eq!(&ledger, contract, "{name} in {}", migration.path);
            checked.push(name);
        }
    }
    assert_eq!(
        checked,
        ["jobs", "tasks", "approvals"],
        "tables that check their state texts"
    );
}
