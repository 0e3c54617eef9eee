//! What scripts rely on: keys, listings, exit codes.

use std::process::Stdio;

use serde_json::Value;
use tests::for_each_port_kind;
use tests::process::{Background, s, wait_until};
use tests::raw::{Raw, experiment};
use tests::site::{GATEWAY, Site, Way};

#[track_caller]
fn has_keys(row: &Value, strings: &[&str], numbers: &[&str]) {
    for key in strings {
        assert!(row[key].is_string(), "'{key}' is not a text: {row}");
    }
    for key in numbers {
        assert!(row[key].is_u64(), "'{key}' is not a number: {row}");
    }
}

for_each_port_kind! {
    fn keys_that_scripts_rely_on(way) {
        let site = Site::new();
        let c1 = site.container("c1", way, "172.18.0.10");
        let _c2 = site.container("c2", way, "172.18.0.20");
        let before = (site.port("c1"), site.port("c2"));
        c1.ns.run(&["ping", "-n", "-c10", "-i0.02", "172.18.0.20"]).ok();
        let after = (site.port("c1"), site.port("c2"));
        for port in [&after.0, &after.1] {
            has_keys(port, &["name", "ifname", "network", "state", "mac"], &["mtu", "rx_packets", "tx_packets", "rx_bytes", "tx_bytes"]);
            assert_eq!((&port["state"], &port["network"], &port["mtu"]), (&"up".into(), &"default".into(), &1500.into()));
        }
        for key in ["rx_packets", "tx_packets"] {
            let more = |b: &Value, a: &Value| a[key].as_u64().expect("a number") - b[key].as_u64().expect("a number");
            assert!(more(&before.0, &after.0) >= 10 && more(&before.1, &after.1) >= 10, "{key}: {before:?} {after:?}");
        }
        let show = site.json(&["port", "show", "c1"]);
        assert_eq!(show["name"], "c1");

        let entry = site.row(&["fdb", "ls"], "mac", &c1.mac()).expect("c1 was learned");
        has_keys(&entry, &["mac", "port", "network", "kind"], &["age_s"]);
        assert_eq!((&entry["port"], &entry["kind"]), (&"c1".into(), &"dynamic".into()));
        let gateway = site.row(&["network", "ls"], "name", "default").expect("default")["gateway_mac"].clone();
        let local = site.row(&["fdb", "ls"], "mac", gateway.as_str().expect("a MAC")).expect("the gateway's entry");
        assert_eq!(local["kind"], "local");

        let mut raw = Raw::open(&c1.ns, "eth0");
        raw.send_all([experiment([1, 0x80, 0xc2, 0, 0, 0], [2, 0, 0, 0, 0, 1], b"").as_slice()]);
        wait_until("the drop is counted", s(5), || site.drops("link-local") > 0);
        for drop in site.rows(&["drops"]) {
            has_keys(&drop, &["reason", "help"], &["count"]);
        }
        let status = site.json(&["status"]);
        has_keys(&status, &["version"], &["workers", "networks", "ports", "connections", "drops"]);
        assert_eq!(status["ready"], true);
        assert_eq!((&status["networks"], &status["workers"]), (&1.into(), &1.into()));
        assert!(status.as_object().is_some_and(|s| s.contains_key("uplink")));
        let (received, ends) = (status["received"].as_u64(), ["forwarded", "answered", "drops"]);
        let sum: u64 = ends.iter().map(|k| status[k].as_u64().expect("a number")).sum();
        // Frames go on while the four numbers are read.
        assert!(received.expect("a number").abs_diff(sum) <= 64, "{status}");
    }
}

#[test]
fn listings_for_people() {
    let site = Site::new();
    let c1 = site.container("c1", Way::Attach, "172.18.0.10");
    c1.ns.ping(GATEWAY);
    for (words, shown) in [
        (&["status"][..], &["ready"][..]),
        (&["network", "ls"], &["default", "172.18.0.0/16", "172.18.0.1"]),
        (&["network", "show", "default"], &["default", "172.18.0.0/16"]),
        (&["port", "ls"], &["c1", "default", "up"]),
        (&["port", "show", "c1"], &["c1", "default", "up"]),
        (&["fdb", "ls"], &["c1", "dynamic"]),
        (&["stats"], &["c1"]),
        (&["stats", "c1"], &["c1"]),
        (&["drops"], &[]),
        (&["man"], &[".TH swctl"]),
        (&["completions", "bash"], &["swctl"]),
        (&["--help"], &["attach"]),
        (&["--version"], &["swctl"]),
    ] {
        let text = site.ctl(words);
        for word in shown {
            assert!(text.contains(word), "swctl {words:?} does not show '{word}':\n{text}");
        }
    }
}

#[test]
fn the_socket_can_come_from_the_environment() {
    let site = Site::new();
    let swctl = tests::process::binary("swctl");
    let mut command = std::process::Command::new(swctl);
    let out = tests::process::run(command.env("SWD_SOCKET", site.socket()).arg("status"), s(10));
    assert!(out.status.success(), "{out}");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let site = Site::new();
    let swctl = tests::process::binary("swctl");
    let line = format!(
        "{} --socket {} events | head -n0; exit ${{PIPESTATUS[0]}}",
        swctl.display(),
        site.socket().display()
    );
    let mut command = std::process::Command::new("bash");
    let mut child =
        Background::start(command.args(["-c", &line]).stdin(Stdio::null()), &site.file("events.log"));
    std::thread::sleep(s(1));
    let c1 = site.container("c1", Way::Attach, "172.18.0.10");
    drop(c1);
    assert_eq!(child.wait(s(10)), Some(0), "{}", child.log());
}
