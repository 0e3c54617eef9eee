use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use smoltcp::wire::{Icmpv6Packet, Icmpv6Repr, Ipv6Packet, NdiscRepr};

use super::*;
use crate::frame::{Extent, HEADROOM};
use crate::snapshot::{Gateway, NetworkId, PortId};

const GATEWAY: Mac = Mac([2, 0, 0, 0, 0, 1]);
const CONTAINER: Mac = Mac([2, 0, 0, 0, 0, 0x10]);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const CONTAINER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x10);

fn network() -> Network {
    let gateway = |subnet: &str, address: IpAddr| Gateway { subnet: subnet.parse().unwrap(), address };
    Network {
        id: NetworkId(0),
        name: "test".into(),
        gateways: vec![
            gateway("172.18.0.0/16", Ipv4Addr::new(172, 18, 0, 1).into()),
            gateway("fd00::/64", GATEWAY_V6.into()),
        ],
        gateway_mac: GATEWAY,
        mtu: 1500,
        host_port: None,
        isolate_ports: false,
        flood: Vec::new(),
    }
}

/// Hands a frame to the answerers; the answer, if there is one.
fn ask(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut buffer = vec![0; HEADROOM + 2048];
    buffer[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes);
    let mut at = Extent::received(bytes.len());
    let mut frame = Frame::new(&mut buffer, &mut at, PortId(1));
    let network = network();
    let answered = match frame.ethertype() {
        ETHERTYPE_ARP => arp::answer(&mut frame, &network),
        ETHERTYPE_IPV4 => icmp::answer_v4(&mut frame, &network),
        _ => nd::answer(&mut frame, &network) || icmp::answer_v6(&mut frame, &network),
    };
    answered.then(|| frame.bytes().to_vec())
}

fn arp_request(target: [u8; 4]) -> Vec<u8> {
    let mut bytes = [&[0xff; 6][..], &CONTAINER.0, &[0x08, 0x06]].concat();
    bytes.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend(CONTAINER.0);
    bytes.extend([172, 18, 0, 10]);
    bytes.extend([0; 6]);
    bytes.extend(target);
    bytes
}

#[test]
fn arp_for_the_gateway_is_answered_and_no_other() {
    let reply = ask(&arp_request([172, 18, 0, 1])).unwrap();
    assert_eq!(reply[..14], [&CONTAINER.0[..], &GATEWAY.0, &[0x08, 0x06]].concat());
    assert_eq!(reply[14..22], [0, 1, 8, 0, 6, 4, 0, 2]);
    assert_eq!(reply[22..32], [&GATEWAY.0[..], &[172, 18, 0, 1]].concat());
    assert_eq!(reply[32..42], [&CONTAINER.0[..], &[172, 18, 0, 10]].concat());
    assert_eq!(ask(&arp_request([172, 18, 0, 2])), None);
    assert_eq!(ask(&arp_request([172, 18, 0, 1])[..40]), None);
}

fn ping_v4(to: [u8; 4]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(CONTAINER.0, GATEWAY.0)
        .ipv4([172, 18, 0, 10], to, 7)
        .icmpv4_echo_request(0x1234, 9)
        .write(&mut bytes, b"payload")
        .unwrap();
    bytes
}

#[test]
fn ping_of_the_gateway_is_answered_and_no_other() {
    let reply = ask(&ping_v4([172, 18, 0, 1])).unwrap();
    let packet = etherparse::SlicedPacket::from_ethernet(&reply).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net else { panic!("{packet:?}") };
    let header = ip.header().to_header();
    assert_eq!(
        (header.source, header.destination, header.time_to_live),
        ([172, 18, 0, 1], [172, 18, 0, 10], 64)
    );
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    let Some(etherparse::TransportSlice::Icmpv4(icmp)) = &packet.transport else { panic!("{packet:?}") };
    let echo = etherparse::IcmpEchoHeader { id: 0x1234, seq: 9 };
    assert_eq!(icmp.icmp_type(), etherparse::Icmpv4Type::EchoReply(echo));
    assert_eq!(icmp.payload(), b"payload");
    assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()));

    assert_eq!(ask(&ping_v4([172, 18, 0, 2])), None);
    let mut broken = ping_v4([172, 18, 0, 1]);
    *broken.last_mut().unwrap() ^= 1;
    assert_eq!(ask(&broken), None, "a wrong checksum");
    let mut fragment = ping_v4([172, 18, 0, 1]);
    fragment[20] |= 0x20;
    assert_eq!(ask(&fragment), None, "a first fragment");
    let mut broadcast = ping_v4([172, 18, 0, 1]);
    broadcast[..6].fill(0xff);
    assert_eq!(ask(&broadcast), None, "a broadcast frame");
}

#[test]
fn ping_over_ipv6_is_answered_at_both_addresses() {
    for target in [GATEWAY_V6, "fe80::ff:fe00:1".parse().unwrap()] {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(CONTAINER.0, GATEWAY.0)
            .ipv6(CONTAINER_V6.octets(), target.octets(), 5)
            .icmpv6_echo_request(7, 8)
            .write(&mut bytes, b"payload")
            .unwrap();
        let reply = ask(&bytes).unwrap();
        let ip = Ipv6Packet::new_checked(&reply[14..]).unwrap();
        assert_eq!((ip.src_addr(), ip.dst_addr(), ip.hop_limit()), (target, CONTAINER_V6, 64));
        let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
        let repr =
            Icmpv6Repr::parse(&target, &CONTAINER_V6, &icmp, &smoltcp::phy::ChecksumCapabilities::default());
        assert_eq!(repr, Ok(Icmpv6Repr::EchoReply { ident: 7, seq_no: 8, data: b"payload" }));
    }
}

fn solicitation(from: Ipv6Addr, target: Ipv6Addr, hop_limit: u8) -> Vec<u8> {
    let payload = [&[0; 4][..], &target.octets(), &[1, 1], &CONTAINER.0].concat();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, target.segments()[7]);
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(CONTAINER.0, [0x33, 0x33, 0xff, 0, 0, target.octets()[15]])
        .ipv6(from.octets(), group.octets(), hop_limit)
        .icmpv6_raw(135, 0, payload[..4].try_into().unwrap())
        .write(&mut bytes, &payload[4..])
        .unwrap();
    bytes
}

#[test]
fn a_solicitation_for_the_gateway_is_answered() {
    let reply = ask(&solicitation(CONTAINER_V6, GATEWAY_V6, 255)).unwrap();
    assert_eq!(reply[..12], [CONTAINER.0, GATEWAY.0].concat());
    let ip = Ipv6Packet::new_checked(&reply[14..]).unwrap();
    assert_eq!((ip.src_addr(), ip.dst_addr(), ip.hop_limit()), (GATEWAY_V6, CONTAINER_V6, 255));
    let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
    let checks = smoltcp::phy::ChecksumCapabilities::default();
    let Ok(Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { flags, target_addr, lladdr })) =
        Icmpv6Repr::parse(&GATEWAY_V6, &CONTAINER_V6, &icmp, &checks)
    else {
        panic!("{reply:x?}")
    };
    assert_eq!((flags.bits(), target_addr), (0xe0, GATEWAY_V6));
    assert_eq!(lladdr.unwrap().as_bytes(), GATEWAY.0);
}

#[test]
fn a_probe_for_the_gateways_address_is_defended_to_all() {
    let reply = ask(&solicitation(Ipv6Addr::UNSPECIFIED, GATEWAY_V6, 255)).unwrap();
    assert_eq!(reply[..12], [[0x33, 0x33, 0, 0, 0, 1], GATEWAY.0].concat());
    assert_eq!(Ipv6Packet::new_checked(&reply[14..]).unwrap().dst_addr(), ALL_NODES);
}

#[test]
fn solicitations_for_others_or_from_afar_are_left_alone() {
    assert_eq!(ask(&solicitation(CONTAINER_V6, CONTAINER_V6, 255)), None);
    assert_eq!(ask(&solicitation(CONTAINER_V6, GATEWAY_V6, 254)), None);
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
