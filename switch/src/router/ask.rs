//! Questions for a next hop's MAC, and their answers: ARP (RFC 826), neighbor discovery (RFC 4861).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet,
    Ipv6Repr, NdiscRepr,
};

use crate::frame::{ETHERTYPE_ARP, ETHERTYPE_IPV6, Offload, OwnedFrame};
use crate::mac::Mac;

const IPV6_HEADER: usize = 40;
/// Neighbor discovery is for the link: a packet that came through a router has a smaller one.
const HOP_LIMIT: u8 = 255;

/// The question who has `target`, asked by `address` at `mac`; of `to` only, where given. None where the families differ.
pub(super) fn question(mac: Mac, address: IpAddr, target: IpAddr, to: Option<Mac>) -> Option<OwnedFrame> {
    match (address, target) {
        (IpAddr::V4(address), IpAddr::V4(target)) => Some(arp(mac, address, target, to)),
        (IpAddr::V6(address), IpAddr::V6(target)) => Some(solicitation(mac, address, target, to)),
        _ => None,
    }
}

pub(super) fn ethernet(to: Mac, from: Mac, ethertype: u16) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype.to_be_bytes()].concat()
}

fn arp(mac: Mac, address: Ipv4Addr, target: Ipv4Addr, to: Option<Mac>) -> OwnedFrame {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: address,
        target_hardware_addr: EthernetAddress(Mac::ZERO.0),
        target_protocol_addr: target,
    };
    let mut payload = vec![0; repr.buffer_len()];
    repr.emit(&mut ArpPacket::new_unchecked(&mut payload[..]));
    let mut bytes = ethernet(to.unwrap_or(Mac::BROADCAST), mac, ETHERTYPE_ARP);
    bytes.extend(payload);
    OwnedFrame::new(&bytes, Offload::default())
}

fn solicitation(mac: Mac, address: Ipv6Addr, target: Ipv6Addr, to: Option<Mac>) -> OwnedFrame {
    let [.., x, y, z] = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), u16::from_be_bytes([y, z]));
    let (to, to_ip) = match to {
        Some(to) => (to, target),
        None => (Mac([0x33, 0x33, 0xff, x, y, z]), group),
    };
    let lladdr = Some(EthernetAddress(mac.0).into());
    let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr: target, lladdr });
    let mut bytes = ethernet(to, mac, ETHERTYPE_IPV6);
    bytes.extend(icmpv6(address, to_ip, &icmp));
    OwnedFrame::new(&bytes, Offload::default())
}

/// A packet of neighbor discovery.
pub(super) fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, icmp: &Icmpv6Repr<'_>) -> Vec<u8> {
    let ip = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: icmp.buffer_len(),
        hop_limit: HOP_LIMIT,
    };
    let mut packet = vec![0; IPV6_HEADER + icmp.buffer_len()];
    ip.emit(&mut Ipv6Packet::new_unchecked(&mut packet[..]));
    icmp.emit(
        &from,
        &to,
        &mut Icmpv6Packet::new_unchecked(&mut packet[IPV6_HEADER..]),
        &ChecksumCapabilities::default(),
    );
    packet
}

/// What an ARP reply says.
pub(super) fn arp_answer(payload: &[u8]) -> Option<(IpAddr, Mac)> {
    match ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()? {
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr,
            source_protocol_addr,
            ..
        } => Some((source_protocol_addr.into(), Mac(source_hardware_addr.0))),
        _ => None,
    }
}

/// What a neighbor advertisement says; `from` is the frame's source, for one that names no MAC.
pub(super) fn advertisement(payload: &[u8], from: Mac) -> Option<(IpAddr, Mac)> {
    // Hop limit and next header first: this is asked of every IPv6 packet.
    if payload.get(6..8)? != [u8::from(IpProtocol::Icmpv6), HOP_LIMIT] {
        return None;
    }
    let ip = Ipv6Packet::new_checked(payload).ok()?;
    let packet = Icmpv6Packet::new_checked(ip.payload()).ok()?;
    let checks = ChecksumCapabilities::default();
    match Icmpv6Repr::parse(&ip.src_addr(), &ip.dst_addr(), &packet, &checks).ok()? {
        Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { target_addr, lladdr, .. }) => {
            let mac = lladdr.and_then(|l| l.as_bytes().try_into().ok()).map_or(from, Mac);
            Some((target_addr.into(), mac))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{ETHERNET_HEADER, OFFLOAD_HEADER};

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    #[test]
    fn an_arp_question_byte_by_byte() {
        let asked = question(MAC, "192.0.2.1".parse().unwrap(), "192.0.2.7".parse().unwrap(), None).unwrap();
        let bytes = &asked.wire()[OFFLOAD_HEADER..];
        let expected = [
            &[0xff; 6][..],
            &MAC.0,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &MAC.0,
            &[192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 7],
        ];
        assert_eq!(bytes, expected.concat());
        let mut answer = bytes[ETHERNET_HEADER..].to_vec();
        assert_eq!(arp_answer(&answer), None, "a question");
        answer[7] = 2;
        assert_eq!(arp_answer(&answer), Some(("192.0.2.1".parse().unwrap(), MAC)));
    }

    #[test]
    fn a_solicitation_goes_to_the_targets_group() {
        let (a, b) = ("2001:db8::1".parse().unwrap(), "2001:db8::12:3456".parse().unwrap());
        let asked = question(MAC, a, b, None).unwrap();
        let bytes = &asked.wire()[OFFLOAD_HEADER..];
        assert_eq!(bytes[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        let ip = Ipv6Packet::new_checked(&bytes[ETHERNET_HEADER..]).unwrap();
        assert_eq!(ip.dst_addr(), "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
        let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
        assert!(icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
        assert_eq!(advertisement(&bytes[ETHERNET_HEADER..], MAC), None);
        assert!(question(MAC, a, "192.0.2.1".parse().unwrap(), None).is_none());
    }
}
