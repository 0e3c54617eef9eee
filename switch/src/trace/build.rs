//! Frames from packets in words.

use ctl::packet::{Flags, Kind, Packet};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder, PacketBuilderStep};
use std::net::IpAddr;

use crate::mac::Mac;

/// The frame that carries `packet` from one station to another, with its checksums. None where its families differ, or it
/// is longer than an IP packet may be.
pub fn frame(packet: &Packet, from: Mac, to: Mac) -> Option<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(from.0, to.0);
    let payload = vec![0; usize::from(packet.len)];
    let mut bytes = Vec::new();
    if let Kind::Arp { reply } = packet.kind {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (packet.source, packet.destination) else {
            return None;
        };
        let (operation, target) =
            if reply { (ArpOperation::REPLY, to) } else { (ArpOperation::REQUEST, Mac::ZERO) };
        let arp = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            operation,
            &from.0,
            &source.octets(),
            &target.0,
            &destination.octets(),
        );
        ethernet.arp(arp.ok()?).write(&mut bytes).ok()?;
        return Some(bytes);
    }
    let ip = match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethernet.ipv4(source.octets(), destination.octets(), packet.ttl)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ethernet.ipv6(source.octets(), destination.octets(), packet.ttl)
        }
        _ => return None,
    };
    let written = match packet.kind {
        Kind::Tcp { ports: [from, to], flags } => tcp(ip, from, to, flags).write(&mut bytes, &payload),
        Kind::Udp { ports: [from, to] } => ip.udp(from, to).write(&mut bytes, &payload),
        Kind::Icmp { reply, id, seq } => match (packet.source.is_ipv4(), reply) {
            (true, false) => ip.icmpv4_echo_request(id, seq).write(&mut bytes, &payload),
            (true, true) => ip.icmpv4_echo_reply(id, seq).write(&mut bytes, &payload),
            (false, false) => ip.icmpv6_echo_request(id, seq).write(&mut bytes, &payload),
            (false, true) => ip.icmpv6_echo_reply(id, seq).write(&mut bytes, &payload),
        },
        Kind::Arp { .. } => return None,
    };
    written.ok()?;
    Some(bytes)
}

fn tcp(
    ip: PacketBuilderStep<etherparse::IpHeaders>,
    from: u16,
    to: u16,
    flags: Flags,
) -> PacketBuilderStep<etherparse::TcpHeader> {
    let mut step = ip.tcp(from, to, 1, 64_240);
    let Flags { syn, ack, fin, rst, psh } = flags;
    if syn {
        step = step.syn();
    }
    if ack {
        step = step.ack(1);
    }
    if fin {
        step = step.fin();
    }
    if rst {
        step = step.rst();
    }
    if psh {
        step = step.psh();
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::describe;

    #[test]
    fn what_is_asked_for_is_what_is_shown() {
        let (a, b) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        for (words, shown) in [
            ("tcp 10.0.0.1:5 > 10.0.0.2:80 syn", "tcp 10.0.0.1:5 > 10.0.0.2:80 syn ttl 64 len 40"),
            (
                "tcp [fd00::1]:5 > [fd00::2]:80 ack len 9",
                "tcp [fd00::1]:5 > [fd00::2]:80 ack hop limit 64 len 69",
            ),
            ("udp 10.0.0.1:5 > 10.0.0.2:53 ttl 3", "udp 10.0.0.1:5 > 10.0.0.2:53 ttl 3 len 28"),
            ("icmp 10.0.0.1 > 10.0.0.2 id 7 seq 8", "icmp 10.0.0.1 > 10.0.0.2 echo id 7 seq 8 ttl 64 len 28"),
            (
                "icmp fd00::1 > fd00::2 reply id 7",
                "icmp fd00::1 > fd00::2 reply id 7 seq 1 hop limit 64 len 48",
            ),
            ("arp 10.0.0.1 > 10.0.0.2", "arp 10.0.0.1 > 10.0.0.2"),
            ("arp 10.0.0.1 > 10.0.0.2 reply", "arp 10.0.0.1 > 10.0.0.2 reply, at 02:00:00:00:00:01"),
        ] {
            let bytes = frame(&words.parse().unwrap(), a, b).unwrap();
            assert_eq!(describe(&bytes), format!("{a} > {b} {shown}"));
        }
        let longest = "udp 10.0.0.1:5 > 10.0.0.2:53 len 65000".parse().unwrap();
        assert_eq!(frame(&longest, a, b).unwrap().len(), 14 + 28 + 65_000);
    }
}
