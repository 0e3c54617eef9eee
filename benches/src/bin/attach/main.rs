//! How long a container waits for its network: Docker's containers on swd and on Docker's own bridge driver, and bare namespaces
//! attached by `swctl` and by the `ip` commands of the classic walk.
//!
//! Both sides have an engine, a host and an outside of their own, and take turns: each round goes once through both, the
//! other one first each time.

mod bare;
mod engines;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use benches::attempt::{attempt, go_on, prepare};
use benches::congestion::CONGESTION_CONTROL;
use benches::machine::Machine;
use clap::Parser;
use serde::Serialize;

/// Measures how long a container waits for its network, on swd and on the kernel's bridge.
#[derive(Debug, Parser)]
#[command(name = "attach", version)]
struct Options {
    /// Rounds; a cell is their median
    #[arg(long, default_value_t = 9)]
    rounds: u32,
    /// Containers that are started at once
    #[arg(long, default_value_t = 100)]
    crowd: u32,
    /// Rounds of those
    #[arg(long, default_value_t = 1)]
    crowds: u32,
    /// Only one round, of few containers: to see that all works
    #[arg(long)]
    quick: bool,
    /// Where the table goes
    #[arg(long, default_value = "docs/benchmarks")]
    out: PathBuf,
}

/// On whose network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    /// The kernel's bridge: Docker's own driver, or the `ip` commands.
    Bridge,
    /// swd.
    Swd,
}

impl Side {
    const ALL: [Self; 2] = [Self::Bridge, Self::Swd];

    /// Both, another one first in each round.
    fn in_turn(round: u32) -> [Self; 2] {
        let [bridge, swd] = Self::ALL;
        if round.is_multiple_of(2) { [bridge, swd] } else { [swd, bridge] }
    }
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Task {
    /// `docker run --network none`: what containers cost that have no network at all.
    None,
    /// `docker run`.
    Run,
    /// What the network adds to it.
    Share,
    /// `docker run -p` of one port.
    Publish,
    /// `docker run -p` of a hundred ports in a row.
    Range,
    /// `docker network connect`.
    Connect,
    /// `docker network disconnect`.
    Disconnect,
    /// `docker rm -f`.
    Remove,
    /// Many at once by `docker run`: milliseconds a container.
    Crowd,
    /// `swctl attach`, or the commands.
    Attach,
    /// `swctl detach`, or the command.
    Detach,
    /// Many at once by those: milliseconds a namespace.
    AttachCrowd,
}

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    side: Side,
    task: Task,
    ms: f64,
}

/// All that was seen.
#[derive(Debug, Serialize)]
struct Run {
    machine: Machine,
    engine: String,
    rounds: u32,
    crowd: u32,
    samples: Vec<Sample>,
}

impl Run {
    fn note(&mut self, side: Side, task: Task, ms: f64) {
        eprintln!("  {side:?} {task:?}: {ms:.1} ms");
        self.samples.push(Sample { side, task, ms });
    }
}

/// Calls at once of those that come in a crowd.
const CALLERS: usize = 8;

fn main() -> ExitCode {
    let options = Options::parse();
    match prepare().and_then(|()| attempt(|| measure(options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(mut options: Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this makes network namespaces and needs root: use sudo");
    if options.quick {
        (options.rounds, options.crowd, options.crowds) = (1, CALLERS.try_into()?, 1);
    }
    let start = Instant::now();
    let mut run = Run {
        machine: Machine::here(CONGESTION_CONTROL),
        engine: engines::version(),
        rounds: options.rounds,
        crowd: options.crowd,
        samples: Vec::new(),
    };
    bare::measure(&mut run, options.crowds)?;
    go_on()?;
    engines::measure(&mut run, options.crowds)?;
    println!("{}", report::write(&options.out, &run)?);
    eprintln!("{:.0} s in all; written to {}", start.elapsed().as_secs_f64(), options.out.display());
    Ok(())
}

/// How long `f` takes, in milliseconds.
fn time<T>(f: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64() * 1e3
}
