//! The data plane as the control plane sees it: start workers, hand them snapshots and TAP queues, read their tables.

mod outlet;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;

pub use self::outlet::Outlet;
use crate::engine::{Balance, Engine, Shared};
use crate::fastpath::FastPath;
use crate::fdb::{Fdb, FdbConfig};
use crate::mac::Mac;
use crate::port::packet::PacketPorts;
use crate::port::sniffer::Sniffer;
use crate::port::tap::{TapId, TapPort};
use crate::router::neighbor::Neighbors;
use crate::router::{Forwarding, announce};
use crate::services::{Asked, Counts};
use crate::snapshot::{NetworkId, PortId, Snapshot};
use crate::stage::Stage;
use crate::sys::netns::NetNs;
use crate::sys::packet::{OpenError, PacketSocket};
use crate::trace::Tracer;
use crate::verdict::{DropCounters, DropReason};
use crate::worker::{self, Message, Worker};

/// Makes the user's stages, once for each worker.
pub type StageFactory = dyn Fn() -> Vec<Box<dyn Stage>> + Send + Sync;

/// How to run the data plane.
#[derive(Clone, Debug)]
pub struct Config {
    /// Number of worker threads, at least 1.
    pub workers: usize,
    /// Limits of the MAC table.
    pub fdb: FdbConfig,
    /// Limits of connections, and the ports that they leave by.
    pub nat: nat::Config,
    /// Let the kernel forward busy flows between veth ports, where it can.
    pub fast_path: bool,
}

/// What the workers tell the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataEvent {
    /// The TAP device behind a port is gone: its namespace ended, or somebody deleted it.
    TapGone(TapId),
    /// A MAC moved to another port.
    MacMoved {
        /// The address.
        mac: Mac,
        /// Where it was.
        from: PortId,
        /// Where it is.
        to: PortId,
    },
    /// A MAC moves too fast: for some seconds its frames from other ports than `port` are dropped.
    MacDamped {
        /// The address.
        mac: Mac,
        /// Where it is held.
        port: PortId,
    },
    /// The kernel forwards a flow, after it forwarded none: there is something to [`Dataplane::collect`] from now on.
    FastPath,
    /// An address changed hands: [`Dataplane::readdress`] is to be called.
    AddressMoved,
    /// A port reached its limit of learned MACs, or the table is full (told once a minute at most).
    FdbFull {
        /// The port that could not learn.
        port: PortId,
    },
}

/// Why the data plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The switch namespace cannot be entered.
    #[error("cannot enter the switch namespace")]
    Namespace(#[source] io::Error),
    /// No packet socket.
    #[error(
        "cannot open a packet socket (AF_PACKET): needs CAP_NET_RAW and CAP_NET_ADMIN, and a kernel with CONFIG_PACKET"
    )]
    PacketSocket(#[source] OpenError),
    /// No thread, or nothing for it to wait by.
    #[error("cannot start a worker thread")]
    Thread(#[source] io::Error),
}

#[derive(Debug)]
struct WorkerHandle {
    thread: JoinHandle<()>,
    inbox: Sender<Message>,
    wake: Arc<EventFd>,
}

impl WorkerHandle {
    fn send(&self, message: Message) {
        // A worker that ended takes the process along (see `start_worker`), so there is nobody to tell of an error.
        if self.inbox.send(message).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}

/// The running data plane.
#[derive(Debug)]
pub struct Dataplane {
    shared: Arc<Shared>,
    /// None any more after [`Dataplane::halt`].
    workers: Mutex<Vec<WorkerHandle>>,
    sockets: Mutex<Sockets>,
    generation: Mutex<u64>,
    taps: Mutex<Taps>,
    /// Frames are received. Before, sockets are open and deaf, and TAP queues are kept back.
    receives: AtomicBool,
    fast: Option<Arc<FastPath>>,
    /// The user's stages for traces.
    spare_stages: SpareStages,
}

/// Stages say nothing of themselves but a name.
struct SpareStages(Mutex<Vec<Box<dyn Stage>>>);

impl std::fmt::Debug for SpareStages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpareStages").finish_non_exhaustive()
    }
}

/// The packet sockets, to be asked for their losses.
#[derive(Debug)]
struct Sockets {
    ports: Vec<Arc<PacketSocket>>,
    /// By interface.
    uplinks: HashMap<u32, Vec<Arc<PacketSocket>>>,
}

impl Sockets {
    /// Frames that were lost since the last call.
    fn take_losses(&self) -> u64 {
        let all = self.ports.iter().chain(self.uplinks.values().flatten());
        all.map(|socket| socket.take_losses()).sum()
    }
}

/// The TAP devices that the workers hold.
#[derive(Debug, Default)]
struct Taps {
    last_serial: u64,
    current: HashMap<PortId, Tap>,
}

/// A TAP device with its queues, which the workers have too.
#[derive(Debug)]
struct Tap {
    id: TapId,
    queues: Vec<Arc<OwnedFd>>,
}

impl Dataplane {
    /// Opens the packet sockets in `netns` and starts the workers, which receive nothing before [`Dataplane::receive`]. What they
    /// find out comes by the receiver; events are lost, not queued without bound, when nobody takes them.
    ///
    /// Uplinks are in `host`.
    pub fn start(
        (netns, host): (&NetNs, &NetNs),
        config: &Config,
        stages: &StageFactory,
    ) -> Result<(Self, mpsc::Receiver<DataEvent>), StartError> {
        let count = config.workers.max(1);
        let sockets = open_sockets(netns, count)?;
        let fast = config
            .fast_path
            .then(|| start_fast_path((netns, host), config.nat.connections, &sockets))
            .flatten();
        let epoch = fast.as_ref().map(|fast| Arc::clone(fast.epoch())).unwrap_or_default();
        let (shared, events) = Shared::with(config.fdb, config.nat.clone(), epoch);
        let mut workers = Vec::with_capacity(count);
        for (i, socket) in sockets.iter().enumerate() {
            let mut engine = Engine::new(Arc::clone(&shared), stages());
            if fast.is_some() {
                engine.offer_flows();
            }
            let mut ports = PacketPorts::new(Arc::clone(socket)).map_err(StartError::PacketSocket)?;
            if let Some(fast) = &fast {
                ports = ports.shared_out(fast.shares());
            }
            workers.push(start_worker(i, engine, ports, fast.clone()).map_err(StartError::Thread)?);
        }
        let dataplane = Self {
            shared,
            workers: Mutex::new(workers),
            sockets: Mutex::new(Sockets { ports: sockets, uplinks: HashMap::new() }),
            generation: Mutex::default(),
            taps: Mutex::default(),
            receives: AtomicBool::new(false),
            spare_stages: SpareStages(Mutex::new(stages())),
            fast,
        };
        Ok((dataplane, events))
    }

    /// Receives frames from now on: by every socket and TAP queue that there is, and all that come.
    ///
    /// # Errors
    /// When the kernel refuses to give frames of the switch namespace.
    pub fn receive(&self) -> Result<(), StartError> {
        if self.receives.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let sockets = self.sockets();
        listen(&sockets.ports, 0).map_err(StartError::PacketSocket)?;
        for (ifindex, sockets) in &sockets.uplinks {
            // Where the interface is gone by now, netlink tells.
            if let Err(e) = listen(sockets, *ifindex) {
                tracing::warn!("cannot receive from the uplink with index {ifindex}: {e}");
            }
        }
        drop(sockets);
        let taps = self.taps();
        for tap in taps.current.values() {
            self.serve_tap(tap);
        }
        Ok(())
    }

    /// Ends the workers and their part in the kernel: nothing is received or forwarded from here on. What they shared stays as
    /// it was, for whoever takes over.
    pub fn halt(&self) {
        self.shared.epoch.end();
        let workers = std::mem::take(&mut *self.workers());
        for worker in &workers {
            worker.send(Message::Stop);
        }
        for worker in workers {
            // A worker that panicked has ended the process.
            let _ = worker.thread.join();
        }
    }

    /// Lets the workers know a new world: they take it at their next batch. Sets the generation.
    pub fn publish(&self, mut snapshot: Snapshot) {
        let mut generation = self.generation.lock().unwrap_or_else(PoisonError::into_inner);
        *generation += 1;
        snapshot.generation = *generation;
        let snapshot = Arc::new(snapshot);
        self.shared.snapshot.store(Arc::clone(&snapshot));
        self.shared.epoch.end();
        if let Some(fast) = &self.fast {
            fast.follow(&snapshot);
        }
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// Gives a TAP port's queues to the workers, one each. With fewer queues than workers the rest sends by the first.
    pub fn add_tap(&self, port: PortId, queues: Vec<OwnedFd>) {
        let queues: Vec<_> = queues.into_iter().map(Arc::new).collect();
        if queues.is_empty() {
            return;
        }
        let mut taps = self.taps();
        taps.add(port, queues);
        if let Some(tap) = taps.current.get(&port).filter(|_| self.receives.load(Ordering::Relaxed)) {
            self.serve_tap(tap);
        }
    }

    /// Gives the workers a TAP device's queues.
    fn serve_tap(&self, tap: &Tap) {
        let Some(first) = tap.queues.first() else { return };
        for (i, worker) in self.workers().iter().enumerate() {
            let own = tap.queues.get(i);
            let queue = TapPort::new(tap.id, Arc::clone(own.unwrap_or(first)));
            worker.send(Message::AddTap { queue, receive: own.is_some() });
        }
    }

    /// The queues of every TAP port.
    pub fn tap_queues(&self) -> Vec<(PortId, Vec<Arc<OwnedFd>>)> {
        self.taps().current.iter().map(|(port, tap)| (*port, tap.queues.clone())).collect()
    }

    /// Takes a TAP port's queues from the workers and closes them.
    pub fn remove_tap(&self, port: PortId) {
        self.taps().current.remove(&port);
        for worker in self.workers().iter() {
            worker.send(Message::RemoveTap(port));
        }
    }

    /// Whether this device stands behind its port still. An event may tell of one that was taken from the port since.
    pub fn has_tap(&self, tap: TapId) -> bool {
        self.taps().current.get(&tap.port).is_some_and(|current| current.id == tap)
    }

    fn taps(&self) -> MutexGuard<'_, Taps> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens an uplink's sockets in the calling thread's namespace, one for each worker, and starts to receive what
    /// `filter` lets in. The sockets are given back for later changes of the filter.
    ///
    /// # Errors
    /// When there is no such interface any more, or the kernel refuses.
    pub fn add_uplink(
        &self,
        ifindex: u32,
        filter: &[libc::sock_filter],
    ) -> Result<Vec<Arc<PacketSocket>>, OpenError> {
        let workers = self.workers();
        let mut sockets = Vec::with_capacity(workers.len());
        let mut ports = Vec::with_capacity(workers.len());
        for _ in workers.iter() {
            let socket = Arc::new(PacketSocket::open_unbound()?);
            self.filter_uplink(&socket, filter).map_err(|e| OpenError::Option("SO_ATTACH_FILTER", e))?;
            ports.push(PacketPorts::uplink(Arc::clone(&socket), ifindex)?);
            sockets.push(socket);
        }
        if self.receives.load(Ordering::Relaxed) {
            listen(&sockets, ifindex)?;
        }
        for (worker, ports) in workers.iter().zip(ports) {
            worker.send(Message::AddUplink(Box::new(ports)));
        }
        drop(workers);
        self.count_losses();
        self.sockets().uplinks.insert(ifindex, sockets.clone());
        Ok(sockets)
    }

    /// Lets an uplink's socket receive what `filter` lets in from now on, but for what the kernel forwards by itself.
    ///
    /// # Errors
    /// As `SO_ATTACH_FILTER`.
    pub fn filter_uplink(&self, socket: &Arc<PacketSocket>, filter: &[libc::sock_filter]) -> io::Result<()> {
        match &self.fast {
            Some(fast) => fast.guard_uplink(socket, filter),
            None => socket.set_filter(filter),
        }
    }

    /// Opens a socket, in the calling thread's namespace, that gets copies of what the kernel forwards from an interface by itself; none
    /// where it forwards nothing.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn sniff(&self, ifindex: u32) -> Result<Option<Sniffer>, OpenError> {
        let open = |fast: &Arc<FastPath>| Sniffer::open(ifindex, |socket| fast.sniff(socket));
        self.fast.as_ref().map(open).transpose()
    }

    /// Closes an uplink's sockets.
    pub fn remove_uplink(&self, ifindex: u32) {
        self.count_losses();
        self.sockets().uplinks.remove(&ifindex);
        for worker in self.workers().iter() {
            worker.send(Message::RemoveUplink(ifindex));
        }
    }

    /// The world as the workers see it, for whoever must not wait for the control plane.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Traces frames on a copy of the state as it is now. The user's stages come from a spare set: see
    /// [`Dataplane::return_tracer`].
    pub fn tracer(&self) -> Tracer {
        let stages = std::mem::take(&mut *self.spare_stages());
        Tracer::new(&self.shared, stages)
    }

    /// Ends a tracer, and keeps the user's stages for the next one.
    pub fn return_tracer(&self, tracer: Tracer) {
        *self.spare_stages() = tracer.into_stages();
    }

    fn spare_stages(&self) -> MutexGuard<'_, Vec<Box<dyn Stage>>> {
        self.spare_stages.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The other side of the desk: what is asked of the gateway's services, and the way of their answers. None if it is taken, or the
    /// workers have ended.
    pub fn services(&self) -> Option<(mpsc::Receiver<Asked>, Outlet)> {
        let workers = self.workers();
        let first = workers.first()?;
        let outlet = Outlet {
            shared: Arc::clone(&self.shared),
            inbox: first.inbox.clone(),
            wake: Arc::clone(&first.wake),
        };
        Some((self.shared.desk.take_receiver()?, outlet))
    }

    /// What the gateway's services have counted.
    pub fn served(&self) -> &Counts {
        &self.shared.desk.counts
    }

    /// Connections and next hops. Workers wait while it is held.
    pub fn forwarding(&self) -> MutexGuard<'_, Forwarding> {
        self.shared.forwarding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the workers look at what is due: after something was changed behind their back.
    pub fn wake(&self) {
        for worker in self.workers().iter() {
            worker.send(Message::Tick);
        }
    }

    /// Tells the neighbors of a new port whose its addresses are. They are in the snapshot that was published last.
    pub fn announce(&self, port: PortId, mac: Mac, addresses: &[IpAddr]) {
        let frames = announce::frames(&self.snapshot(), port, mac, addresses);
        if let Some(worker) = self.workers().first()
            && !frames.is_empty()
        {
            worker.send(Message::Say(frames));
        }
    }

    /// Returns when every worker has let go of every snapshot and queue older than this call. After that a port's number
    /// may be reused. Blocks for a batch at most (microseconds); never to be called from a worker.
    pub fn quiesce(&self) {
        let (done, all) = sync_channel(self.workers().len());
        for worker in self.workers().iter() {
            worker.send(Message::Quiesce(done.clone()));
        }
        drop(done);
        // Ends with an error as soon as every worker has answered, or is gone.
        while all.recv().is_ok() {}
    }

    /// The MAC table.
    pub fn fdb(&self) -> &Fdb {
        &self.shared.fdb
    }

    /// Addresses in use, as seen on the wire.
    pub fn neighbors(&self) -> &Neighbors {
        &self.shared.neighbors
    }

    /// Whether an address was seen in use in a network lately (by ARP or neighbor discovery).
    pub fn address_in_use(&self, network: NetworkId, address: IpAddr) -> bool {
        self.shared.neighbors.get(network, address, worker::now()).is_some()
    }

    /// Forgets what was learned of a port that is gone. Call it after [`Dataplane::quiesce`], before its number is reused.
    pub fn forget_port(&self, port: PortId) {
        self.shared.fdb.remove_port(port);
        self.shared.neighbors.remove_port(port);
        self.forwarding().remove_port(worker::now(), port);
        self.wake();
    }

    fn workers(&self) -> MutexGuard<'_, Vec<WorkerHandle>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sockets(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds up what the kernel counted. Its own counts begin anew with each look at them, and have 32 bits: it must be looked
    /// at every few minutes.
    pub fn count_losses(&self) {
        let refused = self.fast.as_ref().map_or(0, |fast| fast.shares().take_refused());
        let lost = self.sockets().take_losses() + refused;
        self.shared.drops.add(DropReason::NotReceived, lost);
    }

    /// Dropped frames by reason.
    pub fn drops(&self) -> &DropCounters {
        self.count_losses();
        &self.shared.drops
    }

    /// Counts what the kernel forwarded, takes back flows that are idle. Tells how many there are in the kernel.
    ///
    /// Costs a system call for each of them: for whoever reads counters, and every second while there are any.
    pub fn collect(&self) -> usize {
        let Some(fast) = &self.fast else { return 0 };
        fast.mend();
        // The event that tells may have been lost.
        self.readdress();
        self.shared.count_forwarded(fast.collect(&self.shared.fdb, worker::now()));
        fast.collect_connections(&self.shared);
        fast.len()
    }

    /// Looks which flows between ports take turns, and are better left to a worker. Costs a system call for each, if they are few.
    pub fn review(&self) {
        if let Some(fast) = &self.fast {
            self.shared.count_forwarded(fast.review(&self.shared.fdb, worker::now()));
        }
    }

    /// Takes connections back that the kernel carries to where their address is no more.
    pub fn readdress(&self) {
        let moved = self.shared.neighbors.take_moved();
        if let Some(fast) = &self.fast {
            fast.readdress(&moved, &self.shared);
        }
    }

    /// Has every flow looked at anew: after a change that no snapshot tells of.
    pub fn end_epoch(&self) {
        self.shared.epoch.end();
    }

    /// Whether the kernel may forward flows itself.
    pub fn has_fast_path(&self) -> bool {
        self.fast.is_some()
    }

    /// Frames by their end, at one moment.
    pub fn balance(&self) -> Balance {
        self.count_losses();
        self.shared.balance()
    }
}

impl Taps {
    fn add(&mut self, port: PortId, queues: Vec<Arc<OwnedFd>>) -> TapId {
        self.last_serial += 1;
        let id = TapId { port, serial: self.last_serial };
        self.current.insert(port, Tap { id, queues });
        id
    }
}

/// A socket for each worker, in the switch namespace, deaf so far.
fn open_sockets(netns: &NetNs, count: usize) -> Result<Vec<Arc<PacketSocket>>, StartError> {
    let _inside = netns.enter().map_err(StartError::Namespace)?;
    let open = |_| PacketSocket::open_unbound().map(Arc::new);
    (0..count).map(open).collect::<Result<_, _>>().map_err(StartError::PacketSocket)
}

/// Lets sockets receive from an interface (0: all of their namespace), sharing what comes.
fn listen(sockets: &[Arc<PacketSocket>], ifindex: u32) -> Result<(), OpenError> {
    let mut group = None;
    for socket in sockets {
        socket.bind(ifindex)?;
        if sockets.len() > 1 {
            group = Some(socket.join_fanout(group)?);
        }
    }
    Ok(())
}

/// The fast path, if the kernel has what it takes. Everything works without.
fn start_fast_path(
    (netns, host): (&NetNs, &NetNs),
    connections: u32,
    sockets: &[Arc<PacketSocket>],
) -> Option<Arc<FastPath>> {
    let fast = FastPath::start(netns, host, connections).and_then(|fast| {
        sockets.iter().try_for_each(|socket| fast.guard(socket))?;
        Ok(fast)
    });
    fast.map(Arc::new).inspect_err(|e| tracing::warn!("all frames pass the workers: no fast path: {e}")).ok()
}

fn start_worker(
    number: usize,
    engine: Engine,
    ports: PacketPorts,
    fast: Option<Arc<FastPath>>,
) -> io::Result<WorkerHandle> {
    let (sender, inbox) = channel();
    let wake = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let worker = Worker::new(engine, ports, inbox, Arc::clone(&wake), fast)?;
    let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        let alive = DiesWithWorker;
        worker::raise_priority();
        if let Err(error) = worker.run() {
            tracing::error!("worker {number} cannot go on: {error}");
            return; // `alive` ends the process.
        }
        std::mem::forget(alive);
    })?;
    Ok(WorkerHandle { thread, inbox: sender, wake })
}

/// A switch with a dead worker looks alive and forwards nothing. Better that the process ends and is started again.
struct DiesWithWorker;

impl Drop for DiesWithWorker {
    fn drop(&mut self) {
        std::process::abort();
    }
}
