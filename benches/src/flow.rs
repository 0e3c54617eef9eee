//! A translator, and a packet whose ports are rewritten for each flow: what connections cost, without a switch around.

use std::net::{IpAddr, Ipv4Addr};

use nat::{Checksum, Config, External, Nat, NetworkId, OwnerId, OwnerLimits, Packet, Party, Time, Verdict};

use crate::memory::{container, datagram, mac};

/// The owner of all flows.
pub const PARTY: Party = Party { network: NetworkId(1), owner: OwnerId(1) };
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// Destination ports for each source port. Flows of a source port share an external port, of which there are 4,535.
const PER_PORT: u32 = 512;
const FIRST_PORT: u32 = 1024;
/// Ethernet header and IPv4 header, before the ports.
const PORTS_AT: usize = 20;

/// A translator and its packet.
#[derive(Debug)]
pub struct Flows {
    /// The translator.
    pub nat: Nat,
    packet: Vec<u8>,
    work: Vec<u8>,
    external: External,
}

impl Flows {
    /// With room for this many.
    pub fn new(connections: u32) -> Self {
        let owner = OwnerLimits { connections, new_per_second: u32::MAX };
        let nat = Nat::new(Config { connections, owner, ..Config::default() });
        let frame = datagram((mac(1), mac(2)), (container(0), 1), (OUTSIDE, 1), &[0; 64]);
        let packet = frame[switch::frame::ETHERNET_HEADER..].to_vec();
        let external = External { v4: Some(Ipv4Addr::new(192, 0, 2, 1)), v6: None };
        Self { nat, work: packet.clone(), packet, external }
    }

    /// The packet of flow `n`, as the container sent it.
    pub fn packet(&mut self, n: u32) -> &mut [u8] {
        let half = |n: u32| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
        self.work.copy_from_slice(&self.packet);
        self.work[PORTS_AT..PORTS_AT + 2].copy_from_slice(&half(FIRST_PORT + n / PER_PORT));
        self.work[PORTS_AT + 2..PORTS_AT + 4].copy_from_slice(&half(20_000 + n % PER_PORT));
        &mut self.work
    }

    /// Sends a datagram of flow `n`; false when it was refused.
    pub fn send(&mut self, now: Time, n: u32) -> bool {
        self.packet(n);
        let Ok(mut packet) = Packet::parse(&mut self.work, Checksum::Partial) else { return false };
        let verdict = match self.nat.outbound(now, &mut packet, PARTY, self.external) {
            Verdict::New(pending) => self.nat.commit(now, &mut packet, pending),
            verdict => verdict,
        };
        matches!(verdict, Verdict::Forward(_))
    }

    /// The source address that the last packet left with.
    pub fn left_as(&self) -> Option<IpAddr> {
        let octets: [u8; 4] = self.work.get(12..16)?.try_into().ok()?;
        Some(IpAddr::from(octets))
    }
}

/// The `n`th of `count` in an order that the cache does not know: `count` and 7919 have no common factor.
pub fn scattered(n: u32, count: u32) -> u32 {
    u32::try_from(u64::from(n) * 7919 % u64::from(count.max(1))).unwrap_or(0)
}
