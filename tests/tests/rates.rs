//! Rates and storm control in virtual time: what passes is what was set, to the frame.

use std::sync::Arc;
use std::time::Duration;

use nat::Time;
use switch::frame::Offload;
use switch::limit::{Bucket, Limits, Rate};
use switch::port::memory::MemoryFrame;
use switch::snapshot::{NetworkId, PortId};
use switch::verdict::DropReason;
use tests::lab::{Lab, plain_mac};
use tests::process::{ms, s};
use tests::raw::{BROADCAST, experiment};

const MBIT: u64 = 1_000_000;

/// A network with two ports without hosts, which know each other's MACs.
fn two_ports() -> (Lab, NetworkId, [PortId; 2]) {
    let mut lab = Lab::default().without_capture();
    let network = lab.plain_network();
    let ports = [1, 2].map(|n| lab.port(network, &format!("p{n}")));
    for (n, port) in (1..).zip(ports) {
        lab.put(port, experiment(BROADCAST, plain_mac(network, n).0, b"here"));
    }
    lab.settle();
    for port in ports {
        lab.take_all(port);
    }
    (lab, network, ports)
}

fn frame(network: NetworkId, len: usize) -> Vec<u8> {
    let mut frame = experiment(plain_mac(network, 2).0, plain_mac(network, 1).0, &vec![7; len - 14]);
    frame.truncate(len);
    frame
}

fn limits(rate_in: Option<Rate>, rate_out: Option<Rate>, storm: Option<Rate>) -> Option<Arc<Limits>> {
    let bucket = |rate: Option<Rate>| rate.map(|rate| Arc::new(Bucket::new(rate, None)));
    Some(Arc::new(Limits { rate_in: bucket(rate_in), rate_out: bucket(rate_out), storm: bucket(storm) }))
}

/// Sends frames every `gap` for `seconds`, with what passes at once and what waits for the first second left out. Gives what came
/// out per second: bytes and frames.
fn passes(lab: &mut Lab, ports: [PortId; 2], frame: &MemoryFrame, gap: Duration, seconds: u32) -> (f64, f64) {
    let [from, to] = ports;
    let (mut bytes, mut frames) = (0, 0);
    let start = lab.now;
    while lab.now < start + s(u64::from(seconds) + 1) {
        lab.put(from, frame.clone());
        lab.advance(gap);
        let out = lab.take_all(to);
        if lab.now >= start + s(1) {
            bytes += out.iter().map(|f| f.bytes.len()).sum::<usize>();
            frames += out.len();
        }
    }
    let since = lab.now.since(start + s(1)).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "some millions")]
    let per_second = |n: usize| n as f64 / since;
    (per_second(bytes), per_second(frames))
}

fn near(value: f64, wanted: f64) {
    assert!((value / wanted - 1.0).abs() < 0.01, "{value} per second, {wanted} wanted");
}

#[test]
fn frames_pass_at_the_rate_that_was_set_in_both_directions() {
    for (rate_in, rate_out) in
        [(Some(20 * MBIT), None), (None, Some(20 * MBIT)), (Some(30 * MBIT), Some(20 * MBIT))]
    {
        let (mut lab, network, ports) = two_ports();
        let rate = |r: Option<u64>| r.map(Rate::Bits);
        lab.change_port(ports[0], |port| port.limits = limits(rate(rate_in), None, None));
        lab.change_port(ports[1], |port| port.limits = limits(None, rate(rate_out), None));
        // Twice as much as may pass.
        let (bytes, _) = passes(&mut lab, ports, &frame(network, 1000).into(), Duration::from_micros(200), 3);
        near(bytes * 8.0, 20.0e6);
        let counts = lab.counts();
        assert!(lab.drops(DropReason::RateLimited) > 5000, "the rest is dropped");
        assert!(counts.waiting <= 700, "{} frames wait", counts.waiting);
        // What waits goes on by itself, and all of it is accounted for.
        lab.advance(s(1));
        assert_eq!(lab.counts().waiting, 0);
        assert!(!lab.take_all(ports[1]).is_empty());
    }
}

#[test]
fn frames_are_limited_as_frames() {
    let (mut lab, network, ports) = two_ports();
    lab.change_port(ports[0], |port| port.limits = limits(Some(Rate::Frames(1000)), None, None));
    let (_, frames) = passes(&mut lab, ports, &frame(network, 60).into(), Duration::from_micros(300), 2);
    near(frames, 1000.0);
}

#[test]
fn super_frames_pass_at_the_rate_of_their_segments() {
    let (mut lab, network, ports) = two_ports();
    lab.change_port(ports[0], |port| port.limits = limits(Some(Rate::Bits(100 * MBIT)), None, None));
    let mut bytes = frame(network, 14 + 20 + 32 + 62_264);
    bytes[12..14].copy_from_slice(&[8, 0]);
    bytes[14] = 0x45;
    bytes[16..18].copy_from_slice(&62_316_u16.to_be_bytes());
    bytes[34 + 12] = 8 << 4;
    let offload =
        Offload { flags: 1, gso_type: 1, hdr_len: 66, gso_size: 1448, csum_start: 34, csum_offset: 16 };
    let (_, frames) = passes(&mut lab, ports, &MemoryFrame { bytes, offload }, ms(1), 3);
    // 43 segments of 1514 bytes each.
    near(frames * 43.0 * 1514.0 * 8.0, 100.0e6);
}

#[test]
fn tcp_reaches_the_rate() {
    for (limit_in, limit_out) in [(true, false), (false, true)] {
        let mut lab = Lab::default().without_capture();
        let network = lab.plain_network();
        let (a, b) = (lab.plain_host(network, 10), lab.plain_host(network, 20));
        let rate = |on: bool| on.then_some(Rate::Bits(10 * MBIT));
        lab.change_port(a, |port| port.limits = limits(rate(limit_in), None, None));
        lab.change_port(b, |port| port.limits = limits(None, rate(limit_out), None));
        let (server, client) = (lab.at(b).tcp(), lab.at(a).tcp());
        lab.at(b).listen(server, 80);
        lab.at(a).connect(client, "10.0.0.20".parse().expect("an address"), 80);
        let (mut received, mut measured, mut since) = (0_u64, 0_u64, Time::ZERO);
        let start = lab.now;
        while lab.now < start + s(6) {
            let socket = lab.at(a).tcp_socket(client);
            while socket.can_send() && socket.send_slice(&[9; 4096]).is_ok_and(|n| n > 0) {}
            lab.advance(ms(1));
            let socket = lab.at(b).tcp_socket(server);
            while let Ok(n) = socket.recv(|data| (data.len(), data.len())) {
                received += n as u64;
                if n == 0 {
                    break;
                }
            }
            if since == Time::ZERO && lab.now >= start + s(1) {
                (measured, since) = (received, lab.now);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
        let payload = (received - measured) as f64 * 8.0 / lab.now.since(since).as_secs_f64();
        // Headers are of the rate, too: 54 bytes with each segment of at most 1460.
        assert!(payload > 0.95 * 10.0e6 && payload < 10.0e6, "{payload} bit/s of payload");
    }
}

#[test]
fn a_storm_ends_at_its_limit_and_everything_else_passes() {
    let (mut lab, network, ports) = two_ports();
    lab.change_port(ports[0], |port| port.limits = limits(None, None, Some(Rate::Frames(1000))));
    let own = plain_mac(network, 1).0;
    let unknown = [2, 9, 9, 9, 9, 9];
    let storm: Vec<Vec<u8>> =
        [BROADCAST, [1, 0, 0x5e, 0, 0, 1], unknown].iter().map(|to| experiment(*to, own, b"storm")).collect();
    let start = lab.now;
    let (mut stormed, mut talked) = (0, 0);
    while lab.now < start + s(2) {
        for one in &storm {
            lab.put(ports[0], one.clone());
        }
        lab.put(ports[0], frame(network, 100));
        lab.advance(ms(1));
        for out in lab.take_all(ports[1]) {
            if out.bytes.len() == 100 { talked += 1 } else { stormed += 1 }
        }
    }
    // Three a millisecond, of which one may pass, and a burst of fifty.
    assert!((2040..=2060).contains(&stormed), "{stormed} of the storm in two seconds");
    assert_eq!(talked, 2000, "what is for one receiver is no storm");
    assert_eq!(lab.drops(DropReason::Storm), 6000 - stormed);
}

#[test]
fn a_limit_that_changes_holds_at_once_and_loses_nothing_that_waits() {
    let (mut lab, network, ports) = two_ports();
    lab.change_port(ports[1], |port| port.limits = limits(None, Some(Rate::Bits(MBIT)), None));
    for _ in 0..300 {
        lab.put(ports[0], frame(network, 1000));
    }
    lab.settle();
    let first = lab.take_all(ports[1]).len();
    assert!((130..=134).contains(&first), "a burst of 128 KiB: {first} frames");
    let waiting = lab.counts().waiting;
    assert_eq!(waiting, 300 - first as u64 - lab.drops(DropReason::RateLimited));
    lab.change_port(ports[1], |port| port.limits = None);
    lab.put(ports[0], frame(network, 500));
    lab.settle();
    assert_eq!(lab.take_all(ports[1]).len(), 1, "without a limit it goes at once");
    lab.advance(s(5));
    assert_eq!(lab.take_all(ports[1]).len() as u64, waiting);
}

#[test]
fn a_flood_is_kept_for_each_limited_port_and_counted_once() {
    let (mut lab, network, ports) = two_ports();
    let third = lab.port(network, "p3");
    lab.change_port(third, |port| port.limits = limits(None, Some(Rate::Frames(100)), None));
    let before = lab.counts();
    let broadcast = experiment(BROADCAST, plain_mac(network, 1).0, b"all");
    for _ in 0..60 {
        lab.put(ports[0], broadcast.clone());
    }
    lab.settle();
    // A burst of 32, and the one whose moment is now.
    assert_eq!((lab.take_all(ports[1]).len(), lab.take_all(third).len()), (60, 33));
    let after = lab.counts();
    assert_eq!((after.forwarded - before.forwarded, after.waiting), (60, 0));
    lab.advance(s(1));
    assert_eq!(lab.take_all(third).len(), 27);
    assert_eq!(lab.counts().forwarded, after.forwarded);
    // With nobody else it waits as the frame itself.
    lab.put(ports[1], experiment(BROADCAST, plain_mac(network, 2).0, b"all"));
    lab.settle();
}
