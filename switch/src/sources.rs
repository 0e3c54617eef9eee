//! Spoof guard: what a port may claim to be.
//!
//! A guarded port sends from its own MACs and from its own addresses: the source of IPv4 and IPv6, the sender of ARP, the
//! target of a neighbor advertisement, and the link-layer address that either hands out. It is no router, so it advertises none
//! (RFC 6105) and redirects nobody. Of link-local addresses it has the one that follows from its MAC (RFC 4291 appendix A). The unspecified
//! address stands for nobody, and is what DHCP, probes (RFC 5227) and duplicate address detection (RFC 4862) send from.
//!
//! Tags are looked through: a receiver takes a frame with VLAN number 0 for one without a tag.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::frame::{
    ETHERNET_HEADER, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Frame,
};
use crate::mac::Mac;
use crate::verdict::DropReason;

const ICMPV6: u8 = 58;
/// Hop-by-hop options, routing, fragment, authentication, destination options.
const EXTENSIONS: [u8; 5] = [0, 43, 44, 51, 60];
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
/// Extension headers that are looked through. More than any sender has; a packet with more is nobody's.
const MAX_EXTENSIONS: usize = 8;

/// What a port may send from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    macs: Vec<Mac>,
    nets: Vec<IpNet>,
}

impl Sources {
    /// These and no others; the link-local addresses of the MACs are added.
    pub fn new(macs: impl IntoIterator<Item = Mac>, nets: impl IntoIterator<Item = IpNet>) -> Self {
        let macs: Vec<Mac> = macs.into_iter().collect();
        let own = macs.iter().map(|mac| IpNet::from(IpAddr::V6(link_local(*mac))));
        let nets = nets.into_iter().chain(own).collect();
        Self { macs, nets }
    }

    /// MACs that it may send from.
    pub fn macs(&self) -> &[Mac] {
        &self.macs
    }

    /// Addresses that it may send from.
    pub fn nets(&self) -> &[IpNet] {
        &self.nets
    }

    /// Whether a frame may come from the port, and if not, why.
    ///
    /// # Errors
    /// [`DropReason::SpoofedMac`], [`DropReason::SpoofedSource`] for a packet's source, or [`DropReason::SpoofedNeighbor`] for
    /// what ARP or neighbor discovery claims.
    pub fn check(&self, frame: &Frame<'_>) -> Result<(), DropReason> {
        if !self.macs.contains(&frame.src()) {
            return Err(DropReason::SpoofedMac);
        }
        let Some((ethertype, payload)) = untagged(frame.bytes()) else { return Err(DropReason::Malformed) };
        match ethertype {
            ETHERTYPE_ARP => self.check_arp(payload),
            ETHERTYPE_IPV4 => {
                let source: [u8; 4] = field(payload, 12).ok_or(DropReason::Malformed)?;
                self.check_source(Ipv4Addr::from(source).into())
            }
            ETHERTYPE_IPV6 => {
                let source: [u8; 16] = field(payload, 8).ok_or(DropReason::Malformed)?;
                self.check_source(Ipv6Addr::from(source).into())?;
                self.check_icmpv6(payload)
            }
            _ => Ok(()),
        }
    }

    fn has(&self, address: IpAddr) -> bool {
        address.is_unspecified() || self.nets.iter().any(|net| net.contains(&address))
    }

    fn check_source(&self, source: IpAddr) -> Result<(), DropReason> {
        if self.has(source) { Ok(()) } else { Err(DropReason::SpoofedSource) }
    }

    /// RFC 826: who says that it has which address.
    fn check_arp(&self, packet: &[u8]) -> Result<(), DropReason> {
        let (Some(mac), Some(address)) = (field::<6>(packet, 8), field::<4>(packet, 14)) else {
            return Err(DropReason::Malformed);
        };
        let honest = self.macs.contains(&Mac(mac)) && self.has(Ipv4Addr::from(address).into());
        if honest { Ok(()) } else { Err(DropReason::SpoofedNeighbor) }
    }

    /// RFC 4861: solicitations and advertisements. Fragmented ones are nobody's (RFC 6980), and are dropped by who receives them.
    fn check_icmpv6(&self, packet: &[u8]) -> Result<(), DropReason> {
        let Some(icmp) = icmpv6(packet)? else { return Ok(()) };
        let options_at = match icmp.first() {
            // Solicitations: of routers, of neighbors.
            Some(133) => 8,
            Some(135) => 24,
            Some(136) => {
                let target: [u8; 16] = field(icmp, 8).ok_or(DropReason::Malformed)?;
                if !self.has(Ipv6Addr::from(target).into()) {
                    return Err(DropReason::SpoofedNeighbor);
                }
                24
            }
            // Advertisements of routers, redirects.
            Some(134 | 137) => return Err(DropReason::SpoofedNeighbor),
            _ => return Ok(()),
        };
        let mut options = icmp.get(options_at..).unwrap_or_default();
        // Type, length in units of eight bytes, and for 1 and 2 the address.
        while let [kind, units, ..] = *options {
            let Some((option, rest)) = options.split_at_checked(usize::from(units) * 8) else { break };
            if matches!(kind, 1 | 2) && !field(option, 2).is_some_and(|mac| self.macs.contains(&Mac(mac))) {
                return Err(DropReason::SpoofedNeighbor);
            }
            if rest.len() == options.len() {
                break;
            }
            options = rest;
        }
        Ok(())
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// The address that a MAC has on every IPv6 link by itself.
fn link_local(Mac([a, b, c, d, e, f]): Mac) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// EtherType and payload behind all tags.
fn untagged(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let mut at = ETHERNET_HEADER - 2;
    loop {
        let ethertype = u16::from_be_bytes(field(bytes, at)?);
        at += 2;
        match ethertype {
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => at += 2,
            _ => return Some((ethertype, bytes.get(at..)?)),
        }
    }
}

/// The ICMPv6 message in an IPv6 packet; none where it has none, or where it is a later fragment.
fn icmpv6(packet: &[u8]) -> Result<Option<&[u8]>, DropReason> {
    let mut next = *packet.get(6).ok_or(DropReason::Malformed)?;
    let mut at = 40;
    for _ in 0..MAX_EXTENSIONS {
        if next == ICMPV6 {
            return Ok(packet.get(at..));
        }
        if !EXTENSIONS.contains(&next) {
            return Ok(None);
        }
        let header: [u8; 4] = field(packet, at).ok_or(DropReason::Malformed)?;
        let length = match next {
            FRAGMENT if u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 => return Ok(None),
            FRAGMENT => 8,
            AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        next = header[0];
        at += length;
    }
    Err(DropReason::SpoofedSource)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::frame::{Offload, OwnedFrame};
    use crate::snapshot::PortId;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 9]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 7]);

    fn check(bytes: &[u8]) -> Result<(), DropReason> {
        let nets = ["10.0.0.9/32", "fd00::9/128"].map(|n| n.parse().unwrap());
        let mut frame = OwnedFrame::new(bytes, Offload::default());
        Sources::new([OWN], nets).check(&frame.frame(PortId(0)))
    }

    fn ethernet(src: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&[0xff; 6][..], &src.0, &ethertype.to_be_bytes(), payload].concat()
    }

    fn arp(sender: Mac, address: [u8; 4]) -> Vec<u8> {
        [&[0, 1, 8, 0, 6, 4, 0, 2][..], &sender.0, &address, &OTHER.0, &[10, 0, 0, 1]].concat()
    }

    fn udp(source: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        match source.parse().unwrap() {
            IpAddr::V4(a) => {
                let b = PacketBuilder::ipv4(a.octets(), [10, 0, 0, 1], 9).udp(1, 2);
                b.write(&mut bytes, &[]).unwrap();
                ethernet(OWN, ETHERTYPE_IPV4, &bytes)
            }
            IpAddr::V6(a) => {
                let b = PacketBuilder::ipv6(a.octets(), [0xfd; 16], 9).udp(1, 2);
                b.write(&mut bytes, &[]).unwrap();
                ethernet(OWN, ETHERTYPE_IPV6, &bytes)
            }
        }
    }

    /// A neighbor message: its type, its target, and the MAC in an option.
    fn nd(kind: u8, target: &str, mac: Mac, extensions: usize) -> Vec<u8> {
        let target: Ipv6Addr = target.parse().unwrap();
        let source: Ipv6Addr = "fd00::9".parse().unwrap();
        let option = [&[2, 1][..], &mac.0].concat();
        let icmp = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &option].concat();
        let mut rest = Vec::new();
        for n in 0..extensions {
            rest.extend([if n + 1 == extensions { ICMPV6 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        rest.extend(icmp);
        let next = if extensions == 0 { ICMPV6 } else { 60 };
        let mut packet = vec![0x60, 0, 0, 0, 0, u8::try_from(rest.len()).unwrap(), next, 255];
        packet.extend(source.octets());
        packet.extend([0xff; 16]);
        packet.extend(rest);
        ethernet(OWN, ETHERTYPE_IPV6, &packet)
    }

    #[test]
    fn own_addresses_pass_and_no_others() {
        use DropReason::{Malformed, SpoofedMac, SpoofedNeighbor, SpoofedSource};
        for source in ["10.0.0.9", "0.0.0.0", "fd00::9", "::", "fe80::ff:fe00:9"] {
            assert_eq!(check(&udp(source)), Ok(()), "{source}");
        }
        for source in ["10.0.0.7", "192.0.2.1", "127.0.0.1", "fd00::7", "fe80::ff:fe00:7", "::1"] {
            assert_eq!(check(&udp(source)), Err(SpoofedSource), "{source}");
        }
        assert_eq!(check(&ethernet(OTHER, 0x88b5, &[])), Err(SpoofedMac));
        assert_eq!(check(&ethernet(OWN, 0x88b5, &[])), Ok(()));
        for (mac, address, wanted) in [
            (OWN, [10, 0, 0, 9], Ok(())),
            (OWN, [0; 4], Ok(())),
            (OWN, [10, 0, 0, 1], Err(SpoofedNeighbor)),
            (OTHER, [10, 0, 0, 9], Err(SpoofedNeighbor)),
        ] {
            assert_eq!(check(&ethernet(OWN, ETHERTYPE_ARP, &arp(mac, address))), wanted);
        }
        for short in [ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN] {
            assert_eq!(check(&ethernet(OWN, short, &[0; 3])), Err(Malformed), "{short:04x}");
        }
    }

    #[test]
    fn neighbor_discovery_claims_nothing_of_others() {
        use DropReason::SpoofedNeighbor;
        for extensions in [0, 1, 3] {
            for (kind, target, mac, wanted) in [
                (136, "fd00::9", OWN, Ok(())),
                (136, "fd00::1", OWN, Err(SpoofedNeighbor)),
                (136, "fd00::9", OTHER, Err(SpoofedNeighbor)),
                // Whom a solicitation asks for is free.
                (135, "fd00::1", OWN, Ok(())),
                (135, "fd00::1", OTHER, Err(SpoofedNeighbor)),
                (134, "fd00::9", OWN, Err(SpoofedNeighbor)),
                (137, "fd00::9", OWN, Err(SpoofedNeighbor)),
                (128, "fd00::1", OTHER, Ok(())),
            ] {
                assert_eq!(check(&nd(kind, target, mac, extensions)), wanted, "{kind} {target} {extensions}");
            }
        }
        assert_eq!(check(&nd(136, "fd00::1", OWN, 20)), Err(DropReason::SpoofedSource), "hidden too well");
    }

    #[test]
    fn tags_hide_nothing() {
        let plain = ethernet(OWN, ETHERTYPE_ARP, &arp(OWN, [10, 0, 0, 1]));
        for tags in 1..5 {
            let tags = [0x81, 0, 0, 0].repeat(tags);
            let tagged = [&plain[..12], &tags, &plain[12..]].concat();
            assert_eq!(check(&tagged), Err(DropReason::SpoofedNeighbor));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), kind in 0usize..4) {
            let ethertype = [ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN][kind];
            let _ = check(&ethernet(OWN, ethertype, &bytes));
            let _ = check(&bytes);
        }
    }
}
