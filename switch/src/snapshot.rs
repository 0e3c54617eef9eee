//! What the workers know of the world: ports, networks, the host's addresses.
//!
//! A [`Snapshot`] never changes. The control plane builds a new one and publishes it; a worker loads the newest once per
//! batch. Counters are the only thing inside that moves.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;

use crate::mac::Mac;

/// A port of the switch. Numbers are reused, but only after every worker has let go of the old port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u32);

impl PortId {
    /// As an index into tables by port.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A network: one broadcast domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub u32);

impl NetworkId {
    /// As an index into tables by network.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a port's frames go to and come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A netdev in the switch namespace, by its interface index.
    Packet(u32),
    /// A TAP device, whose queues the workers hold. See [`crate::dataplane::Dataplane::add_tap`].
    Tap,
    /// A pair of queues in memory: tests.
    Memory,
}

/// A port as the workers see it.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its number.
    pub id: PortId,
    /// Its name, for traces and events.
    pub name: Arc<str>,
    /// The network it belongs to.
    pub network: NetworkId,
    /// Where its frames go to.
    pub link: Link,
    /// Link state: frames for a port that is down are dropped.
    pub up: bool,
    /// What passed.
    pub counters: Arc<PortCounters>,
}

/// A network as the workers see it.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its number.
    pub id: NetworkId,
    /// Its name.
    pub name: Arc<str>,
    /// Subnets with the gateway's address in each.
    pub gateways: Vec<Gateway>,
    /// The gateway's MAC: that of the host end, or of swd itself without host access.
    pub gateway_mac: Mac,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// The host end's port; none without host access: then swd answers for the gateway.
    pub host_port: Option<PortId>,
    /// Ports may talk to the gateway only.
    pub isolate_ports: bool,
    /// Every port of the network that is up, the host's included: the flood set.
    pub flood: Vec<PortId>,
}

/// The gateway's address in a subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The subnet.
    pub subnet: IpNet,
    /// The gateway's address in it.
    pub address: IpAddr,
}

/// Everything the workers know.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows with every publication.
    pub generation: u64,
    ports: Vec<Option<Port>>,
    networks: Vec<Option<Network>>,
    by_ifindex: HashMap<u32, PortId, foldhash::fast::RandomState>,
    /// Every address of the host, on any interface: containers may reach them through the gateway.
    pub host_addresses: HashSet<IpAddr, foldhash::fast::RandomState>,
}

impl Snapshot {
    /// A snapshot of these; flood sets are made here. A port of a network that is not given is left out.
    pub fn new(
        networks: impl IntoIterator<Item = Network>,
        ports: impl IntoIterator<Item = Port>,
        host_addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let mut new = Self { host_addresses: host_addresses.into_iter().collect(), ..Self::default() };
        for mut network in networks {
            network.flood.clear();
            let at = network.id.index();
            put(&mut new.networks, at, network);
        }
        for port in ports {
            let Some(Some(network)) = new.networks.get_mut(port.network.index()) else { continue };
            if port.up {
                network.flood.push(port.id);
            }
            if let Link::Packet(ifindex) = port.link {
                new.by_ifindex.insert(ifindex, port.id);
            }
            let at = port.id.index();
            put(&mut new.ports, at, port);
        }
        new
    }

    /// The port of this number.
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id.index())?.as_ref()
    }

    /// The port behind an interface of the switch namespace.
    pub fn port_by_ifindex(&self, ifindex: u32) -> Option<&Port> {
        self.port(*self.by_ifindex.get(&ifindex)?)
    }

    /// The network of this number.
    pub fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.get(id.index())?.as_ref()
    }

    /// All ports.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().flatten()
    }

    /// All networks.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.networks.iter().flatten()
    }
}

fn put<T>(table: &mut Vec<Option<T>>, at: usize, value: T) {
    if table.len() <= at {
        table.resize_with(at + 1, || None);
    }
    table[at] = Some(value);
}

/// Packets and bytes in one direction.
#[derive(Debug, Default)]
pub struct Traffic {
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Traffic {
    /// Counts packets that passed.
    pub fn add(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts one that did not.
    pub fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Packets so far.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Dropped packets so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// What passed a port: `rx` came from it, `tx` was sent to it.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Received from the port.
    pub rx: Traffic,
    /// Sent to the port.
    pub tx: Traffic,
}
