//! The `sk_lookup` program: which socket gets a packet for a port that is ours.
//!
//! The kernel runs it where it looks for a socket to give a packet to, after it has looked for a connected one and before it
//! looks for a listening one. So connections are out of its reach, whatever their ports.
//!
//! ```text
//! flags = bits[of this protocol and address][port] | bits[of this protocol, any address][port]
//! published         -> the relay's socket; its filter drops what did not come in by lo
//! owned, from here  -> no opinion: the stack refuses, as for any closed port
//! owned             -> the silent socket; its filter drops everything
//! otherwise         -> no opinion
//! ```
//!
//! Which packets come from the host itself is for the relay socket's filter to say: it sees the device. The program sees only
//! the interface that the route names, which is `lo` for 127.0.0.1 and ::1, but for an address of `eth0` is `eth0`.
//!
//! A scope is "any address" (0) or one address. Each has two words of [`BITS`] bytes per protocol in one array map: ports
//! owned, ports published. One system call replaces them, whatever changed.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use super::Protocol;
use super::ledger::Ports;
use crate::sys::assembler::{Assembler, STACK};
use crate::sys::bpf::{Insn, Link, LoadError, Map, MapKind, Program, ProgramKind};
use crate::sys::netns::NetNs;

/// Addresses that may have ports of their own at a time: 32 KiB each.
pub(super) const MAX_ADDRESSES: u32 = 63;
/// Bytes of a bitmap of all ports.
const BITS: usize = 1 << 13;

/// Why the program is not in force.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The kernel does not attach it.
    #[error("cannot attach the program: {0}")]
    Attach(io::Error),
    /// The verifier or a permission.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map.
    #[error("cannot make or fill a BPF map: {0}")]
    Map(#[from] io::Error),
    /// The options said so.
    #[error("switched off")]
    Off,
}

/// Which of the eight sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Drops everything.
    Silent,
    /// Accepts for the relay what comes by `lo`.
    Relay,
}

/// The program in force in a namespace, with its maps.
#[derive(Debug)]
pub(super) struct Lookup {
    bits: Map,
    addresses: Map,
    sockets: Map,
    /// Which scope an address has.
    scopes: HashMap<IpAddr, u32>,
    link: Link,
}

impl Lookup {
    /// Loads the program and puts it in force; no port is owned yet.
    pub(super) fn start(host: &NetNs) -> Result<Self, BpfError> {
        let bits = Map::create(MapKind::Array, "swd_ports", 4, 2 * BITS, 2 * (MAX_ADDRESSES + 1))?;
        let addresses = Map::create(MapKind::Hash, "swd_addresses", 16, 4, MAX_ADDRESSES)?;
        let sockets = Map::create(MapKind::Sockets, "swd_sockets", 4, 4, 8)?;
        let link = Program::load(ProgramKind::SkLookup, "swd_guard", &program(&bits, &addresses, &sockets))?
            .attach_netns(host)
            .map_err(BpfError::Attach)?;
        Ok(Self { bits, addresses, sockets, scopes: HashMap::new(), link })
    }

    /// What holds it in force.
    pub(super) const fn link(&self) -> &Link {
        &self.link
    }

    /// Gives a socket its role.
    pub(super) fn set_socket(
        &self,
        role: Role,
        protocol: Protocol,
        v6: bool,
        socket: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let role = if role == Role::Relay { 4 } else { 0 };
        let index = role + 2 * protocol_index(protocol) + u32::from(v6);
        self.sockets.update_socket(index, socket)
    }

    /// Is there room for one more address?
    pub(super) fn has_room_for(&self, address: Option<IpAddr>) -> bool {
        address.is_none_or(|a| self.scopes.contains_key(&a) || self.scopes.len() < MAX_ADDRESSES as usize)
    }

    /// Says which ports of a protocol are ours at an address (`None`: at every address).
    pub(super) fn set_ports(
        &mut self,
        protocol: Protocol,
        address: Option<IpAddr>,
        ports: &Ports,
    ) -> io::Result<()> {
        let known = address.map_or(Some(0), |a| self.scopes.get(&a).copied());
        let scope = match known {
            Some(scope) => scope,
            None => (1..=MAX_ADDRESSES)
                .find(|n| !self.scopes.values().any(|used| used == n))
                .ok_or_else(|| io::Error::from_raw_os_error(libc::E2BIG))?,
        };
        let index = 2 * scope + protocol_index(protocol);
        self.bits.update(&index.to_ne_bytes(), &ports.bytes())?;
        if let (None, Some(address)) = (known, address) {
            // What the scope's former address left of the other protocol.
            self.bits.update(&(index ^ 1).to_ne_bytes(), &Ports::default().bytes())?;
            self.addresses.update(&key(address), &scope.to_ne_bytes())?;
            self.scopes.insert(address, scope);
        }
        Ok(())
    }

    /// An address of which no port is ours any more.
    pub(super) fn forget(&mut self, address: IpAddr) -> io::Result<()> {
        if self.scopes.remove(&address).is_some() {
            self.addresses.delete(&key(address))?;
        }
        Ok(())
    }
}

fn protocol_index(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
    }
}

/// An address as the program has it: IPv4 as `::ffff:a.b.c.d`.
fn key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

/// Offsets in `struct bpf_sk_lookup`.
mod context {
    pub(super) const FAMILY: i16 = 8;
    pub(super) const PROTOCOL: i16 = 12;
    pub(super) const REMOTE_IP4: i16 = 16;
    pub(super) const REMOTE_IP6: i16 = 20;
    pub(super) const LOCAL_IP4: i16 = 40;
    pub(super) const LOCAL_IP6: i16 = 44;
    pub(super) const LOCAL_PORT: i16 = 60;
    pub(super) const INGRESS_IFINDEX: i16 = 64;
}

/// Where the program's own variables are, from the top of its stack.
mod stack {
    pub(super) const ADDRESS: i16 = -16;
    pub(super) const INDEX: i16 = -20;
    pub(super) const OWNED: i16 = -24;
}

const HELPER_SK_RELEASE: i32 = 86;
const HELPER_SK_ASSIGN: i32 = 124;
const SK_PASS: i32 = 1;

// Registers: 0 results, 1 to 5 arguments, 6 the context, 7 the protocol's index, 8 the port, 9 the family's index, 10 the stack.
const CX: u8 = 6;
const PROTO: u8 = 7;
const PORT: u8 = 8;
const FAMILY: u8 = 9;

fn program(bits: &Map, addresses: &Map, sockets: &Map) -> Vec<Insn> {
    let mut a = Assembler::default();
    a.mov(CX, 1);
    a.load32(PROTO, CX, context::PROTOCOL);
    a.load32(PORT, CX, context::LOCAL_PORT);
    a.store_constant(stack::OWNED, 0);
    a.jump_if_equal(PROTO, libc::IPPROTO_TCP, "tcp");
    a.jump_unless_equal(PROTO, libc::IPPROTO_UDP, "pass");
    a.constant(PROTO, 1);
    a.jump("address");
    a.label("tcp");
    a.constant(PROTO, 0);

    a.label("address");
    a.load32(1, CX, context::FAMILY);
    a.jump_if_equal(1, libc::AF_INET6, "v6");
    a.constant(FAMILY, 0);
    a.store_constant(stack::ADDRESS, 0);
    a.store_constant(stack::ADDRESS + 4, 0);
    a.store_constant(stack::ADDRESS + 8, i32::from_ne_bytes([0, 0, 0xff, 0xff]));
    a.load32(1, CX, context::LOCAL_IP4);
    a.store32(STACK, 1, stack::ADDRESS + 12);
    a.jump("scope");
    a.label("v6");
    a.constant(FAMILY, 1);
    for word in [0, 4, 8, 12] {
        a.load32(1, CX, context::LOCAL_IP6 + word);
        a.store32(STACK, 1, stack::ADDRESS + word);
    }

    a.label("scope");
    a.look_up(addresses, stack::ADDRESS);
    a.jump_if_equal(0, 0, "any");
    a.load32(1, 0, 0);
    examine(&mut a, bits, "any");
    a.label("any");
    a.constant(1, 0);
    examine(&mut a, bits, "examined");
    a.label("examined");
    a.load32(1, STACK, stack::OWNED);
    a.jump_if_equal(1, 0, "pass");

    // Owned and not published. A client on the host itself is refused by the stack: it comes by lo, or from the address that it
    // dials, which is what the kernel chooses for it. Such packets from outside are refused too, by way of lo.
    a.load32(1, CX, context::INGRESS_IFINDEX);
    a.jump_if_equal(1, crate::sys::filter::LOOPBACK.cast_signed(), "pass");
    a.jump_unless_equal(FAMILY, 0, "same6");
    a.load32(1, CX, context::REMOTE_IP4);
    a.load32(2, CX, context::LOCAL_IP4);
    a.jump_unless_same(1, 2, "silent");
    a.jump("pass");
    a.label("same6");
    for word in [0, 4, 8, 12] {
        a.load32(1, CX, context::REMOTE_IP6 + word);
        a.load32(2, CX, context::LOCAL_IP6 + word);
        a.jump_unless_same(1, 2, "silent");
    }
    a.jump("pass");

    a.label("silent");
    a.constant(1, 0);
    a.jump("assign");
    a.label("relay");
    a.constant(1, 4);
    a.label("assign");
    a.add(1, PROTO);
    a.add(1, PROTO);
    a.add(1, FAMILY);
    a.store32(STACK, 1, stack::INDEX);
    a.look_up(sockets, stack::INDEX);
    a.jump_if_equal(0, 0, "pass");
    a.mov(PROTO, 0);
    a.mov(1, CX);
    a.mov(2, 0);
    a.constant(3, 0);
    a.call(HELPER_SK_ASSIGN);
    a.mov(1, PROTO);
    a.call(HELPER_SK_RELEASE);
    a.label("pass");
    a.constant(0, SK_PASS);
    a.exit();
    a.finish()
}

/// Looks at the port's bits in the scope that register 1 names: goes to "relay" if published, notes if owned.
fn examine(a: &mut Assembler, bits: &Map, next: &'static str) {
    a.shift_left(1, 1);
    a.add(1, PROTO);
    a.store32(STACK, 1, stack::INDEX);
    a.look_up(bits, stack::INDEX);
    a.jump_if_equal(0, 0, next);
    a.mov(1, PORT);
    a.and(1, 0xffff);
    a.mov(2, 1);
    a.and(2, 7);
    a.shift_right(1, 3);
    a.add(0, 1);
    // The second bitmap of the value: published.
    a.load8(3, 0, 1 << 13);
    a.shift_right_by(3, 2);
    a.and(3, 1);
    a.jump_unless_equal(3, 0, "relay");
    a.load8(3, 0, 0);
    a.shift_right_by(3, 2);
    a.and(3, 1);
    a.jump_if_equal(3, 0, next);
    a.store_constant(stack::OWNED, 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_a_mapped_one() {
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7];
        assert_eq!(key("192.0.2.7".parse().unwrap()), mapped);
    }
}
