//! Floods: frames that nobody wants, sent past the kernel's stack, as many as a packet socket takes.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use etherparse::Ipv4Header;
use nix::net::if_::if_nametoindex;
use switch::frame::ETHERNET_HEADER;
use switch::mac::Mac;
use switch::sys::mmsg::{MAX_SEND, Sender};
use switch::sys::packet::PacketSocket;
use tests::raw::{BROADCAST, arp_request, experiment, syn4, udp4};

use crate::figures::Figures;

/// Different frames of a flood: more flows than a port may have connections.
const FRAMES: u32 = 1 << 17;
/// Length of an offload header that asks for nothing.
const NO_OFFLOAD: [u8; 10] = [0; 10];
/// Behind the gateway.
const OUTSIDE: [u8; 4] = [172, 16, 0, 1];

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// TCP SYNs to the outside, each of a connection of its own
    Syn,
    /// Datagrams to the outside, each of a flow of its own
    Udp,
    /// First fragments to the outside, the rest of which never comes
    Fragments,
    /// Who has …? For every address of the network
    Arp,
    /// Frames each from a MAC of its own, to a MAC that nobody has
    Macs,
    /// Broadcasts of an EtherType that no stack knows
    Broadcast,
}

impl Kind {
    /// As it is written on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Udp => "udp",
            Self::Fragments => "fragments",
            Self::Arp => "arp",
            Self::Macs => "macs",
            Self::Broadcast => "broadcast",
        }
    }

    /// The `n`th frame of a container with this MAC and address.
    fn frame(self, n: u32, (own, address): (Mac, Ipv4Addr), gateway: Mac) -> Vec<u8> {
        let [_, a, b, c] = n.to_be_bytes();
        let (own, source, gateway) = (own.0, address.octets(), gateway.0);
        // Each number has a pair of ports of its own: 512 destinations to a source.
        let from = 10_000 + u16::from_be_bytes([a, b]) % 50_000;
        let to = 20_000 + u16::from_be_bytes([0, c]);
        match self {
            Self::Syn => syn4((gateway, own), (source, from), (OUTSIDE, to)),
            Self::Udp => udp4((gateway, own), (source, from), (OUTSIDE, to), &[0; 18]),
            Self::Fragments => fragment(udp4((gateway, own), (source, from), (OUTSIDE, to), &[0; 24]), n),
            Self::Arp => arp_request(own, source, [172, 18, b, c]),
            Self::Macs => experiment([6, 1, 0, a, b, c], [6, 0, 0, a, b, c], b"flood"),
            Self::Broadcast => experiment(BROADCAST, own, b"flood"),
        }
    }
}

/// Makes the first fragment of datagram `n` of a whole one.
fn fragment(mut frame: Vec<u8>, n: u32) -> Vec<u8> {
    let packet = &mut frame[ETHERNET_HEADER..];
    if let Ok((mut header, _)) = Ipv4Header::from_slice(packet) {
        let [.., high, low] = n.to_be_bytes();
        header.identification = u16::from_be_bytes([high, low]);
        header.more_fragments = true;
        header.header_checksum = header.calc_header_checksum();
        let bytes = header.to_bytes();
        packet[..bytes.len()].copy_from_slice(&bytes);
    }
    frame
}

/// Sends for some seconds: `tx_per_s`, what the socket took.
pub(super) fn flood(kind: Kind, own: (Mac, Ipv4Addr), gateway: Mac, seconds: f64) -> Result<Figures> {
    let ifindex = if_nametoindex("eth0").context("eth0")?;
    let frames: Vec<Vec<u8>> =
        (0..FRAMES).map(|n| [&NO_OFFLOAD[..], &kind.frame(n, own, gateway)].concat()).collect();
    let socket = PacketSocket::open_unbound().context("a packet socket")?;
    let mut sender = Sender::new();
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(seconds);
    let mut sent = 0_u64;
    while Instant::now() < end {
        for batch in frames.chunks(MAX_SEND) {
            sender.send(&socket, batch.iter().map(|f| (f.as_slice(), ifindex)), |_, done| {
                sent += u64::from(done.is_ok());
            });
            if Instant::now() >= end {
                break;
            }
        }
    }
    Ok(Figures::from([("tx_per_s", sent as f64 / start.elapsed().as_secs_f64())]))
}
