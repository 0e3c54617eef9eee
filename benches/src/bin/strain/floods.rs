//! One container at full blast, and what it costs two others that talk with each other.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use benches::attempt::go_on;
use benches::figures::Figures;
use benches::load::FloodKind;
use benches::machine::families;
use benches::measure::Meter;
use benches::ping::round_trips;
use benches::world::{C1, World};
use tests::process::{Background, s, wait_until};
use tests::site::{Container, Way};

use crate::Size;
use crate::report::Table;

/// Seconds until a flood is under way: what it sends is made first.
const WARM_UP: Duration = Duration::from_millis(700);
/// Seconds after which a flood ends in any case.
const LIMIT: &str = "60";

pub(crate) fn storm_table() -> Table {
    Table::new(
        "Storm control",
        "A ping each millisecond between two containers, while a third sends broadcasts as fast as it can; without a limit, and with \
         `--storm 1000pps` at its port, from when the two reach each other again.",
        "with storm control p99 below 1 ms",
        &[
            ("p50_us", "p50 µs"),
            ("p99_us", "p99 µs"),
            ("lost", "lost"),
            ("flood_per_s", "frames/s of the flood"),
        ],
    )
}

pub(crate) fn storm(size: &Size, table: &mut Table) -> Result<()> {
    let (world, third) = three()?;
    for _ in 0..size.rounds {
        settle(&world);
        table.add("quiet", ping(size, &world)?, None);
        let flood = Flood::start(&size.meter, &world, &third, FloodKind::Broadcast)?;
        table.add("storm", flood.beside(&world, || ping(size, &world))?, None);
        world.site.ctl(&["port", "set", "third", "--storm", "1000pps"]);
        settle(&world);
        let limited = flood.beside(&world, || ping(size, &world))?;
        let bar = |f: &Figures| f.get("p99_us").is_some_and(|p99| p99 < 1000.0);
        table.add("storm, limited", limited, Some(bar));
        world.site.ctl(&["port", "set", "third", "--storm", "none"]);
    }
    Ok(())
}

pub(crate) fn table() -> Table {
    Table::new(
        "One container at full blast",
        "A ping each millisecond, then a TCP stream, between two containers, while a third sends what the row says as fast as it can: without limits \
         of any kind at its port, and without a spoof guard. `× quiet` is against the same without the flood.",
        "round trip p99 below 3 × that without, throughput at least 0.5 × the fair share, which is half of what the two have alone",
        &[
            ("p50_us", "p50 µs"),
            ("p99_us", "p99 µs"),
            ("p99_to_quiet", "p99, × quiet"),
            ("lost", "lost"),
            ("gbit_s", "Gbit/s"),
            ("share", "× fair share"),
            ("flood_per_s", "frames/s of the flood"),
        ],
    )
}

pub(crate) fn run(size: &Size, table: &mut Table) -> Result<()> {
    const KINDS: [(FloodKind, &str); 5] = [
        (FloodKind::Syn, "SYNs, each a new connection to the outside"),
        (FloodKind::Udp, "datagrams, each a new flow to the outside"),
        (FloodKind::Fragments, "first fragments without the rest"),
        (FloodKind::Arp, "ARP requests for every address"),
        (FloodKind::Macs, "frames from and to ever new MACs"),
    ];
    let (world, third) = three()?;
    for _ in 0..size.rounds {
        settle(&world);
        let quiet = both(size, &world)?;
        let of_quiet = |name: &str| quiet.get(name).unwrap_or(f64::NAN);
        let (p99, gbit_s) = (of_quiet("p99_us"), of_quiet("gbit_s"));
        table.add("quiet", quiet, None);
        for (kind, what) in KINDS {
            settle(&world);
            let flood = Flood::start(&size.meter, &world, &third, kind)?;
            let mut figures = flood.beside(&world, || beside_flood(size, &world))?;
            drop(flood);
            let value = |name: &str| figures.get(name).unwrap_or(f64::NAN);
            let (to_quiet, share) = (value("p99_us") / p99, value("gbit_s") / (gbit_s / 2.0));
            figures.set("p99_to_quiet", to_quiet);
            figures.set("share", share);
            table.add(
                what,
                figures,
                Some(|f| {
                    let holds = |name, bar: fn(f64) -> bool| f.get(name).is_some_and(bar);
                    holds("p99_to_quiet", |v| v < 3.0) && holds("share", |v| v >= 0.5)
                }),
            );
        }
    }
    Ok(())
}

/// A world with a third container, which means no good.
fn three() -> Result<(World, Container)> {
    let world = World::new(&[], "")?;
    let third = world.site.container("third", Way::PortAdd, "172.18.0.30");
    third.ns.pings("172.18.0.1");
    Ok((world, third))
}

/// Waits until the two reach each other again. A flood that keeps swd's ring full takes their ARP requests along; after three in
/// a row the kernel holds back what they send, and asks once a second. That goes on for up to a second after the flood.
fn settle(world: &World) {
    wait_until("the two reach each other again", s(10), || world.c2.ns.pings(C1));
}

fn ping(size: &Size, world: &World) -> Result<Figures> {
    round_trips(&world.c2.ns, C1, size.meter.seconds)
}

fn both(size: &Size, world: &World) -> Result<Figures> {
    let mut figures = ping(size, world)?;
    figures.set("gbit_s", stream(size, world)?);
    Ok(figures)
}

/// The same where nothing may get through: that is what the flood costs then. No ping waits longer than a second, and a stream
/// that cannot even begin has carried nothing.
fn beside_flood(size: &Size, world: &World) -> Result<Figures> {
    go_on()?;
    let failed = |what: &str, e: anyhow::Error| eprintln!("  no {what} beside the flood: {e:#}");
    let mut figures = ping(size, world).unwrap_or_else(|e| {
        failed("ping", e);
        Figures::from([("p50_us", 1e6), ("p99_us", 1e6), ("lost", 1.0)])
    });
    let carried = stream(size, world).unwrap_or_else(|e| {
        failed("stream", e);
        0.0
    });
    figures.set("gbit_s", carried);
    Ok(figures)
}

fn stream(size: &Size, world: &World) -> Result<f64> {
    let pids = families(&[world.site.pid()]);
    let figures = size.meter.bulk(world.between(&pids, 5201), 1)?;
    figures.get("gbit_s").context("a stream without a rate")
}

/// A flood that goes on until this is dropped.
struct Flood {
    _process: Background,
}

impl Flood {
    fn start(meter: &Meter, world: &World, third: &Container, kind: FloodKind) -> Result<Self> {
        let network = world.ask(|client| async move { client.network("default").await })?;
        let me = std::env::current_exe().context("the program's own path")?;
        let mut command = third.ns.command(&[]);
        command.arg(me).args(["load", "flood", "--kind", kind.name(), "--seconds", LIMIT]);
        command.args(["--mac", &third.mac(), "--address", &third.address, "--gateway", &network.gateway_mac]);
        let process = Background::start(&mut command, &meter.dir().join("flood.log"));
        thread::sleep(WARM_UP);
        Ok(Self { _process: process })
    }

    /// Measures beside it, and how many of its frames swd receives meanwhile: `flood_per_s`.
    fn beside(&self, world: &World, measure: impl FnOnce() -> Result<Figures>) -> Result<Figures> {
        let received = || world.ask(|client| async move { client.port("third").await });
        let (start, before) = (Instant::now(), received()?.rx_packets);
        let mut figures = measure()?;
        let count = received()?.rx_packets.saturating_sub(before);
        figures.set("flood_per_s", count as f64 / start.elapsed().as_secs_f64());
        Ok(figures)
    }
}
