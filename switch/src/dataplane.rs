//! The data plane as the control plane sees it: start workers, hand them snapshots and TAP queues, read their tables.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::fdb::{Fdb, FdbConfig};
use crate::mac::Mac;
use crate::snapshot::{PortId, Snapshot};
use crate::stage::Stage;
use crate::sys::netns::NetNs;
use crate::verdict::DropCounters;

/// Makes the user's stages, once for each worker.
pub type StageFactory = dyn Fn() -> Vec<Box<dyn Stage>> + Send + Sync;

/// How to run the data plane.
#[derive(Clone, Debug)]
pub struct Config {
    /// Number of worker threads, at least 1.
    pub workers: usize,
    /// Limits of the MAC table.
    pub fdb: FdbConfig,
}

/// What the workers tell the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataEvent {
    /// The TAP device behind a port is gone: its namespace ended, or somebody deleted it.
    TapGone(PortId),
    /// A MAC moved to another port.
    MacMoved { mac: Mac, from: PortId, to: PortId },
    /// A MAC moves too fast: for some seconds its frames from other ports than `port` are dropped.
    MacDamped { mac: Mac, port: PortId },
    /// A port reached its limit of learned MACs, or the table is full (told once a minute at most).
    FdbFull { port: PortId },
}

/// Why the data plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The switch namespace cannot be entered.
    #[error("cannot enter the switch namespace")]
    Namespace(#[source] io::Error),
    /// No packet socket.
    #[error("cannot open a packet socket (AF_PACKET): needs CAP_NET_RAW, and a kernel with CONFIG_PACKET")]
    PacketSocket(#[source] io::Error),
    /// A socket option is refused.
    #[error("cannot set {0} on the packet socket")]
    Option(&'static str, #[source] io::Error),
    /// No thread.
    #[error("cannot start a worker thread")]
    Thread(#[source] io::Error),
}

/// Frames by their end: received = forwarded + answered + dropped, at any moment at which no frame is in work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Taken from a port.
    pub received: u64,
    /// Sent to one or more ports.
    pub forwarded: u64,
    /// Answered by the switch itself.
    pub answered: u64,
    /// Dropped, all reasons.
    pub dropped: u64,
    /// Lost before they were received because the workers did not keep up (`PACKET_STATISTICS`).
    pub overflowed: u64,
}

/// The running data plane.
#[derive(Debug)]
pub struct Dataplane {}

impl Dataplane {
    /// Opens the packet sockets in `netns` and starts the workers. What they find out comes by the receiver; events are
    /// lost, not queued without bound, when nobody takes them.
    pub fn start(
        netns: &NetNs,
        config: &Config,
        stages: &StageFactory,
    ) -> Result<(Self, mpsc::Receiver<DataEvent>), StartError> {
        todo!()
    }

    /// Lets the workers know a new world: they take it at their next batch. Sets the generation.
    pub fn publish(&self, snapshot: Snapshot) {
        todo!()
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        todo!()
    }

    /// Gives a TAP port's queues to the workers, in turn.
    pub fn add_tap(&self, port: PortId, queues: Vec<OwnedFd>) {
        todo!()
    }

    /// Takes a TAP port's queues from the workers and closes them.
    pub fn remove_tap(&self, port: PortId) {
        todo!()
    }

    /// Returns when every worker has let go of every snapshot and queue older than this call. After that a port's number
    /// may be reused. Blocks for a batch at most (microseconds); never call it from a worker.
    pub fn quiesce(&self) {
        todo!()
    }

    /// The MAC table.
    pub fn fdb(&self) -> &Fdb {
        todo!()
    }

    /// Dropped frames by reason.
    pub fn drops(&self) -> &DropCounters {
        todo!()
    }

    /// Frames by their end.
    pub fn totals(&self) -> Totals {
        todo!()
    }

    /// The addresses seen in use in a network (ARP and ND senders), with the time since they were last seen.
    pub fn address_in_use(&self, network: crate::snapshot::NetworkId, address: std::net::IpAddr) -> bool {
        todo!()
    }

    /// Ends the workers and closes their sockets.
    pub fn stop(self) {
        todo!()
    }
}
