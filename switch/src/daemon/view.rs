//! What there is, as the API shows it.

use std::collections::BTreeMap;
use std::fs;

use ctl::api;
use ctl::api::PortKind;

use super::control::{Daemon, Error};
use super::desired::{self, Origin, Port, host_port_ifname};
use super::live::LivePort;
use super::portguard::Mechanism;
use crate::engine::Balance;
use crate::fdb::Kind;
use crate::mac::Mac;
use crate::router::owner;
use crate::verdict::DropReason;
use crate::worker;

impl Daemon {
    /// `GET /v1/status`.
    pub fn status(&self) -> api::Status {
        let flows = self.dataplane.collect();
        let frames = self.dataplane.balance();
        let unjournalled = self.unjournalled();
        api::Status {
            ready: true,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.name.clone(),
            pid: std::process::id(),
            started: self.started,
            uplink: self.uplink.clone(),
            workers: u32::try_from(self.workers).unwrap_or(u32::MAX),
            networks: self.desired.networks.len() as u64,
            ports: self.live.ports().count() as u64,
            connections: self.dataplane.forwarding().nat.connection_count().into(),
            drops: frames.dropped(),
            received: frames.received,
            forwarded: frames.forwarded,
            answered: frames.answered,
            parked: frames.parked,
            dropped: dropped(&frames),
            not_received: frames.not_received(),
            names: self.questions(),
            fdb_entries: self.dataplane.fdb().len() as u64,
            max_connections: self.nat.max_connections.into(),
            pool: self.outside.pool().map(|ports| format!("{}-{}", ports.start(), ports.end())),
            guards: self.outside.mechanism().map(|mechanism| match mechanism {
                Mechanism::Lookup => api::Guards::Bpf,
                Mechanism::Sockets => api::Guards::Sockets,
            }),
            fast_path: self.dataplane.has_fast_path(),
            fast_flows: flows as u64,
            restored: self.restored.clone(),
            unjournalled,
        }
    }

    /// `GET /v1/networks`.
    pub fn networks(&self) -> Vec<api::Network> {
        self.desired.networks.iter().map(|(name, network)| self.network_view(name, network)).collect()
    }

    /// `GET /v1/networks/{name}`.
    ///
    /// # Errors
    /// When there is none.
    pub fn network(&self, name: &str) -> Result<api::Network, Error> {
        Ok(self.network_view(name, self.desired.network(name)?))
    }

    fn network_view(&self, name: &str, network: &desired::Network) -> api::Network {
        let ports = self.desired.ports.iter().filter(|(_, p)| p.network == name).map(|(n, _)| n.clone());
        api::Network {
            name: name.to_owned(),
            subnets: network.gateways.iter().map(|(subnet, _)| *subnet).collect(),
            gateways: network.gateways.iter().map(|(_, gateway)| *gateway).collect(),
            gateway_mac: network.gateway_mac.to_string(),
            mtu: network.mtu,
            isolate_ports: network.isolate_ports,
            internal: network.internal,
            masquerade: network.masquerade,
            mapping: network.mapping,
            filtering: network.filtering,
            dns: network.dns,
            dhcp: network.dhcp,
            dhcp_lease: network.dhcp_lease,
            ra: network.ra,
            host_access: network.host_ifname.is_some(),
            host_ifname: network.host_ifname.clone(),
            ports: network.host_ifname.iter().cloned().chain(ports).collect(),
            leases: self.desired.leases(name).len() as u64,
        }
    }

    /// `GET /v1/ports`.
    pub fn ports(&self) -> Vec<api::Port> {
        self.dataplane.collect();
        self.live.ports().map(|(name, live)| self.port_view(name, live)).collect()
    }

    /// `GET /v1/ports/{name}`.
    ///
    /// # Errors
    /// When there is none.
    pub fn port(&self, name: &str) -> Result<api::Port, Error> {
        self.dataplane.collect();
        match self.live.port(name) {
            Some(live) => Ok(self.port_view(name, live)),
            None => Err(self.desired.port(name).err().unwrap_or_else(|| no_port(name)).into()),
        }
    }

    fn port_view(&self, name: &str, live: &LivePort) -> api::Port {
        let wanted = self.desired.ports.get(name);
        let attachment = wanted.and_then(attachment);
        let network = self.desired.networks.get(&live.network);
        let link_mac = live.link.as_ref().map(|l| l.mac);
        let mac = match live.kind {
            // What stands behind the port, not the switch's own end.
            PortKind::Host => network.map(|n| n.gateway_mac),
            _ => wanted.and_then(Port::container_mac).or(link_mac),
        };
        let mtu = live.link.as_ref().map(|l| l.mtu).or_else(|| network.map(|n| n.mtu));
        let (rx, tx) = (&live.counters.rx, &live.counters.tx);
        api::Port {
            name: name.to_owned(),
            ifname: wanted.map_or_else(|| host_port_ifname(name), |p| p.ifname.clone()),
            network: live.network.clone(),
            kind: live.kind,
            state: live.state(),
            mac: mac.unwrap_or_default().to_string(),
            mtu: mtu.unwrap_or_default(),
            netns: attachment.map(|a| a.netns.clone()),
            container_ifname: attachment.map(|a| a.ifname.clone()),
            addresses: self.desired.addresses(name),
            since: wanted.map_or(self.started, |p| p.since),
            rx_packets: rx.packets(),
            tx_packets: tx.packets(),
            rx_bytes: rx.bytes(),
            tx_bytes: tx.bytes(),
            rx_dropped: rx.dropped(),
            tx_dropped: tx.dropped(),
            connections: self.dataplane.forwarding().nat.owner_connections(owner(live.id)).into(),
            aliases: self.desired.aliases.get(name).cloned().unwrap_or_default(),
            limits: self.limits_view(name, live),
            guard: self.guard_view(name),
        }
    }

    /// The MAC that was given to an attached container, or that an address was given to.
    pub(super) fn container_mac(&self, port: &str) -> Option<Mac> {
        let made = self.desired.ports.get(port).and_then(Port::container_mac);
        made.or_else(|| self.desired.leased.get(port)?.mac)
    }

    /// `GET /v1/fdb`.
    pub fn fdb(&self) -> Vec<api::FdbEntry> {
        self.dataplane.collect();
        let known = self.dataplane.fdb().entries(worker::now());
        let mut all: Vec<api::FdbEntry> = known
            .iter()
            .filter_map(|e| {
                Some(api::FdbEntry {
                    mac: e.mac.to_string(),
                    port: Some(self.live.port_name(e.port)?.to_owned()),
                    network: self.live.network_name(e.network)?.to_owned(),
                    kind: match e.kind {
                        Kind::Dynamic => api::FdbKind::Dynamic,
                        Kind::Static => api::FdbKind::Static,
                        Kind::Local => api::FdbKind::Local,
                    },
                    age_s: e.age.as_secs(),
                })
            })
            .collect();
        let own = self.desired.networks.iter().filter(|(_, n)| n.host_ifname.is_none());
        all.extend(own.map(|(name, network)| api::FdbEntry {
            mac: network.gateway_mac.to_string(),
            port: None,
            network: name.clone(),
            kind: api::FdbKind::Local,
            age_s: 0,
        }));
        all.sort_by(|a, b| (&a.network, &a.mac).cmp(&(&b.network, &b.mac)));
        all
    }

    /// `GET /v1/drops`: every reason, also those that never occurred.
    pub fn drops(&self) -> Vec<api::DropCount> {
        let drops = self.dataplane.drops();
        let one = |reason: &DropReason| api::DropCount {
            reason: reason.name().to_owned(),
            count: drops.get(*reason),
            help: reason.help().to_owned(),
        };
        DropReason::ALL.iter().map(one).collect()
    }
}

/// The reasons for which frames were dropped after they were received, with their numbers.
fn dropped(frames: &Balance) -> BTreeMap<String, u64> {
    let counts = DropReason::ALL.iter().zip(frames.drops);
    let some = counts.filter(|(reason, n)| *n > 0 && **reason != DropReason::NotReceived);
    some.map(|(reason, n)| (reason.name().to_owned(), n)).collect()
}

fn attachment(port: &Port) -> Option<&desired::Attachment> {
    match &port.origin {
        Origin::Attached(attachment) => Some(attachment),
        Origin::Added | Origin::Endpoint(_) => None,
    }
}

fn no_port(name: &str) -> desired::EditError {
    desired::EditError::NotFound {
        what: "port",
        name: name.to_owned(),
        hint: "'swctl port ls' lists them".into(),
    }
}

/// Why this process may not do what it must, if so: names the capabilities that are missing.
pub(super) fn missing_capabilities() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    missing_from(effective)
}

fn missing_from(effective: u64) -> Option<String> {
    let needed = [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN")];
    let missing: Vec<&str> =
        needed.iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name).collect();
    let s = if missing.len() == 1 { "y" } else { "ies" };
    (!missing.is_empty()).then(|| {
        format!(
            "the capabilit{s} {} {} missing; start swd as root",
            missing.join(", "),
            if s == "y" { "is" } else { "are" }
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_from(u64::MAX), None);
        assert_eq!(
            missing_from(!(1 << 13)).as_deref(),
            Some("the capability CAP_NET_RAW is missing; start swd as root")
        );
        assert_eq!(
            missing_from(0).as_deref(),
            Some("the capabilities CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN are missing; start swd as root")
        );
    }
}
