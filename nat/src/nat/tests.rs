use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::conntrack::Filter;
use crate::publish::Rule;
use crate::testutil::{fragments, port_unreachable, tcp, udp};
use crate::tuple::Endpoint;

/// One thing that happens to a translator.
#[derive(Clone, Debug)]
enum Step {
    Fragment { from: u8, id: u16, place: usize },
    Hairpin { from: u8, port: u8 },
    In { to: u8, from: u8, tcp: Option<&'static str> },
    Out { from: u8, port: u8, to: u8, tcp: Option<&'static str> },
    Publish { port: u8 },
    Refused { to: u8 },
    RemoveExternal,
    RemoveOwner { owner: u8 },
    Unpublish,
    Wait { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![
        Just(None),
        prop_oneof![Just("S"), Just("SA"), Just("A"), Just("FA"), Just("R"), Just("RA")].prop_map(Some)
    ];
    let wait = prop_oneof![0u64..2000, 100_000u64..400_000, Just(100_000_000)];
    prop_oneof![
        12 => (1u8..4, 0u8..12, 0u8..3, flags.clone())
            .prop_map(|(from, port, to, tcp)| Step::Out { from, port, to, tcp }),
        8 => (0u8..10, 0u8..3, flags).prop_map(|(to, from, tcp)| Step::In { to, from, tcp }),
        3 => (1u8..4, 0u8..10).prop_map(|(from, port)| Step::Hairpin { from, port }),
        2 => (1u8..4, 0u16..3, 0usize..3).prop_map(|(from, id, place)| Step::Fragment { from, id, place }),
        2 => (0u8..10).prop_map(|to| Step::Refused { to }),
        2 => wait.prop_map(|millis| Step::Wait { millis }),
        1 => (1u8..4).prop_map(|owner| Step::RemoveOwner { owner }),
        1 => (0u8..10).prop_map(|port| Step::Publish { port }),
        1 => Just(Step::Unpublish),
        1 => Just(Step::RemoveExternal),
    ]
}

fn config() -> impl Strategy<Value = NetworkConfig> {
    let mapping = prop_oneof![Just(Mapping::EndpointIndependent), Just(Mapping::AddressAndPortDependent)];
    let filtering = prop_oneof![
        Just(Filtering::EndpointIndependent),
        Just(Filtering::AddressDependent),
        Just(Filtering::AddressAndPortDependent)
    ];
    (mapping, filtering).prop_map(|(mapping, filtering)| NetworkConfig {
        mapping,
        filtering,
        ..NetworkConfig::default()
    })
}

const NETWORK: NetworkId = NetworkId(1);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A translator with eight ports and room for twelve connections, so that everything runs out soon.
struct World {
    nat: Nat,
    now: Time,
    rules: Vec<crate::conntrack::RuleId>,
}

impl World {
    fn new(config: NetworkConfig) -> Self {
        let owner = OwnerLimits { connections: 8, new_per_second: 50 };
        let mut nat =
            Nat::new(Config { connections: 12, owner, ports: 61_000..=61_007, ..Config::default() });
        nat.set_network(NETWORK, config);
        Self { nat, now: Time::from_secs(1000), rules: Vec::new() }
    }

    /// Runs a packet through. What leaves shows no inside address, and what comes in goes to one.
    fn pass(&mut self, mut bytes: Vec<u8>, ask: impl FnOnce(&mut Nat, Time, &mut Packet<'_>) -> Verdict) {
        let Ok(mut packet) = Packet::parse(&mut bytes, Checksum::Complete) else { return };
        let verdict = match ask(&mut self.nat, self.now, &mut packet) {
            Verdict::New(pending) => self.nat.commit(self.now, &mut packet, pending),
            verdict => verdict,
        };
        let sent = match verdict {
            Verdict::Forward(forward) => Some((forward, bytes)),
            _ => None,
        };
        for (forward, mut bytes) in sent.into_iter().chain(std::iter::from_fn(|| self.nat.next_released())) {
            let packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
            let outside = forward.to.network == NetworkId::OUTSIDE;
            let shown = if outside { packet.source() } else { packet.destination() };
            let inside = shown.v4_octets().starts_with(&[10, 0, 0]);
            assert_eq!(inside, !outside, "{forward:?} {packet:?}");
        }
    }

    fn outbound(&mut self, from: u8, bytes: Vec<u8>) {
        let party = Party { network: NETWORK, owner: OwnerId(from.into()) };
        let external = External { v4: Some(EXTERNAL), v6: None };
        self.pass(bytes, |nat, now, packet| nat.outbound(now, packet, party, external));
    }

    fn inbound(&mut self, bytes: Vec<u8>) {
        self.pass(bytes, |nat, now, packet| nat.inbound(now, packet, |_, _| Some(OwnerId(2))));
    }

    fn run(&mut self, step: &Step) {
        let packet = |source: &str, destination: &str, flags: Option<&str>| match flags {
            Some(flags) => tcp(source, destination, flags, 100, 100, b""),
            None => udp(source, destination, b"x"),
        };
        match *step {
            Step::Out { from, port, to, tcp } => {
                let source = format!("10.0.0.{from}:{}", 1000 + u16::from(port));
                self.outbound(from, packet(&source, &format!("198.51.100.{to}:9"), tcp));
            }
            Step::In { to, from, tcp } => {
                let destination = format!("192.0.2.1:{}", 61_000 + u16::from(to));
                self.inbound(packet(&format!("198.51.100.{from}:9"), &destination, tcp));
            }
            Step::Hairpin { from, port } => {
                let party = Party { network: NETWORK, owner: OwnerId(from.into()) };
                let external = External { v4: Some(EXTERNAL), v6: None };
                let destination = format!("192.0.2.1:{}", 61_000 + u16::from(port));
                let bytes = udp(&format!("10.0.0.{from}:1000"), &destination, b"x");
                self.pass(bytes, |nat, now, packet| {
                    nat.hairpin(now, packet, party, external, |_, _| Some(OwnerId(2)))
                });
            }
            Step::Fragment { from, id, place } => {
                let whole = udp(&format!("10.0.0.{from}:1000"), "198.51.100.1:9", &[0; 64]);
                self.outbound(from, fragments(&whole, id, 24).swap_remove(place));
            }
            Step::Refused { to } => {
                let quoted = format!("192.0.2.1:{}", 61_000 + u16::from(to));
                let error =
                    port_unreachable("198.51.100.1", "192.0.2.1", &udp(&quoted, "198.51.100.1:9", b"x"));
                self.inbound(error);
            }
            Step::Wait { millis } => {
                self.now = self.now + Duration::from_millis(millis);
                self.nat.expire(self.now, 3);
            }
            Step::RemoveOwner { owner } => self.nat.remove_owner(self.now, OwnerId(owner.into())),
            Step::RemoveExternal => self.nat.remove_external(self.now, EXTERNAL.into()),
            Step::Publish { port } => {
                let port = 61_000 + u16::from(port);
                self.rules.extend(self.nat.publish(Rule {
                    protocol: Protocol::Udp,
                    host: None,
                    ports: port..=port + 1,
                    network: NETWORK,
                    target: Endpoint::new(Ipv4Addr::new(10, 0, 0, 2), 1000),
                    from: Vec::new(),
                }));
            }
            Step::Unpublish => {
                if let Some(rule) = self.rules.pop() {
                    self.nat.unpublish(self.now, rule);
                }
            }
        }
    }

    /// Two live connections never look the same to the outside: no external endpoint serves two inside endpoints
    /// towards one destination, and where ports are not shared, none at all.
    fn check(&self) {
        let found: Vec<_> = self.nat.connections(self.now, Filter::default()).collect();
        for (n, (_, one)) in found.iter().enumerate() {
            for (_, other) in &found[n + 1..] {
                for (a, b) in
                    [(Direction::Original, Direction::Original), (Direction::Reply, Direction::Reply)]
                {
                    assert_ne!(one.tuple(a), other.tuple(b));
                }
                let (one, other) = (one.tuple(Direction::Reply), other.tuple(Direction::Reply));
                if one.destination == other.destination && one.protocol == other.protocol {
                    assert_ne!((one.source, one.network), (other.source, other.network));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn nothing_leaks_and_nothing_collides(
        config in config(),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(config);
        for step in &steps {
            world.run(step);
            world.check();
        }
        // Long after, everything is as at first.
        for _ in 0..3 {
            world.now = world.now + Duration::from_secs(100_000);
            while world.nat.expire(world.now, 7) {}
        }
        let nat = &world.nat;
        prop_assert_eq!(nat.connection_count(), 0);
        let clean = nat.masquerade.is_clean(|address, protocol, port| {
            commit::usable(&nat.rules, &nat.blocked, protocol, address)(port)
        });
        prop_assert!(clean);
        prop_assert!(nat.fragments.is_empty());
        let used = nat.rules.iter().any(|(_, _, connections)| connections > 0);
        prop_assert!(!used);
        for owner in 1..4 {
            prop_assert_eq!(world.nat.owner_connections(OwnerId(owner)), 0);
            world.nat.remove_owner(world.now, OwnerId(owner));
        }
        prop_assert_eq!(world.nat.owners.len(), 0);
        prop_assert_eq!(world.nat.poll_at(), Some(Time::ZERO), "a sweep over nothing");
    }

    #[test]
    fn arbitrary_packets_never_panic(
        mut packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 20..100), 1..8),
        ways in proptest::collection::vec(0..4, 8),
        protocol in prop_oneof![Just(1u8), Just(6), Just(17), Just(58), Just(44), any::<u8>()],
        v6 in any::<bool>(),
    ) {
        let mut world = World::new(NetworkConfig { filtering: Filtering::EndpointIndependent, ..NetworkConfig::default() });
        let party = Party { network: NETWORK, owner: OwnerId(1) };
        let external = External { v4: Some(EXTERNAL), v6: Some("2001:db8::1".parse().unwrap()) };
        for (bytes, way) in packets.iter_mut().zip(ways) {
            // Headers good enough to get past the first look.
            let len = u8::try_from(bytes.len()).unwrap();
            if v6 && bytes.len() >= 48 {
                bytes[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, len - 40, protocol, 64]);
            } else {
                bytes[..2].copy_from_slice(&[0x45, 0]);
                bytes[2..4].copy_from_slice(&[0, len]);
                bytes[9] = protocol;
            }
            let Ok(mut packet) = Packet::parse(bytes, Checksum::Complete) else { continue };
            let (nat, now, packet) = (&mut world.nat, world.now, &mut packet);
            let verdict = match way {
                0 => nat.inbound(now, packet, |_, _| Some(OwnerId(2))),
                1 => nat.hairpin(now, packet, party, external, |_, _| None),
                2 => nat.routed(now, packet, party, Party::OUTSIDE),
                _ => nat.outbound(now, packet, party, external),
            };
            if let Verdict::New(pending) = verdict {
                let _ = nat.commit(now, packet, pending);
            }
        }
    }

    /// There and back is the identity, and the checksums hold on the way, finished or partial.
    #[test]
    fn there_and_back_is_the_identity(
        port in any::<u16>(), server in any::<u16>(), payload in proptest::collection::vec(any::<u8>(), 0..64),
        partial in any::<bool>(), use_tcp in any::<bool>(), v6 in any::<bool>(),
    ) {
        let (inside, outside, own) = match v6 {
            false => ("10.0.0.1".to_string(), "198.51.100.7".to_string(), "192.0.2.1"),
            true => ("[fd00::1]".to_string(), "[2001:db8:51::7]".to_string(), "[2001:db8::1]"),
        };
        let build = |source: &str, destination: &str, flags: &str| match use_tcp {
            true => tcp(source, destination, flags, 1, 1, &payload),
            false => udp(source, destination, &payload),
        };
        let checksum = if partial { Checksum::Partial } else { Checksum::Complete };
        // A partial checksum is the sum of the pseudo-header.
        let begin = |mut bytes: Vec<u8>| {
            if partial {
                let mut packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
                packet.make_partial();
            }
            bytes
        };
        let finish = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            Packet::parse(&mut bytes, checksum).unwrap().complete_checksum();
            crate::testutil::assert_checksums(&bytes);
            bytes
        };
        let mut nat = Nat::new(Config::default());
        let party = Party { network: NETWORK, owner: OwnerId(1) };
        let external = External { v4: Some(EXTERNAL), v6: Some("2001:db8::1".parse().unwrap()) };
        let (source, destination) = (format!("{inside}:{port}"), format!("{outside}:{server}"));
        let mut bytes = begin(build(&source, &destination, "S"));
        let mut packet = Packet::parse(&mut bytes, checksum).unwrap();
        let Verdict::New(pending) = nat.outbound(Time::ZERO, &mut packet, party, external) else { panic!() };
        prop_assert!(matches!(nat.commit(Time::ZERO, &mut packet, pending), Verdict::Forward(_)));
        let leased = packet.tuple(NETWORK).unwrap().source.port;
        let own = format!("{own}:{leased}");
        prop_assert_eq!(finish(&bytes), build(&own, &destination, "S"));
        let mut bytes = begin(build(&destination, &own, "SA"));
        let mut packet = Packet::parse(&mut bytes, checksum).unwrap();
        prop_assert!(matches!(nat.inbound(Time::ZERO, &mut packet, |_, _| None), Verdict::Forward(_)));
        prop_assert_eq!(finish(&bytes), build(&destination, &source, "SA"));
    }
}
