//! Much at once, and too much: what one container takes, and what is left for others.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tests::netns::Namespace;
use tests::outside::Outside;
use tests::process::{s, wait_until};
use tests::raw::{Raw, mac, syn4, udp4};
use tests::site::{Container, Site, Way, heavy};

/// More than this many connections no container has, unless told otherwise: a quarter of the table.
const SHARE: u64 = 65_536;

struct World {
    // First, so that the watch ends while swd runs.
    wan: Outside,
    site: Site,
}

impl World {
    fn new() -> Self {
        let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
        let wan = Outside::new(&site.host);
        // Somewhere that answers nothing.
        wan.ip(&["route", "add", "blackhole", "198.51.100.0/24"]);
        site.start();
        Self { wan, site }
    }

    fn connections(&self, filter: &[&str]) -> u64 {
        let count = self.site.json(&[&["conntrack", "count"], filter].concat());
        count["connections"].as_u64().expect("a number")
    }
}

/// `count` connections to a server outside, each of which carries data both ways. Gives both ends.
fn connect(world: &World, from: &Container, count: u16) -> Vec<(TcpStream, TcpStream)> {
    let listener = world.wan.tcp_listen("172.16.0.1:7000");
    let accept = thread::spawn(move || {
        let mut accepted = Vec::new();
        while accepted.len() < usize::from(count) {
            accepted.push(listener.accept().expect("accept"));
        }
        accepted
    });
    let mut clients: Vec<TcpStream> = from.ns.enter(|| {
        let to: SocketAddr = "172.16.0.1:7000".parse().expect("an address");
        (0..count)
            .map(|n| TcpStream::connect_timeout(&to, s(10)).unwrap_or_else(|e| panic!("{n}: {e}")))
            .collect()
    });
    let accepted = accept.join().expect("accepted");
    let mut ports: Vec<u16> = accepted.iter().map(|(_, from)| from.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), usize::from(count), "each has a port of its own");
    assert!(accepted.iter().all(|(_, from)| from.ip().to_string() == "172.16.0.2"));
    // Both ends have the connections in another order: what arrives says which it is.
    for (n, client) in clients.iter_mut().enumerate() {
        client.write_all(&u16::try_from(n).expect("few").to_be_bytes()).expect("send");
    }
    let mut pairs: Vec<_> = clients.into_iter().map(Some).collect();
    let join = |(mut server, _): (TcpStream, SocketAddr)| {
        server.set_read_timeout(Some(s(10))).expect("timeout");
        let mut number = [0; 2];
        server.read_exact(&mut number).expect("data out");
        let client = pairs[usize::from(u16::from_be_bytes(number))].take().expect("once");
        (client, server)
    };
    let mut pairs: Vec<_> = accepted.into_iter().map(join).collect();
    echo(&mut pairs);
    pairs
}

/// Data from each server arrives at its client.
fn echo(pairs: &mut [(TcpStream, TcpStream)]) {
    for (n, (client, server)) in pairs.iter_mut().enumerate() {
        let sent = u16::try_from(n).expect("few").to_be_bytes();
        server.write_all(&sent).expect("send");
        client.set_read_timeout(Some(s(10))).expect("timeout");
        let mut got = [0; 2];
        client.read_exact(&mut got).expect("data in");
        assert_eq!(got, sent);
    }
}

#[test]
fn four_thousand_connections_at_once() {
    let _alone = heavy();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("limits");
    let world = World::new();
    let c1 = world.site.container("c1", Way::PortAdd, "172.18.0.10");
    // Twice: together they are more than the pool has ports.
    for _ in 0..2 {
        let mut pairs = connect(&world, &c1, 4000);
        assert_eq!(world.connections(&["--protocol", "tcp", "--state", "established"]), 4000);
        echo(&mut pairs);
        drop(pairs);
        wait_until("all are closed", s(10), || world.connections(&["--state", "established"]) == 0);
    }
    // Last segments that are still being repeated make connections anew.
    wait_until("none is left", s(20), || {
        world.site.ctl(&["conntrack", "flush"]);
        world.connections(&[]) == 0
    });
    drop(connect(&world, &c1, 100));
}

/// Ends a loop in another thread, also when the test panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends datagrams to `to`, each to the next of all ports, until told to stop.
fn one_sided(socket: &UdpSocket, to: [&str; 2], stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for address in to {
            for port in 1..=u16::MAX {
                let _ = socket.send_to(b"x", (address, port));
            }
        }
    }
}

fn pings_all(from: &Namespace, to: &str) {
    let report = from.run(&["ping", "-n", "-q", "-c100", "-i0.01", "-W5", to]).stdout;
    assert!(report.contains("100 packets transmitted, 100 received"), "{report}");
}

#[test]
fn a_container_that_floods_fills_its_own_share() {
    let _alone = heavy();
    let world = World::new();
    let c1 = world.site.container("c1", Way::PortAdd, "172.18.0.10");
    let c2 = world.site.container("c2", Way::PortAdd, "172.18.0.20");
    let mut before = connect(&world, &c1, 3);
    let rss = world.site.rss();
    let stop = AtomicBool::new(false);
    let socket = c1.ns.udp("0.0.0.0:4000");
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| one_sided(&socket, ["198.51.100.7", "198.51.100.8"], &stop));
        wait_until("its share is full", s(60), || world.connections(&["--container", "c1"]) == SHARE);
    });
    // What it had goes on; what is new is refused, told and counted.
    echo(&mut before);
    // The budget of such answers was used up by the flood, and is back within a second.
    wait_until("c1 is told", s(30), || {
        c1.ns.run(&["ping", "-n", "-c1", "-W1", "172.16.0.1"]).stdout.contains("Packet filtered")
    });
    assert!(world.site.drops("connection-limit") > 0);
    c2.ns.ping("172.16.0.1");

    // And a flood from random ports, SYNs and datagrams, from a container that is at its limit and one that is not.
    let c3 = world.site.container("c3", Way::PortAdd, "172.18.0.30");
    let gateway = mac(&world.site.host.mac("sw0"));
    let macs = [(gateway, mac(&c1.mac())), (gateway, mac(&c3.mac()))];
    let frames: Vec<Vec<u8>> = (0..20_000u32)
        .map(|n| {
            let [_, a, b, c] = n.wrapping_mul(0x9e37_79b9).to_be_bytes();
            let (port, to) = (u16::from_be_bytes([a, b]).max(1), [198, 51, 100, c]);
            let (macs, source) =
                if n % 4 < 2 { (macs[0], [172, 18, 0, 10]) } else { (macs[1], [172, 18, 0, 30]) };
            match n % 2 {
                0 => syn4(macs, (source, port), (to, 80)),
                _ => udp4(macs, (source, port), (to, 9), b"x"),
            }
        })
        .collect();
    let mut raws = [Raw::open(&c1.ns, "eth0"), Raw::open(&c3.ns, "eth0")];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (n, raw) in raws.iter_mut().enumerate() {
                    let own = frames.iter().enumerate().filter(|(i, _)| (i % 4 < 2) == (n == 0));
                    raw.send_all(own.map(|(_, f)| f.as_slice()));
                }
            }
        });
        wait_until("the flood is on", s(30), || world.connections(&["--container", "c3"]) > 5000);
        pings_all(&c2.ns, "172.16.0.1");
        let mut other = connect(&world, &c2, 50);
        echo(&mut other);
    });
    echo(&mut before);
    let grown = world.site.rss().saturating_sub(rss) >> 20;
    assert!(grown < 64, "swd's memory grew by {grown} MiB");
}

#[test]
fn what_is_not_the_containers_own_does_not_leave() {
    let world = World::new();
    let c1 = world.site.container("c1", Way::Attach, "172.18.0.10");
    let _c2 = world.site.container("c2", Way::Attach, "172.18.0.20");
    // The router's own look at the source is what is meant.
    world.site.unguard(&["c1"]);
    // No network's address, the gateway's, and another container's.
    for (n, source) in (1..).zip(["10.9.9.9", "172.18.0.1", "172.18.0.20"]) {
        c1.ns.ip(&["addr", "add", &format!("{source}/32"), "dev", "lo"]);
        c1.ns.run(&["ping", "-n", "-c1", "-W1", "-I", source, "172.16.0.1"]);
        wait_until(source, s(3), || world.site.drops("spoofed-source") == n);
    }
    assert_eq!(world.connections(&[]), 0);
}
