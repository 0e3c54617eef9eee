//! Draws curves: what swd does and costs as ports, MAC addresses, connections, publishes, networks and workers grow.
//!
//! Each curve is one swd that grows step by step; after each step the same loads run between the same two containers. A
//! step that takes longer than a curve's patience ends the curve, which says so. See `docs/scaling.md`.

mod curves;
mod report;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use benches::attempt::{attempt, go_on, prepare};
use benches::congestion::CONGESTION_CONTROL;
use benches::load::Load;
use benches::machine::Machine;
use benches::measure::Meter;
use clap::{Parser, Subcommand};

use crate::curves::Growing;
use crate::report::{Curve, Run};

/// Draws curves of what swd does and costs as it grows.
#[derive(Debug, Parser)]
#[command(name = "scale", version, args_conflicts_with_subcommands = true)]
struct Options {
    /// Seconds that a load lasts
    #[arg(long, default_value_t = 0.7)]
    seconds: f64,
    /// Curves, separated by commas: ports, ports-as-shipped, fdb, flows, connections, publishes, networks, workers
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only small sizes and short loads: to see that all works
    #[arg(long)]
    quick: bool,
    /// Seconds that growing by one step may take
    #[arg(long, default_value_t = 60.0)]
    patience: f64,
    /// Where tables and plots go
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

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match options.hidden {
        Some(Hidden::Load(load)) => load.run(),
        None => prepare().and_then(|()| attempt(|| scale(options))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn scale(mut options: Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this makes network namespaces and needs root: use sudo");
    if options.quick {
        options.seconds = options.seconds.min(0.3);
    }
    ensure!(options.seconds > 0.0, "--seconds must be more than 0");
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|w| w == name);
    let all: Vec<_> = curves::all().into_iter().filter(|c| wanted(c.name)).collect();
    ensure!(
        !all.is_empty(),
        "--only names no curve: ports, ports-as-shipped, fdb, flows, connections, publishes, networks, workers"
    );
    let meter = Meter::new(options.seconds)?;
    let mut run =
        Run { machine: Machine::here(CONGESTION_CONTROL), seconds: options.seconds, curves: Vec::new() };
    let start = Instant::now();
    for curve in all {
        go_on()?;
        let mut points = Curve::of(&curve);
        let done = attempt(|| grow(&curve, &options, &meter, &mut points));
        go_on()?;
        if let Err(e) = done {
            eprintln!("FAILED: {}: {e:#}", curve.name);
            points.end = Some(format!("{e:#}"));
        }
        run.curves.push(points);
    }
    println!("{}", report::write(&options.out, &run)?);
    eprintln!("{:.0} s in all; written to {}", start.elapsed().as_secs_f64(), options.out.display());
    Ok(())
}

fn grow(curve: &Growing, options: &Options, meter: &Meter, points: &mut Curve) -> Result<()> {
    let mut subject = (curve.start)()?;
    let patience = Duration::from_secs_f64(options.patience);
    let sizes = if options.quick { &curve.sizes[..2] } else { curve.sizes };
    for &size in sizes {
        go_on()?;
        let begun = Instant::now();
        let Some(mut figures) = subject.grow_to(size, begun + patience)? else {
            points.end = Some(format!("growing to {size} took longer than {patience:?}"));
            break;
        };
        let took = begun.elapsed().as_secs_f64();
        figures.merge(subject.measure(meter)?);
        eprintln!("  {:16} {size:>8} ({took:.1} s to get there)", curve.name);
        points.points.push((size, figures));
    }
    Ok(())
}
