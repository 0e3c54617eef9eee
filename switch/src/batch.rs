//! Frames received together, in buffers that are used again and again.

use crate::frame::{Extent, Frame, HEADROOM, MAX_FRAME, OFFLOAD_HEADER, OwnedFrame};
use crate::snapshot::{Port, PortId, Snapshot};

/// Most frames in a batch, however long they are. More amortises calls and wake-ups better, but the first frame of a batch
/// waits for the last (docs/performance.md has the trials).
pub const BATCH: usize = 32;
/// Bytes of a buffer: whole pages, so that a short frame touches one only.
pub const SLOT: usize = (HEADROOM + MAX_FRAME).next_multiple_of(4096);

/// Where a frame came from, as its receiver knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An interface of the switch namespace.
    Ifindex(u32),
    /// A port.
    Port(PortId),
    /// An interface of the host.
    Uplink(u32),
}

impl Source {
    /// The port, if it is one.
    pub fn port(self, snapshot: &Snapshot) -> Option<&Port> {
        match self {
            Self::Uplink(_) => None,
            Self::Ifindex(ifindex) => snapshot.port_by_ifindex(ifindex),
            Self::Port(port) => snapshot.port(port),
        }
    }
}

/// A VLAN tag that came beside its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    /// 0x8100 or 0x88a8.
    pub tpid: u16,
    /// Priority and VLAN number.
    pub tci: u16,
}

/// A frame in a batch.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Where it stands in its buffer.
    pub at: Extent,
    /// Where it came from.
    pub source: Source,
    /// Longer than [`MAX_FRAME`]: the end is missing.
    pub truncated: bool,
}

/// Frames received together.
#[derive(Debug)]
pub struct Batch {
    arena: Vec<u8>,
    slots: Vec<Slot>,
    /// Frames to send that were not received with the batch; numbered from [`BATCH`] on.
    extras: Vec<OwnedFrame>,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch. Its 2.2 MB cost memory only where frames were long enough to touch them.
    pub fn new() -> Self {
        Self { arena: vec![0; BATCH * SLOT], slots: Vec::with_capacity(BATCH), extras: Vec::new() }
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.extras.clear();
    }

    /// Adds a frame to send that was not received; tells its number.
    pub fn add_extra(&mut self, frame: OwnedFrame) -> usize {
        self.extras.push(frame);
        BATCH + self.extras.len() - 1
    }

    /// Number of frames.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// No frames.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// No room for another frame.
    pub fn is_full(&self) -> bool {
        self.slots.len() == BATCH
    }

    /// The next free buffer; none when there are [`BATCH`] frames.
    pub fn next_buffer(&mut self) -> Option<&mut [u8]> {
        self.arena.chunks_exact_mut(SLOT).nth(self.slots.len())
    }

    /// Takes the frame of `len` bytes that was put after the headroom of the next free buffer into the batch, its tag put
    /// back. `len` may exceed [`MAX_FRAME`]: then the frame is marked as truncated.
    pub fn push(&mut self, len: usize, source: Source, tag: Option<VlanTag>) {
        debug_assert!(self.slots.len() < BATCH);
        let truncated = len > MAX_FRAME;
        let i = self.slots.len();
        self.slots.push(Slot { at: Extent::received(len.min(MAX_FRAME)), source, truncated });
        if let Some(tag) = tag {
            self.frame(i, PortId(0)).push_vlan(tag.tpid, tag.tci);
        }
    }

    /// Frame `i`: what is known beside its bytes.
    pub fn slot(&self, i: usize) -> Slot {
        self.slots[i]
    }

    /// Frame `i` to work on, as one that came from `port`.
    pub fn frame(&mut self, i: usize, port: PortId) -> Frame<'_> {
        Frame::new(&mut self.arena[i * SLOT..][..SLOT], &mut self.slots[i].at, port)
    }

    /// Frame `i` to send: offload header first.
    pub fn wire(&self, i: usize) -> &[u8] {
        match self.slots.get(i) {
            Some(slot) => slot.at.wire(&self.arena[i * SLOT..][..SLOT]),
            None => self.extras[i - BATCH].wire(),
        }
    }

    /// The length of frame `i`.
    pub fn len_of(&self, i: usize) -> usize {
        match self.slots.get(i) {
            Some(slot) => slot.at.len(),
            None => self.extras[i - BATCH].wire().len() - OFFLOAD_HEADER,
        }
    }
}
