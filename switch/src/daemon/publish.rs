//! Published ports: what is wanted, checked and carried out.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ctl::api::{PublishSpec, Transport};
use ipnet::IpNet;
use jiff::Timestamp;
use nat::{Address, Endpoint, Prefix, Protocol, Rule};
use serde::{Deserialize, Serialize};

use super::apply::ApplyError;
use super::control::{Daemon, Error};
use super::desired::{Desired, EditError};
use super::portguard;
use crate::router::nat_network;
use crate::worker;

/// Ports of the host that lead to a container.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// The host's address; none for all of them.
    pub host: Option<IpAddr>,
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
    /// TCP or UDP.
    pub transport: Transport,
    /// Where the first port leads.
    pub target: SocketAddr,
    /// The target's network.
    pub network: String,
    /// Who may connect; everyone if empty.
    pub from: Vec<IpNet>,
    /// Since when.
    pub since: Timestamp,
}

impl Publish {
    /// The protocol.
    pub const fn protocol(&self) -> Protocol {
        match self.transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
        }
    }

    /// The ports.
    pub const fn ports(&self) -> RangeInclusive<u16> {
        self.first..=self.last
    }

    /// Its name: what `swctl unpublish` takes.
    pub fn key(&self) -> String {
        key(self.host, self.first, self.last, self.transport, self.target.is_ipv4())
    }

    /// Where a client on the host that dialled this is to be brought.
    pub(super) fn relayed(&self, protocol: portguard::Protocol, dialled: SocketAddr) -> Option<SocketAddr> {
        let here = match self.host {
            Some(host) => host == dialled.ip(),
            None => dialled.is_ipv4() == self.target.is_ipv4() || dialled.ip().is_loopback(),
        };
        let same = super::outside::guarded(self.protocol()) == protocol;
        let port = dialled.port().checked_sub(self.first).filter(|_| dialled.port() <= self.last)?;
        (here && same).then(|| SocketAddr::new(self.target.ip(), self.target.port().saturating_add(port)))
    }

    fn rule(&self, network: nat::NetworkId) -> Rule {
        Rule {
            protocol: self.protocol(),
            host: self.host.map(Address::from),
            ports: self.ports(),
            network,
            target: Endpoint::new(self.target.ip(), self.target.port()),
            from: self.from.iter().filter_map(|n| Prefix::new(n.addr(), n.prefix_len())).collect(),
        }
    }

    fn collides(&self, other: &Self) -> bool {
        let hosts = self.host.is_none() || other.host.is_none() || self.host == other.host;
        let family = self.target.is_ipv4() == other.target.is_ipv4();
        self.transport == other.transport
            && hosts
            && family
            && self.first <= other.last
            && other.first <= self.last
    }
}

/// `[HOSTIP:]PORT[-PORT]/protocol`; for all addresses, those of IPv6 are told apart.
fn key(host: Option<IpAddr>, first: u16, last: u16, transport: Transport, v4: bool) -> String {
    let host = match host {
        Some(IpAddr::V4(v4)) => format!("{v4}:"),
        Some(IpAddr::V6(v6)) => format!("[{v6}]:"),
        None if v4 => String::new(),
        None => "[::]:".to_owned(),
    };
    let last = if first == last { String::new() } else { format!("-{last}") };
    format!("{host}{first}{last}/{}", transport.name())
}

impl Desired {
    /// Publishes ports; tells the key.
    ///
    /// # Errors
    /// When the request is wrong or collides with another publish.
    pub fn publish(&mut self, spec: &PublishSpec, now: Timestamp) -> Result<String, EditError> {
        let wrong = |why: String| EditError::Publish { why };
        let last = spec.host_port_end.unwrap_or(spec.host_port);
        let host = spec.host_ip.filter(|h| !h.is_unspecified());
        if spec.host_port == 0 || spec.target_port == 0 || last < spec.host_port {
            return Err(wrong(
                "ports go from 1 to 65535, and a range from the lower to the higher one".into(),
            ));
        }
        if spec.target_port.checked_add(last - spec.host_port).is_none() {
            return Err(wrong(format!(
                "{} ports from {} on would pass 65535",
                u32::from(last - spec.host_port) + 1,
                spec.target_port
            )));
        }
        if host.is_some_and(|h| h.is_ipv4() != spec.target_ip.is_ipv4()) {
            return Err(wrong("the host's address and the target are of different families".into()));
        }
        if let Some(net) = spec.from.iter().find(|n| n.addr().is_ipv4() != spec.target_ip.is_ipv4()) {
            return Err(wrong(format!("--from {net} and the target are of different families")));
        }
        let has = |(subnet, gateway): &(IpNet, IpAddr)| {
            subnet.contains(&spec.target_ip) && *gateway != spec.target_ip
        };
        let Some((network, _)) = self.networks.iter().find(|(_, n)| n.gateways.iter().any(has)) else {
            return Err(wrong(format!(
                "{} is not a container's address in any network ('swctl network ls' lists them)",
                spec.target_ip
            )));
        };
        let new = Publish {
            host,
            first: spec.host_port,
            last,
            transport: spec.protocol,
            target: SocketAddr::new(spec.target_ip, spec.target_port),
            network: network.clone(),
            from: spec.from.clone(),
            since: now,
        };
        let key = new.key();
        if let Some((other, old)) = self.publishes.iter().find(|(_, p)| p.collides(&new)) {
            return Err(EditError::Published {
                key,
                other: other.clone(),
                target: old.target,
                since: old.since,
            });
        }
        self.publishes.insert(key.clone(), new);
        Ok(key)
    }

    /// Takes a publish back. The text is as `swctl publish` takes it; without a protocol it is TCP's.
    ///
    /// # Errors
    /// When there is none.
    pub fn unpublish(&mut self, text: &str) -> Result<(), EditError> {
        let missing = || EditError::NotFound {
            what: "published port",
            name: text.chars().take(64).collect(),
            hint: "'swctl published' lists them".into(),
        };
        let parsed = ctl::spec::parse_published(text).map_err(|why| EditError::Publish { why })?;
        let host = parsed.host_ip.filter(|h| !h.is_unspecified());
        let v6_only = parsed.host_ip.is_some_and(|h| h.is_unspecified() && h.is_ipv6());
        let find = |v4| key(host, parsed.first, parsed.last, parsed.protocol, v4);
        let keys = if v6_only { vec![find(false)] } else { vec![find(true), find(false)] };
        let key = keys.into_iter().find(|k| self.publishes.contains_key(k)).ok_or_else(missing)?;
        self.publishes.remove(&key);
        Ok(())
    }
}

impl Daemon {
    /// Publishes ports; tells the key.
    ///
    /// # Errors
    /// When the ports cannot be had.
    pub async fn publish_ports(&mut self, spec: &PublishSpec) -> Result<String, Error> {
        self.edit(|_, new| new.publish(spec, Timestamp::now())).await
    }

    /// Takes a publish back, and ends its connections.
    ///
    /// # Errors
    /// When there is none.
    pub async fn unpublish_ports(&mut self, text: &str) -> Result<(), Error> {
        self.edit(|_, new| new.unpublish(text)).await
    }

    /// One step of setting up: the ports are taken, then they lead somewhere.
    pub(super) fn set_up_publish(&mut self, key: &str) -> Result<(), ApplyError> {
        let Some(publish) = self.desired.publishes.get(key).cloned() else { return Ok(()) };
        let Some(network) = self.live.network(&publish.network) else { return Ok(()) };
        let error = |why: String| ApplyError::Publish { key: key.to_owned(), why };
        self.guard(&publish).map_err(|e| match e {
            portguard::GuardError::Taken(taken) => ApplyError::PortTaken { key: key.to_owned(), taken },
            e => error(e.to_string()),
        })?;
        let added = self.dataplane.forwarding().nat.publish(publish.rule(nat_network(network)));
        match added {
            Ok(id) => {
                self.outside.rules.insert(key.to_owned(), id);
                self.tell_relay(&self.desired);
                self.events.tell("published", key, format!("{key} leads to {}", publish.target));
                Ok(())
            }
            Err(e) => {
                self.unguard(&publish);
                Err(error(e.to_string()))
            }
        }
    }

    /// The opposite; `old` is where it is still written.
    pub(super) fn take_down_publish(&mut self, key: &str, old: &Desired) {
        if let Some(id) = self.outside.rules.remove(key) {
            self.dataplane.forwarding().nat.unpublish(worker::now(), id);
            if let Some(publish) = old.publishes.get(key) {
                self.tell_relay(&self.desired);
                self.unguard(publish);
                self.events.tell("unpublished", key, format!("{key} leads to {} no more", publish.target));
            }
            self.dataplane.wake();
        }
    }
}
