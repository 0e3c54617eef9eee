//! Rules: from what is wanted to what the workers ask, and what a change of them ends.

use std::sync::Arc;

use ctl::api::{self, Action, ServiceProtocol, SideKind};
use nat::{ConnectionId, Direction, Filter, OwnerId, Protocol, Tuple};

use super::control::{Daemon, Error};
use crate::policy::{Peer, Policy, Rule, Service, Services, Side, by_default};
use crate::router::{network_of, port_of};
use crate::snapshot::Snapshot;
use crate::worker;

impl Daemon {
    /// `POST /v1/policy`: adds a rule, or puts it in the place of the one about the same. Connections that may not be any more
    /// end.
    ///
    /// # Errors
    /// When a side is not there, or no packet of the two passes the switch.
    pub async fn add_rule(&mut self, rule: api::Rule) -> Result<api::Rule, Error> {
        let kept = self.edit(|_, new| new.add_rule(rule)).await?;
        self.tell_rule(&format!("rule added: {kept}"));
        Ok(kept)
    }

    /// `DELETE /v1/policy`: removes a rule. Connections that may not be any more end.
    ///
    /// # Errors
    /// When there is none.
    pub async fn remove_rule(&mut self, rule: &api::Rule) -> Result<(), Error> {
        let gone = self.edit(|_, new| new.remove_rule(rule)).await?;
        self.tell_rule(&format!("rule removed: {gone}"));
        Ok(())
    }

    fn tell_rule(&self, what: &str) {
        let ended = self.end_forbidden();
        let ended = if ended > 0 { format!("; {ended} connections ended") } else { String::new() };
        self.events.tell("policy-changed", "policy", format!("{what}{ended}"));
    }

    /// Ends the connections that may not be opened any more; tells how many.
    fn end_forbidden(&self) -> usize {
        let (now, snapshot) = (worker::now(), self.dataplane.snapshot());
        let mut state = self.dataplane.forwarding();
        let all = state.nat.connections(now, Filter::default());
        let ids: Vec<ConnectionId> = all.filter(|(_, c)| !may_be(&snapshot, c)).map(|(id, _)| id).collect();
        for id in &ids {
            state.nat.end_one(now, *id);
        }
        drop(state);
        self.dataplane.wake();
        ids.len()
    }

    /// The rules whose sides are there, as the workers know them.
    pub(super) fn policy(&self) -> Arc<Policy> {
        let rules = self.desired.rules.iter().filter_map(|rule| {
            Some(Rule {
                from: self.side(&rule.from, rule.from_kind?)?,
                to: self.side(&rule.to, rule.to_kind?)?,
                services: services(rule.service.as_ref()),
                allow: rule.action == Action::Allow,
                text: rule.to_string().into(),
            })
        });
        Arc::new(Policy::new(rules))
    }

    fn side(&self, name: &str, kind: SideKind) -> Option<Side> {
        Some(match kind {
            SideKind::Network => Side::Network(self.live.network(name)?),
            SideKind::Port => {
                let port = self.live.port(name)?;
                Side::Port(port.id, self.live.network(&port.network)?)
            }
            SideKind::Host => Side::Host,
            SideKind::Outside => Side::Outside,
        })
    }
}

fn services(service: Option<&api::Service>) -> Services {
    let Some(service) = service else { return Services::All };
    let protocol = match service.protocol {
        ServiceProtocol::Icmp => return Services::Icmp,
        ServiceProtocol::Tcp => Protocol::Tcp,
        ServiceProtocol::Udp => Protocol::Udp,
    };
    match &service.ports {
        None => Services::Protocol(protocol),
        Some(ports) => Services::Ports(protocol, ports.clone()),
    }
}

/// Whether a connection may be opened, by the rules as they are.
fn may_be(snapshot: &Snapshot, connection: &nat::Connection) -> bool {
    let (asked, answer) = (connection.tuple(Direction::Original), connection.tuple(Direction::Reply));
    let from = end(snapshot, &asked, connection.owner(Direction::Original));
    let to = end(snapshot, &answer, connection.owner(Direction::Reply));
    // Who is called in the end: the published port's target, not the host's port.
    let service = Service::new(asked.protocol, answer.source.port);
    let isolates =
        network_of(asked.network).and_then(|n| snapshot.network(n)).is_some_and(|n| n.isolate_ports);
    // What came in without a rule did so by a published port, or by the network's filtering.
    let default = by_default(from, to, isolates) || connection.rule().is_some() || from == Peer::Outside;
    snapshot.policy.rule(from, to, service).map_or(default, |rule| rule.allow)
}

/// Who sends the packets of a tuple.
fn end(snapshot: &Snapshot, tuple: &Tuple, owner: OwnerId) -> Peer {
    match (network_of(tuple.network), port_of(owner)) {
        (Some(network), Some(port)) => Peer::Port(port, network),
        _ if snapshot.host_addresses.contains(&tuple.source.address.to_ip()) => Peer::Host,
        _ => Peer::Outside,
    }
}
