//! What of the agent's own environment a process gets.

use std::{
    borrow::Cow,
    collections::HashMap,
    ffi::{CStr, CString, NulError},
};

use muster_proto::v1::{Environment, environment::Inherit};

/// What every program may need, and nothing of which is a secret.
const CORE: [&str; 9] = [
    "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER",
];

/// A name that holds one of these, in whatever case, looks secret.
const SECRET: [&str; 6] = ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "KEY", "CREDENTIAL"];

/// A variable that processes may inherit, made once as the kernel wants it: most tasks get most of them.
pub(super) struct Variable {
    name: String,
    pair: CString,
}

impl Variable {
    /// `None` if one of them holds a NUL byte, which no environment can.
    pub(super) fn new(name: String, value: &str) -> Option<Self> {
        let pair = CString::new(format!("{name}={value}")).ok()?;
        Some(Self { name, pair })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Name and value, with "=" between them.
    pub(super) fn pair(&self) -> &CStr {
        &self.pair
    }

    fn value(&self) -> &str {
        let value = &self.pair.as_bytes()[self.name.len() + 1..];
        std::str::from_utf8(value).expect("it was made of text")
    }
}

/// All that one process gets.
pub(super) struct Variables<'a> {
    inherited: Vec<&'a Variable>,
    set: HashMap<String, String>,
}

impl<'a> Variables<'a> {
    /// The part of `own` that a process inherits, and over that what is set.
    pub(super) fn new(
        own: &'a [Variable],
        wanted: &Environment,
        set: HashMap<String, String>,
    ) -> Self {
        let goes = |name: &str| !set.contains_key(name) && keeps(wanted, name);
        let inherited = own.iter().filter(|own| goes(&own.name)).collect();
        Self { inherited, set }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let inherited = || self.inherited.iter().find(|own| own.name == name);
        let set = self.set.get(name).map(String::as_str);
        set.or_else(|| Some(inherited()?.value()))
    }

    /// Each as the kernel wants it.
    pub(super) fn pairs(&self) -> Result<Vec<Cow<'a, CStr>>, NulError> {
        let pair = |(name, value)| CString::new(format!("{name}={value}")).map(Cow::Owned);
        let inherited = self.inherited.iter();
        inherited
            .map(|own| Ok(Cow::Borrowed(own.pair.as_c_str())))
            .chain(self.set.iter().map(pair))
            .collect()
    }
}

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
    let holds = |word: &str| {
        let mut parts = name.as_bytes().windows(word.len());
        parts.any(|part| part.eq_ignore_ascii_case(word.as_bytes()))
    };
    SECRET.into_iter().any(holds)
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

    #[test]
    fn what_is_set_stands_over_what_is_inherited() {
        let own = ["PATH=/bin", "EDITOR=ed", "API_TOKEN=x"].map(|pair| {
            let (name, value) = pair.split_once('=').unwrap();
            Variable::new(name.to_owned(), value).unwrap()
        });
        let set = HashMap::from([("EDITOR".to_owned(), "vi".to_owned())]);
        let variables = Variables::new(&own, &Environment::default(), set);
        assert_eq!(variables.get("PATH"), Some("/bin"));
        assert_eq!(variables.get("EDITOR"), Some("vi"));
        assert_eq!(variables.get("API_TOKEN"), None);
        let mut pairs = variables.pairs().unwrap();
        pairs.sort();
        assert_eq!(pairs, [c"EDITOR=vi", c"PATH=/bin"]);

        let set = HashMap::from([("A".to_owned(), "a\0b".to_owned())]);
        let variables = Variables::new(&own, &Environment::default(), set);
        assert!(variables.pairs().is_err());
    }
}
