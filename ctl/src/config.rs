//! The daemon's configuration file: TOML, every key optional. `docs/swd.toml` shows every key with its default.
//!
//! It lives here, not in the daemon, so that `swctl config check` needs no daemon.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

mod nat;

pub use nat::{Guards, Nat, PortRange, Timeouts};

use crate::api::{DEFAULT_NETWORK, Filtering, Mapping, NetworkSpec};
use crate::spec;

/// Subnet of the network `default` where the file names none.
pub const DEFAULT_SUBNET: &str = "172.18.0.0/16";
/// Most worker threads that can be asked for.
pub const MAX_WORKERS: u32 = 64;

/// What the file says.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The host's interface towards the outside.
    pub uplink: Uplink,
    /// Number of worker threads.
    #[serde(deserialize_with = "workers")]
    pub workers: u32,
    /// Let the kernel forward busy flows between veth ports, and connections to the outside, itself (BPF).
    pub fast_path: bool,
    /// Who may use the API.
    pub api: Api,
    /// Who may read the numbers.
    pub metrics: Metrics,
    /// Names for the host itself.
    pub dns: Dns,
    /// Limits of the MAC table.
    pub fdb: Fdb,
    /// Connections and the ports that they leave by.
    pub nat: Nat,
    /// Networks that exist at start, by name. `default` is always among them.
    pub network: BTreeMap<String, Network>,
}

impl Default for Config {
    fn default() -> Self {
        let network = BTreeMap::from([(DEFAULT_NETWORK.to_owned(), Network::default())]);
        Self {
            uplink: Uplink::Auto,
            workers: 1,
            fast_path: true,
            api: Api::default(),
            metrics: Metrics::default(),
            dns: Dns::default(),
            fdb: Fdb::default(),
            nat: Nat::default(),
            network,
        }
    }
}

/// `uplink`: the host's interface towards the outside.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub enum Uplink {
    /// The interface of the host's default route.
    #[default]
    Auto,
    /// There is none: containers do not reach the outside.
    None,
    /// This one.
    Interface(String),
}

impl FromStr for Uplink {
    type Err = spec::SpecError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            name => spec::check_ifname(name).map(|()| Self::Interface(name.to_owned())),
        }
    }
}

impl TryFrom<String> for Uplink {
    type Error = spec::SpecError;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Interface(name) => name,
        })
    }
}

/// `[api]`: who may use the API socket.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Members of this group may do everything, besides root. Empty: root only.
    pub group: String,
    /// Members of this group may look at everything but traffic. Empty: nobody.
    pub readers: String,
}

/// `[metrics]`: Prometheus' way to the numbers besides the API socket, which has them always.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// An address and port of the host to serve `/metrics` on, to anyone who gets there; none: not at all.
    #[serde(deserialize_with = "listen")]
    pub listen: Option<SocketAddr>,
}

/// `[dns]`: names of containers for the host itself. Containers ask their gateways.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// An address and port of the host to answer at by UDP and TCP, to anyone who gets there; none: not at all.
    #[serde(deserialize_with = "one_address")]
    pub listen: Option<SocketAddr>,
}

/// As [`listen`], but nothing that stands for several addresses or ports: whoever asks must hear from where it has asked.
fn one_address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let address = listen(deserializer)?;
    if let Some(wrong) = address.filter(|a| a.ip().is_unspecified() || a.ip().is_multicast() || a.port() == 0)
    {
        return Err(serde::de::Error::custom(format!(
            "{wrong} is not one address and port of the host; write one like \"127.0.0.1:5353\""
        )));
    }
    Ok(address)
}

fn listen<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |_| serde::de::Error::custom("not an address with a port; write one like \"127.0.0.1:9750\"");
    text.parse().map(Some).map_err(wrong)
}

/// `[fdb]`: limits of the MAC table.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Fdb {
    /// Seconds after which a MAC that is not seen is forgotten.
    #[serde(deserialize_with = "aging")]
    pub aging_s: u64,
    /// Most learned MACs in all.
    #[serde(deserialize_with = "entries")]
    pub max_entries: u64,
    /// Most learned MACs behind one port.
    #[serde(deserialize_with = "entries")]
    pub max_per_port: u64,
}

impl Default for Fdb {
    fn default() -> Self {
        Self { aging_s: 300, max_entries: 131_072, max_per_port: 16_384 }
    }
}

/// `[network.NAME]`: a network.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Its subnets: at most one of each family.
    pub subnets: Vec<IpNet>,
    /// The gateway's address in them; the first of each when left out.
    pub gateways: Vec<IpAddr>,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Ports may not talk to each other, only to the gateway.
    pub isolate_ports: bool,
    /// It has no way out.
    pub internal: bool,
    /// Connections to the outside leave behind the host's address.
    pub masquerade: bool,
    /// Which of them share an external port.
    pub mapping: Mapping,
    /// Who may send to it.
    pub filtering: Filtering,
    /// The gateway answers for names.
    pub dns: bool,
    /// The gateway gives addresses to ports that ask by DHCP.
    pub dhcp: bool,
    /// For how many seconds.
    pub dhcp_lease: u32,
    /// The gateway advertises itself as an IPv6 router to ports without an IPv6 address of swd's.
    pub ra: bool,
    /// The host has an interface in this network.
    pub host_access: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            // A literal that always parses; without it there is no default.
            subnets: DEFAULT_SUBNET.parse().into_iter().collect(),
            gateways: Vec::new(),
            mtu: spec::DEFAULT_MTU,
            isolate_ports: false,
            internal: false,
            masquerade: true,
            mapping: Mapping::default(),
            filtering: Filtering::default(),
            dns: true,
            dhcp: true,
            dhcp_lease: spec::DEFAULT_LEASE,
            ra: true,
            host_access: true,
        }
    }
}

impl Network {
    /// As the API has it.
    pub fn spec(&self, name: &str) -> NetworkSpec {
        NetworkSpec {
            name: name.to_owned(),
            subnets: self.subnets.clone(),
            gateways: self.gateways.clone(),
            mtu: Some(self.mtu),
            isolate_ports: self.isolate_ports,
            internal: self.internal,
            masquerade: self.masquerade,
            mapping: self.mapping,
            filtering: self.filtering,
            dns: self.dns,
            dhcp: self.dhcp,
            dhcp_lease: Some(self.dhcp_lease),
            ra: self.ra,
            host_access: self.host_access,
        }
    }
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{path}:{line}:{column}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// Every value is well-formed, but they do not go together.
    #[error("{path}: [network.{network}]: {message}")]
    Network {
        /// The file.
        path: PathBuf,
        /// Name of the network.
        network: String,
        /// What is wrong.
        message: String,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, is not TOML, has an unknown key or a value out of range: the text names file, line and
    /// column.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// The same from text; `path` is for the error only.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text).map_err(|e| {
            let at = e.span().map_or(0, |span| span.start).min(text.len());
            let (line, column) = position(text, at);
            // One line, whatever the parser says.
            let message = e.message().lines().collect::<Vec<_>>().join("; ");
            ConfigError::Syntax { path: path.to_owned(), line, column, message }
        })?;
        config.network.entry(DEFAULT_NETWORK.to_owned()).or_default();
        config.check_networks(path)?;
        Ok(config)
    }

    fn check_networks(&self, path: &Path) -> Result<(), ConfigError> {
        let fail = |network: &str, message: String| {
            Err(ConfigError::Network { path: path.to_owned(), network: network.to_owned(), message })
        };
        let mut seen: Vec<(&str, IpNet)> = Vec::new();
        for (name, network) in &self.network {
            if let Err(e) = spec::check_network(&network.spec(name)) {
                return fail(name, e.to_string());
            }
            for subnet in &network.subnets {
                if let Some((other, theirs)) = seen.iter().find(|(_, s)| spec::overlap(s, subnet)) {
                    return fail(name, format!("subnet {subnet} overlaps network {other} ({theirs})"));
                }
            }
            seen.extend(network.subnets.iter().map(|s| (name.as_str(), *s)));
        }
        Ok(())
    }
}

/// Line and column, from 1, of a byte of a text.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or(before).chars().count() + 1;
    (line, column)
}

fn in_range<'de, D, T>(deserializer: D, range: RangeInclusive<T>) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + PartialOrd + fmt::Display,
{
    let value = T::deserialize(deserializer)?;
    if range.contains(&value) {
        Ok(value)
    } else {
        Err(serde::de::Error::custom(format!(
            "{value} is out of range; use {} to {}",
            range.start(),
            range.end()
        )))
    }
}

fn workers<'de, D: serde::Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    in_range(d, 1..=MAX_WORKERS)
}

fn aging<'de, D: serde::Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    in_range(d, 1..=86_400)
}

fn entries<'de, D, T>(d: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + PartialOrd + fmt::Display + From<u32>,
{
    in_range(d, T::from(1)..=T::from(16_777_216))
}

fn some_entries<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
    entries(d).map(Some)
}

fn rate<'de, D: serde::Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    in_range(d, 1..=10_000_000)
}

fn seconds<'de, D: serde::Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    in_range(d, 1..=31_536_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/swd.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn the_shipped_example_is_the_default() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/swd.toml"));
        assert_eq!(Config::load(path).unwrap(), Config::default());
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn errors_name_line_and_column() {
        let cases = [
            ("workers = 0", "/etc/swd.toml:1:11: 0 is out of range; use 1 to 64"),
            ("\n  wrokers = 1", "/etc/swd.toml:2:3: unknown field `wrokers`"),
            ("uplink = \"a/b\"", "/etc/swd.toml:1:10: 'a/b' cannot be the name of an interface"),
            ("[fdb]\naging_s = \"x\"", "/etc/swd.toml:2:11: invalid type: string \"x\""),
            ("[network.web]\nsubnets = [\"10.0.0.0/33\"]", "/etc/swd.toml:2:12: "),
            ("a = [", "/etc/swd.toml:1:"),
            (
                "[nat]\npool = \"9-8\"",
                "/etc/swd.toml:2:8: '9-8' is not a range of ports; write one like 61000-65535",
            ),
            ("[nat]\nmax_connections = 0", "/etc/swd.toml:2:19: 0 is out of range; use 1 to 16777216"),
            ("[nat.timeouts]\nudp_dns = 0", "/etc/swd.toml:2:11: 0 is out of range"),
            ("[nat]\nguards = \"none\"", "/etc/swd.toml:2:10: unknown variant `none`"),
            (
                "[dns]\nlisten = \"0.0.0.0:53\"",
                "/etc/swd.toml:2:10: 0.0.0.0:53 is not one address and port of the host; write one like \"127.0.0.1:5353\"",
            ),
            ("[network.web]\nmapping = \"x\"", "/etc/swd.toml:2:11: unknown variant `x`"),
            (
                "[network.web]\nsubnets = [\"10.0.0.1/24\"]",
                "/etc/swd.toml: [network.web]: subnet 10.0.0.1/24 has host bits set; the subnet is 10.0.0.0/24",
            ),
            (
                "[network.web]\nsubnets = [\"172.18.4.0/24\"]",
                "/etc/swd.toml: [network.web]: subnet 172.18.4.0/24 overlaps network default (172.18.0.0/16)",
            ),
        ];
        for (text, expected) in cases {
            let said = parse(text).unwrap_err();
            assert!(said.starts_with(expected), "{text:?}: {said}");
            assert!(!said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn a_container_may_have_a_quarter_unless_told_otherwise() {
        let per_container = |text| parse(text).unwrap().nat.per_container();
        assert_eq!(per_container(""), 65_536);
        assert_eq!(per_container("[nat]\nmax_connections = 1000"), 250);
        assert_eq!(per_container("[nat]\nmax_connections = 1000\nmax_per_container = 900"), 900);
        assert_eq!(parse("[nat]\npool = \"40000\"").unwrap().nat.pool.ports(), 40_000..=40_000);
    }

    #[test]
    fn a_missing_file_is_named() {
        let said = Config::load(Path::new("/nowhere/swd.toml")).unwrap_err().to_string();
        assert_eq!(
            said,
            "cannot read the configuration /nowhere/swd.toml: No such file or directory (os error 2)"
        );
    }
}
