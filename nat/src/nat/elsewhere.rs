//! Connections whose packets pass elsewhere for a while: a kernel that was told how to translate them. What passed there is
//! told here now and then, so that states, counters and deadlines are as if it had passed here.

use std::time::Duration;

use super::{InboundRefresh, Nat};
use crate::conntrack::tcp::Effect;
use crate::conntrack::{Connection, ConnectionId, State};
use crate::packet::TcpSegment;
use crate::time::Time;
use crate::tuple::{Direction, NetworkId, Protocol};

/// What passed elsewhere in one direction of a connection, since it was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The direction.
    pub direction: Direction,
    /// Packets; none with SYN or RST among them, which are for [`Nat`] to see, but for the answer to a SYN
    /// ([`Nat::answered_elsewhere`]).
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
    /// When the last one did.
    pub last: Time,
    /// Of TCP, what the last one said.
    pub tcp: Option<LastSegment>,
    /// Of TCP, the sequence number after the FIN, if one passed. It may be told of again, and when nothing else is.
    pub fin: Option<u32>,
}

/// What the last segment says of both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastSegment {
    /// The sequence number after its payload.
    pub end: u32,
    /// What it acknowledges.
    pub acknowledgment: u32,
    /// Its window, unscaled.
    pub window: u16,
}

impl Nat {
    /// Whether the packets of a connection may pass elsewhere in `direction`: none of them could change its state, but for such
    /// as open or close it. The first answer does, so of UDP that has none only the questions may. The acknowledgment that ends
    /// TCP's handshake may be among them: it is told of by what [`Passed::tcp`] says.
    pub fn may_pass_elsewhere(connection: &Connection, direction: Direction) -> bool {
        let passed = |d: &Direction| connection.counters(*d).packets > 0;
        match connection.state() {
            State::Established | State::Replied | State::SynReceived => {
                [Direction::Original, Direction::Reply].iter().all(passed)
            }
            State::Unreplied => {
                direction == Direction::Original && connection.tuple(direction).protocol == Protocol::Udp
            }
            _ => false,
        }
    }

    /// How long a connection lives from now without packets.
    pub fn lifetime(&self, connection: &Connection) -> Duration {
        let config = self.profiles.get(usize::from(connection.profile)).copied().unwrap_or_default();
        config.timeouts.of(&connection.tuple(Direction::Original), connection.state)
    }

    /// Takes note of the answer to a SYN that passed elsewhere. To be told before what passed with it or after it; its packet and its bytes
    /// are for [`Self::passed_elsewhere`], with all others. It may be told of again.
    pub fn answered_elsewhere(&mut self, now: Time, id: ConnectionId, answer: &TcpSegment) {
        let Some(connection) = self.table.get_mut(id) else { return };
        let before = connection.state;
        if before.is_over() {
            return;
        }
        let mut ends = connection.ends();
        let Effect::State(state) = ends.follow(before, Direction::Reply, answer) else { return };
        connection.set_ends(ends);
        if state != before {
            connection.state = state;
            let config = self.profiles.get(usize::from(connection.profile)).copied().unwrap_or_default();
            let lifetime = config.timeouts.of(&connection.tuple(Direction::Original), state);
            self.table.set_deadline(id, now + lifetime);
            self.table.note_change(id);
        }
    }

    /// Takes note of what passed elsewhere, in one direction or both. False if nothing more of it may pass: it has
    /// ended, or closes. A direction without new packets may be given again, for what its last one said.
    pub fn passed_elsewhere(&mut self, now: Time, id: ConnectionId, passed: &[Passed]) -> bool {
        let Some(connection) = self.table.get_mut(id) else { return false };
        let config = self.profiles.get(usize::from(connection.profile)).copied().unwrap_or_default();
        let of = |direction| passed.iter().find(|passed: &&Passed| passed.direction == direction);
        let [original, reply] = [of(Direction::Original), of(Direction::Reply)];
        let closes = passed.iter().any(|passed| passed.fin.is_some());
        let any = closes || passed.iter().any(|passed| passed.packets > 0);
        let before = connection.state;
        // Numbers are measured by those of the SYN's answer, which is told first.
        if any && before != State::SynSent {
            let last = [original, reply].map(|passed| passed.and_then(|p| p.tcp));
            let fins = [original, reply].map(|passed| passed.and_then(|p| p.fin));
            let mut ends = connection.ends();
            let state = ends.resume(last, fins);
            connection.set_ends(ends);
            let follows = matches!(before, State::Established | State::Closing) && closes;
            if before == State::SynReceived || follows {
                connection.state = state;
            }
        }
        let changed = connection.state != before;
        let lifetime = config.timeouts.of(&connection.tuple(Direction::Original), connection.state);
        // What closes lives shorter than it did.
        let mut deadline = if changed { Time::ZERO } else { connection.deadline };
        for passed in passed.iter().filter(|passed| passed.packets > 0 || changed) {
            connection.count_many(passed.direction, passed.packets, passed.bytes);
            let outside = connection.tuple(passed.direction).network == NetworkId::OUTSIDE;
            if !outside || config.inbound_refresh == InboundRefresh::Yes || changed {
                deadline = deadline.max(passed.last + lifetime);
            }
        }
        Self::note_if_over(&mut self.masquerade, connection, id);
        if any && (changed || !connection.state.is_over()) {
            self.table.set_deadline(id, deadline);
        }
        if changed {
            self.table.note_change(id);
        }
        let open = |connection| Self::may_pass_elsewhere(connection, Direction::Original);
        self.table.is_live(now, id) && self.table.get(id).is_some_and(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::Checksum;
    use crate::nat::{Config, External};
    use crate::packet::{Packet, tcp_flag};
    use crate::testutil::{tcp, udp};
    use crate::tuple::OwnerId;
    use crate::verdict::{Party, Verdict};

    const INSIDE: Party = Party { network: NetworkId(1), owner: OwnerId(1) };
    const SERVER: &str = "198.51.100.7:80";

    struct World {
        nat: Nat,
        now: Time,
        own: String,
    }

    impl World {
        fn out(&mut self, mut bytes: Vec<u8>) -> ConnectionId {
            let mut packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
            let external = External { v4: Some([192, 0, 2, 1].into()), v6: None };
            let verdict = match self.nat.outbound(self.now, &mut packet, INSIDE, external) {
                Verdict::New(pending) => self.nat.commit(self.now, &mut packet, pending),
                verdict => verdict,
            };
            let Verdict::Forward(forward) = verdict else { panic!("{verdict:?}") };
            self.own = format!("192.0.2.1:{}", packet.tuple(INSIDE.network).unwrap().source.port);
            forward.connection
        }

        fn back(&mut self, mut bytes: Vec<u8>) {
            let mut packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
            let verdict = self.nat.inbound(self.now, &mut packet, |_, _| None);
            assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}");
        }

        fn state(&self, id: ConnectionId) -> State {
            self.nat.connection(id).unwrap().state()
        }

        fn may_pass(&self, id: ConnectionId, direction: Direction) -> bool {
            Nat::may_pass_elsewhere(self.nat.connection(id).unwrap(), direction)
        }
    }

    fn established() -> (World, ConnectionId) {
        let mut w =
            World { nat: Nat::new(Config::default()), now: Time::from_secs(1000), own: String::new() };
        let client = "10.0.0.1:1000";
        let id = w.out(tcp(client, SERVER, "S", 100, 0, b""));
        w.back(tcp(SERVER, &w.own.clone(), "SA", 500, 101, b""));
        w.out(tcp(client, SERVER, "A", 101, 501, b""));
        (w, id)
    }

    #[test]
    fn a_connection_closes_after_gigabytes_that_nobody_saw() {
        let (mut w, id) = established();
        assert!(w.may_pass(id, Direction::Original));
        // Three times as many bytes as there are sequence numbers of one sign.
        let (end, acknowledged) = (101_u32.wrapping_add(3 << 30), 501 + 1000);
        let passed = Passed {
            direction: Direction::Original,
            packets: 100_000,
            bytes: 3 << 30,
            last: w.now + Duration::from_secs(100),
            tcp: Some(LastSegment { end, acknowledgment: acknowledged, window: 1000 }),
            fin: None,
        };
        w.now = w.now + Duration::from_secs(101);
        let back = Passed {
            direction: Direction::Reply,
            packets: 7,
            bytes: 7 * 40,
            tcp: Some(LastSegment { end: acknowledged, acknowledgment: end, window: 500 }),
            ..passed
        };
        assert!(w.nat.passed_elsewhere(w.now, id, &[passed, back]));
        let connection = w.nat.connection(id).unwrap();
        assert_eq!(connection.counters(Direction::Original).packets, 2 + 100_000);
        assert_eq!(connection.counters(Direction::Reply).bytes, 40 + 7 * 40);
        assert_eq!(connection.deadline(), passed.last + w.nat.lifetime(connection));

        w.out(tcp("10.0.0.1:1000", SERVER, "FA", end, acknowledged, b""));
        assert_eq!(w.state(id), State::Closing);
        assert!(!w.may_pass(id, Direction::Original));
        w.back(tcp(SERVER, &w.own.clone(), "FA", acknowledged, end.wrapping_add(1), b""));
        w.out(tcp("10.0.0.1:1000", SERVER, "A", end.wrapping_add(1), acknowledged + 1, b""));
        assert_eq!(w.state(id), State::Closed);
    }

    /// A direction of which so many packets passed, and a FIN before `fin`; its last segment said the rest.
    fn passed(w: &World, direction: Direction, numbers: (u32, u32), fin: Option<u32>) -> Passed {
        let tcp = Some(LastSegment { end: numbers.0, acknowledgment: numbers.1, window: 1000 });
        Passed { direction, packets: 3, bytes: 120, last: w.now, tcp, fin }
    }

    #[test]
    fn a_connection_may_close_elsewhere() {
        let (mut w, id) = established();
        let out = passed(&w, Direction::Original, (202, 601), Some(202));
        let back = passed(&w, Direction::Reply, (601, 202), Some(601));
        assert!(!w.nat.passed_elsewhere(w.now, id, &[out, back]));
        assert_eq!(w.state(id), State::Closed);
        let connection = w.nat.connection(id).unwrap();
        assert_eq!(connection.deadline(), w.now + w.nat.lifetime(connection));
        assert!(connection.closed_noted, "its port is the next to be given back");
        // Told again, or late, it changes nothing.
        let deadline = connection.deadline();
        w.now = w.now + Duration::from_secs(1);
        assert!(!w.nat.passed_elsewhere(w.now, id, &[Passed { packets: 0, bytes: 0, last: w.now, ..out }]));
        assert_eq!((w.state(id), w.nat.connection(id).unwrap().deadline()), (State::Closed, deadline));
    }

    #[test]
    fn what_is_left_of_the_end_is_seen_here() {
        let (mut w, id) = established();
        // The last acknowledgment has not passed yet.
        let out = passed(&w, Direction::Original, (202, 600), Some(202));
        let back = passed(&w, Direction::Reply, (601, 202), Some(601));
        assert!(!w.nat.passed_elsewhere(w.now, id, &[out, back]));
        assert_eq!(w.state(id), State::Closing);
        w.out(tcp("10.0.0.1:1000", SERVER, "A", 202, 601, b""));
        assert_eq!(w.state(id), State::Closed);

        // One end only: the other may go on for long.
        let (mut w, id) = established();
        let told =
            Passed { packets: 0, bytes: 0, tcp: None, ..passed(&w, Direction::Reply, (0, 0), Some(502)) };
        assert!(!w.nat.passed_elsewhere(w.now, id, &[told]));
        assert_eq!(w.state(id), State::Closing);
        let connection = w.nat.connection(id).unwrap();
        assert_eq!(connection.deadline(), w.now + w.nat.lifetime(connection));
    }

    #[test]
    fn a_fin_that_cannot_be_of_this_connection_closes_nothing() {
        for fin in [501 + (1 << 24), 501_u32.wrapping_sub(1 << 24), 550] {
            let (mut w, id) = established();
            let out = passed(&w, Direction::Original, (201, 601), None);
            let back = passed(&w, Direction::Reply, (601, 201), Some(fin));
            assert!(w.nat.passed_elsewhere(w.now, id, &[out, back]), "{fin}");
            assert_eq!(w.state(id), State::Established, "{fin}");
        }
        // Nor does a late word of one that was reset.
        let (mut w, id) = established();
        w.back(tcp(SERVER, &w.own.clone(), "R", 501, 0, b""));
        let out = passed(&w, Direction::Original, (202, 501), Some(202));
        assert!(!w.nat.passed_elsewhere(w.now, id, &[out]));
        assert_eq!(w.state(id), State::Reset);
    }

    #[test]
    fn a_blind_reset_is_still_told_from_a_true_one() {
        let (mut w, id) = established();
        let tcp_part = LastSegment { end: 1_000_101, acknowledgment: 501, window: 100 };
        let passed = Passed {
            direction: Direction::Original,
            packets: 9,
            bytes: 9,
            last: w.now,
            tcp: Some(tcp_part),
            fin: None,
        };
        assert!(w.nat.passed_elsewhere(w.now, id, &[passed]));
        w.back(tcp(SERVER, &w.own.clone(), "R", 501 + (1 << 24), 0, b""));
        assert_eq!(w.state(id), State::Established);
        w.back(tcp(SERVER, &w.own.clone(), "R", 501, 0, b""));
        assert_eq!(w.state(id), State::Reset);
    }

    #[test]
    fn what_has_ended_is_told_and_what_lives_is_kept_alive() {
        let mut w = World { nat: Nat::new(Config::default()), now: Time::from_secs(1), own: String::new() };
        let id = w.out(udp("10.0.0.1:1000", SERVER, b"x"));
        w.back(udp(SERVER, &w.own.clone(), b"x"));
        assert!(w.may_pass(id, Direction::Original) && w.may_pass(id, Direction::Reply));
        // Told late, after what would have been its deadline.
        w.now = w.now + Duration::from_secs(301);
        let last = w.now + Duration::ZERO;
        let mut passed =
            Passed { direction: Direction::Reply, packets: 1, bytes: 29, last, tcp: None, fin: None };
        assert!(w.nat.passed_elsewhere(w.now, id, &[passed]));
        passed.packets = 0;
        assert!(w.nat.passed_elsewhere(w.now + Duration::from_secs(299), id, &[passed]));
        w.nat.end_all(w.now, crate::conntrack::Filter::default());
        passed.packets = 1;
        assert!(!w.nat.passed_elsewhere(w.now, id, &[passed]));
    }
    #[test]
    fn datagrams_without_an_answer_pass_one_way_and_live_as_such() {
        let mut w = World { nat: Nat::new(Config::default()), now: Time::from_secs(1), own: String::new() };
        let id = w.out(udp("10.0.0.1:1000", SERVER, b"x"));
        assert!(w.may_pass(id, Direction::Original));
        assert!(!w.may_pass(id, Direction::Reply), "the first answer is to be seen");
        let unreplied = w.nat.lifetime(w.nat.connection(id).unwrap());
        w.now = w.now + Duration::from_secs(100);
        let passed = Passed {
            direction: Direction::Original,
            packets: 9,
            bytes: 9 * 29,
            last: w.now,
            tcp: None,
            fin: None,
        };
        assert!(w.nat.passed_elsewhere(w.now, id, &[passed]));
        assert_eq!(w.state(id), State::Unreplied);
        assert_eq!(w.nat.connection(id).unwrap().deadline(), w.now + unreplied);

        w.back(udp(SERVER, &w.own.clone(), b"x"));
        assert_eq!(w.state(id), State::Replied);
        assert!(w.may_pass(id, Direction::Reply));
        let replied = w.nat.lifetime(w.nat.connection(id).unwrap());
        assert!(replied > unreplied && w.nat.passed_elsewhere(w.now, id, &[passed]));
        assert_eq!(w.nat.connection(id).unwrap().deadline(), w.now + replied);
    }
    #[test]
    fn a_handshake_may_end_elsewhere_but_not_by_an_acknowledgment_of_what_was_never_sent() {
        for (acknowledgment, end, state) in [
            (501, 101, State::Established),
            // Data came with it, and was answered.
            (501 + 1000, 101 + 50, State::Established),
            (500, 101, State::SynReceived),
            (9_999_999, 101, State::SynReceived),
        ] {
            let mut w =
                World { nat: Nat::new(Config::default()), now: Time::from_secs(1), own: String::new() };
            let id = w.out(tcp("10.0.0.1:1000", SERVER, "S", 100, 0, b""));
            assert!(!w.may_pass(id, Direction::Original));
            w.back(tcp(SERVER, &w.own.clone(), "SA", 500, 101, b""));
            assert!(w.may_pass(id, Direction::Original) && w.may_pass(id, Direction::Reply));
            w.now = w.now + Duration::from_secs(1);
            let tcp = Some(LastSegment { end, acknowledgment, window: 1000 });
            let passed =
                Passed { direction: Direction::Original, packets: 1, bytes: 40, last: w.now, tcp, fin: None };
            let answer = LastSegment { end: 501 + 1000, acknowledgment: end, window: 1000 };
            let back = Passed { direction: Direction::Reply, tcp: Some(answer), ..passed };
            assert!(w.nat.passed_elsewhere(w.now, id, &[passed, back]));
            assert_eq!(w.state(id), state, "{acknowledgment}");
            let connection = w.nat.connection(id).unwrap();
            assert_eq!(connection.deadline(), w.now + w.nat.lifetime(connection));
        }
    }

    #[test]
    fn the_answer_to_a_syn_may_pass_elsewhere() {
        let begin = || {
            let mut w =
                World { nat: Nat::new(Config::default()), now: Time::from_secs(1), own: String::new() };
            let id = w.out(tcp("10.0.0.1:1000", SERVER, "S", 100, 0, b""));
            w.now = w.now + Duration::from_secs(1);
            (w, id)
        };
        let answer = |acknowledgment| TcpSegment {
            flags: tcp_flag::SYN | tcp_flag::ACK,
            sequence: 500,
            acknowledgment,
            window: 1000,
            payload: 0,
            window_scale: None,
        };
        let (mut w, id) = begin();
        w.nat.answered_elsewhere(w.now, id, &answer(101));
        assert_eq!(w.state(id), State::SynReceived);
        let connection = w.nat.connection(id).unwrap();
        assert_eq!(connection.deadline(), w.now + w.nat.lifetime(connection));
        let back = passed(&w, Direction::Reply, (501, 101), None);
        let out = passed(&w, Direction::Original, (101, 501), None);
        assert!(w.nat.passed_elsewhere(w.now, id, &[out, back]));
        assert_eq!(w.state(id), State::Established);
        // Told again it changes nothing.
        w.nat.answered_elsewhere(w.now, id, &answer(101));
        assert_eq!(w.state(id), State::Established);
        w.back(tcp(SERVER, &w.own.clone(), "R", 501 + (1 << 24), 0, b""));
        assert_eq!(w.state(id), State::Established, "windows are those of the handshake");

        // What acknowledges no SYN of this connection answers none, and nothing more may pass.
        let (mut w, id) = begin();
        w.nat.answered_elsewhere(w.now, id, &answer(999));
        assert_eq!(w.state(id), State::SynSent);
        let back = passed(&w, Direction::Reply, (501, 999), None);
        assert!(!w.nat.passed_elsewhere(w.now, id, &[back]));
        w.back(tcp(SERVER, &w.own.clone(), "SA", 700, 101, b""));
        assert_eq!(w.state(id), State::SynReceived);
    }
}
