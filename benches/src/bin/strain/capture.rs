//! `swctl capture` at full rate: what it costs, and what it loses.

use anyhow::{Context as _, Result};
use benches::figures::Figures;
use benches::load::{Protocol, SMALL};
use benches::machine::families;
use benches::measure::{Cpus, Path};
use benches::world::{C1, World};
use nix::sys::signal::Signal;
use tests::process::{Background, s, wait_until};
use tests::site::Way;

use crate::Size;
use crate::report::Table;

pub(crate) fn table() -> Table {
    Table::new(
        "Capture",
        "Between two containers, without and with `swctl capture -w FILE`: of all that the network carries, and of a third container's port that sends \
         64-byte datagrams to a fourth as fast as it can.",
        "what is measured beside a capture is at least 0.9 × that without; losses are counted",
        &[
            ("without", "without"),
            ("with", "with"),
            ("ratio", "with/without"),
            ("captured", "frames captured"),
            ("lost", "lost by the capture"),
        ],
    )
}

pub(crate) fn run(size: &Size, table: &mut Table) -> Result<()> {
    let world = World::new(&[], "")?;
    let third = world.site.container("third", Way::PortAdd, "172.18.0.30");
    let fourth = world.site.container("fourth", Way::PortAdd, "172.18.0.40");
    third.ping(&fourth);
    world.c2.ping(&world.c1);
    let pids = families(&[world.site.pid()]);
    let path = world.between(&pids, 5201);
    let meter = &size.meter;
    let stream = || meter.bulk(path, 1)?.get("gbit_s").context("no stream");
    let datagrams = || meter.datagrams(path, None, SMALL)?.get("rx_per_s").context("no datagrams");
    let trips = || {
        let told = meter.round_trips(path, Protocol::Udp, Cpus::Any)?;
        told.get("p50_us").map(|p50| 1e6 / p50).context("no round trips")
    };
    let other = Path { server: &fourth.ns, client: &third.ns, address: "172.18.0.40", port: 5301, pids: &[] };
    for _ in 0..size.rounds {
        let all: [(&str, &dyn Fn() -> Result<f64>); 3] = [
            ("TCP Gbit/s, the network captured", &stream),
            ("datagrams/s, the network captured", &datagrams),
            ("round trips/s, the network captured", &trips),
        ];
        for (what, measure) in all {
            let without = measure()?;
            let capture = Capture::start(size, &world, &["network", "default"]);
            let with = measure();
            table.add(what, capture.end(without, with?)?, None);
        }
        let beside: [(&str, &dyn Fn() -> Result<f64>); 2] = [
            ("TCP Gbit/s beside a captured flood", &stream),
            ("round trips/s beside a captured flood", &trips),
        ];
        for (what, measure) in beside {
            let noise = Noise::start(size, other)?;
            let without = measure()?;
            let capture = Capture::start(size, &world, &["third"]);
            let with = measure();
            let figures = capture.end(without, with?)?;
            drop(noise);
            table.add(what, figures, Some(|f| f.get("ratio").is_some_and(|r| r >= 0.9)));
        }
    }
    world.c2.ns.pings(C1);
    Ok(())
}

/// Small datagrams from one container to another, until this is dropped.
struct Noise {
    _server: Background,
    _client: Background,
}

impl Noise {
    fn start(size: &Size, path: Path<'_>) -> Result<Self> {
        let me = std::env::current_exe().context("the program's own path")?;
        let port = path.port.to_string();
        let mut server = path.server.command(&[]);
        server.arg(&me).args([
            "load",
            "count",
            "--port",
            &port,
            "--limit",
            "60",
            "--warm-up",
            "0",
            "--seconds",
            "60",
        ]);
        let log = size.meter.dir().join("noise.log");
        drop(std::fs::remove_file(&log));
        let server = Background::start(&mut server, &log);
        wait_until("the receiver listens", s(20), || server.log().contains("ready"));
        let mut client = path.client.command(&[]);
        let to = format!("{}:{port}", path.address);
        client.arg(&me).args(["load", "blast", "--to", &to, "--seconds", "60"]);
        let client = Background::start(&mut client, &size.meter.dir().join("noise-client.log"));
        Ok(Self { _server: server, _client: client })
    }
}

/// A capture to a file.
struct Capture {
    swctl: Background,
    file: std::path::PathBuf,
}

impl Capture {
    fn start(size: &Size, world: &World, what: &[&str]) -> Self {
        let file = size.meter.dir().join("capture.pcapng");
        let log = size.meter.dir().join("capture.log");
        for path in [&file, &log] {
            drop(std::fs::remove_file(path));
        }
        let mut command = world.site.swctl_command(&[&["capture"], what].concat());
        let swctl = Background::start(command.arg("-w").arg(&file), &log);
        // Its head is written as the capture begins.
        wait_until("the capture has begun", s(10), || file.metadata().is_ok_and(|m| m.len() > 0));
        Self { swctl, file }
    }

    /// Ends it: what was measured without and with it, and what it tells.
    fn end(mut self, without: f64, with: f64) -> Result<Figures> {
        self.swctl.signal(Signal::SIGINT);
        self.swctl.wait(s(20)).context("swctl capture does not end on SIGINT")?;
        drop(std::fs::remove_file(&self.file));
        let log = self.swctl.log();
        // "N frames captured, M lost"
        let told =
            log.lines().find(|l| l.contains("frames captured")).context("the capture tells nothing")?;
        let mut numbers = told.split(' ').filter_map(|word| word.parse::<f64>().ok());
        let (captured, lost) = (numbers.next().unwrap_or(f64::NAN), numbers.next().unwrap_or(f64::NAN));
        Ok(Figures::from([
            ("without", without),
            ("with", with),
            ("ratio", with / without),
            ("captured", captured),
            ("lost", lost),
        ]))
    }
}
