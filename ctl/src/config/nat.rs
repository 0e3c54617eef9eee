//! `[nat]` of the configuration: limits, the pool, port guards, timeouts.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::Deserialize;

use super::{entries, rate, seconds, some_entries};

/// `[nat]`: connections and the ports that they leave by.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Nat {
    /// Most connections in all.
    #[serde(deserialize_with = "entries")]
    pub max_connections: u32,
    /// Most connections of a container; a quarter of all when left out.
    #[serde(deserialize_with = "some_entries")]
    pub max_per_container: Option<u32>,
    /// Most new connections of a container per second; twice as many at once.
    #[serde(deserialize_with = "rate")]
    pub new_per_second: u32,
    /// The external ports of masquerade, and identifiers of ICMP queries.
    pub pool: PortRange,
    /// The pool may have ports that the host's own connections use.
    pub pool_overlaps_ephemeral: bool,
    /// How the host is kept from answering for ports that are swd's.
    pub guards: Guards,
    /// Seconds that connections live without packets.
    pub timeouts: Timeouts,
}

impl Default for Nat {
    fn default() -> Self {
        Self {
            max_connections: 262_144,
            max_per_container: None,
            new_per_second: 20_000,
            pool: PortRange { first: 61_000, last: 65_535 },
            pool_overlaps_ephemeral: false,
            guards: Guards::Auto,
            timeouts: Timeouts::default(),
        }
    }
}

impl Nat {
    /// Most connections of a container.
    pub fn per_container(&self) -> u32 {
        self.max_per_container.unwrap_or_else(|| (self.max_connections / 4).max(1))
    }
}

/// How ports are guarded.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Guards {
    /// By BPF where the kernel lets us, else by sockets.
    #[default]
    Auto,
    /// By BPF.
    Bpf,
    /// By a socket for each port.
    Sockets,
}

impl FromStr for Guards {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "auto" => Ok(Self::Auto),
            "bpf" => Ok(Self::Bpf),
            "sockets" => Ok(Self::Sockets),
            _ => Err("use auto, bpf or sockets".to_owned()),
        }
    }
}

/// Ports from one to another: `61000-65535`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The ports: at least one, and never port 0.
    pub const fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        let (first, last) = s.split_once('-').unwrap_or((&s, &s));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(Self { first, last }),
            _ => Err(format!("'{s}' is not a range of ports; write one like 61000-65535")),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// `[nat.timeouts]`: seconds without packets after which a connection is over, by protocol and state.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// A SYN without an answer.
    #[serde(deserialize_with = "seconds")]
    pub tcp_syn_sent: u64,
    /// A SYN answered, the handshake not finished.
    #[serde(deserialize_with = "seconds")]
    pub tcp_syn_received: u64,
    /// An open connection.
    #[serde(deserialize_with = "seconds")]
    pub tcp_established: u64,
    /// One side has ended.
    #[serde(deserialize_with = "seconds")]
    pub tcp_closing: u64,
    /// Both have.
    #[serde(deserialize_with = "seconds")]
    pub tcp_closed: u64,
    /// Reset.
    #[serde(deserialize_with = "seconds")]
    pub tcp_reset: u64,
    /// UDP without an answer so far.
    #[serde(deserialize_with = "seconds")]
    pub udp_unreplied: u64,
    /// UDP both ways.
    #[serde(deserialize_with = "seconds")]
    pub udp_replied: u64,
    /// UDP to port 53.
    #[serde(deserialize_with = "seconds")]
    pub udp_dns: u64,
    /// An ICMP query.
    #[serde(deserialize_with = "seconds")]
    pub icmp_query: u64,
    /// Any other protocol.
    #[serde(deserialize_with = "seconds")]
    pub other: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_syn_sent: 240,
            tcp_syn_received: 240,
            tcp_established: 7440,
            tcp_closing: 240,
            tcp_closed: 240,
            tcp_reset: 240,
            udp_unreplied: 120,
            udp_replied: 300,
            udp_dns: 10,
            icmp_query: 60,
            other: 600,
        }
    }
}
