//! From containers to the outside, behind the host's address. The outside has no route to the containers.

use tests::for_each_port_kind;
use tests::outside::Outside;
use tests::process::{ms, python, s, wait_until};
use tests::site::{Container, Site, Way};

const WAN: &str = "172.16.0.1";
const HOST: &str = "172.16.0.2";
const WAN6: &str = "2001:db8::1";

/// A host with an uplink to an outside.
struct World {
    // First, so that the watch ends while swd still keeps the host's stack silent.
    wan: Outside,
    site: Site,
}

impl World {
    fn new() -> Self {
        let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
        let wan = Outside::new(&site.host);
        wan.ip(&["addr", "add", "198.51.100.7/32", "dev", "lo"]);
        site.start();
        Self { wan, site }
    }

    fn container(&self, way: Way) -> Container {
        self.site.container("c1", way, "172.18.0.10")
    }

    /// A second of iperf3 to a server outside.
    fn iperf(&self, from: &Container, more: &[&str]) {
        let mut server = self.wan.start(&["iperf3", "-s", "-1"], &self.site.file("iperf.log"));
        wait_until("iperf3 listens", s(5), || {
            !self.wan.run(&["ss", "-Hltn", "sport = :5201"]).stdout.is_empty()
        });
        from.ns.run(&[&["iperf3", "-c", WAN, "-t1"], more].concat()).ok();
        server.wait(s(5));
    }

    /// The host is as it was.
    fn check(&self) {
        assert_eq!(self.site.host.run(&["cat", "/proc/sys/net/ipv4/ip_forward"]).ok().stdout.trim(), "0");
        assert_eq!(self.site.host.run(&["nft", "list", "ruleset"]).ok().stdout, "");
    }
}

for_each_port_kind! {
    fn programs_reach_the_outside(way) {
        let world = World::new();
        let c1 = world.container(way);
        c1.ns.ping(WAN);
        c1.ns.ping("198.51.100.7");
        // Fragments, both ways.
        c1.ns.run(&["ping", "-n", "-c1", "-W2", "-s", "20000", WAN]).ok();
        let web = world.site.file("web");
        std::fs::create_dir(&web).expect("a folder");
        std::fs::write(web.join("page"), "hello").expect("a page");
        let web = web.to_str().expect("UTF-8");
        let serve = [python().to_str().expect("UTF-8"), "-m", "http.server", "80", "--bind", WAN, "-d", web];
        let _server = world.wan.start(&serve, &world.site.file("web.log"));
        wait_until("the page is there", s(10), || {
            c1.ns.run(&["curl", "-s", "-m2", &format!("http://{WAN}/page")]).stdout == "hello"
        });
        for more in [&[][..], &["-R"], &["-u", "-b10M"], &["-u", "-b10M", "-R"]] {
            world.iperf(&c1, more);
        }
        world.check();
    }
}

#[test]
fn udp_answers_come_back_and_strangers_do_not() {
    let world = World::new();
    let c1 = world.container(Way::PortAdd);
    let there = world.wan.udp("172.16.0.1:5353");
    let here = c1.ns.udp("0.0.0.0:4000");
    here.connect("172.16.0.1:5353").expect("connect");
    here.set_read_timeout(Some(s(2))).expect("timeout");
    there.set_read_timeout(Some(s(2))).expect("timeout");
    here.send(b"question").expect("send");
    let mut buffer = [0; 100];
    let (n, from) = there.recv_from(&mut buffer).expect("the question");
    assert_eq!((&buffer[..n], from.ip().to_string().as_str()), (&b"question"[..], HOST));
    assert!(from.port() >= 61_000, "{from}");
    let stranger = world.wan.udp("172.16.0.1:5354");
    stranger.send_to(b"unasked", from).expect("send");
    there.send_to(b"answer", from).expect("send");
    let n = here.recv(&mut buffer).expect("the answer");
    assert_eq!(&buffer[..n], b"answer");
    wait_until("the stranger is counted", s(2), || world.site.drops("filtered") == 1);
    let row = world.site.row(&["conntrack", "ls"], "protocol", "udp").expect("the connection");
    assert_eq!((row["container"].as_str(), row["original"]["sport"].as_u64()), (Some("c1"), Some(4000)));
    assert_eq!(world.site.json(&["status"])["connections"], 1);
    // A port that leaves takes its connections along.
    world.site.ctl(&["port", "rm", "c1"]);
    wait_until("no connection is left", s(3), || {
        world.site.json(&["conntrack", "count"])["connections"] == 0
    });
    world.check();
}

#[test]
fn ipv6_reaches_the_outside() {
    let world = World::new();
    world.site.ctl(&["network", "add", "six", "--subnet", "fd00:18::/64", "--subnet", "172.19.0.0/16"]);
    let c = world.site.container_in("six", "c6", Way::Attach, "172.19.0.10");
    c.ns.ping(WAN6);
    c.ns.ping(WAN);
    let listener = world.wan.tcp_listen("[2001:db8::1]:80");
    let accept = std::thread::spawn(move || listener.accept().map(|(_, from)| from));
    drop(c.ns.tcp_connect("[2001:db8::1]:80", s(3)).expect("connect"));
    let from = accept.join().expect("accept").expect("accept");
    assert_eq!(from.ip().to_string(), "2001:db8::2");
    // Spoofed sources stay inside: no network's, and the gateway's.
    for (n, source) in (1..).zip(["fd00:99::9", "fd00:18::1"]) {
        c.ns.ip(&["addr", "add", &format!("{source}/128"), "dev", "lo", "nodad"]);
        c.ns.run(&["ping", "-6", "-n", "-c1", "-W1", "-I", source, WAN6]);
        wait_until(source, s(3), || world.site.drops("spoofed-source") >= n);
    }
    world.check();
}

#[test]
fn hops_sizes_and_dead_ends_are_told() {
    let world = World::new();
    let c1 = world.container(Way::PortAdd);
    let first = c1.ns.run(&["ping", "-n", "-c1", "-W2", "-t1", "198.51.100.7"]).stdout;
    assert!(first.contains("From 172.18.0.1") && first.contains("Time to live exceeded"), "{first}");
    let none = c1.ns.run(&["ping", "-n", "-c1", "-W5", "172.16.9.9"]).stdout;
    assert!(none.contains("From 172.18.0.1") && none.contains("Destination Host Unreachable"), "{none}");
    world.site.host.ip(&["link", "set", "eth0", "mtu", "1300"]);
    world.wan.ip(&["link", "set", "eth0", "mtu", "1300"]);
    wait_until("the MTU is followed", s(3), || {
        let long = c1.ns.run(&["ping", "-n", "-c1", "-W2", "-s1400", "-Mdo", WAN]).stdout;
        long.contains("mtu = 1300") || long.contains("mtu=1300")
    });
    // Without DF it is fragmented; TCP gets along by the segment size.
    c1.ns.ip(&["route", "flush", "cache"]);
    c1.ns.run(&["ping", "-n", "-c1", "-W2", "-s1400", "-Mdont", WAN]).ok();
    world.iperf(&c1, &[]);
    // A spoofed source stays inside.
    c1.ns.ip(&["addr", "add", "10.9.9.9/32", "dev", "lo"]);
    c1.ns.run(&["ping", "-n", "-c1", "-W1", "-I", "10.9.9.9", WAN]);
    assert!(world.site.drops("spoofed-source") > 0);
    world.check();
}

#[test]
fn networks_are_closed_to_each_other_until_allowed() {
    let world = World::new();
    world.site.ctl(&["network", "add", "other", "--subnet", "172.19.0.0/16"]);
    let c1 = world.container(Way::PortAdd);
    let c2 = world.site.container_in("other", "c2", Way::PortAdd, "172.19.0.10");
    let refused = c1.ns.run(&["ping", "-n", "-c1", "-W2", "172.19.0.10"]).stdout;
    assert!(refused.contains("Packet filtered"), "{refused}");
    world.site.ctl(&["allow", "default", "other"]);
    c1.ns.ping("172.19.0.10");
    assert!(!c2.ns.pings("172.18.0.10"), "one way only");
    world.site.ctl(&["deny", "default", "other"]);
    assert!(!c1.ns.pings("172.19.0.10"));
}

#[test]
fn changes_of_the_host_are_followed() {
    let world = World::new();
    let c1 = world.container(Way::PortAdd);
    c1.ns.ping("198.51.100.7");
    // Down and up: the kernel forgets the default route with the link.
    world.site.host.ip(&["link", "set", "eth0", "down"]);
    assert!(!c1.ns.pings("198.51.100.7"));
    world.site.host.ip(&["link", "set", "eth0", "up"]);
    world.site.host.ip(&["route", "add", "default", "via", WAN]);
    wait_until("the uplink is back", s(5), || c1.ns.pings("198.51.100.7"));
    // Another address.
    world.site.host.ip(&["addr", "add", "172.16.0.3/16", "dev", "eth0"]);
    world.site.host.ip(&["addr", "del", "172.16.0.2/16", "dev", "eth0"]);
    world.site.host.ip(&["addr", "replace", "172.16.0.3/16", "dev", "eth0"]);
    world.site.host.ip(&["route", "replace", "default", "via", WAN]);
    wait_until("the new address is used", s(5), || c1.ns.pings("198.51.100.7"));
    let rows = world.site.rows(&["conntrack", "ls"]);
    assert!(rows.iter().any(|r| r["reply"]["dst"] == "172.16.0.3"), "{rows:?}");
    // The default route moves to another interface.
    let addresses = (["192.0.2.2/24", "2001:db8:2::2/64"], ["192.0.2.1/24", "2001:db8:2::1/64"]);
    let second = Outside::connect(&world.site.host, "wan2", addresses.0, addresses.1);
    second.ip(&["addr", "add", "203.0.113.7/32", "dev", "lo"]);
    world.site.host.ip(&["route", "replace", "default", "via", "192.0.2.1"]);
    wait_until("the other uplink is used", s(5), || c1.ns.pings("203.0.113.7"));
    c1.ns.ping(WAN);
    assert_eq!(world.site.json(&["status"])["uplink"], "wan2");
}

#[test]
fn an_idle_daemon_with_connections_sleeps() {
    let world = World::new();
    let c1 = world.container(Way::PortAdd);
    c1.ns.ping(WAN);
    std::thread::sleep(ms(300));
    let before = world.site.cpu_ticks();
    std::thread::sleep(s(3));
    assert!(world.site.cpu_ticks() - before <= 2);
}
