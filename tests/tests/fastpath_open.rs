//! Connections that open in the kernel: swd decides about a SYN, and the kernel forwards its answer and all that follows.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;

use nix::sys::socket::{Shutdown, shutdown};
use tests::carried::{Talk as _, World, number};
use tests::netns::Namespace;
use tests::process::{ms, s, wait_until};

/// Who listens, with what; who calls it, and by which address.
struct Road<'a> {
    server: &'a Namespace,
    listener: TcpListener,
    client: &'a Namespace,
    address: &'a str,
}

impl Road<'_> {
    /// Both ends of a connection.
    fn open(&self) -> (TcpStream, TcpStream) {
        let client = self.client.tcp_connect(self.address, s(5)).expect("connect");
        (client, self.listener.accept().expect("accept").0)
    }

    /// Takes what nobody has waited for.
    fn drain(&self) {
        self.listener.set_nonblocking(true).expect("set");
        while self.listener.accept().is_ok() {}
        self.listener.set_nonblocking(false).expect("set");
    }

    /// Lets nothing of the server's leave that is as long as an answer; or lets it again.
    fn hush(&self, hushed: bool) {
        let tbf = ["add", "dev", "eth0", "root", "tbf", "rate", "1mbit", "burst", "60", "limit", "1000"];
        let words = if hushed { &tbf[..] } else { &["del", "dev", "eth0", "root"] };
        self.server.run(&[&["tc", "qdisc"], words].concat()).ok();
    }

    /// Opens a connection whose answer comes when swd stands still already, and talks by it. `None` if it did not come.
    fn open_without(&self, w: &World) -> Option<(TcpStream, TcpStream)> {
        self.hush(true);
        thread::scope(|scope| {
            let dial = scope.spawn(|| self.client.tcp_connect(self.address, s(4)));
            wait_until("the SYN has arrived", s(5), || {
                !self.server.run(&["ss", "-Htn", "state", "syn-recv"]).ok().stdout.is_empty()
            });
            w.site.without_swd(|| {
                // The server answers again after a second.
                self.hush(false);
                let client = dial.join().expect("no panic").ok()?;
                // What is the kernel's of it in one direction only has not arrived.
                self.listener.set_nonblocking(true).expect("set");
                let came = (0..100).find_map(|_| {
                    thread::sleep(ms(10));
                    self.listener.accept().ok()
                });
                self.listener.set_nonblocking(false).expect("set");
                let (server, _) = came?;
                client.talk(&server);
                Some((client, server))
            })
        })
    }
}

#[test]
fn answers_to_syns_pass_in_the_kernel() {
    let w = World::new();
    w.site.ctl(&["publish", "5000", "172.18.0.10:80"]);
    let masqueraded = Road {
        server: &w.wan,
        listener: w.wan.tcp_listen("172.16.0.1:7000"),
        client: &w.c1.ns,
        address: "172.16.0.1:7000",
    };
    let published = Road {
        server: &w.c1.ns,
        listener: w.c1.ns.tcp_listen("172.18.0.10:80"),
        client: &w.wan,
        address: "172.16.0.2:5000",
    };
    for road in [masqueraded, published] {
        let mut ends = None;
        wait_until("one is answered while swd stands still", s(60), || {
            w.site.ctl(&["conntrack", "flush"]);
            // What is known of the way is forgotten, and learned by another connection.
            thread::sleep(ms(1100));
            // What did not arrive while swd stood still has arrived by now.
            road.drain();
            drop(road.open());
            ends = road.open_without(&w);
            ends.is_some()
        });
        let open = ends.expect("both ends");
        wait_until("swd knows", s(5), || {
            let rows = w.site.json(&["conntrack", "ls", "--state", "established"]);
            rows.as_array().is_some_and(|rows| rows.len() == 1)
        });
        wait_until("its packets are counted", s(5), || {
            let rows = w.site.json(&["conntrack", "ls", "--state", "established"]);
            number(&rows[0], "packets") >= 7
        });
        // It is like any other: more than a window, then its end.
        tests::stream::bytes_are_identical(&open.0, &open.1, 3, 4_000_000);
        open.0.talk(&open.1);
        drop(open);
        wait_until("it has closed", s(5), || {
            let rows = w.site.json(&["conntrack", "ls", "--state", "established"]);
            rows.as_array().is_some_and(Vec::is_empty)
        });
    }
    w.balances();
}

#[test]
fn a_refused_connection_is_refused_whatever_went_before() {
    let w = World::new();
    for _ in 0..3 {
        let listener = w.wan.tcp_listen("172.16.0.1:7000");
        for _ in 0..3 {
            let mut client = w.c1.ns.tcp_connect("172.16.0.1:7000", s(5)).expect("connect");
            drop(listener.accept().expect("accept"));
            assert_eq!(client.read(&mut [0; 10]).expect("the end"), 0);
        }
        // Not by closing it: other threads of this process start programs, and between fork and exec those have a copy of it.
        shutdown(listener.as_raw_fd(), Shutdown::Both).expect("no more listening");
        let error = w.c1.ns.tcp_connect("172.16.0.1:7000", s(5)).expect_err("nobody listens");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    w.balances();
}
