//! Limits of ports with real programs, and what one container at full blast leaves to the others.

use tests::for_each_port_kind;
use tests::process::{python, s, tool, wait_until};
use tests::site::{Container, Site, Way, heavy};

/// What iperf3 says was received, in bits of frames per second: 1448 bytes of payload are 1514 of frame.
fn iperf(site: &Site, from: &Container, to: &Container, more: &[&str]) -> f64 {
    let mut server = to.ns.start(&["iperf3", "-s", "-1"], &site.file("iperf3.log"));
    wait_until("iperf3 listens", s(10), || !to.ns.run(&["ss", "-Hltn", "sport = :5201"]).stdout.is_empty());
    let words = [&["iperf3", "-c", &to.address, "-t", "3", "-O", "1", "-J"], more].concat();
    let sum = from.ns.run(&words).ok().json()["end"].clone();
    server.wait(s(5));
    // Of UDP the client's `sum` is what it has sent; the receiver's is beside it.
    let received = &sum["sum_received"]["bits_per_second"];
    received.as_f64().expect("a rate")
}

for_each_port_kind! {
    fn tcp_and_udp_get_the_rate_that_was_set(way) {
        let _alone = heavy();
        let site = Site::new();
        let a = site.container("a1", way, "172.18.0.10");
        let b = site.container("b1", way, "172.18.0.20");
        for (port, limit) in [("a1", "--rate-in"), ("b1", "--rate-out")] {
            site.ctl(&["port", "set", port, limit, "200mbit"]);
            let tcp = iperf(&site, &a, &b, &[]) * 1514.0 / 1448.0 / 200e6;
            eprintln!("{way:?} {limit}: TCP {tcp:.3} of the rate");
            // The machine is shared: what is exact is measured in virtual time (rates.rs).
            assert!((0.85..=1.1).contains(&tcp), "TCP at {tcp} of the rate");
            // A sender that has to wait for a processor gets less: at this rate the queue is longer than such pauses.
            site.ctl(&["port", "set", port, limit, "20mbit"]);
            let udp = iperf(&site, &a, &b, &["-u", "-b", "60m", "-l", "1400"]) * 1442.0 / 1400.0 / 20e6;
            eprintln!("{way:?} {limit}: UDP {udp:.3} of the rate");
            assert!((0.85..=1.1).contains(&udp), "UDP at {udp} of the rate");
            assert!(site.drops("rate-limited") > 0);
            site.ctl(&["port", "set", port, limit, "none"]);
        }
        assert!(site.port("a1")["limits"]["rate_in"].is_null());
        let free = iperf(&site, &a, &b, &[]);
        assert!(free > 400e6, "without a limit: {free}");
    }
}

/// Lets a container send as fast as it can for some seconds, while two others ping each other. Gives how many frames it sent,
/// and how many pings of 150 were answered.
#[track_caller]
fn blast(site: &Site, from: &Container, to: (&str, &str), kind: &str, others: [&Container; 2]) -> (u64, u64) {
    let log = site.file(&format!("flood-{kind}.log"));
    let (python, flood) = (python().display().to_string(), tool("flood.py").display().to_string());
    let own = from.mac();
    let words = [&python, &flood, "eth0", "4", kind, &own, &from.address, to.0, to.1];
    let mut flood = from.ns.start(&words, &log);
    let pings = others[0].ns.run(&["ping", "-n", "-c150", "-i0.02", "-W5", &others[1].address]);
    let (_, end) = pings.stdout.split_once("packets transmitted, ").unwrap_or_else(|| panic!("{pings}"));
    let answered = end.split(' ').next().and_then(|n| n.parse().ok()).expect("a number of pings");
    assert_eq!(flood.wait(s(20)), Some(0), "{}", flood.log());
    (flood.log().trim().parse().expect("a number of frames"), answered)
}

#[test]
fn a_storm_from_one_port_leaves_others_their_pings() {
    let _alone = heavy();
    let site = Site::new();
    let [a, b, c] = ["a1", "b1", "c1"].map(|n| {
        let last = u32::from(n.as_bytes()[0] - b'a' + 1) * 10;
        site.container(n, Way::Attach, &format!("172.18.0.{last}"))
    });
    b.ping(&c);
    site.ctl(&["port", "set", "a1", "--storm", "1000pps"]);
    let (mac, before) = (b.mac(), site.port("b1")["tx_packets"].as_u64().expect("a number"));
    let (sent, answered) = blast(&site, &a, (&mac, "172.18.0.20"), "broadcast", [&b, &c]);
    // Where the storm is faster than the worker of this build, the ring that all ports share has no room now and then.
    assert!(answered >= 147, "{answered} of 150; {} frames were not received", site.drops("not-received"));
    let passed = site.port("b1")["tx_packets"].as_u64().expect("a number") - before;
    assert!(sent > 20_000, "{sent} frames in four seconds are no storm");
    assert!(site.drops("storm") > 10_000, "{} dropped of {sent}", site.drops("storm"));
    // A thousand a second for four and some seconds, the pings, and what IPv6 says by itself.
    assert!(passed < 8_000, "{passed} of {sent} reached another");
}

/// A flood that is faster than the workers fills the ring that all ports share, and frames of others are lost with it: how many
/// pings that costs is shown and not judged. The tables keep their bounds, and all is well when the flood is over.
#[test]
fn one_container_at_full_blast_leaves_bounds_and_others_whole() {
    let _alone = heavy();
    let site = Site::new();
    site.ctl(&["network", "add", "other", "--subnet", "172.19.0.0/16"]);
    site.ctl(&["allow", "default", "other"]);
    let [a, b, c] = ["a1", "b1", "c1"].map(|n| {
        let last = u32::from(n.as_bytes()[0] - b'a' + 1) * 10;
        site.container(n, Way::Attach, &format!("172.18.0.{last}"))
    });
    let x = site.container_in("other", "x1", Way::Attach, "172.19.0.10");
    b.ping(&c);
    a.ping(&x);
    site.ctl(&["port", "set", "a1", "--storm", "1000pps", "--max-connections", "1000"]);
    let gateway =
        site.row(&["network", "ls"], "name", "default").expect("the network")["gateway_mac"].clone();
    let gateway = gateway.as_str().expect("a MAC");
    let before = site.rss();
    for kind in ["syn", "udp", "fragment", "arp", "mac"] {
        let (sent, answered) = blast(&site, &a, (gateway, "172.19.0.10"), kind, [&b, &c]);
        let (lost, more) = (site.drops("not-received"), site.rss().saturating_sub(before) >> 20);
        eprintln!(
            "{kind}: {sent} frames, {lost} not received so far, {answered} of 150 pings, {more} MiB more"
        );
        b.ping(&c);
        assert!(sent > 10_000, "{kind}: {sent} frames in four seconds are no flood");
    }
    let count = site.json(&["conntrack", "count", "--container", "a1"])["connections"].as_u64();
    assert!(count <= Some(1000), "{count:?} connections");
    assert!(site.rss() < before + (96 << 20), "{} bytes, {before} before", site.rss());
    assert!(site.drops("spoofed-mac") > 1000, "a MAC flood of a guarded port is learned");
    b.ping(&x);
    a.ping(&c);
}
