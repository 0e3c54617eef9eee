//! A host: smoltcp's stack behind a queue in each direction.

use std::collections::VecDeque;
use std::net::IpAddr;

use ipnet::IpNet;
use nat::Time;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpCidr};
use switch::mac::Mac;

/// Longest IP packet.
const MTU: usize = 1500;
/// Bytes of a TCP socket's buffer.
const BUFFER: usize = 64 << 10;

/// A host with an interface and sockets.
pub struct Host {
    cable: Cable,
    interface: Interface,
    sockets: SocketSet<'static>,
    address6: Option<IpAddr>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("addresses", &self.interface.ip_addrs()).finish_non_exhaustive()
    }
}

/// smoltcp's time.
fn at(now: Time) -> Instant {
    Instant::from_micros(i64::try_from(now.as_nanos() / 1000).expect("a time within 292,000 years"))
}

impl Host {
    pub(super) fn new(mac: Mac, addresses: &[IpNet], gateway: Option<IpAddr>, now: Time) -> Self {
        let mut cable = Cable::default();
        let mut config = Config::new(EthernetAddress(mac.0).into());
        config.random_seed = u64::from(mac.0[5]);
        let mut interface = Interface::new(config, &mut cable, at(now));
        interface.update_ip_addrs(|own| {
            for address in addresses {
                own.push(IpCidr::new(address.addr().into(), address.prefix_len()))
                    .expect("two addresses at most");
            }
        });
        match gateway {
            Some(IpAddr::V4(gateway)) => _ = interface.routes_mut().add_default_ipv4_route(gateway),
            Some(IpAddr::V6(gateway)) => _ = interface.routes_mut().add_default_ipv6_route(gateway),
            None => {}
        }
        let address6 = addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv6);
        Self { cable, interface, sockets: SocketSet::new(Vec::new()), address6 }
    }

    pub(super) fn poll(&mut self, now: Time) {
        self.interface.poll(at(now), &mut self.cable, &mut self.sockets);
    }

    pub(super) fn due(&mut self, now: Time) -> Option<Time> {
        let delay = self.interface.poll_delay(at(now), &self.sockets)?;
        Some(now + delay.into())
    }

    pub(super) fn sent(&mut self) -> impl Iterator<Item = Vec<u8>> + '_ {
        self.cable.out.drain(..)
    }

    pub(super) fn receive(&mut self, frame: Vec<u8>) {
        self.cable.inward.push_back(frame);
    }

    /// A socket that pings.
    ///
    /// # Panics
    /// Never, but for a mistake of the lab's.
    pub fn pinger(&mut self) -> SocketHandle {
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 16], vec![0; 4096]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Ident(77)).expect("a new socket");
        self.sockets.add(socket)
    }

    /// Sends an echo request.
    ///
    /// # Panics
    /// When 16 of them wait already.
    pub fn ping(&mut self, pinger: SocketHandle, to: IpAddr, sequence: u16) {
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(pinger);
        let data = &[0x5a; 56];
        let checksum = smoltcp::phy::ChecksumCapabilities::default();
        match to {
            IpAddr::V4(_) => {
                let echo = Icmpv4Repr::EchoRequest { ident: 77, seq_no: sequence, data };
                let packet = socket.send(echo.buffer_len(), IpAddress::from(to)).expect("room for a ping");
                echo.emit(&mut Icmpv4Packet::new_unchecked(packet), &checksum);
            }
            IpAddr::V6(v6) => {
                let echo = Icmpv6Repr::EchoRequest { ident: 77, seq_no: sequence, data };
                let Some(IpAddr::V6(own)) = self.address6 else { panic!("the host has no IPv6 address") };
                let packet = socket.send(echo.buffer_len(), IpAddress::from(to)).expect("room for a ping");
                echo.emit(&own, &v6, &mut Icmpv6Packet::new_unchecked(packet), &checksum);
            }
        }
    }

    /// Takes an echo reply: who it is from.
    pub fn pong(&mut self, pinger: SocketHandle) -> Option<IpAddr> {
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(pinger);
        socket.recv().ok().map(|(_, from)| from.into())
    }

    /// A TCP socket.
    pub fn tcp(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    /// A UDP socket bound to a port.
    ///
    /// # Panics
    /// When the port is 0.
    pub fn udp(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; BUFFER]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).expect("a new socket");
        self.sockets.add(socket)
    }

    /// A TCP socket to work with.
    pub fn tcp_socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// A UDP socket to work with.
    pub fn udp_socket(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Lets a TCP socket listen.
    ///
    /// # Panics
    /// When it does something already.
    pub fn listen(&mut self, handle: SocketHandle, port: u16) {
        self.tcp_socket(handle).listen(port).expect("a new socket");
    }

    /// Lets a TCP socket connect.
    ///
    /// # Panics
    /// When it does something already.
    pub fn connect(&mut self, handle: SocketHandle, to: IpAddr, port: u16) {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), (IpAddress::from(to), port), 50_000).expect("a new socket");
    }
}

/// A queue for each direction.
#[derive(Debug, Default)]
struct Cable {
    inward: VecDeque<Vec<u8>>,
    out: VecDeque<Vec<u8>>,
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
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU + 14;
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
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}
