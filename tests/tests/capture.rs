//! Captures of ports whose flows the kernel forwards: each frame is captured once, or told as lost, and the flow stays fast. Whatever a
//! capture has seen when it is interrupted is in its file.

use std::net::UdpSocket;
use std::ops::Range;
use std::process::Command;

use nix::sys::signal::Signal;
use tests::captured::{Frame, counts, frames, interrupt, start};
use tests::process::{Background, ms, run, s, wait_until};
use tests::site::{Container, Site, Way, heavy, quiet};

/// Where numbered datagrams go.
const PORT: u16 = 7000;

/// Two containers, and a socket in each.
struct Two {
    site: Site,
    c: [Container; 2],
    from: UdpSocket,
    to: UdpSocket,
}

fn two(way: Way) -> Two {
    let site = Site::new();
    let c = ["c1", "c2"].map(|n| site.container(n, way, &format!("172.18.0.{}0", &n[1..])));
    c[0].ping(&c[1]);
    let to = c[1].ns.udp(&format!("172.18.0.20:{PORT}"));
    to.set_read_timeout(Some(s(5))).expect("a timeout");
    let from = c[0].ns.udp("172.18.0.10:0");
    from.connect(format!("172.18.0.20:{PORT}")).expect("connect");
    Two { site, c, from, to }
}

impl Two {
    /// Sends a datagram for each number, and waits for each.
    #[track_caller]
    fn send(&self, numbers: Range<u32>) {
        for number in numbers {
            self.from.send(&datagram(number)).expect("send");
            let mut buffer = [0; 2000];
            let length = self.to.recv(&mut buffer).expect("it arrives");
            assert_eq!(buffer[..length], datagram(number), "datagram {number}");
        }
    }

    fn flows(&self) -> u64 {
        self.site.json(&["status"])["fast_flows"].as_u64().expect("fast_flows")
    }

    /// Sends datagrams from this number on until the kernel has a flow; tells the next number.
    #[track_caller]
    fn hand_over(&self, mut next: u32) -> u32 {
        wait_until("the kernel has the flow", s(20), || {
            self.send(next..next + 20);
            next += 20;
            self.flows() > 0
        });
        next
    }

    /// Received = forwarded + answered + dropped.
    #[track_caller]
    fn balances(&self) {
        quiet();
        let status = self.site.json(&["status"]);
        let n = |key: &str| status[key].as_u64().expect("a number");
        assert_eq!(n("received"), n("forwarded") + n("answered") + n("drops"), "{status}");
    }
}

/// Of all lengths, with its number in front.
fn datagram(number: u32) -> Vec<u8> {
    let mut bytes = vec![7; 4 + (number as usize * 37) % 1400];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// The numbers of datagrams that went one way, in the order of their times.
fn numbers(frames: &[Frame], inbound: bool) -> Vec<u32> {
    let mut frames: Vec<_> = frames.iter().filter(|f| f.inbound == inbound).collect();
    frames.sort_by_key(|frame| frame.at);
    frames.iter().filter_map(|frame| frame.number(PORT)).collect()
}

#[test]
fn what_a_captured_port_sends_stays_in_the_kernel_and_is_captured_once() {
    let _alone = heavy();
    let t = two(Way::Attach);
    t.hand_over(0);
    let words = ["c1", "udp"];
    let captures = ["one", "two"].map(|name| start(&t.site, &words, &format!("{name}.pcapng")));
    let before = t.site.port("c1");
    let mut next = t.hand_over(0);
    // The kernel forwards it: swd stands still, and the copies wait in the ring.
    t.site.signal(Signal::SIGSTOP);
    t.send(next..next + 1000);
    t.site.signal(Signal::SIGCONT);
    next += 1000;
    for _ in 0..20 {
        // Each of these ends the epoch: some go by swd, some by the kernel.
        t.site.ctl(&["fdb", "add", "02:00:00:00:0f:01", "c2"]);
        t.send(next..next + 50);
        t.site.ctl(&["fdb", "rm", "02:00:00:00:0f:01"]);
        next += 50;
    }
    // Answers are for the captured port, and pass swd.
    t.to.connect(t.from.local_addr().expect("an address")).expect("connect");
    t.to.send(b"answer").expect("send");
    assert_eq!(t.from.recv(&mut [0; 100]).expect("the answer"), 6);
    let after = t.site.port("c1");
    for (capture, name) in captures.into_iter().zip(["one", "two"]) {
        let told = interrupt(capture);
        let frames = frames(&t.site.file(&format!("{name}.pcapng")));
        assert_eq!(counts(&told), (frames.len(), 0), "{told}");
        assert_eq!(numbers(&frames, true), (0..next).collect::<Vec<_>>(), "each once, in order");
        let whole = |f: &Frame| f.number(PORT).is_none_or(|n| f.bytes[42..] == datagram(n));
        assert!(frames.iter().all(whole), "as they were");
        let answers: Vec<_> = frames.iter().filter(|f| f.bytes.ends_with(b"answer")).collect();
        assert!(answers.len() == 1 && !answers[0].inbound, "{answers:?}");
    }
    // Copies are counted nowhere.
    let received = |port: &serde_json::Value| port["rx_packets"].as_u64().expect("a number");
    let more = received(&after) - received(&before);
    assert!((u64::from(next)..u64::from(next) + 40).contains(&more), "{more} more than before, {next} sent");
    t.balances();
}

#[test]
fn a_flood_is_captured_or_told_as_lost() {
    let _alone = heavy();
    let t = two(Way::Attach);
    let capture = start(&t.site, &["c1", "udp"], "flood.pcapng");
    let sent = t.hand_over(0) + 100_000;
    for number in sent - 100_000..sent {
        t.from.send(&number.to_be_bytes()).expect("send");
    }
    let (captured, lost) = counts(&interrupt(capture));
    assert_eq!(captured + lost, sent as usize, "{captured} captured, {lost} lost");
    let mut numbers = numbers(&frames(&t.site.file("flood.pcapng")), true);
    assert_eq!(numbers.len(), captured);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), captured, "each once");
    t.balances();
}

#[test]
fn what_others_want_to_see_leaves_the_kernel() {
    let t = two(Way::PortAdd);
    let watchers: [&[&str]; 2] = [&["c2", "udp"], &["network", "default", "udp"]];
    let mut next = 0;
    for (i, words) in watchers.into_iter().enumerate() {
        let first = next;
        let sender = start(&t.site, &["c1", "udp"], &format!("sender-{i}.pcapng"));
        next = t.hand_over(next);
        let other = start(&t.site, words, &format!("other-{i}.pcapng"));
        let seen = next;
        next += 200;
        t.send(seen..next);
        assert_eq!(t.flows(), 0, "{words:?}");
        interrupt(other);
        let others = frames(&t.site.file(&format!("other-{i}.pcapng")));
        // Of a port what is sent to it, of a network what comes into it.
        assert_eq!(numbers(&others, i == 1), (seen..next).collect::<Vec<_>>(), "{words:?}");
        next = t.hand_over(next);
        interrupt(sender);
        let senders = frames(&t.site.file(&format!("sender-{i}.pcapng")));
        assert_eq!(numbers(&senders, true), (first..next).collect::<Vec<_>>(), "beside {words:?}");
    }
}

#[test]
fn an_interface_that_came_back_is_captured_again() {
    let t = two(Way::PortAdd);
    let capture = start(&t.site, &["c1", "udp"], "back.pcapng");
    let next = t.hand_over(0);
    // Down and up, as it is.
    t.site.switch().ip(&["link", "set", "v-c1", "down"]);
    wait_until("the port is down", s(10), || t.site.port("c1")["state"] == "down");
    t.site.switch().ip(&["link", "set", "v-c1", "up"]);
    wait_until("the port is up", s(10), || t.site.port("c1")["state"] == "up");
    wait_until("its link is up", s(10), || t.c[0].ns.pings("172.18.0.20"));
    let next = t.hand_over(next);
    // A new pair with another index, of which the capture has no copies: it passes swd.
    t.site.switch().ip(&["link", "del", "v-c1"]);
    wait_until("the port has no interface", s(10), || t.site.port("c1")["state"] == "missing");
    let container = t.c[0].ns.name();
    t.site.host.ip(&["link", "add", "v-c1", "type", "veth", "peer", "name", "eth0", "netns", container]);
    t.c[0].ns.ip(&["addr", "add", "172.18.0.10/16", "dev", "eth0"]);
    t.c[0].ns.ip(&["link", "set", "eth0", "up"]);
    wait_until("the port is up", s(10), || t.site.port("c1")["state"] == "up");
    wait_until("its link is up", s(10), || t.c[0].ns.pings("172.18.0.20"));
    t.send(next..next + 200);
    interrupt(capture);
    let frames = frames(&t.site.file("back.pcapng"));
    assert_eq!(numbers(&frames, true), (0..next + 200).collect::<Vec<_>>());
}

#[test]
fn what_was_captured_before_a_signal_is_there() {
    // By the kernel, by workers, and from a TAP queue; as a file and as text.
    for way in [Way::Attach, Way::Tap] {
        let t = two(way);
        for round in 0..5 {
            let name = format!("{round}.pcapng");
            let capture = start(&t.site, &["c1", "udp"], &name);
            t.send(0..30 * round + 1);
            let told = interrupt(capture);
            let frames = frames(&t.site.file(&name));
            assert_eq!(numbers(&frames, true), (0..30 * round + 1).collect::<Vec<_>>(), "{told}");
            assert_eq!(counts(&told), (frames.len(), 0), "{told}");
        }
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let log = t.site.file(&format!("{signal}.txt"));
            let mut text = Background::start(&mut t.site.swctl_command(&["capture", "c1", "udp"]), &log);
            wait_until("the capture runs", s(10), || {
                t.send(0..1);
                text.log().contains(" len 32")
            });
            t.send(1..2);
            text.signal(signal);
            assert_eq!(text.wait(s(5)), Some(0), "{}", text.log());
            assert!(text.log().contains(" len 69"), "{}", text.log());
        }
        // Nothing is left of them.
        wait_until("no capture runs", s(5), || {
            let names = std::fs::read_dir(format!("/proc/{}/task", t.site.pid())).expect("its threads");
            let comm = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
            !names.flatten().filter_map(|task| comm(task).ok()).any(|comm| comm.trim() == "capture")
        });
    }
}

#[test]
fn a_capture_is_ended_by_its_number() {
    let t = two(Way::Attach);
    let end = |id: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-X", "DELETE", "--unix-socket"]).arg(t.site.socket());
        run(curl.arg(format!("http://swd/v1/capture/{id}")), s(10)).ok().stdout
    };
    for id in ["1", "2"] {
        let problem = end(id);
        assert!(problem.contains(&format!("no capture has the number {id}")), "{problem}");
        let mut capture = start(&t.site, &["c1", "udp"], &format!("{id}.pcapng"));
        t.send(0..3);
        assert_eq!(end(id), "");
        assert_eq!(capture.wait(s(5)), Some(0), "{}", capture.log());
        assert_eq!(counts(&capture.log()), (3, 0));
    }
    assert!(end("1").contains("no capture has the number 1"), "numbers are not used twice");
}

#[test]
fn a_swd_that_stands_still_does_not_hold_a_capture_up() {
    let t = two(Way::Attach);
    let mut capture = start(&t.site, &["c1"], "still.pcapng");
    t.site.signal(Signal::SIGSTOP);
    capture.signal(Signal::SIGINT);
    assert_eq!(capture.wait(s(10)), Some(1), "{}", capture.log());
    t.site.signal(Signal::SIGCONT);
    assert!(capture.log().contains(" frames captured, 0 lost"), "{}", capture.log());
    assert!(capture.log().contains("error: "), "{}", capture.log());
    // A second signal does not wait.
    let mut capture = start(&t.site, &["c1"], "again.pcapng");
    t.site.signal(Signal::SIGSTOP);
    capture.signal(Signal::SIGINT);
    std::thread::sleep(ms(100)); // Two at once are one.
    capture.signal(Signal::SIGINT);
    assert_eq!(capture.wait(s(1)), Some(0), "{}", capture.log());
    t.site.signal(Signal::SIGCONT);
}
