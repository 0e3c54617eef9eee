//! Neighbors: which addresses are in use in a network, and by whom, gleaned from ARP and neighbor discovery passing by.
//!
//! **What for.** The address pool skips an address that somebody uses without having asked; later the router finds next
//! hops here. Nothing is decided by it that a container could gain from: an entry is a hint.
//!
//! **Limits.** [`MAX_PER_PORT`] addresses a port; a port at its limit adds no more. An entry counts for [`LIFETIME`] after
//! it was last seen; older ones make room when the port needs it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use nat::Time;
use smoltcp::wire::{ArpPacket, ArpRepr, Icmpv6Message, Icmpv6Packet, IpProtocol, Ipv6Packet};

use crate::dataplane::DataEvent;
use crate::frame::{ETHERNET_HEADER, ETHERTYPE_ARP, ETHERTYPE_IPV6, Frame};
use crate::mac::Mac;
use crate::snapshot::{NetworkId, PortId};
use crate::stage::Cx;

/// Addresses remembered for a port.
pub const MAX_PER_PORT: usize = 256;
/// How long an address counts as in use after it was last seen.
pub const LIFETIME: Duration = Duration::from_secs(300);

/// Addresses that a port takes over in a second, or takes to another MAC, of which the fast path is told. A container that changes its
/// mind more often must not cost the others their time; what it has there is looked at again after a while.
const MAX_MOVES: u32 = 10;
/// Addresses that the fast path is not told of so far, of all ports.
const MAX_MOVED: usize = 1024;

/// Who uses an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// Its MAC.
    pub mac: Mac,
    /// Its port.
    pub port: PortId,
    /// When it last said so.
    pub seen: Time,
}

#[derive(Clone, Debug, Default)]
struct Table {
    by_address: HashMap<(NetworkId, IpAddr), Neighbor, RandomState>,
    per_port: HashMap<PortId, usize, RandomState>,
    /// Since when a port's moves are counted, and how many there were.
    moves: HashMap<PortId, (Time, u32), RandomState>,
    /// What moved, and the fast path is not told of.
    moved: Vec<(NetworkId, IpAddr)>,
}

/// The table. Only ARP and neighbor discovery take its lock, so one is enough.
#[derive(Debug, Default)]
pub struct Neighbors {
    table: Mutex<Table>,
}

impl Neighbors {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Whole after every statement: a panic elsewhere leaves it usable.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy that goes its own way.
    pub fn fork(&self) -> Self {
        Self { table: Mutex::new(self.table().clone()) }
    }

    /// Notes that `address` is used by `mac` behind `port`. Tells whether that is news to the fast path: see
    /// [`Neighbors::take_moved`].
    pub fn note(&self, network: NetworkId, address: IpAddr, mac: Mac, port: PortId, now: Time) -> bool {
        let mut table = self.table();
        let table = &mut *table;
        let new = Neighbor { mac, port, seen: now };
        if let Some(known) = table.by_address.get_mut(&(network, address)) {
            if known.port == port {
                let moved = known.mac != mac;
                *known = new;
                return moved && table.moves((network, address), port, now);
            }
            if now.since(known.seen) < LIFETIME
                && table.per_port.get(&port).is_some_and(|n| *n >= MAX_PER_PORT)
            {
                return false;
            }
        }
        if table.per_port.get(&port).is_some_and(|n| *n >= MAX_PER_PORT) {
            table.forget(|_, n| n.port == port && now.since(n.seen) >= LIFETIME);
            if table.per_port.get(&port).is_some_and(|n| *n >= MAX_PER_PORT) {
                return false;
            }
        }
        let old = table.by_address.insert((network, address), new);
        *table.per_port.entry(port).or_default() += 1;
        let Some(old) = old else { return false };
        table.count_down(old.port);
        table.moves((network, address), port, now)
    }

    /// Addresses that have changed hands since the last call: connections with them that the kernel carries go to the wrong MAC.
    pub fn take_moved(&self) -> Vec<(NetworkId, IpAddr)> {
        std::mem::take(&mut self.table().moved)
    }

    /// Who uses an address, if it was seen lately.
    pub fn get(&self, network: NetworkId, address: IpAddr, now: Time) -> Option<Neighbor> {
        self.table().by_address.get(&(network, address)).copied().filter(|n| now.since(n.seen) < LIFETIME)
    }

    /// Who was the last to say that he uses an address, however long ago.
    pub fn user(&self, network: NetworkId, address: IpAddr) -> Option<(Mac, PortId)> {
        self.table().by_address.get(&(network, address)).map(|n| (n.mac, n.port))
    }

    /// Forgets an address of a port, which uses it no more.
    pub fn remove(&self, network: NetworkId, address: IpAddr, port: PortId) {
        self.table().forget(|key, n| *key == (network, address) && n.port == port);
    }

    /// Forgets every address of a port: the port is gone.
    pub fn remove_port(&self, port: PortId) {
        let mut table = self.table();
        table.forget(|_, n| n.port == port);
        table.moves.remove(&port);
    }
}

impl Table {
    /// Counts that an address comes to a port, or to another MAC there. Tells whether the fast path is to be told.
    fn moves(&mut self, address: (NetworkId, IpAddr), port: PortId, now: Time) -> bool {
        let (since, moves) = self.moves.entry(port).or_insert((now, 0));
        if now.since(*since) >= Duration::from_secs(1) {
            (*since, *moves) = (now, 0);
        }
        *moves += 1;
        let tell = *moves <= MAX_MOVES && self.moved.len() < MAX_MOVED;
        if tell && !self.moved.contains(&address) {
            self.moved.push(address);
        }
        tell
    }

    fn forget(&mut self, goes: impl Fn(&(NetworkId, IpAddr), &Neighbor) -> bool) {
        let gone: Vec<_> = self.by_address.extract_if(|key, n| goes(key, n)).map(|(_, n)| n.port).collect();
        for port in gone {
            self.count_down(port);
        }
    }

    fn count_down(&mut self, port: PortId) {
        if let Some(count) = self.per_port.get_mut(&port) {
            *count -= 1;
            if *count == 0 {
                self.per_port.remove(&port);
            }
        }
    }
}

/// Notes the sender of an ARP packet or a neighbor solicitation or advertisement.
/// Tells the address.
pub fn glean(frame: &Frame<'_>, cx: &mut Cx<'_>) -> Option<IpAddr> {
    let address = match frame.ethertype() {
        ETHERTYPE_ARP => arp_sender(&frame.bytes()[ETHERNET_HEADER..]),
        ETHERTYPE_IPV6 => nd_sender(&frame.bytes()[ETHERNET_HEADER..]),
        _ => return None,
    }?;
    if cx.neighbors.note(cx.network.id, address, frame.src(), frame.port, cx.now) {
        (cx.tell)(DataEvent::AddressMoved);
    }
    Some(address)
}

fn arp_sender(payload: &[u8]) -> Option<IpAddr> {
    let ArpRepr::EthernetIpv4 { source_protocol_addr, .. } =
        ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()?
    else {
        return None;
    };
    // A probe (RFC 5227) asks for an address that its sender does not use yet.
    (!source_protocol_addr.is_unspecified()).then_some(source_protocol_addr.into())
}

fn nd_sender(payload: &[u8]) -> Option<IpAddr> {
    // Hop limit and next header first: this is asked of every IPv6 packet.
    if payload.get(6..8)? != [u8::from(IpProtocol::Icmpv6), 255] {
        return None;
    }
    let ip = Ipv6Packet::new_checked(payload).ok()?;
    let icmp = Icmpv6Packet::new_checked(ip.payload()).ok()?;
    let address: Ipv6Addr = match icmp.msg_type() {
        Icmpv6Message::NeighborSolicit => ip.src_addr(),
        Icmpv6Message::NeighborAdvert => icmp.target_addr(),
        _ => return None,
    };
    (!address.is_unspecified() && !address.is_multicast()).then_some(address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: NetworkId = NetworkId(0);

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + n).into())
    }

    #[test]
    fn remembers_for_a_while_and_only_so_many() {
        let table = Neighbors::default();
        let (a, b) = (PortId(1), PortId(2));
        let t = Time::from_secs(10);
        for n in 0..1000 {
            table.note(NET, ip(n), Mac::ZERO, a, t);
        }
        assert!(table.get(NET, ip(255), t).is_some());
        assert!(table.get(NET, ip(256), t).is_none());
        table.note(NET, ip(2000), Mac::ZERO, b, t);
        assert_eq!(table.get(NET, ip(2000), t).unwrap().port, b);
        // Later, what has not been seen makes room.
        let later = t + LIFETIME;
        assert!(table.get(NET, ip(0), later).is_none());
        table.note(NET, ip(3000), Mac::ZERO, a, later);
        assert!(table.get(NET, ip(3000), later).is_some());
        // An address that changes hands counts for its new owner.
        table.note(NET, ip(3000), Mac::ZERO, b, later);
        table.remove(NET, ip(3000), a);
        assert!(table.get(NET, ip(3000), later).is_some(), "not its own any more");
        table.note(NET, ip(3001), Mac::ZERO, b, later);
        table.remove(NET, ip(3001), b);
        assert!(table.get(NET, ip(3001), later).is_none());
        table.remove_port(b);
        assert!(table.get(NET, ip(3000), later).is_none());
        assert!(table.table().per_port.is_empty());
    }

    #[test]
    fn what_moves_is_told_so_often_of_each_port() {
        let table = Neighbors::default();
        let (a, b, t) = (PortId(1), PortId(2), Time::from_secs(10));
        let mac = |n| Mac([2, 0, 0, 0, 0, n]);
        assert!(!table.note(NET, ip(1), mac(1), a, t), "nobody had it before");
        assert!(!table.note(NET, ip(1), mac(1), a, t), "nothing new");
        assert!(table.note(NET, ip(1), mac(2), a, t), "another MAC");
        assert!(table.note(NET, ip(1), mac(2), b, t), "another port");
        assert_eq!((table.take_moved(), table.take_moved()), (vec![(NET, ip(1))], vec![]));
        let told = |port, t| (0..20).filter(|n| table.note(NET, ip(1), mac(10 + n), port, t)).count();
        // One of each is told of already.
        assert_eq!((told(b, t), told(a, t)), (9, 9));
        assert_eq!(told(b, t + Duration::from_secs(1)), 10, "a second later");
        assert_eq!(table.take_moved(), [(NET, ip(1))]);
    }
}
