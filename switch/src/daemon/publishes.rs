//! Published ports as a value: what one is, and a set of them that is quick whatever its size. Pure.
//!
//! The set is ordered by protocol, family, host address and first port. Ranges of one host address never overlap, so each
//! question is a search for the last range that begins at or before a port: once for each host address that has ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;

use ctl::api::Transport;
use ipnet::IpNet;
use jiff::Timestamp;
use nat::{Address, Endpoint, Prefix, Protocol, Rule};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Ports of the host that lead to a container.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// The host's address; none for all of them.
    pub host: Option<IpAddr>,
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
    /// TCP or UDP.
    pub transport: Transport,
    /// Where the first port leads.
    pub target: SocketAddr,
    /// The target's network.
    pub network: String,
    /// Who may connect; everyone if empty.
    pub from: Vec<IpNet>,
    /// Since when.
    pub since: Timestamp,
    /// The port that it goes with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

/// A publish's place in the order; its name is [`Key::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    transport: Transport,
    /// The target's family.
    v6: bool,
    host: Option<IpAddr>,
    first: u16,
    last: u16,
}

impl Key {
    /// What a user means by `[HOSTIP:]PORT[-PORT]/protocol`: for all addresses, both families may be meant, IPv4 first.
    pub fn meant(wanted: &ctl::spec::PublishedPorts) -> impl Iterator<Item = Self> {
        let ctl::spec::PublishedPorts { host_ip, first, last, protocol } = *wanted;
        let host = host_ip.filter(|h| !h.is_unspecified());
        let families =
            [false, true].into_iter().filter(move |v6| host_ip.is_none_or(|ip| ip.is_ipv6() == *v6));
        families.map(move |v6| Self { transport: protocol, v6, host, first, last })
    }

    /// `[HOSTIP:]PORT[-PORT]/protocol`; for all addresses, those of IPv6 are told apart.
    pub fn name(&self) -> String {
        let host = match self.host {
            Some(IpAddr::V4(v4)) => format!("{v4}:"),
            Some(IpAddr::V6(v6)) => format!("[{v6}]:"),
            None if self.v6 => "[::]:".to_owned(),
            None => String::new(),
        };
        let last = if self.first == self.last { String::new() } else { format!("-{}", self.last) };
        format!("{host}{}{last}/{}", self.first, self.transport.name())
    }
}

impl Publish {
    /// The protocol.
    pub const fn protocol(&self) -> Protocol {
        match self.transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
        }
    }

    /// The ports.
    pub const fn ports(&self) -> RangeInclusive<u16> {
        self.first..=self.last
    }

    /// Its place in a set.
    pub const fn key(&self) -> Key {
        let Self { host, first, last, transport, .. } = *self;
        Key { transport, v6: self.target.is_ipv6(), host, first, last }
    }

    /// Its name: what `swctl unpublish` takes.
    pub fn name(&self) -> String {
        self.key().name()
    }

    /// Whether a client on the host may use it, by its source address. One with a loopback address is the host itself: it
    /// may if any address of the host or of `lo` may.
    fn admits(&self, client: IpAddr, host: &BTreeSet<IpAddr>) -> bool {
        let may = |address: &IpAddr| self.from.iter().any(|net| net.contains(address));
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let is_host = client.is_loopback();
        self.from.is_empty() || may(&client) || (is_host && loopback.iter().chain(host).any(may))
    }

    /// Where one of its ports leads.
    pub fn target_of(&self, port: u16) -> Option<SocketAddr> {
        let offset = port.checked_sub(self.first).filter(|_| port <= self.last)?;
        Some(SocketAddr::new(self.target.ip(), self.target.port().checked_add(offset)?))
    }

    /// What the translator is told.
    pub fn rule(&self, network: nat::NetworkId) -> Rule {
        Rule {
            protocol: self.protocol(),
            host: self.host.map(Address::from),
            ports: self.ports(),
            network,
            target: Endpoint::new(self.target.ip(), self.target.port()),
            from: self.from.iter().filter_map(|n| Prefix::new(n.addr(), n.prefix_len())).collect(),
        }
    }
}

/// Publishes that do not overlap. Cheap to copy: the publishes themselves are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publishes(BTreeMap<Key, Arc<Publish>>);

impl Publishes {
    /// Adds one. What overlaps it must have been looked for with [`Publishes::overlapping`].
    pub fn insert(&mut self, publish: Arc<Publish>) {
        self.0.insert(publish.key(), publish);
    }

    /// Removes one.
    pub fn remove(&mut self, key: &Key) -> Option<Arc<Publish>> {
        self.0.remove(key)
    }

    /// The one of this place.
    pub fn get(&self, key: &Key) -> Option<&Arc<Publish>> {
        self.0.get(key)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<Publish>)> {
        self.0.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One that has a port in common with `new`: at the same address, or where one of the two is for all addresses.
    pub fn overlapping(&self, new: &Publish) -> Option<&Arc<Publish>> {
        let at = |host| self.last_from(Key { host, ..new.key() }, new.last).filter(|p| p.last >= new.first);
        match new.host {
            Some(_) => at(new.host).or_else(|| at(None)),
            None => self.hosts(new.key()).find_map(at),
        }
    }

    /// Where a client on the host (whose addresses are `own`) that dialled an address is to be brought, if it is published
    /// and the client may. Loopback addresses lead to publishes of all addresses, those of the dialled family first.
    pub fn relayed(
        &self,
        transport: Transport,
        dialled: SocketAddr,
        client: IpAddr,
        own: &BTreeSet<IpAddr>,
    ) -> Option<SocketAddr> {
        let (host, port) = (dialled.ip(), dialled.port());
        let places = [(host.is_ipv6(), Some(host)), (host.is_ipv6(), None), (host.is_ipv4(), None)];
        let tried = if host.is_loopback() { &places[..] } else { &places[..2] };
        let found = tried.iter().find_map(|(v6, host)| {
            let key = Key { transport, v6: *v6, host: *host, first: port, last: u16::MAX };
            self.last_from(key, port).filter(|p| p.last >= port)
        });
        found.filter(|p| p.admits(client.to_canonical(), own))?.target_of(port)
    }

    /// The last range of `like`'s protocol, family and host that begins at or before `port`.
    fn last_from(&self, like: Key, port: u16) -> Option<&Arc<Publish>> {
        let (key, publish) = self.0.range(..=Key { first: port, last: u16::MAX, ..like }).next_back()?;
        let same = (key.transport, key.v6, key.host) == (like.transport, like.v6, like.host);
        same.then_some(publish)
    }

    /// The host addresses that have ports of `like`'s protocol and family; `None` is all addresses.
    fn hosts(&self, like: Key) -> impl Iterator<Item = Option<IpAddr>> {
        let mut from = Bound::Included(Key { host: None, first: 0, last: 0, ..like });
        std::iter::from_fn(move || {
            let (key, _) = self.0.range((from, Bound::Unbounded)).next()?;
            from = Bound::Excluded(Key { first: u16::MAX, last: u16::MAX, ..*key });
            ((key.transport, key.v6) == (like.transport, like.v6)).then_some(key.host)
        })
    }
}

impl FromIterator<Publish> for Publishes {
    fn from_iter<I: IntoIterator<Item = Publish>>(all: I) -> Self {
        Self(all.into_iter().map(|p| (p.key(), Arc::new(p))).collect())
    }
}

impl Serialize for Publishes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, publish)| (key.name(), &**publish)))
    }
}

impl<'de> Deserialize<'de> for Publishes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let named = BTreeMap::<String, Publish>::deserialize(deserializer)?;
        Ok(named.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn publish(host: Option<&str>, ports: RangeInclusive<u16>, target: &str) -> Publish {
        Publish {
            host: host.map(|h| h.parse().unwrap()),
            first: *ports.start(),
            last: *ports.end(),
            transport: Transport::Tcp,
            target: target.parse().unwrap(),
            network: "default".into(),
            from: Vec::new(),
            since: Timestamp::UNIX_EPOCH,
            port: None,
        }
    }

    #[test]
    fn names_are_what_people_type() {
        let name = |host, ports, target| publish(host, ports, target).name();
        assert_eq!(name(None, 80..=80, "172.18.0.10:80"), "80/tcp");
        assert_eq!(name(None, 80..=89, "[fd00::1]:80"), "[::]:80-89/tcp");
        assert_eq!(name(Some("192.0.2.1"), 80..=80, "172.18.0.10:80"), "192.0.2.1:80/tcp");
        assert_eq!(name(Some("2001:db8::1"), 80..=80, "[fd00::1]:80"), "[2001:db8::1]:80/tcp");
        let meant = |text| -> Vec<String> {
            Key::meant(&ctl::spec::parse_published(text).unwrap()).map(|k| k.name()).collect()
        };
        assert_eq!(meant("80"), ["80/tcp", "[::]:80/tcp"]);
        assert_eq!(meant("[::]:80"), ["[::]:80/tcp"]);
        assert_eq!(meant("0.0.0.0:80-81/udp"), ["80-81/udp"]);
        assert_eq!(meant("[2001:db8::1]:80"), ["[2001:db8::1]:80/tcp"]);
    }

    #[test]
    fn a_client_on_the_host_is_led_by_address_family_and_source() {
        let mut any = publish(None, 5000..=5009, "172.18.0.10:80");
        any.from = vec!["192.0.2.0/24".parse().unwrap()];
        let six = publish(None, 5000..=5000, "[fd00::1]:81");
        let one = publish(Some("192.0.2.1"), 6000..=6000, "172.18.0.20:1");
        let all: Publishes = [any, six, one].into_iter().collect();
        let led_where = |dialled: &str, client: &str, own: &str| {
            let own = [own.parse().unwrap()].into();
            let to = all.relayed(Transport::Tcp, dialled.parse().unwrap(), client.parse().unwrap(), &own);
            to.map(|to| to.to_string())
        };
        let led = |dialled, client| led_where(dialled, client, "192.0.2.9");
        let web = |port: u16| Some(format!("172.18.0.10:{port}"));
        assert_eq!(led("127.0.0.1:5009", "127.0.0.1"), web(89), "the host has 192.0.2.9");
        assert_eq!(led_where("127.0.0.1:5009", "127.0.0.1", "198.51.100.9"), None);
        let local =
            Publish { from: vec!["127.0.0.0/8".parse().unwrap()], ..publish(None, 1..=1, "172.18.0.10:1") };
        let led_locally = |client: &str| local.admits(client.parse().unwrap(), &BTreeSet::new());
        assert!(led_locally("127.0.0.1") && led_locally("::1") && !led_locally("192.0.2.9"));
        assert_eq!(led("[::1]:5001", "::1"), web(81), "no such port is published for IPv6");
        assert_eq!(led("[::1]:5000", "::1").as_deref(), Some("[fd00::1]:81"));
        assert_eq!(led("192.0.2.7:5003", "192.0.2.9"), web(83));
        assert_eq!(led("192.0.2.7:5003", "::ffff:192.0.2.9"), web(83));
        assert_eq!(led("192.0.2.7:5003", "198.51.100.9"), None);
        assert_eq!(led("[2001:db8::1]:5001", "2001:db8::1"), None);
        assert_eq!(led("192.0.2.1:6000", "192.0.2.1").as_deref(), Some("172.18.0.20:1"));
        assert_eq!((led("192.0.2.2:6000", "192.0.2.1"), led("127.0.0.1:6000", "127.0.0.1")), (None, None));
    }

    #[test]
    fn a_set_is_written_by_name() {
        let all: Publishes = [publish(None, 80..=80, "172.18.0.10:80")].into_iter().collect();
        let text = serde_json::to_string(&all).unwrap();
        assert!(text.starts_with("{\"80/tcp\":{"), "{text}");
        assert_eq!(serde_json::from_str::<Publishes>(&text).unwrap(), all);
    }

    proptest! {
        #[test]
        fn overlaps_are_what_a_look_at_each_finds(
            steps in prop::collection::vec((0..3_usize, 1..60_u16, 0..9_u16, any::<bool>()), 1..40),
        ) {
            let mut set = Publishes::default();
            for (host, first, more, v6) in steps {
                let hosts = if v6 { [None, Some("2001:db8::1"), Some("2001:db8::2")] }
                    else { [None, Some("192.0.2.1"), Some("192.0.2.2")] };
                let target = if v6 { "[fd00::1]:1" } else { "172.18.0.10:1" };
                let new = publish(hosts[host], first..=first + more, target);
                let collides = |p: &Publish| {
                    let hosts = p.host.is_none() || new.host.is_none() || p.host == new.host;
                    let family = p.target.is_ipv4() == new.target.is_ipv4();
                    hosts && family && p.first <= new.last && new.first <= p.last
                };
                let found = set.overlapping(&new);
                prop_assert_eq!(found.is_some(), set.iter().any(|(_, p)| collides(p)));
                prop_assert!(found.is_none_or(|p| collides(p)));
                if found.is_none() {
                    set.insert(Arc::new(new));
                }
            }
        }
    }
}
