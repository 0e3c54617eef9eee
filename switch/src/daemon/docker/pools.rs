//! Pools of addresses, and addresses on their way to a container. Pure.
//!
//! A pool's id says all there is to say of it, so pools are not kept. Neither are addresses that Docker was given: they are
//! leases as soon as there is an endpoint, which is a moment later, and are free again if none comes. Without Docker's
//! word, that is: a Docker that is killed in between gives nothing back.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

/// How long something is held for Docker that it does not use.
const PATIENCE: Duration = Duration::from_secs(300);

/// A pool's id: `SUBNET`, or `SUBNET,RANGE` where addresses are given from a part of it only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PoolId {
    /// The subnet.
    pub(super) subnet: IpNet,
    /// Where addresses are given from.
    pub(super) range: IpNet,
}

impl PoolId {
    /// A subnet and, unless it is empty, a part of it.
    ///
    /// # Errors
    /// When one of them is none, or the part is not in the subnet or too small.
    pub(super) fn new(subnet: &str, range: &str) -> Result<Self, String> {
        let net = |text: &str| {
            text.parse::<IpNet>().map(|n| n.trunc()).map_err(|_| format!("'{text}' is no subnet"))
        };
        let subnet = net(subnet)?;
        let range = if range.is_empty() { subnet } else { net(range)? };
        if !subnet.contains(&range) {
            return Err(format!("the range {range} is not in the subnet {subnet}"));
        }
        if range.max_prefix_len() - range.prefix_len() < 2 {
            return Err(format!("{range} has no room for containers"));
        }
        Ok(Self { subnet, range })
    }
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.subnet)?;
        if self.range == self.subnet { Ok(()) } else { write!(f, ",{}", self.range) }
    }
}

impl FromStr for PoolId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (subnet, range) = text.split_once(',').unwrap_or((text, ""));
        Self::new(subnet, range)
    }
}

/// What Docker was given and has not used yet.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Promised {
    pools: HashMap<IpNet, Instant>,
    addresses: HashMap<IpAddr, Promise>,
}

#[derive(Debug)]
struct Promise {
    since: Instant,
    /// By swd, not by the user.
    chosen: bool,
}

impl Promised {
    /// Holds a pool.
    pub(super) fn hold_pool(&mut self, subnet: IpNet, now: Instant) {
        self.pools.retain(|_, since| now.duration_since(*since) < PATIENCE);
        self.pools.insert(subnet, now);
    }

    /// The pools that are held.
    pub(super) fn pools(&self, now: Instant) -> impl Iterator<Item = IpNet> {
        self.pools
            .iter()
            .filter(move |(_, since)| now.duration_since(**since) < PATIENCE)
            .map(|(net, _)| *net)
    }

    /// Lets go of a pool.
    pub(super) fn release_pool(&mut self, subnet: IpNet) {
        self.pools.remove(&subnet);
    }

    /// Holds an address, which swd has `chosen` or the user has.
    pub(super) fn hold(&mut self, address: IpAddr, chosen: bool, now: Instant) {
        self.addresses.retain(|_, p| now.duration_since(p.since) < PATIENCE);
        self.addresses.insert(address, Promise { since: now, chosen });
    }

    /// Whether an address is held.
    pub(super) fn holds(&self, address: IpAddr, now: Instant) -> bool {
        self.addresses.get(&address).is_some_and(|p| now.duration_since(p.since) < PATIENCE)
    }

    /// The address in a subnet that swd chose last.
    pub(super) fn last(&self, subnet: IpNet) -> Option<IpAddr> {
        let chosen = self.addresses.iter().filter(|(a, p)| p.chosen && subnet.contains(*a));
        chosen.max_by_key(|(a, p)| (p.since, **a)).map(|(a, _)| *a)
    }

    /// Lets go of an address; tells whether swd chose it.
    pub(super) fn release(&mut self, address: IpAddr) -> bool {
        self.addresses.remove(&address).is_some_and(|p| p.chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_what_the_pool_is() {
        for (subnet, range, id) in [
            ("10.9.0.0/16", "", "10.9.0.0/16"),
            ("10.9.1.1/16", "10.9.5.7/24", "10.9.0.0/16,10.9.5.0/24"),
            ("fd00::/64", "fd00::/80", "fd00::/64,fd00::/80"),
        ] {
            let pool = PoolId::new(subnet, range).unwrap();
            assert_eq!(pool.to_string(), id);
            assert_eq!(id.parse(), Ok(pool));
        }
        for (subnet, range, said) in [
            ("10.9.0.0", "", "is no subnet"),
            ("10.9.0.0/16", "10.8.0.0/24", "is not in the subnet"),
            ("10.9.0.0/16", "10.9.0.4/31", "no room"),
            ("", "10.9.0.0/24", "is no subnet"),
        ] {
            assert!(PoolId::new(subnet, range).unwrap_err().contains(said), "{subnet} {range}");
        }
    }

    #[test]
    fn what_is_not_used_is_free_again() {
        let (mut promised, now) = (Promised::default(), Instant::now());
        let (a, b): (IpAddr, IpAddr) = ("10.9.0.2".parse().unwrap(), "10.9.0.3".parse().unwrap());
        let subnet = "10.9.0.0/24".parse().unwrap();
        promised.hold(a, true, now);
        promised.hold(b, false, now);
        promised.hold_pool(subnet, now);
        assert!(promised.holds(a, now) && promised.holds(b, now));
        assert_eq!(promised.last(subnet), Some(a), "what the user chose does not count");
        assert_eq!(promised.pools(now).collect::<Vec<_>>(), [subnet]);
        let later = now + PATIENCE;
        assert!(!promised.holds(a, later) && promised.pools(later).next().is_none());
        assert!(promised.release(a) && !promised.release(a) && !promised.release(b));
        promised.release_pool(subnet);
        assert!(promised.pools(now).next().is_none());
    }
}
