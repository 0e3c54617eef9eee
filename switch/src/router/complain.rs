//! What swd says when it cannot forward: ICMP errors (RFC 792, RFC 1812 4.3, RFC 4443) and, for a published port that
//! leads nowhere, a TCP reset.
//!
//! Each sender has a budget: [`RATE`] a second, [`BURST`] at once. Errors are never about errors, later fragments,
//! broadcasts or packets without a proper source.

use std::collections::HashMap;
use std::net::IpAddr;

use foldhash::quality::RandomState;
use nat::packet::{Transport, tcp_flag};
use nat::{Checksum, Packet, Protocol, Time, checksum};

use super::resolve::Ingress;

/// Complaints a second to one sender.
const RATE: u64 = 200;
/// Complaints at once to one sender.
const BURST: u64 = 200;
/// Senders whose budget is kept.
const SENDERS: usize = 4096;
/// Longest ICMP error (RFC 1812 4.3.2.3).
const LONGEST_V4: usize = 576;
/// Longest ICMPv6 error (RFC 4443 2.4).
const LONGEST_V6: usize = 1280;
const HOP_LIMIT: u8 = 64;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// The hop limit was used up.
    TimeExceeded,
    /// No route.
    NoRoute,
    /// The next hop does not answer.
    HostUnreachable,
    /// Nobody listens.
    PortUnreachable,
    /// Not allowed.
    Prohibited,
    /// Longer than this.
    TooBig(u32),
}

impl Complaint {
    /// Type, code, and the four bytes behind the checksum.
    fn v4(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (11, 0, 0),
            Self::NoRoute => (3, 0, 0),
            Self::HostUnreachable => (3, 1, 0),
            Self::PortUnreachable => (3, 3, 0),
            Self::Prohibited => (3, 13, 0),
            Self::TooBig(mtu) => (3, 4, mtu & 0xffff),
        }
    }

    fn v6(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (3, 0, 0),
            Self::NoRoute => (1, 0, 0),
            Self::HostUnreachable => (1, 3, 0),
            Self::PortUnreachable => (1, 4, 0),
            Self::Prohibited => (1, 1, 0),
            Self::TooBig(mtu) => (2, 0, mtu),
        }
    }
}

/// An ICMP error about `packet`, from `source` to the packet's sender; none where there must not be one.
pub(super) fn icmp(packet: &Packet<'_>, complaint: Complaint, source: IpAddr) -> Option<Vec<u8>> {
    let (from, to) = (packet.source().to_ip(), packet.destination().to_ip());
    if matches!(packet.transport(), Transport::Error | Transport::Later)
        || !is_unicast(from)
        || !is_unicast(to)
    {
        return None;
    }
    match (source, from) {
        (IpAddr::V4(source), IpAddr::V4(to)) => {
            let quote = &packet.bytes()[..packet.len().min(LONGEST_V4 - 28)];
            let (kind, code, rest) = complaint.v4();
            let mut out = vec![0; 28];
            out[0] = 0x45;
            // Internetwork control (RFC 1812 4.3.2.5).
            out[1] = 0xc0;
            out[2..4].copy_from_slice(&short(28 + quote.len()).to_be_bytes());
            out[8] = HOP_LIMIT;
            out[9] = Protocol::Icmp.number();
            out[12..16].copy_from_slice(&source.octets());
            out[16..20].copy_from_slice(&to.octets());
            let sum = !checksum::sum(&out[..20]);
            out[10..12].copy_from_slice(&sum.to_be_bytes());
            (out[20], out[21]) = (kind, code);
            out[24..28].copy_from_slice(&rest.to_be_bytes());
            out.extend_from_slice(quote);
            let sum = !checksum::sum(&out[20..]);
            out[22..24].copy_from_slice(&sum.to_be_bytes());
            Some(out)
        }
        (IpAddr::V6(source), IpAddr::V6(to)) => {
            let quote = &packet.bytes()[..packet.len().min(LONGEST_V6 - 48)];
            let (kind, code, rest) = complaint.v6();
            let mut out = header_v6(source.octets(), to.octets(), Protocol::Icmpv6, 8 + quote.len());
            out.extend([kind, code, 0, 0]);
            out.extend(rest.to_be_bytes());
            out.extend_from_slice(quote);
            finish(&mut out);
            Some(out)
        }
        _ => None,
    }
}

/// The reset that refuses a TCP segment (RFC 9293 3.10.7.1); none for what is no TCP, or a reset itself.
pub(super) fn reset(packet: &Packet<'_>) -> Option<Vec<u8>> {
    let segment = packet.tcp().filter(|s| !s.has(tcp_flag::RST))?;
    let header = packet.transport_bytes();
    let (from, to) = (header.get(..2)?, header.get(2..4)?);
    let mut out = match (packet.destination().to_ip(), packet.source().to_ip()) {
        (IpAddr::V4(source), IpAddr::V4(to)) => {
            let mut out = vec![0; 20];
            out[0] = 0x45;
            out[2..4].copy_from_slice(&40u16.to_be_bytes());
            out[6] = 0x40;
            out[8] = HOP_LIMIT;
            out[9] = Protocol::Tcp.number();
            out[12..16].copy_from_slice(&source.octets());
            out[16..20].copy_from_slice(&to.octets());
            let sum = !checksum::sum(&out);
            out[10..12].copy_from_slice(&sum.to_be_bytes());
            out
        }
        (IpAddr::V6(source), IpAddr::V6(to)) => header_v6(source.octets(), to.octets(), Protocol::Tcp, 20),
        _ => return None,
    };
    let taken =
        segment.payload + u32::from(segment.has(tcp_flag::SYN)) + u32::from(segment.has(tcp_flag::FIN));
    let (sequence, acknowledgment, flags) = if segment.has(tcp_flag::ACK) {
        (segment.acknowledgment, 0, tcp_flag::RST)
    } else {
        (0, segment.sequence.wrapping_add(taken), tcp_flag::RST | tcp_flag::ACK)
    };
    out.extend_from_slice(to);
    out.extend_from_slice(from);
    out.extend(sequence.to_be_bytes());
    out.extend(acknowledgment.to_be_bytes());
    out.extend([5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    finish(&mut out);
    Some(out)
}

fn header_v6(source: [u8; 16], to: [u8; 16], protocol: Protocol, len: usize) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0];
    out.extend(short(len).to_be_bytes());
    out.extend([protocol.number(), HOP_LIMIT]);
    out.extend(source);
    out.extend(to);
    out
}

/// Sums the transport checksum of a packet whose field holds zero.
fn finish(packet: &mut [u8]) {
    let Ok(view) = Packet::parse(packet, Checksum::Complete) else { return };
    let length = u32::try_from(view.transport_bytes().len()).unwrap_or(u32::MAX);
    let pseudo = checksum::pseudo_header_sum(view.source(), view.destination(), view.protocol(), length);
    let at =
        view.len() - view.transport_bytes().len() + if view.protocol() == Protocol::Tcp { 16 } else { 2 };
    let sum = checksum::sum(view.transport_bytes());
    let sum = !checksum::Delta::default().word(0xffff, sum).update_partial(pseudo);
    if let Some(field) = packet.get_mut(at..at + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

fn short(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// An address that one host has.
pub(super) fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let [first, ..] = a.octets();
            !(a.is_multicast() || a.is_broadcast() || a.is_loopback() || first == 0 || first >= 240)
        }
        IpAddr::V6(a) => !(a.is_multicast() || a.is_unspecified() || a.is_loopback()),
    }
}

/// Budgets of complaints.
#[derive(Clone, Debug, Default)]
pub(super) struct Limiter {
    /// What each may still have, and when that was reckoned.
    senders: HashMap<Ingress, (u64, Time), RandomState>,
}

impl Limiter {
    /// Whether `to` may be told something now.
    pub(super) fn may(&mut self, now: Time, to: Ingress) -> bool {
        if self.senders.len() >= SENDERS && !self.senders.contains_key(&to) {
            self.senders.clear();
        }
        let (left, at) = self.senders.entry(to).or_insert((BURST, now));
        let millis = u64::try_from(now.since(*at).as_millis()).unwrap_or(u64::MAX);
        let earned = millis.saturating_mul(RATE) / 1000;
        if earned > 0 {
            *left = left.saturating_add(earned).min(BURST);
            *at = now;
        }
        *left = match left.checked_sub(1) {
            Some(rest) => rest,
            None => return false,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::PortId;
    use etherparse::PacketBuilder;

    fn udp_v4(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4([172, 18, 0, 10], [192, 0, 2, 7], 1).udp(4000, 53);
        builder.write(&mut bytes, payload).unwrap();
        bytes
    }

    #[test]
    fn an_icmp_error_quotes_and_adds_up() {
        let mut bytes = udp_v4(&[7; 1000]);
        let packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
        let error = icmp(&packet, Complaint::TooBig(1400), "172.18.0.1".parse().unwrap()).unwrap();
        assert_eq!(
            (error.len(), checksum::sum(&error[..20]), checksum::sum(&error[20..])),
            (576, 0xffff, 0xffff)
        );
        assert_eq!((&error[20..22], &error[24..28]), (&[3, 4][..], &[0, 0, 5, 120][..]));
        assert_eq!(error[28..], packet.bytes()[..548]);
        let mut about = error;
        let about = Packet::parse(&mut about, Checksum::Complete).unwrap();
        assert_eq!(icmp(&about, Complaint::NoRoute, "172.18.0.1".parse().unwrap()), None, "not about errors");
    }

    #[test]
    fn a_reset_answers_a_syn_in_both_families() {
        for v4 in [true, false] {
            let mut bytes = Vec::new();
            if v4 {
                let b = PacketBuilder::ipv4([192, 0, 2, 7], [192, 0, 2, 1], 64).tcp(4000, 80, 99, 1000).syn();
                b.write(&mut bytes, &[]).unwrap();
            } else {
                let b = PacketBuilder::ipv6([0x20; 16], [0x21; 16], 64).tcp(4000, 80, 99, 1000).syn();
                b.write(&mut bytes, &[]).unwrap();
            }
            let packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
            let mut answer = reset(&packet).unwrap();
            let sliced = etherparse::SlicedPacket::from_ip(&answer).unwrap();
            let Some(etherparse::TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!() };
            assert!(tcp.rst() && tcp.ack() && tcp.acknowledgment_number() == 100);
            assert_eq!((tcp.source_port(), tcp.destination_port()), (80, 4000));
            let sum = match &sliced.net {
                Some(etherparse::NetSlice::Ipv4(ip)) => {
                    tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())
                }
                Some(etherparse::NetSlice::Ipv6(ip)) => {
                    tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
                }
                _ => panic!(),
            };
            assert_eq!(sum.unwrap(), tcp.checksum());
            drop(sliced);
            let again = Packet::parse(&mut answer, Checksum::Complete).unwrap();
            assert_eq!(reset(&again), None, "no reset for a reset");
        }
    }

    #[test]
    fn budgets_are_per_sender_and_refill() {
        let mut limiter = Limiter::default();
        let t = Time::from_secs(5);
        let (a, b) = (Ingress::Port(PortId(1)), Ingress::Uplink(2));
        assert_eq!((0..1000).filter(|_| limiter.may(t, a)).count(), 200);
        assert!(limiter.may(t, b));
        assert_eq!(
            (0..1000).filter(|_| limiter.may(t + std::time::Duration::from_millis(500), a)).count(),
            100
        );
    }
}
