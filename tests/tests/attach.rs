//! `attach`, `detach` and `run`: addresses are leased, kept and freed, and what `run` starts is as if started without it.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::for_each_port_kind;
use tests::netns::Namespace;
use tests::process::{Background, TIMEOUT, ms, run_with_input, s, wait_for, wait_until};
use tests::site::{GATEWAY, Site, Way};

fn attach(site: &Site, way: Way, ns: &Namespace, more: &[&str]) -> String {
    let mut words = vec!["attach", ns.name()];
    words.extend(more);
    if way == Way::Tap {
        words.push("--tap");
    }
    site.ctl(&words);
    address_of(ns)
}

/// The first IPv4 address of `eth0`.
fn address_of(ns: &Namespace) -> String {
    let shown = ns.ip_json(&["-4", "addr", "show", "dev", "eth0"]);
    shown[0]["addr_info"][0]["local"].as_str().expect("an address").to_owned()
}

fn leases(site: &Site) -> u64 {
    site.row(&["network", "ls"], "name", "default").expect("default")["leases"].as_u64().expect("a number")
}

fn has_port(site: &Site, name: &str) -> bool {
    site.row(&["port", "ls"], "name", name).is_some()
}

for_each_port_kind! {
    fn addresses_are_leased_kept_and_freed(way) {
        let mut site = Site::new();
        let spaces: Vec<_> = (0..3).map(|_| Namespace::new()).collect();
        let given: Vec<_> = spaces.iter().map(|ns| attach(&site, way, ns, &["--name", ns.name()])).collect();
        assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 3, "an address was given twice: {given:?}");
        assert!(!given.iter().any(|a| a == GATEWAY));
        assert_eq!(leases(&site), 3);
        let port = site.port(spaces[0].name());
        assert_eq!(port["addresses"][0].as_str(), Some(format!("{}/16", given[0]).as_str()), "{port}");
        assert_eq!(port["container_ifname"], "eth0", "{port}");
        assert!(port["netns"].as_str().is_some_and(|n| n.contains(spaces[0].name())), "{port}");
        spaces[0].ping(&given[1]);

        // Leases are kept over a kill: nobody gets an address that somebody has.
        site.kill();
        site.start();
        assert_eq!(leases(&site), 3);
        let fourth = Namespace::new();
        let new = attach(&site, way, &fourth, &["--name", "fourth"]);
        assert!(!given.contains(&new), "{new} was given twice");
        fourth.ping(&given[0]);

        // Freed by detach, and by the namespace's end.
        site.ctl(&["detach", "fourth"]);
        assert_eq!(leases(&site), 3);
        assert_eq!(fourth.links(), ["lo"], "the interface was left behind");
        let again = attach(&site, way, &fourth, &["--name", "fourth", "--ip", &new]);
        assert_eq!(again, new, "a freed address can be had again");
        fourth.delete();
        wait_until("the dead namespace's lease is freed", s(10), || leases(&site) == 3);
        wait_until("the dead namespace's port is gone", s(10), || !has_port(&site, "fourth"));
        let fifth = Namespace::new();
        assert_eq!(attach(&site, way, &fifth, &["--name", "fifth", "--ip", &new]), new);
        fifth.ping(&given[0]);
    }

    fn an_address_is_not_reused_at_once(way) {
        // A peer that still has the old one's MAC address or connections must not talk to the new one.
        let site = Site::new();
        let (a, b) = (Namespace::new(), Namespace::new());
        let first = attach(&site, way, &a, &["--name", "a"]);
        site.ctl(&["detach", "a"]);
        let second = attach(&site, way, &b, &["--name", "b"]);
        assert_ne!(first, second);
    }

    fn an_address_seen_in_use_is_skipped(way) {
        let site = Site::new();
        // Somebody configured by hand what the pool would give out next.
        let (probe, next) = (Namespace::new(), Namespace::new());
        let first = attach(&site, way, &probe, &["--name", "probe"]);
        let number = |a: &str| a.rsplit('.').next().and_then(|n| n.parse::<u8>().ok()).expect("an IPv4 address");
        let expected: Vec<_> = (1..=3).map(|n| format!("172.18.0.{}", number(&first) + n)).collect();
        let squatter = site.container("squatter", Way::PortAdd, &expected[0]);
        for address in &expected[1..] {
            squatter.ns.ip(&["addr", "add", &format!("{address}/16"), "dev", "eth0"]);
        }
        // Each address is announced (gratuitous ARP), or used as the source of an ARP request.
        for address in &expected {
            squatter.ns.run(&["ping", "-n", "-c1", "-W1", "-I", address, GATEWAY]).ok();
            squatter.ns.run(&["ping", "-n", "-c1", "-W1", "-I", address, &first]).ok();
        }
        let given = attach(&site, way, &next, &["--name", "next"]);
        assert!(!expected.contains(&given), "{given} is in use by somebody else");
        next.ping(&first);
    }

    fn a_wanted_address_is_given(way) {
        let site = Site::new();
        site.ctl(&["network", "add", "dual", "--subnet", "172.19.0.0/16", "--subnet", "fd00:19::/64", "--gateway", "172.19.9.9"]);
        let (a, b) = (Namespace::new(), Namespace::new());
        let wanted = ["--network", "dual", "--name", "a", "--ip", "172.19.7.7", "--ip", "fd00:19::77"];
        assert_eq!(attach(&site, way, &a, &wanted), "172.19.7.7");
        let other = attach(&site, way, &b, &["--network", "dual", "--name", "b", "--ifname", "eth0"]);
        b.ping("172.19.7.7");
        a.ping(&other);
        a.ping("172.19.9.9");
        b.ping("fd00:19::77");
        a.ping("fd00:19::1");
        let route = a.ip_json(&["route", "show", "default"]);
        assert_eq!(route[0]["gateway"], "172.19.9.9", "{route:?}");
        let route6 = a.ip_json(&["-6", "route", "show", "default"]);
        assert_eq!(route6[0]["gateway"], "fd00:19::1", "{route6:?}");
    }

    fn one_namespace_can_be_in_two_networks(way) {
        let site = Site::new();
        site.ctl(&["network", "add", "back", "--subnet", "172.19.0.0/16"]);
        let ns = Namespace::new();
        attach(&site, way, &ns, &["--name", "front0", "--ip", "172.18.0.10"]);
        let mut words = vec!["attach", ns.name(), "--name", "back0", "--network", "back", "--ip", "172.19.0.10", "--ifname", "eth1"];
        if way == Way::Tap {
            words.push("--tap");
        }
        site.ctl(&words);
        ns.ping(GATEWAY);
        ns.ping("172.19.0.1");
        site.ctl(&["detach", "back0"]);
        ns.ping(GATEWAY);
        assert!(!ns.links().contains(&"eth1".to_owned()));
    }

    fn a_process_is_a_namespace_too(way) {
        let site = Site::new();
        let ns = Namespace::new();
        let sleeper = ns.start(&["sleep", "100"], &site.file("sleep.log"));
        let pid = sleeper.pid().to_string();
        wait_until("the process is in its namespace", s(5), || {
            let inside = |path: &str| fs::read_link(path).ok();
            inside(&format!("/proc/{pid}/ns/net")) != inside("/proc/self/ns/net")
        });
        let mut words = vec!["attach", &pid, "--name", "by-pid", "--ip", "172.18.0.10"];
        if way == Way::Tap {
            words.push("--tap");
        }
        site.ctl(&words);
        ns.ping(GATEWAY);
    }

    fn many_attach_at_once(way) {
        let site = Site::new();
        let spaces: Vec<_> = (0..24).map(|_| Namespace::new()).collect();
        thread::scope(|scope| {
            for chunk in spaces.chunks(6) {
                let site = &site;
                scope.spawn(move || {
                    for ns in chunk {
                        attach(site, way, ns, &["--name", ns.name()]);
                    }
                });
            }
        });
        let given: BTreeSet<_> = spaces.iter().map(address_of).collect();
        assert_eq!(given.len(), spaces.len(), "an address was given twice");
        assert_eq!(leases(&site), 24);
        for address in &given {
            assert!(spaces[0].pings(address), "{address} does not answer");
        }
        thread::scope(|scope| {
            for chunk in spaces.chunks(6) {
                let site = &site;
                scope.spawn(move || {
                    for ns in chunk {
                        site.ctl(&["detach", ns.name()]);
                    }
                });
            }
        });
        assert_eq!(leases(&site), 0);
        assert!(site.rows(&["port", "ls"]).iter().all(|p| p["kind"] == "host"));
    }
}

#[test]
fn a_small_pool_runs_out_and_recovers() {
    let site = Site::new();
    // 172.19.0.1 is the gateway, .2 to .6 are left.
    site.ctl(&["network", "add", "small", "--subnet", "172.19.0.0/29"]);
    let spaces: Vec<_> = (0..6).map(|_| Namespace::new()).collect();
    for ns in &spaces[..5] {
        attach(&site, Way::Attach, ns, &["--name", ns.name(), "--network", "small"]);
    }
    let error = site.try_ctl(&["attach", spaces[5].name(), "--network", "small"]).one_line_error();
    assert!(error.contains("small"), "{error}");
    assert_eq!(spaces[5].links(), ["lo"]);
    site.ctl(&["detach", spaces[2].name()]);
    attach(&site, Way::Attach, &spaces[5], &["--name", "last", "--network", "small"]);
    spaces[5].ping("172.19.0.1");
}

/// `swctl run` with these words before the command.
fn run_words<'a>(way: Way, more: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["run"];
    words.extend(more);
    if way == Way::Tap {
        words.push("--tap");
    }
    words.push("--");
    words.extend(command);
    words
}

/// Nothing of a run may be left.
fn wait_until_clean(site: &Site) {
    wait_until("the port of the run is gone", s(10), || {
        site.rows(&["port", "ls"]).iter().all(|p| p["kind"] == "host")
    });
    wait_until("its lease is freed", s(10), || leases(site) == 0);
    wait_until("no interface is left", s(10), || site.switch().links().len() == 2);
}

for_each_port_kind! {
    fn run_passes_everything_through(way) {
        let site = Site::new();
        let ctl = |command: &[&str], input: &[u8]| {
            let words = run_words(way, &["--ip", "172.18.0.10"], command);
            run_with_input(&mut site.swctl_command(&words), input, TIMEOUT)
        };
        let out = ctl(&["sh", "-c", "cat; echo to-stderr >&2; exit 7"], b"to stdin\n");
        assert_eq!(out.code(), 7, "{out}");
        assert_eq!(out.stdout, "to stdin\n", "{out}");
        assert_eq!(out.stderr, "to-stderr\n", "{out}");
        wait_until_clean(&site);

        let out = ctl(&["ping", "-n", "-c2", "-i0.1", GATEWAY], b"").ok();
        assert!(out.stdout.contains("2 received"), "{out}");
        let out = ctl(&["ip", "-o", "-4", "addr", "show", "dev", "eth0"], b"").ok();
        assert!(out.stdout.contains("172.18.0.10/16"), "{out}");
        let out = ctl(&["/nonexistent/program"], b"");
        assert_eq!(out.code(), 127, "{out}");
        let out = ctl(&["sh", "-c", "kill -9 $$"], b"");
        assert_eq!(out.code(), 137, "{out}");
        wait_until_clean(&site);
    }

    fn two_runs_talk_to_each_other(way) {
        let site = Site::new();
        let python = tests::process::python().to_str().expect("UTF-8");
        let page = site.file("www");
        fs::create_dir_all(&page).expect("mkdir");
        fs::write(page.join("hello"), "hello from web\n").expect("write");
        let serve = [python, "-m", "http.server", "--directory", page.to_str().expect("UTF-8"), "80"];
        let words = run_words(way, &["--name", "web", "--ip", "172.18.0.10"], &serve);
        let web = Background::start(&mut site.swctl_command(&words), &site.file("web.log"));
        wait_until("the web server answers another run", s(15), || {
            let curl = ["curl", "-sS", "--max-time", "2", "http://172.18.0.10/hello"];
            site.try_ctl(&run_words(way, &[], &curl)).stdout == "hello from web\n"
        });
        assert_eq!(site.port("web")["state"], "up");
        assert!(web.log().contains("GET /hello"), "{}", web.log());
        web.signal(Signal::SIGTERM);
        let mut web = web;
        assert_eq!(web.wait(s(5)), Some(143), "{}", web.log());
        wait_until_clean(&site);
    }

    fn run_forwards_signals(way) {
        let site = Site::new();
        let script = "trap 'echo got-term; exit 5' TERM; trap 'echo got-hup' HUP; echo started; while :; do sleep 0.05; done";
        let words = run_words(way, &["--name", "r1"], &["sh", "-c", script]);
        let mut child = Background::start(&mut site.swctl_command(&words), &site.file("run.log"));
        wait_until("it runs", s(10), || child.log().contains("started"));
        child.signal(Signal::SIGHUP);
        wait_until("SIGHUP came through", s(5), || child.log().contains("got-hup"));
        child.signal(Signal::SIGTERM);
        assert_eq!(child.wait(s(5)), Some(5), "{}", child.log());
        assert!(child.log().contains("got-term"), "{}", child.log());
        wait_until_clean(&site);
    }

    fn run_cleans_up_when_it_is_killed(way) {
        let site = Site::new();
        for round in [0, 1] {
            let words = run_words(way, &["--name", "r1", "--ip", "172.18.0.10"], &["sleep", "1000"]);
            let child = Background::start(&mut site.swctl_command(&words), &site.file("run.log"));
            wait_until("it runs", s(10), || has_port(&site, "r1"));
            let is_sleep = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "sleep\n");
            // In the second round swctl is killed as early as that: its child is not the command yet.
            let command = wait_for("its command runs", s(10), || {
                children(child.pid()).into_iter().find(|pid| round == 1 || is_sleep(pid))
            });
            drop(child); // kill -9
            wait_until("the command is gone, too", s(10), || {
                let state = fs::read_to_string(format!("/proc/{command}/stat"));
                state.is_err() || state.is_ok_and(|s| s.contains(") Z "))
            });
            wait_until_clean(&site);
        }
    }

    fn run_goes_on_when_swd_is_restarted(way) {
        let mut site = Site::new();
        let words = run_words(way, &["--name", "r1"], &["ping", "-n", "-i", "0.1", GATEWAY]);
        let mut child = Background::start(&mut site.swctl_command(&words), &site.file("run.log"));
        wait_until("it runs", s(10), || child.log().contains("time="));
        site.kill();
        site.start();
        let before = child.log().matches("time=").count();
        wait_until("it goes on", s(5), || child.log().matches("time=").count() > before + 3);
        child.signal(Signal::SIGINT);
        assert_eq!(child.wait(s(5)), Some(0), "{}", child.log());
        wait_until_clean(&site);
    }
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|t| fs::read_to_string(t.path().join("children")).ok());
    lists.flat_map(|l| l.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect()
}

#[test]
fn events_tell_what_happens() {
    let site = Site::new();
    let mut command = site.swctl_command(&["events", "--json"]);
    let log = site.file("events.log");
    let events = Background::start(command.stdin(Stdio::null()), &log);
    thread::sleep(ms(500));
    let ns = Namespace::new();
    attach(&site, Way::Attach, &ns, &["--name", "c1"]);
    site.ctl(&["detach", "c1"]);
    site.ctl(&["network", "add", "n1", "--subnet", "172.19.0.0/16"]);
    site.ctl(&["network", "rm", "n1"]);
    let kinds = || -> Vec<String> {
        let lines: Vec<Value> = events.log().lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        lines.iter().filter_map(|e| e["kind"].as_str().map(str::to_owned)).collect()
    };
    for kind in [
        "port-added",
        "address-leased",
        "port-removed",
        "address-released",
        "network-added",
        "network-removed",
    ] {
        wait_until(&format!("the event {kind}: {:?}", kinds()), s(5), || kinds().iter().any(|k| k == kind));
    }
}
