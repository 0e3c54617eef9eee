//! Policy with real programs: every kind of rule, both ways, both families, and what a restart keeps.

use std::io::{Read, Write};
use std::net::TcpStream;

use tests::for_each_port_kind;
use tests::outside::Outside;
use tests::process::{s, wait_until};
use tests::site::{Container, GATEWAY, Site, Way};

const A6: &str = "fd00:18::10";
const B6: &str = "fd00:18::20";

/// Two containers in a network of both families, which isolates them if wanted.
fn two(way: Way, isolate: bool) -> (Site, Container, Container) {
    let site = Site::new();
    let mut words = vec!["network", "add", "n1", "--subnet", "172.20.0.0/16", "--subnet", "fd00:18::/64"];
    if isolate {
        words.push("--isolate-ports");
    }
    site.ctl(&words);
    let a = site.container_in("n1", "a1", way, "172.20.0.10");
    let b = site.container_in("n1", "b1", way, "172.20.0.20");
    for (container, six) in [(&a, A6), (&b, B6)] {
        if way == Way::PortAdd {
            container.ns.ip(&["addr", "add", &format!("{six}/64"), "dev", "eth0", "nodad"]);
        }
    }
    (site, a, b)
}

fn six(site: &Site, port: &str, given: &str) -> String {
    let row = site.port(port);
    let all = row["addresses"].as_array().expect("a list").clone();
    let mut leased = all.iter().filter_map(|a| a.as_str()?.split('/').next().map(str::to_owned));
    leased.rfind(|a| a.contains(':')).unwrap_or_else(|| given.to_owned())
}

/// Whether a TCP connection can be made and carries something; a refusal must come at once.
fn connects(from: &Container, to: &Container, address: &str, port: u16) -> bool {
    let at = if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
    let listener = to.ns.tcp_listen(&at);
    let Ok(mut client) = from.ns.tcp_connect(&at, s(3)) else { return false };
    let (mut server, _) = listener.accept().expect("a connection");
    says(&mut client, &mut server) && says(&mut server, &mut client)
}

fn says(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    to.set_read_timeout(Some(s(2))).expect("a timeout");
    let mut heard = [0; 4];
    from.write_all(b"more").is_ok() && to.read_exact(&mut heard).is_ok()
}

for_each_port_kind! {
    fn isolated_ports_talk_as_far_as_rules_let_them(way) {
        let (site, a, b) = two(way, true);
        let (a6, b6) = (six(&site, "a1", A6), six(&site, "b1", B6));
        a.ns.ping("172.20.0.1");
        assert!(!a.ns.pings("172.20.0.20"));
        site.ctl(&["allow", "a1", "b1", "tcp/8000-8001"]);
        // The kernel asks for a neighbor that did not answer again only some time later.
        wait_until("the rule opens it", s(10), || connects(&a, &b, "172.20.0.20", 8000));
        assert!(connects(&a, &b, "172.20.0.20", 8001));
        wait_until("IPv6 as well", s(10), || connects(&a, &b, &b6, 8000));
        assert!(!connects(&a, &b, "172.20.0.20", 8002), "another port");
        assert!(!connects(&b, &a, "172.20.0.10", 8000) && !connects(&b, &a, &a6, 8000), "the other way");
        assert!(!a.ns.pings("172.20.0.20"));
        site.ctl(&["allow", "n1", "n1", "icmp"]);
        for (from, to) in [(&a, "172.20.0.20"), (&b, "172.20.0.10"), (&a, b6.as_str()), (&b, a6.as_str())] {
            from.ns.ping(to);
        }
        // A refusal says so, at once.
        let refused = a.ns.tcp_connect("172.20.0.20:8002", s(5)).expect_err("forbidden");
        assert_eq!(refused.raw_os_error(), Some(nix::libc::EHOSTUNREACH), "{refused}");
        let why = site.ctl(&["trace", "a1", "tcp 172.20.0.10:40000 > 172.20.0.20:8002 syn"]);
        assert!(why.contains("no rule lets it pass"), "{why}");
        let why = site.ctl(&["trace", "a1", "tcp 172.20.0.10:40000 > 172.20.0.20:8001 syn"]);
        assert!(why.contains("allow a1 b1 tcp/8000-8001"), "{why}");
    }

    fn a_rule_ends_what_it_forbids_and_nothing_else(way) {
        let (site, a, b) = two(way, false);
        let listener = b.ns.tcp_listen("172.20.0.20:5432");
        let mut client = a.ns.tcp_connect("172.20.0.20:5432", s(3)).expect("open");
        let (mut server, _) = listener.accept().expect("a connection");
        drop(listener);
        assert!(says(&mut client, &mut server));
        // Long enough for the kernel to have taken it over.
        for _ in 0..20 {
            assert!(says(&mut server, &mut client) && says(&mut client, &mut server));
        }
        site.ctl(&["deny", "b1", "a1"]);
        site.ctl(&["deny", "a1", "b1", "udp"]);
        assert!(says(&mut server, &mut client) && says(&mut client, &mut server), "answers pass");
        assert!(!b.ns.pings("172.20.0.10") && !connects(&b, &a, "172.20.0.10", 80));
        a.ns.ping("172.20.0.20");
        site.ctl(&["deny", "a1", "b1", "tcp/5432"]);
        assert!(!says(&mut client, &mut server), "it goes on");
        assert!(!connects(&a, &b, "172.20.0.20", 5432) && connects(&a, &b, "172.20.0.20", 5433));
        site.ctl(&["policy", "rm", "a1", "b1", "tcp/5432"]);
        site.ctl(&["policy", "rm", "b1", "a1"]);
        assert!(says(&mut client, &mut server), "retransmitted, it arrives");
        b.ns.ping("172.20.0.10");
        assert_eq!(site.rows(&["policy"]).len(), 1);
    }

    fn rules_for_the_host_and_between_networks(way) {
        let site = Site::new();
        site.ctl(&["network", "add", "other", "--subnet", "172.19.0.0/16"]);
        let a = site.container("a1", way, "172.18.0.10");
        let x = site.container_in("other", "x1", way, "172.19.0.10");
        a.ns.ping(GATEWAY);
        site.ctl(&["deny", "a1", "host"]);
        assert!(!a.ns.pings(GATEWAY));
        site.host.ping("172.18.0.10");
        site.ctl(&["allow", "a1", "host", "tcp/53"]);
        let listener = site.host.tcp_listen("172.18.0.1:53");
        drop(a.ns.tcp_connect("172.18.0.1:53", s(3)).expect("the more specific rule"));
        drop(listener);
        x.ns.ping("172.19.0.1");
        site.ctl(&["deny", "host", "other", "icmp"]);
        assert!(!site.host.pings("172.19.0.10"));
        x.ns.ping("172.19.0.1");

        assert!(!connects(&a, &x, "172.19.0.10", 80));
        site.ctl(&["allow", "a1", "other", "tcp/80"]);
        assert!(connects(&a, &x, "172.19.0.10", 80));
        assert!(!connects(&x, &a, "172.18.0.10", 80) && !a.ns.pings("172.19.0.10"));
        let listener = x.ns.tcp_listen("172.19.0.10:80");
        let mut client = a.ns.tcp_connect("172.19.0.10:80", s(3)).expect("open");
        let (mut server, _) = listener.accept().expect("a connection");
        assert!(says(&mut client, &mut server));
        site.ctl(&["deny", "default", "other", "tcp"]);
        assert!(says(&mut client, &mut server), "the port's rule is the more specific one");
        site.ctl(&["deny", "a1", "x1"]);
        assert!(!says(&mut client, &mut server), "it goes on");
    }
}

#[test]
fn rules_for_the_outside_and_for_published_ports() {
    let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
    let wan = Outside::new(&site.host);
    site.start();
    let c = site.container("c1", Way::PortAdd, "172.18.0.10");
    c.ns.ping("172.16.0.1");
    site.ctl(&["deny", "default", "outside"]);
    assert!(!c.ns.pings("172.16.0.1"));
    site.ctl(&["allow", "c1", "outside", "icmp"]);
    c.ns.ping("172.16.0.1");
    let listener = wan.tcp_listen("172.16.0.1:8080");
    c.ns.tcp_connect("172.16.0.1:8080", s(3)).expect_err("forbidden");
    drop(listener);

    site.ctl(&["publish", "5000", "172.18.0.10:80"]);
    let listener = c.ns.tcp_listen("172.18.0.10:80");
    let mut client = wan.tcp_connect("172.16.0.2:5000", s(3)).expect("published");
    let (mut server, _) = listener.accept().expect("a connection");
    assert!(says(&mut client, &mut server) && says(&mut server, &mut client));
    // The port is the container's, not the host's.
    site.ctl(&["deny", "outside", "c1", "tcp/5000"]);
    assert!(says(&mut client, &mut server));
    site.ctl(&["deny", "outside", "c1", "tcp/80"]);
    assert!(!says(&mut client, &mut server), "it goes on");
    wan.tcp_connect("172.16.0.2:5000", s(2)).expect_err("forbidden");
}

#[test]
fn a_restart_keeps_rules_limits_and_guards() {
    let mut site = Site::new();
    let a = site.container("a1", Way::Attach, "172.18.0.10");
    let b = site.container("b1", Way::Attach, "172.18.0.20");
    site.ctl(&["deny", "a1", "b1"]);
    site.ctl(&["allow", "b1", "host", "tcp/1-1024"]);
    site.ctl(&["port", "set", "a1", "--rate-in", "100mbit", "--burst-in", "64k", "--storm", "1kpps"]);
    site.ctl(&["port", "set", "a1", "--max-connections", "9", "--source", "172.18.0.99"]);
    let all = |site: &Site| {
        let port = site.port("a1");
        (site.rows(&["policy"]), port["limits"].clone(), port["guard"].clone())
    };
    let before = all(&site);
    assert_eq!(before.0.len(), 2);
    assert_eq!(
        before.1["rate_in"],
        serde_json::json!({"per_second": 100_000_000, "unit": "bits", "burst": 65536})
    );
    assert_eq!(before.1["max_connections"], 9);
    site.kill();
    site.start();
    assert_eq!(all(&site), before, "after kill -9");
    assert_eq!(site.terminate(), 0);
    site.start();
    assert_eq!(all(&site), before);
    assert!(!a.ns.pings("172.18.0.20"));
    b.ns.ping("172.18.0.10");
    // A rule waits for a port of its name; limits go with the port.
    site.ctl(&["detach", "a1"]);
    let anew = site.container("a1", Way::Attach, "172.18.0.10");
    assert!(!anew.ns.pings("172.18.0.20"), "what was forbidden comes back open");
    assert!(site.port("a1")["limits"]["rate_in"].is_null());
}

#[test]
fn errors_name_what_conflicts() {
    let site = Site::new();
    site.ctl(&["network", "add", "alone", "--subnet", "172.19.0.0/16", "--no-host-access"]);
    let _a = site.container_in("alone", "alone", Way::Attach, "172.19.0.10");
    let _b = site.container("b1", Way::Attach, "172.18.0.20");
    for (words, hint) in [
        (&["allow", "nobody", "host"][..], "there is no network or port nobody"),
        (&["allow", "alone", "b1"], "network:alone or port:alone"),
        (&["deny", "network:alone", "host"], "--no-host-access"),
        (&["deny", "port:alone", "host"], "--no-host-access"),
        (&["allow", "host", "outside"], "does not pass swd"),
        (&["deny", "b1", "b1"], "to itself"),
        (&["allow", "sw0", "b1"], "say 'host'"),
        (&["policy", "rm", "b1", "host"], "there is no rule from b1 to host"),
        (&["port", "set", "sw0", "--rate-in", "1mbit"], "host end"),
        (&["port", "set", "nobody", "--storm", "none"], "there is no port nobody"),
        (&["port", "set", "b1", "--source", "01:00:00:00:00:01"], "multicast"),
    ] {
        let error = site.try_ctl(words).one_line_error();
        assert!(error.contains(hint), "{words:?}: {error}");
    }
    for words in [
        &["allow", "b1", "host", "icmp/8"][..],
        &["allow", "b1", "host", "tcp/0"],
        &["allow", "b1", "host:x"],
        &["port", "set", "b1"],
        &["port", "set", "b1", "--rate-in", "fast"],
        &["port", "set", "b1", "--burst-in", "64k"],
        &["port", "set", "b1", "--max-connections", "0"],
    ] {
        assert_eq!(site.try_ctl(words).code(), 2, "{words:?}");
    }
    assert!(site.rows(&["policy"]).is_empty());
    site.ctl(&["allow", "network:alone", "b1"]);
    site.ctl(&["deny", "network:alone", "b1"]);
    let rules = site.rows(&["policy"]);
    assert_eq!(rules.len(), 1, "a rule about the same takes the place of the other");
    assert_eq!(rules[0]["action"], "deny");
    let text = site.ctl(&["policy"]);
    assert!(text.contains("deny    network:alone  port:b1  -"), "{text}");
}
