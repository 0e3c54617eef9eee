//! Packets in words: what `swctl trace` is told.
//!
//! ```text
//! tcp SRC:PORT > DST:PORT [syn] [ack] [fin] [rst] [psh]     without flags: syn
//! udp SRC:PORT > DST:PORT
//! icmp SRC > DST [echo|reply] [id N] [seq N]                ICMPv6 between IPv6 addresses
//! arp SRC > DST [reply]                                     SRC asks who has DST; or tells DST where SRC is
//! ... [ttl N] [len N] [mac MAC] [to-mac MAC]                len: bytes of payload
//! ```
//! The words are those that swd shows packets by.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

/// Longest payload that fits an IP packet with its headers.
const MAX_PAYLOAD: u16 = 65_000;

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// What it carries.
    pub kind: Kind,
    /// Hop limit; 64 by default.
    pub ttl: u8,
    /// Bytes of payload; none by default.
    pub len: u16,
    /// Source MAC, as text; that of the sender's station when left out.
    pub mac: Option<String>,
    /// Destination MAC, as text; that of the next hop when left out.
    pub to_mac: Option<String>,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP.
    Tcp {
        /// Source and destination port.
        ports: [u16; 2],
        /// Its flags.
        flags: Flags,
    },
    /// UDP.
    Udp {
        /// Source and destination port.
        ports: [u16; 2],
    },
    /// A ping, or the answer to one.
    Icmp {
        /// The answer.
        reply: bool,
        /// Identifier.
        id: u16,
        /// Sequence number.
        seq: u16,
    },
    /// ARP: a question, or an answer.
    Arp {
        /// The answer.
        reply: bool,
    },
}

/// TCP flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "that is what they are")]
pub struct Flags {
    /// SYN.
    pub syn: bool,
    /// ACK.
    pub ack: bool,
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
    /// PSH.
    pub psh: bool,
}

/// What is wrong with a packet's text.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PacketError {
    /// Not a protocol.
    #[error("'{0}' is not a protocol; begin with tcp, udp, icmp or arp")]
    Protocol(String),
    /// No `SRC > DST`.
    #[error("write '{0}'")]
    Form(&'static str),
    /// Not an endpoint.
    #[error("'{0}' is not an address with a port; write one like 172.18.0.10:40000 or [fd00::10]:40000")]
    Endpoint(String),
    /// Not an address.
    #[error("'{0}' is not an address; write one like 172.18.0.10 or fd00::10")]
    Address(String),
    /// Both families.
    #[error("source and destination are of different families")]
    Families,
    /// ARP for IPv6.
    #[error("ARP is for IPv4; IPv6 uses neighbor discovery, which is not traced by words: use --pcap")]
    Arp6,
    /// Not an option.
    #[error("'{word}' means nothing here; possible: {possible}")]
    Word {
        /// What was said.
        word: String,
        /// What could be.
        possible: &'static str,
    },
    /// Not a value.
    #[error("'{word}' wants a number from {from} to {to}")]
    Number {
        /// The option.
        word: &'static str,
        /// Least.
        from: u16,
        /// Most.
        to: u16,
    },
    /// No value.
    #[error("'{0}' wants a MAC address behind it")]
    Mac(&'static str),
}

impl FromStr for Packet {
    type Err = PacketError;

    fn from_str(text: &str) -> Result<Self, PacketError> {
        let spaced = text.replace('>', " > ");
        let mut words = spaced.split_whitespace();
        let protocol = words.next().unwrap_or_default();
        let with_ports = matches!(protocol, "tcp" | "udp");
        let form = match protocol {
            "tcp" => "tcp SRC:PORT > DST:PORT [syn|ack|fin|rst|psh]...",
            "udp" => "udp SRC:PORT > DST:PORT",
            "icmp" => "icmp SRC > DST [echo|reply] [id N] [seq N]",
            "arp" => "arp SRC > DST [reply]",
            other => return Err(PacketError::Protocol(other.to_owned())),
        };
        let (Some(from), Some(">"), Some(to)) = (words.next(), words.next(), words.next()) else {
            return Err(PacketError::Form(form));
        };
        let [source, destination] = match with_ports {
            true => [endpoint(from)?, endpoint(to)?],
            false => [SocketAddr::new(address(from)?, 0), SocketAddr::new(address(to)?, 0)],
        };
        if source.is_ipv4() != destination.is_ipv4() {
            return Err(PacketError::Families);
        }
        let ports = [source.port(), destination.port()];
        let kind = match protocol {
            "tcp" => Kind::Tcp { ports, flags: Flags::default() },
            "udp" => Kind::Udp { ports },
            "icmp" => Kind::Icmp { reply: false, id: 1, seq: 1 },
            _ if source.is_ipv6() => return Err(PacketError::Arp6),
            _ => Kind::Arp { reply: false },
        };
        let (source, destination) = (source.ip(), destination.ip());
        let mut new = Self { source, destination, kind, ttl: 64, len: 0, mac: None, to_mac: None };
        while let Some(word) = words.next() {
            new.option(word, &mut words)?;
        }
        if let Kind::Tcp { flags, .. } = &mut new.kind
            && *flags == Flags::default()
        {
            flags.syn = true;
        }
        Ok(new)
    }
}

impl Packet {
    fn option<'a>(
        &mut self,
        word: &str,
        rest: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), PacketError> {
        match (word, &mut self.kind) {
            ("syn", Kind::Tcp { flags, .. }) => flags.syn = true,
            ("ack", Kind::Tcp { flags, .. }) => flags.ack = true,
            ("fin", Kind::Tcp { flags, .. }) => flags.fin = true,
            ("rst", Kind::Tcp { flags, .. }) => flags.rst = true,
            ("psh", Kind::Tcp { flags, .. }) => flags.psh = true,
            ("echo", Kind::Icmp { reply, .. }) => *reply = false,
            ("reply", Kind::Icmp { reply, .. } | Kind::Arp { reply }) => *reply = true,
            ("id", Kind::Icmp { id, .. }) => *id = number("id", rest.next(), 0, u16::MAX)?,
            ("seq", Kind::Icmp { seq, .. }) => *seq = number("seq", rest.next(), 0, u16::MAX)?,
            ("ttl", _) => self.ttl = number("ttl", rest.next(), 0, 255)?.try_into().unwrap_or(u8::MAX),
            ("len", _) => self.len = number("len", rest.next(), 0, MAX_PAYLOAD)?,
            ("mac", _) => self.mac = Some(rest.next().ok_or(PacketError::Mac("mac"))?.to_owned()),
            ("to-mac", _) => self.to_mac = Some(rest.next().ok_or(PacketError::Mac("to-mac"))?.to_owned()),
            (_, kind) => {
                let possible = match kind {
                    Kind::Tcp { .. } => "syn, ack, fin, rst, psh, ttl N, len N, mac MAC, to-mac MAC",
                    Kind::Udp { .. } => "ttl N, len N, mac MAC, to-mac MAC",
                    Kind::Icmp { .. } => "echo, reply, id N, seq N, ttl N, len N, mac MAC, to-mac MAC",
                    Kind::Arp { .. } => "reply, mac MAC, to-mac MAC",
                };
                return Err(PacketError::Word { word: word.to_owned(), possible });
            }
        }
        Ok(())
    }
}

fn number(word: &'static str, value: Option<&str>, from: u16, to: u16) -> Result<u16, PacketError> {
    let number = value.and_then(|v| v.parse().ok()).filter(|n| (from..=to).contains(n));
    number.ok_or(PacketError::Number { word, from, to })
}

fn endpoint(text: &str) -> Result<SocketAddr, PacketError> {
    text.parse().map_err(|_| PacketError::Endpoint(text.to_owned()))
}

fn address(text: &str) -> Result<IpAddr, PacketError> {
    text.parse().map_err(|_| PacketError::Address(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Packet {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn packets_in_words() {
        let syn = parse("tcp 172.18.0.10:40000 > 1.1.1.1:443 syn");
        assert_eq!(syn, parse("tcp 172.18.0.10:40000>1.1.1.1:443"), "a SYN, where nothing is said");
        let flags = Flags { syn: true, ..Flags::default() };
        assert_eq!(syn.kind, Kind::Tcp { ports: [40_000, 443], flags });
        assert_eq!((syn.ttl, syn.len, syn.source.to_string().as_str()), (64, 0, "172.18.0.10"));
        let ack = parse("tcp [fd00::1]:1 > [fd00::2]:2 ack psh ttl 3 len 100 mac 02:00:00:00:00:01");
        let flags = Flags { ack: true, psh: true, ..Flags::default() };
        assert_eq!(ack.kind, Kind::Tcp { ports: [1, 2], flags });
        assert_eq!((ack.ttl, ack.len, ack.mac.as_deref()), (3, 100, Some("02:00:00:00:00:01")));
        let ping = parse("icmp fd00::1 > fd00::2 reply id 7 seq 8");
        assert_eq!(ping.kind, Kind::Icmp { reply: true, id: 7, seq: 8 });
        assert_eq!(parse("arp 10.0.0.1 > 10.0.0.2").kind, Kind::Arp { reply: false });
        assert_eq!(parse("udp 10.0.0.1:53 > 10.0.0.2:53").kind, Kind::Udp { ports: [53, 53] });
    }

    #[test]
    fn mistakes_say_what_is_right() {
        for (text, part) in [
            ("", "begin with tcp, udp, icmp or arp"),
            ("sctp 1.1.1.1 > 2.2.2.2", "'sctp' is not a protocol"),
            ("tcp 1.1.1.1:1", "write 'tcp SRC:PORT > DST:PORT"),
            ("tcp 1.1.1.1 > 2.2.2.2:1", "'1.1.1.1' is not an address with a port"),
            ("icmp 1.1.1.1:5 > 2.2.2.2", "'1.1.1.1:5' is not an address;"),
            ("icmp 1.1.1.1 > fd00::1", "different families"),
            ("arp fd00::1 > fd00::2", "--pcap"),
            ("udp 1.1.1.1:1 > 2.2.2.2:2 syn", "'syn' means nothing here; possible: ttl N"),
            ("udp 1.1.1.1:1 > 2.2.2.2:2 ttl 256", "'ttl' wants a number from 0 to 255"),
            ("udp 1.1.1.1:1 > 2.2.2.2:2 len", "'len' wants a number"),
            ("udp 1.1.1.1:1 > 2.2.2.2:2 mac", "'mac' wants a MAC address"),
        ] {
            let said = text.parse::<Packet>().expect_err(text).to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
    }
}
