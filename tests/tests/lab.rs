//! The switch in memory and in virtual time: what would take minutes, or luck, with real interfaces.

use std::net::IpAddr;
use std::time::Duration;

use switch::dataplane::DataEvent;
use switch::fdb::{DAMPING, FdbConfig, Kind, MOVES_PER_WINDOW};
use switch::frame::Offload;
use switch::mac::Mac;
use switch::port::memory::MemoryFrame;
use switch::snapshot::{NetworkId, PortId};
use switch::verdict::DropReason;
use tests::lab::{Counts, Lab, NetworkOptions, net, plain_mac};
use tests::process::{ms, s};
use tests::raw::{
    self, BROADCAST, Frame, arp_request, echo4, experiment, is_arp_reply, is_neighbour_advertisement,
};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A network with a host-less port for each name.
fn with_ports<const N: usize>(fdb: FdbConfig) -> (Lab, NetworkId, [PortId; N]) {
    let mut lab = Lab::new(fdb);
    let subnets = vec![net("10.0.0.0/16"), net("fd00:0::/64")];
    let network = lab.network("net0", &NetworkOptions { subnets, isolate_ports: false, host_access: false });
    let ports = std::array::from_fn(|n| lab.port(network, &format!("p{n}")));
    (lab, network, ports)
}

/// Sends a frame in; tells which of the ports it came out of, and checks that it is counted as one frame of its kind.
#[track_caller]
fn reaches<const N: usize>(lab: &mut Lab, ports: &[PortId; N], from: usize, frame: &[u8]) -> Vec<usize> {
    for port in ports {
        lab.take_all(*port);
    }
    let before = lab.counts();
    lab.put(ports[from], frame.to_vec());
    lab.settle();
    let reached: Vec<_> =
        (0..N).filter(|n| lab.take_all(ports[*n]).iter().any(|f| f.bytes == frame)).collect();
    let after = lab.counts();
    let (forwarded, dropped) = if reached.is_empty() { (0, 1) } else { (1, 0) };
    let expected = Counts {
        received: before.received + 1,
        forwarded: before.forwarded + forwarded,
        answered: before.answered,
        dropped: before.dropped + dropped,
        waiting: 0,
    };
    assert_eq!(after, expected, "counted as what it was");
    reached
}

fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}

#[test]
fn hosts_resolve_and_ping_each_other() {
    let mut lab = Lab::default();
    let network = lab.plain_network();
    let (a, b) = (lab.plain_host(network, 10), lab.plain_host(network, 20));
    for (to, from) in [
        ("10.0.0.20", "IPv4"),
        ("fd00:0::14", "IPv6"),
        ("10.0.0.1", "the host"),
        ("fd00:0::1", "the host by IPv6"),
    ] {
        let pinger = lab.at(a).pinger();
        lab.at(a).ping(pinger, ip(to), 1);
        lab.until(from, s(2), |lab| lab.at(a).pong(pinger) == Some(ip(to)));
    }
    let fdb = &lab.shared().fdb;
    assert_eq!(fdb.lookup(network, plain_mac(network, 10), lab.now), Some(a));
    assert_eq!(fdb.lookup(network, plain_mac(network, 20), lab.now), Some(b));
}

#[test]
fn tcp_and_udp_cross_byte_identical() {
    const LENGTH: usize = 3_000_000;
    let mut lab = Lab::default();
    let network = lab.plain_network();
    let (a, b) = (lab.plain_host(network, 10), lab.plain_host(network, 20));
    let (client, server) = (lab.at(a).tcp(), lab.at(b).tcp());
    lab.at(b).listen(server, 80);
    lab.at(a).connect(client, ip("10.0.0.20"), 80);
    let data: Vec<u8> = (0..LENGTH).map(|n| (n % 251).to_le_bytes()[0]).collect();
    let (mut sent, mut got) = (0, Vec::new());
    lab.until("everything arrives", s(60), |lab| {
        let socket = lab.at(a).tcp_socket(client);
        if socket.can_send() && sent < LENGTH {
            sent += socket.send_slice(&data[sent..]).expect("send");
        }
        let mut buffer = [0; 65_536];
        let socket = lab.at(b).tcp_socket(server);
        if socket.can_recv() {
            let n = socket.recv_slice(&mut buffer).expect("receive");
            got.extend_from_slice(&buffer[..n]);
        }
        got.len() == LENGTH
    });
    assert!(got == data, "not what was sent");

    let (from, to) = (lab.at(a).udp(5000), lab.at(b).udp(6000));
    lab.at(a).udp_socket(from).send_slice(b"datagram", (ip("10.0.0.20"), 6000)).expect("send");
    let mut buffer = [0; 100];
    lab.until("the datagram arrives", s(1), |lab| match lab.at(b).udp_socket(to).recv_slice(&mut buffer) {
        Ok((n, from)) => {
            assert_eq!((&buffer[..n], IpAddr::from(from.endpoint.addr)), (&b"datagram"[..], ip("10.0.0.10")));
            true
        }
        Err(_) => false,
    });
}

#[test]
fn a_link_that_is_down_for_a_while_only_delays() {
    let mut lab = Lab::default();
    let network = lab.plain_network();
    let (a, b) = (lab.plain_host(network, 10), lab.plain_host(network, 20));
    let (client, server) = (lab.at(a).tcp(), lab.at(b).tcp());
    lab.at(b).listen(server, 80);
    lab.at(a).connect(client, ip("10.0.0.20"), 80);
    lab.until("connected", s(2), |lab| lab.at(a).tcp_socket(client).may_send());
    lab.set_up(b, false);
    lab.at(a).tcp_socket(client).send_slice(b"late").expect("send");
    lab.advance(s(3));
    assert!(lab.drops(DropReason::PortDown) > 0, "sent to a port that is down");
    lab.set_up(b, true);
    let mut buffer = [0; 10];
    lab.until("it arrives", s(30), |lab| {
        let socket = lab.at(b).tcp_socket(server);
        socket.can_recv() && socket.recv_slice(&mut buffer).expect("receive") == 4
    });
    assert_eq!(&buffer[..4], b"late");
}

#[test]
fn flooding_stays_in_its_network() {
    let mut lab = Lab::default();
    let options =
        |subnet| NetworkOptions { subnets: vec![net(subnet)], isolate_ports: false, host_access: false };
    let one = lab.network("one", &options("10.1.0.0/16"));
    let two = lab.network("two", &options("10.2.0.0/16"));
    let ports =
        [lab.port(one, "a"), lab.port(one, "b"), lab.port(one, "c"), lab.port(two, "d"), lab.port(two, "e")];
    for destination in [BROADCAST, [1, 0, 0x5e, 1, 2, 3], [0x33, 0x33, 0, 0, 0, 1], mac(99)] {
        assert_eq!(reaches(&mut lab, &ports, 0, &experiment(destination, mac(1), b"")), [1, 2]);
        assert_eq!(reaches(&mut lab, &ports, 3, &experiment(destination, mac(2), b"")), [4]);
    }
    // The same address may live in both; neither is reached from the other.
    assert_eq!(reaches(&mut lab, &ports, 4, &experiment(BROADCAST, mac(1), b"")), [3]);
    assert_eq!(reaches(&mut lab, &ports, 1, &experiment(mac(1), mac(3), b"")), [0]);
    assert_eq!(reaches(&mut lab, &ports, 3, &experiment(mac(1), mac(2), b"")), [4]);
    // A port without a link is in no flood set, and gets nothing that is for it alone.
    lab.set_up(ports[2], false);
    assert_eq!(reaches(&mut lab, &ports, 0, &experiment(BROADCAST, mac(1), b"")), [1]);
    // Nobody else is there.
    lab.set_up(ports[1], false);
    assert_eq!(reaches(&mut lab, &ports, 0, &experiment(BROADCAST, mac(1), b"")), [0_usize; 0]);
    assert_eq!(lab.drops(DropReason::NoEgress), 1);
    assert_eq!(reaches(&mut lab, &ports, 0, &experiment(mac(3), mac(1), b"")), [0_usize; 0]);
    assert_eq!(lab.drops(DropReason::PortDown), 1);
}

#[test]
fn entries_age_to_the_second_and_are_refreshed_by_use() {
    let (mut lab, network, ports) = with_ports::<3>(FdbConfig { aging: s(300), ..FdbConfig::default() });
    let start = lab.now;
    reaches(&mut lab, &ports, 1, &experiment(mac(9), mac(2), b""));
    lab.now = start + s(299);
    assert_eq!(reaches(&mut lab, &ports, 0, &experiment(mac(2), mac(1), b"")), [1]);
    lab.now = start + s(300);
    assert_eq!(reaches(&mut lab, &ports, 0, &experiment(mac(2), mac(1), b"")), [1, 2]);
    // Being a destination is no sign of life; being a source is.
    reaches(&mut lab, &ports, 1, &experiment(mac(9), mac(2), b""));
    for n in 1..10 {
        lab.now = start + s(300 + n * 200);
        assert_eq!(reaches(&mut lab, &ports, 1, &experiment(BROADCAST, mac(2), b"")), [0, 2]);
    }
    assert_eq!(reaches(&mut lab, &ports, 0, &experiment(mac(2), mac(1), b"")), [1]);
    lab.shared().fdb.set(network, Mac(mac(7)), ports[2], Kind::Static);
    lab.now = lab.now + s(100_000);
    lab.shared().fdb.sweep(lab.now);
    assert_eq!(lab.shared().fdb.len(), 1, "only the static entry is left");
    assert_eq!(reaches(&mut lab, &ports, 0, &experiment(mac(7), mac(1), b"")), [2]);
}

#[test]
fn a_move_is_followed_and_a_loop_is_damped() {
    let (mut lab, network, ports) = with_ports::<3>(FdbConfig::default());
    let guest = experiment(BROADCAST, mac(7), b"");
    reaches(&mut lab, &ports, 0, &guest);
    lab.events();
    assert_eq!(reaches(&mut lab, &ports, 1, &guest), [0, 2]);
    assert_eq!(lab.shared().fdb.lookup(network, Mac(mac(7)), lab.now), Some(ports[1]));
    assert_eq!(lab.events(), [DataEvent::MacMoved { mac: Mac(mac(7)), from: ports[0], to: ports[1] }]);

    // One move was made; the others of this second are still free.
    for n in 1..usize::from(MOVES_PER_WINDOW) {
        assert_ne!(reaches(&mut lab, &ports, 1 - n % 2, &guest), [0_usize; 0], "move {n}");
        lab.now = lab.now + ms(10);
    }
    let held = lab.shared().fdb.lookup(network, Mac(mac(7)), lab.now).expect("known");
    let (here, there) = if held == ports[0] { (0, 1) } else { (1, 0) };
    lab.events();
    assert_eq!(reaches(&mut lab, &ports, there, &guest), [0_usize; 0], "one move too many");
    assert_eq!(lab.drops(DropReason::MacDamped), 1);
    assert_eq!(lab.events(), [DataEvent::MacDamped { mac: Mac(mac(7)), port: held }]);
    // Where it is held it works; elsewhere it does not; nobody else is touched; and it is told once.
    assert_ne!(reaches(&mut lab, &ports, here, &guest), [0_usize; 0]);
    for _ in 0..100 {
        assert_eq!(reaches(&mut lab, &ports, there, &guest), [0_usize; 0]);
    }
    assert_eq!(reaches(&mut lab, &ports, there, &experiment(BROADCAST, mac(8), b"")).len(), 2);
    assert_eq!(lab.events(), []);
    lab.now = lab.now + DAMPING;
    assert_ne!(reaches(&mut lab, &ports, there, &guest), [0_usize; 0], "the damping ends");
}

#[test]
fn slow_moves_are_never_damped() {
    let (mut lab, _, ports) = with_ports::<2>(FdbConfig::default());
    for n in 0..1000 {
        assert_eq!(reaches(&mut lab, &ports, n % 2, &experiment(BROADCAST, mac(7), b"")), [1 - n % 2]);
        lab.now = lab.now + ms(400);
    }
    assert_eq!(lab.drops(DropReason::MacDamped), 0);
}

#[test]
fn a_flooding_port_takes_nothing_from_others() {
    let config = FdbConfig { max_entries: 1000, max_per_port: 900, ..FdbConfig::default() };
    let (mut lab, network, ports) = with_ports::<4>(config);
    for port in 0..3 {
        for n in 0..50 {
            reaches(
                &mut lab,
                &ports,
                port,
                &experiment(mac(255), [2, 1, 0, 0, u8::try_from(port).expect("small"), n], b""),
            );
        }
    }
    for n in 0..10_000_u32 {
        let [a, b, c, d] = n.to_be_bytes();
        reaches(&mut lab, &ports, 3, &experiment(mac(255), [2, 2, a, b, c, d], b""));
    }
    // A latecomer finds room, too.
    let late = lab.port(network, "late");
    lab.put(late, experiment(mac(255), [2, 3, 0, 0, 0, 1], b""));
    lab.settle();
    let fdb = &lab.shared().fdb;
    assert!(fdb.len() <= 1000, "{} entries", fdb.len());
    assert_eq!(fdb.lookup(network, Mac([2, 3, 0, 0, 0, 1]), lab.now), Some(late));
    for (port, id) in (0..3).zip(ports) {
        for n in 0..50 {
            assert_eq!(
                fdb.lookup(network, Mac([2, 1, 0, 0, port, n]), lab.now),
                Some(id),
                "port {port}, address {n}"
            );
        }
    }
    assert!(lab.events().contains(&DataEvent::FdbFull { port: ports[3] }));
}

#[test]
fn each_reason_counts_its_frame() {
    let (mut lab, network, ports) = with_ports::<3>(FdbConfig::default());
    let gateway = lab.gateway_mac(network).0;
    reaches(&mut lab, &ports, 0, &experiment(BROADCAST, mac(1), b""));
    reaches(&mut lab, &ports, 1, &experiment(BROADCAST, mac(2), b""));
    lab.shared().fdb.set(network, Mac(mac(7)), ports[2], Kind::Static);
    let plain = |bytes: Vec<u8>| MemoryFrame::from(bytes);
    let offload = |flags, gso_type, gso_size, csum_start| MemoryFrame {
        bytes: experiment(mac(2), mac(1), b""),
        offload: Offload { flags, gso_type, gso_size, csum_start, csum_offset: 16, hdr_len: 0 },
    };
    let cases = [
        (DropReason::Malformed, plain(vec![2; 13])),
        (DropReason::Malformed, plain(Vec::new())),
        (DropReason::BadOffload, offload(1, 0, 0, 59)),
        (DropReason::BadOffload, offload(1, 0, 0, 60_000)),
        (DropReason::BadOffload, offload(1, 1, 0, 34)),
        (DropReason::BadOffload, offload(0, 1, 1448, 34)),
        (DropReason::BadOffload, offload(0, 77, 1448, 34)),
        (DropReason::Oversized, plain([&experiment(mac(2), mac(1), b"")[..], &[0; 70_000]].concat())),
        (DropReason::BadSource, plain(experiment(mac(2), BROADCAST, b""))),
        (DropReason::BadSource, plain(experiment(mac(2), [3, 0, 0, 0, 0, 1], b""))),
        (DropReason::BadSource, plain(experiment(mac(2), [0; 6], b""))),
        (DropReason::LinkLocal, plain(experiment([1, 0x80, 0xc2, 0, 0, 0], mac(1), b""))),
        (DropReason::LinkLocal, plain(experiment([1, 0x80, 0xc2, 0, 0, 15], mac(1), b""))),
        (DropReason::GatewaySpoofed, plain(experiment(mac(2), gateway, b""))),
        (DropReason::StaticElsewhere, plain(experiment(mac(2), mac(7), b""))),
        (DropReason::SamePort, plain(experiment(mac(1), mac(1), b""))),
        (DropReason::NoHostAccess, plain(experiment(gateway, mac(1), b""))),
    ];
    for (reason, frame) in cases {
        let (before, counts) = (lab.drops(reason), lab.counts());
        lab.put(ports[0], frame.clone());
        lab.settle();
        assert_eq!(lab.drops(reason) - before, 1, "{reason:?} for {frame:?}");
        assert_eq!(lab.counts().dropped - counts.dropped, 1, "{reason:?} alone");
        for port in ports {
            lab.take_all(port);
        }
    }
}

#[test]
fn offload_headers_and_super_frames_travel_untouched() {
    let (mut lab, _, ports) = with_ports::<3>(FdbConfig::default());
    reaches(&mut lab, &ports, 1, &experiment(BROADCAST, mac(2), b""));
    for (destination, reached) in [(mac(2), vec![1]), (BROADCAST, vec![1, 2])] {
        let payload: Vec<u8> = (0..65_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let frame = MemoryFrame {
            bytes: experiment(destination, mac(1), &payload),
            offload: Offload {
                flags: 1,
                gso_type: 1,
                hdr_len: 66,
                gso_size: 1448,
                csum_start: 34,
                csum_offset: 16,
            },
        };
        lab.put(ports[0], frame.clone());
        lab.settle();
        for n in reached {
            assert_eq!(lab.take_all(ports[n]), std::slice::from_ref(&frame));
        }
    }
}

#[test]
fn the_gateway_without_host_access_answers_three_questions() {
    let (mut lab, network, ports) = with_ports::<2>(FdbConfig::default());
    let gateway = lab.gateway_mac(network);
    let (me, me4, gw4) = (mac(1), [10, 0, 0, 9], [10, 0, 0, 1]);
    let (me6, gw6) = (octets("fd00:0::9"), octets("fd00:0::1"));
    let answer = |lab: &mut Lab, frame: Vec<u8>| -> Option<Frame> {
        let before = lab.counts();
        lab.put(ports[0], frame);
        lab.settle();
        let answers = lab.take_all(ports[0]);
        assert!(answers.len() <= 1);
        assert_eq!(lab.counts().answered - before.answered, answers.len() as u64);
        answers.into_iter().next().map(|f| Frame { length: f.bytes.len(), bytes: f.bytes })
    };
    let arp = answer(&mut lab, arp_request(me, me4, gw4)).expect("an ARP reply");
    assert!(is_arp_reply(&arp, gw4));
    assert_eq!(
        (&arp.bytes[..6], &arp.bytes[6..12], &arp.bytes[22..28]),
        (&me[..], &gateway.0[..], &gateway.0[..])
    );
    let nd = answer(&mut lab, raw::neighbour_solicitation(me, me6, gw6)).expect("a neighbour advertisement");
    assert!(is_neighbour_advertisement(&nd, gw6));
    let pong = answer(&mut lab, echo4((gateway.0, me), me4, gw4, b"are you there?")).expect("an echo reply");
    assert!(pong.contains(b"are you there?") && pong.bytes[34] == 0 && pong.bytes[26..30] == gw4);

    // Asked for anything else, or for anybody else, it is silent.
    let silent = [
        arp_request(me, me4, [10, 0, 0, 77]),
        raw::neighbour_solicitation(me, me6, octets("fd00:0::77")),
        echo4((gateway.0, me), me4, [10, 0, 0, 77], b""),
        echo4((gateway.0, me), me4, [8, 8, 8, 8], b""),
        raw::udp4((gateway.0, me), (me4, 5000), (gw4, 53), b""),
        raw::syn4((gateway.0, me), (me4, 5000), (gw4, 80)),
        experiment(gateway.0, me, b""),
    ];
    for frame in silent {
        assert_eq!(answer(&mut lab, frame.clone()), None, "{frame:02x?}");
    }
}

fn octets(text: &str) -> [u8; 16] {
    text.parse::<std::net::Ipv6Addr>().expect("an address").octets()
}

#[test]
fn a_host_at_the_gateway_is_reached_only_for_its_own_addresses() {
    let mut lab = Lab::default();
    let one = lab.plain_network();
    let two = lab.plain_network();
    let (a, b) = (lab.plain_host(one, 10), lab.plain_host(two, 10));
    let ping = |lab: &mut Lab, to: &str| {
        let pinger = lab.at(a).pinger();
        lab.at(a).ping(pinger, ip(to), 1);
        lab.advance(s(3));
        lab.at(a).pong(pinger).is_some()
    };
    assert!(ping(&mut lab, "10.0.0.1"));
    let before = (lab.drops(DropReason::NotRouted), lab.port_info(b).counters.tx.packets());
    assert!(!ping(&mut lab, "10.1.0.10"), "a host of another network answers");
    assert!(!ping(&mut lab, "192.0.2.1"), "an address that nobody has answers");
    assert_eq!(lab.drops(DropReason::NotRouted) - before.0, 2);
    assert_eq!(lab.port_info(b).counters.tx.packets(), before.1, "something went to the other network");
}

#[test]
fn isolated_ports_reach_the_host_only() {
    let mut lab = Lab::default();
    let subnets = vec![net("10.0.0.0/16"), net("fd00:0::/64")];
    let cells = lab.network("cells", &NetworkOptions { subnets, isolate_ports: true, host_access: true });
    let b = lab.plain_host(cells, 20);
    let watch = lab.port(cells, "watch");
    for (n, to, answers) in
        [(11, "10.0.0.1", true), (12, "10.0.0.20", false), (13, "fd00:0::1", true), (14, "fd00:0::14", false)]
    {
        // Each by a host of its own: smoltcp's looks for one neighbor at a time.
        let a = lab.plain_host(cells, n);
        let pinger = lab.at(a).pinger();
        lab.at(a).ping(pinger, ip(to), 1);
        lab.advance(s(3));
        assert_eq!(lab.at(a).pong(pinger).is_some(), answers, "{to}");
    }
    assert_eq!(lab.port_info(b).counters.tx.packets(), 0, "an isolated port heard another");
    assert_eq!(lab.take(watch), None, "an isolated port heard another");
}

#[test]
fn ports_count_what_passes_them() {
    let (mut lab, _, ports) = with_ports::<2>(FdbConfig::default());
    for _ in 0..10 {
        reaches(&mut lab, &ports, 0, &experiment(BROADCAST, mac(1), b""));
    }
    reaches(&mut lab, &ports, 0, &experiment(BROADCAST, [0; 6], b""));
    let (from, to) = (&lab.port_info(ports[0]).counters, &lab.port_info(ports[1]).counters);
    assert_eq!((from.rx.packets(), from.rx.bytes(), from.rx.dropped()), (11, 660, 1));
    assert_eq!((to.tx.packets(), to.tx.bytes(), to.tx.dropped()), (10, 600, 0));
    assert_eq!((from.tx.packets(), to.rx.packets()), (0, 0));
}

#[test]
fn virtual_time_costs_no_time() {
    let begin = std::time::Instant::now();
    let mut lab = Lab::default();
    let network = lab.plain_network();
    let a = lab.plain_host(network, 10);
    let pinger = lab.at(a).pinger();
    lab.at(a).ping(pinger, ip("10.0.0.99"), 1);
    lab.advance(Duration::from_secs(24 * 3600));
    assert!(begin.elapsed() < s(60));
    assert_eq!(lab.at(a).pong(pinger), None);
}
