//! A kind of action that somebody adds, followed once: the compiler names each place that ARCHITECTURE.md promises, and
//! no other.
//!
//! A made-up kind is added to a copy of the workspace: to the contract, and to the control plane's own kinds. What does not
//! compile any more is a place; there an arm is put in, and the compiler is asked again, until all compiles.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

use crate::{Source, root, sources};

/// Rounds until all compiles: a crate is looked at once those below it compile.
const ROUNDS_MAX: usize = 6;

/// A line of what Cargo says.
#[derive(Deserialize)]
struct Said {
    message: Option<Message>,
}

#[derive(Deserialize)]
struct Message {
    level: String,
    message: String,
    code: Option<Code>,
    spans: Vec<Span>,
    children: Vec<Child>,
}

#[derive(Deserialize)]
struct Code {
    code: String,
}

#[derive(Deserialize)]
struct Child {
    spans: Vec<Span>,
}

/// A piece of a file: bytes from its beginning.
#[derive(Deserialize)]
struct Span {
    file_name: String,
    byte_start: usize,
    is_primary: bool,
    suggested_replacement: Option<String>,
}

/// Arms to be put in, by file and place.
type Arms = BTreeMap<(String, usize), &'static str>;

#[test]
fn the_compiler_names_each_place_of_a_kind_of_action() {
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("made-up-kind");
    copy_workspace(&copy);
    let mut named = BTreeSet::new();
    for round in 0.. {
        let arms = missing_arms(&copy);
        if arms.is_empty() {
            break;
        }
        assert!(round < ROUNDS_MAX, "arms do not help: {arms:?}");
        named.extend(arms.keys().map(|(file, _)| place(file)));
        put_in(&copy, &arms);
    }
    assert_eq!(named, promised(), "named by the compiler, and promised");
}

/// The places that ARCHITECTURE.md says the compiler names.
fn promised() -> BTreeSet<String> {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let row = page
        .lines()
        .find(|line| line.starts_with("| a kind of action |"));
    let (_, places) = row
        .unwrap()
        .split_once("the compiler names each place:")
        .unwrap();
    let (places, _) = places.split_once(';').unwrap();
    let quoted = places.split('`').skip(1).step_by(2);
    quoted.map(place).collect()
}

/// A file, or the folder beside it, as the row names it: without its crate where that is the control plane.
fn place(path: &str) -> String {
    let path = path.strip_prefix("control-plane/src/").unwrap_or(path);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    path.trim_end_matches('/').to_owned()
}

/// Makes a directory a copy of the workspace with one kind more. A file that is as it should be stays untouched, so
/// that it is not compiled again.
fn copy_workspace(copy: &Path) {
    let mut kept: BTreeSet<PathBuf> = BTreeSet::new();
    for Source { path, text } in sources() {
        let text = with_the_kind(&path, text);
        let path = copy.join(path);
        if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
        }
        kept.insert(path);
    }
    let mut found = Vec::new();
    crate::walk(copy, &mut found);
    for path in found.iter().filter(|path| !kept.contains(*path)) {
        fs::remove_file(path).unwrap();
    }
}

/// The text of a file with the made-up kind, where kinds are declared.
fn with_the_kind(path: &str, text: String) -> String {
    let (at, kind) = match path {
        "proto/muster/v1/actions.proto" => (
            "FileRead file_read = 2;\n",
            "    // Made up.\n    Terminal made_up = 1000;\n",
        ),
        "control-plane/src/model/kind.rs" => ("enum Kind {\n", "    /// Made up.\n    MadeUp,\n"),
        // Crates of the same name and version would take each other's place below target/.
        "Cargo.toml" => ("[workspace.package]\nversion = \"", "9"),
        _ => return text,
    };
    assert_eq!(text.matches(at).count(), 1, "{path}: {at}");
    text.replace(at, &format!("{at}{kind}"))
}

/// Arms that the compiler misses in the crates of the product that it comes to.
fn missing_arms(copy: &Path) -> Arms {
    #[allow(clippy::disallowed_methods)] // The test needs the compiler.
    let mut check = Command::new(env!("CARGO"));
    check
        .args(["check", "--offline", "--quiet", "--keep-going"])
        .args(["--workspace", "--lib", "--bins", "--message-format=json"])
        .args(["--exclude=muster-tests", "--exclude=muster-bench"])
        // Crates of others are checked already, where lints or an earlier run came first.
        .arg("--target-dir")
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap())
        .current_dir(copy);
    let output = check.output().unwrap();
    let mut arms = Arms::new();
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let said = serde_json::from_slice::<Said>(line).ok();
        let Some(message) = said.and_then(|said| said.message) else {
            continue;
        };
        if message.level == "error" {
            arms.extend(arms_of(message));
        }
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || !arms.is_empty(), "{errors}");
    arms
}

/// The arms that a `match` lacks; any other error is none that somebody who adds a kind should see.
fn arms_of(message: Message) -> Vec<((String, usize), &'static str)> {
    if message.spans.is_empty() {
        return Vec::new(); // It only counts errors.
    }
    let is_match = message.code.is_some_and(|code| code.code == "E0004");
    let at = message.spans.iter().find(|span| span.is_primary);
    assert!(is_match, "{}: {}", at.unwrap().file_name, message.message);
    // The compiler's own pattern may name what is not in sight there.
    let arm = |suggested: String| match suggested.starts_with(',') {
        true => ", _ => unreachable!()",
        false => " _ => unreachable!()",
    };
    let spans = message.children.into_iter().flat_map(|child| child.spans);
    spans
        .filter_map(|span| {
            Some((
                (span.file_name, span.byte_start),
                arm(span.suggested_replacement?),
            ))
        })
        .collect()
}

/// Puts arms in, from the end of each file, so that places hold.
fn put_in(copy: &Path, arms: &Arms) {
    for ((file, at), arm) in arms.iter().rev() {
        let path = copy.join(file);
        let mut text = fs::read_to_string(&path).unwrap();
        text.insert_str(*at, arm);
        fs::write(&path, text).unwrap();
    }
}
