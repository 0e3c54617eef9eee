//! Docker's way: the kernel's bridge, and iptables.

use anyhow::Result;

use super::{Rival, Running, version_of};
use crate::subjects::Road;
use crate::topology::{C1, GATEWAY, PUBLISHED, Topology};

/// The kernel's bridge with iptables' NAT.
#[derive(Debug)]
pub(super) struct Bridge;

/// Whether published ports are rules of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Publish {
    /// They are: DNAT.
    Rules,
    /// Somebody else accepts their connections.
    Elsewhere,
}

impl Rival for Bridge {
    fn name(&self) -> &'static str {
        super::REFERENCE
    }

    fn about(&self) -> &'static str {
        "the kernel's bridge; MASQUERADE and DNAT by iptables (nf_tables) with Docker's rules; bridged frames do not pass \
         iptables"
    }

    fn needs(&self) -> &'static [(&'static str, &'static str)] {
        &[("iptables", "iptables")]
    }

    fn roads(&self) -> &'static [Road] {
        &Road::ALL
    }

    fn version(&self) -> Result<String> {
        Ok(format!("the kernel's; {}", version_of("iptables", "--version")?))
    }

    fn set_up(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        set_up(topology, Publish::Rules);
        Ok(Box::new(Vec::new()))
    }
}

/// A bridge with both containers and the way out; published ports as said.
pub(super) fn set_up(topology: &Topology, publish: Publish) {
    let host = &topology.host;
    host.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]).ok();
    // There only where br_netfilter is loaded.
    host.run(&["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0"]);
    host.ip(&["link", "add", "br0", "type", "bridge"]);
    host.ip(&["link", "set", "vc1", "master", "br0"]);
    host.ip(&["link", "set", "vc2", "master", "br0"]);
    host.ip(&["addr", "add", &format!("{GATEWAY}/16"), "dev", "br0"]);
    host.ip(&["link", "set", "br0", "up"]);
    let mut rules = vec![
        "-t nat -A POSTROUTING -s 172.18.0.0/16 ! -o br0 -j MASQUERADE".to_owned(),
        "-P FORWARD DROP".to_owned(),
        "-A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned(),
        "-A FORWARD -i br0 -j ACCEPT".to_owned(),
    ];
    if publish == Publish::Rules {
        rules.extend([
            "-t nat -N DOCKER".to_owned(),
            "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER".to_owned(),
            "-t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER".to_owned(),
        ]);
        for protocol in ["tcp", "udp"] {
            let port = format!("-p {protocol} --dport {PUBLISHED}");
            rules.push(format!("-t nat -A DOCKER ! -i br0 {port} -j DNAT --to-destination {C1}:{PUBLISHED}"));
            rules.push(format!("-A FORWARD -d {C1} ! -i br0 -o br0 {port} -j ACCEPT"));
        }
    }
    for rule in rules {
        let words: Vec<_> = ["iptables", "-w"].into_iter().chain(rule.split(' ')).collect();
        host.run(&words).ok();
    }
}
