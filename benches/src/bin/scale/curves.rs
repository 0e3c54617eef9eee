//! What grows.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use benches::figures::Figures;
use benches::flow::{Flows, scattered};
use benches::load::FLOW_PORTS;
use benches::machine::{families, resident};
use benches::measure::Meter;
use benches::world::{C1, World};
use ctl::api::{NetworkSpec, PortSpec, PublishSpec};
use nat::Time;
use switch::sys::mmsg::Sender;
use switch::sys::packet::PacketSocket;
use tests::netns::Namespace;
use tests::process::{run, s};

use crate::world::{LOADS, Loads, measure, medians, once};

/// Between containers every frame is to cross the process: what the kernel forwards for it, swd cannot slow down.
const IN_PROCESS: &str = "fast_path = false\n";

/// Something that grows, and is measured at each size.
pub(crate) trait Subject {
    /// Grows to a size, with what that cost; none when it could not before `end`.
    fn grow_to(&mut self, size: u32, end: Instant) -> Result<Option<Figures>>;

    /// What it does now.
    fn measure(&mut self, meter: &Meter) -> Result<Figures>;
}

/// A curve to draw.
pub(crate) struct Growing {
    /// Short name.
    pub(crate) name: &'static str,
    /// What the size is.
    pub(crate) against: &'static str,
    /// What is seen, in a sentence.
    pub(crate) about: &'static str,
    /// The sizes.
    pub(crate) sizes: &'static [u32],
    /// Starts with nothing.
    pub(crate) start: fn() -> Result<Box<dyn Subject>>,
}

/// All curves.
pub(crate) fn all() -> [Growing; 8] {
    [
        Growing {
            name: "ports",
            against: "ports",
            about: "Ports on veth pairs, all up; loads between two of them, in turn with those of another swd that keeps its two. `add_ms` is the time to add one by the API, \
                    `start_s` from starting swd to `ready` with all of them in its state.",
            sizes: &[2, 100, 1000],
            start: || Ports::start(IN_PROCESS),
        },
        Growing {
            name: "ports-as-shipped",
            against: "ports",
            about: "The same with the configuration that swd has unless told otherwise: what is busy is the kernel's to forward.",
            sizes: &[2, 1000],
            start: || Ports::start(""),
        },
        Growing {
            name: "fdb",
            against: "MAC addresses",
            about: "MAC addresses behind one port, learned from frames; loads between two others.",
            sizes: &[10, 1_000, 10_000, 100_000],
            start: || {
                let config = "fast_path = false\n[fdb]\nmax_entries = 131072\nmax_per_port = 131000\n";
                let world = World::new(&[], config)?;
                let crowd = world.site.container("crowd", tests::site::Way::PortAdd, "172.18.0.30");
                Ok(Box::new(Stations { world, crowd, count: 0 }))
            },
        },
        Growing {
            name: "flows",
            against: "connections",
            about: "UDP connections of one container through the daemon; loads from the container to the outside beside \
                    them. One port may have 65,536 connections and open 20,000 a second.",
            sizes: &[64, 6_400, 32_000, 60_800],
            start: || Ok(Box::new(Through { world: World::new(&[], "")?, count: 0 })),
        },
        Growing {
            name: "connections",
            against: "connections",
            about: "Connections in the library alone (`nat`): no switch, no sockets. `hit_ns` is a packet of a known \
                    connection in an order that the cache does not know, `expire_step_us` the longest call of `expire` with \
                    the budget of a worker.",
            sizes: &[1_000, 10_000, 100_000, 1_000_000],
            start: || Ok(Box::new(Table::default())),
        },
        Growing {
            name: "publishes",
            against: "published ports",
            about: "Ports published one by one by the API; loads from a container to the outside beside them.",
            sizes: &[1, 10, 100, 1_000, 10_000],
            start: || Ok(Box::new(Publishes { world: World::new(&[], "")?, count: 0 })),
        },
        Growing {
            name: "networks",
            against: "networks",
            about: "Networks, each with its host end; loads between two containers of one.",
            sizes: &[1, 10, 100],
            start: || Ok(Box::new(Networks { world: World::new(&[], IN_PROCESS)?, count: 1 })),
        },
        Growing {
            name: "workers",
            against: "workers",
            about: "Worker threads; loads between two containers, with four TCP streams besides.",
            sizes: &[1, 2],
            start: || Ok(Box::new(Workers { world: None })),
        },
    ]
}

struct Ports {
    world: World,
    /// With two ports all the time: what a machine does over minutes must not be taken for what ports do.
    few: World,
    crowd: Namespace,
    count: u32,
}

impl Ports {
    fn start(config: &str) -> Result<Box<dyn Subject>> {
        let [world, few] = [World::new(&[], config)?, World::new(&[], config)?];
        Ok(Box::new(Self { world, few, crowd: Namespace::new(), count: 2 }))
    }
}

impl Subject for Ports {
    fn grow_to(&mut self, size: u32, end: Instant) -> Result<Option<Figures>> {
        let new: Vec<u32> = (self.count..size).collect();
        self.crowd.run(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
        let (mut here, mut there) = (String::new(), String::new());
        for n in &new {
            writeln!(
                here,
                "link add n{n} type veth peer name p{n} netns {}\nlink set n{n} up",
                self.crowd.name()
            )?;
            writeln!(there, "link set p{n} up")?;
        }
        for (ns, lines) in [(&self.world.site.host, here), (&self.crowd, there)] {
            let script = self.world.site.file("links.batch");
            fs::write(&script, lines).context("a batch for ip")?;
            let words = ["-n", ns.name(), "-batch", script.to_str().context("a path in UTF-8")?];
            run(Command::new("ip").args(words), s(120)).ok();
        }
        let start = Instant::now();
        for n in &new {
            if Instant::now() > end {
                return Ok(None);
            }
            let spec: PortSpec = serde_json::from_value(serde_json::json!({"ifname": format!("n{n}")}))?;
            self.world.ask(|client| async move { client.add_port(&spec).await })?;
        }
        let each = start.elapsed().as_secs_f64() * 1e3 / f64::from(size.saturating_sub(self.count).max(1));
        self.count = size;
        let start = self.world.restart();
        let mut figures = Figures::from([("start_s", start)]);
        if !new.is_empty() {
            figures.set("add_ms", each);
        }
        Ok(Some(figures))
    }

    fn measure(&mut self, meter: &Meter) -> Result<Figures> {
        const TURNS: u32 = 7;
        let (mut many, mut few) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            few.push(once(&self.few, meter, Loads::Between)?);
            many.push(once(&self.world, meter, Loads::Between)?);
        }
        let (mut figures, few) = (medians(&many), medians(&few));
        let against = ["gbit_s_to_few", "rx_per_s_to_few", "p50_us_to_few", "per_s_to_few"];
        for (name, ratio) in LOADS.iter().zip(against) {
            let [many, few] = [&figures, &few].map(|f| f.get(name).unwrap_or(f64::NAN));
            figures.set(ratio, many / few);
        }
        Ok(figures)
    }
}

struct Stations {
    world: World,
    crowd: tests::site::Container,
    count: u32,
}

impl Subject for Stations {
    fn grow_to(&mut self, size: u32, end: Instant) -> Result<Option<Figures>> {
        let from = self.count;
        // To a station that is known, so that nothing is flooded: the first container.
        let to = self.world.c1.mac();
        let to: switch::mac::Mac = to.parse().ok().context("a MAC address")?;
        self.crowd.ns.enter(|| -> Result<()> {
            let socket = PacketSocket::open_unbound()?;
            let ifindex = nix::net::if_::if_nametoindex("eth0")?;
            let mut sender = Sender::new();
            for first in (from..size).step_by(256) {
                let frames: Vec<Vec<u8>> = (first..size.min(first + 256))
                    .map(|n| {
                        let [_, a, b, c] = n.to_be_bytes();
                        // Offload header, Ethernet header with the EtherType for experiments, some payload.
                        [&[0; 10][..], &to.0, &[6, 0, 0, a, b, c], &[0x88, 0xb5], &[0; 46]].concat()
                    })
                    .collect();
                sender.send(&socket, frames.iter().map(|f| (f.as_slice(), ifindex)), |_, _| {});
                // swd is to learn, not to drop.
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        })?;
        loop {
            let known = self.world.ask(|client| async move { client.status().await })?.fdb_entries;
            if known >= u64::from(size) {
                break;
            }
            if Instant::now() > end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.count = size;
        Ok(Some(Figures::default()))
    }

    fn measure(&mut self, meter: &Meter) -> Result<Figures> {
        measure(&self.world, meter, Loads::Between)
    }
}

struct Through {
    world: World,
    count: u32,
}

impl Subject for Through {
    fn grow_to(&mut self, size: u32, end: Instant) -> Result<Option<Figures>> {
        let before = self.world.memory();
        let pids = families(&[self.world.site.pid()]);
        let meter = Meter::new(1.0)?;
        let left = end.saturating_duration_since(Instant::now()).as_secs_f64().min(20.0);
        let figures = meter.flows(self.world.way_out(&pids, 20_000), size - self.count, left)?;
        let answered = figures.get("answered").unwrap_or(0.0);
        if answered < f64::from(size - self.count) * 0.95 {
            return Ok(None);
        }
        let each = (self.world.memory() - before) / answered;
        self.count = size;
        let mut told = Figures::from([("open_per_s", figures.get("per_s").unwrap_or(f64::NAN))]);
        told.set("bytes_each", each);
        Ok(Some(told))
    }

    fn measure(&mut self, meter: &Meter) -> Result<Figures> {
        measure(&self.world, meter, Loads::Out)
    }
}

/// The library alone.
#[derive(Default)]
struct Table {
    flows: Option<Flows>,
    count: u32,
}

impl Subject for Table {
    fn grow_to(&mut self, size: u32, _: Instant) -> Result<Option<Figures>> {
        let now = Time::from_secs(1000);
        let me = [std::process::id()];
        // The last table's memory must not be reused unseen.
        self.flows = None;
        let before = resident(&me);
        let mut flows = Flows::new(size);
        let empty = resident(&me);
        let start = Instant::now();
        for n in 0..size {
            ensure!(flows.send(now, scattered(n, size)), "flow {n} of {size} is refused");
        }
        let opened = start.elapsed();
        let full = resident(&me);
        let each = f64::from(size);
        let mut figures = Figures::from([("new_ns", opened.as_secs_f64() * 1e9 / each)]);
        // Memory that is handed back from table to table blurs small ones.
        if size >= 100_000 {
            figures.set("bytes_each", (full - before) / each);
            figures.set("empty_bytes_each", (empty - before) / each);
        }
        self.flows = Some(flows);
        self.count = size;
        Ok(Some(figures))
    }

    fn measure(&mut self, _: &Meter) -> Result<Figures> {
        const PACKETS: u32 = 1_000_000;
        /// As a worker has it while frames come.
        const BUDGET: usize = 32;
        let flows = self.flows.as_mut().context("a table")?;
        let now = Time::from_secs(1000);
        let start = Instant::now();
        for n in 0..PACKETS {
            flows.send(now, scattered(n % self.count, self.count));
        }
        let mut figures =
            Figures::from([("hit_ns", start.elapsed().as_secs_f64() * 1e9 / f64::from(PACKETS))]);
        let later = Time::from_secs(now.as_secs() + 3600);
        let mut steps = Vec::new();
        let start = Instant::now();
        loop {
            let step = Instant::now();
            let more = flows.nat.expire(later, BUDGET);
            steps.push(step.elapsed());
            if !more {
                break;
            }
        }
        figures.set("expire_ns", start.elapsed().as_secs_f64() * 1e9 / f64::from(self.count));
        steps.sort_unstable();
        let at = |permille: usize| steps[(steps.len() - 1) * permille / 1000].as_secs_f64() * 1e6;
        figures.set("expire_step_p99_us", at(990));
        figures.set("expire_step_us", at(1000));
        ensure!(flows.nat.connection_count() == 0, "connections are left");
        Ok(figures)
    }
}

struct Publishes {
    world: World,
    count: u32,
}

impl Subject for Publishes {
    fn grow_to(&mut self, size: u32, end: Instant) -> Result<Option<Figures>> {
        let start = Instant::now();
        let grown = size - self.count;
        while self.count < size {
            if Instant::now() > end {
                return Ok(None);
            }
            let port = 20_000 + self.count;
            let spec: PublishSpec = serde_json::from_value(
                serde_json::json!({"host_port": port, "target_ip": C1, "target_port": port}),
            )?;
            self.world.ask(|client| async move { client.publish(&spec).await })?;
            self.count += 1;
        }
        let each = start.elapsed().as_secs_f64() * 1e3 / f64::from(grown.max(1));
        let start = self.world.restart();
        Ok(Some(Figures::from([("add_ms", each), ("start_s", start)])))
    }

    fn measure(&mut self, meter: &Meter) -> Result<Figures> {
        measure(&self.world, meter, Loads::Out)
    }
}

struct Networks {
    world: World,
    count: u32,
}

impl Subject for Networks {
    fn grow_to(&mut self, size: u32, end: Instant) -> Result<Option<Figures>> {
        let start = Instant::now();
        let grown = size - self.count;
        while self.count < size {
            if Instant::now() > end {
                return Ok(None);
            }
            let subnet = format!("10.{}.0.0/16", self.count);
            let spec: NetworkSpec = serde_json::from_value(
                serde_json::json!({"name": format!("n{}", self.count), "subnets": [subnet]}),
            )?;
            self.world.ask(|client| async move { client.add_network(&spec).await })?;
            self.count += 1;
        }
        let each = start.elapsed().as_secs_f64() * 1e3 / f64::from(grown.max(1));
        let start = self.world.restart();
        let mut figures = Figures::from([("start_s", start)]);
        if grown > 0 {
            figures.set("add_ms", each);
        }
        Ok(Some(figures))
    }

    fn measure(&mut self, meter: &Meter) -> Result<Figures> {
        measure(&self.world, meter, Loads::Between)
    }
}

struct Workers {
    world: Option<World>,
}

impl Subject for Workers {
    fn grow_to(&mut self, size: u32, _: Instant) -> Result<Option<Figures>> {
        // One swd at a time: both would have the same addresses, but not the same CPUs.
        self.world = None;
        self.world = Some(World::new(&["--workers", &size.to_string()], IN_PROCESS)?);
        Ok(Some(Figures::default()))
    }

    fn measure(&mut self, meter: &Meter) -> Result<Figures> {
        let world = self.world.as_ref().context("swd")?;
        let mut figures = measure(world, meter, Loads::Between)?;
        let pids = families(&[world.site.pid()]);
        let between = benches::measure::Path {
            server: &world.c1.ns,
            client: &world.c2.ns,
            address: C1,
            port: 5201,
            pids: &pids,
        };
        figures.set("gbit_s_4", meter.bulk(between, 4)?.get("gbit_s").unwrap_or(f64::NAN));
        figures.set(
            "out_per_s",
            meter.connections(world.way_out(&pids, 5201))?.get("per_s").unwrap_or(f64::NAN),
        );
        Ok(figures)
    }
}

// The sizes of the curve `flows` are whole numbers of source ports.
const _: () = assert!(FLOW_PORTS == 64);
