//! The kernel's part for connections to the outside and back: IPv4, TCP and UDP, translated.
//!
//! Ports are in the switch namespace and uplinks in the host's, and a frame cannot be redirected from one to the other but
//! through a veth pair, from an end's ingress to the peer's (`bpf_redirect_peer`). The pair is there: the host's own end in a
//! network, `sw0`, and its peer among the ports.
//!
//! ```text
//! out: port --filter, ingress: translate--> sw0 --exit: mark says which uplink--> uplink
//! in:  uplink --filter, ingress: translate--> sw0's peer --ingress: mark says which port--> container
//! ```
//!
//! As for flows within a network, the filter of the packet socket decides and the ingress program of the same interface
//! executes. That one translates *before* the frame changes namespaces: what comes out at `sw0` is addressed from the host's own
//! address to a MAC outside. Should the program be missing there, the host's stack refuses the frame (its source is the host itself).
//! The second hop is told by the frame's mark, which nobody else can set: the kernel clears marks of what crosses
//! namespaces in any other way (`skb_scrub_packet`, net/core/skbuff.c).
//!
//! Not for the kernel, and received by the worker as ever: IP options, fragments, a hop limit that ends here, SYN, RST, a frame or
//! segment longer than the way takes, and frames whose lengths contradict each other. A FIN, and the answer to a SYN that was let through
//! with its answer to come, is reported as it passes ([`super::report`]); if there is no room for the report, the worker receives it.

use nat::{ConnectionId, Direction};

use super::program::{
    CX, ETHERNET, FLOW, NEXT, NOTE, TO, begin, context, helper, load_ethernet, look_up_place, stack,
};
use super::report::Report;
use super::shares;
use crate::mac::Mac;
use crate::sys::assembler::{Assembler, STACK};
use crate::sys::bpf::{Insn, Map};
use crate::sys::classic;

/// Bytes of a key: interface (see [`Side::key`]); destination and source MAC, IPv4 source, destination and ports as they arrive;
/// protocol (4).
pub(super) const KEY: usize = 32;
/// Bytes of a value: see [`value`].
pub(super) const VALUE: usize = offset::REWRITE as usize + REWRITE;
/// Bytes that say what to make of a frame, the last of a value: see [`rewrite`].
pub(super) const REWRITE: usize = 6 * 8;

/// Marks of frames on their second hop: this, and the interface's index in the lower 24 bits.
const TAG: i32 = 0x5d00_0000;
const TAG_MASK: i32 = -0x0100_0000;
/// The most that an index may be.
pub(super) const MAX_IFINDEX: u32 = 0x00ff_ffff;

/// In a value.
pub(super) mod offset {
    /// Interface that the frame is handed to the peer of.
    pub(in crate::fastpath) const VIA: i16 = 0;
    pub(in crate::fastpath) const EPOCH: i16 = 4;
    pub(in crate::fastpath) const FRAMES: i16 = 8;
    /// Of frames.
    pub(in crate::fastpath) const BYTES: i16 = 16;
    /// Of IP packets.
    pub(in crate::fastpath) const IP_BYTES: i16 = 24;
    pub(in crate::fastpath) const LAST: i16 = 32;
    /// TCP: the sequence number after the last segment.
    pub(in crate::fastpath) const END: i16 = 40;
    /// TCP: what the last segment acknowledges, in the network's order.
    pub(in crate::fastpath) const ACK: i16 = 44;
    /// TCP: its window.
    pub(in crate::fastpath) const WINDOW: i16 = 48;
    /// The longest IP packet that the way takes.
    pub(in crate::fastpath) const MTU: i16 = 52;
    /// The connection, for reports.
    pub(in crate::fastpath) const CONNECTION: i16 = 56;
    /// The direction, for reports.
    pub(in crate::fastpath) const DIRECTION: i16 = 64;
    /// Not 0 if the answer to a SYN may pass.
    pub(in crate::fastpath) const ANSWERS: i16 = 68;
    pub(in crate::fastpath) const REWRITE: i16 = 72;
}

/// In a note: the rewrite's parts.
mod note {
    pub(super) const REWRITE: i16 = 8;
    pub(super) const MARK: i16 = 8;
    pub(super) const CHECKSUM_AT: i16 = 12;
    pub(super) const MACS: i32 = 16;
    /// Hop limit, protocol and header checksum; then addresses and ports, as they are in a packet without options.
    pub(super) const HEADER: i16 = 28;
    pub(super) const HEADER_DIFF: i16 = 44;
    pub(super) const ADDRESS_DIFF: i16 = 48;
    pub(super) const PORT_DIFF: i16 = 52;
}

/// On the stack.
mod at {
    pub(super) const KEY: i16 = -56;
    pub(super) const KEY_MACS: i16 = -52;
    pub(super) const KEY_TUPLE: i16 = -40;
    pub(super) const KEY_PROTOCOL: i16 = -28;
    /// The first 12 bytes of the IP header.
    pub(super) const IP: i16 = -72;
    pub(super) const LENGTH: i16 = IP + 2;
    pub(super) const FRAGMENT: i16 = IP + 6;
    pub(super) const HOPS: i16 = IP + 8;
    pub(super) const PROTOCOL: i16 = IP + 9;
    /// The TCP header from the sequence number to the checksum.
    pub(super) const TCP: i16 = -88;
    pub(super) const ACK: i16 = TCP + 4;
    pub(super) const OFFSET: i16 = TCP + 8;
    pub(super) const FLAGS: i16 = TCP + 9;
    pub(super) const WINDOW: i16 = TCP + 10;
    /// Length of the TCP or UDP header.
    pub(super) const L4: i16 = -92;
    /// A [`Report`](super::Report): below all of `program`'s.
    pub(super) const REPORT: i16 = -208;
    pub(super) const REPORT_DIRECTION: i16 = REPORT + 8;
    /// The sequence number after the segment.
    pub(super) const END: i16 = REPORT + 12;
    pub(super) const REPORT_TCP: i16 = REPORT + 16;
    pub(super) const REPORT_OPTIONS: i16 = REPORT_TCP + 16;
}

const IP_HEADER: i32 = 20;
const TCP_HEADER: i32 = 20;
const TCP_OPTIONS: i32 = 40;
const TCP_FLAGS: i32 = 0x16; // ACK, RST, SYN
const TCP_ACK: i32 = 0x10;
const TCP_SYN: i32 = 0x02;
const TCP_FIN: i32 = 0x01;
const PROTOCOL_TCP: i32 = 6;
const PROTOCOL_UDP: i32 = 17;
/// A shorter frame may be padded (IEEE 802.3).
const MIN_FRAME: i32 = 60;
const BPF_F_PSEUDO_HDR: i32 = 1 << 4;
const BPF_F_MARK_MANGLED_0: i32 = 1 << 5;

/// On which side of the switch an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// In the switch namespace.
    Ports,
    /// In the host's, where indices are others.
    Uplinks,
}

impl Side {
    const UPLINK: i32 = 1 << 30;

    /// An interface in keys and notes.
    const fn key(self, ifindex: u32) -> u32 {
        match self {
            Self::Ports => ifindex,
            Self::Uplinks => ifindex | Self::UPLINK.cast_unsigned(),
        }
    }

    /// The same in a program.
    pub(super) fn mark(self, a: &mut Assembler, register: u8) {
        if self == Self::Uplinks {
            a.or(register, Self::UPLINK);
        }
    }
}

/// A packet's addresses, ports and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source: ([u8; 4], u16),
    pub(super) destination: ([u8; 4], u16),
}

impl Header {
    /// As in a packet without IP options.
    fn bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[0..4].copy_from_slice(&self.source.0);
        bytes[4..8].copy_from_slice(&self.destination.0);
        bytes[8..10].copy_from_slice(&self.source.1.to_be_bytes());
        bytes[10..12].copy_from_slice(&self.destination.1.to_be_bytes());
        bytes
    }
}

/// The key of packets that arrive like this: the MACs are destination and source.
pub(super) fn key(side: Side, ifindex: u32, macs: [Mac; 2], header: Header, tcp: bool) -> [u8; KEY] {
    let mut key = [0; KEY];
    key[0..4].copy_from_slice(&side.key(ifindex).to_ne_bytes());
    key[4..10].copy_from_slice(&macs[0].0);
    key[10..16].copy_from_slice(&macs[1].0);
    key[16..28].copy_from_slice(&header.bytes());
    key[28..32].copy_from_slice(&protocol(tcp).to_ne_bytes());
    key
}

/// Where packets go, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rewrite {
    /// Through which end of the veth pair, and by which interface on the other side.
    pub(super) via: u32,
    pub(super) then: u32,
    /// The longest IP packet.
    pub(super) mtu: u32,
    /// Destination and source.
    pub(super) macs: [Mac; 2],
    pub(super) arrives: Header,
    pub(super) leaves: Header,
    pub(super) tcp: bool,
    /// Whose they are.
    pub(super) connection: ConnectionId,
    pub(super) direction: Direction,
    /// Whether the answer to a SYN may be among them.
    pub(super) answers: bool,
}

/// The value of a key.
pub(super) fn value(rewrite: &Rewrite, epoch: u32) -> [u8; VALUE] {
    let mut value = [0; VALUE];
    let mut put = |at: i16, bytes: &[u8]| {
        let at = usize::from(at.unsigned_abs());
        value[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(offset::VIA, &rewrite.via.to_ne_bytes());
    put(offset::EPOCH, &epoch.to_ne_bytes());
    put(offset::MTU, &rewrite.mtu.to_ne_bytes());
    put(offset::CONNECTION, &rewrite.connection.to_bits().to_ne_bytes());
    put(offset::DIRECTION, &u32::from(rewrite.direction == Direction::Reply).to_ne_bytes());
    put(offset::ANSWERS, &u32::from(rewrite.answers).to_ne_bytes());
    let (before, after) = (rewrite.arrives.bytes(), rewrite.leaves.bytes());
    let addresses = difference(&before[..8], &after[..8]);
    // One hop less, by RFC 1624: the complement of the old half-word and the new one.
    let hop = u32::from(!u16::from_ne_bytes([1, 0]));
    let at = |in_note: i16| in_note - note::REWRITE + offset::REWRITE;
    put(at(note::MARK), &(TAG.cast_unsigned() | rewrite.then).to_ne_bytes());
    let checksum: u32 = if rewrite.tcp { 50 } else { 40 };
    put(at(note::CHECKSUM_AT), &checksum.to_ne_bytes());
    put(at(16), &rewrite.macs[0].0);
    put(at(22), &rewrite.macs[1].0);
    put(at(note::HEADER + 4), &after);
    put(at(note::HEADER_DIFF), &(addresses + hop).to_ne_bytes());
    put(at(note::ADDRESS_DIFF), &addresses.to_ne_bytes());
    put(at(note::PORT_DIFF), &difference(&before[8..], &after[8..]).to_ne_bytes());
    value
}

const fn protocol(tcp: bool) -> u32 {
    if tcp { PROTOCOL_TCP.cast_unsigned() } else { PROTOCOL_UDP.cast_unsigned() }
}

/// What a checksum changes by (RFC 1624): half-words in the machine's order, as the kernel adds them.
fn difference(before: &[u8], after: &[u8]) -> u32 {
    let halves = |bytes: &[u8]| -> Vec<u16> {
        bytes.chunks_exact(2).map(|half| u16::from_ne_bytes([half[0], half[1]])).collect()
    };
    let old = halves(before).into_iter().map(|half| u32::from(!half));
    let new = halves(after).into_iter().map(u32::from);
    old.chain(new).sum()
}

/// Loads bytes of the frame onto the stack.
pub(super) fn load(a: &mut Assembler, from: i32, to: i16, bytes: i32, otherwise: &'static str) {
    a.mov(1, CX);
    a.constant(2, from);
    a.mov(3, STACK);
    a.add_constant(3, i32::from(to));
    a.constant(4, bytes);
    a.call(helper::SKB_LOAD_BYTES);
    a.jump_unless_equal(0, 0, otherwise);
}

/// Goes to `label` with a frame on its second hop; [`TO`] is its mark.
pub(super) fn on_its_way(a: &mut Assembler, label: &'static str) {
    a.load32(TO, CX, context::MARK);
    a.mov(1, TO);
    a.and(1, TAG_MASK);
    a.jump_if_equal(1, TAG, label);
}

/// The second hop of the frame that was noted: takes the note and the mark, and leaves the index in [`TO`].
pub(super) fn take_note(a: &mut Assembler) {
    a.constant(1, 0);
    a.store32(NOTE, 1, 4);
    a.store32(CX, 1, context::MARK);
    a.and(TO, !TAG_MASK);
}

/// What a packet socket of an uplink receives: what `classic` lets in, unless the kernel forwards it itself. `None` for a
/// program that cannot be taken over.
pub(super) fn uplink_filter(
    classic: &[libc::sock_filter],
    tables: Tables<'_>,
    handoff: &Map,
    (words, shares): (&Map, &Map),
) -> Option<Vec<Insn>> {
    let mut a = Assembler::default();
    a.mov(CX, 1);
    begin(&mut a, handoff, words, "look");
    classic::append(&mut a, classic, "accepted", "refused")?;
    a.label("accepted");
    look_up_place(&mut a, shares, "receive");
    a.load32(1, 0, shares::offset::CARRIED);
    a.jump_if_equal(1, 0, "receive");
    load_ethernet(&mut a, "receive");
    look_up(&mut a, tables, words, Side::Uplinks, ("refused", "receive"));
    a.label("refused");
    a.constant(0, 0);
    a.exit();
    a.label("receive");
    a.constant(0, -1);
    a.exit();
    Some(a.finish())
}

/// What the host's end of a network does with a frame on its second hop: out by the uplink.
pub(super) fn exit(handoff: &Map) -> Vec<Insn> {
    let mut a = Assembler::default();
    a.mov(CX, 1);
    on_its_way(&mut a, "second hop");
    a.label("next");
    a.constant(0, NEXT);
    a.exit();
    a.label("second hop");
    a.store_constant(stack::ZERO, 0);
    a.look_up(handoff, stack::ZERO);
    a.jump_if_equal(0, 0, "next");
    a.mov(NOTE, 0);
    take_note(&mut a);
    a.mov(1, TO);
    a.constant(2, 0);
    a.call(helper::REDIRECT);
    a.exit();
    a.finish()
}

/// What connections are kept in, and what is reported of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables<'a> {
    pub(super) connections: &'a Map,
    pub(super) reports: &'a Map,
}

/// Part of a filter: looks the connection of a frame up, whose Ethernet header is on the stack. One that the kernel is to
/// forward is counted and noted, and it goes to the first label. All others go to the second.
pub(super) fn look_up(
    a: &mut Assembler,
    tables: Tables<'_>,
    words: &Map,
    side: Side,
    (noted, other): (&'static str, &'static str),
) {
    let raw16 = |value: u16| i32::from(u16::from_ne_bytes(value.to_be_bytes()));
    a.load16(1, STACK, stack::KEY_ADDRESSES + 12);
    a.jump_unless_equal(1, raw16(0x0800), other);
    load(a, ETHERNET, at::IP, 12, other);
    a.load8(1, STACK, at::IP);
    a.jump_unless_equal(1, 0x45, other);
    a.load16(1, STACK, at::FRAGMENT);
    a.and(1, raw16(0x3fff));
    a.jump_unless_equal(1, 0, other);
    a.load8(1, STACK, at::HOPS);
    a.jump_if_less(1, 2, other);
    // The packet's length: register 7 from here on.
    a.load16(TO, STACK, at::LENGTH);
    a.network16(TO);
    a.load32(1, CX, context::LEN);
    a.add_constant(1, -ETHERNET);
    a.jump_if_more(TO, 1, other);
    a.subtract(1, TO);
    a.jump_if_equal(1, 0, "whole");
    a.load32(1, CX, context::LEN);
    a.jump_if_greater(1, MIN_FRAME, other);
    a.label("whole");

    a.load8(1, STACK, at::PROTOCOL);
    a.jump_if_equal(1, PROTOCOL_TCP, "tcp");
    a.jump_unless_equal(1, PROTOCOL_UDP, other);
    // Read of TCP only, which the verifier does not know.
    for word in [at::TCP, at::ACK, at::OFFSET] {
        a.store_constant(word, 0);
    }
    a.constant(1, 8);
    a.jump("sized");
    a.label("tcp");
    load(a, ETHERNET + IP_HEADER + 4, at::TCP, 16, other);
    a.load8(1, STACK, at::FLAGS);
    a.and(1, TCP_FLAGS & !TCP_SYN);
    a.jump_unless_equal(1, TCP_ACK, other);
    a.load8(1, STACK, at::OFFSET);
    a.and(1, 0xf0);
    a.shift_right(1, 2);
    a.jump_if_less(1, 20, other);
    a.label("sized");
    a.store32(STACK, 1, at::L4);
    a.add_constant(1, IP_HEADER);
    a.jump_if_more(1, TO, other);

    a.load32(1, CX, context::IFINDEX);
    side.mark(a, 1);
    a.store32(STACK, 1, at::KEY);
    for word in [0, 4, 8] {
        a.load32(1, STACK, stack::KEY_ADDRESSES + word);
        a.store32(STACK, 1, at::KEY_MACS + word);
    }
    load(a, ETHERNET + 12, at::KEY_TUPLE, 12, other);
    a.load8(1, STACK, at::PROTOCOL);
    a.store32(STACK, 1, at::KEY_PROTOCOL);
    a.look_up(tables.connections, at::KEY);
    a.jump_if_equal(0, 0, other);
    a.mov(FLOW, 0);
    a.look_up(words, stack::ZERO);
    a.jump_if_equal(0, 0, other);
    a.load32(1, 0, 0);
    a.load32(2, FLOW, offset::EPOCH);
    a.jump_unless_same(1, 2, other);
    a.load8(1, STACK, at::FLAGS);
    a.and(1, TCP_SYN);
    a.jump_if_equal(1, 0, "expected");
    a.load32(1, FLOW, offset::ANSWERS);
    a.jump_if_equal(1, 0, other);
    a.load8(1, STACK, at::FLAGS);
    a.and(1, TCP_FIN);
    a.jump_unless_equal(1, 0, other);
    a.label("expected");

    // Does it fit? Of a super-frame its segments are what counts.
    a.mov(1, TO);
    a.load32(2, CX, context::GSO_SIZE);
    a.jump_if_equal(2, 0, "longest");
    a.load32(1, STACK, at::L4);
    a.add_constant(1, IP_HEADER);
    a.add(1, 2);
    a.label("longest");
    a.load32(2, FLOW, offset::MTU);
    a.jump_if_more(1, 2, other);

    // The count comes last: who reads it has read what it counts, since a value is copied from its beginning on.
    a.load8(1, STACK, at::PROTOCOL);
    a.jump_unless_equal(1, PROTOCOL_TCP, "count");
    a.load32(1, STACK, at::TCP);
    a.network32(1);
    a.add(1, TO);
    a.add_constant(1, -IP_HEADER);
    a.load32(2, STACK, at::L4);
    a.subtract(1, 2);
    // SYN and FIN have a number of their own, and are reported.
    a.load8(2, STACK, at::FLAGS);
    a.mov(3, 2);
    a.and(3, TCP_FIN);
    a.add(1, 3);
    a.and(2, TCP_SYN);
    a.mov(4, 2);
    a.shift_right(4, 1);
    a.add(1, 4);
    a.store32(STACK, 1, at::END);
    a.add(3, 2);
    a.jump_if_equal(3, 0, "told");
    report(a, tables.reports, other);
    a.label("told");
    a.load32(1, STACK, at::END);
    a.store32(FLOW, 1, offset::END);
    a.load32(1, STACK, at::ACK);
    a.store32(FLOW, 1, offset::ACK);
    a.load16(1, STACK, at::WINDOW);
    a.network16(1);
    a.store32(FLOW, 1, offset::WINDOW);
    a.label("count");
    a.call(helper::KTIME_GET_COARSE_NS);
    a.store64(FLOW, 0, offset::LAST);
    a.atomic_add64(FLOW, TO, offset::IP_BYTES);
    a.load32(1, CX, context::LEN);
    a.atomic_add64(FLOW, 1, offset::BYTES);
    a.constant(1, 1);
    a.atomic_add64(FLOW, 1, offset::FRAMES);
    for word in [0, 8, 16, 24, 32, 40] {
        a.load64(1, FLOW, offset::REWRITE + word);
        a.store64(NOTE, 1, note::REWRITE + word);
    }
    a.load32(1, STACK, at::HOPS);
    a.add_constant(1, -i32::from_ne_bytes([1, 0, 0, 0]));
    a.store32(NOTE, 1, note::HEADER);
    a.load32(1, CX, context::IFINDEX);
    side.mark(a, 1);
    a.store32(NOTE, 1, 0);
    a.load32(1, FLOW, offset::VIA);
    a.store32(NOTE, 1, 4);
    a.jump(noted);
}

/// Reports a segment of [`FLOW`] whose header is on the stack up to its options, and the number after it, too.
fn report(a: &mut Assembler, reports: &Map, failed: &'static str) {
    a.load64(1, FLOW, offset::CONNECTION);
    a.store64(STACK, 1, at::REPORT);
    a.load32(1, FLOW, offset::DIRECTION);
    a.store32(STACK, 1, at::REPORT_DIRECTION);
    for word in [0, 8] {
        a.load64(1, STACK, at::TCP + word);
        a.store64(STACK, 1, at::REPORT_TCP + word);
    }
    a.constant(1, 0);
    for word in [0, 8, 16, 24, 32] {
        a.store64(STACK, 1, at::REPORT_OPTIONS + word);
    }
    // The verifier has to see how many there are.
    a.load32(4, STACK, at::L4);
    a.add_constant(4, -TCP_HEADER);
    a.jump_if_greater(4, TCP_OPTIONS, failed);
    a.jump_if_less(4, 1, "no options");
    a.mov(1, CX);
    a.constant(2, ETHERNET + IP_HEADER + TCP_HEADER);
    a.mov(3, STACK);
    a.add_constant(3, i32::from(at::REPORT_OPTIONS));
    a.call(helper::SKB_LOAD_BYTES);
    a.jump_unless_equal(0, 0, failed);
    a.label("no options");
    a.report(reports, at::REPORT, Report::SIZE);
    a.jump_unless_equal(0, 0, failed);
}

/// Part of an ingress program: makes of the frame what [`NOTE`] says. The checksum helpers know finished checksums and those
/// that are left to hardware, and a UDP checksum of 0 stays.
pub(super) fn rewrite(a: &mut Assembler, failed: &'static str) {
    let store = |a: &mut Assembler, at: i32, from: i32, bytes: i32| {
        a.mov(1, CX);
        a.constant(2, at);
        a.mov(3, NOTE);
        a.add_constant(3, from);
        a.constant(4, bytes);
        a.constant(5, 0);
        a.call(helper::SKB_STORE_BYTES);
        a.jump_unless_equal(0, 0, failed);
    };
    store(a, 0, note::MACS, 12);
    // The header's checksum is stored as it was, and corrected afterwards.
    store(a, ETHERNET + 8, i32::from(note::HEADER), 16);
    a.mov(1, CX);
    a.constant(2, ETHERNET + 10);
    a.constant(3, 0);
    a.load32(4, NOTE, note::HEADER_DIFF);
    a.constant(5, 0);
    a.call(helper::L3_CSUM_REPLACE);
    a.jump_unless_equal(0, 0, failed);
    for (difference, pseudo) in [(note::ADDRESS_DIFF, BPF_F_PSEUDO_HDR), (note::PORT_DIFF, 0)] {
        a.mov(1, CX);
        a.load32(2, NOTE, note::CHECKSUM_AT);
        a.constant(3, 0);
        a.load32(4, NOTE, difference);
        a.constant(5, pseudo | BPF_F_MARK_MANGLED_0);
        a.call(helper::L4_CSUM_REPLACE);
        a.jump_unless_equal(0, 0, failed);
    }
    a.load32(1, NOTE, note::MARK);
    a.store32(CX, 1, context::MARK);
    // What a container thinks of its frames' priority is not for the host's queues.
    a.constant(1, 0);
    a.store32(CX, 1, context::PRIORITY);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARRIVES: Header = Header { source: ([172, 18, 0, 10], 40_000), destination: ([192, 0, 2, 1], 80) };
    const LEAVES: Header = Header { source: ([198, 51, 100, 7], 61_001), destination: ([192, 0, 2, 1], 80) };

    fn sum(bytes: &[u8]) -> u16 {
        fold(bytes.chunks_exact(2).map(|h| u32::from(u16::from_ne_bytes([h[0], h[1]]))).sum())
    }

    fn fold(sum: u32) -> u16 {
        u16::try_from(sum).unwrap_or_else(|_| fold((sum & 0xffff) + (sum >> 16)))
    }

    #[test]
    fn differences_turn_one_checksum_into_the_other() {
        let (before, after) = (ARRIVES.bytes(), LEAVES.bytes());
        // csum_replace_by_diff: the complement of the sum of the difference and the complement of the old checksum.
        let old = !sum(&before);
        let new = fold(difference(&before, &after) + u32::from(!old));
        assert_eq!(!new, !sum(&after));
    }

    #[test]
    fn keys_and_values_are_laid_out_as_the_programs_read_them() {
        let macs = [Mac([1; 6]), Mac([2; 6])];
        let of = |side| key(side, 7, macs, ARRIVES, true);
        assert_ne!(of(Side::Ports), of(Side::Uplinks));
        assert_eq!(of(Side::Ports)[4..16], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
        assert_eq!(of(Side::Ports)[16..28], ARRIVES.bytes());
        let rewrite = Rewrite {
            via: 3,
            then: 5,
            mtu: 1500,
            macs,
            arrives: ARRIVES,
            leaves: LEAVES,
            tcp: false,
            connection: ConnectionId::from_bits(7 << 32 | 8),
            direction: Direction::Reply,
            answers: true,
        };
        let value = value(&rewrite, 9);
        assert_eq!(value[0..8], [3_u32.to_ne_bytes(), 9_u32.to_ne_bytes()].concat());
        assert_eq!(value[72..80], [0x5d00_0005_u32.to_ne_bytes(), 40_u32.to_ne_bytes()].concat());
        assert_eq!(value[80..92], [[1; 6], [2; 6]].concat());
        assert_eq!(value[96..108], LEAVES.bytes());
        assert_eq!(value[68..72], 1_u32.to_ne_bytes());
        // Reports say of the connection what is there.
        assert_eq!(value[56..64], (7_u64 << 32 | 8).to_ne_bytes());
        assert_eq!(value[64..68], 1_u32.to_ne_bytes());
        assert_eq!(crate::fastpath::program::HANDOFF, 56);
    }
}
