//! What the user wants: networks, ports, static MACs. Pure: edits are checked here, and carried out by [`super::apply`].
//!
//! It is what the state file holds, and what the daemon makes of the kernel at every start. Leases go with their ports.

mod addresses;
pub mod docker;
mod error;
mod limits;
mod mirrors;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ctl::api::{AttachSpec, DEFAULT_NETWORK, Filtering, Mapping, Mirror, NetworkSpec, PortSpec, Rule};
use ctl::spec;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use addresses::Lease;
use addresses::choose;
use docker::{DockerNetwork, Endpoint};
pub use error::{Class, EditError};
pub use limits::PortSettings;

use super::publishes::Publishes;
use crate::mac::Mac;
use crate::sys::netns::NetNsId;

/// Everything that is wanted.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// Networks by name.
    pub networks: BTreeMap<String, Network>,
    /// Ports by name, without the host ends of networks.
    pub ports: BTreeMap<String, Port>,
    /// Static MACs: by network and MAC, the port's name.
    pub statics: BTreeMap<String, Static>,
    /// Published ports, by what `swctl unpublish` calls them.
    #[serde(default)]
    pub publishes: Publishes,
    /// Networks that may open connections to others, as an earlier swd kept it: rules by now.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    allowed: BTreeSet<(String, String)>,
    /// Who may open connections to whom. A rule whose port is gone waits for another of its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Limits and guards of ports, by the port's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, PortSettings>,
    /// Further names of ports, by the port's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<String, Vec<String>>,
    /// Addresses of ports by DHCP, by the port's name. Beside the port itself, so that a change of it is none of the port.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub leased: BTreeMap<String, Lease>,
    /// Mirrors. One whose ports are gone waits for others of their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Mirror>,
    /// Docker's networks, by its ids.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub docker: BTreeMap<String, DockerNetwork>,
}

/// A network.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Each subnet with the gateway's address in it.
    pub gateways: Vec<(IpNet, IpAddr)>,
    /// The gateway's MAC, the same for as long as the network lives.
    #[serde(with = "mac_text")]
    pub gateway_mac: Mac,
    /// Largest IP packet.
    pub mtu: u32,
    /// Ports may talk to the gateway only.
    pub isolate_ports: bool,
    /// No way out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub internal: bool,
    /// Connections to the outside leave behind the host's address.
    pub masquerade: bool,
    /// Which of them share an external port.
    #[serde(default)]
    pub mapping: Mapping,
    /// Who may send to it.
    #[serde(default)]
    pub filtering: Filtering,
    /// The gateway answers for names.
    #[serde(default = "yes")]
    pub dns: bool,
    /// The gateway gives addresses to ports that ask.
    #[serde(default = "yes")]
    pub dhcp: bool,
    /// For how many seconds.
    #[serde(default = "spec::default_lease")]
    pub dhcp_lease: u32,
    /// The gateway advertises itself to ports without an IPv6 address. Networks of an earlier swd do not begin to.
    #[serde(default)]
    pub ra: bool,
    /// The host's interface; none without host access.
    pub host_ifname: Option<String>,
    /// The address handed out last, by subnet.
    #[serde(default)]
    pub last_lease: Vec<Option<IpAddr>>,
}

/// Networks of an earlier swd have names and addresses for who asks, too.
const fn yes() -> bool {
    true
}

/// A port.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Its network.
    pub network: String,
    /// Name of the interface in the switch namespace; for a TAP port, in the container.
    pub ifname: String,
    /// Since when it exists.
    pub since: Timestamp,
    /// What stands behind it.
    pub origin: Origin,
}

/// Where a port's interface comes from.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Origin {
    /// An interface of the host that the user gave.
    Added,
    /// Made by swd for a container.
    Attached(Attachment),
    /// Made by swd for Docker to give to a container.
    Endpoint(Endpoint),
}

/// What was made for a container.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// Path of the container's namespace.
    pub netns: String,
    /// Which namespace that was: device and inode.
    pub netns_id: (u64, u64),
    /// Name of the interface in the container.
    pub ifname: String,
    /// MAC of the interface in the container.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// Its addresses, with the subnet's prefix length.
    pub addresses: Vec<IpNet>,
    /// A TAP device in place of a veth pair.
    pub tap: bool,
}

impl Attachment {
    /// Which namespace it is in.
    pub fn id(&self) -> NetNsId {
        NetNsId { dev: self.netns_id.0, ino: self.netns_id.1 }
    }
}

/// A static MAC.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Static {
    /// The MAC.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// The port's network.
    pub network: String,
    /// The port's name.
    pub port: String,
}

mod mac_text {
    use super::Mac;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(mac: &Mac, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(mac)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Mac, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Desired {
    /// Adds a network. `taken` tells whether the host has an interface of that name.
    ///
    /// # Errors
    /// When the request is wrong or collides with another network.
    pub fn add_network(
        &mut self,
        instance: &str,
        spec: &NetworkSpec,
        taken: impl Fn(&str) -> bool,
    ) -> Result<(), EditError> {
        let checked = spec::check_network(spec).map_err(|source| EditError::Spec {
            // A name that is wrong is in the reason, cut to length.
            action: if spec::check_name("network", &spec.name).is_ok() {
                format!("add network {}", spec.name)
            } else {
                "add the network".into()
            },
            source,
        })?;
        let name = &spec.name;
        if self.networks.contains_key(name) {
            let remove = format!("network rm {name}");
            return Err(EditError::Exists { what: "network", name: name.clone(), remove });
        }
        for (subnet, _) in &checked.gateways {
            if let Some((other, theirs)) = self.overlapping(*subnet) {
                let free = self.free_subnet(*subnet, &[]);
                let (name, subnet, other) = (name.clone(), *subnet, other.to_owned());
                return Err(EditError::Overlap { name, subnet, other, theirs, free });
            }
        }
        let host_ifname = spec.host_access.then(|| {
            let names = (0..).map(|n| format!("sw{n}"));
            let used = |n: &String| {
                self.ports.contains_key(n)
                    || self.ports.values().any(|p| p.ifname == host_port_ifname(n))
                    || self.networks.values().any(|w| w.host_ifname.as_ref() == Some(n))
                    || taken(n)
            };
            names.into_iter().find(|n| !used(n)).unwrap_or_default()
        });
        let network = Network {
            last_lease: vec![None; checked.gateways.len()],
            gateways: checked.gateways,
            gateway_mac: Mac::from_seed(format!("{instance}/{name}").as_bytes()),
            mtu: checked.mtu,
            isolate_ports: spec.isolate_ports,
            internal: spec.internal,
            masquerade: spec.masquerade,
            mapping: spec.mapping,
            filtering: spec.filtering,
            dns: spec.dns,
            dhcp: spec.dhcp,
            dhcp_lease: checked.dhcp_lease,
            ra: spec.ra,
            host_ifname,
        };
        self.networks.insert(name.clone(), network);
        Ok(())
    }

    /// The network that has part of a subnet.
    pub fn overlapping(&self, subnet: IpNet) -> Option<(&str, IpNet)> {
        self.networks.iter().find_map(|(name, network)| {
            let theirs = network.gateways.iter().map(|(s, _)| *s).find(|s| spec::overlap(s, &subnet))?;
            Some((name.as_str(), theirs))
        })
    }

    /// A subnet like `wanted` that neither a network nor one of `others` has.
    pub fn free_subnet(&self, wanted: IpNet, others: &[IpNet]) -> IpNet {
        let free = |s: &IpNet| self.overlapping(*s).is_none() && !others.iter().any(|o| spec::overlap(o, s));
        let len = wanted.prefix_len();
        // What people expect first: the /16s after Docker's, then the rest of private space.
        let v4 = (18..32).map(|n| format!("172.{n}.0.0/{}", len.max(16)));
        let v4 = v4.chain((0..=255).map(|n| format!("10.{n}.0.0/{}", len.max(16))));
        let v6 = (0x18..0x1000).map(|n| format!("fd00:{n:x}::/{}", len.max(32)));
        let mut all: Box<dyn Iterator<Item = String>> =
            if wanted.addr().is_ipv4() { Box::new(v4) } else { Box::new(v6) };
        all.find_map(|s| s.parse().ok().filter(&free)).unwrap_or(wanted)
    }

    /// Removes a network without ports.
    ///
    /// # Errors
    /// When there is none, or it has ports.
    pub fn remove_network(&mut self, name: &str) -> Result<(), EditError> {
        self.network(name)?;
        let ports: Vec<&str> =
            self.ports.iter().filter(|(_, p)| p.network == name).map(|(n, _)| n.as_str()).collect();
        if !ports.is_empty() {
            let mut list = ports.iter().take(5).copied().collect::<Vec<_>>().join(", ");
            if ports.len() > 5 {
                list = format!("{list} and {} more", ports.len() - 5);
            }
            return Err(EditError::InUse { name: name.to_owned(), ports: list });
        }
        if let Some((key, _)) = self.publishes.iter().find(|(_, p)| p.network == name) {
            let ports = format!("published: {}", key.name());
            return Err(EditError::InUse { name: name.to_owned(), ports });
        }
        self.forget_rules(name);
        self.docker.retain(|_, d| d.network != name);
        self.networks.remove(name);
        Ok(())
    }

    /// The network of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn network(&self, name: &str) -> Result<&Network, EditError> {
        self.networks.get(name).ok_or_else(|| EditError::NotFound {
            what: "network",
            name: short(name),
            hint: "'swctl network ls' lists them".into(),
        })
    }

    /// The network whose host end is the port of this name.
    pub fn host_end(&self, port: &str) -> Option<&str> {
        let mut all = self.networks.iter();
        all.find(|(_, n)| n.host_ifname.as_deref() == Some(port)).map(|(name, _)| name.as_str())
    }

    fn check_new_port(&self, action: &str, name: &str, network: &str) -> Result<(), EditError> {
        spec::check_name("port", name)
            .map_err(|source| EditError::Spec { action: action.to_owned(), source })?;
        self.network(network)?;
        let remove = match self.ports.get(name) {
            None => match self.host_end(name) {
                None => return Ok(()),
                Some(network) => format!("network rm {network}"),
            },
            Some(Port { origin: Origin::Added, .. }) => format!("port rm {name}"),
            Some(_) => format!("detach {name}"),
        };
        Err(EditError::Exists { what: "port", name: name.to_owned(), remove })
    }

    /// Adds a port for an interface of the host; tells its name.
    ///
    /// # Errors
    /// When the request is wrong, or name or interface are taken.
    pub fn add_port(&mut self, spec: &PortSpec, now: Timestamp) -> Result<String, EditError> {
        let action = || "add the port".to_owned();
        spec::check_ifname(&spec.ifname).map_err(|source| EditError::Spec { action: action(), source })?;
        if let Some((port, at)) = self.by_ifname(&spec.ifname) {
            let (ifname, port, network) = (spec.ifname.clone(), port.to_owned(), at.to_owned());
            return Err(EditError::InterfaceUsed { ifname, port, network });
        }
        let name = spec.name.as_ref().unwrap_or(&spec.ifname);
        let network = spec.network.as_deref().unwrap_or(DEFAULT_NETWORK);
        self.check_new_port(&action(), name, network)?;
        if let Some(address) = spec.address {
            self.reserve(name, network, address)?;
        }
        let port = Port {
            network: network.to_owned(),
            ifname: spec.ifname.clone(),
            since: now,
            origin: Origin::Added,
        };
        self.ports.insert(name.clone(), port);
        Ok(name.clone())
    }

    /// The port (and its network) whose interface in the switch namespace has this name.
    pub fn by_ifname(&self, ifname: &str) -> Option<(&str, &str)> {
        let port = self.ports.iter().find(|(_, p)| p.ifname == ifname && !p.is_tap());
        if let Some((name, port)) = port {
            return Some((name, &port.network));
        }
        self.networks.iter().find_map(|(network, n)| {
            let host = n.host_ifname.as_deref()?;
            (host == ifname || host_port_ifname(host) == ifname).then_some((host, network.as_str()))
        })
    }

    /// Attaches a container's namespace; tells the port's name. `seen` tells whether an address is in use on the wire.
    ///
    /// # Errors
    /// When the request is wrong, the name is taken, or there is no address.
    pub fn attach(
        &mut self,
        spec: &AttachSpec,
        netns: (String, NetNsId),
        now: Timestamp,
        seen: impl Fn(&str, IpAddr) -> bool,
    ) -> Result<String, EditError> {
        let (path, id) = netns;
        let name = spec.name.clone().unwrap_or_else(|| name_of(&spec.netns));
        let network_name = spec.network.as_deref().unwrap_or(DEFAULT_NETWORK);
        self.check_new_port("attach the container", &name, network_name)?;
        let action = || format!("attach {name}");
        let ifname = spec.ifname.clone().unwrap_or_else(|| "eth0".to_owned());
        spec::check_ifname(&ifname).map_err(|source| EditError::Spec { action: action(), source })?;
        spec::check_aliases(&spec.aliases).map_err(|source| EditError::Spec { action: action(), source })?;
        let network = self.network(network_name)?;
        let leased = self.leases(network_name);
        let addresses = choose(network_name, network, &spec.addresses, &name, &leased, seen)?;
        let mac = match &spec.mac {
            None => container_mac(network_name, &name, &addresses),
            Some(text) => self.check_mac(network_name, text)?,
        };
        let used = |candidate: &str| self.by_ifname(candidate).is_some();
        let host_side = if spec.tap { ifname.clone() } else { attached_ifname(&name, used) };
        if let Some(network) = self.networks.get_mut(network_name) {
            network.last_lease.resize(network.gateways.len(), None);
            for (last, address) in network.last_lease.iter_mut().zip(&addresses) {
                // An address asked for by name does not move the cursor.
                if !spec.addresses.contains(&address.addr()) {
                    *last = Some(address.addr());
                }
            }
        }
        let attachment =
            Attachment { netns: path, netns_id: (id.dev, id.ino), ifname, mac, addresses, tap: spec.tap };
        let port = Port {
            network: network_name.to_owned(),
            ifname: host_side,
            since: now,
            origin: Origin::Attached(attachment),
        };
        self.ports.insert(name.clone(), port);
        if !spec.aliases.is_empty() {
            self.aliases.insert(name.clone(), spec.aliases.clone());
        }
        Ok(name)
    }

    fn check_mac(&self, network: &str, text: &str) -> Result<Mac, EditError> {
        let fail = |why: &str| EditError::Mac { mac: short(text), why: why.to_owned() };
        let mac: Mac = text
            .parse()
            .map_err(|_| fail("six hex bytes with colons are wanted, as in 02:00:00:00:00:0a"))?;
        if mac.is_multicast() {
            return Err(fail("it is a multicast address; the first byte must be even"));
        }
        if mac == Mac::ZERO {
            return Err(fail("it is all zeroes"));
        }
        if self.networks.get(network).is_some_and(|n| n.gateway_mac == mac) {
            return Err(fail(&format!("it is that of the gateway of network {network}")));
        }
        Ok(mac)
    }

    /// Removes a port that `port add` made.
    ///
    /// # Errors
    /// When there is none, or it is of another kind.
    pub fn remove_port(&mut self, name: &str) -> Result<(), EditError> {
        match self.port(name)?.origin {
            Origin::Added => self.forget(name),
            Origin::Attached(_) => {
                return Err(EditError::OtherKind { port: name.to_owned(), made: "attach", remove: "detach" });
            }
            Origin::Endpoint(_) => return Err(EditError::Docker(name.to_owned())),
        }
        Ok(())
    }

    /// Removes a port that `attach` made.
    ///
    /// # Errors
    /// When there is none, or it is of another kind.
    pub fn detach(&mut self, name: &str) -> Result<(), EditError> {
        match self.port(name)?.origin {
            Origin::Attached(_) | Origin::Endpoint(_) => self.forget(name),
            Origin::Added => {
                return Err(EditError::OtherKind {
                    port: name.to_owned(),
                    made: "port add",
                    remove: "port rm",
                });
            }
        }
        Ok(())
    }

    /// Removes a port of any kind with all that belongs to it.
    pub fn forget(&mut self, name: &str) {
        self.ports.remove(name);
        self.statics.retain(|_, s| s.port != name);
        self.settings.remove(name);
        self.aliases.remove(name);
        self.leased.remove(name);
    }

    /// The port of this name; host ends are none.
    ///
    /// # Errors
    /// When there is none.
    pub fn port(&self, name: &str) -> Result<&Port, EditError> {
        if let Some(network) = self.host_end(name) {
            return Err(EditError::HostEnd { port: name.to_owned(), network: network.to_owned() });
        }
        self.ports.get(name).ok_or_else(|| EditError::NotFound {
            what: "port",
            name: short(name),
            hint: "'swctl port ls' lists them".into(),
        })
    }

    /// Binds a MAC to a port.
    ///
    /// # Errors
    /// When it is not a unicast MAC, the gateway's, or there is no such port.
    pub fn add_static(&mut self, mac: &str, port: &str) -> Result<Static, EditError> {
        let network = self.port(port)?.network.clone();
        let mac = self.check_mac(&network, mac)?;
        let new = Static { mac, network, port: port.to_owned() };
        self.statics.insert(static_key(&new.network, mac), new.clone());
        Ok(new)
    }

    /// Unbinds a MAC; tells whether it was bound.
    pub fn remove_static(&mut self, network: &str, mac: Mac) -> bool {
        self.statics.remove(&static_key(network, mac)).is_some()
    }
}

impl Port {
    /// Addresses that it was made with. [`Desired::addresses`] has all that are its own.
    pub fn addresses(&self) -> &[IpNet] {
        match &self.origin {
            Origin::Added => &[],
            Origin::Attached(a) => &a.addresses,
            Origin::Endpoint(e) => &e.addresses,
        }
    }

    /// The MAC that was given to its container.
    pub fn container_mac(&self) -> Option<Mac> {
        match &self.origin {
            Origin::Added => None,
            Origin::Attached(a) => Some(a.mac),
            Origin::Endpoint(e) => Some(e.mac),
        }
    }

    /// Whether a TAP stands behind it.
    pub fn is_tap(&self) -> bool {
        matches!(&self.origin, Origin::Attached(a) if a.tap)
    }
}

fn static_key(network: &str, mac: Mac) -> String {
    format!("{network}/{mac}")
}

/// A name for an error line: not longer than a name can be.
fn short(name: &str) -> String {
    if name.chars().count() <= spec::MAX_NAME && !name.chars().any(char::is_control) {
        return name.to_owned();
    }
    let start: String = name.chars().filter(|c| !c.is_control()).take(24).collect();
    format!("{start}…")
}

/// The switch's end of a network's host pair.
pub fn host_port_ifname(host_ifname: &str) -> String {
    format!("{host_ifname}p")
}

/// The switch's end of a container's pair: the port's name and `.p`; a long name is cut and made unique by a hash.
fn attached_ifname(name: &str, used: impl Fn(&str) -> bool) -> String {
    let plain = format!("{name}.p");
    if plain.len() <= spec::MAX_IFNAME && !used(&plain) {
        return plain;
    }
    let start: String = name.chars().take(4).collect();
    let made = |salt: u32| {
        let [a, b, c, d, ..] = Mac::from_seed(format!("{name}/{salt}").as_bytes()).0;
        format!("{start}-{a:02x}{b:02x}{c:02x}{d:02x}.p")
    };
    (0..u32::MAX).map(made).find(|n| !used(n)).unwrap_or_default()
}

/// A port name made of how the user named the namespace.
pub(super) fn name_of(netns: &str) -> String {
    if !netns.is_empty() && netns.bytes().all(|b| b.is_ascii_digit()) {
        return format!("pid{netns}");
    }
    let parts: Vec<&str> = netns.trim_end_matches('/').split('/').collect();
    match parts.as_slice() {
        [.., "proc", pid, "ns", "net"] => format!("pid{pid}"),
        [.., last] => (*last).to_owned(),
        [] => String::new(),
    }
}

/// A stable, locally administered MAC: made of the IPv4 address, so that whoever gets the address gets the MAC, and no
/// neighbour's cache is ever wrong; of the name where there is none.
fn container_mac(network: &str, name: &str, addresses: &[IpNet]) -> Mac {
    let v4 = addresses.iter().find_map(|a| if let IpAddr::V4(v4) = a.addr() { Some(v4) } else { None });
    let seed = Mac::from_seed(network.as_bytes()).0[5];
    match v4.map(|a| a.octets()) {
        Some([a, b, c, d]) => Mac([0x02, seed, a, b, c, d]),
        None => Mac::from_seed(format!("{network}/{name}").as_bytes()),
    }
}

#[cfg(test)]
mod tests;
