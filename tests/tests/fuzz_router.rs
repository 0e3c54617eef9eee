//! Frames that nobody would send, to the router and its translation, from containers and from outside, with jumps of time.
//! None may make it panic, each is accounted for, and none shows an inside address outside: [`Lab`] looks at every one.

use nat::{Config, OwnerLimits, Protocol};
use switch::fdb::FdbConfig;
use switch::port::memory::MemoryFrame;
use switch::snapshot::{NetworkId, PortId};
use tests::lab::{Lab, plain_mac};
use tests::noise::{Random, mutate, offload};
use tests::process::{ms, s};
use tests::raw::{arp_request, echo4, neighbour_solicitation, syn4, udp4, udp6};

const FRAMES: usize = 200_000;
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0xee, 1];

type Macs = ([u8; 6], [u8; 6]);

struct World {
    lab: Lab,
    uplink: u32,
    ports: Vec<(PortId, NetworkId, u8)>,
    random: Random,
    /// External ports that were seen.
    external: Vec<u16>,
    /// What has gone out lately: to be answered, quoted, sent again.
    sent: Vec<Vec<u8>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let owner = OwnerLimits { connections: 60, new_per_second: 5000 };
        let config = Config { connections: 100, owner, ports: 61_000..=61_020, seed, ..Config::default() };
        let mut lab = Lab::new(FdbConfig::default()).without_capture().with_nat(config);
        let networks = [lab.plain_network(), lab.plain_network()];
        let uplink = lab.plain_uplink();
        let mut ports = Vec::new();
        for network in networks {
            for n in [10, 11] {
                ports.push((lab.port(network, &format!("{}-{n}", network.0)), network, n));
            }
        }
        lab.publish_port(Protocol::Tcp, 80, networks[0], ([10, 0, 0, 10].into(), 80));
        lab.publish_port(Protocol::Udp, 53, networks[0], ([10, 0, 0, 10].into(), 53));
        lab.publish_port(Protocol::Udp, 54, networks[1], ([10, 1, 0, 99].into(), 54));
        lab.publish_port(Protocol::Udp, 53, networks[1], (v6(1, 10).into(), 53));
        Self { lab, uplink, ports, random: Random(seed), external: vec![61_000], sent: Vec::new() }
    }

    fn port(&mut self) -> u16 {
        let any = 61_000 + u16::from(self.random.byte()) % 24;
        let seen = self.random.pick(&self.external);
        self.random.pick(&[53, 54, 80, 4000, any, seen, seen])
    }

    fn pair(&mut self, macs: Macs, from: ([u8; 4], [u8; 16]), to: ([u8; 4], [u8; 16])) -> Vec<u8> {
        let (source, destination) = (self.port(), self.port());
        let length = self.random.below(300);
        let payload = self.random.bytes(length);
        match self.random.below(7) {
            0 => echo4(macs, from.0, to.0, &payload),
            1 | 2 => udp4(macs, (from.0, source), (to.0, destination), &payload),
            3 => udp6(macs, (from.1, source), (to.1, destination), &payload),
            4 => syn4(macs, (from.0, source), (to.0, destination)),
            5 => {
                // Of any TCP state.
                let mut segment = syn4(macs, (from.0, source), (to.0, destination));
                segment[47] = self.random.byte();
                segment
            }
            _ => fragment(&mut self.random, udp4(macs, (from.0, source), (to.0, destination), &[0; 64])),
        }
    }

    /// An ICMP error about something that has gone out, or what answers it.
    fn about(&mut self, macs: Macs, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let Some(at) = (!self.sent.is_empty()).then(|| self.random.below(self.sent.len())) else {
            return self.pair(macs, (from, v6(9, 9)), (to, v6(9, 8)));
        };
        let mut quoted = self.sent[at].clone();
        if self.random.one_in(2) {
            for (a, b, n) in [(0, 6, 6), (26, 30, 4), (34, 36, 2)] {
                for i in 0..n {
                    if b + i < quoted.len() {
                        quoted.swap(a + i, b + i);
                    }
                }
            }
            return quoted;
        }
        let mut error = echo4(macs, from, to, quoted.get(14..).unwrap_or_default());
        (error[34], error[35]) = (self.random.pick(&[3, 11, 12, 4, 5]), self.random.byte() % 16);
        error[36..38].fill(0);
        let sum = !nat::checksum::sum(&error[34..]);
        error[36..38].copy_from_slice(&sum.to_be_bytes());
        error
    }

    fn send_from_container(&mut self) {
        let (port, network, n) = self.random.pick(&self.ports);
        let net = u8::try_from(network.0).expect("small");
        let macs = (self.lab.gateway_mac(network).0, plain_mac(network, n).0);
        let (me, me6) = ([10, net, 0, n], v6(net, n));
        let to = self.random.pick(&[
            [192, 0, 2, 1],
            [192, 0, 2, 2],
            [192, 0, 2, 9],
            [203, 0, 113, 7],
            [10, 1 - net, 0, 10],
            [10, net, 0, 11],
        ]);
        let to6 = self.random.pick(&[far6(1), far6(2), v6(1 - net, 10)]);
        let mut frame = match self.random.below(12) {
            0 => arp_request(macs.1, me, [10, net, 0, 1]),
            1 => neighbour_solicitation(macs.1, me6, v6(net, 1)),
            2 | 3 => self.about(macs, me, to),
            _ => self.pair(macs, (me, me6), (to, to6)),
        };
        if self.random.one_in(3) {
            mutate(&mut self.random, &mut frame);
        }
        let frame = MemoryFrame { bytes: frame, offload: offload(&mut self.random) };
        self.lab.put(port, frame);
    }

    fn send_from_outside(&mut self) {
        let macs = (self.lab.uplink_mac(self.uplink).0, FAR_MAC);
        let from = self.random.pick(&[[192, 0, 2, 1], [203, 0, 113, 7], [192, 0, 2, 9], [10, 0, 0, 10]]);
        let host = [192, 0, 2, 2];
        let mut frame = match self.random.below(12) {
            0 => {
                let mut reply = arp_request(FAR_MAC, from, host);
                reply[..6].copy_from_slice(&macs.0);
                reply[21] = 2;
                reply
            }
            1..=4 => self.about(macs, from, host),
            _ => self.pair(macs, (from, far6(1)), (host, far6(2))),
        };
        if self.random.one_in(4) {
            mutate(&mut self.random, &mut frame);
        }
        let frame = MemoryFrame { bytes: frame, offload: offload(&mut self.random) };
        self.lab.put_outside(self.uplink, frame);
    }
}

fn v6(net: u8, n: u8) -> [u8; 16] {
    [0xfd, 0, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]
}

fn far6(n: u8) -> [u8; 16] {
    [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]
}

/// Makes a fragment of a datagram: one of few numbers, at one of few places.
fn fragment(random: &mut Random, mut frame: Vec<u8>) -> Vec<u8> {
    frame[19] = random.byte() % 4;
    (frame[20], frame[21]) = random.pick(&[(0x20, 0), (0x20, 0), (0x20, 8), (0, 16), (0x20, 1)]);
    frame[24..26].fill(0);
    let sum = !nat::checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn run(seed: u64) -> (u64, u64) {
    let mut world = World::new(seed);
    let (mut out, mut inward) = (0, 0);
    for n in 0..FRAMES {
        match world.random.one_in(2) {
            true => world.send_from_container(),
            false => world.send_from_outside(),
        }
        // Checks that every frame is accounted for, and what leaves.
        world.lab.settle();
        for frame in world.lab.take_outside(world.uplink) {
            let bytes = frame.bytes;
            if bytes.get(12..14) == Some(&[8, 0]) && bytes.len() >= 38 {
                out += 1;
                world.external.push(u16::from_be_bytes([bytes[34], bytes[35]]));
                world.sent.push(bytes);
            }
        }
        for (port, ..) in &world.ports {
            for frame in world.lab.take_all(*port) {
                let from_gateway =
                    world.ports.iter().all(|(_, net, n)| frame.bytes[6..12] != plain_mac(*net, *n).0);
                inward += u64::from(from_gateway && frame.bytes[12..14] != [8, 6]);
            }
        }
        if world.external.len() > 40 {
            world.external.drain(..20);
        }
        if world.sent.len() > 40 {
            world.sent.drain(..20);
        }
        if n % 16 == 0 {
            world.lab.now = world.lab.now + ms(u64::from(world.random.byte()));
        }
        if n % 5000 == 0 {
            world.lab.now = world.lab.now + world.random.pick(&[s(3), s(200), s(500), s(100_000)]);
            world.lab.events();
        }
    }
    // Long after, nothing is left of it.
    for _ in 0..20 {
        world.lab.now = world.lab.now + s(10_000);
        world.lab.settle();
    }
    assert_eq!(world.lab.counts().waiting, 0);
    assert_eq!(world.lab.shared().forwarding.lock().expect("no panic").nat.connection_count(), 0);
    (out, inward)
}

#[test]
fn frames_through_the_router() {
    for seed in [1, 2026] {
        let (out, inward) = run(seed);
        eprintln!("seed {seed}: {out} packets went out, {inward} came in");
        // It would be no test if all of them ended at the first check.
        let enough = FRAMES as u64 / 100;
        assert!(out > enough && inward > enough, "seed {seed}: {out} packets went out, {inward} came in");
    }
}
