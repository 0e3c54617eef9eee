//! Which ports of the host's addresses are swd's: one bit a port, so that asking costs the same for any of them.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

use nat::Protocol;

const WORDS: usize = 65_536 / 64;

/// Ports that are published or of the pool, by protocol. A bit says "look further", not "certainly ours": a publish may
/// be for one of the host's addresses only. So they may change under the eyes of the workers, in place.
pub struct OwnedPorts {
    tcp: Box<[AtomicU64; WORDS]>,
    udp: Box<[AtomicU64; WORDS]>,
    query: Box<[AtomicU64; WORDS]>,
}

impl std::fmt::Debug for OwnedPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnedPorts").finish_non_exhaustive()
    }
}

impl Default for OwnedPorts {
    fn default() -> Self {
        let none = || Box::new([const { AtomicU64::new(0) }; WORDS]);
        Self { tcp: none(), udp: none(), query: none() }
    }
}

impl OwnedPorts {
    fn of(&self, protocol: Protocol) -> &[AtomicU64; WORDS] {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
            _ => &self.query,
        }
    }

    /// Adds ports of a protocol (identifiers of ICMP queries).
    pub fn add(&self, protocol: Protocol, ports: RangeInclusive<u16>) {
        let (first, last) = (usize::from(*ports.start()), usize::from(*ports.end()));
        if first > last {
            return;
        }
        let words = self.of(protocol).iter().enumerate();
        for (at, word) in words.take(last / 64 + 1).skip(first / 64) {
            let low = if at == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
            let high = if at == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
            word.fetch_or(low & high, Ordering::Relaxed);
        }
    }

    /// Makes the ports of a protocol those of another value. Ports of both are never missing meanwhile.
    pub fn assign(&self, protocol: Protocol, other: &Self) {
        for (word, theirs) in self.of(protocol).iter().zip(other.of(protocol)) {
            word.store(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Whether a port is among them.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.of(protocol)[usize::from(port) / 64].load(Ordering::Relaxed) >> (port % 64) & 1 != 0
    }

    /// The ports of a protocol as ranges, in order.
    pub fn ranges(&self, protocol: Protocol) -> Vec<RangeInclusive<u16>> {
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        let mut first = None;
        for (at, word) in (0..=u16::MAX).step_by(64).zip(self.of(protocol)) {
            let word = word.load(Ordering::Relaxed);
            match (word, first) {
                (0, None) | (u64::MAX, Some(_)) => continue,
                _ => {}
            }
            for port in at..=at + 63 {
                match (word >> (port % 64) & 1 != 0, first) {
                    (true, None) => first = Some(port),
                    (false, Some(start)) => {
                        ranges.push(start..=port - 1);
                        first = None;
                    }
                    _ => {}
                }
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
        let owned = OwnedPorts::default();
        owned.add(Protocol::Tcp, 80..=80);
        owned.add(Protocol::Tcp, 61_000..=65_535);
        owned.add(Protocol::Tcp, 81..=90);
        owned.add(Protocol::Udp, 0..=0);
        assert_eq!(owned.ranges(Protocol::Tcp), [80..=90, 61_000..=65_535]);
        assert_eq!(owned.ranges(Protocol::Udp), [0..=0]);
        assert!(owned.contains(Protocol::Tcp, 65_535) && !owned.contains(Protocol::Tcp, 91));
        assert!(owned.ranges(Protocol::Icmp).is_empty());
        let other = OwnedPorts::default();
        other.add(Protocol::Tcp, 0..=65_535);
        other.add(Protocol::Udp, 63..=64);
        owned.assign(Protocol::Tcp, &other);
        owned.assign(Protocol::Udp, &other);
        assert_eq!(owned.ranges(Protocol::Tcp), [0..=65_535]);
        assert_eq!(owned.ranges(Protocol::Udp), [63..=64]);
    }
}
