//! Port guards against a real kernel: who gets what answer from a port that is swd's.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::Signal;
use switch::daemon::portguard::Protocol::{Tcp, Udp};
use switch::daemon::portguard::Purpose::{Pool, Publish};
use switch::daemon::portguard::{GuardError, GuardLimits, Guards, Mechanism};
use tests::guarded::{
    Guarded, HOST, LOCAL, each_mechanism, echo, free, own_all, refused, serve, silent, squatter, tcp, udp,
};
use tests::process::{Background, binary, s, wait_until};

#[test]
fn the_outside_hears_nothing_from_our_ports_and_a_refusal_from_others() {
    each_mechanism(|mechanism| {
        let site = Guarded::new();
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
    let site = Guarded::new();
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
    let site = Guarded::new();
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
fn a_port_that_a_program_has_is_not_taken_from_it() {
    for (mechanism, publish) in [
        (Mechanism::Lookup, 5000..=5000),
        (Mechanism::Lookup, 4000..=6000),
        (Mechanism::Sockets, 4990..=5010),
    ] {
        let site = Guarded::new();
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
    let site = Guarded::new();
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
        let site = Guarded::new();
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
    let site = Guarded::new();
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
    let site = Guarded::new();
    let limits = GuardLimits { mechanism: Some(Mechanism::Sockets), ports: 300, ..GuardLimits::default() };
    let (mut guards, _sockets) = Guards::with_limits(&site.netns(), limits).expect("guards");
    guards.own(Tcp, 61_000..=61_199, Pool).expect("own");
    let error = guards.own(Udp, 61_000..=61_199, Pool).expect_err("too many");
    assert!(matches!(error, GuardError::TooManyPorts { limit: 300, wanted: 400 }), "{error}");
    assert!(error.to_string().contains("at most 300 ports"), "{error}");
    guards.own(Udp, 61_000..=61_099, Pool).expect("own");
    guards.own(Tcp, 61_005..=61_005, Publish).expect_err("no room");
}

#[test]
fn a_killed_owner_leaves_nothing_behind() {
    for mechanism in ["lookup", "sockets"] {
        let site = Guarded::new();
        let folder = tempfile::tempdir().expect("folder");
        let mut command = Command::new(binary("guard-owner"));
        command.arg(site.host.path()).arg(mechanism);
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
