//! Names: who is called what in which network, and what a gateway says to a question about it. Pure.
//!
//! [`Names`] is part of the [snapshot](crate::snapshot::Snapshot), so a name is known from the moment in which the workers know the
//! port, and gone with it. [`respond`] is the answer to a question by it.

pub mod made;
pub mod respond;
pub mod stream;

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::snapshot::NetworkId;

/// The domain below which all names are, too. RFC 9476 and ICANN reserve `internal` for such use.
pub const DOMAIN: &str = "swd.internal";

/// The names of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Zone {
    name: String,
    subnets: Vec<IpNet>,
    /// Addresses by name, in lower case. A name that several ports have has the addresses of all.
    addresses: HashMap<String, Vec<IpAddr>, foldhash::fast::RandomState>,
    /// What a port is called, by its address.
    owners: HashMap<IpAddr, String, foldhash::fast::RandomState>,
}

/// The names of all networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    zones: HashMap<NetworkId, Zone, foldhash::fast::RandomState>,
}

/// Whose view of the names it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// That of a container in this network.
    Network(NetworkId),
    /// The host's: the names of all networks, each with its network's.
    Host,
}

/// What is known of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The port with it is called so, in full.
    Port(String),
    /// It is one of the switch's, and nobody's in the network that asks.
    Nobody,
    /// It is for others to know.
    Elsewhere,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known<'a> {
    /// It has these addresses.
    Addresses(&'a [IpAddr]),
    /// It would be one of ours, and there is none.
    Missing,
    /// It is for others to know.
    Elsewhere,
}

impl Names {
    /// Adds a network, whose gateway answers for its names.
    pub fn add_network(&mut self, id: NetworkId, name: &str, subnets: impl IntoIterator<Item = IpNet>) {
        let zone = self.zones.entry(id).or_default();
        zone.name = name.to_ascii_lowercase();
        zone.subnets.extend(subnets);
    }

    /// Adds a port's addresses by its name and its aliases. Nothing happens in a network that has no names.
    pub fn add_port<'a>(
        &mut self,
        network: NetworkId,
        name: &'a str,
        aliases: impl Iterator<Item = &'a str>,
        addresses: &[IpAddr],
    ) {
        let Some(zone) = self.zones.get_mut(&network) else { return };
        let mut called: Vec<_> = std::iter::once(name).chain(aliases).map(str::to_ascii_lowercase).collect();
        called.sort_unstable();
        called.dedup();
        for name in called {
            zone.addresses.entry(name).or_default().extend(addresses);
        }
        zone.owners.extend(addresses.iter().map(|a| (*a, name.to_ascii_lowercase())));
    }

    /// What a name means. `name` is in lower case, without the last dot.
    ///
    /// To a container `web`, `web.NETWORK` and both below [`DOMAIN`] are names of its own network, and a name without a dot is never
    /// asked of others: it could only be meant for here. To the host they are `web.NETWORK`, of any network, and the same below [`DOMAIN`].
    pub fn find(&self, view: View, name: &str) -> Known<'_> {
        let ours = name == DOMAIN || name.strip_suffix(DOMAIN).is_some_and(|rest| rest.ends_with('.'));
        let local = if ours { name[..name.len() - DOMAIN.len()].trim_end_matches('.') } else { name };
        let (found, claimed) = match view {
            View::Host => {
                let mut short = self.zones.values().filter_map(|zone| Some((zone, zone.short(local)?)));
                let found = short.clone().find_map(|(zone, short)| zone.addresses.get(short));
                (found, short.next().is_some())
            }
            View::Network(network) => {
                let Some(zone) = self.zones.get(&network) else { return Known::Elsewhere };
                let short = zone.short(local);
                let found = zone.addresses.get(local).or_else(|| zone.addresses.get(short?));
                (found, short.is_some() || !name.contains('.'))
            }
        };
        match found {
            Some(addresses) => Known::Addresses(addresses),
            None if ours || claimed => Known::Missing,
            None => Known::Elsewhere,
        }
    }

    /// Whose an address is. Inside addresses are never asked of others: they are nothing for the outside.
    pub fn owner(&self, view: View, address: IpAddr) -> Owner {
        let full = |zone: &Zone| {
            let port = zone.owners.get(&address)?;
            Some(format!("{port}.{}.{DOMAIN}", zone.name))
        };
        let owner = match view {
            View::Host => self.zones.values().find_map(full),
            View::Network(network) => self.zones.get(&network).and_then(full),
        };
        match owner {
            Some(name) => Owner::Port(name),
            None if self.zones.values().flat_map(|z| &z.subnets).any(|s| s.contains(&address)) => {
                Owner::Nobody
            }
            None => Owner::Elsewhere,
        }
    }
}

impl Zone {
    /// The name without the network's. What is left may have dots: a port's name may.
    fn short<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_suffix(self.name.as_str())?.strip_suffix('.')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: View = View::Network(NetworkId(0));

    fn some() -> Names {
        let mut names = Names::default();
        let [here, there] = [NetworkId(0), NetworkId(1)];
        names.add_network(here, "default", ["10.0.0.0/16".parse().unwrap()]);
        names.add_network(there, "other", ["10.1.0.0/16".parse().unwrap()]);
        let ip = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        names.add_port(here, "Web", ["shop", "web", "SHOP"].into_iter(), &ip("10.0.0.2"));
        names.add_port(here, "web2.a", ["shop"].into_iter(), &ip("10.0.0.3"));
        names.add_port(there, "db", std::iter::empty(), &ip("10.1.0.2"));
        names
    }

    #[test]
    fn names_are_those_of_the_own_network() {
        let names = some();
        let web = ["10.0.0.2".parse().unwrap()];
        for name in ["web", "web.default", "web.swd.internal", "web.default.swd.internal"] {
            assert_eq!(names.find(HERE, name), Known::Addresses(&web), "{name}");
        }
        assert!(matches!(names.find(HERE, "web2.a"), Known::Addresses(a) if a.len() == 1));
        assert!(matches!(names.find(HERE, "shop"), Known::Addresses(a) if a.len() == 2));
        for name in ["db", "nobody", "db.swd.internal", "db.other.swd.internal", "x.default", DOMAIN] {
            assert_eq!(names.find(HERE, name), Known::Missing, "{name}");
        }
        for name in ["example.org", "db.other", "notswd.internal", "xdefault.org"] {
            assert_eq!(names.find(HERE, name), Known::Elsewhere, "{name}");
        }
    }

    #[test]
    fn an_address_has_the_ports_name_not_its_aliases() {
        let owner = |at, text: &str| some().owner(at, text.parse().unwrap());
        assert_eq!(owner(HERE, "10.0.0.2"), Owner::Port("web.default.swd.internal".into()));
        assert_eq!(owner(HERE, "10.0.0.9"), Owner::Nobody);
        assert_eq!(owner(HERE, "10.1.0.2"), Owner::Nobody, "another network's");
        assert_eq!(owner(HERE, "192.0.2.1"), Owner::Elsewhere);
        assert_eq!(owner(View::Host, "10.1.0.2"), Owner::Port("db.other.swd.internal".into()));
        assert_eq!(owner(View::Host, "10.1.0.3"), Owner::Nobody);
    }

    #[test]
    fn the_host_has_the_names_of_all_networks_with_the_networks() {
        let names = some();
        for name in ["web.default", "db.other.swd.internal", "db.other", "web2.a.default.swd.internal"] {
            assert!(matches!(names.find(View::Host, name), Known::Addresses(a) if a.len() == 1), "{name}");
        }
        for name in
            ["nobody.default", "web.swd.internal", "web.other.swd.internal", "x.y.swd.internal", DOMAIN]
        {
            assert_eq!(names.find(View::Host, name), Known::Missing, "{name}");
        }
        for name in ["web", "default", "example.org"] {
            assert_eq!(names.find(View::Host, name), Known::Elsewhere, "{name}");
        }
    }
}
