//! The fast path: decided by swd, executed by the kernel.
//!
//! A frame that crosses a process is copied twice more than one that crosses a kernel bridge, and wakes one thread more. So
//! busy unicast flows between two veth ports are handed over, once the stages have decided about some of their frames:
//!
//! ```text
//! engine: the bridge forwards the 8th frame of (port, both MACs, source address)   -> offer
//!         (but of those that take turns, who have the shorter round trip by a worker: see `turns`)
//! worker: install                                     -> the kernel forwards what is alike (see `program`)
//! daemon, every second while there are such flows: adds what was counted to the ports' counters, refreshes the MACs' ages,
//!         takes back what was idle for `IDLE`, and, sooner if they are few, what may have taken turns
//! any change of ports, networks, leases, the host's addresses, static or moved MACs: the epoch ends, and with it every flow's right to the
//!         fast path; the stages decide anew
//! ```
//!
//! Where it is only that a container says of an address that another has it, or another MAC, the connections of that address are taken
//! back: what one container says of itself must not cost the others anything.
//!
//! So are connections between a container and the outside, once they are open and busy: the router says how it has translated a
//! packet of one, and the kernel does it with what is alike ([`carry`], [`connections`], [`translate`]). It reports answers to SYNs
//! ([`answers`]) and FINs as it forwards them, and a connection of which both FINs were is taken back before the next frame is
//! decided about.
//!
//! Everything else, and everything for the stages of users, goes the ordinary way: the fast path is an optimisation that may be
//! absent (no BPF, Linux before 6.6, `fast_path = false`), not another switch.

mod answers;
mod attacher;
pub mod awaited;
pub mod carry;
mod connections;
pub mod epoch;
pub mod offer;
mod program;
mod report;
pub mod shares;
mod translate;
mod turns;
mod uplinks;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nat::Time;
use nix::time::{ClockId, clock_gettime};

use self::attacher::Attacher;
use self::awaited::{Awaited, Question};
use self::carry::Carry;
use self::connections::{Connections, MAX_DIRECTIONS, Told};
use self::epoch::Epoch;
use self::offer::Flow;
use self::shares::{Carried, Shares};
use self::translate::Side;
use self::turns::Tally;
use self::uplinks::Uplinks;
use crate::batch::{Batch, Source};
use crate::engine::Shared;
use crate::fdb::Fdb;
use crate::router::nat_network;
use crate::snapshot::{Link, NetworkId, Port, PortCounters, PortId, Snapshot};
use crate::sys::bpf::{LoadError, Map, MapKind, Program, ProgramKind};
use crate::sys::netns::NetNs;
use crate::sys::packet::PacketSocket;
use crate::sys::words::Words;

/// Flows in the kernel at a time: about 1.6 MB there. Others are forwarded by the workers.
pub const MAX_FLOWS: u32 = 16_384;
/// A flow without a frame for this long is taken back.
const IDLE: Duration = Duration::from_secs(10);
/// Counters of less than this say nothing about rates.
const PERIOD: Duration = Duration::from_millis(80);
/// More flows between ports than this are not looked at for turns but as they are counted.
const FEW: usize = 1024;

type Key = [u8; program::KEY];

/// Why there is no fast path.
#[derive(Debug, thiserror::Error)]
pub enum FastPathError {
    /// The kernel does not run such programs, or does not let us.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No map, or no socket option.
    #[error("{0}")]
    Refused(#[from] io::Error),
}

/// What the kernel was told, to be counted.
#[derive(Debug)]
struct Installed {
    epoch: u32,
    flow: Flow,
    network: NetworkId,
    from: Arc<PortCounters>,
    to: Arc<PortCounters>,
    frames: u64,
    bytes: u64,
    /// Frames and bytes that were not judged yet: see [`turns`].
    unjudged: (u64, u64),
    /// `CLOCK_MONOTONIC`, nanoseconds: the last frame, or when it was installed.
    last: u64,
    _carried: Carried,
}

/// The kernel's part of the switch.
#[derive(Debug)]
pub struct FastPath {
    epoch: Arc<Epoch>,
    shares: Arc<Shares>,
    flows: Map,
    filter: Program,
    copies: Program,
    attacher: Attacher,
    connections: Option<Connections>,
    /// Gaps up to this number are mended.
    mended: AtomicU32,
    installed: Mutex<HashMap<Key, Installed>>,
    /// `CLOCK_MONOTONIC`, nanoseconds: what the kernel forwarded since is not judged yet.
    judged: AtomicU64,
}

impl FastPath {
    /// Loads the programs for ports in `netns`, and for uplinks in `host`, of at most so many connections. None is in force yet.
    ///
    /// # Errors
    /// When the kernel refuses: it is too old, or `CAP_BPF` and `CAP_NET_ADMIN` are missing.
    pub fn start(netns: &NetNs, host: &NetNs, connections: u32) -> Result<Self, FastPathError> {
        let epoch = Arc::new(Epoch::shared(Words::create("swd_epoch", 1, epoch::WORDS)?));
        let shares = Arc::new(Shares::create()?);
        let words = epoch.words().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let handoff = Map::create(MapKind::PerCpuArray, "swd_handoff", 4, program::HANDOFF, 1)?;
        let handoff = Arc::new(handoff);
        let flows = Map::create(MapKind::Hash, "swd_flows", program::KEY, program::VALUE, MAX_FLOWS)?;
        let limit = connections.min(MAX_DIRECTIONS);
        // One without the other is possible.
        let connections = load_connections(&handoff, (&epoch, &shares), host, limit);
        if let Err(e) = &connections {
            tracing::warn!("the workers carry all connections to the outside: no fast path: {e}");
        }
        let connections = connections.ok();
        let tables = connections.as_ref().map(Connections::tables);
        let filter = program::filter(&flows, &handoff, (words, shares.map()), tables);
        let ingress = program::ingress(&handoff, Side::Ports, None);
        let ingress = Program::load(ProgramKind::Ingress, "swd_ingress", &ingress)?;
        Ok(Self {
            filter: Program::load(ProgramKind::SocketFilter, "swd_filter", &filter)?,
            copies: Program::load(ProgramKind::SocketFilter, "swd_copies", &program::copies(&handoff))?,
            attacher: Attacher::start(vec![ingress], netns.try_clone()?)?,
            mended: AtomicU32::new(0),
            epoch: Arc::clone(&epoch),
            shares,
            flows,
            connections,
            installed: Mutex::default(),
            judged: AtomicU64::new(monotonic()),
        })
    }

    /// The epoch that the kernel reads.
    pub fn epoch(&self) -> &Arc<Epoch> {
        &self.epoch
    }

    /// How much of the ring each port may have.
    pub fn shares(&self) -> &Arc<Shares> {
        &self.shares
    }

    /// Lets a worker's socket receive only what the kernel does not forward.
    ///
    /// # Errors
    /// As `SO_ATTACH_BPF`.
    pub fn guard(&self, socket: &PacketSocket) -> io::Result<()> {
        socket.set_program(&self.filter)
    }

    /// Lets a socket that is bound to a port's interface receive only what the kernel forwards from there.
    ///
    /// # Errors
    /// As `SO_ATTACH_BPF`.
    pub fn sniff(&self, socket: &PacketSocket) -> io::Result<()> {
        socket.set_program(&self.copies)
    }

    /// Lets an uplink's socket receive what a classic filter lets in, but for what the kernel forwards.
    ///
    /// # Errors
    /// As `SO_ATTACH_FILTER`.
    pub fn guard_uplink(&self, socket: &Arc<PacketSocket>, filter: &[libc::sock_filter]) -> io::Result<()> {
        match &self.connections {
            Some(connections) => connections.uplinks.set(socket, filter),
            None => socket.set_filter(filter),
        }
    }

    /// Lets go of the interfaces that are no ports and no uplinks any more.
    pub fn follow(&self, snapshot: &Snapshot) {
        if let Some(connections) = &self.connections {
            connections.follow(snapshot);
        }
        self.attacher.keep(|ifindex| snapshot.port_by_ifindex(ifindex).is_some_and(|p| p.veth_mtu.is_some()));
    }

    /// An interface that went away and came back unnoticed has lost its program: all get theirs anew.
    pub fn mend(&self) {
        let gaps = self.epoch.gaps();
        if self.mended.load(Ordering::Relaxed) == gaps {
            return;
        }
        let attachers = [Some(&self.attacher), self.connections.as_ref().map(Connections::host)];
        let forgotten = attachers.map(|attacher| attacher.map(|a| (a, a.forget(|_| false))));
        // First nothing may need them any more.
        self.epoch.end();
        for (attacher, links) in forgotten.into_iter().flatten() {
            attacher.release(links);
        }
        self.mended.store(gaps, Ordering::Relaxed);
    }

    /// Whether a program is missing somewhere, as far as known: nothing more is handed over then.
    fn has_gap(&self) -> bool {
        self.mended.load(Ordering::Relaxed) != self.epoch.gaps()
    }

    /// Hands a direction of a connection over that was decided about in `epoch`. As [`FastPath::install`].
    ///
    /// # Errors
    /// When the table is full, an interface has no program (yet), or the kernel has not all that it takes.
    pub fn carry(&self, carry: &Carry, epoch: u32, snapshot: &Snapshot, shared: &Shared) -> io::Result<bool> {
        let connections = self.connections.as_ref().filter(|_| !self.has_gap());
        let connections = connections.ok_or(io::ErrorKind::Unsupported)?;
        connections.install(carry, epoch, snapshot, shared, &self.attacher)
    }

    /// Keeps the answers to questions that are about to be sent from the host's stack.
    pub fn await_answers(&self, questions: impl Iterator<Item = Question>, now: Time) {
        if let Some(connections) = &self.connections {
            connections.await_answers(questions, now);
        }
    }

    /// Takes note of connections that were answered, or have closed, in the kernel. Before the stages see anything: ports that are given
    /// back are taken again in the order in which they were.
    pub fn read_reports(&self, shared: &Shared) {
        if let Some(connections) = &self.connections {
            connections.read_reports(shared, self.epoch.current());
        }
    }

    /// Takes connections back that segments of the batch are about to open or to close: before the stages see them.
    pub fn recall(&self, batch: &mut Batch, snapshot: &Snapshot, shared: &Shared) {
        let Some(connections) = self.connections.as_ref().filter(|c| c.len() > 0) else { return };
        for frame in 0..batch.len() {
            let network = match batch.slot(frame).source {
                Source::Uplink(_) => nat::NetworkId::OUTSIDE,
                source => match source.port(snapshot) {
                    Some(port) => nat_network(port.network),
                    None => continue,
                },
            };
            if let Some(tuple) = carry::opens_or_closes(&mut batch.frame(frame, PortId(u32::MAX)), network) {
                connections.recall(&tuple, shared, self.epoch.current());
            }
        }
    }

    /// Takes connections back that containers have with these addresses of theirs.
    pub fn readdress(&self, moved: &[(NetworkId, IpAddr)], shared: &Shared) {
        if let Some(connections) = self.connections.as_ref().filter(|c| !moved.is_empty() && c.len() > 0) {
            connections.readdress(moved, shared, self.epoch.current());
        }
    }

    /// Counts what the kernel did for connections, and takes back what it should have no more.
    pub fn collect_connections(&self, shared: &Shared) {
        if let Some(connections) = &self.connections {
            connections.collect(shared, self.epoch.current());
        }
    }

    /// Hands a flow over that was decided about in `epoch`. Tells whether it is the first of all, or why not (then the workers
    /// go on forwarding it).
    ///
    /// # Errors
    /// When the table is full, the port has no program yet (it will), or the daemon is counting just now.
    pub fn install(&self, flow: &Flow, epoch: u32, snapshot: &Snapshot) -> io::Result<bool> {
        let refused = || io::Error::from(io::ErrorKind::NotFound);
        let (from, to) = snapshot.port(flow.from).zip(snapshot.port(flow.to)).ok_or_else(refused)?;
        let (from_index, to_index) = ifindex(from).zip(ifindex(to)).ok_or_else(refused)?;
        if self.has_gap() || !self.attacher.has(from_index, 0) {
            return Err(refused());
        }
        let mut key: Key = [0; program::KEY];
        key[0..4].copy_from_slice(&from_index.to_ne_bytes());
        key[4..10].copy_from_slice(&flow.dst.0);
        key[10..16].copy_from_slice(&flow.src.0);
        key[16..18].copy_from_slice(&flow.ethertype.to_be_bytes());
        key[20..36].copy_from_slice(&flow.source);
        let mut value = [0; program::VALUE];
        value[0..4].copy_from_slice(&to_index.to_ne_bytes());
        value[4..8].copy_from_slice(&epoch.to_ne_bytes());
        // A worker does not wait for the daemon's counting.
        let Ok(mut installed) = self.installed.try_lock() else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        if let Some(mut old) = installed.remove(&key)
            && let Ok(counted) = self.flows.take(&key)
        {
            old.count(&counted);
        }
        self.flows.update(&key, &value)?;
        let first = installed.is_empty();
        installed.insert(
            key,
            Installed {
                epoch,
                flow: *flow,
                network: from.network,
                from: Arc::clone(&from.counters),
                to: Arc::clone(&to.counters),
                frames: 0,
                bytes: 0,
                unjudged: (0, 0),
                last: monotonic(),
                _carried: Carried::by(from_index, &self.shares),
            },
        );
        Ok(first)
    }

    /// Adds what the kernel forwarded to the ports' counters, refreshes the addresses that were seen at `now`, and takes back
    /// flows that are idle, of a former epoch, or for a worker to forward: see [`turns`]. Tells how many frames it were since the last time.
    pub fn collect(&self, fdb: &Fdb, now: Time) -> u64 {
        let (epoch, clock) = (self.epoch.current(), monotonic());
        let mut frames = 0;
        let mut installed = self.installed();
        installed.retain(|key, flow| {
            let before = flow.last;
            let stays = flow.epoch == epoch && idle(flow.last, clock) < IDLE;
            let read = if stays { self.flows.lookup(key) } else { self.flows.take(key) };
            // Gone behind our back: nothing to count.
            let Ok(value) = read else { return false };
            frames += flow.count(&value);
            if flow.epoch == epoch && flow.last > before {
                fdb.refresh(flow.network, flow.flow.src, flow.flow.from, now - idle(flow.last, clock));
            }
            stays
        });
        frames + self.take_turns_back(&mut installed, clock)
    }

    /// As [`FastPath::collect`], while there are few.
    pub fn review(&self, fdb: &Fdb, now: Time) -> u64 {
        let few = self.installed().len() <= FEW;
        if few { self.collect(fdb, now) } else { 0 }
    }

    /// Takes back what may have taken turns since it was looked at the last time. Tells how many frames of it were not counted yet.
    fn take_turns_back(&self, installed: &mut HashMap<Key, Installed>, clock: u64) -> u64 {
        let period = idle(self.judged.load(Ordering::Relaxed), clock);
        if period < PERIOD {
            return 0;
        }
        self.judged.store(clock, Ordering::Relaxed);
        let mut tally = Tally::default();
        for flow in installed.values_mut() {
            let (frames, bytes) = std::mem::take(&mut flow.unjudged);
            tally.add(flow.flow.line(), frames, bytes);
        }
        let back = installed.extract_if(|_, flow| tally.is_by_turns(flow.flow.line(), period));
        back.filter_map(|(key, mut flow)| self.flows.take(&key).ok().map(|value| flow.count(&value))).sum()
    }

    /// Flows in the kernel, as far as known; of a connection each direction is one.
    pub fn len(&self) -> usize {
        self.installed().len() + self.connections.as_ref().map_or(0, Connections::len)
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn installed(&self) -> MutexGuard<'_, HashMap<Key, Installed>> {
        self.installed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Installed {
    /// Counts what is new in a value; tells how many frames.
    fn count(&mut self, value: &[u8]) -> u64 {
        let word =
            |at: usize| value.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
        let (frames, bytes) = (word(8), word(16));
        let new = frames.saturating_sub(self.frames);
        let new_bytes = bytes.saturating_sub(self.bytes);
        (self.frames, self.bytes) = (frames, bytes);
        self.unjudged.0 += new;
        self.unjudged.1 += new_bytes;
        self.last = self.last.max(word(24));
        self.from.rx.add(new, new_bytes);
        self.to.tx.add(new, new_bytes);
        new
    }
}

/// What it takes for connections to the outside.
fn load_connections(
    handoff: &Arc<Map>,
    (epoch, shares): (&Arc<Epoch>, &Arc<Shares>),
    host: &NetNs,
    limit: u32,
) -> Result<Connections, FastPathError> {
    let map = Map::create(MapKind::Hash, "swd_connections", translate::KEY, translate::VALUE, limit.max(1))?;
    let told = Arc::new(Told::create("swd_reports", connections::REPORT_BYTES)?);
    let awaited = Awaited::create()?;
    let uplink = program::ingress(handoff, Side::Uplinks, Some(&awaited));
    let uplink = Program::load(ProgramKind::Ingress, "swd_uplink_in", &uplink)?;
    let exit = Program::load(ProgramKind::Ingress, "swd_exit", &translate::exit(handoff))?;
    let host = Attacher::start(connections::programs(uplink, exit), host.try_clone()?)?;
    let (connections, handoff) = (Arc::new(map), Arc::clone(handoff));
    let (epoch, shares) = (Arc::clone(epoch), Arc::clone(shares));
    let maps = uplinks::Maps {
        connections: Arc::clone(&connections),
        told: Arc::clone(&told),
        handoff,
        epoch,
        shares,
    };
    Ok(Connections::new(connections, told, awaited, host, Uplinks::new(maps), limit as usize))
}

fn ifindex(port: &Port) -> Option<u32> {
    match port.link {
        Link::Packet(ifindex) => Some(ifindex),
        _ => None,
    }
}

/// The clock of the kernel's programs, in nanoseconds.
fn monotonic() -> u64 {
    let Ok(t) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return 0 };
    t.tv_sec().unsigned_abs().saturating_mul(1_000_000_000).saturating_add(t.tv_nsec().unsigned_abs())
}

fn idle(last: u64, clock: u64) -> Duration {
    Duration::from_nanos(clock.saturating_sub(last))
}
