//! The fast path: what the kernel forwards for swd goes where swd would send it, is counted, and ends at once when swd says so.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::process::{s, wait_until};
use tests::raw::{BROADCAST, Raw, arp_request, experiment, mac, udp4};
use tests::site::{Container, Site, Way, heavy, quiet};

struct Three {
    site: Site,
    c: [Container; 3],
}

fn three() -> Three {
    let site = Site::new();
    let c = ["c1", "c2", "c3"].map(|n| site.container(n, Way::Attach, &format!("172.18.0.{}0", &n[1..])));
    c[0].ping(&c[1]);
    c[2].ping(&c[1]);
    Three { site, c }
}

/// Makes the flows between two containers busy enough for the kernel.
#[track_caller]
fn hand_over(site: &Site, one: &Container, other: &Container) {
    wait_until("both directions are in the kernel", s(10), || {
        one.ns.run(&["ping", "-n", "-c30", "-i0.01", "-W2", &other.address]).ok();
        flows(site) >= 2
    });
}

impl Three {
    /// Makes the flows between two containers busy enough for the kernel.
    #[track_caller]
    fn hand_over(&self, one: usize, other: usize) {
        hand_over(&self.site, &self.c[one], &self.c[other]);
    }

    /// An IPv4 frame between two containers, with a number in it.
    fn frame(&self, from: usize, to: usize, number: u8) -> Vec<u8> {
        let macs = [from, to].map(|n| mac(&self.c[n].mac()));
        let address = |n: usize| [172, 18, 0, 10 * (u8::try_from(n).expect("small") + 1)];
        udp4((macs[1], macs[0]), (address(from), 4000), (address(to), 4000), &[number; 30])
    }
}

fn flows(site: &Site) -> u64 {
    site.json(&["status"])["fast_flows"].as_u64().expect("fast_flows")
}

fn number(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("{key} in {row}"))
}

#[test]
fn a_busy_flow_is_handed_over_and_counted() {
    let t = three();
    assert_eq!(t.site.json(&["status"])["fast_path"], true, "{}", t.site.log());
    t.hand_over(0, 1);
    let before = ["c1", "c2"].map(|c| t.site.port(c));
    // The kernel does it: swd is not even running.
    t.site.signal(Signal::SIGSTOP);
    let pings = t.c[0].ns.run(&["ping", "-n", "-c500", "-i0.002", "-s1000", "-W2", "172.18.0.20"]);
    t.site.signal(Signal::SIGCONT);
    pings.ok();
    let after = ["c1", "c2"].map(|c| t.site.port(c));
    for (before, after) in before.iter().zip(&after) {
        for key in ["rx_packets", "tx_packets"] {
            let more = number(after, key) - number(before, key);
            // ARP and what IPv6 says by itself come between.
            assert!((500..=540).contains(&more), "{key} of {}: {more} more", after["name"]);
        }
        for key in ["rx_bytes", "tx_bytes"] {
            let more = number(after, key) - number(before, key);
            assert!((521_000..=525_000).contains(&more), "{key} of {}: {more} more", after["name"]);
        }
    }
    quiet();
    let status = t.site.json(&["status"]);
    let ends = number(&status, "forwarded") + number(&status, "answered") + number(&status, "drops");
    assert_eq!(number(&status, "received"), ends, "{status}");
    wait_until("idle flows are taken back", s(20), || flows(&t.site) == 0);
    t.c[0].ping(&t.c[1]);
}

#[test]
fn datagrams_arrive_once_and_whole_while_flows_are_handed_over_again_and_again() {
    let _alone = heavy();
    let t = three();
    t.hand_over(0, 1);
    let receiver = t.c[1].ns.udp("172.18.0.20:7000");
    receiver.set_read_timeout(Some(s(2))).expect("a timeout");
    let sender = t.c[0].ns.udp("172.18.0.10:0");
    sender.connect("172.18.0.20:7000").expect("connect");
    let stop = AtomicBool::new(false);
    let (mut rounds, mut in_kernel) = (0, 0);
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Each of these ends the epoch.
                t.site.ctl(&["fdb", "add", "02:00:00:00:0f:01", "c3"]);
                in_kernel += flows(&t.site);
                t.site.ctl(&["fdb", "rm", "02:00:00:00:0f:01"]);
                rounds += 1;
            }
        });
        // Few at a time, so that no buffer overflows: each arrives, and none twice.
        let mut buffer = [0; 2000];
        for burst in 0..1000_u32 {
            let numbers = burst * 20..burst * 20 + 20;
            for number in numbers.clone() {
                let mut datagram = vec![0; 20 + (number as usize * 37) % 1400];
                datagram[..4].copy_from_slice(&number.to_be_bytes());
                sender.send(&datagram).expect("send");
            }
            let mut arrived: Vec<u32> = numbers
                .clone()
                .map(|_| {
                    let length = receiver.recv(&mut buffer).expect("every datagram arrives");
                    let number = u32::from_be_bytes(*buffer[..length].first_chunk().expect("a number"));
                    assert_eq!(length, 20 + (number as usize * 37) % 1400, "datagram {number}");
                    number
                })
                .collect();
            arrived.sort_unstable();
            assert_eq!(arrived, numbers.collect::<Vec<_>>(), "each once");
        }
        stop.store(true, Ordering::Relaxed);
        changes.join().expect("swctl works");
    });
    assert!(in_kernel > 0, "in {rounds} rounds no flow was in the kernel");
}

#[test]
fn an_address_that_moves_takes_its_frames_along() {
    let t = three();
    t.site.unguard(&["c3"]);
    t.hand_over(0, 1);
    // c2 is not to say by itself that it is where it was: no router solicitation, no question whether c1 is still there.
    t.c[1].ns.run(&["sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1"]).ok();
    t.c[1].ns.ip(&[
        "neighbor",
        "replace",
        &t.c[0].address,
        "lladdr",
        &t.c[0].mac(),
        "dev",
        "eth0",
        "nud",
        "permanent",
    ]);
    let m2 = mac(&t.c[1].mac());
    let raw = [Raw::open(&t.c[1].ns, "eth0"), Raw::open(&t.c[2].ns, "eth0")];
    let mut sender = Raw::open(&t.c[0].ns, "eth0");
    let first = t.frame(0, 1, 1);
    sender.send(&first);
    raw[0].expect("the frame, by the kernel", |f| f.bytes == first);
    // c3 says that it is c2.
    let mut thief = Raw::open(&t.c[2].ns, "eth0");
    let moved = experiment(mac(&t.c[0].mac()), m2, b"moved");
    thief.send(&moved);
    sender.expect("what c3 sent", |f| f.bytes == moved);
    let second = t.frame(0, 1, 2);
    sender.send(&second);
    raw[1].expect("the frame, where the address is now", |f| f.bytes == second);
    assert!(!raw[0].frames().iter().any(|f| f.bytes == second), "c2 got it, too");
}

#[test]
fn removed_ports_isolated_networks_and_a_dead_swd_get_nothing() {
    let mut t = three();
    t.site.ctl(&["network", "add", "apart", "--subnet", "172.19.0.0/16", "--isolate-ports"]);
    let apart =
        ["a1", "a2"].map(|n| t.site.container_in("apart", n, Way::Attach, &format!("172.19.0.{}0", &n[1..])));
    for _ in 0..3 {
        assert!(!apart[0].ns.pings("172.19.0.20"), "isolated ports talk");
    }
    t.hand_over(0, 1);
    t.hand_over(2, 1);
    let c2 = Raw::open(&t.c[1].ns, "eth0");
    let mut c3 = Raw::open(&t.c[2].ns, "eth0");

    t.site.ctl(&["detach", "c1"]);
    let by_c3 = t.frame(2, 1, 3);
    c3.send(&by_c3);
    c2.expect("a frame from c3", |f| f.bytes == by_c3);
    assert!(!t.c[2].ns.pings("172.18.0.10"), "c1 is gone and answers");

    t.hand_over(2, 1);
    c2.clear();
    t.site.kill();
    let late = t.frame(2, 1, 4);
    c3.send(&late);
    quiet();
    assert!(!c2.frames().iter().any(|f| f.bytes == late), "a killed swd forwards");
    t.site.start();
    t.c[2].ping(&t.c[1]);
    t.hand_over(2, 1);
}

#[test]
fn addresses_stay_young_while_the_kernel_forwards() {
    let site = Site::with_config("uplink = 'none'\n[fdb]\naging_s = 10\n");
    let c = ["c1", "c2"].map(|n| site.container(n, Way::Attach, &format!("172.18.0.{}0", &n[1..])));
    c[0].ping(&c[1]);
    let macs = c.each_ref().map(Container::mac);
    let t0 = Instant::now();
    while t0.elapsed() < s(13) {
        c[0].ns.run(&["ping", "-n", "-c40", "-i0.01", "-W2", "172.18.0.20"]).ok();
        for mac in &macs {
            let entry = site.row(&["fdb", "ls"], "mac", mac).unwrap_or_else(|| panic!("{mac} aged out"));
            assert!(number(&entry, "age_s") <= 3, "{entry}");
        }
    }
    assert!(flows(&site) >= 2);
}

#[test]
fn without_it_everything_works() {
    let site = Site::with_config("uplink = 'none'\nfast_path = false\n");
    assert_eq!(site.json(&["status"])["fast_path"], false);
    let c = ["c1", "c2"].map(|n| site.container(n, Way::Attach, &format!("172.18.0.{}0", &n[1..])));
    c[0].ns.run(&["ping", "-n", "-c50", "-i0.01", "-W2", "172.18.0.20"]).ok();
    assert_eq!(flows(&site), 0);
    assert!(number(&site.port("c2"), "rx_packets") >= 50);
}

#[test]
fn an_interface_that_comes_back_has_its_program_again() {
    let site = Site::new();
    let c = ["c1", "c2"].map(|n| site.container(n, Way::PortAdd, &format!("172.18.0.{}0", &n[1..])));
    c[0].ping(&c[1]);
    hand_over(&site, &c[0], &c[1]);
    // It loses its program on the way to the host, from where swd takes it back, and keeps its index.
    site.switch().ip(&["link", "set", "v-c1", "netns", site.host.name()]);
    wait_until("the port is up again", s(10), || site.port("c1")["state"] == "up");
    wait_until("no frame is lost any more", s(10), || {
        let pings = c[0].ns.run(&["ping", "-n", "-c30", "-i0.01", "-W1", "172.18.0.20"]);
        pings.stdout.contains(" 0% packet loss")
    });
    wait_until("its flows are in the kernel again", s(10), || {
        c[0].ns.run(&["ping", "-n", "-c30", "-i0.01", "-W2", "172.18.0.20"]).ok();
        flows(&site) == 2
    });
}

#[test]
fn who_takes_turns_goes_by_a_worker_and_who_stops_to_by_the_kernel() {
    let _alone = heavy();
    let t = three();
    t.hand_over(0, 1);
    let (asks, answers) = (t.c[0].ns.udp("172.18.0.10:0"), t.c[1].ns.udp("172.18.0.20:7000"));
    asks.connect("172.18.0.20:7000").expect("connect");
    answers.set_read_timeout(Some(s(2))).expect("a timeout");
    asks.set_read_timeout(Some(s(2))).expect("a timeout");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 100];
            while let Ok((length, from)) = answers.recv_from(&mut buffer) {
                answers.send_to(&buffer[..length], from).expect("answer");
            }
        });
        let rounds = scope.spawn(|| {
            let mut buffer = [0; 100];
            (0..u64::MAX)
                .take_while(|_| !stop.load(Ordering::Relaxed))
                .map(|n| {
                    asks.send(&n.to_be_bytes()).expect("ask");
                    let length = asks.recv(&mut buffer).expect("the answer");
                    assert_eq!(&buffer[..length], n.to_be_bytes(), "in order, once");
                })
                .count()
        });
        // They were in the kernel, and are in use all the time.
        wait_until("a worker has them", s(60), || flows(&t.site) == 0);
        stop.store(true, Ordering::Relaxed);
        assert!(rounds.join().expect("all were answered") > 0);
    });
    // Without an answer, one after the other.
    wait_until("the kernel has what is no answer", s(10), || {
        for _ in 0..200 {
            asks.send(b"datagram").expect("send");
        }
        flows(&t.site) == 1
    });
}

#[test]
fn what_a_container_says_of_itself_takes_nothing_from_others() {
    let t = three();
    t.site.unguard(&["c3"]);
    t.hand_over(0, 1);
    let (before, mut liar) = (flows(&t.site), Raw::open(&t.c[2].ns, "eth0"));
    for n in 1..=5 {
        liar.send(&arp_request([2, 0, 0, 0, 0, n], [172, 18, 0, 30], [172, 18, 9, n]));
    }
    wait_until("swd has heard it all", s(5), || {
        t.site.row(&["fdb", "ls"], "mac", "02:00:00:00:00:05").is_some()
    });
    assert_eq!(flows(&t.site), before);
}

#[test]
fn a_flow_is_handed_over_while_others_flood() {
    let mut site = Site::stopped().arguments(&["--uplink", "none", "--workers", "1"]);
    site.start();
    let [c1, c2, c3] = ["c1", "c2", "c3"]
        .map(|name| site.container(name, Way::Attach, &format!("172.18.0.{}0", &name[1..])));
    site.unguard(&["c1", "c3"]);
    // c1 has its program then.
    hand_over(&site, &c1, &c2);
    let (mut from, mut flood) = (Raw::open(&c1.ns, "eth0"), Raw::open(&c3.ns, "eth0"));
    let datagram =
        udp4((mac(&c2.mac()), mac(&c1.mac())), ([172, 18, 0, 11], 4000), ([172, 18, 0, 20], 4000), b"some");
    let nobodys = experiment(BROADCAST, mac(&c3.mac()), b"flood");
    let before = flows(&site);
    site.without_swd(|| {
        from.send_all([datagram.as_slice(); 12]);
        flood.send_all([nobodys.as_slice(); 400]);
    });
    wait_until("it is in the kernel, too", s(2), || flows(&site) == before + 1);
}
