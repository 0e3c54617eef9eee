//! Container, router and outside in memory and in virtual time: what takes minutes and hours, and what runs out.
//! [`Lab`] holds every frame for the outside against the inside addresses, and accounts for every frame.

use std::net::IpAddr;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use nat::{Config, OwnerLimits, Protocol};
use switch::snapshot::{NetworkId, PortId};
use switch::verdict::DropReason;
use tests::lab::{Lab, plain_mac};
use tests::process::{ms, s};
use tests::raw::{arp_request, udp4};

const FAR: [u8; 4] = [192, 0, 2, 1];
const HOST: [u8; 4] = [192, 0, 2, 2];
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0xee, 1];
/// What containers have: 10.0.0.N.
const A: [u8; 4] = [10, 0, 0, 10];
const B: [u8; 4] = [10, 0, 0, 20];

/// A network with containers whose frames the test sends itself, and an outside that it plays.
struct World {
    lab: Lab,
    network: NetworkId,
    uplink: u32,
    a: PortId,
    b: PortId,
}

impl World {
    fn new(config: Config) -> Self {
        let mut lab = Lab::default().with_nat(config);
        let network = lab.plain_network();
        let uplink = lab.plain_uplink();
        let (a, b) = (lab.port(network, "a"), lab.port(network, "b"));
        let mut world = Self { lab, network, uplink, a, b };
        // The containers are known to the router, and so is the next hop.
        for (port, address, n) in [(a, A, 10), (b, B, 20)] {
            world.lab.put(port, arp_request(plain_mac(network, n).0, address, [10, 0, 0, 1]));
        }
        world.send(a, &udp4(world.macs(10), (A, 1), (FAR, 9), b"hello"));
        world.answer_arp();
        assert_eq!(world.received_outside().len(), 1);
        world.lab.take_all(a);
        world.lab.take_all(b);
        world
    }

    /// Destination and source of a frame from container `n` to the gateway.
    fn macs(&self, n: u8) -> ([u8; 6], [u8; 6]) {
        (self.lab.gateway_mac(self.network).0, plain_mac(self.network, n).0)
    }

    fn send(&mut self, port: PortId, frame: &[u8]) {
        self.lab.put(port, frame.to_vec());
        self.lab.settle();
    }

    fn send_inward(&mut self, frame: &[u8]) {
        self.lab.put_outside(self.uplink, frame.to_vec());
        self.lab.settle();
    }

    /// A frame from outside to the host.
    fn inward(&self, source_port: u16, port: u16, payload: &[u8]) -> Vec<u8> {
        udp4((self.lab.uplink_mac(self.uplink).0, FAR_MAC), (FAR, source_port), (HOST, port), payload)
    }

    /// The outside says where 192.0.2.1 is.
    fn answer_arp(&mut self) {
        let asked = self.received_outside();
        assert!(asked.iter().any(|f| f[12..14] == [8, 6] && f[38..42] == FAR), "{asked:02x?}");
        let mut reply = arp_request(FAR_MAC, FAR, HOST);
        reply[..6].copy_from_slice(&self.lab.uplink_mac(self.uplink).0);
        reply[21] = 2;
        self.send_inward(&reply);
    }

    /// What was sent outside.
    fn received_outside(&mut self) -> Vec<Vec<u8>> {
        self.lab.take_outside(self.uplink).into_iter().map(|f| f.bytes).collect()
    }

    fn received(&mut self, port: PortId) -> Vec<Vec<u8>> {
        self.lab.take_all(port).into_iter().map(|f| f.bytes).collect()
    }

    /// Sends a datagram of A's out, from `port` to port `to` of the far host: the external port, unless it was refused.
    fn out(&mut self, port: u16, to: u16) -> Option<u16> {
        self.send(self.a, &udp4(self.macs(10), (A, port), (FAR, to), b"out"));
        self.received_outside().iter().find_map(|frame| ends(frame)).map(|(source, _)| source)
    }
}

/// Source and destination port of a UDP datagram.
fn ends(frame: &[u8]) -> Option<(u16, u16)> {
    match SlicedPacket::from_ethernet(frame).ok()?.transport {
        Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
        _ => None,
    }
}

/// Type and code of an ICMP message.
fn icmp(frame: &[u8]) -> Option<(u8, u8)> {
    match SlicedPacket::from_ethernet(frame).ok()?.transport {
        Some(TransportSlice::Icmpv4(icmp)) => Some((icmp.type_u8(), icmp.code_u8())),
        _ => None,
    }
}

/// The fragments of a datagram, 64 bytes of it each, with this hop limit.
fn fragments(macs: ([u8; 6], [u8; 6]), from: ([u8; 4], u16), to: ([u8; 4], u16), hops: u8) -> Vec<Vec<u8>> {
    let mut whole = Vec::new();
    let packet = PacketBuilder::ethernet2(macs.1, macs.0).ipv4(from.0, to.0, hops).udp(from.1, to.1);
    packet.write(&mut whole, &[0x5a; 184]).expect("a Vec takes everything");
    let datagram = whole.split_off(34);
    let part = |(n, data): (usize, &[u8])| {
        let offset = u16::try_from(n * 8).expect("small") | if n < 2 { 0x2000 } else { 0 };
        let mut frame = [&whole, data].concat();
        frame[16..18].copy_from_slice(&84u16.to_be_bytes());
        frame[18..22].copy_from_slice(&[0, 77, (offset >> 8).to_be_bytes()[1], offset.to_be_bytes()[1]]);
        frame[24..26].fill(0);
        let sum = !nat::checksum::sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    datagram.chunks(64).enumerate().map(part).collect()
}

#[test]
fn hosts_reach_the_outside_and_published_ports() {
    let mut lab = Lab::default();
    let network = lab.plain_network();
    let uplink = lab.plain_uplink();
    lab.plain_outside(uplink);
    let c = lab.plain_host(network, 10);
    let [far, host, inside] = [FAR, HOST, A].map(IpAddr::from);
    let pinger = lab.at(c).pinger();
    lab.at(c).ping(pinger, far, 1);
    lab.until("a pong", s(5), |lab| lab.at(c).pong(pinger) == Some(far));
    let (server, client) = (lab.beyond(uplink).tcp(), lab.at(c).tcp());
    lab.beyond(uplink).listen(server, 80);
    lab.at(c).connect(client, far, 80);
    lab.until("a connection out", s(5), |lab| lab.at(c).tcp_socket(client).may_send());
    let seen = lab.beyond(uplink).tcp_socket(server).remote_endpoint().expect("a client");
    assert_eq!(IpAddr::from(seen.addr), host);
    assert!(seen.port >= 61_000, "{seen}");
    lab.at(c).tcp_socket(client).send_slice(b"hello").expect("send");
    lab.until("data out", s(5), |lab| lab.beyond(uplink).tcp_socket(server).can_recv());
    // RFC 5382 REQ-5: idle for two hours.
    lab.advance(s(7200));
    lab.beyond(uplink).tcp_socket(server).send_slice(b"still there?").expect("send");
    lab.until("data in, hours later", s(5), |lab| lab.at(c).tcp_socket(client).can_recv());

    lab.publish_port(Protocol::Tcp, 5000, network, (inside, 80));
    let (server, client) = (lab.at(c).tcp(), lab.beyond(uplink).tcp());
    lab.at(c).listen(server, 80);
    lab.beyond(uplink).connect(client, host, 5000);
    lab.until("a connection in", s(5), |lab| lab.beyond(uplink).tcp_socket(client).may_send());
    let seen = lab.at(c).tcp_socket(server).remote_endpoint().expect("a client");
    assert_eq!(IpAddr::from(seen.addr), far, "the client keeps its address");
}

/// A DTLS association, say: minutes of silence, and then either end speaks.
#[test]
fn udp_lives_through_minutes_of_silence_and_not_through_more() {
    let mut world = World::new(Config::default());
    let external = world.out(4000, 4433).expect("sent");
    world.send_inward(&world.inward(4433, external, b"established"));
    assert_eq!(world.received(world.a).len(), 1);
    for speaker in ["outside", "inside", "outside"] {
        world.lab.advance(s(295));
        if speaker == "outside" {
            world.send_inward(&world.inward(4433, external, b"wake up"));
            // After so long the router asks where A is, and A says so.
            world.send(world.a, &arp_request(world.macs(10).1, A, [10, 0, 0, 1]));
            let frames = world.received(world.a);
            assert_eq!(frames.iter().filter_map(|f| ends(f)).collect::<Vec<_>>(), [(4433, 4000)]);
        } else {
            assert_eq!(world.out(4000, 4433), Some(external));
        }
        world.received_outside();
    }
    world.lab.advance(s(301));
    world.send_inward(&world.inward(4433, external, b"too late"));
    assert!(world.received(world.a).iter().all(|f| ends(f).is_none()));
}

#[test]
fn a_full_table_keeps_what_it_has_and_refuses_what_is_new() {
    let owner = OwnerLimits { connections: 100, new_per_second: 20_000 };
    let mut world = World::new(Config { connections: 20, owner, ..Config::default() });
    let first = world.out(4000, 1).expect("sent");
    for to in 2..=19 {
        assert_eq!(world.out(4000, to), Some(first));
    }
    world.received(world.a);
    assert_eq!(world.out(4000, 20), None);
    assert_eq!(world.received(world.a).iter().filter_map(|f| icmp(f)).collect::<Vec<_>>(), [(3, 13)]);
    assert_eq!(world.lab.drops(DropReason::ConnectionLimit), 1);
    // The old ones go on, in both directions.
    assert_eq!(world.out(4000, 7), Some(first));
    world.send_inward(&world.inward(7, first, b"in"));
    assert_eq!(world.received(world.a).len(), 1);
    // And there is room again when they have ended.
    world.lab.advance(s(400));
    assert!(world.out(4000, 20).is_some());
}

#[test]
fn an_empty_pool_refuses_what_is_new_and_others_have_their_share() {
    let mut world = World::new(Config { ports: 61_000..=61_031, ..Config::default() });
    let opened: Vec<u16> = (2000..2100).filter_map(|port| world.out(port, 9)).collect();
    // Fifteen sixteenths of 32 ports; one of them is the greeting's.
    assert_eq!(opened.len(), 29);
    let refusals = world.received(world.a);
    assert_eq!(refusals.iter().filter(|f| icmp(f) == Some((3, 13))).count(), 71);
    assert_eq!(world.lab.drops(DropReason::PortsExhausted), 71);
    // To another destination the ports serve again (RFC 7857 section 3).
    assert!(world.out(3000, 10).is_some());
    // Old ones go on.
    assert_eq!(world.out(2000, 9), Some(opened[0]));
    let other = udp4(world.macs(20), (B, 2000), (FAR, 9), b"b");
    world.send(world.b, &other);
    assert_eq!(world.received_outside().len(), 1, "another container has ports left");
}

#[test]
fn a_dead_next_hop_is_told_and_what_waits_is_bounded() {
    let mut lab = Lab::default();
    let network = lab.plain_network();
    let uplink = lab.plain_uplink();
    let a = lab.port(network, "a");
    let macs = (lab.gateway_mac(network).0, plain_mac(network, 10).0);
    lab.put(a, arp_request(macs.1, A, [10, 0, 0, 1]));
    for n in 0..1000u16 {
        lab.put(a, udp4(macs, (A, 4000), ([192, 0, 2, 9], n), b"anybody?"));
    }
    lab.settle();
    assert_eq!(lab.counts().waiting, 64);
    assert_eq!(lab.drops(DropReason::ParkedFull), 936);
    assert_eq!(lab.take_outside(uplink).len(), 1, "one question");
    lab.take_all(a);
    lab.advance(s(5));
    assert_eq!((lab.counts().waiting, lab.drops(DropReason::NoNeighbor)), (0, 64));
    let told = lab.take_all(a);
    assert!(told.iter().any(|f| icmp(&f.bytes) == Some((3, 1))), "host unreachable");
    assert_eq!(lab.take_outside(uplink).len(), 2, "asked twice more");
    // Nothing was translated for it.
    assert_eq!(lab.shared().forwarding.lock().expect("no panic").nat.connection_count(), 0);
}

#[test]
fn a_next_hop_that_answers_late_gets_what_waited() {
    let mut world = World::new(Config::default());
    world.lab.advance(s(200)); // the answer of before is old, and forgotten once it is used in vain
    let external = world.out(4000, 9);
    assert!(external.is_some(), "what was known is used while it is asked for again");
    world.lab.advance(s(5));
    world.received_outside();
    world.send(world.a, &udp4(world.macs(10), (A, 4000), (FAR, 9), b"waits"));
    world.lab.advance(ms(1500));
    assert_eq!(world.lab.counts().waiting, 1);
    world.answer_arp();
    assert_eq!(world.received_outside().iter().filter_map(|f| ends(f)).map(|e| e.1).collect::<Vec<_>>(), [9]);
    assert_eq!(world.lab.counts().waiting, 0);
}

/// Later fragments wait for the first. If that is dropped after its translation, they must go nowhere: not with the next
/// packet, which goes elsewhere.
#[test]
fn fragments_whose_first_is_dropped_follow_nobody() {
    let mut world = World::new(Config::default());
    world.lab.publish_port(Protocol::Udp, 5000, world.network, (A.into(), 5000));
    let macs = (world.lab.uplink_mac(world.uplink).0, FAR_MAC);
    world.send_inward(&udp4(macs, (FAR, 9), (HOST, 5000), b"a connection"));
    assert_eq!(world.received(world.a).len(), 1);
    let whole = fragments(macs, (FAR, 9), (HOST, 5000), 64);
    let late = fragments(macs, (FAR, 9), (HOST, 5000), 1);
    // In any order they come, when the first does.
    for n in [2, 1, 0] {
        world.send_inward(&whole[n]);
    }
    assert_eq!(world.received(world.a).len(), 3);
    world.lab.advance(s(60)); // the datagram's number may be used again
    for part in [&whole[1], &whole[2], &late[0]] {
        world.send_inward(part);
    }
    assert_eq!(world.lab.drops(DropReason::TtlExpired), 1);
    world.received_outside();
    assert!(world.out(4000, 9).is_some());
    world.send(world.b, &udp4(world.macs(20), (B, 1), (FAR, 9), b"b"));
    assert_eq!(world.received_outside().iter().filter(|f| f[12..14] == [8, 0]).count(), 1);
    let ip = |frames: Vec<Vec<u8>>| frames.iter().filter(|f| f[12..14] == [8, 0]).count();
    assert_eq!((ip(world.received(world.a)), ip(world.received(world.b))), (0, 0));
}

#[test]
fn fragments_that_wait_for_ever_are_counted() {
    let mut world = World::new(Config::default());
    let parts = fragments(world.macs(10), (A, 4000), (FAR, 9), 64);
    world.send(world.a, &parts[2]);
    assert_eq!(world.lab.counts().waiting, 1);
    world.lab.advance(s(10));
    assert_eq!((world.lab.counts().waiting, world.lab.drops(DropReason::FragmentLimit)), (0, 1));
    for n in [1, 2, 0] {
        world.send(world.a, &parts[n]);
    }
    let sent = world.received_outside();
    assert_eq!(sent.iter().map(Vec::len).collect::<Vec<_>>(), [98; 3]);
}
