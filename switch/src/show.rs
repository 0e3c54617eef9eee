//! A frame's headers in one line, as `swctl trace` and `swctl capture` show them.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, Icmpv6Message, Icmpv6Packet};

use crate::frame::ETHERNET_HEADER;
use crate::mac::Mac;

/// The headers of a frame: addresses, protocol, ports, flags, lengths. Whatever cannot be read is left out.
pub fn describe(bytes: &[u8]) -> String {
    let Some(header) = bytes.first_chunk::<ETHERNET_HEADER>() else {
        return format!("{} bytes, too short for a frame", bytes.len());
    };
    let mac = |at: usize| Mac(std::array::from_fn(|i| header[at + i]));
    let mut line = format!("{} > {} ", mac(6), mac(0));
    let Ok(packet) = LaxSlicedPacket::from_ethernet(bytes) else {
        return line + "unreadable";
    };
    for tag in packet.vlan_ids() {
        let _ = write!(line, "vlan {} ", tag.value());
    }
    line += &match &packet.net {
        Some(LaxNetSlice::Arp(arp)) => describe_arp(arp.slice()),
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let (source, destination) = (header.source_addr().into(), header.destination_addr().into());
            let fragment = match (header.fragments_offset().value(), header.more_fragments()) {
                (0, false) => String::new(),
                (at, more) => {
                    format!(" fragment at {}{}", u32::from(at) * 8, if more { ", more to come" } else { "" })
                }
            };
            let rest = format!("ttl {} len {}{fragment}", header.ttl(), header.total_len());
            describe_ip(&packet, source, destination, header.protocol().0, &rest)
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let (source, destination) = (header.source_addr().into(), header.destination_addr().into());
            let rest =
                format!("hop limit {} len {}", header.hop_limit(), 40 + u32::from(header.payload_length()));
            describe_ip(&packet, source, destination, ip.payload().ip_number.0, &rest)
        }
        None => {
            format!("ethertype {:#06x} len {}", u16::from_be_bytes([header[12], header[13]]), bytes.len())
        }
    };
    line
}

fn describe_ip(
    packet: &LaxSlicedPacket<'_>,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    rest: &str,
) -> String {
    let ends = |from, to| format!("{} > {}", SocketAddr::new(source, from), SocketAddr::new(destination, to));
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let flags = [
                (tcp.syn(), "syn"),
                (tcp.ack(), "ack"),
                (tcp.fin(), "fin"),
                (tcp.rst(), "rst"),
                (tcp.psh(), "psh"),
            ];
            let set: Vec<&str> = flags.into_iter().filter_map(|(is, name)| is.then_some(name)).collect();
            format!("tcp {} {} {rest}", ends(tcp.source_port(), tcp.destination_port()), set.join(" "))
        }
        Some(TransportSlice::Udp(udp)) => {
            format!("udp {} {rest}", ends(udp.source_port(), udp.destination_port()))
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let [id, seq] =
                [0, 2].map(|at| u16::from_be_bytes([icmp.bytes5to8()[at], icmp.bytes5to8()[at + 1]]));
            let what = match icmp.type_u8() {
                8 => format!("echo id {id} seq {seq}"),
                0 => format!("reply id {id} seq {seq}"),
                kind => format!("type {kind} code {}", icmp.code_u8()),
            };
            format!("icmp {source} > {destination} {what} {rest}")
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let what = describe_icmpv6(icmp.slice());
            format!("icmp {source} > {destination} {what} {rest}")
        }
        Some(TransportSlice::Igmp(_)) | None => {
            format!("ip {source} > {destination} protocol {protocol} {rest}")
        }
    }
}

fn describe_icmpv6(bytes: &[u8]) -> String {
    let Ok(packet) = Icmpv6Packet::new_checked(bytes) else { return "cut".to_owned() };
    match packet.msg_type() {
        Icmpv6Message::EchoRequest => format!("echo id {} seq {}", packet.echo_ident(), packet.echo_seq_no()),
        Icmpv6Message::EchoReply => format!("reply id {} seq {}", packet.echo_ident(), packet.echo_seq_no()),
        Icmpv6Message::NeighborSolicit => format!("who has {}", packet.target_addr()),
        Icmpv6Message::NeighborAdvert => format!("{} is here", packet.target_addr()),
        kind => format!("type {} code {}", u8::from(kind), packet.msg_code()),
    }
}

fn describe_arp(bytes: &[u8]) -> String {
    let parsed = ArpPacket::new_checked(bytes).and_then(|packet| ArpRepr::parse(&packet));
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = parsed
    else {
        return "arp, unreadable".to_owned();
    };
    match operation {
        ArpOperation::Request => format!("arp {source_protocol_addr} > {target_protocol_addr}"),
        ArpOperation::Reply => {
            format!(
                "arp {source_protocol_addr} > {target_protocol_addr} reply, at {}",
                Mac(source_hardware_addr.0)
            )
        }
        ArpOperation::Unknown(number) => format!("arp operation {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    #[test]
    fn what_is_shown_can_be_read() {
        let built = |builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>| {
            let mut bytes = Vec::new();
            builder.write(&mut bytes, &[]).unwrap();
            bytes
        };
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let syn = built(ethernet.ipv4([172, 18, 0, 10], [1, 1, 1, 1], 64).tcp(40_000, 443, 1, 512).syn());
        assert_eq!(
            describe(&syn),
            "02:00:00:00:00:01 > 02:00:00:00:00:02 tcp 172.18.0.10:40000 > 1.1.1.1:443 syn ttl 64 len 40"
        );
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .single_vlan(7.try_into().unwrap());
        let six = built(ethernet.ipv6([0xfd; 16], [1; 16], 9).tcp(1, 2, 1, 512).ack(1).fin());
        assert!(describe(&six).contains(" vlan 7 tcp [fdfd:"), "{}", describe(&six));
        assert!(describe(&six).ends_with(" ack fin hop limit 9 len 60"), "{}", describe(&six));
        assert_eq!(describe(&[1, 2]), "2 bytes, too short for a frame");
        // Whatever comes, it is one line.
        for cut in 0..syn.len() {
            assert!(!describe(&syn[..cut]).contains('\n'));
        }
    }
}
