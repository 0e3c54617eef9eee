//! The instruments themselves, on a bare cable (a veth pair): what they would miss here, they would miss behind swd.

use std::io::Read;

use tests::netns::{Namespace, veth};
use tests::outside::Outside;
use tests::process::{python, run, s};
use tests::raw::{BROADCAST, Raw, arp_request, experiment, is_arp_reply, mac, udp6};
use tests::stream::{tcp_is_identical, udp_is_identical};

fn cable() -> (Namespace, Namespace) {
    let (a, b) = (Namespace::new(), Namespace::new());
    veth(("eth0", &a), ("eth0", &b));
    a.ip(&["addr", "add", "10.0.0.1/24", "dev", "eth0"]);
    b.ip(&["addr", "add", "10.0.0.2/24", "dev", "eth0"]);
    (a, b)
}

#[test]
fn raw_sees_frames_tags_and_answers() {
    let (a, b) = cable();
    let mut from = Raw::open(&a, "eth0");
    let to = Raw::open(&b, "eth0");
    let source = mac(&a.mac("eth0"));
    let plain = experiment(BROADCAST, source, b"plain");
    let tagged = [&BROADCAST[..], &source, &[0x81, 0, 0, 5, 0x88, 0xb5], &[7; 60]].concat();
    from.send_all([plain.as_slice(), &tagged]);
    to.expect("the plain frame", |f| f.bytes == plain);
    to.expect("the tagged frame", |f| f.bytes == tagged);
    from.send(&arp_request(source, [10, 0, 0, 1], [10, 0, 0, 2]));
    from.expect("the other end's ARP reply", |f| is_arp_reply(f, [10, 0, 0, 2]));
    from.send_from_many(1000, 9, &experiment(BROADCAST, [0; 6], b"many"));
    to.expect("the last of many", |f| f.bytes[6..12] == [2, 9, 0, 0, 3, 231]);
}

#[test]
fn streams_cross_a_cable() {
    let (a, b) = cable();
    let listener = b.tcp_listen("0.0.0.0:7000");
    tcp_is_identical(a.tcp_connect("10.0.0.2:7000", s(5)).expect("connect"), &listener, 20_000_003);
    let receiver = b.udp("0.0.0.0:7000");
    let sender = a.udp("0.0.0.0:0");
    sender.connect("10.0.0.2:7000").expect("connect");
    assert_eq!(udp_is_identical(&sender, &receiver, 10_000, 1472).again, 0);
}

#[test]
fn super_frames_are_seen_on_a_cable() {
    let (a, b) = cable();
    let watch = Raw::open_for_lengths(&b, "eth0", 60_001);
    let listener = b.tcp_listen("0.0.0.0:7000");
    tcp_is_identical(a.tcp_connect("10.0.0.2:7000", s(5)).expect("connect"), &listener, 100_000_000);
    watch.expect("a TCP super-frame of more than 60,000 bytes", |f| f.length > 60_000);
}

#[test]
#[should_panic(expected = "not what was sent")]
fn a_wrong_byte_is_noticed() {
    let (a, b) = cable();
    // A relay that changes one byte far into the stream.
    let relay = b.tcp_listen("0.0.0.0:7000");
    let listener = b.tcp_listen("0.0.0.0:7001");
    let to = b.tcp_connect("10.0.0.2:7001", s(5)).expect("connect");
    let from = a.tcp_connect("10.0.0.2:7000", s(5)).expect("connect");
    std::thread::spawn(move || {
        let (mut incoming, _) = relay.accept().expect("accept");
        let mut bytes = Vec::new();
        drop(incoming.read_to_end(&mut bytes));
        bytes[3_000_001] ^= 1;
        drop(std::io::Write::write_all(&mut { to }, &bytes));
    });
    tcp_is_identical(from, &listener, 5_000_000);
}

#[test]
fn namespaces_go_with_their_handle() {
    let ns = Namespace::new();
    let path = ns.path();
    let panicked = std::thread::spawn(move || {
        assert!(!ns.exists(), "a panic on purpose");
    });
    assert!(panicked.join().is_err());
    assert!(!path.exists(), "{}", path.display());
}

#[test]
#[should_panic(expected = "took longer than")]
fn a_program_that_hangs_is_killed() {
    run(
        std::process::Command::new(python()).args(["-c", "import time; time.sleep(60)"]),
        tests::process::ms(200),
    );
}

/// A host with an outside and no swd, which does what it must not.
fn guilty(deed: impl FnOnce(&Namespace, &Outside)) {
    let host = Namespace::new();
    let outside = Outside::new(&host);
    deed(&host, &outside);
}

#[test]
#[should_panic(expected = "Inside(\"the packet's header\", 172.18.0.10)")]
fn an_inside_address_that_leaves_is_seen() {
    guilty(|host, _| {
        host.ip(&["addr", "add", "172.18.0.10/32", "dev", "lo"]);
        let socket = host.udp("172.18.0.10:4000");
        socket.send_to(b"look who I am", "172.16.0.1:9").expect("send");
    });
}

#[test]
#[should_panic(expected = "Inside(\"the quote of an ICMP error\", fd00:18::10)")]
fn an_inside_address_in_the_quote_of_an_error_is_seen() {
    guilty(|host, outside| {
        let [inner, outer] = [["2001:db8::1", "fd00:18::10"], ["2001:db8::2", "2001:db8::1"]]
            .map(|pair| pair.map(|a: &str| a.parse::<std::net::Ipv6Addr>().expect("an address").octets()));
        let macs = (mac(&outside.mac("eth0")), mac(&host.mac("eth0")));
        let quoted = udp6(macs, (inner[0], 9), (inner[1], 5000), b"asked")[14..].to_vec();
        // Destination unreachable, port.
        let error = etherparse::PacketBuilder::ethernet2(macs.1, macs.0)
            .ipv6(outer[0], outer[1], 63)
            .icmpv6_raw(1, 4, [0; 4]);
        let mut frame = Vec::new();
        error.write(&mut frame, &quoted).expect("a Vec takes everything");
        Raw::open(host, "eth0").send_all([&frame[..]]);
    });
}

#[test]
#[should_panic(expected = "Refused(5000)")]
fn a_reset_of_the_hosts_stack_is_seen() {
    guilty(|_, outside| {
        outside.tcp_connect("[2001:db8::2]:5000", s(3)).expect_err("nobody listens");
    });
}

#[test]
#[should_panic(expected = "Refused(61000)")]
fn a_port_unreachable_of_the_hosts_stack_is_seen() {
    guilty(|_, outside| {
        let socket = outside.udp("172.16.0.1:4000");
        socket.connect("172.16.0.2:61000").expect("connect");
        socket.set_read_timeout(Some(s(3))).expect("timeout");
        socket.send(b"anybody there?").expect("send");
        assert_eq!(socket.recv(&mut [0]).expect_err("refused").kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
#[should_panic(expected = "did not refuse, as was expected: [6000]")]
fn a_refusal_that_was_expected_must_come() {
    guilty(|_, outside| outside.expect_refusals(6000, 1));
}

#[test]
fn an_expected_refusal_and_the_hosts_own_traffic_are_no_fault() {
    guilty(|host, outside| {
        outside.expect_refusals(5000, 1);
        outside.tcp_connect("172.16.0.2:5000", s(3)).expect_err("nobody listens");
        host.ping("172.16.0.1");
        outside.ping("2001:db8::2");
    });
}
