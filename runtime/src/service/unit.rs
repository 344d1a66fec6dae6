//! Unit files: a template of `deploy/systemd`, changed line by line.

use std::path::Path;

use super::ServiceError;

/// How a unit begins that an installation wrote; by it the next one knows that it may replace it.
const MARK: &str = "# Written by Muster: ";

/// The text of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit(String);

impl Unit {
    /// From a template, marked as written by `command`.
    pub fn new(template: &str, command: &str, unit: &str) -> Self {
        Self(format!(
            "{MARK}`{command}` replaces this file. Changes belong in `systemctl edit {unit}`.\n{template}"
        ))
    }

    /// Sets a key of the section `[Service]` or `[Install]` to one value, in place of all that it has.
    #[must_use]
    pub fn with(self, section: &str, key: &str, value: &str) -> Self {
        let line = format!("{key}={value}");
        let mut lines = Vec::new();
        let mut within = false;
        let mut done = false;
        for old in self.0.lines() {
            if old.starts_with('[') {
                if within && !done {
                    // Above the empty lines that part sections.
                    let at = lines.iter().rposition(|line: &&str| !line.is_empty());
                    lines.insert(at.map_or(0, |at| at + 1), line.as_str());
                    done = true;
                }
                within = old == format!("[{section}]");
            }
            match within && is_of(old, key) {
                true if done => {}
                true => {
                    lines.push(&line);
                    done = true;
                }
                false => lines.push(old),
            }
        }
        if !done {
            lines.push(&line);
        }
        Self(lines.join("\n") + "\n")
    }

    /// Leaves out keys, wherever they stand.
    #[must_use]
    pub fn without(self, keys: &[&str]) -> Self {
        let kept = self
            .0
            .lines()
            .filter(|line| !keys.iter().any(|key| is_of(line, key)));
        Self(kept.map(|line| format!("{line}\n")).collect())
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The value of a key in a unit's text, if it is set once.
    pub(super) fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
        let mut lines = text.lines().filter(|line| is_of(line, key));
        let value = lines.next()?.split_once('=')?.1;
        lines.next().is_none().then_some(value)
    }

    /// Whether a file that is there already was written by us.
    pub fn is_ours(text: &str) -> bool {
        text.starts_with(MARK)
    }
}

fn is_of(line: &str, key: &str) -> bool {
    line.strip_prefix(key)
        .is_some_and(|rest| rest.starts_with('='))
}

/// A path as a word of a command line or an assignment in a unit. What would need more than quotes is
/// refused: such paths are not worth a second grammar.
pub(super) fn word(path: &Path) -> Result<String, ServiceError> {
    let shown = path.display().to_string();
    let text = path
        .to_str()
        .filter(|text| {
            !text.contains(|c: char| c.is_control() || matches!(c, '"' | '\'' | '\\' | '$'))
        })
        .ok_or(ServiceError::Path(shown))?;
    Ok(text.replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "[Unit]\nDescription=x\n\n[Service]\nExecStart=/a b\nUser=x\n\n[Install]\nWantedBy=multi-user.target\n";

    #[test]
    fn a_key_is_replaced_where_it_stands_and_added_where_it_does_not() {
        let unit = Unit(TEMPLATE.to_owned())
            .with("Service", "ExecStart", "/c d")
            .with("Service", "Group", "y")
            .with("Install", "WantedBy", "default.target")
            .without(&["User"]);
        assert_eq!(
            unit.text(),
            "[Unit]\nDescription=x\n\n[Service]\nExecStart=/c d\nGroup=y\n\n[Install]\nWantedBy=default.target\n"
        );
        let last = Unit(TEMPLATE.to_owned()).with("Install", "Alias", "z.service");
        assert!(
            last.text()
                .ends_with("WantedBy=multi-user.target\nAlias=z.service\n")
        );
    }

    #[test]
    fn a_unit_of_ours_is_told_from_another() {
        let unit = Unit::new(TEMPLATE, "muster agent install", "muster-agent");
        assert!(Unit::is_ours(unit.text()));
        assert!(!Unit::is_ours(TEMPLATE));
    }

    #[test]
    fn a_path_cannot_say_more_than_a_path() {
        assert_eq!(word(Path::new("/a b/100%")).unwrap(), "/a b/100%%");
        for path in ["/a\nExecStart=/evil", "/a\"b", "/a$HOME", "/a\\x20"] {
            assert!(word(Path::new(path)).is_err(), "{path:?}");
        }
    }
}
