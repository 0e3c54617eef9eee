//! DHCP for IPv4, the server's side (RFC 2131, options of RFC 2132): what a message asks for, and what is said to it.
//!
//! An address belongs to a port. It is the port's from the moment in which it is offered until it is given back, declined, or the port
//! goes: a lease that is not renewed stays the port's, since nobody else can need it who is not a port. So the server keeps no
//! time, and what it says follows from the message and from whose the address is.
//!
//! Messages that came through a relay (`giaddr`) and such that are no Ethernet client's are nobody's.

use std::net::Ipv4Addr;

use etherparse::PacketBuilder;
use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress,
};

use super::{Dhcp, Holder, Terms};
use crate::mac::Mac;

/// Shorter messages are padded: BOOTP clients and relays take no shorter ones (RFC 1542 2.1).
const SHORTEST: usize = 300;
/// Longest name of a client: a DUID with its prefix (RFC 4361 6.1, RFC 8415 11.1). With it the answer fits into the smallest MTU.
const LONGEST_NAME: usize = 135;
const MAGIC: u32 = 0x6382_5363;
const ETHERNET: u8 = 1;
const TTL: u8 = 64;

/// Options, by RFC 2132.
mod option {
    pub(super) const SUBNET_MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS_SERVERS: u8 = 6;
    pub(super) const DOMAIN_NAME: u8 = 15;
    pub(super) const MTU: u8 = 26;
    pub(super) const REQUESTED: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const T1: u8 = 58;
    pub(super) const T2: u8 = 59;
    pub(super) const CLIENT: u8 = 61;
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    kind: DhcpMessageType,
    transaction: u32,
    broadcast: bool,
    /// Who asks.
    mac: Mac,
    /// The address that it has and may be answered at.
    has: Option<Ipv4Addr>,
    /// The address that it would like.
    wants: Option<Ipv4Addr>,
    /// The server that it means.
    server: Option<Ipv4Addr>,
    /// How it calls itself: said back to it (RFC 6842).
    client: Option<Vec<u8>>,
}

/// What is to become of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Ignore,
    /// This is said.
    Answer(Answer),
    /// The control plane has to do something first.
    Ask(Wish),
}

/// What a client wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// An address for this MAC, and this one if it can be had.
    Lease(Mac, Option<Ipv4Addr>),
    /// It needs its address no more.
    Release(Ipv4Addr),
    /// Somebody else uses its address.
    Decline(Ipv4Addr),
}

/// What is said to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    kind: DhcpMessageType,
    /// The address that it gets or keeps; none where the message is not about that.
    address: Option<Ipv4Addr>,
}

impl Message {
    /// Reads a message that came from `source`; none if it is not a client's own to a server.
    pub fn parse(payload: &[u8], source: Mac) -> Option<Self> {
        let packet = DhcpPacket::new_checked(payload).ok()?;
        let mac = Mac(packet.client_hardware_address().0);
        let direct = packet.relay_agent_ip().is_unspecified() && mac == source;
        if !direct || payload[..3] != [1, ETHERNET, 6] || packet.magic_number() != MAGIC {
            return None;
        }
        let address = |data: &[u8]| data.try_into().ok().map(|octets: [u8; 4]| Ipv4Addr::from(octets));
        let has = Some(packet.client_ip()).filter(|a| !a.is_unspecified());
        let mut new = Self {
            kind: DhcpMessageType::Unknown(0),
            transaction: packet.transaction_id(),
            broadcast: packet.flags().bits() != 0,
            mac,
            has,
            wants: None,
            server: None,
            client: None,
        };
        for DhcpOption { kind, data } in packet.options() {
            match kind {
                option::MESSAGE_TYPE => new.kind = DhcpMessageType::from(*data.first()?),
                option::REQUESTED => new.wants = address(data).filter(|a| !a.is_unspecified()),
                option::SERVER => new.server = Some(address(data)?),
                option::CLIENT if data.len() <= LONGEST_NAME => new.client = Some(data.to_vec()),
                option::CLIENT => return None,
                _ => {}
            }
        }
        Some(new)
    }

    /// What becomes of it, by whose the port's address is.
    pub fn respond(&self, dhcp: &Dhcp, holder: Option<&Holder>) -> Outcome {
        let own = holder.filter(|h| h.mac == Some(self.mac)).map(|h| h.address);
        let answer = |kind, address| Outcome::Answer(Answer { kind, address });
        match self.kind {
            DhcpMessageType::Discover => match own {
                Some(address) => answer(DhcpMessageType::Offer, Some(address)),
                None => Outcome::Ask(Wish::Lease(self.mac, self.wants)),
            },
            // It has chosen another server's offer.
            DhcpMessageType::Request if self.server.is_some_and(|server| server != dhcp.gateway) => {
                Outcome::Ignore
            }
            DhcpMessageType::Request => match (self.wants.or(self.has), own) {
                (None, _) => Outcome::Ignore,
                (Some(wanted), Some(own)) if wanted == own => answer(DhcpMessageType::Ack, Some(own)),
                // It knows its address from earlier (RFC 2131 4.3.2: INIT-REBOOT, RENEWING, REBINDING); nobody but this server could
                // tell it that it may not have it any more.
                (Some(wanted), None) if self.server.is_none() => {
                    Outcome::Ask(Wish::Lease(self.mac, Some(wanted)))
                }
                _ => answer(DhcpMessageType::Nak, None),
            },
            DhcpMessageType::Decline if own.is_some() && self.wants == own => {
                own.map_or(Outcome::Ignore, |address| Outcome::Ask(Wish::Decline(address)))
            }
            DhcpMessageType::Release if own.is_some() && self.has == own => {
                own.map_or(Outcome::Ignore, |address| Outcome::Ask(Wish::Release(address)))
            }
            DhcpMessageType::Inform if self.has.is_some() => answer(DhcpMessageType::Ack, None),
            _ => Outcome::Ignore,
        }
    }

    /// What is said when what it wanted could not be done: that it must not use the address that it believes to have. Else nothing, as
    /// to one for whom there is no address.
    pub fn refusal(&self) -> Option<Answer> {
        let refused = self.kind == DhcpMessageType::Request;
        refused.then_some(Answer { kind: DhcpMessageType::Nak, address: None })
    }

    /// The frame with an answer: to the client at its address where it has one, else as it can hear it (RFC 2131 4.1).
    pub fn frame(&self, answer: &Answer, terms: &Terms, dhcp: &Dhcp) -> Option<Vec<u8>> {
        let payload = self.payload(answer, terms, dhcp)?;
        let refused = answer.kind == DhcpMessageType::Nak;
        let (mac, address) = match (self.has, answer.address) {
            (Some(has), _) if !refused => (self.mac, has),
            (None, Some(address)) if !refused && !self.broadcast => (self.mac, address),
            _ => (Mac::BROADCAST, Ipv4Addr::BROADCAST),
        };
        let ip = PacketBuilder::ethernet2(terms.gateway_mac.0, mac.0).ipv4(
            dhcp.gateway.octets(),
            address.octets(),
            TTL,
        );
        let mut frame = Vec::new();
        ip.udp(DHCP_SERVER_PORT, DHCP_CLIENT_PORT).write(&mut frame, &payload).ok()?;
        Some(frame)
    }

    fn payload(&self, answer: &Answer, terms: &Terms, dhcp: &Dhcp) -> Option<Vec<u8>> {
        let gateway = dhcp.gateway.octets();
        let lease = u32::try_from(dhcp.lease.as_secs()).unwrap_or(u32::MAX);
        let times = [lease, lease / 2, lease - lease / 8].map(u32::to_be_bytes);
        let mask = dhcp.subnet.netmask().octets();
        let mtu = u16::try_from(terms.mtu).unwrap_or(u16::MAX).to_be_bytes();
        let mut options: Vec<DhcpOption<'_>> = Vec::new();
        let mut add = |kind, data| options.push(DhcpOption { kind, data });
        if let Some(client) = &self.client {
            add(option::CLIENT, client);
        }
        if answer.kind != DhcpMessageType::Nak {
            add(option::SUBNET_MASK, &mask);
            add(option::ROUTER, &gateway);
            if terms.dns {
                add(option::DNS_SERVERS, &gateway);
            }
            add(option::DOMAIN_NAME, terms.domain.as_bytes());
            add(option::MTU, &mtu);
        }
        // An address that the client has from elsewhere has no end here (RFC 2131 4.3.5).
        if answer.address.is_some() {
            add(option::LEASE_TIME, &times[0]);
            add(option::T1, &times[1]);
            add(option::T2, &times[2]);
        }
        let has = self.has.filter(|_| answer.kind == DhcpMessageType::Ack);
        let repr = DhcpRepr {
            message_type: answer.kind,
            transaction_id: self.transaction,
            secs: 0,
            client_hardware_address: EthernetAddress(self.mac.0),
            client_ip: has.unwrap_or(Ipv4Addr::UNSPECIFIED),
            your_ip: answer.address.unwrap_or(Ipv4Addr::UNSPECIFIED),
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: self.broadcast,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(dhcp.gateway),
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &options,
        };
        let mut payload = vec![0; repr.buffer_len().max(SHORTEST)];
        repr.emit(&mut DhcpPacket::new_unchecked(payload.as_mut_slice())).ok()?;
        Some(payload)
    }
}

#[cfg(test)]
mod tests;
