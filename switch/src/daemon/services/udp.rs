//! Datagrams to a gateway, and back. Pure.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use crate::frame::ETHERNET_HEADER;
use crate::mac::Mac;

const TTL: u8 = 64;
const UDP_HEADER: usize = 8;

/// Both ends of a datagram, as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    gateway: (Mac, SocketAddr),
    client: (Mac, SocketAddr),
}

/// The ends and the payload of a frame with a datagram.
pub(super) fn read(frame: &[u8]) -> Option<(Ends, &[u8])> {
    let macs = frame.first_chunk::<ETHERNET_HEADER>()?;
    let mac = |at: usize| macs[at..at + 6].try_into().ok().map(Mac);
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination): (IpAddr, IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Udp(udp)) = packet.transport else { return None };
    let gateway = (mac(0)?, SocketAddr::new(destination, udp.destination_port()));
    let client = (mac(6)?, SocketAddr::new(source, udp.source_port()));
    Some((Ends { gateway, client }, udp.payload()))
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

    /// The longest payload that fits into a packet of this many bytes.
    pub(super) const fn room(&self, mtu: u32) -> usize {
        let header = if self.client.1.is_ipv4() { 20 } else { 40 };
        (mtu as usize).saturating_sub(header + UDP_HEADER)
    }

    /// A frame with an answer.
    pub(super) fn answer(&self, payload: &[u8]) -> Option<Vec<u8>> {
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
            let frame = asks.answer(b"said").unwrap();
            let (back, payload) = read(&frame).unwrap();
            assert_eq!(payload, b"said");
            let Ends { gateway, client } = back;
            assert_eq!(Ends { gateway: client, client: gateway }, asks);
            assert_eq!(asks.room(1500), room);
        }
        assert_eq!(read(&[0; 40]), None);
    }
}
