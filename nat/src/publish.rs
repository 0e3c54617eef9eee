//! Publish rules: which external ports lead to which inside endpoint.
//!
//! **What it stores.** One entry per rule whatever the width of its port range, ordered by protocol, family, host address
//! and first port; since ranges of one address never overlap, a lookup is a search for the last range that begins at or
//! before the port: twice, once for the address and once for rules that hold for any address. Rules for one address and
//! rules for any address must not overlap either, as with sockets.
//!
//! A rule also says what a published endpoint is known by when it sends first, to someone who has not sent to it (or not
//! since a restart). For that rules are ordered by target a second time; there ranges may overlap, and the nearest few
//! are looked at.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::{Bound, RangeInclusive};

use foldhash::quality::RandomState;
use thiserror::Error;

use crate::conntrack::RuleId;
use crate::tuple::{Address, Endpoint, NetworkId, Protocol};

/// The addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: Address,
    /// Of 128 bits, in the form that both families share.
    bits: u32,
}

impl Prefix {
    /// The first `length` bits of `address`; `None` if its family has fewer.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (most, offset) = if address.is_ipv4() { (32, 96) } else { (128, 0) };
        (length <= most).then(|| Self { address: address.into(), bits: u32::from(length) + offset })
    }

    /// True if `address` is one of them.
    pub fn contains(&self, address: Address) -> bool {
        let differing = self.address.to_bits() ^ address.to_bits();
        self.address.is_v4() == address.is_v4() && differing.leading_zeros() >= self.bits
    }
}

/// What to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The external address; `None` for all of the target's family.
    pub host: Option<Address>,
    /// The external ports.
    pub ports: RangeInclusive<u16>,
    /// The network of the target.
    pub network: NetworkId,
    /// Where the first port leads; the ports that follow lead to those that follow it.
    pub target: Endpoint,
    /// Who may connect; everyone if empty. A container is judged by its own address, not by its translated one.
    pub from: Vec<Prefix>,
}

/// Why a rule was not accepted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PublishError {
    /// A port of the range is published by another rule.
    #[error("the port range overlaps that of another rule")]
    Conflict(RuleId),
    /// The host address and the target are of different families.
    #[error("host address and target are of different families")]
    Family,
    /// The protocol has no ports to translate.
    #[error("only TCP and UDP ports can be published")]
    Protocol,
    /// The range is empty, contains port 0, or would pass port 65535 at the target.
    #[error("impossible port range")]
    Range,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    protocol: Protocol,
    v4: bool,
    host: Option<Address>,
    first: u16,
}

/// A rule's place in the order of targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct TargetKey {
    protocol: Protocol,
    network: NetworkId,
    target: Endpoint,
    id: RuleId,
}

/// How many rules whose targets begin before a port are looked at.
const TARGET_TRIES: usize = 8;

#[derive(Clone, Debug)]
struct Published {
    id: RuleId,
    rule: Rule,
    connections: u32,
}

/// Where a published port leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) rule: RuleId,
    pub(crate) network: NetworkId,
    pub(crate) endpoint: Endpoint,
}

/// The rules.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    rules: BTreeMap<Key, Published>,
    keys: HashMap<RuleId, Key, RandomState>,
    targets: BTreeMap<TargetKey, Key>,
    next: u32,
}

impl Rules {
    /// Adds a rule: O(log n), for any address times the number of addresses that have rules.
    pub(crate) fn add(&mut self, rule: Rule) -> Result<RuleId, PublishError> {
        if !matches!(rule.protocol, Protocol::Tcp | Protocol::Udp) {
            return Err(PublishError::Protocol);
        }
        let (first, last) = (*rule.ports.start(), *rule.ports.end());
        if first == 0
            || last < first
            || rule.target.port.checked_add(last - first).is_none()
            || rule.target.port == 0
        {
            return Err(PublishError::Range);
        }
        let v4 = rule.target.address.is_v4();
        if rule.host.is_some_and(|host| host.is_v4() != v4) {
            return Err(PublishError::Family);
        }
        let key = Key { protocol: rule.protocol, v4, host: rule.host, first };
        let conflict = match rule.host {
            Some(_) => {
                self.overlapping(key, last).or_else(|| self.overlapping(Key { host: None, ..key }, last))
            }
            None => self.hosts(key).find_map(|host| self.overlapping(Key { host, ..key }, last)),
        };
        if let Some(other) = conflict {
            return Err(PublishError::Conflict(other));
        }
        let id = RuleId(self.next);
        self.next = (self.next + 1) % RuleId::NONE;
        self.targets.insert(target_key(id, &rule), key);
        self.rules.insert(key, Published { id, rule, connections: 0 });
        self.keys.insert(id, key);
        Ok(id)
    }

    /// The hosts that have rules of `like`'s protocol and family.
    fn hosts(&self, like: Key) -> impl Iterator<Item = Option<Address>> {
        let mut from = Bound::Included(Key { host: None, first: 0, ..like });
        std::iter::from_fn(move || {
            let (key, _) = self.rules.range((from, Bound::Unbounded)).next()?;
            from = Bound::Excluded(Key { first: u16::MAX, ..*key });
            ((key.protocol, key.v4) == (like.protocol, like.v4)).then_some(key.host)
        })
    }

    /// The rule of `key`'s host whose range overlaps `key.first..=last`.
    fn overlapping(&self, key: Key, last: u16) -> Option<RuleId> {
        let (found, published) = self.rules.range(..=Key { first: last, ..key }).next_back()?;
        let same = (found.protocol, found.v4, found.host) == (key.protocol, key.v4, key.host);
        (same && *published.rule.ports.end() >= key.first).then_some(published.id)
    }

    pub(crate) fn contains(&self, id: RuleId) -> bool {
        self.keys.contains_key(&id)
    }

    pub(crate) fn remove(&mut self, id: RuleId) -> Option<Rule> {
        let key = self.keys.remove(&id)?;
        let rule = self.rules.remove(&key)?.rule;
        self.targets.remove(&target_key(id, &rule));
        Some(rule)
    }

    /// The port of `external` by which the outside knows `inside` of `network`, if one is published.
    pub(crate) fn source(
        &self,
        protocol: Protocol,
        network: NetworkId,
        inside: Endpoint,
        external: Address,
    ) -> Option<(RuleId, u16)> {
        let last = TargetKey { protocol, network, target: inside, id: RuleId(u32::MAX) };
        self.targets
            .range(..=last)
            .rev()
            .take(TARGET_TRIES)
            .take_while(|(key, _)| {
                (key.protocol, key.network, key.target.address) == (protocol, network, inside.address)
            })
            .find_map(|(_, key)| {
                let Published { id, rule, .. } = self.rules.get(key)?;
                let port = rule.ports.start().checked_add(inside.port.checked_sub(rule.target.port)?)?;
                let fits = rule.ports.contains(&port) && rule.host.is_none_or(|host| host == external);
                fits.then_some((*id, port))
            })
    }

    fn find(&self, protocol: Protocol, host: Address, port: u16) -> Option<&Published> {
        [Some(host), None].into_iter().find_map(|searched| {
            let key = Key { protocol, v4: host.is_v4(), host: searched, first: port };
            let (found, published) = self.rules.range(..=key).next_back()?;
            let same = (found.protocol, found.v4, found.host) == (key.protocol, key.v4, key.host);
            (same && published.rule.ports.contains(&port)).then_some(published)
        })
    }

    /// True if `port` of `host` is published.
    pub(crate) fn covers(&self, protocol: Protocol, host: Address, port: u16) -> bool {
        self.find(protocol, host, port).is_some()
    }

    /// Where a packet from `source` to `host` leads: nowhere, or `Err` if the rule is not for this source.
    pub(crate) fn target(
        &self,
        protocol: Protocol,
        source: Address,
        host: Endpoint,
    ) -> Option<Result<Target, RuleId>> {
        let Published { id, rule, .. } = self.find(protocol, host.address, host.port)?;
        if !rule.from.is_empty() && !rule.from.iter().any(|prefix| prefix.contains(source)) {
            return Some(Err(*id));
        }
        let port = rule.target.port.checked_add(host.port.checked_sub(*rule.ports.start())?)?;
        let endpoint = Endpoint { address: rule.target.address, port };
        Some(Ok(Target { rule: *id, network: rule.network, endpoint }))
    }

    pub(crate) fn opened(&mut self, id: RuleId) {
        if let Some(published) = self.keys.get(&id).and_then(|key| self.rules.get_mut(key)) {
            published.connections += 1;
        }
    }

    pub(crate) fn closed(&mut self, id: RuleId) {
        if let Some(published) = self.keys.get(&id).and_then(|key| self.rules.get_mut(key)) {
            published.connections = published.connections.saturating_sub(1);
        }
    }

    /// All rules in order, with the number of their connections.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (RuleId, &Rule, u32)> {
        self.rules.values().map(|published| (published.id, &published.rule, published.connections))
    }
}

const fn target_key(id: RuleId, rule: &Rule) -> TargetKey {
    TargetKey { protocol: rule.protocol, network: rule.network, target: rule.target, id }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Address {
        Address::from(text.parse::<IpAddr>().unwrap())
    }

    fn rule(host: Option<&str>, ports: RangeInclusive<u16>) -> Rule {
        Rule {
            protocol: Protocol::Tcp,
            host: host.map(ip),
            ports,
            network: NetworkId(1),
            target: Endpoint::new(ip("172.18.0.10"), 5000),
            from: Vec::new(),
        }
    }

    #[test]
    fn finds_a_port_in_a_range() {
        let mut rules = Rules::default();
        let id = rules.add(rule(Some("192.0.2.1"), 8000..=8009)).unwrap();
        let find = |rules: &Rules, host, port| {
            rules.target(Protocol::Tcp, ip("198.51.100.7"), Endpoint::new(ip(host), port))
        };
        assert_eq!(find(&rules, "192.0.2.1", 7999), None);
        assert_eq!(find(&rules, "192.0.2.1", 8010), None);
        assert_eq!(find(&rules, "192.0.2.2", 8000), None);
        let target = find(&rules, "192.0.2.1", 8009).unwrap().unwrap();
        assert_eq!((target.rule, target.endpoint), (id, Endpoint::new(ip("172.18.0.10"), 5009)));
        assert!(rules.remove(id).is_some());
        assert_eq!(find(&rules, "192.0.2.1", 8009), None);
    }

    #[test]
    fn every_overlap_is_a_conflict() {
        let mut rules = Rules::default();
        let one = rules.add(rule(Some("192.0.2.1"), 8000..=8009)).unwrap();
        for ports in [8000..=8000, 8009..=9000, 7000..=8000, 7000..=9000, 8003..=8004] {
            assert_eq!(rules.add(rule(Some("192.0.2.1"), ports.clone())), Err(PublishError::Conflict(one)));
            assert_eq!(rules.add(rule(None, ports)), Err(PublishError::Conflict(one)));
        }
        let any = rules.add(rule(None, 80..=80)).unwrap();
        assert_eq!(rules.add(rule(Some("192.0.2.9"), 1..=100)), Err(PublishError::Conflict(any)));
        rules.add(rule(Some("192.0.2.2"), 8000..=8009)).unwrap();
        rules.add(Rule { protocol: Protocol::Udp, ..rule(Some("192.0.2.1"), 8000..=8009) }).unwrap();
        rules.add(Rule { target: Endpoint::new(ip("fd00::1"), 80), ..rule(None, 8000..=8009) }).unwrap();
    }

    #[test]
    fn refuses_impossible_rules() {
        let mut rules = Rules::default();
        assert_eq!(rules.add(rule(None, 0..=5)), Err(PublishError::Range));
        assert_eq!(rules.add(rule(None, RangeInclusive::new(9, 8))), Err(PublishError::Range));
        assert_eq!(rules.add(rule(None, 1..=65535)), Err(PublishError::Range), "5000 + 65534 passes the end");
        assert_eq!(rules.add(rule(Some("fd00::1"), 1..=5)), Err(PublishError::Family));
        let sctp = Rule { protocol: Protocol::Sctp, ..rule(None, 1..=5) };
        assert_eq!(rules.add(sctp), Err(PublishError::Protocol));
    }

    #[test]
    fn only_some_may_connect() {
        let mut rules = Rules::default();
        let from = vec![Prefix::new("198.51.100.0".parse().unwrap(), 24).unwrap()];
        let id = rules.add(Rule { from, ..rule(None, 80..=80) }).unwrap();
        let host = Endpoint::new(ip("192.0.2.1"), 80);
        assert!(rules.target(Protocol::Tcp, ip("198.51.100.255"), host).unwrap().is_ok());
        assert_eq!(rules.target(Protocol::Tcp, ip("198.51.101.0"), host), Some(Err(id)));
        assert_eq!(Prefix::new("192.0.2.1".parse().unwrap(), 33), None);
        assert!(Prefix::new("0.0.0.0".parse().unwrap(), 0).unwrap().contains(ip("203.0.113.9")));
        assert!(!Prefix::new("::".parse().unwrap(), 0).unwrap().contains(ip("203.0.113.9")));
    }

    #[test]
    fn a_rule_of_all_ports_is_one_entry() {
        let mut rules = Rules::default();
        rules.add(Rule { target: Endpoint::new(ip("172.18.0.10"), 1), ..rule(None, 1..=65535) }).unwrap();
        assert_eq!(rules.iter().count(), 1);
        assert!(rules.covers(Protocol::Tcp, ip("192.0.2.1"), 65535));
    }

    #[test]
    fn a_target_knows_its_published_port() {
        let mut rules = Rules::default();
        let wide = rules.add(rule(Some("192.0.2.1"), 8000..=8009)).unwrap();
        let narrow = rules.add(rule(Some("192.0.2.2"), 9000..=9000)).unwrap();
        let source = |rules: &Rules, port, external| {
            let inside = Endpoint::new(ip("172.18.0.10"), port);
            rules.source(Protocol::Tcp, NetworkId(1), inside, ip(external))
        };
        assert_eq!(source(&rules, 5000, "192.0.2.1"), Some((wide, 8000)));
        assert_eq!(source(&rules, 5009, "192.0.2.1"), Some((wide, 8009)));
        assert_eq!(source(&rules, 5010, "192.0.2.1"), None);
        assert_eq!(source(&rules, 4999, "192.0.2.1"), None);
        assert_eq!(source(&rules, 5000, "192.0.2.2"), Some((narrow, 9000)));
        rules.remove(narrow).unwrap();
        assert_eq!(source(&rules, 5000, "192.0.2.2"), None);
        assert_eq!(rules.targets.len(), 1);
    }
}
