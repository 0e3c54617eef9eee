//! Published ports: what is wanted, checked and carried out.
//!
//! A publish is not a change like others (see [`control`](super::control)): nothing is copied, compared or written that
//! grows with what is published already. It is checked, noted in the journal, the guards take the ports, the translator
//! gets a rule, the workers' ports and the uplinks' filters are told; and all of it back where one step fails.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ctl::api::{self, PublishSpec};
use ipnet::IpNet;
use jiff::Timestamp;

use super::apply::ApplyError;
use super::control::{Daemon, Error};
use super::desired::{Desired, EditError};
use super::portguard;
use super::publishes::{Key, Publish};
use super::state::Change;
use crate::router::nat_network;
use crate::worker;

impl Desired {
    /// What a request to publish means here.
    ///
    /// # Errors
    /// When it is wrong or collides with another publish.
    pub fn check_publish(&self, spec: &PublishSpec, now: Timestamp) -> Result<Publish, EditError> {
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
        if let Some(port) = &spec.port {
            self.port(port)?;
        }
        let has = |(subnet, gateway): &(IpNet, IpAddr)| {
            subnet.contains(&spec.target_ip) && *gateway != spec.target_ip
        };
        let Some((network, of)) = self.networks.iter().find(|(_, n)| n.gateways.iter().any(has)) else {
            return Err(wrong(format!(
                "{} is not a container's address in any network ('swctl network ls' lists them)",
                spec.target_ip
            )));
        };
        if of.internal {
            return Err(wrong(format!(
                "network {network} is internal, so nothing of it can be published; attach the container to another one, too"
            )));
        }
        let new = Publish {
            host,
            first: spec.host_port,
            last,
            transport: spec.protocol,
            target: SocketAddr::new(spec.target_ip, spec.target_port),
            network: network.clone(),
            from: spec.from.clone(),
            since: now,
            port: spec.port.clone(),
        };
        match self.publishes.overlapping(&new) {
            Some(old) => Err(EditError::Published {
                key: new.name(),
                other: old.name(),
                target: old.target,
                since: old.since,
            }),
            None => Ok(new),
        }
    }

    /// The publish that a text means, which is as `swctl publish` takes it; without a protocol it is TCP's.
    ///
    /// # Errors
    /// When there is none.
    pub fn published(&self, text: &str) -> Result<&Arc<Publish>, EditError> {
        let missing = || EditError::NotFound {
            what: "published port",
            name: text.chars().take(64).collect(),
            hint: "'swctl published' lists them".into(),
        };
        let parsed = ctl::spec::parse_published(text).map_err(|why| EditError::Publish { why })?;
        Key::meant(&parsed).find_map(|key| self.publishes.get(&key)).ok_or_else(missing)
    }
}

impl Daemon {
    /// Publishes ports.
    ///
    /// # Errors
    /// When the ports cannot be had; nothing has changed then.
    pub fn publish_ports(&mut self, spec: &PublishSpec) -> Result<api::Published, Error> {
        let publish = Arc::new(self.desired.check_publish(spec, Timestamp::now())?);
        self.desired.publishes.insert(Arc::clone(&publish));
        let done = self
            .store
            .note(&Change::Publish(Publish::clone(&publish)), &self.desired)
            .map_err(Error::from)
            .and_then(|()| Ok(self.set_up_publish(&publish)?));
        if let Err(error) = done {
            self.desired.publishes.remove(&publish.key());
            if matches!(error, Error::Apply(_))
                && let Err(e) = self.store.note(&Change::Unpublish(Publish::clone(&publish)), &self.desired)
            {
                tracing::error!("{e}");
            }
            return Err(error);
        }
        self.set_filters();
        Ok(self.published_view(&publish, 0))
    }

    /// Takes a publish back, and ends its connections.
    ///
    /// # Errors
    /// When there is none, or that cannot be kept.
    pub fn unpublish_ports(&mut self, text: &str) -> Result<(), Error> {
        let publish = Arc::clone(self.desired.published(text)?);
        self.desired.publishes.remove(&publish.key());
        if let Err(e) = self.store.note(&Change::Unpublish(Publish::clone(&publish)), &self.desired) {
            self.desired.publishes.insert(publish);
            return Err(e.into());
        }
        self.take_down_publish(&publish);
        self.set_filters();
        Ok(())
    }

    /// Takes back what was published for ports that are gone.
    pub(super) fn unpublish_with(&mut self, gone: impl Fn(&str) -> bool) {
        let all = self.desired.publishes.iter().map(|(_, p)| p);
        let all: Vec<_> = all.filter(|p| p.port.as_deref().is_some_and(&gone)).map(Arc::clone).collect();
        for publish in &all {
            self.desired.publishes.remove(&publish.key());
            // Of a port that is not there, the next start forgets it again.
            if let Err(e) = self.store.note(&Change::Unpublish(Publish::clone(publish)), &self.desired) {
                tracing::warn!("{e}");
            }
            self.take_down_publish(publish);
        }
        if !all.is_empty() {
            self.set_filters();
        }
    }

    /// Sets up what is not set up yet: at start, and again what was refused since.
    pub(super) fn set_up_publishes(&mut self) {
        let missing = |key: &Key| !self.outside.rules.contains_key(key);
        let all: Vec<_> =
            self.desired.publishes.iter().filter(|(k, _)| missing(k)).map(|(_, p)| Arc::clone(p)).collect();
        for publish in all {
            let Err(e) = self.set_up_publish(&publish) else { continue };
            let why = e.to_string();
            // Told once, not each time it is tried.
            if self.outside.refused.get(&publish.key()) != Some(&why) {
                tracing::error!("{why}");
                self.events.tell("publish-refused", &publish.name(), why.clone());
                self.outside.refused.insert(publish.key(), why);
            }
        }
    }

    /// The ports are taken, then they lead somewhere.
    fn set_up_publish(&mut self, publish: &Arc<Publish>) -> Result<(), ApplyError> {
        let (key, name) = (publish.key(), publish.name());
        let Some(network) = self.live.network(&publish.network) else { return Ok(()) };
        let error = |why: String| ApplyError::Publish { key: name.clone(), why };
        self.guard(publish).map_err(|e| match e {
            portguard::GuardError::Taken(taken) => ApplyError::PortTaken { key: name.clone(), taken },
            e => error(e.to_string()),
        })?;
        let added = self.dataplane.forwarding().nat.publish(publish.rule(nat_network(network)));
        match added {
            Ok(id) => {
                self.outside.rules.insert(key, id);
                self.outside.refused.remove(&key);
                self.outside.owned.add(publish.protocol(), publish.ports());
                self.open_to_host(publish);
                self.events.tell("published", &name, format!("{name} leads to {}", publish.target));
                Ok(())
            }
            Err(e) => {
                self.unguard(publish);
                Err(error(e.to_string()))
            }
        }
    }

    /// The opposite.
    fn take_down_publish(&mut self, publish: &Publish) {
        let (key, name) = (publish.key(), publish.name());
        self.outside.refused.remove(&key);
        let Some(id) = self.outside.rules.remove(&key) else { return };
        self.dataplane.forwarding().nat.unpublish(worker::now(), id);
        self.dataplane.end_epoch();
        self.outside.relayed().publishes.remove(&key);
        self.unguard(publish);
        self.outside.own_again(publish.protocol());
        self.events.tell("unpublished", &name, format!("{name} leads to {} no more", publish.target));
        self.dataplane.wake();
    }
}
