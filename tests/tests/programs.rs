//! The programs that people use, out through the masquerade and in by published ports, in both families.
//!
//! The outside is a router (`wan`) and a host behind it (`far`), so that there is somebody on the way to hear of.

use std::io::{Read, Write};
use std::process::Command;
use std::thread;

use tests::for_each_port_kind;
use tests::netns::{Namespace, veth};
use tests::outside::Outside;
use tests::process::{Background, run, run_with_input, s, wait_until};
use tests::site::{Site, Way, heavy};
use tests::ssh::Sshd;

/// Bytes to send by ssh, once in each direction; elsewhere a tenth has to do.
const LARGE: u32 = 200_000_000;
/// An IP packet of this length takes 28 fragments.
const DATAGRAM: usize = 40_000;

struct World {
    // First, so that the watch ends while swd runs.
    #[expect(dead_code, reason = "it watches until it is dropped")]
    wan: Outside,
    far: Namespace,
    container: Namespace,
    site: Site,
}

/// A way from a client to a server.
struct Road<'a> {
    site: &'a Site,
    client: &'a Namespace,
    server: &'a Namespace,
    /// What the client dials: IPv4 and IPv6.
    addresses: [&'a str; 2],
}

impl World {
    fn new(way: Way) -> Self {
        let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
        let wan = Outside::new(&site.host);
        let far = Namespace::new();
        veth(("eth1", &wan), ("eth0", &far));
        for (ns, dev, addresses) in [
            (&*wan, "eth1", ["203.0.113.1/24", "2001:db8:f::1/64"]),
            (&far, "eth0", ["203.0.113.7/24", "2001:db8:f::7/64"]),
        ] {
            ns.ip(&["addr", "add", addresses[0], "dev", dev]);
            ns.ip(&["addr", "add", addresses[1], "dev", dev, "nodad"]);
            // Who is asked often answers often.
            let settings = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
            let limits = ["net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"];
            ns.run(&[&["sysctl", "-qw"], &settings[..], &limits].concat()).ok();
        }
        far.ip(&["route", "add", "default", "via", "203.0.113.1"]);
        far.ip(&["-6", "route", "add", "default", "via", "2001:db8:f::1"]);
        site.start();
        site.ctl(&["network", "add", "both", "--subnet", "172.19.0.0/16", "--subnet", "fd00:19::/64"]);
        let container = Namespace::new();
        // A port that is added by hand gets no IPv6 address from swd.
        let words = ["attach", container.name(), "--name", "c1", "--network", "both", "--ip", "172.19.0.10"];
        let tap = if way == Way::Tap { &["--tap"][..] } else { &[] };
        let more = ["--ip", "fd00:19::10"];
        site.ctl(&[&words[..], &more, tap].concat());
        Self { wan, far, container, site }
    }

    fn out(&self) -> Road<'_> {
        let addresses = ["203.0.113.7", "2001:db8:f::7"];
        Road { site: &self.site, client: &self.container, server: &self.far, addresses }
    }

    fn inward(&self) -> Road<'_> {
        for protocol in ["tcp", "udp"] {
            for (host, target) in [("", "172.19.0.10"), ("[::]:", "[fd00:19::10]")] {
                let published = format!("{host}2000-2999/{protocol}");
                self.site.ctl(&["publish", &published, &format!("{target}:2000")]);
            }
        }
        let addresses = ["172.16.0.2", "2001:db8::2"];
        Road { site: &self.site, client: &self.far, server: &self.container, addresses }
    }
}

fn at(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Waits until something listens.
fn listens(ns: &Namespace, kind: &str, port: u16) {
    let filter = format!("sport = :{port}");
    wait_until("it listens", s(10), || !ns.run(&["ss", "-Hln", kind, &filter]).stdout.is_empty());
}

impl Road<'_> {
    fn start(&self, words: &[&str], log: &str) -> Background {
        self.server.start(words, &self.site.file(log))
    }

    fn curl(&self) {
        let listener = self.server.tcp_listen("[::]:2080");
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                drop(stream.read(&mut [0; 1000]));
                drop(stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello"));
            }
        });
        for address in self.addresses {
            let url = format!("http://{}/", at(address, 2080));
            assert_eq!(self.client.run(&["curl", "-sS", "-m5", "-g", &url]).ok().stdout, "hello", "{url}");
        }
    }

    /// The server answers when it has heard the end.
    fn half_close(&self) {
        let listener = self.server.tcp_listen("[::]:2001");
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut all = Vec::new();
                drop(stream.read_to_end(&mut all));
                all.reverse();
                drop(stream.write_all(&all));
            }
        });
        let question: Vec<u8> = (0..1_000_000u32).map(|n| b'a' + n.to_le_bytes()[1] % 26).collect();
        let answer: Vec<u8> = question.iter().rev().copied().collect();
        for address in self.addresses {
            let mut nc = self.client.command(&["nc", "-N", "-w10", address, "2001"]);
            let heard = run_with_input(&mut nc, &question, s(20)).ok().stdout;
            assert!(heard.as_bytes() == answer, "{address}: {} bytes came back", heard.len());
        }
    }

    fn names(&self) {
        let words =
            ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root"];
        let more = ["--no-resolv", "--no-hosts", "--port=2053", "--txt-record=page.test,hello"];
        let _server = self.start(&[&words[..], &more].concat(), "dnsmasq.log");
        listens(self.server, "-u", 2053);
        for address in self.addresses {
            for way in ["+notcp", "+tcp"] {
                let server = format!("@{address}");
                let words =
                    ["dig", &server, "-p2053", "page.test", "TXT", "+short", "+tries=2", "+time=3", way];
                assert_eq!(self.client.run(&words).ok().stdout.trim(), "\"hello\"", "{words:?}");
            }
        }
    }

    fn iperf(&self) {
        let _server = self.start(&["iperf3", "-s", "-p2201"], "iperf.log");
        listens(self.server, "-t", 2201);
        let ways =
            [&["-n20M"][..], &["-n20M", "-R"], &["-u", "-b100M", "-n2M"], &["-u", "-b100M", "-n2M", "-R"]];
        for address in self.addresses {
            for way in ways {
                let words = ["iperf3", "-J", "-p2201", "-c", address];
                let report = self.client.run(&[&words[..], way].concat()).ok().json();
                let (end, udp) = (&report["end"], way.contains(&"-u"));
                let got = if udp { &end["sum"]["packets"] } else { &end["sum_received"]["bytes"] };
                let lost = if udp { end["sum"]["lost_packets"].as_u64() } else { Some(0) };
                assert!(got.as_u64() > lost, "{way:?} {address}: {end}");
            }
        }
    }

    /// Datagrams of many fragments, there and back.
    fn large_datagrams(&self) {
        let server = self.server.udp("[::]:2400");
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok((length, from)) = server.recv_from(&mut buffer) {
                drop(server.send_to(&buffer[..length], from));
            }
        });
        for address in self.addresses {
            let client = self.client.udp("[::]:0");
            let to =
                if address.contains(':') { at(address, 2400) } else { format!("[::ffff:{address}]:2400") };
            client.connect(to).expect("connect");
            client.set_read_timeout(Some(s(1))).expect("timeout");
            let mut buffer = vec![0; 1 << 16];
            for n in 0..10u8 {
                let datagram: Vec<u8> = (0..DATAGRAM).map(|i| i.to_le_bytes()[0] ^ n).collect();
                // A lost fragment is not what this is about.
                let came = (0..5).any(|_| {
                    client.send(&datagram).expect("send");
                    let end = std::time::Instant::now() + s(1);
                    let mut hear =
                        || client.recv(&mut buffer).ok().map(|length| buffer[..length] == datagram);
                    while std::time::Instant::now() < end {
                        match hear() {
                            Some(true) => return true,
                            Some(false) => {} // a late answer to an earlier one
                            None => return false,
                        }
                    }
                    false
                });
                assert!(came, "{address}: datagram {n} does not come back as it was");
            }
        }
    }

    fn all(&self) {
        self.curl();
        self.half_close();
        self.names();
        self.iperf();
        self.large_datagrams();
    }
}

for_each_port_kind! {
    fn programs_go_out(way) {
        let world = World::new(way);
        world.out().all();
    }

    fn programs_come_in_by_published_ports(way) {
        let world = World::new(way);
        world.inward().all();
    }

    fn the_way_can_be_traced(way) {
        let world = World::new(way);
        let hops = [["172.19.0.1", "172.16.0.1", "203.0.113.7"], ["fd00:19::1", "2001:db8::1", "2001:db8:f::7"]];
        for hops in hops {
            let far = hops[2];
            world.container.ping(far);
            for method in [&["-U"][..], &["-I"], &["-T", "-p80"]] {
                let words = ["traceroute", "-n", "-q1", "-w3", "-m5"];
                let text = world.container.run(&[&words[..], method, &[far]].concat()).ok().stdout;
                let seen: Vec<_> = text.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect();
                assert_eq!(seen, hops, "{method:?}: {text}");
            }
            for method in [&[][..], &["-u"], &["-T", "-P80"]] {
                let words = ["mtr", "--report", "-n", "-c3", "-i0.2", "-G1"];
                let text = world.container.run(&[&words[..], method, &[far]].concat()).ok().stdout;
                let whole = |hop: &&str| text.lines().any(|l| l.contains(hop) && l.contains(" 0.0%"));
                assert!(hops.iter().all(whole), "{method:?}: {text}");
            }
        }
    }
}

/// A file by scp, and its checksum by ssh.
fn copies(road: &Road<'_>, address: &str, length: u32) {
    let file = |name: &str| road.site.file(name).display().to_string();
    run(Command::new("sh").args(["-c", &format!("head -c {length} /dev/urandom >{}", file("large"))]), s(60))
        .ok();
    let sum = run(Command::new("sha256sum").arg(file("large")), s(60)).ok().stdout;
    let server = Sshd::start(road.server, road.site.file("").as_path(), "ssh");
    let ssh = |words: &[&str]| {
        let options = server.options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        road.client.run(&[&words[..1], &options, &words[1..]].concat()).ok()
    };
    let to = match address.contains(':') {
        true => format!("root@[{address}]:{}", file("copy")),
        false => format!("root@{address}:{}", file("copy")),
    };
    ssh(&["scp", "-q", "-P2022", &file("large"), &to]);
    let copied = ssh(&["ssh", "-p2022", &format!("root@{address}"), "sha256sum", &file("copy")]).stdout;
    assert_eq!(sum.split_whitespace().next(), copied.split_whitespace().next());
}

#[test]
fn ssh_and_scp_go_out() {
    let _alone = heavy();
    let world = World::new(Way::Attach);
    copies(&world.out(), "203.0.113.7", LARGE);
    let world = World::new(Way::Tap);
    copies(&world.out(), "2001:db8:f::7", LARGE / 10);
}

#[test]
fn ssh_and_scp_come_in_by_a_published_port() {
    let _alone = heavy();
    let world = World::new(Way::Attach);
    copies(&world.inward(), "2001:db8::2", LARGE / 10);
    let world = World::new(Way::Tap);
    copies(&world.inward(), "172.16.0.2", LARGE);
}

/// What has been idle for a minute has four more (RFC 4787 REQ-5): the table says so. Minutes themselves pass in the lab
/// (`router`: `udp_lives_through_minutes_of_silence_and_not_through_more`).
#[test]
fn an_answered_datagram_may_be_followed_by_silence() {
    let world = World::new(Way::Attach);
    let (there, here) = (world.far.udp("203.0.113.7:4433"), world.container.udp("0.0.0.0:4000"));
    here.connect("203.0.113.7:4433").expect("connect");
    for socket in [&here, &there] {
        socket.set_read_timeout(Some(s(3))).expect("timeout");
    }
    let timeout = || {
        let row = world.site.row(&["conntrack", "ls"], "protocol", "udp").expect("the connection");
        row["timeout_s"].as_u64().expect("seconds")
    };
    here.send(b"hello").expect("send");
    let (_, from) = there.recv_from(&mut [0; 10]).expect("hello");
    assert!((110..=120).contains(&timeout()), "{} s unanswered", timeout());
    there.send_to(b"hello", from).expect("send");
    here.recv(&mut [0; 10]).expect("hello");
    assert!((290..=300).contains(&timeout()), "{} s answered", timeout());
}
