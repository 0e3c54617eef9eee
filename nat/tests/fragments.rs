//! Fragments in any order (RFC 4787 REQ-14; RFC 5780 section 3.5).
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod common;

use common::Host::{A, B, Ext, S};
use common::packets::{assert_checksums, echo_request, fragments, reassemble, udp};
use common::{FAMILIES, Lab, at, ip};
use nat::{DropReason, Protocol, Verdict};

const PAYLOAD: [u8; 100] = [7; 100];

#[test]
fn fragments_in_order_are_translated_alike() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let whole = udp(&at(family, A, 40000), &at(family, S, 9), &PAYLOAD);
        let sent: Vec<_> =
            fragments(&whole, 5, 32).iter().map(|part| lab.outbound(part).unwrap().bytes).collect();
        assert_eq!(sent.len(), 4);
        assert_checksums(&reassemble(&sent));
        let port = u16::from_be_bytes(
            reassemble(&sent)[if sent[0][0] >> 4 == 4 { 20..22 } else { 40..42 }].try_into().unwrap(),
        );
        let answer = udp(&at(family, S, 9), &at(family, Ext, port), &PAYLOAD);
        let back: Vec<_> =
            fragments(&answer, 6, 48).iter().map(|part| lab.inbound(part).unwrap().bytes).collect();
        assert_eq!(reassemble(&back), udp(&at(family, S, 9), &at(family, A, 40000), &PAYLOAD));
    }
}

#[test]
fn fragments_in_any_order_come_out_after_the_first() {
    for family in FAMILIES {
        let whole = udp(&at(family, A, 40000), &at(family, S, 9), &PAYLOAD);
        let parts = fragments(&whole, 5, 32);
        for order in [[3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1], [0, 3, 1, 2], [1, 2, 3, 0]] {
            let mut lab = Lab::default();
            let mut sent = Vec::new();
            let mut first_seen = false;
            for n in order {
                first_seen |= n == 0;
                match lab.outbound(&parts[n]) {
                    Ok(forwarded) => {
                        assert!(first_seen);
                        sent.push((n, forwarded.bytes));
                    }
                    Err(verdict) => assert_eq!((verdict, first_seen), (Verdict::Held, false)),
                }
                sent.extend(lab.released().into_iter().map(|released| {
                    assert!(first_seen);
                    (offset_place(&released.bytes), released.bytes)
                }));
            }
            assert_eq!(sent.len(), 4);
            assert_eq!(sent[0].0, 0, "the first goes first");
            sent.sort();
            let bytes: Vec<_> = sent.into_iter().map(|(_, bytes)| bytes).collect();
            assert_checksums(&reassemble(&bytes));
        }
    }
}

/// Which of four fragments of 32 bytes this is.
fn offset_place(bytes: &[u8]) -> usize {
    let field = if bytes[0] >> 4 == 4 {
        u16::from_be_bytes([bytes[6], bytes[7]]) << 3
    } else {
        u16::from_be_bytes([bytes[42], bytes[43]]) & 0xfff8
    };
    usize::from(field) / 32
}

#[test]
fn duplicates_and_overlaps_pass() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let whole = udp(&at(family, A, 40000), &at(family, S, 9), &PAYLOAD);
        let parts = fragments(&whole, 5, 32);
        let overlapping = fragments(&whole, 5, 24);
        for part in [&parts[0], &parts[0], &parts[1], &parts[1], &overlapping[1], &overlapping[0]] {
            lab.outbound(part).unwrap();
        }
        assert_eq!(lab.nat.connection_count(), 1);
    }
}

#[test]
fn a_first_fragment_of_another_flow_is_dropped() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let one = fragments(&udp(&at(family, A, 40000), &at(family, S, 9), &PAYLOAD), 5, 32);
        let two = fragments(&udp(&at(family, A, 40001), &at(family, S, 9), &PAYLOAD), 5, 32);
        lab.outbound(&one[0]).unwrap();
        assert_eq!(lab.outbound(&two[0]).unwrap_err(), Verdict::Drop(DropReason::FragmentMismatch));
        assert_eq!((lab.nat.connection_count(), lab.nat.mapping_count()), (1, 1), "and leaves nothing");
    }
}

#[test]
fn the_hosts_fragments_stay_the_hosts() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let parts = fragments(&udp(&at(family, S, 9), &at(family, Ext, 22), &PAYLOAD), 5, 32);
        assert_eq!(lab.inbound(&parts[0]).unwrap_err(), Verdict::NotOurs);
        // Whose this is nothing says; the host has its own copy.
        assert_eq!(lab.inbound(&parts[1]).unwrap_err(), Verdict::Held);
        assert!(lab.released().is_empty());
    }
}

#[test]
fn large_pings_and_published_datagrams_pass() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let ping = echo_request(&ip(family, A), &ip(family, S), 77, 1);
        let sent: Vec<_> =
            fragments(&ping, 5, 16).iter().map(|part| lab.outbound(part).unwrap().bytes).collect();
        assert_checksums(&reassemble(&sent));

        lab.publish(family, Protocol::Udp, 5000, 0, 80);
        let parts = fragments(&udp(&at(family, S, 9), &at(family, Ext, 5000), &PAYLOAD), 8, 64);
        assert_eq!(lab.inbound(&parts[1]).unwrap_err(), Verdict::Held);
        let first = lab.inbound(&parts[0]).unwrap();
        let rest = lab.released();
        assert_eq!(rest[0].forward, first.forward);
        let whole = reassemble(&[first.bytes, rest[0].bytes.clone()]);
        assert_eq!(whole, udp(&at(family, S, 9), &at(family, B, 80), &PAYLOAD));
    }
}

#[test]
fn fragments_through_the_hairpin() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        lab.publish(family, Protocol::Udp, 5000, 0, 80);
        let parts = fragments(&udp(&at(family, A, 40000), &at(family, Ext, 5000), &PAYLOAD), 8, 64);
        let sent: Vec<_> = parts.iter().map(|part| lab.hairpin(part).unwrap().bytes).collect();
        assert_checksums(&reassemble(&sent));
    }
}

/// RFC 4787 REQ-14a: who floods with fragments takes nothing from others.
#[test]
fn a_flood_of_fragments_hurts_only_its_source() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let whole = udp(&at(family, A, 40000), &at(family, S, 9), &[0; 1400]);
        let mut dropped = 0;
        for id in 0..5000 {
            let parts = fragments(&whole, id, 704);
            match lab.outbound(&parts[1]).unwrap_err() {
                Verdict::Held => {}
                verdict => {
                    assert_eq!(verdict, Verdict::Drop(DropReason::FragmentLimit));
                    dropped += 1;
                }
            }
        }
        assert!(dropped > 4000);
        let other = fragments(&udp(&at(family, B, 1), &at(family, S, 9), &PAYLOAD), 1, 32);
        assert_eq!(lab.outbound(&other[1]).unwrap_err(), Verdict::Held);
        lab.wait_secs(2);
        let parts = fragments(&whole, 1, 704);
        assert_eq!(lab.outbound(&parts[1]).unwrap_err(), Verdict::Held, "after two seconds there is room");
    }
}

#[test]
fn a_later_fragment_of_an_ended_connection_is_dropped() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let parts = fragments(&udp(&at(family, A, 40000), &at(family, S, 9), &PAYLOAD), 5, 32);
        lab.outbound(&parts[0]).unwrap();
        lab.nat.remove_owner(lab.now, common::owner_of(common::address(family, A)));
        assert_eq!(lab.outbound(&parts[1]).unwrap_err(), Verdict::Drop(DropReason::NoConnection));
    }
}
