//! Edits of what is limited of a port, and of what it may send from.

use std::net::IpAddr;

use ctl::api::{PortChange, PortLimits, Source};
use ctl::spec;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Desired, EditError, Origin, Port};
use crate::mac::Mac;
use crate::sources::Sources;

/// What the user set of a port. Beside the port itself, so that a change of it is none of the port.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PortSettings {
    /// Limits.
    #[serde(default)]
    pub limits: PortLimits,
    /// The spoof guard; none: on for attached ports.
    #[serde(default)]
    pub guard: Option<bool>,
    /// What it may send from besides its own.
    #[serde(default)]
    pub sources: Vec<Source>,
}

impl Desired {
    /// Changes limits, guard and aliases of a port.
    ///
    /// # Errors
    /// When there is no such port, a MAC or an alias is wrong, or the guard would let nothing pass.
    pub fn change_port(&mut self, name: &str, change: &PortChange) -> Result<(), EditError> {
        if let Some(network) = self.host_end(name) {
            let why = format!("it is the host end of network {network}, which has no settings");
            return Err(EditError::Setting { port: name.to_owned(), why });
        }
        let network = self.port(name)?.network.clone();
        let mut settings = self.settings.get(name).cloned().unwrap_or_default();
        let limits = &mut settings.limits;
        limits.rate_in = change.rate_in.unwrap_or(limits.rate_in);
        limits.rate_out = change.rate_out.unwrap_or(limits.rate_out);
        limits.storm = change.storm.unwrap_or(limits.storm);
        limits.max_connections = change.max_connections.unwrap_or(limits.max_connections);
        for rate in [limits.rate_in, limits.rate_out, limits.storm].into_iter().flatten() {
            if rate.per_second == 0 || rate.burst == Some(0) {
                let why = "a rate or burst of 0 lets nothing pass; null takes a limit away".to_owned();
                return Err(EditError::Setting { port: name.to_owned(), why });
            }
        }
        settings.guard = change.guard.unwrap_or(settings.guard);
        if let Some(sources) = &change.sources {
            for source in sources {
                if let Source::Mac(mac) = source {
                    self.check_mac(&network, mac)?;
                }
            }
            settings.sources.clone_from(sources);
        }
        let port = self.port(name)?;
        if settings.is_guarded(port) && settings.macs(port).next().is_none() {
            let why = "a guard needs to know what may pass; name its MAC and its addresses with --source";
            return Err(EditError::Setting { port: name.to_owned(), why: why.to_owned() });
        }
        if let Some(aliases) = &change.aliases {
            let action = || format!("name {name}");
            spec::check_aliases(aliases).map_err(|source| EditError::Spec { action: action(), source })?;
            match aliases.is_empty() {
                true => _ = self.aliases.remove(name),
                false => _ = self.aliases.insert(name.to_owned(), aliases.clone()),
            }
        }
        match settings == PortSettings::default() {
            true => _ = self.settings.remove(name),
            false => _ = self.settings.insert(name.to_owned(), settings),
        }
        Ok(())
    }

    /// What a port may send from; none while that is anything.
    pub fn sources(&self, name: &str) -> Option<Sources> {
        let port = self.ports.get(name)?;
        let none = PortSettings::default();
        let settings = self.settings.get(name).unwrap_or(&none);
        let own = self.addresses(name).into_iter().map(|net| net.addr().into());
        let made = || {
            self.self_made(name, settings.macs(port)).into_iter().map(|made| IpNet::from(IpAddr::V6(made)))
        };
        settings.is_guarded(port).then(|| settings.sources_of(port, own.chain(made())))
    }
}

impl PortSettings {
    fn is_guarded(&self, port: &Port) -> bool {
        self.guard.unwrap_or(!matches!(port.origin, Origin::Added))
    }

    fn macs(&self, port: &Port) -> impl Iterator<Item = Mac> {
        let own = port.container_mac();
        let given = self.sources.iter().filter_map(|source| match source {
            Source::Mac(mac) => mac.parse().ok(),
            Source::Net(_) => None,
        });
        own.into_iter().chain(given)
    }

    fn sources_of(&self, port: &Port, own: impl Iterator<Item = IpNet>) -> Sources {
        let given = self.sources.iter().filter_map(|source| match source {
            Source::Net(net) => Some(*net),
            Source::Mac(_) => None,
        });
        Sources::new(self.macs(port), own.chain(given))
    }
}
