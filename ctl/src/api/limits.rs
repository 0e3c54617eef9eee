//! What is limited of a port, and what it may send from.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// What a rate counts.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Bits of frames without FCS; each segment of a super-frame with its headers.
    #[default]
    Bits,
    /// Frames; each segment of a super-frame is one.
    Packets,
}

/// A rate with a burst.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// So many a second, at least 1.
    pub per_second: u64,
    /// Of what.
    #[serde(default)]
    pub unit: Unit,
    /// So much at once: bytes, or packets. One that suits the rate when left out.
    #[serde(default)]
    pub burst: Option<u64>,
}

/// What is limited of a port; null is without limit.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortLimits {
    /// What comes from it.
    #[serde(default)]
    pub rate_in: Option<Rate>,
    /// What is sent to it.
    #[serde(default)]
    pub rate_out: Option<Rate>,
    /// Broadcasts, multicasts and frames for unknown receivers that come from it, together.
    #[serde(default)]
    pub storm: Option<Rate>,
    /// Connections at once; null: as many as `nat.max_connections_per_container` says.
    #[serde(default)]
    pub max_connections: Option<u32>,
}

/// The spoof guard of a port.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortGuard {
    /// Frames with other sources are dropped.
    pub on: bool,
    /// MACs that it may send from, its own included.
    #[serde(default)]
    pub macs: Vec<String>,
    /// Addresses that it may send from, its own included.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpNet>,
}

/// `PATCH /v1/ports/{name}`: what to change of a port. What is left out stays; null takes a limit away.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortChange {
    /// What comes from it.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Rate>)]
    pub rate_in: Option<Option<Rate>>,
    /// What is sent to it.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Rate>)]
    pub rate_out: Option<Option<Rate>>,
    /// Broadcasts, multicasts and frames for unknown receivers that come from it.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Rate>)]
    pub storm: Option<Option<Rate>>,
    /// Connections at once.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub max_connections: Option<Option<u32>>,
    /// Turns the spoof guard on or off; null: on for attached ports, off for others.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bool>)]
    pub guard: Option<Option<bool>>,
    /// MACs, addresses and subnets that it may send from besides its own; in place of those that were given before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub sources: Option<Vec<Source>>,
    /// Further names in its network; in place of those that were given before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aliases: Option<Vec<String>>,
}

/// Something that is there: null is not nothing.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

/// Something to send from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A MAC address, as it is written.
    Mac(String),
    /// Addresses.
    Net(IpNet),
}

impl std::str::FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(address.into()));
        }
        if let Ok(net) = text.parse() {
            return Ok(Self::Net(net));
        }
        let parts: Vec<&str> = text.split(':').collect();
        let hex = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        if parts.len() == 6 && parts.iter().all(hex) {
            return Ok(Self::Mac(text.to_ascii_lowercase()));
        }
        Err("write a MAC (02:00:00:00:00:0a), an address (172.18.0.10) or a subnet (172.18.9.0/24)"
            .to_owned())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => f.write_str(mac),
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Self::Net(net) => net.fmt(f),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_takes_away_and_absence_leaves() {
        let change: PortChange =
            serde_json::from_str(r#"{"rate_in":null,"storm":{"per_second":9,"unit":"packets"}}"#).unwrap();
        let storm = Rate { per_second: 9, unit: Unit::Packets, burst: None };
        assert_eq!((change.rate_in, change.rate_out, change.storm), (Some(None), None, Some(Some(storm))));
        let text = serde_json::to_string(&change).unwrap();
        assert_eq!(serde_json::from_str::<PortChange>(&text).unwrap(), change);
        assert!(serde_json::from_str::<PortChange>(r#"{"rate":1}"#).is_err());
    }

    #[test]
    fn sources() {
        for text in ["02:00:00:00:00:0a", "172.18.0.10", "172.18.9.0/24", "fd00::1", "fd00::/64"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        for wrong in ["", "02:00:00:00:00", "0g:00:00:00:00:00", "172.18.0.10/33", "web"] {
            assert!(wrong.parse::<Source>().is_err(), "{wrong}");
        }
    }
}
