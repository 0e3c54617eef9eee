//! The gateway without a host end: swd answers for it, in place.
//!
//! One answerer a file. Each looks at a frame and turns it into its own answer, or leaves it alone.

mod arp;
mod icmp;
mod nd;
pub mod services;

use std::net::{IpAddr, Ipv6Addr};

use crate::frame::{ETHERNET_HEADER, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame, Offload};
use crate::mac::Mac;
use crate::snapshot::Network;
use crate::stage::Cx;
use crate::verdict::{DropReason, Verdict};

/// Answers what is asked of the gateway: ARP, neighbor solicitations, ping. Anything else that is addressed to it is
/// dropped; what is addressed to others goes on.
pub(super) fn answer(frame: &mut Frame<'_>, cx: &Cx<'_>) -> Verdict {
    let answered = match frame.ethertype() {
        ETHERTYPE_ARP => arp::answer(frame, cx.network),
        ETHERTYPE_IPV4 => icmp::answer_v4(frame, cx.network),
        ETHERTYPE_IPV6 => nd::answer(frame, cx.network) || icmp::answer_v6(frame, cx.network),
        _ => false,
    };
    if answered {
        Verdict::Reply
    } else if frame.dst() == cx.network.gateway_mac {
        Verdict::Drop(DropReason::NoHostAccess)
    } else {
        Verdict::Next
    }
}

/// Whether `address` is one of the gateway's: that of a subnet, or its link-local one.
fn is_gateway(network: &Network, address: IpAddr) -> bool {
    network.gateways.iter().any(|g| g.address == address)
        || address == IpAddr::from(link_local(network.gateway_mac))
}

/// The link-local address that follows from a MAC (RFC 4291, appendix A).
pub(crate) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0.map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, ((a ^ 2) << 8) | b, (c << 8) | 0xff, 0xfe00 | d, (e << 8) | f)
}

/// Makes the frame one from the gateway to whoever sent it, with nothing left for hardware to do.
fn turn_around(frame: &mut Frame<'_>, network: &Network) {
    let to = frame.src();
    let header = &mut frame.bytes_mut()[..ETHERNET_HEADER];
    header[..6].copy_from_slice(&to.0);
    header[6..12].copy_from_slice(&network.gateway_mac.0);
    frame.set_offload(Offload::default());
}

#[cfg(test)]
mod tests;
