//! Without host access the host is not there: nothing that a container sends reaches a socket of the host's or gets an
//! answer from its stack. Only the gateway's address answers, and it is swd that does.

use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};

use nix::sys::signal::Signal;
use tests::for_each_port_kind;
use tests::netns::Namespace;
use tests::outside::unwatched;
use tests::process::{s, wait_until};
use tests::raw::{
    BROADCAST, Frame, Raw, arp_request, echo4, is_arp_reply, is_neighbour_advertisement, mac,
    neighbour_solicitation, syn4, udp4, udp6,
};
use tests::site::{Container, Site, quiet};

const CONTAINER: [u8; 4] = [172, 20, 0, 10];
const GATEWAY: [u8; 4] = [172, 20, 0, 1];
const CONTAINER6: [u8; 16] = address6(0x10);
const GATEWAY6: [u8; 16] = address6(1);
const HOST6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const PORT: u16 = 7777;

const fn address6(last: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// Sockets of the host's that must stay silent.
struct Ears {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Ears {
    fn open(host: &Namespace) -> Self {
        let any4 = format!("0.0.0.0:{PORT}");
        // `[::]` takes IPv4 as well: that is another port, so that both can be.
        let any6 = format!("[::]:{}", PORT + 1);
        let ears = Self {
            udp: vec![host.udp(&any4), host.udp(&any6)],
            tcp: vec![host.tcp_listen(&any4), host.tcp_listen(&any6)],
        };
        for udp in &ears.udp {
            udp.set_nonblocking(true).expect("nonblocking");
        }
        for tcp in &ears.tcp {
            tcp.set_nonblocking(true).expect("nonblocking");
        }
        ears
    }

    fn heard(&self) -> Vec<String> {
        let mut heard = Vec::new();
        let mut buffer = [0; 2000];
        for udp in &self.udp {
            match udp.recv_from(&mut buffer) {
                Ok((n, from)) => heard.push(format!("{n} bytes by UDP from {from}")),
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock, "{e}"),
            }
        }
        for tcp in &self.tcp {
            match tcp.accept() {
                Ok((_, from)) => heard.push(format!("a TCP connection from {from}")),
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock, "{e}"),
            }
        }
        heard
    }
}

/// Everything a container can try in order to reach the host.
fn attempts(site: &Site, me: [u8; 6], gateway_mac: [u8; 6]) -> Vec<Vec<u8>> {
    // Addresses of the host: outside, in the network `default`, on no cable, its loopback, limited broadcast, its multicast.
    let addresses = [
        [172, 16, 0, 2],
        [172, 18, 0, 1],
        [192, 0, 2, 7],
        [127, 0, 0, 1],
        [255, 255, 255, 255],
        [172, 20, 255, 255],
        [224, 0, 0, 1],
    ];
    let mut macs = vec![
        BROADCAST,
        gateway_mac,
        [0x01, 0, 0x5e, 0, 0, 1],
        [0x33, 0x33, 0, 0, 0, 1],
        [2, 0, 0, 0, 0, 0x99],
    ];
    for ns in [&site.host, &*site.switch()] {
        for link in ns.links().iter().filter(|l| *l != "lo") {
            macs.push(mac(&ns.mac(link)));
        }
    }
    let mut frames = Vec::new();
    for address in addresses {
        frames.push(arp_request(me, CONTAINER, address));
    }
    for to in macs {
        for address in addresses {
            frames.push(udp4((to, me), (CONTAINER, 5000), (address, PORT), b"anybody there?"));
            frames.push(udp4((to, me), (CONTAINER, 5000), (address, PORT + 1), b"anybody there?"));
            // To a closed port: the stack's answer would be an ICMP error.
            frames.push(udp4((to, me), (CONTAINER, 5000), (address, 9), b"anybody there?"));
            frames.push(syn4((to, me), (CONTAINER, 5000), (address, PORT)));
            frames.push(syn4((to, me), (CONTAINER, 5001), (address, 9)));
            frames.push(echo4((to, me), CONTAINER, address, b"anybody there?"));
        }
        for address in [HOST6, link_local(&site.host, "eth0")] {
            frames.push(neighbour_solicitation(me, CONTAINER6, address));
            frames.push(udp6((to, me), (CONTAINER6, 5000), (address, PORT + 1), b"anybody there?"));
            frames.push(udp6((to, me), (CONTAINER6, 5000), (address, 9), b"anybody there?"));
        }
    }
    // To the gateway's own address, but for services: swd has none.
    for port in [PORT, 9] {
        frames.push(udp4((gateway_mac, me), (CONTAINER, 5000), (GATEWAY, port), b"anybody there?"));
        frames.push(syn4((gateway_mac, me), (CONTAINER, 5000), (GATEWAY, port)));
    }
    frames
}

fn link_local(ns: &Namespace, ifname: &str) -> [u8; 16] {
    ns.link_local(ifname).parse::<std::net::Ipv6Addr>().expect("an address").octets()
}

/// Is this the stack of the container itself, or swd in its own name?
fn is_answer(frame: &Frame, me: [u8; 6]) -> bool {
    frame.bytes[..6] == me
}

fn assert_silence(site: &Site, c: &Container, raw: &mut Raw, ears: &Ears, gateway_mac: [u8; 6], when: &str) {
    let me = mac(&c.mac());
    raw.clear();
    let frames = attempts(site, me, gateway_mac);
    raw.send_all(frames.iter().map(Vec::as_slice));
    quiet();
    quiet();
    assert_eq!(ears.heard(), [""; 0], "{when}");
    let answers: Vec<_> = raw.frames().into_iter().filter(|f| is_answer(f, me)).collect();
    assert!(
        answers.is_empty(),
        "{when}: {} answers, the first one: {:02x?}",
        answers.len(),
        answers[0].bytes
    );
}

for_each_port_kind! {
    fn a_host_without_access_neither_hears_nor_answers(way) {
        let mut site = Site::stopped();
        let _outside = unwatched(&site.host);
        site.host.ip(&["addr", "add", "192.0.2.7/32", "dev", "lo"]);
        site.host.ip(&["addr", "add", "2001:db8:9::2/64", "dev", "eth0", "nodad"]);
        site.start();
        // Advertisements are swd's, in its own name: the container would get them whenever its kernel asks.
        let quiet = ["network", "add", "quiet", "--no-host-access", "--no-ra"];
        site.ctl(&[&quiet[..], &["--subnet", "172.20.0.0/16", "--subnet", "fd00:20::/64"]].concat());
        let network = site.row(&["network", "ls"], "name", "quiet").expect("quiet");
        assert_eq!(network["host_access"], false);
        assert!(network["host_ifname"].is_null(), "{network}");
        let gateway_mac = mac(network["gateway_mac"].as_str().expect("a MAC"));
        let c = site.container_in("quiet", "q1", way, "172.20.0.10");
        site.unguard(&["q1"]);
        let me = mac(&c.mac());
        let ears = Ears::open(&site.host);

        // The ears do hear.
        let probe = site.host.udp("0.0.0.0:0");
        probe.send_to(b"hello", ("172.16.0.2", PORT)).expect("send");
        wait_until("the host hears itself", s(5), || !ears.heard().is_empty());

        let mut raw = Raw::open(&c.ns, "eth0");
        let answers_as_gateway = |raw: &mut Raw| {
            raw.clear();
            raw.send(&arp_request(me, CONTAINER, GATEWAY));
            raw.expect("the gateway's ARP reply", |f| is_arp_reply(f, GATEWAY) && f.bytes[22..28] == gateway_mac);
            raw.send(&neighbour_solicitation(me, CONTAINER6, GATEWAY6));
            raw.expect("the gateway's neighbour advertisement", |f| is_neighbour_advertisement(f, GATEWAY6));
            c.ns.ping("172.20.0.1");
        };
        answers_as_gateway(&mut raw);
        assert_silence(&site, &c, &mut raw, &ears, gateway_mac, "while swd runs");
        let other = site.container_in("quiet", "q2", way, "172.20.0.20");
        c.ping(&other);
        drop(other); // its own traffic would be taken for answers
        assert!(!site.host.pings("172.20.0.10"), "the host reaches a network without host access");

        site.signal(Signal::SIGSTOP);
        raw.clear();
        assert_silence(&site, &c, &mut raw, &ears, gateway_mac, "while swd is stopped");
        site.signal(Signal::SIGCONT);
        answers_as_gateway(&mut raw);
        assert_eq!(ears.heard(), [""; 0], "after swd went on");

        site.kill();
        assert_silence(&site, &c, &mut raw, &ears, gateway_mac, "while swd is dead");
        site.start();
        let mut raw = Raw::open(&c.ns, "eth0");
        answers_as_gateway(&mut raw);
        assert_silence(&site, &c, &mut raw, &ears, gateway_mac, "after swd came back");
    }
}
