//! `policy.toml`: found, checked, read.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{libc, unistd::geteuid};
use serde::Deserialize;

use super::{
    Mode, Table,
    actions::{Actions, Written as WrittenActions},
    decision::outermost,
    network::Network,
};
use crate::{actions, process::ROOTS};

/// The policy of the whole host, which counts before that of the agent's directory.
const SYSTEM: &str = "/etc/muster/policy.toml";

/// In the agent's directory.
const OWN: &str = "policy.toml";

/// A policy is shorter, bytes.
const LONGEST: u64 = 64 << 10;

/// Paths in one list.
const PATHS: usize = 64;

/// How much fits a task's scratch directory where the policy does not say, MiB.
const SCRATCH_MIB: u64 = 256;

/// Why a policy is not taken. The agent does not run without.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct PolicyError {
    path: PathBuf,
    problem: String,
}

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    mode: Option<String>,
    users: Option<Vec<String>>,
    edit: Edit,
    network: Option<WrittenNetwork>,
    paths: Lists,
    programs: Lists,
    actions: WrittenActions,
    scratch: Scratch,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Edit {
    roots: Option<Vec<PathBuf>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenNetwork {
    access: String,
    #[serde(default)]
    allow: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Lists {
    allow: Vec<PathBuf>,
    deny: Vec<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Scratch {
    mebibytes: Option<u64>,
}

/// The policy: of the file that is named, else of the host, else of the agent's directory; where there is none, the
/// default. `home` is that of the agent's user.
pub(super) fn load(
    named: Option<&Path>,
    directory: &Path,
    home: &Path,
) -> Result<Table, PolicyError> {
    let own = directory.join(OWN);
    let (path, text) = match named {
        Some(path) => (path, Some(read(path)?)),
        None => match read_if_there(Path::new(SYSTEM))? {
            Some(text) => (Path::new(SYSTEM), Some(text)),
            None => (own.as_path(), read_if_there(&own)?),
        },
    };
    let table = parse(&text.unwrap_or_default(), home);
    table.map_err(|problem| PolicyError {
        path: path.to_owned(),
        problem,
    })
}

fn read_if_there(path: &Path) -> Result<Option<String>, PolicyError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        _ => read(path).map(Some),
    }
}

/// Reads a file that nobody else can have written.
fn read(path: &Path) -> Result<String, PolicyError> {
    let wrong = |problem: String| PolicyError {
        path: path.to_owned(),
        problem,
    };
    let file = fs::File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let found = file.metadata().map_err(|error| wrong(error.to_string()))?;
    if !found.is_file() {
        return Err(wrong("is no plain file".to_owned()));
    }
    if found.uid() != 0 && found.uid() != geteuid().as_raw() {
        return Err(wrong(format!(
            "belongs to user {}; it has to be root's or the agent's own",
            found.uid()
        )));
    }
    if found.mode() & 0o022 != 0 {
        return Err(wrong(format!(
            "others may write it (mode {:o}); chmod go-w it",
            found.mode() & 0o7777
        )));
    }
    let mut text = String::new();
    file.take(LONGEST + 1)
        .read_to_string(&mut text)
        .map_err(|error| wrong(format!("cannot be read: {error}")))?;
    if text.len() as u64 > LONGEST {
        return Err(wrong(format!("is longer than {LONGEST} bytes")));
    }
    Ok(text)
}

fn parse(text: &str, home: &Path) -> Result<Table, String> {
    let written: Written = toml::from_str(text).map_err(|error| error.to_string())?;
    let mode = match &written.mode {
        None => Mode::Unrestricted,
        Some(name) => Mode::from_name(name).ok_or_else(|| {
            format!("mode: {name:?} is none of read-only, edit, unrestricted, disabled")
        })?,
    };
    let rules = written.network.is_some()
        || [&written.paths, &written.programs]
            .iter()
            .any(|lists| !lists.allow.is_empty() || !lists.deny.is_empty());
    if rules && written.mode.is_none() {
        return Err(
            "[network], [paths] and [programs] hold for tasks that are confined; write mode = \"edit\" or \
             \"read-only\", or mode = \"unrestricted\" if only tasks that ask for less shall keep them"
                .to_owned(),
        );
    }
    let network = match &written.network {
        None => None,
        Some(network) => Some(read_network(network)?),
    };
    let roots = match written.edit.roots {
        // Where there is no home, nothing is a root.
        None => resolve(vec![home.to_owned()], home)?
            .into_iter()
            .filter(|root| root.is_dir() && root != Path::new("/"))
            .collect(),
        Some(roots) => directories(roots, home)?,
    };
    let programs = &written.programs;
    let lists_programs = !programs.allow.is_empty() || !programs.deny.is_empty();
    let actions = Actions::read(written.actions, lists_programs, actions::ALL)?;
    let mut hidden = resolve(written.paths.deny, home)?;
    hidden.extend(resolve(written.programs.deny, home)?);
    let mebibytes = written.scratch.mebibytes.unwrap_or(SCRATCH_MIB);
    if !(1..=1 << 20).contains(&mebibytes) {
        return Err("[scratch] mebibytes: from 1 to 1048576".to_owned());
    }
    Ok(Table {
        mode,
        roots: outermost(roots),
        network,
        readable: resolve(written.paths.allow, home)?,
        hidden,
        programs: resolve(written.programs.allow, home)?,
        actions,
        users: written.users,
        scratch_bytes: mebibytes << 20,
    })
}

fn read_network(network: &WrittenNetwork) -> Result<Network, String> {
    if network.access != "list" && !network.allow.is_empty() {
        return Err("[network] allow: goes with access = \"list\"".to_owned());
    }
    match network.access.as_str() {
        "none" => Ok(Network::None),
        "all" => Ok(Network::All),
        "list" => {
            Network::list(&network.allow).map_err(|problem| format!("[network] allow: {problem}"))
        }
        other => Err(format!(
            "[network] access: {other:?} is none of none, all, list"
        )),
    }
}

fn directories(roots: Vec<PathBuf>, home: &Path) -> Result<Vec<PathBuf>, String> {
    let roots = resolve(roots, home)?;
    for root in &roots {
        if !root.is_dir() {
            return Err(format!(
                "[edit] roots: {} is no directory; make it, or leave it out",
                root.display()
            ));
        }
        if root == Path::new("/") {
            return Err(
                "[edit] roots: / is everything; that is mode = \"unrestricted\"".to_owned(),
            );
        }
    }
    if roots.len() > ROOTS {
        return Err(format!("[edit] roots: {ROOTS} at most"));
    }
    Ok(roots)
}

/// Paths as the kernel finds them now: absolute, over no link. `~` is the home of the agent's user.
fn resolve(paths: Vec<PathBuf>, home: &Path) -> Result<Vec<PathBuf>, String> {
    if paths.len() > PATHS {
        return Err(format!("{PATHS} paths at most in one list"));
    }
    let resolved = paths.into_iter().map(|path| {
        let path = match path.strip_prefix("~") {
            Ok(rest) => home.join(rest),
            Err(_) => path,
        };
        if !path.is_absolute() {
            return Err(format!("{} is not absolute", path.display()));
        }
        match fs::canonicalize(&path) {
            Ok(path) => Ok(path),
            // What is not there yet has only its name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    });
    resolved.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn parsed(text: &str) -> Result<Table, String> {
        parse(text, Path::new("/usr"))
    }

    #[test]
    fn an_empty_policy_is_the_default() {
        let table = parsed("").unwrap();
        assert_eq!(table.mode, Mode::Unrestricted);
        assert_eq!(table.roots, [PathBuf::from("/usr")]);
        assert_eq!((table.network, table.users), (None, None));
    }

    #[test]
    fn everything_can_be_said() {
        let table = parsed(
            "mode = \"plan\"
            users = [\"ada\"]
            [edit]
            roots = [\"/usr/share\", \"/usr\"]
            [network]
            access = \"list\"
            allow = [\"*:443\"]
            [paths]
            allow = [\"/usr\"]
            deny = [\"~/share\"]
            [programs]
            allow = [\"/usr/bin\"]
            [actions]
            allow = [\"command\"]
            [scratch]
            mebibytes = 2",
        )
        .unwrap();
        assert_eq!(table.mode, Mode::ReadOnly);
        assert_eq!(table.roots, [PathBuf::from("/usr")]);
        assert_eq!(table.hidden, [PathBuf::from("/usr/share")]);
        assert_eq!(table.scratch_bytes, 2 << 20);
        assert_eq!(may_run(&table), ["command"]);
    }

    fn may_run(table: &Table) -> Vec<&'static str> {
        let all = actions::ALL.iter();
        all.filter(|kind| table.actions.refuse(kind).is_none())
            .map(|kind| kind.name)
            .collect()
    }

    #[test]
    fn a_policy_that_lists_programs_means_commands_alone() {
        for lists in ["allow = [\"/usr/bin\"]", "deny = [\"/usr/bin/env\"]"] {
            let table = parsed(&format!("mode = \"edit\"\n[programs]\n{lists}")).unwrap();
            assert_eq!(may_run(&table), ["command"]);
        }
    }

    /// The sample that people copy: as it stands it says nothing, and every line of it is something that can be said.
    #[test]
    fn the_sample_is_a_policy() {
        let sample = include_str!("../../../deploy/policy.toml");
        let table = parsed(sample).unwrap();
        assert_eq!((table.mode, table.users), (Mode::Unrestricted, None));
        let said: String = sample
            .lines()
            .filter_map(|line| line.strip_prefix("# "))
            .filter(|line| line.starts_with('[') || line.contains(" = "))
            .map(|line| format!("{line}\n"))
            .collect();
        let table = parsed(&said).unwrap();
        assert_eq!(table.mode, Mode::Edit);
        assert_eq!(table.roots, [PathBuf::from("/srv"), PathBuf::from("/usr")]);
        assert!(table.users.is_some() && table.network.is_some());
        assert_eq!(table.hidden.len(), 3);
        assert!(!table.readable.is_empty() && !table.programs.is_empty());
        assert_eq!(table.scratch_bytes, 256 << 20);
    }

    #[test]
    fn what_is_not_known_or_makes_no_sense_is_refused() {
        for text in [
            "mod = \"edit\"",
            "mode = \"everything\"",
            "[edit]\nroot = []",
            "[edit]\nroots = [\"/\"]",
            "[edit]\nroots = [\"/no/such/place\"]",
            "[edit]\nroots = [\"relative\"]",
            "mode = \"edit\"\n[network]\naccess = \"some\"",
            "mode = \"edit\"\n[network]\naccess = \"none\"\nallow = [\"*:1\"]",
            "mode = \"edit\"\n[network]\naccess = \"list\"\nallow = [\"host:1\"]",
            // Would be taken for a closed network, and closes nothing.
            "[network]\naccess = \"none\"",
            "[scratch]\nmebibytes = 0",
            "[actions]\nallow = [\"shell\"]",
            "[actions]\nonly = []",
        ] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_policy_that_others_may_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        let load = || load(Some(&path), directory.path(), Path::new("/usr"));
        assert!(load().is_err(), "it is named and not there");
        fs::write(&path, "mode = \"edit\"").unwrap();
        let allow = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        allow(0o644);
        assert_eq!(load().unwrap().mode, Mode::Edit);
        for mode in [0o664, 0o646] {
            allow(mode);
            assert!(load().is_err(), "{mode:o}");
        }
        allow(0o644);
        if geteuid().is_root() {
            nix::unistd::chown(&path, Some(65534.into()), None).unwrap();
            assert!(load().is_err(), "it is somebody else's");
        }
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read(&link).is_err(), "a link can be set anew");
    }
}
