//! What a command leaves on disk once it is over: at the control plane, its audit entries included, and at the agent.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Context as _;
use muster_client::Client;
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{task::JoinSet, time};

use crate::{
    commands::run_true,
    figures::heading,
    fleet::{HOST, free_address, online, run_agent, start_agent, start_control_plane_at},
    meter::SETTLED,
    process::Program,
    programs::Programs,
};

/// Commands ahead, so that what is made once is there.
const AHEAD: usize = 200;

/// In flight at once.
const AT_ONCE: usize = 32;

/// Bytes by file or folder.
type Sizes = BTreeMap<String, u64>;

/// Bytes that a command leaves, by file or folder.
pub(crate) struct Remains {
    pub(crate) control_plane: Left,
    pub(crate) agent: Left,
}

/// Bytes that a command leaves in a directory.
pub(crate) struct Left(BTreeMap<String, f64>);

impl Left {
    fn between(before: &Sizes, after: &Sizes, commands: usize) -> Left {
        let each = after.iter().map(|(name, size)| {
            let grown = *size as f64 - before.get(name).copied().unwrap_or_default() as f64;
            (name.clone(), grown / commands as f64)
        });
        Left(each.collect())
    }

    /// In all.
    pub(crate) fn sum(&self) -> f64 {
        self.0.values().sum()
    }
}

impl std::fmt::Display for Left {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:.0}", self.sum())?;
        for (name, bytes) in self.0.iter().filter(|(_, bytes)| bytes.abs() >= 0.5) {
            write!(formatter, ", {name} {bytes:.0}")?;
        }
        Ok(())
    }
}

/// Prints what each of so many commands leaves.
pub(crate) async fn run(programs: &Programs, commands: usize) -> anyhow::Result<()> {
    let remains = measure(programs, commands).await?;
    heading(&format!("bytes that a finished true leaves, of {commands}"));
    println!("control plane: {}", remains.control_plane);
    println!("agent: {}", remains.agent);
    Ok(())
}

/// Runs so many commands, and looks at the directories of programs that have stopped, before and after: what is on its way
/// from one file to another counts once.
pub(crate) async fn measure(programs: &Programs, commands: usize) -> anyhow::Result<Remains> {
    let directory = tempfile::Builder::new().prefix("muster-bench-").tempdir()?;
    let root = directory.path();
    let address = free_address()?;
    let (control_plane, client) = start_control_plane_at(programs, root, address).await?;
    let agent = start_agent(programs, root, &client, HOST).await?;
    let before = run_and_stop((control_plane, agent), &client, AHEAD, root).await?;
    let again = start_again(programs, root, address).await?;
    let (control_plane, agent, client) = again;
    let after = run_and_stop((control_plane, agent), &client, commands, root).await?;
    Ok(Remains {
        control_plane: Left::between(&before.0, &after.0, commands),
        agent: Left::between(&before.1, &after.1, commands),
    })
}

async fn start_again(
    programs: &Programs,
    root: &Path,
    address: SocketAddr,
) -> anyhow::Result<(Program, Program, Client)> {
    let (control_plane, client) = start_control_plane_at(programs, root, address).await?;
    let agent = run_agent(programs, root, HOST)?;
    Ok((control_plane, agent, client))
}

/// Runs commands, stops the programs in good order, and says how large their files are then.
async fn run_and_stop(
    (control_plane, agent): (Program, Program),
    client: &Client,
    commands: usize,
    root: &Path,
) -> anyhow::Result<(Sizes, Sizes)> {
    online(client, HOST).await?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (client, next) = (client.clone(), next.clone());
        workers.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < commands {
                run_true(&client, HOST).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.context("a worker panicked")??;
    }
    time::sleep(SETTLED).await;
    drop(agent);
    drop(control_plane);
    let folders = [root.join("control-plane"), root.join(HOST)];
    for folder in &folders {
        fold_in(folder).await?;
    }
    Ok((sizes(&folders[0])?, sizes(&folders[1])?))
}

/// Takes what the databases below a directory have in their logs into their files.
async fn fold_in(directory: &Path) -> anyhow::Result<()> {
    for path in files(directory)? {
        if path.extension().is_some_and(|extension| extension == "db") {
            let options = SqliteConnectOptions::new().filename(&path);
            let mut connection = SqliteConnection::connect_with(&options).await?;
            sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
                .execute(&mut connection)
                .await?;
            connection.close().await?;
        }
    }
    Ok(())
}

/// Bytes of all files below a directory, by the first two parts of their paths.
fn sizes(directory: &Path) -> anyhow::Result<Sizes> {
    let mut sizes = Sizes::new();
    for path in files(directory)? {
        let parts = path.strip_prefix(directory)?.iter().take(2);
        let name: Vec<_> = parts.map(|part| part.to_string_lossy()).collect();
        *sizes.entry(name.join("/")).or_default() += fs::metadata(&path)?.len();
    }
    Ok(sizes)
}

/// All files below a directory.
fn files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}
