//! What `muster up` says once everything answers.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use muster_agent::Permits;
use muster_mcp_gateway::PATH;
use muster_runtime::config::DataDir;
use serde_json::json;

use crate::screen::clean;

/// What there is to be said.
pub(super) struct Welcome<'a> {
    pub(super) data_dir: &'a Path,
    pub(super) token: &'a Path,
    pub(super) grpc: SocketAddr,
    pub(super) mcp: SocketAddr,
    pub(super) host: Option<String>,
    /// What this machine's own policy permits; `None` where that is not known.
    pub(super) permits: Option<Permits>,
    pub(super) no_agent: bool,
}

impl Welcome<'_> {
    pub(super) fn render(&self) -> String {
        let data_dir = (DataDir::default().path().ok().as_deref() != Some(self.data_dir))
            .then(|| self.data_dir.display().to_string());
        self.render_for(&program(), data_dir.as_deref())
    }

    /// `program` is what starts us in a shell; `data_dir` is named where it is not the default.
    fn render_for(&self, program: &str, data_dir: Option<&str>) -> String {
        let muster = quoted(program);
        let data_dir_flag =
            data_dir.map_or_else(String::new, |dir| format!(" --data-dir {}", quoted(dir)));
        let mut arguments = vec!["mcp"];
        arguments.extend(
            data_dir
                .map(|dir| ["--data-dir", dir])
                .into_iter()
                .flatten(),
        );
        let vs_code = json!({"name": "muster", "command": program, "args": arguments});
        let url = format!("http://{}{PATH}", self.mcp);
        let token = quoted(&self.token.display().to_string());
        let host = match (&self.host, self.no_agent) {
            (Some(name), _) => format!("{} is online", clean(name)),
            (None, true) => "this machine is no host".to_owned(),
            (None, false) => "this machine's agent is not online yet".to_owned(),
        };
        let first = if self.no_agent {
            "host list"
        } else {
            "run all -- uname -a"
        };
        let mut another = format!("{muster}{data_dir_flag} token create host");
        if self.grpc.ip().is_loopback() {
            another.push_str("   (to let other machines in, start with --listen 0.0.0.0:8766)");
        }
        let modes = self.permits.as_ref().map_or_else(String::new, |permits| {
            format!(
                "  This machine   {}\n  AI clients     {}\n",
                clean(&permits.describe()),
                clean(&permits.at_most_edit().describe())
            )
        });
        let stdio = format!("{muster} mcp{data_dir_flag}");
        format!(
            "Muster is up; {host}. State: {state}

  First command  {muster}{data_dir_flag} {first}
  Another host   {another}
{modes}  gRPC           {grpc}, certificate in {operator}
  MCP            {url}, token in {token}
  Claude Code    claude mcp add muster -- {stdio}
  or over HTTP   claude mcp add --transport http muster {url} --header \"Authorization: Bearer $(cat {token})\"
  Codex          codex mcp add muster -- {stdio}
  or over HTTP   export MUSTER_MCP_TOKEN=$(cat {token}); codex mcp add muster --url {url} --bearer-token-env-var MUSTER_MCP_TOKEN
  VS Code        code --add-mcp {vs_code}
  or over HTTP   code --add-mcp \"{{\\\"name\\\":\\\"muster\\\",\\\"type\\\":\\\"http\\\",\\\"url\\\":\\\"{url}\\\",\\\"headers\\\":{{\\\"Authorization\\\":\\\"Bearer $(cat {token})\\\"}}}}\"

Ctrl-C stops it.
",
            state = self.data_dir.display(),
            grpc = self.grpc,
            operator = self.data_dir.join("operator").display(),
            vs_code = quoted(&vs_code.to_string()),
        )
    }
}

/// `muster` if that is what a shell would start, else the path of this program.
fn program() -> String {
    let Ok(this) = env::current_exe() else {
        return "muster".to_owned();
    };
    let found = env::var_os("PATH").is_some_and(|path| {
        let mut candidates = env::split_paths(&path).map(|dir| dir.join("muster"));
        let first: Option<PathBuf> = candidates.find(|candidate| candidate.is_file());
        first.and_then(|first| fs::canonicalize(first).ok()) == fs::canonicalize(&this).ok()
    });
    if found {
        "muster".to_owned()
    } else {
        this.display().to_string()
    }
}

/// As a shell takes it.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn welcome(data_dir: &Path) -> Welcome<'_> {
        Welcome {
            data_dir,
            token: Path::new("/data dir/mcp-token"),
            grpc: "127.0.0.1:8766".parse().unwrap(),
            mcp: "127.0.0.1:8765".parse().unwrap(),
            host: Some("web-1".to_owned()),
            permits: Some(Permits {
                mode: "unrestricted".to_owned(),
                own: "unrestricted".to_owned(),
                limit: None,
                roots: vec!["/home/ada".to_owned()],
                network: "all".to_owned(),
                actions: Vec::new(),
                unenforceable: None,
            }),
            no_agent: false,
        }
    }

    #[test]
    fn it_is_about_a_dozen_lines() {
        let text = welcome(Path::new("/data")).render_for("muster", None);
        assert!(text.starts_with("Muster is up; web-1 is online."), "{text}");
        assert!((10..=16).contains(&text.lines().count()), "{text}");
        assert!(text.contains("http://127.0.0.1:8765/mcp"), "{text}");
        assert!(
            text.contains("unrestricted: tasks may do whatever"),
            "{text}"
        );
        let ai = "AI clients     edit at most: tasks write below /home/ada; network all";
        assert!(text.contains(ai), "{text}");
        assert!(text.contains("--header \"Authorization: Bearer $(cat '/data dir/mcp-token')\""));
        assert!(text.contains(
            "code --add-mcp '{\"name\":\"muster\",\"command\":\"muster\",\"args\":[\"mcp\"]}'"
        ));
    }

    #[test]
    fn another_place_is_named_in_every_command() {
        let text = welcome(Path::new("/data")).render_for("/opt/my muster", Some("/my data"));
        assert!(
            text.contains("claude mcp add muster -- '/opt/my muster' mcp --data-dir '/my data'"),
            "{text}"
        );
        assert!(
            text.contains("'/opt/my muster' --data-dir '/my data' run all"),
            "{text}"
        );
        assert!(
            text.contains("\"args\":[\"mcp\",\"--data-dir\",\"/my data\"]"),
            "{text}"
        );
    }
}
