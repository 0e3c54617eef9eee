//! Packets of both ways, settings and time, in any order. After each step no two connections may be taken for each other;
//! in the end, when everything has expired, every port must be there again.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use nat::{
    Address, Checksum, Config, Direction, Endpoint, External, Filter, Nat, NetworkId, OwnerId, OwnerLimits,
    Packet, Party, Protocol, Rule, RuleId, Time, Verdict,
};

// The translator's own tests have the packets.
#[path = "../../../nat/tests/common/packets.rs"]
pub(super) mod packets;

use packets::{echo_reply, echo_request, fragments, port_unreachable, tcp, udp};

const NETWORK: NetworkId = NetworkId(1);
/// So few that they run out.
const PORTS: std::ops::RangeInclusive<u16> = 61_000..=61_015;
const CONNECTIONS: u32 = 48;
/// Steps of one sequence that are looked at.
const STEPS: usize = 200;

/// One thing that happens. Numbers choose among a few hosts and ports, so that they meet.
#[derive(Arbitrary, Clone, Debug)]
pub enum Step {
    /// A container sends to a server.
    Out {
        /// IPv6.
        v6: bool,
        /// Which container.
        host: u8,
        /// Its port, or its echo identifier.
        port: u8,
        /// Which server.
        server: u8,
        /// The server's port.
        server_port: u8,
        /// What it sends.
        what: What,
    },
    /// A server sends to a port of the host.
    In {
        /// IPv6.
        v6: bool,
        /// Which server.
        server: u8,
        /// Its port.
        server_port: u8,
        /// Which port: of the pool, or a published one.
        port: u8,
        /// What it sends.
        what: What,
    },
    /// The far side of a connection that there is answers.
    Answer {
        /// Which connection.
        connection: u8,
        /// With what.
        what: What,
    },
    /// A container sends to the host's own address.
    Hairpin {
        /// IPv6.
        v6: bool,
        /// Which container.
        host: u8,
        /// Its port.
        port: u8,
        /// Which port of the host.
        to: u8,
        /// What it sends.
        what: What,
    },
    /// Time passes.
    Wait {
        /// How many seconds.
        seconds: u16,
        /// What has expired is collected.
        collect: bool,
    },
    /// A port is published for a container.
    Publish {
        /// TCP, else UDP.
        tcp: bool,
        /// IPv6.
        v6: bool,
        /// The port.
        port: u8,
        /// How many more.
        more: u8,
        /// Which container.
        host: u8,
    },
    /// The oldest publish is taken back.
    Unpublish,
    /// A container goes.
    RemoveOwner(u8),
    /// An address of the host goes.
    RemoveExternal(bool),
    /// The network goes.
    RemoveNetwork,
    /// A program on the host has a port.
    Block(u8),
    /// And has it no more.
    Unblock(u8),
    /// A container gets a limit.
    Limit(u8, u8),
    /// All connections are ended by hand.
    Flush,
}

/// What a packet is.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum What {
    /// TCP with these flags, and a sequence number.
    Tcp(u8, u16),
    /// UDP.
    Udp,
    /// UDP in fragments, in order or not.
    Fragments(bool),
    /// An echo request.
    Request,
    /// An echo reply.
    Reply,
    /// A port-unreachable error about UDP the other way.
    Unreachable,
}

/// A sequence as the fuzzer writes it.
///
/// # Panics
/// When something is wrong with `nat`.
pub fn nat_sequence(data: &[u8]) {
    if let Ok(steps) = Vec::<Step>::arbitrary_take_rest(Unstructured::new(data)) {
        nat_steps(&steps);
    }
}

/// A sequence of steps.
///
/// # Panics
/// When something is wrong with `nat`.
pub fn nat_steps(steps: &[Step]) {
    let mut world = World::new();
    for step in steps.iter().take(STEPS) {
        world.step(step);
        world.check();
    }
    world.end();
}

struct World {
    nat: Nat,
    now: Time,
    rules: Vec<RuleId>,
    blocked: HashSet<u16>,
}

impl World {
    fn new() -> Self {
        let owner = OwnerLimits { connections: 40, new_per_second: 1000 };
        let config = Config { connections: CONNECTIONS, ports: PORTS, owner, ..Config::default() };
        Self { nat: Nat::new(config), now: Time::from_secs(1000), rules: Vec::new(), blocked: HashSet::new() }
    }

    fn step(&mut self, step: &Step) {
        let now = self.now;
        match *step {
            Step::Out { v6, host, port, server, server_port, what } => {
                let ends = (
                    at(v6, inside(v6, host), inside_port(port)),
                    at(v6, outside(v6, server), outside_port(server_port)),
                );
                self.outbound(&ends.0, &ends.1, what);
            }
            Step::In { v6, server, server_port, port, what } => {
                let from = at(v6, outside(v6, server), outside_port(server_port));
                self.inbound(&from, &at(v6, external(v6), host_port(port)), what);
            }
            Step::Answer { connection, what } => {
                let all: Vec<_> = self.nat.connections(now, Filter::default()).collect();
                if all.is_empty() {
                    return;
                }
                let tuple = all[usize::from(connection) % all.len()].1.tuple(Direction::Reply);
                drop(all);
                let (from, to) = (tuple.source.to_string(), tuple.destination.to_string());
                if tuple.network == NetworkId::OUTSIDE {
                    self.inbound(&from, &to, what);
                } else if is_external(tuple.destination.address) {
                    self.hairpin(&from, &to, what);
                } else {
                    self.outbound(&from, &to, what);
                }
            }
            Step::Hairpin { v6, host, port, to, what } => {
                let from = at(v6, inside(v6, host), inside_port(port));
                self.hairpin(&from, &at(v6, external(v6), host_port(to)), what);
            }
            Step::Wait { seconds, collect } => {
                self.now = now + Duration::from_secs(seconds.into());
                if collect {
                    self.collect();
                }
            }
            Step::Publish { tcp, v6, port, more, host } => {
                let first = host_port(port);
                let target = Endpoint::new(address(inside(v6, host)), first);
                let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
                let ports = first..=first.saturating_add(u16::from(more % 4));
                let rule = Rule { protocol, host: None, ports, network: NETWORK, target, from: Vec::new() };
                self.rules.extend(self.nat.publish(rule));
            }
            Step::Unpublish => {
                if !self.rules.is_empty() {
                    let rule = self.rules.remove(0);
                    assert!(self.nat.unpublish(now, rule).is_some(), "a rule is gone");
                }
            }
            Step::RemoveOwner(host) => {
                let owner = owner(address(inside(false, host)));
                self.nat.remove_owner(now, owner);
            }
            Step::RemoveExternal(v6) => self.nat.remove_external(now, address(external(v6))),
            Step::RemoveNetwork => self.nat.remove_network(now, NETWORK),
            Step::Block(port) => {
                self.blocked.insert(pool_port(port));
                self.nat.block_port(Protocol::Udp, pool_port(port));
            }
            Step::Unblock(port) => {
                self.blocked.remove(&pool_port(port));
                self.nat.unblock_port(Protocol::Udp, pool_port(port));
            }
            Step::Limit(host, connections) => {
                let limits = OwnerLimits { connections: connections.into(), new_per_second: 1000 };
                self.nat.set_owner_limits(now, owner(address(inside(false, host))), Some(limits));
            }
            Step::Flush => self.nat.end_all(now, Filter::default()),
        }
    }

    fn outbound(&mut self, from: &str, to: &str, what: What) {
        let now = self.now;
        self.pass(from, to, what, |nat, packet| {
            nat.outbound(now, packet, party(packet.source()), externals())
        });
    }

    fn inbound(&mut self, from: &str, to: &str, what: What) {
        let now = self.now;
        self.pass(from, to, what, |nat, packet| nat.inbound(now, packet, |_, a| Some(owner(a))));
    }

    fn hairpin(&mut self, from: &str, to: &str, what: What) {
        let now = self.now;
        self.pass(from, to, what, |nat, packet| {
            nat.hairpin(now, packet, party(packet.source()), externals(), |_, a| Some(owner(a)))
        });
    }

    fn pass(&mut self, from: &str, to: &str, what: What, ask: impl Fn(&mut Nat, &mut Packet<'_>) -> Verdict) {
        for original in written(from, to, what) {
            let mut bytes = original.clone();
            let mut packet =
                Packet::parse(&mut bytes, Checksum::Complete).expect("packets that are made are right");
            let whole = packet.fragment().is_none();
            let verdict = match ask(&mut self.nat, &mut packet) {
                Verdict::New(pending) => {
                    assert_eq!(packet.bytes(), original, "untouched until committed");
                    self.nat.commit(self.now, &mut packet, pending)
                }
                verdict => verdict,
            };
            match verdict {
                Verdict::Forward(_) if whole => packets::assert_checksums(&bytes),
                Verdict::Forward(_) => {}
                _ => assert_eq!(bytes, original, "untouched unless forwarded"),
            }
            while self.nat.next_released().is_some() {}
        }
    }

    fn collect(&mut self) {
        for _ in 0..1_000_000 {
            if !self.nat.expire(self.now, 64) {
                return;
            }
        }
        panic!("collecting never ends");
    }

    /// Every tuple is one connection's only, and every leased port is one of the pool.
    fn check(&self) {
        let count = self.nat.connection_count();
        assert!(count <= CONNECTIONS, "{count} connections");
        let mut seen = HashSet::new();
        for (_, connection) in self.nat.connections(self.now, Filter::default()) {
            let (original, reply) =
                (connection.tuple(Direction::Original), connection.tuple(Direction::Reply));
            assert!(seen.insert(original), "two connections have {original}");
            // To oneself, by way of one's own external endpoint, both directions are alike.
            assert!(original == reply || seen.insert(reply), "two connections have {reply}");
            let masqueraded = original.network == NETWORK
                && reply.network == NetworkId::OUTSIDE
                && is_external(reply.destination.address);
            if masqueraded && connection.rule().is_none() {
                let port = reply.destination.port;
                let published = self.nat.published().any(|(_, rule, _)| rule.ports.contains(&port));
                assert!(PORTS.contains(&port) || published, "a port that is nobody's: {reply}");
            }
        }
    }

    /// Lets everything expire. Then nothing may be held, and the pool is as it was.
    fn end(mut self) {
        for rule in std::mem::take(&mut self.rules) {
            self.nat.unpublish(self.now, rule);
        }
        for port in std::mem::take(&mut self.blocked) {
            self.nat.unblock_port(Protocol::Udp, port);
        }
        for host in 0..4 {
            self.nat.set_owner_limits(self.now, owner(address(inside(false, host))), None);
        }
        self.now = self.now + Duration::from_secs(4 * 3600);
        self.collect();
        assert_eq!((self.nat.connection_count(), self.nat.mapping_count()), (0, 0), "what has expired stays");
        for host in 0..4 {
            assert_eq!(self.nat.owner_connections(owner(address(inside(false, host)))), 0);
        }
        self.now = self.now + Duration::from_secs(4 * 3600);
        // From all containers: one alone does not get the whole pool.
        for v6 in [false, true] {
            let mut leased = HashSet::new();
            for n in 0..u16::try_from(PORTS.len()).expect("few") {
                let (from, to) =
                    (at(v6, inside(v6, n.to_le_bytes()[0]), 1000 + n), at(v6, outside(v6, 0), 7));
                let [mut bytes] = <[_; 1]>::try_from(written(&from, &to, What::Udp)).expect("one packet");
                let mut packet = Packet::parse(&mut bytes, Checksum::Complete).expect("a packet");
                let from = party(packet.source());
                let pending = match self.nat.outbound(self.now, &mut packet, from, externals()) {
                    Verdict::New(pending) => pending,
                    other => panic!("connection {n} of a pool that is free again: {other:?}"),
                };
                let verdict = self.nat.commit(self.now, &mut packet, pending);
                assert!(matches!(verdict, Verdict::Forward(_)), "connection {n} of a free pool: {verdict:?}");
                let tuple = packet.tuple(NETWORK).expect("UDP");
                assert!(PORTS.contains(&tuple.source.port), "{tuple}");
                assert!(leased.insert(tuple.source.port), "a port was leased twice: {tuple}");
            }
            self.nat.end_all(self.now, Filter::default());
            self.collect();
        }
    }
}

/// The packets that a host sends.
fn written(from: &str, to: &str, what: What) -> Vec<Vec<u8>> {
    let (source, destination) = (packets::endpoint(from), packets::endpoint(to));
    let (s, d) = (source.ip().to_string(), destination.ip().to_string());
    vec![match what {
        What::Udp => udp(from, to, b"datagram"),
        What::Tcp(flags, sequence) => {
            let letters: String = "SAFR"
                .chars()
                .enumerate()
                .filter(|(n, _)| flags >> n & 1 != 0)
                .map(|(_, letter)| letter)
                .collect();
            tcp(from, to, &letters, sequence.into(), sequence.into(), &b"data"[..usize::from(flags >> 6)])
        }
        What::Fragments(in_order) => {
            let mut all = fragments(&udp(from, to, &[0x55; 64]), source.port(), 32);
            if !in_order {
                all.reverse();
            }
            return all;
        }
        What::Request => echo_request(&s, &d, source.port(), 1),
        What::Reply => echo_reply(&s, &d, destination.port(), 1),
        What::Unreachable => port_unreachable(&s, &d, &udp(to, from, b"lost")),
    }]
}

fn externals() -> External {
    External { v4: external(false).parse().ok(), v6: external(true).parse().ok() }
}

fn external(v6: bool) -> &'static str {
    if v6 { "2001:db8:2::1" } else { "192.0.2.1" }
}

fn is_external(address: Address) -> bool {
    [false, true].into_iter().any(|v6| self::address(external(v6)) == address)
}

fn inside(v6: bool, n: u8) -> &'static str {
    let all = if v6 {
        ["fd00::a", "fd00::b", "fd00::c", "fd00::d"]
    } else {
        ["172.18.0.10", "172.18.0.11", "172.18.0.12", "172.18.0.13"]
    };
    all[usize::from(n % 4)]
}

fn outside(v6: bool, n: u8) -> &'static str {
    let all = if v6 { ["2001:db8:51::7", "2001:db8:51::8"] } else { ["198.51.100.7", "198.51.100.8"] };
    all[usize::from(n % 2)]
}

const fn inside_port(n: u8) -> u16 {
    5000 + n as u16 % 16
}

const fn outside_port(n: u8) -> u16 {
    [53, 80, 7, 61_003][n as usize % 4]
}

fn pool_port(n: u8) -> u16 {
    PORTS.start() + u16::from(n % 16)
}

/// Of the pool, or beside it.
fn host_port(n: u8) -> u16 {
    if n < 128 { pool_port(n) } else { 80 + u16::from(n % 8) }
}

fn at(v6: bool, address: &str, port: u16) -> String {
    if v6 { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn address(text: &str) -> Address {
    Address::from(text.parse::<IpAddr>().expect("an address"))
}

/// The same for both of a container's addresses.
fn owner(address: Address) -> OwnerId {
    let [.., last] = address.v6_octets();
    OwnerId(u32::from(last))
}

fn party(address: Address) -> Party {
    Party { network: NETWORK, owner: owner(address) }
}
