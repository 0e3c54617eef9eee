//! The outside: uplinks, routes and neighbors as they are on the host, and the guards of the ports that are swd's.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use ctl::api::{PortKind, Transport};
use ctl::config::Uplink;
use ipnet::IpNet;
use nat::{Address, Protocol, RuleId};
use tokio::time::Instant;

use super::control::Daemon;
use super::dial::Dials;
use super::filter::{self, Wanted};
use super::links::{Link, LinkError};
use super::passage::Passage;
use super::portguard::{self, GuardError, GuardLimits, Guards, Mechanism, Purpose, Taken};
use super::publishes::{Key, Publish, Publishes};
use super::relay::{Relay, RelayLimits};
use crate::router::owned::OwnedPorts;
use crate::router::resolve::Hop;
use crate::router::route::{Action, Routes};
use crate::snapshot::{self, PortCounters, Snapshot};
use crate::sys::packet::PacketSocket;
use crate::worker;

/// Without BPF: ports of the pool that are used, for TCP and for UDP. Each takes a socket for each family.
const POOL_BY_SOCKETS: usize = 1024;
/// How long to wait before the ports of the pool are asked for again: the first time, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// An uplink in use.
#[derive(Debug)]
struct Open {
    link: Link,
    sockets: Vec<Arc<PacketSocket>>,
    counters: Arc<PortCounters>,
}

/// What the relay asks.
#[derive(Debug, Default)]
pub(super) struct Relayed {
    /// What is set up.
    pub(super) publishes: Publishes,
    /// The host's addresses.
    own: BTreeSet<IpAddr>,
}

/// The pool of external ports.
#[derive(Debug)]
enum Pool {
    /// Not asked for yet.
    Unasked,
    /// Ours: these ports of TCP and UDP. Identifiers of queries are ours without asking.
    Guarded(RangeInclusive<u16>),
    /// Refused, this often.
    Refused { times: u32, again: Instant, why: String },
}

/// What is known of the outside, and what is open towards it.
#[derive(Debug)]
pub(super) struct Outside {
    wanted: Uplink,
    uplinks: BTreeMap<u32, Open>,
    addresses: Vec<(u32, IpNet)>,
    /// See [`Snapshot::host_ends`].
    host_ends: HashMap<u32, u32, foldhash::fast::RandomState>,
    routes: Arc<Routes>,
    /// Shared with the workers, and changed in place.
    pub(super) owned: Arc<OwnedPorts>,
    filtered: Option<Wanted>,
    /// The numbers of the publish rules.
    pub(super) rules: BTreeMap<Key, RuleId>,
    /// Publishes that could not be set up, and why.
    pub(super) refused: BTreeMap<Key, String>,
    /// Programs of the host that sit at ports of ours.
    pub(super) intruders: Vec<Taken>,
    /// The same at the last look, and sockets without a process.
    seen: Vec<Taken>,
    limits: GuardLimits,
    pub(super) guards: Option<Guards>,
    pub(super) relay: Option<Relay>,
    /// Leads those clients of the host past the relay that it can.
    dials: Option<Dials>,
    /// What passes from one daemon to the next.
    pub(super) passage: Passage,
    relayed: Arc<RwLock<Relayed>>,
    /// The external ports of masquerade, as configured.
    ports: RangeInclusive<u16>,
    pool: Pool,
}

impl Outside {
    pub(super) fn new(
        wanted: Uplink,
        ports: RangeInclusive<u16>,
        mechanism: Option<Mechanism>,
        passage: Passage,
    ) -> Self {
        Self {
            wanted,
            uplinks: BTreeMap::new(),
            addresses: Vec::new(),
            host_ends: HashMap::default(),
            routes: Arc::default(),
            owned: Arc::default(),
            filtered: None,
            rules: BTreeMap::new(),
            refused: BTreeMap::new(),
            intruders: Vec::new(),
            seen: Vec::new(),
            limits: GuardLimits { mechanism, predecessor: passage.predecessor, ..GuardLimits::default() },
            guards: None,
            relay: None,
            passage,
            dials: None,
            relayed: Arc::default(),
            ports,
            pool: Pool::Unasked,
        }
    }

    /// The external ports of TCP and UDP, while they are ours.
    pub(super) fn pool(&self) -> Option<&RangeInclusive<u16>> {
        match &self.pool {
            Pool::Guarded(ports) => Some(ports),
            _ => None,
        }
    }

    /// How ports are guarded, once there was need to.
    pub(super) fn mechanism(&self) -> Option<Mechanism> {
        self.guards.as_ref().map(Guards::mechanism)
    }

    /// What the relay asks. It waits while this is held.
    pub(super) fn relayed(&self) -> RwLockWriteGuard<'_, Relayed> {
        self.relayed.write().unwrap_or_else(PoisonError::into_inner)
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
            let (safe, kept) = self.passage.for_guards();
            let (guards, sockets) = Guards::with_safe(host, self.limits, Some(safe), kept)?;
            if let (None, Some(refusal)) = (self.limits.mechanism, guards.refusal()) {
                tracing::warn!(
                    "ports are guarded by a socket each, at most {} of them: {refusal}",
                    self.limits.ports
                );
            }
            if guards.mechanism() == Mechanism::Lookup {
                match Dials::start(host) {
                    Ok(dials) => self.dials = Some(dials),
                    Err(e) => tracing::info!("clients on the host are all relayed: {e}"),
                }
            }
            self.guards = Some(guards);
            self.tell_addresses();
            self.passage.sockets = Some(sockets);
            if self.passage.is_settled() {
                self.settle();
            }
        }
        match &mut self.guards {
            Some(guards) => Ok(guards),
            // Was set just now.
            None => Err(GuardError::System(std::io::ErrorKind::NotFound.into())),
        }
    }

    /// Starts the relay that was put off.
    pub(super) fn start_relay(&mut self) {
        let Some(sockets) = self.passage.sockets.take() else { return };
        let relayed = Arc::clone(&self.relayed);
        let targets = Arc::new(move |protocol, dialled: SocketAddr, client: SocketAddr| {
            let transport = match protocol {
                portguard::Protocol::Tcp => Transport::Tcp,
                portguard::Protocol::Udp => Transport::Udp,
            };
            let Relayed { publishes, own } = &*relayed.read().unwrap_or_else(PoisonError::into_inner);
            publishes.relayed(transport, dialled, client.ip(), own)
        });
        match Relay::start(sockets, targets, RelayLimits::default()) {
            Ok(relay) => self.relay = Some(relay),
            Err(e) => tracing::error!("clients on the host cannot reach published ports: {e}"),
        }
    }

    /// Tells those that see to clients on the host which addresses are its own.
    fn tell_addresses(&mut self) {
        let Some(dials) = &mut self.dials else { return };
        let relayed = self.relayed.read().unwrap_or_else(PoisonError::into_inner);
        dials.set_addresses(&relayed.own);
    }

    /// Reckons anew which ports of a protocol are ours: after some have gone.
    pub(super) fn own_again(&self, protocol: Protocol) {
        let all = OwnedPorts::default();
        match (&self.pool, protocol) {
            (Pool::Guarded(_), Protocol::Icmp) => all.add(protocol, self.ports.clone()),
            (Pool::Guarded(ports), _) => all.add(protocol, ports.clone()),
            _ => {}
        }
        let relayed = self.relayed();
        let publishes = relayed.publishes.iter().filter(|(_, p)| p.protocol() == protocol);
        publishes.for_each(|(_, p)| all.add(protocol, p.ports()));
        self.owned.assign(protocol, &all);
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
        snapshot.host_ends.clone_from(&self.host_ends);
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
        self.refresh_limits();
        let mut snapshot = self.live.snapshot(&self.desired);
        self.outside.fill(&mut snapshot);
        for (name, port) in &self.desired.ports {
            let (Some(live), Some(network)) = (self.live.port(name), self.live.network(&port.network)) else {
                continue;
            };
            let addresses = self.desired.addresses(name);
            snapshot.leases.extend(addresses.iter().map(|a| ((network, a.addr()), live.id)));
        }
        snapshot.policy = self.policy();
        let internal = self.desired.networks.iter().filter(|(_, n)| n.internal);
        snapshot.internal = internal.filter_map(|(name, _)| self.live.network(name)).collect();
        snapshot.names = Arc::new(self.names(&mut snapshot.services));
        snapshot.addressing = Arc::new(self.addressing(&mut snapshot.services));
        snapshot.observers = self.observers(&snapshot);
        self.set_filters();
        let mut relayed = self.outside.relayed();
        if relayed.own != self.live.host_addresses {
            relayed.own.clone_from(&self.live.host_addresses);
            drop(relayed);
            self.outside.tell_addresses();
        } else {
            drop(relayed);
        }
        self.dataplane.publish(snapshot);
    }

    fn filter_input(&self) -> Wanted {
        let mut wanted: Vec<IpNet> = self.live.host_addresses.iter().copied().map(IpNet::from).collect();
        let routed = self.desired.networks.values().filter(|n| !n.masquerade);
        wanted.extend(routed.flat_map(|n| n.gateways.iter().map(|(subnet, _)| *subnet)));
        Wanted::new(wanted, &self.outside.owned)
    }

    /// Tells the sockets of the uplinks what to let in, where that has changed.
    pub(super) fn set_filters(&mut self) {
        let input = self.filter_input();
        if self.outside.filtered.as_ref() == Some(&input) {
            return;
        }
        let program = filter::program(&input);
        for socket in self.outside.uplinks.values().flat_map(|u| &u.sockets) {
            if let Err(e) = self.dataplane.filter_uplink(socket, &program) {
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
        if !self.has_pool() {
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
        let ends = self.live.ports().filter(|(_, p)| p.kind == PortKind::Host).filter_map(|(name, port)| {
            let inner = port.link.as_ref()?.index?;
            let end = links.iter().find(|l| l.name == *name && l.up && l.is_veth() && l.peer_elsewhere)?;
            (end.peer == Some(inner)).then_some((inner, end.index))
        });
        self.outside.host_ends = ends.collect();
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
        match self.dataplane.add_uplink(ifindex, &filter::program(&self.filter_input())) {
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
        if state.is_some_and(|mut state| state.resolver.take_changed()) {
            self.dataplane.end_epoch();
        }
    }

    /// Whether there are ports to masquerade behind; asks for them if it is time to. Without, nothing leaves.
    fn has_pool(&mut self) -> bool {
        let times = match &self.outside.pool {
            Pool::Guarded(_) => return true,
            Pool::Refused { again, .. } if *again > Instant::now() => return false,
            Pool::Refused { times, .. } => *times,
            Pool::Unasked => 0,
        };
        let Err(e) = self.guard_pool() else { return true };
        let why = e.to_string();
        if !matches!(&self.outside.pool, Pool::Refused { why: known, .. } if *known == why) {
            tracing::error!("no connections to the outside: {why}");
            self.events.tell("uplink-refused", "uplink", format!("no connections to the outside: {why}"));
        }
        let wait = RETRY.0.saturating_mul(1 << times.min(16)).min(RETRY.1);
        self.outside.pool = Pool::Refused { times: times + 1, again: Instant::now() + wait, why };
        false
    }

    fn guard_pool(&mut self) -> Result<(), GuardError> {
        let all = self.outside.ports.clone();
        let guards = self.outside.guards(&self.host_netns)?;
        let (first, last) = (*all.start(), *all.end());
        let ports = match guards.mechanism() {
            Mechanism::Lookup => all,
            Mechanism::Sockets => first..=all.take(POOL_BY_SOCKETS).next_back().unwrap_or(last),
        };
        let mut blocked = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let owned = match guards.own(guarded(protocol), ports.clone(), Purpose::Pool) {
                Ok(owned) => owned,
                Err(e) => {
                    if protocol == Protocol::Udp {
                        guards.release(guarded(Protocol::Tcp), ports, Purpose::Pool)?;
                    }
                    return Err(e);
                }
            };
            let unused =
                (u32::from(*ports.end()) + 1..=u32::from(last)).filter_map(|p| u16::try_from(p).ok());
            blocked.extend(owned.left_out.into_iter().chain(unused).map(|port| (protocol, port)));
        }
        let mut state = self.dataplane.forwarding();
        for (protocol, port) in blocked {
            state.nat.block_port(protocol, port);
        }
        drop(state);
        self.outside.pool = Pool::Guarded(ports);
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            self.outside.own_again(protocol);
        }
        Ok(())
    }

    /// Tries again what was refused: the ports of the pool, with patience, and publishes.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub(super) async fn mend(&mut self) -> Result<(), LinkError> {
        if matches!(self.outside.pool, Pool::Refused { .. }) && self.has_pool() {
            self.events.tell("uplink-guarded", "uplink", "connections to the outside are possible now");
            self.look_outside().await?;
            self.publish();
        }
        if !self.outside.refused.is_empty() {
            self.set_up_publishes();
            self.set_filters();
        }
        Ok(())
    }

    /// Looks for programs of the host that took ports of ours, and tells of new ones.
    pub(super) fn look_for_intruders(&mut self) {
        let Some(guards) = &self.outside.guards else { return };
        match guards.intruders() {
            Ok(found) => {
                // A socket that no process has may be one that is being closed: it counts when it is seen again.
                let before = std::mem::replace(&mut self.outside.seen, found.clone());
                let found: Vec<Taken> =
                    found.into_iter().filter(|t| t.pid.is_some() || before.contains(t)).collect();
                for taken in found.iter().filter(|t| !self.outside.intruders.contains(t)) {
                    let Taken { port, protocol, .. } = taken;
                    let what = format!("{taken}, and is swd's: the program gets nothing from there");
                    tracing::warn!("{what}");
                    self.events.tell("port-taken", &format!("{port}/{protocol}"), what);
                }
                self.outside.intruders = found;
            }
            Err(e) => tracing::warn!("cannot look for programs that took ports of swd's: {e}"),
        }
    }

    /// Takes ports of the host for a publish.
    pub(super) fn guard(&mut self, publish: &Publish) -> Result<(), GuardError> {
        let protocol = guarded(publish.protocol());
        let guards = self.outside.guards(&self.host_netns)?;
        guards.own_at(publish.host, protocol, publish.ports(), Purpose::Publish).map(drop)
    }

    /// Lets clients on the host have it: the relay's always, by themselves where the host reaches the network.
    pub(super) fn open_to_host(&mut self, publish: &Arc<Publish>) {
        self.outside.relayed().publishes.insert(Arc::clone(publish));
        let network = self.desired.networks.get(&publish.network);
        if let (Some(dials), true) =
            (&mut self.outside.dials, network.is_some_and(|n| n.host_ifname.is_some()))
        {
            dials.add(publish);
        }
    }

    /// Gives them back, and ends what the host's clients have open by them.
    pub(super) fn unguard(&mut self, publish: &Publish) {
        let protocol = guarded(publish.protocol());
        if let Some(dials) = &mut self.outside.dials {
            dials.remove(publish);
        }
        if let Some(relay) = &self.outside.relay {
            relay.end(protocol, publish.ports());
        }
        if let Some(guards) = &mut self.outside.guards
            && let Err(e) = guards.release_at(publish.host, protocol, publish.ports(), Purpose::Publish)
        {
            tracing::warn!("{e}");
        }
    }

    /// Ends what the host's clients have open to these addresses: their container is gone.
    pub(super) fn end_relayed(&mut self, addresses: &[IpNet]) {
        if let Some(dials) = &mut self.outside.dials {
            addresses.iter().for_each(|a| dials.end_target(a.addr()));
        }
        if let Some(relay) = &self.outside.relay {
            addresses.iter().for_each(|a| relay.end_target(a.addr()));
        }
    }
}
