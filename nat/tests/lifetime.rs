//! How long mappings live, and what keeps them alive.
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod common;

use std::time::Duration;

use common::Host::{A, B, Ext, S};
use common::packets::{echo_reply, echo_request, port_unreachable, tcp, udp};
use common::{FAMILIES, Family, Lab, at, ip};
use nat::{Config, Filtering, InboundRefresh, NetworkConfig, State, Timeouts};

/// Opens a UDP connection of A and returns the external endpoint.
fn open(lab: &mut Lab, family: Family) -> String {
    let sent = lab.outbound(&udp(&at(family, A, 40000), &at(family, S, 3478), b"x")).unwrap();
    at(family, Ext, sent.source_port())
}

/// RFC 5780 section 4.6; RFC 4787 REQ-5: two minutes without an answer, five with one.
#[test]
fn udp_lives_two_minutes_unanswered_and_five_answered() {
    for family in FAMILIES {
        for (answered, lifetime) in [(false, 120), (true, 300)] {
            for (wait, alive) in [(lifetime - 1, true), (lifetime, false)] {
                let mut lab = Lab::default();
                let external = open(&mut lab, family);
                let answer = udp(&at(family, S, 3478), &external, b"y");
                if answered {
                    lab.inbound(&answer).unwrap();
                }
                lab.wait_secs(wait);
                assert_eq!(lab.inbound(&answer).is_ok(), alive, "{family:?} {answered} {wait}");
            }
        }
    }
}

/// RFC 4787 REQ-5c: lifetimes can be set.
#[test]
fn lifetimes_can_be_set() {
    let timeouts = Timeouts { udp_unreplied: Duration::from_secs(7), ..Timeouts::default() };
    let mut lab = Lab::new(Config::default(), NetworkConfig { timeouts, ..NetworkConfig::default() });
    open(&mut lab, Family::V4);
    lab.wait(Duration::from_millis(6999));
    assert_eq!(lab.nat.connections(lab.now, nat::Filter::default()).count(), 1);
    lab.wait(Duration::from_millis(1));
    assert_eq!(lab.nat.connections(lab.now, nat::Filter::default()).count(), 0);
}

/// RFC 4787 REQ-6: packets from inside refresh, always.
#[test]
fn outbound_packets_refresh() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let external = open(&mut lab, family);
        for _ in 0..10 {
            lab.wait_secs(119);
            assert_eq!(open(&mut lab, family), external);
        }
    }
}

/// RFC 4787 REQ-6a, RFC 7857 section 7: whether packets from outside refresh can be set.
#[test]
fn inbound_packets_refresh_as_set() {
    for family in FAMILIES {
        for inbound_refresh in [InboundRefresh::Yes, InboundRefresh::No] {
            let config = NetworkConfig {
                inbound_refresh,
                filtering: Filtering::EndpointIndependent,
                ..NetworkConfig::default()
            };
            let mut lab = Lab::new(Config::default(), config);
            let external = open(&mut lab, family);
            let answer = udp(&at(family, S, 3478), &external, b"y");
            lab.inbound(&answer).unwrap();
            lab.wait_secs(200);
            lab.inbound(&answer).unwrap();
            lab.wait_secs(200);
            assert_eq!(lab.inbound(&answer).is_ok(), inbound_refresh == InboundRefresh::Yes);
        }
    }
}

/// RFC 4787 REQ-12, RFC 5382 REQ-10, RFC 5508 REQ-6: an ICMP error neither ends nor refreshes.
#[test]
fn icmp_errors_change_no_lifetime() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let sent = lab.outbound(&udp(&at(family, A, 40000), &at(family, S, 3478), b"x")).unwrap();
        lab.wait_secs(100);
        lab.inbound(&port_unreachable(&ip(family, S), &ip(family, Ext), &sent.bytes)).unwrap();
        let answer = udp(&at(family, S, 3478), &at(family, Ext, sent.source_port()), b"y");
        let mut ended = Lab::default();
        std::mem::swap(&mut ended, &mut lab);
        ended.wait_secs(19);
        let deadline = |lab: &Lab| {
            lab.nat.connections(lab.now, nat::Filter::default()).map(|(_, found)| found.deadline()).max()
        };
        assert_eq!(deadline(&ended), Some(nat::Time::from_secs(1120)));
        ended.wait_secs(1);
        assert!(ended.inbound(&answer).is_err());
    }
}

/// RFC 5508 REQ-2: a query lives a minute.
#[test]
fn icmp_queries_live_a_minute() {
    for family in FAMILIES {
        for (wait, alive) in [(59, true), (60, false)] {
            let mut lab = Lab::default();
            let sent = lab.outbound(&echo_request(&ip(family, A), &ip(family, S), 77, 1)).unwrap();
            lab.wait_secs(wait);
            let reply = echo_reply(&ip(family, S), &ip(family, Ext), sent.source_port(), 1);
            assert_eq!(lab.inbound(&reply).is_ok(), alive);
            assert_eq!(lab.nat.mapping_count(), u32::from(alive));
        }
    }
}

/// RFC 5382 REQ-5: two hours and four minutes open, four minutes while opening or closing.
#[test]
fn tcp_lives_as_long_as_its_state_says() {
    for family in FAMILIES {
        let (a, s) = (at(family, A, 40000), at(family, S, 80));
        // How far the connection has come, and how long it lives then.
        for (steps, state, lifetime) in [
            (1, State::SynSent, 240),
            (2, State::SynReceived, 240),
            (3, State::Established, 7440),
            (4, State::Closing, 240),
            (5, State::Closing, 240),
            (6, State::Closed, 240),
        ] {
            let mut lab = Lab::default();
            let port = lab.outbound(&tcp(&a, &s, "S", 100, 0, b"")).unwrap().source_port();
            let e = at(family, Ext, port);
            let rest: [(bool, Vec<u8>); 5] = [
                (false, tcp(&s, &e, "SA", 900, 101, b"")),
                (true, tcp(&a, &s, "A", 101, 901, b"")),
                (true, tcp(&a, &s, "FA", 101, 901, b"")),
                (false, tcp(&s, &e, "FA", 901, 102, b"")),
                (true, tcp(&a, &s, "A", 102, 902, b"")),
            ];
            for (outbound, bytes) in &rest[..steps - 1] {
                if *outbound { lab.outbound(bytes) } else { lab.inbound(bytes) }.unwrap();
            }
            let found = |lab: &Lab| {
                lab.nat.connections(lab.now, nat::Filter::default()).map(|(_, found)| found.state()).next()
            };
            assert_eq!(found(&lab), Some(state));
            lab.wait_secs(lifetime - 1);
            assert_eq!(found(&lab), Some(state));
            lab.wait_secs(1);
            assert_eq!(found(&lab), None);
            lab.wait_secs(2);
            assert_eq!(lab.nat.connection_count(), 0, "collected");
        }
    }
}

/// RFC 7857 section 7.1: neither a RST nor an ICMP error from inside, answering the outside, keeps anything alive.
#[test]
fn answers_of_refusal_refresh_nothing() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        lab.publish(family, nat::Protocol::Tcp, 5000, 0, 80);
        lab.publish(family, nat::Protocol::Udp, 5000, 0, 80);
        let deadlines = |lab: &Lab| {
            let mut found: Vec<_> = lab
                .nat
                .connections(lab.now, nat::Filter::default())
                .map(|(_, found)| (found.state(), found.deadline().since(lab.now).as_secs()))
                .collect();
            found.sort_unstable();
            found
        };
        lab.inbound(&tcp(&at(family, S, 9), &at(family, Ext, 5000), "S", 100, 0, b"")).unwrap();
        let question = lab.inbound(&udp(&at(family, S, 9), &at(family, Ext, 5000), b"x")).unwrap();
        let reset = tcp(&at(family, B, 80), &at(family, S, 9), "RA", 0, 101, b"");
        lab.outbound(&reset).unwrap();
        assert_eq!(deadlines(&lab), [(State::Reset, 240), (State::Unreplied, 120)]);
        lab.wait_secs(100);
        lab.outbound(&reset).unwrap();
        lab.outbound(&port_unreachable(&ip(family, B), &ip(family, S), &question.bytes)).unwrap();
        assert_eq!(deadlines(&lab), [(State::Reset, 140), (State::Unreplied, 20)]);
    }
}

/// DNS questions make room soon (RFC 4787 REQ-5a).
#[test]
fn dns_lives_ten_seconds() {
    let mut lab = Lab::default();
    lab.outbound(&udp(&at(Family::V4, A, 40000), &at(Family::V4, S, 53), b"x")).unwrap();
    lab.wait_secs(11);
    assert_eq!(lab.nat.connection_count(), 0);
}

/// A long sleep and a jump of the clock end everything without a stall.
#[test]
fn time_may_jump() {
    let mut lab = Lab::default();
    for port in 1..100 {
        lab.outbound(&udp(&at(Family::V4, A, port), &at(Family::V4, S, 3478), b"x")).unwrap();
    }
    lab.now = nat::Time::from_nanos(u64::MAX - 1);
    let mut calls = 0;
    while lab.nat.expire(lab.now, 10) {
        calls += 1;
    }
    assert!(calls < 100);
    assert_eq!((lab.nat.connection_count(), lab.nat.mapping_count()), (0, 0));
    assert_eq!(lab.nat.poll_at(), None);
}
