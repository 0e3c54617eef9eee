//! Where the headers of an IP packet are: the one look that everything else relies on.

use super::{Fragment, MAX_EXTENSIONS, ParseError, Transport, array, byte, word};
use crate::tuple::{Address, Protocol};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) version: Version,
    pub(super) protocol: Protocol,
    pub(super) transport: Transport,
    /// Where the transport header begins; never past the end.
    pub(super) transport_at: usize,
    pub(super) fragment: Option<Fragment>,
    /// Where the IP packet ends.
    pub(super) end: usize,
}

/// Whether all of a packet must be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// A packet quoted in an ICMP error: its beginning.
    Quote,
    Whole,
}

impl Layout {
    pub(super) fn parse(bytes: &[u8], extent: Extent) -> Result<Self, ParseError> {
        match byte(bytes, 0) >> 4 {
            4 => Self::parse_v4(bytes, extent),
            6 => Self::parse_v6(bytes, extent),
            _ => Err(ParseError::Malformed),
        }
    }

    fn parse_v4(bytes: &[u8], extent: Extent) -> Result<Self, ParseError> {
        let header_len = usize::from(byte(bytes, 0) & 0x0f) * 4;
        let total = usize::from(word(bytes, 2));
        if header_len < 20 || total < header_len {
            return Err(ParseError::Malformed);
        }
        let end = Self::end(bytes, total, extent)?;
        let options = bytes.get(20..header_len.min(end)).ok_or(ParseError::Truncated)?;
        if end < header_len {
            return Err(ParseError::Truncated);
        }
        if has_source_route(options) {
            return Err(ParseError::SourceRoute);
        }
        let flags = word(bytes, 6);
        let (more, offset) = (flags & 0x2000 != 0, (flags & 0x1fff) << 3);
        let fragment =
            (more || offset != 0).then_some(Fragment { id: u32::from(word(bytes, 4)), offset, more });
        Self::transport(bytes, Version::V4, byte(bytes, 9), header_len, fragment, end, extent)
    }

    fn parse_v6(bytes: &[u8], extent: Extent) -> Result<Self, ParseError> {
        let end = Self::end(bytes, usize::from(word(bytes, 4)) + 40, extent)?;
        if end < 40 {
            return Err(ParseError::Truncated);
        }
        let addresses = [Address::from_v6_octets(array(bytes, 8)), Address::from_v6_octets(array(bytes, 24))];
        if addresses.iter().any(|address| address.is_v4()) {
            return Err(ParseError::Malformed);
        }
        let (mut next, mut at) = (byte(bytes, 6), 40);
        let mut fragment = None;
        let mut fragment_seen = false;
        for _ in 0..=MAX_EXTENSIONS {
            let header = match next {
                0 | 43 | 44 | 60 => bytes.get(at..end).and_then(|rest| rest.get(..8)),
                _ => return Self::transport(bytes, Version::V6, next, at, fragment, end, extent),
            };
            let header = header.ok_or(match fragment {
                Some(_) => ParseError::TinyFragment,
                None => ParseError::Truncated,
            })?;
            let mut len = usize::from(byte(header, 1)) * 8 + 8;
            match next {
                43 if byte(header, 3) != 0 => return Err(ParseError::SourceRoute),
                44 if fragment_seen => return Err(ParseError::Malformed),
                44 => {
                    fragment_seen = true;
                    len = 8;
                    let (id, field) = (u32::from_be_bytes(array(header, 4)), word(header, 2));
                    let (offset, more) = (field & 0xfff8, field & 1 != 0);
                    fragment = (more || offset != 0).then_some(Fragment { id, offset, more });
                    if offset != 0 {
                        let next = byte(header, 0);
                        return Self::transport(bytes, Version::V6, next, at + 8, fragment, end, extent);
                    }
                }
                _ => {}
            }
            next = byte(header, 0);
            at += len;
        }
        Err(ParseError::Extensions)
    }

    /// Where a packet of `total` bytes ends within `bytes`.
    fn end(bytes: &[u8], total: usize, extent: Extent) -> Result<usize, ParseError> {
        match extent {
            Extent::Whole if total > bytes.len() => Err(ParseError::Truncated),
            _ => Ok(total.min(bytes.len())),
        }
    }

    fn transport(
        bytes: &[u8],
        version: Version,
        protocol: u8,
        at: usize,
        fragment: Option<Fragment>,
        end: usize,
        extent: Extent,
    ) -> Result<Self, ParseError> {
        let protocol = Protocol::from(protocol);
        let kind =
            |transport, quoted, whole| (transport, if extent == Extent::Quote { quoted } else { whole });
        let message = bytes.get(..end).map_or(0, |bytes| byte(bytes, at));
        // The kind, and how many bytes of it must be there; in a quote only what names the flow.
        let (transport, needed) = match (version, protocol) {
            (_, Protocol::Tcp) => kind(Transport::Tcp, 4, 20),
            (_, Protocol::Udp) => kind(Transport::Udp, 4, 8),
            (_, Protocol::Sctp) => kind(Transport::Sctp, 4, 12),
            (Version::V4, Protocol::Icmp) => kind(icmp_kind(message), 8, 8),
            (Version::V6, Protocol::Icmpv6) => kind(icmpv6_kind(message), 8, 8),
            _ => kind(Transport::Opaque, 0, 0),
        };
        let later = fragment.is_some_and(|fragment| fragment.offset != 0);
        if let Some(Fragment { offset, .. }) = fragment
            && later
            && usize::from(offset) < needed
        {
            return Err(ParseError::TinyFragment);
        }
        if !later && end < at + needed {
            return Err(if fragment.is_some() { ParseError::TinyFragment } else { ParseError::Truncated });
        }
        if end < at {
            return Err(ParseError::Truncated);
        }
        let transport = if later { Transport::Later } else { transport };
        Ok(Self { version, protocol, transport, transport_at: at, fragment, end })
    }
}

const fn icmp_kind(message: u8) -> Transport {
    match message {
        8 | 13 => Transport::QueryRequest,
        0 | 14 => Transport::QueryReply,
        3 | 11 | 12 => Transport::Error,
        _ => Transport::Opaque,
    }
}

const fn icmpv6_kind(message: u8) -> Transport {
    match message {
        128 => Transport::QueryRequest,
        129 => Transport::QueryReply,
        1..=4 => Transport::Error,
        _ => Transport::Opaque,
    }
}

/// True if IPv4 options hold a loose (131) or strict (137) source route with hops left (RFC 791 section 3.1).
fn has_source_route(mut options: &[u8]) -> bool {
    while let [kind, rest @ ..] = options {
        options = match *kind {
            0 => return false,
            1 => rest,
            131 | 137 if byte(options, 2) <= byte(options, 1) => return true,
            _ => options.get(usize::from(byte(options, 1)).max(2)..).unwrap_or_default(),
        };
    }
    false
}
