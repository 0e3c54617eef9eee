//! What the workers know of the world: ports, networks, the host's addresses.
//!
//! A [`Snapshot`] never changes. The control plane builds a new one and publishes it; a worker loads the newest once per
//! batch. Counters are what moves inside, and `owned`, the hint which ports to look at.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;

use crate::addressing::Addressing;
use crate::limit::Limits;
use crate::mac::Mac;
use crate::names::Names;
use crate::observe::Observers;
use crate::policy::{Peer, Policy};
use crate::router::owned::OwnedPorts;
use crate::router::route::Routes;
use crate::services::Services;
use crate::sources::Sources;

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
    /// An interface of the host, by its index: the way to the outside.
    Uplink(u32),
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
    /// The MTU, if it is a veth whose peer is in another namespace: then the kernel may forward for it. See
    /// [`crate::fastpath`].
    pub veth_mtu: Option<u32>,
    /// How much may pass; none while all of it may.
    pub limits: Option<Arc<Limits>>,
    /// What it may send from; none while that is anything.
    pub sources: Option<Arc<Sources>>,
    /// What passed.
    pub counters: Arc<PortCounters>,
}

impl Port {
    /// Whether every frame that passes it has to be seen by the process: its rate is limited.
    pub fn sees_all(&self) -> bool {
        self.limits.as_deref().is_some_and(Limits::sees_all)
    }
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
    /// Connections to the outside leave behind the host's address.
    pub masquerade: bool,
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

impl Network {
    /// Whether an address is of one of its subnets.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.gateways.iter().any(|g| g.subnet.contains(&address))
    }

    /// The gateway's address of one family.
    pub fn gateway(&self, v4: bool) -> Option<IpAddr> {
        self.gateways.iter().map(|g| g.address).find(|a| a.is_ipv4() == v4)
    }
}

/// An interface of the host by which the outside is reached.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// Its index in the host's namespace.
    pub ifindex: u32,
    /// Its name, for traces.
    pub name: Arc<str>,
    /// Its MAC.
    pub mac: Mac,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Link state: frames for one that is down are dropped.
    pub up: bool,
    /// Its addresses with their prefix lengths, in the kernel's order.
    pub addresses: Vec<IpNet>,
    /// What passed: `rx` came from the outside, `tx` was sent to it.
    pub counters: Arc<PortCounters>,
}

impl Uplink {
    /// The address by which the outside is to know what leaves for `next_hop`: one of the next hop's subnet, else the
    /// first of its family that is good beyond the link.
    pub fn address_for(&self, next_hop: IpAddr) -> Option<IpAddr> {
        let near = self.addresses.iter().find(|a| a.contains(&next_hop) && !is_link_local(a.addr()));
        let any = || {
            let same = |a: &&IpNet| a.addr().is_ipv4() == next_hop.is_ipv4() && !is_link_local(a.addr());
            self.addresses.iter().find(same)
        };
        near.or_else(any).map(IpNet::addr)
    }
}

/// An IPv6 address that means something on its link only.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
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
    /// The ways to the outside; none means no routing.
    pub uplinks: Vec<Uplink>,
    /// The host's own ends of networks that are up, by the interface of the port at the other end: indices in the host's namespace.
    pub host_ends: HashMap<u32, u32, foldhash::fast::RandomState>,
    /// The host's routes.
    pub routes: Arc<Routes>,
    /// Ports of the host's addresses that are swd's: published, or of the pool.
    pub owned: Arc<OwnedPorts>,
    /// Whose an address is, where swd gave it away.
    pub leases: HashMap<(NetworkId, IpAddr), PortId, foldhash::fast::RandomState>,
    /// Who watches frames: captures and mirrors; none while nobody does.
    pub observers: Option<Arc<Observers>>,
    /// Who may open connections to whom.
    pub policy: Arc<Policy>,
    /// What the gateways serve by themselves; nothing where a network is not named.
    pub services: HashMap<NetworkId, Services, foldhash::fast::RandomState>,
    /// Who is called what.
    pub names: Arc<Names>,
    /// What those are told who ask for an address.
    pub addressing: Arc<Addressing>,
    /// Networks without a way out.
    pub internal: HashSet<NetworkId, foldhash::fast::RandomState>,
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

    /// A copy with counters of its own, which nobody watches.
    pub fn fork(&self) -> Self {
        let mut new = self.clone();
        new.observers = None;
        for port in new.ports.iter_mut().flatten() {
            port.counters = Arc::default();
            port.limits = port.limits.as_ref().map(|limits| Arc::new(limits.fork()));
        }
        for uplink in &mut new.uplinks {
            uplink.counters = Arc::default();
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

    /// The uplink behind an interface of the host.
    pub fn uplink(&self, ifindex: u32) -> Option<&Uplink> {
        self.uplinks.iter().find(|u| u.ifindex == ifindex)
    }

    /// The network that has an address in one of its subnets.
    pub fn network_of(&self, address: IpAddr) -> Option<&Network> {
        self.networks().find(|n| n.contains(address))
    }

    /// The network of this number.
    pub fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.get(id.index())?.as_ref()
    }

    /// Who is behind a port, to the policy.
    pub fn peer(&self, port: &Port) -> Peer {
        let is_host = self.network(port.network).is_some_and(|n| n.host_port == Some(port.id));
        if is_host { Peer::Host } else { Peer::Port(port.id, port.network) }
    }

    /// Whether it has to be asked who may talk to whom within a network.
    pub fn is_governed(&self, network: &Network) -> bool {
        network.isolate_ports || self.policy.is_inside(network.id)
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
