//! The classic walk, line by line: two containers reach each other, the host, the gateway and the outside, a published port is
//! reached from everywhere, and nothing else on the host has changed.

use std::collections::BTreeSet;

use tests::for_each_port_kind;
use tests::netns::Namespace;
use tests::outside::Outside;
use tests::process::{Background, python, s, wait_until};
use tests::site::{Container, GATEWAY, Site, Way};

/// What must be the same before and after.
#[derive(Debug, PartialEq)]
struct Untouched {
    sysctl: BTreeSet<String>,
    nft: String,
    iptables: String,
    ip6tables: String,
    rules: String,
    rules6: String,
    tc: String,
}

/// Of the whole machine, and moving by themselves.
const MOVING: [&str; 9] = [
    "fs.aio-nr",
    "fs.dentry-state",
    "fs.file-nr",
    "fs.inode-nr",
    "fs.inode-state",
    "kernel.ns_last_pid",
    "kernel.pty.nr",
    "kernel.random.",
    "net.netfilter.nf_conntrack_count",
];

impl Untouched {
    /// Looks at the host; what belongs to an interface is looked at for `interfaces` only.
    fn of(host: &Namespace, interfaces: &[String]) -> Self {
        let ours = |line: &&str| {
            let key = line.split(" = ").next().unwrap_or_default();
            let per_interface =
                ["net.ipv4.conf.", "net.ipv6.conf.", "net.ipv4.neigh.", "net.ipv6.neigh.", "net.mpls.conf."]
                    .into_iter()
                    .find_map(|prefix| key.strip_prefix(prefix));
            let known = per_interface.is_none_or(|rest| {
                let name = rest.rsplit_once('.').map_or(rest, |(name, _)| name);
                ["all", "default"].contains(&name) || interfaces.iter().any(|i| i == name)
            });
            known && !MOVING.iter().any(|m| key.starts_with(m))
        };
        let sysctl = host.run(&["sysctl", "-a"]).stdout;
        Self {
            sysctl: sysctl.lines().filter(ours).map(str::to_owned).collect(),
            nft: host.run(&["nft", "list", "ruleset"]).ok().stdout,
            iptables: host.run(&["iptables-save"]).ok().stdout,
            ip6tables: host.run(&["ip6tables-save"]).ok().stdout,
            rules: host.ip(&["rule"]),
            rules6: host.ip(&["-6", "rule"]),
            tc: interfaces.iter().map(|i| host.run(&["tc", "filter", "show", "dev", i]).stdout).collect(),
        }
    }
}

fn assert_no_bridge(ns: &Namespace) {
    for link in ns.ip_json(&["-d", "link"]) {
        let kind = link["linkinfo"]["info_kind"].as_str().unwrap_or_default();
        assert!(kind != "bridge" && kind != "openvswitch", "{} has a bridge: {link}", ns.name());
        assert!(link["master"].is_null(), "{} has an enslaved interface: {link}", ns.name());
    }
}

/// A web server at port 8000, and its log.
fn serve_http(server: &Namespace, site: &Site) -> Background {
    let page = site.file("www");
    std::fs::create_dir_all(&page).expect("a folder");
    let words = [
        python().to_str().expect("UTF-8"),
        "-m",
        "http.server",
        "--directory",
        page.to_str().expect("UTF-8"),
    ];
    server.start(&words, &site.file(&format!("http-{}.log", server.name())))
}

fn assert_fetches(client: &Namespace, address: &str) {
    let url = format!("http://{address}/");
    wait_until(&format!("curl {url} from {}", client.name()), s(15), || {
        client.run(&["curl", "-sS", "--max-time", "2", "-o", "/dev/null", &url]).status.success()
    });
}

fn assert_serves_http(server: &Namespace, address: &str, client: &Namespace, site: &Site) {
    let _server = serve_http(server, site);
    assert_fetches(client, &format!("{address}:8000"));
}

/// Out behind the host's own address, and in by a published port.
fn assert_second_half(site: &Site, outside: &Outside, c1: &Container, c2: &Container) {
    let beyond = serve_http(outside, site);
    for c in [c1, c2] {
        c.ns.ping("172.16.0.1");
        assert_fetches(&c.ns, "172.16.0.1:8000");
    }
    let seen = beyond.log();
    assert!(seen.contains("172.16.0.2 - - "), "nobody came from the host's address: {seen}");
    assert!(!seen.contains("172.18.0."), "an inside address was seen outside: {seen}");
    drop(beyond);

    let _web = serve_http(&c1.ns, site);
    site.ctl(&["publish", "5000", "172.18.0.10:8000"]);
    assert_fetches(outside, "172.16.0.2:5000");
    for address in ["172.16.0.2:5000", "172.18.0.1:5000", "127.0.0.1:5000"] {
        assert_fetches(&site.host, address);
    }
    for c in [c2, c1] {
        assert_fetches(&c.ns, "172.16.0.2:5000");
    }
}

for_each_port_kind! {
    fn the_whole_walk(way) {
        let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
        let outside = Outside::new(&site.host);
        site.host.ip(&["addr", "add", "192.0.2.7/32", "dev", "lo"]);
        let interfaces = site.host.links();
        let before = Untouched::of(&site.host, &interfaces);

        site.start();
        let c1 = site.container("c1", way, "172.18.0.10");
        let c2 = site.container("c2", way, "172.18.0.20");
        c1.ping(&c2);
        c2.ping(&c1);
        site.host.ping(&c1.address);
        site.host.ping(&c2.address);
        // The gateway, the host's address towards the outside, and one that is on no cable.
        for host_address in [GATEWAY, "172.16.0.2", "192.0.2.7"] {
            c1.ns.ping(host_address);
            assert_serves_http(&site.host, host_address, &c1.ns, &site);
        }
        assert_serves_http(&c1.ns, &c1.address, &c2.ns, &site);
        assert_serves_http(&c1.ns, &c1.address, &site.host, &site);

        // Nobody answers for an address that nobody has.
        assert!(!c1.ns.pings("172.18.0.99"), "172.18.0.99 answers");
        assert!(!c1.ns.pings("192.0.2.8"), "192.0.2.8 answers");

        for c in [&c1, &c2] {
            let route = c.ns.ip_json(&["route", "show", "default"]);
            assert_eq!(route[0]["gateway"], GATEWAY, "{route:?}");
            assert_eq!(route[0]["dev"], "eth0", "{route:?}");
            let lo = c.ns.link("lo");
            assert!(lo["flags"].as_array().is_some_and(|f| f.contains(&"UP".into())), "{lo}");
        }
        let host_end = site.host.ip_json(&["addr", "show", "dev", "sw0"]);
        assert!(host_end[0]["addr_info"].as_array().is_some_and(|a| a.iter().any(|a| a["local"] == GATEWAY)), "{host_end:?}");

        assert_second_half(&site, &outside, &c1, &c2);

        assert_no_bridge(&site.host);
        assert_no_bridge(&site.switch());
        let forwards = site.host.run(&["sysctl", "-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]).ok().stdout;
        assert_eq!(forwards.split_whitespace().collect::<Vec<_>>(), ["0", "0"]);
        assert_eq!(before, Untouched::of(&site.host, &interfaces), "swd changed something of the host");
        assert_eq!(site.terminate(), 0);
        assert_eq!(before, Untouched::of(&site.host, &interfaces), "swd changed something of the host at its end");
    }
}

#[test]
fn attach_does_what_the_walk_does_by_hand() {
    let site = Site::new();
    for (way, name, address) in [(Way::Attach, "c1", "172.18.0.10"), (Way::Tap, "c2", "172.18.0.20")] {
        let ns = Namespace::bare();
        site.join(&ns, "default", name, way, address);
        let links: BTreeSet<_> = ns.links().into_iter().collect();
        assert_eq!(links, BTreeSet::from(["lo".to_owned(), "eth0".to_owned()]));
        ns.ping("127.0.0.1");
        ns.ping(GATEWAY);
        let eth0 = ns.link("eth0");
        assert_eq!(eth0["mtu"], 1500, "{eth0}");
        let route = ns.ip_json(&["route", "show", "default"]);
        assert_eq!(route[0]["gateway"], GATEWAY, "{route:?}");
    }
}

#[test]
fn veth_and_tap_containers_reach_each_other() {
    let site = Site::new();
    let by_hand = site.container("c1", Way::PortAdd, "172.18.0.10");
    let attached = site.container("c2", Way::Attach, "172.18.0.20");
    let tap = site.container("c3", Way::Tap, "172.18.0.30");
    let all: [&Container; 3] = [&by_hand, &attached, &tap];
    for a in all {
        for b in all {
            a.ping(b);
        }
    }
}

#[test]
fn two_instances_run_side_by_side() {
    let one = Site::new();
    let two = Site::new();
    let a1 = one.container("c1", Way::Attach, "172.18.0.10");
    let a2 = one.container("c2", Way::Attach, "172.18.0.20");
    let b1 = two.container("c1", Way::Attach, "172.18.0.10");
    let b2 = two.container("c2", Way::Tap, "172.18.0.20");
    a1.ping(&a2);
    b1.ping(&b2);
    drop(two);
    a1.ping(&a2);
}

#[test]
fn a_port_can_be_watched_with_tcpdump() {
    let site = Site::new();
    let c1 = site.container("c1", Way::Attach, "172.18.0.10");
    let c2 = site.container("c2", Way::Attach, "172.18.0.20");
    let port = site.port("c2");
    let ifname = port["ifname"].as_str().expect("a name");
    let log = site.file("tcpdump.log");
    let watched = site.switch();
    let mut tcpdump = watched.start(&["tcpdump", "-lni", ifname, "-c2", "icmp"], &log);
    wait_until("tcpdump listens", s(10), || tcpdump.log().contains("listening on"));
    c1.ping(&c2);
    assert_eq!(tcpdump.wait(s(10)), Some(0), "{}", tcpdump.log());
    assert!(tcpdump.log().contains("172.18.0.10 > 172.18.0.20: ICMP echo request"), "{}", tcpdump.log());
}
