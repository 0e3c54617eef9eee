//! swd itself.

use anyhow::Result;
use tests::netns::Namespace;
use tests::process::binary;
use tests::site::{Site, Way};

use super::{Rival, Running};
use crate::subjects::Road;
use crate::topology::{C1, C2, PUBLISHED, Topology};

/// swd with one kind of port.
#[derive(Debug)]
pub(super) struct Swd {
    way: Way,
    arguments: Vec<String>,
}

impl Swd {
    /// On the host ends of the containers' veth pairs.
    pub(super) fn veth(arguments: &[String]) -> Self {
        Self { way: Way::PortAdd, arguments: arguments.to_vec() }
    }

    /// With TAP devices in the containers.
    pub(super) fn tap(arguments: &[String]) -> Self {
        Self { way: Way::Tap, arguments: arguments.to_vec() }
    }
}

impl Rival for Swd {
    fn name(&self) -> &'static str {
        if self.way == Way::Tap { "swd-tap" } else { "swd-veth" }
    }

    fn about(&self) -> &'static str {
        if self.way == Way::Tap {
            "swd, with TAP devices in the containers"
        } else {
            "swd, with veth pairs as a bridge has them"
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
        let mut words = vec!["--uplink", "eth0"];
        words.extend(self.arguments.iter().map(String::as_str));
        let mut site = Site::stopped_on(host).arguments(&words);
        site.start();
        for (container, end, address) in [(&topology.c1, "vc1", C1), (&topology.c2, "vc2", C2)] {
            if self.way == Way::Tap {
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
