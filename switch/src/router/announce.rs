//! Announcements: the neighbors of a new port are told whose its addresses are, in its name (gratuitous ARP, RFC 5227 3; unsolicited
//! neighbor advertisements, RFC 4861 7.2.6). An address is given out again, and whoever has talked to its former owner
//! would go on sending to a MAC that nobody has, until its own cache finds out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, Icmpv6Repr, NdiscNeighborFlags, NdiscRepr,
};

use super::ask::{ethernet, icmpv6};
use super::forward::Extra;
use super::inside;
use crate::frame::{ETHERTYPE_ARP, ETHERTYPE_IPV6, Offload, OwnedFrame};
use crate::mac::Mac;
use crate::snapshot::{PortId, Snapshot};
use crate::verdict::Verdict;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// What is sent to whom when a port comes whose container has this MAC and these addresses: to all ports of its network that may
/// talk with it. The port itself hears nothing: to be told of its own address looks like a conflict.
pub fn frames(snapshot: &Snapshot, port: PortId, mac: Mac, addresses: &[IpAddr]) -> Vec<Extra> {
    let Some(from) = snapshot.port(port) else { return Vec::new() };
    let Some(network) = snapshot.network(from.network) else { return Vec::new() };
    let others = network.flood.iter().filter(|id| **id != port).filter_map(|id| snapshot.port(*id));
    let hearing = others.filter(|to| inside::finds(snapshot, network, from, to));
    let told = hearing.flat_map(|to| {
        addresses.iter().map(|address| Extra {
            frame: announcement(mac, *address),
            from: None,
            verdict: Verdict::Forward(to.id),
            network: network.id,
        })
    });
    told.collect()
}

/// One address.
fn announcement(mac: Mac, address: IpAddr) -> OwnedFrame {
    let bytes = match address {
        IpAddr::V4(address) => arp(mac, address),
        IpAddr::V6(address) => advertisement(mac, address),
    };
    OwnedFrame::new(&bytes, Offload::default())
}

/// A request for the sender's own address: the form that everybody takes for news (RFC 5944 4.6).
fn arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: address,
        target_hardware_addr: EthernetAddress(Mac::ZERO.0),
        target_protocol_addr: address,
    };
    let mut bytes = ethernet(Mac::BROADCAST, mac, ETHERTYPE_ARP);
    let at = bytes.len();
    bytes.resize(at + repr.buffer_len(), 0);
    repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[at..]));
    bytes
}

fn advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::OVERRIDE,
        target_addr: address,
        lladdr: Some(EthernetAddress(mac.0).into()),
    });
    let mut bytes = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    bytes.extend(icmpv6(address, ALL_NODES, &icmp));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{ETHERNET_HEADER, OFFLOAD_HEADER};
    use crate::router::ask;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    #[test]
    fn gratuitous_arp_byte_by_byte() {
        let frame = announcement(MAC, "192.0.2.7".parse().unwrap());
        let expected = [
            &[0xff; 6][..],
            &MAC.0,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &MAC.0,
            &[192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 192, 0, 2, 7],
        ];
        assert_eq!(frame.wire()[OFFLOAD_HEADER..], expected.concat());
    }

    #[test]
    fn an_advertisement_is_understood_as_one() {
        let address = "2001:db8::7".parse::<Ipv6Addr>().unwrap();
        let frame = announcement(MAC, address.into());
        let bytes = &frame.wire()[OFFLOAD_HEADER..];
        assert_eq!(bytes[..6], ALL_NODES_MAC.0);
        assert_eq!(ask::advertisement(&bytes[ETHERNET_HEADER..], Mac::ZERO), Some((address.into(), MAC)));
        // Override, and neither solicited nor a router.
        assert_eq!(bytes[ETHERNET_HEADER + 44], 0x20);
    }
}
