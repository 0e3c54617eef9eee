//! Neighbor discovery for the gateway's addresses (RFC 4861 7.2).

use std::net::Ipv6Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags,
    NdiscRepr,
};

use super::{is_gateway, turn_around};
use crate::frame::{ETHERNET_HEADER, Frame};
use crate::snapshot::Network;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const IPV6_HEADER: usize = 40;
/// Neighbor discovery is for the link: a packet that came through a router has a smaller one.
const HOP_LIMIT: u8 = 255;

/// Turns a solicitation for an address of the gateway's into the advertisement.
pub(super) fn answer(frame: &mut Frame<'_>, network: &Network) -> bool {
    let Some((from, target)) = solicitation(&frame.bytes()[ETHERNET_HEADER..], network) else { return false };
    // Somebody who asks whether the address is free (RFC 4862) has none to be answered at.
    let (to, solicited) = if from.is_unspecified() { (ALL_NODES, false) } else { (from, true) };
    let mut flags = NdiscNeighborFlags::OVERRIDE | NdiscNeighborFlags::ROUTER;
    if solicited {
        flags |= NdiscNeighborFlags::SOLICITED;
    }
    let lladdr = Some(EthernetAddress(network.gateway_mac.0).into());
    let icmp = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { flags, target_addr: target, lladdr });
    let ip = Ipv6Repr {
        src_addr: target,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: icmp.buffer_len(),
        hop_limit: HOP_LIMIT,
    };
    if !frame.resize(ETHERNET_HEADER + IPV6_HEADER + icmp.buffer_len()) {
        return false;
    }
    turn_around(frame, network);
    if !solicited {
        frame.bytes_mut()[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    }
    let packet = &mut frame.bytes_mut()[ETHERNET_HEADER..];
    ip.emit(&mut Ipv6Packet::new_unchecked(&mut packet[..]));
    icmp.emit(
        &target,
        &to,
        &mut Icmpv6Packet::new_unchecked(&mut packet[IPV6_HEADER..]),
        &ChecksumCapabilities::default(),
    );
    true
}

/// Who asks for which of the gateway's addresses.
fn solicitation(payload: &[u8], network: &Network) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let ip = Ipv6Packet::new_checked(payload).ok()?;
    if ip.next_header() != IpProtocol::Icmpv6 || ip.hop_limit() != HOP_LIMIT {
        return None;
    }
    let packet = Icmpv6Packet::new_checked(ip.payload()).ok()?;
    let checks = ChecksumCapabilities::default();
    let Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. }) =
        Icmpv6Repr::parse(&ip.src_addr(), &ip.dst_addr(), &packet, &checks).ok()?
    else {
        return None;
    };
    is_gateway(network, target_addr.into()).then_some((ip.src_addr(), target_addr))
}
