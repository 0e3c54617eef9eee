//! `swd-cni`: a CNI plugin (specification 1.1) that attaches containers to swd. It only speaks the API, so whatever runs at
//! once is put in order by swd, and nothing is kept here.
//!
//! A runtime says in the environment what is to be done and to which container, and how on standard input; the answer or
//! the error is JSON on standard output.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::process::ExitCode;

use ctl::cni::{Config, Environment, Failure, run, version_of, versions};
use serde_json::Value;

/// Longest configuration in bytes: with every port mapped.
const MAX_INPUT: u64 = 64 << 20;

fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = std::io::stdin().lock().take(MAX_INPUT).read_to_end(&mut input);
    let version = version_of(&input);
    let answer = match read {
        Err(e) => Err(Failure::io(format!("cannot read the configuration from standard input: {e}"))),
        Ok(_) => answer(&input),
    };
    let (text, code) = match answer {
        Ok(Value::Null) => (String::new(), ExitCode::SUCCESS),
        Ok(value) => (value.to_string(), ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(&version).to_string(), ExitCode::FAILURE),
    };
    if !text.is_empty() {
        // That nobody reads it changes nothing of what was done.
        let _ = writeln!(std::io::stdout(), "{text}");
    }
    code
}

fn answer(input: &[u8]) -> Result<Value, Failure> {
    let environment = Environment::of_process()?;
    if environment.command == "VERSION" {
        return Ok(versions(&version_of(input)));
    }
    let config = Config::read(input)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::io(format!("cannot start: {e}")))?;
    runtime.block_on(run(&environment, &config))
}
