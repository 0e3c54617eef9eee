//! The world that every rival is put into.
//!
//! ```text
//! c1 eth0 172.18.0.10 ==== vc1 host                    outside
//! c2 eth0 172.18.0.20 ==== vc2 eth0 172.16.0.2 ======= eth0 172.16.0.1
//! ```
//!
//! Offloads are at their defaults, the MTU is 1500. Outside has no route to 172.18.0.0/16: what is not masqueraded gets no
//! answer.

use std::path::{Path, PathBuf};

use benches::congestion::set_congestion_control;
use tests::netns::{Namespace, veth};

/// The first container's address.
pub(crate) const C1: &str = "172.18.0.10";
/// The second container's address.
pub(crate) const C2: &str = "172.18.0.20";
/// The containers' gateway, where the rival has one.
pub(crate) const GATEWAY: &str = "172.18.0.1";
/// The host's address outside.
pub(crate) const HOST: &str = "172.16.0.2";
/// The address outside.
pub(crate) const OUTSIDE: &str = "172.16.0.1";
/// The published port, TCP and UDP: to the same port of the first container.
pub(crate) const PUBLISHED: u16 = 5000;

/// Room for many short connections, and no IPv6 chatter. Some are not there in every kernel.
const SETTINGS: [&str; 6] = [
    "net.ipv6.conf.all.disable_ipv6=1",
    "net.ipv6.conf.default.disable_ipv6=1",
    "net.ipv4.ip_local_port_range=10000 60000",
    "net.ipv4.tcp_tw_reuse=1",
    "net.core.somaxconn=4096",
    "net.ipv4.tcp_max_syn_backlog=8192",
];

/// Namespaces and cables. Everything goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Topology {
    /// The first container.
    pub(crate) c1: Namespace,
    /// The second container.
    pub(crate) c2: Namespace,
    /// The host.
    pub(crate) host: Namespace,
    /// Another host, outside.
    pub(crate) outside: Namespace,
    dir: PathBuf,
}

impl Topology {
    /// Makes all of it, with that TCP congestion control everywhere; rivals may put files into `dir`.
    pub(crate) fn new(dir: &Path, congestion_control: &str) -> Self {
        let new = Self {
            c1: Namespace::new(),
            c2: Namespace::new(),
            host: Namespace::new(),
            outside: Namespace::new(),
            dir: dir.to_owned(),
        };
        let all = [&new.c1, &new.c2, &new.host, &new.outside];
        set_congestion_control(congestion_control, &all);
        for ns in all {
            for setting in SETTINGS {
                ns.run(&["sysctl", "-qw", setting]);
            }
        }
        for (ns, end) in [(&new.c1, "vc1"), (&new.c2, "vc2")] {
            veth((end, &new.host), ("eth0", ns));
            new.address(ns);
        }
        veth(("eth0", &new.host), ("eth0", &new.outside));
        new.host.ip(&["addr", "add", &format!("{HOST}/16"), "dev", "eth0"]);
        new.host.ip(&["route", "add", "default", "via", OUTSIDE]);
        new.outside.ip(&["addr", "add", &format!("{OUTSIDE}/16"), "dev", "eth0"]);
        new
    }

    /// Gives a container's `eth0` its address, and a default route by the gateway.
    pub(crate) fn address(&self, container: &Namespace) {
        let address = if container.name() == self.c1.name() { C1 } else { C2 };
        container.ip(&["link", "set", "eth0", "mtu", "1500", "up"]);
        container.ip(&["addr", "add", &format!("{address}/16"), "dev", "eth0"]);
        container.ip(&["route", "add", "default", "via", GATEWAY]);
    }

    /// A path for a file of a rival's.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}
