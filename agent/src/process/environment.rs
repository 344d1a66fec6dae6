//! What of the agent's own environment a process gets.

use muster_proto::v1::{Environment, environment::Inherit};

/// What every program may need, and nothing of which is a secret.
const CORE: [&str; 9] = [
    "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER",
];

/// A name that holds one of these, in whatever case, looks secret.
const SECRET: [&str; 6] = ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "KEY", "CREDENTIAL"];

/// Whether a variable of the agent's own environment goes to the process.
pub(super) fn keeps(wanted: &Environment, name: &str) -> bool {
    let inherited = match wanted.inherit() {
        Inherit::Unspecified | Inherit::All => true,
        Inherit::Core => CORE.contains(&name) || name.starts_with("LC_"),
        Inherit::None => false,
    };
    inherited
        && (wanted.keep_secrets || !looks_secret(name))
        && !wanted.exclude.iter().any(|pattern| matches(pattern, name))
}

fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    SECRET.iter().any(|word| name.contains(word))
}

/// A `*` at the end of a pattern stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(wanted: &Environment) -> Vec<&'static str> {
        let names = [
            "PATH",
            "LC_ALL",
            "EDITOR",
            "AWS_REGION",
            "AWS_SECRET_ACCESS_KEY",
            "github_token",
        ];
        names
            .into_iter()
            .filter(|name| keeps(wanted, name))
            .collect()
    }

    #[test]
    fn what_looks_secret_is_left_out_unless_it_is_asked_for() {
        let mut wanted = Environment::default();
        assert_eq!(kept(&wanted), ["PATH", "LC_ALL", "EDITOR", "AWS_REGION"]);
        wanted.keep_secrets = true;
        assert_eq!(kept(&wanted).len(), 6);
        wanted.exclude = vec!["AWS_*".to_owned(), "EDITOR".to_owned()];
        assert_eq!(kept(&wanted), ["PATH", "LC_ALL", "github_token"]);
    }

    #[test]
    fn the_core_and_nothing_are_what_they_say() {
        let mut wanted = Environment::default();
        wanted.set_inherit(Inherit::Core);
        assert_eq!(kept(&wanted), ["PATH", "LC_ALL"]);
        wanted.set_inherit(Inherit::None);
        assert!(kept(&wanted).is_empty());
    }
}
