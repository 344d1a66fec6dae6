//! Settings: flag over environment over file over default.
//!
//! A program declares its settings once, as clap arguments. A flag that stands under a help heading can
//! also be set in `config.toml` of the data directory: the heading names the section, the flag the key.
//! So `--certificate-lifetime` under "Control plane" is
//!
//! ```toml
//! [control-plane]
//! certificate-lifetime = "24h"
//! ```
//!
//! The file belongs to every role on a machine, so all of it is checked whatever runs. All mistakes of
//! flags, environment and file are reported together, before anything else happens.

mod check;
mod file;

use std::{collections::HashMap, env, ffi::OsString, fmt, path::PathBuf, process};

use clap::{Arg, Command, builder::Resettable};

/// Exit code of a program that was called wrongly (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: i32 = 64;

/// Name of the settings file in the data directory.
pub const FILE: &str = "config.toml";

/// Where a program keeps its state.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct DataDir {
    /// Where Muster keeps its state on this machine [default: $XDG_DATA_HOME/muster, else ~/.local/share/muster]
    #[arg(long, env = "MUSTER_DATA_DIR", value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
}

/// No home directory is known, so there is no default data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no data directory: neither XDG_DATA_HOME nor HOME is set; say --data-dir DIR")]
pub struct NoHome;

impl DataDir {
    /// The directory, if somebody named one.
    pub fn given(&self) -> Option<&std::path::Path> {
        self.data_dir.as_deref()
    }

    /// The directory, which need not exist yet.
    pub fn path(&self) -> Result<PathBuf, NoHome> {
        self.data_dir
            .clone()
            .or_else(|| default_data_dir(&|name| env::var_os(name)))
            .ok_or(NoHome)
    }
}

fn default_data_dir(environment: &Environment<'_>) -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = PathBuf::from(environment(name)?);
        path.is_absolute().then_some(path)
    };
    absolute("XDG_DATA_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/share")))
        .map(|data| data.join("muster"))
}

/// Reads the settings of this process, or ends it: with the help that was asked for, or with every
/// mistake and [`EXIT_USAGE`].
pub fn parse<P: clap::Parser>() -> P {
    load(env::args_os(), &|name| env::var_os(name)).unwrap_or_else(|refusal| refusal.exit())
}

/// Gives the value of an environment variable.
pub type Environment<'a> = dyn Fn(&str) -> Option<OsString> + 'a;

/// Reads settings from `arguments` (the first is the program's name), `environment` and the file.
pub fn load<P: clap::Parser>(
    arguments: impl IntoIterator<Item = OsString>,
    environment: &Environment<'_>,
) -> Result<P, Refusal> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let declared = P::command();

    // Which command runs, and where its data directory is, must be known before the rest can be judged.
    let lenient = for_all(declared.clone(), &|arg| {
        arg.env(Resettable::Reset).required(false)
    })
    .ignore_errors(true)
    .try_get_matches_from(&arguments);
    let matches = match lenient {
        Ok(matches) => matches,
        // Help or version. Asked again of the declared command, whose help shows the environment.
        Err(_) => {
            let declared = for_all(declared, &|arg| arg.hide_env_values(true));
            let help = declared.try_get_matches_from(&arguments).err();
            return Err(Refusal {
                usage: help,
                mistakes: Vec::new(),
            });
        }
    };
    let mut mistakes = Vec::new();
    let values = values(&declared, &matches, environment, &mut mistakes);

    // What environment and file say become the defaults of the flags.
    let command = for_all(declared, &|arg| {
        let value = values.get(&setting(&arg)).cloned();
        let arg = arg.env(Resettable::Reset);
        match value {
            Some(values) => arg.required(false).default_values(values),
            None => arg,
        }
    });
    match command.try_get_matches_from(&arguments) {
        Ok(matches) if mistakes.is_empty() => P::from_arg_matches(&matches).map_err(Refusal::usage),
        Ok(_) => Err(Refusal {
            usage: None,
            mistakes,
        }),
        Err(error) => Err(Refusal {
            usage: Some(error),
            mistakes,
        }),
    }
}

/// What environment and file say of the command that runs; the environment goes first.
fn values(
    declared: &clap::Command,
    matches: &clap::ArgMatches,
    environment: &Environment<'_>,
    mistakes: &mut Vec<Mistake>,
) -> Values {
    let mut path = Vec::new();
    let mut command = matches;
    while let Some((name, inner)) = command.subcommand() {
        path.push(name.to_owned());
        command = inner;
    }
    let data_dir = matches
        .try_get_one::<PathBuf>("data_dir")
        .ok()
        .flatten()
        .cloned()
        .or_else(|| environment("MUSTER_DATA_DIR").map(PathBuf::from))
        .or_else(|| default_data_dir(environment));

    let mut values = match data_dir {
        Some(dir) => file::read(&dir.join(FILE), &sections(declared), mistakes),
        None => Values::new(),
    };
    for_path(declared, &path, &mut |arg| {
        if let Some((name, value)) = from_environment(arg, environment) {
            match check::values(arg, check::split(arg, &value)) {
                Ok(value) => drop(values.insert(setting(arg), value)),
                Err(problem) => mistakes.push(Mistake {
                    place: format!("environment variable {name}"),
                    problem,
                    next: format!("change or unset {name}"),
                }),
            }
        }
    });
    values
}

/// Why a program does not start: it was asked for help, or its settings are wrong.
#[derive(Debug)]
pub struct Refusal {
    usage: Option<clap::Error>,
    mistakes: Vec<Mistake>,
}

impl Refusal {
    fn usage(error: clap::Error) -> Self {
        Self {
            usage: Some(error),
            mistakes: Vec::new(),
        }
    }

    /// What is wrong in environment and file.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }

    /// Says everything that is wrong and ends the process: 0 after help, else [`EXIT_USAGE`].
    #[allow(clippy::disallowed_methods)] // nothing has started yet that could be cut off
    pub fn exit(self) -> ! {
        if let Some(error) = &self.usage {
            // Nobody is left to tell when the terminal is gone.
            let _ = error.print();
            if !error.use_stderr() {
                process::exit(0);
            }
        }
        if !self.mistakes.is_empty() {
            eprint!("{}", Listed(&self.mistakes));
        }
        process::exit(EXIT_USAGE)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = &self.usage {
            write!(f, "{error}")?;
        }
        write!(f, "{}", Listed(&self.mistakes))
    }
}

impl std::error::Error for Refusal {}

/// A wrong setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The place of the setting: the variable, or file, line, section and key.
    pub place: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub next: String,
}

struct Listed<'a>(&'a [Mistake]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Mistake {
            place,
            problem,
            next,
        } in self.0
        {
            writeln!(f, "error: {place}: {problem}\n  next: {next}")?;
        }
        Ok(())
    }
}

/// Names a setting across commands: a flag that several of them share is one setting.
type Setting = String;
/// Values by setting, in the form of arguments.
type Values = HashMap<Setting, Vec<OsString>>;
/// Flags by section and key.
type Sections = HashMap<String, HashMap<String, Arg>>;

fn setting(arg: &Arg) -> Setting {
    let section = arg.get_help_heading().map(section_name);
    format!("{}.{}", section.unwrap_or_default(), arg.get_id())
}

fn section_name(heading: &str) -> String {
    heading.to_lowercase().replace(' ', "-")
}

/// Every flag under a heading, in every command.
fn sections(command: &Command) -> Sections {
    let mut sections = Sections::new();
    collect(command, &mut sections);
    return sections;

    fn collect(command: &Command, sections: &mut Sections) {
        for arg in command.get_arguments() {
            if let (Some(heading), Some(key)) = (arg.get_help_heading(), arg.get_long()) {
                let section = sections.entry(section_name(heading)).or_default();
                section.insert(key.to_owned(), arg.clone());
            }
        }
        for inner in command.get_subcommands() {
            collect(inner, sections);
        }
    }
}

fn from_environment(arg: &Arg, environment: &Environment<'_>) -> Option<(String, OsString)> {
    let name = arg.get_env()?.to_str()?;
    // Set to nothing counts as unset: service managers and compose files cannot unset.
    let value = environment(name).filter(|value| !value.is_empty())?;
    Some((name.to_owned(), value))
}

fn for_all(command: Command, change: &impl Fn(Arg) -> Arg) -> Command {
    command
        .mut_args(change)
        .mut_subcommands(|inner| for_all(inner, change))
}

fn for_path(command: &Command, path: &[String], visit: &mut impl FnMut(&Arg)) {
    command.get_arguments().for_each(&mut *visit);
    if let Some((name, rest)) = path.split_first()
        && let Some(inner) = command.find_subcommand(name)
    {
        for_path(inner, rest, visit);
    }
}

#[cfg(test)]
mod tests;
