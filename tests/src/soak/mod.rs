//! A soak: what users, administrators and accidents do to swd, at random and for as long as one likes, under traffic, while what
//! must always hold is looked at (`make soak`; a short one is a test).
//!
//! The same seed gives the same faults in the same order; how they meet with the traffic is the machine's. Connections through
//! masquerade and publish stay open all along, over every restart. What may come and go is called *extra*: containers and publishes
//! that no connection of those needs.

mod checks;
mod extras;
mod faults;
mod garbage;
mod traffic;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::noise::Random;
use crate::process::ms;
use crate::world::World;

use checks::Watch;
use extras::Extras;
use faults::Fault;
use garbage::Garbage;
use traffic::Traffic;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of the numbers that everything random is made of.
    pub seed: u64,
    /// How long.
    pub length: Duration,
    /// The longest pause between two faults.
    pub pause: Duration,
    /// Where swd's logs are kept if something breaks.
    pub logs: PathBuf,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Frames that the switch received, over all its processes.
    pub frames: u64,
    /// Frames, API requests that mean nothing.
    pub garbage: (u64, u64),
    /// Looks at the books of frames, and the most that were parked in one.
    pub looks: (u64, u64),
    /// Connections that were open all along, and questions answered on them.
    pub connections: (usize, u64),
    /// The longest pause of a ping between two containers that nothing was done to.
    pub pause: Duration,
    /// Bytes in RAM, descriptors, at the first and at the last look at a warm process.
    pub footprint: [(u64, usize); 2],
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} frames; {} frames and {} requests of garbage",
            self.frames, self.garbage.0, self.garbage.1
        )?;
        writeln!(f, "books balanced {} times, at most {} parked", self.looks.0, self.looks.1)?;
        let (open, answered) = self.connections;
        writeln!(f, "{open} connections kept, {answered} questions answered on them")?;
        writeln!(f, "longest pause of a ping between quiet containers: {:?}", self.pause)?;
        let [begin, end] =
            self.footprint.map(|(bytes, fds)| format!("{} MiB, {fds} descriptors", bytes >> 20));
        writeln!(f, "swd at the begin: {begin}; at the end: {end}")?;
        let faults: u64 = self.faults.values().sum();
        write!(f, "{faults} faults:")?;
        self.faults.iter().try_for_each(|(name, n)| write!(f, " {name} {n},"))
    }
}

/// Copies the logs to where they stay, should something break.
#[derive(Debug)]
struct KeepLogs {
    from: PathBuf,
    to: PathBuf,
}

impl Drop for KeepLogs {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let _ = fs::create_dir_all(&self.to);
        for file in fs::read_dir(&self.from).into_iter().flatten().flatten() {
            if file.path().extension().is_some_and(|e| e == "log") {
                let _ = fs::copy(file.path(), self.to.join(file.file_name()));
            }
        }
    }
}

/// Soaks.
///
/// # Panics
/// With the first thing that does not hold.
#[track_caller]
pub fn run(options: &Options) -> Summary {
    let mut random = Random(options.seed);
    let mut world = World::new(&[]);
    let _logs = KeepLogs { from: world.site.file("."), to: options.logs.clone() };
    world.site.ctl(&["network", "add", "other", "--subnet", "172.19.0.0/16"]);
    let mut traffic = Traffic::start(&world);
    let mut watch = Watch::start(&world);
    let mut extras = Extras::default();
    let mut garbage = Garbage::default();
    let mut summary = Summary::default();
    let end = Instant::now() + options.length;
    // Each kind once, in a random order, then any: a short run has seen all of them, too.
    let mut due: Vec<Fault> = Vec::new();
    while Instant::now() < end {
        if due.is_empty() {
            due = Fault::ALL.to_vec();
        }
        let fault = due.swap_remove(random.below(due.len()));
        eprintln!("{:7.1} s left: {fault:?}", end.saturating_duration_since(Instant::now()).as_secs_f32());
        if fault.is_restart() {
            watch.before_restart(&world, &mut summary);
        }
        fault.happen(&mut random, &mut world, &mut extras, &mut garbage);
        *summary.faults.entry(fault.name()).or_default() += 1;
        if fault.is_restart() {
            watch.after_restart(&world);
        }
        traffic.goes_on();
        extras.check(&world);
        watch.look(&mut world, &mut summary);
        let longest = usize::try_from(options.pause.as_millis()).unwrap_or(usize::MAX).max(1);
        thread::sleep(ms(random.below(longest) as u64));
    }
    extras.clear(&world);
    traffic.goes_on();
    watch.finish(&mut world, &mut summary);
    summary.connections = traffic.finish();
    summary.garbage = garbage.sent();
    drop(world.wan);
    summary
}

/// Where logs are kept by default.
pub fn logs(seed: u64) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/soak/{seed}"))
}
