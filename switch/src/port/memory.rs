//! Ports in memory: queues of frames, for tests, fuzzing and replaying captures.

use std::collections::{HashMap, VecDeque};
use std::io;

use super::{Rx, Tx};
use crate::batch::{Batch, Source};
use crate::engine::{Fate, Outgoing};
use crate::frame::{HEADROOM, OFFLOAD_HEADER, Offload};
use crate::snapshot::{Link, PortId};

/// A frame with its offload header beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryFrame {
    /// From the destination address on.
    pub bytes: Vec<u8>,
    /// What is left for hardware to do.
    pub offload: Offload,
}

impl From<Vec<u8>> for MemoryFrame {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, offload: Offload::default() }
    }
}

/// All memory ports and uplinks of an engine.
#[derive(Debug, Default)]
pub struct MemoryPorts {
    received: VecDeque<(Source, MemoryFrame)>,
    sent: HashMap<PortId, VecDeque<MemoryFrame>>,
    sent_outside: HashMap<u32, VecDeque<MemoryFrame>>,
}

impl MemoryPorts {
    /// Lets a frame come from a port.
    pub fn put(&mut self, port: PortId, frame: impl Into<MemoryFrame>) {
        self.put_from(Source::Port(port), frame);
    }

    /// Lets a frame come from anywhere.
    pub fn put_from(&mut self, source: Source, frame: impl Into<MemoryFrame>) {
        self.received.push_back((source, frame.into()));
    }

    /// Lets a frame come from an uplink, by its interface index.
    pub fn put_outside(&mut self, uplink: u32, frame: impl Into<MemoryFrame>) {
        self.put_from(Source::Uplink(uplink), frame);
    }

    /// Takes the oldest frame that was sent to a port.
    pub fn take(&mut self, port: PortId) -> Option<MemoryFrame> {
        self.sent.get_mut(&port)?.pop_front()
    }

    /// Takes the oldest frame that was sent to an uplink.
    pub fn take_outside(&mut self, uplink: u32) -> Option<MemoryFrame> {
        self.sent_outside.get_mut(&uplink)?.pop_front()
    }
}

impl Rx for MemoryPorts {
    fn receive(&mut self, batch: &mut Batch) -> io::Result<()> {
        while let Some(buffer) = batch.next_buffer() {
            let Some((source, frame)) = self.received.pop_front() else { break };
            // As with a socket, what is longer than a buffer is cut and told so.
            let kept = frame.bytes.len().min(buffer.len() - HEADROOM);
            buffer[HEADROOM..HEADROOM + kept].copy_from_slice(&frame.bytes[..kept]);
            if let Some(header) = buffer[HEADROOM - OFFLOAD_HEADER..].first_chunk_mut() {
                frame.offload.emit(header);
            }
            batch.push(frame.bytes.len(), source, None);
        }
        Ok(())
    }
}

impl Tx for MemoryPorts {
    fn send(&mut self, batch: &Batch, outgoing: &mut [Outgoing]) {
        for out in outgoing.iter_mut().filter(|out| out.fate == Fate::Waiting) {
            let queue = match out.link {
                Link::Memory => self.sent.entry(out.port).or_default(),
                Link::Uplink(ifindex) => self.sent_outside.entry(ifindex).or_default(),
                Link::Packet(_) | Link::Tap => continue,
            };
            let (header, bytes) = batch.wire(out.frame).split_at(OFFLOAD_HEADER);
            let offload = header.first_chunk().map_or_else(Offload::default, Offload::parse);
            queue.push_back(MemoryFrame { bytes: bytes.to_vec(), offload });
            out.fate = Fate::Sent;
        }
    }
}
