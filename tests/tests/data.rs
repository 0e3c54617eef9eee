//! What goes in comes out: byte for byte, with its VLAN tag, and super-frames whole.

use std::net::Ipv6Addr;

use tests::for_each_port_kind;
use tests::netns::Namespace;
use tests::process::s;
use tests::raw::{Raw, mac};
use tests::site::{Container, Site, Way, heavy};
use tests::stream::{tcp_echoes, tcp_is_identical, udp_is_identical};

fn pair(way: Way) -> (Site, Container, Container) {
    pair_on(Site::new(), way)
}

fn pair_on(site: Site, way: Way) -> (Site, Container, Container) {
    let c1 = site.container("c1", way, "172.18.0.10");
    let c2 = site.container("c2", way, "172.18.0.20");
    c1.ping(&c2);
    (site, c1, c2)
}

fn udp_pair(c1: &Container, c2: &Container, count: u64, max: usize) -> u64 {
    let receiver = c2.ns.udp("0.0.0.0:7000");
    let sender = c1.ns.udp("0.0.0.0:0");
    sender.connect("172.18.0.20:7000").expect("connect");
    udp_is_identical(&sender, &receiver, count, max).again
}

for_each_port_kind! {
    fn tcp_300_mb_arrive_identical(way) {
        let _alone = heavy();
        let (_site, c1, c2) = pair(way);
        let listener = c2.ns.tcp_listen("0.0.0.0:7000");
        let connection = c1.ns.tcp_connect("172.18.0.20:7000", s(5)).expect("connect");
        tcp_is_identical(connection, &listener, 300_000_000);
    }

    fn udp_200_000_datagrams_arrive_identical(way) {
        let _alone = heavy();
        let (_site, c1, c2) = pair(way);
        let again = udp_pair(&c1, &c2, 200_000, 1472);
        // So few are under way at a time that there is no reason to lose any; a busy machine may delay some.
        assert!(again < 200, "{again} of 200,000 were lost on the way");
    }

    fn udp_fragments_arrive_identical(way) {
        let _alone = heavy();
        let (_site, c1, c2) = pair(way);
        udp_pair(&c1, &c2, 2_000, 20_000);
    }

    fn two_workers_forward_byte_identical(way) {
        let _alone = heavy();
        let (site, c1, c2) = pair_on(Site::with_config("uplink = \"none\"\nworkers = 2\n"), way);
        assert_eq!(site.json(&["status"])["workers"], 2);
        let listeners = [7000, 7001, 7002].map(|p| c2.ns.tcp_listen(&format!("0.0.0.0:{p}")));
        std::thread::scope(|scope| {
            for listener in &listeners {
                let to = format!("172.18.0.20:{}", listener.local_addr().expect("bound").port());
                let connection = c1.ns.tcp_connect(&to, s(5)).expect("connect");
                scope.spawn(move || tcp_is_identical(connection, listener, 50_000_000));
            }
        });
        assert!(udp_pair(&c1, &c2, 20_000, 1472) < 200);
    }

    fn host_and_container_exchange_100_mb(way) {
        let _alone = heavy();
        let (site, c1, _c2) = pair(way);
        let listener = c1.ns.tcp_listen("0.0.0.0:7000");
        let connection = site.host.tcp_connect("172.18.0.10:7000", s(5)).expect("connect");
        tcp_is_identical(connection, &listener, 100_000_000);
        let listener = site.host.tcp_listen("0.0.0.0:7001");
        let connection = c1.ns.tcp_connect("172.18.0.1:7001", s(5)).expect("connect");
        tcp_is_identical(connection, &listener, 100_000_000);
    }

    fn a_frame_of_64_kib_crosses_whole(way) {
        let _alone = heavy();
        let (_site, c1, c2) = pair(way);
        let watch = Raw::open_for_lengths(&c2.ns, "eth0", 60_001);
        let listener = c2.ns.tcp_listen("0.0.0.0:7000");
        let connection = c1.ns.tcp_connect("172.18.0.20:7000", s(5)).expect("connect");
        tcp_is_identical(connection, &listener, 100_000_000);
        let seen = watch.expect("a TCP super-frame of more than 60,000 bytes", |f| f.length > 60_000);
        assert_eq!(seen.ethertype(), 0x0800);
    }

    fn iperf3_runs_both_ways(way) {
        let _alone = heavy();
        let (site, c1, c2) = pair(way);
        for reverse in [&[][..], &["-R"]] {
            let log = site.file("iperf3.log");
            let server = c2.ns.start(&["iperf3", "-s", "-1", "--forceflush"], &log);
            tests::process::wait_until("iperf3 listens", s(10), || c2.ns.run(&["ss", "-Hltn", "sport = :5201"]).stdout.contains("5201"));
            let mut words = vec!["iperf3", "-c", "172.18.0.20", "-t", "2", "-P", "2", "-J"];
            words.extend(reverse);
            let report = c1.ns.run(&words).ok().json();
            let bytes = report["end"]["sum_received"]["bytes"].as_f64().expect("bytes");
            assert!(bytes > 1e6, "{bytes} bytes in two seconds");
            drop(server);
        }
    }

    fn vlan_tags_arrive(way) {
        let (_site, c1, c2) = pair(way);
        let mut from = Raw::open(&c1.ns, "eth0");
        let to = Raw::open(&c2.ns, "eth0");
        let (m1, m2) = (mac(&c1.mac()), mac(&c2.mac()));
        // One tag, with a priority; two tags (802.1ad); the tag 0 (priority only). Full-sized frames are as long as packet
        // sockets let them be: a tag of the type 0x8100 comes on top of the MTU.
        let tags: [(&[u8], usize); 3] = [
            (&[0x81, 0, 0x20, 100], 1500),
            (&[0x88, 0xa8, 0x0f, 0xa0, 0x81, 0, 0x60, 7], 1492),
            (&[0x81, 0, 0xe0, 0], 1500),
        ];
        for (n, (tag, full)) in (1..).zip(tags) {
            for payload in [vec![n; 46], vec![n | 0x80; full]] {
                let frame = [&m2[..], &m1, tag, &[0x88, 0xb5], &payload].concat();
                from.send(&frame);
                to.expect(&format!("the frame with tag {tag:02x?} and {} bytes", payload.len()), |f| f.bytes == frame);
            }
        }
        // Broadcast with a tag, too: flooding is another path.
        let frame = [&[0xff; 6][..], &m1, tags[0].0, &[0x88, 0xb5], &[0x55; 60]].concat();
        from.send(&frame);
        to.expect("the broadcast frame with a tag", |f| f.bytes == frame);
    }

    fn frames_of_every_length_arrive_identical(way) {
        let (_site, c1, c2) = pair(way);
        let mut from = Raw::open(&c1.ns, "eth0");
        let to = Raw::open(&c2.ns, "eth0");
        let (m1, m2) = (mac(&c1.mac()), mac(&c2.mac()));
        let frames: Vec<Vec<u8>> = (14..=1514_usize)
            .map(|length| {
                let pattern = (0_u8..=250).cycle().skip(length % 251).take(length - 14);
                m2.into_iter().chain(m1).chain([0x88, 0xb5]).chain(pattern).collect()
            })
            .collect();
        for frames in frames.chunks(64) {
            to.clear();
            from.send_all(frames.iter().map(Vec::as_slice));
            let last = frames.last().expect("a chunk is not empty");
            to.expect("the last frame of 64", |f| f.bytes == *last);
            let got: Vec<_> = to.frames().into_iter().map(|f| f.bytes).filter(|f| f[12..14] == [0x88, 0xb5]).collect();
            assert_eq!(got, frames, "in this order and with these bytes");
        }
    }

    fn ipv6_link_local(way) {
        let (_site, c1, c2) = pair(way);
        let to = c2.ns.link_local("eth0");
        let _ = c1.ns.link_local("eth0"); // no longer tentative
        c1.ns.ping(&format!("{to}%eth0"));
        let listener = c2.ns.tcp_listen("[::]:7000");
        let scope = ifindex(&c1.ns, "eth0");
        let address: Ipv6Addr = to.parse().expect("an address");
        let connection = c1.ns.tcp_connect(&format!("[{address}%{scope}]:7000"), s(5));
        assert!(tcp_echoes(connection, &listener));
    }
}

fn ifindex(ns: &Namespace, ifname: &str) -> u64 {
    ns.link(ifname)["ifindex"].as_u64().expect("a number")
}

#[test]
fn offloads_stay_on() {
    let site = Site::new();
    let c1 = site.container("c1", Way::Attach, "172.18.0.10");
    let c2 = site.container("c2", Way::Tap, "172.18.0.20");
    for c in [&c1, &c2] {
        let features = c.ns.run(&["ethtool", "-k", "eth0"]).ok().stdout;
        for feature in ["tx-checksumming: on", "tcp-segmentation-offload: on", "scatter-gather: on"] {
            assert!(features.contains(feature), "not '{feature}' on port {}:\n{features}", c.port);
        }
    }
}
