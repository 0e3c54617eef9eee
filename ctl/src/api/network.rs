//! Networks.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which connections of a container's port share an external port (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mapping {
    /// Each has its own ("symmetric").
    AddressAndPortDependent,
    /// All of them, while ports last.
    #[default]
    EndpointIndependent,
}

/// Who may send to an external port that is in use (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Filtering {
    /// Endpoints that the container's port has sent to.
    #[default]
    AddressAndPortDependent,
    /// Any port of addresses that it has sent to.
    AddressDependent,
    /// Everyone.
    EndpointIndependent,
}

impl Mapping {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::EndpointIndependent, Self::AddressAndPortDependent];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AddressAndPortDependent => "address-and-port-dependent",
            Self::EndpointIndependent => "endpoint-independent",
        }
    }
}

impl Filtering {
    /// All of them.
    pub const ALL: [Self; 3] =
        [Self::AddressAndPortDependent, Self::AddressDependent, Self::EndpointIndependent];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AddressAndPortDependent => "address-and-port-dependent",
            Self::AddressDependent => "address-dependent",
            Self::EndpointIndependent => "endpoint-independent",
        }
    }
}

/// A network: one broadcast domain.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// IPv4 and IPv6 subnets.
    #[schema(value_type = Vec<String>)]
    pub subnets: Vec<IpNet>,
    /// The gateway's address in each subnet, in the same order.
    #[schema(value_type = Vec<String>)]
    pub gateways: Vec<IpAddr>,
    /// The gateway's MAC address.
    pub gateway_mac: String,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Ports may not talk to each other, only to the gateway.
    pub isolate_ports: bool,
    /// It has no way out: neither to the outside nor to names that others are asked for.
    #[serde(default)]
    pub internal: bool,
    /// Connections to the outside leave behind the host's address.
    pub masquerade: bool,
    /// Which of them share an external port.
    #[serde(default)]
    pub mapping: Mapping,
    /// Who may send to it.
    #[serde(default)]
    pub filtering: Filtering,
    /// The gateway answers for names.
    #[serde(default)]
    pub dns: bool,
    /// The gateway gives IPv4 addresses to ports that ask (DHCP).
    #[serde(default)]
    pub dhcp: bool,
    /// For how many seconds such an address may be used without asking again.
    #[serde(default)]
    pub dhcp_lease: u32,
    /// The gateway advertises itself as a router to ports without an IPv6 address of swd's.
    #[serde(default)]
    pub ra: bool,
    /// The host has an interface in this network.
    pub host_access: bool,
    /// The host's interface in this network, where `host_access` is on.
    pub host_ifname: Option<String>,
    /// Names of its ports.
    pub ports: Vec<String>,
    /// Addresses leased to its ports.
    pub leases: u64,
}

/// `POST /v1/networks`: a network to add.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Its name: 1 to 63 letters, digits, `.`, `_` or `-`, beginning with a letter or digit.
    pub name: String,
    /// At least one subnet; at most one of each family.
    #[schema(value_type = Vec<String>)]
    pub subnets: Vec<IpNet>,
    /// Gateway addresses; the first address of each subnet when left out.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub gateways: Vec<IpAddr>,
    /// Largest IP packet in bytes, 1280 (576 without IPv6) to 65,535; 1500 when left out.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Ports may not talk to each other, only to the gateway.
    #[serde(default)]
    pub isolate_ports: bool,
    /// No way out: neither to the outside nor to names that others are asked for, and nothing of it is published.
    #[serde(default)]
    pub internal: bool,
    /// Connections to the outside leave behind the host's address.
    #[serde(default = "yes")]
    pub masquerade: bool,
    /// Which of them share an external port.
    #[serde(default)]
    pub mapping: Mapping,
    /// Who may send to it.
    #[serde(default)]
    pub filtering: Filtering,
    /// Let the gateway answer for names.
    #[serde(default = "yes")]
    pub dns: bool,
    /// Let the gateway give IPv4 addresses to ports that ask (DHCP).
    #[serde(default = "yes")]
    pub dhcp: bool,
    /// For how many seconds such an address may be used without asking again, 10 to 31,536,000; 3600 when left out.
    #[serde(default)]
    pub dhcp_lease: Option<u32>,
    /// Let the gateway advertise itself as a router to ports without an IPv6 address of swd's.
    #[serde(default = "yes")]
    pub ra: bool,
    /// Give the host an interface with the gateway's address in this network.
    #[serde(default = "yes")]
    pub host_access: bool,
}

fn yes() -> bool {
    true
}
