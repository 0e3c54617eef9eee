//! The names of a flow: addresses of both families in one type, endpoints, and the tuple that tables are keyed by.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 or IPv6 address in sixteen bytes, so that one table holds both families.
///
/// IPv4 is stored in its IPv4-mapped form (`::ffff:0:0/96`, RFC 4291 section 2.5.5.2). Such addresses never appear on
/// the wire in an IPv6 header ([`crate::packet::Packet::parse`] refuses them), so the two families cannot be confused.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address([u8; 16]);

impl Address {
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

    /// The address whose sixteen bytes of IPv6 form are `octets`.
    pub const fn from_v6_octets(octets: [u8; 16]) -> Self {
        Self(octets)
    }

    /// The address whose four bytes of IPv4 form are `octets`.
    pub const fn from_v4_octets([a, b, c, d]: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// True for an IPv4 address.
    pub fn is_v4(self) -> bool {
        self.0.starts_with(&Self::MAPPED)
    }

    /// The IPv6 form; for an IPv4 address its mapped form.
    pub const fn v6_octets(self) -> [u8; 16] {
        self.0
    }

    /// The last four bytes: the IPv4 form where [`Self::is_v4`].
    pub const fn v4_octets(self) -> [u8; 4] {
        let [.., a, b, c, d] = self.0;
        [a, b, c, d]
    }

    /// The same address as the standard library's type.
    pub fn to_ip(self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::from(self.v4_octets()))
        } else {
            IpAddr::V6(Ipv6Addr::from(self.0))
        }
    }

    /// The address as a number, for hashing and for prefix comparison.
    pub(crate) const fn to_bits(self) -> u128 {
        u128::from_be_bytes(self.0)
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::from(ip),
            IpAddr::V6(ip) => Self::from(ip),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(ip: Ipv4Addr) -> Self {
        Self::from_v4_octets(ip.octets())
    }
}

impl From<Ipv6Addr> for Address {
    fn from(ip: Ipv6Addr) -> Self {
        Self(ip.octets())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

/// An address and a port. For ICMP queries the port is the identifier, on the side of the host that asks.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port in host order; 0 where the protocol has none.
    pub port: u16,
}

impl Endpoint {
    /// The endpoint `address`:`port`.
    pub fn new(address: impl Into<Address>, port: u16) -> Self {
        Self { address: address.into(), port }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.address.is_v4() {
            write!(f, "{}:{}", self.address, self.port)
        } else {
            write!(f, "[{}]:{}", self.address, self.port)
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A transport protocol: the IPv4 protocol number, or the last IPv6 next-header value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// ICMP for IPv4, 1.
    Icmp,
    /// ICMP for IPv6, 58.
    Icmpv6,
    /// Anything not named here.
    Other(u8),
    /// SCTP, 132.
    Sctp,
    /// TCP, 6.
    Tcp,
    /// UDP, 17.
    Udp,
}

impl Protocol {
    /// The protocol's number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Icmpv6 => 58,
            Self::Other(number) => number,
            Self::Sctp => 132,
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl From<u8> for Protocol {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Icmp,
            6 => Self::Tcp,
            17 => Self::Udp,
            58 => Self::Icmpv6,
            132 => Self::Sctp,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Icmp => f.write_str("icmp"),
            Self::Icmpv6 => f.write_str("icmpv6"),
            Self::Other(number) => number.fmt(f),
            Self::Sctp => f.write_str("sctp"),
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
        }
    }
}

/// A routing domain: one of the caller's networks, or the outside. The same address in two networks is two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub u32);

impl NetworkId {
    /// Everything beyond the uplink. Inside networks have any other number.
    pub const OUTSIDE: Self = Self(0);
}

/// Whoever limits and removal apply to: a container, a port of the switch. Chosen by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId(pub u32);

impl OwnerId {
    /// Anyone beyond the uplink. Has no limits and cannot be removed.
    pub const OUTSIDE: Self = Self(0);
}

/// Which way a packet of a connection travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The way of the packet that opened the connection.
    Original,
    /// The way of the answers.
    Reply,
}

impl Direction {
    /// The opposite direction.
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }

    /// 0 for [`Self::Original`], 1 for [`Self::Reply`]: the place in a pair of values.
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Original => 0,
            Self::Reply => 1,
        }
    }
}

/// What identifies the packets of one direction of a connection, as they arrive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Where packets come from.
    pub source: Endpoint,
    /// Where packets are addressed to.
    pub destination: Endpoint,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The network the packets arrive from.
    pub network: NetworkId,
}

impl Tuple {
    /// The tuple of the opposite direction when nothing is translated; its packets arrive from `network`.
    #[must_use]
    pub const fn reversed(&self, network: NetworkId) -> Self {
        Self { source: self.destination, destination: self.source, protocol: self.protocol, network }
    }
}

impl Hash for Tuple {
    /// Three wide writes, which is what a multiply-and-fold hash digests best.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.source.address.to_bits());
        state.write_u128(self.destination.address.to_bits());
        state.write_u128(
            u128::from(self.source.port)
                | u128::from(self.destination.port) << 16
                | u128::from(self.network.0) << 32
                | u128::from(self.protocol.number()) << 64,
        );
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} > {} in {}", self.protocol, self.source, self.destination, self.network.0)
    }
}

impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_share_a_type_and_keep_apart() {
        let v4 = Address::from(Ipv4Addr::new(172, 18, 0, 10));
        assert!(v4.is_v4());
        assert_eq!(v4.to_ip(), "172.18.0.10".parse::<IpAddr>().unwrap());
        let v6 = Address::from("2001:db8::1".parse::<IpAddr>().unwrap());
        assert!(!v6.is_v4());
        assert_eq!(Endpoint::new(v6, 80).to_string(), "[2001:db8::1]:80");
        assert_eq!(Endpoint::new(v4, 80).to_string(), "172.18.0.10:80");
    }

    #[test]
    fn protocol_numbers_survive_the_round_trip() {
        for number in 0..=u8::MAX {
            assert_eq!(Protocol::from(number).number(), number);
        }
    }

    #[test]
    fn a_tuple_is_small() {
        assert_eq!(size_of::<Tuple>(), 44);
    }
}
