//! Published ports, and what leaves when someone or something goes.
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod common;

use common::Host::{A, B, Ext, Router, S};
use common::packets::{port_unreachable, tcp, udp};
use common::{FAMILIES, Family, Lab, NETWORK, address, at, endpoint, ip, owner_of};
use nat::{
    Config, DropReason, Filter, Filtering, NetworkConfig, Prefix, Protocol, Refusal, Rule, State, Verdict,
};

/// The client's address is kept, for TCP, UDP and both families; answers come from where the client sent to.
#[test]
fn a_published_port_leads_inside_and_back() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let rules = [Protocol::Udp, Protocol::Tcp].map(|p| lab.publish(family, p, 5000, 9, 80));
        let question = lab.inbound(&udp(&at(family, S, 9), &at(family, Ext, 5003), b"x")).unwrap();
        assert_eq!(question.ends(), (at(family, S, 9), at(family, B, 83)));
        assert_eq!(question.forward.to, common::party(address(family, B)));
        let answer = lab.outbound(&udp(&at(family, B, 83), &at(family, S, 9), b"y")).unwrap();
        assert_eq!(answer.ends(), (at(family, Ext, 5003), at(family, S, 9)));
        let syn = lab.inbound(&tcp(&at(family, S, 9), &at(family, Ext, 5000), "S", 1, 0, b"")).unwrap();
        assert_eq!(syn.ends(), (at(family, S, 9), at(family, B, 80)));
        let found: Vec<_> = lab.nat.published().map(|(id, _, connections)| (id, connections)).collect();
        assert_eq!(found.len(), 2);
        assert!(rules.iter().all(|rule| found.contains(&(*rule, 1))));
    }
}

/// After a restart of the translator published connections go on: their mapping is no secret.
#[test]
fn a_published_connection_survives_a_restart() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        lab.publish(family, Protocol::Tcp, 5000, 0, 80);
        let data = tcp(&at(family, S, 9), &at(family, Ext, 5000), "A", 1000, 2000, b"data");
        lab.inbound(&data).unwrap();
        lab.outbound(&tcp(&at(family, B, 80), &at(family, S, 9), "A", 2000, 1004, b"more")).unwrap();
        lab.inbound(&tcp(&at(family, S, 9), &at(family, Ext, 5000), "A", 1004, 2004, b"")).unwrap();
        let state = lab.nat.connections(lab.now, Filter::default()).map(|(_, found)| found.state()).next();
        assert_eq!(state, Some(State::Established));
    }
}

/// After a restart the published endpoint may be the first to send: it is known by its published port all the same, so
/// the other end recognises it (RFC 4787 REQ-1 for mappings by hand).
#[test]
fn a_published_endpoint_sends_from_its_published_port() {
    for family in FAMILIES {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let mut lab = Lab::default();
            let rule = lab.publish(family, protocol, 5000, 9, 80);
            let packet = |source: &str, destination: &str| match protocol {
                Protocol::Udp => udp(source, destination, b"x"),
                _ => tcp(source, destination, "A", 1000, 1000, b"x"),
            };
            let sent = lab.outbound(&packet(&at(family, B, 83), &at(family, S, 9))).unwrap();
            assert_eq!(sent.ends(), (at(family, Ext, 5003), at(family, S, 9)));
            let back = lab.inbound(&packet(&at(family, S, 9), &at(family, Ext, 5003))).unwrap();
            assert_eq!(back.ends().1, at(family, B, 83));
            assert_eq!(lab.nat.connection_count(), 1);
            lab.nat.unpublish(lab.now, rule).unwrap();
            assert_eq!(lab.nat.connections(lab.now, Filter::default()).count(), 0);
        }
    }
}

#[test]
fn only_the_named_sources_may_connect() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let length = if family == Family::V4 { 32 } else { 128 };
        let rule = Rule {
            protocol: Protocol::Udp,
            host: Some(address(family, Ext)),
            ports: 5000..=5000,
            network: NETWORK,
            target: endpoint(family, B, 80),
            from: vec![Prefix::new(ip(family, S).parse().unwrap(), length).unwrap()],
        };
        lab.nat.publish(rule).unwrap();
        let datagram = |host| udp(&at(family, host, 9), &at(family, Ext, 5000), b"x");
        lab.inbound(&datagram(S)).unwrap();
        let denied = Verdict::Drop(DropReason::SourceDenied);
        assert_eq!(lab.inbound(&datagram(Router)).unwrap_err(), denied);
        assert_eq!(lab.hairpin(&datagram(A)).unwrap_err(), denied);
    }
}

/// The target need not exist yet: then connections are refused at once, by hairpin too.
#[test]
fn without_a_target_connections_are_refused() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        lab.publish(family, Protocol::Tcp, 5000, 0, 80);
        let (now, external) = (lab.now, lab.external);
        let syn = tcp(&at(family, S, 9), &at(family, Ext, 5000), "S", 1, 0, b"");
        let verdict = lab.pass(&syn, |nat, packet| nat.inbound(now, packet, |_, _| None)).unwrap_err();
        assert_eq!(verdict, Verdict::Refuse(Refusal::NoTarget));
        let syn = tcp(&at(family, A, 9), &at(family, Ext, 5000), "S", 1, 0, b"");
        let verdict = lab
            .pass(&syn, |nat, packet| {
                let from = common::party(packet.source());
                nat.hairpin(now, packet, from, external, |_, _| None)
            })
            .unwrap_err();
        assert_eq!(verdict, Verdict::Refuse(Refusal::NoTarget));
    }
}

#[test]
fn unpublishing_ends_the_rules_connections() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let rule = lab.publish(family, Protocol::Udp, 5000, 0, 80);
        lab.publish(family, Protocol::Udp, 6000, 0, 81);
        let one = udp(&at(family, S, 9), &at(family, Ext, 5000), b"x");
        let other = udp(&at(family, S, 9), &at(family, Ext, 6000), b"x");
        lab.inbound(&one).unwrap();
        lab.inbound(&other).unwrap();
        lab.nat.unpublish(lab.now, rule).unwrap();
        assert_eq!(lab.inbound(&one).unwrap_err(), Verdict::NotOurs);
        lab.inbound(&other).unwrap();
        assert_eq!(lab.nat.unpublish(lab.now, rule), None);
        assert_eq!(lab.nat.connections(lab.now, Filter::default()).count(), 1);
    }
}

/// A container that leaves takes everything along at once; one with the same address gets nothing of it.
#[test]
fn an_owner_leaves_in_one_step() {
    for family in FAMILIES {
        let config = NetworkConfig { filtering: Filtering::EndpointIndependent, ..NetworkConfig::default() };
        let mut lab = Lab::new(Config::default(), config);
        let question = udp(&at(family, A, 40000), &at(family, S, 9), b"x");
        let sent = lab.outbound(&question).unwrap();
        let kept = lab.outbound(&udp(&at(family, B, 40000), &at(family, S, 9), b"x")).unwrap();
        lab.nat.remove_owner(lab.now, owner_of(address(family, A)));

        let answer = udp(&at(family, S, 9), &at(family, Ext, sent.source_port()), b"y");
        assert_eq!(lab.inbound(&answer).unwrap_err(), Verdict::NotOurs);
        let stranger = udp(&at(family, Router, 9), &at(family, Ext, sent.source_port()), b"y");
        assert_eq!(lab.inbound(&stranger).unwrap_err(), Verdict::NotOurs);
        let error = port_unreachable(&ip(family, S), &ip(family, Ext), &sent.bytes);
        assert_eq!(lab.inbound(&error).unwrap_err(), Verdict::NotOurs);

        // The successor has another port, and the old one still leads nowhere.
        let again = lab.outbound(&question).unwrap();
        assert_ne!(again.source_port(), sent.source_port());
        assert_eq!(lab.inbound(&stranger).unwrap_err(), Verdict::NotOurs);
        lab.wait_secs(1);
        assert_eq!(lab.inbound(&stranger).unwrap_err(), Verdict::NotOurs);
        let answer = udp(&at(family, S, 9), &at(family, Ext, kept.source_port()), b"y");
        lab.inbound(&answer).unwrap();
        assert_eq!((lab.nat.connection_count(), lab.nat.mapping_count()), (2, 2));
    }
}

/// An address that the host loses takes its connections along; others stay.
#[test]
fn an_external_address_leaves_in_one_step() {
    let mut lab = Lab::default();
    lab.publish(Family::V4, Protocol::Udp, 5000, 0, 80);
    let before = lab.outbound(&udp(&at(Family::V4, A, 1), &at(Family::V4, S, 9), b"x")).unwrap();
    lab.inbound(&udp(&at(Family::V4, S, 9), &at(Family::V4, Ext, 5000), b"x")).unwrap();
    lab.outbound(&udp(&at(Family::V6, A, 1), &at(Family::V6, S, 9), b"x")).unwrap();
    lab.nat.remove_external(lab.now, address(Family::V4, Ext));
    let answer = udp(&at(Family::V4, S, 9), &at(Family::V4, Ext, before.source_port()), b"y");
    assert_eq!(lab.inbound(&answer).unwrap_err(), Verdict::NotOurs);
    assert_eq!(lab.nat.connections(lab.now, Filter::default()).count(), 1);
    // New connections use the new one.
    lab.external.v4 = Some("192.0.2.99".parse().unwrap());
    let after = lab.outbound(&udp(&at(Family::V4, A, 1), &at(Family::V4, S, 9), b"x")).unwrap();
    assert!(after.ends().0.starts_with("192.0.2.99:"));
}

/// A network's end, a flush by filter, and one connection's end.
#[test]
fn connections_end_by_filter() {
    let mut lab = Lab::default();
    for port in 1..=5 {
        lab.outbound(&udp(&at(Family::V4, A, port), &at(Family::V4, S, 9), b"x")).unwrap();
        lab.outbound(&tcp(&at(Family::V4, B, port), &at(Family::V4, S, 9), "S", 1, 0, b"")).unwrap();
    }
    let count = |lab: &Lab, filter| lab.nat.connections(lab.now, filter).count();
    assert_eq!(count(&lab, Filter { state: Some(State::SynSent), ..Filter::default() }), 5);
    assert_eq!(count(&lab, Filter { address: Some(address(Family::V4, S)), ..Filter::default() }), 10);
    assert_eq!(count(&lab, Filter { external: Some(address(Family::V4, Ext)), ..Filter::default() }), 10);
    assert_eq!(count(&lab, Filter { external: Some(address(Family::V4, S)), ..Filter::default() }), 0);
    lab.nat.end_all(lab.now, Filter { port: Some(3), ..Filter::default() });
    assert_eq!(count(&lab, Filter::default()), 8);
    lab.nat.end_all(lab.now, Filter { protocol: Some(Protocol::Tcp), ..Filter::default() });
    assert_eq!(count(&lab, Filter::default()), 4);
    let (id, _) = lab.nat.connections(lab.now, Filter::default()).next().unwrap();
    assert!(lab.nat.end_one(lab.now, id));
    assert!(!lab.nat.end_one(lab.now, id));
    // More filters than are noted before the sweep is finished at once.
    for port in 1000..1200 {
        lab.nat.end_all(lab.now, Filter { port: Some(port), ..Filter::default() });
    }
    assert_eq!(count(&lab, Filter::default()), 3);
    lab.nat.remove_network(lab.now, NETWORK);
    lab.wait_secs(0);
    assert_eq!((lab.nat.connection_count(), lab.nat.mapping_count()), (0, 0));
}

/// A change of policy is noticed by the next packet of each connection.
#[test]
fn connections_remember_under_which_policy_they_were_admitted() {
    let mut lab = Lab::default();
    let packet = udp(&at(Family::V4, A, 1), &at(Family::V4, S, 9), b"x");
    lab.nat.set_generation(4);
    assert_eq!(lab.outbound(&packet).unwrap().forward.generation, 4);
    lab.nat.set_generation(5);
    let forward = lab.outbound(&packet).unwrap().forward;
    assert_eq!(forward.generation, 4);
    lab.nat.readmit(forward.connection);
    assert_eq!(lab.outbound(&packet).unwrap().forward.generation, 5);
}

/// What `conntrack ls` shows.
#[test]
fn a_connection_tells_its_story() {
    let mut lab = Lab::default();
    let sent = lab.outbound(&udp(&at(Family::V4, A, 1), &at(Family::V4, S, 9), b"12345")).unwrap();
    lab.wait_secs(10);
    lab.inbound(&udp(&at(Family::V4, S, 9), &at(Family::V4, Ext, sent.source_port()), b"123")).unwrap();
    let (_, found) = lab.nat.connections(lab.now, Filter::default()).next().unwrap();
    let [original, reply] = [nat::Direction::Original, nat::Direction::Reply];
    assert_eq!(found.tuple(original).to_string(), "udp 172.18.0.10:1 > 198.51.100.7:9 in 1");
    assert_eq!(found.tuple(reply).destination.port, sent.source_port());
    assert_eq!((found.counters(original).bytes, found.counters(reply).bytes), (33, 31));
    assert_eq!((found.counters(original).packets, found.state()), (1, State::Replied));
    assert_eq!(lab.now.since(found.created()).as_secs(), 10);
    assert_eq!(found.deadline().since(lab.now).as_secs(), 300);
    assert_eq!((found.owner(original), found.rule()), (owner_of(address(Family::V4, A)), None));
}
