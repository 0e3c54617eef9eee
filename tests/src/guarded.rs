//! A host with a cable to an outside and one to a container, with port guards and a relay but no swd: the two modules
//! themselves, against a real kernel.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use switch::daemon::portguard::Purpose::Publish;
use switch::daemon::portguard::{GuardLimits, Guards, Mechanism, Protocol};
use switch::daemon::relay::{Relay, RelayLimits};
use switch::sys::netns::NetNs;

use crate::netns::{Namespace, unique_name, veth};
use crate::process::{Background, ms, python, s, wait_until};

/// The host's addresses towards the outside.
pub const HOST: [&str; 2] = ["10.9.0.1", "[fd09::1]"];
/// The container's addresses.
pub const CONTAINER: [&str; 2] = ["172.30.0.2", "[fd30::2]"];
/// All addresses of the host, its loopback's included.
pub const LOCAL: [&str; 5] = ["127.0.0.1", "[::1]", "10.9.0.1", "[fd09::1]", "172.30.0.1"];
/// Long enough for an answer over a cable, short enough to wait for none.
pub const SILENCE: Duration = ms(400);

/// The three namespaces.
#[derive(Debug)]
pub struct Guarded {
    /// Where the guarded ports are.
    pub host: Namespace,
    /// On the host's cable to the outside.
    pub outside: Namespace,
    /// On the host's cable to the container.
    pub container: Namespace,
}

impl Default for Guarded {
    fn default() -> Self {
        Self::new()
    }
}

impl Guarded {
    /// The host with its cables, nothing guarded.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new() -> Self {
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

    /// The host's namespace, as the guards take it.
    ///
    /// # Panics
    /// When it is gone.
    pub fn netns(&self) -> NetNs {
        NetNs::open(&self.host.path()).expect("the host's namespace")
    }

    /// Guards and a relay that leads every port to the same port plus 10,000 of the container, family by family.
    ///
    /// # Panics
    /// When they do not start.
    pub fn start(&self, mechanism: Option<Mechanism>) -> (Guards, Relay) {
        let limits = GuardLimits { mechanism, ..GuardLimits::default() };
        let (guards, sockets) = Guards::with_limits(&self.netns(), limits).expect("guards");
        assert_eq!(guards.mechanism(), mechanism.unwrap_or(Mechanism::Lookup), "{:?}", guards.refusal());
        let limits = RelayLimits { connections: 50, sessions: 50 };
        let relay = Relay::start(sockets, Arc::new(|_, dialled, _| Some(target(dialled))), limits);
        (guards, relay.expect("relay"))
    }

    /// A connection from the host itself.
    ///
    /// # Errors
    /// When there is none within five seconds.
    pub fn dial(&self, address: &str) -> std::io::Result<TcpStream> {
        self.host.tcp_connect(address, s(5))
    }
}

/// Where the relay leads a dialled address.
///
/// # Panics
/// For a port above 55,535.
pub fn target(dialled: SocketAddr) -> SocketAddr {
    let address = CONTAINER[usize::from(dialled.is_ipv6())];
    format!("{address}:{}", dialled.port() + 10_000).parse().expect("an address")
}

/// Runs a test with each way to guard a port.
pub fn each_mechanism(test: impl Fn(Mechanism)) {
    for mechanism in [Mechanism::Lookup, Mechanism::Sockets] {
        eprintln!("with {mechanism:?}");
        test(mechanism);
    }
}

/// What a dialler gets at a port: a connection, a refusal, or nothing.
///
/// # Errors
/// A refusal, or nothing.
pub fn tcp(from: &Namespace, address: &str) -> Result<(), ErrorKind> {
    from.tcp_connect(address, SILENCE).map(drop).map_err(|e| e.kind())
}

/// The same for UDP: a refusal, or nothing.
///
/// # Errors
/// A refusal, or nothing.
///
/// # Panics
/// When nothing can be sent.
pub fn udp(from: &Namespace, address: &str) -> Result<(), ErrorKind> {
    let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = from.udp(any);
    socket.connect(address).expect("connect");
    socket.set_read_timeout(Some(SILENCE)).expect("timeout");
    socket.send(b"anybody there?").expect("send");
    socket.recv(&mut [0; 100]).map(drop).map_err(|e| e.kind())
}

/// No answer, and no refusal either.
///
/// # Panics
/// When there was one.
#[track_caller]
pub fn silent(answer: Result<(), ErrorKind>) {
    assert!(matches!(answer, Err(ErrorKind::TimedOut | ErrorKind::WouldBlock)), "not silent: {answer:?}");
}

/// A refusal.
///
/// # Panics
/// When it was something else.
#[track_caller]
pub fn refused(answer: Result<(), ErrorKind>) {
    assert_eq!(answer, Err(ErrorKind::ConnectionRefused));
}

/// Refused from now on. Not at once: other threads of this process start programs, and between fork and exec those have
/// copies of the sockets that were just closed.
///
/// # Panics
/// When it is not within five seconds.
#[track_caller]
pub fn free(from: &Namespace, address: &str) {
    let is_free = |ask: fn(&Namespace, &str) -> _| ask(from, address) == Err(ErrorKind::ConnectionRefused);
    wait_until(address, s(5), || is_free(tcp) && is_free(udp));
}

/// Connected at most, and reset at once.
///
/// # Panics
/// When it was not.
#[track_caller]
pub fn reset(connection: std::io::Result<TcpStream>) {
    let end = connection.and_then(|mut stream| stream.read(&mut [0]));
    assert_eq!(end.map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));
}

/// An HTTP server that says who asked; until the test's process ends.
pub fn web(ns: &Namespace, address: &str) {
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

/// A server with a thread for each connection.
pub fn serve(listener: TcpListener, each: impl Fn(TcpStream) + Send + Sync + 'static) {
    let each = Arc::new(each);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let each = Arc::clone(&each);
            thread::spawn(move || each(stream));
        }
    });
}

/// A UDP server that sends back what it gets, and how long it was.
pub fn echo(ns: &Namespace, address: &str) {
    let socket = ns.udp(address);
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(&buffer[..n], from));
        }
    });
}

/// A Python program in the host's namespace that has a port.
///
/// # Panics
/// When it does not start.
pub fn squatter(site: &Guarded, what: &str) -> (Background, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("folder");
    let program = format!("import socket,time\ns=socket.{what}\nprint('ready',flush=True)\ntime.sleep(60)");
    let log = folder.path().join("log");
    let python = python().to_str().expect("path").to_owned();
    let started = site.host.start(&[&python, "-c", &program], &log);
    wait_until("the program has its port", s(10), || started.log().contains("ready"));
    (started, folder)
}

/// Makes guards own ports, all of them twice in part.
///
/// # Panics
/// When they do not.
pub fn own_all(guards: &mut Guards, protocols: &[Protocol], ports: &RangeInclusive<u16>) {
    for protocol in protocols {
        guards.own(*protocol, ports.clone(), Publish).expect("own");
        guards.own(*protocol, *ports.start()..=*ports.start(), Publish).expect("own");
    }
}
