//! The outside: uplinks, routes and neighbors as they are on the host, and the guards of the ports that are swd's.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ctl::api::PortKind;
use ctl::config::Uplink;
use ipnet::IpNet;
use nat::{Address, Protocol, RuleId};

use super::control::Daemon;
use super::desired::Desired;
use super::filter;
use super::links::{Link, LinkError};
use super::portguard::{self, GuardError, Guards, Purpose};
use super::publish::Publish;
use super::relay::{Relay, RelayLimits};
use crate::router::owned::OwnedPorts;
use crate::router::resolve::Hop;
use crate::router::route::{Action, Routes};
use crate::snapshot::{self, PortCounters, Snapshot};
use crate::sys::packet::PacketSocket;
use crate::worker;

/// The external ports of masquerade.
const POOL: RangeInclusive<u16> = 61_000..=65_535;

/// An uplink in use.
#[derive(Debug)]
struct Open {
    link: Link,
    sockets: Vec<Arc<PacketSocket>>,
    counters: Arc<PortCounters>,
}

/// What is known of the outside, and what is open towards it.
#[derive(Debug)]
pub(super) struct Outside {
    wanted: Uplink,
    uplinks: BTreeMap<u32, Open>,
    addresses: Vec<(u32, IpNet)>,
    routes: Arc<Routes>,
    owned: Arc<OwnedPorts>,
    filtered: Option<(Vec<IpNet>, Arc<OwnedPorts>)>,
    /// The numbers of the publish rules.
    pub(super) rules: BTreeMap<String, RuleId>,
    guards: Option<Guards>,
    relay: Option<Relay>,
    /// What the relay asks.
    published: Arc<ArcSwap<Vec<Publish>>>,
    pool: bool,
}

impl Outside {
    pub(super) fn new(wanted: Uplink) -> Self {
        Self {
            wanted,
            uplinks: BTreeMap::new(),
            addresses: Vec::new(),
            routes: Arc::default(),
            owned: Arc::default(),
            filtered: None,
            rules: BTreeMap::new(),
            guards: None,
            relay: None,
            published: Arc::default(),
            pool: false,
        }
    }

    /// The interface of the default route, if it is an uplink.
    pub(super) fn default_uplink(&self) -> Option<&str> {
        let by = |v4| match self.routes.default(v4).map(|r| r.action) {
            Some(Action::Forward { ifindex, .. }) => self.uplinks.get(&ifindex),
            _ => None,
        };
        let first = || self.uplinks.values().next();
        by(true).or_else(|| by(false)).or_else(first).map(|u| u.link.name.as_str())
    }

    /// The guards and the relay: started when first needed.
    fn guards(&mut self, host: &crate::sys::netns::NetNs) -> Result<&mut Guards, GuardError> {
        if self.guards.is_none() {
            let (guards, sockets) = Guards::start(host)?;
            let published = Arc::clone(&self.published);
            let targets = Arc::new(move |protocol, dialled: std::net::SocketAddr, _| {
                let table = published.load();
                table.iter().find_map(|p| p.relayed(protocol, dialled))
            });
            match Relay::start(sockets, targets, RelayLimits::default()) {
                Ok(relay) => self.relay = Some(relay),
                Err(e) => tracing::error!("clients on the host cannot reach published ports: {e}"),
            }
            self.guards = Some(guards);
        }
        match &mut self.guards {
            Some(guards) => Ok(guards),
            // Was set just now.
            None => Err(GuardError::System(std::io::ErrorKind::NotFound.into())),
        }
    }

    /// Puts what is known of the outside into a snapshot.
    fn fill(&self, snapshot: &mut Snapshot) {
        snapshot.uplinks = self
            .uplinks
            .iter()
            .map(|(ifindex, open)| snapshot::Uplink {
                ifindex: *ifindex,
                name: open.link.name.as_str().into(),
                mac: open.link.mac,
                mtu: open.link.mtu,
                up: open.link.running,
                addresses: self.addresses.iter().filter(|(i, _)| i == ifindex).map(|(_, a)| *a).collect(),
                counters: Arc::clone(&open.counters),
            })
            .collect();
        snapshot.routes = Arc::clone(&self.routes);
        snapshot.owned = Arc::clone(&self.owned);
    }
}

/// A protocol as the guards name it.
pub(super) const fn guarded(protocol: Protocol) -> portguard::Protocol {
    match protocol {
        Protocol::Udp => portguard::Protocol::Udp,
        _ => portguard::Protocol::Tcp,
    }
}

impl Daemon {
    /// Tells the workers what is there, and the sockets of the uplinks what to let in.
    pub(super) fn publish(&mut self) {
        let mut owned = OwnedPorts::default();
        if self.outside.pool {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
                owned.add(protocol, POOL);
            }
        }
        for publish in self.desired.publishes.values() {
            owned.add(publish.protocol(), publish.ports());
        }
        if *self.outside.owned != owned {
            self.outside.owned = Arc::new(owned);
        }
        let mut snapshot = self.live.snapshot(&self.desired);
        self.outside.fill(&mut snapshot);
        for (name, port) in &self.desired.ports {
            let (Some(live), Some(network)) = (self.live.port(name), self.live.network(&port.network)) else {
                continue;
            };
            snapshot.leases.extend(port.addresses().iter().map(|a| ((network, a.addr()), live.id)));
        }
        for (from, to) in &self.desired.allowed {
            if let (Some(from), Some(to)) = (self.live.network(from), self.live.network(to)) {
                snapshot.allowed.insert((from, to));
            }
        }
        snapshot.observers = self.observers(&snapshot);
        self.set_filters();
        self.dataplane.publish(snapshot);
    }

    fn filter_input(&self) -> (Vec<IpNet>, Arc<OwnedPorts>) {
        let mut wanted: Vec<IpNet> = self.live.host_addresses.iter().copied().map(IpNet::from).collect();
        let routed = self.desired.networks.values().filter(|n| !n.masquerade);
        wanted.extend(routed.flat_map(|n| n.gateways.iter().map(|(subnet, _)| *subnet)));
        (wanted, Arc::clone(&self.outside.owned))
    }

    fn set_filters(&mut self) {
        let input = self.filter_input();
        if self.outside.filtered.as_ref() == Some(&input) {
            return;
        }
        let program = filter::program(&input.0, &input.1);
        for socket in self.outside.uplinks.values().flat_map(|u| &u.sockets) {
            if let Err(e) = socket.set_filter(&program) {
                tracing::error!("cannot change the filter of an uplink: {e}");
            }
        }
        self.outside.filtered = Some(input);
    }

    /// Looks at the host's interfaces, addresses, routes and neighbors again. The workers are told by the caller.
    pub(super) async fn look_outside(&mut self) -> Result<(), LinkError> {
        if self.outside.wanted == Uplink::None {
            return Ok(());
        }
        if !self.outside.pool
            && let Err(e) = self.guard_pool()
        {
            tracing::error!("no connections to the outside: {e}");
            self.events.tell("uplink-refused", "uplink", format!("no connections to the outside: {e}"));
            self.outside.wanted = Uplink::None;
            return Ok(());
        }
        let addresses = self.host.addresses().await?;
        let routes = self.host.main_routes().await?;
        let links = self.host.links().await?;
        let now = worker::now();
        let had: HashSet<IpAddr> = self.outside.addresses.iter().map(|(_, a)| a.addr()).collect();
        let has: HashSet<IpAddr> = addresses.iter().map(|(_, a)| a.addr()).collect();
        for gone in had.difference(&has) {
            self.dataplane.forwarding().nat.remove_external(now, Address::from(*gone));
        }
        self.outside.addresses = addresses;
        let ours: HashSet<&str> =
            self.live.ports().filter(|(_, p)| p.kind == PortKind::Host).map(|(n, _)| n.as_str()).collect();
        // Every IPv6 link has routes to its own link-local and multicast addresses: these lead nowhere.
        let leads_on = |net: &IpNet| match net.addr() {
            IpAddr::V4(a) => !a.is_multicast(),
            IpAddr::V6(a) => !a.is_unicast_link_local() && !a.is_multicast(),
        };
        let routed: BTreeSet<u32> = routes
            .iter()
            .filter(|r| leads_on(&r.destination))
            .filter_map(|r| if let Action::Forward { ifindex, .. } = r.action { Some(ifindex) } else { None })
            .collect();
        let wanted = |link: &Link| match &self.outside.wanted {
            Uplink::None => false,
            Uplink::Interface(name) => *name == link.name,
            Uplink::Auto => routed.contains(&link.index) && !ours.contains(link.name.as_str()),
        };
        let of_another = |l: &Link| l.alias.as_deref().is_some_and(|a| a.starts_with("swd:"));
        // Only what speaks Ethernet has a MAC.
        let usable = |l: &Link| !l.loopback && l.mac != crate::mac::Mac::ZERO && !of_another(l);
        let wanted: BTreeMap<u32, Link> =
            links.iter().filter(|l| usable(l) && wanted(l)).map(|l| (l.index, l.clone())).collect();
        let gone: Vec<u32> =
            self.outside.uplinks.keys().filter(|i| !wanted.contains_key(i)).copied().collect();
        for ifindex in gone {
            self.outside.uplinks.remove(&ifindex);
            self.dataplane.remove_uplink(ifindex);
            let mut state = self.dataplane.forwarding();
            state.resolver.forget(|hop| matches!(hop, Hop::Outside(i, _) if *i == ifindex));
        }
        self.outside.routes = Arc::new(Routes::new(routes));
        for (ifindex, link) in wanted {
            match self.outside.uplinks.get_mut(&ifindex) {
                Some(open) => open.link = link,
                None => self.open_uplink(ifindex, link),
            }
        }
        let neighbors = self.host.neighbors().await?;
        self.note_neighbors(&neighbors);
        self.uplink = self.outside.default_uplink().map(str::to_owned);
        Ok(())
    }

    fn open_uplink(&mut self, ifindex: u32, link: Link) {
        let (wanted, owned) = self.filter_input();
        match self.dataplane.add_uplink(ifindex, &filter::program(&wanted, &owned)) {
            Ok(sockets) => {
                self.events.tell(
                    "uplink-added",
                    &link.name,
                    format!("the outside is reached by {}", link.name),
                );
                self.outside.uplinks.insert(ifindex, Open { link, sockets, counters: Arc::default() });
                self.outside.filtered = None;
            }
            Err(e) => tracing::error!("cannot use {} as an uplink: {e}", link.name),
        }
    }

    /// Whether there may be uplinks at all.
    pub(super) fn outside_is_wanted(&self) -> bool {
        self.outside.wanted != Uplink::None
    }

    /// Takes over what the kernel knows of MACs on the uplinks.
    pub(super) fn note_neighbors(&self, neighbors: &[(u32, IpAddr, crate::mac::Mac)]) {
        let now = worker::now();
        let ours = neighbors.iter().filter(|(ifindex, ..)| self.outside.uplinks.contains_key(ifindex));
        let mut state = None;
        for (ifindex, address, mac) in ours {
            let state = state.get_or_insert_with(|| self.dataplane.forwarding());
            state.resolver.mirror(now, Hop::Outside(*ifindex, *address), *mac);
        }
    }

    fn guard_pool(&mut self) -> Result<(), GuardError> {
        let guards = self.outside.guards(&self.host_netns)?;
        let mut blocked = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let owned = guards.own(guarded(protocol), POOL, Purpose::Pool)?;
            blocked.extend(owned.left_out.into_iter().map(|port| (protocol, port)));
        }
        let mut state = self.dataplane.forwarding();
        for (protocol, port) in blocked {
            state.nat.block_port(protocol, port);
        }
        drop(state);
        self.outside.pool = true;
        Ok(())
    }

    /// Takes ports of the host for a publish.
    pub(super) fn guard(&mut self, publish: &Publish) -> Result<(), GuardError> {
        let protocol = guarded(publish.protocol());
        let guards = self.outside.guards(&self.host_netns)?;
        guards.own_at(publish.host, protocol, publish.ports(), Purpose::Publish).map(drop)
    }

    /// Gives them back, and ends what the relay carries by them.
    pub(super) fn unguard(&mut self, publish: &Publish) {
        let protocol = guarded(publish.protocol());
        if let Some(relay) = &self.outside.relay {
            relay.end(protocol, publish.ports());
        }
        if let Some(guards) = &mut self.outside.guards
            && let Err(e) = guards.release_at(publish.host, protocol, publish.ports(), Purpose::Publish)
        {
            tracing::warn!("{e}");
        }
    }

    /// Ends what the relay carries to these addresses: their container is gone.
    pub(super) fn end_relayed(&self, addresses: &[IpNet]) {
        if let Some(relay) = &self.outside.relay {
            addresses.iter().for_each(|a| relay.end_target(a.addr()));
        }
    }

    /// Lets the relay know what is published.
    pub(super) fn tell_relay(&self, desired: &Desired) {
        let of_rule = |(key, p): (&String, &Publish)| self.outside.rules.contains_key(key).then(|| p.clone());
        self.outside.published.store(Arc::new(desired.publishes.iter().filter_map(of_rule).collect()));
    }
}
