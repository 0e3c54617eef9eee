//! Addresses that containers have made themselves: of the prefix that their gateway advertises and of their MAC (RFC 4862; RFC 4291,
//! appendix A).
//!
//! swd did not give them out, so nobody is believed who says that he has one. A name leads to such an address only beside the one that
//! swd has given the port, and only if both were seen with one MAC behind that port. So a port has one at most, no container
//! can put one to another's name, and it is gone with the port. Containers that make up their addresses otherwise (RFC 7217, RFC 8981)
//! have no name for them.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

use crate::mac::Mac;
use crate::router::gateway::link_local;
use crate::router::neighbor::Neighbors;
use crate::snapshot::Snapshot;

/// What such addresses are found by.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    /// Networks, and what swd has given out.
    pub snapshot: &'a Snapshot,
    /// Who was seen with which address.
    pub neighbors: &'a Neighbors,
}

impl Made<'_> {
    /// The address that the container which was given this one has made.
    pub fn beside(&self, given: IpAddr) -> Option<Ipv6Addr> {
        let network = self.snapshot.network_of(given)?;
        let owner = self.neighbors.user(network.id, given)?;
        if self.snapshot.leases.get(&(network.id, given)) != Some(&owner.1) {
            return None;
        }
        let made = network.gateways.iter().find_map(|gateway| match gateway.subnet {
            IpNet::V6(prefix) => made_of(prefix, owner.0),
            IpNet::V4(_) => None,
        })?;
        let key = (network.id, IpAddr::from(made));
        let is_made =
            !self.snapshot.leases.contains_key(&key) && self.neighbors.user(key.0, key.1) == Some(owner);
        is_made.then_some(made)
    }

    /// The address that was given to the container which has made this one.
    pub fn given(&self, made: Ipv6Addr) -> Option<IpAddr> {
        let network = self.snapshot.network_of(made.into())?.id;
        let (_, port) = self.neighbors.user(network, made.into())?;
        let mut given =
            self.snapshot.leases.iter().filter(|(key, owner)| key.0 == network && **owner == port);
        given.find_map(|((_, given), _)| (self.beside(*given) == Some(made)).then_some(*given))
    }
}

/// The address that a container makes of a prefix of 64 bits and its MAC.
pub(crate) fn made_of(prefix: Ipv6Net, mac: Mac) -> Option<Ipv6Addr> {
    let own = u128::from(link_local(mac)) & u128::from(u64::MAX);
    (prefix.prefix_len() == 64).then(|| Ipv6Addr::from(u128::from(prefix.network()) | own))
}

#[cfg(test)]
mod tests {
    use nat::Time;

    use super::*;
    use crate::snapshot::{Gateway, Network, NetworkId, PortId};

    const NET: NetworkId = NetworkId(0);
    const OWN: Mac = Mac([2, 0, 0, 0, 0, 7]);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn snapshot() -> Snapshot {
        let gateway =
            |subnet: &str, address: &str| Gateway { subnet: subnet.parse().unwrap(), address: ip(address) };
        let network = Network {
            id: NET,
            name: "six".into(),
            gateways: vec![gateway("10.0.0.0/24", "10.0.0.1"), gateway("fd00::/64", "fd00::1")],
            gateway_mac: Mac::ZERO,
            mtu: 1500,
            host_port: None,
            isolate_ports: false,
            masquerade: true,
            flood: Vec::new(),
        };
        let mut snapshot = Snapshot::new([network], [], []);
        snapshot.leases.insert((NET, ip("10.0.0.7")), PortId(1));
        snapshot.leases.insert((NET, ip("10.0.0.8")), PortId(2));
        snapshot
    }

    #[test]
    fn one_mac_behind_one_port_has_both() {
        let (snapshot, neighbors) = (snapshot(), Neighbors::default());
        let made = Made { snapshot: &snapshot, neighbors: &neighbors };
        let (given, own) = (ip("10.0.0.7"), ip("fd00::ff:fe00:7"));
        let note = |address, mac, port| neighbors.note(NET, address, mac, PortId(port), Time::from_secs(1));
        note(own, OWN, 1);
        assert_eq!(made.beside(given), None, "nobody was seen with the given one");
        note(given, OWN, 1);
        assert_eq!(made.beside(given).map(IpAddr::from), Some(own));
        assert_eq!(made.given("fd00::ff:fe00:7".parse().unwrap()), Some(given));
        for other in ["fd00::7", "fd01::ff:fe00:7", "fd00::ff:fe00:8"] {
            assert_eq!(made.given(other.parse().unwrap()), None, "{other}");
        }
        // Somebody else says that he has the one, or the other.
        note(own, OWN, 2);
        assert_eq!((made.beside(given), made.beside(ip("10.0.0.8"))), (None, None));
        note(own, OWN, 1);
        note(given, OWN, 2);
        assert_eq!((made.beside(given), made.given("fd00::ff:fe00:7".parse().unwrap())), (None, None));
        note(given, OWN, 1);
        neighbors.remove_port(PortId(1));
        assert_eq!(made.beside(given), None, "gone with the port");
    }

    #[test]
    fn what_swd_has_given_out_nobody_has_made() {
        let (mut snapshot, neighbors) = (snapshot(), Neighbors::default());
        for address in ["10.0.0.7", "fd00::ff:fe00:7"] {
            neighbors.note(NET, ip(address), OWN, PortId(1), Time::from_secs(1));
        }
        snapshot.leases.insert((NET, ip("fd00::ff:fe00:7")), PortId(2));
        assert_eq!(Made { snapshot: &snapshot, neighbors: &neighbors }.beside(ip("10.0.0.7")), None);
    }
}
