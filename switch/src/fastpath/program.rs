//! The kernel's part of the fast path: two programs and the maps between them.
//!
//! A frame that a veth port receives meets, in this order, on one CPU, with nothing between that could run either program
//! again (`__netif_receive_skb_core`, net/core/dev.c):
//!
//! 1. the *filter* of the packet socket. It looks the flow up. One that the kernel is to forward is not received, but noted in
//!    the CPU's own *handoff*. Any other is received, as ever.
//! 2. the *ingress* program of the interface. What is noted goes to the peer of the port that the note names, which is the
//!    container's interface (`bpf_redirect_peer`); anything else passes by, and ends, since nobody else listens there.
//!
//! So there is one look-up for a frame and one place that decides, and no moment at which both forward a frame or neither does.
//! When the daemon dies its socket and the filter go, nothing is noted any more, and nothing is forwarded.
//!
//! Between the two, a sniffer of the port may get a copy of what is noted ([`copies`]).
//!
//! Frames of connections to the outside and back are found and translated by the same two programs: see [`super::translate`].

use super::awaited::{self, Awaited};
use super::offer::V6_HEADERS;
use super::shares;
use super::translate::{self, Side, Tables};
use crate::frame::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::sys::assembler::{Assembler, STACK};
use crate::sys::bpf::{Insn, Map};

/// Bytes of a key: interface index, destination, source, ethertype, two zeroes, source address (16, of IPv4 the first four).
pub(super) const KEY: usize = 36;
/// Bytes of a value: interface index and epoch (4 each); frames, bytes, time of the last (8 each).
pub(super) const VALUE: usize = 32;
/// Bytes of a handoff: interface index of the port whence, and whereto; 0 when there is none. Then what to make of the frame:
/// [`translate::REWRITE`], which begins with 0 when that is nothing.
pub(super) const HANDOFF: usize = 8 + translate::REWRITE;

/// Offsets in `struct __sk_buff` (linux/bpf.h).
pub(super) mod context {
    pub(in crate::fastpath) const LEN: i16 = 0;
    pub(in crate::fastpath) const MARK: i16 = 8;
    pub(in crate::fastpath) const VLAN_PRESENT: i16 = 20;
    pub(in crate::fastpath) const PRIORITY: i16 = 32;
    pub(in crate::fastpath) const IFINDEX: i16 = 40;
    pub(in crate::fastpath) const GSO_SIZE: i16 = 176;
}

/// Where the programs' variables are, from the top of the stack.
pub(super) mod stack {
    pub(in crate::fastpath) const ZERO: i16 = -4;
    // What lies between is `translate`'s.
    pub(in crate::fastpath) const KEY: i16 = -132;
    pub(in crate::fastpath) const KEY_ADDRESSES: i16 = KEY + 4;
    pub(in crate::fastpath) const KEY_ETHERTYPE: i16 = KEY + 16;
    pub(super) const KEY_SOURCE: i16 = KEY + 20;
    /// A byte of the frame.
    pub(super) const BYTE: i16 = KEY - 4;
    /// The key of a port's share.
    pub(super) const PLACE: i16 = BYTE;
}

pub(super) mod helper {
    pub(in crate::fastpath) const SKB_STORE_BYTES: i32 = 9;
    pub(in crate::fastpath) const L3_CSUM_REPLACE: i32 = 10;
    pub(in crate::fastpath) const L4_CSUM_REPLACE: i32 = 11;
    pub(in crate::fastpath) const REDIRECT: i32 = 23;
    pub(in crate::fastpath) const SKB_LOAD_BYTES: i32 = 26;
    pub(in crate::fastpath) const SKB_CHANGE_TYPE: i32 = 32;
    pub(in crate::fastpath) const KTIME_GET_BOOT_NS: i32 = 125;
    pub(in crate::fastpath) const REDIRECT_PEER: i32 = 155;
    pub(in crate::fastpath) const KTIME_GET_COARSE_NS: i32 = 160;
}

/// Both addresses and the ethertype.
pub(super) const ETHERNET: i32 = 14;
/// Where the source address is in a frame, and its length.
const V4_SOURCE: (i32, i32) = (26, 4);
const V6_SOURCE: (i32, i32) = (22, 16);
/// Where the next header of IPv6 is in a frame.
const V6_NEXT: (i32, i32) = (20, 1);
/// `PACKET_HOST`: the container's stack takes the frame for its own. The kernel set it when the port, another interface,
/// received the frame.
const PACKET_HOST: i32 = 0;
/// `TCX_NEXT`: no opinion.
pub(super) const NEXT: i32 = -1;
/// `TCX_DROP`.
pub(super) const DROP: i32 = 2;

// Registers that calls leave alone.
pub(super) const CX: u8 = 6;
pub(super) const TO: u8 = 7;
pub(super) const FLOW: u8 = 8;
pub(super) const NOTE: u8 = 9;

/// What a packet socket receives: all that the kernel does not forward itself. With `connections`, those are looked for as well.
///
/// A frame of a port that has its share of the ring already is not received. Nothing is looked for where the kernel carries nothing.
pub(super) fn filter(
    flows: &Map,
    handoff: &Map,
    (words, shares): (&Map, &Map),
    connections: Option<Tables<'_>>,
) -> Vec<Insn> {
    let mut a = Assembler::default();
    a.mov(CX, 1);
    if connections.is_some() {
        // On its second hop, and noted already.
        translate::on_its_way(&mut a, "taken");
    }
    begin(&mut a, handoff, words, "receive");
    look_up_place(&mut a, shares, "receive");
    a.load32(1, 0, shares::offset::CARRIED);
    a.jump_if_equal(1, 0, "placed");
    a.load32(1, CX, context::VLAN_PRESENT);
    a.jump_unless_equal(1, 0, "receive");
    load_ethernet(&mut a, "receive");
    for word in 0..4 {
        a.store_constant(stack::KEY_SOURCE + 4 * word, 0);
    }
    a.load32(1, STACK, stack::KEY_ETHERTYPE);
    a.jump_if_equal(1, as_stored(ETHERTYPE_IPV4), "v4");
    a.jump_unless_equal(1, as_stored(ETHERTYPE_IPV6), "receive");
    translate::load(&mut a, V6_NEXT.0, stack::BYTE, V6_NEXT.1, "receive");
    a.load8(1, STACK, stack::BYTE);
    for header in V6_HEADERS {
        a.jump_if_equal(1, i32::from(header), "v6");
    }
    a.jump("receive");
    a.label("v6");
    translate::load(&mut a, V6_SOURCE.0, stack::KEY_SOURCE, V6_SOURCE.1, "receive");
    a.jump("find");
    a.label("v4");
    translate::load(&mut a, V4_SOURCE.0, stack::KEY_SOURCE, V4_SOURCE.1, "receive");
    a.label("find");
    a.look_up(flows, stack::KEY);
    a.jump_if_equal(0, 0, if connections.is_some() { "connection" } else { "receive" });
    a.mov(FLOW, 0);
    a.look_up(words, stack::ZERO);
    a.jump_if_equal(0, 0, "receive");
    a.load32(1, 0, 0);
    a.load32(2, FLOW, 4);
    a.jump_unless_same(1, 2, "receive");

    a.constant(1, 1);
    a.atomic_add64(FLOW, 1, 8);
    a.load32(1, CX, context::LEN);
    a.atomic_add64(FLOW, 1, 16);
    a.call(helper::KTIME_GET_COARSE_NS);
    a.store64(FLOW, 0, 24);
    a.constant(1, 0);
    a.store32(NOTE, 1, 8);
    a.load32(1, CX, context::IFINDEX);
    a.store32(NOTE, 1, 0);
    a.load32(1, FLOW, 0);
    a.store32(NOTE, 1, 4);
    a.label("taken");
    a.constant(0, 0);
    a.exit();
    if let Some(connections) = connections {
        a.label("connection");
        translate::look_up(&mut a, connections, words, Side::Ports, ("taken", "receive"));
    }
    a.label("receive");
    look_up_place(&mut a, shares, "admitted");
    a.label("placed");
    share(&mut a);
    a.label("admitted");
    a.constant(0, -1);
    a.exit();
    a.finish()
}

/// Looks up what is counted of an interface: register 0.
pub(super) fn look_up_place(a: &mut Assembler, shares: &Map, otherwise: &'static str) {
    a.load32(1, CX, context::IFINDEX);
    a.and(1, shares::PLACES.cast_signed() - 1);
    a.store32(STACK, 1, stack::PLACE);
    a.look_up(shares, stack::PLACE);
    a.jump_if_equal(0, 0, otherwise);
}

/// Counts a frame of a port that may have one more in the ring, and goes on; register 0 is what is counted of it. Any other is refused.
/// See [`super::shares`].
fn share(a: &mut Assembler) {
    a.mov(FLOW, 0);
    a.call(helper::KTIME_GET_COARSE_NS);
    a.load32(1, FLOW, shares::offset::WAITING);
    a.jump_if_less(1, shares::MOST.cast_signed(), "counted");
    a.load64(1, FLOW, shares::offset::LAST);
    a.mov(2, 0);
    a.subtract(2, 1);
    a.jump_if_greater(2, shares::PERIOD_NS, "anew");
    a.constant(1, 1);
    a.atomic_add32(FLOW, 1, shares::offset::REFUSED);
    a.constant(0, 0);
    a.exit();
    a.label("anew");
    a.constant(1, 0);
    a.store32(FLOW, 1, shares::offset::WAITING);
    a.label("counted");
    a.store64(FLOW, 0, shares::offset::LAST);
    a.constant(1, 1);
    a.atomic_add32(FLOW, 1, shares::offset::WAITING);
}

/// What a sniffer of a port receives: what the filter of the worker's socket, which has seen the frame already, has noted as the
/// kernel's. Frames on their second hop are another interface's note.
pub(super) fn copies(handoff: &Map) -> Vec<Insn> {
    let mut a = Assembler::default();
    a.mov(CX, 1);
    a.store_constant(stack::ZERO, 0);
    a.look_up(handoff, stack::ZERO);
    a.jump_if_equal(0, 0, "not");
    a.load32(1, 0, 4);
    a.jump_if_equal(1, 0, "not");
    a.load32(1, 0, 0);
    a.load32(2, CX, context::IFINDEX);
    a.jump_unless_same(1, 2, "not");
    a.constant(0, -1);
    a.exit();
    a.label("not");
    a.constant(0, 0);
    a.exit();
    a.finish()
}

/// The begin of both kinds of filters: the CPU's note, which must not be there. If it is, an interface lost its program, and that
/// frame is gone. No more of them: the epoch ends, and the daemon, told by the second word, attaches the programs again.
pub(super) fn begin(a: &mut Assembler, handoff: &Map, words: &Map, otherwise: &'static str) {
    a.store_constant(stack::ZERO, 0);
    a.look_up(handoff, stack::ZERO);
    a.jump_if_equal(0, 0, "receive");
    a.mov(NOTE, 0);
    a.load32(1, NOTE, 4);
    a.jump_if_equal(1, 0, "look");
    a.constant(1, 0);
    a.store32(NOTE, 1, 4);
    a.look_up(words, stack::ZERO);
    a.jump_if_equal(0, 0, otherwise);
    a.constant(1, 1);
    a.atomic_add32(0, 1, 0);
    a.atomic_add32(0, 1, 4);
    a.jump(otherwise);
    a.label("look");
}

/// Loads the interface, both addresses and the ethertype into the key on the stack.
pub(super) fn load_ethernet(a: &mut Assembler, otherwise: &'static str) {
    a.store_constant(stack::KEY_ETHERTYPE, 0);
    a.load32(1, CX, context::IFINDEX);
    a.store32(STACK, 1, stack::KEY);
    translate::load(a, 0, stack::KEY_ADDRESSES, ETHERNET, otherwise);
}

/// An ethertype and two zeroes, as 4 bytes of memory read as a number.
fn as_stored(ethertype: u16) -> i32 {
    let [a, b] = ethertype.to_be_bytes();
    i32::from_ne_bytes([a, b, 0, 0])
}

/// What an interface does with a frame: hand it over if that was noted. An uplink also ends what is [`awaited`].
pub(super) fn ingress(handoff: &Map, side: Side, awaited: Option<&Awaited>) -> Vec<Insn> {
    let mut a = Assembler::default();
    a.mov(CX, 1);
    a.store_constant(stack::ZERO, 0);
    a.look_up(handoff, stack::ZERO);
    a.jump_if_equal(0, 0, "next");
    a.mov(NOTE, 0);
    if side == Side::Ports {
        translate::on_its_way(&mut a, "second hop");
    }
    a.load32(TO, NOTE, 4);
    a.jump_if_equal(TO, 0, "next");
    // A note of another interface is not about this frame.
    a.load32(1, NOTE, 0);
    a.load32(2, CX, context::IFINDEX);
    side.mark(&mut a, 2);
    a.jump_unless_same(1, 2, "next");
    a.load32(1, NOTE, 8);
    a.jump_unless_equal(1, 0, "translate");
    a.constant(1, 0);
    a.store32(NOTE, 1, 4);
    a.mov(1, CX);
    a.constant(2, PACKET_HOST);
    a.call(helper::SKB_CHANGE_TYPE);
    a.mov(1, TO);
    a.constant(2, 0);
    a.call(helper::REDIRECT_PEER);
    a.exit();
    a.label("translate");
    translate::rewrite(&mut a, "drop");
    // The note is taken by the second hop, so that one without its program is noticed as well.
    a.mov(1, TO);
    a.constant(2, 0);
    a.call(helper::REDIRECT_PEER);
    a.exit();
    a.label("drop");
    a.constant(1, 0);
    a.store32(NOTE, 1, 4);
    a.constant(0, DROP);
    a.exit();
    if side == Side::Ports {
        a.label("second hop");
        translate::take_note(&mut a);
        a.mov(1, CX);
        a.constant(2, PACKET_HOST);
        a.call(helper::SKB_CHANGE_TYPE);
        a.mov(1, TO);
        a.constant(2, 0);
        a.call(helper::REDIRECT_PEER);
        a.exit();
    }
    a.label("next");
    match awaited {
        Some(awaited) => awaited::end(&mut a, awaited),
        None => {
            a.constant(0, NEXT);
            a.exit();
        }
    }
    a.finish()
}
