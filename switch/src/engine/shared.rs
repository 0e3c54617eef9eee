//! What all workers and the control plane share.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::dataplane::DataEvent;
use crate::fastpath::epoch::Epoch;
use crate::fdb::{Fdb, FdbConfig};
use crate::router::Forwarding;
use crate::router::neighbor::Neighbors;
use crate::services::Desk;
use crate::snapshot::Snapshot;
use crate::verdict::DropCounters;

/// Events that may wait for the control plane. More are lost: they are news, not state.
const EVENTS: usize = 1024;

/// What all workers and the control plane share.
#[derive(Debug)]
pub struct Shared {
    /// The world.
    pub snapshot: ArcSwap<Snapshot>,
    /// Ends with every change after which frames may go elsewhere.
    pub epoch: Arc<Epoch>,
    /// The MAC table.
    pub fdb: Fdb,
    /// Addresses in use.
    pub neighbors: Neighbors,
    /// Connections and next hops.
    pub forwarding: Mutex<Forwarding>,
    /// Frames that wait for a container to say its MAC.
    pub(super) waiting: AtomicUsize,
    /// Frames that were received and are kept until a limit lets them pass.
    pub(super) shaped: AtomicUsize,
    /// Drops by reason.
    pub drops: DropCounters,
    pub(super) received: AtomicU64,
    pub(super) forwarded: AtomicU64,
    pub(super) answered: AtomicU64,
    /// Held shared while a batch is in work, and alone by who adds up (`books.rs`).
    pub(super) books: RwLock<()>,
    events: mpsc::Sender<DataEvent>,
    /// Where the gateway's services are asked.
    pub desk: Desk,
}

impl Shared {
    /// An empty world, and where the workers' news come out.
    pub fn new(fdb: FdbConfig) -> (Arc<Self>, mpsc::Receiver<DataEvent>) {
        Self::with(fdb, nat::Config::default(), Arc::default())
    }

    /// The same with limits of connections (a seed is drawn in place of theirs), in an epoch that others read.
    pub fn with(
        fdb: FdbConfig,
        nat: nat::Config,
        epoch: Arc<Epoch>,
    ) -> (Arc<Self>, mpsc::Receiver<DataEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS);
        let shared = Self {
            snapshot: ArcSwap::default(),
            fdb: Fdb::with_epoch(fdb, Arc::clone(&epoch)),
            epoch,
            neighbors: Neighbors::default(),
            forwarding: Mutex::new(Forwarding::new(nat::Config { seed: seed(), ..nat })),
            waiting: AtomicUsize::new(0),
            shaped: AtomicUsize::new(0),
            drops: DropCounters::default(),
            received: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            books: RwLock::default(),
            events,
            desk: Desk::default(),
        };
        (Arc::new(shared), receiver)
    }

    /// A copy that goes its own way: what is done with it changes nothing here. It shares no counter and tells nobody.
    ///
    /// Copies the connections under their lock, during which workers wait: some ten milliseconds for 200,000 of them.
    pub fn fork(&self) -> (Arc<Self>, mpsc::Receiver<DataEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS);
        let mut forwarding = self.forwarding.lock().unwrap_or_else(PoisonError::into_inner).clone();
        forwarding.nat.want_changes(false);
        let epoch = Arc::<Epoch>::default();
        let shared = Self {
            epoch: Arc::clone(&epoch),
            snapshot: ArcSwap::from_pointee(self.snapshot.load().fork()),
            fdb: self.fdb.fork(epoch),
            neighbors: self.neighbors.fork(),
            waiting: AtomicUsize::new(self.waiting.load(Ordering::Relaxed)),
            shaped: AtomicUsize::new(0),
            forwarding: Mutex::new(forwarding),
            drops: DropCounters::default(),
            received: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            books: RwLock::default(),
            events,
            desk: Desk::default(),
        };
        (Arc::new(shared), receiver)
    }

    /// Tells the control plane something, unless it is behind with listening.
    pub fn tell(&self, event: DataEvent) {
        // Both errors mean that nobody listens now, which is no reason to hold up frames.
        let _ = self.events.try_send(event);
    }

    /// Counts frames that the kernel forwarded for the switch.
    pub fn count_forwarded(&self, frames: u64) {
        self.received.fetch_add(frames, Ordering::Relaxed);
        self.forwarded.fetch_add(frames, Ordering::Relaxed);
    }
}

/// A number that nobody can guess: each process draws the keys of its hash tables from the kernel.
fn seed() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(0)
}
