//! Ping for the gateway's addresses (RFC 792, RFC 4443).

use smoltcp::wire::{
    Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, IpProtocol, Ipv4Packet, Ipv6Packet,
};

use super::{is_gateway, turn_around};
use crate::frame::{ETHERNET_HEADER, Frame};
use crate::snapshot::Network;

/// Hop limit of answers.
const HOP_LIMIT: u8 = 64;

/// Turns an echo request to the gateway into the reply. Fragments are left alone: they would have to be put together.
pub(super) fn answer_v4(frame: &mut Frame<'_>, network: &Network) -> bool {
    if frame.dst() != network.gateway_mac || !is_request_v4(&frame.bytes()[ETHERNET_HEADER..], network) {
        return false;
    }
    turn_around(frame, network);
    let mut ip = Ipv4Packet::new_unchecked(&mut frame.bytes_mut()[ETHERNET_HEADER..]);
    let (asked, asker) = (ip.dst_addr(), ip.src_addr());
    ip.set_src_addr(asked);
    ip.set_dst_addr(asker);
    ip.set_hop_limit(HOP_LIMIT);
    ip.fill_checksum();
    let mut icmp = Icmpv4Packet::new_unchecked(ip.payload_mut());
    icmp.set_msg_type(Icmpv4Message::EchoReply);
    icmp.fill_checksum();
    true
}

fn is_request_v4(payload: &[u8], network: &Network) -> bool {
    let Ok(ip) = Ipv4Packet::new_checked(payload) else { return false };
    let fragment = ip.more_frags() || ip.frag_offset() != 0;
    if fragment || ip.next_header() != IpProtocol::Icmp || !is_gateway(network, ip.dst_addr().into()) {
        return false;
    }
    if ip.src_addr().is_broadcast() || ip.src_addr().is_multicast() || ip.src_addr().is_unspecified() {
        return false;
    }
    Icmpv4Packet::new_checked(ip.payload())
        .is_ok_and(|icmp| icmp.msg_type() == Icmpv4Message::EchoRequest && icmp.verify_checksum())
}

/// As [`answer_v4`], for IPv6. Packets with extension headers are left alone.
pub(super) fn answer_v6(frame: &mut Frame<'_>, network: &Network) -> bool {
    if frame.dst() != network.gateway_mac || !is_request_v6(&frame.bytes()[ETHERNET_HEADER..], network) {
        return false;
    }
    turn_around(frame, network);
    let mut ip = Ipv6Packet::new_unchecked(&mut frame.bytes_mut()[ETHERNET_HEADER..]);
    let (asked, asker) = (ip.dst_addr(), ip.src_addr());
    ip.set_src_addr(asked);
    ip.set_dst_addr(asker);
    ip.set_hop_limit(HOP_LIMIT);
    let mut icmp = Icmpv6Packet::new_unchecked(ip.payload_mut());
    icmp.set_msg_type(Icmpv6Message::EchoReply);
    icmp.fill_checksum(&asked, &asker);
    true
}

fn is_request_v6(payload: &[u8], network: &Network) -> bool {
    let Ok(ip) = Ipv6Packet::new_checked(payload) else { return false };
    if ip.next_header() != IpProtocol::Icmpv6 || !is_gateway(network, ip.dst_addr().into()) {
        return false;
    }
    if ip.src_addr().is_multicast() || ip.src_addr().is_unspecified() {
        return false;
    }
    Icmpv6Packet::new_checked(ip.payload()).is_ok_and(|icmp| {
        icmp.msg_type() == Icmpv6Message::EchoRequest && icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr())
    })
}
