//! What is there: the numbers by which the workers know networks and ports, and what the kernel says of their links.
//!
//! Numbers are the lowest free ones. A port's number becomes free only after the workers have let go of it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ctl::api::{PortKind, PortState};

use super::desired::Desired;
use super::links::Link;
use crate::limit::{Bucket, Limits, Rate};
use crate::mac::Mac;
use crate::snapshot::{self, Gateway, NetworkId, PortCounters, PortId, Snapshot};
use crate::sources::Sources;

/// Changes of its address that a port may have at once; one a second after that.
const WISHES: u64 = 16;
/// Addresses that a port's container declined and that are remembered; an older one is offered to it again.
const MAX_DECLINED: usize = 8;

/// Numbers and links.
#[derive(Debug, Default)]
pub struct Live {
    networks: BTreeMap<String, NetworkId>,
    ports: BTreeMap<String, LivePort>,
    names: HashMap<PortId, String>,
    by_index: HashMap<u32, String>,
    /// The host's addresses.
    pub host_addresses: BTreeSet<IpAddr>,
}

/// A port that has a number.
#[derive(Clone, Debug)]
pub struct LivePort {
    /// Its number.
    pub id: PortId,
    /// Its name, as the workers share it.
    pub name: Arc<str>,
    /// Its network.
    pub network: String,
    /// What stands behind it.
    pub kind: PortKind,
    /// Its link; none while the interface is missing.
    pub link: Option<LiveLink>,
    /// What passed.
    pub counters: Arc<PortCounters>,
    /// How much may pass.
    pub limits: Option<Arc<Limits>>,
    /// What it may send from.
    pub sources: Option<Arc<Sources>>,
    /// Connections that it may have, as the translator knows it; none for what all may have.
    pub max_connections: Option<u32>,
    /// How often it may have its address changed: each change is written to the disk.
    pub wishes: Arc<Bucket>,
    /// Addresses that its container declined lately, because somebody else uses them.
    pub declined: VecDeque<IpAddr>,
}

/// What the kernel says of a port's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveLink {
    /// Index in the switch namespace; none for a TAP, which is in the container.
    pub index: Option<u32>,
    /// Up, with carrier.
    pub up: bool,
    /// MTU.
    pub mtu: u32,
    /// MAC.
    pub mac: Mac,
    /// A veth whose other end is in another namespace.
    pub veth: bool,
}

impl From<&Link> for LiveLink {
    fn from(link: &Link) -> Self {
        Self {
            index: Some(link.index),
            up: link.running,
            mtu: link.mtu,
            mac: link.mac,
            veth: link.is_veth() && link.peer_elsewhere,
        }
    }
}

impl LivePort {
    /// What it is doing.
    pub fn state(&self) -> PortState {
        match &self.link {
            None => PortState::Missing,
            Some(LiveLink { up: true, .. }) => PortState::Up,
            Some(_) => PortState::Down,
        }
    }
}

/// The lowest number that is not among `used`.
fn lowest_free(used: impl Iterator<Item = u32>) -> u32 {
    let used: BTreeSet<u32> = used.collect();
    let mut free = 0;
    for number in used {
        if number > free {
            break;
        }
        free = number + 1;
    }
    free
}

impl Live {
    /// Numbers a network.
    pub fn add_network(&mut self, name: &str) -> NetworkId {
        let free = lowest_free(self.networks.values().map(|n| n.0));
        *self.networks.entry(name.to_owned()).or_insert(NetworkId(free))
    }

    /// Forgets a network.
    pub fn remove_network(&mut self, name: &str) -> Option<NetworkId> {
        self.networks.remove(name)
    }

    /// A network's number.
    pub fn network(&self, name: &str) -> Option<NetworkId> {
        self.networks.get(name).copied()
    }

    /// A network's name.
    pub fn network_name(&self, id: NetworkId) -> Option<&str> {
        self.networks.iter().find(|(_, n)| **n == id).map(|(name, _)| name.as_str())
    }

    /// Numbers a port.
    pub fn add_port(&mut self, name: &str, network: &str, kind: PortKind, link: Option<LiveLink>) -> PortId {
        // The numbers in use are those that workers may still know: also of ports that are being removed.
        let mut free = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        if self.names.contains_key(&PortId(free)) {
            free = lowest_free(self.names.keys().map(|p| p.0));
        }
        let id = PortId(free);
        self.names.insert(id, name.to_owned());
        let port = LivePort {
            id,
            name: name.into(),
            network: network.to_owned(),
            kind,
            link: None,
            counters: Arc::default(),
            limits: None,
            sources: None,
            max_connections: None,
            wishes: Arc::new(Bucket::new(Rate::Frames(1), Some(WISHES))),
            declined: VecDeque::new(),
        };
        self.ports.insert(name.to_owned(), port);
        self.set_link(name, link);
        id
    }

    /// Takes a port out of the world. Its number stays taken until [`Live::free`].
    pub fn remove_port(&mut self, name: &str) -> Option<LivePort> {
        let port = self.ports.remove(name)?;
        if let Some(index) = port.link.as_ref().and_then(|l| l.index) {
            self.by_index.remove(&index);
        }
        Some(port)
    }

    /// Frees a removed port's number.
    pub fn free(&mut self, id: PortId) {
        self.names.remove(&id);
    }

    /// Sets what is known of a port's link; tells whether that changed anything.
    pub fn set_link(&mut self, name: &str, link: Option<LiveLink>) -> bool {
        let Some(port) = self.ports.get_mut(name) else { return false };
        if port.link == link {
            return false;
        }
        if let Some(index) = port.link.as_ref().and_then(|l| l.index) {
            self.by_index.remove(&index);
        }
        if let Some(index) = link.as_ref().and_then(|l| l.index) {
            self.by_index.insert(index, name.to_owned());
        }
        port.link = link;
        true
    }

    /// Notes that a port's container will not have an address.
    pub fn note_declined(&mut self, name: &str, address: Ipv4Addr) {
        let Some(port) = self.ports.get_mut(name) else { return };
        if port.declined.len() == MAX_DECLINED {
            port.declined.pop_front();
        }
        port.declined.push_back(address.into());
    }

    /// The port of this name, host ends included.
    pub fn port(&self, name: &str) -> Option<&LivePort> {
        self.ports.get(name)
    }

    /// All ports with their names.
    pub fn ports(&self) -> impl Iterator<Item = (&String, &LivePort)> {
        self.ports.iter()
    }

    /// The same, to change.
    pub fn ports_mut(&mut self) -> impl Iterator<Item = (&String, &mut LivePort)> {
        self.ports.iter_mut()
    }

    /// The name of the port of this number.
    pub fn port_name(&self, id: PortId) -> Option<&str> {
        self.names.get(&id).map(String::as_str)
    }

    /// The name of the port whose interface has this index.
    pub fn by_index(&self, index: u32) -> Option<&str> {
        self.by_index.get(&index).map(String::as_str)
    }

    /// Indices of all interfaces that are ports.
    pub fn indices(&self) -> Vec<u32> {
        self.by_index.keys().copied().collect()
    }

    /// What the workers shall know.
    pub fn snapshot(&self, desired: &Desired) -> Snapshot {
        let networks = self.networks.iter().filter_map(|(name, id)| {
            let network = desired.networks.get(name)?;
            let host = network.host_ifname.as_ref().and_then(|h| self.ports.get(h));
            Some(snapshot::Network {
                id: *id,
                name: name.as_str().into(),
                gateways: network
                    .gateways
                    .iter()
                    .map(|(subnet, address)| Gateway { subnet: *subnet, address: *address })
                    .collect(),
                gateway_mac: network.gateway_mac,
                mtu: network.mtu,
                host_port: host.map(|h| h.id),
                isolate_ports: network.isolate_ports,
                masquerade: network.masquerade,
                flood: Vec::new(),
            })
        });
        let ports = self.ports.values().filter_map(|port| {
            let link = port.link.as_ref()?;
            Some(snapshot::Port {
                id: port.id,
                name: Arc::clone(&port.name),
                network: *self.networks.get(&port.network)?,
                link: link.index.map_or(snapshot::Link::Tap, snapshot::Link::Packet),
                up: link.up,
                veth_mtu: link.veth.then_some(link.mtu),
                limits: port.limits.clone(),
                sources: port.sources.clone(),
                counters: Arc::clone(&port.counters),
            })
        });
        Snapshot::new(networks, ports, self.host_addresses.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32) -> Option<LiveLink> {
        Some(LiveLink { index: Some(index), up: true, mtu: 1500, mac: Mac::ZERO, veth: true })
    }

    #[test]
    fn numbers_are_reused_only_when_freed() {
        let mut live = Live::default();
        live.add_network("default");
        let a = live.add_port("a", "default", PortKind::Packet, link(10));
        let b = live.add_port("b", "default", PortKind::Packet, link(11));
        assert_eq!((a, b), (PortId(0), PortId(1)));
        assert_eq!(live.remove_port("a").unwrap().link, link(10), "what is to be taken down");
        assert_eq!(live.by_index(10), None);
        assert_eq!(
            live.add_port("a", "default", PortKind::Packet, link(10)),
            PortId(2),
            "0 may still be in use"
        );
        live.free(a);
        assert_eq!(live.add_port("c", "default", PortKind::Packet, None), PortId(0));
        assert_eq!(live.port_name(PortId(2)), Some("a"));
        assert_eq!(live.by_index(10), Some("a"));
        assert_eq!(live.port("c").unwrap().state(), PortState::Missing);
    }

    #[test]
    fn missing_ports_are_not_told_to_the_workers() {
        let mut desired = Desired::default();
        desired.add_network("swd", &ctl::config::Network::default().spec("default"), |_| false).unwrap();
        let mut live = Live::default();
        live.add_network("default");
        let host = live.add_port("sw0", "default", PortKind::Host, link(3));
        let a = live.add_port("a", "default", PortKind::Packet, link(10));
        live.add_port("b", "default", PortKind::Packet, None);
        let snapshot = live.snapshot(&desired);
        let network = snapshot.networks().next().unwrap();
        assert_eq!((network.host_port, network.flood.clone()), (Some(host), vec![a, host]));
        assert_eq!(snapshot.port_by_ifindex(10).unwrap().id, a);
        assert_eq!(snapshot.ports().count(), 2);
        assert!(live.set_link("a", None) && !live.set_link("a", None));
        assert!(live.snapshot(&desired).port_by_ifindex(10).is_none());
    }

    #[test]
    fn lowest_free_number() {
        assert_eq!(lowest_free([].into_iter()), 0);
        assert_eq!(lowest_free([0, 1, 3].into_iter()), 2);
        assert_eq!(lowest_free([1, 2].into_iter()), 0);
    }
}
