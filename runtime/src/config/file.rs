//! Reads the settings file and says, with line and key, what is wrong in it.

use std::{ffi::OsString, fs, io, path::Path};

use clap::Arg;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Mistake, Sections, Values, check, setting};

/// The file's settings. A file that does not exist has none.
pub(super) fn read(path: &Path, sections: &Sections, mistakes: &mut Vec<Mistake>) -> Values {
    match fs::read_to_string(path) {
        Ok(text) => File {
            path,
            text: &text,
            mistakes: Vec::new(),
        }
        .read(sections, mistakes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Values::new(),
        Err(error) => {
            mistakes.push(Mistake {
                place: path.display().to_string(),
                problem: format!("cannot be read: {error}"),
                next: "make it readable, or choose another --data-dir".to_owned(),
            });
            Values::new()
        }
    }
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
    mistakes: Vec<(usize, Mistake)>,
}

impl File<'_> {
    fn read(mut self, sections: &Sections, mistakes: &mut Vec<Mistake>) -> Values {
        let mut values = Values::new();
        let (document, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let at = error.span().map_or(0, |span| span.start);
            let problem = error.message().lines().collect::<Vec<_>>().join(", ");
            self.mistake(at, "", problem, "mend the TOML there");
        }
        for (name, content) in document.get_ref() {
            let at = name.span().start;
            let name = name.get_ref().as_ref();
            let (Some(section), DeValue::Table(table)) = (sections.get(name), content.get_ref())
            else {
                let next = format!("known sections: {}", listed(sections.keys()));
                self.mistake(at, name, "no such section".to_owned(), &next);
                continue;
            };
            for (key, value) in table {
                let at = key.span().start;
                let key = key.get_ref().as_ref();
                let place = format!("[{name}] {key}");
                let Some(arg) = section.get(key) else {
                    let next = format!("known keys of [{name}]: {}", listed(section.keys()));
                    self.mistake(at, &place, "no such key".to_owned(), &next);
                    continue;
                };
                match texts(arg, value).and_then(|texts| check::values(arg, texts)) {
                    Ok(texts) => drop(values.insert(setting(arg), texts)),
                    Err(problem) => {
                        let next = format!("correct it; `--help` says what --{key} takes");
                        self.mistake(at, &place, problem, &next);
                    }
                }
            }
        }
        // The parser sorts by name; people read from top to bottom.
        self.mistakes.sort_by_key(|(line, _)| *line);
        mistakes.extend(self.mistakes.into_iter().map(|(_, mistake)| mistake));
        values
    }

    fn mistake(&mut self, at: usize, what: &str, problem: String, next: &str) {
        let line = self.text[..at.min(self.text.len())].matches('\n').count() + 1;
        let place = format!("{} line {line} {what}", self.path.display());
        let mistake = Mistake {
            place: place.trim_end().to_owned(),
            problem,
            next: next.to_owned(),
        };
        self.mistakes.push((line, mistake));
    }
}

/// A TOML value in the form of arguments, if its type fits the flag.
fn texts(arg: &Arg, value: &Spanned<DeValue<'_>>) -> Result<Vec<OsString>, String> {
    match value.get_ref() {
        DeValue::Array(items) if check::is_list(arg) => items.iter().map(text).collect(),
        DeValue::Array(_) => Err("expected one value, not a list".to_owned()),
        DeValue::Boolean(_) if check::is_switch(arg) => Ok(vec![text(value)?]),
        DeValue::Boolean(_) => Err("expected a text or number, not true or false".to_owned()),
        _ if check::is_switch(arg) => Err("expected true or false".to_owned()),
        _ => Ok(vec![text(value)?]),
    }
}

fn text(value: &Spanned<DeValue<'_>>) -> Result<OsString, String> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.as_ref().into()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string().into())
            .map_err(|error| format!("{number}: {error}")),
        DeValue::Float(number) => Ok(number.as_str().into()),
        DeValue::Boolean(truth) => Ok(truth.to_string().into()),
        other => Err(format!(
            "expected a text or number, not a {}",
            other.type_str()
        )),
    }
}

fn listed<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let mut names: Vec<&str> = names.map(String::as_str).collect();
    names.sort_unstable();
    names.join(", ")
}
