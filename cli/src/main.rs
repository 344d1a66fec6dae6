//! Operate a fleet of machines as one.
//!
//! Two kinds of commands: roles, which serve until they are told to stop (`roles`), and operator commands,
//! which ask a control plane for something over the SDK (`hosts`, `jobs`, `run`, `fs`, `tokens`, `access`, `authority`).
#![cfg_attr(test, allow(clippy::unwrap_used))]
#![allow(clippy::print_stdout)] // this is the program that prints

mod access;
mod allocator;
mod approvals;
mod attach;
mod audit;
mod authority;
mod commands;
mod content;
mod failure;
mod file;
mod fs;
mod grants;
mod hosts;
mod jobs;
mod json;
mod login;
mod mode;
mod operator;
mod policy;
mod result;
mod roles;
mod run;
mod screen;
mod shell;
mod time;
mod tokens;

use std::process::ExitCode;

use muster_runtime::{config, descriptors};

use crate::{commands::Cli, failure::Failure};

#[global_allocator]
static ALLOCATOR: allocator::BySize = allocator::BySize;

fn main() -> ExitCode {
    if let Some(code) = muster_agent::supervise() {
        return code;
    }
    let cli: Cli = config::parse();
    let json = cli.command.wants_json();
    // Without, what is given has to do.
    let _ = descriptors::raise();
    let runtime = match cli.command.runtime() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::internal(format!("no runtime: {error}")).report(json),
    };
    let code = match runtime.block_on(cli.run()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(json),
    };
    // A thread that still reads a terminal would hold up an orderly end for ever.
    runtime.shutdown_background();
    code
}
