//! Layer 2: who sees which frame, and what is remembered of it.

use tests::for_each_port_kind;
use tests::process::{ms, s, wait_until};
use tests::raw::{BROADCAST, Raw, experiment, mac};
use tests::site::{Container, Site, Way, heavy, quiet};
use tests::stream::tcp_is_identical;

/// A MAC address that no interface has.
const NOBODY: [u8; 6] = [2, 0, 0, 0, 0xbe, 0xef];

struct Three {
    site: Site,
    c: [Container; 3],
    raw: [Raw; 3],
}

fn three(way: Way) -> Three {
    three_on(Site::new(), way)
}

fn three_on(site: Site, way: Way) -> Three {
    let c = ["c1", "c2", "c3"].map(|n| site.container(n, way, &format!("172.18.0.{}0", &n[1..])));
    site.unguard(&["c1", "c2", "c3"]);
    // Everybody is known to the switch.
    c[0].ping(&c[1]);
    c[2].ping(&c[1]);
    let raw = c.each_ref().map(|c| Raw::open(&c.ns, "eth0"));
    Three { site, c, raw }
}

impl Three {
    fn macs(&self) -> [[u8; 6]; 3] {
        self.c.each_ref().map(|c| mac(&c.mac()))
    }

    /// Sends a frame from the container of this index; tells which containers it came to.
    fn reaches(&mut self, from: usize, frame: &[u8]) -> Vec<usize> {
        for raw in &self.raw {
            raw.clear();
        }
        // A broadcast behind it marks the end: frames keep their order.
        let end = experiment(BROADCAST, [2, 0, 0, 0, 0xee, u8::try_from(from).expect("small")], b"the end");
        self.raw[from].send_all([frame, &end]);
        let others: Vec<_> = (0..3).filter(|n| *n != from).collect();
        for other in &others {
            self.raw[*other].expect("the broadcast", |f| f.bytes == end);
        }
        (0..3).filter(|n| self.raw[*n].frames().iter().any(|f| f.bytes == frame)).collect()
    }
}

for_each_port_kind! {
    fn learned_unicast_is_seen_by_no_third_port(way) {
        let _alone = heavy();
        let t = three(way);
        let log = t.site.file("tcpdump.log");
        let tcpdump = t.c[2].ns.start(&["tcpdump", "-lnei", "eth0", "host", "172.18.0.10", "and", "not", "arp"], &log);
        wait_until("tcpdump listens", s(10), || tcpdump.log().contains("listening on"));
        let listener = t.c[1].ns.tcp_listen("0.0.0.0:7000");
        let connection = t.c[0].ns.tcp_connect("172.18.0.20:7000", s(5)).expect("connect");
        tcp_is_identical(connection, &listener, 20_000_000);
        t.c[0].ns.run(&["ping", "-c50", "-i0.01", "172.18.0.20"]).ok();
        quiet();
        tcpdump.signal(nix::sys::signal::Signal::SIGINT);
        let seen = tcpdump.finish(s(5));
        assert!(seen.contains("\n0 packets captured") || seen.starts_with("0 packets captured"), "c3 saw:\n{seen}");
        let [m1, m2, _] = t.macs();
        let leaked = t.raw[2].frames().into_iter().find(|f| f.bytes[..6] == m1 || f.bytes[..6] == m2);
        assert_eq!(leaked, None, "c3 saw a frame to c1 or c2");
    }

    fn broadcast_multicast_and_unknown_unicast_flood(way) {
        let mut t = three(way);
        let [m1, ..] = t.macs();
        for destination in [BROADCAST, [0x01, 0, 0x5e, 0, 0, 0xfb], [0x33, 0x33, 0, 0, 0, 1], NOBODY] {
            let frame = experiment(destination, m1, b"to all");
            assert_eq!(t.reaches(0, &frame), [1, 2], "destination {destination:02x?}");
        }
    }

    fn a_known_destination_gets_it_alone(way) {
        let mut t = three(way);
        let [m1, m2, m3] = t.macs();
        assert_eq!(t.reaches(0, &experiment(m2, m1, b"to c2")), [1]);
        assert_eq!(t.reaches(0, &experiment(m3, m1, b"to c3")), [2]);
        assert_eq!(t.reaches(1, &experiment(m1, m2, b"to c1")), [0]);
    }

    fn what_ends_at_a_bridge_is_dropped_and_counted(way) {
        let mut t = three(way);
        let [m1, ..] = t.macs();
        let before = t.site.drops("link-local");
        for last in 0..=15 {
            let frame = experiment([0x01, 0x80, 0xc2, 0, 0, last], m1, b"link-local");
            assert_eq!(t.reaches(0, &frame), [0_usize; 0], "01:80:c2:00:00:{last:02x}");
        }
        let more = t.site.drops("link-local") - before;
        assert!(more >= 16, "counted {more} of 16");
        // The next address is ordinary multicast.
        let frame = experiment([0x01, 0x80, 0xc2, 0, 0, 0x10], m1, b"not link-local");
        assert_eq!(t.reaches(0, &frame), [1, 2]);
    }

    fn impossible_sources_are_dropped_and_counted(way) {
        let mut t = three(way);
        let [_, m2, _] = t.macs();
        for source in [[0x01, 0, 0x5e, 1, 2, 3], [0xff; 6], [0; 6]] {
            let before = t.site.drops("bad-source");
            assert_eq!(t.reaches(0, &experiment(m2, source, b"bad source")), [0_usize; 0], "source {source:02x?}");
            assert_eq!(t.site.drops("bad-source") - before, 1, "source {source:02x?}");
            assert_eq!(t.site.fdb_port(&switch::mac::Mac(source).to_string()), None);
        }
    }

    fn static_entries_hold(way) {
        let mut t = three(way);
        let [m1, m2, _] = t.macs();
        let fixed = "02:00:00:00:0f:01";
        t.site.ctl(&["fdb", "add", fixed, "c3"]);
        let entry = t.site.row(&["fdb", "ls"], "mac", fixed).expect("the entry");
        assert_eq!((&entry["port"], &entry["kind"], &entry["network"]), (&"c3".into(), &"static".into(), &"default".into()));
        assert_eq!(t.reaches(0, &experiment(mac(fixed), m1, b"to a static entry")), [2]);

        // Nobody else can take it over.
        let before = t.site.drops("static-elsewhere");
        assert_eq!(t.reaches(1, &experiment(m1, mac(fixed), b"takeover")), [0_usize; 0]);
        assert_eq!(t.site.drops("static-elsewhere") - before, 1);
        assert_eq!(t.site.fdb_port(fixed).as_deref(), Some("c3"));

        // Flushing forgets what was learned, and only that.
        // A container may say something of its own right after it (IPv6 does), and be known again.
        wait_until("c2 is unknown again", s(10), || {
            t.site.ctl(&["fdb", "flush"]);
            assert_eq!(t.site.fdb_port(fixed).as_deref(), Some("c3"));
            t.reaches(0, &experiment(m2, m1, b"unknown again")) == [1, 2]
        });

        t.site.ctl(&["fdb", "rm", fixed]);
        assert_eq!(t.site.fdb_port(fixed), None);
        assert_eq!(t.reaches(0, &experiment(mac(fixed), m1, b"nobody's now")), [1, 2]);
    }

    fn a_mac_that_moves_is_followed(way) {
        let mut t = three(way);
        let [m1, m2, m3] = t.macs();
        let guest = [2, 0, 0, 0, 0x90, 1];
        let text = switch::mac::Mac(guest).to_string();
        t.reaches(0, &experiment(m3, guest, b"here I am"));
        assert_eq!(t.site.fdb_port(&text).as_deref(), Some("c1"));
        assert_eq!(t.reaches(2, &experiment(guest, m3, b"to c1")), [0]);
        t.reaches(1, &experiment(m3, guest, b"moved"));
        assert_eq!(t.site.fdb_port(&text).as_deref(), Some("c2"));
        assert_eq!(t.reaches(2, &experiment(guest, m3, b"to c2")), [1]);
        assert_eq!(t.reaches(0, &experiment(m2, m1, b"others stay")), [1]);
    }

    fn the_gateways_mac_cannot_be_taken_over(way) {
        let mut t = three(way);
        let [m1, m2, _] = t.macs();
        let gateway = t.site.row(&["network", "ls"], "name", "default").expect("default")["gateway_mac"].clone();
        let gateway = mac(gateway.as_str().expect("a MAC"));
        let before = t.site.drops("gateway-spoofed");
        assert_eq!(t.reaches(1, &experiment(m1, gateway, b"I am the gateway")), [0_usize; 0]);
        assert_eq!(t.site.drops("gateway-spoofed") - before, 1);
        let spoofed = tests::raw::arp_request(gateway, [172, 18, 0, 20], [172, 18, 0, 10]);
        t.reaches(1, &spoofed);
        t.c[0].ns.ping(tests::site::GATEWAY);
        assert_eq!(t.reaches(0, &experiment(m2, m1, b"others stay")), [1]);
    }

    fn a_flood_of_a_million_macs_hurts_nobody(way) {
        let _alone = heavy();
        let mut t = three(way);
        let [m1, m2, _] = t.macs();
        let before = t.site.rss();
        let frame = experiment(m1, [0; 6], b"flood");
        t.raw[2].send_from_many(1_000_000, 0x77, &frame);
        wait_until("swd has worked through it", s(30), || {
            let count = |t: &Three| t.site.port("c3")["rx_packets"].as_u64();
            let then = count(&t);
            quiet();
            then == count(&t)
        });
        let status = t.site.json(&["status"]);
        let entries = status["fdb_entries"].as_u64().expect("fdb_entries");
        assert!(entries > 10_000, "the flood was not learned at all: {entries} entries");
        assert!(entries <= 131_072, "{entries} entries");
        let grown = t.site.rss().saturating_sub(before);
        assert!(grown < 32 << 20, "RSS grew by {grown} bytes");
        for c in &t.c[..2] {
            assert_eq!(t.site.fdb_port(&c.mac()).as_deref(), Some(c.port.as_str()), "unlearned");
        }
        assert_eq!(t.reaches(0, &experiment(m2, m1, b"still known")), [1]);
        t.c[0].ping(&t.c[1]);
    }

    fn networks_do_not_reach_each_other(way) {
        let site = Site::new();
        // A host that forwards must not become a way around.
        site.host.run(&["sysctl", "-w", "net.ipv4.ip_forward=1"]).ok();
        site.ctl(&["network", "add", "other", "--subnet", "172.19.0.0/16"]);
        let a = site.container("a1", way, "172.18.0.10");
        let b = site.container_in("other", "b1", way, "172.19.0.10");
        let b2 = site.container_in("other", "b2", way, "172.19.0.20");
        b.ping(&b2);
        a.ns.ping("172.18.0.1");
        b.ns.ping("172.19.0.1");
        assert!(!a.ns.pings("172.19.0.10"), "a container reaches another network");
        assert!(!b.ns.pings("172.18.0.10"), "a container reaches another network");

        let mut raw = Raw::open(&a.ns, "eth0");
        let watch = Raw::open(&b.ns, "eth0");
        let (ma, mb) = (mac(&a.mac()), mac(&b.mac()));
        for destination in [BROADCAST, NOBODY, mb, [0x33, 0x33, 0, 0, 0, 1]] {
            raw.send_all([experiment(destination, ma, b"across?").as_slice()]);
        }
        quiet();
        assert!(!watch.frames().iter().any(|f| f.contains(b"across?")), "a frame crossed");
        // The same MAC may live in both networks.
        raw.send_all([experiment(BROADCAST, mb, b"same MAC").as_slice()]);
        b2.ping(&b);
    }

    fn isolated_ports_reach_the_gateway_only(way) {
        let site = Site::new();
        site.ctl(&["network", "add", "cells", "--subnet", "172.19.0.0/16", "--isolate-ports"]);
        let a = site.container_in("cells", "a1", way, "172.19.0.10");
        let b = site.container_in("cells", "b1", way, "172.19.0.20");
        a.ns.ping("172.19.0.1");
        b.ns.ping("172.19.0.1");
        site.host.ping("172.19.0.10");
        assert!(!a.ns.pings("172.19.0.20"), "isolated ports reach each other");

        let mut raw = Raw::open(&a.ns, "eth0");
        let watch = Raw::open(&b.ns, "eth0");
        let (ma, mb) = (mac(&a.mac()), mac(&b.mac()));
        let before = site.drops("isolated");
        for destination in [BROADCAST, NOBODY, mb] {
            raw.send_all([experiment(destination, ma, b"across?").as_slice()]);
        }
        quiet();
        assert!(!watch.frames().iter().any(|f| f.contains(b"across?")), "a frame crossed");
        assert!(site.drops("isolated") > before, "not counted");
    }
}

#[test]
fn entries_age() {
    let t = three_on(Site::with_config("[fdb]\naging_s = 2\n"), Way::Attach);
    let mut t = t;
    let guest = [2, 0, 0, 0, 0x90, 1];
    let text = switch::mac::Mac(guest).to_string();
    let [m1, ..] = t.macs();
    t.site.ctl(&["fdb", "add", "02:00:00:00:0f:01", "c3"]);
    t.reaches(1, &experiment(m1, guest, b"here I am"));
    assert_eq!(t.site.fdb_port(&text).as_deref(), Some("c2"));
    wait_until("the entry ages out", s(10), || t.site.fdb_port(&text).is_none());
    assert_eq!(t.site.fdb_port("02:00:00:00:0f:01").as_deref(), Some("c3"), "static entries do not age");
    assert_eq!(t.reaches(0, &experiment(guest, m1, b"unknown again")), [1, 2]);
}

#[test]
fn a_loop_is_damped() {
    let mut t = three(Way::Attach);
    let guest = [2, 0, 0, 0, 0x90, 1];
    let [.., m3] = t.macs();
    let before = t.site.drops("mac-damped");
    let end = std::time::Instant::now() + s(10);
    while t.site.drops("mac-damped") == before {
        assert!(std::time::Instant::now() < end, "a MAC that moves on every frame is not damped");
        for _ in 0..20 {
            for from in [0, 1] {
                t.raw[from].send_all([experiment(m3, guest, b"loop").as_slice()]);
            }
        }
    }
    // Others are not touched by it.
    t.c[0].ping(&t.c[1]);
    std::thread::sleep(ms(10));
}
