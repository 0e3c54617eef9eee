//! The loads that run after each step.

use anyhow::Result;
use benches::figures::{Figures, Spread};
use benches::load::{Protocol, SMALL};
use benches::machine::families;
use benches::measure::{Cpus, Meter};
use benches::world::World;

/// How often each load runs at a point.
pub(crate) const ROUNDS: u32 = 3;

/// What the loads tell, in their order.
pub(crate) const LOADS: [&str; 4] = ["gbit_s", "rx_per_s", "p50_us", "per_s"];

/// The medians of what several runs of the same loads gave.
pub(crate) fn medians(rounds: &[Figures]) -> Figures {
    let mut figures = Figures::default();
    for name in LOADS.iter().chain(&["rss_mb"]) {
        let median = Spread::of(rounds.iter().filter_map(|f| f.get(name))).map(|spread| spread.median);
        figures.set(name, median.unwrap_or(f64::NAN));
    }
    figures
}

/// What the loads between the containers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loads {
    /// Bulk, datagrams, round trips and connections between containers.
    Between,
    /// The same from a container to the outside: what connections and publishes could slow down.
    Out,
}

/// Runs the loads [`ROUNDS`] times, and takes the medians of what [`once`] gives.
pub(crate) fn measure(world: &World, meter: &Meter, loads: Loads) -> Result<Figures> {
    let rounds: Result<Vec<_>> = (0..ROUNDS).map(|_| once(world, meter, loads)).collect();
    Ok(medians(&rounds?))
}

/// Runs the loads one after the other: [`LOADS`], `rss_mb`.
pub(crate) fn once(world: &World, meter: &Meter, loads: Loads) -> Result<Figures> {
    let pids = families(&[world.site.pid()]);
    let path = match loads {
        Loads::Between => world.between(&pids, 5201),
        Loads::Out => world.way_out(&pids, 5201),
    };
    let mut figures = Figures::from([("rss_mb", world.memory() / 1e6)]);
    path.client.pings(path.address);
    let all = [
        meter.bulk(path, 1)?,
        meter.datagrams(path, None, SMALL)?,
        meter.round_trips(path, Protocol::Udp, Cpus::Any)?,
        meter.connections(path)?,
    ];
    for (name, load) in LOADS.iter().zip(all) {
        figures.set(name, load.get(name).unwrap_or(f64::NAN));
    }
    Ok(figures)
}
