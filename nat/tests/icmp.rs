//! ICMP errors in all directions (RFC 5508).
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod common;

use common::Host::{A, B, Ext, Router, S};
use common::packets::{echo_request, port_unreachable, tcp, udp};
use common::{FAMILIES, Family, Lab, Sent, at, ip};
use nat::{Checksum, DropReason, Packet, Protocol, Verdict};

/// The quoted packet's ends, as text.
fn quoted(family: Family, sent: &Sent) -> (String, String) {
    let header = if family == Family::V4 { 28 } else { 48 };
    let mut quote = sent.bytes[header..].to_vec();
    let len = quote.len();
    // The quote is whole in these tests.
    let packet = Packet::parse(&mut quote[..len], Checksum::Complete).unwrap();
    common::packets::assert_checksums(packet.bytes());
    let tuple = packet.tuple(common::NETWORK).unwrap();
    (tuple.source.to_string(), tuple.destination.to_string())
}

/// REQ-4: outer destination and quoted packet are reverted, type, code and outer source stay, all checksums verify.
#[test]
fn errors_from_outside_reach_the_sender_as_it_sent() {
    for family in FAMILIES {
        for original in [
            udp(&at(family, A, 40000), &at(family, S, 53), b"question"),
            tcp(&at(family, A, 40000), &at(family, S, 53), "S", 1, 0, b""),
        ] {
            let mut lab = Lab::default();
            let sent = lab.outbound(&original).unwrap();
            let error = port_unreachable(&ip(family, Router), &ip(family, Ext), &sent.bytes);
            let back = lab.inbound(&error).unwrap();
            assert_eq!(back.ends(), (ip(family, Router), ip(family, A)));
            assert_eq!(quoted(family, &back), (at(family, A, 40000), at(family, S, 53)));
            let (header, quote) = if family == Family::V4 { (20, 28) } else { (40, 48) };
            assert_eq!(back.bytes[quote..], original, "the quote is what was sent, bit for bit");
            assert_eq!(back.bytes[header..header + 2], error[header..header + 2], "type and code");
            assert_eq!(back.forward.to.owner, common::owner_of(common::address(family, A)));
        }
    }
}

/// REQ-4 for queries, whose identifier is in the quote.
#[test]
fn errors_about_queries_are_reverted() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let ping = echo_request(&ip(family, A), &ip(family, S), 77, 1);
        let sent = lab.outbound(&ping).unwrap();
        let back =
            lab.inbound(&port_unreachable(&ip(family, Router), &ip(family, Ext), &sent.bytes)).unwrap();
        assert_eq!(quoted(family, &back).0, at(family, A, 77));
    }
}

/// REQ-5: an error from inside leaves with the external source, and quotes what the outside had sent.
#[test]
fn errors_from_inside_leave_with_the_external_source() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        lab.publish(family, Protocol::Udp, 5000, 0, 80);
        let question = udp(&at(family, S, 9), &at(family, Ext, 5000), b"x");
        let arrived = lab.inbound(&question).unwrap();
        assert_eq!(arrived.ends().1, at(family, B, 80));
        // From the container itself, and from something behind it (REQ-5c).
        for source in [B, A] {
            let error = port_unreachable(&ip(family, source), &ip(family, S), &arrived.bytes);
            let (now, external) = (lab.now, lab.external);
            let container = common::party(common::address(family, B));
            let left =
                lab.pass(&error, |nat, packet| nat.outbound(now, packet, container, external)).unwrap();
            assert_eq!(left.ends(), (ip(family, Ext), ip(family, S)));
            assert_eq!(quoted(family, &left), (at(family, S, 9), at(family, Ext, 5000)));
        }
    }
}

/// One container cannot end or slow down another's connection.
#[test]
fn a_container_speaks_for_its_own_connections_only() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        lab.publish(family, Protocol::Udp, 5000, 0, 80);
        let arrived = lab.inbound(&udp(&at(family, S, 9), &at(family, Ext, 5000), b"x")).unwrap();
        let forged = port_unreachable(&ip(family, A), &ip(family, S), &arrived.bytes);
        assert_eq!(lab.outbound(&forged).unwrap_err(), Verdict::Drop(DropReason::IcmpUnrelated));
    }
}

/// REQ-7a: an error by way of the hairpin names only external endpoints.
#[test]
fn hairpinned_errors_show_no_inside_address() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        lab.publish(family, Protocol::Udp, 5000, 0, 80);
        let arrived = lab.hairpin(&udp(&at(family, A, 40000), &at(family, Ext, 5000), b"x")).unwrap();
        let error = port_unreachable(&ip(family, B), &ip(family, Ext), &arrived.bytes);
        let back = lab.hairpin(&error).unwrap();
        assert_eq!(back.ends(), (ip(family, Ext), ip(family, A)));
        assert_eq!(quoted(family, &back), (at(family, A, 40000), at(family, Ext, 5000)));
    }
}

/// REQ-4, REQ-5: without a mapping there is nothing to translate. REQ-6: and none is made.
#[test]
fn errors_about_nothing_make_nothing() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let stray = udp(&at(family, Ext, 61000), &at(family, S, 53), b"x");
        let error = port_unreachable(&ip(family, Router), &ip(family, Ext), &stray);
        assert_eq!(lab.inbound(&error).unwrap_err(), Verdict::NotOurs);
        let stray = udp(&at(family, S, 9), &at(family, A, 80), b"x");
        let error = port_unreachable(&ip(family, A), &ip(family, S), &stray);
        assert_eq!(lab.outbound(&error).unwrap_err(), Verdict::Drop(DropReason::IcmpUnrelated));
        assert_eq!(lab.nat.connection_count(), 0);
    }
}

/// REQ-3: a wrong ICMP checksum, and (a) a wrong checksum of the quoted IP header, are reasons to drop; (c) a wrong
/// checksum of the quoted transport header is not.
#[test]
fn damaged_errors_are_dropped() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let sent = lab.outbound(&udp(&at(family, A, 40000), &at(family, S, 53), b"question")).unwrap();
        let error = |quote: &[u8]| port_unreachable(&ip(family, Router), &ip(family, Ext), quote);
        let mut damaged = error(&sent.bytes);
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(lab.inbound(&damaged).unwrap_err(), Verdict::Drop(DropReason::IcmpChecksum));
        if family == Family::V4 {
            let mut quote = sent.bytes.clone();
            quote[10] ^= 1;
            assert_eq!(lab.inbound(&error(&quote)).unwrap_err(), Verdict::Drop(DropReason::IcmpQuote));
        }
        let mut quote = sent.bytes.clone();
        *quote.last_mut().unwrap() ^= 1;
        assert!(lab.inbound(&error(&quote)).is_ok());
    }
}

/// REQ-3b: options of the quoted header are skipped; REQ-3d: ICMP extensions are not taken for the quote.
#[test]
fn quoted_options_and_extensions_are_no_obstacle() {
    let family = Family::V4;
    let mut lab = Lab::default();
    let plain = udp(&at(family, A, 40000), &at(family, S, 53), b"question");
    let mut optioned = plain[..20].to_vec();
    optioned[0] = 0x46;
    optioned[3] += 4;
    optioned.extend([1, 1, 1, 0]);
    optioned.extend(&plain[20..]);
    optioned[10..12].fill(0);
    let sum = !nat::checksum::sum(&optioned[..24]);
    optioned[10..12].copy_from_slice(&sum.to_be_bytes());
    let sent = lab.outbound(&optioned).unwrap();

    let mut quote = sent.bytes.clone();
    quote.resize(128, 0);
    quote.extend([0x20, 0, 0, 0, 0, 8, 1, 1, 0, 0, 0, 1]);
    let mut error = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 60, 1, 0, 0, 203, 0, 113, 9, 192, 0, 2, 1];
    error.extend([11, 0, 0, 0, 0, 32, 0, 0]);
    error.extend(&quote);
    let len = u16::try_from(error.len()).unwrap();
    error[2..4].copy_from_slice(&len.to_be_bytes());
    let sum = !nat::checksum::sum(&error[..20]);
    error[10..12].copy_from_slice(&sum.to_be_bytes());
    let sum = !nat::checksum::sum(&error[20..]);
    error[22..24].copy_from_slice(&sum.to_be_bytes());
    let back = lab.inbound(&error).unwrap();
    assert_eq!(back.bytes[28..28 + optioned.len()], optioned);
    assert_eq!(back.bytes[28 + optioned.len()..], quote[optioned.len()..], "what follows is untouched");
}

/// A short quote is enough, as long as it names the flow.
#[test]
fn eight_bytes_of_transport_are_enough() {
    for family in FAMILIES {
        let mut lab = Lab::default();
        let original = tcp(&at(family, A, 40000), &at(family, S, 53), "S", 1, 0, b"");
        let sent = lab.outbound(&original).unwrap();
        let header = if family == Family::V4 { 20 } else { 40 };
        let short = &sent.bytes[..header + 8];
        let back = lab.inbound(&port_unreachable(&ip(family, Router), &ip(family, Ext), short)).unwrap();
        assert_eq!(back.bytes[header + 8..], original[..header + 8]);
        let shorter = &sent.bytes[..header + 3];
        let error = port_unreachable(&ip(family, Router), &ip(family, Ext), shorter);
        assert_eq!(lab.inbound(&error).unwrap_err(), Verdict::Drop(DropReason::IcmpQuote));
    }
}

/// REQ-10, REQ-11: other ICMP messages do not pass.
#[test]
fn other_messages_stay_inside() {
    let mut lab = Lab::default();
    let mut redirect = port_unreachable(&ip(Family::V4, A), &ip(Family::V4, S), b"0123456789abcdef");
    redirect[20] = 5;
    assert_eq!(lab.outbound(&redirect).unwrap_err(), Verdict::Drop(DropReason::Unsupported));
}
