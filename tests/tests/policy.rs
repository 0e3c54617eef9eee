//! Who may talk to whom, in memory: which packets pass, which are answered, and that answers always pass.

use std::net::IpAddr;

use nat::Protocol;
use smoltcp::socket::tcp;
use switch::policy::{Rule, Services, Side};
use switch::snapshot::{NetworkId, PortId};
use switch::verdict::DropReason;
use tests::lab::{Lab, NetworkOptions, net, plain_mac};
use tests::process::s;
use tests::raw::{BROADCAST, experiment, udp4};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn rule(allow: bool, from: Side, to: Side, services: Services) -> Rule {
    Rule { from, to, services, allow, text: "a rule of the test".into() }
}

fn tcp(port: u16) -> Services {
    Services::Ports(Protocol::Tcp, port..=port)
}

/// A network with its host at .1 (port 0), and the hosts .10 and .20.
fn cells(isolate_ports: bool) -> (Lab, [Side; 2], [PortId; 2]) {
    let mut lab = Lab::default();
    let subnets = vec![net("10.0.0.0/16"), net("fd00:0::/64")];
    let network = lab.network("cells", &NetworkOptions { subnets, isolate_ports, host_access: true });
    let ports = [10, 20].map(|n| lab.plain_host(network, n));
    (lab, ports.map(|port| Side::Port(port, network)), ports)
}

/// Whether a connection can be opened and says something both ways.
fn connects(lab: &mut Lab, from: PortId, to: PortId, address: &str, port: u16) -> bool {
    let (client, server) = (lab.at(from).tcp(), lab.at(to).tcp());
    lab.at(to).listen(server, port);
    lab.at(from).connect(client, ip(address), port);
    lab.advance(s(2));
    let open = |lab: &mut Lab, at, handle| lab.at(at).tcp_socket(handle).state() == tcp::State::Established;
    let opened = open(lab, from, client) && open(lab, to, server);
    if opened {
        lab.at(from).tcp_socket(client).send_slice(b"question").expect("open");
        lab.at(to).tcp_socket(server).send_slice(b"answer").expect("open");
        lab.advance(s(1));
        assert!(lab.at(from).tcp_socket(client).can_recv() && lab.at(to).tcp_socket(server).can_recv());
    }
    for (at, handle) in [(from, client), (to, server)] {
        lab.at(at).tcp_socket(handle).abort();
    }
    lab.advance(s(1));
    opened
}

fn pings(lab: &mut Lab, from: PortId, to: &str) -> bool {
    let pinger = lab.at(from).pinger();
    lab.at(from).ping(pinger, ip(to), 1);
    lab.advance(s(3));
    lab.at(from).pong(pinger).is_some()
}

const A: &str = "10.0.0.10";
const B: &str = "10.0.0.20";
const A6: &str = "fd00:0::a";
const B6: &str = "fd00:0::14";
const HOST: &str = "10.0.0.1";

#[test]
fn a_rule_opens_one_service_between_two_isolated_ports_and_answers_pass() {
    let (mut lab, [a, b], [pa, pb]) = cells(true);
    assert!(!connects(&mut lab, pa, pb, B, 80));
    lab.rules(vec![rule(true, a, b, tcp(80))]);
    assert!(connects(&mut lab, pa, pb, B, 80) && connects(&mut lab, pa, pb, B6, 80));
    let before = lab.drops(DropReason::Isolated);
    assert!(!connects(&mut lab, pa, pb, B, 81), "another service");
    assert!(!connects(&mut lab, pb, pa, A, 80), "the other direction");
    assert!(!connects(&mut lab, pb, pa, A6, 80));
    assert!(!pings(&mut lab, pa, B));
    assert!(lab.drops(DropReason::Isolated) > before);
    // The host is not asked about.
    assert!(pings(&mut lab, pa, HOST) && pings(&mut lab, PortId(0), B));
}

#[test]
fn a_rule_forbids_in_one_direction_only() {
    let (mut lab, [a, b], [pa, pb]) = cells(false);
    lab.rules(vec![rule(false, a, b, Services::All)]);
    assert!(!connects(&mut lab, pa, pb, B, 80) && !connects(&mut lab, pa, pb, B6, 80));
    assert!(lab.drops(DropReason::Prohibited) > 0);
    assert!(connects(&mut lab, pb, pa, A, 80) && connects(&mut lab, pb, pa, A6, 80));
    assert!(pings(&mut lab, pb, A) && pings(&mut lab, pb, A6));
    assert!(!pings(&mut lab, pa, B));
    lab.rules(vec![rule(false, a, b, Services::All), rule(true, a, b, Services::Icmp)]);
    let c = lab.plain_host(NetworkId(0), 30);
    assert!(pings(&mut lab, c, B), "others are not meant");
    assert!(!connects(&mut lab, pa, pb, B, 82));
}

#[test]
fn who_is_refused_is_told_so() {
    let (mut lab, [a, b], [pa, pb]) = cells(false);
    assert!(pings(&mut lab, pa, B));
    lab.rules(vec![rule(false, a, b, Services::Protocol(Protocol::Udp))]);
    let raw = lab.port(NetworkId(0), "raw");
    let own = plain_mac(NetworkId(0), 30).0;
    lab.put(raw, experiment(BROADCAST, own, b"here"));
    lab.settle();
    lab.rules(vec![rule(false, Side::Port(raw, NetworkId(0)), b, Services::Protocol(Protocol::Udp))]);
    let to = plain_mac(NetworkId(0), 20).0;
    let datagram = udp4((to, own), ([10, 0, 0, 30], 4000), ([10, 0, 0, 20], 53), b"?");
    lab.take_all(raw);
    let heard = lab.port_info(pb).counters.tx.packets();
    for _ in 0..1000 {
        lab.put(raw, datagram.clone());
    }
    lab.settle();
    assert_eq!(lab.port_info(pb).counters.tx.packets(), heard, "none passes");
    let told = lab.take_all(raw);
    assert_eq!(told.len(), 200, "and no more is told than may be");
    let packet = &told[0].bytes[14..];
    // From the gateway: destination unreachable, administratively prohibited.
    assert_eq!((packet[9], &packet[12..16], &packet[20..22]), (1, &[10, 0, 0, 1][..], &[3, 13][..]));
    assert_eq!(packet[28..32], datagram[14..18]);
}

#[test]
fn rules_for_the_host() {
    let (mut lab, [a, _], [pa, pb]) = cells(false);
    let host = PortId(0);
    lab.rules(vec![rule(false, a, Side::Host, Services::All), rule(true, a, Side::Host, tcp(53))]);
    assert!(!pings(&mut lab, pa, HOST) && !connects(&mut lab, pa, host, HOST, 80));
    assert!(connects(&mut lab, pa, host, HOST, 53));
    assert!(pings(&mut lab, pb, HOST), "others are not meant");
    assert!(pings(&mut lab, host, A) && connects(&mut lab, host, pa, A, 80), "answers to the host pass");
    lab.rules(vec![rule(false, Side::Host, Side::Network(NetworkId(0)), Services::Protocol(Protocol::Tcp))]);
    // Not the port from before: that connection is known, and it is for the daemon to end it.
    assert!(!connects(&mut lab, host, pa, A, 81) && !connects(&mut lab, host, pb, B6, 81));
    assert!(connects(&mut lab, pa, host, HOST, 80));
}

#[test]
fn running_connections_outlive_a_rule_that_lets_them_be_and_end_by_one_that_does_not() {
    let (mut lab, [a, b], [pa, pb]) = cells(false);
    let (client, server) = (lab.at(pa).tcp(), lab.at(pb).tcp());
    lab.at(pb).listen(server, 5432);
    lab.at(pa).connect(client, ip(B), 5432);
    lab.advance(s(1));
    let say = |lab: &mut Lab, first_from_server: bool| {
        let (one, other) =
            if first_from_server { ((pb, server), (pa, client)) } else { ((pa, client), (pb, server)) };
        for (from, to) in [(one, other), (other, one)] {
            lab.at(from.0).tcp_socket(from.1).send_slice(b"more").expect("open");
            lab.advance(s(1));
            let heard = lab.at(to.0).tcp_socket(to.1).recv(|data| (data.len(), data.len())).expect("open");
            if heard != 4 {
                return false;
            }
        }
        true
    };
    assert!(say(&mut lab, false));
    // The rules come after the connection: it is nobody's, and goes on.
    lab.rules(vec![rule(false, b, a, Services::All)]);
    assert!(say(&mut lab, true), "the server speaks first");
    assert!(say(&mut lab, false));
    lab.rules(vec![rule(false, b, a, Services::All), rule(false, a, b, tcp(80))]);
    assert!(say(&mut lab, true));
    lab.rules(vec![rule(false, a, b, tcp(5432))]);
    assert!(!say(&mut lab, true), "forbidden to who had opened it, and its answers are none");
}

#[test]
fn fragments_follow_their_first() {
    let (mut lab, [a, b], [pa, _]) = cells(false);
    assert!(pings(&mut lab, pa, B));
    lab.rules(vec![rule(false, b, a, Services::All)]);
    let to = plain_mac(NetworkId(0), 20).0;
    let from = plain_mac(NetworkId(0), 10).0;
    let whole = udp4((to, from), ([10, 0, 0, 10], 4000), ([10, 0, 0, 20], 53), &[5; 1000]);
    let cut = |from: usize, to: usize, more: bool| {
        let mut part = [&whole[..34], &whole[34 + from..34 + to]].concat();
        let length = u16::try_from(20 + to - from).expect("short");
        part[16..18].copy_from_slice(&length.to_be_bytes());
        let offset = u16::try_from(from / 8).expect("short") | if more { 0x2000 } else { 0 };
        part[20..22].copy_from_slice(&offset.to_be_bytes());
        part[24..26].copy_from_slice(&[0, 0]);
        let sum = !nat::checksum::sum(&part[14..34]);
        part[24..26].copy_from_slice(&sum.to_be_bytes());
        part
    };
    let counters = std::sync::Arc::clone(
        &lab.port_info(match b {
            Side::Port(port, _) => port,
            _ => PortId(0),
        })
        .counters,
    );
    let before = counters.tx.packets();
    // The later one first: it waits.
    lab.put(pa, cut(504, 1008, false));
    lab.settle();
    assert_eq!(counters.tx.packets(), before);
    lab.put(pa, cut(0, 504, true));
    lab.settle();
    assert_eq!(counters.tx.packets() - before, 2);
}

#[test]
fn broadcasts_reach_those_who_may_hear_them() {
    let mut lab = Lab::default();
    let subnets = vec![net("10.0.0.0/16")];
    let network = lab.network("cells", &NetworkOptions { subnets, isolate_ports: true, host_access: false });
    let ports = ["a", "b", "c"].map(|name| lab.port(network, name));
    let [a, b, _] = ports.map(|port| Side::Port(port, network));
    lab.rules(vec![rule(true, a, b, Services::Protocol(Protocol::Udp))]);
    let mac = |n| plain_mac(network, n).0;
    let mut heard = |frame: Vec<u8>| {
        lab.put(ports[0], frame);
        lab.settle();
        ports.map(|port| lab.take_all(port).len())
    };
    assert_eq!(heard(tests::raw::arp_request(mac(1), [10, 0, 0, 11], [10, 0, 0, 12])), [0, 1, 0], "ARP");
    let all = [10, 0, 255, 255];
    assert_eq!(heard(udp4((BROADCAST, mac(1)), ([10, 0, 0, 11], 1), (all, 137), b"?")), [0, 1, 0], "UDP");
    assert_eq!(heard(experiment(BROADCAST, mac(1), b"no IP")), [0, 0, 0]);
    let mut tagged = tests::raw::arp_request(mac(1), [10, 0, 0, 11], [10, 0, 0, 12]);
    tagged.splice(12..12, [0x81, 0, 0, 0]);
    assert_eq!(heard(tagged), [0, 0, 0], "what cannot be looked into");
    assert_eq!(lab.drops(DropReason::Isolated), 2);
    // B answers A by ARP, and hears nothing else of it.
    lab.put(ports[1], tests::raw::arp_request(mac(2), [10, 0, 0, 12], [10, 0, 0, 11]));
    lab.put(ports[1], udp4((BROADCAST, mac(2)), ([10, 0, 0, 12], 1), (all, 137), b"?"));
    lab.settle();
    assert_eq!(ports.map(|port| lab.take_all(port).len()), [1, 0, 0]);
}

#[test]
fn rules_between_networks() {
    let mut lab = Lab::default();
    let nets = [lab.plain_network(), lab.plain_network()];
    let hosts = nets.map(|network| [10, 20].map(|n| lab.plain_host(network, n)));
    let [a, a2] = hosts[0];
    let [x, _] = hosts[1];
    let side = |port, n: usize| Side::Port(port, nets[n]);
    assert!(!connects(&mut lab, a, x, "10.1.0.10", 80));
    lab.rules(vec![
        rule(true, Side::Network(nets[0]), side(x, 1), tcp(80)),
        rule(false, side(a2, 0), side(x, 1), tcp(80)),
    ]);
    assert!(connects(&mut lab, a, x, "10.1.0.10", 80));
    assert!(!connects(&mut lab, a2, x, "10.1.0.10", 80), "the more specific rule");
    assert!(!connects(&mut lab, a, x, "10.1.0.10", 81));
    assert!(!connects(&mut lab, a, hosts[1][1], "10.1.0.20", 80), "another port");
    assert!(!connects(&mut lab, x, a, "10.0.0.10", 80), "the other direction");
    assert!(!pings(&mut lab, a, "10.1.0.10"));
    lab.rules(vec![rule(true, Side::Network(nets[0]), Side::Network(nets[1]), Services::Icmp)]);
    assert!(pings(&mut lab, a, "10.1.0.20") && pings(&mut lab, a2, "10.1.0.10"));
    assert!(!pings(&mut lab, x, "10.0.0.10"));
}
