//! The fast path for connections to the outside and back: what the kernel carries for swd arrives whole, is counted, and ends at
//! once when swd says so. That nothing inside shows outside is watched by [`tests::outside`].

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};
use tests::captured;
use tests::carried::{HOST, Talk as _, WAN, World, number};
use tests::netns::Namespace;
use tests::process::{ms, python, s, wait_until};
use tests::site::{GATEWAY, Site, quiet};
use tests::stream::bytes_are_identical;

#[test]
fn connections_go_on_while_swd_stands_still() {
    for offloads in ["on", "off"] {
        let w = World::new();
        for ns in [&w.c1.ns, &*w.wan] {
            ns.run(&["ethtool", "-K", "eth0", "tx", offloads, "tso", offloads, "gso", offloads]).ok();
        }
        for published in [false, true] {
            let ends = if published { w.published() } else { w.masqueraded() };
            wait_until("the kernel carries it", s(20), || {
                w.hand_over(&ends);
                w.carried(&ends, || {
                    bytes_are_identical(&ends.0, &ends.1, 1, 4_000_000);
                    bytes_are_identical(&ends.1, &ends.0, 2, 4_000_000);
                    (0..100).for_each(|_| ends.0.talk(&ends.1));
                })
            });
            let row = w.connection("tcp");
            assert!((8_000_000..9_200_000).contains(&number(&row, "bytes")), "{row}");
            assert_eq!(row["state"], "established", "{row}");
            // It closes as if swd had seen every byte.
            drop(ends);
            wait_until("it is closed", s(5), || w.connection("tcp")["state"] == "closed");
            wait_until("the kernel has nothing of it", s(5), || w.flows() == 0);
            w.site.ctl(&["conntrack", "flush"]);
        }
        w.balances();
    }
}

#[test]
fn datagrams_are_counted_one_by_one() {
    let w = World::new();
    let ends = w.datagrams();
    w.hand_over(&ends);
    let before = (w.connection("udp"), w.site.port("c1"));
    w.site.without_swd(|| {
        for size in (0..200_usize).map(|n| n * 7) {
            for (from, to) in [(&ends.0, &ends.1), (&ends.1, &ends.0)] {
                from.send(&vec![7; size]).expect("send");
                let mut buffer = [0; 2000];
                assert_eq!(to.recv(&mut buffer).expect("it arrives"), size);
                assert!(buffer[..size].iter().all(|b| *b == 7));
            }
        }
    });
    let after = (w.connection("udp"), w.site.port("c1"));
    let bytes: u64 = (0..200).map(|n| n * 7 + 28).sum();
    for (key, more) in [("packets", 2 * 200), ("bytes", 2 * bytes)] {
        assert_eq!(number(&after.0, key) - number(&before.0, key), more, "{key}");
    }
    for key in ["rx_packets", "tx_packets"] {
        let more = number(&after.1, key) - number(&before.1, key);
        assert!((200..=220).contains(&more), "{key}: {more} more");
    }
    w.balances();
}

/// Sends so many words, all of which arrive.
#[track_caller]
fn say(words: usize, from: &UdpSocket, to: &UdpSocket) {
    to.set_read_timeout(Some(s(5))).expect("timeout");
    for _ in 0..words {
        from.send(b"word").expect("send");
        assert_eq!(to.recv(&mut [0; 100]).expect("a word"), 4);
    }
}

#[test]
fn datagrams_without_an_answer_go_by_the_kernel_and_the_first_answer_is_seen() {
    let w = World::with("[nat.timeouts]\nudp_unreplied = 6\n");
    for published in [false, true] {
        let ends = if published { w.published_datagrams() } else { w.datagrams() };
        let (from, to) = if published { (&ends.1, &ends.0) } else { (&ends.0, &ends.1) };
        wait_until("the kernel has the one direction", s(10), || {
            say(5, from, to);
            w.flows() == 1
        });
        let before = w.connection("udp");
        assert_eq!(before["state"], "unreplied", "{before}");
        w.site.without_swd(|| {
            say(200, from, to);
            to.send(b"word").expect("send");
            from.set_read_timeout(Some(ms(300))).expect("timeout");
            assert!(from.recv(&mut [0; 100]).is_err(), "an answer that swd has not seen");
        });
        from.set_read_timeout(Some(s(5))).expect("timeout");
        assert_eq!(from.recv(&mut [0; 100]).expect("the answer"), 4);
        let after = w.connection("udp");
        assert_eq!(after["state"], "replied", "{after}");
        assert_eq!(number(&after, "packets") - number(&before, "packets"), 201, "{after}");
        w.hand_over(&ends);
        w.site.ctl(&["conntrack", "flush"]);
    }

    // They keep their connection alive as such, and let it expire.
    let (inside, outside) = w.datagrams_from(4001);
    let t0 = std::time::Instant::now();
    while t0.elapsed() < s(8) {
        say(10, &inside, &outside);
        std::thread::sleep(ms(100));
    }
    assert_eq!(w.flows(), 1);
    let row = w.connection("udp");
    assert_eq!(row["state"], "unreplied", "{row}");
    assert!(number(&row, "packets") > 400, "{row}");
    wait_until("it expires", s(10), || w.site.json(&["conntrack", "count"])["connections"] == 0);
    wait_until("in the kernel, too", s(3), || w.flows() == 0);
    w.balances();
}

#[test]
fn a_connection_is_the_kernels_from_its_third_packet_on() {
    let w = World::new();
    w.site.ctl(&["publish", "5000", "172.18.0.10:80"]);
    for published in [false, true] {
        // The first ones have the programs attached.
        wait_until("a connection of few packets is in the kernel", s(10), || {
            let ends = if published { w.called() } else { w.masqueraded() };
            let both = w.flows() == 2 && w.carried(&ends, || (0..100).for_each(|_| ends.0.talk(&ends.1)));
            if both {
                // It is open, though swd has not seen the end of the handshake.
                let open = w.site.json(&["conntrack", "ls", "--state", "established"]);
                assert_eq!(open.as_array().map(Vec::len), Some(1), "{open}");
            }
            drop(ends);
            wait_until("it has ended", s(5), || w.flows() == 0);
            both
        });
        wait_until("all are closed", s(5), || {
            let rows = w.site.json(&["conntrack", "ls"]);
            rows.as_array().is_some_and(|rows| rows.iter().all(|row| row["state"] == "closed"))
        });
        w.site.ctl(&["conntrack", "flush"]);
    }
    w.balances();
}

#[test]
fn connections_close_in_the_kernel() {
    let w = World::new();
    w.site.ctl(&["publish", "5000", "172.18.0.10:80"]);
    for published in [false, true] {
        for first in [0, 1] {
            wait_until("one ends while swd stands still", s(20), || {
                let (inside, outside) = if published { w.called() } else { w.masqueraded() };
                let mut ends = [inside, outside];
                let closed = w.flows() == 2
                    && w.site.without_swd(|| {
                        let hears_the_end = |end: &mut TcpStream| {
                            end.set_read_timeout(Some(s(1))).expect("timeout");
                            end.read_to_end(&mut Vec::new()).is_ok()
                        };
                        ends[first].write_all(b"last word").expect("send");
                        ends[first].shutdown(Shutdown::Write).expect("shut down");
                        let said = hears_the_end(&mut ends[1 - first]);
                        ends[1 - first].shutdown(Shutdown::Write).expect("shut down");
                        said && hears_the_end(&mut ends[first])
                    });
                drop(ends);
                wait_until("swd knows", s(5), || {
                    let rows = w.site.json(&["conntrack", "ls"]);
                    rows.as_array().is_some_and(|rows| rows.iter().all(|row| row["state"] == "closed"))
                });
                wait_until("the kernel has nothing of it", s(5), || w.flows() == 0);
                closed
            });
            w.site.ctl(&["conntrack", "flush"]);
        }
    }
    w.balances();
}

#[test]
fn who_closes_one_way_may_go_on_listening() {
    let w = World::new();
    let (mut inside, mut outside) = w.masqueraded();
    w.hand_over(&(inside.try_clone().expect("clone"), outside.try_clone().expect("clone")));
    inside.shutdown(Shutdown::Write).expect("shut down");
    assert_eq!(outside.read(&mut [0; 10]).expect("the end"), 0);
    wait_until("swd has heard of it", s(5), || w.connection("tcp")["state"] == "closing");
    wait_until("it is the workers' again", s(5), || w.flows() == 0);
    for _ in 0..30 {
        outside.write_all(b"word").expect("send");
        inside.read_exact(&mut [0; 4]).expect("a word");
    }
    drop((inside, outside));
    wait_until("it is closed", s(5), || w.connection("tcp")["state"] == "closed");
    w.balances();
}

#[test]
fn iperf3_runs_both_ways_by_the_kernel() {
    let w = World::new();
    for more in [&[][..], &["-R"], &["-u", "-b20M"], &["-u", "-b20M", "-R"]] {
        let mut server = w.wan.start(&["iperf3", "-s", "-1"], &w.site.file("iperf.log"));
        wait_until("iperf3 listens", s(5), || {
            !w.wan.run(&["ss", "-Hltn", "sport = :5201"]).stdout.is_empty()
        });
        let client =
            w.c1.ns.start(&[&["iperf3", "-c", WAN, "-t1"], more].concat(), &w.site.file("client.log"));
        wait_until("the kernel carries it", s(5), || w.flows() > 0);
        let mut client = client;
        assert_eq!(client.wait(s(20)), Some(0), "{}", client.log());
        server.wait(s(5));
    }
    w.balances();
}

#[test]
fn what_ends_a_connection_ends_it_in_the_kernel_at_once() {
    let w = World::new();
    let ends = w.datagrams();
    w.hand_over(&ends);
    assert_eq!(w.arrives(&ends), [true, true], "in the kernel");

    w.site.ctl(&["conntrack", "flush"]);
    assert_eq!(w.arrives(&ends), [false, false], "after a flush");
    drop(ends);
    quiet();

    // A route that leads elsewhere.
    let ends = w.datagrams_from(4001);
    w.hand_over(&ends);
    w.site.host.ip(&["route", "add", "172.16.0.1/32", "via", "172.16.0.77"]);
    wait_until("the kernel has nothing any more", s(5), || w.flows() == 0);
    assert!(!w.arrives(&ends)[0], "the old way");
    w.site.host.ip(&["route", "del", "172.16.0.1/32"]);
    drop(ends);
    wait_until("the way is open again", s(5), || w.c1.ns.pings(WAN));

    // A container that leaves.
    let ends = w.datagrams_from(4002);
    w.hand_over(&ends);
    w.site.ctl(&["detach", "c1"]);
    assert_eq!(w.site.json(&["conntrack", "count"])["connections"], 0);
    assert_eq!(w.flows(), 0);
}

#[test]
fn a_container_with_another_mac_goes_on_receiving() {
    let w = World::new();
    w.site.unguard(&["c1"]);
    let ends = w.datagrams();
    w.hand_over(&ends);
    w.c1.ns.ip(&["link", "set", "eth0", "address", "02:00:00:00:00:99"]);
    // It tells the gateway.
    w.c1.ns.ping(GATEWAY);
    ends.0.set_read_timeout(Some(ms(100))).expect("timeout");
    wait_until("what comes from outside is for the new MAC", s(5), || {
        ends.1.send(b"word").expect("send");
        ends.0.recv(&mut [0; 100]).is_ok()
    });
    w.hand_over(&ends);
    assert_eq!(w.arrives(&ends), [true, true], "in the kernel");
}

#[test]
fn a_port_that_is_unpublished_gets_nothing_by_the_kernel() {
    let w = World::new();
    let ends = w.published_datagrams();
    w.hand_over(&ends);
    assert_eq!(w.arrives(&ends), [true, true], "in the kernel");
    w.site.ctl(&["unpublish", "5000/udp"]);
    // The host's stack has the port again, and refuses.
    w.wan.expect_refusals(5000, 1);
    assert_eq!(w.arrives(&ends), [false, false], "after the unpublish");
}

#[test]
fn a_reset_is_seen() {
    let w = World::new();
    let (inside, outside) = w.masqueraded();
    let ends = (inside, outside);
    w.hand_over(&ends);
    w.site.without_swd(|| bytes_are_identical(&ends.0, &ends.1, 3, 4_000_000));
    setsockopt(&ends.1, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).expect("linger");
    drop(ends.1);
    wait_until("it is reset", s(5), || w.connection("tcp")["state"] == "reset");
    wait_until("the kernel has nothing of it", s(5), || w.flows() == 0);
}

/// Asks `bpf(2)` how many programs are in force at the ingress of an interface (`BPF_PROG_QUERY`); with one more argument takes them
/// away (`BPF_LINK_DETACH`).
const PROGRAMS: &str = "
import ctypes, platform, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
number = {'x86_64': 321, 'aarch64': 280}[platform.machine()]
def bpf(command, form, *values):
    attributes = ctypes.create_string_buffer(struct.pack(form, *values))
    done = libc.syscall(number, command, attributes, len(attributes) - 1)
    assert done >= 0, ctypes.get_errno()
    return done, attributes.raw
ids, links = (ctypes.c_uint32 * 8)(), (ctypes.c_uint32 * 8)()
at = [ctypes.addressof(array) for array in (ids, links)]
_, answer = bpf(16, '=IIIIQIIQQQQ', socket.if_nametoindex(sys.argv[1]), 46, 0, 0, at[0], 8, 0, 0, at[1], 0, 0)
count = struct.unpack_from('=I', answer, 24)[0]
for link in links[:count] if len(sys.argv) > 2 else []:
    fd, _ = bpf(30, '=III', link, 0, 0)
    bpf(34, '=I', fd)
print(count)
";

/// How many programs are in force at the ingress of an interface of the host; with `detach`, were.
#[track_caller]
fn programs(site: &Site, ifname: &str, detach: bool) -> u64 {
    let python = python().to_str().expect("UTF-8").to_owned();
    let words = [&python, "-c", PROGRAMS, ifname, "detach"];
    let run = site.host.run(if detach { &words } else { &words[..4] }).ok();
    run.stdout.trim().parse().expect("a number")
}

#[test]
fn a_lost_program_is_noticed_and_nothing_leaks() {
    let w = World::new();
    // What comes out at the host's end without its program is not forwarded even so.
    w.site.host.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]).ok();
    let ends = w.datagrams();
    let passes = |from: &UdpSocket, to: &UdpSocket| {
        to.set_read_timeout(Some(ms(200))).expect("timeout");
        from.send(b"word").is_ok() && to.recv(&mut [0; 100]).is_ok()
    };
    let whole = || {
        wait_until("the kernel carries it, with all programs", s(20), || {
            let pass = (0..5).all(|_| passes(&ends.0, &ends.1) & passes(&ends.1, &ends.0));
            pass && w.flows() == 2 && ["eth0", "sw0"].iter().all(|i| programs(&w.site, i, false) == 1)
        });
    };
    for ifname in ["sw0", "eth0"] {
        whole();
        wait_until("a program is taken away", s(5), || programs(&w.site, ifname, true) == 1);
    }
    whole();
}

#[test]
fn a_killed_swd_leaves_no_program_behind() {
    let mut w = World::new();
    let ends = w.datagrams();
    w.hand_over(&ends);
    assert_eq!(["eth0", "sw0"].map(|ifname| programs(&w.site, ifname, false)), [1, 1]);
    w.site.kill();
    wait_until("the programs are gone", s(5), || {
        ["eth0", "sw0"].map(|ifname| programs(&w.site, ifname, false)) == [0, 0]
    });
    ends.1.set_read_timeout(Some(ms(300))).expect("timeout");
    ends.0.send(b"late").expect("send");
    assert!(ends.1.recv(&mut [0; 100]).is_err(), "a killed swd forwards");
    w.site.start();
    drop(ends);
    let ends = w.datagrams_from(4001);
    w.hand_over(&ends);
}

#[test]
fn the_kernel_keeps_connections_alive_and_lets_them_expire() {
    let w = World::with("[nat.timeouts]\nudp_replied = 6\n");
    let ends = w.datagrams();
    w.hand_over(&ends);
    let t0 = std::time::Instant::now();
    while t0.elapsed() < s(9) {
        ends.0.talk(&ends.1);
        std::thread::sleep(ms(100));
    }
    assert_eq!(w.flows(), 2);
    let row = w.connection("udp");
    assert!(number(&row, "packets") > 160, "{row}");
    wait_until("it expires", s(10), || w.site.json(&["conntrack", "count"])["connections"] == 0);
    wait_until("in the kernel, too", s(3), || w.flows() == 0);
    assert_eq!(w.arrives(&ends), [false, false]);
}

#[test]
fn what_has_no_room_in_the_kernel_passes_the_process() {
    let w = World::with("[nat]\nmax_connections = 4\nmax_per_container = 4\n");
    let all: Vec<_> = (4000..4004).map(|port| w.datagrams_from(port)).collect();
    wait_until("the kernel has as many directions as there may be connections", s(10), || {
        all.iter().for_each(|ends| (0..5).for_each(|_| ends.0.talk(&ends.1)));
        w.flows() == 4
    });
    for ends in &all {
        (0..20).for_each(|_| ends.0.talk(&ends.1));
    }
    assert_eq!(w.flows(), 4);
    w.balances();
}

#[test]
fn what_a_captured_port_sends_outside_stays_in_the_kernel_and_is_captured_once() {
    let w = World::new();
    let (tcp, udp) = (w.masqueraded(), w.datagrams());
    let capture = captured::start(&w.site, &["c1", "udp"], "c1.pcapng");
    let mut words = 0;
    wait_until("the kernel has both ways out", s(20), || {
        (0..5).for_each(|_| tcp.0.talk(&tcp.1));
        (0..5).for_each(|_| udp.0.talk(&udp.1));
        words += 5;
        w.flows() == 2
    });
    bytes_are_identical(&tcp.0, &tcp.1, 1, 2_000_000);
    bytes_are_identical(&tcp.1, &tcp.0, 2, 2_000_000);
    let arrives = w.arrives(&udp);
    assert_eq!(arrives, [true, false], "the kernel forwards what the port sends, swd what it is sent");
    udp.0.set_read_timeout(Some(s(5))).expect("timeout");
    assert_eq!(udp.0.recv(&mut [0; 100]).expect("what swd did not forward while it stood still"), 4);
    captured::interrupt(capture);
    let frames = captured::frames(&w.site.file("c1.pcapng"));
    let seen = |text: &[u8], inbound| {
        frames.iter().filter(|f| f.inbound == inbound && f.bytes[42..].starts_with(text)).count()
    };
    for inbound in [true, false] {
        assert_eq!((seen(b"word", inbound), seen(b"late", inbound)), (words, 1), "inbound: {inbound}");
    }
    // As they came from the container: from its own address.
    assert!(frames.iter().filter(|f| f.inbound).all(|f| f.bytes[26..30] == [172, 18, 0, 10]));

    // Who captures the uplink wants to see what leaves there.
    let capture = captured::start(&w.site, &["uplink", "udp"], "uplink.pcapng");
    (0..50).for_each(|_| udp.0.talk(&udp.1));
    assert_eq!(w.flows(), 0);
    let told = captured::interrupt(capture);
    assert_eq!(captured::counts(&told), (100, 0), "{told}");
    w.balances();
}

#[test]
fn a_capture_sees_every_frame_and_switched_off_nothing_is_in_the_kernel() {
    let w = World::new();
    let ends = w.datagrams();
    w.hand_over(&ends);
    let file = w.site.file("capture.pcapng");
    let words = ["capture", "c1", "-w", file.to_str().expect("UTF-8"), "-c", "40"];
    let mut capture =
        tests::process::Background::start(&mut w.site.swctl_command(&words), &w.site.file("capture.log"));
    wait_until("the capture has all it wants", s(10), || {
        (0..5).for_each(|_| ends.0.talk(&ends.1));
        capture.wait(ms(0)).is_some()
    });
    w.hand_over(&ends);
    drop(w);

    let w = World::with("fast_path = false\n");
    let ends = w.datagrams();
    (0..50).for_each(|_| ends.0.talk(&ends.1));
    assert_eq!(w.flows(), 0);
    assert_eq!(programs(&w.site, "eth0", false), 0);
}

/// How many IPv4 packets the host's stack has received.
#[track_caller]
fn received_by_the_stack(site: &Site) -> u64 {
    let table = site.host.run(&["cat", "/proc/net/snmp"]).ok().stdout;
    let mut rows = table.lines().filter_map(|line| line.strip_prefix("Ip: ")).map(str::split_whitespace);
    let (names, values) = rows.next().zip(rows.next()).expect("counters of IP");
    let (_, value) = names.zip(values).find(|(name, _)| *name == "InReceives").expect("InReceives");
    value.parse().expect("a number")
}

/// Asks so many times, each time from another port of `ns`, and is answered.
#[track_caller]
fn ask(ns: &Namespace, address: &str, times: usize, server: &UdpSocket) {
    for _ in 0..times {
        let socket = ns.udp(&format!("{address}:0"));
        socket.connect((WAN, 53)).expect("connect");
        socket.set_read_timeout(Some(s(5))).expect("timeout");
        socket.send(b"question").expect("send");
        let (_, from) = server.recv_from(&mut [0; 100]).expect("a question");
        assert_eq!(from.ip().to_string(), HOST);
        server.send_to(b"answer", from).expect("send");
        assert_eq!(socket.recv(&mut [0; 100]).expect("an answer"), 6);
    }
}

#[test]
fn answers_to_containers_do_not_burden_the_hosts_stack() {
    const TIMES: usize = 200;
    let w = World::new();
    let server = w.wan.udp("172.16.0.1:53");
    server.set_read_timeout(Some(s(5))).expect("timeout");
    let burden = |ask: &dyn Fn()| {
        let before = received_by_the_stack(&w.site);
        ask();
        received_by_the_stack(&w.site) - before
    };
    wait_until("the uplink has its program", s(10), || {
        ask(&w.c1.ns, "172.18.0.10", 1, &server);
        programs(&w.site, "eth0", false) == 1
    });
    // Some may have had to make room for others.
    let by_containers = burden(&|| ask(&w.c1.ns, "172.18.0.10", TIMES, &server));
    assert!(by_containers < TIMES as u64 / 4, "{by_containers} packets for the stack");
    // The host's own, which asks the same server meanwhile, by whatever port, has its answers.
    let by_both = burden(&|| {
        for _ in 0..TIMES / 10 {
            ask(&w.c1.ns, "172.18.0.10", 1, &server);
            ask(&w.site.host, HOST, 1, &server);
        }
    });
    assert!(by_both >= TIMES as u64 / 10, "{by_both}");
    let rows = w.site.json(&["conntrack", "ls", "--protocol", "udp"]);
    let leased = |port: u16| {
        rows.as_array().expect("rows").iter().any(|row| number(&row["reply"], "dport") == u64::from(port))
    };
    let port =
        (61_000..=65_535).find(|port| !leased(*port)).expect("a port of the pool that no container has");
    let own = w.site.host.udp(&format!("{HOST}:{port}"));
    own.connect((WAN, 53)).expect("connect");
    own.set_read_timeout(Some(s(5))).expect("timeout");
    own.send(b"question").expect("send");
    let (_, from) = server.recv_from(&mut [0; 100]).expect("a question");
    assert_eq!(from.port(), port);
    server.send_to(b"answer", from).expect("send");
    assert_eq!(
        own.recv(&mut [0; 100]).expect("an answer to a port of the pool that the host has connected"),
        6
    );
    w.balances();
}
