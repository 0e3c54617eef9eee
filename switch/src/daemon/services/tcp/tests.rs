//! Clients are segments made by hand.

use std::collections::VecDeque;

use etherparse::{PacketBuilder, TcpOptionElement};

use super::super::ends::{self, Carried};
use super::*;
use crate::services::Service;
use crate::snapshot::PortCounters;

const GATEWAY: &str = "10.0.0.1:53";

fn asker(port: u32) -> Asker {
    Asker { port: PortId(port), counters: Arc::new(PortCounters::default()) }
}

/// A frame with a segment of a client's.
fn frame(client: &str, sequence: u32, flags: &[char], payload: &[u8]) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (client.parse().unwrap(), GATEWAY.parse().unwrap());
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { panic!("IPv4") };
    let ip = PacketBuilder::ethernet2([4; 6], [2; 6]).ipv4(from.ip().octets(), to.ip().octets(), 64);
    let mut tcp = ip.tcp(from.port(), to.port(), sequence, 60_000);
    for flag in flags {
        tcp = match flag {
            'S' => tcp.syn(),
            'F' => tcp.fin(),
            'm' => tcp.options(&[TcpOptionElement::MaximumSegmentSize(47)]).unwrap(),
            _ => tcp.ack(0),
        };
    }
    let mut bytes = Vec::new();
    tcp.write(&mut bytes, payload).unwrap();
    bytes
}

impl Connections {
    fn hear(&mut self, from: &Asker, bytes: Vec<u8>, now: Time) -> Vec<Question> {
        let (ends, carried) = ends::read(&bytes).unwrap();
        let Carried::Segment { opens } = carried else { panic!("{carried:?}") };
        let asked = Asked { service: Service::DnsTcp, network: NetworkId(0), from: from.clone(), bytes };
        self.receive(&asked, ends, opens, 1500, now);
        self.work(now)
    }

    /// Flags of what is said, and its payload.
    fn heard(&mut self) -> Vec<(String, Vec<u8>)> {
        let all: VecDeque<_> = self.said().map(|answer| answer.bytes).collect();
        let read = |bytes: &[u8]| {
            let packet = etherparse::SlicedPacket::from_ethernet(bytes).unwrap();
            let Some(etherparse::TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
            let flags = [(tcp.syn(), 'S'), (tcp.fin(), 'F'), (tcp.rst(), 'R'), (tcp.ack(), 'A')];
            let flags = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| *flag).collect();
            (flags, tcp.payload().to_vec())
        };
        all.iter().map(|bytes| read(bytes)).collect()
    }
}

#[test]
fn what_belongs_to_no_connection_gets_a_reset() {
    let mut all = Connections::default();
    assert!(all.hear(&asker(1), frame("10.0.0.2:4000", 1, &['A'], b"x"), Time::ZERO).is_empty());
    assert_eq!(all.heard(), [("R".to_owned(), Vec::new())]);
    // Who wants an answer in crumbs gets none.
    all.hear(&asker(1), frame("10.0.0.2:4001", 1, &['S', 'm'], b""), Time::ZERO);
    assert_eq!(all.heard(), [("RA".to_owned(), Vec::new())]);
    assert_eq!(all.numbers(), Tcp::default());
}

#[test]
fn half_open_ones_are_bounded_and_end() {
    let (mut all, flooder, now) = (Connections::default(), asker(1), Time::from_secs(5));
    for n in 0..100 {
        all.hear(&flooder, frame(&format!("10.0.0.2:{}", 4000 + n), 1, &['S'], b""), now);
    }
    let said = all.heard();
    assert_eq!(said.iter().filter(|(flags, _)| flags == "SA").count(), PER_PORT);
    assert_eq!(said.iter().filter(|(flags, _)| flags == "RA").count(), 100 - PER_PORT);
    assert_eq!(all.numbers(), Tcp { open: 16, opened: 16, refused: 84 });
    let mut at = now;
    while let Some(due) = all.due() {
        assert!(due > at && due <= now + 2 * IDLE, "at {at:?}: {due:?}");
        at = due;
        all.work(at);
    }
    assert_eq!((all.numbers().open, at), (0, now + IDLE));
}

#[test]
fn whoever_has_most_gives_one_up_for_one_who_has_fewer() {
    let mut all = Connections::default();
    for n in 0..u32::try_from(IN_ALL).unwrap() {
        let client = format!("10.0.{}.2:{}", n / 16, 4000 + n);
        let now = Time::from_millis(n.into());
        all.hear(&Asker { port: PortId(n / 16), ..asker(0) }, frame(&client, 1, &['S'], b""), now);
    }
    assert_eq!(all.numbers(), Tcp { open: 256, opened: 256, refused: 0 });
    all.heard();
    let late = asker(99);
    for n in 0..PER_PORT {
        let client = format!("10.0.99.2:{}", 4000 + n);
        all.hear(&late, frame(&client, 1, &['S'], b""), Time::from_millis(500));
    }
    let said = all.heard();
    assert_eq!(said.iter().filter(|(flags, _)| flags == "SA").count(), 15, "as many as the others have then");
    assert_eq!(all.numbers(), Tcp { open: 256, opened: 271, refused: 1 });
}

/// A client that opens, says this and closes: questions come out, whatever way they are cut; answers go back.
#[test]
fn questions_come_out_and_answers_go_back() {
    let (mut all, from, now) = (Connections::default(), asker(1), Time::from_secs(1));
    let client = "10.0.0.2:4000";
    all.hear(&from, frame(client, 100, &['S'], b""), now);
    let Some(answer) = all.said().next() else { panic!("nothing was said") };
    let sequence = u32::from_be_bytes(answer.bytes[38..42].try_into().unwrap());
    let acknowledge = |at: u32, payload: &[u8], fin: bool| {
        let mut bytes = frame(client, at, if fin { &['A', 'F'] } else { &['A'] }, payload);
        let mut header = etherparse::TcpHeader::from_slice(&bytes[34..]).unwrap().0;
        header.acknowledgment_number = sequence.wrapping_add(1);
        let ip = etherparse::Ipv4Header::from_slice(&bytes[14..]).unwrap().0;
        header.checksum = header.calc_checksum_ipv4(&ip, payload).unwrap();
        bytes.truncate(34);
        bytes.extend(header.to_bytes());
        bytes.extend(payload);
        bytes
    };
    let stream = [framed(b"one").unwrap(), framed(b"two").unwrap()].concat();
    assert!(all.hear(&from, acknowledge(101, &stream[..4], false), now).is_empty());
    let questions = all.hear(&from, acknowledge(105, &stream[4..], true), now);
    assert_eq!(questions.iter().map(|q| &q.bytes[..]).collect::<Vec<_>>(), [b"one", b"two"]);
    all.heard();
    // Out of order, as they come; the connection ends with the last one.
    all.answer(questions[1].way, Some(Some(b"2".to_vec())));
    assert!(all.work(now).is_empty());
    assert_eq!(all.heard(), [("A".to_owned(), vec![0, 1, b'2'])]);
    all.answer(questions[0].way, Some(Some(b"1".to_vec())));
    all.work(now);
    let said = all.heard();
    assert_eq!(said.iter().flat_map(|(_, payload)| payload.clone()).collect::<Vec<_>>(), [0, 1, b'1']);
    assert!(said.last().is_some_and(|(flags, _)| flags.contains('F')), "{said:?}");
    // A later connection with the same ends does not get what was meant for this one.
    let way = questions[0].way;
    all.work(now + 3 * IDLE);
    all.work(now + 5 * IDLE);
    assert_eq!(all.numbers().open, 0, "its end was never acknowledged");
    all.hear(&from, frame(client, 900, &['S'], b""), now + 6 * IDLE);
    all.heard();
    all.answer(way, Some(Some(b"late".to_vec())));
    all.work(now + 6 * IDLE);
    assert!(all.heard().iter().all(|(_, payload)| payload.is_empty()));
}

#[test]
fn one_that_takes_no_answers_is_cut_off() {
    let (mut all, from, now) = (Connections::default(), asker(1), Time::from_secs(1));
    all.hear(&from, frame("10.0.0.2:4000", 100, &['S'], b""), now);
    let key = *all.table.keys().next().unwrap();
    let way = Way { key, serial: all.serial };
    for _ in 0..3 {
        all.answer(way, Some(Some(vec![0; 65_535])));
    }
    all.work(now);
    assert_eq!(all.numbers().open, 0);
}
