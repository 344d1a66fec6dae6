//! The files of a set: their names, the policies in them, and where one is wrong.

use cedar_policy::{Effect, Policy, PolicyId, PolicySet};
use miette::Diagnostic as _;

use super::{LIMITS_FILE, Need, Rule};
use crate::model::{Explain, Files, approval::ROLES, check_name};
use muster_proto::v1::Reason;

/// Files of one set.
const FILES_MAX: usize = 100;

/// Bytes of all files of a set.
pub(super) const BYTES_MAX: usize = 1 << 20;

/// Why files are no policies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {cause}")]
pub struct PolicyError {
    /// Which file; empty if it is about all of them.
    pub file: String,
    /// From 1; 0 if it is about the whole file.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What is wrong, in words.
    pub cause: String,
}

/// Refused unless a set may have files of these names and so much text.
pub(super) fn check_names(files: &Files) -> Result<(), PolicyError> {
    if files.len() > FILES_MAX {
        return Err(about_all(format!("a set has at most {FILES_MAX} files")));
    }
    if files.values().map(String::len).sum::<usize>() > BYTES_MAX {
        return Err(about_all("a set has at most 1 MiB".to_owned()));
    }
    for name in files.keys() {
        let stem = name.strip_suffix(".cedar").unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let named = !stem.is_empty() && !stem.starts_with('.') && stem.len() <= 100;
        if name != LIMITS_FILE && !(named && stem.chars().all(plain)) {
            let name: String = name.chars().take(80).collect();
            return Err(about_all(format!(
                "{name:?} is not \"limits.toml\" and no name like \"web-team.cedar\""
            )));
        }
    }
    Ok(())
}

/// The policies of a file, each with what is to be told of it.
pub(super) fn read_file(file: &str, text: &str) -> Result<Vec<(Policy, Rule)>, PolicyError> {
    let set: PolicySet = text.parse().map_err(|errors: cedar_policy::ParseErrors| {
        let first = errors.iter().next();
        let offset = first
            .and_then(|error| error.labels()?.next())
            .map_or(0, |label| label.offset());
        at(file, text, offset, errors.to_string())
    })?;
    if set.templates().next().is_some() {
        let cause = "holds a template (?principal or ?resource); write policies".to_owned();
        return Err(at(file, text, 0, cause));
    }
    let mut found = Vec::new();
    for policy in set.policies() {
        let offset = policy.as_ref().loc().map_or(0, |loc| loc.start());
        let (line, column) = place(text, offset);
        let id = match policy.annotation("id") {
            Some(id) if !id.is_empty() => id.to_owned(),
            _ => format!("{file}:{line}"),
        };
        let need = need(policy).map_err(|cause| PolicyError {
            file: file.to_owned(),
            line,
            column,
            cause,
        })?;
        let rule = Rule {
            id: id.as_str().into(),
            text: policy.annotation("text").unwrap_or_default().to_owned(),
            file: file.to_owned(),
            line,
            need,
            permits: policy.effect() == Effect::Permit,
        };
        found.push((policy.new_id(PolicyId::new(id)), rule));
    }
    found.sort_by_key(|(_, rule)| rule.line);
    Ok(found)
}

/// What `@needs` says.
fn need(policy: &Policy) -> Result<Option<Need>, String> {
    match policy.annotation("needs") {
        None => Ok(None),
        Some("confirmation") => Ok(Some(Need::Confirmation)),
        Some("approval") => {
            let count = policy.annotation("count").unwrap_or("1");
            let count: u32 = count
                .parse()
                .ok()
                .filter(|count| (1..=20).contains(count))
                .ok_or_else(|| format!("@count({count:?}) is not 1 to 20"))?;
            let from = policy.annotation("approvers").unwrap_or("admin");
            if from.split(ROLES).any(|role| check_name(role).is_err()) {
                return Err(format!(
                    "@approvers({from:?}) is no role, as \"admin\", and not several, as \"admin+dba\""
                ));
            }
            let from = from.into();
            Ok(Some(Need::Approval { count, from }))
        }
        Some(other) => Err(format!(
            "@needs({other:?}) is neither \"approval\" nor \"confirmation\""
        )),
    }
}

/// An error at an offset of a file.
pub(super) fn at(file: &str, text: &str, offset: usize, cause: String) -> PolicyError {
    let (line, column) = place(text, offset);
    PolicyError {
        file: file.to_owned(),
        line,
        column,
        cause,
    }
}

/// An error in a policy.
pub(super) fn about_rule(rule: Option<&Rule>, cause: String) -> PolicyError {
    match rule {
        None => about_all(cause),
        Some(rule) => PolicyError {
            file: rule.file.clone(),
            line: rule.line,
            column: 1,
            cause,
        },
    }
}

/// An error that is about all files.
pub(super) fn about_all(cause: String) -> PolicyError {
    PolicyError {
        file: String::new(),
        line: 0,
        column: 0,
        cause,
    }
}

/// Line and column of an offset, from 1.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    (line, before.len() - start + 1)
}

impl Explain for PolicyError {
    fn reason(&self) -> Reason {
        Reason::PolicyInvalid
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        vec![
            ("file", self.file.clone()),
            ("position", format!("{}:{}", self.line, self.column)),
        ]
    }
}
