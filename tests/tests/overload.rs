//! More frames than swd takes: what is lost is counted, and what was received still adds up.

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::netns::Namespace;
use tests::outside::unwatched;
use tests::process::{s, wait_until};
use tests::raw::{Raw, experiment, mac, udp4};
use tests::site::{GATEWAY, Site, Way, heavy};

/// What the reason is called.
const LOST: &str = "not-received";

/// Frames that were received, and those that have ended: forwarded, answered or dropped.
fn received_and_ended(status: &Value) -> (u64, u64) {
    let number = |key: &str| status[key].as_u64().expect(key);
    (number("received"), number("forwarded") + number("answered") + number("drops"))
}

/// Sends `count` frames like this one while swd is stopped. Gives how many were lost, once swd has worked through the rest.
fn flood(site: &Site, from: &Namespace, count: u32, frame: &[u8]) -> u64 {
    let before = site.drops(LOST);
    let mut raw = Raw::open(from, "eth0");
    site.signal(Signal::SIGSTOP);
    raw.send_from_many(count, 0x66, frame);
    site.signal(Signal::SIGCONT);
    wait_until("the loss is counted", s(10), || site.drops(LOST) > before);
    let mut last = (0, 1);
    wait_until("swd has worked through what was kept", s(20), || {
        let now = received_and_ended(&site.json(&["status"]));
        std::mem::replace(&mut last, now) == now
    });
    assert_eq!(last.0, last.1, "received = forwarded + answered + dropped");
    let lost = site.drops(LOST);
    assert_eq!(site.json(&["status"])["not_received"], lost, "status and drops say the same");
    assert_eq!(site.drops(LOST), lost, "what was counted once is counted again");
    let help = site.row(&["drops"], "reason", LOST).expect("a row")["help"].to_string();
    assert!(help.contains("CPU"), "{help}");
    let text = site.ctl(&["drops"]);
    assert!(text.contains(LOST), "not in the table for people:\n{text}");
    lost - before
}

#[test]
fn frames_that_containers_lose_are_counted() {
    let _alone = heavy();
    let site =
        Site::with_config("uplink = \"none\"\n[network.jumbo]\nsubnets = [\"172.19.0.0/16\"]\nmtu = 60000\n");
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    let c2 = site.container("c2", Way::PortAdd, "172.18.0.20");
    c1.ping(&c2);
    // Short frames: the ring has 2048 slots.
    let frame = experiment(mac(&c2.mac()), [0; 6], b"flood");
    let before = site.port("c1")["rx_packets"].as_u64().expect("a number");
    let lost = flood(&site, &c1.ns, 10_000, &frame);
    let passed = site.port("c1")["rx_packets"].as_u64().expect("a number") - before;
    assert!(lost >= 5_000, "10,000 frames, a ring of 2048: {lost} lost");
    // On a loaded machine the kernel hands over some only when swd goes on.
    assert!(passed <= 5_100, "{passed} received of a ring of 2048");

    // Long frames wait in the socket's queue, which is full before the ring is.
    let a = site.container_in("jumbo", "j1", Way::Attach, "172.19.0.10");
    let b = site.container_in("jumbo", "j2", Way::Attach, "172.19.0.20");
    let frame = experiment(mac(&b.mac()), [0; 6], &[0x55; 59_000]);
    let lost = flood(&site, &a.ns, 1_900, &frame);
    assert!(lost >= 1_000, "1,900 frames of 59,014 bytes, a queue of 16 MiB: {lost} lost");
    c1.ping(&c2);
    a.ping(&b);
}

#[test]
fn frames_that_an_uplink_loses_are_counted() {
    let _alone = heavy();
    let mut site = Site::stopped().arguments(&["--uplink", "eth0"]);
    let wan = unwatched(&site.host);
    site.start();
    let c = site.container("c1", Way::Attach, "172.18.0.10");
    site.ctl(&["publish", "5000/udp", "172.18.0.10:5000"]);
    let to = mac(&site.host.mac("eth0"));
    let frame = udp4((to, [0; 6]), ([172, 16, 0, 1], 4000), ([172, 16, 0, 2], 5000), b"flood");
    let lost = flood(&site, &wan, 10_000, &frame);
    assert!(lost >= 5_000, "10,000 frames, a ring of 2048: {lost} lost");
    // A socket that is closed takes its count along, but not what was told of it.
    let told = site.drops(LOST);
    site.host.ip(&["link", "del", "eth0"]);
    wait_until("the uplink is gone", s(10), || site.json(&["status"])["uplink"].is_null());
    assert!(site.drops(LOST) >= told);
    c.ns.ping(GATEWAY);
}

#[test]
fn a_flood_leaves_room_for_what_others_send() {
    let _alone = heavy();
    let site = Site::new();
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    let c2 = site.container("c2", Way::PortAdd, "172.18.0.20");
    let c3 = site.container("c3", Way::PortAdd, "172.18.0.30");
    c1.ping(&c2);
    c2.ping(&c3);
    let (from, to) = (c2.ns.udp("172.18.0.20:4000"), c3.ns.udp("172.18.0.30:4000"));
    to.set_read_timeout(Some(s(5))).expect("timeout");
    let frame = experiment(mac(&c2.mac()), [0; 6], b"flood");
    let mut raw = Raw::open(&c1.ns, "eth0");
    let before = site.drops(LOST);
    site.signal(Signal::SIGSTOP);
    raw.send_from_many(10_000, 0x66, &frame);
    for n in 0..100_u8 {
        from.send_to(&[n], "172.18.0.30:4000").expect("send");
    }
    site.signal(Signal::SIGCONT);
    for n in 0..100_u8 {
        let mut word = [0; 2];
        assert_eq!(to.recv(&mut word).expect("all arrive"), 1, "datagram {n}");
        assert_eq!(word[0], n);
    }
    assert!(site.drops(LOST) - before >= 5_000, "the flood was lost, and was counted");
}
