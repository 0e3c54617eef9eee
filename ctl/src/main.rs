//! `swctl`: drives swd over its API socket.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod output;
mod table;

use std::process::ExitCode;

use clap::{Parser, error::ErrorKind};

use crate::{cli::Cli, output::ReaderGone};

/// Wrong usage.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    match start(cli) {
        Ok(code) => code,
        Err(e) if e.is::<ReaderGone>() => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}", table::printable(&format!("{e:#}")));
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(commands::run(cli));
    // A thread of the pool may wait for good: for the reader of standard output.
    runtime.shutdown_background();
    result
}

/// Says what is wrong with the command line: in one line where one value is, else with the usage.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        let text = error.render().to_string();
        eprintln!("{}", text.lines().next().unwrap_or_default());
        return ExitCode::from(USAGE);
    }
    // Help and version go to standard output; whether their reader is still there does not matter.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}
