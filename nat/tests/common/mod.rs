//! A translator between two containers, a host and two servers, driven by hand in virtual time.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "helpers of all tests, each of which uses some"
)]

pub mod packets;

use std::net::IpAddr;
use std::time::Duration;

use nat::{
    Address, Checksum, Config, Endpoint, External, Forward, Nat, NetworkConfig, NetworkId, OwnerId, Packet,
    Party, Protocol, Rule, RuleId, Time, Verdict,
};

/// The containers' network.
pub const NETWORK: NetworkId = NetworkId(1);

/// The family that a test runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The hosts of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// A container.
    A,
    /// Another container of the same network.
    B,
    /// The host that runs the translator, by its external address.
    Ext,
    /// A server outside.
    S,
    /// The server's second address.
    S2,
    /// A router outside.
    Router,
}

use Host::{A, B, Ext, Router, S, S2};

/// The address of `host`.
pub fn ip(family: Family, host: Host) -> String {
    let v4 = family == Family::V4;
    let text = match host {
        A if v4 => "172.18.0.10",
        A => "fd00:18::a",
        B if v4 => "172.18.0.20",
        B => "fd00:18::14",
        Ext if v4 => "192.0.2.1",
        Ext => "2001:db8:2::1",
        S if v4 => "198.51.100.7",
        S => "2001:db8:51::7",
        S2 if v4 => "198.51.100.8",
        S2 => "2001:db8:51::8",
        Router if v4 => "203.0.113.9",
        Router => "2001:db8:113::9",
    };
    text.to_string()
}

/// The endpoint `host`:`port` as text.
pub fn at(family: Family, host: Host, port: u16) -> String {
    match family {
        Family::V4 => format!("{}:{port}", ip(family, host)),
        Family::V6 => format!("[{}]:{port}", ip(family, host)),
    }
}

/// The endpoint `host`:`port`.
pub fn endpoint(family: Family, host: Host, port: u16) -> Endpoint {
    Endpoint::new(address(family, host), port)
}

/// The address of `host` as the library's type.
pub fn address(family: Family, host: Host) -> Address {
    Address::from(ip(family, host).parse::<IpAddr>().unwrap())
}

/// The container that has an address: the last byte is its number.
pub fn owner_of(address: Address) -> OwnerId {
    let [.., last] = address.v6_octets();
    OwnerId(u32::from(last))
}

/// A packet on its way after translation.
#[derive(Clone, Debug)]
pub struct Sent {
    pub bytes: Vec<u8>,
    pub forward: Forward,
}

impl Sent {
    /// Source and destination as text.
    pub fn ends(&self) -> (String, String) {
        let mut bytes = self.bytes.clone();
        let packet = Packet::parse(&mut bytes, Checksum::Complete).unwrap();
        match packet.tuple(NETWORK) {
            Some(tuple) => (tuple.source.to_string(), tuple.destination.to_string()),
            None => (packet.source().to_string(), packet.destination().to_string()),
        }
    }

    /// The source port, or the identifier of a query.
    pub fn source_port(&self) -> u16 {
        let mut bytes = self.bytes.clone();
        Packet::parse(&mut bytes, Checksum::Complete).unwrap().tuple(NETWORK).unwrap().source.port
    }
}

/// What became of a packet.
pub type Outcome = Result<Sent, Verdict>;

/// The translator and its time.
#[derive(Debug)]
pub struct Lab {
    pub nat: Nat,
    pub now: Time,
    pub external: External,
}

impl Lab {
    /// A lab whose network is translated as `network` says.
    pub fn new(config: Config, network: NetworkConfig) -> Self {
        let mut nat = Nat::new(config);
        nat.set_network(NETWORK, network);
        let external =
            External { v4: Some("192.0.2.1".parse().unwrap()), v6: Some("2001:db8:2::1".parse().unwrap()) };
        Self { nat, now: Time::from_secs(1000), external }
    }

    /// A lab with all defaults.
    pub fn default() -> Self {
        Self::new(Config::default(), NetworkConfig::default())
    }

    /// Lets time pass, and collects what has expired.
    pub fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        while self.nat.expire(self.now, 64) {}
    }

    pub fn wait_secs(&mut self, secs: u64) {
        self.wait(Duration::from_secs(secs));
    }

    /// Publishes `port` and its `more` successors to B's ports from `target` on.
    pub fn publish(
        &mut self,
        family: Family,
        protocol: Protocol,
        port: u16,
        more: u16,
        target: u16,
    ) -> RuleId {
        let rule = Rule {
            protocol,
            host: None,
            ports: port..=port + more,
            network: NETWORK,
            target: endpoint(family, B, target),
            from: Vec::new(),
        };
        self.nat.publish(rule).unwrap()
    }

    /// A packet from a container to the outside.
    pub fn outbound(&mut self, bytes: &[u8]) -> Outcome {
        let (now, external) = (self.now, self.external);
        self.pass(bytes, |nat, packet| nat.outbound(now, packet, party(packet.source()), external))
    }

    /// A packet from the outside.
    pub fn inbound(&mut self, bytes: &[u8]) -> Outcome {
        let now = self.now;
        self.pass(bytes, |nat, packet| nat.inbound(now, packet, |_, address| Some(owner_of(address))))
    }

    /// A packet from a container to the host's external address.
    pub fn hairpin(&mut self, bytes: &[u8]) -> Outcome {
        let (now, external) = (self.now, self.external);
        self.pass(bytes, |nat, packet| {
            nat.hairpin(now, packet, party(packet.source()), external, |_, address| Some(owner_of(address)))
        })
    }

    /// Runs a packet through and commits what it begins. Checks the checksums of what comes out, and that what does not
    /// come out was not touched.
    pub fn pass(&mut self, bytes: &[u8], ask: impl FnOnce(&mut Nat, &mut Packet<'_>) -> Verdict) -> Outcome {
        let mut sent = bytes.to_vec();
        let mut packet = Packet::parse(&mut sent, Checksum::Complete).expect("tests send packets");
        let whole = packet.fragment().is_none();
        let verdict = match ask(&mut self.nat, &mut packet) {
            Verdict::New(pending) => {
                assert_eq!(packet.bytes(), bytes, "untouched until committed");
                self.nat.commit(self.now, &mut packet, pending)
            }
            verdict => verdict,
        };
        match verdict {
            Verdict::Forward(forward) => {
                if whole {
                    packets::assert_checksums(&sent);
                }
                Ok(Sent { bytes: sent, forward })
            }
            verdict => {
                assert_eq!(sent, bytes, "untouched unless forwarded");
                Err(verdict)
            }
        }
    }

    /// The fragments that waited for their first one.
    pub fn released(&mut self) -> Vec<Sent> {
        std::iter::from_fn(|| self.nat.next_released())
            .map(|(forward, bytes)| Sent { bytes, forward })
            .collect()
    }
}

/// The container that has an address.
pub fn party(address: Address) -> Party {
    Party { network: NETWORK, owner: owner_of(address) }
}
