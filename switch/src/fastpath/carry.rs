//! Which connections the kernel may carry. Pure: part of the engine.

use std::net::Ipv4Addr;
use std::time::Duration;

use nat::packet::tcp_flag;
use nat::{
    Checksum, Connection, ConnectionId, Direction, Endpoint, Nat, NetworkId, Packet, Protocol, State, Tuple,
};

use super::translate::Header;
use crate::frame::{ETHERNET_HEADER, ETHERTYPE_IPV4, Frame, Offload};
use crate::mac::Mac;
use crate::router::resolve::Ingress;

/// A connection is offered once so many of its packets were translated, if it was not when its SYN was answered: of UDP most
/// are a question and an answer, and would be taken back before it were of use.
const PACKETS: u64 = 20;
/// One that may end sooner without packets is not: what the kernel has seen of it is told once a second, which may be late.
const LEAST_LIFETIME: Duration = Duration::from_secs(5);

/// Where the flags are in a TCP segment whose IPv4 header has no options.
const TCP_FLAGS: usize = 20 + 13;

/// What the router knows of a packet that it has just translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed {
    /// Its connection.
    pub connection: ConnectionId,
    /// Its direction in it.
    pub direction: Direction,
    /// The MACs that it came with: destination and source.
    pub arrived: [Mac; 2],
    /// The longest packet that its way takes.
    pub mtu: u32,
}

impl Routed {
    /// Whether a frame is of a kind that the kernel can carry: one whose unfinished checksum is that of a tunnel's inside looks like
    /// any other to it.
    pub fn is_plain(offload: Offload) -> bool {
        !offload.needs_csum() || usize::from(offload.csum_start) == ETHERNET_HEADER + 20
    }
}

/// One direction of a connection, for the kernel to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carry {
    /// What the router knows.
    pub routed: Routed,
    /// Its packets as they arrive, and those of the other direction.
    pub tuples: [Tuple; 2],
    /// Whence.
    pub from: Ingress,
    /// Whereto.
    pub to: Ingress,
    /// The MACs that it leaves with: destination and source.
    pub leaves: [Mac; 2],
    /// How many packets went that way so far.
    pub packets: u64,
    /// How far it has come.
    pub state: State,
}

impl Carry {
    /// The direction of a packet that goes from a port to an uplink or back, if its connection is open or opens, is busy or just
    /// opens, and is of a kind that the kernel knows.
    pub fn of(
        nat: &Nat,
        connection: &Connection,
        routed: Routed,
        (from, to): (Ingress, Ingress),
        leaves: [Mac; 2],
    ) -> Option<Self> {
        let tuples = [routed.direction, routed.direction.reverse()].map(|d| connection.tuple(d));
        let known = matches!(tuples[0].protocol, Protocol::Tcp | Protocol::Udp);
        let v4 = |end: Endpoint| end.address.is_v4();
        let v4 = tuples.iter().all(|tuple| v4(tuple.source) && v4(tuple.destination));
        let packets = |direction| connection.counters(direction).packets;
        let state = connection.state();
        let busy = packets(Direction::Original).saturating_add(packets(Direction::Reply)) >= PACKETS;
        let opens = state == State::SynSent && routed.direction == Direction::Original;
        let opened = state == State::SynReceived;
        let crosses = matches!(
            (from, to),
            (Ingress::Port(_), Ingress::Uplink(_)) | (Ingress::Uplink(_), Ingress::Port(_))
        );
        let may = known
            && v4
            && crosses
            && (opens || ((opened || busy) && Nat::may_pass_elsewhere(connection, routed.direction)))
            && nat.lifetime(connection) >= LEAST_LIFETIME;
        may.then(|| Self { routed, tuples, from, to, leaves, packets: packets(routed.direction), state })
    }

    /// The port of the end that opened the connection, the same in both directions.
    pub(super) fn opener_port(&self) -> usize {
        let [arrives, answers] = &self.tuples;
        usize::from(match self.routed.direction {
            Direction::Original => arrives.source.port,
            Direction::Reply => answers.source.port,
        })
    }

    /// Whether it is that of a SYN without an answer so far, which is not the kernel's yet.
    pub fn opens(&self) -> bool {
        self.state == State::SynSent
    }

    /// Whether nothing of it can be under way but what opens it: the SYN was answered just now.
    pub fn is_new(&self) -> bool {
        self.state == State::SynReceived
    }

    /// Whether it is TCP, not UDP.
    pub fn is_tcp(&self) -> bool {
        self.tuples[0].protocol == Protocol::Tcp
    }

    /// Addresses and ports as packets arrive, and as they leave: the reverse of what arrives in the other direction.
    pub(super) fn headers(&self) -> [Header; 2] {
        let [arrives, answers] = &self.tuples;
        let end = |end: Endpoint| (Ipv4Addr::from(end.address.v4_octets()).octets(), end.port);
        [
            Header { source: end(arrives.source), destination: end(arrives.destination) },
            Header { source: end(answers.destination), destination: end(answers.source) },
        ]
    }
}

/// The tuple of a frame that is a TCP segment with SYN, FIN or RST, as it arrives from `network`.
pub(super) fn opens_or_closes(frame: &mut Frame<'_>, network: NetworkId) -> Option<Tuple> {
    if frame.len() < ETHERNET_HEADER || frame.ethertype() != ETHERTYPE_IPV4 {
        return None;
    }
    // Most are none, and are told from the rest by one byte. The kernel carries none with options.
    let packet = &frame.bytes()[ETHERNET_HEADER..];
    let flags = packet.get(TCP_FLAGS).copied().unwrap_or_default();
    let closing = tcp_flag::SYN | tcp_flag::FIN | tcp_flag::RST;
    if packet.first() != Some(&0x45) || packet.get(9) != Some(&6) || flags & closing == 0 {
        return None;
    }
    // Checksums are not looked at.
    let packet = Packet::parse(frame.payload_mut(), Checksum::Complete).ok()?;
    let segment = packet.tcp()?;
    let one = [tcp_flag::SYN, tcp_flag::FIN, tcp_flag::RST].iter().any(|flag| segment.has(*flag));
    if one { packet.tuple(network) } else { None }
}

#[cfg(test)]
mod tests {
    use nat::packet::{Packet, tcp_flag};
    use nat::{
        Checksum, Config, External, NetworkConfig, NetworkId, OwnerId, Party, Time, Timeouts, Verdict,
    };

    use super::*;
    use crate::fastpath::offer::{Offers, Which};
    use crate::snapshot::PortId;

    const INSIDE: Party = Party { network: NetworkId(1), owner: OwnerId(1) };
    const INSIDE_END: ([u8; 4], u16) = ([172, 18, 0, 10], 1000);
    const SERVER: ([u8; 4], u16) = ([198, 51, 100, 7], 80);
    const OWN: [u8; 4] = [192, 0, 2, 1];

    /// A TCP segment without data; checksums are not looked at.
    fn segment(from: ([u8; 4], u16), to: ([u8; 4], u16), flags: u8, numbers: (u32, u32)) -> Vec<u8> {
        let b = etherparse::PacketBuilder::ipv4(from.0, to.0, 64);
        let mut b = b.tcp(from.1, to.1, numbers.0, 1000);
        if flags & tcp_flag::SYN != 0 {
            b = b.syn();
        }
        if flags & tcp_flag::ACK != 0 {
            b = b.ack(numbers.1);
        }
        if flags & tcp_flag::FIN != 0 {
            b = b.fin();
        }
        let mut bytes = Vec::new();
        b.write(&mut bytes, &[]).unwrap();
        bytes
    }

    struct World {
        nat: Nat,
        port: u16,
    }

    impl World {
        fn new(timeouts: Timeouts) -> Self {
            let mut nat = Nat::new(Config::default());
            nat.set_network(INSIDE.network, NetworkConfig { timeouts, ..NetworkConfig::default() });
            Self { nat, port: 0 }
        }

        fn out(&mut self, flags: u8, numbers: (u32, u32)) -> Option<Carry> {
            let mut bytes = segment(INSIDE_END, SERVER, flags, numbers);
            let mut packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
            let external = External { v4: Some(OWN.into()), v6: None };
            let verdict = match self.nat.outbound(Time::ZERO, &mut packet, INSIDE, external) {
                Verdict::New(pending) => self.nat.commit(Time::ZERO, &mut packet, pending),
                verdict => verdict,
            };
            self.port = packet.tuple(NetworkId::OUTSIDE).unwrap().source.port;
            self.carry(&verdict, (Ingress::Port(PortId(3)), Ingress::Uplink(2)))
        }

        fn back(&mut self, flags: u8, numbers: (u32, u32)) -> Option<Carry> {
            let mut bytes = segment(SERVER, (OWN, self.port), flags, numbers);
            let mut packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
            let verdict = self.nat.inbound(Time::ZERO, &mut packet, |_, _| None);
            self.carry(&verdict, (Ingress::Uplink(2), Ingress::Port(PortId(3))))
        }

        fn carry(&self, verdict: &Verdict, way: (Ingress, Ingress)) -> Option<Carry> {
            let Verdict::Forward(forward) = verdict else { panic!("{verdict:?}") };
            let (connection, direction) = (forward.connection, forward.direction);
            let routed = Routed { connection, direction, arrived: [Mac([1; 6]), Mac([2; 6])], mtu: 1500 };
            let found = self.nat.connection(connection).unwrap();
            Carry::of(&self.nat, found, routed, way, [Mac([3; 6]), Mac([4; 6])])
        }

        fn open(&mut self) -> [Option<Carry>; 3] {
            let opened = [self.out(tcp_flag::SYN, (100, 0))];
            let answered = self.back(tcp_flag::SYN | tcp_flag::ACK, (500, 101));
            [opened[0], answered, self.out(tcp_flag::ACK, (101, 501))]
        }
    }

    #[test]
    fn an_established_busy_connection_is_offered_both_ways_until_it_closes() {
        let mut w = World::new(Timeouts::default());
        let [opens, answers, third] = w.open();
        let opens = opens.expect("to be kept for the answer");
        assert!(opens.opens() && !opens.is_new());
        let answers = answers.expect("the kernel may have it from here on");
        assert!(answers.is_new() && answers.opener_port() == opens.opener_port());
        assert_eq!(third, None, "if it was not handed over then, it has to be busy");
        for _ in 3..PACKETS - 1 {
            assert_eq!(w.out(tcp_flag::ACK, (101, 501)), None);
        }
        let out = w.out(tcp_flag::ACK, (101, 501)).expect("busy by now");
        assert!(out.is_tcp());
        let [arrives, leaves] = out.headers();
        assert_eq!((arrives.source, arrives.destination), (INSIDE_END, SERVER));
        assert_eq!((leaves.source, leaves.destination), ((OWN, w.port), SERVER));
        let back = w.back(tcp_flag::ACK, (501, 101)).expect("the other way, too");
        assert_eq!(
            back.headers().map(|h| (h.source, h.destination)),
            [(SERVER, (OWN, w.port)), (SERVER, INSIDE_END)]
        );
        assert_eq!(w.out(tcp_flag::ACK | tcp_flag::FIN, (101, 501)), None);
        assert_eq!(w.back(tcp_flag::ACK, (501, 102)), None);
    }

    #[test]
    fn the_answer_to_a_syn_hands_both_directions_over() {
        let [opener, answer, _] = World::new(Timeouts::default()).open();
        let (opener, answer) = opener.zip(answer).expect("both");
        let both = [(Direction::Original, opener.leaves), (Direction::Reply, answer.leaves)];
        for (then, now, expected) in [(1, 1, &both[..]), (1, 2, &both[1..])] {
            let mut offers = Offers::default();
            offers.begin(then, Time::ZERO);
            offers.carried(opener);
            assert_eq!(offers.take_carry(Which::JustOpened), None);
            offers.begin(now, Time::ZERO);
            offers.carried(answer);
            let taken = std::iter::from_fn(|| offers.take_carry(Which::JustOpened));
            let taken: Vec<_> = taken.map(|carry| (carry.routed.direction, carry.leaves)).collect();
            assert_eq!(taken, expected, "decided in epochs {then} and {now}");
            assert_eq!(offers.take_carry(Which::Any), None);
        }
    }

    #[test]
    fn a_syn_is_handed_over_with_its_answer_if_another_went_the_same_way_just_now() {
        let mut w = World::new(Timeouts::default());
        let [opener, answer, _] = w.open();
        let (opener, mut answer) = opener.zip(answer).expect("both");
        // Back to where the SYN came from.
        (answer.routed.arrived, answer.leaves) =
            ([opener.leaves[1], opener.leaves[0]], [Mac([2; 6]), Mac([1; 6])]);
        let mut other = World::new(Timeouts::default());
        let next = other.out(tcp_flag::SYN, (900, 0)).expect("opens");
        let elsewhere = Carry { leaves: [Mac([9; 6]), Mac([4; 6])], ..next };
        let longer = Carry { routed: Routed { mtu: 9000, ..next.routed }, ..next };
        let soon = Time::from_millis(500);
        for (opener, epoch, now, both) in [
            (next, 1, soon, true),
            (next, 2, soon, false),
            (next, 1, Time::from_secs(1), false),
            (elsewhere, 1, soon, false),
            (longer, 1, soon, false),
        ] {
            let mut offers = Offers::default();
            offers.begin(1, Time::ZERO);
            offers.carried(answer);
            assert_eq!(offers.take_carry(Which::JustOpened), Some(answer));
            offers.begin(epoch, now);
            offers.carried(opener);
            let mut taken: Vec<_> = std::iter::from_fn(|| offers.take_carry(Which::JustOpened)).collect();
            taken.sort_by_key(|carry| carry.routed.direction == Direction::Reply);
            if both {
                let tuples = [next.tuples[1], next.tuples[0]];
                let routed = Routed { connection: next.routed.connection, ..answer.routed };
                assert_eq!(
                    taken,
                    [next, Carry { routed, tuples, packets: 0, state: State::SynSent, ..answer }]
                );
            } else {
                assert_eq!(taken, [], "{opener:?} in epoch {epoch} at {now:?}");
            }
        }
    }

    #[test]
    fn one_that_may_end_within_seconds_is_not_offered() {
        let tcp_established = Duration::from_secs(4);
        let mut w = World::new(Timeouts { tcp_established, ..Timeouts::default() });
        w.open();
        for _ in 0..2 * PACKETS {
            assert_eq!(w.out(tcp_flag::ACK, (101, 501)), None);
        }
    }

    #[test]
    fn a_checksum_of_an_inner_packet_is_not_for_the_kernel() {
        let with = |csum_start| Offload { flags: Offload::NEEDS_CSUM, csum_start, ..Offload::default() };
        assert!(Routed::is_plain(Offload::default()));
        assert!(Routed::is_plain(with(34)));
        assert!(!Routed::is_plain(with(84)));
    }
}
