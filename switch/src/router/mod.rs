//! Router: layer 3. What is addressed to the gateway.
//!
//! With host access the gateway *is* the host: its address is on the host's end of a veth pair, and the host answers. The
//! router lets through what is for one of the host's own addresses and drops the rest, so that a host that forwards
//! packets (`ip_forward=1`) never becomes a way between networks. Without host access there is no host end: the router
//! answers ARP, neighbor discovery and ping for the gateway, and drops everything else that is addressed to it.

pub mod gateway;
pub mod neighbor;

use std::net::IpAddr;

use etherparse::{LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket};

use crate::frame::{ETHERTYPE_QINQ, ETHERTYPE_VLAN, Frame};
use crate::stage::{Cx, Stage};
use crate::verdict::{DropReason, Verdict};

/// Decides about what is addressed to the gateway.
#[derive(Clone, Copy, Debug, Default)]
pub struct Router;

impl Stage for Router {
    fn name(&self) -> &'static str {
        "router"
    }

    fn process(&mut self, frame: &mut Frame<'_>, cx: &mut Cx<'_>) -> Verdict {
        neighbor::glean(frame, cx);
        if cx.network.host_port == Some(frame.port) {
            return Verdict::Next;
        }
        if cx.network.host_port.is_none() {
            return gateway::answer(frame, cx);
        }
        if frame.dst() == cx.network.gateway_mac && !is_for_host(frame, cx) {
            return Verdict::Drop(DropReason::NotRouted);
        }
        Verdict::Next
    }
}

/// Whether the host may have a frame that is addressed to the gateway: anything but IP for others.
fn is_for_host(frame: &Frame<'_>, cx: &Cx<'_>) -> bool {
    let Ok(packet) = LaxSlicedPacket::from_ethernet(frame.bytes()) else { return false };
    // The kernel takes a tag with VLAN number 0 as no tag; a real VLAN has no interface on the host's end.
    let priority_tags_only = packet.link_exts.iter().all(|ext| match ext {
        LaxLinkExtSlice::Vlan(vlan) => vlan.vlan_identifier().value() == 0,
        LaxLinkExtSlice::Macsec(_) => false,
    });
    match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            priority_tags_only && is_host(ip.header().destination_addr().into(), cx)
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            priority_tags_only && is_host(ip.header().destination_addr().into(), cx)
        }
        Some(LaxNetSlice::Arp(_)) => true,
        // Not IP, or IP that cannot be read, or under more tags than were looked through.
        None => {
            let ether_type = frame.ethertype();
            ![crate::frame::ETHERTYPE_IPV4, crate::frame::ETHERTYPE_IPV6, ETHERTYPE_VLAN, ETHERTYPE_QINQ]
                .contains(&ether_type)
        }
    }
}

/// Whether an address is the host's own, as containers may use it. Loopback addresses are for the host alone.
fn is_host(address: IpAddr, cx: &Cx<'_>) -> bool {
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    !address.is_loopback() && (link_local || cx.snapshot.host_addresses.contains(&address))
}
