//! Packets for tests, built with etherparse so that a second implementation does the checksums.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "helpers of all tests, each of which uses some"
)]

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder,
    PacketBuilderStep, TcpHeader, TransportSlice, icmpv4, icmpv6,
};

/// The endpoint that `text` ("192.0.2.1:80", "\[2001:db8::1\]:80") means.
pub fn endpoint(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ip(source: IpAddr, destination: IpAddr) -> PacketBuilderStep<etherparse::IpHeaders> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
        }
        _ => panic!("mixed families"),
    }
}

/// A UDP datagram.
pub fn udp(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (endpoint(source), endpoint(destination));
    let mut bytes = Vec::new();
    ip(source.ip(), destination.ip())
        .udp(source.port(), destination.port())
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

/// A TCP segment with the flags named by letters ("S", "SA", "A", "F", "R"), window 1000, no options.
pub fn tcp(source: &str, destination: &str, flags: &str, sequence: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (endpoint(source), endpoint(destination));
    let mut header = TcpHeader::new(source.port(), destination.port(), sequence, 1000);
    header.syn = flags.contains('S');
    header.ack = flags.contains('A');
    header.fin = flags.contains('F');
    header.rst = flags.contains('R');
    header.acknowledgment_number = ack;
    let mut bytes = Vec::new();
    ip(source.ip(), destination.ip()).tcp_header(header).write(&mut bytes, payload).unwrap();
    bytes
}

/// An echo request (ICMP or ICMPv6) with identifier `id`.
pub fn echo_request(source: &str, destination: &str, id: u16, seq: u16) -> Vec<u8> {
    let echo = IcmpEchoHeader { id, seq };
    icmp(source, destination, Icmpv4Type::EchoRequest(echo), Icmpv6Type::EchoRequest(echo), b"echo payload")
}

/// An echo reply (ICMP or ICMPv6) with identifier `id`.
pub fn echo_reply(source: &str, destination: &str, id: u16, seq: u16) -> Vec<u8> {
    let echo = IcmpEchoHeader { id, seq };
    icmp(source, destination, Icmpv4Type::EchoReply(echo), Icmpv6Type::EchoReply(echo), b"echo payload")
}

/// A port-unreachable error that quotes the beginning of `quoted`.
pub fn port_unreachable(source: &str, destination: &str, quoted: &[u8]) -> Vec<u8> {
    icmp(
        source,
        destination,
        Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port),
        Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port),
        &quoted[..quoted.len().min(128)],
    )
}

fn icmp(source: &str, destination: &str, v4: Icmpv4Type, v6: Icmpv6Type, payload: &[u8]) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let mut bytes = Vec::new();
    match source {
        IpAddr::V4(_) => ip(source, destination).icmpv4(v4).write(&mut bytes, payload).unwrap(),
        IpAddr::V6(_) => ip(source, destination).icmpv6(v6).write(&mut bytes, payload).unwrap(),
    }
    bytes
}

/// Cuts a packet into fragments with at most `size` bytes of payload each (a multiple of eight).
pub fn fragments(packet: &[u8], id: u16, size: usize) -> Vec<Vec<u8>> {
    let header_len = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let payload = &packet[header_len..];
    let count = payload.len().div_ceil(size);
    payload
        .chunks(size)
        .enumerate()
        .map(|(i, part)| {
            let more = i + 1 < count;
            let mut bytes = Vec::new();
            if header_len == 20 {
                let (mut header, _) = Ipv4Header::from_slice(packet).unwrap();
                header.identification = id;
                header.more_fragments = more;
                header.dont_fragment = false;
                header.fragment_offset = IpFragOffset::try_new(u16::try_from(i * size / 8).unwrap()).unwrap();
                header.total_len = u16::try_from(20 + part.len()).unwrap();
                header.header_checksum = header.calc_header_checksum();
                header.write(&mut bytes).unwrap();
            } else {
                let (mut header, _) = Ipv6Header::from_slice(packet).unwrap();
                let next = header.next_header;
                header.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
                header.payload_length = u16::try_from(8 + part.len()).unwrap();
                header.write(&mut bytes).unwrap();
                let field = u16::try_from(i * size).unwrap() | u16::from(more);
                bytes.extend([next.0, 0]);
                bytes.extend(field.to_be_bytes());
                bytes.extend(u32::from(id).to_be_bytes());
            }
            bytes.extend(part);
            bytes
        })
        .collect()
}

/// Puts a whole datagram together again from its fragments, in order, as [`udp`] would have made it.
pub fn reassemble(fragments: &[Vec<u8>]) -> Vec<u8> {
    let header_len = if fragments[0][0] >> 4 == 4 { 20 } else { 48 };
    let payload: Vec<u8> = fragments.iter().flat_map(|bytes| bytes[header_len..].to_vec()).collect();
    let mut bytes = Vec::new();
    if header_len == 20 {
        let (mut header, _) = Ipv4Header::from_slice(&fragments[0]).unwrap();
        header.more_fragments = false;
        header.identification = 0;
        header.dont_fragment = true;
        header.total_len = u16::try_from(20 + payload.len()).unwrap();
        header.header_checksum = header.calc_header_checksum();
        header.write(&mut bytes).unwrap();
    } else {
        let (mut header, _) = Ipv6Header::from_slice(&fragments[0]).unwrap();
        header.next_header = IpNumber(fragments[0][40]);
        header.payload_length = u16::try_from(payload.len()).unwrap();
        header.write(&mut bytes).unwrap();
    }
    bytes.extend(payload);
    bytes
}

/// Panics unless every checksum of a whole packet verifies against a full sum, as etherparse computes it.
pub fn assert_checksums(bytes: &[u8]) {
    let packet = etherparse::SlicedPacket::from_ip(bytes).unwrap();
    let (source, destination) = match packet.net.as_ref().unwrap() {
        etherparse::NetSlice::Ipv4(slice) => {
            let header = slice.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum, "IPv4 header checksum");
            (IpAddr::from(header.source), IpAddr::from(header.destination))
        }
        etherparse::NetSlice::Ipv6(slice) => {
            let header = slice.header().to_header();
            (IpAddr::from(header.source), IpAddr::from(header.destination))
        }
        other => panic!("no IP: {other:?}"),
    };
    match packet.transport.unwrap() {
        TransportSlice::Tcp(slice) => {
            let expected = match (source, destination) {
                (IpAddr::V4(s), IpAddr::V4(d)) => slice.calc_checksum_ipv4(s.octets(), d.octets()).unwrap(),
                (IpAddr::V6(s), IpAddr::V6(d)) => slice.calc_checksum_ipv6(s.octets(), d.octets()).unwrap(),
                _ => unreachable!(),
            };
            assert_eq!(slice.checksum(), expected, "TCP checksum");
        }
        TransportSlice::Udp(slice) => {
            let header = slice.to_header();
            let expected = match (source, destination) {
                (IpAddr::V4(s), IpAddr::V4(d)) => {
                    header.calc_checksum_ipv4_raw(s.octets(), d.octets(), slice.payload()).unwrap()
                }
                (IpAddr::V6(s), IpAddr::V6(d)) => {
                    header.calc_checksum_ipv6_raw(s.octets(), d.octets(), slice.payload()).unwrap()
                }
                _ => unreachable!(),
            };
            assert_eq!(header.checksum, expected, "UDP checksum");
        }
        TransportSlice::Icmpv4(slice) => {
            // By hand: etherparse leaves the length of the quote (RFC 4884) out of its sum.
            let sum: u32 = slice
                .slice()
                .chunks(2)
                .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
                .sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "ICMP checksum");
        }
        TransportSlice::Icmpv6(slice) => {
            let (IpAddr::V6(s), IpAddr::V6(d)) = (source, destination) else { unreachable!() };
            assert!(slice.is_checksum_valid(s.octets(), d.octets()), "ICMPv6 checksum");
        }
        TransportSlice::Igmp(_) => panic!("no test sends IGMP"),
    }
}
