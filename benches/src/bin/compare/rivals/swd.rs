//! swd itself.

use std::fs;

use anyhow::{Context as _, Result};
use tests::netns::Namespace;
use tests::process::binary;
use tests::site::{Site, Way};

use super::{Rival, Running};
use crate::subjects::Road;
use crate::topology::{C1, C2, PUBLISHED, Topology};

/// One container makes all connections here: more than a container may by default. The kernel has no such limits.
const LIMITS: &str =
    "[nat]\nmax_connections = 524288\nmax_per_container = 500000\nnew_per_second = 1000000\n";

/// How swd is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// On the host ends of the containers' veth pairs; the kernel forwards for it what it has decided.
    Veth,
    /// The same without the fast path: every frame crosses the process.
    User,
    /// With TAP devices in the containers.
    Tap,
}

/// swd in one of its ways.
#[derive(Debug)]
pub(super) struct Swd {
    kind: Kind,
    arguments: Vec<String>,
}

impl Swd {
    /// All ways.
    pub(super) fn all(arguments: &[String]) -> impl Iterator<Item = Self> {
        [Kind::Veth, Kind::User, Kind::Tap]
            .into_iter()
            .map(|kind| Self { kind, arguments: arguments.to_vec() })
    }
}

impl Rival for Swd {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Veth => "swd-veth",
            Kind::User => "swd-user",
            Kind::Tap => "swd-tap",
        }
    }

    fn about(&self) -> &'static str {
        match self.kind {
            Kind::Veth => "swd with veth pairs, as it comes",
            Kind::User => "swd with veth pairs and `fast_path = false`: every frame crosses the process",
            Kind::Tap => "swd with TAP devices in the containers",
        }
    }

    fn needs(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    fn roads(&self) -> &'static [Road] {
        &Road::ALL
    }

    fn version(&self) -> Result<String> {
        let mut version =
            benches::machine::first_line(std::process::Command::new(binary("swd")).arg("--version"));
        for argument in &self.arguments {
            version.push(' ');
            version.push_str(argument);
        }
        Ok(version)
    }

    fn set_up(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        // The handle's drop, and then that of the topology: the second finds nothing to do.
        let host = Namespace::adopt(topology.host.name());
        let config = topology.file("swd.toml");
        let fast_path = self.kind != Kind::User;
        fs::write(&config, format!("fast_path = {fast_path}\n{LIMITS}")).context("a configuration")?;
        let mut words = vec!["--uplink", "eth0", "--config", config.to_str().context("a path in UTF-8")?];
        words.extend(self.arguments.iter().map(String::as_str));
        let mut site = Site::stopped_on(host).arguments(&words);
        site.start();
        for (container, end, address) in [(&topology.c1, "vc1", C1), (&topology.c2, "vc2", C2)] {
            if self.kind == Kind::Tap {
                container.ip(&["link", "del", "eth0"]);
                site.join(container, "default", end, Way::Tap, address);
            } else {
                site.ctl(&["port", "add", end]);
            }
        }
        for protocol in ["tcp", "udp"] {
            let published = format!("{PUBLISHED}/{protocol}");
            site.ctl(&["publish", &published, &format!("{C1}:{PUBLISHED}")]);
        }
        Ok(Box::new(site))
    }
}

impl Running for Site {
    fn pids(&self) -> Vec<u32> {
        benches::machine::families(&[self.pid()])
    }
}
