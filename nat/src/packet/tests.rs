use proptest::prelude::*;

use super::*;
use crate::testutil::{assert_checksums, echo_request, fragments, port_unreachable, tcp, udp};

/// A SYN of 172.18.0.10:40000 to 198.51.100.7:80 with MSS 1460 behind a NOP, so that its value is at an odd offset.
static SYN: [u8; 48] = [
    0x45, 0x00, 0x00, 0x30, 0x12, 0x34, 0x40, 0x00, 0x40, 0x06, 0x96, 0xa0, 0xac, 0x12, 0x00, 0x0a, 0xc6,
    0x33, 0x64, 0x07, 0x9c, 0x40, 0x00, 0x50, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x70, 0x02,
    0x03, 0xe8, 0x00, 0x00, 0x00, 0x00, 0x01, 0x02, 0x04, 0x05, 0xb4, 0x03, 0x03, 0x07,
];

fn syn() -> Vec<u8> {
    let mut bytes = SYN.to_vec();
    bytes[10..12].fill(0);
    let header = !checksum::sum(&bytes[..20]);
    bytes[10..12].copy_from_slice(&header.to_be_bytes());
    let mut packet = Packet::parse(&mut bytes, Checksum::Partial).unwrap();
    let sum = packet.pseudo_header_sum();
    set_word(packet.bytes, 36, sum);
    packet.complete_checksum();
    assert_checksums(&bytes);
    bytes
}

#[test]
fn reads_a_syn() {
    let mut bytes = syn();
    let packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
    let tuple = packet.tuple(NetworkId(7)).unwrap();
    assert_eq!(tuple.to_string(), "tcp 172.18.0.10:40000 > 198.51.100.7:80 in 7");
    let segment = packet.tcp().unwrap();
    assert_eq!((segment.flags, segment.sequence, segment.window), (tcp_flag::SYN, 1, 1000));
    assert_eq!((segment.window_scale, segment.payload), (Some(7), 0));
    assert_eq!(packet.fragment(), None);
}

#[test]
fn clamps_the_segment_size_at_an_odd_offset() {
    let mut bytes = syn();
    Packet::parse(&mut bytes, Checksum::Complete).unwrap().clamp_mss(1400);
    assert_eq!(bytes[43..45], 1400u16.to_be_bytes());
    assert_checksums(&bytes);
    let before = bytes.clone();
    Packet::parse(&mut bytes, Checksum::Complete).unwrap().clamp_mss(1410);
    assert_eq!(bytes, before, "never raised");
}

#[test]
fn counts_hops_down_to_one() {
    for mut bytes in [udp("10.0.0.1:1", "10.0.0.2:2", b"x"), udp("[fd00::1]:1", "[fd00::2]:2", b"x")] {
        let mut packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
        assert_eq!(packet.decrement_hop_limit(), Some(63));
        for left in (1..63).rev() {
            assert_eq!(packet.decrement_hop_limit(), Some(left));
        }
        assert_eq!(packet.decrement_hop_limit(), None);
        assert_eq!(packet.hop_limit(), 1);
        assert_checksums(&bytes);
    }
}

#[test]
fn leaves_padding_out_of_view() {
    let mut bytes = udp("10.0.0.1:1", "10.0.0.2:2", b"x");
    bytes.extend([0xee; 17]);
    assert_eq!(Packet::parse(&mut bytes, Checksum::Complete).unwrap().len(), 29);
}

#[test]
fn keeps_a_missing_udp_checksum_missing() {
    let mut bytes = udp("10.0.0.1:1", "10.0.0.2:2", b"x");
    bytes[26..28].fill(0);
    let mut packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
    packet.translate(Endpoint::new(packet.source(), 9), Endpoint::new(packet.destination(), 10));
    assert_eq!(bytes[26..28], [0, 0]);
}

#[test]
fn never_writes_zero_for_a_udp_checksum() {
    // Ports chosen so that the sum is zero, which must be sent as 0xffff (RFC 768).
    let mut bytes = udp("10.0.0.1:0", "10.0.0.2:2", b"");
    let checksum = word(&bytes, 26);
    let mut packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
    packet.translate(Endpoint::new(packet.source(), checksum), Endpoint::new(packet.destination(), 2));
    assert_eq!(bytes[26..28], [0xff, 0xff]);
    assert_checksums(&bytes);
}

#[test]
fn refuses_what_it_cannot_keep_right() {
    let parse = |bytes: &mut Vec<u8>| Packet::parse(bytes, Checksum::Complete).map(|_| ());
    let good = tcp("10.0.0.1:1", "10.0.0.2:2", "S", 0, 0, b"");
    let mut tiny = good.clone();
    tiny[6] = 0x20;
    tiny[3] = 36;
    assert_eq!(parse(&mut tiny), Err(ParseError::TinyFragment));
    let mut overwriting = good.clone();
    overwriting[7] = 1;
    assert_eq!(parse(&mut overwriting), Err(ParseError::TinyFragment));
    let mut truncated = good.clone();
    truncated.truncate(39);
    assert_eq!(parse(&mut truncated), Err(ParseError::Truncated));
    let mut short = good.clone();
    short[0] = 0x44;
    assert_eq!(parse(&mut short), Err(ParseError::Malformed));
    let mut routed = vec![0x46, 0, 0, 28, 0, 0, 0, 0, 64, 99, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 131, 7, 4, 0];
    routed.extend([0; 4]);
    assert_eq!(parse(&mut routed), Err(ParseError::SourceRoute));
    let mut mapped = udp("[::ffff:10.0.0.1]:1", "[fd00::2]:2", b"x");
    assert_eq!(parse(&mut mapped), Err(ParseError::Malformed));
    assert_eq!(parse(&mut Vec::new()), Err(ParseError::Malformed));
}

#[test]
fn walks_extension_headers() {
    let whole = udp("[fd00::1]:1000", "[fd00::2]:2000", b"payload");
    let mut bytes = whole[..40].to_vec();
    bytes[6] = 0;
    bytes[5] += 16;
    bytes.extend([60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0]);
    bytes.extend(&whole[40..]);
    let mut packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
    assert_eq!(packet.transport(), Transport::Udp);
    packet.translate(Endpoint::new(packet.source(), 7), Endpoint::new(packet.destination(), 8));
    assert_eq!(packet.tuple(NetworkId(1)).unwrap().source.port, 7);
}

#[test]
fn sees_fragments() {
    for packet in [udp("10.0.0.1:1", "10.0.0.2:2", &[7; 100]), udp("[fd00::1]:1", "[fd00::2]:2", &[7; 100])] {
        let mut parts = fragments(&packet, 0x99, 64);
        let first = Packet::parse(&mut parts[0], Checksum::Complete).unwrap();
        assert_eq!(first.fragment(), Some(Fragment { id: 0x99, offset: 0, more: true }));
        assert_eq!(first.transport(), Transport::Udp);
        let second = Packet::parse(&mut parts[1], Checksum::Complete).unwrap();
        assert_eq!(second.fragment(), Some(Fragment { id: 0x99, offset: 64, more: false }));
        assert_eq!(second.transport(), Transport::Later);
        assert_eq!(second.tuple(NetworkId(1)), None);
    }
}

#[test]
fn a_quote_stops_before_icmp_extensions() {
    let inner = udp("10.0.0.1:1", "10.0.0.2:2", &[7; 300]);
    let mut bytes = port_unreachable("10.0.0.9", "10.0.0.1", &inner);
    bytes[20 + 5] = 8; // 32 bytes of quote, the rest is said to be extensions
    let mut packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
    assert_eq!(packet.quote().unwrap().len(), 32);
}

#[test]
fn an_error_with_a_partial_checksum_stays_partial() {
    let inner = udp("[fd00::1]:1", "[fd00::2]:2", b"payload");
    let mut bytes = port_unreachable("fd00::2", "fd00::1", &inner);
    let mut packet = Packet::parse(&mut bytes, Checksum::Partial).unwrap();
    packet.make_partial();
    assert!(packet.icmp_checksum_holds());
    packet.quote().unwrap().translate(other_endpoint(false, 1, 9), other_endpoint(false, 2, 8));
    packet.translate_error(other_endpoint(false, 2, 0).address, other_endpoint(false, 1, 0).address);
    packet.renew_icmp_checksum();
    packet.complete_checksum();
    assert_checksums(&bytes);
    assert_checksums(&bytes[48..]);
}

fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let endpoints = prop_oneof![
        (any::<u8>(), any::<u16>(), any::<u8>(), any::<u16>())
            .prop_map(|(a, p, b, q)| (format!("10.0.0.{a}:{p}"), format!("192.0.2.{b}:{q}"))),
        (any::<u8>(), any::<u16>(), any::<u8>(), any::<u16>())
            .prop_map(|(a, p, b, q)| (format!("[fd00::{a:x}]:{p}"), format!("[2001:db8::{b:x}]:{q}"))),
    ];
    (endpoints, 0..3, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|((s, d), kind, payload)| {
        let address = |text: &str| crate::testutil::endpoint(text).ip().to_string();
        match kind {
            0 => tcp(&s, &d, "A", 1, 2, &payload),
            1 => udp(&s, &d, &payload),
            _ => echo_request(&address(&s), &address(&d), 77, 1),
        }
    })
}

fn other_endpoint(v4: bool, n: u8, port: u16) -> Endpoint {
    match v4 {
        true => Endpoint::new(Address::from_v4_octets([203, 0, 113, n]), port),
        false => Endpoint::new(Address::from_v6_octets([n; 16]), port),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_translation_keeps_every_checksum(
        mut bytes in any_packet(), n in 1u8..255, p in any::<u16>(), m in 1u8..255, q in any::<u16>(),
    ) {
        let original = bytes.clone();
        let mut packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
        let before = packet.tuple(NetworkId(1)).unwrap();
        packet.translate(other_endpoint(packet.is_v4(), n, p), other_endpoint(packet.is_v4(), m, q));
        assert_checksums(&bytes);
        let mut packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
        packet.translate(before.source, before.destination);
        assert_checksums(&bytes);
        prop_assert_eq!(bytes, original);
    }

    #[test]
    fn a_partial_checksum_finishes_right_after_a_translation(
        mut bytes in any_packet(), n in 1u8..255, p in any::<u16>(), m in 1u8..255, q in any::<u16>(),
    ) {
        let mut packet = Packet::parse(&mut bytes, Checksum::Partial).unwrap();
        packet.make_partial();
        packet.translate(other_endpoint(packet.is_v4(), n, p), other_endpoint(packet.is_v4(), m, q));
        packet.complete_checksum();
        assert_checksums(&bytes);
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), v6 in any::<bool>()) {
        if let Some(first) = bytes.first_mut() {
            *first = if v6 { 0x60 } else { 0x40 | (*first & 0x0f) };
        }
        if let Some(len) = bytes.get_mut(4) && v6 { *len = 0 }
        if let Some(len) = bytes.get_mut(2) && !v6 { *len = 0 }
        if let Ok(mut packet) = Packet::parse(&mut bytes, Checksum::Complete) {
            packet.tuple(NetworkId(1));
            packet.decrement_hop_limit();
            packet.clamp_mss(500);
            packet.quote();
            packet.icmp_checksum_holds();
            packet.renew_icmp_checksum();
            packet.translate(other_endpoint(!v6, 1, 1), other_endpoint(!v6, 2, 2));
            packet.complete_checksum();
        }
    }
}
