//! Rates that are set, against those that are measured.

use anyhow::{Context as _, Result};
use benches::figures::Figures;
use benches::load::SMALL;
use benches::machine::families;
use benches::world::World;

use crate::Size;
use crate::report::Table;

/// What TCP carries in a full frame: a payload of 1448 bytes in 1514, from the Ethernet header on, with timestamps (RFC 7323).
const TCP_OVERHEAD: f64 = 1514.0 / 1448.0;
/// Payload of the datagrams that are measured in bits.
const DATAGRAM: usize = 1400;
/// Headers before it: Ethernet, IPv4, UDP.
const HEADERS: usize = 14 + 20 + 8;

/// What is sent, and how much of it.
#[derive(Clone, Copy)]
enum Rate {
    /// Mbit/s.
    Tcp(u32),
    /// Mbit/s.
    Udp(u32),
    /// Frames a second.
    Frames(u32),
}

/// Where the limit is.
#[derive(Clone, Copy)]
enum Limit {
    /// At the sender's port.
    In,
    /// At the receiver's port.
    Out,
}

pub(crate) fn table() -> Table {
    Table::new(
        "Rate limits",
        "A limit at the sender's port (in) or the receiver's (out) of two containers; what arrives, counted in frames from the Ethernet header on.",
        "within 5 % of what is set",
        &[("set", "set"), ("measured", "measured"), ("ratio", "measured/set")],
    )
}

pub(crate) fn run(size: &Size, table: &mut Table) -> Result<()> {
    let world = World::new(&[], "")?;
    let rates = [
        Rate::Tcp(10),
        Rate::Tcp(100),
        Rate::Tcp(1000),
        Rate::Udp(10),
        Rate::Udp(100),
        Rate::Udp(1000),
        Rate::Frames(1_000),
        Rate::Frames(50_000),
    ];
    for rate in if size.quick { &rates[1..2] } else { &rates[..] } {
        for limit in [Limit::In, Limit::Out] {
            let (what, figures) = measure(size, &world, *rate, limit)?;
            table.add(&what, figures, Some(|f| f.get("ratio").is_some_and(|r| (r - 1.0).abs() <= 0.05)));
        }
    }
    Ok(())
}

fn measure(size: &Size, world: &World, rate: Rate, limit: Limit) -> Result<(String, Figures)> {
    let (port, way, option) = match limit {
        Limit::In => ("c2", "in", "--rate-in"),
        Limit::Out => ("c1", "out", "--rate-out"),
    };
    let (words, name) = match rate {
        Rate::Tcp(n) => (format!("{n}mbit"), format!("TCP, {n} Mbit/s, {way}")),
        Rate::Udp(n) => (format!("{n}mbit"), format!("UDP, {n} Mbit/s, {way}")),
        Rate::Frames(n) => (format!("{n}pps"), format!("UDP, {n} frames/s, {way}")),
    };
    world.site.ctl(&["port", "set", port, option, &words]);
    let pids = families(&[world.site.pid()]);
    let path = world.between(&pids, 5201);
    path.client.pings(path.address);
    let received = |size_of: usize| {
        let figures = size.meter.datagrams(path, None, size_of)?;
        figures.get("rx_per_s").context("nothing arrived")
    };
    let bits = |n: u32| f64::from(n) * 1e6;
    let done = match rate {
        Rate::Tcp(n) => {
            let figures = size.meter.bulk(path, 1)?;
            let payload = figures.get("gbit_s").context("nothing arrived")? * 1e9;
            Ok((bits(n), payload * TCP_OVERHEAD))
        }
        Rate::Udp(n) => received(DATAGRAM).map(|f| (bits(n), f * ((DATAGRAM + HEADERS) * 8) as f64)),
        Rate::Frames(n) => received(SMALL).map(|frames| (f64::from(n), frames)),
    };
    world.site.ctl(&["port", "set", port, option, "none"]);
    let (set, measured) = done?;
    Ok((name, Figures::from([("set", set), ("measured", measured), ("ratio", measured / set)])))
}
