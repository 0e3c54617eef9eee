//! A ping each millisecond: what a container's user feels, with the kernel's stack at both ends.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::netns::Namespace;
use tests::process::{Background, run, wait_until};

use crate::attempt::go_on;
use crate::figures::Figures;
use crate::load::percentiles;

/// Seconds between two pings, for ping(8).
const INTERVAL: &str = "0.001";
/// Answers before a ping counts as under way.
const SETTLED: usize = 200;

/// Pings for some seconds: `p50_us`, `p99_us`, `p999_us`, and `lost`, the part that was not answered in a second.
///
/// # Errors
/// When nothing is answered.
pub fn round_trips(from: &Namespace, to: &str, seconds: f64) -> Result<Figures> {
    go_on()?;
    let count = (seconds * 1000.0).ceil();
    let words = ["ping", "-n", "-W1", "-i", INTERVAL, "-c", &count.to_string(), to];
    let out = run(&mut from.command(&words), Duration::from_secs_f64(seconds * 4.0 + 10.0));
    let times: Vec<f64> = out
        .stdout
        .lines()
        .filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok())
        .collect();
    ensure!(!times.is_empty(), "no ping was answered: {}", out.stderr.trim());
    let lost = 1.0 - times.len() as f64 / count;
    let mut figures = percentiles(times.into_iter().map(nanoseconds).collect());
    figures.set("lost", lost.max(0.0));
    Ok(figures)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "of seconds at most; `as` cuts what is beyond"
)]
fn nanoseconds(milliseconds: f64) -> u32 {
    (milliseconds * 1e6) as u32
}

/// A ping that goes on, and shows pauses.
#[derive(Debug)]
pub struct Watch(Background);

impl Watch {
    /// Starts one; its answers are kept in a file.
    pub fn start(from: &Namespace, to: &str, log: &Path) -> Self {
        // What an earlier one wrote is not its.
        drop(std::fs::remove_file(log));
        let watch = Self(from.start(&["ping", "-D", "-n", "-i", INTERVAL, to], log));
        watch.goes_on();
        watch
    }

    /// Waits until answers come, and have come for a while.
    pub fn goes_on(&self) {
        let before = self.answers().len();
        wait_until("the ping goes on", Duration::from_secs(20), || self.answers().len() > before + SETTLED);
    }

    /// When answers came, in seconds since 1970.
    fn answers(&self) -> Vec<f64> {
        let log = self.0.log();
        let answers = log.lines().filter(|line| line.contains(" ttl="));
        answers.filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse().ok()).collect()
    }

    /// Answers so far.
    pub fn count(&self) -> usize {
        self.answers().len()
    }

    /// The longest time between two answers from that one on, in milliseconds.
    ///
    /// # Errors
    /// When there were no two.
    pub fn longest_gap(&self, from: usize) -> Result<f64> {
        let times = self.answers();
        let times = times.get(from.saturating_sub(1)..).unwrap_or_default();
        let longest = times.windows(2).map(|pair| pair[1] - pair[0]).reduce(f64::max);
        Ok(longest.context("no ping was answered")? * 1e3)
    }
}
