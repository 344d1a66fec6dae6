//! Judges a value as the flag of the same setting would.

use std::{
    error::Error as _,
    ffi::{OsStr, OsString},
};

use clap::{
    Arg, ArgAction, Command,
    error::{ContextKind, ContextValue},
};

/// The values in the form of arguments, or what is wrong with them.
pub(super) fn values(arg: &Arg, values: Vec<OsString>) -> Result<Vec<OsString>, String> {
    if is_switch(arg) {
        return match &values[..] {
            [value] => Ok(vec![switch(value)?.to_string().into()]),
            _ => Err("expected one value".to_owned()),
        };
    }
    if values.len() > 1 && !is_list(arg) {
        return Err("expected one value".to_owned());
    }
    let lone = Arg::new("value")
        .long("value")
        .action(ArgAction::Append)
        .value_parser(arg.get_value_parser().clone())
        .ignore_case(arg.is_ignore_case_set());
    let arguments = values.iter().map(|value| {
        let mut argument = OsString::from("--value=");
        argument.push(value);
        argument
    });
    Command::new("check")
        .no_binary_name(true)
        .arg(lone)
        .try_get_matches_from(arguments)
        .map_err(|error| problem(&error, &values))?;
    Ok(values)
}

/// Cuts a text where the flag would.
pub(super) fn split(arg: &Arg, text: &OsStr) -> Vec<OsString> {
    match (arg.get_value_delimiter(), text.to_str()) {
        (Some(delimiter), Some(text)) => text.split(delimiter).map(OsString::from).collect(),
        _ => vec![text.to_owned()],
    }
}

/// Takes no value as a flag: it is there or it is not.
pub(super) fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse)
}

/// May be given several times, or several values at once.
pub(super) fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some()
}

fn switch(value: &OsStr) -> Result<bool, String> {
    match value.to_ascii_lowercase().to_str() {
        Some("true" | "1" | "yes" | "on") => Ok(true),
        Some("false" | "0" | "no" | "off") => Ok(false),
        _ => Err(format!("{value:?} is neither true nor false")),
    }
}

fn problem(error: &clap::Error, values: &[OsString]) -> String {
    let text = |value: &ContextValue| match value {
        ContextValue::String(text) => text.clone(),
        other => other.to_string(),
    };
    let value = error.get(ContextKind::InvalidValue).map_or_else(
        || format!("{:?}", values.first().cloned().unwrap_or_default()),
        |value| format!("{:?}", text(value)),
    );
    match (error.source(), error.get(ContextKind::ValidValue)) {
        (Some(source), _) => format!("{value}: {source}"),
        (None, Some(valid)) => format!("{value} is none of {}", text(valid)),
        (None, None) => format!("{value} does not fit"),
    }
}
