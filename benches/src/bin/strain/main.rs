//! Puts swd under strain: limits that are set, one container against the others, captures at full rate, restarts.
//!
//! Each trial has a world of its own and bars that it should hold. See `docs/benchmarks/README.md`.

mod capture;
mod floods;
mod gaps;
mod rates;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use benches::attempt::{attempt, go_on, prepare};
use benches::congestion::CONGESTION_CONTROL;
use benches::load::Load;
use benches::machine::Machine;
use benches::measure::Meter;
use clap::{Parser, Subcommand};

use crate::report::{Run, Table};

/// Puts swd under strain, and writes tables.
#[derive(Debug, Parser)]
#[command(name = "strain", version, args_conflicts_with_subcommands = true)]
struct Options {
    /// Seconds that a load lasts
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How often each trial is made, but for rates
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Trials, separated by commas: rates, storm, floods, capture, gaps
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// One short round: to see that all works
    #[arg(long)]
    quick: bool,
    /// Where tables go
    #[arg(long, default_value = "docs/benchmarks")]
    out: PathBuf,
    #[command(subcommand)]
    hidden: Option<Hidden>,
}

#[derive(Debug, Subcommand)]
enum Hidden {
    /// One end of a load
    #[command(hide = true)]
    Load(Load),
}

/// Something that is tried.
struct Trial {
    /// Short name.
    name: &'static str,
    /// An empty table for it.
    table: fn() -> Table,
    /// Fills the table.
    run: fn(&Size, &mut Table) -> Result<()>,
}

/// How much is measured.
struct Size {
    meter: Meter,
    rounds: u32,
    quick: bool,
}

const TRIALS: [Trial; 5] = [
    Trial { name: "rates", table: rates::table, run: rates::run },
    Trial { name: "storm", table: floods::storm_table, run: floods::storm },
    Trial { name: "floods", table: floods::table, run: floods::run },
    Trial { name: "capture", table: capture::table, run: capture::run },
    Trial { name: "gaps", table: gaps::table, run: gaps::run },
];

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match options.hidden {
        Some(Hidden::Load(load)) => load.run(),
        None => prepare().and_then(|()| attempt(|| strain(options))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn strain(mut options: Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this makes network namespaces and needs root: use sudo");
    if options.quick {
        (options.rounds, options.seconds) = (1, options.seconds.min(0.5));
    }
    ensure!(options.rounds > 0 && options.seconds > 0.0, "--rounds and --seconds must be more than 0");
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|w| w == name);
    let trials: Vec<_> = TRIALS.iter().filter(|t| wanted(t.name)).collect();
    ensure!(!trials.is_empty(), "--only names no trial: rates, storm, floods, capture, gaps");
    let size = Size { meter: Meter::new(options.seconds)?, rounds: options.rounds, quick: options.quick };
    let machine = Machine::here(CONGESTION_CONTROL);
    let mut run = Run { machine, seconds: options.seconds, rounds: options.rounds, tables: Vec::new() };
    let start = Instant::now();
    for trial in trials {
        go_on()?;
        let mut table = (trial.table)();
        let begun = Instant::now();
        let done = attempt(|| (trial.run)(&size, &mut table));
        go_on()?;
        if let Err(e) = done {
            eprintln!("FAILED: {}: {e:#}", trial.name);
            table.failed = Some(format!("{e:#}"));
        }
        eprintln!("{} took {:.0} s", trial.name, begun.elapsed().as_secs_f64());
        run.tables.push(table);
    }
    println!("{}", report::write(&options.out, &run)?);
    eprintln!("{:.0} s in all; written to {}", start.elapsed().as_secs_f64(), options.out.display());
    Ok(())
}
