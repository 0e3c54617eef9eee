//! Which frames are for the gateway's own services. They are so whether or not the host is in the network: neither its firewall nor a
//! program of its own on the same port gets to see them. No rule is asked either: they reach swd, not the host.

use std::net::IpAddr;

use crate::frame::{ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame};
use crate::services::{Service, Services};
use crate::snapshot::Network;

/// RFC 1035 section 4.2.
const DNS: u16 = 53;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The service that a frame is for. Fragments are for none: neither a query nor its sender's segments are that long.
pub fn of(frame: &Frame<'_>, network: &Network, on: Services) -> Option<Service> {
    if !on.dns || frame.dst() != network.gateway_mac {
        return None;
    }
    let (destination, protocol, port) = target(frame)?;
    let service = match protocol {
        UDP => Service::Dns,
        TCP => Service::DnsTcp,
        _ => return None,
    };
    (port == DNS && super::is_gateway(network, destination)).then_some(service)
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
