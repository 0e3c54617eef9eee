//! Runs swd and its rivals side by side, interleaved, and writes down what came out.
//!
//! Every round goes once through all rivals; each is put into fresh namespaces, measured on every road that it knows, and
//! torn down. What fails is a gap in the tables and a line at their end; the run goes on. See `docs/benchmarks/README.md`.

mod report;
mod rivals;
mod subjects;
mod topology;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use benches::attempt::{attempt, go_on, prepare};
use benches::congestion::CONGESTION_CONTROL;
use benches::figures::{Figures, short};
use benches::load::Load;
use benches::machine::resident;
use benches::measure::Meter;
use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::rivals::{Rival, missing};
use crate::subjects::{Road, Size, Subject};
use crate::topology::{C1, OUTSIDE, Topology};

/// Runs swd and its rivals side by side and writes tables and plots.
#[derive(Debug, Parser)]
#[command(name = "compare", version, args_conflicts_with_subcommands = true)]
struct Options {
    /// Rounds through all rivals
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds that a load lasts
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Rivals, separated by commas; `swd` stands for swd-veth, swd-user and swd-tap
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Loads, separated by commas: tcp1, udp, crr, ...
    #[arg(long, value_delimiter = ',')]
    loads: Vec<String>,
    /// Roads, separated by commas: c2c, out, pub, local
    #[arg(long, value_delimiter = ',')]
    roads: Vec<String>,
    /// One short round: to see that all works, not to quote from
    #[arg(long)]
    quick: bool,
    /// UDP flows of the load `flows`
    #[arg(long, default_value_t = 200_000)]
    flows: u32,
    /// What TCP does about congestion, at every end and in the rivals' own sockets
    #[arg(long, default_value = CONGESTION_CONTROL)]
    congestion: String,
    /// An argument for swd, e.g. --swd=--workers=2
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    swd: Vec<String>,
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

/// One measurement, as it is kept.
#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    rival: &'static str,
    round: u32,
    road: &'static str,
    load: &'static str,
    figures: Figures,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A rival as the report shows it.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    name: &'static str,
    about: &'static str,
    version: String,
    missing: Vec<&'static str>,
}

/// All that was seen.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    machine: benches::machine::Machine,
    rounds: u32,
    seconds: f64,
    rivals: Vec<Shown>,
    samples: Vec<Sample>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match options.hidden {
        Some(Hidden::Load(load)) => load.run(),
        None => prepare().and_then(|()| attempt(|| compare(options))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Rivals that are measured, and subjects.
struct Plan {
    rivals: Vec<Box<dyn Rival>>,
    subjects: Vec<Subject>,
    size: Size,
    congestion: String,
}

fn compare(mut options: Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this makes network namespaces and needs root: use sudo");
    let mut size = Size { flows: options.flows, flows_limit: 10.0 };
    if options.quick {
        (options.rounds, options.seconds) = (1, options.seconds.min(0.4));
        size = Size { flows: options.flows.min(20_000), flows_limit: 3.0 };
    }
    ensure!(options.rounds > 0 && options.seconds > 0.0, "--rounds and --seconds must be more than 0");
    let plan = plan(&options, size)?;
    let mut run = Run {
        machine: benches::machine::Machine::here(&options.congestion),
        rounds: options.rounds,
        seconds: options.seconds,
        rivals: plan.rivals.iter().map(|r| shown(r.as_ref())).collect(),
        samples: Vec::new(),
    };
    for shown in run.rivals.iter().filter(|r| !r.missing.is_empty()) {
        let packages = shown.missing.join(", ");
        eprintln!("MISSING: {} is not measured: install the Debian package {packages}", shown.name);
    }
    let meter = Meter::new(options.seconds)?;
    let start = Instant::now();
    for round in 1..=options.rounds {
        for (rival, shown) in plan.rivals.iter().zip(&run.rivals) {
            if !shown.missing.is_empty() {
                continue;
            }
            let begun = Instant::now();
            let samples = &mut run.samples;
            let done = attempt(|| one(rival.as_ref(), round, &plan, &meter, samples));
            go_on()?;
            if let Err(e) = done {
                eprintln!("FAILED: {}: {e:#}", rival.name());
                run.samples.push(Sample {
                    rival: rival.name(),
                    round,
                    road: "all",
                    load: "set-up",
                    figures: Figures::default(),
                    error: Some(format!("{e:#}")),
                });
            }
            let took = begun.elapsed().as_secs_f64();
            eprintln!("round {round}/{}: {} took {took:.0} s", options.rounds, rival.name());
        }
    }
    let text = report::write(&options.out, &run, &plan.subjects)?;
    println!("{text}");
    eprintln!("{:.0} s in all; written to {}", start.elapsed().as_secs_f64(), options.out.display());
    Ok(())
}

fn plan(options: &Options, size: Size) -> Result<Plan> {
    let wanted = |list: &[String], name: &str| {
        let matches =
            |w: &String| name == w || name.strip_prefix(w.as_str()).is_some_and(|r| r.starts_with('-'));
        list.is_empty() || list.iter().any(matches)
    };
    let exact = |list: &[String], name: &str| list.is_empty() || list.iter().any(|w| w == name);
    let rivals: Vec<_> =
        rivals::all(&options.swd).into_iter().filter(|r| wanted(&options.only, r.name())).collect();
    let subjects: Vec<_> = subjects::all()
        .filter(|s| exact(&options.roads, s.road.key()) && exact(&options.loads, s.key))
        .collect();
    ensure!(
        !rivals.is_empty(),
        "--only names no rival: bridge, swd, ovs, vde, slirp4netns, pasta, docker-proxy, veth"
    );
    ensure!(!subjects.is_empty(), "--loads and --roads leave nothing to measure");
    Ok(Plan { rivals, subjects, size, congestion: options.congestion.clone() })
}

fn shown(rival: &dyn Rival) -> Shown {
    let missing = missing(rival);
    let version = if missing.is_empty() {
        attempt(|| rival.version()).unwrap_or_else(|e| format!("unknown: {e:#}"))
    } else {
        String::new()
    };
    Shown { name: rival.name(), about: rival.about(), version, missing }
}

/// One rival in one round.
fn one(rival: &dyn Rival, round: u32, plan: &Plan, meter: &Meter, samples: &mut Vec<Sample>) -> Result<()> {
    go_on()?;
    let mut note = |road, load, figures, error| {
        samples.push(Sample { rival: rival.name(), round, road, load, figures, error });
    };
    // Each rival has a folder of its own, so that what is left of one is not taken for another's.
    let folder = meter.dir().join(format!("{}-{round}", rival.name()));
    fs::create_dir_all(&folder).context("a folder for the rival")?;
    let topology = Topology::new(&folder, &plan.congestion);
    let running = attempt(|| rival.set_up(&topology)).with_context(|| last_words(&folder))?;
    warm_up(rival, &topology);
    let pids = running.pids();
    note("all", "idle", Figures::from([("rss_bytes", resident(&pids))]), None);
    for subject in plan.subjects.iter().filter(|s| rival.roads().contains(&s.road)) {
        let done = attempt(|| subject.measure(meter, plan.size, &topology, &pids));
        go_on()?;
        let road = subject.road.key();
        let (figures, error) = match done {
            Ok(figures) => {
                let [column, ..] = subject.columns() else { continue };
                let value = figures.get(column.figure).map_or_else(|| "?".to_owned(), short);
                eprintln!("  {:12} {road:5} {:12} {value:>8} {}", rival.name(), subject.key, column.title);
                (figures, None)
            }
            Err(e) => {
                eprintln!("  {:12} {road:5} {:12} FAILED: {e:#}", rival.name(), subject.key);
                (Figures::default(), Some(format!("{e:#}")))
            }
        };
        note(road, subject.key, figures, error);
    }
    note("all", "loaded", Figures::from([("rss_bytes", resident(&pids))]), None);
    Ok(())
}

/// The last line of each log of this rival's.
fn last_words(folder: &Path) -> String {
    let mut words = "set-up".to_owned();
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|f| f.path());
    for path in files.filter(|p| p.extension().is_some_and(|e| e == "log")) {
        if let Some(last) = fs::read_to_string(&path).unwrap_or_default().lines().last() {
            let _ = write!(words, " [{}: {last}]", path.file_name().unwrap_or_default().display());
        }
    }
    words
}

/// Neighbors and MAC addresses are to be known before anything is measured. Who does not answer pings is seen later.
fn warm_up(rival: &dyn Rival, topology: &Topology) {
    if rival.roads().contains(&Road::Between) {
        topology.c2.pings(C1);
    }
    if rival.roads().contains(&Road::Out) {
        topology.c1.pings(OUTSIDE);
    }
}
