//! Frames through everything that a worker does with them: offload header, stages, MAC table, router, translation.
//!
//! The input is a list of frames, each with where it comes from and how long after the one before; see [`Record`].

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use nat::{Endpoint, Protocol, Rule, Time};
use switch::batch::{Batch, Source};
use switch::engine::{Balance, Engine, Fate, Shared};
use switch::fdb::{FdbConfig, Kind};
use switch::frame::{ETHERTYPE_IPV4, HEADROOM, OFFLOAD_HEADER};
use switch::mac::Mac;
use switch::policy::{self, Policy, Services, Side};
use switch::router::nat_network;
use switch::router::owned::OwnedPorts;
use switch::router::resolve::Hop;
use switch::router::route::{Action, Route, Routes};
use switch::snapshot::{Gateway, Link, Network, NetworkId, Port, PortCounters, PortId, Snapshot, Uplink};

use super::Bytes;

/// The uplink's interface index.
const UPLINK: u32 = 9;
/// Two of each network.
const PORTS: u32 = 6;
/// The network with host access, and the port that the host is behind.
const HOST: (NetworkId, PortId) = (NetworkId(1), PortId(2));

/// A frame of the input. One byte says what follows: bits 0 to 2 the source (a port, or 6 and 7 the uplink), bit 3 that an
/// offload header (10 bytes) comes first, bit 4 that a byte of time does, bit 5 that the batch ends here, bit 6 that a
/// tick follows it, bit 7 that the length has two bytes. Then the length, and the frame.
#[derive(Debug)]
struct Record<'a> {
    source: Source,
    offload: &'a [u8],
    pause: Duration,
    ends_batch: bool,
    tick: bool,
    bytes: &'a [u8],
}

impl<'a> Record<'a> {
    fn read(input: &mut Bytes<'a>) -> Option<Self> {
        let what = input.u8()?;
        let bit = |n: u8| what >> n & 1 != 0;
        let number = u32::from(what & 7);
        let source = if number < PORTS { Source::Port(PortId(number)) } else { Source::Uplink(UPLINK) };
        let offload = if bit(3) { input.take(OFFLOAD_HEADER) } else { &[] };
        // Squares: from a millisecond to a minute.
        let pause = if bit(4) { u64::from(input.u8()?).pow(2) } else { 0 };
        let high = if bit(7) { usize::from(input.u8()?) << 8 } else { 0 };
        let length = high | usize::from(input.u8()?);
        Some(Self {
            source,
            offload,
            pause: Duration::from_millis(pause),
            ends_batch: bit(5),
            tick: bit(6),
            bytes: input.take(length),
        })
    }
}

thread_local! {
    /// Its 1.1 MB are all that is kept from one input to the next; stale bytes in it must not matter.
    static BATCH_KEPT: RefCell<Batch> = RefCell::new(Batch::new());
}

/// A sequence of frames, at least one.
///
/// # Panics
/// When something is wrong with swd.
pub fn frame(data: &[u8]) {
    BATCH_KEPT.with_borrow_mut(|batch| {
        let mut world = World::new();
        let mut input = Bytes(data);
        batch.clear();
        while let Some(record) = Record::read(&mut input) {
            if record.pause > Duration::ZERO {
                world.run(batch);
                world.now = world.now + record.pause;
            }
            put(batch, &record);
            if record.ends_batch || record.tick || batch.is_full() {
                world.run(batch);
            }
            if record.tick {
                world.tick(batch);
            }
        }
        world.run(batch);
        world.end(batch);
    });
}

fn put(batch: &mut Batch, record: &Record<'_>) {
    let Some(buffer) = batch.next_buffer() else { return };
    buffer[HEADROOM - OFFLOAD_HEADER..HEADROOM].fill(0);
    let header = &mut buffer[HEADROOM - OFFLOAD_HEADER..];
    header[..record.offload.len()].copy_from_slice(record.offload);
    let kept = record.bytes.len().min(buffer.len() - HEADROOM);
    buffer[HEADROOM..HEADROOM + kept].copy_from_slice(&record.bytes[..kept]);
    batch.push(record.bytes.len(), record.source, None);
}

/// Three networks of two ports: one without host access, one with, one of isolated ports. The first may open connections
/// to the second. An uplink with a default route, two publishes.
struct World {
    now: Time,
    shared: Arc<Shared>,
    engine: Engine,
    snapshot: Snapshot,
}

impl World {
    fn new() -> Self {
        let now = Time::from_secs(1000);
        let (shared, _) =
            Shared::new(FdbConfig { max_entries: 64, max_per_port: 32, ..FdbConfig::default() });
        let snapshot = snapshot();
        {
            let mut state = shared.forwarding.lock().expect("nobody panicked with it");
            for (protocol, ports) in [(Protocol::Tcp, 80..=80), (Protocol::Udp, 5000..=5009)] {
                let target = Endpoint::new(ip("10.0.0.10"), *ports.start());
                let network = nat_network(NetworkId(0));
                let rule = Rule { protocol, host: None, ports, network, target, from: Vec::new() };
                state.nat.publish(rule).expect("a rule");
            }
            for gateway in ["192.0.2.1", "2001:db8::1"] {
                state.resolver.mirror(now, Hop::Outside(UPLINK, ip(gateway)), Mac([2, 0, 0, 0, 9, 1]));
            }
        }
        for (n, port) in [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)] {
            let (network, port) = (NetworkId(n), PortId(port));
            let (last, mac) = (10 + port.0 % 2, numbered(0, port.0));
            shared.neighbors.note(network, ip(&format!("10.{n}.0.{last}")), mac, port, now);
            shared.neighbors.note(network, ip(&format!("fd00:{n}::{last:x}")), mac, port, now);
        }
        let (network, port) = HOST;
        let gateway = snapshot.network(network).expect("the network").gateway_mac;
        shared.fdb.set(network, gateway, port, Kind::Local);
        Self { now, engine: Engine::new(Arc::clone(&shared), Vec::new()), shared, snapshot }
    }

    fn run(&mut self, batch: &mut Batch) {
        if !batch.is_empty() {
            self.engine.run(self.now, &self.snapshot, batch);
            self.send(batch);
        }
        batch.clear();
    }

    fn tick(&mut self, batch: &mut Batch) {
        batch.clear();
        self.engine.tick(self.now, &self.snapshot, batch);
        self.send(batch);
        batch.clear();
    }

    fn send(&mut self, batch: &Batch) {
        for out in self.engine.outgoing() {
            let bytes = &batch.wire(out.frame)[OFFLOAD_HEADER..];
            if matches!(out.link, Link::Uplink(_)) {
                check_leaving(bytes);
            }
            if out.fate == Fate::Waiting {
                out.fate = Fate::Sent;
            }
        }
        self.engine.settle(&self.snapshot, batch);
        self.check_books();
    }

    /// Lets time pass until nothing waits and nothing is remembered.
    fn end(&mut self, batch: &mut Batch) {
        for _ in 0..10_000 {
            let Some(at) = self.engine.timer() else { break };
            self.now = self.now.max(at);
            self.tick(batch);
        }
        assert_eq!(self.engine.timer(), None, "housekeeping never ends");
        let state = self.shared.forwarding.lock().expect("nobody panicked with it");
        assert_eq!(
            (state.nat.connection_count(), state.nat.mapping_count()),
            (0, 0),
            "connections that never end"
        );
        drop(state);
        assert_eq!(self.check_books().parked, 0, "frames that wait for ever");
    }

    /// Each frame is in one place.
    fn check_books(&self) -> Balance {
        let frames = self.shared.balance();
        let places = frames.forwarded + frames.answered + frames.dropped() + frames.parked;
        assert_eq!(frames.received, places, "received = forwarded + answered + dropped + parked: {frames:?}");
        frames
    }
}

/// What leaves the host carries no inside address as its source.
fn check_leaving(bytes: &[u8]) {
    assert!(bytes.len() >= 14, "a frame without a header leaves");
    let is_v4 = bytes[12..14] == ETHERTYPE_IPV4.to_be_bytes();
    if let (true, Some(source)) = (is_v4, bytes.get(26..30)) {
        assert_ne!(source[0], 10, "an inside address leaves: {bytes:02x?}");
    }
}

fn snapshot() -> Snapshot {
    let networks = (0..PORTS / 2).map(|n| Network {
        id: NetworkId(n),
        name: format!("net{n}").into(),
        gateways: [format!("10.{n}.0.1/16"), format!("fd00:{n}::1/64")]
            .map(|text| net(&text))
            .map(|net| Gateway { subnet: net.trunc(), address: net.addr() })
            .to_vec(),
        gateway_mac: numbered(1, n),
        mtu: 1500,
        host_port: (NetworkId(n) == HOST.0).then_some(HOST.1),
        isolate_ports: n == 2,
        masquerade: true,
        flood: Vec::new(),
    });
    let ports = (0..PORTS).map(|n| Port {
        id: PortId(n),
        name: format!("port{n}").into(),
        network: NetworkId(n / 2),
        link: Link::Memory,
        up: true,
        veth_mtu: None,
        limits: None,
        sources: None,
        counters: Arc::new(PortCounters::default()),
    });
    let host_addresses = ["192.0.2.2", "2001:db8::2", "10.1.0.1", "fd00:1::1"].map(ip);
    let mut snapshot = Snapshot::new(networks, ports, host_addresses);
    snapshot.generation = 1;
    snapshot.uplinks.push(Uplink {
        ifindex: UPLINK,
        name: "eth0".into(),
        mac: Mac([2, 0, 0, 0, 9, 2]),
        mtu: 1500,
        up: true,
        addresses: ["192.0.2.2/24", "2001:db8::2/64"].map(net).to_vec(),
        counters: Arc::new(PortCounters::default()),
    });
    let route = |to: &str, gateway: Option<&str>| {
        let gateway = gateway.map(ip);
        let action = Action::Forward { ifindex: UPLINK, gateway, source: None, mtu: None };
        Route { destination: net(to), metric: 0, action }
    };
    snapshot.routes = Arc::new(Routes::new([
        route("192.0.2.0/24", None),
        route("2001:db8::/64", None),
        route("0.0.0.0/0", Some("192.0.2.1")),
        route("::/0", Some("2001:db8::1")),
        Route { destination: net("198.51.100.0/24"), metric: 0, action: Action::Blackhole },
        Route { destination: net("203.0.113.0/24"), metric: 0, action: Action::Prohibit },
    ]));
    let owned = OwnedPorts::default();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
        owned.add(protocol, 61_000..=65_535);
    }
    owned.add(Protocol::Tcp, 80..=80);
    owned.add(Protocol::Udp, 5000..=5009);
    snapshot.owned = Arc::new(owned);
    snapshot.leases.insert((NetworkId(0), ip("10.0.0.10")), PortId(0));
    snapshot.policy = Arc::new(Policy::new([policy::Rule {
        from: Side::Network(NetworkId(0)),
        to: Side::Network(NetworkId(1)),
        services: Services::All,
        allow: true,
        text: "allow net0 net1".into(),
    }]));
    snapshot
}

/// The MAC of a port (0) or of a network's gateway (1).
fn numbered(what: u8, n: u32) -> Mac {
    Mac([2, 0, 0, 0, what, n.to_le_bytes()[0]])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

fn net(text: &str) -> IpNet {
    crate::lab::net(text)
}
