//! What is awaited from outside: packets that are a worker's for certain, so that the host's stack need not look at them.
//!
//! A frame of an uplink reaches the worker, by its socket, *and* the host's stack, where the port guard ends what is swd's. By then the
//! stack has looked for a route and for a socket. So the worker says what it sends out, and the uplink's ingress program, which comes
//! behind all packet sockets and before the stack, ends what answers that.
//!
//! It is for speed alone. What is not found here goes to the stack and its guard; so the table is small, a newer question takes an
//! older one's place, and one is good for two seconds, which nobody has to remember. Only connections that a container has opened
//! are in it: the answers come to a port that was leased to them, at which the host is silent anyhow, and from whom they asked. A
//! connection of the host's own, or one that its kernel translates, has another source or another port. IPv4, TCP and UDP,
//! without IP options and fragments.

use std::io;
use std::sync::atomic::Ordering;

use nat::{Connection, Direction, Protocol, Time};

use super::program::{CX, DROP, FLOW, NEXT, TO, context, helper};
use super::translate::load;
use crate::sys::assembler::{Assembler, STACK};
use crate::sys::words::Words;

/// Questions at a time, a power of two: 256 KiB in the kernel. Enough that one is there still when its answer comes.
const PLACES: u32 = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 14;
/// Spreads addresses and ports over the places: by the golden ratio (Knuth, The Art of Computer Programming, volume 3, 6.4).
const SPREAD: u32 = 0x9e37_79b1;
/// Nanoseconds of a period, as a power of two: about a second. A question is good for the period in which it was asked, and the next.
const PERIOD_BITS: i32 = 30;

/// Words of a place, and where they are. The first three are those of the packet, as it has them.
const WORDS: usize = 4;
mod offset {
    pub(super) const SOURCE: i16 = 0;
    pub(super) const DESTINATION: i16 = 4;
    pub(super) const PORTS: i16 = 8;
    /// When, and of which protocol: see [`super::stamp`].
    pub(super) const STAMP: i16 = 12;
}

/// On the program's stack.
mod at {
    /// From the ethertype to the ports of a packet without options.
    pub(super) const PACKET: i16 = -34;
    pub(super) const VERSION: i16 = PACKET + 2;
    pub(super) const FRAGMENT: i16 = PACKET + 8;
    pub(super) const PROTOCOL: i16 = PACKET + 11;
    pub(super) const SOURCE: i16 = PACKET + 14;
    pub(super) const DESTINATION: i16 = PACKET + 18;
    pub(super) const PORTS: i16 = PACKET + 22;
    pub(super) const PLACE: i16 = -8;
}
/// Where that begins in a frame, and its length.
const PACKET: (i32, i32) = (12, 26);

/// A packet that was sent out, by what its answer will look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The uplink it has left by.
    pub uplink: u32,
    /// Source, destination and ports of the answer, as they are in memory.
    answer: [u32; 3],
    tcp: bool,
}

impl Question {
    /// A packet that has left by `uplink` in `direction` of a connection, if its answer is to be told.
    pub fn of(connection: &Connection, direction: Direction, uplink: u32) -> Option<Self> {
        let answer = connection.tuple(Direction::Reply);
        let [from, to] = [answer.source, answer.destination];
        let tcp = answer.protocol == Protocol::Tcp;
        let known = (tcp || answer.protocol == Protocol::Udp) && from.address.is_v4() && to.address.is_v4();
        let ([a, b], [c, d]) = (from.port.to_be_bytes(), to.port.to_be_bytes());
        let answer = [from.address.v4_octets(), to.address.v4_octets(), [a, b, c, d]];
        let answer = answer.map(u32::from_ne_bytes);
        (known && direction == Direction::Original).then_some(Self { uplink, answer, tcp })
    }

    fn place(&self) -> usize {
        let [source, _, ports] = self.answer;
        ((source ^ ports).wrapping_mul(SPREAD) >> (u32::BITS - PLACE_BITS)) as usize
    }
}

/// The period, and the protocol in the lowest bit.
#[expect(clippy::cast_possible_truncation, reason = "periods go round in a long time, and are compared only")]
const fn stamp(now: Time, tcp: bool) -> u32 {
    ((now.as_nanos() >> PERIOD_BITS) as u32) << 1 | tcp as u32
}

/// The questions.
#[derive(Debug)]
pub(super) struct Awaited(Words);

impl Awaited {
    /// As [`Words::create`].
    pub(super) fn create() -> io::Result<Self> {
        Words::create("swd_awaited", PLACES, WORDS).map(Self)
    }

    /// Awaits the answer to a question that is about to be sent.
    ///
    /// Two workers that take one place at the same time may leave a mixture: an answer that nobody gives.
    pub(super) fn note(&self, question: &Question, now: Time) {
        let Some(place) = self.0.get().get(question.place() * WORDS..).and_then(|w| w.first_chunk::<WORDS>())
        else {
            return;
        };
        for (word, value) in place.iter().zip(question.answer) {
            word.store(value, Ordering::Relaxed);
        }
        place[WORDS - 1].store(stamp(now, question.tcp), Ordering::Release);
    }
}

/// The end of an uplink's ingress program: ends what is awaited, and leaves everything else to the stack.
pub(super) fn end(a: &mut Assembler, awaited: &Awaited) {
    let raw16 = |value: u16| i32::from(u16::from_ne_bytes(value.to_be_bytes()));
    a.load32(1, CX, context::VLAN_PRESENT);
    a.jump_unless_equal(1, 0, "not awaited");
    load(a, PACKET.0, at::PACKET, PACKET.1, "not awaited");
    a.load16(1, STACK, at::PACKET);
    a.jump_unless_equal(1, raw16(0x0800), "not awaited");
    a.load8(1, STACK, at::VERSION);
    a.jump_unless_equal(1, 0x45, "not awaited");
    a.load16(1, STACK, at::FRAGMENT);
    a.and(1, raw16(0x3fff));
    a.jump_unless_equal(1, 0, "not awaited");
    a.load8(1, STACK, at::PROTOCOL);
    a.constant(TO, 1);
    a.jump_if_equal(1, libc::IPPROTO_TCP, "protocol");
    a.constant(TO, 0);
    a.jump_unless_equal(1, libc::IPPROTO_UDP, "not awaited");
    a.label("protocol");

    a.load32(1, STACK, at::SOURCE);
    a.load32(2, STACK, at::PORTS);
    a.xor(1, 2);
    a.multiply(1, SPREAD.cast_signed());
    a.shift_right(1, (u32::BITS - PLACE_BITS).cast_signed());
    a.and(1, PLACES.cast_signed() - 1);
    a.store32(STACK, 1, at::PLACE);
    a.look_up(awaited.0.map(), at::PLACE);
    a.jump_if_equal(0, 0, "not awaited");
    for (word, in_packet) in
        [(offset::SOURCE, at::SOURCE), (offset::DESTINATION, at::DESTINATION), (offset::PORTS, at::PORTS)]
    {
        a.load32(1, 0, word);
        a.load32(2, STACK, in_packet);
        a.jump_unless_same(1, 2, "not awaited");
    }
    // As `stamp` has it; another protocol differs by an odd number.
    a.load32(FLOW, 0, offset::STAMP);
    a.call(helper::KTIME_GET_BOOT_NS);
    a.shift_right(0, PERIOD_BITS);
    a.shift_left(0, 1);
    a.add(0, TO);
    a.subtract(0, FLOW);
    for periods in [0, 1] {
        a.jump_if_equal(0, 2 * periods, "awaited");
    }
    a.label("not awaited");
    a.constant(0, NEXT);
    a.exit();
    a.label("awaited");
    a.constant(0, DROP);
    a.exit();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_stamp_tells_periods_and_protocols_apart() {
        let then = Time::from_secs(1000);
        assert_eq!(stamp(then, true) - stamp(then, false), 1);
        let next = then + Duration::from_nanos(1 << PERIOD_BITS);
        assert_eq!(stamp(next, false) - stamp(then, false), 2);
    }
}
