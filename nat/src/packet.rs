//! A view of an IP packet in place: where its headers are, what they say, and the edits that NAT and a router make.
//!
//! [`Packet::parse`] looks once and remembers offsets; after it succeeded no accessor or edit panics. Edits keep every
//! checksum that covers the edited bytes in the state it was in: a right one stays right, a wrong one stays wrong, a
//! partial one stays partial (see [`crate::checksum`]), and a UDP checksum of zero ("none") stays zero. Nothing but
//! headers is touched, so a frame of many segments (GSO) is edited like one packet.
//!
//! Refused, because an edit could not keep them right: packets with a source route that is not used up (the checksum
//! covers the final destination, RFC 8200 section 8.1), and first fragments that do not hold the whole transport header
//! (RFC 1858, RFC 7112). IPv4 header checksums are not verified: the next host does, and an update keeps a wrong one
//! wrong.

mod layout;

use thiserror::Error;

use crate::checksum::{self, Checksum, Delta};
use crate::tuple::{Address, Endpoint, NetworkId, Protocol, Tuple};
use layout::{Extent, Layout, Version};

/// Why bytes are not a packet that can be translated.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// A length or a header contradicts another, or an address is impossible on the wire.
    #[error("malformed IP packet")]
    Malformed,
    /// More than [`MAX_EXTENSIONS`] IPv6 extension headers.
    #[error("too many IPv6 extension headers")]
    Extensions,
    /// A source route has hops left; translating would break it (and it is a way round filters).
    #[error("source-routed packet")]
    SourceRoute,
    /// A first fragment without the whole transport header, or a later one that would overwrite it (RFC 1858).
    #[error("first fragment without the transport header")]
    TinyFragment,
    /// Fewer bytes than the headers say.
    #[error("truncated IP packet")]
    Truncated,
}

/// The most IPv6 extension headers that are walked.
pub const MAX_EXTENSIONS: usize = 8;

/// What the IP header says about fragmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The datagram's identification; sixteen bits in IPv4.
    pub id: u32,
    /// Where this fragment's bytes belong, in bytes.
    pub offset: u16,
    /// True for all but the datagram's last fragment.
    pub more: bool,
}

/// The transport header as far as NAT is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// An ICMP or ICMPv6 error, which quotes the packet that caused it.
    Error,
    /// A later fragment: no transport header here.
    Later,
    /// Known by addresses alone; includes ICMP messages that are neither query nor error.
    Opaque,
    /// An answer to an ICMP query.
    QueryReply,
    /// An ICMP query: echo, or the IPv4 timestamp.
    QueryRequest,
    /// SCTP. Its ports are read and never written: its checksum (CRC32c) would need the whole packet.
    Sctp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// TCP flag bits.
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgment number is valid.
    pub const ACK: u8 = 0x10;
}

/// The parts of a TCP header that connection tracking looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSegment {
    /// Flag bits, see [`tcp_flag`].
    pub flags: u8,
    /// Sequence number of the first byte (or of the SYN).
    pub sequence: u32,
    /// Acknowledgment number; meaningless without `ACK`.
    pub acknowledgment: u32,
    /// The window field as sent, unscaled.
    pub window: u16,
    /// Bytes of payload; of all segments together in a GSO frame.
    pub payload: u32,
    /// The window-scale option, of a SYN only.
    pub window_scale: Option<u8>,
}

impl TcpSegment {
    /// A segment by its bytes, from its source port on. Bytes that are not there count as 0.
    pub fn parse(bytes: &[u8]) -> Self {
        let header_len = usize::from(byte(bytes, 12) >> 4) * 4;
        let flags = byte(bytes, 13);
        let window_scale = match flags & tcp_flag::SYN {
            0 => None,
            _ => tcp_option(bytes, 3, 3).map(|at| byte(bytes, at + 2)),
        };
        Self {
            flags,
            sequence: u32::from_be_bytes(array(bytes, 4)),
            acknowledgment: u32::from_be_bytes(array(bytes, 8)),
            window: word(bytes, 14),
            payload: u32::try_from(bytes.len().saturating_sub(header_len)).unwrap_or(u32::MAX),
            window_scale,
        }
    }

    /// True when all of `flags` are set.
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

/// An IP packet that can be read and edited in place.
#[derive(Debug)]
pub struct Packet<'a> {
    bytes: &'a mut [u8],
    layout: Layout,
    checksum: Checksum,
}

impl<'a> Packet<'a> {
    /// Looks at the IP packet at the start of `bytes`; what follows it (Ethernet padding) is left out of the view.
    ///
    /// `checksum` says whether the transport checksum is finished; the caller knows from the frame's `virtio_net_hdr`.
    pub fn parse(bytes: &'a mut [u8], checksum: Checksum) -> Result<Self, ParseError> {
        let layout = Layout::parse(bytes, Extent::Whole)?;
        let bytes = bytes.get_mut(..layout.end).ok_or(ParseError::Truncated)?;
        Ok(Self { bytes, layout, checksum })
    }

    /// The packet's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// The packet's length in bytes, IP header included.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never true: a packet has at least an IP header.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether the transport checksum is finished.
    pub const fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// The transport protocol; of a later IPv6 fragment the fragment header's next-header value.
    pub const fn protocol(&self) -> Protocol {
        self.layout.protocol
    }

    /// What kind of transport header there is.
    pub const fn transport(&self) -> Transport {
        self.layout.transport
    }

    /// The bytes from the transport header on.
    pub fn transport_bytes(&self) -> &[u8] {
        self.bytes.get(self.layout.transport_at..).unwrap_or_default()
    }

    /// What the packet is a fragment of; `None` for a whole packet, also for an IPv6 "atomic fragment" (RFC 6946).
    pub const fn fragment(&self) -> Option<Fragment> {
        self.layout.fragment
    }

    /// True for an IPv4 packet.
    pub fn is_v4(&self) -> bool {
        self.layout.version == Version::V4
    }

    /// The source address.
    pub fn source(&self) -> Address {
        match self.layout.version {
            Version::V4 => Address::from_v4_octets(array(self.bytes, 12)),
            Version::V6 => Address::from_v6_octets(array(self.bytes, 8)),
        }
    }

    /// The destination address.
    pub fn destination(&self) -> Address {
        match self.layout.version {
            Version::V4 => Address::from_v4_octets(array(self.bytes, 16)),
            Version::V6 => Address::from_v6_octets(array(self.bytes, 24)),
        }
    }

    /// The tuple of the packet, which arrived from `network`.
    ///
    /// `None` where a packet has no tuple of its own: ICMP errors, ICMP messages that are not queries, later fragments.
    pub fn tuple(&self, network: NetworkId) -> Option<Tuple> {
        let at = self.layout.transport_at;
        let (source, destination) = match self.layout.transport {
            Transport::Error | Transport::Later => return None,
            Transport::Opaque => match self.layout.protocol {
                Protocol::Icmp | Protocol::Icmpv6 => return None,
                _ => (0, 0),
            },
            Transport::QueryReply => (0, word(self.bytes, at + 4)),
            Transport::QueryRequest => (word(self.bytes, at + 4), 0),
            Transport::Sctp | Transport::Tcp | Transport::Udp => {
                (word(self.bytes, at), word(self.bytes, at + 2))
            }
        };
        Some(Tuple {
            source: Endpoint { address: self.source(), port: source },
            destination: Endpoint { address: self.destination(), port: destination },
            protocol: self.layout.protocol,
            network,
        })
    }

    /// The TCP header's fields, if this is TCP.
    pub fn tcp(&self) -> Option<TcpSegment> {
        (self.layout.transport == Transport::Tcp).then(|| TcpSegment::parse(self.transport_bytes()))
    }

    /// The time to live (IPv4) or hop limit (IPv6).
    pub fn hop_limit(&self) -> u8 {
        match self.layout.version {
            Version::V4 => byte(self.bytes, 8),
            Version::V6 => byte(self.bytes, 7),
        }
    }

    /// Takes one hop from the time to live or hop limit and returns what is left.
    ///
    /// `None`, and nothing changed, when the packet may not be forwarded any more (RFC 1812 section 5.3.1).
    pub fn decrement_hop_limit(&mut self) -> Option<u8> {
        let left = self.hop_limit().checked_sub(1).filter(|&left| left > 0)?;
        match self.layout.version {
            Version::V4 => {
                let old = word(self.bytes, 8);
                set_byte(self.bytes, 8, left);
                let delta = Delta::default().word(old, word(self.bytes, 8));
                set_word(self.bytes, 10, delta.update(word(self.bytes, 10)));
            }
            Version::V6 => set_byte(self.bytes, 7, left),
        }
        Some(left)
    }

    /// Lowers the maximum-segment-size option of a TCP SYN to at most `limit` bytes; other packets are left alone.
    pub fn clamp_mss(&mut self, limit: u16) {
        if !self.tcp().is_some_and(|segment| segment.has(tcp_flag::SYN)) {
            return;
        }
        let Some(option) = tcp_option(self.transport_bytes(), 2, 4) else { return };
        let at = self.layout.transport_at + option + 2;
        let old = word(self.bytes, at);
        if old <= limit {
            return;
        }
        set_word(self.bytes, at, limit);
        // A word at an odd offset of the header counts with its bytes swapped (RFC 1071 section 2.B).
        let delta = match option % 2 {
            0 => Delta::default().word(old, limit),
            _ => Delta::default().word(old.swap_bytes(), limit.swap_bytes()),
        };
        self.update_transport(Delta::default(), delta);
    }

    /// Finishes a partial transport checksum, for a packet that leaves the world of offloads.
    ///
    /// The packet must fit one segment: a GSO frame has to be cut first.
    pub fn complete_checksum(&mut self) {
        if self.checksum == Checksum::Complete {
            return;
        }
        self.checksum = Checksum::Complete;
        let Some(at) = self.checksum_at() else { return };
        let sum = !checksum::sum(self.transport_bytes());
        set_word(
            self.bytes,
            at,
            if sum == 0 && self.layout.transport == Transport::Udp { 0xffff } else { sum },
        );
    }

    /// Replaces the transport checksum by the partial one.
    #[cfg(test)]
    pub(crate) fn make_partial(&mut self) {
        let sum = match self.layout.protocol {
            Protocol::Icmp => 0,
            _ => self.pseudo_header_sum(),
        };
        if let Some(at) = self.checksum_at() {
            set_word(self.bytes, at, sum);
        }
    }

    /// Replaces source and destination, ports or query identifier included, and updates every checksum.
    ///
    /// Ports are ignored where the packet has none (later fragments, opaque protocols) or where they cannot be changed
    /// (SCTP). Both addresses must be of the packet's family; one of the other family is ignored.
    pub(crate) fn translate(&mut self, source: Endpoint, destination: Endpoint) {
        let mut addresses = Delta::default();
        for (old, new, v4_at, v6_at) in
            [(self.source(), source.address, 12, 8), (self.destination(), destination.address, 16, 24)]
        {
            if old == new || new.is_v4() != self.is_v4() {
                continue;
            }
            addresses = addresses.address(old, new);
            match self.layout.version {
                Version::V4 => set_bytes(self.bytes, v4_at, &new.v4_octets()),
                Version::V6 => set_bytes(self.bytes, v6_at, &new.v6_octets()),
            }
        }
        if self.is_v4() {
            set_word(self.bytes, 10, addresses.update(word(self.bytes, 10)));
        }
        let at = self.layout.transport_at;
        let mut ports = Delta::default();
        let mut set = |at, new| {
            ports = ports.word(word(self.bytes, at), new);
            set_word(self.bytes, at, new);
        };
        match self.layout.transport {
            Transport::Error | Transport::Later | Transport::Opaque | Transport::Sctp => {}
            Transport::QueryReply => set(at + 4, destination.port),
            Transport::QueryRequest => set(at + 4, source.port),
            Transport::Tcp | Transport::Udp => {
                set(at, source.port);
                set(at + 2, destination.port);
            }
        }
        self.update_transport(addresses, ports);
    }

    /// Applies a change of the pseudo-header and one of the transport header to the transport checksum.
    fn update_transport(&mut self, pseudo_header: Delta, header: Delta) {
        let Some(at) = self.checksum_at() else { return };
        let pseudo_header = match self.layout.protocol {
            Protocol::Icmp => Delta::default(),
            _ => pseudo_header,
        };
        let old = word(self.bytes, at);
        let udp = self.layout.transport == Transport::Udp;
        let new = match self.checksum {
            Checksum::Complete if udp && old == 0 => 0,
            Checksum::Complete => match pseudo_header.and(header).update(old) {
                0 if udp => 0xffff,
                new => new,
            },
            Checksum::Partial => pseudo_header.update_partial(old),
        };
        set_word(self.bytes, at, new);
    }

    /// Where the transport checksum is, if this packet (or quote) has one that depends on what NAT edits.
    fn checksum_at(&self) -> Option<usize> {
        let offset = match (self.layout.transport, self.layout.protocol) {
            (Transport::Later | Transport::Sctp, _) => return None,
            (Transport::Tcp, _) => 16,
            (_, Protocol::Icmp) if self.is_v4() => 2,
            (_, Protocol::Icmpv6) if !self.is_v4() => 2,
            // UDP, and with the same layout UDP-Lite (RFC 3828) and DCCP (RFC 4340).
            (_, Protocol::Udp | Protocol::Other(33 | 136)) => 6,
            _ => return None,
        };
        let at = self.layout.transport_at + offset;
        (at + 2 <= self.bytes.len()).then_some(at)
    }

    /// True if the ICMP or ICMPv6 checksum verifies. A partial one is the sender's device's affair and counts as right.
    pub(crate) fn icmp_checksum_holds(&self) -> bool {
        self.checksum == Checksum::Partial || matches!(self.icmp_sum(), 0xffff | 0)
    }

    /// Sums the ICMP message anew, after its payload was edited.
    pub(crate) fn renew_icmp_checksum(&mut self) {
        let Some(at) = self.checksum_at() else { return };
        set_word(self.bytes, at, 0);
        let sum = match (self.checksum, self.layout.protocol) {
            (Checksum::Complete, _) => !self.icmp_sum(),
            (Checksum::Partial, Protocol::Icmpv6) => self.pseudo_header_sum(),
            (Checksum::Partial, _) => 0,
        };
        set_word(self.bytes, at, sum);
    }

    fn icmp_sum(&self) -> u16 {
        let message = checksum::sum(self.transport_bytes());
        match self.layout.protocol {
            // Adding is applying the change of a word from 0xffff ("minus zero") to the sum.
            Protocol::Icmpv6 => {
                Delta::default().word(0xffff, message).update_partial(self.pseudo_header_sum())
            }
            _ => message,
        }
    }

    fn pseudo_header_sum(&self) -> u16 {
        let length = u32::try_from(self.transport_bytes().len()).unwrap_or(u32::MAX);
        checksum::pseudo_header_sum(self.source(), self.destination(), self.layout.protocol, length)
    }

    /// The packet that this ICMP error quotes, without any ICMP extensions behind it (RFC 4884).
    ///
    /// `None` if this is no error, or quotes too little to say which flow it is about, or quotes an IPv4 header whose
    /// checksum is wrong (RFC 5508 REQ-3a).
    pub(crate) fn quote(&mut self) -> Option<Packet<'_>> {
        if self.layout.transport != Transport::Error {
            return None;
        }
        let message = self.bytes.get_mut(self.layout.transport_at..)?;
        // The length of the quote, in words of four or eight bytes, where extensions may follow it.
        let length = match (self.layout.version, byte(message, 0)) {
            (Version::V4, 3 | 11 | 12) => usize::from(byte(message, 5)) * 4,
            (Version::V6, 1 | 3) => usize::from(byte(message, 4)) * 8,
            _ => 0,
        };
        let quote = message.get_mut(8..)?;
        let end = if length == 0 { quote.len() } else { length.min(quote.len()) };
        let quote = quote.get_mut(..end)?;
        let layout = Layout::parse(quote, Extent::Quote).ok()?;
        if layout.version != self.layout.version {
            return None;
        }
        let header_len = usize::from(byte(quote, 0) & 0x0f) * 4;
        if layout.version == Version::V4 && checksum::sum(quote.get(..header_len)?) != 0xffff {
            return None;
        }
        let bytes = quote.get_mut(..layout.end)?;
        Some(Packet { bytes, layout, checksum: Checksum::Complete })
    }

    /// Replaces the addresses of an ICMP error; its checksum must be renewed afterwards.
    pub(crate) fn translate_error(&mut self, source: Address, destination: Address) {
        self.translate(Endpoint { address: source, port: 0 }, Endpoint { address: destination, port: 0 });
    }
}

/// Where in a TCP header the option `kind` of length `len` is.
fn tcp_option(header: &[u8], kind: u8, len: usize) -> Option<usize> {
    let end = usize::from(byte(header, 12) >> 4) * 4;
    let mut at = 20;
    while at + len <= end.min(header.len()) {
        match byte(header, at) {
            0 => return None,
            1 => at += 1,
            found if found == kind && usize::from(byte(header, at + 1)) == len => return Some(at),
            _ => at += usize::from(byte(header, at + 1)).max(2),
        }
    }
    None
}

// Bytes past the end read as zero and are not written: parsing has checked what matters, and nothing may panic.

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

fn set_bytes(bytes: &mut [u8], at: usize, new: &[u8]) {
    if let Some(old) = bytes.get_mut(at..at + new.len()) {
        old.copy_from_slice(new);
    }
}

fn set_byte(bytes: &mut [u8], at: usize, new: u8) {
    set_bytes(bytes, at, &[new]);
}

fn set_word(bytes: &mut [u8], at: usize, new: u16) {
    set_bytes(bytes, at, &new.to_be_bytes());
}

#[cfg(test)]
mod tests;
