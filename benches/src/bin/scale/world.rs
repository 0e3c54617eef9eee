//! swd with two containers and an outside, and the loads that run after each step.

use std::future::Future;
use std::time::Instant;

use anyhow::{Context as _, Result};
use benches::figures::{Figures, Spread};
use benches::load::Protocol;
use benches::machine::{CONGESTION_CONTROL, families, resident};
use benches::measure::{Cpus, Meter, Path};
use ctl::client::{Client, ClientError};
use tests::netns::{Namespace, veth};
use tests::process::{s, wait_until};
use tests::site::{Container, Site, Way};
use tokio::runtime::Runtime;

/// The address outside.
pub(crate) const OUTSIDE: &str = "172.16.0.1";
/// The first container's address.
pub(crate) const C1: &str = "172.18.0.10";

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

/// swd and who talks through it.
#[derive(Debug)]
pub(crate) struct World {
    /// The host with swd.
    pub(crate) site: Site,
    /// The first container.
    pub(crate) c1: Container,
    /// The second container.
    pub(crate) c2: Container,
    /// Outside.
    pub(crate) wan: Namespace,
    runtime: Runtime,
    client: Client,
}

impl World {
    /// Starts swd with these arguments and configuration.
    pub(crate) fn new(arguments: &[&str], config: &str) -> Result<Self> {
        let mut site = Site::stopped();
        let wan = Namespace::new();
        veth(("eth0", &site.host), ("eth0", &wan));
        site.host.ip(&["addr", "add", "172.16.0.2/16", "dev", "eth0"]);
        wan.ip(&["addr", "add", "172.16.0.1/16", "dev", "eth0"]);
        site.host.ip(&["route", "add", "default", "via", "172.16.0.1"]);
        let path = site.file("swd.toml");
        std::fs::write(&path, config).context("the configuration")?;
        let mut words = vec!["--uplink", "eth0", "--config", path.to_str().context("a path in UTF-8")?];
        words.extend(arguments);
        site = site.arguments(&words);
        site.start();
        let c1 = site.container("c1", Way::PortAdd, C1);
        let c2 = site.container("c2", Way::PortAdd, "172.18.0.20");
        let congestion_control = format!("net.ipv4.tcp_congestion_control={CONGESTION_CONTROL}");
        for ns in [&c1.ns, &c2.ns, &wan, &site.host] {
            ns.run(&["sysctl", "-qw", &congestion_control]).ok();
            ns.run(&["sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1", "net.ipv4.ip_local_port_range=10000 60000"]);
        }
        let client = Client::new(site.socket());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
        Ok(Self { site, c1, c2, wan, runtime, client })
    }

    /// Asks swd by its API.
    pub(crate) fn ask<T, F>(&self, request: impl FnOnce(Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        Ok(self.runtime.block_on(request(self.client.clone()))?)
    }

    /// swd's memory in bytes, its keeper's included.
    pub(crate) fn memory(&self) -> f64 {
        resident(&families(&[self.site.pid()]))
    }

    /// The way from the first container to the outside.
    pub(crate) fn way_out<'a>(&'a self, pids: &'a [u32], port: u16) -> Path<'a> {
        Path { server: &self.wan, client: &self.c1.ns, address: OUTSIDE, port, pids }
    }

    /// Runs the loads [`ROUNDS`] times, and takes the medians of what [`World::once`] gives.
    pub(crate) fn measure(&self, meter: &Meter, loads: Loads) -> Result<Figures> {
        let rounds: Result<Vec<_>> = (0..ROUNDS).map(|_| self.once(meter, loads)).collect();
        Ok(medians(&rounds?))
    }

    /// Runs the loads one after the other: [`LOADS`], `rss_mb`.
    pub(crate) fn once(&self, meter: &Meter, loads: Loads) -> Result<Figures> {
        let pids = families(&[self.site.pid()]);
        let path = match loads {
            Loads::Between => {
                Path { server: &self.c1.ns, client: &self.c2.ns, address: C1, port: 5201, pids: &pids }
            }
            Loads::Out => self.way_out(&pids, 5201),
        };
        let mut figures = Figures::from([("rss_mb", self.memory() / 1e6)]);
        path.client.pings(path.address);
        let all = [
            meter.bulk(path, 1)?,
            meter.datagrams(path, None)?,
            meter.round_trips(path, Protocol::Udp, Cpus::Any)?,
            meter.connections(path)?,
        ];
        for (name, load) in LOADS.iter().zip(all) {
            figures.set(name, load.get(name).unwrap_or(f64::NAN));
        }
        Ok(figures)
    }

    /// Ends swd and starts it again: seconds until it forwards again.
    pub(crate) fn restart(&mut self) -> f64 {
        self.site.terminate();
        let start = Instant::now();
        self.site.start();
        let took = start.elapsed().as_secs_f64();
        wait_until("the containers are connected again", s(60), || self.c1.ns.pings("172.18.0.20"));
        took
    }
}
