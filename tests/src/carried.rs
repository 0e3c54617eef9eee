//! A host with an uplink and a container, and connections between the two that the kernel carries for swd.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};

use serde_json::Value;

use crate::outside::Outside;
use crate::process::{ms, s, wait_until};
use crate::site::{Container, Site, Way, quiet};

/// The outside.
pub const WAN: &str = "172.16.0.1";
/// The host, as the outside sees it.
pub const HOST: &str = "172.16.0.2";

/// A host with an uplink to an outside, and a container.
#[derive(Debug)]
pub struct World {
    // First, so that the watch ends while swd still keeps the host's stack silent.
    /// The outside.
    pub wan: Outside,
    /// The host, with swd.
    pub site: Site,
    /// The container, 172.18.0.10.
    pub c1: Container,
}

impl World {
    /// One with an uplink.
    #[expect(clippy::new_without_default, reason = "it is a world, not a value")]
    pub fn new() -> Self {
        Self::with("")
    }

    /// One with more in its configuration.
    pub fn with(config: &str) -> Self {
        let mut site = Site::stopped();
        let path = site.file("swd.toml");
        std::fs::write(&path, format!("uplink = 'auto'\n{config}")).expect("write the configuration");
        site = site.arguments(&["--config", path.to_str().expect("UTF-8")]);
        let wan = Outside::new(&site.host);
        site.start();
        let c1 = site.container("c1", Way::Attach, "172.18.0.10");
        Self { wan, site, c1 }
    }

    /// How many directions the kernel carries.
    pub fn flows(&self) -> u64 {
        self.site.json(&["status"])["fast_flows"].as_u64().expect("fast_flows")
    }

    /// The connection of a protocol.
    pub fn connection(&self, protocol: &str) -> Value {
        let row = self.site.row(&["conntrack", "ls"], "protocol", protocol);
        row.unwrap_or_else(|| panic!("no {protocol} connection"))
    }

    /// Received = forwarded + answered + dropped.
    #[track_caller]
    pub fn balances(&self) {
        quiet();
        let status = self.site.json(&["status"]);
        let n = |key: &str| number(&status, key);
        assert_eq!(n("received"), n("forwarded") + n("answered") + n("drops"), "{status}");
    }
}

/// A number in JSON.
#[track_caller]
pub fn number(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("{key} in {row}"))
}

/// Two ends that have something to say to each other.
pub trait Talk {
    /// A word there and one back.
    fn talk(&self, other: &Self);
}

impl Talk for TcpStream {
    #[track_caller]
    fn talk(&self, other: &Self) {
        for (mut from, mut to) in [(self, other), (other, self)] {
            to.set_read_timeout(Some(s(5))).expect("timeout");
            from.write_all(b"word").expect("send");
            to.read_exact(&mut [0; 4]).expect("a word");
        }
    }
}

impl Talk for UdpSocket {
    #[track_caller]
    fn talk(&self, other: &Self) {
        for (from, to) in [(self, other), (other, self)] {
            to.set_read_timeout(Some(s(5))).expect("timeout");
            from.send(b"word").expect("send");
            assert_eq!(to.recv(&mut [0; 100]).expect("a word"), 4);
        }
    }
}

impl World {
    /// A connection from the container to the outside: both ends.
    #[track_caller]
    pub fn masqueraded(&self) -> (TcpStream, TcpStream) {
        let listener = self.wan.tcp_listen("172.16.0.1:7000");
        let inside = self.c1.ns.tcp_connect("172.16.0.1:7000", s(5)).expect("connect");
        let (outside, from) = listener.accept().expect("accept");
        assert_eq!(from.ip().to_string(), HOST);
        (inside, outside)
    }

    /// A connection from the outside to a published port.
    #[track_caller]
    pub fn published(&self) -> (TcpStream, TcpStream) {
        self.site.ctl(&["publish", "5000", "172.18.0.10:80"]);
        self.called()
    }

    /// One more of them.
    #[track_caller]
    pub fn called(&self) -> (TcpStream, TcpStream) {
        let listener = self.c1.ns.tcp_listen("172.18.0.10:80");
        let outside = self.wan.tcp_connect("172.16.0.2:5000", s(5)).expect("connect");
        let (inside, from) = listener.accept().expect("accept");
        assert_eq!(from.ip().to_string(), WAN);
        (inside, outside)
    }

    /// Datagrams between the container and the outside, both ends connected.
    #[track_caller]
    pub fn datagrams(&self) -> (UdpSocket, UdpSocket) {
        self.datagrams_from(4000)
    }

    /// The same by this port of both.
    #[track_caller]
    pub fn datagrams_from(&self, port: u16) -> (UdpSocket, UdpSocket) {
        let outside = self.wan.udp(&format!("172.16.0.1:{port}"));
        let inside = self.c1.ns.udp(&format!("172.18.0.10:{port}"));
        inside.connect((WAN, port)).expect("connect");
        inside.send(b"first").expect("send");
        outside.set_read_timeout(Some(s(5))).expect("timeout");
        let (_, from) = outside.recv_from(&mut [0; 100]).expect("the first");
        assert_eq!(from.ip().to_string(), HOST);
        outside.connect(from).expect("connect");
        (inside, outside)
    }

    /// Datagrams from the outside to a published port, both ends connected.
    #[track_caller]
    pub fn published_datagrams(&self) -> (UdpSocket, UdpSocket) {
        self.site.ctl(&["publish", "5000/udp", "172.18.0.10:80"]);
        let inside = self.c1.ns.udp("172.18.0.10:80");
        let outside = self.wan.udp("172.16.0.1:4000");
        outside.connect("172.16.0.2:5000").expect("connect");
        outside.send(b"first").expect("send");
        inside.set_read_timeout(Some(s(5))).expect("timeout");
        let (_, from) = inside.recv_from(&mut [0; 100]).expect("the first");
        inside.connect(from).expect("connect");
        (inside, outside)
    }

    /// Talks until the kernel carries both directions of it, and nothing else.
    #[track_caller]
    pub fn hand_over<T: Talk>(&self, ends: &(T, T)) {
        wait_until("both directions are in the kernel", s(10), || {
            (0..5).for_each(|_| ends.0.talk(&ends.1));
            self.flows() == 2
        });
    }

    /// Does something while swd stands still, if the kernel carries the connection then. Tells whether it does.
    ///
    /// Whatever changes in the world of swd (a neighbor of the host's, say) has the kernel give its flows back, and may do so just
    /// before swd stands still; and an uplink's filter knows none of them for a second after each change of what it lets through.
    #[track_caller]
    pub fn carried(&self, ends: &(TcpStream, TcpStream), body: impl FnOnce()) -> bool {
        let ways = [(&ends.0, &ends.1), (&ends.1, &ends.0)];
        let came = self.site.without_swd(|| {
            let came = ways.map(|(mut from, mut to)| {
                to.set_read_timeout(Some(s(1))).expect("timeout");
                from.write_all(b"word").expect("send");
                to.read_exact(&mut [0; 4]).is_ok()
            });
            if came == [true; 2] {
                body();
            }
            came
        });
        for ((_, mut to), _) in ways.into_iter().zip(came).filter(|(_, came)| !came) {
            to.set_read_timeout(Some(s(5))).expect("timeout");
            to.read_exact(&mut [0; 4]).expect("what swd did not forward while it stood still");
        }
        came == [true; 2]
    }

    /// Whether a datagram arrives while swd stands still.
    pub fn arrives(&self, ends: &(UdpSocket, UdpSocket)) -> [bool; 2] {
        self.site.without_swd(|| {
            [(&ends.0, &ends.1), (&ends.1, &ends.0)].map(|(from, to)| {
                to.set_read_timeout(Some(ms(300))).expect("timeout");
                // A refusal of an earlier one is no answer to this one.
                let _ = from.send(b"late").or_else(|_| from.send(b"late"));
                to.recv(&mut [0; 100]).is_ok()
            })
        })
    }
}
