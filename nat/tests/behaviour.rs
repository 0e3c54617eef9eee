//! Mapping, filtering and hairpinning as RFC 5780 discovers them, for every combination of both settings.
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod common;

use common::Host::{A, B, Ext, S, S2};
use common::packets::{assert_checksums, echo_reply, echo_request, fragments, reassemble, tcp, udp};
use common::{FAMILIES, Family, Lab, NETWORK, Outcome, at, ip};
use nat::{
    Config, DropReason, Filtering, Mapping, NetworkConfig, NetworkId, OwnerId, Party, Protocol, Verdict,
};

const MAPPINGS: [Mapping; 2] = [Mapping::EndpointIndependent, Mapping::AddressAndPortDependent];
const FILTERINGS: [Filtering; 3] =
    [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];

fn lab(mapping: Mapping, filtering: Filtering) -> Lab {
    Lab::new(Config::default(), NetworkConfig { mapping, filtering, ..NetworkConfig::default() })
}

fn for_all(test: impl Fn(Family, Mapping, Filtering, &mut Lab)) {
    for family in FAMILIES {
        for mapping in MAPPINGS {
            for filtering in FILTERINGS {
                test(family, mapping, filtering, &mut lab(mapping, filtering));
            }
        }
    }
}

/// The external port that a datagram of A's port 40000 to `destination` gets.
fn udp_port(lab: &mut Lab, family: Family, destination: &str) -> u16 {
    lab.outbound(&udp(&at(family, A, 40000), destination, b"binding")).unwrap().source_port()
}

/// RFC 5780 section 4.3, tests I to III; RFC 4787 REQ-1.
#[test]
fn udp_mapping_is_as_set() {
    for_all(|family, mapping, _, lab| {
        let ports = [at(family, S, 3478), at(family, S2, 3478), at(family, S2, 3479)]
            .map(|server| udp_port(lab, family, &server));
        match mapping {
            Mapping::EndpointIndependent => assert_eq!(ports, [ports[0]; 3]),
            Mapping::AddressAndPortDependent => {
                assert!(ports[0] != ports[1] && ports[1] != ports[2] && ports[0] != ports[2]);
            }
        }
        // The same question again comes from the same place.
        assert_eq!(udp_port(lab, family, &at(family, S, 3478)), ports[0]);
    });
}

/// RFC 5382 REQ-1, REQ-7.
#[test]
fn tcp_mapping_is_as_set() {
    for_all(|family, mapping, _, lab| {
        let mut port = |server: &str| {
            let syn = tcp(&at(family, A, 40000), server, "S", 1, 0, b"");
            lab.outbound(&syn).unwrap().source_port()
        };
        let ports = [port(&at(family, S, 80)), port(&at(family, S2, 80)), port(&at(family, S2, 81))];
        assert_eq!(mapping == Mapping::EndpointIndependent, ports == [ports[0]; 3]);
        assert_eq!(mapping == Mapping::AddressAndPortDependent, ports[0] != ports[1] && ports[1] != ports[2]);
    });
}

/// RFC 5508 REQ-1, REQ-1a: a query identifier keeps its mapping, whatever the destination.
#[test]
fn icmp_query_mapping_is_as_set() {
    for_all(|family, mapping, _, lab| {
        let mut id = |server| {
            let ping = echo_request(&ip(family, A), &ip(family, server), 77, 1);
            lab.outbound(&ping).unwrap().source_port()
        };
        let ids = [id(S), id(S2)];
        assert_eq!(mapping == Mapping::EndpointIndependent, ids[0] == ids[1]);
        let reply = echo_reply(&ip(family, S), &ip(family, Ext), ids[0], 1);
        let back = lab.inbound(&reply).unwrap();
        assert_eq!(back.ends().1, at(family, A, 77));
        // From a host that was not asked there is nothing to answer.
        let stranger = echo_reply(&ip(family, B), &ip(family, Ext), ids[0], 1);
        assert!(lab.inbound(&stranger).is_err());
    });
}

/// RFC 5780 section 4.4, tests I to III; RFC 4787 REQ-8, RFC 5382 REQ-3, RFC 6888 REQ-7.
#[test]
fn udp_filtering_is_as_set() {
    for_all(|family, _, filtering, lab| {
        let external = at(family, Ext, udp_port(lab, family, &at(family, S, 3478)));
        let same = lab.inbound(&udp(&at(family, S, 3478), &external, b"I")).unwrap();
        assert_eq!(same.ends(), (at(family, S, 3478), at(family, A, 40000)));
        let address_and_port = lab.inbound(&udp(&at(family, S2, 3479), &external, b"II"));
        let port = lab.inbound(&udp(&at(family, S, 3479), &external, b"III"));
        let passed = |outcome: &Outcome, source: String| match outcome {
            Ok(sent) => {
                assert_eq!(sent.ends(), (source, at(family, A, 40000)));
                true
            }
            Err(verdict) => {
                assert_eq!(*verdict, Verdict::Drop(DropReason::Filtered));
                false
            }
        };
        let found = (passed(&address_and_port, at(family, S2, 3479)), passed(&port, at(family, S, 3479)));
        let expected = match filtering {
            Filtering::EndpointIndependent => (true, true),
            Filtering::AddressDependent => (false, true),
            Filtering::AddressAndPortDependent => (false, false),
        };
        assert_eq!(found, expected);
    });
}

/// RFC 5382 REQ-3, REQ-4: an unsolicited SYN passes the filter or is dropped in silence.
#[test]
fn tcp_filtering_is_as_set() {
    for_all(|family, _, filtering, lab| {
        let syn = tcp(&at(family, A, 40000), &at(family, S, 80), "S", 1, 0, b"");
        let external = at(family, Ext, lab.outbound(&syn).unwrap().source_port());
        let stranger = lab.inbound(&tcp(&at(family, S2, 9), &external, "S", 5, 0, b""));
        let neighbour = lab.inbound(&tcp(&at(family, S, 9), &external, "S", 5, 0, b""));
        let expected = match filtering {
            Filtering::EndpointIndependent => (true, true),
            Filtering::AddressDependent => (false, true),
            Filtering::AddressAndPortDependent => (false, false),
        };
        assert_eq!((stranger.is_ok(), neighbour.is_ok()), expected);
    });
}

/// What came in by an open filter is answered from the same external endpoint.
#[test]
fn answers_to_what_the_filter_let_in_come_from_the_mapping() {
    for_all(|family, _, filtering, lab| {
        if filtering != Filtering::EndpointIndependent {
            return;
        }
        let external = at(family, Ext, udp_port(lab, family, &at(family, S, 3478)));
        lab.inbound(&udp(&at(family, S2, 9), &external, b"hello")).unwrap();
        let answer = lab.outbound(&udp(&at(family, A, 40000), &at(family, S2, 9), b"hello")).unwrap();
        assert_eq!(answer.ends(), (external, at(family, S2, 9)));
    });
}

/// RFC 5780 section 4.3 with hairpinning, RFC 4787 REQ-9 and 9a, RFC 5382 REQ-8: the source is the external endpoint.
#[test]
fn udp_hairpins_with_the_external_source() {
    for_all(|family, mapping, _, lab| {
        let a = at(family, Ext, udp_port(lab, family, &at(family, S, 3478)));
        let b = lab.outbound(&udp(&at(family, B, 50000), &at(family, S, 3478), b"")).unwrap();
        let b = at(family, Ext, b.source_port());
        let sent = lab.hairpin(&udp(&at(family, A, 40000), &b, b"hello")).unwrap();
        let (source, destination) = sent.ends();
        assert_eq!(destination, at(family, B, 50000));
        assert!(source.starts_with(at(family, Ext, 0).trim_end_matches('0')));
        assert_eq!(mapping == Mapping::EndpointIndependent, source == a);
        let back = lab.hairpin(&udp(&at(family, B, 50000), &source, b"hi")).unwrap();
        assert_eq!(back.ends(), (b, at(family, A, 40000)));
    });
}

/// RFC 5780 section 3.4: a client finds out by sending to its own external endpoint.
#[test]
fn udp_hairpins_to_itself() {
    for_all(|family, mapping, _, lab| {
        let own = at(family, Ext, udp_port(lab, family, &at(family, S, 3478)));
        let sent = lab.hairpin(&udp(&at(family, A, 40000), &own, b"hello")).unwrap();
        assert_eq!(sent.ends().1, at(family, A, 40000));
        assert_eq!(mapping == Mapping::EndpointIndependent, sent.ends().0 == own);
        // From another port of its own it works like from another host.
        let sent = lab.hairpin(&udp(&at(family, A, 40001), &own, b"hello")).unwrap();
        assert_eq!(sent.ends().1, at(family, A, 40000));
        let back = lab.hairpin(&udp(&at(family, A, 40000), &sent.ends().0, b"hello")).unwrap();
        assert_eq!(back.ends(), (own, at(family, A, 40001)));
    });
}

/// RFC 5382 REQ-8: a whole handshake through the hairpin.
#[test]
fn tcp_hairpins_through_a_published_port() {
    for_all(|family, _, _, lab| {
        lab.publish(family, Protocol::Tcp, 5000, 0, 80);
        let published = at(family, Ext, 5000);
        for client in [A, B] {
            let client = at(family, client, 40000);
            let sent = lab.hairpin(&tcp(&client, &published, "S", 1, 0, b"")).unwrap();
            let (source, destination) = sent.ends();
            assert_eq!(destination, at(family, B, 80));
            let back = lab.hairpin(&tcp(&at(family, B, 80), &source, "SA", 9, 2, b"")).unwrap();
            assert_eq!(back.ends(), (published.clone(), client.clone()));
            lab.hairpin(&tcp(&client, &published, "A", 2, 10, b"hello")).unwrap();
        }
    });
}

/// RFC 5780 sections 4.6 and 3.5: lifetimes and fragments are the same whatever the mapping and the filtering.
#[test]
fn lifetimes_and_fragments_are_the_same_in_every_combination() {
    for_all(|family, _, _, lab| {
        let port = udp_port(lab, family, &at(family, S, 3478));
        let answer = udp(&at(family, S, 3478), &at(family, Ext, port), b"y");
        for wait in [119, 299] {
            lab.wait_secs(wait);
            assert_eq!(lab.inbound(&answer).unwrap().ends().1, at(family, A, 40000), "after {wait} s");
        }
        lab.wait_secs(300);
        assert!(lab.inbound(&answer).is_err());

        let whole = udp(&at(family, A, 40000), &at(family, S2, 3478), &[7; 100]);
        let [first, later @ ..] = &fragments(&whole, 5, 32)[..] else { panic!("no fragments") };
        for part in later.iter().rev() {
            assert_eq!(lab.outbound(part).unwrap_err(), Verdict::Held);
        }
        let mut sent = vec![lab.outbound(first).unwrap().bytes];
        sent.extend(lab.released().into_iter().rev().map(|part| part.bytes));
        let datagram = reassemble(&sent);
        assert_checksums(&datagram);
        let port = nat::Packet::parse(&mut datagram.clone(), nat::Checksum::Complete)
            .unwrap()
            .tuple(NETWORK)
            .unwrap()
            .source
            .port;
        assert_eq!(datagram, udp(&at(family, Ext, port), &at(family, S2, 3478), &[7; 100]));
        let answer = udp(&at(family, S2, 3478), &at(family, Ext, port), &[8; 100]);
        let back: Vec<_> =
            fragments(&answer, 6, 48).iter().map(|part| lab.inbound(part).unwrap().bytes).collect();
        assert_eq!(reassemble(&back), udp(&at(family, S2, 3478), &at(family, A, 40000), &[8; 100]));
    });
}

/// A packet to the host itself is the host's.
#[test]
fn what_is_neither_published_nor_mapped_is_the_hosts() {
    for_all(|family, _, _, lab| {
        assert_eq!(
            lab.hairpin(&udp(&at(family, A, 1), &at(family, Ext, 22), b"")).unwrap_err(),
            Verdict::NotOurs
        );
        assert_eq!(
            lab.inbound(&udp(&at(family, S, 1), &at(family, Ext, 22), b"")).unwrap_err(),
            Verdict::NotOurs
        );
        let ping = echo_request(&ip(family, S), &ip(family, Ext), 7, 1);
        assert_eq!(lab.inbound(&ping).unwrap_err(), Verdict::NotOurs);
        assert_eq!(lab.nat.connection_count(), 0);
    });
}

/// RFC 4787 REQ-7: inside addresses may overlap, in different networks.
#[test]
fn the_same_address_in_two_networks_is_two_hosts() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let (now, external) = (lab.now, lab.external);
        let packet = udp(&at(family, A, 40000), &at(family, S, 53), b"x");
        let first = lab.outbound(&packet).unwrap();
        let other = Party { network: NetworkId(2), owner: OwnerId(99) };
        let second = lab.pass(&packet, |nat, packet| nat.outbound(now, packet, other, external)).unwrap();
        assert_ne!(first.source_port(), second.source_port());
        let answer = |port| udp(&at(family, S, 53), &at(family, Ext, port), b"y");
        assert_eq!(lab.inbound(&answer(first.source_port())).unwrap().forward.to.network, NETWORK);
        assert_eq!(lab.inbound(&answer(second.source_port())).unwrap().forward.to, other);
    }
}

/// Tracked without translation: answers pass, and the caller can tell who began.
#[test]
fn routed_connections_are_tracked_untranslated() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let now = lab.now;
        let a = Party { network: NetworkId(1), owner: OwnerId(1) };
        let b = Party { network: NetworkId(2), owner: OwnerId(2) };
        let sent = lab
            .pass(&udp(&at(family, A, 1), &at(family, S, 2), b"x"), |nat, packet| {
                nat.routed(now, packet, a, b)
            })
            .unwrap();
        assert_eq!(sent.ends(), (at(family, A, 1), at(family, S, 2)));
        let back = udp(&at(family, S, 2), &at(family, A, 1), b"y");
        let back = lab.pass(&back, |nat, packet| nat.routed(now, packet, b, a)).unwrap();
        assert_eq!((back.forward.direction, back.forward.to), (nat::Direction::Reply, a));
    }
}

/// SCTP and unknown protocols go by their addresses, where that is unambiguous.
#[test]
fn other_protocols_go_by_address() {
    let mut lab = Lab::default();
    let packet = |source: [u8; 4], destination: [u8; 4]| {
        let mut bytes = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, 99, 0, 0];
        bytes.extend(source);
        bytes.extend(destination);
        bytes.extend([1, 2, 3, 4]);
        bytes
    };
    let (now, external) = (lab.now, lab.external);
    let pass = |lab: &mut Lab, source: [u8; 4]| {
        let mut bytes = packet(source, [198, 51, 100, 7]);
        let mut view = nat::Packet::parse(&mut bytes, nat::Checksum::Complete).unwrap();
        let from = common::party(view.source());
        match lab.nat.outbound(now, &mut view, from, external) {
            Verdict::New(pending) => lab.nat.commit(now, &mut view, pending),
            verdict => verdict,
        }
    };
    assert!(matches!(pass(&mut lab, [172, 18, 0, 10]), Verdict::Forward(_)));
    assert_eq!(pass(&mut lab, [172, 18, 0, 20]), Verdict::Drop(DropReason::Clash));
    let mut back = packet([198, 51, 100, 7], [192, 0, 2, 1]);
    let mut view = nat::Packet::parse(&mut back, nat::Checksum::Complete).unwrap();
    assert!(matches!(lab.nat.inbound(now, &mut view, |_, _| None), Verdict::Forward(_)));
    assert_eq!(view.destination(), common::address(Family::V4, A));
}
