//! A worker: a thread that receives, runs the stages, sends, and starts again. The only caller of clocks and ports.
//!
//! It runs to completion: poll, receive a batch, decide about each frame, send, settle. Every source gives one batch in its
//! turn: an acknowledgement that waits behind a queue of data stops the sender of the data. After the last frame it looks for
//! another for [`LINGER`], letting others have the CPU between the looks, then sleeps in `epoll_wait` without a timeout, so an idle
//! switch costs nothing. It takes no lock for longer than a look into a table, allocates nothing for a frame, and calls the kernel for
//! batches only (but for TAP queues, which know no batches).

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};

use std::time::Duration;

use nat::Time;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::time::{ClockId, clock_gettime};

use crate::batch::Batch;
use crate::dataplane::DataEvent;
use crate::engine::Engine;
use crate::fastpath::FastPath;
use crate::fastpath::offer::Which;
use crate::port::packet::PacketPorts;
use crate::port::tap::TapPort;
use crate::port::{Rx, Tx};
use crate::router::Extra;
use crate::router::resolve::Ingress;
use crate::snapshot::{Link, PortId, Snapshot};

/// How long a worker looks for another frame before it goes to sleep. Sleeping and being woken cost more than this on
/// virtual machines, where a wake-up on another CPU is an exit to the hypervisor (tens of microseconds).
const LINGER: Duration = Duration::from_micros(30);
/// A worker gives way after the first look for a frame in vain, and then each so many: while it does, it sees no frame.
const LOOKS_EACH: u32 = 8;
/// What it waits between the other looks, in instructions that tell the CPU so.
const SPINS: u32 = 10;
/// Nice value of a worker thread: the highest priority that leaves other programs a share.
const NICE: i32 = -20;
/// Of a connection one packet in so many may hand it to the kernel while earlier ones wait.
const OVERTAKES: u64 = 1024;
/// Looks at the clocks to compare them.
const LOOKS: u32 = 3;
/// Looks into the ring alone before all descriptors are asked again.
const PASSES: u32 = 64;
/// Descriptors told ready by one call.
const READY: usize = 64;

/// What epoll says of the socket for all packet ports; TAP ports have their number.
const PACKET: u64 = u64::MAX;
/// What epoll says of the wake-up by the control plane.
const WAKE: u64 = u64::MAX - 1;
/// What epoll says of an uplink's socket: this and the interface's index.
const UPLINK: u64 = 1 << 32;

/// What the control plane wants of a worker.
#[derive(Debug)]
pub enum Message {
    /// Serve a TAP queue: send to it, and, if it is this worker's own, receive from it.
    AddTap {
        /// The queue.
        queue: TapPort,
        /// Receive from it, too.
        receive: bool,
    },
    /// Close a TAP port's queue.
    RemoveTap(PortId),
    /// Serve an uplink: send to it and receive from it.
    AddUplink(Box<PacketPorts>),
    /// Close an uplink's socket.
    RemoveUplink(u32),
    /// Send frames of the switch's own.
    Say(Vec<Extra>),
    /// Look at what is due.
    Tick,
    /// Send what the gateway's services have answered.
    Answers,
    /// Say when everything before this has been let go of.
    Quiesce(SyncSender<()>),
    /// End.
    Stop,
}

/// The clock of the data plane: `CLOCK_BOOTTIME`, which counts time asleep.
pub fn now() -> Time {
    // The call cannot fail for this clock; if it did, time standing still is the mildest of consequences.
    let Ok(t) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return Time::ZERO };
    let (secs, nanos) = (t.tv_sec().unsigned_abs(), t.tv_nsec().unsigned_abs());
    Time::from_nanos(secs.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// From the data plane's time to that since 1970.
pub fn wall_offset() -> Duration {
    // Who is interrupted between two clocks is wrong by as long: the shortest of some looks is the best.
    let look = || {
        let before = now();
        let wall = clock_gettime(ClockId::CLOCK_REALTIME).map(Duration::from).unwrap_or_default();
        (now().since(before), wall.saturating_sub(before.since(Time::ZERO)))
    };
    (0..LOOKS).map(|_| look()).min().unwrap_or_default().1
}

/// Raises the calling thread above ordinary programs.
///
/// A frame that is delivered wakes its receiver. At equal priority the receiver takes the worker's CPU for each single
/// frame, so a worker that sends a batch is interrupted as often as the batch has frames. Kernel bridges forward in
/// softirq, which no program interrupts either.
pub fn raise_priority() {
    if let Err(error) = crate::sys::sched::set_nice(NICE) {
        tracing::warn!("workers run at ordinary priority, which is slower under load: {error}");
    }
}

/// Lets a program run that waits for this CPU: the kernel likes to wake a receiver where its frame was delivered (`wake_affine`,
/// kernel/sched/fair.c), and a sender may be there, too. Who looks for a frame at a worker's priority would keep both from
/// sending it, for as long as it looks.
fn give_way() {
    std::thread::yield_now();
}

/// Whether a frame of a port may wait in the ring that all of them share.
fn holds_of(packet: &PacketPorts, port: PortId, snapshot: &Snapshot) -> bool {
    match snapshot.port(port).map(|port| port.link) {
        Some(Link::Packet(ifindex)) => packet.holds_of(ifindex),
        _ => packet.is_ready(),
    }
}

/// What a worker does between two looks for a frame: gives way after the first, when the receiver of its last frame may wait, and then
/// now and then.
fn pause(looks: u32) {
    if looks.is_multiple_of(LOOKS_EACH) {
        give_way();
    } else {
        (0..SPINS).for_each(|_| std::hint::spin_loop());
    }
}

/// A worker's own things.
#[derive(Debug)]
pub struct Worker {
    engine: Engine,
    packet: PacketPorts,
    taps: Vec<Option<TapPort>>,
    tap_count: usize,
    uplinks: Vec<PacketPorts>,
    inbox: Receiver<Message>,
    wake: Arc<EventFd>,
    epoll: Epoll,
    batch: Batch,
    fast: Option<Arc<FastPath>>,
}

impl Worker {
    /// A worker that listens to `inbox` whenever `wake` is written to.
    pub fn new(
        engine: Engine,
        packet: PacketPorts,
        inbox: Receiver<Message>,
        wake: Arc<EventFd>,
        fast: Option<Arc<FastPath>>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&packet, EpollEvent::new(EpollFlags::EPOLLIN, PACKET))?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        Ok(Self {
            engine,
            packet,
            taps: Vec::new(),
            tap_count: 0,
            uplinks: Vec::new(),
            inbox,
            wake,
            epoll,
            batch: Batch::new(),
            fast,
        })
    }

    /// Works until told to stop.
    ///
    /// # Errors
    /// When the kernel refuses to wait for, or to give, frames at all.
    pub fn run(mut self) -> io::Result<()> {
        let mut ready = [EpollEvent::empty(); READY];
        // Until when to look for more frames before going to sleep.
        let mut awake_until = Time::ZERO;
        let mut passes: u32 = 0;
        // In vain, since the last frame.
        let mut looks: u32 = 0;
        loop {
            let lingering = now() < awake_until;
            // Without TAP queues the ring in memory says whether there is more, for a while: the control plane has to get
            // a word in. With them only the kernel knows.
            if lingering && self.tap_count == 0 && passes < PASSES {
                let mut worked = self.packet.is_ready() && self.serve_packet_ports()?;
                for at in 0..self.uplinks.len() {
                    worked |= self.uplinks[at].is_ready() && self.serve_uplink(at);
                }
                if worked {
                    passes += 1;
                    looks = 0;
                    awake_until = now() + LINGER;
                } else {
                    pause(looks);
                    looks = looks.wrapping_add(1);
                }
                continue;
            }
            passes = 0;
            let timeout = if lingering { EpollTimeout::ZERO } else { self.tick() };
            let n = match self.epoll.wait(&mut ready, timeout) {
                Ok(n) => n,
                Err(nix::Error::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let mut worked = false;
            for event in &ready[..n] {
                worked |= match event.data() {
                    PACKET => self.serve_packet_ports()?,
                    WAKE => {
                        if self.obey()? == Told::Stop {
                            return Ok(());
                        }
                        false
                    }
                    tap if tap < UPLINK => self.serve_tap(tap),
                    uplink => {
                        let at = self
                            .uplinks
                            .iter()
                            .position(|u| u.ifindex().map(u64::from) == Some(uplink ^ UPLINK));
                        at.is_some_and(|at| self.serve_uplink(at))
                    }
                }
            }
            if worked {
                awake_until = now() + LINGER;
            } else if lingering {
                give_way();
            }
        }
    }

    /// Forwards what came by the packet socket; tells whether there was anything.
    fn serve_packet_ports(&mut self) -> io::Result<bool> {
        self.batch.clear();
        self.packet.receive(&mut self.batch)?;
        Ok(self.forward())
    }

    /// Does what is due without frames; tells how long to sleep at most: for good, while nothing is due by itself.
    fn tick(&mut self) -> EpollTimeout {
        let Some(at) = self.engine.timer() else { return EpollTimeout::NONE };
        let now = now();
        if at <= now {
            self.batch.clear();
            let shared = Arc::clone(self.engine.shared());
            let _books = shared.open_books();
            let snapshot = shared.snapshot.load();
            self.engine.tick(now, &snapshot, &mut self.batch);
            self.send(&snapshot);
        }
        let Some(at) = self.engine.timer() else { return EpollTimeout::NONE };
        if at <= now {
            // More was due than is done at once.
            return EpollTimeout::ZERO;
        }
        // A millisecond more: to wake too early would be to wake twice.
        EpollTimeout::try_from(at.since(now) + Duration::from_millis(1)).unwrap_or(EpollTimeout::MAX)
    }

    /// Forwards what came from an uplink; tells whether there was anything.
    fn serve_uplink(&mut self, at: usize) -> bool {
        self.batch.clear();
        let Some(uplink) = self.uplinks.get_mut(at) else { return false };
        if let Err(error) = uplink.receive(&mut self.batch) {
            // The interface is going away; netlink tells the control plane.
            tracing::debug!("uplink: {error}");
            return false;
        }
        self.forward()
    }

    /// Forwards what came by a TAP port's queue; tells whether there was anything.
    fn serve_tap(&mut self, tap: u64) -> bool {
        let Some(port) = u32::try_from(tap).ok().map(PortId) else { return false };
        self.batch.clear();
        let Some(Some(queue)) = self.taps.get_mut(port.index()) else { return false };
        if let Err(error) = queue.receive(&mut self.batch) {
            tracing::debug!("TAP queue of port {} is gone: {error}", port.0);
            let gone = queue.id();
            self.remove_tap(port);
            self.engine.shared().tell(DataEvent::TapGone(gone));
            return false;
        }
        self.forward()
    }

    /// Decides about the batch, sends what came of it, counts. Tells whether there was anything.
    fn forward(&mut self) -> bool {
        if self.batch.is_empty() {
            return false;
        }
        let shared = Arc::clone(self.engine.shared());
        let epoch = shared.epoch.current();
        let snapshot = shared.snapshot.load();
        let books = shared.open_books();
        if let Some(fast) = &self.fast {
            fast.read_reports(&shared);
            fast.recall(&mut self.batch, &snapshot, &shared);
        }
        let now = now();
        if let Some(offers) = self.engine.offers() {
            offers.begin(epoch, now);
        }
        self.engine.run(now, &snapshot, &mut self.batch);
        if let (Some(fast), Some(offers)) = (&self.fast, self.engine.offers()) {
            fast.await_answers(offers.take_questions(), now);
        }
        // The answer to the answer of a SYN comes as fast as that can be sent.
        let first = self.carry(Which::JustOpened, epoch, &snapshot);
        self.send(&snapshot);
        drop(books);
        self.hand_over(first, epoch, &snapshot);
        true
    }

    /// Hands connections to the kernel that are worth it. Tells whether there is the first flow among them.
    fn carry(&mut self, which: Which, epoch: u32, snapshot: &Snapshot) -> bool {
        let shared = Arc::clone(self.engine.shared());
        let (Some(fast), Some(offers)) = (&self.fast, self.engine.offers()) else { return false };
        let mut first = false;
        while let Some(carry) = offers.take_carry(which) {
            let waiting = match carry.from {
                Ingress::Port(port) => holds_of(&self.packet, port, snapshot),
                Ingress::Uplink(i) => self.uplinks.iter().any(|u| u.ifindex() == Some(i) && u.is_ready()),
            };
            if waiting && which == Which::Any && carry.packets % OVERTAKES != 0 {
                continue;
            }
            match fast.carry(&carry, epoch, snapshot, &shared) {
                Ok(is_first) => first |= is_first,
                Err(error) => tracing::trace!("no fast path for {carry:?}: {error}"),
            }
        }
        first
    }

    /// Hands flows to the kernel that are worth it. `first`: there is the first one already.
    fn hand_over(&mut self, mut first: bool, epoch: u32, snapshot: &Snapshot) {
        first |= self.carry(Which::Any, epoch, snapshot);
        let shared = Arc::clone(self.engine.shared());
        let (Some(fast), Some(offers)) = (&self.fast, self.engine.offers()) else { return };
        while let Some(offer) = offers.take() {
            // What waits of it in the ring would be overtaken. A flow of which something always waits has to bear it, once.
            if !offer.is_overdue() && holds_of(&self.packet, offer.flow.from, snapshot) {
                continue;
            }
            offers.forget(&offer.flow);
            match fast.install(&offer.flow, epoch, snapshot) {
                Ok(is_first) => first |= is_first,
                Err(error) => tracing::trace!("no fast path for {:?}: {error}", offer.flow),
            }
        }
        if first {
            shared.tell(DataEvent::FastPath);
        }
    }

    /// Sends what the engine has decided to, and counts.
    fn send(&mut self, snapshot: &Snapshot) {
        let outgoing = self.engine.outgoing();
        self.packet.send(&self.batch, outgoing);
        for out in outgoing.iter_mut().filter(|out| out.link == Link::Tap) {
            if let Some(Some(tap)) = self.taps.get_mut(out.port.index()) {
                tap.send(&self.batch, std::slice::from_mut(out));
            }
        }
        for uplink in &mut self.uplinks {
            if outgoing.iter().any(|out| matches!(out.link, Link::Uplink(_))) {
                uplink.send(&self.batch, outgoing);
            }
        }
        self.engine.settle(snapshot, &self.batch);
    }

    /// Does what the control plane wants.
    fn obey(&mut self) -> io::Result<Told> {
        self.wake.read()?;
        loop {
            match self.inbox.try_recv() {
                Ok(Message::AddTap { queue, receive }) => self.add_tap(queue, receive),
                Ok(Message::RemoveTap(port)) => self.remove_tap(port),
                Ok(Message::AddUplink(uplink)) => self.add_uplink(*uplink),
                Ok(Message::RemoveUplink(ifindex)) => self.remove_uplink(ifindex),
                Ok(Message::Say(frames)) => self.say(frames),
                Ok(Message::Answers) => self.send_answers(),
                Ok(Message::Tick) => self.engine.set_timer(now()),
                // Between batches nothing is held. Nobody waiting any more is no concern of ours.
                Ok(Message::Quiesce(done)) => _ = done.send(()),
                Ok(Message::Stop) | Err(TryRecvError::Disconnected) => return Ok(Told::Stop),
                Err(TryRecvError::Empty) => return Ok(Told::GoOn),
            }
        }
    }

    fn say(&mut self, frames: Vec<Extra>) {
        self.batch.clear();
        let shared = Arc::clone(self.engine.shared());
        let snapshot = shared.snapshot.load();
        self.engine.say(now(), &snapshot, &mut self.batch, frames);
        self.send(&snapshot);
    }

    /// Sends what the gateway's services have put on the desk.
    fn send_answers(&mut self) {
        let shared = Arc::clone(self.engine.shared());
        let snapshot = shared.snapshot.load();
        loop {
            self.batch.clear();
            if !self.engine.answers(now(), &snapshot, &mut self.batch) {
                return;
            }
            self.send(&snapshot);
        }
    }

    fn add_uplink(&mut self, uplink: PacketPorts) {
        let Some(ifindex) = uplink.ifindex() else { return };
        self.remove_uplink(ifindex);
        let event = EpollEvent::new(EpollFlags::EPOLLIN, UPLINK | u64::from(ifindex));
        match self.epoll.add(&uplink, event) {
            Ok(()) => self.uplinks.push(uplink),
            Err(error) => tracing::error!("cannot watch the uplink with index {ifindex}: {error}"),
        }
    }

    fn remove_uplink(&mut self, ifindex: u32) {
        // Closing the socket would end the watch, were it not shared with the control plane.
        for uplink in self.uplinks.extract_if(.., |u| u.ifindex() == Some(ifindex)) {
            let _ = self.epoll.delete(uplink.as_fd());
        }
    }

    fn add_tap(&mut self, tap: TapPort, receive: bool) {
        let port = tap.id().port;
        self.remove_tap(port);
        let watched = if receive {
            self.epoll.add(&tap, EpollEvent::new(EpollFlags::EPOLLIN, port.0.into()))
        } else {
            Ok(())
        };
        if let Err(error) = watched {
            tracing::error!("cannot watch the TAP queue of port {}: {error}", port.0);
            self.engine.shared().tell(DataEvent::TapGone(tap.id()));
            return;
        }
        if self.taps.len() <= port.index() {
            self.taps.resize_with(port.index() + 1, || None);
        }
        self.taps[port.index()] = Some(tap);
        self.tap_count += 1;
    }

    fn remove_tap(&mut self, port: PortId) {
        if let Some(tap) = self.taps.get_mut(port.index()).and_then(Option::take) {
            // A duplicate of the descriptor may live on elsewhere, so closing ours does not end the watch. An error
            // means that it was not watched.
            let _ = self.epoll.delete(tap.as_fd());
            self.tap_count -= 1;
        }
    }
}

/// Whether to go on after a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    GoOn,
    Stop,
}
