//! Addresses: whose each is, and which a port may have.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::super::ipam::{self, Use};
use super::{Desired, EditError, Network, Port};
use crate::addressing::Advertised;
use crate::mac::Mac;
use crate::names::made::made_of;

/// The address that a port has by DHCP.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// With the subnet's prefix length.
    pub address: IpNet,
    /// The MAC that it was given to; none while nobody has asked.
    #[serde(default, with = "some_mac")]
    pub mac: Option<Mac>,
    /// The user chose it: it stays the port's, whatever the client says.
    #[serde(default)]
    pub reserved: bool,
}

mod some_mac {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::mac::Mac;

    pub(super) fn serialize<S: Serializer>(mac: &Option<Mac>, s: S) -> Result<S::Ok, S::Error> {
        mac.map(|mac| mac.to_string()).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Mac>, D::Error> {
        let text = Option::<String>::deserialize(d)?;
        text.map(|text| text.parse()).transpose().map_err(serde::de::Error::custom)
    }
}

impl Desired {
    /// Every address of a port.
    pub fn addresses(&self, name: &str) -> Vec<IpNet> {
        let made_with = self.ports.get(name).map(|port| port.addresses()).unwrap_or_default();
        made_with.iter().copied().chain(self.leased.get(name).map(|lease| lease.address)).collect()
    }

    /// The addresses that a port makes itself of what it is advertised, and of these MACs. Others that it may make it is not known by.
    pub(super) fn self_made(&self, name: &str, macs: impl Iterator<Item = Mac>) -> Vec<Ipv6Addr> {
        let settled = |port: &&Port| port.addresses().iter().any(|net| net.addr().is_ipv6());
        let port = self.ports.get(name).filter(|port| !settled(port));
        let network = port.and_then(|port| self.networks.get(&port.network));
        let Some(advertised) = network.and_then(Network::advertised) else { return Vec::new() };
        macs.filter_map(|mac| made_of(advertised.prefix, mac)).collect()
    }

    /// Addresses that containers of a network hold.
    pub fn leases(&self, network: &str) -> HashSet<IpAddr> {
        let ports = self.ports.iter().filter(|(_, port)| port.network == network);
        ports.flat_map(|(name, _)| self.addresses(name)).map(|net| net.addr()).collect()
    }

    /// The IPv4 address of a port, and the MAC that it is for; none while nobody has asked.
    pub fn holder(&self, name: &str) -> Option<(Ipv4Addr, Option<Mac>)> {
        let v4 = |net: &IpNet| if let IpAddr::V4(v4) = net.addr() { Some(v4) } else { None };
        let port = self.ports.get(name)?;
        let made_with = port.addresses().iter().find_map(v4).map(|address| (address, port.container_mac()));
        made_with.or_else(|| self.leased.get(name).and_then(|lease| Some((v4(&lease.address)?, lease.mac))))
    }

    /// Keeps an IPv4 address for a port that is about to be added.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(super) fn reserve(&mut self, name: &str, network: &str, address: IpAddr) -> Result<(), EditError> {
        let of = self.network(network)?;
        check_wanted(network, of, &[address], name, &self.leases(network))?;
        let fail = |why: &str| EditError::Address { port: name.to_owned(), address, why: why.to_owned() };
        if address.is_ipv6() {
            return Err(fail("is outside what DHCP gives: that is IPv4"));
        }
        if !of.dhcp {
            return Err(fail("would never be asked for: the network is one without DHCP (--no-dhcp)"));
        }
        let subnet = of.gateways.iter().map(|(subnet, _)| *subnet).find(|subnet| subnet.contains(&address));
        let prefix = subnet.map_or(32, |subnet| subnet.prefix_len());
        let address = IpNet::new(address, prefix).unwrap_or_else(|_| address.into());
        self.leased.insert(name.to_owned(), Lease { address, mac: None, reserved: true });
        Ok(())
    }

    /// The lease that a port without an IPv4 address gets: of `wanted` where that is free, else of the next free address.
    ///
    /// # Errors
    /// When there is no such port, the network has no IPv4, or there is no address left.
    pub fn choose_lease(
        &self,
        name: &str,
        mac: Mac,
        wanted: Option<Ipv4Addr>,
        seen: impl Fn(IpAddr) -> bool,
    ) -> Result<Lease, EditError> {
        let port = self.port(name)?;
        let network = self.network(&port.network)?;
        let mut pools = network.gateways.iter().enumerate();
        let Some((at, (subnet, gateway))) = pools.find(|(_, (subnet, _))| subnet.addr().is_ipv4()) else {
            let why = format!("network {} has no IPv4 subnet", port.network);
            return Err(EditError::Lease { port: name.to_owned(), why });
        };
        let last = network.last_lease.get(at).copied().flatten();
        let leased = self.leases(&port.network);
        let used = |address| match leased.contains(&address) {
            true => Use::Leased,
            false if seen(address) => Use::Seen,
            false => Use::Free,
        };
        let good = |a: &IpAddr| ipam::is_host(*subnet, *a) && a != gateway && used(*a) == Use::Free;
        let address = match wanted.map(IpAddr::V4).filter(good) {
            Some(wanted) => wanted,
            None => ipam::next(*subnet, *gateway, last, used).map_err(|source| EditError::Exhausted {
                port: name.to_owned(),
                network: port.network.clone(),
                source,
            })?,
        };
        // The prefix length is the subnet's own, so it fits the address.
        let address = IpNet::new(address, subnet.prefix_len()).unwrap_or(*subnet);
        Ok(Lease { address, mac: Some(mac), reserved: false })
    }

    /// Gives a port a lease, in place of the one it has; none takes it away.
    pub fn set_lease(&mut self, name: &str, lease: Option<Lease>) {
        let Some(lease) = lease else {
            self.leased.remove(name);
            return;
        };
        let network = self.ports.get(name).and_then(|port| self.networks.get_mut(&port.network));
        if let Some(network) = network {
            network.last_lease.resize(network.gateways.len(), None);
            let pools = network.gateways.iter().zip(&mut network.last_lease);
            for (_, last) in pools.filter(|((subnet, _), _)| subnet.contains(&lease.address.addr())) {
                *last = Some(lease.address.addr());
            }
        }
        self.leased.insert(name.to_owned(), lease);
    }
}

impl Network {
    /// What it advertises, if the gateway is there.
    pub fn advertised(&self) -> Option<Advertised> {
        let v6 = self.gateways.iter().find_map(|gateway| match gateway {
            (IpNet::V6(prefix), IpAddr::V6(gateway)) => Some((*prefix, *gateway)),
            _ => None,
        });
        let (prefix, gateway) = v6.filter(|_| self.ra)?;
        Some(Advertised { prefix, gateway })
    }
}

/// Whether a port can have the addresses that are wanted for it.
fn check_wanted(
    network_name: &str,
    network: &Network,
    wanted: &[IpAddr],
    port: &str,
    leased: &HashSet<IpAddr>,
) -> Result<(), EditError> {
    let fail = |address: IpAddr, why: String| EditError::Address { port: port.to_owned(), address, why };
    for address in wanted {
        let Some((subnet, gateway)) = network.gateways.iter().find(|(s, _)| s.contains(address)) else {
            let all: Vec<String> = network.gateways.iter().map(|(s, _)| s.to_string()).collect();
            return Err(fail(*address, format!("is outside network {network_name} ({})", all.join(", "))));
        };
        if address == gateway {
            return Err(fail(*address, format!("is the gateway of network {network_name}")));
        }
        if !ipam::is_host(*subnet, *address) {
            return Err(fail(*address, format!("is the network or broadcast address of {subnet}")));
        }
        if wanted.iter().filter(|w| subnet.contains(*w)).count() > 1 {
            return Err(fail(
                *address,
                format!("is the second one wanted in {subnet}; give one of each family"),
            ));
        }
        if leased.contains(address) {
            let why = format!(
                "is leased to another container of network {network_name} ('swctl port ls' shows which)"
            );
            return Err(fail(*address, why));
        }
    }
    Ok(())
}

/// The addresses of a new container: those wanted, else the next free one of each subnet.
pub(super) fn choose(
    network_name: &str,
    network: &Network,
    wanted: &[IpAddr],
    port: &str,
    leased: &HashSet<IpAddr>,
    seen: impl Fn(&str, IpAddr) -> bool,
) -> Result<Vec<IpNet>, EditError> {
    check_wanted(network_name, network, wanted, port, leased)?;
    let pools = network.gateways.iter().enumerate();
    let one = |(at, (subnet, gateway)): (usize, &(IpNet, IpAddr))| {
        let address = match wanted.iter().find(|w| subnet.contains(*w)) {
            Some(wanted) => *wanted,
            None => {
                let last = network.last_lease.get(at).copied().flatten();
                let used = |a| match leased.contains(&a) {
                    true => Use::Leased,
                    false if seen(network_name, a) => Use::Seen,
                    false => Use::Free,
                };
                ipam::next(*subnet, *gateway, last, used).map_err(|source| EditError::Exhausted {
                    port: port.to_owned(),
                    network: network_name.to_owned(),
                    source,
                })?
            }
        };
        // The prefix length is the subnet's own, so it fits the address.
        Ok(IpNet::new(address, subnet.prefix_len()).unwrap_or(*subnet))
    };
    pools.map(one).collect()
}

#[cfg(test)]
mod tests {
    use ctl::api::{NetworkSpec, PortSpec};
    use jiff::Timestamp;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn world() -> Desired {
        let mut new = Desired::default();
        let spec = r#"{"name":"default","subnets":["10.0.0.0/29","fd00:7::/64"]}"#;
        let spec: NetworkSpec = serde_json::from_str(spec).unwrap();
        new.add_network("swd", &spec, |_| false).unwrap();
        new
    }

    fn add(to: &mut Desired, ifname: &str, address: Option<&str>) -> Result<String, EditError> {
        let address = address.map(|text| text.parse().unwrap());
        let spec = PortSpec { ifname: ifname.into(), name: None, network: None, address };
        to.add_port(&spec, Timestamp::UNIX_EPOCH)
    }

    fn lease(of: &Desired, name: &str, wanted: Option<&str>) -> Result<String, EditError> {
        let wanted = wanted.map(|text| text.parse().unwrap());
        let seen = |address: IpAddr| address.to_string() == "10.0.0.6";
        of.choose_lease(name, MAC, wanted, seen).map(|lease| lease.address.to_string())
    }

    #[test]
    fn a_lease_is_what_is_wished_for_else_the_next_one() {
        let mut d = world();
        add(&mut d, "a", None).unwrap();
        add(&mut d, "b", Some("10.0.0.3")).unwrap();
        let cases = [
            (None, "10.0.0.2/29"),
            (Some("10.0.0.5"), "10.0.0.5/29"),
            (Some("10.0.0.3"), "10.0.0.2/29"),
            (Some("10.0.0.6"), "10.0.0.2/29"),
            (Some("10.0.0.1"), "10.0.0.2/29"),
            (Some("10.0.0.7"), "10.0.0.2/29"),
            (Some("192.0.2.1"), "10.0.0.2/29"),
        ];
        for (wanted, expected) in cases {
            assert_eq!(lease(&d, "a", wanted).as_deref(), Ok(expected), "{wanted:?}");
        }
        let given = d.choose_lease("a", MAC, None, |_| false).unwrap();
        d.set_lease("a", Some(given));
        assert_eq!(d.holder("a"), Some((Ipv4Addr::new(10, 0, 0, 2), Some(MAC))));
        assert_eq!(d.holder("b"), Some((Ipv4Addr::new(10, 0, 0, 3), None)));
        assert_eq!(d.leases("default").len(), 2);
        let back: Desired = serde_json::from_str(&serde_json::to_string(&d).unwrap()).unwrap();
        assert_eq!(back, d);
        // Given back, it comes last.
        d.set_lease("a", None);
        assert_eq!(lease(&d, "a", None).as_deref(), Ok("10.0.0.4/29"));
        d.remove_port("b").unwrap();
        assert!(d.leased.is_empty());
    }

    #[test]
    fn an_address_is_reserved_once_and_only_where_it_is_given() {
        let mut d = world();
        add(&mut d, "a", Some("10.0.0.3")).unwrap();
        for (address, why) in [
            ("10.0.0.3", "is leased to another"),
            ("10.0.0.1", "is the gateway"),
            ("fd00:7::9", "is outside what DHCP gives"),
            ("10.9.0.1", "is outside network default"),
        ] {
            let said = add(&mut d, "b", Some(address)).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
            assert!(!d.leased.contains_key("b"));
        }
        d.networks.values_mut().for_each(|network| network.dhcp = false);
        let said = add(&mut d, "b", Some("10.0.0.4")).unwrap_err().to_string();
        assert!(said.contains("--no-dhcp"), "{said}");
    }

    #[test]
    fn a_port_makes_an_address_of_a_prefix_of_64_bits() {
        let mut d = world();
        add(&mut d, "a", None).unwrap();
        assert_eq!(d.self_made("a", [MAC].into_iter()), ["fd00:7::ff:fe00:9".parse::<Ipv6Addr>().unwrap()]);
        assert_eq!(made_of("fd00:7::/80".parse().unwrap(), MAC), None);
        d.networks.values_mut().for_each(|network| network.ra = false);
        assert!(d.self_made("a", [MAC].into_iter()).is_empty());
    }
}
