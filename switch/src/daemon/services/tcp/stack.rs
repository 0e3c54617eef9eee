//! One TCP connection to a gateway: a stack of smoltcp's with a single socket and no link layer. It is given packets and the time, and gives
//! packets; it knows nobody else, so connections of different networks cannot come into each other's way. Pure.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use nat::Time;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};

/// Bytes of questions that may wait: the window that a client is told.
const RECEIVE: usize = 4096;
/// Bytes of answers that may be under way.
const SEND: usize = 16 << 10;

/// A connection.
pub(super) struct Stack {
    cable: Cable,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("state", &self.socket().state()).finish_non_exhaustive()
    }
}

/// smoltcp's time.
fn at(now: Time) -> Instant {
    Instant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap_or(i64::MAX))
}

/// An interface with one address, to which everybody is near.
fn interface(address: IpAddr, seed: u64, cable: &mut Cable, now: Time) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut interface = Interface::new(config, cable, at(now));
    // There is room for the first one.
    interface.update_ip_addrs(|own| _ = own.push(IpCidr::new(address.into(), 0)));
    interface
}

/// What is said to a packet that belongs to no connection: a reset, or nothing (RFC 9293 section 3.10.7.1).
pub(super) fn refuse(gateway: IpAddr, packet: &[u8], now: Time) -> Option<Vec<u8>> {
    let mut cable = Cable::new(u16::MAX.into());
    let mut interface = interface(gateway, 0, &mut cable, now);
    cable.inward.push_back(packet.to_vec());
    interface.poll(at(now), &mut cable, &mut SocketSet::new(Vec::new()));
    cable.out.pop_front()
}

impl Stack {
    /// One that waits for the client's SYN. `seed` is random: the sequence numbers follow from it (RFC 6528).
    pub(super) fn new(gateway: SocketAddr, mtu: u32, seed: u64, now: Time) -> Self {
        let mut cable = Cable::new(mtu as usize);
        let interface = interface(gateway.ip(), seed, &mut cable, now);
        let mut socket = Socket::new(SocketBuffer::new(vec![0; RECEIVE]), SocketBuffer::new(vec![0; SEND]));
        socket.set_nagle_enabled(false);
        // Only a port of 0 is refused; such a connection stays closed, and is removed for it.
        let _ = socket.listen((gateway.ip(), gateway.port()));
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(socket);
        Self { cable, interface, sockets, socket }
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.socket)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    /// A packet from the client.
    pub(super) fn receive(&mut self, packet: &[u8]) {
        self.cable.inward.push_back(packet.to_vec());
    }

    /// Does what is due.
    pub(super) fn poll(&mut self, now: Time) {
        self.interface.poll(at(now), &mut self.cable, &mut self.sockets);
    }

    /// When something is due by itself.
    pub(super) fn due(&mut self, now: Time) -> Option<Time> {
        let delay = self.interface.poll_delay(at(now), &self.sockets)?;
        Some(now + delay.into())
    }

    /// Packets for the client.
    pub(super) fn sent(&mut self) -> impl Iterator<Item = Vec<u8>> + '_ {
        self.cable.out.drain(..)
    }

    /// Hands what the client has said to `take`, which tells how much of it it has taken. Gives that.
    pub(super) fn read(&mut self, take: impl FnOnce(&[u8]) -> usize) -> usize {
        let taken = self.socket_mut().recv(|bytes| {
            let taken = take(bytes);
            (taken, taken)
        });
        taken.unwrap_or_default()
    }

    /// Has the beginning of `bytes` sent, as much as there is room for; gives how much that is.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        self.socket_mut().send_slice(bytes).unwrap_or_default()
    }

    /// Bytes that the client has not acknowledged.
    pub(super) fn unsent(&self) -> usize {
        self.socket().send_queue()
    }

    /// The client says nothing more, and everything that it has said was read.
    pub(super) fn is_heard_out(&self) -> bool {
        self.socket().state() == State::CloseWait && !self.socket().can_recv()
    }

    /// The client has not answered the answer to its SYN.
    pub(super) fn is_half_open(&self) -> bool {
        self.socket().state() == State::SynReceived
    }

    /// Sends no more than what was written already.
    pub(super) fn close(&mut self) {
        self.socket_mut().close();
    }

    /// Ends it at once, with a reset.
    pub(super) fn abort(&mut self) {
        self.socket_mut().abort();
    }

    /// Whether nothing is to be expected of it any more. TIME-WAIT protects whoever closes first from old segments of the same ends
    /// (RFC 9293 section 3.4.1); here such a segment gets a reset, which is as good.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.socket().state(), State::Closed | State::Listen | State::TimeWait)
    }
}

/// A queue for each direction.
#[derive(Debug)]
struct Cable {
    inward: VecDeque<Vec<u8>>,
    out: VecDeque<Vec<u8>>,
    mtu: usize,
}

impl Cable {
    const fn new(mtu: usize) -> Self {
        Self { inward: VecDeque::new(), out: VecDeque::new(), mtu }
    }
}

struct Inward(Vec<u8>);

struct Outward<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for Cable {
    type RxToken<'a> = Inward;
    type TxToken<'a> = Outward<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Inward, Outward<'_>)> {
        Some((Inward(self.inward.pop_front()?), Outward(&mut self.out)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outward<'_>> {
        Some(Outward(&mut self.out))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

impl RxToken for Inward {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Outward<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}
