//! Which ports of the host's addresses are swd's: one bit a port, so that asking costs the same for any of them.

use std::ops::RangeInclusive;

use nat::Protocol;

const WORDS: usize = 65_536 / 64;

/// Ports that are published or of the pool, by protocol. A bit says "look further", not "certainly ours": a publish may
/// be for one of the host's addresses only.
#[derive(Clone, PartialEq, Eq)]
pub struct OwnedPorts {
    tcp: [u64; WORDS],
    udp: [u64; WORDS],
    query: [u64; WORDS],
}

impl std::fmt::Debug for OwnedPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnedPorts").finish_non_exhaustive()
    }
}

impl Default for OwnedPorts {
    fn default() -> Self {
        Self { tcp: [0; WORDS], udp: [0; WORDS], query: [0; WORDS] }
    }
}

impl OwnedPorts {
    /// Adds ports of a protocol (identifiers of ICMP queries).
    pub fn add(&mut self, protocol: Protocol, ports: RangeInclusive<u16>) {
        let table = match protocol {
            Protocol::Tcp => &mut self.tcp,
            Protocol::Udp => &mut self.udp,
            _ => &mut self.query,
        };
        for port in ports {
            table[usize::from(port) / 64] |= 1 << (port % 64);
        }
    }

    /// Whether a port is among them.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        let table = match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
            _ => &self.query,
        };
        table[usize::from(port) / 64] >> (port % 64) & 1 != 0
    }

    /// The ports of a protocol as ranges, in order.
    pub fn ranges(&self, protocol: Protocol) -> Vec<RangeInclusive<u16>> {
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        let mut first = None;
        for port in 0..=u16::MAX {
            match (self.contains(protocol, port), first) {
                (true, None) => first = Some(port),
                (false, Some(start)) => {
                    ranges.push(start..=port - 1);
                    first = None;
                }
                _ => {}
            }
        }
        ranges.extend(first.map(|start| start..=u16::MAX));
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_what_was_added() {
        let mut owned = OwnedPorts::default();
        owned.add(Protocol::Tcp, 80..=80);
        owned.add(Protocol::Tcp, 61_000..=65_535);
        owned.add(Protocol::Tcp, 81..=90);
        owned.add(Protocol::Udp, 0..=0);
        assert_eq!(owned.ranges(Protocol::Tcp), [80..=90, 61_000..=65_535]);
        assert_eq!(owned.ranges(Protocol::Udp), [0..=0]);
        assert!(owned.contains(Protocol::Tcp, 65_535) && !owned.contains(Protocol::Tcp, 91));
        assert!(owned.ranges(Protocol::Icmp).is_empty());
    }
}
