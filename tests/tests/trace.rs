//! `swctl trace` tells the truth: what it says is what a real packet then does, and asking changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use nat::{Endpoint, Protocol, Rule};
use switch::batch::Source;
use switch::frame::Offload;
use switch::mac::Mac;
use switch::policy::{self, Policy, Services, Side};
use switch::router::nat_network;
use switch::router::owned::OwnedPorts;
use switch::router::resolve::Hop;
use switch::router::route::{Action, Route, Routes};
use switch::snapshot::{NetworkId, PortCounters, PortId, Uplink};
use switch::trace::{Outcome, Sent, Traced, Tracer, build};
use switch::verdict::DropReason;
use tests::lab::{Lab, NetworkOptions, net};

const UPLINK: u32 = 7;
const HOST: &str = "192.0.2.1";
const NEXT: &str = "192.0.2.254";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A generator that gives the same numbers each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % n
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// Two networks that may talk in one way, a third that may not, an uplink, a published port.
fn world() -> (Lab, Vec<PortId>) {
    let mut lab = Lab::default().without_capture();
    let network = |lab: &mut Lab, n: u8, isolate_ports| {
        let subnets = vec![net(&format!("10.{n}.0.0/16")), net(&format!("fd00:{n}::/64"))];
        lab.network(&format!("net{n}"), &NetworkOptions { subnets, isolate_ports, host_access: n != 1 })
    };
    let nets: Vec<NetworkId> = (0..3).map(|n| network(&mut lab, n, n == 2)).collect();
    let mut ports = Vec::new();
    for (n, id) in nets.iter().enumerate() {
        for host in [10, 20] {
            ports.push(lab.port(*id, &format!("p{n}-{host}")));
        }
    }
    lab.edit(move |world| {
        world.host_addresses.insert(ip(HOST));
        world.uplinks = vec![Uplink {
            ifindex: UPLINK,
            name: "eth0".into(),
            mac: Mac([2, 0xff, 0, 0, 0, 1]),
            mtu: 1400,
            up: true,
            addresses: vec![net("192.0.2.1/24")],
            counters: Arc::new(PortCounters::default()),
        }];
        let by = |gateway| Action::Forward { ifindex: UPLINK, gateway, source: None, mtu: None };
        let route = |to: &str, action| Route { destination: net(to), metric: 0, action };
        world.routes = Arc::new(Routes::new([
            route("192.0.2.0/24", by(None)),
            route("0.0.0.0/0", by(Some(ip(NEXT)))),
            route("203.0.113.0/24", Action::Prohibit),
        ]));
        let owned = OwnedPorts::default();
        owned.add(Protocol::Tcp, 5000..=5001);
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            owned.add(protocol, 61_000..=65_535);
        }
        world.owned = Arc::new(owned);
        world.leases.insert((NetworkId(0), ip("10.0.0.10")), PortId(1));
        let network = |n| Side::Network(NetworkId(n));
        // Ports 0 and 3 are the host's; the third network isolates its ports.
        let cells = |n| Side::Port(PortId(n), NetworkId(2));
        let web = Services::Ports(Protocol::Tcp, 80..=80);
        world.policy = Arc::new(Policy::new(
            [
                (network(0), network(1), Services::All, true),
                (cells(6), cells(7), web.clone(), true),
                (network(2), Side::Host, Services::Icmp, false),
                (network(0), Side::Outside, web, false),
            ]
            .map(|(from, to, services, allow)| policy::Rule {
                from,
                to,
                services,
                allow,
                text: "a rule".into(),
            }),
        ));
    });
    let mut state = lab.shared().forwarding.lock().expect("not poisoned");
    state.resolver.mirror(lab.now, Hop::Outside(UPLINK, ip(NEXT)), Mac([2, 0xff, 0, 0, 0, 2]));
    for (port, target) in [(5000, "10.0.0.10"), (5001, "10.0.0.99")] {
        let rule = Rule {
            protocol: Protocol::Tcp,
            host: None,
            ports: port..=port,
            network: nat_network(NetworkId(0)),
            target: Endpoint::new(ip(target), 80),
            from: Vec::new(),
        };
        state.nat.publish(rule).expect("a new rule");
    }
    drop(state);
    (lab, ports)
}

/// A packet in words, with every mistake that a station can make.
fn words(dice: &mut Dice, own: &str) -> String {
    let v6 = dice.below(5) == 0;
    let sources = [
        "10.0.0.10",
        "10.0.0.20",
        "10.1.0.10",
        "10.1.0.20",
        "10.2.0.10",
        "10.2.0.20",
        "10.9.0.1",
        "198.51.100.9",
    ];
    let destinations = [
        "10.0.0.10",
        "10.0.0.20",
        "10.0.0.1",
        "10.1.0.20",
        "10.1.0.1",
        "10.1.0.1",
        "10.2.0.20",
        "10.0.0.77",
        "10.1.0.77",
        HOST,
        "198.51.100.9",
        "203.0.113.1",
        "192.0.2.9",
        "224.0.0.5",
        "255.255.255.255",
    ];
    let (sources, destinations): (&[&str], &[&str]) = if v6 {
        (
            &["fd00::10", "fd00::20", "fd00:1::10", "fd00:9::1"],
            &["fd00::10", "fd00::20", "fd00:1::10", "fd00::1", "2001:db8::1", "ff02::1"],
        )
    } else {
        (&sources, &destinations)
    };
    let to = *dice.pick(destinations);
    let from = if v6 || dice.below(2) == 0 { *dice.pick(sources) } else { own };
    let end = |address: &str, port: u16| {
        if v6 { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
    };
    let (sport, dport) = (*dice.pick(&[40_000, 40_001, 80]), *dice.pick(&[80, 443, 5000, 5001, 61_500]));
    let (from_end, to_end) = (end(from, sport), end(to, dport));
    let mut text = match dice.below(8) {
        0 if !v6 => format!("arp {from} > {to}"),
        1 if !v6 => format!("arp {from} > {to} reply"),
        0..=2 => format!("icmp {from} > {to} id {} seq 1", dice.pick(&[7, 61_500])),
        3 => format!("icmp {from} > {to} reply id 7"),
        4 => format!("udp {from_end} > {to_end} len {}", dice.pick(&[0, 100, 1372, 2000])),
        _ => format!(
            "tcp {from_end} > {to_end} {}",
            dice.pick(&["syn", "syn", "syn ack", "ack", "fin ack", "rst", "ack len 1400"])
        ),
    };
    if dice.below(8) == 0 {
        text += " ttl 1";
    }
    text
}

/// What came out of every port and the uplink, sorted.
fn sent(lab: &mut Lab, ports: &[PortId]) -> Vec<(Option<PortId>, Vec<u8>)> {
    let mut all: Vec<_> = lab.take_outside(UPLINK).into_iter().map(|frame| (None, frame.bytes)).collect();
    for port in ports {
        all.extend(lab.take_all(*port).into_iter().map(|frame| (Some(*port), frame.bytes)));
    }
    all.sort();
    all
}

/// All that asking must not change.
fn state(lab: &Lab) -> String {
    // Takes the lock that is held below.
    let counts = lab.counts();
    let shared = lab.shared();
    let mut fdb = shared.fdb.entries(lab.now);
    fdb.sort_by_key(|e| (e.network, e.mac));
    let drops: Vec<u64> = DropReason::ALL.iter().map(|r| lab.drops(*r)).collect();
    let forwarding = shared.forwarding.lock().expect("not poisoned");
    let mut connections: Vec<String> =
        forwarding.nat.connections(lab.now, nat::Filter::default()).map(|(_, c)| format!("{c:?}")).collect();
    connections.sort();
    format!("{fdb:?} {drops:?} {counts:?} {connections:?} {:?}", forwarding.resolver)
}

/// Whether frames that had waited went on.
fn woke(traced: &Traced) -> bool {
    traced.steps.iter().flat_map(|step| &step.why).any(|why| why.contains("that waited for this answer"))
}

#[test]
fn a_trace_agrees_with_reality() {
    let (mut lab, guests) = world();
    let every: Vec<PortId> =
        (0..u32::try_from(lab.shared().snapshot.load().ports().count()).expect("few")).map(PortId).collect();
    let mut dice = Dice(20_261_121);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..1200 {
        let port = *dice.pick(&guests);
        let at = guests.iter().position(|p| *p == port).expect("a guest");
        let own = format!("10.{}.0.{}", at / 2, if at % 2 == 0 { 10 } else { 20 });
        let text = words(&mut dice, &own);
        let packet: ctl::packet::Packet = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        let station =
            |n: usize| Mac([2, 0, 0, 0, u8::try_from(n / 2).expect("few"), u8::try_from(n).expect("few")]);
        let gateway = lab.gateway_mac(NetworkId(u32::try_from(at / 2).expect("few")));
        let outside = dice.below(5) == 0;
        let from = match dice.below(12) {
            0 => station(dice.below(6)),
            1 => *dice.pick(&[Mac::ZERO, Mac::BROADCAST, gateway]),
            _ => station(at),
        };
        let to = match (packet.kind, dice.below(5)) {
            (ctl::packet::Kind::Arp { reply: false }, _) => Mac::BROADCAST,
            (_, 0) => station(dice.below(6)),
            (_, 1) => *dice.pick(&[
                Mac::group(packet.destination),
                Mac([1, 0x80, 0xc2, 0, 0, 0]),
                Mac([2, 9, 9, 9, 9, 9]),
            ]),
            _ => gateway,
        };
        let source = if outside { Source::Uplink(UPLINK) } else { Source::Port(port) };
        let bytes = build::frame(&packet, from, to).expect("a frame");

        let before = state(&lab);
        let traced = Tracer::new(lab.shared(), Vec::new()).trace(lab.now, source, &bytes, Offload::default());
        assert_eq!(state(&lab), before, "{round}: asking about '{text}' changed something");

        let counts = lab.counts();
        let drops: Vec<u64> = DropReason::ALL.iter().map(|r| lab.drops(*r)).collect();
        lab.inject(source, bytes);
        let really = sent(&mut lab, &every);
        let live = |sent: &Sent| sent.lost.is_none().then(|| (sent.port, sent.bytes.clone()));
        let mut said: Vec<_> = traced.sent.iter().chain(&traced.besides).filter_map(live).collect();
        said.sort();
        assert_eq!(said, really, "{round}: '{text}' at {port:?} from {from} to {to}: {traced:#?}");
        let after = lab.counts();
        let ends = [
            after.forwarded - counts.forwarded,
            after.answered - counts.answered,
            after.dropped - counts.dropped,
        ];
        let dropped = |reason: DropReason| lab.drops(reason) - drops[reason as usize];
        let (now, least) = match traced.outcome {
            Outcome::Forwarded => (ends[0], 1),
            Outcome::Answered => (ends[1], 1),
            Outcome::Dropped(reason) => (dropped(reason), 1),
            Outcome::Waits | Outcome::Host => (0, 0),
        };
        let received = u64::from(traced.outcome != Outcome::Host);
        assert_eq!(after.received - counts.received, received, "{round}: '{text}': {traced:#?}");
        // Others that had waited may come to their end along with it.
        assert!(now >= least, "{round}: '{text}' at {port:?}: {ends:?}, {traced:#?}");
        if !woke(&traced) {
            assert_eq!(
                ends.iter().sum::<u64>(),
                least,
                "{round}: '{text}' at {port:?}: {ends:?}, {traced:#?}"
            );
        }
        *seen.entry(format!("{:?}", traced.outcome)).or_default() += 1;
        lab.now = lab.now + std::time::Duration::from_millis(1);
    }
    let kinds: BTreeSet<&str> = seen.keys().map(String::as_str).collect();
    for kind in [
        "Forwarded",
        "Answered",
        "Host",
        "Waits",
        "Dropped(SpoofedSource)",
        "Dropped(TtlExpired)",
        "Dropped(Prohibited)",
        "Dropped(NoRoute)",
    ] {
        assert!(kinds.contains(kind), "no packet was {kind}: the test shows less than it means to: {seen:?}");
    }
    assert!(kinds.len() >= 14, "{seen:?}");
    let connections = lab.shared().forwarding.lock().expect("not poisoned").nat.connection_count();
    assert!(connections > 5, "{connections} connections only");
}
