//! Names: who is called what in which network, and what a gateway says to a question about it. Pure.
//!
//! [`Names`] is part of the [snapshot](crate::snapshot::Snapshot), so a name is known from the moment in which the workers know the
//! port, and gone with it. [`respond`] is the answer to a question by it.

pub mod respond;

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
        for called in std::iter::once(name).chain(aliases) {
            let known = zone.addresses.entry(called.to_ascii_lowercase()).or_default();
            known.extend(addresses);
        }
        zone.owners.extend(addresses.iter().map(|a| (*a, name.to_ascii_lowercase())));
    }

    /// What a name means to a container of a network. `name` is in lower case, without the last dot.
    ///
    /// `web`, `web.NETWORK` and both below [`DOMAIN`] are names of the container's own network. A name without a dot is never asked
    /// of others: it could only be meant for here.
    pub fn find(&self, network: NetworkId, name: &str) -> Known<'_> {
        let Some(zone) = self.zones.get(&network) else { return Known::Elsewhere };
        let ours = name == DOMAIN || name.strip_suffix(DOMAIN).is_some_and(|rest| rest.ends_with('.'));
        let local = if ours { name[..name.len() - DOMAIN.len()].trim_end_matches('.') } else { name };
        // A port's name may have dots itself.
        let short = local.strip_suffix(zone.name.as_str()).and_then(|rest| rest.strip_suffix('.'));
        let found = zone.addresses.get(local).or_else(|| zone.addresses.get(short?));
        match found {
            Some(addresses) => Known::Addresses(addresses),
            None if ours || short.is_some() || !name.contains('.') => Known::Missing,
            None => Known::Elsewhere,
        }
    }

    /// Whose an address is, to a container of a network. Inside addresses are never asked of others: they are nothing for the outside.
    pub fn owner(&self, network: NetworkId, address: IpAddr) -> Owner {
        let zone = self.zones.get(&network);
        match zone.and_then(|zone| Some((zone.owners.get(&address)?, &zone.name))) {
            Some((port, network)) => Owner::Port(format!("{port}.{network}.{DOMAIN}")),
            None if self.zones.values().flat_map(|z| &z.subnets).any(|s| s.contains(&address)) => {
                Owner::Nobody
            }
            None => Owner::Elsewhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: NetworkId = NetworkId(0);
    const THERE: NetworkId = NetworkId(1);

    fn some() -> Names {
        let mut names = Names::default();
        names.add_network(HERE, "default", ["10.0.0.0/16".parse().unwrap()]);
        names.add_network(THERE, "other", ["10.1.0.0/16".parse().unwrap()]);
        let ip = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        names.add_port(HERE, "Web", ["shop"].into_iter(), &ip("10.0.0.2"));
        names.add_port(HERE, "web2.a", ["shop"].into_iter(), &ip("10.0.0.3"));
        names.add_port(THERE, "db", std::iter::empty(), &ip("10.1.0.2"));
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
    }
}
