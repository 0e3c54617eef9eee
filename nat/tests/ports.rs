//! Ports, limits, and what happens when they run out.
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod common;

use std::collections::HashSet;
use std::time::Duration;

use common::Host::{A, B, Ext, S, S2};
use common::packets::{tcp, udp};
use common::{FAMILIES, Family, Lab, address, at, owner_of};
use nat::{Config, Filter, Filtering, NetworkConfig, OwnerLimits, Protocol, Refusal, Time, Verdict};

const F: Family = Family::V4;

fn lab(ports: std::ops::RangeInclusive<u16>, filtering: Filtering) -> Lab {
    let owner = OwnerLimits { connections: 65_536, new_per_second: 1_000_000 };
    Lab::new(
        Config { ports, owner, ..Config::default() },
        NetworkConfig { filtering, ..NetworkConfig::default() },
    )
}

/// Opens and closes a TCP connection from A's `port`; returns its external port.
fn open_and_close(lab: &mut Lab, family: Family, port: u16) -> u16 {
    let (a, s) = (at(family, A, port), at(family, S, 80));
    let external = lab.outbound(&tcp(&a, &s, "S", 100, 0, b"")).unwrap().source_port();
    let e = at(family, Ext, external);
    lab.inbound(&tcp(&s, &e, "SA", 900, 101, b"")).unwrap();
    lab.outbound(&tcp(&a, &s, "A", 101, 901, b"")).unwrap();
    lab.outbound(&tcp(&a, &s, "FA", 101, 901, b"")).unwrap();
    lab.inbound(&tcp(&s, &e, "FA", 901, 102, b"")).unwrap();
    lab.outbound(&tcp(&a, &s, "A", 102, 902, b"")).unwrap();
    external
}

/// RFC 6888 REQ-8 A: 15,000 connections a second from one container to one destination, through 4,536 ports.
#[test]
fn closed_connections_give_their_ports_back_first_in_first_out() {
    for family in FAMILIES {
        let mut lab = lab(61_000..=65_535, Filtering::default());
        let mut last_used = vec![None; 65_536];
        let mut shortest = u32::MAX;
        for n in 0..30_000u32 {
            lab.now = lab.now + Duration::from_micros(66);
            let port = open_and_close(&mut lab, family, u16::try_from(1024 + n % 60_000).unwrap());
            if let Some(last) = last_used[usize::from(port)].replace(n) {
                shortest = shortest.min(n - last);
            }
        }
        assert!(shortest > 4000, "a port was used again after {shortest} connections");
        assert!(lab.nat.connection_count() <= 4536);
    }
}

/// Ports are not handed out in sequence (RFC 6056), and another seed gives another sequence.
#[test]
fn ports_are_not_in_sequence() {
    let ports = |seed| {
        let mut lab = Lab::new(Config { seed, ..Config::default() }, NetworkConfig::default());
        (1..50)
            .map(|port| lab.outbound(&udp(&at(F, A, port), &at(F, S, 9), b"")).unwrap().source_port())
            .collect::<Vec<_>>()
    };
    let first = ports(1);
    assert_eq!(first, ports(1));
    assert_ne!(first, ports(2));
    assert!(first.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count() < 5);
}

/// RFC 6888 REQ-8: a UDP port rests for 120 seconds; where filtering is endpoint-independent without exception.
#[test]
fn a_udp_port_rests() {
    for family in FAMILIES {
        for filtering in [Filtering::EndpointIndependent, Filtering::AddressAndPortDependent] {
            let mut lab = lab(61_000..=61_000, filtering);
            let send = |lab: &mut Lab, port| {
                lab.outbound(&udp(&at(family, A, port), &at(family, S, 9), b""))
                    .map(|sent| sent.source_port())
            };
            assert_eq!(send(&mut lab, 1), Ok(61_000));
            lab.wait_secs(121);
            let resting = send(&mut lab, 2);
            if filtering == Filtering::EndpointIndependent {
                assert_eq!(resting, Err(Verdict::Refuse(Refusal::PortsExhausted)));
                lab.wait_secs(118);
                assert!(send(&mut lab, 2).is_err());
                lab.wait_secs(2);
                assert_eq!(send(&mut lab, 2), Ok(61_000));
            } else {
                assert_eq!(resting, Ok(61_000), "exception C, when nothing else is left");
            }
        }
    }
}

/// RFC 7857 section 3: when ports run out, one serves several destinations, and answers find their way.
#[test]
fn a_port_serves_several_destinations_when_none_is_left() {
    for family in FAMILIES {
        // Sixteen ports of which a container may have fifteen to itself.
        let mut lab = lab(61_000..=61_015, Filtering::default());
        let mut seen = HashSet::new();
        for port in 1..=15 {
            let sent = lab.outbound(&udp(&at(family, A, port), &at(family, S, 9), b"")).unwrap();
            assert!(seen.insert(sent.source_port()));
        }
        let sixteenth = udp(&at(family, A, 16), &at(family, S, 9), b"");
        assert_eq!(lab.outbound(&sixteenth).unwrap_err(), Verdict::Refuse(Refusal::PortsExhausted));
        let mut ends = Vec::new();
        for port in 16..=30 {
            let sent = lab.outbound(&udp(&at(family, A, port), &at(family, S2, 9), b"")).unwrap();
            assert!(seen.contains(&sent.source_port()), "shared");
            ends.push((sent.source_port(), port));
        }
        for (external, port) in ends {
            let back = lab.inbound(&udp(&at(family, S2, 9), &at(family, Ext, external), b"")).unwrap();
            assert_eq!(back.ends().1, at(family, A, port));
            let back = lab.inbound(&udp(&at(family, S, 9), &at(family, Ext, external), b"")).unwrap();
            assert_ne!(back.ends().1, at(family, A, port));
        }
    }
}

/// RFC 6888 REQ-4: one container cannot have all ports; what it leaves serves others, to the same destination too.
#[test]
fn a_flood_leaves_ports_for_others() {
    for family in FAMILIES {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let mut lab = lab(61_000..=65_535, Filtering::default());
            let packet = |host, port| match protocol {
                Protocol::Udp => udp(&at(family, host, port), &at(family, S, 9), b""),
                _ => tcp(&at(family, host, port), &at(family, S, 9), "S", 1, 0, b""),
            };
            let mut refused = 0;
            for port in 1..6000 {
                refused += u32::from(lab.outbound(&packet(A, port)).is_err());
            }
            assert_eq!(refused, 5999 - 4253);
            for port in 1..200 {
                lab.outbound(&packet(B, port)).unwrap();
            }
        }
    }
}

/// RFC 6888 REQ-4, REQ-5, REQ-11: limits per container; what exists stays.
#[test]
fn limits_refuse_new_connections_and_keep_old_ones() {
    let owner = OwnerLimits { connections: 10, new_per_second: 1000 };
    let config = Config { connections: 15, owner, ..Config::default() };
    let mut lab = Lab::new(config, NetworkConfig::default());
    let mut open = |host, port| lab.outbound(&udp(&at(F, host, port), &at(F, S, 9), b"")).map(|_| ());
    for port in 1..=10 {
        open(A, port).unwrap();
    }
    assert_eq!(open(A, 11), Err(Verdict::Refuse(Refusal::OwnerLimit)));
    for port in 1..=5 {
        open(B, port).unwrap();
    }
    assert_eq!(open(B, 6), Err(Verdict::Refuse(Refusal::TableFull)));
    for port in 1..=10 {
        open(A, port).unwrap();
    }
    // Room again as soon as something has expired, even if nobody has collected it.
    lab.now = lab.now + Duration::from_secs(125);
    lab.outbound(&udp(&at(F, B, 6), &at(F, S, 9), b"")).unwrap();
}

/// RFC 6888 REQ-4 C: new connections per second, and a burst of twice as many.
#[test]
fn new_connections_are_limited_by_rate() {
    let owner = OwnerLimits { connections: 1000, new_per_second: 10 };
    let mut lab = Lab::new(Config { owner, ..Config::default() }, NetworkConfig::default());
    let count = |lab: &mut Lab, ports: std::ops::Range<u16>| {
        ports.filter(|port| lab.outbound(&udp(&at(F, A, *port), &at(F, S, 9), b"")).is_ok()).count()
    };
    assert_eq!(count(&mut lab, 1..100), 20);
    assert_eq!(count(&mut lab, 1..21), 20, "existing ones are not limited");
    lab.wait_secs(1);
    assert_eq!(count(&mut lab, 100..200), 10);
    let limits = Some(OwnerLimits { connections: 1000, new_per_second: 1000 });
    lab.nat.set_owner_limits(lab.now, owner_of(address(F, A)), limits);
    lab.wait_secs(1);
    assert_eq!(count(&mut lab, 200..300), 100);
}

/// A dropped packet leaves no state (the decision is only a proposal until it is committed).
#[test]
fn what_is_not_committed_leaves_nothing() {
    let mut lab = Lab::default();
    let mut bytes = udp(&at(F, A, 1), &at(F, S, 9), b"");
    let before = bytes.clone();
    let mut packet = nat::Packet::parse(&mut bytes, nat::Checksum::Complete).unwrap();
    let from = common::party(packet.source());
    let verdict = lab.nat.outbound(lab.now, &mut packet, from, lab.external);
    assert!(matches!(verdict, Verdict::New(_)));
    assert_eq!(bytes, before);
    assert_eq!((lab.nat.connection_count(), lab.nat.mapping_count()), (0, 0));
    assert_eq!(lab.nat.poll_at(), None);
}

/// A decision is for the packet that it was about.
#[test]
fn a_decision_about_another_packet_is_stale() {
    let mut lab = Lab::default();
    let mut one = udp(&at(F, A, 1), &at(F, S, 9), b"");
    let mut two = udp(&at(F, A, 2), &at(F, S, 9), b"");
    let mut packet = nat::Packet::parse(&mut one, nat::Checksum::Complete).unwrap();
    let from = common::party(packet.source());
    let Verdict::New(pending) = lab.nat.outbound(lab.now, &mut packet, from, lab.external) else { panic!() };
    let mut other = nat::Packet::parse(&mut two, nat::Checksum::Complete).unwrap();
    assert_eq!(lab.nat.commit(lab.now, &mut other, pending), Verdict::Refuse(Refusal::Stale));
    // Twice the same is one connection.
    assert!(matches!(lab.nat.commit(lab.now, &mut packet, pending), Verdict::Forward(_)));
    assert_eq!(lab.nat.connection_count(), 1);
}

/// The host's own ports are never leased.
#[test]
fn blocked_and_published_ports_are_not_leased() {
    for family in FAMILIES {
        let mut lab = lab(61_000..=61_003, Filtering::default());
        lab.nat.block_port(Protocol::Udp, 61_000);
        let rule = lab.publish(family, Protocol::Udp, 61_001, 0, 80);
        let send = |lab: &mut Lab, port| {
            lab.outbound(&udp(&at(family, A, port), &at(family, S, 9), b"")).map(|sent| sent.source_port())
        };
        let leased: HashSet<_> = [send(&mut lab, 1).unwrap(), send(&mut lab, 2).unwrap()].into();
        assert_eq!(leased, [61_002, 61_003].into());
        assert!(send(&mut lab, 3).is_err());
        lab.nat.unblock_port(Protocol::Udp, 61_000);
        assert_eq!(send(&mut lab, 3), Ok(61_000));
        lab.nat.unpublish(lab.now, rule).unwrap();
        assert_eq!(send(&mut lab, 4), Ok(61_001));
    }
}

/// Four thousand TCP connections of one container, held at once through one address, each with a port of its own.
#[test]
fn four_thousand_connections_share_an_address() {
    let mut lab = lab(61_000..=65_535, Filtering::default());
    let ports: HashSet<_> = (1..=4000)
        .map(|port| {
            let syn = tcp(&at(F, A, port), &at(F, S, 9), "S", 1, 0, b"");
            lab.outbound(&syn).unwrap().source_port()
        })
        .collect();
    assert_eq!(ports.len(), 4000);
    assert_eq!(lab.nat.connections(lab.now, Filter::default()).count(), 4000);
}

/// Without an external address of the family nothing leaves (RFC 5508 REQ-8 is the caller's answer).
#[test]
fn without_an_external_address_nothing_leaves() {
    let mut lab = Lab::default();
    lab.external.v6 = None;
    lab.outbound(&udp(&at(Family::V4, A, 1), &at(Family::V4, S, 9), b"")).unwrap();
    let verdict = lab.outbound(&udp(&at(Family::V6, A, 1), &at(Family::V6, S, 9), b"")).unwrap_err();
    assert_eq!(verdict, Verdict::Refuse(Refusal::NoExternalAddress));
    assert_eq!(lab.now, Time::from_secs(1000));
}
