//! Connections that are written down as they change, and brought back by another translator.
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod common;

use std::collections::BTreeMap;

use common::Host::{A, B, Ext, S, S2};
use common::packets::{echo_reply, echo_request, port_unreachable, tcp, udp};
use common::{FAMILIES, Family, Lab, NETWORK, address, at, ip};
use nat::{
    Config, Filter, Filtering, Mapping, NetworkConfig, Protocol, Record, Shared, State, Time, Unrestored,
};
use proptest::prelude::*;

/// Places and what was written there, as a caller keeps it.
type Notebook = BTreeMap<u32, Record>;

fn follow(lab: &mut Lab, notebook: &mut Notebook) {
    while let Some((place, record)) = lab.nat.next_change() {
        match record {
            Some(record) => _ = notebook.insert(place, record),
            None => _ = notebook.remove(&place),
        }
    }
}

fn written(lab: &mut Lab) -> Notebook {
    let mut notebook = Notebook::new();
    lab.nat.want_changes(true);
    follow(lab, &mut notebook);
    notebook
}

fn is_external(address: nat::Address) -> bool {
    [Family::V4, Family::V6].iter().any(|family| common::address(*family, Ext) == address)
}

fn restore(lab: &mut Lab, notebook: &Notebook) -> Vec<Result<(), Unrestored>> {
    let now = lab.now;
    notebook.values().map(|record| lab.nat.restore(now, record, is_external).map(drop)).collect()
}

/// Another translator with the same settings, and the connections of this one.
fn successor(lab: &mut Lab, network: NetworkConfig, set_up: impl Fn(&mut Lab)) -> Lab {
    let notebook = written(lab);
    let mut new = Lab::new(Config { seed: 99, ..Config::default() }, network);
    new.now = lab.now;
    set_up(&mut new);
    for (done, record) in restore(&mut new, &notebook).into_iter().zip(notebook.values()) {
        assert_eq!(done, Ok(()), "{record:?}");
    }
    assert_eq!(new.nat.connection_count(), lab.nat.connection_count());
    assert_eq!(new.nat.mapping_count(), lab.nat.mapping_count());
    new
}

#[test]
fn every_kind_of_connection_goes_on() {
    for family in FAMILIES {
        for mapping in [Mapping::EndpointIndependent, Mapping::AddressAndPortDependent] {
            for filtering in [
                Filtering::EndpointIndependent,
                Filtering::AddressDependent,
                Filtering::AddressAndPortDependent,
            ] {
                let config = NetworkConfig { mapping, filtering, ..NetworkConfig::default() };
                let mut lab = Lab::new(Config::default(), config);
                let set_up = |lab: &mut Lab| {
                    lab.publish(family, Protocol::Tcp, 5000, 9, 80);
                    lab.publish(family, Protocol::Udp, 5000, 9, 80);
                };
                set_up(&mut lab);
                let server = at(family, S, 443);
                // TCP out, in the middle of its handshake and after it.
                let half = lab.outbound(&tcp(&at(family, A, 1001), &server, "S", 7, 0, b"")).unwrap();
                let open = lab.outbound(&tcp(&at(family, A, 1002), &server, "S", 7, 0, b"")).unwrap();
                let answer = |port: u16| tcp(&server, &at(family, Ext, port), "SA", 90, 8, b"");
                lab.inbound(&answer(open.source_port())).unwrap();
                lab.outbound(&tcp(&at(family, A, 1002), &server, "A", 8, 91, b"")).unwrap();
                // UDP, ICMP, published and hairpinned.
                let talk = lab.outbound(&udp(&at(family, A, 1003), &at(family, S, 9), b"x")).unwrap();
                let ping = lab.outbound(&echo_request(&ip(family, A), &ip(family, S), 77, 1)).unwrap();
                lab.inbound(&udp(&at(family, S, 9), &at(family, Ext, 5003), b"x")).unwrap();
                lab.inbound(&tcp(&at(family, S, 9), &at(family, Ext, 5001), "S", 7, 0, b"")).unwrap();
                let pin = lab.hairpin(&udp(&at(family, A, 1004), &at(family, Ext, 5004), b"x")).unwrap();

                let mut new = successor(&mut lab, config, set_up);
                let sent = |outcome: common::Outcome| outcome.unwrap().ends();
                assert_eq!(
                    sent(new.inbound(&answer(half.source_port()))),
                    (server.clone(), at(family, A, 1001))
                );
                let data = tcp(&server, &at(family, Ext, open.source_port()), "A", 5000, 6000, b"later");
                assert_eq!(sent(new.inbound(&data)), (server.clone(), at(family, A, 1002)));
                let back = udp(&at(family, S, 9), &at(family, Ext, talk.source_port()), b"y");
                assert_eq!(sent(new.inbound(&back)), (at(family, S, 9), at(family, A, 1003)));
                let pong = echo_reply(&ip(family, S), &ip(family, Ext), ping.source_port(), 1);
                assert_eq!(sent(new.inbound(&pong)).1, at(family, A, 77));
                let reply = udp(&at(family, B, 83), &at(family, S, 9), b"y");
                assert_eq!(sent(new.outbound(&reply)), (at(family, Ext, 5003), at(family, S, 9)));
                let reply = tcp(&at(family, B, 81), &at(family, S, 9), "SA", 1, 8, b"");
                assert_eq!(sent(new.outbound(&reply)), (at(family, Ext, 5001), at(family, S, 9)));
                let reply = udp(&at(family, B, 84), &at(family, Ext, pin.source_port()), b"y");
                assert_eq!(sent(new.hairpin(&reply)), (at(family, Ext, 5004), at(family, A, 1004)));
                // An error about one of them finds its way, and the inside endpoint's next connection its mapping.
                let quoted = udp(&at(family, Ext, talk.source_port()), &at(family, S, 9), b"x");
                new.inbound(&port_unreachable(&ip(family, S), &ip(family, Ext), &quoted)).unwrap();
                let again = new.outbound(&udp(&at(family, A, 1003), &at(family, S2, 9), b"x")).unwrap();
                assert_eq!(
                    again.source_port() == talk.source_port(),
                    mapping == Mapping::EndpointIndependent
                );
                let stranger = udp(&at(family, S, 10), &at(family, Ext, talk.source_port()), b"z");
                assert_eq!(
                    new.inbound(&stranger).is_ok(),
                    filtering != Filtering::AddressAndPortDependent,
                    "{filtering:?}"
                );
                // What was published is counted, and ends with the rule.
                let counts: Vec<_> = new.nat.published().map(|(_, _, connections)| connections).collect();
                assert_eq!(counts.iter().sum::<u32>(), 3);
            }
        }
    }
}

#[test]
fn a_port_that_is_shared_and_one_let_in_come_back_in_any_order() {
    let config = NetworkConfig { filtering: Filtering::EndpointIndependent, ..NetworkConfig::default() };
    let pool = Config { ports: 61_000..=61_001, ..Config::default() };
    let mut lab = Lab::new(pool.clone(), config);
    let out = |lab: &mut Lab, host, port| {
        let packet = udp(&at(Family::V4, host, port), &at(Family::V4, S, port), b"x");
        lab.outbound(&packet).unwrap().source_port()
    };
    let ports: Vec<_> = (1..=6).map(|port| out(&mut lab, A, port)).collect();
    let guest = udp(&at(Family::V4, S2, 9), &at(Family::V4, Ext, ports[0]), b"x");
    lab.inbound(&guest).unwrap();
    let notebook = written(&mut lab);
    assert!(notebook.values().any(|r| r.shared == Shared::Overloaded));
    for backwards in [false, true] {
        let mut new = Lab::new(pool.clone(), config);
        let records: Vec<_> = match backwards {
            false => notebook.values().collect(),
            true => notebook.values().rev().collect(),
        };
        for record in records {
            new.nat.restore(new.now, record, is_external).unwrap();
        }
        for (port, external) in (1..=6).zip(&ports) {
            assert_eq!(out(&mut new, A, port), *external, "backwards: {backwards}");
        }
        // All of it is given back in the end.
        new.nat.end_all(new.now, Filter::default());
        new.wait_secs(1);
        assert_eq!((new.nat.connection_count(), new.nat.mapping_count()), (0, 0));
        // The ports rest.
        new.wait_secs(200);
        assert_eq!(new.nat.owner_connections(common::owner_of(address(Family::V4, A))), 0);
        let fresh: Vec<_> = (11..=12).map(|port| out(&mut new, A, port)).collect();
        assert_ne!(fresh[0], fresh[1], "both ports are to be had again");
    }
}

#[test]
fn what_contradicts_is_refused() {
    let mut lab = Lab::default();
    let out = |lab: &mut Lab, port| {
        let packet = udp(&at(Family::V4, A, port), &at(Family::V4, S, 9), b"x");
        lab.outbound(&packet).unwrap().source_port()
    };
    out(&mut lab, 1001);
    out(&mut lab, 1002);
    lab.publish(Family::V4, Protocol::Udp, 5000, 0, 80);
    lab.inbound(&udp(&at(Family::V4, S, 9), &at(Family::V4, Ext, 5000), b"x")).unwrap();
    let notebook = written(&mut lab);
    let ports: Vec<_> = notebook.values().copied().collect();
    let [one, two, published] = ports[..] else { panic!("{ports:?}") };
    let fresh = || {
        let mut new = Lab::default();
        new.publish(Family::V4, Protocol::Udp, 5000, 0, 80);
        new
    };
    let mut new = fresh();
    let mut give = |record: &Record| new.nat.restore(new.now, record, is_external).map(drop);
    assert_eq!(give(&one), Ok(()));
    assert_eq!(give(&one), Err(Unrestored::Clash), "twice");
    // Two mappings with one external endpoint, towards another server.
    let mut usurper = two;
    usurper.tuples[1].destination = one.tuples[1].destination;
    usurper.tuples[0].destination.port = 10;
    usurper.tuples[1].source.port = 10;
    assert_eq!(give(&usurper), Err(Unrestored::Clash));
    // One endpoint with two mappings.
    let mut split = two;
    split.tuples[0].source = one.tuples[0].source;
    split.tuples[0].destination.port = 10;
    split.tuples[1].source.port = 10;
    assert_eq!(give(&split), Err(Unrestored::Clash));
    assert_eq!(give(&two), Ok(()));
    assert_eq!(give(&published), Ok(()));

    let refused = |change: &dyn Fn(&mut Record)| {
        let mut record = one;
        change(&mut record);
        fresh().nat.restore(Time::from_secs(1000), &record, is_external).map(drop)
    };
    let not_there = common::endpoint(Family::V4, S2, 61_000);
    assert_eq!(refused(&|r| r.tuples[1].destination = not_there), Err(Unrestored::External));
    assert_eq!(refused(&|r| r.tuples[1].destination.port = 5000), Err(Unrestored::Clash), "it is published");
    assert_eq!(refused(&|r| r.tuples[1].destination.port = 80), Err(Unrestored::Clash), "not of the pool");
    assert_eq!(refused(&|r| r.tuples[1].source = not_there), Err(Unrestored::Malformed));
    assert_eq!(refused(&|r| r.state = State::Established), Err(Unrestored::Malformed));
    assert_eq!(refused(&|r| r.created = Time::from_secs(5000)), Err(Unrestored::Malformed));
    assert_eq!(refused(&|r| r.owners[0] = nat::OwnerId::OUTSIDE), Err(Unrestored::Malformed));
    assert_eq!(refused(&|r| r.shared = Shared::Unleased), Err(Unrestored::Rule));
    assert_eq!(refused(&|r| r.ruled = true), Err(Unrestored::Rule));
    assert_eq!(refused(&|r| r.deadline = Time::from_secs(900)), Err(Unrestored::Expired));
    // What let it in leads elsewhere, or nowhere.
    let mut elsewhere = Lab::default();
    let now = elsewhere.now;
    assert_eq!(elsewhere.nat.restore(now, &published, is_external).map(drop), Err(Unrestored::Rule));
    elsewhere.publish(Family::V4, Protocol::Udp, 5000, 0, 81);
    assert_eq!(elsewhere.nat.restore(now, &published, is_external).map(drop), Err(Unrestored::Rule));
    let mut small = Lab::new(Config { connections: 1, ..Config::default() }, NetworkConfig::default());
    assert_eq!(small.nat.restore(now, &one, is_external).map(drop), Ok(()));
    assert_eq!(small.nat.restore(now, &two, is_external).map(drop), Err(Unrestored::Full));
}

#[test]
fn time_goes_on() {
    let mut lab = Lab::default();
    let packet = udp(&at(Family::V4, A, 1001), &at(Family::V4, S, 9), b"x");
    let port = lab.outbound(&packet).unwrap().source_port();
    lab.inbound(&udp(&at(Family::V4, S, 9), &at(Family::V4, Ext, port), b"y")).unwrap();
    let mut notebook = written(&mut lab);
    let opened = lab.now;
    // A packet that prolongs it a little is not worth a line; an eighth of its lifetime is.
    lab.wait_secs(30);
    lab.outbound(&packet).unwrap();
    assert_eq!(lab.nat.next_change(), None);
    lab.wait_secs(30);
    lab.outbound(&packet).unwrap();
    follow(&mut lab, &mut notebook);
    let record = *notebook.values().next().unwrap();
    assert_eq!((notebook.len(), record.deadline), (1, opened + std::time::Duration::from_secs(360)));

    let mut new = Lab::default();
    new.now = lab.now;
    assert_eq!(restore(&mut new, &notebook), [Ok(())]);
    let (_, connection) = new.nat.connections(new.now, Filter::default()).next().unwrap();
    assert_eq!(connection.created(), opened);
    assert_eq!(connection.counters(nat::Direction::Original).packets, 3);
    // 300 s, and not more than that for what may have gone unnoticed.
    new.wait_secs(299);
    assert_eq!(new.nat.connection_count(), 1);
    new.wait_secs(3);
    assert_eq!(new.nat.connection_count(), 0);
    // After that long, and what may have gone unnoticed, there is nothing to take up.
    new.wait_secs(60);
    assert_eq!(restore(&mut new, &notebook), [Err(Unrestored::Expired)]);
    // What ends is struck out.
    lab.nat.end_all(lab.now, Filter::default());
    lab.wait_secs(1);
    follow(&mut lab, &mut notebook);
    assert!(notebook.is_empty());
}

#[test]
fn a_closing_connection_closes_and_a_burst_costs_no_tokens() {
    let mut lab = Lab::default();
    let server = at(Family::V4, S, 443);
    let inside = at(Family::V4, A, 1001);
    let port = lab.outbound(&tcp(&inside, &server, "S", 7, 0, b"")).unwrap().source_port();
    let outside = at(Family::V4, Ext, port);
    lab.inbound(&tcp(&server, &outside, "SA", 90, 8, b"")).unwrap();
    lab.outbound(&tcp(&inside, &server, "A", 8, 91, b"")).unwrap();
    lab.outbound(&tcp(&inside, &server, "FA", 8, 91, b"")).unwrap();
    let config =
        Config { owner: nat::OwnerLimits { connections: 10, new_per_second: 1 }, ..Config::default() };
    let notebook = written(&mut lab);
    assert_eq!(notebook.values().next().unwrap().state, State::Closing);
    let mut new = Lab::new(config, NetworkConfig::default());
    assert_eq!(restore(&mut new, &notebook), [Ok(())]);
    new.inbound(&tcp(&server, &outside, "FA", 91, 9, b"")).unwrap();
    new.outbound(&tcp(&inside, &server, "A", 9, 92, b"")).unwrap();
    let state = new.nat.connections(new.now, Filter::default()).next().unwrap().1.state();
    assert_eq!(state, State::Closed);
    // Both of the bucket's tokens are there.
    for port in [2001, 2002] {
        new.outbound(&udp(&at(Family::V4, A, port), &server, b"x")).unwrap();
    }
    assert!(new.outbound(&udp(&at(Family::V4, A, 2003), &server, b"x")).is_err());
}

proptest! {
    /// Whatever a record says: it is refused, or there is a connection that can be listed, used up and ended, and nothing
    /// leaks.
    #[test]
    fn no_record_does_harm(
        changes in prop::collection::vec((0..14_usize, any::<u16>(), any::<bool>()), 0..6),
        count in 1..40_u16,
    ) {
        let mut lab = Lab::default();
        lab.publish(Family::V4, Protocol::Udp, 5000, 9, 80);
        for port in 0..count {
            let (inside, server) = (at(Family::V4, A, 1000 + port), at(Family::V4, S, 9));
            let _ = match port % 3 {
                0 => lab.outbound(&tcp(&inside, &server, "S", 7, 0, b"")),
                1 => lab.outbound(&udp(&inside, &server, b"x")),
                _ => lab.hairpin(&udp(&inside, &at(Family::V4, Ext, 5000 + port % 10), b"x")),
            };
        }
        let mut records: Vec<Record> = written(&mut lab).into_values().collect();
        for (what, value, other) in changes {
            let at = usize::from(value) % records.len();
            let record = &mut records[at];
            let tuple = usize::from(other);
            match what {
                0 => record.tuples[tuple].source.port = value,
                1 => record.tuples[tuple].destination.port = value,
                2 => record.tuples[tuple].protocol = Protocol::from(value.to_be_bytes()[0]),
                3 => record.tuples[tuple].network = nat::NetworkId(u32::from(value % 3)),
                4 => record.owners[tuple] = nat::OwnerId(u32::from(value % 3)),
                5 => record.tuples[tuple].source.address = address(Family::V6, S),
                6 => record.tuples[tuple] = record.tuples[1 - tuple],
                7 => record.ruled = other,
                8 => record.shared = [Shared::Unleased, Shared::Dependent, Shared::Overloaded][at % 3],
                9 => record.ends[tuple] = value.to_be_bytes(),
                10 => record.state = [State::Closed, State::Replied, State::Reset][at % 3],
                11 => record.deadline = Time::from_secs(u64::from(value)),
                12 => record.created = Time::from_secs(u64::from(value)),
                _ => { let copy = *record; records.push(copy); }
            }
        }
        let mut new = Lab::default();
        new.publish(Family::V4, Protocol::Udp, 5000, 9, 80);
        let taken = records.iter().filter(|r| new.nat.restore(new.now, r, is_external).is_ok()).count();
        prop_assert_eq!(new.nat.connection_count() as usize, taken);
        for port in 0..count {
            let _ = new.outbound(&udp(&at(Family::V4, A, 1000 + port), &at(Family::V4, S, 9), b"x"));
        }
        new.nat.end_all(new.now, Filter::default());
        new.wait_secs(100_000);
        prop_assert_eq!((new.nat.connection_count(), new.nat.mapping_count()), (0, 0));
        let left = new.nat.published().map(|(_, _, connections)| connections).sum::<u32>();
        prop_assert_eq!(left, 0);
        prop_assert_eq!(NETWORK, nat::NetworkId(1));
    }
}
