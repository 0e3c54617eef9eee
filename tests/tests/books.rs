//! received = forwarded + answered + dropped + parked, at any moment: while frames go by as fast as they can, wait for limits and
//! for hosts that do not answer, and things vanish and come back.

use serde_json::Value;
use tests::process::{python, s, tool, wait_until};
use tests::site::{Site, Way, heavy};

/// Looks once: each frame that was received is in one place. Gives how many were received, and how many are parked.
#[track_caller]
fn add_up(site: &Site) -> (u64, u64) {
    let status = site.json(&["status"]);
    let number = |key: &str| status[key].as_u64().expect(key);
    let reasons = status["dropped"].as_object().expect("an object");
    let dropped: u64 = reasons.values().filter_map(Value::as_u64).sum();
    assert_eq!(dropped, number("drops"), "the reasons and their sum: {status}");
    let places = number("forwarded") + number("answered") + dropped + number("parked");
    assert_eq!(number("received"), places, "{status}");
    (number("received"), number("parked"))
}

#[test]
fn they_add_up_under_load_and_faults() {
    let _alone = heavy();
    let mut site = Site::stopped().arguments(&["--uplink", "none", "--workers", "2"]);
    site.start();
    site.ctl(&["network", "add", "other", "--subnet", "172.19.0.0/16"]);
    site.ctl(&["allow", "default", "other"]);
    let a = site.container("a1", Way::Attach, "172.18.0.10");
    let b = site.container("b1", Way::Tap, "172.18.0.20");
    let c = site.container("c1", Way::PortAdd, "172.18.0.30");
    let d = site.container_in("other", "d1", Way::Attach, "172.19.0.10");
    a.ping(&b);
    c.ping(&d);
    // Some wait for a limit, some for a container that does not exist.
    site.ctl(&["port", "set", "c1", "--rate-out", "50mbit"]);
    let _server = d.ns.start(&["iperf3", "-s"], &site.file("server.log"));
    let _limited = c.ns.start(&["iperf3", "-s"], &site.file("limited.log"));
    for ns in [&c.ns, &d.ns] {
        wait_until("iperf3 listens", s(10), || !ns.run(&["ss", "-Hltn", "sport = :5201"]).stdout.is_empty());
    }
    let _load = a.ns.start(&["iperf3", "-c", "172.19.0.10", "-t", "60", "--bidir"], &site.file("a.log"));
    let _slow = b.ns.start(&["iperf3", "-c", "172.18.0.30", "-t", "60"], &site.file("b.log"));
    let _nobody = a.ns.start(&["ping", "-n", "-i0.01", "172.19.0.99"], &site.file("nobody.log"));
    let (python, flood) = (python().display().to_string(), tool("flood.py").display().to_string());
    let gateway =
        site.row(&["network", "ls"], "name", "default").expect("the network")["gateway_mac"].clone();
    let gateway = gateway.as_str().expect("a MAC");
    let (before, mut most) = (add_up(&site).0, 0);
    for round in 0..6 {
        let extra = site.container("e1", [Way::Attach, Way::Tap][round % 2], "172.18.0.50");
        let kind = ["syn", "fragment", "broadcast"][round % 3];
        let words = [&python, &flood, "eth0", "1", kind, &extra.mac(), "172.18.0.50", gateway, "172.19.0.99"];
        let mut blast = extra.ns.start(&words, &site.file("blast.log"));
        while blast.wait(s(0)).is_none() {
            most = most.max(add_up(&site).1);
        }
        match round {
            0 => site.switch().ip(&["link", "set", "v-c1", "down"]),
            1 => site.switch().ip(&["link", "set", "v-c1", "up"]),
            2 => site.ctl(&["deny", "default", "other"]),
            3 => site.ctl(&["allow", "default", "other"]),
            4 => site.ctl(&["port", "set", "c1", "--rate-out", "1mbit"]),
            _ => site.ctl(&["port", "set", "c1", "--rate-out", "none"]),
        };
        add_up(&site);
        // What waits for this one, or came from it, goes with it.
        extra.ns.delete();
        for _ in 0..20 {
            add_up(&site);
        }
    }
    let received = add_up(&site).0 - before;
    eprintln!("{received} frames, at most {most} parked");
    assert!(received > 50_000, "{received} frames are no load");
    assert!(most > 0, "nothing was parked whenever it was looked at");
}
