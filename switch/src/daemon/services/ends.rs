//! Packets to a gateway, and back: who is at which end. Pure.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpOptionElement, TcpSlice, TransportSlice};

use crate::frame::{ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::mac::Mac;

const TTL: u8 = 64;
const UDP_HEADER: usize = 8;
/// The smallest segments that a client may ask for, as Linux has it (`TCP_MIN_SND_MSS`): an answer in segments of a byte is a flood.
const LEAST_SEGMENT: u16 = 48;

/// Both ends of a packet, as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    gateway: (Mac, SocketAddr),
    client: (Mac, SocketAddr),
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried<'a> {
    /// A datagram with this payload.
    Datagram(&'a [u8]),
    /// A segment of TCP.
    Segment {
        /// It asks for a connection that may be had: SYN and nothing else, and no segments below [`LEAST_SEGMENT`].
        opens: bool,
    },
}

/// The ends of a frame's packet, and what it carries.
pub(super) fn read(frame: &[u8]) -> Option<(Ends, Carried<'_>)> {
    let macs = frame.first_chunk::<ETHERNET_HEADER>()?;
    let mac = |at: usize| macs[at..at + 6].try_into().ok().map(Mac);
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination): (IpAddr, IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    let (from, to, carried) = match packet.transport? {
        TransportSlice::Udp(udp) => {
            (udp.source_port(), udp.destination_port(), Carried::Datagram(udp.payload()))
        }
        TransportSlice::Tcp(tcp) => {
            let opens = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin() && !takes_crumbs(&tcp);
            (tcp.source_port(), tcp.destination_port(), Carried::Segment { opens })
        }
        _ => return None,
    };
    let gateway = (mac(0)?, SocketAddr::new(destination, to));
    let client = (mac(6)?, SocketAddr::new(source, from));
    Some((Ends { gateway, client }, carried))
}

/// Whether a SYN asks for segments that are too small.
fn takes_crumbs(tcp: &TcpSlice<'_>) -> bool {
    let small =
        |option| matches!(option, Ok(TcpOptionElement::MaximumSegmentSize(size)) if size < LEAST_SEGMENT);
    tcp.options_iterator().any(small)
}

impl Ends {
    /// The MAC of who asks.
    pub(super) const fn client_mac(&self) -> Mac {
        self.client.0
    }

    /// The same as if it had been sent to this address: the answer to what came to a group.
    pub(super) const fn at(self, mac: Mac, address: IpAddr) -> Self {
        Self { gateway: (mac, SocketAddr::new(address, self.gateway.1.port())), ..self }
    }

    /// The gateway's address and port.
    pub(super) const fn gateway(&self) -> SocketAddr {
        self.gateway.1
    }

    /// The client's.
    pub(super) const fn client(&self) -> SocketAddr {
        self.client.1
    }

    /// The longest datagram's payload that fits into a packet of this many bytes.
    pub(super) const fn room(&self, mtu: u32) -> usize {
        let header = if self.client.1.is_ipv4() { 20 } else { 40 };
        (mtu as usize).saturating_sub(header + UDP_HEADER)
    }

    /// A frame to the client with a datagram.
    pub(super) fn datagram(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let (from, to) = (self.gateway, self.client);
        let ethernet = PacketBuilder::ethernet2(from.0.0, to.0.0);
        let ip = match (from.1.ip(), to.1.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => ethernet.ipv4(a.octets(), b.octets(), TTL),
            (IpAddr::V6(a), IpAddr::V6(b)) => ethernet.ipv6(a.octets(), b.octets(), TTL),
            _ => return None,
        };
        let mut frame = Vec::with_capacity(ETHERNET_HEADER + 40 + UDP_HEADER + payload.len());
        ip.udp(from.1.port(), to.1.port()).write(&mut frame, payload).ok()?;
        Some(frame)
    }

    /// A frame to the client with a packet that is whole.
    pub(super) fn frame(&self, packet: &[u8]) -> Vec<u8> {
        let ethertype = if self.client.1.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        [&self.client.0.0[..], &self.gateway.0.0, &ethertype.to_be_bytes(), packet].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_where_the_question_came_from() {
        for (client, gateway, room) in
            [("10.0.0.2:4000", "10.0.0.1:53", 1472), ("[fd00::2]:4000", "[fd00::1]:53", 1452)]
        {
            let ends = |a: &str, b: &str| Ends {
                gateway: (Mac([2; 6]), a.parse().unwrap()),
                client: (Mac([4; 6]), b.parse().unwrap()),
            };
            let asks = ends(gateway, client);
            let frame = asks.datagram(b"said").unwrap();
            assert_eq!(asks.frame(&frame[ETHERNET_HEADER..]), frame);
            let (back, carried) = read(&frame).unwrap();
            assert_eq!(carried, Carried::Datagram(b"said"));
            let Ends { gateway, client } = back;
            assert_eq!(Ends { gateway: client, client: gateway }, asks);
            assert_eq!(asks.room(1500), room);
        }
        assert_eq!(read(&[0; 40]), None);
    }
}
