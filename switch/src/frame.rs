//! An Ethernet frame in a buffer, with its offload header in front, and what edits of it are possible.
//!
//! ```text
//! buffer: [ headroom ... | virtio_net_hdr (10) | dst (6) | src (6) | type (2) | payload ... | room ]
//!                                              ^ start                       start + len ^
//! ```
//!
//! The offload header always stands right before the frame, so that both leave by one `iovec`.

use crate::mac::Mac;
use crate::snapshot::PortId;

/// Length of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// Length of a `virtio_net_hdr` without `num_buffers` (linux/virtio_net.h).
pub const OFFLOAD_HEADER: usize = 10;
/// Room before a received frame: the offload header and one VLAN tag.
pub const HEADROOM: usize = 32;
/// Longest frame carried whole: an IP packet of 65,535 bytes, an Ethernet header and two VLAN tags.
pub const MAX_FRAME: usize = 65_535 + ETHERNET_HEADER + 8;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of an 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad tag.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// `struct virtio_net_hdr`: what the sender left for hardware to do (linux/virtio_net.h; native byte order on packet
/// sockets and TAP devices).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// `NEEDS_CSUM`, `DATA_VALID`.
    pub flags: u8,
    /// Kind of super-frame; 0 for an ordinary frame.
    pub gso_type: u8,
    /// Length of all headers; a hint.
    pub hdr_len: u16,
    /// Payload bytes in each segment.
    pub gso_size: u16,
    /// Where the checksum begins, from the start of the frame.
    pub csum_start: u16,
    /// Where to put the checksum, from `csum_start`.
    pub csum_offset: u16,
}

impl Offload {
    /// The checksum field holds the pseudo-header's sum only.
    pub const NEEDS_CSUM: u8 = 1;
    /// An ordinary frame.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// UDP to be fragmented (old).
    pub const GSO_UDP: u8 = 3;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP to be cut into datagrams.
    pub const GSO_UDP_L4: u8 = 5;
    /// Bit: the super-frame has ECN's CWR set.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the header.
    pub fn parse(b: &[u8; OFFLOAD_HEADER]) -> Self {
        let half = |i: usize| u16::from_ne_bytes([b[i], b[i + 1]]);
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: half(2),
            gso_size: half(4),
            csum_start: half(6),
            csum_offset: half(8),
        }
    }

    /// Writes the header.
    pub fn emit(self, b: &mut [u8; OFFLOAD_HEADER]) {
        b[0] = self.flags;
        b[1] = self.gso_type;
        b[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        b[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        b[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        b[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
    }

    /// The frame carries the pseudo-header's sum in place of a checksum.
    pub const fn needs_csum(self) -> bool {
        self.flags & Self::NEEDS_CSUM != 0
    }

    /// The frame stands for several.
    pub const fn is_gso(self) -> bool {
        self.gso_type != Self::GSO_NONE
    }

    /// Whether a frame of `len` bytes can satisfy the header.
    pub fn fits(self, len: usize) -> bool {
        let csum_end = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
        let csum_ok =
            !self.needs_csum() || (usize::from(self.csum_start) >= ETHERNET_HEADER && csum_end <= len);
        let gso_ok = match self.gso_type & !Self::GSO_ECN {
            Self::GSO_NONE => self.gso_type == Self::GSO_NONE,
            Self::GSO_TCPV4 | Self::GSO_TCPV6 | Self::GSO_UDP_L4 => self.gso_size > 0 && self.needs_csum(),
            Self::GSO_UDP => self.gso_size > 0,
            _ => false,
        };
        csum_ok && gso_ok && usize::from(self.hdr_len) <= len
    }
}

/// Where a frame stands in its buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    start: u32,
    len: u32,
}

impl Extent {
    /// A frame of `len` bytes after the usual headroom.
    #[expect(clippy::cast_possible_truncation, reason = "both are below 2^17")]
    pub fn received(len: usize) -> Self {
        debug_assert!(len <= MAX_FRAME);
        Self { start: HEADROOM as u32, len: len as u32 }
    }

    /// Length of the frame.
    pub const fn len(self) -> usize {
        self.len as usize
    }

    /// No bytes at all.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Offload header and frame: what is sent.
    pub fn wire(self, buf: &[u8]) -> &[u8] {
        let start = self.start as usize;
        &buf[start - OFFLOAD_HEADER..start + self.len as usize]
    }
}

/// A frame in work: a view into a receive buffer.
#[derive(Debug)]
pub struct Frame<'a> {
    buf: &'a mut [u8],
    at: &'a mut Extent,
    /// The port it came from.
    pub port: PortId,
}

impl<'a> Frame<'a> {
    /// The frame that stands at `at` in `buf`. The buffer must have [`HEADROOM`] in front and `at` must lie inside.
    pub fn new(buf: &'a mut [u8], at: &'a mut Extent, port: PortId) -> Self {
        debug_assert!(at.start as usize >= OFFLOAD_HEADER && (at.start + at.len) as usize <= buf.len());
        Self { buf, at, port }
    }

    /// The frame's bytes, from the destination address on.
    pub fn bytes(&self) -> &[u8] {
        &self.buf[self.at.start as usize..][..self.at.len as usize]
    }

    /// The frame's bytes, to edit.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buf[self.at.start as usize..][..self.at.len as usize]
    }

    /// Its length.
    pub fn len(&self) -> usize {
        self.at.len()
    }

    /// No bytes at all.
    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// Makes the frame `len` bytes long; false, and nothing done, when the buffer is too short for it.
    pub fn resize(&mut self, len: usize) -> bool {
        let Ok(short) = u32::try_from(len) else { return false };
        if self.at.start as usize + len > self.buf.len() {
            return false;
        }
        self.at.len = short;
        true
    }

    /// Sets destination and source address; nothing happens to a frame without a header.
    pub fn set_addresses(&mut self, dst: Mac, src: Mac) {
        if let Some(header) = self.bytes_mut().first_chunk_mut::<ETHERNET_HEADER>() {
            header[..6].copy_from_slice(&dst.0);
            header[6..12].copy_from_slice(&src.0);
        }
    }

    /// What stands behind the Ethernet header, to edit.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        self.bytes_mut().get_mut(ETHERNET_HEADER..).unwrap_or_default()
    }

    /// Its header; none when it is shorter than one.
    fn header(&self) -> Option<&[u8; ETHERNET_HEADER]> {
        self.bytes().first_chunk()
    }

    /// Destination address; zero for a frame without a header, which the guard lets nobody see.
    pub fn dst(&self) -> Mac {
        self.header().map_or(Mac::ZERO, |h| Mac([h[0], h[1], h[2], h[3], h[4], h[5]]))
    }

    /// Source address.
    pub fn src(&self) -> Mac {
        self.header().map_or(Mac::ZERO, |h| Mac([h[6], h[7], h[8], h[9], h[10], h[11]]))
    }

    /// The EtherType right after the addresses: that of the outermost tag for a tagged frame.
    pub fn ethertype(&self) -> u16 {
        self.header().map_or(0, |h| u16::from_be_bytes([h[12], h[13]]))
    }

    /// What the sender left for hardware to do.
    pub fn offload(&self) -> Offload {
        self.buf[..self.at.start as usize].last_chunk().map_or_else(Offload::default, Offload::parse)
    }

    /// Sets what is left for hardware to do.
    pub fn set_offload(&mut self, offload: Offload) {
        if let Some(header) = self.buf[..self.at.start as usize].last_chunk_mut() {
            offload.emit(header);
        }
    }

    /// Puts a VLAN tag behind the addresses: packet sockets hand it over beside the frame. Offsets in the offload header
    /// move along. False, and nothing done, when there is no headroom or no header.
    pub fn push_vlan(&mut self, tpid: u16, tci: u16) -> bool {
        const TAG: usize = 4;
        let start = self.at.start as usize;
        if start < OFFLOAD_HEADER + TAG || self.len() < ETHERNET_HEADER {
            return false;
        }
        let mut offload = self.offload();
        if offload.needs_csum() {
            offload.csum_start += 4;
        }
        if offload.is_gso() {
            offload.hdr_len += 4;
        }
        self.buf.copy_within(start..start + 12, start - TAG);
        self.at.start -= 4;
        self.at.len += 4;
        self.set_offload(offload);
        let bytes = self.bytes_mut();
        bytes[12..14].copy_from_slice(&tpid.to_be_bytes());
        bytes[14..16].copy_from_slice(&tci.to_be_bytes());
        true
    }
}

/// A frame in a buffer of its own: one that waits, or that the switch made.
#[derive(Clone, Debug)]
pub struct OwnedFrame {
    buf: Vec<u8>,
    at: Extent,
}

impl OwnedFrame {
    /// A frame of these bytes, cut at [`MAX_FRAME`], with this left for hardware to do.
    pub fn new(bytes: &[u8], offload: Offload) -> Self {
        let bytes = &bytes[..bytes.len().min(MAX_FRAME)];
        let mut buf = vec![0; HEADROOM];
        buf.extend_from_slice(bytes);
        let mut new = Self { buf, at: Extent::received(bytes.len()) };
        new.frame(PortId(u32::MAX)).set_offload(offload);
        new
    }

    /// To work on, as one that came from `port`.
    pub fn frame(&mut self, port: PortId) -> Frame<'_> {
        Frame::new(&mut self.buf, &mut self.at, port)
    }

    /// To send: offload header first.
    pub fn wire(&self) -> &[u8] {
        self.at.wire(&self.buf)
    }
}

impl From<&Frame<'_>> for OwnedFrame {
    fn from(frame: &Frame<'_>) -> Self {
        Self::new(frame.bytes(), frame.offload())
    }
}

/// Finishes what was left for hardware to do: the checksum. A super-frame stays one, as it does on the host's interfaces.
pub fn finish_checksum(bytes: &mut [u8], offload: Offload) {
    if !offload.needs_csum() || !offload.fits(bytes.len()) {
        return;
    }
    let start = usize::from(offload.csum_start);
    let sum = !nat::checksum::sum(&bytes[start..]);
    let sum = if sum == 0 { 0xffff } else { sum };
    bytes[start + usize::from(offload.csum_offset)..][..2].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_tag_moves_the_checksum_along() {
        let mut buf = vec![0; HEADROOM + 64];
        let mut at = Extent::received(60);
        let mut frame = Frame::new(&mut buf, &mut at, PortId(0));
        frame.bytes_mut()[..14].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x08, 0x00]);
        frame.bytes_mut()[14] = 0x45;
        frame.set_offload(Offload { flags: 1, csum_start: 34, csum_offset: 16, ..Offload::default() });
        assert!(frame.push_vlan(ETHERTYPE_VLAN, 0x2064));
        assert_eq!(frame.len(), 64);
        assert_eq!(
            frame.bytes()[..19],
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x81, 0x00, 0x20, 0x64, 0x08, 0x00, 0x45]
        );
        assert_eq!(frame.offload().csum_start, 38);
        assert_eq!(at.wire(&buf).len(), 74);
    }

    #[test]
    fn an_offload_header_must_fit_its_frame() {
        let csum = Offload { flags: 1, csum_start: 34, csum_offset: 16, ..Offload::default() };
        assert!(csum.fits(52));
        assert!(!csum.fits(51));
        assert!(!Offload { csum_start: 2, ..csum }.fits(100));
        assert!(Offload { gso_type: 1, gso_size: 1448, ..csum }.fits(100));
        assert!(!Offload { gso_type: 1, gso_size: 0, ..csum }.fits(100));
        assert!(!Offload { gso_type: 2, gso_size: 9, ..csum }.fits(100));
        assert!(!Offload { gso_type: 0x80, ..csum }.fits(100));
    }

    #[test]
    fn short_frames_have_no_addresses() {
        let mut buf = vec![0xff; HEADROOM + 10];
        let mut at = Extent::received(10);
        let mut frame = Frame::new(&mut buf, &mut at, PortId(0));
        assert_eq!((frame.dst(), frame.ethertype()), (Mac::ZERO, 0));
        assert!(!frame.push_vlan(ETHERTYPE_VLAN, 1));
        assert!(!frame.resize(11));
    }
}
