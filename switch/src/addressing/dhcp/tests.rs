use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::*;

const CLIENT: Mac = Mac([2, 0, 0, 0, 0, 9]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 7]);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const ELSE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 8);

fn terms() -> (Terms, Dhcp) {
    let dhcp =
        Dhcp { subnet: "10.0.0.0/24".parse().unwrap(), gateway: GATEWAY, lease: Duration::from_secs(3600) };
    let terms = Terms {
        domain: "default".into(),
        dns: true,
        mtu: 1400,
        gateway_mac: Mac([2, 0, 0, 0, 0, 1]),
        dhcp: Some(dhcp),
        advertised: None,
    };
    (terms, dhcp)
}

/// A message by hand: type, `ciaddr`, and options.
fn bytes(kind: u8, has: Ipv4Addr, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 236];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&[1, 2, 3, 4]);
    bytes[12..16].copy_from_slice(&has.octets());
    bytes[28..34].copy_from_slice(&CLIENT.0);
    bytes.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind]);
    for (kind, data) in options {
        bytes.extend([*kind, u8::try_from(data.len()).unwrap()]);
        bytes.extend(*data);
    }
    bytes.push(255);
    bytes
}

fn message(kind: u8, has: Ipv4Addr, options: &[(u8, &[u8])]) -> Message {
    Message::parse(&bytes(kind, has, options), CLIENT).unwrap()
}

fn holder(address: Ipv4Addr, mac: Mac) -> Option<Holder> {
    Some(Holder { address, mac: Some(mac) })
}

#[test]
fn what_is_said_follows_from_the_message_and_from_whose_the_address_is() {
    const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
    let (wants, server) = (OWN.octets(), GATEWAY.octets());
    let wants: (u8, &[u8]) = (50, &wants);
    let server: (u8, &[u8]) = (54, &server);
    let foreign: (u8, &[u8]) = (54, &[10, 0, 0, 2]);
    let says = |kind, address| Outcome::Answer(Answer { kind, address });
    let lease = |wanted| Outcome::Ask(Wish::Lease(CLIENT, wanted));
    let (offer, ack) = (says(DhcpMessageType::Offer, Some(OWN)), says(DhcpMessageType::Ack, Some(OWN)));
    let nak = says(DhcpMessageType::Nak, None);
    let (own, other) = (holder(OWN, CLIENT), holder(OWN, OTHER));
    let reserved = Some(Holder { address: OWN, mac: None });
    let cases: &[(&str, Message, &Option<Holder>, Outcome)] = &[
        ("discover", message(1, NONE, &[]), &own, offer),
        ("discover without an address", message(1, NONE, &[wants]), &None, lease(Some(OWN))),
        ("discover of another", message(1, NONE, &[]), &other, lease(None)),
        ("discover of a reserved one", message(1, NONE, &[]), &reserved, lease(None)),
        ("select", message(3, NONE, &[wants, server]), &own, ack.clone()),
        ("select what is gone", message(3, NONE, &[wants, server]), &None, nak.clone()),
        ("select what is another's", message(3, NONE, &[wants, server]), &holder(ELSE, CLIENT), nak.clone()),
        ("select at another server", message(3, NONE, &[wants, foreign]), &own, Outcome::Ignore),
        ("reboot", message(3, NONE, &[wants]), &own, ack.clone()),
        ("reboot elsewhere", message(3, NONE, &[wants]), &holder(ELSE, CLIENT), nak),
        ("reboot unknown", message(3, NONE, &[wants]), &None, lease(Some(OWN))),
        ("renew", message(3, OWN, &[]), &own, ack),
        ("renew unknown", message(3, OWN, &[]), &None, lease(Some(OWN))),
        ("request of nothing", message(3, NONE, &[]), &own, Outcome::Ignore),
        ("decline", message(4, NONE, &[wants, server]), &own, Outcome::Ask(Wish::Decline(OWN))),
        ("decline another's", message(4, NONE, &[wants]), &holder(ELSE, CLIENT), Outcome::Ignore),
        ("release", message(7, OWN, &[server]), &own, Outcome::Ask(Wish::Release(OWN))),
        ("release another's", message(7, OWN, &[server]), &other, Outcome::Ignore),
        ("release nothing", message(7, NONE, &[]), &None, Outcome::Ignore),
        ("inform", message(8, ELSE, &[]), &None, says(DhcpMessageType::Ack, None)),
        ("inform from nowhere", message(8, NONE, &[]), &own, Outcome::Ignore),
        ("an offer", message(2, NONE, &[]), &own, Outcome::Ignore),
        ("anything", message(99, NONE, &[]), &own, Outcome::Ignore),
    ];
    for (what, message, holder, expected) in cases {
        assert_eq!(&message.respond(&terms().1, holder.as_ref()), expected, "{what}");
    }
    assert_eq!(message(1, NONE, &[]).refusal(), None);
    assert_eq!(message(3, OWN, &[]).refusal().map(|a| a.kind), Some(DhcpMessageType::Nak));
}

/// Destination MAC and address of a frame, and its payload.
fn read(frame: &[u8]) -> (Mac, Ipv4Addr, &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!("{packet:?}") };
    let Some(TransportSlice::Udp(udp)) = &packet.transport else { panic!("{packet:?}") };
    assert_eq!((udp.source_port(), udp.destination_port()), (67, 68));
    assert_eq!(ip.header().source_addr(), GATEWAY);
    (Mac(frame[..6].try_into().unwrap()), ip.header().destination_addr(), udp.payload())
}

#[test]
fn answers_go_where_they_are_heard() {
    const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
    let (terms, dhcp) = terms();
    let mut broadcast = message(1, NONE, &[]);
    broadcast.broadcast = true;
    let everybody = (Mac::BROADCAST, Ipv4Addr::BROADCAST);
    for (message, kind, address, to) in [
        (message(1, NONE, &[]), DhcpMessageType::Offer, Some(OWN), (CLIENT, OWN)),
        (broadcast, DhcpMessageType::Offer, Some(OWN), everybody),
        (message(3, OWN, &[]), DhcpMessageType::Ack, Some(OWN), (CLIENT, OWN)),
        (message(3, ELSE, &[]), DhcpMessageType::Nak, None, everybody),
        (message(8, ELSE, &[]), DhcpMessageType::Ack, None, (CLIENT, ELSE)),
    ] {
        let frame = message.frame(&Answer { kind, address }, &terms, &dhcp).unwrap();
        let (mac, destination, _) = read(&frame);
        assert_eq!((mac, destination), to, "{kind:?}");
    }
}

#[test]
fn an_acknowledgement_byte_by_byte() {
    let (terms, dhcp) = terms();
    let request = message(3, Ipv4Addr::UNSPECIFIED, &[(50, &OWN.octets()), (61, b"\xffname")]);
    let answer = Answer { kind: DhcpMessageType::Ack, address: Some(OWN) };
    let frame = request.frame(&answer, &terms, &dhcp).unwrap();
    let (_, _, payload) = read(&frame);
    assert_eq!(payload[..8], [2, 1, 6, 0, 1, 2, 3, 4]);
    assert_eq!(payload[16..20], OWN.octets());
    assert_eq!(payload[28..34], CLIENT.0);
    let options = [
        &[53, 1, 5, 54, 4, 10, 0, 0, 1, 61, 5][..],
        b"\xffname",
        &[1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 0, 1, 6, 4, 10, 0, 0, 1, 15, 7],
        b"default",
        &[26, 2, 5, 0x78, 51, 4, 0, 0, 14, 16, 58, 4, 0, 0, 7, 8, 59, 4, 0, 0, 12, 78, 255],
    ]
    .concat();
    assert_eq!(payload[240..240 + options.len()], options);
    assert_eq!(payload.len(), SHORTEST.max(240 + options.len()));

    let refused = Answer { kind: DhcpMessageType::Nak, address: None };
    let frame = request.frame(&refused, &terms, &dhcp).unwrap();
    let (_, _, payload) = read(&frame);
    assert_eq!(payload[16..20], [0; 4]);
    assert_eq!(payload[240..257], *b"\x35\x01\x06\x36\x04\x0a\x00\x00\x01\x3d\x05\xffname\xff");
}

#[test]
fn others_messages_are_nobodys() {
    let good = bytes(1, Ipv4Addr::UNSPECIFIED, &[]);
    assert!(Message::parse(&good, CLIENT).is_some());
    assert_eq!(Message::parse(&good, OTHER), None, "in another's name");
    for (at, value, what) in [
        (24, 9, "by a relay"),
        (0, 2, "a reply"),
        (1, 2, "no Ethernet"),
        (2, 9, "a long address"),
        (236, 0, "BOOTP"),
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(Message::parse(&bad, CLIENT), None, "{what}");
    }
    let long = [7; 136];
    assert_eq!(Message::parse(&bytes(1, Ipv4Addr::UNSPECIFIED, &[(61, &long)]), CLIENT), None);
}

proptest::proptest! {
    #[test]
    fn no_bytes_are_too_odd(tail in proptest::collection::vec(proptest::num::u8::ANY, 0..200), kind in 0u8..10) {
        let mut odd = bytes(kind, OWN, &[]);
        odd.pop();
        odd.extend(tail);
        let (terms, dhcp) = terms();
        if let Some(message) = Message::parse(&odd, CLIENT) {
            let _ = message.respond(&dhcp, holder(OWN, CLIENT).as_ref());
            let answer = Answer { kind: DhcpMessageType::Ack, address: Some(OWN) };
            let frame = message.frame(&answer, &terms, &dhcp).unwrap();
            proptest::prop_assert!(frame.len() <= 14 + 576);
        }
    }
}
