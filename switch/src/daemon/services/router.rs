//! The gateway as an IPv6 router: what it advertises, asked and unasked, and what else it tells by DHCP.

use std::net::IpAddr;

use super::ends::{self, Carried};
use super::send;
use crate::addressing::{dhcp6, router};
use crate::dataplane::Outlet;
use crate::router::gateway::link_local;
use crate::services::{Answer, Asked, Asker};

/// Answers a router solicitation.
pub(super) fn solicited(asked: &Asked, outlet: &Outlet) {
    let snapshot = outlet.snapshot();
    let to = router::solicitation(&asked.bytes);
    let advertised = snapshot.addressing.advertised(asked.network, asked.from.port);
    if let (Some(to), Some((terms, of))) = (to, advertised) {
        let bytes = router::advertisement(terms, of, Some(to));
        send(outlet, Answer { to: asked.from.clone(), bytes });
    }
}

/// Answers a question for information.
pub(super) fn inform(asked: &Asked, outlet: &Outlet) {
    let snapshot = outlet.snapshot();
    let Some((ends, Carried::Datagram(message))) = ends::read(&asked.bytes) else { return };
    let Some(terms) = snapshot.addressing.terms.get(&asked.network) else { return };
    let Some(answer) = terms.advertised.as_ref().and_then(|of| dhcp6::respond(message, terms, of)) else {
        return;
    };
    let ends = ends.at(terms.gateway_mac, IpAddr::from(link_local(terms.gateway_mac)));
    if let Some(bytes) = ends.datagram(&answer) {
        send(outlet, Answer { to: asked.from.clone(), bytes });
    }
}

/// Advertises to every port that is to hear of it.
pub(super) fn advertise(outlet: &Outlet) {
    let snapshot = outlet.snapshot();
    for port in snapshot.ports().filter(|port| port.up) {
        if let Some((terms, of)) = snapshot.addressing.advertised(port.network, port.id) {
            let to = Asker { port: port.id, counters: port.counters.clone() };
            send(outlet, Answer { to, bytes: router::advertisement(terms, of, None) });
        }
    }
}
