//! Watching frames: captures, mirrors and live traces.
//!
//! What is watched hangs on the snapshot ([`Observers`]): where there is none, a worker looks at one pointer per batch
//! and that is all. A worker writes what a capture wants into a bounded buffer ([`capture`]) that it never waits for; what
//! finds no room is counted. A mirror sends copies to a port as if the switch had made them.

pub mod capture;
pub mod live;
pub mod matcher;

use std::sync::Arc;

use nat::Time;

use crate::frame::{OFFLOAD_HEADER, Offload, OwnedFrame};
use crate::router::Extra;
use crate::router::resolve::Ingress;
use crate::snapshot::{Link, NetworkId, PortId, Snapshot};
use crate::verdict::{DropReason, Verdict};
use capture::{Capture, Record, Way};
use live::LiveTrace;

/// Where frames are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// What comes from a port and what is sent to it.
    Port(PortId),
    /// What comes from the ports of a network, and what comes into it from elsewhere: each frame once.
    Network(NetworkId),
    /// What comes from an interface of the host and is swd's, and what leaves by it.
    Uplink(u32),
    /// What is dropped.
    Drops,
}

/// Which ways are mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ways {
    /// What comes from the source.
    In,
    /// What is sent to it.
    Out,
    /// Both.
    Both,
}

/// A port that gets copies of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Of what.
    pub of: Point,
    /// To which port.
    pub to: PortId,
    /// Which ways.
    pub ways: Ways,
}

/// All that watch.
#[derive(Debug, Default)]
pub struct Observers {
    /// Captures.
    pub captures: Vec<Arc<Capture>>,
    /// Mirrors.
    pub mirrors: Vec<Mirror>,
    /// Live traces.
    pub traces: Vec<Arc<LiveTrace>>,
}

/// A frame that passed, as those who watch see it.
#[derive(Clone, Copy, Debug)]
struct Passing {
    way: Way,
    /// Where it came from.
    from: Option<Ingress>,
    /// Where it was seen: at the port or uplink that it came from or goes to.
    at: Ingress,
}

impl Point {
    fn sees(self, snapshot: &Snapshot, passing: Passing) -> bool {
        let network = |ingress| match ingress {
            Ingress::Port(port) => snapshot.port(port).map(|p| p.network),
            Ingress::Uplink(_) => None,
        };
        match self {
            Self::Port(port) => passing.at == Ingress::Port(port),
            Self::Uplink(ifindex) => passing.at == Ingress::Uplink(ifindex),
            Self::Network(id) => match passing.way {
                Way::In => network(passing.at) == Some(id),
                _ => network(passing.at) == Some(id) && passing.from.and_then(network) != Some(id),
            },
            Self::Drops => false,
        }
    }
}

impl Observers {
    /// Whether nobody watches.
    pub fn is_empty(&self) -> bool {
        self.captures.is_empty() && self.mirrors.is_empty() && self.traces.is_empty()
    }

    /// A frame came in, as it came: `wire` begins with its offload header. Copies for mirrors are added to `extras`.
    pub(crate) fn received(
        &self,
        now: Time,
        snapshot: &Snapshot,
        at: Ingress,
        wire: &[u8],
        extras: &mut Vec<Extra>,
    ) {
        let passing = Passing { way: Way::In, from: Some(at), at };
        self.capture(now, snapshot, passing, wire);
        for mirror in self.mirrors.iter().filter(|m| m.ways != Ways::Out && at != Ingress::Port(m.to)) {
            if mirror.of.sees(snapshot, passing) {
                let (header, bytes) = wire.split_at(OFFLOAD_HEADER);
                let offload = header.first_chunk().map_or_else(Offload::default, Offload::parse);
                let frame = OwnedFrame::new(bytes, offload);
                let verdict = Verdict::Forward(mirror.to);
                extras.push(Extra { frame, from: None, verdict, network: NetworkId(0) });
            }
        }
    }

    /// A frame was sent.
    pub(crate) fn sent(
        &self,
        now: Time,
        snapshot: &Snapshot,
        from: Option<Ingress>,
        at: Ingress,
        wire: &[u8],
    ) {
        self.capture(now, snapshot, Passing { way: Way::Out, from, at }, wire);
    }

    /// The ports that get a copy of a frame that goes to `at`.
    pub(crate) fn mirrors_of_sent<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        from: Option<Ingress>,
        at: Ingress,
    ) -> impl Iterator<Item = PortId> + 'a {
        let passing = Passing { way: Way::Out, from, at };
        self.mirrors
            .iter()
            .filter(move |m| m.ways != Ways::In && at != Ingress::Port(m.to) && m.of.sees(snapshot, passing))
            .map(|m| m.to)
    }

    /// A frame was dropped; `wire` as it came, or, where it was changed since, as it would have left.
    pub(crate) fn dropped(&self, now: Time, from: Option<Ingress>, reason: DropReason, wire: &[u8]) {
        for capture in self.captures.iter().filter(|c| c.point == Point::Drops) {
            capture.offer(Record::new(now, Way::Dropped(reason), from), wire);
        }
    }

    /// Whether somebody wants to see what comes from one port or uplink and goes to another: then the kernel must not forward it
    /// past the workers. Not so for a capture of where it comes from whose reader gets copies of that.
    pub(crate) fn want_flow(&self, snapshot: &Snapshot, from: Ingress, to: Ingress) -> bool {
        let comes = Passing { way: Way::In, from: Some(from), at: from };
        let leaves = Passing { way: Way::Out, from: Some(from), at: to };
        let link = match from {
            Ingress::Port(port) => snapshot.port(port).map(|port| port.link),
            Ingress::Uplink(_) => None,
        };
        let copied = |capture: &Capture| match (capture.point, link) {
            (Point::Port(_), Some(Link::Packet(ifindex))) => capture.has_copies_of(ifindex),
            _ => false,
        };
        let captured =
            |c: &Arc<Capture>| c.point.sees(snapshot, leaves) || c.point.sees(snapshot, comes) && !copied(c);
        self.traces.iter().any(|trace| trace.from == from)
            || self.captures.iter().any(captured)
            || self.mirrors.iter().any(|m| m.of.sees(snapshot, comes) || m.of.sees(snapshot, leaves))
    }

    /// Whether somebody wants to know what the stages decide about a frame that came in, and why.
    pub(crate) fn want_walk(&self, from: Ingress, wire: &[u8]) -> bool {
        // All of them are asked: each counts what it has no room for.
        self.traces.iter().filter(|trace| trace.wants(from, wire)).count() > 0
    }

    /// Whether somebody wants to see drops.
    pub(crate) fn wants_drops(&self) -> bool {
        self.captures.iter().any(|c| c.point == Point::Drops)
    }

    fn capture(&self, now: Time, snapshot: &Snapshot, passing: Passing, wire: &[u8]) {
        for capture in self.captures.iter().filter(|c| c.point.sees(snapshot, passing)) {
            capture.offer(Record::new(now, passing.way, Some(passing.at)), wire);
        }
    }
}
