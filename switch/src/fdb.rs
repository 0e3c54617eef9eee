//! The forwarding database: which MAC lives behind which port of which network.
//!
//! **Storage.** A concurrent hash map from (network, MAC) to an entry; workers look up twice per frame (source,
//! destination) and write only when something is new, moves, or was not refreshed for a second. Beside it, behind a lock
//! that only those writes take, each port's *share*: how many dynamic entries it has, and in which order they came.
//!
//! **Limits.** A port at its own limit learns nothing more; its other traffic goes on. When the table is full, a port below
//! its fair share (limit ÷ ports that hold entries) takes the oldest entry of the port with the most; the others learn
//! nothing more. So one port's flood of addresses never unlearns a port that keeps to its share.
//!
//! **Life of a dynamic entry.** learned → refreshed while its MAC is seen as a source → forgotten `aging` after the last
//! time. It may move to another port; more than [`MOVES_PER_WINDOW`] moves within [`MOVE_WINDOW`] are a loop, or two
//! stations with one address: then it stays where it is for [`DAMPING`], and frames with that source from other ports
//! are dropped. Static and local entries do not age or move, and count against no limit.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as MapEntry;
use foldhash::fast::RandomState;
use nat::Time;

use crate::fastpath::epoch::Epoch;
use crate::mac::Mac;
use crate::snapshot::{NetworkId, PortId};

/// A refresh is noted at most this often, so that a busy station does not write to shared memory with each frame.
const REFRESH: Duration = Duration::from_secs(1);
/// More moves than [`MOVES_PER_WINDOW`] within this time are not a station's doing.
pub const MOVE_WINDOW: Duration = Duration::from_secs(1);
/// See [`MOVE_WINDOW`]. A live migration or a failover moves an address once or twice.
pub const MOVES_PER_WINDOW: u8 = 5;
/// For how long an address that moved too often is held where it is.
pub const DAMPING: Duration = Duration::from_secs(5);
/// A full table, or a full share, is told at most this often for a port.
const FULL_TOLD_EVERY: Duration = Duration::from_secs(60);

/// Limits of the table.
#[derive(Clone, Copy, Debug)]
pub struct FdbConfig {
    /// A dynamic entry is forgotten when its MAC was not seen as a source for this long. 300 s by default.
    pub aging: Duration,
    /// Dynamic entries in total. 131,072 by default.
    pub max_entries: usize,
    /// Dynamic entries per port. 16,384 by default.
    pub max_per_port: usize,
}

impl Default for FdbConfig {
    fn default() -> Self {
        Self { aging: Duration::from_secs(300), max_entries: 131_072, max_per_port: 16_384 }
    }
}

/// How an entry came into the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Learned; ages and moves.
    Dynamic,
    /// Set by the user: never ages, never moves.
    Static,
    /// The switch's own: a gateway.
    Local,
}

/// An entry, as told to the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its network.
    pub network: NetworkId,
    /// Its address.
    pub mac: Mac,
    /// The port behind which it lives.
    pub port: PortId,
    /// How it came into the table.
    pub kind: Kind,
    /// Time since it was last a source; zero for static and local ones.
    pub age: Duration,
}

/// What came of learning a source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// It lives behind this port, now or since long.
    Known,
    /// It moved here.
    Moved {
        /// Where it was.
        from: PortId,
    },
    /// It was not learned: the port's share, or the table, is full.
    Full {
        /// Nobody was told for a while.
        tell: bool,
    },
    /// It moves too fast and is held elsewhere.
    Damped {
        /// Where it is held.
        port: PortId,
        /// The damping begins with this frame.
        tell: bool,
    },
    /// It is bound to another port.
    Bound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    network: NetworkId,
    mac: Mac,
}

#[derive(Debug)]
struct Cell {
    port: PortId,
    kind: Kind,
    /// When it was last a source, in nanoseconds.
    seen: AtomicU64,
    /// Which turn of this entry stands in the order of its port's share.
    turn: u64,
    window: Time,
    moves: u8,
    held_until: Time,
}

impl Clone for Cell {
    fn clone(&self) -> Self {
        Self { seen: AtomicU64::new(self.seen.load(Ordering::Relaxed)), ..*self }
    }
}

impl Cell {
    fn age(&self, now: Time) -> Duration {
        now.since(Time::from_nanos(self.seen.load(Ordering::Relaxed)))
    }
}

/// What a port holds of the table.
#[derive(Clone, Debug, Default)]
struct Share {
    count: usize,
    /// Oldest first. Turns whose entry has gone or moved stay until they are met or swept.
    order: VecDeque<(Key, u64)>,
    full_told: Option<Time>,
}

#[derive(Clone, Debug, Default)]
struct Shares {
    by_port: Vec<Share>,
    total: usize,
    next_turn: u64,
}

impl Shares {
    fn of(&mut self, port: PortId) -> &mut Share {
        if self.by_port.len() <= port.index() {
            self.by_port.resize_with(port.index() + 1, Share::default);
        }
        &mut self.by_port[port.index()]
    }

    fn enter(&mut self, port: PortId, key: Key) -> u64 {
        self.next_turn += 1;
        self.total += 1;
        let turn = self.next_turn;
        let share = self.of(port);
        share.count += 1;
        share.order.push_back((key, turn));
        turn
    }

    fn leave(&mut self, port: PortId) {
        self.total = self.total.saturating_sub(1);
        let share = self.of(port);
        share.count = share.count.saturating_sub(1);
    }

    /// The port with the most entries, if that is more than a fair share.
    fn fullest_above(&self, fair: usize) -> Option<PortId> {
        let (index, share) = self.by_port.iter().enumerate().max_by_key(|(_, s)| s.count)?;
        (share.count > fair).then(|| PortId(u32::try_from(index).unwrap_or(u32::MAX)))
    }
}

/// The table. Shared by all workers and the control plane.
#[derive(Debug)]
pub struct Fdb {
    config: FdbConfig,
    epoch: Arc<Epoch>,
    map: DashMap<Key, Cell, RandomState>,
    // Taken before any entry of the map is locked, never after.
    shares: Mutex<Shares>,
}

impl Fdb {
    /// An empty table.
    pub fn new(config: FdbConfig) -> Self {
        Self::with_epoch(config, Arc::default())
    }

    /// The same. The epoch ends with each entry that moves, is set, or is removed but for its age.
    pub fn with_epoch(config: FdbConfig, epoch: Arc<Epoch>) -> Self {
        Self { config, epoch, map: DashMap::with_hasher(RandomState::default()), shares: Mutex::default() }
    }

    /// A copy that goes its own way, and ends an epoch of its own.
    pub fn fork(&self, epoch: Arc<Epoch>) -> Self {
        let shares = self.shares();
        Self { config: self.config, epoch, map: self.map.clone(), shares: Mutex::new(shares.clone()) }
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        // Counts and orders are whole after every statement, so a panic elsewhere leaves them usable.
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port behind which a unicast address lives.
    pub fn lookup(&self, network: NetworkId, mac: Mac, now: Time) -> Option<PortId> {
        let cell = self.map.get(&Key { network, mac })?;
        self.live(&cell, now).then_some(cell.port)
    }

    fn live(&self, cell: &Cell, now: Time) -> bool {
        cell.kind != Kind::Dynamic || cell.age(now) < self.config.aging
    }

    /// Notes that `mac` was a source on `port`.
    pub fn learn(&self, network: NetworkId, mac: Mac, port: PortId, now: Time) -> Learned {
        let key = Key { network, mac };
        if let Some(cell) = self.map.get(&key) {
            if cell.kind != Kind::Dynamic {
                return if cell.port == port { Learned::Known } else { Learned::Bound };
            }
            if cell.port == port {
                if cell.age(now) >= REFRESH {
                    cell.seen.store(now.as_nanos(), Ordering::Relaxed);
                }
                return Learned::Known;
            }
        }
        self.learn_slowly(key, port, now)
    }

    /// Notes that `mac` was a source on `port` at `seen`, if it lives there still.
    pub fn refresh(&self, network: NetworkId, mac: Mac, port: PortId, seen: Time) {
        if let Some(cell) = self.map.get(&Key { network, mac })
            && cell.port == port
        {
            cell.seen.fetch_max(seen.as_nanos(), Ordering::Relaxed);
        }
    }

    /// A new address, or one that moves.
    fn learn_slowly(&self, key: Key, port: PortId, now: Time) -> Learned {
        let mut shares = self.shares();
        if let Some(mut cell) = self.map.get_mut(&key) {
            if cell.port == port || cell.kind != Kind::Dynamic {
                return Learned::Known; // Another worker was here first.
            }
            let from = cell.port;
            if now < cell.held_until && self.live(&cell, now) {
                return Learned::Damped { port: from, tell: false };
            }
            if now.since(cell.window) >= MOVE_WINDOW {
                (cell.window, cell.moves) = (now, 0);
            }
            cell.moves = cell.moves.saturating_add(1);
            if cell.moves > MOVES_PER_WINDOW {
                cell.held_until = now + DAMPING;
                return Learned::Damped { port: from, tell: true };
            }
            if shares.of(port).count >= self.config.max_per_port {
                return Self::full(&mut shares, port, now);
            }
            shares.leave(from);
            cell.turn = shares.enter(port, key);
            cell.port = port;
            cell.seen.store(now.as_nanos(), Ordering::Relaxed);
            drop(cell);
            self.epoch.end();
            return Learned::Moved { from };
        }
        if shares.of(port).count >= self.config.max_per_port || !self.make_room(&mut shares, port) {
            return Self::full(&mut shares, port, now);
        }
        let turn = shares.enter(port, key);
        let seen = AtomicU64::new(now.as_nanos());
        let cell =
            Cell { port, kind: Kind::Dynamic, seen, turn, window: now, moves: 0, held_until: Time::ZERO };
        self.map.insert(key, cell);
        Learned::Known
    }

    /// Whether there is room for one more entry of `port`, after taking one from a port with more than its fair share.
    fn make_room(&self, shares: &mut Shares, port: PortId) -> bool {
        if shares.total < self.config.max_entries {
            return true;
        }
        let holders = shares.by_port.iter().filter(|s| s.count > 0).count().max(1);
        let fair = self.config.max_entries / (holders + usize::from(shares.of(port).count == 0));
        if shares.of(port).count >= fair {
            return false;
        }
        let Some(rich) = shares.fullest_above(fair) else { return false };
        while let Some((key, turn)) = shares.of(rich).order.pop_front() {
            if self.map.remove_if(&key, |_, cell| cell.turn == turn && cell.port == rich).is_some() {
                shares.leave(rich);
                return true;
            }
        }
        false
    }

    fn full(shares: &mut Shares, port: PortId, now: Time) -> Learned {
        let told = &mut shares.of(port).full_told;
        let tell = told.is_none_or(|t| now.since(t) >= FULL_TOLD_EVERY);
        if tell {
            *told = Some(now);
        }
        Learned::Full { tell }
    }

    /// Sets an entry that neither ages nor moves, in place of what was there.
    pub fn set(&self, network: NetworkId, mac: Mac, port: PortId, kind: Kind) {
        let key = Key { network, mac };
        let mut shares = self.shares();
        let cell = Cell {
            port,
            kind,
            seen: AtomicU64::new(0),
            turn: 0,
            window: Time::ZERO,
            moves: 0,
            held_until: Time::ZERO,
        };
        match self.map.entry(key) {
            MapEntry::Occupied(mut old) => {
                if old.get().kind == Kind::Dynamic {
                    shares.leave(old.get().port);
                }
                old.insert(cell);
            }
            MapEntry::Vacant(free) => {
                free.insert(cell);
            }
        }
        self.epoch.end();
    }

    /// Removes an entry of any kind; tells whether there was one.
    pub fn remove(&self, network: NetworkId, mac: Mac) -> bool {
        let removed = self.remove_where(|key, _| *key == Key { network, mac }) > 0;
        self.epoch.end();
        removed
    }

    /// What is known of a MAC.
    pub fn get(&self, network: NetworkId, mac: Mac, now: Time) -> Option<Entry> {
        let key = Key { network, mac };
        let cell = self.map.get(&key)?;
        self.live(&cell, now).then(|| Self::entry(key, &cell, now))
    }

    /// Forgets the dynamic entries that `select` wants forgotten; tells how many.
    pub fn flush(&self, select: impl Fn(NetworkId, PortId) -> bool) -> usize {
        let removed =
            self.remove_where(|key, cell| cell.kind == Kind::Dynamic && select(key.network, cell.port));
        self.epoch.end();
        removed
    }

    /// Forgets every entry of a port, of any kind: the port is gone.
    pub fn remove_port(&self, port: PortId) {
        self.remove_where(|_, cell| cell.port == port);
        *self.shares().of(port) = Share::default();
        self.epoch.end();
    }

    /// Forgets entries that have aged out. Costs a walk over the table: for the control plane, every few seconds.
    pub fn sweep(&self, now: Time) {
        self.remove_where(|_, cell| !self.live(cell, now));
        let mut shares = self.shares();
        for (index, share) in shares.by_port.iter_mut().enumerate() {
            share.order.retain(|(key, turn)| {
                self.map.get(key).is_some_and(|cell| cell.turn == *turn && cell.port.index() == index)
            });
        }
    }

    fn remove_where(&self, select: impl Fn(&Key, &Cell) -> bool) -> usize {
        let mut shares = self.shares();
        let mut removed = 0;
        self.map.retain(|key, cell| {
            let goes = select(key, cell);
            if goes {
                removed += 1;
                if cell.kind == Kind::Dynamic {
                    shares.leave(cell.port);
                }
            }
            !goes
        });
        removed
    }

    /// All live entries, in no order.
    pub fn entries(&self, now: Time) -> Vec<Entry> {
        self.map
            .iter()
            .filter(|cell| self.live(cell.value(), now))
            .map(|cell| Self::entry(*cell.key(), cell.value(), now))
            .collect()
    }

    fn entry(key: Key, cell: &Cell, now: Time) -> Entry {
        let age = if cell.kind == Kind::Dynamic { cell.age(now) } else { Duration::ZERO };
        Entry { network: key.network, mac: key.mac, port: cell.port, kind: cell.kind, age }
    }

    /// Number of entries, those that have aged out but were not swept included.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// No entries.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

#[cfg(test)]
mod tests;
