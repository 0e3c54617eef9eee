//! Who owns which ports, and why. Pure: what follows from it for the kernel is for [`super::Guards`] to do.
//!
//! The bitmaps that the kernel is told are kept beside the claims: a claim more is a few bits more, whatever the number of
//! claims. One less is reckoned anew from the rest.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::{Protocol, Purpose};

const WORDS: usize = 65_536 / 64;

/// A set of claims. The same one may be there several times; it is released as often.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    claims: Vec<Claim>,
    ports: HashMap<(Protocol, Option<IpAddr>), Ports>,
}

/// That a range of ports is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) protocol: Protocol,
    /// `None`: at every address.
    pub(super) address: Option<IpAddr>,
    pub(super) ports: RangeInclusive<u16>,
    pub(super) purpose: Purpose,
    /// Ports of the range that are not ours after all, ascending.
    pub(super) without: Vec<u16>,
}

impl Claim {
    fn is_for(&self, other: &Self) -> bool {
        (self.protocol, self.address, &self.ports, self.purpose)
            == (other.protocol, other.address, &other.ports, other.purpose)
    }

    fn has(&self, port: u16) -> bool {
        self.ports.contains(&port) && self.without.binary_search(&port).is_err()
    }
}

impl Ledger {
    pub(super) fn add(&mut self, claim: Claim) {
        self.ports.entry((claim.protocol, claim.address)).or_default().add(&claim);
        self.claims.push(claim);
    }

    /// Removes one claim that is like this one but for the ports left out.
    pub(super) fn remove(&mut self, like: &Claim) -> Option<Claim> {
        let at = self.claims.iter().position(|c| c.is_for(like))?;
        let claim = self.claims.swap_remove(at);
        let (protocol, address) = (claim.protocol, claim.address);
        let mut left = self.of(protocol, address).peekable();
        if left.peek().is_some() {
            let mut ports = Ports::default();
            left.for_each(|claim| ports.add(claim));
            self.ports.insert((protocol, address), ports);
        } else {
            drop(left);
            self.ports.remove(&(protocol, address));
        }
        Some(claim)
    }

    /// What a port at exactly this address is ours for: to publish comes before the pool.
    pub(super) fn purpose(&self, protocol: Protocol, address: Option<IpAddr>, port: u16) -> Option<Purpose> {
        let claims = self.of(protocol, address).filter(|c| c.has(port));
        claims.map(|c| c.purpose).max_by_key(|p| *p == Purpose::Publish)
    }

    /// Is a port ours at this address, or at all?
    pub(super) fn covers(&self, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        let has = |a| self.ports.get(&(protocol, a)).is_some_and(|ports| ports.has(port));
        has(None) || has(Some(address))
    }

    /// Is any port of any protocol ours at exactly this address?
    pub(super) fn has_address(&self, address: Option<IpAddr>) -> bool {
        self.claims.iter().any(|c| c.address == address)
    }

    /// All ports that are ours at exactly this address.
    pub(super) fn ports(&self, protocol: Protocol, address: Option<IpAddr>) -> Ports {
        self.ports.get(&(protocol, address)).cloned().unwrap_or_default()
    }

    /// Published ports that are claimed one by one, without doubles: those that a socket can keep.
    pub(super) fn singles(&self) -> impl Iterator<Item = (Protocol, Option<IpAddr>, u16)> {
        let singles =
            self.claims.iter().filter(|c| c.purpose == Purpose::Publish && c.ports.start() == c.ports.end());
        singles.map(|c| (c.protocol, c.address, *c.ports.start()))
    }

    fn of(&self, protocol: Protocol, address: Option<IpAddr>) -> impl Iterator<Item = &Claim> {
        self.claims.iter().filter(move |c| c.protocol == protocol && c.address == address)
    }
}

/// Two sets of ports: owned, and published, which is a part of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    owned: Vec<u64>,
    published: Vec<u64>,
}

impl Default for Ports {
    fn default() -> Self {
        Self { owned: vec![0; WORDS], published: vec![0; WORDS] }
    }
}

impl Ports {
    /// As the program has them: bit `port % 8` of byte `port / 8`; first all of those owned, then all of those published.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.owned.iter().chain(&self.published).flat_map(|w| w.to_le_bytes()).collect()
    }

    fn has(&self, port: u16) -> bool {
        self.owned[usize::from(port) / 64] >> (port % 64) & 1 != 0
    }

    fn add(&mut self, claim: &Claim) {
        fill(&mut self.owned, claim);
        if claim.purpose == Purpose::Publish {
            fill(&mut self.published, claim);
        }
    }
}

/// Adds a claim's ports, a word at a time; what it leaves out is left as it is.
fn fill(words: &mut [u64], claim: &Claim) {
    let (first, last) = (usize::from(*claim.ports.start()), usize::from(*claim.ports.end()));
    let kept: Vec<(usize, u64)> = claim
        .without
        .iter()
        .map(|p| (usize::from(*p) / 64, 1 << (p % 64)))
        .filter(|(word, bit)| words[*word] & bit == 0)
        .collect();
    if first <= last {
        for (at, word) in words.iter_mut().enumerate().take(last / 64 + 1).skip(first / 64) {
            let low = if at == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
            let high = if at == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
            *word |= low & high;
        }
    }
    for (word, bit) in kept {
        words[word] &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim(ports: RangeInclusive<u16>, purpose: Purpose, without: &[u16]) -> Claim {
        Claim { protocol: Protocol::Tcp, address: None, ports, purpose, without: without.to_vec() }
    }

    fn bit(bytes: &[u8], port: u16) -> bool {
        bytes[usize::from(port / 8)] >> (port % 8) & 1 == 1
    }

    #[test]
    fn a_publish_inside_the_pool_leaves_the_pool_behind() {
        let mut ledger = Ledger::default();
        let pool = claim(61_000..=65_535, Purpose::Pool, &[]);
        let publish = claim(61_005..=61_005, Purpose::Publish, &[]);
        ledger.add(pool);
        ledger.add(publish.clone());
        ledger.add(publish.clone());
        for expected in [Purpose::Publish, Purpose::Publish, Purpose::Pool] {
            assert_eq!(ledger.purpose(Protocol::Tcp, None, 61_005), Some(expected));
            let bytes = ledger.ports(Protocol::Tcp, None).bytes();
            assert!(bit(&bytes, 61_005));
            assert_eq!(bit(&bytes[8192..], 61_005), expected == Purpose::Publish);
            ledger.remove(&publish);
        }
        assert_eq!(ledger.remove(&publish), None);
        assert_eq!(ledger.purpose(Protocol::Udp, None, 61_005), None);
    }

    #[test]
    fn an_address_has_ports_of_its_own() {
        let mut ledger = Ledger::default();
        let here: IpAddr = "192.0.2.1".parse().unwrap();
        ledger.add(Claim { address: Some(here), ..claim(80..=80, Purpose::Publish, &[]) });
        assert!(ledger.covers(Protocol::Tcp, here, 80));
        assert!(!ledger.covers(Protocol::Tcp, "192.0.2.2".parse().unwrap(), 80));
        assert_eq!(ledger.purpose(Protocol::Tcp, None, 80), None);
        assert!(ledger.has_address(Some(here)) && !ledger.has_address(None));
    }

    proptest! {
        #[test]
        fn the_bitmaps_say_what_the_claims_say(
            claims in prop::collection::vec((any::<u16>(), any::<u16>(), any::<bool>(), prop::collection::vec(any::<u16>(), 0..4)), 0..6),
        ) {
            let mut ledger = Ledger::default();
            for (a, b, publish, mut without) in claims {
                without.sort_unstable();
                let purpose = if publish { Purpose::Publish } else { Purpose::Pool };
                ledger.add(claim(a.min(b)..=a.max(b), purpose, &without));
            }
            let bytes = ledger.ports(Protocol::Tcp, None).bytes();
            for port in 0..=u16::MAX {
                let purpose = ledger.purpose(Protocol::Tcp, None, port);
                prop_assert_eq!(bit(&bytes, port), purpose.is_some());
                prop_assert_eq!(bit(&bytes[8192..], port), purpose == Some(Purpose::Publish));
            }
        }
    }
}
