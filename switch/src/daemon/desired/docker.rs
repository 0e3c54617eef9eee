//! What Docker wants: its networks by their ids, and the endpoints of its containers, which are ports. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Desired, EditError, Network, Origin, Port, attached_ifname, choose, container_mac, mac_text};
use crate::mac::Mac;

/// Shortest id that a port's name can be made of.
const MIN_ID: usize = 10;
/// Docker's ids have 64 digits.
const MAX_ID: usize = 128;

/// A network of Docker's.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DockerNetwork {
    /// The network here.
    pub network: String,
    /// Made for Docker, and goes with it; else Docker was let into one that was there before.
    pub made: bool,
    /// The network has no way out, as an earlier swd kept it; now [`Network`] does.
    #[serde(default, skip_serializing)]
    pub internal: bool,
    /// What names of interfaces in containers begin with.
    pub prefix: String,
    /// Where ports are published whose address is left open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Addresses that no container gets unless it asks for them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub reserved: BTreeSet<IpAddr>,
}

/// A container's place in a network: one end of a pair of ours, which Docker takes and configures.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Docker's id.
    pub id: String,
    /// Name of the container's end for as long as it is on the host: before Docker takes it, and after.
    pub ifname: String,
    /// Its MAC.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// Its addresses, with the subnet's prefix length.
    pub addresses: Vec<IpNet>,
}

/// What an endpoint is to have.
#[derive(Clone, Copy, Debug)]
pub struct EndpointSpec<'a> {
    /// Docker's id of its network.
    pub network: &'a str,
    /// Docker's id.
    pub id: &'a str,
    /// At most one address of each family; from the network's pool when empty.
    pub addresses: &'a [IpAddr],
    /// Those among them that swd itself gave.
    pub given: &'a [IpAddr],
    /// From its address when left out.
    pub mac: Option<&'a str>,
}

/// The port of an endpoint.
///
/// # Errors
/// When it is no id.
pub fn port_of(endpoint: &str) -> Result<String, EditError> {
    check_id(endpoint)?;
    Ok(format!("ep-{}", endpoint.get(..MIN_ID).unwrap_or(endpoint)))
}

/// An id of Docker's is letters and digits.
///
/// # Errors
/// When it is something else.
pub fn check_id(id: &str) -> Result<(), EditError> {
    let fits = (MIN_ID..=MAX_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric());
    if fits { Ok(()) } else { Err(EditError::DockerId(super::short(id))) }
}

impl Desired {
    /// Networks that an earlier swd has kept as internal with what Docker knows of them.
    pub(crate) fn take_over_internal(&mut self) {
        for known in self.docker.values_mut() {
            if let Some(network) = self.networks.get_mut(&known.network) {
                network.internal |= std::mem::take(&mut known.internal);
            }
        }
    }

    /// A network of Docker's, and what it is here.
    ///
    /// # Errors
    /// When it is not known.
    pub fn docker_network(&self, id: &str) -> Result<(&DockerNetwork, &Network), EditError> {
        let missing = || EditError::NotFound {
            what: "network of Docker's with the id",
            name: super::short(id),
            hint: "remove it with 'docker network rm' and create it again".into(),
        };
        let known = self.docker.get(id).ok_or_else(missing)?;
        Ok((known, self.network(&known.network)?))
    }

    /// Forgets a network of Docker's; that it is not known is fine. One that was made for Docker goes.
    ///
    /// # Errors
    /// When it has ports.
    pub fn remove_docker_network(&mut self, id: &str) -> Result<(), EditError> {
        match self.docker.get(id).cloned() {
            Some(known) if known.made => self.remove_network(&known.network),
            Some(_) => {
                self.docker.remove(id);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The port of an endpoint, if there is one.
    ///
    /// # Errors
    /// When the id is none.
    pub fn endpoint(&self, id: &str) -> Result<Option<(String, &Port, &Endpoint)>, EditError> {
        let name = port_of(id)?;
        let found = self.ports.get(&name).and_then(|port| match &port.origin {
            Origin::Endpoint(e) if e.id == id => Some((port, e)),
            _ => None,
        });
        Ok(found.map(|(port, e)| (name, port, e)))
    }

    /// Adds an endpoint; tells its port's name. `seen` tells whether an address is in use on the wire.
    ///
    /// # Errors
    /// When the network is not known, or an address or the MAC cannot be had.
    pub fn add_endpoint(
        &mut self,
        spec: EndpointSpec<'_>,
        now: Timestamp,
        seen: impl Fn(&str, IpAddr) -> bool,
    ) -> Result<String, EditError> {
        let name = port_of(spec.id)?;
        let (known, network) = self.docker_network(spec.network)?;
        let network_name = known.network.clone();
        self.check_new_port("make the endpoint", &name, &network_name)?;
        // Docker knows families of its own: one that it did not give an address in has none.
        let mut narrowed = network.clone();
        narrowed.gateways.retain(|(subnet, _)| {
            spec.addresses.is_empty() || spec.addresses.iter().any(|a| subnet.contains(a))
        });
        let full = if narrowed.gateways.is_empty() { network } else { &narrowed };
        let leased = self.leases(&network_name);
        let addresses = choose(&network_name, full, spec.addresses, &name, &leased, seen)?;
        let mac = match spec.mac {
            None => container_mac(&network_name, &name, &addresses),
            Some(text) => self.check_mac(&network_name, text)?,
        };
        if let Some(network) = self.networks.get_mut(&network_name) {
            network.last_lease.resize(network.gateways.len(), None);
            for ((subnet, _), last) in network.gateways.iter().zip(&mut network.last_lease) {
                let ours = |a: &IpAddr| spec.given.contains(a) || !spec.addresses.contains(a);
                let chosen = addresses.iter().map(IpNet::addr).find(|a| subnet.contains(a) && ours(a));
                *last = chosen.or(*last);
            }
        }
        let used = |candidate: &str| self.by_ifname(candidate).is_some();
        let port = Port {
            ifname: attached_ifname(&name, used),
            network: network_name,
            since: now,
            origin: Origin::Endpoint(Endpoint {
                id: spec.id.to_owned(),
                ifname: name.clone(),
                mac,
                addresses,
            }),
        };
        self.ports.insert(name.clone(), port);
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: &str = "0123456789abcdef";
    const ENDPOINT: &str = "fedcba9876543210";

    fn desired() -> Desired {
        let mut d = Desired::default();
        let json = r#"{"name":"web","subnets":["10.9.0.0/24","fd00:9::/64"]}"#;
        d.add_network("swd", &serde_json::from_str(json).unwrap(), |_| false).unwrap();
        let known = DockerNetwork {
            network: "web".into(),
            made: true,
            internal: false,
            prefix: "eth".into(),
            host_ip: None,
            reserved: BTreeSet::new(),
        };
        d.docker.insert(NETWORK.into(), known);
        d
    }

    fn add(d: &mut Desired, id: &str, addresses: &[&str]) -> Result<String, EditError> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let spec = EndpointSpec { network: NETWORK, id, addresses: &addresses, given: &[], mac: None };
        d.add_endpoint(spec, Timestamp::UNIX_EPOCH, |_, _| false)
    }

    #[test]
    fn an_endpoint_is_a_port_with_the_addresses_that_docker_gave() {
        let mut d = desired();
        let name = add(&mut d, ENDPOINT, &["10.9.0.5"]).unwrap();
        assert_eq!(name, "ep-fedcba9876");
        let (_, port, endpoint) = d.endpoint(ENDPOINT).unwrap().unwrap();
        assert_eq!(port.ifname, "ep-fedcba9876.p", "as long as a name may be");
        assert_eq!(
            endpoint.addresses,
            ["10.9.0.5/24".parse().unwrap()],
            "no IPv6 address unless Docker has one"
        );
        assert_eq!(endpoint.mac.0[2..], [10, 9, 0, 5]);
        assert!(d.endpoint("fedcba9876xxxxxx").unwrap().is_none(), "the same name, another endpoint");
        let taken = add(&mut d, "aaaaaaaaaaaaaaaa", &["10.9.0.5"]).unwrap_err().to_string();
        assert!(taken.contains("10.9.0.5 is leased to another container"), "{taken}");
        assert!(
            add(&mut d, "aaaaaaaaaaaaaaaa", &["10.8.0.5"]).unwrap_err().to_string().contains("is outside")
        );
        // Without IPAM swd gives one of each family.
        add(&mut d, "bbbbbbbbbbbbbbbb", &[]).unwrap();
        let (_, port, _) = d.endpoint("bbbbbbbbbbbbbbbb").unwrap().unwrap();
        assert_eq!(port.addresses(), ["10.9.0.2/24".parse().unwrap(), "fd00:9::2/64".parse().unwrap()]);
    }

    #[test]
    fn a_network_goes_with_what_docker_knows_of_it() {
        let mut d = desired();
        add(&mut d, ENDPOINT, &["10.9.0.5"]).unwrap();
        let said = d.remove_docker_network(NETWORK).unwrap_err().to_string();
        assert!(said.contains("it has ports (ep-fedcba9876)"), "{said}");
        d.detach("ep-fedcba9876").unwrap();
        d.remove_docker_network(NETWORK).unwrap();
        assert!(d.networks.is_empty() && d.docker.is_empty());
        d.remove_docker_network(NETWORK).unwrap();
        assert!(add(&mut d, ENDPOINT, &[]).unwrap_err().to_string().contains("docker network rm"));
        for bad in ["", "short", "../../etc/passwd", "0123456789-abcdef"] {
            assert!(port_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_network_of_an_earlier_swd_stays_internal() {
        let mut d = desired();
        d.docker.get_mut(NETWORK).unwrap().internal = true;
        d.take_over_internal();
        assert!(d.networks["web"].internal && !d.docker[NETWORK].internal);
    }

    #[test]
    fn only_what_swd_chose_moves_the_cursor() {
        let mut d = desired();
        add(&mut d, ENDPOINT, &["10.9.0.5"]).unwrap();
        assert_eq!(d.networks["web"].last_lease, [None, None]);
        let given: [IpAddr; 1] = ["10.9.0.6".parse().unwrap()];
        let id = "cccccccccccccccc";
        let spec = EndpointSpec { network: NETWORK, id, addresses: &given, given: &given, mac: None };
        d.add_endpoint(spec, Timestamp::UNIX_EPOCH, |_, _| false).unwrap();
        assert_eq!(d.networks["web"].last_lease, [Some(given[0]), None]);
    }
}
