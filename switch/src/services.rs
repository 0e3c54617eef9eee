//! The desk between the workers and the gateway's own services: names, addresses, whatever else a gateway has to answer for that a
//! worker cannot answer in place, because it takes a socket, a file or time.
//!
//! ```text
//! worker: Router finds Verdict::Serve(service) -> Desk::ask    -> services thread (daemon/services)
//! worker 0: Engine::answers -> sent to the port  <- Desk::answer <-
//! ```
//!
//! Both ways are bounded queues: a worker never waits for a service. A frame that is handed in counts as answered; one for which there
//! is no room is dropped as [`DropReason::ServiceBusy`](crate::verdict::DropReason::ServiceBusy). What comes back is a frame of the
//! switch's own, as an ARP request of the gateway is.
//!
//! A new service is added in four places: a variant of [`Service`] and its switch in [`Services`]; the frames that are for it in
//! [`of`](crate::router::gateway::services::of); where the control plane turns it on for a network (`Daemon::publish`); and who answers, in the
//! `match` of `daemon/services/mod.rs`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hickory_proto::op::{Message, ResponseCode};
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::frame::{OFFLOAD_HEADER, Offload, finish_checksum};
use crate::snapshot::{NetworkId, Port, PortCounters, PortId};

/// Frames that may wait for the services, and answers that may wait for a worker: some ten milliseconds' worth of a flood.
pub const WAITING: usize = 4096;

/// The longest frame that is taken: no question and no window that the gateway opens is longer, and 4096 of them are to wait.
pub const LONGEST: usize = 8192;

/// What the gateway serves by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Addresses: DHCP for IPv4, port 67.
    Dhcp,
    /// What else there is to know, for those who make their addresses themselves: DHCP for IPv6, port 547.
    Dhcp6,
    /// Names: DNS by UDP, port 53.
    Dns,
    /// Names: DNS by TCP, port 53.
    DnsTcp,
    /// Router solicitations: ICMPv6.
    Router,
}

impl Service {
    /// Its name in traces.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dhcp => "dhcp",
            Self::Dhcp6 => "dhcp6",
            Self::Dns => "dns",
            Self::DnsTcp => "dns by tcp",
            Self::Router => "router",
        }
    }
}

/// Which services the gateway of a network has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// [`Service::Dhcp`].
    pub dhcp: bool,
    /// [`Service::Dns`] and [`Service::DnsTcp`].
    pub dns: bool,
    /// [`Service::Router`] and [`Service::Dhcp6`].
    pub router: bool,
}

/// A frame for a service.
#[derive(Debug)]
pub struct Asked {
    /// The service.
    pub service: Service,
    /// The network whose gateway is meant.
    pub network: NetworkId,
    /// Where it came from.
    pub from: Asker,
    /// The frame from its Ethernet header on, untagged, its checksum finished. A TCP super-frame is still one: its checksum is that of
    /// the whole, and it may be longer than the network's MTU, up to [`LONGEST`].
    pub bytes: Vec<u8>,
}

/// The port that a frame came from. The number may be another port's by the time of the answer: its counters never are.
#[derive(Clone, Debug)]
pub struct Asker {
    /// Its number.
    pub port: PortId,
    /// Its counters.
    pub counters: Arc<PortCounters>,
}

impl Asker {
    /// Whether a port is the one that asked.
    pub fn is(&self, port: &Port) -> bool {
        port.id == self.port && Arc::ptr_eq(&port.counters, &self.counters)
    }
}

/// A frame for a port.
#[derive(Debug)]
pub struct Answer {
    /// Who asked.
    pub to: Asker,
    /// The frame from its Ethernet header on, nothing left for hardware to do.
    pub bytes: Vec<u8>,
}

/// What became of a question for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Answered by what is known: also that there is no such name.
    Answered,
    /// Answered by what others said before.
    Cached,
    /// Answered by others.
    Forwarded,
    /// Not to be answered.
    Refused,
    /// Not understood, or nobody had an answer.
    Failed,
}

impl Count {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Answered, Self::Cached, Self::Forwarded, Self::Refused, Self::Failed];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Cached => "cached",
            Self::Forwarded => "forwarded",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    /// What an answer that was not asked of others is.
    pub fn of(answer: &Message) -> Self {
        match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Self::Answered,
            ResponseCode::Refused => Self::Refused,
            _ => Self::Failed,
        }
    }
}

/// Connections to the gateways for names by TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// That are open.
    pub open: u64,
    /// So far.
    pub opened: u64,
    /// For which there was no room so far.
    pub refused: u64,
}

/// What was asked of the gateways, counted by the services.
#[derive(Debug, Default)]
pub struct Counts {
    questions: [AtomicU64; Count::ALL.len()],
    open: AtomicU64,
    opened: AtomicU64,
    refused: AtomicU64,
}

impl Counts {
    /// Counts a question.
    pub fn add(&self, count: Count) {
        self.questions[count as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Questions so far of which this became.
    pub fn get(&self, count: Count) -> u64 {
        self.questions[count as usize].load(Ordering::Relaxed)
    }

    /// Notes the connections.
    pub fn connections(&self, tcp: Tcp) {
        self.open.store(tcp.open, Ordering::Relaxed);
        self.opened.store(tcp.opened, Ordering::Relaxed);
        self.refused.store(tcp.refused, Ordering::Relaxed);
    }

    /// The connections, as noted last.
    pub fn tcp(&self) -> Tcp {
        let [open, opened, refused] =
            [&self.open, &self.opened, &self.refused].map(|count| count.load(Ordering::Relaxed));
        Tcp { open, opened, refused }
    }
}

/// The two queues, and what was counted on the other side of them.
#[derive(Debug)]
pub struct Desk {
    /// Counted by the services.
    pub counts: Counts,
    asked: Sender<Asked>,
    /// Until the services take it.
    receiver: Mutex<Option<Receiver<Asked>>>,
    answers: Mutex<VecDeque<Answer>>,
}

impl Default for Desk {
    fn default() -> Self {
        let (asked, receiver) = mpsc::channel(WAITING);
        Self {
            counts: Counts::default(),
            asked,
            receiver: Mutex::new(Some(receiver)),
            answers: Mutex::default(),
        }
    }
}

impl Desk {
    /// Hands in a frame, its offload header first; tells whether there was room, for one of its length and at all.
    pub fn ask(&self, service: Service, port: &Port, wire: &[u8]) -> bool {
        let Some((offload, bytes)) = wire.split_first_chunk::<OFFLOAD_HEADER>() else { return false };
        if bytes.len() > LONGEST {
            return false;
        }
        let Ok(place) = self.asked.try_reserve() else { return false };
        let mut bytes = bytes.to_vec();
        finish_checksum(&mut bytes, Offload::parse(offload));
        let from = Asker { port: port.id, counters: Arc::clone(&port.counters) };
        place.send(Asked { service, network: port.network, from, bytes });
        true
    }

    /// Where what was handed in comes out; none if somebody has it already.
    pub fn take_receiver(&self) -> Option<Receiver<Asked>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Puts an answer on the desk. Tells whether a worker has to be told of it; an error if there is no room.
    ///
    /// # Errors
    /// The answer, back.
    pub fn answer(&self, answer: Answer) -> Result<bool, Answer> {
        let mut answers = self.answers();
        if answers.len() == WAITING {
            return Err(answer);
        }
        answers.push_back(answer);
        Ok(answers.len() == 1)
    }

    /// Takes some answers off the desk.
    pub fn take_answers(&self, most: usize) -> VecDeque<Answer> {
        let mut answers = self.answers();
        let taken = most.min(answers.len());
        let rest = answers.split_off(taken);
        std::mem::replace(&mut *answers, rest)
    }

    fn answers(&self) -> MutexGuard<'_, VecDeque<Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
