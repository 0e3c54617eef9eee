//! The translator: packet in, verdict out.
//!
//! [`Nat`] has one entry point for each way a packet can take: [`Nat::outbound`] from a network to the outside,
//! [`Nat::inbound`] from the outside to one of the host's addresses, [`Nat::hairpin`] from a network to one of the host's
//! addresses, [`Nat::routed`] between networks without translation. All work alike:
//!
//! 1. An ICMP error is translated by the connection it is about, and changes no state.
//! 2. A later fragment is translated by the record of its datagram's first, or held until that comes.
//! 3. A packet of a known connection is translated in place: [`Verdict::Forward`].
//! 4. Anything else may begin a connection: [`Verdict::New`] says which, and leaves the packet alone. The caller decides
//!    (policy, route, next hop). [`Nat::commit`] then makes the connection and translates the packet; to drop it, forget
//!    the [`Pending`]: there is no state to take back.
//!
//! The caller does the rest of a router's work: hop limits, MTU, IP identification (RFC 6864), ICMP answers. It calls
//! [`Nat::expire`] now and then.

mod commit;
pub(crate) mod elsewhere;
mod housekeeping;
mod restore;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use foldhash::quality::RandomState;

use crate::checksum::Checksum;
use crate::conntrack::tcp::{Effect, Ends};
use crate::conntrack::{Connection, ConnectionId, Conntrack, Lookup, State, Timeouts};
use crate::fragment::{FragmentLimits, Fragments, Key, Noted};
use crate::icmp;
use crate::masquerade::Masquerade;
use crate::owners::{Denied, OwnerLimits, Owners};
use crate::packet::{Packet, Transport};
use crate::ports::HoldDown;
use crate::publish::Rules;
use crate::time::Time;
use crate::tuple::{Address, Direction, NetworkId, OwnerId, Protocol, Tuple};
use crate::verdict::{DropReason, Forward, Party, Pending, Plan, Refusal, Verdict};

/// Which connections of an inside endpoint share an external port (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// Each has its own ("symmetric").
    AddressAndPortDependent,
    /// All of them, while ports last.
    #[default]
    EndpointIndependent,
}

/// Who may send to an external port that is in use (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// Endpoints that the inside endpoint has sent to.
    #[default]
    AddressAndPortDependent,
    /// Any port of addresses that the inside endpoint has sent to.
    AddressDependent,
    /// Everyone.
    EndpointIndependent,
}

/// Whether packets from outside keep a connection alive (RFC 4787 REQ-6, RFC 7857 section 7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InboundRefresh {
    /// They do not.
    No,
    /// They do.
    #[default]
    Yes,
}

/// How a network is translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Which connections share an external port.
    pub mapping: Mapping,
    /// Who may send to it.
    pub filtering: Filtering,
    /// What keeps a connection alive.
    pub inbound_refresh: InboundRefresh,
    /// How long connections live without packets.
    pub timeouts: Timeouts,
}

/// Sizes and limits, fixed for the life of a [`Nat`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Connections in all.
    pub connections: u32,
    /// What an owner may have unless told otherwise.
    pub owner: OwnerLimits,
    /// The external ports (and ICMP query identifiers) that mappings use.
    pub ports: RangeInclusive<u16>,
    /// How long ports rest after use.
    pub hold_down: HoldDown,
    /// Limits of virtual reassembly.
    pub fragments: FragmentLimits,
    /// Decides the order of ports. Random in production, so that ports are hard to guess (RFC 6056).
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections: 262_144,
            owner: OwnerLimits { connections: 65_536, new_per_second: 20_000 },
            ports: 61_000..=65_535,
            hold_down: HoldDown::default(),
            fragments: FragmentLimits::default(),
            seed: 0,
        }
    }
}

/// The addresses that connections of a packet's route are masqueraded behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct External {
    /// For IPv4 packets.
    pub v4: Option<Ipv4Addr>,
    /// For IPv6 packets.
    pub v6: Option<Ipv6Addr>,
}

impl External {
    fn of(self, v4: bool) -> Option<Address> {
        if v4 { self.v4.map(Address::from) } else { self.v6.map(Address::from) }
    }
}

/// The most fragments that wait for [`Nat::next_released`]: more than a datagram of 64 KiB has, at the least MTU of IPv6.
/// A caller that does not ask loses the oldest.
const MAX_RELEASED: usize = 1024;

/// Connection tracking and NAT: all state, no I/O.
#[derive(Clone, Debug)]
pub struct Nat {
    table: Conntrack,
    masquerade: Masquerade,
    rules: Rules,
    owners: Owners,
    fragments: Fragments,
    /// Fragments that waited for their first one, translated and ready to go; and whether nobody else has them.
    released: VecDeque<(Forward, Vec<u8>, bool)>,
    /// The settings of networks; the first is that of networks without their own.
    profiles: Vec<NetworkConfig>,
    networks: HashMap<NetworkId, u16, RandomState>,
    /// Ports that must not be leased, because the host has them.
    blocked: HashSet<(Protocol, u16), RandomState>,
    generation: u32,
}

impl Nat {
    /// A translator without rules or connections.
    pub fn new(config: Config) -> Self {
        Self {
            table: Conntrack::new(config.connections),
            masquerade: Masquerade::new(config.connections, config.ports, config.hold_down, config.seed),
            rules: Rules::default(),
            owners: Owners::new(config.owner),
            fragments: Fragments::new(config.fragments),
            released: VecDeque::new(),
            profiles: vec![NetworkConfig::default()],
            networks: HashMap::default(),
            blocked: HashSet::default(),
            generation: 0,
        }
    }

    /// A packet from inside to the outside.
    pub fn outbound(
        &mut self,
        now: Time,
        packet: &mut Packet<'_>,
        from: Party,
        external: External,
    ) -> Verdict {
        self.process(now, packet, (from, Whose::Ours), |nat, packet, tuple| {
            if let Err(reason) = nat.may_begin(packet) {
                return Verdict::Drop(reason);
            }
            let Some(external) = external.of(packet.is_v4()) else {
                return Verdict::Refuse(Refusal::NoExternalAddress);
            };
            nat.propose(now, Pending { tuple, from, to: Party::OUTSIDE, plan: Plan::Masquerade { external } })
        })
    }

    /// A packet from the outside to one of the host's addresses.
    ///
    /// `resolve` is asked at most once, who is at an address that a publish rule leads to.
    pub fn inbound(
        &mut self,
        now: Time,
        packet: &mut Packet<'_>,
        resolve: impl FnOnce(NetworkId, Address) -> Option<OwnerId>,
    ) -> Verdict {
        let verdict = self.process(now, packet, (Party::OUTSIDE, Whose::Unknown), |nat, packet, tuple| {
            match nat.rules.target(tuple.protocol, tuple.source.address, tuple.destination) {
                Some(Err(_)) => return Verdict::Drop(DropReason::SourceDenied),
                Some(Ok(target)) => {
                    if let Err(reason) = nat.may_begin(packet) {
                        return Verdict::Drop(reason);
                    }
                    let Some(owner) = resolve(target.network, target.endpoint.address) else {
                        return Verdict::Refuse(Refusal::NoTarget);
                    };
                    let to = Party { network: target.network, owner };
                    let plan = Plan::Published { target: target.endpoint, rule: target.rule };
                    return nat.propose(now, Pending { tuple, from: Party::OUTSIDE, to, plan });
                }
                None => {}
            }
            let Some(mapping) = nat.masquerade.at(nat.table.filters(), tuple.protocol, tuple.destination)
            else {
                return Verdict::NotOurs;
            };
            let Some(inside) = nat.masquerade.get(mapping).map(|mapping| *mapping.inside()) else {
                return Verdict::NotOurs;
            };
            let allowed = match nat.profile(inside.network).filtering {
                Filtering::AddressAndPortDependent => false,
                Filtering::AddressDependent => nat.masquerade.has_contact(mapping, tuple.source.address),
                Filtering::EndpointIndependent => true,
            };
            if !allowed {
                return Verdict::Drop(DropReason::Filtered);
            }
            if let Err(reason) = nat.may_begin(packet) {
                return Verdict::Drop(reason);
            }
            let to = Party { network: inside.network, owner: inside.owner };
            let plan = Plan::Mapped { target: inside.endpoint };
            nat.propose(now, Pending { tuple, from: Party::OUTSIDE, to, plan })
        });
        match verdict {
            // What says nothing to us may say something to the host.
            Verdict::Drop(DropReason::IcmpUnrelated | DropReason::Unsupported) => Verdict::NotOurs,
            verdict => verdict,
        }
    }

    /// A packet from inside to one of the host's addresses: to a published port, or to the external endpoint of another
    /// container. The receiver sees it come from the sender's own external endpoint (RFC 4787 REQ-9a).
    ///
    /// Filtering is for the outside and does not apply: whether one container may reach another is the caller's to
    /// decide, by [`Pending::from`] and [`Pending::to`].
    pub fn hairpin(
        &mut self,
        now: Time,
        packet: &mut Packet<'_>,
        from: Party,
        external: External,
        resolve: impl FnOnce(NetworkId, Address) -> Option<OwnerId>,
    ) -> Verdict {
        let verdict = self.process(now, packet, (from, Whose::Unknown), |nat, packet, tuple| {
            let (to, target, rule) =
                match nat.rules.target(tuple.protocol, tuple.source.address, tuple.destination) {
                    Some(Err(_)) => return Verdict::Drop(DropReason::SourceDenied),
                    Some(Ok(target)) => {
                        let Some(owner) = resolve(target.network, target.endpoint.address) else {
                            return Verdict::Refuse(Refusal::NoTarget);
                        };
                        (Party { network: target.network, owner }, target.endpoint, Some(target.rule))
                    }
                    None => {
                        let filters = nat.table.filters();
                        let mapping = nat.masquerade.at(filters, tuple.protocol, tuple.destination);
                        let Some(mapping) = mapping.and_then(|mapping| nat.masquerade.get(mapping)) else {
                            return Verdict::NotOurs;
                        };
                        let inside = mapping.inside();
                        (Party { network: inside.network, owner: inside.owner }, inside.endpoint, None)
                    }
                };
            if let Err(reason) = nat.may_begin(packet) {
                return Verdict::Drop(reason);
            }
            let Some(external) = external.of(packet.is_v4()) else {
                return Verdict::Refuse(Refusal::NoExternalAddress);
            };
            nat.propose(now, Pending { tuple, from, to, plan: Plan::Hairpin { target, external, rule } })
        });
        match verdict {
            Verdict::Drop(DropReason::IcmpUnrelated | DropReason::Unsupported) => Verdict::NotOurs,
            verdict => verdict,
        }
    }

    /// A packet between two networks, or to the outside without translation: tracked, so that the caller can let answers
    /// pass where only one side may begin.
    pub fn routed(&mut self, now: Time, packet: &mut Packet<'_>, from: Party, to: Party) -> Verdict {
        self.process(now, packet, (from, Whose::Ours), |nat, packet, tuple| {
            if let Err(reason) = nat.may_begin(packet) {
                return Verdict::Drop(reason);
            }
            nat.propose(now, Pending { tuple, from, to, plan: Plan::Routed })
        })
    }

    /// What all ways have in common; `begin` judges a packet that belongs to no connection.
    fn process(
        &mut self,
        now: Time,
        packet: &mut Packet<'_>,
        (from, whose): (Party, Whose),
        begin: impl FnOnce(&mut Self, &Packet<'_>, Tuple) -> Verdict,
    ) -> Verdict {
        let key = Key::new(packet, from.network);
        if packet.transport() == Transport::Error {
            return self.error(now, packet, from);
        }
        if let (Transport::Later, Some(key)) = (packet.transport(), key) {
            return self.later_fragment(now, packet, key, (from, whose));
        }
        let Some(tuple) = packet.tuple(from.network) else {
            return Verdict::Drop(DropReason::Unsupported);
        };
        let Some((id, direction)) = self.lookup(now, &tuple) else { return begin(self, packet, tuple) };
        // A container with another's address gets nothing of the other's.
        if self.table.get(id).is_some_and(|connection| connection.owner(direction) != from.owner) {
            return Verdict::Drop(DropReason::Clash);
        }
        match self.travel(now, packet, id, direction) {
            Ok(forward) => Verdict::Forward(forward),
            Err(verdict) => verdict,
        }
    }

    /// The live connection that a packet with this tuple belongs to. Collects a dead one in its place.
    fn lookup(&mut self, now: Time, tuple: &Tuple) -> Option<(ConnectionId, Direction)> {
        loop {
            match self.table.find(now, tuple) {
                Lookup::Dead(id) => self.end(now, id),
                Lookup::Live(id, direction) => return Some((id, direction)),
                Lookup::Nothing => return None,
            }
        }
    }

    /// Whether a packet of no connection can begin one.
    fn may_begin(&self, packet: &Packet<'_>) -> Result<(), DropReason> {
        match packet.transport() {
            Transport::Opaque | Transport::QueryRequest | Transport::Sctp | Transport::Udp => Ok(()),
            Transport::Tcp => match packet.tcp().and_then(|segment| Ends::open(&segment)) {
                Some(_) => Ok(()),
                None => Err(DropReason::NoConnection),
            },
            Transport::Error | Transport::Later | Transport::QueryReply => Err(DropReason::NoConnection),
        }
    }

    /// A proposal, unless a limit is in its way.
    fn propose(&mut self, now: Time, pending: Pending) -> Verdict {
        match self.check_limits(now, &pending) {
            Ok(()) => Verdict::New(pending),
            Err(refusal) => Verdict::Refuse(refusal),
        }
    }

    fn check_limits(&mut self, now: Time, pending: &Pending) -> Result<(), Refusal> {
        let charged = match pending.from.owner {
            OwnerId::OUTSIDE => pending.to.owner,
            owner => owner,
        };
        self.owners.may_open(now, charged).map_err(|denied| match denied {
            Denied::Connections => Refusal::OwnerLimit,
            Denied::Rate => Refusal::RateLimit,
        })?;
        if self.table.is_full() {
            // Perhaps only because what has ended was not collected yet.
            self.collect(now, 8);
            if self.table.is_full() {
                return Err(Refusal::TableFull);
            }
        }
        Ok(())
    }

    /// Takes a packet along its connection: state, deadline, counters, then the translation in place.
    fn travel(
        &mut self,
        now: Time,
        packet: &mut Packet<'_>,
        id: ConnectionId,
        direction: Direction,
    ) -> Result<Forward, Verdict> {
        let Some(connection) = self.table.get_mut(id) else { return Err(Verdict::NotOurs) };
        let network = connection.tuple(direction).network;
        let forward = forward(id, connection, direction);
        let fragment = Key::new(packet, network);
        if let Some(key) = fragment
            && self.fragments.note(now, key, id, direction) == Noted::Clash
        {
            return Err(Verdict::Drop(DropReason::FragmentMismatch));
        }

        let before = connection.state;
        let mut refresh = true;
        if let Some(segment) = packet.tcp() {
            let mut ends = connection.ends();
            match ends.follow(before, direction, &segment) {
                Effect::Ignored => refresh = false,
                Effect::Reopened => {
                    let charged = connection.charged();
                    if self.owners.may_open(now, charged) == Err(Denied::Rate) {
                        return Err(Verdict::Refuse(Refusal::RateLimit));
                    }
                    self.owners.reopened(charged);
                    connection.state = State::SynSent;
                }
                // What comes after the end keeps nothing alive (RFC 7857 section 7.1).
                Effect::State(state) => {
                    refresh = state != before || !state.is_over();
                    connection.state = state;
                }
            }
            connection.set_ends(ends);
        } else if direction == Direction::Reply && before == State::Unreplied {
            connection.state = State::Replied;
        }
        connection.count(direction, packet.len());

        let config = self.profiles.get(usize::from(connection.profile)).copied().unwrap_or_default();
        if network == NetworkId::OUTSIDE
            && config.inbound_refresh == InboundRefresh::No
            && connection.state == before
        {
            refresh = false;
        }
        Self::note_if_over(&mut self.masquerade, connection, id);
        let lifetime = config.timeouts.of(&connection.tuple(Direction::Original), connection.state);
        let mut changed = connection.state != before;
        if refresh {
            self.table.set_deadline(id, now + lifetime);
            changed |= self.table.get(id).is_some_and(|connection| connection.is_stale(lifetime));
        }
        if changed {
            self.table.note_change(id);
        }
        self.translate(packet, id, direction);
        if let Some(key) = fragment {
            self.release_held(now, &key, forward);
        }
        Ok(forward)
    }

    /// Connections give their ports back in the order in which they ended, should ports run out (RFC 6888 REQ-8).
    fn note_if_over(masquerade: &mut Masquerade, connection: &mut Connection, id: ConnectionId) {
        if connection.state.is_over()
            && !connection.closed_noted
            && let Some(pool) = masquerade.pool_of(connection.mapping)
        {
            connection.closed_noted = true;
            pool.note_closed(id);
        }
    }

    /// Translates the fragments that came before their first one, and keeps them for [`Self::next_released`].
    fn release_held(&mut self, now: Time, key: &Key, forward: Forward) {
        let (held, only_here) = self.fragments.release(now, key);
        for mut bytes in held {
            let Ok(mut packet) = Packet::parse(&mut bytes, Checksum::Complete) else {
                self.fragments.lose(1, only_here);
                continue;
            };
            if let Some(connection) = self.table.get_mut(forward.connection) {
                connection.count(forward.direction, packet.len());
            }
            self.translate(&mut packet, forward.connection, forward.direction);
            if self.released.len() >= MAX_RELEASED
                && let Some((_, _, only_here)) = self.released.pop_front()
            {
                self.fragments.lose(1, only_here);
            }
            self.released.push_back((forward, bytes, only_here));
        }
    }

    /// Makes a packet that matches one tuple the reverse of the other.
    fn translate(&self, packet: &mut Packet<'_>, id: ConnectionId, direction: Direction) {
        let Some(connection) = self.table.get(id) else { return };
        let other = connection.tuple(direction.reverse());
        packet.translate(other.destination, other.source);
    }

    /// An ICMP error. Nothing changes but the packet (RFC 5508 REQ-6, RFC 4787 REQ-12, RFC 5382 REQ-10).
    fn error(&mut self, now: Time, packet: &mut Packet<'_>, from: Party) -> Verdict {
        let tuple = match icmp::related_tuple(packet, from.network) {
            Ok(tuple) => tuple,
            Err(reason) => return Verdict::Drop(reason),
        };
        let Some((id, direction)) = self.lookup(now, &tuple) else {
            return Verdict::Drop(DropReason::IcmpUnrelated);
        };
        // One container must not speak about the connections of another.
        let connection = self.table.get(id).filter(|connection| connection.owner(direction) == from.owner);
        let Some(connection) = connection else {
            return Verdict::Drop(DropReason::IcmpUnrelated);
        };
        icmp::translate(packet, connection, direction);
        Verdict::Forward(forward(id, connection, direction))
    }

    /// A fragment other than the first.
    fn later_fragment(
        &mut self,
        now: Time,
        packet: &mut Packet<'_>,
        key: Key,
        (from, whose): (Party, Whose),
    ) -> Verdict {
        let Some((id, direction)) = self.fragments.find(now, &key) else {
            return match self.fragments.hold(now, key, packet.bytes(), whose == Whose::Ours) {
                true => Verdict::Held,
                false => Verdict::Drop(DropReason::FragmentLimit),
            };
        };
        if !self.table.is_live(now, id) {
            return Verdict::Drop(DropReason::NoConnection);
        }
        let Some(connection) = self.table.get_mut(id) else {
            return Verdict::Drop(DropReason::NoConnection);
        };
        if connection.owner(direction) != from.owner {
            return Verdict::Drop(DropReason::Clash);
        }
        connection.count(direction, packet.len());
        let forward = forward(id, connection, direction);
        self.translate(packet, id, direction);
        Verdict::Forward(forward)
    }
}

/// Whose a packet is that cannot be told by its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Ours to translate.
    Ours,
    /// It may be the host's: the caller lets the host have it, and what is held is a copy.
    Unknown,
}

/// The way of a packet that travels in `direction` of a connection.
fn forward(connection: ConnectionId, found: &Connection, direction: Direction) -> Forward {
    let other = direction.reverse();
    let to = Party { network: found.tuple(other).network, owner: found.owner(other) };
    Forward { connection, direction, to, generation: found.generation }
}

#[cfg(test)]
mod tests;
