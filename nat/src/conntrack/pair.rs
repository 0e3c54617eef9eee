//! Both tuples of a connection in as few bytes as they need: most are of IPv4, and there may be a million of them.

use crate::tuple::{Address, Direction, Endpoint, NetworkId, Protocol, Tuple};

/// The tuples of a connection's two directions.
#[derive(Clone, Debug)]
pub(super) enum Pair {
    /// Of IPv4, and of one protocol.
    Narrow([Half; 2], Protocol),
    /// Any others.
    Wide(Box<[Tuple; 2]>),
}

/// A tuple of IPv4 without its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Half {
    addresses: [[u8; 4]; 2],
    ports: [u16; 2],
    network: NetworkId,
}

impl Half {
    fn of(tuple: &Tuple) -> Option<Self> {
        let ends = [tuple.source, tuple.destination];
        let v4 = ends.iter().all(|end| end.address.is_v4());
        let addresses = ends.map(|end| end.address.v4_octets());
        v4.then_some(Self { addresses, ports: ends.map(|end| end.port), network: tuple.network })
    }

    const fn tuple(&self, protocol: Protocol) -> Tuple {
        let Self { addresses: [from, to], ports: [from_port, to_port], network } = *self;
        Tuple {
            source: Endpoint { address: Address::from_v4_octets(from), port: from_port },
            destination: Endpoint { address: Address::from_v4_octets(to), port: to_port },
            protocol,
            network,
        }
    }
}

impl Pair {
    pub(super) fn new(tuples: [Tuple; 2]) -> Self {
        let [original, reply] = &tuples;
        let halves = Half::of(original).zip(Half::of(reply));
        match halves.filter(|_| original.protocol == reply.protocol) {
            Some((a, b)) => Self::Narrow([a, b], original.protocol),
            None => Self::Wide(Box::new(tuples)),
        }
    }

    pub(super) fn tuple(&self, direction: Direction) -> Tuple {
        match self {
            Self::Narrow(halves, protocol) => halves[direction.index()].tuple(*protocol),
            Self::Wide(tuples) => tuples[direction.index()],
        }
    }

    /// Whether `tuple` is that of `direction`.
    pub(super) fn is(&self, direction: Direction, tuple: &Tuple) -> bool {
        match self {
            Self::Narrow(halves, protocol) => {
                tuple.protocol == *protocol && Half::of(tuple) == Some(halves[direction.index()])
            }
            Self::Wide(tuples) => tuples[direction.index()] == *tuple,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn tuple(source: &str, destination: &str, protocol: Protocol) -> Tuple {
        let end = |text: &str, port| Endpoint::new(text.parse::<IpAddr>().unwrap(), port);
        Tuple { source: end(source, 7), destination: end(destination, 80), protocol, network: NetworkId(3) }
    }

    #[test]
    fn every_pair_is_told_as_it_was() {
        let v4 = tuple("172.18.0.10", "198.51.100.7", Protocol::Udp);
        let v6 = tuple("2001:db8::1", "2001:db8::2", Protocol::Udp);
        let other = Tuple { protocol: Protocol::Tcp, ..v4 };
        let mixed = tuple("172.18.0.10", "2001:db8::2", Protocol::Udp);
        let back = |tuple: Tuple| tuple.reversed(NetworkId::OUTSIDE);
        let all = [[v4, back(v4)], [v6, back(v6)], [v4, other], [v4, v6], [mixed, back(mixed)], [v4, v4]];
        for (n, pair) in all.iter().enumerate() {
            let made = Pair::new(*pair);
            assert_eq!(matches!(made, Pair::Narrow(..)), n == 0 || n == 5, "{pair:?}");
            for (direction, expected) in [Direction::Original, Direction::Reply].into_iter().zip(pair) {
                assert_eq!(made.tuple(direction), *expected);
                for candidate in all.as_flattened() {
                    assert_eq!(
                        made.is(direction, candidate),
                        candidate == expected,
                        "{candidate} in {pair:?}"
                    );
                }
            }
        }
    }
}
