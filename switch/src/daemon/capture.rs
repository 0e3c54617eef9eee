//! Captures and mirrors as the API asks for them: from names to points of the data plane. What is captured goes to a thread of
//! the capture's own ([`reader`]), which makes pcapng or lines of text of it ([`encoder`]).

mod encoder;
mod reader;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use ctl::api::{CaptureSpec, Mirror, MirrorKind, Watched};
use ctl::filter::{Filter, FilterError};
use tokio::sync::mpsc;

use self::encoder::Encoder;
use self::reader::Reader;
use super::control::{Daemon, Error};
use crate::observe::capture::Capture;
use crate::observe::{self, Observers, Point, Ways};
use crate::port::sniffer::Sniffer;
use crate::snapshot::{Link, Snapshot};

/// Captures at once: each costs the workers a look at every frame.
const MAX_CAPTURES: usize = 16;
/// Bytes kept of a frame unless told otherwise: all of them.
const SNAPLEN: u32 = 262_144;

/// Why there is no capture.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaptureError {
    /// No such thing.
    #[error("there is no {0} named {1}; 'swctl {2}' lists what there is")]
    NotFound(&'static str, String, &'static str),
    /// No uplink.
    #[error("there is no uplink; 'swctl status' names it once there is one")]
    NoUplink,
    /// The filter.
    #[error("filter: {0}")]
    Filter(#[from] FilterError),
    /// Too many.
    #[error("{MAX_CAPTURES} captures run already; end one of them first")]
    TooMany,
    /// No thread, or nothing for it to wait by.
    #[error("cannot start the capture's thread: {0}")]
    Thread(#[from] io::Error),
    /// The head of a file could not be written to memory.
    #[error("no memory for a capture")]
    Memory,
}

impl CaptureError {
    /// Not the asker's fault.
    pub(super) const fn is_ours(&self) -> bool {
        matches!(self, Self::Thread(_) | Self::Memory)
    }
}

/// The captures that run, by number. No number is used twice.
#[derive(Debug, Default)]
pub(super) struct Captures {
    last: u64,
    running: BTreeMap<u64, Arc<Capture>>,
}

impl Captures {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// Of each, how many frames its filter let through, and how many of those were lost.
    pub(super) fn counts(&self) -> Vec<(u64, u64)> {
        self.running.values().map(|capture| capture.counts()).collect()
    }
}

impl Daemon {
    /// Begins a capture; tells its number, and gives what is captured, piece by piece. To be ended with [`Daemon::end_capture`].
    ///
    /// # Errors
    /// When there is nothing to watch, too much is watched already, or the system has no more to give.
    pub(super) fn begin_capture(
        &mut self,
        spec: &CaptureSpec,
    ) -> Result<(u64, mpsc::Receiver<Vec<u8>>), CaptureError> {
        let point = self.point(spec)?;
        let filter: Option<Filter> = spec.filter.as_deref().map(str::parse).transpose()?;
        if self.captures.len() >= MAX_CAPTURES {
            return Err(CaptureError::TooMany);
        }
        let snaplen = spec.snaplen.unwrap_or(SNAPLEN).clamp(1, SNAPLEN) as usize;
        let mut capture = Capture::new(point, filter, snaplen)?;
        // Before the workers know of the capture: then nothing that the kernel is given afterwards is missed.
        let sniffer = self.sniffer(point);
        if let Some(sniffer) = &sniffer {
            capture = capture.with_copies(sniffer.ifindex());
        }
        let capture = Arc::new(capture);
        let encoder = Encoder::new(spec.format, point, spec.count).ok_or(CaptureError::Memory)?;
        let pieces = Reader::start(Arc::clone(&capture), sniffer, encoder, self.dataplane.shared())?;
        self.captures.last += 1;
        self.captures.running.insert(self.captures.last, capture);
        self.publish();
        Ok((self.captures.last, pieces))
    }

    /// Ends a capture, if it has not ended by itself; tells whether. What passed before is its reader's still.
    pub(super) fn end_capture(&mut self, id: u64) -> bool {
        let Some(capture) = self.captures.running.remove(&id) else { return false };
        self.publish();
        // After that no worker adds to it.
        self.dataplane.quiesce();
        capture.close();
        true
    }

    /// What gets copies of the frames that the kernel forwards from a port, where it may do so.
    fn sniffer(&self, point: Point) -> Option<Sniffer> {
        let Point::Port(port) = point else { return None };
        let snapshot = self.dataplane.snapshot();
        let port = snapshot.port(port).filter(|port| port.veth_mtu.is_some())?;
        let Link::Packet(ifindex) = port.link else { return None };
        let opened = self
            .switch_netns
            .enter()
            .map_err(|e| e.to_string())
            .and_then(|_inside| self.dataplane.sniff(ifindex).map_err(|e| e.to_string()));
        let told = |e: &String| {
            tracing::warn!("while {} is captured workers forward all that it sends: {e}", port.name);
        };
        opened.inspect_err(told).ok().flatten()
    }

    fn point(&self, spec: &CaptureSpec) -> Result<Point, CaptureError> {
        let name = || spec.name.clone().unwrap_or_default();
        match spec.what {
            Watched::Port => match self.live.port(&name()) {
                Some(port) => Ok(Point::Port(port.id)),
                None => Err(CaptureError::NotFound("port", name(), "port ls")),
            },
            Watched::Network => match self.live.network(&name()) {
                Some(network) => Ok(Point::Network(network)),
                None => Err(CaptureError::NotFound("network", name(), "network ls")),
            },
            Watched::Uplink => {
                let snapshot = self.dataplane.snapshot();
                let default = self.outside.default_uplink().map(str::to_owned);
                let wanted = spec.name.clone().or(default).ok_or(CaptureError::NoUplink)?;
                let found = snapshot.uplinks.iter().find(|u| *u.name == *wanted);
                found
                    .map(|u| Point::Uplink(u.ifindex))
                    .ok_or(CaptureError::NotFound("uplink", wanted, "status"))
            }
            Watched::Drops => Ok(Point::Drops),
        }
    }

    /// Who watches now. Captures of what is gone are closed.
    pub(super) fn observers(&mut self, snapshot: &Snapshot) -> Option<Arc<Observers>> {
        self.captures.running.retain(|_, capture| {
            let there = match capture.point {
                Point::Port(port) => self.live.port_name(port).is_some(),
                Point::Network(network) => snapshot.network(network).is_some(),
                Point::Uplink(ifindex) => snapshot.uplink(ifindex).is_some(),
                Point::Drops => true,
            };
            if !there {
                capture.close();
            }
            there
        });
        let mirrors = self.desired.mirrors.iter().filter_map(|m| self.mirror(m)).collect();
        let traces = self.live_traces(snapshot);
        let captures = self.captures.running.values().cloned().collect();
        let observers = Observers { captures, mirrors, traces };
        (!observers.is_empty()).then(|| Arc::new(observers))
    }

    /// A mirror whose ports are there.
    fn mirror(&self, mirror: &Mirror) -> Option<observe::Mirror> {
        let of = match mirror.kind {
            MirrorKind::Port => Point::Port(self.live.port(&mirror.from)?.id),
            MirrorKind::Network => Point::Network(self.live.network(&mirror.from)?),
        };
        let ways = match mirror.ways {
            ctl::api::Ways::In => Ways::In,
            ctl::api::Ways::Out => Ways::Out,
            ctl::api::Ways::Both => Ways::Both,
        };
        Some(observe::Mirror { of, to: self.live.port(&mirror.to)?.id, ways })
    }

    /// Whether a mirror's ports are there.
    pub(super) fn mirror_is_active(&self, mirror: &Mirror) -> bool {
        self.mirror(mirror).is_some()
    }

    /// Adds a mirror, or changes the ways of one.
    ///
    /// # Errors
    /// When a port or network is not there, or a port would mirror itself.
    pub async fn add_mirror(&mut self, mirror: &Mirror) -> Result<(), Error> {
        let host = |daemon: &Self, name: &str| daemon.live.port(name).is_some();
        self.edit(|daemon, new| {
            let known = (host(daemon, &mirror.from), host(daemon, &mirror.to));
            new.add_mirror(mirror.clone(), known)
        })
        .await
    }

    /// Removes a mirror.
    ///
    /// # Errors
    /// When there is none.
    pub async fn remove_mirror(&mut self, kind: MirrorKind, from: &str, to: &str) -> Result<(), Error> {
        self.edit(|_, new| new.remove_mirror(kind, from, to)).await
    }
}
