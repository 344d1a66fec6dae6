use std::{fs, net::SocketAddr, path::Path, time::Duration};

use super::*;

#[derive(clap::Parser, Debug)]
struct Program {
    #[command(flatten)]
    data_dir: DataDir,
    #[command(subcommand)]
    role: Role,
}

#[derive(clap::Subcommand, Debug)]
enum Role {
    Serve(Serving),
    Agent(Agent),
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Control plane")]
struct Serving {
    #[arg(long, env = "MUSTER_LISTEN", default_value = "127.0.0.1:8766")]
    listen: SocketAddr,
    #[arg(long, env = "MUSTER_LIFETIME", default_value = "24h", value_parser = humantime::parse_duration)]
    lifetime: Duration,
    #[arg(long, env = "MUSTER_ADVERTISE", value_delimiter = ',')]
    advertise: Vec<String>,
    #[arg(long, env = "MUSTER_QUIET")]
    quiet: bool,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Agent")]
struct Agent {
    #[arg(long, env = "MUSTER_TASKS")]
    tasks: u16,
}

struct World {
    dir: tempfile::TempDir,
    variables: HashMap<String, String>,
}

impl World {
    fn new(file: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), file).unwrap();
        Self {
            dir,
            variables: HashMap::new(),
        }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    fn load(&self, arguments: &str) -> Result<Program, Refusal> {
        let arguments = ["muster", "--data-dir", self.dir.path().to_str().unwrap()]
            .into_iter()
            .chain(arguments.split_whitespace())
            .map(OsString::from);
        load(arguments, &|name| {
            self.variables.get(name).map(OsString::from)
        })
    }

    fn serving(&self, arguments: &str) -> Serving {
        match self.load(arguments).unwrap().role {
            Role::Serve(serving) => serving,
            Role::Agent(_) => panic!("another role"),
        }
    }

    fn mistakes(&self, arguments: &str) -> Vec<String> {
        let refusal = self.load(arguments).unwrap_err();
        let dir = format!("{}/", self.dir.path().display());
        refusal
            .mistakes()
            .iter()
            .map(|mistake| format!("{}: {}", mistake.place, mistake.problem).replace(&dir, ""))
            .collect()
    }
}

const FILE_TEXT: &str =
    "[control-plane]\nlisten = \"[::1]:1\"\nadvertise = [\"a\", \"b\"]\nquiet = true\n";

#[test]
fn without_anything_the_defaults_hold() {
    let serving = World::new("").serving("serve");
    assert_eq!(serving.listen.to_string(), "127.0.0.1:8766");
    assert_eq!(serving.lifetime, Duration::from_secs(86_400));
    assert!(serving.advertise.is_empty() && !serving.quiet);
}

#[test]
fn the_file_stands_over_defaults() {
    let serving = World::new(FILE_TEXT).serving("serve");
    assert_eq!(serving.listen.to_string(), "[::1]:1");
    assert_eq!(serving.advertise, ["a", "b"]);
    assert!(serving.quiet);
}

#[test]
fn the_environment_stands_over_the_file() {
    let world = World::new(FILE_TEXT)
        .with("MUSTER_LISTEN", "[::1]:2")
        .with("MUSTER_ADVERTISE", "c,d,e")
        .with("MUSTER_QUIET", "0")
        .with("MUSTER_LIFETIME", "");
    let serving = world.serving("serve");
    assert_eq!(serving.listen.to_string(), "[::1]:2");
    assert_eq!(serving.advertise, ["c", "d", "e"]);
    assert!(!serving.quiet);
    assert_eq!(
        serving.lifetime,
        Duration::from_secs(86_400),
        "empty is unset"
    );
}

#[test]
fn a_flag_stands_over_all() {
    let world = World::new(FILE_TEXT).with("MUSTER_LISTEN", "[::1]:2");
    let serving = world.serving("serve --listen [::1]:3 --advertise z");
    assert_eq!(serving.listen.to_string(), "[::1]:3");
    assert_eq!(serving.advertise, ["z"]);
}

#[test]
fn a_required_flag_may_come_from_the_file() {
    let world = World::new("[agent]\ntasks = 7\n");
    assert!(matches!(
        world.load("agent").unwrap().role,
        Role::Agent(Agent { tasks: 7 })
    ));
    assert!(World::new("").load("agent").is_err());
}

#[test]
fn all_mistakes_are_reported_together() {
    let world = World::new(
        "lone = 1\n[control-plane]\nlisten = \"nowhere\"\nquiet = \"yes\"\nlisen = 1\n[agent]\ntasks = 70000\n[moon]\n",
    )
    .with("MUSTER_LIFETIME", "soon")
    .with("MUSTER_TASKS", "of another role");
    let mut mistakes = world.mistakes("serve");
    mistakes.sort();
    assert_eq!(
        mistakes,
        [
            "config.toml line 1 lone: no such section",
            "config.toml line 3 [control-plane] listen: \"nowhere\": invalid socket address syntax",
            "config.toml line 4 [control-plane] quiet: expected true or false",
            "config.toml line 5 [control-plane] lisen: no such key",
            "config.toml line 7 [agent] tasks: \"70000\": 70000 is not in 0..=65535",
            "config.toml line 8 moon: no such section",
            "environment variable MUSTER_LIFETIME: \"soon\": expected number at 0",
        ]
    );
}

#[test]
fn a_wrong_flag_does_not_hide_a_wrong_file() {
    let world = World::new("[agent]\ntasks = []\n");
    let refusal = world.load("serve --lisen x").unwrap_err();
    assert_eq!(refusal.mistakes().len(), 1);
    assert!(refusal.to_string().contains("--lisen"), "{refusal}");
}

#[test]
fn broken_toml_is_placed() {
    let mistakes = World::new("[agent]\ntasks = \n").mistakes("serve");
    assert!(
        mistakes[0].starts_with("config.toml line 2"),
        "{mistakes:?}"
    );
}

#[test]
fn help_shows_the_environment() {
    let help = World::new("nonsense")
        .load("serve --help")
        .unwrap_err()
        .to_string();
    assert!(help.contains("[env: MUSTER_LISTEN]"), "{help}");
}

#[test]
fn the_default_directory_follows_the_environment() {
    let of = |variables: &'static [(&'static str, &'static str)]| {
        default_data_dir(&move |name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        })
    };
    assert_eq!(
        of(&[("HOME", "/home/ada")]).unwrap(),
        Path::new("/home/ada/.local/share/muster")
    );
    assert_eq!(
        of(&[("HOME", "/home/ada"), ("XDG_DATA_HOME", "/data")]).unwrap(),
        Path::new("/data/muster")
    );
    assert_eq!(of(&[("XDG_DATA_HOME", "relative")]), None);
}
