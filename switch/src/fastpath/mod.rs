//! The fast path: decided by swd, executed by the kernel.
//!
//! A frame that crosses a process is copied twice more than one that crosses a kernel bridge, and wakes one thread more. So
//! busy unicast flows between two veth ports are handed over, once the stages have decided about some of their frames:
//!
//! ```text
//! engine: the bridge forwards the 8th frame of (port, both MACs, source address)   -> offer
//! worker: install                                     -> the kernel forwards what is alike (see `program`)
//! daemon, every second while there are such flows: adds what was counted to the ports' counters, refreshes the MACs' ages,
//!         takes back what was idle for `IDLE`
//! any change of ports, networks, addresses, static or moved MACs: the epoch ends, and with it every flow's right to the
//!         fast path; the stages decide anew
//! ```
//!
//! Everything else, and everything for the stages of users, goes the ordinary way: the fast path is an optimisation that may be
//! absent (no BPF, Linux before 6.6, `fast_path = false`), not another switch.

mod attacher;
pub mod epoch;
pub mod offer;
mod program;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nat::Time;
use nix::time::{ClockId, clock_gettime};

use self::attacher::Attacher;
use self::epoch::Epoch;
use self::offer::Flow;
use crate::fdb::Fdb;
use crate::snapshot::{Link, NetworkId, Port, PortCounters, Snapshot};
use crate::sys::bpf::{LoadError, Map, MapKind, Program, ProgramKind};
use crate::sys::netns::NetNs;
use crate::sys::packet::PacketSocket;
use crate::sys::words::Words;

/// Flows in the kernel at a time: about 1.6 MB there. Others are forwarded by the workers.
pub const MAX_FLOWS: u32 = 16_384;
/// A flow without a frame for this long is taken back.
const IDLE: Duration = Duration::from_secs(10);

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
    /// `CLOCK_MONOTONIC`, nanoseconds: the last frame, or when it was installed.
    last: u64,
}

/// The kernel's part of the switch.
#[derive(Debug)]
pub struct FastPath {
    epoch: Arc<Epoch>,
    flows: Map,
    filter: Program,
    attacher: Attacher,
    /// Gaps up to this number are mended.
    mended: AtomicU32,
    installed: Mutex<HashMap<Key, Installed>>,
}

impl FastPath {
    /// Loads the programs for ports in `netns`. None is in force yet.
    ///
    /// # Errors
    /// When the kernel refuses: it is too old, or `CAP_BPF` and `CAP_NET_ADMIN` are missing.
    pub fn start(netns: &NetNs) -> Result<Self, FastPathError> {
        let words = Words::create("swd_epoch")?;
        let handoff = Map::create(MapKind::PerCpuArray, "swd_handoff", 4, program::HANDOFF, 1)?;
        let flows = Map::create(MapKind::Hash, "swd_flows", program::KEY, program::VALUE, MAX_FLOWS)?;
        let filter = program::filter(&flows, &handoff, words.map());
        let ingress = Program::load(ProgramKind::Ingress, "swd_ingress", &program::ingress(&handoff))?;
        Ok(Self {
            filter: Program::load(ProgramKind::SocketFilter, "swd_filter", &filter)?,
            attacher: Attacher::start(ingress, netns.try_clone()?)?,
            mended: AtomicU32::new(0),
            epoch: Arc::new(Epoch::shared(words)),
            flows,
            installed: Mutex::default(),
        })
    }

    /// The epoch that the kernel reads.
    pub fn epoch(&self) -> &Arc<Epoch> {
        &self.epoch
    }

    /// Lets a worker's socket receive only what the kernel does not forward.
    ///
    /// # Errors
    /// As `SO_ATTACH_BPF`.
    pub fn guard(&self, socket: &PacketSocket) -> io::Result<()> {
        socket.set_program(&self.filter)
    }

    /// Lets go of the interfaces that are no ports any more.
    pub fn follow(&self, snapshot: &Snapshot) {
        self.attacher.keep(|ifindex| snapshot.port_by_ifindex(ifindex).is_some_and(|p| p.veth_mtu.is_some()));
    }

    /// An interface that went away and came back unnoticed has lost its program: all get theirs anew.
    pub fn mend(&self) {
        let gaps = self.epoch.gaps();
        if self.mended.swap(gaps, Ordering::Relaxed) != gaps {
            self.attacher.keep(|_| false);
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
        if !self.attacher.has(from_index) {
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
                last: monotonic(),
            },
        );
        Ok(first)
    }

    /// Adds what the kernel forwarded to the ports' counters, refreshes the addresses that were seen at `now`, and takes back
    /// flows that are idle or of a former epoch. Tells how many frames it were since the last time.
    pub fn collect(&self, fdb: &Fdb, now: Time) -> u64 {
        let (epoch, clock) = (self.epoch.current(), monotonic());
        let mut frames = 0;
        self.installed().retain(|key, flow| {
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
        frames
    }

    /// Flows in the kernel, as far as known.
    pub fn len(&self) -> usize {
        self.installed().len()
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
        self.last = self.last.max(word(24));
        self.from.rx.add(new, new_bytes);
        self.to.tx.add(new, new_bytes);
        new
    }
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
