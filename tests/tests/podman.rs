//! Containers of a real Podman on swd, by its CNI backend and the plugin `swd-cni`: they find each other by name, are published, come and
//! go, and outlive restarts of swd; afterwards nothing is left.

use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::containers::{Containers, a_thousand_ports_cost_little, address_in, attached, nothing_is_left};
use tests::outside::Outside;
use tests::podman::{IMAGE, Podman};
use tests::process::wait_for_answer;
use tests::site::{Site, heavy};

/// A host with swd, an outside and Podman. What is dropped first comes last.
fn world() -> (Site, Outside, Podman) {
    let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
    let wan = Outside::new(&site.host);
    let podman = Podman::start(&mut site);
    (site, wan, podman)
}

#[test]
fn containers_are_reached_by_name_by_address_and_by_their_published_ports() {
    let (site, wan, podman) = world();
    let fixed = "lan:ip=172.18.0.77,mac=02:42:00:00:00:77";
    podman.serve("one", fixed, &["-p", "5000:80", "-p", "6000-6099:6000-6099"]);
    podman.serve("two", "lan", &["--network-alias", "second"]);
    assert_eq!(site.rows(&["published"]).len(), 2, "ports in a row are one publish");
    for whom in ["172.18.0.77", "one", "172.18.0.1", "172.16.0.1"] {
        assert!(podman.pings("two", whom), "{whom}");
    }
    podman.reach_published(&site, &wan, 5000, "I am one", &["two", "one"]);
    // By its name, with and without the network's, and by an alias.
    for (asks, name, says) in [("two", "one", "one"), ("two", "one.default", "one"), ("one", "second", "two")]
    {
        assert_eq!(podman.ask(asks, name), Ok(format!("I am {says}")), "{name}");
    }
    assert_eq!(podman.podman(&["port", "one", "80"]), "0.0.0.0:5000");
    let shown = podman.podman(&["exec", "one", "ip", "link", "show", "eth0"]);
    assert!(shown.contains("02:42:00:00:00:77"), "{shown}");
    podman.remove(&["one", "two"]);
    assert!(site.host.http("127.0.0.1:5000").is_err());
    nothing_is_left(&site);
}

#[test]
fn networks_are_joined_live_closed_internal_or_isolated() {
    let (site, _wan, podman) = world();
    podman.network("web", &json!({ "subnets": ["172.20.0.0/16"], "mtu": 1400 }));
    podman.network("inner", &json!({ "subnets": ["172.22.0.0/16"], "internal": true }));
    podman.network("apart", &json!({ "subnets": ["172.23.0.0/16"], "isolatePorts": true }));

    // A second network, live, and gone again.
    podman.serve("db", "web", &[]);
    podman.serve("other", "lan", &["-p", "5001:80"]);
    let db = address_in(&site, "web");
    assert!(!podman.pings("other", &db), "networks are closed to each other");
    podman.podman(&["network", "connect", "web", "other"]);
    assert!(podman.pings("other", &db) && podman.pings("other", "172.18.0.1"));
    let links = podman.podman(&["exec", "other", "ip", "link"]);
    assert!(links.contains("eth1") && links.contains("mtu 1400"), "{links}");
    podman.podman(&["network", "disconnect", "web", "other"]);
    assert!(site.host.http("127.0.0.1:5001").is_ok(), "what is published leads to the first network");
    assert!(!podman.pings("other", &db) && podman.pings("other", "172.18.0.1"));

    // No way out, by names neither, and ports are not published.
    podman.serve("hidden", "inner", &[]);
    podman.serve("beside", "inner", &["--cap-add", "NET_ADMIN"]);
    assert!(podman.pings("beside", "hidden"));
    for away in ["172.16.0.1", "example.org"] {
        assert!(!podman.pings("beside", away), "{away}");
    }
    podman.podman(&["exec", "beside", "ip", "route", "replace", "default", "via", "172.22.0.1"]);
    assert!(!podman.pings("beside", "172.16.0.1"), "a route of its own must not help");
    assert!(site.drops("prohibited") > 0);
    let refused = podman.try_serve("shown", "inner", &["-p", "5000:80"]);
    assert!(refused.stderr.contains("network inner is internal"), "{refused}");
    podman.remove(&["shown"]);

    // Containers that may not talk to each other.
    podman.serve("left", "apart", &[]);
    podman.serve("right", "apart", &[]);
    assert!(podman.pings("left", "172.16.0.1") && !podman.pings("left", "right"));

    // One that is in use stays.
    let refused = podman.try_podman(&["network", "rm", "web"]);
    assert!(!refused.status.success() && refused.stderr.contains("network is being used"), "{refused}");
    let refused = site.try_ctl(&["network", "rm", "web"]).one_line_error();
    assert!(refused.contains("it has ports"), "{refused}");
    podman.remove(&["db", "other", "hidden", "beside", "left", "right"]);
    nothing_is_left(&site);
    podman.podman(&["network", "rm", "web", "inner", "apart"]);
    assert!(site.row(&["network", "ls"], "name", "web").is_some(), "CNI has no word for its end");
    for name in ["web", "inner", "apart"] {
        site.ctl(&["network", "rm", name]);
    }
}

#[test]
fn containers_come_back_and_outlive_swd() {
    let (mut site, wan, podman) = world();
    let (reached, says) = (|| wan.http("172.16.0.2:5000"), "I am one");
    podman.serve("one", "lan", &["-p", "5000:80"]);
    podman.serve("two", "lan", &[]);
    wait_for_answer(says, reached);

    // Podman has no daemon: what is restarted is the container.
    let port = || attached(&site).iter().map(|p| p["since"].clone()).max_by_key(Value::to_string);
    let before = port();
    podman.podman(&["restart", "-t", "0", "one"]);
    wait_for_answer(says, reached);
    assert!(port() != before && attached(&site).len() == 2, "a new port in place of the old one");
    wait_for_answer(says, || podman.ask("two", "one"));
    podman.podman(&["stop", "-t", "0", "one"]);
    assert_eq!((attached(&site).len(), site.rows(&["published"]).len()), (1, 0));
    podman.podman(&["start", "one"]);
    wait_for_answer(says, reached);
    // One that ends by itself.
    podman.podman(&["kill", "one"]);
    podman.podman(&["wait", "one"]);
    podman.podman(&["start", "one"]);
    wait_for_answer(says, reached);

    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        podman.enclosure.stop_swd(&mut site, signal);
        let refused = podman.try_serve("late", "lan", &[]);
        assert!(refused.stderr.contains("cannot reach swd at"), "{refused}");
        podman.enclosure.start_swd(&mut site);
        podman.remove(&["late"]);
        wait_for_answer(says, || wan.http("172.16.0.2:5000"));
        assert!(podman.pings("two", "one"), "{signal}");
        // What is new finds what is old.
        podman.serve("late", "lan", &["-p", "5001:80"]);
        wait_for_answer("I am late", || wan.http("172.16.0.2:5001"));
        assert_eq!(podman.ask("late", "one").as_deref(), Ok(says));
        podman.remove(&["late"]);
        assert_eq!((attached(&site).len(), site.rows(&["published"]).len()), (2, 1));
    }
    // A container that is removed while swd is away.
    podman.enclosure.stop_swd(&mut site, Signal::SIGKILL);
    podman.try_podman(&["rm", "-f", "-t", "0", "one", "two"]);
    podman.enclosure.start_swd(&mut site);
    nothing_is_left(&site);
}

#[test]
fn ports_are_published_by_the_thousand_and_refused_clearly() {
    // The time that it takes is looked at.
    let _heavy = heavy();
    let (site, wan, podman) = world();
    let range = ["-p", "5000-5999:80-1079"];
    a_thousand_ports_cost_little("podman run", |with| {
        let start = Instant::now();
        podman.serve("one", "lan", if with { &range } else { &[] });
        let took = start.elapsed();
        wait_for_answer("I am one", || site.host.http(&address_in(&site, "default")));
        podman.remove(&["one"]);
        took
    });
    podman.serve("one", "lan", &range);
    podman.reach_published(&site, &wan, 5000, "I am one", &[]);
    let published = site.rows(&["published"]);
    assert_eq!((published.len(), &published[0]["name"]), (1, &json!("5000-5999/tcp")));

    // Taken: by a container, by a program of the host.
    let refused = podman.try_serve("late", "lan", &["-p", "5500:80"]);
    assert!(refused.stderr.contains("take it back first"), "{refused}");
    podman.remove(&["late"]);
    let listener = site.host.tcp_listen("0.0.0.0:7000");
    let refused = podman.try_serve("late", "lan", &["-p", "6999-7001:80-82"]);
    assert!(refused.stderr.contains("cannot publish 6999-7001/tcp"), "{refused}");
    drop(listener);
    assert_eq!((attached(&site).len(), site.rows(&["published"]).len()), (1, 1), "all or none");
    podman.remove(&["late", "one"]);
    nothing_is_left(&site);
    let left = podman.podman(&["ps", "-aq"]);
    assert_eq!(left, "", "{IMAGE} is in use");
}
