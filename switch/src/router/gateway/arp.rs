//! ARP for the gateway's address (RFC 826).

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use super::{is_gateway, turn_around};
use crate::frame::{ETHERNET_HEADER, Frame};
use crate::snapshot::Network;

/// Turns a request for the gateway's address into the reply.
pub(super) fn answer(frame: &mut Frame<'_>, network: &Network) -> bool {
    let Some(reply) = reply(&frame.bytes()[ETHERNET_HEADER..], network) else { return false };
    turn_around(frame, network);
    reply.emit(&mut ArpPacket::new_unchecked(&mut frame.bytes_mut()[ETHERNET_HEADER..]));
    true
}

fn reply(payload: &[u8], network: &Network) -> Option<ArpRepr> {
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()?
    else {
        return None;
    };
    is_gateway(network, target_protocol_addr.into()).then_some(ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(network.gateway_mac.0),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    })
}
