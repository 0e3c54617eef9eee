//! One arbitrary IP packet, to a translator that has a rule, a few connections and a datagram of which more is to come.

use nat::{
    Address, Checksum, Config, External, Nat, NetworkId, OwnerId, Packet, Party, Protocol, Rule, Time,
    Verdict, checksum,
};

use super::Bytes;
use super::nat_sequence::packets::{echo_request, fragments, tcp, udp};

const NETWORK: NetworkId = NetworkId(1);
const NOW: Time = Time::from_secs(1000);

/// Which way a packet takes.
#[derive(Clone, Copy, Debug)]
enum Way {
    Outbound,
    Inbound,
    Hairpin,
    Routed,
}

/// The first byte says the way (bits 0 and 1) and that the checksum is unfinished (bit 2); the rest is the packet.
///
/// # Panics
/// When something is wrong with `nat`.
pub fn nat_packet(data: &[u8]) {
    let mut input = Bytes(data);
    let Some(what) = input.u8() else { return };
    let way = [Way::Outbound, Way::Inbound, Way::Hairpin, Way::Routed][usize::from(what & 3)];
    let checksum = if what & 4 != 0 { Checksum::Partial } else { Checksum::Complete };
    let mut nat = translator();
    let original = input.0.to_vec();
    // Once more: the second finds what the first left behind.
    for _ in 0..2 {
        pass(&mut nat, way, &original, checksum);
        while nat.next_released().is_some() {}
    }
}

fn translator() -> Nat {
    let mut nat = Nat::new(Config { connections: 64, ports: 61_000..=61_015, ..Config::default() });
    let target = nat::Endpoint::new(address("172.18.0.20"), 80);
    let rule = Rule {
        protocol: Protocol::Tcp,
        host: None,
        ports: 80..=80,
        network: NETWORK,
        target,
        from: Vec::new(),
    };
    nat.publish(rule).expect("a rule");
    let datagram = udp("172.18.0.10:4000", "198.51.100.7:4000", &[0x55; 64]);
    let known = [
        udp("172.18.0.10:5000", "198.51.100.7:53", b"question"),
        tcp("172.18.0.10:5000", "198.51.100.7:80", "S", 100, 0, b""),
        echo_request("172.18.0.10", "198.51.100.7", 7, 1),
        udp("[fd00::a]:5000", "[2001:db8:51::7]:53", b"question"),
        tcp("[fd00::a]:5000", "[2001:db8:51::7]:80", "S", 100, 0, b""),
        fragments(&datagram, 9, 32).swap_remove(0),
    ];
    for packet in known {
        pass(&mut nat, Way::Outbound, &packet, Checksum::Complete);
    }
    nat
}

fn pass(nat: &mut Nat, way: Way, original: &[u8], checksum: Checksum) {
    let mut bytes = original.to_vec();
    let Ok(mut packet) = Packet::parse(&mut bytes, checksum) else {
        assert_eq!(bytes, original, "a packet that is refused is left alone");
        return;
    };
    let was_right = is_right(&packet, checksum);
    let external = External { v4: "192.0.2.1".parse().ok(), v6: "2001:db8:2::1".parse().ok() };
    let from = party(packet.source());
    let verdict = match way {
        Way::Outbound => nat.outbound(NOW, &mut packet, from, external),
        Way::Inbound => nat.inbound(NOW, &mut packet, |_, a| Some(party(a).owner)),
        Way::Hairpin => nat.hairpin(NOW, &mut packet, from, external, |_, a| Some(party(a).owner)),
        Way::Routed => {
            let to = party(packet.destination());
            nat.routed(NOW, &mut packet, from, to)
        }
    };
    let verdict = match verdict {
        Verdict::New(pending) => {
            // What follows the packet (padding of a short frame) is not of it.
            assert!(original.starts_with(packet.bytes()), "untouched until committed");
            nat.commit(NOW, &mut packet, pending)
        }
        verdict => verdict,
    };
    if !matches!(verdict, Verdict::Forward(_)) {
        assert_eq!(bytes, original, "untouched unless forwarded");
        return;
    }
    if was_right {
        assert!(
            is_right(&packet, checksum),
            "the checksum was right: {original:02x?}\nis not: {:02x?}",
            packet.bytes()
        );
    }
    assert_eq!(bytes.len(), original.len());
    Packet::parse(&mut bytes, checksum).expect("what is forwarded is a packet");
}

/// Whether a whole packet's sums are right. Anything of which that cannot be said is not.
fn is_right(packet: &Packet<'_>, kind: Checksum) -> bool {
    let Some(tuple) = packet.tuple(NETWORK) else { return false };
    if packet.fragment().is_some() || kind != Checksum::Complete {
        return false;
    }
    let bytes = packet.transport_bytes();
    let header = packet.bytes().len() - bytes.len();
    if packet.is_v4() && checksum::sum(&packet.bytes()[..header]) != 0xffff {
        return false;
    }
    let Ok(short) = u16::try_from(bytes.len()) else { return false };
    let length = u32::from(short);
    let over = match tuple.protocol {
        Protocol::Icmp => 0,
        Protocol::Icmpv6 | Protocol::Tcp => {
            checksum::pseudo_header_sum(packet.source(), packet.destination(), tuple.protocol, length)
        }
        // The length counts what the header says, and a sum of zero is none.
        Protocol::Udp if bytes[4..6] == short.to_be_bytes() && bytes[6..8] != [0, 0] => {
            checksum::pseudo_header_sum(packet.source(), packet.destination(), tuple.protocol, length)
        }
        _ => return false,
    };
    let sum = u32::from(over) + u32::from(checksum::sum(bytes));
    (sum & 0xffff) + (sum >> 16) == 0xffff
}

fn address(text: &str) -> Address {
    Address::from(text.parse::<std::net::IpAddr>().expect("an address"))
}

fn party(address: Address) -> Party {
    let [.., last] = address.v6_octets();
    Party { network: NETWORK, owner: OwnerId(u32::from(last)) }
}
