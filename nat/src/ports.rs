//! Port pools: which external ports (or ICMP query identifiers) are free, leased, or resting.
//!
//! **What it stores.** One pool for each external address and protocol. A port is *leased* to at most one mapping that
//! has it to itself, and to any number that share it, each for a single destination (RFC 7857 section 3). Otherwise it
//! waits in the queue of free ports, or rests (*hold-down*) until packets for its last user have died out (RFC 6888
//! REQ-8).
//!
//! **Order.** Free ports are handed out first-in first-out, from a shuffled start: the port given back last is the last
//! to be given out again, and the next one is not simply the last one plus one (RFC 6056).
//!
//! **When none is free.** The pool knows which connections could give a port back, in the order in which they closed
//! ([`Pool::note_closed`], [`Pool::next_closed`]), can end a rest early ([`Pool::lease_resting`]), and can propose ports
//! for sharing ([`Pool::candidates`]). Which of these is allowed, and in which order, is the masquerade's decision.
//!
//! A lease is a value that is not copied and is given back exactly once, by [`Pool::release`].

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::conntrack::ConnectionId;
use crate::slab::NONE;
use crate::time::Time;
use crate::tuple::{Address, Protocol};

/// The kinds of pool: protocol and family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    protocol: Protocol,
    v4: bool,
}

impl Kind {
    pub(crate) const COUNT: usize = 6;

    /// The kind of pool that serves `protocol` behind `external`; `None` for protocols without ports of ours.
    pub(crate) fn new(protocol: Protocol, external: Address) -> Option<Self> {
        match protocol {
            Protocol::Icmp | Protocol::Icmpv6 | Protocol::Tcp | Protocol::Udp => {
                Some(Self { protocol, v4: external.is_v4() })
            }
            Protocol::Other(_) | Protocol::Sctp => None,
        }
    }

    pub(crate) const fn protocol(self) -> Protocol {
        self.protocol
    }

    pub(crate) const fn index(self) -> usize {
        let family = if self.v4 { 0 } else { 3 };
        family
            + match self.protocol {
                Protocol::Tcp => 0,
                Protocol::Udp => 1,
                _ => 2,
            }
    }
}

/// How long and how many ports rest after use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldDown {
    /// How long a port rests. RFC 6888 REQ-8: 120 seconds.
    pub duration: Duration,
    /// The most ports of a pool that rest at once; beyond, the one that has rested longest becomes free.
    pub ports: usize,
}

impl Default for HoldDown {
    fn default() -> Self {
        Self { duration: Duration::from_secs(120), ports: usize::MAX }
    }
}

/// Whether a port that is given back rests first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// It rests.
    Needed,
    /// Its last user was a TCP connection that both ends closed: free at once.
    Unneeded,
}

/// The right to use a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    port: u16,
    use_: Use,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Alone,
    Shared,
}

impl Lease {
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.use_ == Use::Shared
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The mapping that has the port to itself.
    mapping: u32,
    /// How many mappings use the port.
    users: u32,
    /// In the free queue, or resting.
    waiting: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Pool {
    external: Address,
    kind: Kind,
    first: u16,
    slots: Vec<Slot>,
    free: VecDeque<u16>,
    resting: VecDeque<(u16, Time)>,
    closed: VecDeque<ConnectionId>,
    /// Where the search for a port to share goes on.
    cursor: usize,
    /// Ports in use.
    used: u32,
}

impl Pool {
    /// A pool of the ports `range`, in an order that depends on `seed`.
    pub(crate) fn new(external: Address, kind: Kind, range: &RangeInclusive<u16>, seed: u64) -> Self {
        let mut ports: Vec<u16> = range.clone().collect();
        shuffle(&mut ports, seed);
        Self {
            external,
            kind,
            first: *range.start(),
            slots: vec![Slot { mapping: NONE, users: 0, waiting: true }; ports.len()],
            free: ports.into(),
            resting: VecDeque::new(),
            closed: VecDeque::new(),
            cursor: 0,
            used: 0,
        }
    }

    pub(crate) const fn external(&self) -> Address {
        self.external
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    /// The number of ports.
    pub(crate) const fn len(&self) -> usize {
        self.slots.len()
    }

    /// The number of ports in use.
    pub(crate) const fn used(&self) -> u32 {
        self.used
    }

    /// The mapping that has `port` to itself.
    pub(crate) fn mapping(&self, port: u16) -> Option<u32> {
        let slot = self.slots.get(usize::from(port.checked_sub(self.first)?))?;
        (slot.mapping != NONE).then_some(slot.mapping)
    }

    /// Leases the port that has been free longest to `mapping` alone. Ports that are not `usable` leave the pool until
    /// [`Self::restore`].
    pub(crate) fn lease(
        &mut self,
        now: Time,
        hold: HoldDown,
        mapping: u32,
        usable: impl Fn(u16) -> bool,
    ) -> Option<Lease> {
        while let Some(&(port, until)) = self.resting.front() {
            if until > now && self.resting.len() <= hold.ports {
                break;
            }
            self.resting.pop_front();
            self.free.push_back(port);
        }
        while let Some(port) = self.free.pop_front() {
            if let Some(lease) = self.take(port, mapping, &usable) {
                return Some(lease);
            }
        }
        None
    }

    /// Leases the port that has rested longest, before its time.
    pub(crate) fn lease_resting(&mut self, mapping: u32, usable: impl Fn(u16) -> bool) -> Option<Lease> {
        while let Some((port, _)) = self.resting.pop_front() {
            if let Some(lease) = self.take(port, mapping, &usable) {
                return Some(lease);
            }
        }
        None
    }

    fn take(&mut self, port: u16, mapping: u32, usable: &impl Fn(u16) -> bool) -> Option<Lease> {
        let slot = self.slots.get_mut(usize::from(port.checked_sub(self.first)?))?;
        slot.waiting = false;
        if !usable(port) {
            return None;
        }
        slot.mapping = mapping;
        slot.users += 1;
        self.used += 1;
        Some(Lease { port, use_: Use::Alone })
    }

    /// Up to `count` ports in use, to be tried for sharing. Each call goes on where the last one ended.
    pub(crate) fn candidates(&mut self, count: usize) -> impl Iterator<Item = u16> + use<> {
        let len = self.slots.len();
        let start = self.cursor;
        let mut found = Vec::with_capacity(count.min(len));
        for step in 0..len {
            let at = (start + step) % len;
            if self.slots.get(at).is_some_and(|slot| slot.users > 0) {
                found.extend(u16::try_from(at).ok().and_then(|at| self.first.checked_add(at)));
            }
            if found.len() == count {
                self.cursor = (at + 1) % len;
                break;
            }
        }
        found.into_iter()
    }

    /// Leases `port` to one user more; `None` if it is not in use any more.
    pub(crate) fn share(&mut self, port: u16) -> Option<Lease> {
        let slot = self.slots.get_mut(usize::from(port.checked_sub(self.first)?))?;
        if slot.users == 0 {
            return None;
        }
        slot.users = slot.users.checked_add(1)?;
        Some(Lease { port, use_: Use::Shared })
    }

    /// Leases this very port again, to a mapping that had it to itself (or shared it, with none): `None` if it is not of the
    /// pool, or another has it.
    ///
    /// Looks for it among the ports that wait: for a start, not for packets.
    pub(crate) fn lease_again(&mut self, port: u16, mapping: Option<u32>) -> Option<Lease> {
        let slot = self.slots.get_mut(usize::from(port.checked_sub(self.first)?))?;
        if mapping.is_some() && slot.mapping != NONE {
            return None;
        }
        slot.mapping = mapping.unwrap_or(slot.mapping);
        slot.users = slot.users.checked_add(1)?;
        if slot.users == 1 {
            self.used += 1;
        }
        if std::mem::take(&mut slot.waiting) {
            self.free.retain(|free| *free != port);
            self.resting.retain(|(resting, _)| *resting != port);
        }
        Some(Lease { port, use_: if mapping.is_some() { Use::Alone } else { Use::Shared } })
    }

    /// Takes a lease back.
    #[expect(clippy::needless_pass_by_value, reason = "a lease is given back once")]
    pub(crate) fn release(&mut self, now: Time, hold: HoldDown, lease: Lease, rest: Rest) {
        let Some(at) = lease.port.checked_sub(self.first) else { return };
        let Some(slot) = self.slots.get_mut(usize::from(at)) else { return };
        if lease.use_ == Use::Alone {
            slot.mapping = NONE;
        }
        slot.users = slot.users.saturating_sub(1);
        if slot.users > 0 {
            return;
        }
        slot.waiting = true;
        self.used = self.used.saturating_sub(1);
        match rest {
            Rest::Needed => self.resting.push_back((lease.port, now + hold.duration)),
            Rest::Unneeded => self.free.push_back(lease.port),
        }
    }

    /// Brings ports of `range` back that had been taken out as unusable. They may be unusable still.
    pub(crate) fn restore(&mut self, range: &RangeInclusive<u16>) {
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let port = u16::try_from(at).ok().and_then(|at| self.first.checked_add(at));
            if let Some(port) = port.filter(|port| range.contains(port))
                && slot.users == 0
                && !slot.waiting
            {
                slot.waiting = true;
                self.free.push_back(port);
            }
        }
    }

    /// Notes that a connection has closed and could give its port back.
    pub(crate) fn note_closed(&mut self, id: ConnectionId) {
        // Each connection is noted once, so only those that ended otherwise can pile up.
        if self.closed.len() >= self.slots.len().saturating_mul(4) {
            self.closed.pop_front();
        }
        self.closed.push_back(id);
    }

    /// The connection that was noted first. It may be gone or open again by now.
    pub(crate) fn next_closed(&mut self) -> Option<ConnectionId> {
        self.closed.pop_front()
    }

    /// Ports that are neither in use nor waiting nor taken out; zero unless something leaks.
    #[cfg(test)]
    pub(crate) fn lost(&self, usable: impl Fn(u16) -> bool) -> usize {
        let waiting = self.slots.iter().filter(|slot| slot.waiting).count();
        assert_eq!(waiting, self.free.len() + self.resting.len(), "a port waits in one queue");
        let used = self.slots.iter().filter(|slot| slot.users > 0).count();
        assert_eq!(used, self.used as usize);
        self.slots
            .iter()
            .enumerate()
            .filter(|(at, slot)| {
                slot.users == 0 && !slot.waiting && usable(self.first + u16::try_from(*at).unwrap())
            })
            .count()
    }
}

/// Fisher-Yates with a 64-bit mixer (SplitMix64).
fn shuffle(ports: &mut [u16], seed: u64) {
    let mut state = seed;
    for at in (1..ports.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let other = usize::try_from(z % (at as u64 + 1)).unwrap_or(at);
        ports.swap(at, other);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HOLD: HoldDown = HoldDown { duration: Duration::from_secs(120), ports: usize::MAX };

    fn pool(range: RangeInclusive<u16>) -> Pool {
        let external = Address::from(Ipv4Addr::new(192, 0, 2, 1));
        Pool::new(external, Kind::new(Protocol::Tcp, external).unwrap(), &range, 1)
    }

    fn any(_: u16) -> bool {
        true
    }

    #[test]
    fn gives_ports_out_first_in_first_out() {
        let mut pool = pool(100..=103);
        let leases: Vec<_> = (0..4).map(|n| pool.lease(Time::ZERO, HOLD, n, any).unwrap()).collect();
        assert_eq!(pool.lease(Time::ZERO, HOLD, 9, any), None);
        let order: Vec<_> = leases.iter().map(Lease::port).collect();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [100, 101, 102, 103]);
        for lease in leases {
            pool.release(Time::ZERO, HOLD, lease, Rest::Unneeded);
        }
        for port in order {
            assert_eq!(pool.lease(Time::ZERO, HOLD, 1, any).unwrap().port(), port);
        }
    }

    #[test]
    fn a_port_rests_for_its_time() {
        let mut pool = pool(100..=100);
        let lease = pool.lease(Time::ZERO, HOLD, 1, any).unwrap();
        assert_eq!(pool.mapping(100), Some(1));
        pool.release(Time::from_secs(5), HOLD, lease, Rest::Needed);
        assert_eq!(pool.mapping(100), None);
        assert_eq!(pool.lease(Time::from_millis(124_999), HOLD, 1, any), None);
        let lease = pool.lease(Time::from_secs(125), HOLD, 1, any).unwrap();
        pool.release(Time::from_secs(126), HOLD, lease, Rest::Needed);
        assert_eq!(pool.lease_resting(1, any).unwrap().port(), 100);
        assert_eq!(pool.lost(any), 0);
    }

    #[test]
    fn only_so_many_ports_rest() {
        let mut pool = pool(100..=101);
        let hold = HoldDown { ports: 1, ..HOLD };
        let leases = [0, 1].map(|n| pool.lease(Time::ZERO, hold, n, any).unwrap());
        let first = leases[0].port();
        for lease in leases {
            pool.release(Time::ZERO, hold, lease, Rest::Needed);
        }
        assert_eq!(pool.lease(Time::ZERO, hold, 1, any).unwrap().port(), first);
        assert_eq!(pool.lease(Time::ZERO, hold, 1, any), None);
    }

    #[test]
    fn an_unusable_port_leaves_until_it_is_restored() {
        let mut pool = pool(100..=101);
        let lease = pool.lease(Time::ZERO, HOLD, 1, |port| port != 100).unwrap();
        assert_eq!(lease.port(), 101);
        assert_eq!(pool.lease(Time::ZERO, HOLD, 1, |port| port != 100), None);
        assert_eq!(pool.lost(|port| port != 100), 0);
        pool.restore(&(1..=65535));
        assert_eq!(pool.lease(Time::ZERO, HOLD, 1, any).unwrap().port(), 100);
    }

    #[test]
    fn a_shared_port_is_free_after_its_last_user() {
        let mut pool = pool(100..=100);
        assert_eq!(pool.candidates(8).count(), 0);
        let alone = pool.lease(Time::ZERO, HOLD, 1, any).unwrap();
        assert_eq!(pool.candidates(8).collect::<Vec<_>>(), [100]);
        let shared = pool.share(100).unwrap();
        assert!(shared.is_shared());
        pool.release(Time::ZERO, HOLD, alone, Rest::Unneeded);
        assert_eq!((pool.mapping(100), pool.used()), (None, 1));
        assert_eq!(pool.lease(Time::ZERO, HOLD, 2, any), None);
        pool.release(Time::ZERO, HOLD, shared, Rest::Unneeded);
        assert_eq!(pool.lease(Time::ZERO, HOLD, 2, any).unwrap().port(), 100);
    }
}
