//! A receive ring on a packet socket: `TPACKET_V2` (Documentation/networking/packet_mmap.rst).
//!
//! The kernel writes each frame into a slot of memory that we share with it, so that a short frame costs no system call
//! and no socket buffer. Frames that do not fit a slot (super-frames, jumbo frames) are also queued on the socket
//! (`PACKET_COPY_THRESH`), and their slot says so; they are received from there, whole, in their turn.
//!
//! Slot: `tpacket2_hdr`, `sockaddr_ll`, room, `virtio_net_hdr`, frame. `tp_status` says whose the slot is; it is written
//! last by each side.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::packet::{OpenError, PacketSocket};
use crate::batch::{Batch, Source, VlanTag};
use crate::frame::{ETHERTYPE_VLAN, HEADROOM, OFFLOAD_HEADER};

/// Bytes of a slot: an Ethernet frame of the usual MTU with all that stands before it.
const SLOT: usize = 2048;
/// Slots for a worker: 10 ms at 200,000 frames a second, 4 MB.
pub const SLOTS: usize = 2048;
/// Bytes that the kernel allocates as one piece.
const BLOCK: usize = 1 << 16;
/// Slots in one.
const PER_BLOCK: usize = BLOCK / SLOT;
/// Where the address of a frame stands in its slot.
const ADDRESS: usize = size_of::<libc::tpacket2_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);

/// `struct tpacket_req` (linux/if_packet.h).
#[repr(C)]
struct Request {
    block_size: u32,
    block_count: u32,
    slot_size: u32,
    slot_count: u32,
}

/// A frame that was taken, beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its length, which may be more than there was room for. None: it is lost.
    pub len: Option<usize>,
    /// The interface that it came from.
    pub ifindex: u32,
    /// Its tag, which the kernel took out.
    pub tag: Option<VlanTag>,
    /// When the kernel received it: time since 1970.
    pub at: Duration,
}

/// The ring of one socket.
#[derive(Debug)]
pub struct Ring {
    socket: Arc<PacketSocket>,
    memory: NonNull<u8>,
    slots: usize,
    next: usize,
}

// SAFETY: the mapping belongs to the ring alone (on this side of the kernel) and moves with it.
unsafe impl Send for Ring {}

impl Ring {
    /// Gives the socket a ring of so many slots, a multiple of [`PER_BLOCK`]. Frames that came before stay in its queue and are lost.
    pub fn new(socket: Arc<PacketSocket>, slots: usize) -> Result<Self, OpenError> {
        socket
            .set(libc::SOL_PACKET, libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V2 as i32)
            .map_err(|e| OpenError::Option("PACKET_VERSION", e))?;
        socket
            .set(libc::SOL_PACKET, libc::PACKET_COPY_THRESH, 1)
            .map_err(|e| OpenError::Option("PACKET_COPY_THRESH", e))?;
        let request = Request {
            block_size: BLOCK as u32,
            block_count: (slots / PER_BLOCK) as u32,
            slot_size: SLOT as u32,
            slot_count: slots as u32,
        };
        socket
            .set_plain(libc::PACKET_RX_RING, &request)
            .map_err(|e| OpenError::Option("PACKET_RX_RING", e))?;
        // SAFETY: a new mapping of the socket's ring, at an address of the kernel's choice.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SLOT * slots,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_fd().as_raw_fd(),
                0,
            )
        };
        let failed = || OpenError::Option("mmap of PACKET_RX_RING", io::Error::last_os_error());
        if memory == libc::MAP_FAILED {
            return Err(failed());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(failed)?;
        Ok(Self { socket, memory, slots, next: 0 })
    }

    /// The slot that the kernel fills next.
    fn slot(&self) -> *mut u8 {
        // SAFETY: `next` is below `slots`, so the slot is inside the mapping.
        unsafe { self.memory.as_ptr().add(self.next * SLOT) }
    }

    /// Whose that slot is. To be loaded with `Acquire` and stored with `Release`: it guards the rest of the slot.
    fn status(&self) -> &AtomicU32 {
        // SAFETY: tp_status is the first field of the slot's header, aligned, written by the kernel as one word, and
        // lives as long as the mapping.
        unsafe { AtomicU32::from_ptr(self.slot().cast()) }
    }

    /// Whether a frame waits.
    pub fn is_ready(&self) -> bool {
        self.status().load(Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    /// Takes what is there into `batch`, until it is full, without waiting. Frames are lost, and noted with the socket's
    /// losses, when its queue had no room for them. `source` is asked once for each frame: what an interface's index is to the engine.
    pub fn receive(&mut self, batch: &mut Batch, mut source: impl FnMut(u32) -> Source) -> io::Result<()> {
        while !batch.is_full() {
            let Some(buffer) = batch.next_buffer() else { break };
            let Some(taken) = self.take(&mut buffer[HEADROOM - OFFLOAD_HEADER..])? else { break };
            let source = source(taken.ifindex);
            if let Some(len) = taken.len {
                batch.push(len, source, taken.tag);
            }
        }
        Ok(())
    }

    /// Takes one frame, its offload header first, into `wire`, which has room for a slot at least, without waiting; none when none
    /// is there. One that is lost, because the socket's queue had no room for it, is noted with the socket's losses.
    pub fn take(&mut self, wire: &mut [u8]) -> io::Result<Option<Received>> {
        let slot = self.slot();
        let flags = self.status().load(Ordering::Acquire);
        if flags & libc::TP_STATUS_USER == 0 {
            return Ok(None);
        }
        // SAFETY: the slot is ours until the status is given back: nobody writes to it.
        let header = unsafe { slot.cast::<libc::tpacket2_hdr>().read() };
        // SAFETY: a sockaddr_ll stands behind the header in every slot; it is plain data.
        let address = unsafe { slot.add(ADDRESS).cast::<libc::sockaddr_ll>().read() };
        let len = if flags & libc::TP_STATUS_COPY != 0 {
            receive_long(&self.socket, wire, header.tp_len as usize)?
        } else if header.tp_snaplen == header.tp_len {
            // SAFETY: the slot is ours and `header` was read from it.
            unsafe { copy_short(slot, &header, wire) }
        } else {
            None
        };
        if len.is_none() {
            self.socket.miss(1);
        }
        self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % self.slots;
        let at = Duration::new(header.tp_sec.into(), header.tp_nsec);
        Ok(Some(Received { len, ifindex: address.sll_ifindex.unsigned_abs(), tag: tag(&header), at }))
    }
}

/// Copies a frame with its offload header from its slot; tells the frame's length.
///
/// # Safety
/// `slot` points at a slot of [`SLOT`] bytes that the kernel has handed over, and `header` was read from it.
unsafe fn copy_short(slot: *const u8, header: &libc::tpacket2_hdr, wire: &mut [u8]) -> Option<usize> {
    let len = header.tp_snaplen as usize;
    let start = usize::from(header.tp_mac).checked_sub(OFFLOAD_HEADER)?;
    let total = OFFLOAD_HEADER + len;
    if start + total > SLOT {
        return None;
    }
    // SAFETY: the range was checked to lie inside the slot, which is ours now.
    let frame = unsafe { std::slice::from_raw_parts(slot.add(start), total) };
    wire[..total].copy_from_slice(frame);
    Some(len)
}

/// Receives a frame of `len` bytes that did not fit its slot; tells its length, which may be more than there is room for.
fn receive_long(socket: &PacketSocket, wire: &mut [u8], len: usize) -> io::Result<Option<usize>> {
    loop {
        // SAFETY: the pointer and the length describe `wire`. MSG_TRUNC: the length told is the frame's.
        let got = unsafe {
            libc::recv(
                socket.as_fd().as_raw_fd(),
                wire.as_mut_ptr().cast(),
                wire.len(),
                libc::MSG_DONTWAIT | libc::MSG_TRUNC,
            )
        };
        if let Ok(got) = usize::try_from(got) {
            // Each slot that says so has its frame in the queue, in the same order; another length would mean another's.
            return Ok((got == OFFLOAD_HEADER + len).then_some(len));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Told once, when an interface goes away: the frame is still there.
            Some(libc::EINTR | libc::ENETDOWN | libc::ENXIO) => {}
            Some(libc::EAGAIN) => return Ok(None),
            _ => return Err(error),
        }
    }
}

/// The VLAN tag that the kernel took out of a frame.
fn tag(header: &libc::tpacket2_hdr) -> Option<VlanTag> {
    let valid = |bit| header.tp_status & bit != 0;
    valid(libc::TP_STATUS_VLAN_VALID).then(|| VlanTag {
        tpid: if valid(libc::TP_STATUS_VLAN_TPID_VALID) { header.tp_vlan_tpid } else { ETHERTYPE_VLAN },
        tci: header.tp_vlan_tci,
    })
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length and nothing refers to it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), SLOT * self.slots) };
    }
}
