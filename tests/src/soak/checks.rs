//! What must hold, whatever happens.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::process::{Background, s, wait_until};
use crate::site::{Container, Way};
use crate::world::World;

use super::Summary;

/// A ping between two containers that nothing is done to, restarts included, that pauses so long is stalled. How long the longest
/// pause was is told: on a machine with nothing else to do it is the start of swd.
const STALL: Duration = s(15);
/// What a warm process may grow by until it ends.
const GROWTH: u64 = 64 << 20;
/// Descriptors that may be more than at first: of extra TAP ports, of clients that are still there.
const DESCRIPTORS: usize = 64;
/// Looks at a process until it is warm.
const WARM: u32 = 6;

/// Watches one run.
#[derive(Debug)]
pub(super) struct Watch {
    _quiet: [Container; 2],
    ping: Background,
    /// Of the process that runs: looks at it, and what it took when it was warm.
    looks: u32,
    base: Option<(u64, usize)>,
    /// Frames that this process had received when it was looked at last.
    received: u64,
}

impl Watch {
    /// Two quiet containers that ping each other.
    #[track_caller]
    pub(super) fn start(world: &World) -> Self {
        let q1 = world.site.container("q1", Way::Attach, "172.18.0.101");
        let q2 = world.site.container("q2", Way::Tap, "172.18.0.102");
        let ping =
            q1.ns.start(&["ping", "-D", "-n", "-i", "0.01", "172.18.0.102"], &world.site.file("quiet.log"));
        wait_until("the quiet ones talk", s(10), || ping.log().contains(" ttl="));
        Self { _quiet: [q1, q2], ping, looks: 0, base: None, received: 0 }
    }

    /// The counters of this process end with it.
    #[track_caller]
    pub(super) fn before_restart(&mut self, world: &World, summary: &mut Summary) {
        let (received, _) = add_up(world);
        summary.frames += received;
        self.check_footprint(world, summary);
    }

    /// A new process.
    #[track_caller]
    pub(super) fn after_restart(&mut self, world: &World) {
        (self.looks, self.base, self.received) = (0, None, 0);
        assert_eq!(world.site.json(&["status"])["unjournalled"], 0);
    }

    /// Looks at everything once.
    #[track_caller]
    pub(super) fn look(&mut self, world: &mut World, summary: &mut Summary) {
        assert!(world.site.alive(), "swd has ended:\n{}", world.site.log());
        for _ in 0..5 {
            let (received, parked) = add_up(world);
            assert!(received >= self.received, "{received} frames after {}", self.received);
            self.received = received;
            summary.looks.0 += 1;
            summary.looks.1 = summary.looks.1.max(parked);
        }
        let log = world.site.log();
        assert!(!log.contains("panicked"), "a panic:\n{log}");
        assert_eq!(self.ping.wait(Duration::ZERO), None, "the ping has ended: {}", self.ping.log());
        self.looks += 1;
        self.check_footprint(world, summary);
    }

    /// Memory and descriptors of a warm process stay as they are.
    #[track_caller]
    fn check_footprint(&mut self, world: &World, summary: &mut Summary) {
        if self.looks < WARM {
            return;
        }
        let now = (world.site.rss(), descriptors(world.site.pid()));
        let base = *self.base.get_or_insert(now);
        if summary.footprint[0].0 == 0 {
            summary.footprint[0] = now;
        }
        summary.footprint[1] = now;
        assert!(now.0 < base.0 + GROWTH, "{} bytes in RAM, {} when warm", now.0, base.0);
        assert!(now.1 < base.1 + DESCRIPTORS, "{} descriptors, {} when warm", now.1, base.1);
    }

    /// At the end, with everything extra gone.
    #[track_caller]
    pub(super) fn finish(mut self, world: &mut World, summary: &mut Summary) {
        self.look(world, summary);
        summary.frames += self.received;
        summary.pause = longest_pause(&self.ping.log());
        assert!(
            summary.pause < STALL,
            "two quiet containers did not hear each other for {:?}",
            summary.pause
        );
        let all = fs::read_to_string(world.site.file("earlier.log")).unwrap_or_default();
        assert!(!all.contains("panicked"), "a panic:\n{all}");
        // Interfaces of extra containers are gone from the switch namespace.
        let left: Vec<String> = world
            .site
            .switch()
            .links()
            .into_iter()
            .filter(|l| l.starts_with("v-x") || l.starts_with('x'))
            .collect();
        assert!(left.is_empty(), "interfaces that nobody needs any more: {left:?}");
        wait_until("what waited has gone on or was given up", s(20), || add_up(world).1 == 0);
    }
}

/// Each frame that was received is in one place. Gives how many were received, and how many are parked.
///
/// # Panics
/// When one is not.
#[track_caller]
fn add_up(world: &World) -> (u64, u64) {
    let status = world.site.json(&["status"]);
    let number = |key: &str| status[key].as_u64().expect(key);
    let dropped: u64 =
        status["dropped"].as_object().expect("reasons").values().filter_map(Value::as_u64).sum();
    let places = number("forwarded") + number("answered") + dropped + number("parked");
    assert_eq!(number("received"), places, "received = forwarded + answered + dropped + parked: {status}");
    (number("received"), number("parked"))
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("swd runs").count()
}

/// Of what `ping -D` wrote.
fn longest_pause(log: &str) -> Duration {
    let answers = log.lines().filter(|line| line.contains(" ttl="));
    let times = answers.filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse::<f64>().ok());
    let times: Vec<f64> = times.collect();
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    Duration::from_secs_f64(longest.max(0.0))
}
