//! Router advertisements (RFC 4861, RFC 4862): what a gateway tells of an IPv6 network, and who asks for it.
//!
//! They go to one port at a time, and only to ports without an IPv6 address that swd gave them: a container that was attached with one would
//! make itself a second address and a second default route of it.

use std::net::Ipv6Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Duration;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscPrefixInfoFlags,
    NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags,
};

use super::{Advertised, Terms, labels};
use crate::frame::{ETHERNET_HEADER, ETHERTYPE_IPV6};
use crate::mac::Mac;
use crate::router::gateway::link_local;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
const IPV6_HEADER: usize = 40;
/// Neighbor discovery is for the link: a packet that came through a router has a smaller one.
const LINK_HOP_LIMIT: u8 = 255;
/// What containers are to send with.
const HOP_LIMIT: u8 = 64;
/// How long the gateway is a router to those who hear of it no more: three advertisements may get lost on the way (RFC 4861 6.2.1).
const ROUTER_LIFETIME: u16 = 1800;
/// How long an address made of the prefix lives without another advertisement, in seconds, and how long it is preferred.
const VALID: u64 = 86_400;
const PREFERRED: u64 = 14_400;
/// Options of RFC 8106.
const RDNSS: u8 = 25;
const DNSSL: u8 = 31;

/// Who solicits an advertisement: its MAC, and its address if it has one.
pub fn solicitation(frame: &[u8]) -> Option<(Mac, Option<Ipv6Addr>)> {
    let mac = Mac(frame.get(6..12)?.try_into().ok()?);
    let ip = Ipv6Packet::new_checked(frame.get(ETHERNET_HEADER..)?).ok()?;
    if ip.next_header() != IpProtocol::Icmpv6 || ip.hop_limit() != LINK_HOP_LIMIT {
        return None;
    }
    let (from, to) = (ip.src_addr(), ip.dst_addr());
    let packet = Icmpv6Packet::new_checked(ip.payload()).ok()?;
    match Icmpv6Repr::parse(&from, &to, &packet, &ChecksumCapabilities::default()).ok()? {
        // Who has no address yet cannot say where it is (RFC 4861 6.1.1).
        Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: Some(_) }) if from.is_unspecified() => None,
        Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { .. }) => {
            Some((mac, Some(from).filter(|from| !from.is_unspecified())))
        }
        _ => None,
    }
}

/// The frame with an advertisement: to who has solicited it, or to all that are behind a port.
pub fn advertisement(terms: &Terms, of: &Advertised, to: Option<(Mac, Option<Ipv6Addr>)>) -> Vec<u8> {
    let (mac, to) = to.map_or((ALL_NODES_MAC, None), |(mac, address)| (mac, address));
    let to = to.unwrap_or(ALL_NODES);
    let from = link_local(terms.gateway_mac);
    let mut flags = NdiscPrefixInfoFlags::ON_LINK;
    // An interface's own part of an address has 64 bits (RFC 4291 2.5.1).
    if of.prefix.prefix_len() == 64 {
        flags |= NdiscPrefixInfoFlags::ADDRCONF;
    }
    let prefix = NdiscPrefixInformation {
        prefix_len: of.prefix.prefix_len(),
        flags,
        valid_lifetime: Duration::from_secs(VALID),
        preferred_lifetime: Duration::from_secs(PREFERRED),
        prefix: of.prefix.network(),
    };
    let repr = Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
        hop_limit: HOP_LIMIT,
        flags: NdiscRouterFlags::OTHER,
        router_lifetime: Duration::from_secs(ROUTER_LIFETIME.into()),
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(EthernetAddress(terms.gateway_mac.0).into()),
        mtu: Some(terms.mtu),
        prefix_info: Some(prefix),
    });
    let names = if terms.dns { names(terms, of) } else { Vec::new() };
    let ip = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: repr.buffer_len() + names.len(),
        hop_limit: LINK_HOP_LIMIT,
    };
    let mut frame = [&mac.0[..], &terms.gateway_mac.0, &ETHERTYPE_IPV6.to_be_bytes()].concat();
    frame.resize(ETHERNET_HEADER + IPV6_HEADER + repr.buffer_len(), 0);
    ip.emit(&mut Ipv6Packet::new_unchecked(&mut frame[ETHERNET_HEADER..]));
    let at = ETHERNET_HEADER + IPV6_HEADER;
    repr.emit(
        &from,
        &to,
        &mut Icmpv6Packet::new_unchecked(&mut frame[at..]),
        &ChecksumCapabilities::ignored(),
    );
    frame.extend(names);
    Icmpv6Packet::new_unchecked(&mut frame[at..]).fill_checksum(&from, &to);
    frame
}

/// Who is asked for names, and what is tried behind one: as long as the gateway is a router.
fn names(terms: &Terms, of: &Advertised) -> Vec<u8> {
    let lifetime = u32::from(ROUTER_LIFETIME).to_be_bytes();
    let mut options = [&[RDNSS, 3, 0, 0][..], &lifetime, &of.gateway.octets()].concat();
    let mut domain = labels(&terms.domain);
    domain.resize(domain.len().next_multiple_of(8), 0);
    // A network's name has 63 characters at most, so there are nine units of eight bytes at most.
    let units = u8::try_from(1 + domain.len() / 8).unwrap_or(u8::MAX);
    options.extend([DNSSL, units, 0, 0]);
    options.extend(lifetime);
    options.extend(domain);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn terms() -> (Terms, Advertised) {
        let of = Advertised { prefix: "fd00:7::/64".parse().unwrap(), gateway: "fd00:7::1".parse().unwrap() };
        let terms = Terms {
            domain: "lan".into(),
            dns: true,
            mtu: 1400,
            gateway_mac: Mac([2, 0, 0, 0, 0, 1]),
            dhcp: None,
            advertised: Some(of),
        };
        (terms, of)
    }

    #[test]
    fn an_advertisement_says_it_all() {
        let (terms, of) = terms();
        let client: Ipv6Addr = "fe80::9".parse().unwrap();
        let frame = advertisement(&terms, &of, Some((CLIENT, Some(client))));
        assert_eq!(frame[..6], CLIENT.0);
        let ip = Ipv6Packet::new_checked(&frame[14..]).unwrap();
        assert_eq!((ip.hop_limit(), ip.dst_addr()), (255, client));
        assert_eq!(ip.src_addr(), "fe80::ff:fe00:1".parse::<Ipv6Addr>().unwrap());
        let packet = Icmpv6Packet::new_checked(ip.payload()).unwrap();
        let checks = ChecksumCapabilities::default();
        let Ok(Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
            flags, mtu, prefix_info, router_lifetime, ..
        })) = Icmpv6Repr::parse(&ip.src_addr(), &ip.dst_addr(), &packet, &checks)
        else {
            panic!("{frame:x?}")
        };
        assert_eq!((flags, mtu, router_lifetime.secs()), (NdiscRouterFlags::OTHER, Some(1400), 1800));
        assert!(prefix_info.is_some_and(|p| p.flags.contains(NdiscPrefixInfoFlags::ADDRCONF)));
        let names = [
            &[25, 3, 0, 0, 0, 0, 7, 8][..],
            &of.gateway.octets(),
            &[31, 2, 0, 0, 0, 0, 7, 8, 3],
            b"lan",
            &[0; 4],
        ];
        assert!(frame.ends_with(&names.concat()));

        let to_all = advertisement(&terms, &of, None);
        assert_eq!(to_all[..6], ALL_NODES_MAC.0);
        let longer = Advertised { prefix: "fd00:7::/80".parse().unwrap(), ..of };
        let silent = Terms { dns: false, ..terms };
        let frame = advertisement(&silent, &longer, None);
        // The prefix is the last option then, with its flags in its fourth byte: on the link, and nothing to make an address of.
        assert_eq!(frame[frame.len() - 29], 0x80);
        assert!(!frame.ends_with(&names.concat()));
    }

    #[test]
    fn only_solicitations_of_the_link_are_heard() {
        let solicit = |from: &str, hop_limit: u8, option: &[u8]| {
            let from: Ipv6Addr = from.parse().unwrap();
            let to: Ipv6Addr = "ff02::2".parse().unwrap();
            let mut frame = Vec::new();
            etherparse::PacketBuilder::ethernet2(CLIENT.0, [0x33, 0x33, 0, 0, 0, 2])
                .ipv6(from.octets(), to.octets(), hop_limit)
                .icmpv6_raw(133, 0, [0; 4])
                .write(&mut frame, option)
                .unwrap();
            solicitation(&frame)
        };
        let option = [&[1, 1][..], &CLIENT.0].concat();
        assert_eq!(solicit("fe80::9", 255, &option), Some((CLIENT, Some("fe80::9".parse().unwrap()))));
        assert_eq!(solicit("::", 255, &[]), Some((CLIENT, None)));
        assert_eq!(solicit("::", 255, &option), None);
        assert_eq!(solicit("fe80::9", 254, &option), None);
        assert_eq!(solicit("fe80::9", 255, &[1, 0, 0]), None);
        assert_eq!(solicitation(&[0; 60]), None);
    }
}
