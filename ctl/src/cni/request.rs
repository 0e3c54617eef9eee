//! What the runtime asks: environment and configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::outcome::{Failure, SUPPORTED};
use crate::api::{DEFAULT_NETWORK, DEFAULT_SOCKET, NetworkSpec, PortChange, Rate, Transport, Unit};
use crate::mapping::PortMapping;
use crate::rate::{LEAST_BITS, MOST};
use crate::spec;

/// What the environment says.
#[derive(Debug, Default)]
pub struct Environment {
    /// `ADD`, `DEL` …
    pub command: String,
    /// The container's id.
    pub(super) container: String,
    /// Path of its namespace; may be empty for `DEL`.
    pub(super) netns: String,
    /// Name of the interface inside.
    pub(super) ifname: String,
    /// `CNI_ARGS`.
    pub(super) arguments: BTreeMap<String, String>,
}

impl Environment {
    /// That of this process.
    ///
    /// # Errors
    /// As [`Environment::of`].
    pub fn of_process() -> Result<Self, Failure> {
        Self::of(|name| std::env::var(name).unwrap_or_default())
    }

    /// By what variables are; one that is not set is empty.
    ///
    /// # Errors
    /// When the command is not known, or something that it needs is missing.
    pub fn of(get: impl Fn(&str) -> String) -> Result<Self, Failure> {
        let all = get("CNI_ARGS");
        let pairs = all.split(';').filter_map(|pair| pair.split_once('='));
        let new = Self {
            command: get("CNI_COMMAND"),
            container: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            ifname: get("CNI_IFNAME"),
            arguments: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        };
        let needed: &[(&str, &str)] = match new.command.as_str() {
            "ADD" | "CHECK" => {
                &[("CNI_CONTAINERID", &new.container), ("CNI_NETNS", &new.netns), ("CNI_IFNAME", &new.ifname)]
            }
            "DEL" => &[("CNI_CONTAINERID", &new.container), ("CNI_IFNAME", &new.ifname)],
            "GC" | "STATUS" | "VERSION" => &[],
            other => {
                let other = other.escape_debug();
                let what =
                    format!("CNI_COMMAND is '{other}': ADD, DEL, CHECK, STATUS, GC or VERSION is wanted");
                return Err(Failure::environment(what));
            }
        };
        match needed.iter().find(|(_, value)| value.is_empty()) {
            Some((name, _)) => Err(Failure::environment(format!("{name} is not set"))),
            None => Ok(new),
        }
    }
}

/// The configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Of the protocol.
    pub(super) cni_version: String,
    /// The network's name for the runtime.
    pub(super) name: String,
    /// The network's name for swd.
    #[serde(default = "default_network")]
    pub(super) network: String,
    /// Where swd listens.
    #[serde(default = "default_socket")]
    pub(super) socket: PathBuf,
    /// To make the network where it is missing.
    #[serde(default)]
    pub(super) subnets: Vec<IpNet>,
    /// Of a network made so: it has no way out.
    #[serde(default)]
    internal: bool,
    /// Of a network made so: containers reach the gateway, but not each other.
    #[serde(default)]
    isolate_ports: bool,
    /// Of a network made so: largest IP packet in bytes.
    #[serde(default)]
    mtu: Option<u32>,
    /// For the container's resolver.
    #[serde(default)]
    pub(super) dns: Option<Value>,
    /// What this container is to have.
    #[serde(default)]
    pub(super) runtime_config: RuntimeConfig,
    /// What the plugin before has answered, or this one to `ADD`.
    #[serde(default)]
    pub(super) prev_result: Option<Map<String, Value>>,
    /// Of `GC`: those that are still there.
    #[serde(rename = "cni.dev/valid-attachments", default)]
    pub(super) valid: Option<Vec<Attachment>>,
}

/// Capabilities.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RuntimeConfig {
    #[serde(default)]
    port_mappings: Option<Vec<Mapping>>,
    #[serde(default)]
    ips: Option<Vec<String>>,
    #[serde(default)]
    mac: Option<String>,
    #[serde(default)]
    bandwidth: Option<Bandwidth>,
    /// `servers`, `searches`, `options`.
    #[serde(default)]
    pub(super) dns: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    aliases: Option<Aliases>,
}

/// Further names of a container. There is no convention for them; Podman has them by the runtime's name of the network.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Aliases {
    ByNetwork(BTreeMap<String, Vec<String>>),
    All(Vec<String>),
}

/// Rates in bits a second and bursts in bits, from the container's point of view; 0 is no limit.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Bandwidth {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    #[serde(default)]
    host_port: u16,
    container_port: u16,
    #[serde(default)]
    protocol: String,
    #[serde(rename = "hostIP", alias = "hostIp", default)]
    host_ip: String,
}

/// A container's interface, as `GC` names it.
#[derive(Debug, Deserialize)]
pub(super) struct Attachment {
    #[serde(rename = "containerID")]
    pub(super) container: String,
    pub(super) ifname: String,
}

fn default_network() -> String {
    DEFAULT_NETWORK.to_owned()
}

fn default_socket() -> PathBuf {
    DEFAULT_SOCKET.into()
}

/// The version that a configuration names, for answers even where the rest cannot be read.
pub fn version_of(input: &[u8]) -> String {
    /// Nothing else, so that whatever [`Config::read`] passes over is passed over here, too.
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Named {
        cni_version: Option<String>,
    }
    let named: Named = serde_json::from_slice(input).unwrap_or_default();
    named.cni_version.unwrap_or_else(|| "1.1.0".to_owned())
}

impl Config {
    /// Reads it.
    ///
    /// # Errors
    /// When it is not what it should be, or of a version that is not known.
    pub fn read(input: &[u8]) -> Result<Self, Failure> {
        let config: Self = serde_json::from_slice(input)
            .map_err(|e| Failure::decode(format!("cannot read the configuration: {e}")))?;
        if !SUPPORTED.contains(&config.cni_version.as_str()) {
            let versions = SUPPORTED.join(", ");
            return Err(Failure::version(format!(
                "cniVersion {} is not known to this plugin; it speaks {versions}",
                config.cni_version.escape_debug()
            )));
        }
        Ok(config)
    }

    /// The network, should it be missing; none where the configuration does not say what it is like.
    pub(super) fn network(&self) -> Result<Option<NetworkSpec>, Failure> {
        if self.subnets.is_empty() {
            return match self.internal || self.isolate_ports || self.mtu.is_some() {
                true => Err(Failure::config(
                    "internal, isolatePorts and mtu are of a network that is made: name its subnets, too"
                        .into(),
                )),
                false => Ok(None),
            };
        }
        let spec = json!({
            "name": self.network, "subnets": self.subnets, "internal": self.internal, "isolate_ports": self.isolate_ports,
            "mtu": self.mtu,
        });
        serde_json::from_value(spec).map(Some).map_err(|e| Failure::config(e.to_string()))
    }

    /// Addresses that the runtime or the user asks for.
    pub(super) fn addresses(&self, environment: &Environment) -> Result<Vec<IpAddr>, Failure> {
        let by_capability = self.runtime_config.ips.iter().flatten().map(String::as_str);
        let mut asked: Vec<&str> = by_capability.collect();
        if asked.is_empty() {
            asked.extend(environment.arguments.get("IP").iter().flat_map(|ips| ips.split(',')));
        }
        let read = |text: &&str| {
            let address = text.split('/').next().unwrap_or(text);
            address.parse().map_err(|_| Failure::config(format!("'{}' is no address", text.escape_debug())))
        };
        asked.iter().filter(|text| !text.is_empty()).map(read).collect()
    }

    /// The MAC that the runtime or the user asks for.
    pub(super) fn mac(&self, environment: &Environment) -> Option<String> {
        let asked = self.runtime_config.mac.clone().or_else(|| environment.arguments.get("MAC").cloned());
        asked.filter(|mac| !mac.is_empty())
    }

    /// What the container is called besides: by the runtime's `aliases`, and by its name for the runtime, with that of its namespace if it
    /// has one: what one namespace of Kubernetes calls its pods must not take over another's. Each once; a name of the runtime's that is
    /// none for swd is left out.
    pub(super) fn aliases(&self, environment: &Environment) -> Vec<String> {
        let asked = match &self.runtime_config.aliases {
            None => &[][..],
            Some(Aliases::All(names)) => names,
            Some(Aliases::ByNetwork(all)) => all.get(&self.name).map(Vec::as_slice).unwrap_or_default(),
        };
        let argument = |key| environment.arguments.get(key).filter(|value| !value.is_empty());
        let called = argument("K8S_POD_NAME").map(|pod| match argument("K8S_POD_NAMESPACE") {
            None => pod.clone(),
            Some(namespace) => format!("{pod}.{namespace}"),
        });
        let called = called.filter(|name| spec::check_name("alias", name).is_ok());
        let mut aliases: Vec<String> = called.into_iter().chain(asked.iter().cloned()).collect();
        aliases.sort_unstable();
        aliases.dedup();
        aliases
    }

    /// Limits of the port; none where there are none. What enters the container is what swd sends to its port.
    pub(super) fn limits(&self) -> Result<Option<PortChange>, Failure> {
        let Some(asked) = &self.runtime_config.bandwidth else { return Ok(None) };
        let read = |key: &str, rate: u64, burst: u64| match rate {
            0 => Ok(None),
            LEAST_BITS..=MOST => {
                // Of less than a byte nothing could be sent.
                let burst = (burst > 0).then(|| (burst / 8).max(1));
                Ok(Some(Some(Rate { per_second: rate, unit: Unit::Bits, burst })))
            }
            _ => Err(Failure::config(format!(
                "runtimeConfig.bandwidth.{key}: {rate} cannot be had; a rate is {LEAST_BITS} to {MOST} bits a second"
            ))),
        };
        let rate_in = read("egressRate", asked.egress_rate, asked.egress_burst)?;
        let rate_out = read("ingressRate", asked.ingress_rate, asked.ingress_burst)?;
        let change = PortChange { rate_in, rate_out, ..PortChange::default() };
        Ok((change != PortChange::default()).then_some(change))
    }

    /// Ports to publish. One without a port of the host is not to be published.
    pub(super) fn mappings(&self) -> Result<Vec<PortMapping>, Failure> {
        let all = self.runtime_config.port_mappings.iter().flatten().filter(|m| m.host_port != 0);
        let read = |m: &Mapping| {
            let protocol = match m.protocol.to_ascii_lowercase().as_str() {
                "" | "tcp" => Transport::Tcp,
                "udp" => Transport::Udp,
                other => {
                    let other = other.escape_debug();
                    let what = format!("portMappings: protocol {other} cannot be published, tcp and udp can");
                    return Err(Failure::unsupported(what));
                }
            };
            let host_ip = match m.host_ip.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| {
                    Failure::config(format!("hostIP '{}' is no address", text.escape_debug()))
                })?),
            };
            Ok(PortMapping { protocol, host_ip, host_port: m.host_port, port: m.container_port })
        };
        all.map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(all: &[(&str, &str)]) -> Result<Environment, Failure> {
        let get = |name: &str| all.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| *v).to_owned();
        Environment::of(get)
    }

    fn config(more: &str) -> Result<Config, Failure> {
        Config::read(format!(r#"{{"cniVersion":"1.1.0","name":"lan","type":"swd-cni"{more}}}"#).as_bytes())
    }

    #[test]
    fn what_is_missing_in_the_environment_is_named() {
        let add =
            [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "a"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0")];
        assert_eq!(environment(&add).unwrap().ifname, "eth0");
        for (left_out, said) in [(1, "CNI_CONTAINERID is not set"), (2, "CNI_NETNS"), (3, "CNI_IFNAME")] {
            let mut some = add.to_vec();
            some.remove(left_out);
            assert!(environment(&some).unwrap_err().message().contains(said));
        }
        assert!(environment(&[("CNI_COMMAND", "DEL"), add[1], add[3]]).is_ok(), "the namespace may be gone");
        assert!(environment(&[("CNI_COMMAND", "GC")]).is_ok());
        assert!(environment(&[]).unwrap_err().message().contains("CNI_COMMAND is ''"));
    }

    #[test]
    fn capabilities_are_read() {
        let e = environment(&[("CNI_COMMAND", "GC"), ("CNI_ARGS", "IP=10.0.0.7;MAC=02:00:00:00:00:07;X")])
            .unwrap();
        let plain = config("").unwrap();
        assert_eq!((plain.network.as_str(), plain.socket.to_str()), ("default", Some("/run/swd/swd.sock")));
        assert_eq!(plain.addresses(&e).unwrap(), ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(plain.mac(&e).as_deref(), Some("02:00:00:00:00:07"));
        let c = config(
            r#","network":"web","runtimeConfig":{"ips":["10.0.0.8/24","fd00::8"],"mac":"02:00:00:00:00:08","bandwidth":null,
               "portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"TCP"},{"containerPort":9},
               {"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"127.0.0.1"}]}"#,
        )
        .unwrap();
        assert_eq!(c.addresses(&e).unwrap().len(), 2, "the capability counts, not the argument");
        assert_eq!(c.mac(&e).as_deref(), Some("02:00:00:00:00:08"));
        let mapped = c.mappings().unwrap();
        assert_eq!(mapped.len(), 2);
        assert_eq!(
            (mapped[1].protocol, mapped[1].host_ip),
            (Transport::Udp, Some("127.0.0.1".parse().unwrap()))
        );
    }

    #[test]
    fn what_a_network_is_like_needs_its_subnets() {
        let network = |more: &str| config(more).unwrap().network();
        assert!(network("").unwrap().is_none());
        let made = network(
            r#","network":"web","subnets":["10.0.0.0/24"],"internal":true,"isolatePorts":true,"mtu":1400"#,
        );
        let made = made.unwrap().unwrap();
        assert_eq!((made.name.as_str(), made.mtu), ("web", Some(1400)));
        assert!(made.internal && made.isolate_ports && made.masquerade && made.dns);
        for alone in [r#","internal":true"#, r#","isolatePorts":true"#, r#","mtu":1400"#] {
            assert_eq!(network(alone).unwrap_err().code(), 7, "{alone}");
        }
    }

    #[test]
    fn a_container_is_called_what_the_runtime_calls_it() {
        let called = |arguments: &str, more: &str| {
            let e = environment(&[("CNI_COMMAND", "GC"), ("CNI_ARGS", arguments)]).unwrap();
            config(more).unwrap().aliases(&e).join(" ")
        };
        assert_eq!(called("", ""), "");
        assert_eq!(called("K8S_POD_NAME=web", ""), "web");
        assert_eq!(called("K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop", ""), "web.shop");
        assert_eq!(called("K8S_POD_NAME=no/name", ""), "");
        let by_network = r#","runtimeConfig":{"aliases":{"lan":["web","b","a"],"other":["c"]}}"#;
        assert_eq!(called("K8S_POD_NAME=web", by_network), "a b web");
        assert_eq!(called("", r#","runtimeConfig":{"aliases":["b","b"]}"#), "b");
    }

    #[test]
    fn rates_are_the_containers_and_a_burst_is_in_bits() {
        let limits = |bandwidth: &str| {
            config(&format!(r#","runtimeConfig":{{"bandwidth":{bandwidth}}}"#)).unwrap().limits()
        };
        let both = r#"{"ingressRate":8000000,"ingressBurst":800000,"egressRate":1000000}"#;
        let change = limits(both).unwrap().unwrap();
        let rate = |per_second, burst| Some(Some(Rate { per_second, unit: Unit::Bits, burst }));
        assert_eq!(
            (change.rate_out, change.rate_in),
            (rate(8_000_000, Some(100_000)), rate(1_000_000, None))
        );
        // Runtimes that limit nothing say so by 0, by nothing, or by null.
        for none in ["null", "{}", r#"{"ingressRate":0,"ingressBurst":0,"egressRate":0,"egressBurst":0}"#] {
            assert_eq!(limits(none).unwrap(), None, "{none}");
        }
        let failure = limits(r#"{"egressRate":100}"#).unwrap_err();
        assert_eq!(failure.code(), 7);
        assert!(failure.message().starts_with("runtimeConfig.bandwidth.egressRate: 100 "));
    }

    /// Found by the fuzzer: what is not UTF-8 in a field that nobody knows was passed over by one, and not by the other.
    #[test]
    fn the_version_is_that_of_the_configuration() {
        let input = b"{\"cniVersion\":\"1.0.0\",\"name\":\"lan\",\"x\":{\"\xff\":1}}";
        assert_eq!(Config::read(input).unwrap().cni_version, version_of(input));
        for unreadable in [&b"{"[..], b"[]", br#"{"cniVersion":1}"#] {
            assert_eq!(version_of(unreadable), "1.1.0");
        }
    }

    #[test]
    fn what_cannot_be_has_its_code() {
        for (more, code) in
            [(r#","runtimeConfig":{"bandwidth":{"ingressRate":-1}}"#, 6), (r#","subnets":["x"]"#, 6)]
        {
            assert_eq!(config(more).unwrap_err().code(), code, "{more}");
        }
        assert_eq!(Config::read(b"").unwrap_err().code(), 6);
        assert_eq!(Config::read(br#"{"cniVersion":"0.2.0","name":"x"}"#).unwrap_err().code(), 1);
        let c = config(
            r#","runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"protocol":"sctp"}]}"#,
        );
        assert_eq!(c.unwrap().mappings().unwrap_err().code(), 2);
    }
}
