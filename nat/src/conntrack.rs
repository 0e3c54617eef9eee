//! The connection table: one for both families and all protocols.
//!
//! **What it stores.** A connection has two tuples: what its packets look like as they arrive in the original direction,
//! and as they arrive in reply. The difference *is* the translation: a packet that matches one tuple leaves as the
//! reverse of the other. An entry is found by either tuple, through one hash index.
//!
//! **Limits.** The number of connections is fixed when the table is made. When it is full, new connections are refused;
//! existing ones are never evicted to make room (RFC 6888 REQ-11D). Memory: one slab entry and two chain heads per
//! connection; the slab grows by chunks, the index has its final size from the start.
//!
//! **Life.** [`Conntrack::insert`] is called once the first packet was accepted, so a dropped packet leaves nothing.
//! Each packet moves the deadline. Past its deadline a connection is dead to every lookup at once, and is collected by
//! whoever meets it first: a lookup of its tuple or the timer wheel, a bounded number per call.
//!
//! **Ending many at once.** To end all connections that match a [`Filter`] (a container left, an address is gone) takes
//! constant time: the filter is noted, and each connection is held against the noted filters the next time it is met.
//! A sweep in the background meets those that no packet does, and then forgets the filter.

mod changes;
mod connection;
mod index;
mod pair;
pub(crate) mod tcp;
mod timeouts;
mod wheel;

use std::fmt;

pub(crate) use connection::FRESH;
pub use connection::{Connection, Counters};
pub use timeouts::Timeouts;

use crate::slab::{NONE, Slab};
use crate::time::Time;
use crate::tuple::{Address, Direction, NetworkId, OwnerId, Protocol, Tuple};
use changes::Changes;
use index::Index;
use wheel::{Timer, Wheel};

/// So many filters are noted before the sweep is finished in one go.
const MAX_FILTERS: usize = 64;

/// The name of a connection; never that of another one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    index: u32,
    generation: u32,
}

impl ConnectionId {
    /// The same as a number, to be kept elsewhere.
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// From such a number. Of any other, it is of no connection, or of another one.
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    pub const fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

#[cfg(test)]
impl ConnectionId {
    pub(crate) const fn for_tests(index: u32) -> Self {
        Self { index, generation: 0 }
    }
}

/// A publish rule's name; never `u32::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u32);

impl RuleId {
    /// The number of none.
    pub(crate) const NONE: u32 = u32::MAX;
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// TCP: both directions ended and acknowledged.
    Closed,
    /// TCP: one direction has ended, or both and not all is acknowledged.
    Closing,
    /// TCP: the handshake is finished.
    Established,
    /// Not TCP: packets in both directions.
    Replied,
    /// TCP: a valid RST was seen.
    Reset,
    /// TCP: both SYNs seen, not both acknowledged.
    SynReceived,
    /// TCP: a SYN without an answer.
    SynSent,
    /// Not TCP: no packet in reply so far.
    Unreplied,
}

impl State {
    /// True once a TCP connection has nothing more to say.
    pub(crate) const fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::Reset)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Closing => "closing",
            Self::Established => "established",
            Self::Replied => "replied",
            Self::Reset => "reset",
            Self::SynReceived => "syn_received",
            Self::SynSent => "syn_sent",
            Self::Unreplied => "unreplied",
        })
    }
}

/// Selects connections: those that match everything that is set. The default selects all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of the addresses of either tuple.
    pub address: Option<Address>,
    /// The external address that it was translated to, or was opened to before translation.
    pub external: Option<Address>,
    /// A network of either tuple.
    pub network: Option<NetworkId>,
    /// The owner on either side.
    pub owner: Option<OwnerId>,
    /// One of the ports of either tuple.
    pub port: Option<u16>,
    /// The protocol.
    pub protocol: Option<Protocol>,
    /// The publish rule that let it in.
    pub rule: Option<RuleId>,
    /// The state.
    pub state: Option<State>,
}

impl Filter {
    /// True if `connection` is selected.
    pub fn selects(&self, connection: &Connection) -> bool {
        fn is<T: PartialEq>(wanted: Option<T>, mut found: impl Iterator<Item = T>) -> bool {
            wanted.is_none_or(|wanted| found.any(|found| found == wanted))
        }
        let [original, reply] = &connection.tuples();
        let endpoints = || [original, reply].into_iter().flat_map(|tuple| [tuple.source, tuple.destination]);
        let translated = |a: &Tuple, b: &Tuple| {
            (a.destination.address != b.source.address).then_some(a.destination.address)
        };
        is(self.address, endpoints().map(|endpoint| endpoint.address))
            && is(self.external, translated(original, reply).into_iter().chain(translated(reply, original)))
            && is(self.network, [original.network, reply.network].into_iter())
            && is(self.owner, connection.owners.into_iter())
            && is(self.port, endpoints().map(|endpoint| endpoint.port))
            && is(self.protocol, [original.protocol].into_iter())
            && is(self.rule, connection.rule().into_iter())
            && is(self.state, [connection.state].into_iter())
    }
}

/// What a lookup met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// A connection that has ended and is to be collected before the tuple can be used again.
    Dead(ConnectionId),
    Live(ConnectionId, Direction),
    Nothing,
}

/// Why a connection was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InsertError {
    /// One of its tuples belongs to another connection.
    Clash,
    /// The table is full.
    Full,
}

#[derive(Clone, Debug)]
struct Entry {
    connection: Connection,
    chain: [u32; 2],
    timer: Timer,
    /// The filters up to this one do not select it.
    passed: u32,
}

/// The table.
#[derive(Clone, Debug)]
pub(crate) struct Conntrack {
    slab: Slab<Entry>,
    index: Index,
    wheel: Wheel,
    limit: u32,
    filters: Filters,
    changes: Changes,
    /// Where the sweep goes on, and how many slots are left until it has passed them all.
    sweep_at: u32,
    sweep_left: u32,
}

/// The filters whose connections have ended, numbered from the first ever.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filters {
    noted: Vec<Filter>,
    /// How many there ever were.
    count: u32,
}

impl Filters {
    /// The number of filters ever noted; what is made now has passed them all.
    pub(crate) const fn count(&self) -> u32 {
        self.count
    }

    /// The filters that something which passed `passed` of them is still to be held against.
    pub(crate) fn since(&self, passed: u32) -> &[Filter] {
        let missed = self.count.wrapping_sub(passed) as usize;
        self.noted.get(self.noted.len().saturating_sub(missed)..).unwrap_or_default()
    }
}

impl Conntrack {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            slab: Slab::new(),
            index: Index::new(limit),
            wheel: Wheel::new(),
            limit,
            filters: Filters::default(),
            changes: Changes::default(),
            sweep_at: 0,
            sweep_left: 0,
        }
    }

    /// The number of connections, those included that have ended and are not collected yet.
    pub(crate) const fn len(&self) -> u32 {
        self.slab.len()
    }

    /// True if there is no room for another connection.
    pub(crate) const fn is_full(&self) -> bool {
        self.slab.len() >= self.limit
    }

    pub(crate) const fn filters(&self) -> &Filters {
        &self.filters
    }

    /// Finds the connection that a packet with this tuple belongs to.
    pub(crate) fn find(&mut self, now: Time, tuple: &Tuple) -> Lookup {
        let Some((index, direction)) = self.index.find(&self.slab, tuple) else { return Lookup::Nothing };
        let Some(generation) = self.slab.generation(index) else { return Lookup::Nothing };
        let id = ConnectionId { index, generation };
        if self.is_live(now, id) { Lookup::Live(id, direction) } else { Lookup::Dead(id) }
    }

    /// True if the connection exists, has not expired and is selected by no filter noted since.
    pub(crate) fn is_live(&mut self, now: Time, id: ConnectionId) -> bool {
        if self.slab.generation(id.index) != Some(id.generation) {
            return false;
        }
        let Some(entry) = self.slab.get_mut(id.index) else { return false };
        if entry.passed != self.filters.count {
            if self.filters.since(entry.passed).iter().any(|filter| filter.selects(&entry.connection)) {
                return false;
            }
            entry.passed = self.filters.count;
        }
        entry.connection.deadline > now
    }

    pub(crate) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        let entry = self.slab.get(id.index)?;
        (self.slab.generation(id.index) == Some(id.generation)).then_some(&entry.connection)
    }

    pub(crate) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        if self.slab.generation(id.index) != Some(id.generation) {
            return None;
        }
        self.slab.get_mut(id.index).map(|entry| &mut entry.connection)
    }

    /// Adds a connection. Its tuples must not belong to another one, dead ones included: look first.
    pub(crate) fn insert(&mut self, connection: Connection) -> Result<ConnectionId, InsertError> {
        let [original, reply] = &connection.tuples();
        let alike = original == reply;
        if self.slab.len() >= self.limit {
            return Err(InsertError::Full);
        }
        if [original, reply].into_iter().any(|tuple| self.index.find(&self.slab, tuple).is_some()) {
            return Err(InsertError::Clash);
        }
        if self.slab.len() == 0 {
            self.wheel.skip_to(connection.created());
        }
        let passed = self.filters.count;
        let entry = Entry { connection, chain: [NONE; 2], timer: Timer::UNSET, passed };
        let (index, generation) = self.slab.insert(entry).ok_or(InsertError::Full)?;
        self.index.insert(&mut self.slab, index, Direction::Original);
        // A packet to oneself by way of one's own external endpoint looks the same in both directions.
        if !alike {
            self.index.insert(&mut self.slab, index, Direction::Reply);
        }
        self.wheel.insert(&mut self.slab, index);
        self.changes.note(index);
        Ok(ConnectionId { index, generation })
    }

    pub(crate) fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        let [original, reply] = self.get(id)?.tuples();
        self.changes.note(id.index);
        self.wheel.remove(&mut self.slab, id.index);
        self.index.remove(&mut self.slab, id.index, Direction::Original);
        if original != reply {
            self.index.remove(&mut self.slab, id.index, Direction::Reply);
        }
        self.slab.remove(id.index).map(|entry| entry.connection)
    }

    /// Says that a connection is to be written down anew.
    pub(crate) fn note_change(&mut self, id: ConnectionId) {
        self.changes.note(id.index);
    }

    /// Notes what changes from now on, beginning with all there is; or does so no more.
    pub(crate) fn want_changes(&mut self, wanted: bool) {
        self.changes.want(wanted);
        if wanted {
            self.slab.iter().for_each(|(index, _)| self.changes.note(index));
        }
    }

    /// A place that has changed, and the connection that is there now.
    pub(crate) fn next_change(&mut self) -> Option<(u32, Option<&mut Connection>)> {
        let index = self.changes.take()?;
        Some((index, self.slab.get_mut(index).map(|entry| &mut entry.connection)))
    }

    /// Sets when the connection ends if no packet comes.
    pub(crate) fn set_deadline(&mut self, id: ConnectionId, deadline: Time) {
        let Some(connection) = self.get_mut(id) else { return };
        let closer = deadline < connection.deadline;
        connection.deadline = deadline;
        if closer && self.slab.get(id.index).is_some_and(|entry| self.wheel.is_late(entry)) {
            self.wheel.remove(&mut self.slab, id.index);
            self.wheel.insert(&mut self.slab, id.index);
        }
    }

    /// Ends all connections that `filter` selects, in constant time. Returns those that are to be collected at once,
    /// because too many filters are waiting for the sweep: normally none.
    pub(crate) fn end_all(&mut self, filter: Filter) -> Vec<ConnectionId> {
        let mut dead = Vec::new();
        while self.filters.noted.len() >= MAX_FILTERS && self.sweep_left > 0 {
            dead.extend(self.sweep());
        }
        self.filters.noted.push(filter);
        self.filters.count = self.filters.count.wrapping_add(1);
        self.sweep_left = self.slab.slots().max(1);
        dead
    }

    /// One step of housekeeping: a connection that has ended and is to be collected, or why there is none.
    pub(crate) fn step(&mut self, now: Time) -> Step {
        if self.sweep_left > 0 {
            return self.sweep().map_or(Step::Busy, Step::Dead);
        }
        let Some(index) = self.wheel.due(now) else { return Step::Idle };
        let Some(generation) = self.slab.generation(index) else { return Step::Idle };
        if self.slab.get(index).is_some_and(|entry| entry.connection.deadline <= now) {
            return Step::Dead(ConnectionId { index, generation });
        }
        self.wheel.remove(&mut self.slab, index);
        self.wheel.insert(&mut self.slab, index);
        Step::Busy
    }

    /// Looks at one slot, and returns its connection if a filter selects it.
    fn sweep(&mut self) -> Option<ConnectionId> {
        let index = self.sweep_at;
        self.sweep_at = if index + 1 >= self.slab.slots() { 0 } else { index + 1 };
        self.sweep_left -= 1;
        let dead = self.slab.get_mut(index).is_some_and(|entry| {
            let missed = self.filters.since(entry.passed);
            let dead = missed.iter().any(|filter| filter.selects(&entry.connection));
            if !dead {
                entry.passed = self.filters.count;
            }
            dead
        });
        if self.sweep_left == 0 {
            self.filters.noted.clear();
        }
        let generation = self.slab.generation(index)?;
        dead.then_some(ConnectionId { index, generation })
    }

    /// When [`Self::step`] should be called next.
    pub(crate) fn poll_at(&self) -> Option<Time> {
        match (self.sweep_left, self.slab.len()) {
            (0, 0) => None,
            (0, _) => Some(self.wheel.poll_at()),
            _ => Some(Time::ZERO),
        }
    }

    /// All live connections, in no order.
    pub(crate) fn iter(&self, now: Time) -> impl Iterator<Item = (ConnectionId, &Connection)> {
        self.slab.iter().filter_map(move |(index, entry)| {
            let connection = &entry.connection;
            let ended = self.filters.since(entry.passed).iter().any(|filter| filter.selects(connection));
            let generation = self.slab.generation(index)?;
            let live = connection.deadline > now && !ended;
            live.then_some((ConnectionId { index, generation }, connection))
        })
    }
}

/// What one step of housekeeping found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// More to do.
    Busy,
    /// A connection to be collected.
    Dead(ConnectionId),
    /// Nothing to do now.
    Idle,
}

#[cfg(test)]
mod tests;
