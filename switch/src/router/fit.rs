//! Makes a packet fit the next link: shorter segments of a super-frame, IPv4 fragments, or a refusal.

use nat::Packet;
use nat::packet::Transport;

use crate::frame::{ETHERNET_HEADER, Offload};

/// Smallest MTU that segments are cut to.
const LEAST_SEGMENT: usize = 64;

/// What to do with a packet before it goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// It fits.
    Fits,
    /// It fits once its offload header says so.
    Segments(Offload),
    /// It has to be cut into fragments.
    Fragments,
    /// It must not be cut: its sender is to be told.
    TooBig,
}

/// Whether and how a packet with this offload header fits `mtu`.
pub(super) fn fit(packet: &Packet<'_>, offload: Offload, mtu: u32) -> Fit {
    let mtu = mtu as usize;
    if offload.is_gso() {
        let headers = headers(packet);
        if headers + usize::from(offload.gso_size) <= mtu {
            return Fit::Fits;
        }
        let tcp = matches!(offload.gso_type & !Offload::GSO_ECN, Offload::GSO_TCPV4 | Offload::GSO_TCPV6);
        return match u16::try_from(mtu.saturating_sub(headers)) {
            Ok(size) if tcp && usize::from(size) >= LEAST_SEGMENT => {
                Fit::Segments(Offload { gso_size: size, ..offload })
            }
            _ => Fit::TooBig,
        };
    }
    if packet.len() <= mtu {
        Fit::Fits
    } else if packet.is_v4() && packet.bytes()[6] & 0x40 == 0 {
        Fit::Fragments
    } else {
        Fit::TooBig
    }
}

/// Bytes before the payload of each segment.
fn headers(packet: &Packet<'_>) -> usize {
    let ip = packet.len() - packet.transport_bytes().len();
    ip + match packet.transport() {
        Transport::Tcp => packet.transport_bytes().get(12).map_or(20, |b| usize::from(b >> 4) * 4),
        _ => 8,
    }
}

/// Cuts the IPv4 packet of a frame into fragments of at most `mtu` bytes (RFC 791 3.2), each a frame with the same
/// Ethernet header. The packet's checksum must be complete. Empty when that cannot be done.
pub(super) fn fragments(frame: &[u8], mtu: u32) -> Vec<Vec<u8>> {
    let Some((ethernet, packet)) = frame.split_at_checked(ETHERNET_HEADER) else { return Vec::new() };
    let header_len = packet.first().map_or(0, |b| usize::from(b & 0x0f) * 4);
    let total = packet.get(2..4).map_or(0, |b| usize::from(u16::from_be_bytes([b[0], b[1]])));
    let (Some(header), Some(payload)) = (packet.get(..header_len), packet.get(header_len..total)) else {
        return Vec::new();
    };
    let room = (mtu as usize).saturating_sub(header_len) / 8 * 8;
    if header_len < 20 || room == 0 {
        return Vec::new();
    }
    let flags = u16::from_be_bytes([header[6], header[7]]);
    let (offset, more) = (flags & 0x1fff, flags & 0x2000);
    let mut first = true;
    let mut out = Vec::new();
    let mut at = 0;
    while at < payload.len() {
        let end = (at + room).min(payload.len());
        let mut header = if first { header.to_vec() } else { header_of_later(header) };
        let Ok(units) = u16::try_from(at / 8) else { return Vec::new() };
        let last = end == payload.len();
        let field = offset.saturating_add(units).min(0x1fff) | if last { more } else { 0x2000 };
        let Ok(len) = u16::try_from(header.len() + end - at) else { return Vec::new() };
        header[2..4].copy_from_slice(&len.to_be_bytes());
        header[6..8].copy_from_slice(&field.to_be_bytes());
        header[10..12].fill(0);
        let sum = !nat::checksum::sum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        out.push([ethernet, &header, &payload[at..end]].concat());
        first = false;
        at = end;
    }
    out
}

/// The header of a later fragment: with those options only that are to be copied (RFC 791 3.1), the rest blanked.
fn header_of_later(header: &[u8]) -> Vec<u8> {
    let mut new = header.to_vec();
    let mut at = 20;
    while at < new.len() {
        let len = match new[at] {
            0 => break,
            1 => 1,
            _ => new.get(at + 1).map_or(2, |l| usize::from(*l).max(2)),
        };
        let end = (at + len).min(new.len());
        if new[at] & 0x80 == 0 {
            new[at..end].fill(1);
        }
        at = end;
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use nat::Checksum;

    fn udp(len: usize, dont_fragment: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4([172, 18, 0, 10], [192, 0, 2, 7], 9).udp(4000, 53);
        builder.write(&mut bytes, &vec![7; len - 28]).unwrap();
        bytes[6] = if dont_fragment { 0x40 } else { 0 };
        bytes
    }

    #[test]
    fn fits_or_is_cut_or_is_refused() {
        let check = |bytes: &mut [u8], offload, mtu| {
            fit(&Packet::parse(bytes, Checksum::Complete).unwrap(), offload, mtu)
        };
        let none = Offload::default();
        assert_eq!(check(&mut udp(1500, true), none, 1500), Fit::Fits);
        assert_eq!(check(&mut udp(1501, true), none, 1500), Fit::TooBig);
        assert_eq!(check(&mut udp(1501, false), none, 1500), Fit::Fragments);
        let gso = Offload { flags: 1, gso_type: 1, gso_size: 1460, csum_start: 34, csum_offset: 16, ..none };
        let mut tcp = Vec::new();
        PacketBuilder::ipv4([1; 4], [2; 4], 9).tcp(1, 2, 3, 4).write(&mut tcp, &[0; 4000]).unwrap();
        assert_eq!(check(&mut tcp, gso, 1500), Fit::Fits);
        assert_eq!(check(&mut tcp, gso, 1400), Fit::Segments(Offload { gso_size: 1360, ..gso }));
    }

    #[test]
    fn fragments_put_together_are_the_packet() {
        let packet = udp(4000, false);
        let frame = [&[0xaa; 14][..], &packet].concat();
        let parts = fragments(&frame, 1400);
        assert_eq!(parts.len(), 3);
        let mut whole = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            let ip = &part[14..];
            assert!(ip.len() <= 1400 && nat::checksum::sum(&ip[..20]) == 0xffff);
            let field = u16::from_be_bytes([ip[6], ip[7]]);
            assert_eq!((usize::from(field & 0x1fff) * 8, field & 0x2000 != 0), (whole.len(), i < 2));
            whole.extend_from_slice(&ip[20..]);
        }
        assert_eq!(whole, packet[20..]);
        assert!(fragments(&frame, 20).is_empty() && fragments(&frame[..20], 1400).is_empty());
    }
}
