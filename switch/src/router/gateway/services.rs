//! Which frames are for the gateway's own services. They are so whether or not the host is in the network: neither its firewall nor a
//! program of its own on the same port gets to see them. No rule is asked either: they reach swd, not the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::frame::{ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame};
use crate::services::{Service, Services};
use crate::snapshot::Network;

/// RFC 1035 section 4.2.
const DNS: u16 = 53;
/// RFC 2131 section 4.1.
const DHCP: u16 = 67;
/// RFC 8415 sections 7.1 and 7.2.
const DHCP6_GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const DHCP6: u16 = 547;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// The service that a frame is for. Fragments are for none: neither a query nor its sender's segments are that long.
pub fn of(frame: &Frame<'_>, network: &Network, on: Services) -> Option<Service> {
    let to_gateway = frame.dst() == network.gateway_mac;
    if on == Services::default() || !(to_gateway || frame.dst().is_multicast()) {
        return None;
    }
    if on.router && solicits_router(frame) {
        return Some(Service::Router);
    }
    let (destination, protocol, port) = target(frame)?;
    let to_gateway = to_gateway && super::is_gateway(network, destination);
    match (protocol, port) {
        (UDP, DHCP) if on.dhcp && (to_gateway || destination == Ipv4Addr::BROADCAST) => Some(Service::Dhcp),
        (UDP, DHCP6) if on.router && (to_gateway || destination == DHCP6_GROUP) => Some(Service::Dhcp6),
        (UDP, DNS) if on.dns && to_gateway => Some(Service::Dns),
        (TCP, DNS) if on.dns && to_gateway => Some(Service::DnsTcp),
        _ => None,
    }
}

/// RFC 4861 section 4.1. With any other hop limit it is nobody's.
fn solicits_router(frame: &Frame<'_>) -> bool {
    let packet = frame.bytes().get(ETHERNET_HEADER..).unwrap_or_default();
    frame.ethertype() == ETHERTYPE_IPV6
        && packet.get(6..8) == Some(&[ICMPV6, 255])
        && packet.get(40) == Some(&133)
}

/// Destination, protocol and destination port of an untagged packet that is whole.
fn target(frame: &Frame<'_>) -> Option<(IpAddr, u8, u16)> {
    let packet = frame.bytes().get(ETHERNET_HEADER..)?;
    let (protocol, ports) = match (frame.ethertype(), packet.first()? >> 4) {
        (ETHERTYPE_IPV4, 4) => {
            let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
            (fragment == 0).then_some((*packet.get(9)?, usize::from(packet[0] & 0x0f) * 4))?
        }
        (ETHERTYPE_IPV6, 6) => (*packet.get(6)?, 40),
        _ => return None,
    };
    let port = u16::from_be_bytes([*packet.get(ports + 2)?, *packet.get(ports + 3)?]);
    Some((crate::router::errands::destination(frame)?, protocol, port))
}
