//! Names by TCP: what does not fit into a datagram, many questions on a connection, and what nobody may take from others.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use tests::names::{answer, attach, dig, dig_at, framed, query};
use tests::netns::Namespace;
use tests::process::{s, wait_until};
use tests::raw::{Raw, mac, syn4};
use tests::site::{Container, GATEWAY, Site};

/// The next answer of a stream.
fn read(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes).map(|()| bytes)
}

#[track_caller]
fn connect(from: &Container) -> TcpStream {
    let stream = from.ns.tcp_connect(&format!("{GATEWAY}:53"), s(5)).expect("a connection");
    stream.set_read_timeout(Some(s(20))).expect("timeout");
    stream
}

/// In networks with host access and without, for veth and TAP, by both families.
#[test]
fn what_was_cut_is_asked_for_again_by_tcp() {
    let site = Site::new();
    site.ctl(&["network", "add", "open", "--subnet", "10.7.0.0/16", "--subnet", "fd00:7::/64"]);
    site.ctl(&[
        "network",
        "add",
        "dark",
        "--subnet",
        "10.8.0.0/16",
        "--subnet",
        "fd00:8::/64",
        "--no-host-access",
    ]);
    let hosts_own = site.host.tcp_listen("0.0.0.0:53");
    hosts_own.set_nonblocking(true).expect("nonblocking");
    for (network, four, six) in [("open", "10.7.0.1", "fd00:7::1"), ("dark", "10.8.0.1", "fd00:8::1")] {
        // 20 addresses of 28 bytes do not fit into 512.
        let all: Vec<Namespace> = (0..20)
            .map(|n| {
                let ns = Namespace::new();
                let name = format!("{network}{n}");
                let words = ["attach", ns.name(), "--name", &name, "--network", network, "--alias", "all"];
                site.ctl(&[&words[..], if n == 0 { &["--tap"] } else { &[] }].concat());
                ns
            })
            .collect();
        for (ns, gateway) in all[..2].iter().flat_map(|ns| [(ns, four), (ns, six)]) {
            let short = dig_at(ns, gateway, &["+tcp", "+short", &format!("{network}3")]);
            assert!(short.starts_with("10."), "{network} {gateway}: {short}");
            let cut = dig_at(ns, gateway, &["all", "AAAA", "+ignore", "+noedns"]);
            assert!(cut.contains(" tc ") && cut.contains("ANSWER: 0"), "{cut}");
            let whole = dig_at(ns, gateway, &["all", "AAAA", "+noedns"]);
            assert!(whole.contains("Truncated, retrying in TCP mode"), "{whole}");
            assert!(whole.contains("ANSWER: 20") && whole.contains("(TCP)"), "{whole}");
            assert!(dig_at(ns, gateway, &["+tcp", "nobody"]).contains("status: NXDOMAIN"));
        }
    }
    assert_eq!(hosts_own.accept().expect_err("the host was asked").kind(), ErrorKind::WouldBlock);
}

/// One write is a super-frame of several segments here; nobody waits for the question that others are to answer.
#[test]
fn many_questions_on_a_connection_are_answered_as_answers_come() {
    let site = Site::new();
    let web = attach(&site, "web", "172.18.0.10", &[]);
    let mut stream = connect(&web);
    let mut sent = framed(&query(0, "for.others.example", 1));
    (1..=140).for_each(|id| sent.extend(framed(&query(id, "web.default.swd.internal", 1))));
    assert!(sent.len() > 3 * 1500);
    stream.write_all(&sent).expect("sent");
    let first = read(&mut stream).expect("an answer");
    assert_eq!(answer(&first), (1, 0, 1), "the first question waits for others");
    let mut ids: Vec<u16> = (0..140).map(|_| answer(&read(&mut stream).expect("an answer")).0).collect();
    ids.push(1);
    ids.sort_unstable();
    assert_eq!(ids, (0..=140).collect::<Vec<_>>());
    // A client that has said everything still gets its answers, and then the end.
    let half = query(7, "web", 1);
    stream.write_all(&framed(&half)[..9]).expect("sent");
    stream.write_all(&framed(&half)[9..]).expect("sent");
    stream.shutdown(std::net::Shutdown::Write).expect("shut down");
    assert_eq!(answer(&read(&mut stream).expect("an answer")), (7, 0, 1));
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
    // One that is longer than any question is the end of its connection only.
    let mut rude = connect(&web);
    rude.write_all(&[0xff; 100]).expect("sent");
    assert!(matches!(rude.read(&mut [0]), Err(e) if e.kind() == ErrorKind::ConnectionReset));
    assert!(dig(&web.ns, &["+tcp", "web"]).contains("172.18.0.10"));
}

/// Neither idle connections nor half-open ones take anything from others, or from names by UDP; and they end by themselves.
#[test]
fn floods_are_bounded() {
    let site = Site::new();
    let (web, db) = (attach(&site, "web", "172.18.0.10", &[]), attach(&site, "db", "172.18.0.11", &[]));
    let mut idle: Vec<_> = (0..16).map(|_| connect(&web)).collect();
    let refused = web.ns.tcp_connect(&format!("{GATEWAY}:53"), s(5)).expect_err("a seventeenth");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let open = || metric(&site, "swd_dns_connections ");
    assert_eq!(open(), 16);
    for ns in [&web.ns, &db.ns] {
        assert!(dig(ns, &["web"]).contains("172.18.0.10"));
    }
    assert!(dig(&db.ns, &["+tcp", "web"]).contains("172.18.0.10"));
    idle.iter_mut().for_each(|stream| assert_eq!(stream.read(&mut [0]).expect("the end"), 0));
    drop(idle);
    wait_until("idle connections are gone", s(15), || open() == 0);

    // The container's own stack must not end what it knows nothing of.
    let rules =
        "add table t; add chain t o { type filter hook output priority 0; }; add rule t o tcp flags rst drop";
    web.ns.run(&["nft", rules]).ok();
    let macs = (mac(&site.host.mac("sw0")), mac(&web.mac()));
    let syns: Vec<_> =
        (0..2000).map(|n| syn4(macs, ([172, 18, 0, 10], 20_000 + n), ([172, 18, 0, 1], 53))).collect();
    let mut raw = Raw::open(&web.ns, "eth0");
    // A port has a quarter of the ring at most: the rest of a longer burst would be lost before swd sees it.
    for (sent, part) in (250..).step_by(250).zip(syns.chunks(250)) {
        raw.send_all(part.iter().map(Vec::as_slice));
        // Sixteen are half-open; one was refused above.
        wait_until("they are there", s(5), || {
            metric(&site, "swd_dns_connections_refused_total ") >= sent - 15
        });
    }
    assert_eq!(open(), 16);
    for ns in [&web.ns, &db.ns] {
        assert!(dig(ns, &["web"]).contains("172.18.0.10"));
    }
    assert!(dig(&db.ns, &["+tcp", "web"]).contains("172.18.0.10"));
    wait_until("half-open connections are gone", s(15), || open() == 0);
    assert!(dig(&web.ns, &["+tcp", "web"]).contains("172.18.0.10"));
}

/// A number of `/metrics`.
#[track_caller]
fn metric(site: &Site, name: &str) -> u64 {
    let socket = site.socket().display().to_string();
    let text = site.host.run(&["curl", "-sS", "--unix-socket", &socket, "http://swd/metrics"]).ok().stdout;
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}: {text}"));
    line.trim().parse().expect("a number")
}

/// What became of questions is counted.
#[test]
fn questions_are_counted() {
    let site = Site::new();
    let web = attach(&site, "web", "172.18.0.10", &[]);
    dig(&web.ns, &["web"]);
    dig(&web.ns, &["+tcp", "nobody"]);
    dig(&web.ns, &["example.org"]);
    dig(&web.ns, &["example.org", "AXFR"]);
    wait_until("they are counted", s(5), || {
        let names = site.json(&["status"])["names"].clone();
        ["answered", "failed", "refused"].map(|what| names[what].as_u64()) == [Some(2), Some(1), Some(1)]
    });
    assert_eq!(metric(&site, "swd_dns_questions_total{outcome=\"answered\"} "), 2);
    assert_eq!(metric(&site, "swd_dns_connections_opened_total "), 2);
}
