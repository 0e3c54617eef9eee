//! Port guards and the relay for clients on the host, against a real kernel: a host namespace with a cable to an outside and
//! one to a container. No swd: the two modules themselves.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use switch::daemon::portguard::Protocol::{Tcp, Udp};
use switch::daemon::portguard::Purpose::{Pool, Publish};
use switch::daemon::portguard::{GuardError, GuardLimits, Guards, Mechanism, Protocol};
use switch::daemon::relay::{Relay, RelayLimits};
use switch::sys::netns::NetNs;
use tests::netns::{Namespace, unique_name, veth};
use tests::process::{Background, ms, python, s, wait_until};

/// The host's addresses, towards the outside and towards the container; those two; and their ports.
const HOST: [&str; 2] = ["10.9.0.1", "[fd09::1]"];
const CONTAINER: [&str; 2] = ["172.30.0.2", "[fd30::2]"];
const LOCAL: [&str; 5] = ["127.0.0.1", "[::1]", "10.9.0.1", "[fd09::1]", "172.30.0.1"];
/// Long enough for an answer over a cable, short enough to wait for none.
const SILENCE: Duration = Duration::from_millis(400);

struct Site {
    host: Namespace,
    outside: Namespace,
    container: Namespace,
}

impl Site {
    fn new() -> Self {
        let named = || Namespace::named(&format!("pg-{}", unique_name()));
        let site = Self { host: named(), outside: named(), container: named() };
        veth(("out0", &site.host), ("eth0", &site.outside));
        veth(("sw0", &site.host), ("eth0", &site.container));
        for (ns, dev, v4, v6) in [
            (&site.host, "out0", "10.9.0.1/24", "fd09::1/64"),
            (&site.outside, "eth0", "10.9.0.2/24", "fd09::2/64"),
            (&site.host, "sw0", "172.30.0.1/24", "fd30::1/64"),
            (&site.container, "eth0", "172.30.0.2/24", "fd30::2/64"),
        ] {
            ns.ip(&["addr", "add", v4, "dev", dev]);
            ns.ip(&["addr", "add", v6, "dev", dev, "nodad"]);
        }
        // Each refusal is to be seen: without this, some seconds' worth of them are not sent.
        for limit in ["net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"] {
            site.host.run(&["sysctl", "-qw", limit]).ok();
        }
        site
    }

    fn netns(&self) -> NetNs {
        NetNs::open(&self.host.path()).expect("the host's namespace")
    }

    /// Guards and a relay that leads every port to the same port plus 10,000 of the container, family by family.
    fn start(&self, mechanism: Option<Mechanism>) -> (Guards, Relay) {
        let limits = GuardLimits { mechanism, ..GuardLimits::default() };
        let (guards, sockets) = Guards::with_limits(&self.netns(), limits).expect("guards");
        assert_eq!(guards.mechanism(), mechanism.unwrap_or(Mechanism::Lookup), "{:?}", guards.refusal());
        let limits = RelayLimits { connections: 50, sessions: 50 };
        let relay = Relay::start(sockets, Arc::new(|_, dialled, _| Some(target(dialled))), limits);
        (guards, relay.expect("relay"))
    }

    fn dial(&self, address: &str) -> std::io::Result<TcpStream> {
        self.host.tcp_connect(address, s(5))
    }
}

fn target(dialled: SocketAddr) -> SocketAddr {
    let address = CONTAINER[usize::from(dialled.is_ipv6())];
    format!("{address}:{}", dialled.port() + 10_000).parse().expect("an address")
}

fn each_mechanism(test: impl Fn(Mechanism)) {
    for mechanism in [Mechanism::Lookup, Mechanism::Sockets] {
        eprintln!("with {mechanism:?}");
        test(mechanism);
    }
}

/// What a dialler gets at a port: a connection, a refusal, or nothing.
fn tcp(from: &Namespace, address: &str) -> Result<(), ErrorKind> {
    from.tcp_connect(address, SILENCE).map(drop).map_err(|e| e.kind())
}

/// The same for UDP: a refusal, or nothing.
fn udp(from: &Namespace, address: &str) -> Result<(), ErrorKind> {
    let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = from.udp(any);
    socket.connect(address).expect("connect");
    socket.set_read_timeout(Some(SILENCE)).expect("timeout");
    socket.send(b"anybody there?").expect("send");
    socket.recv(&mut [0; 100]).map(drop).map_err(|e| e.kind())
}

/// No answer, and no refusal either.
#[track_caller]
fn silent(answer: Result<(), ErrorKind>) {
    assert!(matches!(answer, Err(ErrorKind::TimedOut | ErrorKind::WouldBlock)), "not silent: {answer:?}");
}

#[track_caller]
fn refused(answer: Result<(), ErrorKind>) {
    assert_eq!(answer, Err(ErrorKind::ConnectionRefused));
}

/// Refused from now on. Not at once: other threads of this process start programs, and between fork and exec those have
/// copies of the sockets that were just closed.
#[track_caller]
fn free(from: &Namespace, address: &str) {
    let is_free = |ask: fn(&Namespace, &str) -> _| ask(from, address) == Err(ErrorKind::ConnectionRefused);
    wait_until(address, s(5), || is_free(tcp) && is_free(udp));
}

/// Connected at most, and reset at once.
#[track_caller]
fn reset(connection: std::io::Result<TcpStream>) {
    let end = connection.and_then(|mut stream| stream.read(&mut [0]));
    assert_eq!(end.map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));
}

/// An HTTP server that says who asked; until the test's process ends.
fn web(ns: &Namespace, address: &str) {
    serve(ns.tcp_listen(address), |mut stream| {
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte).unwrap_or(0) == 0 {
                return;
            }
            request.push(byte[0]);
        }
        let peer = stream.peer_addr().expect("peer").ip();
        drop(write!(stream, "HTTP/1.0 200 OK\r\n\r\nyou are {peer}\n"));
    });
}

fn serve(listener: TcpListener, each: impl Fn(TcpStream) + Send + Sync + 'static) {
    let each = Arc::new(each);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let each = Arc::clone(&each);
            thread::spawn(move || each(stream));
        }
    });
}

/// A UDP server that sends back what it gets, and how long it was.
fn echo(ns: &Namespace, address: &str) {
    let socket = ns.udp(address);
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(&buffer[..n], from));
        }
    });
}

/// A Python program in the host's namespace that has a port.
fn squatter(site: &Site, what: &str) -> (Background, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("folder");
    let program = format!("import socket,time\ns=socket.{what}\nprint('ready',flush=True)\ntime.sleep(60)");
    let log = folder.path().join("log");
    let python = python().to_str().expect("path").to_owned();
    let started = site.host.start(&[&python, "-c", &program], &log);
    wait_until("the program has its port", s(10), || started.log().contains("ready"));
    (started, folder)
}

#[test]
fn the_outside_hears_nothing_from_our_ports_and_a_refusal_from_others() {
    each_mechanism(|mechanism| {
        let site = Site::new();
        let (mut guards, _relay) = site.start(Some(mechanism));
        for protocol in [Tcp, Udp] {
            guards.own(protocol, 61_000..=61_100, Pool).expect("own");
            guards.own(protocol, 5000..=5000, Publish).expect("own");
            guards.own(protocol, 6000..=6010, Publish).expect("own");
        }
        for host in HOST {
            for port in [61_000, 61_037, 61_100, 5000, 6000, 6010] {
                let address = format!("{host}:{port}");
                silent(tcp(&site.outside, &address));
                silent(udp(&site.outside, &address));
            }
            for port in [60_999, 61_101, 4999, 5001, 5999, 6011] {
                let address = format!("{host}:{port}");
                refused(tcp(&site.outside, &address));
                refused(udp(&site.outside, &address));
            }
        }
        for protocol in [Tcp, Udp] {
            guards.release(protocol, 61_000..=61_100, Pool).expect("release");
            guards.release(protocol, 5000..=5000, Publish).expect("release");
            guards.release(protocol, 6000..=6010, Publish).expect("release");
        }
        assert!(matches!(guards.release(Tcp, 5000..=5000, Publish), Err(GuardError::NotOwned { .. })));
        for port in [61_037, 5000, 6003] {
            free(&site.outside, &format!("10.9.0.1:{port}"));
            free(&site.outside, &format!("[fd09::1]:{port}"));
        }
    });
}

#[test]
fn a_port_of_the_pool_is_refused_to_the_host_itself_and_stays_the_pools_after_a_publish() {
    let site = Site::new();
    let (mut guards, _relay) = site.start(None);
    guards.own(Tcp, 61_000..=65_535, Pool).expect("own");
    for local in LOCAL {
        refused(tcp(&site.host, &format!("{local}:61005")));
    }
    let listener = site.container.tcp_listen("[::]:15000");
    guards.own(Tcp, 5000..=5000, Publish).expect("own");
    assert_eq!(tcp(&site.host, "127.0.0.1:5000"), Ok(()));
    drop(listener);
    guards.own(Tcp, 62_000..=62_000, Publish).expect("own");
    guards.release(Tcp, 62_000..=62_000, Publish).expect("release");
    silent(tcp(&site.outside, "10.9.0.1:62000"));
    refused(tcp(&site.host, "127.0.0.1:62000"));
}

#[test]
fn the_hosts_own_connections_and_servers_are_undisturbed() {
    let site = Site::new();
    let answer = |mut stream: TcpStream| {
        let mut buffer = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            drop(stream.write_all(&buffer[..n]));
        }
    };
    serve(site.outside.tcp_listen("[::]:7000"), answer);
    serve(site.host.tcp_listen("[::]:8080"), answer);
    echo(&site.outside, "0.0.0.0:7000");
    let echoes = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(s(2))).expect("timeout");
        let mut buffer = [0; 5];
        stream.write_all(b"hello").expect("write");
        stream.read_exact(&mut buffer).expect("read");
        assert_eq!(&buffer, b"hello");
    };
    let mut before = site.dial("10.9.0.2:7000").expect("connect");
    let mut before6 = site.dial("[fd09::2]:7000").expect("connect");
    let mut served = site.outside.tcp_connect("10.9.0.1:8080", s(2)).expect("connect");
    [&mut before, &mut before6, &mut served].into_iter().for_each(echoes);

    let (mut guards, _relay) = site.start(None);
    let used = before.local_addr().expect("address").port();
    let left_out = guards.own(Tcp, 1..=65_535, Pool).expect("own").left_out;
    assert!(left_out.contains(&8080) && left_out.contains(&used), "{left_out:?}");
    guards.own(Udp, 1..=65_535, Pool).expect("own");
    // A published range over the ports of connections takes nothing from them either.
    guards.own(Tcp, used..=used.saturating_add(1), Publish).expect("own");
    [&mut before, &mut before6, &mut served].into_iter().for_each(echoes);
    // New ones out, whose ports the kernel chooses among ours, and in to the host's server.
    echoes(&mut site.dial("10.9.0.2:7000").expect("connect"));
    echoes(&mut site.outside.tcp_connect("[fd09::1]:8080", s(2)).expect("connect"));
    echoes(&mut site.dial("127.0.0.1:8080").expect("connect"));
    assert_eq!(udp(&site.host, "10.9.0.2:7000"), Ok(()));
    // Refusals to the host's own clients arrive, too.
    refused(tcp(&site.host, "10.9.0.2:7001"));
    refused(udp(&site.host, "10.9.0.2:7001"));
}

#[test]
fn curl_on_the_host_reaches_the_container_by_every_address() {
    each_mechanism(|mechanism| {
        let site = Site::new();
        let (mut guards, relay) = site.start(Some(mechanism));
        for port in [15_000, 16_001] {
            web(&site.container, &format!("[::]:{port}"));
        }
        guards.own(Tcp, 5000..=5000, Publish).expect("own");
        guards.own(Tcp, 6000..=6100, Publish).expect("own");
        for local in LOCAL.iter().chain(&["[fd30::1]"]) {
            for port in [5000, 6001] {
                let url = format!("http://{local}:{port}/");
                let got = site.host.run(&["curl", "-sS", "-m5", "-g", &url]).ok().stdout;
                let gateway = if local.starts_with('[') { "fd30::1" } else { "172.30.0.1" };
                assert!(got.contains(gateway), "{url}: {got}");
            }
        }
        // The container does not listen there: a reset at once.
        let start = Instant::now();
        reset(site.dial("127.0.0.1:6002"));
        assert!(start.elapsed() < ms(500));
        wait_until("nothing is open", s(2), || relay.counts().open == 0);
        assert_eq!(relay.counts().refused, 1);
        // Released: refused by the stack.
        guards.release(Tcp, 5000..=5000, Publish).expect("release");
        free(&site.host, "127.0.0.1:5000");
    });
}

#[test]
fn each_half_of_a_connection_ends_by_itself() {
    let site = Site::new();
    let (mut guards, relay) = site.start(None);
    guards.own(Tcp, 5000..=5001, Publish).expect("own");
    // Reads to the end, then answers with what it got; 3 MB are more than all buffers on the way.
    serve(site.container.tcp_listen("0.0.0.0:15000"), |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read");
        thread::sleep(ms(100));
        stream.write_all(&all).expect("write");
    });
    let sent: Vec<u8> = (0..3_000_003_u32).map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()[0]).collect();
    let mut stream = site.dial("127.0.0.1:5000").expect("connect");
    stream.set_read_timeout(Some(s(10))).expect("timeout");
    stream.write_all(&sent).expect("write");
    stream.shutdown(Shutdown::Write).expect("shutdown");
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("read");
    assert!(got == sent, "{} bytes", got.len());
    drop(stream);

    // The other way round: the container ends first, and goes on reading.
    let (told, heard) = std::sync::mpsc::channel();
    let told = Mutex::new(told);
    serve(site.container.tcp_listen("0.0.0.0:15001"), move |mut stream| {
        stream.shutdown(Shutdown::Write).expect("shutdown");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read");
        told.lock().expect("lock").send(all).expect("send");
    });
    let mut stream = site.dial("10.9.0.1:5001").expect("connect");
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
    stream.write_all(b"still here").expect("write");
    drop(stream);
    assert_eq!(heard.recv_timeout(s(5)).expect("what the container got"), b"still here");
    wait_until("nothing is open", s(2), || relay.counts().open == 0);
}

#[test]
fn a_reset_travels_and_a_full_receiver_stops_the_sender() {
    let site = Site::new();
    let (mut guards, relay) = site.start(None);
    guards.own(Tcp, 5000..=5000, Publish).expect("own");
    let listener = site.container.tcp_listen("0.0.0.0:15000");
    let mut stream = site.dial("127.0.0.1:5000").expect("connect");
    let (mut accepted, _) = listener.accept().expect("accept");
    // Nobody reads: the sender is stopped after what the buffers hold.
    stream.set_write_timeout(Some(ms(300))).expect("timeout");
    let chunk = vec![7; 1 << 16];
    let mut sent = 0;
    while sent < 200_000_000 {
        match stream.write(&chunk) {
            Ok(n) => sent += n,
            Err(_) => break,
        }
    }
    assert!(sent < 100_000_000, "{sent} bytes and no end");
    let mut buffer = vec![0; 1 << 16];
    let mut got = 0;
    accepted.set_read_timeout(Some(s(5))).expect("timeout");
    while got < sent {
        let n = accepted.read(&mut buffer).expect("read");
        assert!(n > 0 && buffer[..n].iter().all(|b| *b == 7));
        got += n;
    }
    assert_eq!(relay.counts().open, 1);
    relay.end(Tcp, 5000..=5000);
    assert!(accepted.read(&mut buffer).is_err());
    assert!(stream.read(&mut buffer).is_err());
    wait_until("nothing is open", s(2), || relay.counts().open == 0);
}

#[test]
fn a_connection_too_many_is_reset_and_the_others_stay() {
    let site = Site::new();
    let (mut guards, relay) = site.start(None);
    guards.own(Tcp, 5000..=5000, Publish).expect("own");
    let listener = site.container.tcp_listen("0.0.0.0:15000");
    let mut open: Vec<_> = (0..50).map(|_| site.dial("127.0.0.1:5000").expect("connect")).collect();
    let mut held: Vec<_> = (0..50).map(|_| listener.accept().expect("accept").0).collect();
    reset(site.dial("127.0.0.1:5000"));
    assert_eq!((relay.counts().overflowed, relay.counts().open), (1, 50));
    for end in &mut held {
        end.write_all(b"x").expect("write");
    }
    for stream in &mut open {
        stream.set_read_timeout(Some(s(2))).expect("timeout");
        stream.read_exact(&mut [0]).expect("read");
    }
    relay.end_target("172.30.0.2".parse().expect("address"));
    wait_until("nothing is open", s(2), || relay.counts().open == 0);
}

#[test]
fn datagrams_are_answered_from_the_address_that_was_dialled() {
    each_mechanism(|mechanism| {
        let site = Site::new();
        let (mut guards, relay) = site.start(Some(mechanism));
        for port in [15_000, 16_001] {
            echo(&site.container, &format!("[::]:{port}"));
        }
        guards.own(Udp, 5000..=5000, Publish).expect("own");
        guards.own(Udp, 6000..=6010, Publish).expect("own");
        let mut sessions = 0;
        for local in LOCAL {
            for port in [5000, 6001] {
                let dialled: SocketAddr = format!("{local}:{port}").parse().expect("address");
                // Not connected: it would take an answer from anywhere.
                let client = site.host.udp(if dialled.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" });
                client.set_read_timeout(Some(s(2))).expect("timeout");
                for length in [0, 1, 1400, 40_000] {
                    client.send_to(&vec![9; length], dialled).expect("send");
                    let mut buffer = vec![0; 1 << 16];
                    let (n, from) = client.recv_from(&mut buffer).expect("an answer");
                    assert_eq!((n, from), (length, dialled));
                }
                sessions += 1;
                assert_eq!(relay.counts().open, sessions);
            }
        }
        // The container's port is closed: nothing comes, and it goes on when the port opens.
        let client = site.host.udp("0.0.0.0:0");
        client.connect("127.0.0.1:6002").expect("connect");
        client.set_read_timeout(Some(s(1))).expect("timeout");
        client.send(b"too early").expect("send");
        thread::sleep(ms(50));
        echo(&site.container, "0.0.0.0:16002");
        client.send(b"now").expect("send");
        let mut buffer = [0; 20];
        assert_eq!(client.recv(&mut buffer).expect("an answer"), 3);
        relay.end(Udp, 5000..=6010);
        wait_until("nothing is open", s(2), || relay.counts().open == 0);
    });
}

#[test]
fn old_sessions_make_room_for_new_ones() {
    let site = Site::new();
    let (mut guards, relay) = site.start(None);
    echo(&site.container, "0.0.0.0:15000");
    guards.own(Udp, 5000..=5000, Publish).expect("own");
    let clients: Vec<UdpSocket> = (0..80).map(|_| site.host.udp("127.0.0.1:0")).collect();
    for client in &clients {
        client.connect("127.0.0.1:5000").expect("connect");
        client.set_read_timeout(Some(s(2))).expect("timeout");
        client.send(b"x").expect("send");
        client.recv(&mut [0; 4]).expect("an answer");
    }
    let counts = relay.counts();
    assert_eq!((counts.open, counts.evicted), (50, 30));
}

#[test]
fn a_port_that_a_program_has_is_not_taken_from_it() {
    for (mechanism, publish) in [
        (Mechanism::Lookup, 5000..=5000),
        (Mechanism::Lookup, 4000..=6000),
        (Mechanism::Sockets, 4990..=5010),
    ] {
        let site = Site::new();
        let (mut guards, _relay) = site.start(Some(mechanism));
        for (protocol, what) in [
            (Tcp, "create_server(('127.0.0.1',5000))"),
            (Tcp, "create_server(('::',5000),family=socket.AF_INET6)"),
            (Udp, "socket(socket.AF_INET,socket.SOCK_DGRAM);s.bind(('',5000))"),
            (Udp, "socket(socket.AF_INET6,socket.SOCK_DGRAM);s.bind(('::1',5000))"),
        ] {
            let (program, _folder) = squatter(&site, what);
            let taken = match guards.own(protocol, publish.clone(), Publish) {
                Err(GuardError::Taken(taken)) => taken,
                other => panic!("{what}: {other:?}"),
            };
            assert_eq!(
                (taken.port, taken.protocol, taken.pid),
                (5000, protocol, Some(program.pid())),
                "{mechanism:?} {what}"
            );
            assert!(taken.name.starts_with("python"), "{taken}");
            refused(tcp(&site.outside, "10.9.0.1:4999"));
            let pool = guards.own(protocol, 4990..=5010, Pool).expect("own");
            assert_eq!(pool.left_out, [5000]);
            guards.release(protocol, 4990..=5010, Pool).expect("release");
        }
        guards.own(Tcp, publish.clone(), Publish).expect("nobody is in the way any more");
    }
}

#[test]
fn nobody_takes_a_port_of_ours_unnoticed() {
    let site = Site::new();
    let (mut guards, _relay) = site.start(None);
    guards.own(Tcp, 5000..=5000, Publish).expect("own");
    guards.own(Tcp, 6000..=6010, Publish).expect("own");
    guards.own(Udp, 5000..=5000, Publish).expect("own");
    let bind = |address: &str| site.host.enter(|| TcpListener::bind(address).map_err(|e| e.kind()));
    for address in ["0.0.0.0:5000", "127.0.0.1:5000", "[::]:5000", "[::1]:5000"] {
        assert_eq!(bind(address).err(), Some(ErrorKind::AddrInUse), "{address}");
        let udp = site.host.enter(|| UdpSocket::bind(address).map_err(|e| e.kind()));
        assert_eq!(udp.err(), Some(ErrorKind::AddrInUse), "{address}");
    }
    assert_eq!(guards.intruders().expect("intruders"), []);
    let (program, _folder) = squatter(&site, "create_server(('0.0.0.0',6005))");
    let found = guards.intruders().expect("intruders");
    assert_eq!(found.iter().map(|t| (t.port, t.pid)).collect::<Vec<_>>(), [(6005, Some(program.pid()))]);
}

#[test]
fn a_port_published_at_one_address_is_the_hosts_at_others() {
    each_mechanism(|mechanism| {
        let site = Site::new();
        site.host.ip(&["addr", "add", "10.9.0.3/24", "dev", "out0"]);
        let (mut guards, _relay) = site.start(Some(mechanism));
        let _listener = site.host.tcp_listen("10.9.0.3:5000");
        let _container = site.container.tcp_listen("[::]:15000");
        let address = Some("10.9.0.1".parse().expect("address"));
        guards.own_at(address, Tcp, 5000..=5000, Publish).expect("own");
        guards.own_at(address, Udp, 5000..=5010, Publish).expect("own");
        silent(tcp(&site.outside, "10.9.0.1:5000"));
        assert_eq!(tcp(&site.outside, "10.9.0.3:5000"), Ok(()));
        refused(tcp(&site.outside, "[fd09::1]:5000"));
        silent(udp(&site.outside, "10.9.0.1:5005"));
        refused(udp(&site.outside, "10.9.0.3:5005"));
        assert_eq!(tcp(&site.host, "10.9.0.1:5000"), Ok(()));
        refused(tcp(&site.host, "127.0.0.1:5000"));
        guards.release_at(address, Tcp, 5000..=5000, Publish).expect("release");
        guards.release_at(address, Udp, 5000..=5010, Publish).expect("release");
        free(&site.outside, "10.9.0.1:5000");
        free(&site.outside, "10.9.0.1:5005");
    });
}

#[test]
fn all_ports_cost_no_more_than_one() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("descriptors").count();
    let site = Site::new();
    let before = descriptors();
    let (mut guards, _relay) = site.start(None);
    let start = Instant::now();
    for protocol in [Tcp, Udp] {
        guards.own(protocol, 1..=65_535, Publish).expect("own");
    }
    let took = start.elapsed();
    let used = descriptors().saturating_sub(before);
    eprintln!("1-65535, TCP and UDP: {took:?}, {used} descriptors with relay");
    assert!(took < s(1), "{took:?}");
    // Other tests of this binary may run beside: theirs count, too.
    assert!(used < 100, "{used}");
    let start = Instant::now();
    for port in 1..=500 {
        guards.own(Tcp, port..=port, Publish).expect("own");
    }
    eprintln!("500 single publishes: {:?}", start.elapsed());
    assert!(start.elapsed() < s(10));
}

#[test]
fn without_bpf_there_is_a_limit_that_says_so() {
    let site = Site::new();
    let limits = GuardLimits { mechanism: Some(Mechanism::Sockets), ports: 300, ..GuardLimits::default() };
    let (mut guards, _sockets) = Guards::with_limits(&site.netns(), limits).expect("guards");
    guards.own(Tcp, 61_000..=61_199, Pool).expect("own");
    let error = guards.own(Udp, 61_000..=61_199, Pool).expect_err("too many");
    assert!(matches!(error, GuardError::TooManyPorts { limit: 300, wanted: 400 }), "{error}");
    assert!(error.to_string().contains("at most 300 ports"), "{error}");
    guards.own(Udp, 61_000..=61_099, Pool).expect("own");
    guards.own(Tcp, 61_005..=61_005, Publish).expect_err("no room");
}

/// A process that owns ports until it is killed; see the next test.
#[test]
#[ignore = "run by the next test"]
fn owner() {
    let Ok(path) = std::env::var("PG_HOST") else { return };
    let host = NetNs::open(path.as_ref()).expect("namespace");
    let mechanism =
        Some(if std::env::var("PG_BPF").is_ok() { Mechanism::Lookup } else { Mechanism::Sockets });
    let limits = GuardLimits { mechanism, ..GuardLimits::default() };
    let (mut guards, sockets) = Guards::with_limits(&host, limits).expect("guards");
    let _relay =
        Relay::start(sockets, Arc::new(|_, dialled, _| Some(target(dialled))), RelayLimits::default())
            .expect("relay");
    own_all(&mut guards, &[Tcp, Udp], &(5000..=5100));
    println!("owned");
    thread::sleep(s(60));
}

fn own_all(guards: &mut Guards, protocols: &[Protocol], ports: &RangeInclusive<u16>) {
    for protocol in protocols {
        guards.own(*protocol, ports.clone(), Publish).expect("own");
        guards.own(*protocol, *ports.start()..=*ports.start(), Publish).expect("own");
    }
}

#[test]
fn a_killed_owner_leaves_nothing_behind() {
    for bpf in [true, false] {
        let site = Site::new();
        let folder = tempfile::tempdir().expect("folder");
        let mut command = std::process::Command::new(std::env::current_exe().expect("this test"));
        command.args(["--ignored", "--exact", "owner", "--nocapture"]).env("PG_HOST", site.host.path());
        if bpf {
            command.env("PG_BPF", "1");
        }
        let mut owner = Background::start(&mut command, &folder.path().join("log"));
        wait_until("the ports are owned", s(10), || owner.log().contains("owned"));
        silent(tcp(&site.outside, "10.9.0.1:5050"));
        // The container does not listen there: a reset, at once or after the connection.
        assert!(matches!(tcp(&site.host, "127.0.0.1:5050"), Ok(()) | Err(ErrorKind::ConnectionReset)));
        owner.signal(Signal::SIGKILL);
        owner.wait(s(5)).expect("its end");
        for address in ["10.9.0.1:5000", "[fd09::1]:5050"] {
            free(&site.outside, address);
        }
        let (mut guards, _relay) = site.start(None);
        own_all(&mut guards, &[Tcp, Udp], &(5000..=5100));
    }
}
