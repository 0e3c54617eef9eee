//! The spoof guard: what a container claims to be, against what it is. In memory and with real frames.

use std::sync::Arc;

use switch::sources::Sources;
use switch::verdict::DropReason;
use tests::for_each_port_kind;
use tests::lab::{Lab, net, plain_mac};
use tests::process::{s, wait_until};
use tests::raw::{BROADCAST, Raw, arp_request, experiment, mac, neighbour_solicitation, udp4, udp6};
use tests::site::{Site, Way, quiet};

/// Both kinds of ports that `swctl attach` makes.
macro_rules! for_each_attached {
    ($(fn $name:ident($way:ident) $body:block)*) => {$(
        mod $name {
            use super::*;

            fn check($way: Way) $body

            #[test]
            fn veth() {
                check(Way::Attach);
            }

            #[test]
            fn tap() {
                check(Way::Tap);
            }
        }
    )*};
}

#[test]
fn a_guarded_port_reaches_others_as_itself_and_as_nobody_else() {
    let mut lab = Lab::default();
    let network = lab.plain_network();
    let (a, b) = (lab.plain_host(network, 10), lab.plain_host(network, 20));
    let sources = Sources::new([plain_mac(network, 10)], ["10.0.0.10/32", "fd00:0::a/128"].map(net));
    lab.change_port(a, |port| port.sources = Some(Arc::new(sources)));
    for to in ["10.0.0.20", "fd00:0::14"] {
        let pinger = lab.at(a).pinger();
        lab.at(a).ping(pinger, to.parse().expect("an address"), 1);
        lab.advance(s(3));
        assert!(lab.at(a).pong(pinger).is_some(), "{to}");
    }
    let heard = lab.port_info(b).counters.tx.packets();
    let own = plain_mac(network, 10).0;
    let other = plain_mac(network, 30).0;
    for (frame, reason) in [
        (experiment(BROADCAST, other, b"?"), DropReason::SpoofedMac),
        (
            udp4((BROADCAST, own), ([10, 0, 0, 30], 1), ([10, 0, 255, 255], 2), b"?"),
            DropReason::SpoofedSource,
        ),
        (arp_request(own, [10, 0, 0, 1], [10, 0, 0, 20]), DropReason::SpoofedNeighbor),
    ] {
        let before = lab.drops(reason);
        lab.put(a, frame);
        lab.settle();
        assert_eq!(lab.drops(reason), before + 1, "{reason:?}");
    }
    assert_eq!(lab.port_info(b).counters.tx.packets(), heard, "nobody hears of it");
    assert!(!lab.shared().fdb.entries(lab.now).iter().any(|e| e.mac.0 == other), "nothing is learned");
}

for_each_attached! {
    fn each_kind_of_lie_is_dropped_and_counted(way) {
        let site = Site::new();
        site.ctl(&["network", "add", "six", "--subnet", "172.19.0.0/16", "--subnet", "fd00:19::/64"]);
        let a = site.container_in("six", "a1", way, "172.19.0.10");
        let b = site.container_in("six", "b1", way, "172.19.0.20");
        let addresses = |name: &str| {
            let port = site.port(name);
            let all = port["addresses"].as_array().expect("a list").clone();
            all.iter().filter_map(|a| a.as_str()?.split('/').next().map(str::to_owned)).collect::<Vec<_>>()
        };
        let six: std::net::Ipv6Addr =
            addresses("b1").iter().find_map(|x| x.parse().ok()).expect("an IPv6 address");
        wait_until("IPv6 works", s(10), || a.ns.pings(&six.to_string()));
        a.ping(&b);
        let guard = site.port("a1")["guard"].clone();
        assert_eq!((&guard["on"], guard["macs"][0].as_str()), (&true.into(), Some(a.mac().as_str())));

        // What the kernel forwards by itself is from the container's own address, too.
        wait_until("the kernel forwards between veth ports", s(10), || {
            a.ns.run(&["ping", "-n", "-c30", "-i0.01", "-W2", &b.address]).ok();
            way == Way::Tap || site.json(&["status"])["fast_flows"].as_u64() >= Some(2)
        });
        let mut raw = Raw::open(&a.ns, "eth0");
        let watch = Raw::open(&b.ns, "eth0");
        let (own, theirs) = (mac(&a.mac()), mac(&b.mac()));
        let gateway = [172, 19, 0, 1];
        let lies: [(&str, &str, Vec<u8>); 5] = [
            ("a MAC", "spoofed-mac", experiment(theirs, [2, 9, 9, 9, 9, 9], b"liar")),
            ("IPv4", "spoofed-source", udp4((theirs, own), ([172, 19, 0, 99], 1), ([172, 19, 0, 20], 2), b"liar")),
            ("IPv6", "spoofed-source", udp6((theirs, own), ([0xfd; 16], 1), (six.octets(), 2), b"liar")),
            ("ARP", "spoofed-neighbor", arp_request(own, gateway, [172, 19, 0, 20])),
            ("ND", "spoofed-source", neighbour_solicitation(own, [0xfd; 16], six.octets())),
        ];
        for (what, reason, frame) in lies {
            let before = (site.drops(reason), site.port("a1")["rx_dropped"].as_u64());
            raw.send_all([frame.as_slice()]);
            wait_until(&format!("{what} is counted"), s(5), || site.drops(reason) > before.0);
            assert!(site.port("a1")["rx_dropped"].as_u64() > before.1, "{what}: not the port's");
        }
        quiet();
        assert!(!watch.frames().iter().any(|f| f.contains(b"liar")), "a lie arrived");
        a.ping(&b);

        // What is allowed besides, at once and after a restart.
        site.ctl(&["port", "set", "a1", "--source", "172.19.0.99"]);
        raw.send_all([udp4((theirs, own), ([172, 19, 0, 99], 1), ([172, 19, 0, 20], 2), b"guest").as_slice()]);
        watch.expect("an address that was added", |f| f.contains(b"guest"));
        site.ctl(&["port", "set", "a1", "--guard", "off"]);
        raw.send_all([experiment(theirs, [2, 9, 9, 9, 9, 9], b"anybody").as_slice()]);
        watch.expect("anything without a guard", |f| f.contains(b"anybody"));
        assert_eq!(site.port("a1")["guard"]["on"], false);
    }
}

for_each_port_kind! {
    fn a_port_of_any_kind_can_be_guarded_and_let_go(way) {
        let site = Site::new();
        let a = site.container("a1", way, "172.18.0.10");
        let b = site.container("b1", way, "172.18.0.20");
        let attached = way == Way::Tap;
        assert_eq!(site.port("a1")["guard"]["on"], attached);
        if !attached {
            let error = site.try_ctl(&["port", "set", "a1", "--guard", "on"]).one_line_error();
            assert!(error.contains("--source"), "{error}");
        }
        site.ctl(&["port", "set", "a1", "--guard", "on", "--source", &a.mac(), "--source", "172.18.0.10"]);
        a.ping(&b);
        let before = site.drops("spoofed-source");
        a.ns.ip(&["addr", "add", "172.18.0.77/16", "dev", "eth0"]);
        a.ns.run(&["ping", "-n", "-c1", "-W1", "-I", "172.18.0.77", "172.18.0.20"]);
        // With the neighbor known it is the packet, else its question for the MAC.
        let claims = site.drops("spoofed-neighbor");
        assert!(site.drops("spoofed-source") + claims > before, "a second address of its own making");
        site.ctl(&["port", "set", "a1", "--source", &a.mac(), "--source", "172.18.0.0/24"]);
        a.ns.run(&["ping", "-n", "-c1", "-W3", "-I", "172.18.0.77", "172.18.0.20"]).ok();
        site.ctl(&["port", "set", "a1", "--guard", "default", "--source", "none"]);
        assert_eq!(site.port("a1")["guard"]["on"], attached);
    }
}
