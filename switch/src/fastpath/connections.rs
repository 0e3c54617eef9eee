//! Connections that the kernel carries: handed over, counted, taken back.
//!
//! What is counted is told to [`nat`] as it is collected, so its listings, deadlines and TCP numbers are behind by a second at
//! most. A segment that opens a connection, or resets it, passes a worker, who calls [`Connections::recall`] before it looks at it. Of an
//! answer to a SYN and of a FIN the kernel makes a report; workers read the reports before they decide about anything
//! ([`Connections::read_reports`]).
//!
//! Locks are taken in this order: the table here, then the connections of the router.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nat::{ConnectionId, Direction, LastSegment, Passed, Time, Tuple};

use super::attacher::Attacher;
use super::awaited::{Awaited, Question};
use super::carry::Carry;
use super::report::{Report, What};
use super::shares::Carried;
use super::translate::{self, MAX_IFINDEX, Rewrite, Side, Tables, offset};
use super::uplinks::Uplinks;
use super::{IDLE, idle, ifindex, monotonic};
use crate::engine::Shared;
use crate::mac::Mac;
use crate::router::nat_network;
use crate::router::resolve::Ingress;
use crate::snapshot::{NetworkId, PortCounters, PortId, Snapshot};
use crate::sys::bpf::{Map, Program};
use crate::sys::reports::Reports;
use crate::worker;

/// Directions of connections in the kernel at a time, where there may be as many connections: about 4 MB there.
pub(super) const MAX_DIRECTIONS: u32 = 16_384;
/// A connection is looked at by the stages so often at least: so its next hop is asked for its MAC again when it is due
/// ([`crate::router::resolve::REACHABLE`]).
const REVIEW: Duration = Duration::from_secs(30);
/// An answer to a SYN is waited for so long: then the SYN is sent again (RFC 6298 section 2.1), and a worker sees it.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Connections that are counted between two releases of the lock.
const AT_ONCE: usize = 64;
/// Room for reports. A segment that finds none is for a worker, who reads them.
pub(super) const REPORT_BYTES: u32 = 256 << 10;
/// Reports that are read at a time: as many as there is room for, with the kernel's 8 bytes in front of each.
const MOST_REPORTS: usize = REPORT_BYTES as usize / (Report::SIZE as usize + 8);

/// What the kernel reports.
pub(super) type Told = Reports<{ Report::SIZE as usize }>;

type Key = [u8; translate::KEY];

/// One direction, in the kernel.
#[derive(Debug)]
struct InKernel {
    key: Key,
    epoch: u32,
    tcp: bool,
    /// Whose MAC is in use while packets come: of a container.
    sender: Option<(NetworkId, Mac, PortId)>,
    from: Arc<PortCounters>,
    to: Arc<PortCounters>,
    frames: u64,
    bytes: u64,
    ip_bytes: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds: the last frame, or when it was installed.
    last: u64,
    since: u64,
    segment: Option<LastSegment>,
    /// It waits for the answer to a SYN.
    answers: bool,
    /// The sequence number after its FIN.
    fin: Option<u32>,
    /// Not told to the router yet: packets and their bytes.
    news: (u64, u64),
    /// It is to be taken back.
    leaves: bool,
    /// The kernel does not have it any more.
    is_out: bool,
    _carried: Carried,
}

/// A connection of which the kernel carries at least one direction; by [`place`].
#[derive(Debug)]
struct Known {
    tuples: [Tuple; 2],
    directions: [Option<InKernel>; 2],
}

#[derive(Debug, Default)]
struct Table {
    known: HashMap<ConnectionId, Known>,
    by_tuple: HashMap<Tuple, ConnectionId>,
}

/// What a FIN means for what the kernel carries of its connection.
enum Noted {
    /// It goes on: in the other direction there was none.
    OneWay,
    /// It has closed.
    Closed,
    /// Nothing: the kernel does not carry this direction.
    Unknown,
}

impl Table {
    fn direction(&mut self, id: ConnectionId, direction: Direction) -> Option<&mut InKernel> {
        self.known.get_mut(&id)?.directions[place(direction)].as_mut()
    }

    fn note_fin(&mut self, id: ConnectionId, direction: Direction, end: u32) -> Noted {
        let Some(known) = self.known.get_mut(&id) else { return Noted::Unknown };
        let Some(direction) = &mut known.directions[place(direction)] else { return Noted::Unknown };
        direction.fin = Some(end);
        match known.directions.iter().flatten().all(|direction| direction.fin.is_some()) {
            true => {
                known.directions.iter_mut().flatten().for_each(|direction| direction.leaves = true);
                Noted::Closed
            }
            false => Noted::OneWay,
        }
    }
}

/// The connections that the kernel carries.
#[derive(Debug)]
pub(super) struct Connections {
    map: Arc<Map>,
    told: Arc<Told>,
    awaited: Awaited,
    pub(super) uplinks: Arc<Uplinks>,
    /// The programs of the host's interfaces, by [`UPLINK`] and [`EXIT`].
    host: Attacher,
    limit: usize,
    count: AtomicUsize,
    table: Mutex<Table>,
}

/// Numbers of the programs in the host's namespace.
const UPLINK: usize = 0;
const EXIT: usize = 1;

/// Both in their order.
pub(super) fn programs(uplink: Program, exit: Program) -> Vec<Program> {
    vec![uplink, exit]
}

impl Connections {
    pub(super) fn new(
        map: Arc<Map>,
        told: Arc<Told>,
        awaited: Awaited,
        host: Attacher,
        uplinks: Arc<Uplinks>,
        limit: usize,
    ) -> Self {
        Self { map, told, awaited, uplinks, host, limit, count: AtomicUsize::new(0), table: Mutex::default() }
    }

    pub(super) fn tables(&self) -> Tables<'_> {
        Tables { connections: &self.map, reports: self.told.map() }
    }

    /// Directions in the kernel.
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Lets go of the host's interfaces that are no uplinks and no ends of networks any more.
    pub(super) fn follow(&self, snapshot: &Snapshot) {
        let ours = |i: u32| snapshot.uplink(i).is_some() || snapshot.host_ends.values().any(|end| *end == i);
        self.host.keep(ours);
    }

    /// The programs of the host's interfaces.
    pub(super) fn host(&self) -> &Attacher {
        &self.host
    }

    /// Keeps the answers to questions that are about to be sent from the host's stack.
    pub(super) fn await_answers(&self, questions: impl Iterator<Item = Question>, now: Time) {
        // Most of a batch leave by one uplink.
        let mut asked = None;
        for question in questions {
            if asked != Some(question.uplink) {
                self.host.has(question.uplink, UPLINK);
                asked = Some(question.uplink);
            }
            self.awaited.note(&question, now);
        }
    }

    /// Hands a direction over that was decided about in `epoch`. Tells whether it is the first of all.
    ///
    /// # Errors
    /// When the kernel cannot carry it: not between these interfaces, not yet, or for want of room.
    pub(super) fn install(
        &self,
        carry: &Carry,
        epoch: u32,
        snapshot: &Snapshot,
        shared: &Shared,
        ports: &Attacher,
    ) -> io::Result<bool> {
        let refused = || io::Error::from(io::ErrorKind::NotFound);
        let (port, uplink, outbound) = match (carry.from, carry.to) {
            (Ingress::Port(port), Ingress::Uplink(uplink)) => (port, uplink, true),
            (Ingress::Uplink(uplink), Ingress::Port(port)) => (port, uplink, false),
            _ => return Err(refused()),
        };
        let (port, uplink) = snapshot.port(port).zip(snapshot.uplink(uplink)).ok_or_else(refused)?;
        let network = snapshot.network(port.network).ok_or_else(refused)?;
        let gate = network.host_port.and_then(|id| snapshot.port(id)).ok_or_else(refused)?;
        let (inner, gate) = ifindex(port).zip(ifindex(gate)).ok_or_else(refused)?;
        let outer = *snapshot.host_ends.get(&gate).ok_or_else(refused)?;
        if port.veth_mtu.is_none() || !port.up || !uplink.up {
            return Err(refused());
        }
        // All are asked, so that all get theirs.
        let attached = match outbound {
            true => [ports.has(inner, 0), self.host.has(outer, EXIT)],
            false => {
                let filtered = self.uplinks.are_ready(&self.host, worker::now());
                [self.host.has(uplink.ifindex, UPLINK) & filtered, ports.has(gate, 0)]
            }
        };
        let (side, at, via, then) = match outbound {
            true => (Side::Ports, inner, gate, uplink.ifindex),
            false => (Side::Uplinks, uplink.ifindex, outer, inner),
        };
        if attached.contains(&false) || then > MAX_IFINDEX {
            return Err(refused());
        }
        let [arrives, leaves] = carry.headers();
        let tcp = carry.is_tcp();
        let key = translate::key(side, at, carry.routed.arrived, arrives, tcp);
        let mtu = carry.routed.mtu;
        let (connection, direction) = (carry.routed.connection, carry.routed.direction);
        let macs = carry.leaves;
        let answers = carry.opens() && direction == Direction::Reply;
        let rewrite = Rewrite { via, then, mtu, macs, arrives, leaves, tcp, connection, direction, answers };
        let value = translate::value(&rewrite, epoch);

        let mut table = self.table();
        // Whoever takes back what has moved takes the lock after that was noted.
        if !outbound {
            let inside = carry.tuples[1].source.address.to_ip();
            let neighbor = shared.neighbors.get(network.id, inside, worker::now());
            if neighbor.is_some_and(|n| (n.port, n.mac) != (port.id, macs[0])) {
                return Err(refused());
            }
        }
        let (id, place) = (connection, place(direction));
        // What was there of it is counted first, and what is left of an earlier connection with its tuple.
        if let Some(old) = table.known.get_mut(&id).and_then(|known| known.directions[place].as_mut()) {
            old.leaves = true;
            self.account(&mut table, &[id], shared, epoch);
        }
        for tuple in carry.tuples {
            if let Some(other) = table.by_tuple.get(&tuple).copied().filter(|other| *other != id) {
                self.take_back(&mut table, &[other], shared, epoch);
            }
        }
        // Who floods with SYNs must not keep busy connections out.
        let room = match (carry.opens(), carry.is_new()) {
            (true, _) => self.limit / 4,
            (_, true) => self.limit / 2,
            _ => self.limit,
        };
        if self.len() >= room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.map.update(&key, &value)?;
        let first = self.count.fetch_add(1, Ordering::Relaxed) == 0;
        for tuple in carry.tuples {
            table.by_tuple.insert(tuple, id);
        }
        let known =
            table.known.entry(id).or_insert_with(|| Known { tuples: carry.tuples, directions: [None, None] });
        let (inside, outside) = (Arc::clone(&port.counters), Arc::clone(&uplink.counters));
        let (from, to) = if outbound { (inside, outside) } else { (outside, inside) };
        let clock = monotonic();
        known.directions[place] = Some(InKernel {
            key,
            epoch,
            tcp,
            sender: outbound.then_some((network.id, carry.routed.arrived[1], port.id)),
            from,
            to,
            frames: 0,
            bytes: 0,
            ip_bytes: 0,
            last: clock,
            since: clock,
            segment: None,
            answers,
            fin: None,
            news: (0, 0),
            leaves: false,
            is_out: false,
            _carried: Carried::by(at, self.uplinks.shares()),
        });
        Ok(first)
    }

    /// Counts what the kernel has forwarded, and takes back what is idle, due for review, of a former epoch or of a connection that
    /// has ended.
    pub(super) fn collect(&self, shared: &Shared, epoch: u32) {
        self.read_reports(shared, epoch);
        if self.len() == 0 {
            return;
        }
        let clock = monotonic();
        let all: Vec<ConnectionId> = self.table().known.keys().copied().collect();
        for some in all.chunks(AT_ONCE) {
            let mut table = self.table();
            let due = |id: &ConnectionId| table.known.get(id).is_some_and(|known| !known.waits(clock));
            let some: Vec<ConnectionId> = some.iter().copied().filter(due).collect();
            for id in &some {
                let Some(known) = table.known.get_mut(id) else { continue };
                // Who has closed one way only may take his time.
                let closes = known.directions.iter().flatten().any(|direction| direction.fin.is_some());
                for direction in known.directions.iter_mut().flatten() {
                    let review = idle(direction.since, clock) >= REVIEW;
                    let old = direction.epoch != epoch || idle(direction.last, clock) >= IDLE;
                    direction.leaves |= review || old || closes;
                }
            }
            self.account(&mut table, &some, shared, epoch);
        }
    }

    /// Takes back what containers have with these addresses: [`Connections::install`] takes none any more that goes where they were.
    pub(super) fn readdress(&self, moved: &[(NetworkId, IpAddr)], shared: &Shared, epoch: u32) {
        let moved: Vec<_> =
            moved.iter().map(|(network, address)| (nat_network(*network), *address)).collect();
        let has_moved = |tuple: &Tuple| {
            moved.iter().any(|(n, address)| (*n, *address) == (tuple.network, tuple.source.address.to_ip()))
        };
        let gone: Vec<ConnectionId> = {
            let table = self.table();
            let gone = table.known.iter().filter(|(_, known)| known.tuples.iter().any(has_moved));
            gone.map(|(id, _)| *id).collect()
        };
        for some in gone.chunks(AT_ONCE) {
            self.take_back(&mut self.table(), some, shared, epoch);
        }
    }

    /// Reads what was reported, and takes back what has closed both ways. Costs two reads of memory if there is nothing.
    pub(super) fn read_reports(&self, shared: &Shared, epoch: u32) {
        if !self.told.is_empty() {
            let mut table = self.table();
            self.note_reports(&mut table, shared, epoch);
        }
    }

    fn note_reports(&self, table: &mut Table, shared: &Shared, epoch: u32) {
        let mut closed = Vec::new();
        let mut state = shared.forwarding.lock().unwrap_or_else(PoisonError::into_inner);
        for report in std::iter::from_fn(|| self.told.next().map(Report::parse)).take(MOST_REPORTS) {
            let Report { connection, direction, what } = report;
            let fin = match what {
                What::Answer(segment) => {
                    state.nat.answered_elsewhere(worker::now(), connection, &segment);
                    if let Some(known) = table.direction(connection, direction) {
                        known.answers = false;
                    }
                    continue;
                }
                What::Fin(end) => end,
            };
            match table.note_fin(connection, direction, fin) {
                Noted::OneWay => {}
                Noted::Closed => closed.push(connection),
                // It was taken back meanwhile.
                Noted::Unknown => {
                    let last = worker::now();
                    let passed = Passed { direction, packets: 0, bytes: 0, last, tcp: None, fin: Some(fin) };
                    state.nat.passed_elsewhere(last, connection, &[passed]);
                }
            }
        }
        state.write_down(&shared.snapshot.load());
        drop(state);
        for some in closed.chunks(AT_ONCE) {
            self.account(table, some, shared, epoch);
        }
    }

    /// Takes a connection back, both directions, because a segment of it is about to open or close it: `tuple` is that of the
    /// segment as it arrived.
    pub(super) fn recall(&self, tuple: &Tuple, shared: &Shared, epoch: u32) {
        let mut table = self.table();
        let Some(id) = table.by_tuple.get(tuple).copied() else { return };
        self.take_back(&mut table, &[id], shared, epoch);
    }

    fn take_back(&self, table: &mut Table, some: &[ConnectionId], shared: &Shared, epoch: u32) {
        for id in some {
            if let Some(known) = table.known.get_mut(id) {
                known.directions.iter_mut().flatten().for_each(|direction| direction.leaves = true);
            }
        }
        self.account(table, some, shared, epoch);
    }

    /// Reads the counters of some connections, tells the router of them, and takes back what leaves, or has ended.
    fn account(&self, table: &mut Table, some: &[ConnectionId], shared: &Shared, epoch: u32) {
        let (now, clock) = (worker::now(), monotonic());
        let mut frames = 0;
        let mut answered = false;
        // The system calls come first: workers wait for the second lock.
        for id in some {
            let Some(known) = table.known.get_mut(id) else { continue };
            for direction in known.directions.iter_mut().flatten() {
                let before = direction.last;
                frames += direction.read(&self.map);
                if let Some((network, mac, port)) = direction.sender
                    && direction.epoch == epoch
                    && direction.last > before
                {
                    shared.fdb.refresh(network, mac, port, now - idle(direction.last, clock));
                }
                answered |= direction.answers && direction.frames > 0;
            }
        }
        // What is counted was reported before, and an answer is to be told before what followed it.
        if answered {
            self.note_reports(table, shared, epoch);
        }
        let mut state = shared.forwarding.lock().unwrap_or_else(PoisonError::into_inner);
        for id in some {
            let Some(known) = table.known.get_mut(id) else { continue };
            let news = known.news(now, clock);
            if !state.nat.passed_elsewhere(now, *id, &news) {
                known.directions.iter_mut().flatten().for_each(|direction| direction.leaves = true);
            }
        }
        state.write_down(&shared.snapshot.load());
        drop(state);
        for id in some {
            let Some(known) = table.known.get_mut(id) else { continue };
            for place in &mut known.directions {
                let Some(mut gone) = place.take_if(|direction| direction.leaves) else { continue };
                // Of one that the router has no more it is not out yet.
                if !gone.is_out {
                    frames += gone.read(&self.map);
                }
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
            if known.directions.iter().all(Option::is_none)
                && let Some(known) = table.known.remove(id)
            {
                // Another connection may have its tuples by now.
                for tuple in known.tuples {
                    if table.by_tuple.get(&tuple) == Some(id) {
                        table.by_tuple.remove(&tuple);
                    }
                }
            }
        }
        shared.count_forwarded(frames);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Whether it was not answered so far, and may be yet.
    fn waits(&self, clock: u64) -> bool {
        let waits = |direction: &InKernel| direction.answers && idle(direction.since, clock) < ANSWER_WITHIN;
        self.directions.iter().flatten().any(waits)
    }

    /// What is to be told of it.
    fn news(&mut self, now: Time, clock: u64) -> Vec<Passed> {
        let both = [Direction::Original, Direction::Reply].into_iter().zip(&mut self.directions);
        let one = |(direction, in_kernel): (Direction, &mut Option<InKernel>)| {
            let d = in_kernel.as_mut()?;
            let (packets, bytes) = std::mem::take(&mut d.news);
            let last = now - idle(d.last, clock);
            Some(Passed { direction, packets, bytes, last, tcp: d.segment, fin: d.fin })
        };
        both.filter_map(one).collect()
    }
}

impl InKernel {
    /// Counts what is new; tells how many frames. One that leaves is not in the kernel afterwards.
    fn read(&mut self, map: &Map) -> u64 {
        let read = if self.leaves { map.take(&self.key) } else { map.lookup(&self.key) };
        self.is_out = self.leaves;
        // Gone already: nothing to count.
        let Ok(value) = read else {
            self.leaves = true;
            return 0;
        };
        let at = |at: i16| usize::from(at.unsigned_abs());
        let long = |from: i16| value.get(at(from)..at(from) + 8).and_then(|b| b.try_into().ok());
        let long = |from: i16| long(from).map_or(0, u64::from_ne_bytes);
        let word = |from: i16| value.get(at(from)..at(from) + 4).and_then(|b| b.try_into().ok());
        let word = |from: i16| word(from).unwrap_or_default();
        let new = |counted: &mut u64, now: u64| now.saturating_sub(std::mem::replace(counted, now));
        let frames = new(&mut self.frames, long(offset::FRAMES));
        let bytes = new(&mut self.bytes, long(offset::BYTES));
        let ip_bytes = new(&mut self.ip_bytes, long(offset::IP_BYTES));
        if frames == 0 {
            return 0;
        }
        self.last = self.last.max(long(offset::LAST));
        self.news.0 += frames;
        self.news.1 += ip_bytes;
        self.from.rx.add(frames, bytes);
        self.to.tx.add(frames, bytes);
        self.segment = self.tcp.then(|| LastSegment {
            end: u32::from_ne_bytes(word(offset::END)),
            acknowledgment: u32::from_be_bytes(word(offset::ACK)),
            window: u32::from_ne_bytes(word(offset::WINDOW)).try_into().unwrap_or(u16::MAX),
        });
        frames
    }
}

/// A direction as an index.
const fn place(direction: Direction) -> usize {
    match direction {
        Direction::Original => 0,
        Direction::Reply => 1,
    }
}
