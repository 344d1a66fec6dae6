//! `muster policy edit`: a file of the policies in an editor, until it fits or is given up.

use std::{env, fs, process::Command};

use muster_client::Client;
use muster_proto::v1::SetPolicyRequest;

use super::{get, set};
use crate::{
    failure::Failure,
    screen::{clean, say},
};

pub(super) async fn run(
    client: &Client,
    file: &str,
    note: String,
    json: bool,
) -> Result<(), Failure> {
    let standing = get(client, None).await?.policy.unwrap_or_default();
    let before = standing.files.get(file).cloned().unwrap_or_default();
    let directory = tempfile::tempdir().map_err(|error| {
        Failure::internal(format!("no directory for the file can be made: {error}"))
    })?;
    if file.contains('/') || file.starts_with('.') {
        return Err(Failure::usage("a file has a name like web-team.cedar"));
    }
    let path = directory.path().join(file);
    fs::write(&path, &before).map_err(|error| Failure::file(&path, &error))?;
    loop {
        edit(&path)?;
        let text = fs::read_to_string(&path).map_err(|error| Failure::file(&path, &error))?;
        if text == before {
            say("nothing has changed");
            return Ok(());
        }
        let mut files = standing.files.clone();
        if text.trim().is_empty() {
            files.remove(file);
        } else {
            files.insert(file.to_owned(), text);
        }
        let check = SetPolicyRequest {
            files: files.clone(),
            validate_only: true,
            ..SetPolicyRequest::default()
        };
        match client.policy().set_policy(check).await {
            Ok(_) => {
                let request = SetPolicyRequest {
                    files,
                    etag: standing.etag,
                    note,
                    validate_only: false,
                };
                return set(client, request, json).await;
            }
            Err(status) => {
                say(&format!("{}", clean(status.message())));
                if !again()? {
                    return Err(status.into());
                }
            }
        }
    }
}

fn edit(path: &std::path::Path) -> Result<(), Failure> {
    let named = ["VISUAL", "EDITOR"]
        .iter()
        .find_map(|name| env::var(name).ok());
    let editor = named.filter(|name| !name.trim().is_empty());
    let editor = editor.unwrap_or_else(|| "vi".to_owned());
    let mut words = editor.split_whitespace();
    let program = words.next().unwrap_or("vi");
    // A person's own program on this machine, in the foreground; no host has a part in it.
    #[allow(clippy::disallowed_methods)]
    let ended = Command::new(program).args(words).arg(path).status();
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::usage(format!("{program} ended with {status}"))),
        Err(error) => Err(
            Failure::usage(format!("{program} cannot be started: {error}"))
                .next("set EDITOR to an editor that is there"),
        ),
    }
}

fn again() -> Result<bool, Failure> {
    use std::io::{IsTerminal as _, stdin};
    if !stdin().is_terminal() {
        return Ok(false);
    }
    say("edit again? [Y/n]");
    let mut answer = String::new();
    stdin().read_line(&mut answer).map_err(Failure::from)?;
    Ok(!answer.trim().eq_ignore_ascii_case("n"))
}
