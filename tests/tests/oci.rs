//! `swctl attach` as the hook of an OCI runtime, runc: containers find each other by name, are published, come and go, and outlive
//! restarts of swd; afterwards nothing is left.

use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::json;
use tests::containers::{Containers, a_thousand_ports_cost_little, address_in, attached, nothing_is_left};
use tests::outside::Outside;
use tests::process::{s, wait_for_answer, wait_until};
use tests::runc::Runc;
use tests::site::{GATEWAY, Site, heavy};

/// A host with swd, an outside and runc. What is dropped first comes last.
fn world() -> (Site, Outside, Runc) {
    let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
    let wan = Outside::new(&site.host);
    let runc = Runc::start(&mut site);
    (site, wan, runc)
}

#[test]
fn a_hook_attaches_before_the_program_starts() {
    let (site, _wan, runc) = world();
    let script = "ip -o addr show eth0; ip route; nc -w 3 172.18.0.1 7 </dev/null && echo open";
    let bundle = runc.bundle("job", script, GATEWAY, &["--ip", "172.18.0.66"]);
    let listener = site.host.tcp_listen("172.18.0.1:7");
    // One client, who is hung up on.
    let server = thread::spawn(move || drop(listener.accept()));
    let out = runc.runc(&["run", "--bundle", bundle.to_str().expect("UTF-8"), "job"]);
    server.join().expect("the client came");
    for part in ["172.18.0.66/16", "default via 172.18.0.1", "open"] {
        assert!(out.stdout.contains(part), "{part}: {out}");
    }
    // It ends with the container.
    nothing_is_left(&site);
}

#[test]
fn containers_are_reached_by_name_by_address_and_by_their_published_ports() {
    let (site, wan, runc) = world();
    runc.serve("one", GATEWAY, &["--ip", "172.18.0.77", "-p", "5000:80", "-p", "6000-6099:6000"]);
    runc.serve("two", GATEWAY, &["--alias", "second"]);
    assert_eq!(site.rows(&["published"]).len(), 2, "a range is one publish");
    for whom in ["172.18.0.77", "one", GATEWAY, "172.16.0.1"] {
        assert!(runc.pings("two", whom), "{whom}");
    }
    runc.reach_published(&site, &wan, 5000, "I am one", &["two", "one"]);
    for (asks, name, says) in [("two", "one", "one"), ("two", "one.default", "one"), ("one", "second", "two")]
    {
        assert_eq!(runc.ask(asks, name), Ok(format!("I am {says}")), "{name}");
    }
    runc.remove(&["one", "two"]);
    nothing_is_left(&site);
    assert!(site.host.http("127.0.0.1:5000").is_err());
}

#[test]
fn networks_are_joined_live_closed_internal_or_isolated() {
    let (site, _wan, runc) = world();
    for (name, subnet, more) in [
        ("web", "172.20.0.0/16", "--mtu=1400"),
        ("inner", "172.22.0.0/16", "--internal"),
        ("apart", "172.23.0.0/16", "--isolate-ports"),
    ] {
        site.ctl(&["network", "add", name, "--subnet", subnet, more]);
    }

    // A second network, live, and gone again.
    runc.serve("db", "172.20.0.1", &["--network", "web"]);
    runc.serve("other", GATEWAY, &[]);
    let db = address_in(&site, "web");
    assert!(!runc.pings("other", &db), "networks are closed to each other");
    let attach = ["--network", "web", "--ifname", "eth1", "--name", "other-web"];
    site.ctl(&[&["attach", &runc.pid("other")], &attach[..]].concat());
    assert!(runc.pings("other", &db) && runc.pings("other", GATEWAY));
    let links = runc.try_exec("other", &["ip", "link"]).ok().stdout;
    assert!(links.contains("eth1") && links.contains("mtu 1400"), "{links}");
    site.ctl(&["detach", "other-web"]);
    assert!(!runc.pings("other", &db) && runc.pings("other", GATEWAY));

    // No way out, by names neither, and nothing is published.
    runc.serve("hidden", "172.22.0.1", &["--network", "inner"]);
    runc.serve("beside", "172.22.0.1", &["--network", "inner"]);
    assert!(runc.pings("beside", "hidden"));
    for away in ["172.16.0.1", "example.org"] {
        assert!(!runc.pings("beside", away), "{away}");
    }
    assert!(site.drops("prohibited") > 0);
    let refused = runc.try_serve("shown", "172.22.0.1", &["--network", "inner", "-p", "5000:80"]);
    assert!(!refused.status.success() && refused.stderr.contains("network inner is internal"), "{refused}");

    // Containers that may not talk to each other.
    runc.serve("left", "172.23.0.1", &["--network", "apart"]);
    runc.serve("right", "172.23.0.1", &["--network", "apart"]);
    assert!(runc.pings("left", "172.16.0.1") && !runc.pings("left", "right"));

    // One that is in use stays.
    let refused = site.try_ctl(&["network", "rm", "web"]).one_line_error();
    assert!(refused.contains("it has ports (db)"), "{refused}");
    runc.remove(&["db", "other", "hidden", "beside", "left", "right"]);
    nothing_is_left(&site);
    for name in ["web", "inner", "apart"] {
        site.ctl(&["network", "rm", name]);
    }
}

#[test]
fn containers_come_back_and_outlive_swd() {
    let (mut site, wan, runc) = world();
    runc.serve("one", GATEWAY, &["-p", "5000:80"]);
    runc.serve("two", GATEWAY, &[]);
    wait_for_answer("I am one", || wan.http("172.16.0.2:5000"));

    // A container that ends takes all of it along, and is there again under its name.
    runc.runc(&["kill", "one", "KILL"]);
    wait_until("its port is gone", s(10), || attached(&site).len() == 1);
    assert_eq!(site.rows(&["published"]).len(), 0);
    runc.remove(&["one"]);
    runc.serve("one", GATEWAY, &["-p", "5000:80"]);
    wait_for_answer("I am one", || wan.http("172.16.0.2:5000"));
    wait_for_answer("I am one", || runc.ask("two", "one"));

    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        runc.enclosure.stop_swd(&mut site, signal);
        let refused = runc.try_serve("late", GATEWAY, &[]);
        assert!(!refused.status.success() && refused.stderr.contains("cannot reach swd at"), "{refused}");
        runc.enclosure.start_swd(&mut site);
        wait_for_answer("I am one", || wan.http("172.16.0.2:5000"));
        assert!(runc.pings("two", "one"), "{signal}");
        // What is new finds what is old.
        runc.serve("late", GATEWAY, &["-p", "5001:80"]);
        wait_for_answer("I am late", || wan.http("172.16.0.2:5001"));
        assert_eq!(runc.ask("late", "one").as_deref(), Ok("I am one"));
        runc.remove(&["late"]);
        wait_until("its port is gone", s(10), || attached(&site).len() == 2);
    }
    // Containers that end while swd is away.
    runc.enclosure.stop_swd(&mut site, Signal::SIGKILL);
    runc.remove(&["one", "two"]);
    runc.enclosure.start_swd(&mut site);
    nothing_is_left(&site);
}

#[test]
fn ports_are_published_by_the_thousand_and_refused_clearly() {
    // The time that it takes is looked at.
    let _heavy = heavy();
    let (site, wan, runc) = world();
    let range = ["-p", "5000-5999:80"];
    a_thousand_ports_cost_little("runc run", |with| {
        let start = Instant::now();
        runc.serve("one", GATEWAY, if with { &range } else { &[] });
        let took = start.elapsed();
        wait_for_answer("I am one", || site.host.http(&address_in(&site, "default")));
        runc.remove(&["one"]);
        wait_until("its port is gone", s(10), || attached(&site).is_empty());
        took
    });
    runc.serve("one", GATEWAY, &range);
    runc.reach_published(&site, &wan, 5000, "I am one", &[]);
    let published = site.rows(&["published"]);
    assert_eq!((published.len(), &published[0]["name"]), (1, &json!("5000-5999/tcp")));

    // Taken: by a container, by a program of the host, and the name.
    let listener = site.host.tcp_listen("0.0.0.0:7000");
    for (name, options, said) in [
        ("late", &["-p", "5500:80"][..], "take it back first"),
        ("late", &["-p", "4000:80", "-p", "6999-7001:80"], "cannot publish 6999-7001/tcp"),
    ] {
        let refused = runc.try_serve(name, GATEWAY, options);
        assert!(!refused.status.success() && refused.stderr.contains(said), "{refused}");
    }
    drop(listener);
    assert_eq!((attached(&site).len(), site.rows(&["published"]).len()), (1, 1), "all or none");
    runc.remove(&["one"]);
    nothing_is_left(&site);
}
