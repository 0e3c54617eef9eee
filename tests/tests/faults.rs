//! Things end, vanish and come back, and nobody else notices.

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::for_each_port_kind;
use tests::netns::Namespace;
use tests::process::{Background, binary, ms, s, wait_until};
use tests::site::{Container, GATEWAY, Site, Way, heavy, quiet};

/// Pings that must all be answered, every 2 ms.
fn ping_all_along(site: &Site, from: &Container, to: &Container, count: u32) -> Background {
    let count = count.to_string();
    let log = site.file("ping.log");
    from.ns.start(&["ping", "-n", "-q", "-i", "0.002", "-c", &count, "-W", "2", &to.address], &log)
}

fn assert_none_lost(ping: Background, count: u32) {
    let report = ping.finish(s(60));
    assert!(report.contains(&format!("{count} packets transmitted, {count} received")), "{report}");
}

/// TCP as fast as it goes, until dropped.
fn load(site: &Site, from: &Container, to: &Container) -> [Background; 2] {
    let server = to.ns.start(&["iperf3", "-s", "-1"], &site.file("iperf3-server.log"));
    wait_until("iperf3 listens", s(10), || {
        to.ns.run(&["ss", "-Hltn", "sport = :5201"]).stdout.contains("5201")
    });
    let log = site.file("iperf3-client.log");
    let client = from.ns.start(&["iperf3", "-c", &to.address, "-t", "60"], &log);
    wait_until("the load is on", s(10), || site.port(&to.port)["tx_bytes"].as_u64() > Some(10_000_000));
    [server, client]
}

/// Waits for a ping to be answered, asking every 50 ms.
fn answers_within(limit: Duration, from: &Namespace, to: &str) -> Result<Duration, String> {
    let begin = Instant::now();
    loop {
        if from.run(&["ping", "-n", "-c1", "-W0.05", to]).status.success() {
            let took = begin.elapsed();
            return if took <= limit {
                Ok(took)
            } else {
                Err(format!("{to} answered after {took:?}, not within {limit:?}"))
            };
        }
        if begin.elapsed() > limit + s(5) {
            return Err(format!("{to} does not answer"));
        }
    }
}

fn state_of(site: &Site, port: &str) -> String {
    site.row(&["port", "ls"], "name", port)
        .map_or_else(|| "removed".to_owned(), |p| p["state"].as_str().expect("a state").to_owned())
}

#[track_caller]
fn wait_for_state(site: &Site, port: &str, state: &str) {
    wait_until(&format!("port {port} is {state}"), s(10), || state_of(site, port) == state);
}

/// Stops swd with `stop`, starts it, and wants traffic within a second, without a word from the user.
fn comes_back(way: Way, stop: fn(&mut Site)) {
    let _alone = heavy();
    let mut site = Site::new();
    site.ctl(&["network", "add", "other", "--subnet", "172.19.0.0/16", "--mtu", "1400", "--no-host-access"]);
    let c1 = site.container("c1", way, "172.18.0.10");
    let c2 = site.container("c2", way, "172.18.0.20");
    let o1 = site.container_in("other", "o1", way, "172.19.0.10");
    let o2 = site.container_in("other", "o2", way, "172.19.0.20");
    site.ctl(&["fdb", "add", "02:00:00:00:0f:01", "c2"]);
    c1.ping(&c2);
    c1.ns.ping(GATEWAY);
    o1.ping(&o2);
    let before = steady(&site);
    let mac = c1.mac();
    for round in 1..=2 {
        stop(&mut site);
        let started = Instant::now();
        site.spawn();
        answers_within(s(1), &c1.ns, "172.18.0.20").unwrap_or_else(|e| panic!("round {round}: {e}"));
        answers_within(s(1), &o1.ns, "172.19.0.20").unwrap_or_else(|e| panic!("round {round}: {e}"));
        answers_within(s(1), &c1.ns, GATEWAY).unwrap_or_else(|e| panic!("round {round}: {e}"));
        eprintln!("round {round}: everybody answered {:?} after the start", started.elapsed());
        wait_until("swctl is answered", s(5), || site.try_ctl(&["status"]).status.success());
        assert_eq!(before, steady(&site), "what the user had asked for, round {round}");
        assert_eq!(c1.mac(), mac, "the container's MAC, round {round}");
    }
    // And it is not frozen in what it was.
    let c3 = site.container("c3", way, "172.18.0.30");
    c3.ping(&c1);
}

/// What the user asked for, without what the kernel numbers anew.
fn steady(site: &Site) -> Vec<Value> {
    let mut rows = site.desired();
    rows.sort_by_key(|r| format!("{}{}{}", r["name"], r["mac"], r["subnets"]));
    for row in &mut rows {
        if let Some(ports) = row.get_mut("ports").and_then(Value::as_array_mut) {
            ports.sort_by_key(ToString::to_string);
        }
        if let Some(fields) = row.as_object_mut() {
            fields.remove("since");
        }
    }
    rows
}

for_each_port_kind! {
    fn a_container_that_dies_under_load_disturbs_nobody(way) {
        let _alone = heavy();
        let site = Site::new();
        let a = site.container("a", way, "172.18.0.10");
        let b = site.container("b", way, "172.18.0.20");
        a.ping(&b);
        let ping = ping_all_along(&site, &a, &b, 3000);
        for round in 0..3 {
            let c = site.container("c", way, "172.18.0.30");
            let d = site.container("d", way, "172.18.0.40");
            c.ping(&d);
            let iperf = load(&site, &c, &d);
            // Its processes end, and with them its namespace.
            drop(iperf);
            c.ns.delete();
            d.ns.delete();
            if way == Way::PortAdd {
                // A port that the user added by interface stays until the user removes it.
                for port in ["c", "d"] {
                    wait_until("the interface is gone", s(10), || ["missing", "removed"].contains(&state_of(&site, port).as_str()));
                    let _ = site.try_ctl(&["port", "rm", port]);
                }
            }
            eprintln!("round {round} done");
        }
        assert_none_lost(ping, 3000);
    }

    fn the_same_name_can_be_added_again_at_once(way) {
        let site = Site::new();
        let a = site.container("a", way, "172.18.0.10");
        for _ in 0..5 {
            let c = site.container("c", way, "172.18.0.30");
            a.ping(&c);
            if way == Way::PortAdd {
                site.ctl(&["port", "rm", "c"]);
                // A dying namespace takes its interfaces along when it comes to it; the name is wanted now.
                site.host.ip(&["link", "del", "v-c"]);
                c.ns.delete();
            } else {
                // No word to swd: the namespace dies, and the name is wanted again.
                c.ns.delete();
            }
        }
    }

    fn a_kill_and_a_start_bring_everything_back(way) {
        comes_back(way, Site::kill);
    }

    fn a_clean_end_and_a_start_bring_everything_back(way) {
        comes_back(way, |site| assert_eq!(site.terminate(), 0, "{}", site.log()));
    }

    fn a_container_that_dies_while_swd_is_away_is_forgotten(way) {
        let mut site = Site::new();
        let a = site.container("a", way, "172.18.0.10");
        let b = site.container("b", way, "172.18.0.20");
        a.ping(&b);
        site.kill();
        b.ns.delete();
        site.start();
        answers_within(s(2), &a.ns, GATEWAY).expect("the other one works");
        if way == Way::PortAdd {
            wait_for_state(&site, "b", "missing");
            site.ctl(&["port", "rm", "b"]);
        } else {
            wait_for_state(&site, "b", "removed");
        }
        let b = site.container("b", way, "172.18.0.20");
        a.ping(&b);
    }
}

#[test]
fn swd_started_by_ip_netns_exec_leaves_its_ports_when_killed() {
    let mut site = Site::new();
    site.kill();
    // `ip netns exec` gives its child a private mount namespace: what is pinned there is not seen here.
    let start = |site: &Site| {
        let log = site.file("exec.log");
        drop(std::fs::remove_file(&log));
        let swd = binary("swd");
        let mut command = std::process::Command::new("ip");
        command.args([
            "netns",
            "exec",
            site.host.name(),
            swd.to_str().expect("UTF-8"),
            "--name",
            site.name(),
        ]);
        command.arg("--runtime-dir").arg(site.runtime_dir()).arg("--state-dir").arg(site.state_dir());
        command.args(["--uplink", "none"]);
        let swd = Background::start(&mut command, &log);
        wait_until("swd is ready", s(10), || swd.log().lines().any(|l| l == "ready"));
        swd
    };
    let swd = start(&site);
    let c1 = site.container("c1", Way::Attach, "172.18.0.10");
    let c2 = site.container("c2", Way::PortAdd, "172.18.0.20");
    c1.ping(&c2);
    let mac = c1.mac();
    drop(swd); // kill -9
    quiet();
    assert_eq!(c1.mac(), mac, "the container's interface vanished with swd");
    let swd = start(&site);
    answers_within(s(2), &c1.ns, "172.18.0.20").unwrap_or_else(|e| panic!("{e}\n{}", swd.log()));
}

#[test]
fn an_interface_that_goes_down_comes_up_or_changes_is_followed() {
    let site = Site::new();
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    let c2 = site.container("c2", Way::PortAdd, "172.18.0.20");
    c1.ping(&c2);
    let switch = site.switch();

    switch.ip(&["link", "set", "v-c2", "down"]);
    wait_for_state(&site, "c2", "down");
    assert!(!c1.ns.pings("172.18.0.20"));
    switch.ip(&["link", "set", "v-c2", "up"]);
    wait_for_state(&site, "c2", "up");
    c1.ping(&c2);

    // The other end's carrier counts as well.
    c2.ns.ip(&["link", "set", "eth0", "down"]);
    wait_for_state(&site, "c2", "down");
    c2.ns.ip(&["link", "set", "eth0", "up"]);
    wait_for_state(&site, "c2", "up");
    c1.ping(&c2);

    for (port, c) in [("c1", &c1), ("c2", &c2)] {
        switch.ip(&["link", "set", &format!("v-{port}"), "mtu", "9000"]);
        c.ns.ip(&["link", "set", "eth0", "mtu", "9000"]);
        wait_until("the MTU is followed", s(10), || site.port(port)["mtu"] == 9000);
    }
    c1.ns.run(&["ping", "-n", "-c3", "-i0.1", "-Mdo", "-s8900", "172.18.0.20"]).ok();

    switch.ip(&["link", "set", "v-c2", "address", "02:00:00:00:c2:02"]);
    wait_until("the MAC is followed", s(10), || site.port("c2")["mac"] == "02:00:00:00:c2:02");
    let mac = "02:00:00:00:c2:03";
    c2.ns.ip(&["link", "set", "eth0", "address", mac]);
    c1.ns.ip(&["neigh", "flush", "dev", "eth0"]);
    c1.ping(&c2);
    assert_eq!(site.fdb_port(mac).as_deref(), Some("c2"), "the container's new MAC is learned");

    switch.ip(&["link", "set", "v-c2", "down"]);
    switch.ip(&["link", "set", "v-c2", "name", "renamed"]);
    switch.ip(&["link", "set", "renamed", "up"]);
    wait_until("the new name is followed", s(10), || site.port("c2")["ifname"] == "renamed");
    wait_for_state(&site, "c2", "up");
    c1.ping(&c2);
}

#[test]
fn an_interface_that_is_made_again_comes_back() {
    let site = Site::new();
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    let c2 = site.container("c2", Way::PortAdd, "172.18.0.20");
    c1.ping(&c2);
    let mac = c2.mac();
    for _ in 0..3 {
        site.switch().ip(&["link", "del", "v-c2"]);
        wait_for_state(&site, "c2", "missing");
        // Once it is there, it is swd's: nobody but swd sets it up.
        let peer = ["peer", "name", "eth0", "address", &mac, "netns", c2.ns.name()];
        site.host.ip(&[&["link", "add", "v-c2", "type", "veth"][..], &peer].concat());
        c2.ns.ip(&["link", "set", "eth0", "up"]);
        c2.ns.ip(&["addr", "add", "172.18.0.20/16", "dev", "eth0"]);
        wait_for_state(&site, "c2", "up");
        answers_within(s(2), &c1.ns, "172.18.0.20").expect("it is back");
    }
}

#[test]
fn port_rm_gives_the_interface_back() {
    let site = Site::new();
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    assert!(!site.host.links().contains(&"v-c1".to_owned()));
    site.ctl(&["port", "rm", "c1"]);
    assert!(site.host.links().contains(&"v-c1".to_owned()), "not given back");
    site.host.ip(&["link", "set", "v-c1", "up"]);
    site.ctl(&["port", "add", "v-c1", "--name", "again"]);
    c1.ns.ping(GATEWAY);
    assert!(site.row(&["port", "ls"], "name", "c1").is_none());
}

for_each_port_kind! {
    fn swd_survives_the_loss_of_every_interface(way) {
        let mut site = Site::new();
        let c1 = site.container("c1", way, "172.18.0.10");
        let c2 = site.container("c2", way, "172.18.0.20");
        c1.ping(&c2);
        for ns in [&*site.switch(), &site.host, &c1.ns, &c2.ns] {
            for link in ns.links().iter().filter(|l| *l != "lo") {
                // One end of a pair takes the other along.
                let _ = ns.run(&["ip", "link", "del", link]);
            }
        }
        quiet();
        assert!(site.alive(), "swd ended");
        site.ctl(&["status"]);
        let c3 = site.container("c3", way, "172.18.0.30");
        let c4 = site.container("c4", way, "172.18.0.40");
        c3.ping(&c4);
        // The host's own end comes back, if not at once then with a restart.
        assert_eq!(site.terminate(), 0);
        site.start();
        answers_within(s(2), &c3.ns, GATEWAY).expect("the host is back");
        c3.ping(&c4);
    }
}

#[test]
fn a_stopped_swd_goes_on_where_it_was() {
    let site = Site::new();
    let c1 = site.container("c1", Way::Attach, "172.18.0.10");
    let c2 = site.container("c2", Way::Tap, "172.18.0.20");
    c1.ping(&c2);
    site.signal(nix::sys::signal::Signal::SIGSTOP);
    std::thread::sleep(ms(500));
    site.signal(nix::sys::signal::Signal::SIGCONT);
    c1.ping(&c2);
}
