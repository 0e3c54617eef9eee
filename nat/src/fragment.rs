//! Fragments, translated without putting datagrams together.
//!
//! **What it stores.** Only a datagram's first fragment has ports. When it is translated, a *record* notes to which
//! connection its datagram belongs, and later fragments are translated by it: their addresses only, since the checksum is
//! in the first. A fragment that comes before the first is *held*: copied and given back, translated, right after the
//! first (RFC 4787 REQ-14: in any order). Duplicates and overlaps pass: what they mean is up to the receiver (RFC 5722),
//! with one exception: a second first fragment with other ports is dropped, since it can only mislead.
//!
//! **Limits.** Records: a number in total, half of it for one network (the outside counts as one), an eighth for one
//! source; beyond, an arriving datagram takes the place of the oldest one of its own source, or has no record. Held
//! fragments: bytes in total, half for one network, an eighth for one source; beyond, they are dropped. So neither a
//! source that sends only first fragments nor one that never sends them takes anything from others, and the outside
//! takes nothing from the inside. Records live [`RECORD_LIFETIME`], held fragments [`HELD_LIFETIME`].

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use foldhash::quality::RandomState;

use crate::conntrack::ConnectionId;
use crate::packet::Packet;
use crate::time::Time;
use crate::tuple::{Address, Direction, NetworkId, Protocol};

/// How long the fragments of a datagram are recognised after the first one: the reassembly timeout of common receivers.
const RECORD_LIFETIME: Duration = Duration::from_secs(30);

/// How long a fragment waits for the first one.
const HELD_LIFETIME: Duration = Duration::from_secs(2);

/// Limits of virtual reassembly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentLimits {
    /// Datagrams whose fragments are recognised at once.
    pub records: usize,
    /// Bytes of fragments that wait for the first one.
    pub held_bytes: usize,
}

impl Default for FragmentLimits {
    fn default() -> Self {
        Self { records: 16_384, held_bytes: 4 << 20 }
    }
}

/// The name of a datagram: the identification is unique for these (RFC 791, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    network: NetworkId,
    source: Address,
    destination: Address,
    id: u32,
    /// Always the same in IPv6, whose fragments may name different headers.
    protocol: Protocol,
}

impl Key {
    /// The name of the datagram that `packet` is a fragment of.
    pub(crate) fn new(packet: &Packet<'_>, network: NetworkId) -> Option<Self> {
        let id = packet.fragment()?.id;
        let protocol = if packet.is_v4() { packet.protocol() } else { Protocol::Other(44) };
        Some(Self { network, source: packet.source(), destination: packet.destination(), id, protocol })
    }

    const fn source(&self) -> (NetworkId, Address) {
        (self.network, self.source)
    }
}

#[derive(Clone, Copy, Debug)]
struct Record {
    connection: ConnectionId,
    direction: Direction,
    until: Time,
}

#[derive(Clone, Debug)]
struct Held {
    until: Time,
    fragments: Vec<Vec<u8>>,
    /// Nobody but the translator has them.
    only_here: bool,
}

/// A source's share.
#[derive(Clone, Debug, Default)]
struct Source {
    /// Its records, oldest first.
    records: VecDeque<Key>,
    held_bytes: usize,
}

/// A network's share.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    records: usize,
    held_bytes: usize,
}

/// What became of the record of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noted {
    /// Another first fragment came before, and belongs to another connection.
    Clash,
    /// Noted, or passed without a record because the limits do not allow one.
    Done,
}

/// The records and the held fragments.
#[derive(Clone, Debug)]
pub(crate) struct Fragments {
    limits: FragmentLimits,
    records: HashMap<Key, Record, RandomState>,
    held: HashMap<Key, Held, RandomState>,
    /// When to look at which record, in the order of time. Entries of what is gone already are passed over.
    record_ends: VecDeque<(Time, Key)>,
    held_ends: VecDeque<(Time, Key)>,
    sources: HashMap<(NetworkId, Address), Source, RandomState>,
    networks: HashMap<NetworkId, Usage, RandomState>,
    held_bytes: usize,
    /// Held fragments that nobody else has.
    waiting: usize,
    /// How many of those were dropped since this was asked last.
    lost: u64,
}

/// What holding a fragment costs beside its bytes.
const OVERHEAD: usize = 128;

impl Fragments {
    pub(crate) fn new(limits: FragmentLimits) -> Self {
        Self {
            limits,
            records: HashMap::default(),
            held: HashMap::default(),
            record_ends: VecDeque::new(),
            held_ends: VecDeque::new(),
            sources: HashMap::default(),
            networks: HashMap::default(),
            held_bytes: 0,
            waiting: 0,
            lost: 0,
        }
    }

    /// Notes that the datagram `key` travels with `connection`.
    pub(crate) fn note(
        &mut self,
        now: Time,
        key: Key,
        connection: ConnectionId,
        direction: Direction,
    ) -> Noted {
        if let Some(record) = self.records.get(&key) {
            if record.until > now {
                return if record.connection == connection { Noted::Done } else { Noted::Clash };
            }
            self.forget_record(&key);
        }
        let total = self.limits.records;
        let source = self.sources.get(&key.source()).map_or(0, |source| source.records.len());
        let network = self.networks.get(&key.network).map_or(0, |usage| usage.records);
        if source >= total / 8 || network >= total / 2 || self.records.len() >= total {
            let Some(oldest) =
                self.sources.get(&key.source()).and_then(|source| source.records.front().copied())
            else {
                return Noted::Done;
            };
            self.forget_record(&oldest);
        }
        let until = now + RECORD_LIFETIME;
        self.records.insert(key, Record { connection, direction, until });
        self.sources.entry(key.source()).or_default().records.push_back(key);
        self.networks.entry(key.network).or_default().records += 1;
        self.record_ends.push_back((until, key));
        if self.record_ends.len() > self.records.len() * 2 + 64 {
            let records = &self.records;
            self.record_ends
                .retain(|(until, key)| records.get(key).is_some_and(|record| record.until == *until));
        }
        Noted::Done
    }

    /// The connection of the datagram `key`, if its first fragment was seen.
    pub(crate) fn find(&self, now: Time, key: &Key) -> Option<(ConnectionId, Direction)> {
        let record = self.records.get(key).filter(|record| record.until > now)?;
        Some((record.connection, record.direction))
    }

    /// Copies a fragment that came before the first. False if the limits do not allow it. `only_here`: nobody else has the
    /// fragment, so that it counts as lost should the first never come.
    pub(crate) fn hold(&mut self, now: Time, key: Key, bytes: &[u8], only_here: bool) -> bool {
        let cost = bytes.len() + OVERHEAD;
        let total = self.limits.held_bytes;
        let source = self.sources.get(&key.source()).map_or(0, |source| source.held_bytes);
        let network = self.networks.get(&key.network).map_or(0, |usage| usage.held_bytes);
        if source + cost > total / 8 || network + cost > total / 2 || self.held_bytes + cost > total {
            return false;
        }
        self.sources.entry(key.source()).or_default().held_bytes += cost;
        self.networks.entry(key.network).or_default().held_bytes += cost;
        self.held_bytes += cost;
        let until = now + HELD_LIFETIME;
        let held_ends = &mut self.held_ends;
        let held = self.held.entry(key).or_insert_with(|| {
            held_ends.push_back((until, key));
            Held { until, fragments: Vec::new(), only_here }
        });
        held.fragments.push(bytes.to_vec());
        self.waiting += usize::from(held.only_here);
        if self.held_ends.len() > self.held.len() * 2 + 64 {
            let held = &self.held;
            self.held_ends.retain(|(until, key)| held.get(key).is_some_and(|held| held.until == *until));
        }
        true
    }

    /// Takes out the fragments of `key` that were held, in the order in which they came, and whether nobody else has them.
    pub(crate) fn release(&mut self, now: Time, key: &Key) -> (Vec<Vec<u8>>, bool) {
        let Some(held) = self.held.remove(key) else { return (Vec::new(), false) };
        if held.only_here {
            self.waiting -= held.fragments.len();
        }
        let cost = held.fragments.iter().map(|bytes| bytes.len() + OVERHEAD).sum();
        self.held_bytes = self.held_bytes.saturating_sub(cost);
        self.give_back(key, |source, network| {
            source.held_bytes = source.held_bytes.saturating_sub(cost);
            network.held_bytes = network.held_bytes.saturating_sub(cost);
        });
        if held.until <= now {
            self.lose(held.fragments.len(), held.only_here);
            return (Vec::new(), held.only_here);
        }
        (held.fragments, held.only_here)
    }

    /// Fragments are dropped that were held.
    pub(crate) const fn lose(&mut self, count: usize, only_here: bool) {
        if only_here {
            self.lost += count as u64;
        }
    }

    /// How many fragments were dropped, since this was asked last, that were held and that nobody else has.
    pub(crate) const fn take_lost(&mut self) -> u64 {
        std::mem::replace(&mut self.lost, 0)
    }

    /// How many fragments are held that nobody else has.
    pub(crate) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Drops what has outlived its time, at most `budget` datagrams; returns how many were looked at.
    pub(crate) fn expire(&mut self, now: Time, budget: usize) -> usize {
        let mut seen = 0;
        while seen < budget
            && let Some((until, key)) = pop_due(&mut self.held_ends, now)
        {
            if self.held.get(&key).is_some_and(|held| held.until == until) {
                self.release(now, &key);
            }
            seen += 1;
        }
        while seen < budget
            && let Some((until, key)) = pop_due(&mut self.record_ends, now)
        {
            if self.records.get(&key).is_some_and(|record| record.until == until) {
                self.forget_record(&key);
            }
            seen += 1;
        }
        seen
    }

    /// When [`Self::expire`] should be called next.
    pub(crate) fn poll_at(&self) -> Option<Time> {
        [self.held_ends.front(), self.record_ends.front()]
            .into_iter()
            .flatten()
            .map(|(until, _)| *until)
            .min()
    }

    fn forget_record(&mut self, key: &Key) {
        if self.records.remove(key).is_none() {
            return;
        }
        self.give_back(key, |source, network| {
            // Records end in the order in which they began, so this is nearly always the first.
            if let Some(place) = source.records.iter().position(|other| other == key) {
                source.records.remove(place);
            }
            network.records = network.records.saturating_sub(1);
        });
    }

    fn give_back(&mut self, key: &Key, change: impl FnOnce(&mut Source, &mut Usage)) {
        let Some(source) = self.sources.get_mut(&key.source()) else { return };
        let Some(network) = self.networks.get_mut(&key.network) else { return };
        change(source, network);
        if source.records.is_empty() && source.held_bytes == 0 {
            self.sources.remove(&key.source());
        }
        if network.records == 0 && network.held_bytes == 0 {
            self.networks.remove(&key.network);
        }
    }

    /// True if nothing is stored, the accounts included.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
            && self.held.is_empty()
            && self.sources.is_empty()
            && self.networks.is_empty()
            && self.held_bytes == 0
            && self.waiting == 0
    }
}

fn pop_due(ends: &mut VecDeque<(Time, Key)>, now: Time) -> Option<(Time, Key)> {
    if ends.front()?.0 <= now { ends.pop_front() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::Checksum;
    use crate::conntrack::ConnectionId;
    use crate::testutil::{fragments, udp};

    const LIMITS: FragmentLimits = FragmentLimits { records: 16, held_bytes: 8 * 1024 };
    const T0: Time = Time::from_secs(100);

    fn key(network: u32, source: &str, id: u16) -> Key {
        let mut parts = fragments(&udp(source, "192.0.2.1:9", &[0; 32]), id, 16);
        Key::new(&Packet::parse(&mut parts[1], Checksum::Complete).unwrap(), NetworkId(network)).unwrap()
    }

    fn note(fragments: &mut Fragments, key: Key) -> Noted {
        fragments.note(T0, key, ConnectionId::for_tests(1), Direction::Original)
    }

    #[test]
    fn a_source_drops_its_own_oldest_record() {
        let mut fragments = Fragments::new(LIMITS);
        let other = key(1, "10.0.0.2:1", 1);
        note(&mut fragments, other);
        for id in 1..=3 {
            note(&mut fragments, key(1, "10.0.0.1:1", id));
        }
        let known = |key| fragments.find(T0, &key).is_some();
        assert!(known(other));
        assert_eq!([1, 2, 3].map(|id| known(key(1, "10.0.0.1:1", id))), [false, true, true]);
    }

    #[test]
    fn a_network_leaves_room_for_others() {
        let mut fragments = Fragments::new(LIMITS);
        for n in 0..20 {
            note(&mut fragments, key(0, &format!("10.0.1.{n}:1"), 1));
        }
        let inside = key(1, "10.0.0.1:1", 1);
        note(&mut fragments, inside);
        assert!(fragments.find(T0, &inside).is_some());
        assert_eq!(fragments.records.len(), 9);
        while fragments.expire(Time::from_secs(130), 3) > 0 {}
        assert!(fragments.is_empty());
    }

    #[test]
    fn holds_so_much_for_so_long() {
        let mut fragments = Fragments::new(LIMITS);
        let (a, b) = (key(1, "10.0.0.1:1", 1), key(1, "10.0.0.2:1", 1));
        assert!(fragments.hold(T0, a, &[1; 300], true));
        assert!(fragments.hold(T0, a, &[2; 300], true));
        assert!(!fragments.hold(T0, a, &[3; 300], true), "an eighth of the total");
        assert!(fragments.hold(T0, b, &[4; 300], true));
        assert_eq!(fragments.waiting(), 3);
        assert_eq!(fragments.release(T0, &a).0, [vec![1; 300], vec![2; 300]]);
        assert_eq!(fragments.release(T0, &a).0, Vec::<Vec<u8>>::new());
        assert_eq!(fragments.poll_at(), Some(Time::from_secs(102)));
        assert_eq!(fragments.take_lost(), 0);
        assert_eq!(fragments.release(Time::from_secs(102), &b).0, Vec::<Vec<u8>>::new());
        assert_eq!((fragments.take_lost(), fragments.take_lost()), (1, 0));
        assert!(fragments.is_empty());
    }

    #[test]
    fn a_second_first_fragment_of_another_flow_is_noticed() {
        let mut fragments = Fragments::new(LIMITS);
        let key = key(1, "10.0.0.1:1", 1);
        assert_eq!(note(&mut fragments, key), Noted::Done);
        assert_eq!(note(&mut fragments, key), Noted::Done);
        let other = fragments.note(T0, key, ConnectionId::for_tests(2), Direction::Original);
        assert_eq!(other, Noted::Clash);
    }
}
