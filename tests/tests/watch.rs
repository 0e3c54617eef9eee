//! Captures, mirrors and live traces in memory: what they see, and that they change nothing for anybody else.

use std::sync::Arc;

use switch::batch::Source;
use switch::frame::Offload;
use switch::mac::Mac;
use switch::observe::capture::{Capture, Frames, Way};
use switch::observe::live::LiveTrace;
use switch::observe::{Mirror, Observers, Point, Ways};
use switch::router::resolve::Ingress;
use switch::snapshot::PortId;
use switch::trace::{Outcome, Tracer, build};
use switch::verdict::{DropReason, Verdict};
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
            mirrors: vec![Mirror { of: Point::Port(a), to: probe, ways }],
            ..Observers::default()
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
        mirrors: vec![
            Mirror { of: Point::Network(switch::snapshot::NetworkId(0)), to: probe, ways: Ways::Both },
            Mirror { of: Point::Port(probe), to: a, ways: Ways::Both },
        ],
        ..Observers::default()
    });
    let there = frame("udp 10.0.0.1:1 > 10.0.0.2:2", 0, 1);
    lab.inject(Source::Port(a), there);
    assert_eq!(lab.take_all(probe).len(), 1);
    // A mirror of the mirror ends there, too: copies do not go around.
    assert_eq!(lab.take_all(a).len(), 1);
}

#[test]
fn captures_see_frames_as_they_came_and_drops_with_their_reason() {
    let drops = Arc::new(Capture::new(Point::Drops, None, 1000).expect("a capture"));
    let port = Arc::new(
        Capture::new(Point::Port(PortId(0)), Some("udp".parse().expect("a filter")), 1000)
            .expect("a capture"),
    );
    let captures = vec![Arc::clone(&drops), Arc::clone(&port)];
    let (mut lab, [a, ..]) =
        watched(move |_| Observers { captures: captures.clone(), ..Observers::default() });
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
    assert_eq!(dropped[0], (Way::Dropped(DropReason::SamePort), spoofed));
}

#[test]
fn a_live_trace_tells_of_real_frames_what_a_trace_told_before() {
    let trace =
        Arc::new(LiveTrace::new(Ingress::Port(PortId(0)), Some("udp or tcp".parse().expect("a filter"))));
    let traces = vec![Arc::clone(&trace)];
    let (mut lab, [a, b, _]) = watched(move |_| Observers { traces: traces.clone(), ..Observers::default() });
    let good = frame("udp 10.0.0.1:1 > 10.0.0.2:2", 0, 1);
    let spoofed = frame("tcp 10.0.0.1:1 > 192.0.2.1:2 syn", 0, 0);
    let other = frame("icmp 10.0.0.1 > 10.0.0.2", 0, 1);
    let (mut expected, before) = (Vec::new(), lab.counts());
    for bytes in [&good, &spoofed, &other] {
        expected.push(Tracer::new(lab.shared(), Vec::new()).trace(
            lab.now,
            Source::Port(a),
            bytes,
            Offload::default(),
        ));
        lab.inject(Source::Port(a), bytes.clone());
    }
    // What comes back is of another port.
    lab.inject(Source::Port(b), frame("udp 10.0.0.2:2 > 10.0.0.1:1", 1, 0));
    let (walks, missed) = trace.take();
    assert_eq!((walks.len(), missed), (2, 0));
    for ((walk, expected), bytes) in walks.iter().zip(&expected).zip([&good, &spoofed]) {
        assert_eq!((&walk.traced, &walk.bytes), (expected, bytes));
    }
    assert_eq!(walks[0].traced.steps.last().map(|step| step.verdict), Some(Verdict::Forward(b)));
    assert_eq!(walks[1].traced.outcome, Outcome::Dropped(DropReason::SamePort));
    let after = lab.counts();
    assert_eq!((after.received, after.forwarded), (before.received + 4, before.forwarded + 3));
}
