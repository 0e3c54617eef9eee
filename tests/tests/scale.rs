//! Size: a thousand ports cost little, and an idle switch costs nothing.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::thread;

use tests::netns::Namespace;
use tests::process::{run, s, wait_until};
use tests::site::{Site, Way, heavy};
use tests::stream::tcp_is_identical;

const PORTS: usize = 1000;

#[test]
fn a_thousand_ports() {
    let _alone = heavy();
    let site = Site::new();
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    let c2 = site.container("c2", Way::PortAdd, "172.18.0.20");
    c1.ping(&c2);
    let before = site.rss();

    // The peers of all of them are in one namespace; addresses and IPv6 chatter are not what is looked at.
    let crowd = Namespace::new();
    crowd.run(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]).ok();
    let script = site.file("links.batch");
    let mut lines = String::new();
    for n in 0..PORTS {
        writeln!(lines, "link add n{n} type veth peer name p{n} netns {}\nlink set n{n} up", crowd.name())
            .expect("a String");
    }
    fs::write(&script, lines).expect("write");
    let words = ["-n", site.host.name(), "-batch", script.to_str().expect("UTF-8")];
    run(Command::new("ip").args(words), s(120)).ok();
    let lines: String = (0..PORTS).map(|n| format!("link set p{n} up\n")).collect();
    fs::write(&script, lines).expect("write");
    let words = ["-n", crowd.name(), "-batch", script.to_str().expect("UTF-8")];
    run(Command::new("ip").args(words), s(120)).ok();
    for n in 0..PORTS {
        site.ctl(&["port", "add", &format!("n{n}")]);
    }
    let up = |site: &Site| site.rows(&["port", "ls"]).iter().filter(|p| p["state"] == "up").count();
    wait_until("all of them are up", s(60), || up(&site) >= PORTS + 2);

    let grown = site.rss().saturating_sub(before);
    let each = grown / PORTS as u64;
    eprintln!("RSS grew by {grown} bytes: {each} for each port");
    assert!(each < 20 * 1024, "RSS grew by {each} bytes for each of {PORTS} ports");

    c1.ping(&c2);
    c1.ns.ping(tests::site::GATEWAY);
    let listener = c2.ns.tcp_listen("0.0.0.0:7000");
    let connection = c1.ns.tcp_connect("172.18.0.20:7000", s(5)).expect("connect");
    tcp_is_identical(connection, &listener, 100_000_000);
}

#[test]
fn an_idle_switch_costs_nothing() {
    let _alone = heavy();
    let site = Site::new();
    let quiet = |c: &tests::site::Container| {
        // A stack of its own accord sends router solicitations and the like for a while.
        c.ns.run(&["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]).ok();
    };
    let c1 = site.container("c1", Way::Attach, "172.18.0.10");
    let c2 = site.container("c2", Way::Tap, "172.18.0.20");
    quiet(&c1);
    quiet(&c2);
    site.host.run(&["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]).ok();
    c1.ping(&c2);
    let rss = site.rss();
    eprintln!("RSS: {rss} bytes");
    assert!(rss <= 30 << 20, "RSS is {rss} bytes with two ports");
    // What ARP still has to say after the pings, it says within seconds.
    thread::sleep(s(8));
    let before = site.cpu_ticks();
    thread::sleep(s(5));
    let used = site.cpu_ticks() - before;
    assert!(used <= 1, "{used} clock ticks of processor time in 5 s without a frame");
}
