//! Filters applied to frames.

use std::net::IpAddr;

use ctl::filter::{Filter, Side};
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};

use crate::mac::Mac;

/// What filters ask of a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Fields {
    source: [u8; 6],
    destination: [u8; 6],
    vlan: Option<u16>,
    arp: bool,
    addresses: Option<(IpAddr, IpAddr)>,
    protocol: Option<u8>,
    ports: Option<(u16, u16)>,
    len: usize,
}

/// Whether a frame, from its destination address on, is one that the filter lets through. A field that the frame does not
/// have, or that cannot be read, matches nothing.
pub fn matches(filter: &Filter, bytes: &[u8]) -> bool {
    evaluate(filter, &fields(bytes))
}

fn fields(bytes: &[u8]) -> Fields {
    let mut fields = Fields { len: bytes.len(), ..Fields::default() };
    if let Some(header) = bytes.first_chunk::<12>() {
        fields.destination.copy_from_slice(&header[..6]);
        fields.source.copy_from_slice(&header[6..]);
    }
    let Ok(packet) = LaxSlicedPacket::from_ethernet(bytes) else { return fields };
    fields.vlan = packet.vlan_ids().first().map(|id| id.value());
    match &packet.net {
        Some(LaxNetSlice::Arp(arp)) => {
            fields.arp = true;
            let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
            fields.addresses = address(arp.sender_protocol_addr()).zip(address(arp.target_protocol_addr()));
        }
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            fields.addresses = Some((header.source_addr().into(), header.destination_addr().into()));
            fields.protocol = Some(header.protocol().0);
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            fields.addresses = Some((header.source_addr().into(), header.destination_addr().into()));
            fields.protocol = Some(ip.payload().ip_number.0);
        }
        None => {}
    }
    fields.ports = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
        Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
        _ => None,
    };
    fields
}

fn evaluate(filter: &Filter, f: &Fields) -> bool {
    match filter {
        Filter::Arp => f.arp,
        Filter::Ip => f.protocol.is_some() && f.addresses.is_some_and(|(a, _)| a.is_ipv4()),
        Filter::Ip6 => f.addresses.is_some_and(|(a, _)| a.is_ipv6()),
        Filter::Protocol(number) => f.protocol == Some(*number),
        Filter::Host(side, net) => f.addresses.is_some_and(|ends| either(*side, ends, |a| net.contains(&a))),
        Filter::Port(side, first, last) => {
            f.ports.is_some_and(|ends| either(*side, ends, |p| (*first..=*last).contains(&p)))
        }
        Filter::Ether(side, mac) => either(*side, (f.source, f.destination), |m| m == *mac),
        Filter::Vlan(number) => match number {
            Some(number) => f.vlan == Some(*number),
            None => f.vlan.is_some(),
        },
        Filter::Broadcast => f.destination == Mac::BROADCAST.0,
        Filter::Multicast => Mac(f.destination).is_multicast(),
        Filter::Greater(len) => f.len >= *len as usize,
        Filter::Less(len) => f.len <= *len as usize,
        Filter::Not(inner) => !evaluate(inner, f),
        Filter::And(a, b) => evaluate(a, f) && evaluate(b, f),
        Filter::Or(a, b) => evaluate(a, f) || evaluate(b, f),
    }
}

fn either<T>(side: Side, (source, destination): (T, T), is: impl Fn(T) -> bool) -> bool {
    match side {
        Side::Any => is(source) || is(destination),
        Side::Source => is(source),
        Side::Destination => is(destination),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::build::frame;

    #[test]
    fn frames_are_told_apart() {
        let (a, b) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let built = |words: &str, to| frame(&words.parse().unwrap(), a, to).unwrap();
        let syn = built("tcp 10.0.0.1:4000 > 192.0.2.1:80 syn", b);
        let dns = built("udp [fd00::1]:4000 > [2001:db8::1]:53 len 100", b);
        let ask = built("arp 10.0.0.1 > 10.0.0.2", Mac::BROADCAST);
        let ping = built("icmp 10.0.0.1 > 10.0.0.2", b);
        let mut tagged = syn.clone();
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        // For each filter: does it let through the SYN, the query, the question, the ping, the SYN under a tag?
        for (text, expected) in [
            ("tcp", [true, false, false, false, true]),
            ("udp or arp", [false, true, true, false, false]),
            ("ip", [true, false, false, true, true]),
            ("ip6", [false, true, false, false, false]),
            ("icmp", [false, false, false, true, false]),
            ("host 10.0.0.1", [true, false, true, true, true]),
            ("dst host 10.0.0.1", [false; 5]),
            ("dst net 10.0.0.0/8", [false, false, true, true, false]),
            ("src net fd00::/16", [false, true, false, false, false]),
            ("port 4000", [true, true, false, false, true]),
            ("dst port 4000", [false; 5]),
            ("udp dst portrange 50-60", [false, true, false, false, false]),
            ("not port 4000", [false, false, true, true, false]),
            ("vlan", [false, false, false, false, true]),
            ("vlan 7 and tcp", [false, false, false, false, true]),
            ("vlan 8", [false; 5]),
            ("broadcast", [false, false, true, false, false]),
            ("multicast", [false, false, true, false, false]),
            ("ether dst 02:00:00:00:00:02", [true, true, false, true, true]),
            ("ether src 02:00:00:00:00:01 and less 54", [true, false, true, true, false]),
            ("greater 100", [false, true, false, false, false]),
        ] {
            let filter = text.parse().unwrap();
            let got = [&syn, &dns, &ask, &ping, &tagged].map(|frame| matches(&filter, frame));
            assert_eq!(got, expected, "{text}");
        }
        // Whatever is cut off, it is looked at without a panic.
        let filter = "tcp and port 80 and host 10.0.0.1 or vlan or arp".parse().unwrap();
        for frame in [&syn, &dns, &ask, &tagged] {
            for cut in 0..frame.len() {
                matches(&filter, &frame[..cut]);
            }
        }
    }
}
