//! swd with two containers and an outside: the world of the programs that measure swd alone.

use std::future::Future;
use std::time::Instant;

use anyhow::{Context as _, Result};
use ctl::client::{Client, ClientError};
use tests::netns::{Namespace, veth};
use tests::process::{s, wait_until};
use tests::site::{Container, Site, Way};
use tokio::runtime::Runtime;

use crate::congestion::{CONGESTION_CONTROL, set_congestion_control};
use crate::machine::{families, resident};
use crate::measure::Path;

/// The address outside.
pub const OUTSIDE: &str = "172.16.0.1";
/// The first container's address.
pub const C1: &str = "172.18.0.10";
/// The second container's address.
pub const C2: &str = "172.18.0.20";

/// swd and who talks through it.
#[derive(Debug)]
pub struct World {
    /// The host with swd.
    pub site: Site,
    /// The first container.
    pub c1: Container,
    /// The second container.
    pub c2: Container,
    /// Outside.
    pub wan: Namespace,
    runtime: Runtime,
    client: Client,
}

impl World {
    /// Starts swd with these arguments and configuration.
    ///
    /// # Errors
    /// When something of it cannot be made.
    pub fn new(arguments: &[&str], config: &str) -> Result<Self> {
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
        let c2 = site.container("c2", Way::PortAdd, C2);
        let all = [&c1.ns, &c2.ns, &wan, &site.host];
        set_congestion_control(CONGESTION_CONTROL, &all);
        for ns in all {
            ns.run(&["sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1", "net.ipv4.ip_local_port_range=10000 60000"]);
        }
        let client = Client::new(site.socket());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
        Ok(Self { site, c1, c2, wan, runtime, client })
    }

    /// Asks swd by its API.
    ///
    /// # Errors
    /// When swd refuses, or does not answer.
    pub fn ask<T, F>(&self, request: impl FnOnce(Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        Ok(self.runtime.block_on(request(self.client.clone()))?)
    }

    /// swd's memory in bytes, its keeper's included.
    pub fn memory(&self) -> f64 {
        resident(&families(&[self.site.pid()]))
    }

    /// The way from the first container to the outside.
    pub fn way_out<'a>(&'a self, pids: &'a [u32], port: u16) -> Path<'a> {
        Path { server: &self.wan, client: &self.c1.ns, address: OUTSIDE, port, pids }
    }

    /// The way from the second container to the first.
    pub fn between<'a>(&'a self, pids: &'a [u32], port: u16) -> Path<'a> {
        Path { server: &self.c1.ns, client: &self.c2.ns, address: C1, port, pids }
    }

    /// Ends swd and starts it again: seconds until it forwards again.
    pub fn restart(&mut self) -> f64 {
        self.site.terminate();
        let start = Instant::now();
        self.site.start();
        let took = start.elapsed().as_secs_f64();
        wait_until("the containers are connected again", s(60), || self.c1.ns.pings(C2));
        took
    }
}
