//! A tool's arguments, read with tolerance where the meaning is plain (`"25"` for 25, `"ls"` for
//! `["ls"]`) and refused with the nearest right thing where it is not.

use std::ops::RangeInclusive;

use rmcp::model::JsonObject;
use serde_json::Value;

use crate::error::Refusal;

/// What models call things that have another name here.
const ALIASES: [(&str, &str); 27] = [
    ("tags", "labels"),
    ("tag", "labels"),
    ("label", "labels"),
    ("host", "target"),
    ("hosts", "target"),
    ("selector", "target"),
    ("target", "host"),
    ("id", "job_id"),
    ("run_id", "job_id"),
    ("request_id", "key"),
    ("cmd", "command"),
    ("script", "command"),
    ("args", "argv"),
    ("pattern", "grep"),
    ("page_token", "cursor"),
    ("signal", "grace_s"),
    ("file", "path"),
    ("line", "from_line"),
    ("start_line", "from_line"),
    ("limit", "lines"),
    ("count", "lines"),
    ("input", "text"),
    ("stdin", "text"),
    ("eof", "close"),
    ("wait_for", "until"),
    ("tty", "pty"),
    ("terminal", "pty"),
];

/// The arguments of one call.
pub(crate) struct Arguments {
    given: JsonObject,
}

impl Arguments {
    /// Refuses arguments that `schema` does not know.
    pub(crate) fn new(
        tool: &str,
        schema: &JsonObject,
        given: Option<JsonObject>,
    ) -> Result<Self, Refusal> {
        let given = given.unwrap_or_default();
        let known: Vec<&str> = schema
            .get("properties")
            .and_then(Value::as_object)
            .map(|properties| properties.keys().map(String::as_str).collect())
            .unwrap_or_default();
        let unknown = given.keys().find(|name| !known.contains(&name.as_str()));
        if let Some(unknown) = unknown {
            let next = match nearest(unknown, &known) {
                Some(name) => format!("use {name}; {tool} takes {}", known.join(", ")),
                None => format!("{tool} takes {}", known.join(", ")),
            };
            return Err(Refusal::new(
                format!("{tool} has no argument {unknown:?}"),
                next,
            ));
        }
        Ok(Self { given })
    }

    /// A text; absent, null and, for all but `instruction` and `stdin`, empty mean none.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        match self.given.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(Value::Bool(yes)) => Ok(Some(yes.to_string())),
            Some(other) => Err(wrong(name, "a text", &other)),
        }
    }

    /// A text that says something.
    pub(crate) fn word(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        let text = self.text(name)?;
        Ok(text
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty()))
    }

    /// A text that must be there.
    pub(crate) fn required(&mut self, name: &str, example: &str) -> Result<String, Refusal> {
        self.word(name)?.ok_or_else(|| {
            Refusal::new(
                format!("{name} is missing"),
                format!("give {name}, as {name}={example}"),
            )
        })
    }

    /// A whole number within limits; `"25"` and `25.0` are as good as `25`.
    pub(crate) fn number(
        &mut self,
        name: &str,
        limits: RangeInclusive<i64>,
    ) -> Result<Option<i64>, Refusal> {
        let value = match self.given.remove(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let number = match &value {
            Value::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(whole)),
            Value::String(text) if text.trim().is_empty() => return Ok(None),
            Value::String(text) => {
                let text = text.trim();
                let digits = text.strip_suffix('s').unwrap_or(text);
                digits
                    .parse()
                    .ok()
                    .or_else(|| digits.parse().ok().and_then(whole))
            }
            _ => None,
        };
        match number {
            Some(number) if limits.contains(&number) => Ok(Some(number)),
            Some(number) => Err(Refusal::new(
                format!("{name} is {number}"),
                format!("{name} goes from {} to {}", limits.start(), limits.end()),
            )),
            None => Err(wrong(name, "a whole number", &value)),
        }
    }

    /// Yes or no; absent means no.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, Refusal> {
        match self.given.remove(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(yes)) => Ok(yes),
            Some(Value::String(text)) if matches!(text.trim(), "" | "false" | "no") => Ok(false),
            Some(Value::String(text)) if matches!(text.trim(), "true" | "yes") => Ok(true),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    /// A list of texts; a single text is a list of one, and so is a JSON list written as a text.
    pub(crate) fn list(&mut self, name: &str) -> Result<Vec<String>, Refusal> {
        let values = match self.given.remove(name) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(values)) => values,
            Some(Value::String(text)) => match serde_json::from_str(&text) {
                Ok(Value::Array(values)) => values,
                _ => vec![Value::String(text)],
            },
            Some(other) => vec![other],
        };
        values
            .into_iter()
            .map(|value| match value {
                Value::String(text) => Ok(text),
                Value::Number(number) => Ok(number.to_string()),
                Value::Bool(yes) => Ok(yes.to_string()),
                other => Err(wrong(name, "a list of texts", &other)),
            })
            .collect()
    }

    /// Names and their values; null stands for none.
    pub(crate) fn map(&mut self, name: &str) -> Result<Vec<(String, Option<String>)>, Refusal> {
        let values = match self.given.remove(name) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Object(values)) => values,
            Some(Value::String(text)) => match serde_json::from_str(&text) {
                Ok(Value::Object(values)) => values,
                _ => return Err(wrong(name, "an object", &Value::String(text))),
            },
            Some(other) => return Err(wrong(name, "an object", &other)),
        };
        values
            .into_iter()
            .map(|(key, value)| match value {
                Value::Null => Ok((key, None)),
                Value::String(text) => Ok((key, Some(text))),
                Value::Number(number) => Ok((key, Some(number.to_string()))),
                Value::Bool(yes) => Ok((key, Some(yes.to_string()))),
                other => Err(wrong(name, "an object of texts", &other)),
            })
            .collect()
    }
}

fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < 1e15).then_some(number as i64)
}

fn wrong(name: &str, expected: &str, given: &Value) -> Refusal {
    let given: String = given.to_string().chars().take(60).collect();
    Refusal::new(
        format!("{name} is not {expected}: {given}"),
        format!("give {name} as {expected}"),
    )
}

/// The known name that was most likely meant.
fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let unknown = unknown.to_ascii_lowercase().replace('-', "_");
    let alias = ALIASES
        .iter()
        .filter(|(alias, _)| *alias == unknown)
        .find_map(|(_, name)| known.iter().find(|known| *known == name));
    alias.copied().or_else(|| {
        let close = |name: &&&str| {
            let distance = distance(&unknown, name);
            distance <= 3.min(name.len() / 2) || name.strip_suffix("_s") == Some(&unknown)
        };
        known
            .iter()
            .filter(close)
            .min_by_key(|name| distance(&unknown, name))
            .copied()
    })
}

/// How many letters have to be added, taken away or changed.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments(given: Value) -> Result<Arguments, Refusal> {
        let schema = json!({"properties": {"target": {}, "wait_s": {}, "argv": {}, "env": {}, "labels": {}, "key": {}}});
        let Value::Object(schema) = schema else {
            panic!()
        };
        let Value::Object(given) = given else {
            panic!()
        };
        Arguments::new("run", &schema, Some(given))
    }

    #[test]
    fn what_is_plain_is_accepted() {
        let mut given = arguments(json!({
            "wait_s": "5", "argv": "ls", "env": {"N": 1, "B": true}, "target": " web-1 ", "key": null
        }))
        .unwrap();
        assert_eq!(given.number("wait_s", 0..=45).unwrap(), Some(5));
        assert_eq!(given.list("argv").unwrap(), ["ls"]);
        assert_eq!(
            given.map("env").unwrap(),
            [
                ("N".into(), Some("1".into())),
                ("B".into(), Some("true".into()))
            ]
        );
        assert_eq!(given.required("target", "web-1").unwrap(), "web-1");
        assert_eq!(given.word("key").unwrap(), None);
        for (value, number) in [
            (json!(7), 7),
            (json!(7.0), 7),
            (json!("7.0"), 7),
            (json!("7s"), 7),
        ] {
            let mut given = arguments(json!({"wait_s": value})).unwrap();
            assert_eq!(given.number("wait_s", 0..=45).unwrap(), Some(number));
        }
        let mut given =
            arguments(json!({"argv": "[\"ls\", \"-l\"]", "labels": "{\"a\": null}"})).unwrap();
        assert_eq!(given.list("argv").unwrap(), ["ls", "-l"]);
        assert_eq!(given.map("labels").unwrap(), [("a".into(), None)]);
    }

    #[test]
    fn what_is_not_plain_is_refused_with_a_way_out() {
        for (value, cause) in [
            (json!(46), "wait_s is 46"),
            (json!(-1), "wait_s is -1"),
            (json!(1.5), "wait_s is not a whole number: 1.5"),
            (json!("soon"), "wait_s is not a whole number: \"soon\""),
            (json!([1]), "wait_s is not a whole number: [1]"),
        ] {
            let mut given = arguments(json!({"wait_s": value})).unwrap();
            assert_eq!(given.number("wait_s", 0..=45).unwrap_err().cause, cause);
        }
        let mut given = arguments(json!({"target": {"a": 1}})).unwrap();
        assert_eq!(
            given.word("target").unwrap_err().cause,
            "target is not a text: {\"a\":1}"
        );
        let missing = given.required("key", "deploy-1").unwrap_err();
        assert_eq!(missing.cause, "key is missing");
    }

    #[test]
    fn an_unknown_argument_names_the_nearest() {
        for (name, nearest) in [
            ("targets", "target"),
            ("hosts", "target"),
            ("wait", "wait_s"),
            ("waitS", "wait_s"),
            ("arguments_v", ""),
            ("args", "argv"),
            ("tags", "labels"),
            ("request_id", "key"),
            ("pty", ""),
        ] {
            let Err(refusal) = arguments(json!({name: 1})) else {
                panic!("{name}")
            };
            assert_eq!(refusal.cause, format!("run has no argument {name:?}"));
            let expected = if nearest.is_empty() {
                "run takes target".to_owned()
            } else {
                format!("use {nearest}; run takes target")
            };
            assert!(
                refusal.next.starts_with(&expected),
                "{name}: {}",
                refusal.next
            );
        }
    }
}
