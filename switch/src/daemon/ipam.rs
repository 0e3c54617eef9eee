//! Which address a container gets.
//!
//! The pool of a network is its subnet without the network, broadcast and gateway addresses. Leases are the addresses
//! of the attached ports: they are nowhere else, so that the two cannot disagree. A cursor remembers what was handed out
//! last, and the search goes on after it: a freed address is reused as late as can be, when its old peers have forgotten
//! it. The search visits at most [`MAX_SEARCH`] addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Most addresses that one search looks at: more than an IPv4 /12, less than a second of work.
const MAX_SEARCH: u128 = 1 << 20;

/// Why there is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no free address in {subnet}: {leased} leased, {seen} more seen in use on the wire; detach a container or use a larger subnet"
)]
pub struct Exhausted {
    /// The subnet.
    pub subnet: IpNet,
    /// Addresses that containers hold.
    pub leased: usize,
    /// Addresses that nobody was given, but somebody uses.
    pub seen: usize,
}

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Nobody has it.
    Free,
    /// A container was given it.
    Leased,
    /// Somebody uses it who was not given it.
    Seen,
}

/// The next free address of a subnet after `last`, going round.
///
/// # Errors
/// When there is none.
pub fn next(
    subnet: IpNet,
    gateway: IpAddr,
    last: Option<IpAddr>,
    used: impl Fn(IpAddr) -> Use,
) -> Result<IpAddr, Exhausted> {
    let (first, final_) = range(subnet);
    let size = final_ - first + 1;
    let start = match last.map(number) {
        Some(last) if (first..final_).contains(&last) => last + 1 - first,
        _ => 0,
    };
    let (mut leased, mut seen) = (0, 0);
    for step in 0..size.min(MAX_SEARCH) {
        let address = address(subnet, first + (start + step) % size);
        if address == gateway {
            continue;
        }
        match used(address) {
            Use::Free => return Ok(address),
            Use::Leased => leased += 1,
            Use::Seen => seen += 1,
        }
    }
    Err(Exhausted { subnet, leased, seen })
}

/// Whether a container can have this address at all: in the subnet, neither its network nor its broadcast address.
pub fn is_host(subnet: IpNet, wanted: IpAddr) -> bool {
    let (first, final_) = range(subnet);
    subnet.contains(&wanted) && (first..=final_).contains(&number(wanted))
}

/// First and last address that a host can have.
fn range(subnet: IpNet) -> (u128, u128) {
    let network = number(subnet.network());
    match subnet {
        IpNet::V4(net) => (network + 1, u128::from(u32::from(net.broadcast())) - 1),
        // IPv6 has no broadcast; the first is the routers' anycast address (RFC 4291 2.6.1).
        IpNet::V6(net) => (network + 1, u128::from(net.broadcast())),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

fn address(subnet: IpNet, number: u128) -> IpAddr {
    match subnet {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    fn find(subnet: &str, gateway: &str, last: Option<&str>, taken: &[&str]) -> Result<IpAddr, Exhausted> {
        let taken: HashSet<IpAddr> = taken.iter().map(|s| ip(s)).collect();
        next(subnet.parse().unwrap(), ip(gateway), last.map(ip), |a| {
            if taken.contains(&a) { Use::Leased } else { Use::Free }
        })
    }

    #[test]
    fn goes_round_and_skips() {
        let cases: &[(Option<&str>, &[&str], &str)] = &[
            (None, &[], "10.0.0.2"),
            (None, &["10.0.0.2"], "10.0.0.3"),
            // Freed addresses come last: after .2 was freed, .4 is next.
            (Some("10.0.0.3"), &["10.0.0.3"], "10.0.0.4"),
            (Some("10.0.0.6"), &["10.0.0.6"], "10.0.0.2"),
            (Some("10.0.0.5"), &["10.0.0.6", "10.0.0.2"], "10.0.0.3"),
            // A cursor from another subnet starts over.
            (Some("192.168.0.9"), &[], "10.0.0.2"),
        ];
        for (last, taken, expected) in cases {
            assert_eq!(find("10.0.0.0/29", "10.0.0.1", *last, taken), Ok(ip(expected)), "{last:?} {taken:?}");
        }
    }

    #[test]
    fn never_network_broadcast_or_gateway_and_says_when_exhausted() {
        let subnet: IpNet = "10.0.0.0/29".parse().unwrap();
        let mut given = HashSet::new();
        let mut last = None;
        let full = loop {
            let used = |a: IpAddr| match a {
                a if given.contains(&a) => Use::Leased,
                a if a == ip("10.0.0.5") => Use::Seen,
                _ => Use::Free,
            };
            match next(subnet, ip("10.0.0.3"), last, used) {
                Ok(a) => {
                    assert!(given.insert(a), "{a} handed out twice");
                    last = Some(a);
                }
                Err(e) => break e,
            }
        };
        assert_eq!(given, ["10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.6"].iter().map(|s| ip(s)).collect());
        assert_eq!(full, Exhausted { subnet, leased: 4, seen: 1 });
        assert!(full.to_string().starts_with("no free address in 10.0.0.0/29: 4 leased, 1 more seen"));
    }

    #[test]
    fn ipv6() {
        assert_eq!(find("fd00::/64", "fd00::1", None, &[]), Ok(ip("fd00::2")));
        assert_eq!(find("fd00::/126", "fd00::1", Some("fd00::3"), &[]), Ok(ip("fd00::2")));
        let all = next("fd00::/64".parse().unwrap(), ip("fd00::1"), None, |_| Use::Seen);
        assert!(all.is_err(), "the search ends");
        assert!(is_host("fd00::/64".parse().unwrap(), ip("fd00::ffff")));
        assert!(!is_host("10.0.0.0/24".parse().unwrap(), ip("10.0.0.255")));
        assert!(!is_host("10.0.0.0/24".parse().unwrap(), ip("10.0.1.1")));
    }
}
