//! Addresses for containers that ask: what the gateway of a network tells of itself, and whose an address is. Pure.
//!
//! [`Addressing`] is part of the [snapshot](crate::snapshot::Snapshot): the gateway's services answer by it. What it takes to give a
//! port an address that it does not have yet is the control plane's (`daemon/addresses.rs`).

pub mod dhcp;
pub mod dhcp6;
pub mod router;

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::mac::Mac;
use crate::snapshot::{NetworkId, PortId};

/// What a network tells those who ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Its name: the domain that resolvers try behind a name.
    pub domain: Arc<str>,
    /// The gateway answers for names.
    pub dns: bool,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// The gateway's MAC.
    pub gateway_mac: Mac,
    /// What it tells by DHCP; none where it does not.
    pub dhcp: Option<Dhcp>,
    /// What it advertises as a router; none where it does not.
    pub advertised: Option<Advertised>,
}

/// What a network advertises to those who make their IPv6 addresses themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// What is on the link; addresses are made of it if it has 64 bits.
    pub prefix: Ipv6Net,
    /// The gateway's address in it: the resolver.
    pub gateway: Ipv6Addr,
}

/// What a network tells by DHCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dhcp {
    /// The subnet.
    pub subnet: Ipv4Net,
    /// The gateway's address in it: router, server, and resolver.
    pub gateway: Ipv4Addr,
    /// For how long an address may be used without asking again.
    pub lease: Duration,
}

/// The IPv4 address of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The address.
    pub address: Ipv4Addr,
    /// The MAC that it was given to; none while nobody has asked for it.
    pub mac: Option<Mac>,
}

/// What is told in which network, and whose an address is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addressing {
    /// By network.
    pub terms: HashMap<NetworkId, Terms, RandomState>,
    /// By port.
    pub holders: HashMap<PortId, Holder, RandomState>,
    /// Ports with an IPv6 address that they were made with: they are to make none.
    pub settled: HashSet<PortId, RandomState>,
}

impl Addressing {
    /// What is advertised to a port of a network.
    pub fn advertised(&self, network: NetworkId, port: PortId) -> Option<(&Terms, &Advertised)> {
        let terms = self.terms.get(&network).filter(|_| !self.settled.contains(&port))?;
        Some((terms, terms.advertised.as_ref()?))
    }
}

/// A name as DNS writes it (RFC 1035 3.1). Labels are as long as names of networks at most.
fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}
