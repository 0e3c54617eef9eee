//! Router: layer 3. What is addressed to the gateway.
//!
//! With host access the gateway *is* the host: its address is on the host's end of a veth pair, and the host answers. The
//! router lets through what is for one of the host's own addresses, and forwards the rest itself, so that a host that
//! forwards packets (`ip_forward=1`) never becomes a way between networks. Without host access there is no host end: the
//! router answers ARP, neighbor discovery and ping for the gateway.
//!
//! [`forward`] has the ways of packets, `hosts_own` those of the host itself, [`resolve`] the next hops, [`route`] the host's routes. Without an uplink nothing
//! is routed, and none of it costs anything.

pub mod announce;
pub mod gateway;
pub mod neighbor;
pub mod owned;
pub mod resolve;
pub mod route;

mod ask;
mod complain;
mod errands;
mod fit;
mod forward;
mod hosts_own;
pub mod inside;
mod notes;

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use etherparse::{LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket};
use nat::{Protocol, Time};

use crate::fastpath::carry::Routed;
use crate::frame::{ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Frame};
use crate::snapshot::Snapshot;
use crate::stage::Cx;
use crate::verdict::{DropReason, Verdict};
use forward::Ways;
use neighbor::Neighbors;
use notes::Notes;
use resolve::Hop;

pub use forward::{Extra, Forwarding, nat_network, network_of, owner, port_of};

/// The lock of what connections need: taken once a batch, by the first frame that needs it.
#[derive(Debug)]
pub struct Lock<'a> {
    mutex: &'a Mutex<Forwarding>,
    guard: Option<MutexGuard<'a, Forwarding>>,
}

impl<'a> Lock<'a> {
    /// Not taken yet.
    pub const fn new(mutex: &'a Mutex<Forwarding>) -> Self {
        Self { mutex, guard: None }
    }

    /// Takes it, unless that was done before.
    pub fn get(&mut self) -> &mut Forwarding {
        self.guard.get_or_insert_with(|| self.mutex.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What it guards, if it was taken.
    pub fn taken(&mut self) -> Option<&mut Forwarding> {
        self.guard.as_deref_mut()
    }
}

/// Decides about what is addressed to the gateway, and about what comes from outside.
#[derive(Debug, Default)]
pub struct Router {
    extras: Vec<Extra>,
    routed: Option<Routed>,
    notes: Notes,
    /// What the frame in work is to policy, if it is for several.
    heard: Option<inside::Kind>,
}

impl Router {
    /// Its name in traces.
    pub const NAME: &'static str = "router";

    /// What the frame in work is to policy, if [`Router::admit`] found it to be for several.
    pub const fn heard(&self) -> Option<inside::Kind> {
        self.heard
    }

    /// A frame from a port.
    pub fn process(&mut self, frame: &mut Frame<'_>, cx: &mut Cx<'_>, lock: &mut Lock<'_>) -> Verdict {
        self.heard = None;
        if let Some(address) = neighbor::glean(frame, cx)
            && cx.waiting > 0
        {
            let hop = Hop::Inside(cx.network.id, address);
            self.ways(cx.now, cx.snapshot, cx.neighbors, lock).heard(hop, frame.src());
        }
        // What went on because of it is not about this frame.
        self.routed = None;
        let host = cx.network.host_port;
        if host == Some(frame.port) {
            self.notes.add(|| "from the host, which routes by itself".to_owned());
            if hosts_own::may_be(frame, cx.snapshot) {
                self.ways(cx.now, cx.snapshot, cx.neighbors, lock).track_host(frame, cx.network);
            }
            return Verdict::Next;
        }
        if let Some(on) = cx.snapshot.services.get(&cx.network.id)
            && let Some(service) = gateway::services::of(frame, cx.network, *on)
        {
            self.notes.add(|| "for a service that the gateway has itself; no rule is asked".to_owned());
            return Verdict::Serve(service);
        }
        if host.is_none() {
            match gateway::answer(frame, cx) {
                Verdict::Drop(DropReason::NoHostAccess) => {}
                verdict => return verdict,
            }
        }
        if frame.dst() != cx.network.gateway_mac {
            self.notes.add(|| "not addressed to the gateway's MAC".to_owned());
            return Verdict::Next;
        }
        let to_host = is_for_host(frame, cx);
        self.notes.add(|| match errands::destination(frame) {
            Some(address) if is_host(address, cx) => {
                format!("to the gateway's MAC, for {address}, an address of the host")
            }
            Some(address) => format!("to the gateway's MAC, for {address}, which is not the host's"),
            None => "to the gateway's MAC, and not IP".to_owned(),
        });
        let verdict = match errands::destination(frame) {
            Some(address) if is_host(address, cx) && may_be_ours(frame, cx.snapshot, End::Destination) => {
                self.ways(cx.now, cx.snapshot, cx.neighbors, lock).hairpin(frame, cx.port, cx.network)
            }
            Some(address) if !is_host(address, cx) && !is_gateway(address, cx) && routes(cx.snapshot) => {
                self.ways(cx.now, cx.snapshot, cx.neighbors, lock).outbound(frame, cx.port, cx.network)
            }
            _ => Verdict::Next,
        };
        match verdict {
            Verdict::Next if host.is_none() => Verdict::Drop(DropReason::NoHostAccess),
            Verdict::Next if !to_host => Verdict::Drop(DropReason::NotRouted),
            verdict => verdict,
        }
    }

    /// A frame from an uplink.
    pub fn outside(
        &mut self,
        frame: &mut Frame<'_>,
        ifindex: u32,
        world: (Time, &Snapshot, &Neighbors),
        lock: &mut Lock<'_>,
    ) -> Verdict {
        let (now, snapshot, neighbors) = world;
        self.routed = None;
        self.ways(now, snapshot, neighbors, lock).inbound(frame, ifindex)
    }

    /// Does what is due without a frame.
    pub fn tick(&mut self, now: Time, snapshot: &Snapshot, neighbors: &Neighbors, lock: &mut Lock<'_>) {
        self.ways(now, snapshot, neighbors, lock).tick();
    }

    /// What is to be sent besides the frames that were looked at.
    pub fn extras(&mut self) -> impl Iterator<Item = Extra> {
        self.extras.drain(..)
    }

    /// What it knows of the last frame, if it has translated it between a port and an uplink.
    pub fn take_routed(&mut self) -> Option<Routed> {
        self.routed.take()
    }

    fn ways<'a>(
        &'a mut self,
        now: Time,
        snapshot: &'a Snapshot,
        neighbors: &'a Neighbors,
        lock: &'a mut Lock<'_>,
    ) -> Ways<'a> {
        let Self { extras, routed, notes, .. } = self;
        Ways { now, snapshot, neighbors, state: lock.get(), extras, routed, notes, held_are_copies: false }
    }

    /// Writes down its reasons from now on: for [`Router::notes`].
    pub(crate) fn explain(&mut self) {
        self.notes.begin();
    }

    /// Writes nothing down any more.
    pub(crate) fn stop_explaining(&mut self) {
        self.notes.end();
    }

    /// The reasons since the last call.
    pub(crate) fn notes(&mut self) -> Vec<String> {
        self.notes.take()
    }
}

/// Whether there is anything to route: without an uplink and without networks that may talk, there is not.
fn routes(snapshot: &Snapshot) -> bool {
    !snapshot.uplinks.is_empty() || snapshot.policy.connects()
}

/// Which port of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Destination,
    Source,
}

/// Whether an IP packet to (or from) one of the host's addresses has to be looked at: by its port, or for want of one.
fn may_be_ours(frame: &Frame<'_>, snapshot: &Snapshot, end: End) -> bool {
    let packet = &frame.bytes()[ETHERNET_HEADER..];
    let byte = |at: usize| packet.get(at).copied().unwrap_or_default();
    let word = |at: usize| u16::from_be_bytes([byte(at), byte(at + 1)]);
    let (protocol, at, later) = match byte(0) >> 4 {
        4 => (byte(9), usize::from(byte(0) & 0x0f) * 4, word(6) & 0x1fff != 0),
        _ => (byte(6), 40, false),
    };
    let owned = &snapshot.owned;
    match (Protocol::from(protocol), byte(at)) {
        (protocol @ (Protocol::Tcp | Protocol::Udp), _) if !later => {
            owned.contains(protocol, word(if end == End::Source { at } else { at + 2 }))
        }
        // What the host sends besides is not looked at.
        _ if end == End::Source => false,
        _ if later => routes(snapshot),
        (Protocol::Icmp, 0 | 14) | (Protocol::Icmpv6, 129) => owned.contains(Protocol::Icmp, word(at + 4)),
        (Protocol::Icmp, 3 | 11 | 12) | (Protocol::Icmpv6, 1..=4) => routes(snapshot),
        (Protocol::Icmp | Protocol::Icmpv6, _) => false,
        // Extension headers: the port is further on.
        (Protocol::Other(0 | 43 | 44 | 60), _) => routes(snapshot),
        _ => false,
    }
}

/// Whether an address is the gateway's in the frame's network.
fn is_gateway(address: IpAddr, cx: &Cx<'_>) -> bool {
    cx.network.gateways.iter().any(|g| g.address == address)
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
            ![ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, ETHERTYPE_QINQ].contains(&ether_type)
        }
    }
}

/// Whether an address is the host's own, as containers may use it. Loopback addresses are for the host alone.
fn is_host(address: IpAddr, cx: &Cx<'_>) -> bool {
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    !address.is_loopback() && (link_local || cx.snapshot.host_addresses.contains(&address))
}
