//! Captures and mirrors in memory: what they see, and that they change nothing for anybody else.

use std::sync::Arc;

use switch::batch::Source;
use switch::mac::Mac;
use switch::observe::capture::{Capture, Frames, Way};
use switch::observe::{Mirror, Observers, Point, Ways};
use switch::snapshot::PortId;
use switch::trace::build;
use tests::lab::{Counts, Lab, NetworkOptions, net};

fn station(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

/// A switch with three ports, and who watches it.
fn watched(observers: impl Fn([PortId; 3]) -> Observers + 'static) -> (Lab, [PortId; 3]) {
    let mut lab = Lab::default();
    let subnets = vec![net("10.0.0.0/16")];
    let network = lab.network("net0", &NetworkOptions { subnets, isolate_ports: false, host_access: false });
    let ports: [PortId; 3] = std::array::from_fn(|n| lab.port(network, &format!("p{n}")));
    // Each is heard once, so that nothing is flooded.
    for (n, port) in (0..).zip(ports) {
        let hello = build::frame(&"arp 10.0.0.9 > 10.0.0.9".parse().expect("words"), station(n), station(77));
        lab.inject(Source::Port(port), hello.expect("a frame"));
    }
    for port in ports {
        lab.take_all(port);
    }
    let observers = Arc::new(observers(ports));
    lab.edit(move |snapshot| snapshot.observers = Some(Arc::clone(&observers)));
    (lab, ports)
}

fn frame(words: &str, from: u8, to: u8) -> Vec<u8> {
    build::frame(&words.parse().expect("words"), station(from), station(to)).expect("a frame")
}

#[test]
fn a_mirror_gets_each_way_once_and_nothing_else_changes() {
    for (ways, expected) in [(Ways::In, (1, 0)), (Ways::Out, (0, 1)), (Ways::Both, (1, 1))] {
        let (mut lab, [a, b, probe]) = watched(move |[a, _, probe]| Observers {
            captures: Vec::new(),
            mirrors: vec![Mirror { of: Point::Port(a), to: probe, ways }],
        });
        let (there, back) =
            (frame("udp 10.0.0.1:1 > 10.0.0.2:2", 0, 1), frame("udp 10.0.0.2:2 > 10.0.0.1:1", 1, 0));
        let before = lab.counts();
        lab.inject(Source::Port(a), there.clone());
        lab.inject(Source::Port(b), back.clone());
        assert_eq!(lab.take_all(b).len(), 1);
        assert_eq!(lab.take_all(a).len(), 1);
        let copies = lab.take_all(probe);
        let count = |bytes: &Vec<u8>| copies.iter().filter(|c| c.bytes == *bytes).count();
        assert_eq!((count(&there), count(&back)), expected, "{ways:?}");
        let after = lab.counts();
        let expected = Counts { received: before.received + 2, forwarded: before.forwarded + 2, ..before };
        assert_eq!(after, expected, "copies are not counted");
    }
}

#[test]
fn a_mirror_of_a_network_shows_each_frame_once() {
    let (mut lab, [a, _, probe]) = watched(|[a, _, probe]| Observers {
        captures: Vec::new(),
        mirrors: vec![
            Mirror { of: Point::Network(switch::snapshot::NetworkId(0)), to: probe, ways: Ways::Both },
            Mirror { of: Point::Port(probe), to: a, ways: Ways::Both },
        ],
    });
    let there = frame("udp 10.0.0.1:1 > 10.0.0.2:2", 0, 1);
    lab.inject(Source::Port(a), there);
    assert_eq!(lab.take_all(probe).len(), 1);
    // A mirror of the mirror ends there, too: copies do not go around.
    assert_eq!(lab.take_all(a).len(), 1);
}

#[test]
fn captures_see_frames_as_they_came_and_drops_with_their_reason() {
    let drops = Arc::new(Capture::new(Point::Drops, None, 1000));
    let port = Arc::new(Capture::new(Point::Port(PortId(0)), Some("udp".parse().expect("a filter")), 1000));
    let captures = vec![Arc::clone(&drops), Arc::clone(&port)];
    let (mut lab, [a, ..]) = watched(move |_| Observers { captures: captures.clone(), mirrors: Vec::new() });
    let good = frame("udp 10.0.0.1:1 > 10.0.0.2:2", 0, 1);
    let spoofed = frame("tcp 10.0.0.1:1 > 192.0.2.1:2 syn", 0, 0);
    lab.inject(Source::Port(a), good.clone());
    lab.inject(Source::Port(a), spoofed.clone());
    let seen = |capture: &Capture| {
        let frames = capture.take(Frames::default());
        frames.iter().map(|(record, bytes)| (record.way, bytes.to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(seen(&port), [(Way::In, good)]);
    let dropped = seen(&drops);
    assert_eq!(dropped.len(), 1);
    assert_eq!(dropped[0], (Way::Dropped(switch::verdict::DropReason::SamePort), spoofed));
}
