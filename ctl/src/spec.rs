//! What names, networks and MTUs must look like: checks that need nothing but the value itself.
//!
//! The daemon applies them to what comes by the API, [`crate::config`] to what is written in the file, so that
//! `swctl config check` and the daemon's start agree.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::api::{NetworkSpec, Transport};

/// Longest name of an interface (IFNAMSIZ without its final zero).
pub const MAX_IFNAME: usize = 15;
/// Longest name of a port or network.
pub const MAX_NAME: usize = 63;
/// MTU of a network that names none.
pub const DEFAULT_MTU: u32 = 1500;
/// Seconds that an address by DHCP may be used without asking again, in a network that says nothing of it.
pub const DEFAULT_LEASE: u32 = 3600;
/// The same, for serde.
pub const fn default_lease() -> u32 {
    DEFAULT_LEASE
}
/// Seconds that can be asked for: a client asks again after half of them, and not forever.
pub const LEASES: RangeInclusive<u32> = 10..=31_536_000;

/// A value that cannot be used, and what to use in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Nothing at all.
    #[error("the {0} name is empty; use 1 to 63 letters, digits, '.', '_' or '-'")]
    EmptyName(&'static str),
    /// Too long.
    #[error("the {what} name '{start}…' has {len} characters; at most {max} fit")]
    LongName {
        /// What is named.
        what: &'static str,
        /// How it begins.
        start: String,
        /// Its length in characters.
        len: usize,
        /// What fits.
        max: usize,
    },
    /// A character that has no place in a name.
    #[error(
        "the {what} name '{name}' contains {bad}; use letters, digits, '.', '_' and '-', beginning with a letter or digit"
    )]
    BadName {
        /// What is named.
        what: &'static str,
        /// The name.
        name: String,
        /// The first character that is wrong, quoted.
        bad: String,
    },
    /// Not a name that the kernel takes for an interface.
    #[error(
        "'{0}' cannot be the name of an interface: 1 to 15 characters without '/', ':' and white space, not '.' or '..'"
    )]
    BadIfname(String),
    /// More further names than a container may have.
    #[error("{0} aliases are too many; a container has at most {max}", max = MAX_ALIASES)]
    ManyAliases(usize),
    /// No subnet.
    #[error("a network needs a subnet, e.g. 172.19.0.0/16")]
    NoSubnet,
    /// Two of one family.
    #[error("subnets {0} and {1} are of the same family; a network has at most one IPv4 and one IPv6 subnet")]
    TwoOfFamily(IpNet, IpNet),
    /// Host bits set.
    #[error("subnet {0} has host bits set; the subnet is {1}")]
    HostBits(IpNet, IpNet),
    /// No room for a gateway and a container.
    #[error("subnet {0} is too small; use a prefix of {1} or shorter")]
    TooSmall(IpNet, u8),
    /// Multicast, loopback and the like.
    #[error("subnet {0} is reserved ({1}); use a private one, e.g. 172.19.0.0/16 or fd00:19::/64")]
    Reserved(IpNet, &'static str),
    /// More gateways than subnets, or one outside.
    #[error("gateway {0} is outside the network's subnets ({1})")]
    GatewayOutside(IpAddr, String),
    /// Two gateways in one subnet.
    #[error("subnet {0} has two gateways, {1} and {2}; give one")]
    TwoGateways(IpNet, IpAddr, IpAddr),
    /// Network or broadcast address.
    #[error("gateway {address} is the {what} address of {subnet}; use another, e.g. {first}")]
    GatewayReserved {
        /// The gateway asked for.
        address: IpAddr,
        /// `network` or `broadcast`.
        what: &'static str,
        /// The subnet.
        subnet: IpNet,
        /// One that can be had.
        first: IpAddr,
    },
    /// Outside the range.
    #[error("an MTU of {mtu} is out of range; use {min} to 65535{why}")]
    Mtu {
        /// The MTU asked for.
        mtu: u32,
        /// The smallest that can be had.
        min: u32,
        /// Why.
        why: &'static str,
    },
    /// Too short or too long.
    #[error("a DHCP lease of {0} seconds is out of range; use {min} to {max}", min = LEASES.start(), max = LEASES.end())]
    Lease(u32),
}

/// Checks the name of a network or port: 1 to 63 of `[A-Za-z0-9._-]`, the first a letter or digit.
///
/// # Errors
/// When it is none; the text says what is wrong.
pub fn check_name(what: &'static str, name: &str) -> Result<(), SpecError> {
    if name.is_empty() {
        return Err(SpecError::EmptyName(what));
    }
    let len = name.chars().count();
    if len > MAX_NAME {
        return Err(SpecError::LongName { what, start: visible(name, 24), len, max: MAX_NAME });
    }
    let fits = |(i, c): (usize, char)| c.is_ascii_alphanumeric() || (i > 0 && matches!(c, '.' | '_' | '-'));
    match name.chars().enumerate().find(|at| !fits(*at)) {
        None => Ok(()),
        Some((_, bad)) => Err(SpecError::BadName {
            what,
            name: visible(name, MAX_NAME),
            bad: if bad == ' ' { "a space".into() } else { format!("'{}'", bad.escape_default()) },
        }),
    }
}

/// Most further names of a container.
pub const MAX_ALIASES: usize = 16;

/// Checks further names of a container: each as [`check_name`] does, and not more than [`MAX_ALIASES`].
///
/// # Errors
/// When one is none, or there are too many.
pub fn check_aliases(aliases: &[String]) -> Result<(), SpecError> {
    if aliases.len() > MAX_ALIASES {
        return Err(SpecError::ManyAliases(aliases.len()));
    }
    aliases.iter().try_for_each(|alias| check_name("alias", alias))
}

/// Checks the name of an interface, as the kernel does (`dev_valid_name`).
///
/// # Errors
/// When the kernel would refuse it.
pub fn check_ifname(name: &str) -> Result<(), SpecError> {
    let len = name.chars().count();
    if len > 2 * MAX_IFNAME {
        return Err(SpecError::LongName {
            what: "interface",
            start: visible(name, 24),
            len,
            max: MAX_IFNAME,
        });
    }
    let bad = name.is_empty()
        || name.len() > MAX_IFNAME
        || name == "."
        || name == ".."
        || name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if bad { Err(SpecError::BadIfname(visible(name, 2 * MAX_IFNAME))) } else { Ok(()) }
}

/// The first `max` characters, with control characters escaped: for error lines.
fn visible(text: &str, max: usize) -> String {
    text.chars()
        .take(max)
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

/// What a [`NetworkSpec`] means once it is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Each subnet with the gateway's address in it.
    pub gateways: Vec<(IpNet, IpAddr)>,
    /// Largest IP packet.
    pub mtu: u32,
    /// Seconds that an address by DHCP may be used without asking again.
    pub dhcp_lease: u32,
}

/// Checks everything about a network that can be checked without knowing the others; fills in what was left out.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_network(spec: &NetworkSpec) -> Result<Checked, SpecError> {
    check_name("network", &spec.name)?;
    let subnets = &spec.subnets;
    match subnets.as_slice() {
        [] => return Err(SpecError::NoSubnet),
        [.., a, b] if subnets.len() > 2 || is_v4(a) == is_v4(b) => {
            let same = subnets.iter().filter(|s| is_v4(s) == is_v4(a)).nth(1).unwrap_or(b);
            return Err(SpecError::TwoOfFamily(if same == a { *b } else { *a }, *same));
        }
        _ => {}
    }
    let mut gateways = Vec::with_capacity(subnets.len());
    for subnet in subnets {
        check_subnet(*subnet)?;
        let mut wanted = spec.gateways.iter().filter(|g| subnet.contains(*g));
        let first = first_host(*subnet);
        let gateway = *wanted.next().unwrap_or(&first);
        if let Some(second) = wanted.next() {
            return Err(SpecError::TwoGateways(*subnet, gateway, *second));
        }
        let what = if gateway == subnet.network() {
            "network"
        } else if is_v4(subnet) && gateway == subnet.broadcast() {
            "broadcast"
        } else {
            gateways.push((*subnet, gateway));
            continue;
        };
        return Err(SpecError::GatewayReserved { address: gateway, what, subnet: *subnet, first });
    }
    if let Some(outside) = spec.gateways.iter().find(|g| !subnets.iter().any(|s| s.contains(*g))) {
        let all: Vec<String> = subnets.iter().map(ToString::to_string).collect();
        return Err(SpecError::GatewayOutside(*outside, all.join(", ")));
    }
    let mtu = spec.mtu.unwrap_or(DEFAULT_MTU);
    let (min, why) = if subnets.iter().all(is_v4) { (576, "") } else { (1280, " (IPv6 needs 1280)") };
    if !(min..=65_535).contains(&mtu) {
        return Err(SpecError::Mtu { mtu, min, why });
    }
    let dhcp_lease = spec.dhcp_lease.unwrap_or(DEFAULT_LEASE);
    if !LEASES.contains(&dhcp_lease) {
        return Err(SpecError::Lease(dhcp_lease));
    }
    Ok(Checked { gateways, mtu, dhcp_lease })
}

fn is_v4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

fn check_subnet(subnet: IpNet) -> Result<(), SpecError> {
    if subnet.trunc() != subnet {
        return Err(SpecError::HostBits(subnet, subnet.trunc()));
    }
    let longest = match subnet {
        IpNet::V4(_) => 30,
        IpNet::V6(_) => 126,
    };
    if subnet.prefix_len() > longest {
        return Err(SpecError::TooSmall(subnet, longest));
    }
    // A subnet that contains a reserved block is as bad as one inside it: 0.0.0.0/0 would swallow everything.
    let reserved: &[(&str, &'static str)] = &[
        ("0.0.0.0/8", "this network"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/3", "multicast and above"),
        ("::/16", "loopback and IPv4-mapped"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    ];
    for (block, what) in reserved {
        if block.parse::<IpNet>().is_ok_and(|b| b.contains(&subnet) || subnet.contains(&b)) {
            return Err(SpecError::Reserved(subnet, what));
        }
    }
    Ok(())
}

/// The first address of a subnet that a host can have.
pub fn first_host(subnet: IpNet) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from(u32::from(a).saturating_add(1))),
        IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from(u128::from(a).saturating_add(1))),
    }
}

/// Whether two subnets have an address in common.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// What is before the target in `swctl publish`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedPorts {
    /// The host's address.
    pub host_ip: Option<IpAddr>,
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
    /// TCP unless said otherwise.
    pub protocol: Transport,
}

/// Reads `[HOSTIP:]PORT[-PORT][/tcp|/udp]`; an IPv6 address stands in brackets.
///
/// # Errors
/// What is wrong, in words.
pub fn parse_published(text: &str) -> Result<PublishedPorts, String> {
    let (rest, protocol) = match text.rsplit_once('/') {
        None => (text, Transport::Tcp),
        Some((rest, "tcp")) => (rest, Transport::Tcp),
        Some((rest, "udp")) => (rest, Transport::Udp),
        Some((_, other)) => return Err(format!("'{}' is not tcp or udp", cut(other))),
    };
    let (host_ip, ports) = split_address(rest)?;
    let (first, last) = parse_ports(ports)?;
    Ok(PublishedPorts { host_ip, first, last, protocol })
}

/// Reads `IP:PORT[-PORT]`.
///
/// # Errors
/// What is wrong, in words.
pub fn parse_target(text: &str) -> Result<(IpAddr, u16, u16), String> {
    match split_address(text)? {
        (Some(ip), ports) => parse_ports(ports).map(|(first, last)| (ip, first, last)),
        (None, _) => Err(format!("'{}' has no address; write one like 172.18.0.10:80", cut(text))),
    }
}

fn split_address(text: &str) -> Result<(Option<IpAddr>, &str), String> {
    let Some((address, ports)) = text.rsplit_once(':') else { return Ok((None, text)) };
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
    let parsed = match bare {
        Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => address.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    };
    match parsed {
        Some(ip) => Ok((Some(ip), ports)),
        None => Err(format!(
            "'{}' is not an IP address; IPv6 ones stand in brackets: [fd00::10]:80",
            cut(address)
        )),
    }
}

fn parse_ports(text: &str) -> Result<(u16, u16), String> {
    let port = |t: &str| match t.parse::<u16>() {
        Ok(n) if n > 0 && t.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
        _ => Err(format!("'{}' is not a port; ports go from 1 to 65535", cut(t))),
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last { Err(format!("{first}-{last} is the wrong way round")) } else { Ok((first, last)) }
}

fn cut(text: &str) -> String {
    text.chars().take(64).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Filtering, Mapping};

    fn spec(subnets: &[&str], gateways: &[&str]) -> NetworkSpec {
        NetworkSpec {
            name: "web".into(),
            subnets: subnets.iter().map(|s| s.parse().unwrap()).collect(),
            gateways: gateways.iter().map(|s| s.parse().unwrap()).collect(),
            mtu: None,
            isolate_ports: false,
            internal: false,
            masquerade: true,
            mapping: Mapping::default(),
            filtering: Filtering::default(),
            dns: true,
            dhcp: true,
            dhcp_lease: None,
            ra: true,
            host_access: true,
        }
    }

    #[test]
    fn names() {
        for good in ["a", "0", "web-1.front_end", &"x".repeat(63)] {
            assert_eq!(check_name("port", good), Ok(()), "{good}");
        }
        for bad in ["", "-a", ".", "a/b", "../x", "a b", "ä", "a\nb", &"x".repeat(64), &"x".repeat(300)] {
            let text = check_name("port", bad).unwrap_err().to_string();
            assert!(text.starts_with("the port name") && !text.contains('\n'), "{text}");
        }
        assert!(check_name("port", &"x".repeat(300)).unwrap_err().to_string().contains("300 characters"));
    }

    #[test]
    fn interface_names() {
        for good in ["eth0", "web.p", "x@y", "abcdefghijklmno"] {
            assert_eq!(check_ifname(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "abcdefghijklmnop"] {
            assert!(check_ifname(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks() {
        let checked = check_network(&spec(&["172.18.0.0/16", "fd00:18::/64"], &[])).unwrap();
        let expect = |s: &str, g: &str| (s.parse::<IpNet>().unwrap(), g.parse::<IpAddr>().unwrap());
        assert_eq!(
            checked.gateways,
            [expect("172.18.0.0/16", "172.18.0.1"), expect("fd00:18::/64", "fd00:18::1")]
        );
        assert_eq!(checked.mtu, 1500);
    }

    #[test]
    fn bad_networks_say_what_to_do() {
        let cases: &[(&[&str], &[&str], &str)] = &[
            (&[], &[], "a network needs a subnet, e.g. 172.19.0.0/16"),
            (&["172.18.0.1/16"], &[], "subnet 172.18.0.1/16 has host bits set; the subnet is 172.18.0.0/16"),
            (&["10.0.0.0/31"], &[], "subnet 10.0.0.0/31 is too small; use a prefix of 30 or shorter"),
            (
                &["10.0.0.0/24"],
                &["10.0.1.1"],
                "gateway 10.0.1.1 is outside the network's subnets (10.0.0.0/24)",
            ),
            (
                &["10.0.0.0/24"],
                &["10.0.0.0"],
                "gateway 10.0.0.0 is the network address of 10.0.0.0/24; use another, e.g. 10.0.0.1",
            ),
            (
                &["10.0.0.0/24"],
                &["10.0.0.255"],
                "gateway 10.0.0.255 is the broadcast address of 10.0.0.0/24; use another, e.g. 10.0.0.1",
            ),
            (
                &["10.0.0.0/24", "10.0.1.0/24"],
                &[],
                "subnets 10.0.0.0/24 and 10.0.1.0/24 are of the same family; a network has at most one IPv4 and one \
                 IPv6 subnet",
            ),
            (
                &["10.0.0.0/24"],
                &["10.0.0.1", "10.0.0.2"],
                "subnet 10.0.0.0/24 has two gateways, 10.0.0.1 and 10.0.0.2; give one",
            ),
            (
                &["127.0.0.0/8"],
                &[],
                "subnet 127.0.0.0/8 is reserved (loopback); use a private one, e.g. 172.19.0.0/16 or fd00:19::/64",
            ),
            (
                &["0.0.0.0/0"],
                &[],
                "subnet 0.0.0.0/0 is reserved (this network); use a private one, e.g. 172.19.0.0/16 or fd00:19::/64",
            ),
        ];
        for (subnets, gateways, text) in cases {
            assert_eq!(check_network(&spec(subnets, gateways)).unwrap_err().to_string(), *text);
        }
        for mtu in [0, 575, 65_536] {
            assert!(check_network(&NetworkSpec { mtu: Some(mtu), ..spec(&["10.0.0.0/24"], &[]) }).is_err());
        }
        assert!(check_network(&NetworkSpec { mtu: Some(1000), ..spec(&["fd00::/64"], &[]) }).is_err());
        for lease in [0, 9, u32::MAX] {
            let spec = NetworkSpec { dhcp_lease: Some(lease), ..spec(&["10.0.0.0/24"], &[]) };
            assert_eq!(check_network(&spec), Err(SpecError::Lease(lease)));
        }
    }
}
