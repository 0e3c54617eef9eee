//! The host's routes, mirrored: longest prefix first, then lowest metric.
//!
//! What is mirrored is the main table of each family (and what other tables hold of unicast routes is not looked at:
//! policy routing is the host's own affair). Immutable: a change of the host's routes is a new [`Routes`].

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use foldhash::fast::RandomState;
use ipnet::IpNet;

/// What to do with packets for a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Hand them to a next hop.
    Forward {
        /// By which interface.
        ifindex: u32,
        /// The next router; none where the destination is on the link itself.
        gateway: Option<IpAddr>,
        /// The address to send from, where the route says.
        source: Option<IpAddr>,
        /// A smaller MTU for this route than the interface's.
        mtu: Option<u32>,
    },
    /// Drop them without a word.
    Blackhole,
    /// Drop them, and say that there is no way.
    Unreachable,
    /// Drop them, and say that it is not allowed.
    Prohibit,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// Lower is better.
    pub metric: u32,
    /// What to do.
    pub action: Action,
}

/// Routes by prefix length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    v4: Vec<(u8, HashMap<IpAddr, Route, RandomState>)>,
    v6: Vec<(u8, HashMap<IpAddr, Route, RandomState>)>,
}

impl Routes {
    /// From a list in any order; of several for a prefix the one with the lowest metric counts, of equals the first.
    pub fn new(routes: impl IntoIterator<Item = Route>) -> Self {
        let mut families: [BTreeMap<u8, HashMap<IpAddr, Route, RandomState>>; 2] = Default::default();
        for route in routes {
            let family = &mut families[usize::from(route.destination.addr().is_ipv6())];
            let table = family.entry(route.destination.prefix_len()).or_default();
            let place = table.entry(route.destination.network()).or_insert(route);
            if route.metric < place.metric {
                *place = route;
            }
        }
        let [v4, v6] = families.map(|f| f.into_iter().rev().collect());
        Self { v4, v6 }
    }

    /// The route to an address.
    pub fn lookup(&self, address: IpAddr) -> Option<&Route> {
        let tables = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        tables.iter().find_map(|(len, table)| table.get(&IpNet::new(address, *len).ok()?.network()))
    }

    /// The default route of a family.
    pub fn default(&self, v4: bool) -> Option<&Route> {
        let tables = if v4 { &self.v4 } else { &self.v6 };
        tables.last().filter(|(len, _)| *len == 0).and_then(|(_, table)| table.values().next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, metric: u32, ifindex: u32) -> Route {
        let action = Action::Forward { ifindex, gateway: None, source: None, mtu: None };
        Route { destination: destination.parse().unwrap(), metric, action }
    }

    #[test]
    fn the_longest_prefix_wins_then_the_lowest_metric() {
        let routes = Routes::new([
            route("0.0.0.0/0", 100, 1),
            route("0.0.0.0/0", 50, 2),
            route("10.0.0.0/8", 0, 3),
            route("10.1.0.0/16", 900, 4),
            route("::/0", 0, 5),
        ]);
        let by = |address: &str| match routes.lookup(address.parse().unwrap()).map(|r| r.action) {
            Some(Action::Forward { ifindex, .. }) => ifindex,
            _ => 0,
        };
        assert_eq!([by("192.0.2.1"), by("10.2.0.1"), by("10.1.9.9"), by("2001:db8::1")], [2, 3, 4, 5]);
        assert_eq!(routes.default(true).map(|r| r.metric), Some(50));
        let none = Routes::new([route("10.0.0.0/8", 0, 3)]);
        assert_eq!((none.lookup("192.0.2.1".parse().unwrap()), none.default(true)), (None, None));
    }
}
