//! Policy: who may open connections to whom. Pure.
//!
//! A [`Rule`] allows or denies from one [`Side`] to another, all of it or a protocol or its ports. Where several match, **the most
//! specific one decides**, in whatever order they were made:
//!
//! 1. a side that is a port of the switch before one that is a network,
//! 2. then fewer ports before more, ports before a protocol, a protocol before everything,
//! 3. and of two alike that contradict each other, the one that denies.
//!
//! Where none matches, the default of the two sides holds: ports of one network talk unless it isolates them, networks are closed to
//! each other, everybody reaches the outside and the host, and the outside reaches what is published.
//!
//! Rules are about who *opens*: an answer always passes. Who keeps account of that is in `router/inside.rs` and `router/forward.rs`.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use foldhash::fast::RandomState;
use nat::Protocol;

use crate::snapshot::{NetworkId, PortId};

/// What a rule names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// All ports of a network but the host's.
    Network(NetworkId),
    /// One port, and its network.
    Port(PortId, NetworkId),
    /// The host itself.
    Host,
    /// What is reached by an uplink.
    Outside,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Who is behind a port.
    Port(PortId, NetworkId),
    /// The host itself.
    Host,
    /// What is reached by an uplink.
    Outside,
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Services {
    /// Everything, IP or not.
    All,
    /// ICMP and ICMPv6.
    Icmp,
    /// TCP or UDP.
    Protocol(Protocol),
    /// Ports of TCP or UDP.
    Ports(Protocol, RangeInclusive<u16>),
}

/// What a packet asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The protocol; none for what is not IP.
    pub protocol: Option<Protocol>,
    /// The destination's port; 0 where there is none.
    pub port: u16,
}

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Who opens.
    pub from: Side,
    /// Who is called.
    pub to: Side,
    /// What for.
    pub services: Services,
    /// Lets it pass.
    pub allow: bool,
    /// As `swctl policy` writes it.
    pub text: Arc<str>,
}

/// What may pass from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Everything.
    All,
    /// It depends on what.
    Some,
    /// Nothing.
    Nothing,
}

/// All rules, by the sides that they name.
#[derive(Debug, Default)]
pub struct Policy {
    rules: HashMap<(Side, Side), Vec<Rule>, RandomState>,
    /// Networks with rules among their ports, or between them and the host.
    inside: HashSet<NetworkId, RandomState>,
    /// From which network into which other something is allowed.
    opened: HashSet<(NetworkId, NetworkId), RandomState>,
    /// Networks into which something is allowed from outside.
    let_in: HashSet<NetworkId, RandomState>,
}

impl Side {
    const fn network(self) -> Option<NetworkId> {
        match self {
            Self::Network(network) | Self::Port(_, network) => Some(network),
            Self::Host | Self::Outside => None,
        }
    }
}

impl Peer {
    /// The sides that it is, the more specific one first.
    const fn sides(self) -> (Side, Option<Side>) {
        match self {
            Self::Port(port, network) => (Side::Port(port, network), Some(Side::Network(network))),
            Self::Host => (Side::Host, None),
            Self::Outside => (Side::Outside, None),
        }
    }
}

impl Service {
    /// What is not IP.
    pub const OTHER: Self = Self { protocol: None, port: 0 };

    /// What an IP packet asks for.
    pub const fn new(protocol: Protocol, port: u16) -> Self {
        Self { protocol: Some(protocol), port }
    }
}

impl Services {
    fn contain(&self, service: Service) -> bool {
        match (self, service.protocol) {
            (Self::All, _) | (Self::Icmp, Some(Protocol::Icmp | Protocol::Icmpv6)) => true,
            (Self::Protocol(wanted), Some(protocol)) => *wanted == protocol,
            (Self::Ports(wanted, ports), Some(protocol)) => {
                *wanted == protocol && ports.contains(&service.port)
            }
            (Self::Icmp | Self::Protocol(_) | Self::Ports(..), _) => false,
        }
    }

    /// How much they are: the less, the more specific.
    fn breadth(&self) -> u32 {
        match self {
            Self::Ports(_, ports) => u32::from(ports.end().saturating_sub(*ports.start())),
            Self::Protocol(_) | Self::Icmp => 1 << 16,
            Self::All => 1 << 17,
        }
    }
}

impl Rule {
    /// Of rules for the same sides the least one decides.
    fn rank(&self) -> (u32, bool) {
        (self.services.breadth(), self.allow)
    }
}

impl Policy {
    /// A policy of these rules, in any order.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        let mut new = Self::default();
        for rule in rules {
            match (rule.from.network(), rule.to.network()) {
                (Some(from), Some(to)) if from == to => _ = new.inside.insert(from),
                (Some(from), Some(to)) if rule.allow => _ = new.opened.insert((from, to)),
                (Some(network), None) if rule.to == Side::Host => _ = new.inside.insert(network),
                (None, Some(network)) if rule.from == Side::Host => _ = new.inside.insert(network),
                (None, Some(network)) if rule.allow => _ = new.let_in.insert(network),
                _ => {}
            }
            new.rules.entry((rule.from, rule.to)).or_default().push(rule);
        }
        for rules in new.rules.values_mut() {
            rules.sort_by_key(Rule::rank);
        }
        new
    }

    /// The rule that decides, if one does.
    pub fn rule(&self, from: Peer, to: Peer, service: Service) -> Option<&Rule> {
        if self.rules.is_empty() {
            return None;
        }
        self.ranks(from, to).into_iter().find_map(|alike| {
            let first = |rules: &'_ [Rule]| rules.iter().position(|rule| rule.services.contain(service));
            let found = alike.into_iter().filter_map(|rules| rules.get(first(rules)?));
            found.min_by_key(|rule| rule.rank())
        })
    }

    /// Whether a connection may be opened.
    pub fn allows(&self, from: Peer, to: Peer, service: Service, isolates: bool) -> bool {
        self.rule(from, to, service).map_or_else(|| by_default(from, to, isolates), |rule| rule.allow)
    }

    /// What may be opened. [`Reach::Some`] may be said where rules that others override make no difference.
    pub fn reach(&self, from: Peer, to: Peer, isolates: bool) -> Reach {
        let (mut allowed, mut denied) = (false, false);
        let mut note = |allow: bool| if allow { allowed = true } else { denied = true };
        let mut ended = self.rules.is_empty();
        let mut everything = by_default(from, to, isolates);
        let ranks = if ended { Default::default() } else { self.ranks(from, to) };
        for alike in ranks {
            for rule in alike.into_iter().flatten() {
                if rule.services == Services::All {
                    everything = rule.allow && (everything || !ended);
                    ended = true;
                } else {
                    note(rule.allow);
                }
            }
            if ended {
                break;
            }
        }
        note(everything);
        match (allowed, denied) {
            (_, false) => Reach::All,
            (false, true) => Reach::Nothing,
            (true, true) => Reach::Some,
        }
    }

    /// Rules of the same rank, the first rank first.
    fn ranks(&self, from: Peer, to: Peer) -> [[&[Rule]; 2]; 3] {
        let ((from, from_network), (to, to_network)) = (from.sides(), to.sides());
        let get = |from: Option<Side>, to: Option<Side>| {
            from.zip(to).and_then(|sides| self.rules.get(&sides)).map_or(&[][..], Vec::as_slice)
        };
        [
            [get(Some(from), Some(to)), &[]],
            [get(Some(from), to_network), get(from_network, Some(to))],
            [get(from_network, to_network), &[]],
        ]
    }

    /// Whether there are rules among a network's ports, or between them and the host.
    pub fn is_inside(&self, network: NetworkId) -> bool {
        self.inside.contains(&network)
    }

    /// Whether anything is allowed from a network into another.
    pub fn opens(&self, from: NetworkId, to: NetworkId) -> bool {
        self.opened.contains(&(from, to))
    }

    /// Whether anything is allowed between networks at all.
    pub fn connects(&self) -> bool {
        !self.opened.is_empty()
    }

    /// Whether anything is allowed from outside into a network.
    pub fn lets_in(&self, network: NetworkId) -> bool {
        self.let_in.contains(&network)
    }
}

/// What holds where there is no rule. `isolates` is of the network that both are in.
pub fn by_default(from: Peer, to: Peer, isolates: bool) -> bool {
    match (from, to) {
        (Peer::Port(_, a), Peer::Port(_, b)) => a == b && !isolates,
        (Peer::Outside, Peer::Port(..)) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: NetworkId = NetworkId(0);
    const OTHER: NetworkId = NetworkId(1);
    const A: Peer = Peer::Port(PortId(1), NET);
    const B: Peer = Peer::Port(PortId(2), NET);
    const X: Peer = Peer::Port(PortId(3), OTHER);

    fn side(text: &str) -> Side {
        match text {
            "net" => Side::Network(NET),
            "other" => Side::Network(OTHER),
            "a" => Side::Port(PortId(1), NET),
            "b" => Side::Port(PortId(2), NET),
            "x" => Side::Port(PortId(3), OTHER),
            "host" => Side::Host,
            _ => Side::Outside,
        }
    }

    /// `allow a b tcp/80-90`, one a line.
    fn policy(text: &str) -> Policy {
        Policy::new(text.lines().map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let protocol = |name| if name == "tcp" { Protocol::Tcp } else { Protocol::Udp };
            let services = match words.get(3).map(|s| s.split_once('/').unwrap_or((s, ""))) {
                None => Services::All,
                Some(("icmp", _)) => Services::Icmp,
                Some((name, "")) => Services::Protocol(protocol(name)),
                Some((name, ports)) => {
                    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
                    Services::Ports(protocol(name), first.parse().unwrap()..=last.parse().unwrap())
                }
            };
            let (from, to) = (side(words[1]), side(words[2]));
            Rule { from, to, services, allow: words[0] == "allow", text: line.into() }
        }))
    }

    fn tcp(port: u16) -> Service {
        Service::new(Protocol::Tcp, port)
    }

    #[test]
    fn the_most_specific_rule_decides() {
        let rules = "deny net net tcp/1-1000\nallow a net tcp/80\ndeny a b tcp\nallow a b tcp/443\nallow net net tcp/5";
        // In any order.
        for turn in 0..5 {
            let mut lines: Vec<&str> = rules.lines().collect();
            lines.rotate_left(turn);
            let p = policy(&lines.join("\n"));
            let allows = |from, to, port| p.allows(from, to, tcp(port), false);
            assert!(allows(A, B, 443), "two ports, one service");
            assert!(!allows(A, B, 80), "two ports before one");
            assert!(allows(B, A, 5), "one service before a range");
            assert!(!allows(B, A, 80), "a range before the default");
            assert!(allows(B, A, 1001) && p.allows(A, B, Service::new(Protocol::Udp, 80), false));
        }
    }

    #[test]
    fn of_equals_the_one_that_denies() {
        let p = policy("allow a net tcp/80\ndeny net b tcp/80\nallow net b tcp/81\ndeny a net tcp/81-82");
        assert!(!p.allows(A, B, tcp(80), false));
        assert!(p.allows(A, B, tcp(81), false), "narrower");
        assert_eq!(&*p.rule(A, B, tcp(82)).unwrap().text, "deny a net tcp/81-82");
    }

    #[test]
    fn defaults() {
        let p = Policy::default();
        for (from, to, isolates, allows) in [
            (A, B, false, true),
            (A, B, true, false),
            (A, X, false, false),
            (A, Peer::Host, true, true),
            (Peer::Host, A, true, true),
            (A, Peer::Outside, true, true),
            (Peer::Outside, A, false, false),
        ] {
            assert_eq!(p.allows(from, to, Service::OTHER, isolates), allows, "{from:?} {to:?}");
            let reach = if allows { Reach::All } else { Reach::Nothing };
            assert_eq!(p.reach(from, to, isolates), reach);
        }
    }

    #[test]
    fn rules_without_a_service_are_about_what_is_not_ip_too() {
        let p = policy("deny a b\nallow a b icmp");
        assert!(!p.allows(A, B, Service::OTHER, false));
        assert!(p.allows(A, B, Service::new(Protocol::Icmpv6, 0), false));
        assert!(!p.allows(A, B, Service::new(Protocol::Sctp, 0), false));
    }

    #[test]
    fn how_far_one_reaches() {
        let p =
            policy("deny a b tcp/80\nallow net other\ndeny x net\nallow x a icmp\nallow a net\ndeny net b");
        assert_eq!(p.reach(A, B, false), Reach::Nothing, "of the two for everything one denies");
        assert_eq!(p.reach(B, A, false), Reach::All);
        assert_eq!(p.reach(A, X, false), Reach::All);
        assert_eq!((p.reach(X, A, false), p.reach(X, B, false)), (Reach::Some, Reach::Nothing));
        assert!(p.opens(NET, OTHER) && p.opens(OTHER, NET) && p.connects());
        assert!(p.is_inside(NET) && !p.is_inside(OTHER));
        let p = policy("deny a host\nallow outside x tcp/80");
        assert!(p.is_inside(NET) && p.lets_in(OTHER) && !p.lets_in(NET) && !p.connects());
        assert_eq!(p.reach(A, Peer::Host, false), Reach::Nothing);
        assert_eq!(p.reach(B, Peer::Host, false), Reach::All);
    }

    proptest::proptest! {
        #[test]
        fn reach_says_what_single_services_say(
            picked in proptest::collection::vec((0usize..6, 0usize..6, 0usize..5, proptest::bool::ANY), 0..8),
            isolates in proptest::bool::ANY,
        ) {
            let names = ["net", "other", "a", "b", "x", "host"];
            let services = ["", "tcp", "icmp", "tcp/80", "udp/1-65535"];
            let line = |(from, to, service, allow): &(usize, usize, usize, bool)| {
                let action = if *allow { "allow" } else { "deny" };
                format!("{action} {} {} {}", names[*from], names[*to], services[*service])
            };
            let p = policy(&picked.iter().map(line).collect::<Vec<_>>().join("\n"));
            let all = [tcp(80), tcp(81), Service::new(Protocol::Udp, 7), Service::new(Protocol::Icmp, 0), Service::OTHER];
            for (from, to) in [(A, B), (B, A), (A, X), (X, B), (A, Peer::Host), (Peer::Host, B)] {
                let single: Vec<bool> = all.iter().map(|s| p.allows(from, to, *s, isolates)).collect();
                match p.reach(from, to, isolates) {
                    Reach::All => assert!(single.iter().all(|a| *a), "{from:?} {to:?}"),
                    Reach::Nothing => assert!(single.iter().all(|a| !*a), "{from:?} {to:?}"),
                    Reach::Some => {}
                }
            }
        }
    }
}
