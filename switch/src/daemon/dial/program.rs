//! The programs: where a TCP socket connects to, and what it says afterwards.
//!
//! ```text
//! connect:      another namespace, another protocol          -> as it is
//!               not an address of the host's                 -> as it is; what was noted of the socket is forgotten
//!               published there, or at all addresses         -> noted by the socket's cookie; the container's address and port
//!               otherwise                                    -> as it is; forgotten, too
//! getpeername:  noted                                        -> what was dialled
//! ```
//!
//! IPv4 addresses are `::ffff:a.b.c.d` in all keys and values, so that sockets of both families find the same: an IPv6
//! socket dials IPv4 that way.

use crate::sys::assembler::{Assembler, STACK};
use crate::sys::bpf::{Insn, Map};

/// The second but last word of an IPv4 address.
pub(super) const MAPPED: [u8; 4] = [0, 0, 0xff, 0xff];

/// The maps that the programs share.
#[derive(Debug)]
pub(super) struct Maps {
    /// Addresses of the host and of `lo` -> the third word of "all addresses of the family".
    pub(super) addresses: Map,
    /// Address, port -> the container's address, and what to add to the port.
    pub(super) doors: Map,
    /// Socket cookie -> what was dialled.
    pub(super) dialled: Map,
}

/// Offsets in `struct bpf_sock_addr`.
mod context {
    pub(super) const IP4: i16 = 4;
    pub(super) const IP6: i16 = 8;
    pub(super) const PORT: i16 = 24;
    pub(super) const PROTOCOL: i16 = 36;
}

/// Where the variables are, from the top of the stack.
mod stack {
    pub(super) const COOKIE: i16 = -8;
    /// What was dialled: address, port.
    pub(super) const ADDRESS: i16 = -28;
    pub(super) const PORT: i16 = -12;
    /// The key of a map of prefixes: its length, an address, a port.
    pub(super) const KEY: i16 = -52;
    pub(super) const KEY_ADDRESS: i16 = -48;
    pub(super) const KEY_PORT: i16 = -32;
}

/// Offsets in the values of doors and of what was dialled.
const VALUE_PORT: i16 = 16;

const HELPER_SOCKET_COOKIE: i32 = 46;
const HELPER_NETNS_COOKIE: i32 = 122;
const ALLOW: i32 = 1;
const WORDS: [i16; 4] = [0, 4, 8, 12];

// Registers: 6 the context, 7 the third word of "all addresses" and later the door, 8 the port.
const CX: u8 = 6;
const ANY: u8 = 7;
const DOOR: u8 = 7;
const PORT: u8 = 8;

/// For connect(2), in the network namespace with this cookie.
pub(super) fn connect(v6: bool, maps: &Maps, host: u64) -> Vec<Insn> {
    let mut a = Assembler::default();
    a.mov(CX, 1);
    a.load32(1, CX, context::PROTOCOL);
    a.jump_unless_equal(1, libc::IPPROTO_TCP, "allow");
    a.mov(1, CX);
    a.call(HELPER_NETNS_COOKIE);
    a.constant64(1, host);
    a.jump_unless_same(0, 1, "allow");
    a.mov(1, CX);
    a.call(HELPER_SOCKET_COOKIE);
    a.store64(STACK, 0, stack::COOKIE);

    dialled_address(&mut a, v6);
    a.load32(PORT, CX, context::PORT);
    a.store32(STACK, PORT, stack::PORT);
    for word in WORDS {
        a.load32(1, STACK, stack::ADDRESS + word);
        a.store32(STACK, 1, stack::KEY_ADDRESS + word);
    }
    a.store32(STACK, PORT, stack::KEY_PORT);

    a.store_constant(stack::KEY, 8 * ADDRESS_BYTES);
    a.look_up(&maps.addresses, stack::KEY);
    a.jump_if_equal(0, 0, "forget");
    a.load32(ANY, 0, 0);
    a.store_constant(stack::KEY, 8 * DOOR_BYTES);
    a.look_up(&maps.doors, stack::KEY);
    a.jump_unless_equal(0, 0, "lead");
    a.store_constant(stack::KEY_ADDRESS, 0);
    a.store_constant(stack::KEY_ADDRESS + 4, 0);
    a.store32(STACK, ANY, stack::KEY_ADDRESS + 8);
    a.store_constant(stack::KEY_ADDRESS + 12, 0);
    a.look_up(&maps.doors, stack::KEY);
    a.jump_unless_equal(0, 0, "lead");

    a.label("forget");
    a.delete(&maps.dialled, stack::COOKIE);
    a.jump("allow");

    a.label("lead");
    a.mov(DOOR, 0);
    a.update(&maps.dialled, stack::COOKIE, stack::ADDRESS);
    set_address(&mut a, v6, DOOR);
    a.load32(1, DOOR, VALUE_PORT);
    a.network16(PORT);
    a.add(PORT, 1);
    a.network16(PORT);
    a.store32(CX, PORT, context::PORT);
    a.label("allow");
    a.constant(0, ALLOW);
    a.exit();
    a.finish()
}

/// For getpeername(2), in any namespace: a cookie is one socket's.
pub(super) fn peer_name(v6: bool, maps: &Maps) -> Vec<Insn> {
    let mut a = Assembler::default();
    a.mov(CX, 1);
    a.call(HELPER_SOCKET_COOKIE);
    a.store64(STACK, 0, stack::COOKIE);
    a.look_up(&maps.dialled, stack::COOKIE);
    a.jump_if_equal(0, 0, "allow");
    set_address(&mut a, v6, 0);
    a.load32(1, 0, VALUE_PORT);
    a.store32(CX, 1, context::PORT);
    a.label("allow");
    a.constant(0, ALLOW);
    a.exit();
    a.finish()
}

/// Bytes of an address in a key, and of an address with its port.
const ADDRESS_BYTES: i32 = 16;
const DOOR_BYTES: i32 = ADDRESS_BYTES + 2;

/// The context's address, onto the stack.
fn dialled_address(a: &mut Assembler, v6: bool) {
    if v6 {
        for word in WORDS {
            a.load32(1, CX, context::IP6 + word);
            a.store32(STACK, 1, stack::ADDRESS + word);
        }
    } else {
        a.store_constant(stack::ADDRESS, 0);
        a.store_constant(stack::ADDRESS + 4, 0);
        a.store_constant(stack::ADDRESS + 8, i32::from_ne_bytes(MAPPED));
        a.load32(1, CX, context::IP4);
        a.store32(STACK, 1, stack::ADDRESS + 12);
    }
}

/// The address at the beginning of a value, into the context.
fn set_address(a: &mut Assembler, v6: bool, value: u8) {
    if v6 {
        for word in WORDS {
            a.load32(1, value, word);
            a.store32(CX, 1, context::IP6 + word);
        }
    } else {
        a.load32(1, value, 12);
        a.store32(CX, 1, context::IP4);
    }
}
