//! What a network that Docker asks for is here. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ctl::api::{Filtering, Mapping, NetworkSpec};
use ipnet::IpNet;
use serde_json::Value;

use super::wire::{CreateNetwork, IpamData};
use crate::daemon::desired::docker::DockerNetwork;

/// Options, as the user writes them with `-o`; those of Docker's own bridge driver mean the same here.
const KNOWN: &str = "name, network, icc, mtu, masquerade, host-access, mapping, filtering, host-ip, prefix, and what \
    they are called with Docker's bridge driver (com.docker.network.bridge.enable_icc …)";
/// Options that leave the network itself as it is.
const OF_DOCKER: [&str; 5] = [
    "network",
    "host-ip",
    "com.docker.network.bridge.host_binding_ipv4",
    "prefix",
    "com.docker.network.container_iface_prefix",
];
/// Digits of an id that a name is made of: as many as `docker network ls` shows.
const SHORT_ID: usize = 12;
/// Longest prefix of an interface's name: Docker adds a number.
const MAX_PREFIX: usize = 12;

/// What to do.
#[derive(Debug, PartialEq)]
pub(super) struct Wanted {
    /// The network; of one that is there already, name, subnets and gateways must fit.
    pub(super) spec: NetworkSpec,
    /// What is remembered of it.
    pub(super) known: DockerNetwork,
}

/// The network that the body of `NetworkDriver.CreateNetwork` asks for.
///
/// # Errors
/// When it cannot be read, or had.
pub fn network_asked_for(body: &[u8]) -> Result<NetworkSpec, String> {
    let request = serde_json::from_slice(body).map_err(|e| format!("cannot read the request: {e}"))?;
    wanted(&request).map(|wanted| wanted.spec)
}

/// Reads a request.
///
/// # Errors
/// When it cannot be.
pub(super) fn wanted(request: &CreateNetwork) -> Result<Wanted, String> {
    let (mut subnets, mut gateways, mut reserved) = (Vec::new(), Vec::new(), BTreeSet::new());
    for family in [&request.ipv4_data, &request.ipv6_data] {
        if family.len() > 1 {
            return Err("a network has one subnet of each family; leave out the other --subnet".into());
        }
        for data in family {
            let (subnet, gateway) = subnet(data)?;
            subnets.push(subnet);
            gateways.push(gateway);
            for address in data.aux_addresses.values() {
                reserved.insert(address_of(address)?.addr());
            }
        }
    }
    if subnets.is_empty() {
        return Err("a network needs a subnet: use Docker's own IPAM, or --ipam-driver swd".into());
    }
    let id: String = request.network_id.chars().take(SHORT_ID).collect();
    let mut spec = NetworkSpec {
        name: format!("docker-{id}"),
        subnets,
        gateways,
        mtu: None,
        isolate_ports: false,
        internal: request.options.internal,
        masquerade: true,
        mapping: Mapping::default(),
        filtering: Filtering::default(),
        dns: true,
        // Docker gives its containers addresses itself; one that serves DHCP on such a network is the user's own.
        dhcp: false,
        dhcp_lease: None,
        ra: false,
        host_access: true,
    };
    let mut known = DockerNetwork {
        network: String::new(),
        made: true,
        internal: false,
        prefix: "eth".into(),
        host_ip: None,
        reserved,
    };
    read_options(&request.options.generic, &mut spec, &mut known)?;
    known.network.clone_from(&spec.name);
    Ok(Wanted { spec, known })
}

fn read_options(
    options: &BTreeMap<String, Value>,
    spec: &mut NetworkSpec,
    known: &mut DockerNetwork,
) -> Result<(), String> {
    for (key, value) in options {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let wrong = |wanted: &str| format!("option {key}: '{text}' is not {wanted}");
        let flag = || match text.as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(wrong("true or false")),
        };
        match key.as_str() {
            "name" => spec.name = text,
            "network" => {
                spec.name = text;
                known.made = false;
            }
            "icc" | "com.docker.network.bridge.enable_icc" => spec.isolate_ports = !flag()?,
            "mtu" | "com.docker.network.driver.mtu" => {
                spec.mtu = Some(text.parse().map_err(|_| wrong("a number"))?);
            }
            "masquerade" | "com.docker.network.bridge.enable_ip_masquerade" => spec.masquerade = flag()?,
            "host-access" => spec.host_access = flag()?,
            "mapping" => {
                let found = Mapping::ALL.into_iter().find(|m| m.name() == text);
                spec.mapping = found.ok_or_else(|| wrong(&one_of(Mapping::ALL.map(Mapping::name))))?;
            }
            "filtering" => {
                let found = Filtering::ALL.into_iter().find(|f| f.name() == text);
                spec.filtering = found.ok_or_else(|| wrong(&one_of(Filtering::ALL.map(Filtering::name))))?;
            }
            "host-ip" | "com.docker.network.bridge.host_binding_ipv4" => {
                known.host_ip = Some(text.parse().map_err(|_| wrong("an address"))?);
            }
            "prefix" | "com.docker.network.container_iface_prefix" => {
                let fits = (1..=MAX_PREFIX).contains(&text.len())
                    && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
                if !fits {
                    return Err(wrong(
                        "the beginning of an interface's name: up to 12 letters, digits, - or _",
                    ));
                }
                known.prefix = text;
            }
            _ => return Err(format!("option {key} is not known; there are {KNOWN}")),
        }
    }
    if known.made {
        return Ok(());
    }
    if spec.internal {
        return Err("--internal is for a network of its own; leave out the option network".into());
    }
    match options.keys().find(|key| !OF_DOCKER.contains(&key.as_str())) {
        Some(key) => {
            Err(format!("option {key} is for a new network, and network {} is there already", spec.name))
        }
        None => Ok(()),
    }
}

fn one_of<const N: usize>(names: [&str; N]) -> String {
    names.join(" or ")
}

/// A subnet and its gateway.
fn subnet(data: &IpamData) -> Result<(IpNet, IpAddr), String> {
    let pool = address_of(&data.pool)?.trunc();
    if pool.prefix_len() == 0 {
        return Err("a network needs a subnet: use Docker's own IPAM, or --ipam-driver swd".into());
    }
    let gateway = match data.gateway.as_str() {
        "" => first_host(pool),
        text => address_of(text)?.addr(),
    };
    Ok((pool, gateway))
}

/// The first address of a subnet that a host can have.
pub(super) fn first_host(subnet: IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(net) => Ipv4Addr::from(u32::from(net.network()).saturating_add(1)).into(),
        IpNet::V6(net) => Ipv6Addr::from(u128::from(net.network()).saturating_add(1)).into(),
    }
}

/// An address with a prefix length.
pub(super) fn address_of(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| format!("'{text}' is no address with a prefix length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &str) -> Result<Wanted, String> {
        let text = format!(
            r#"{{"NetworkID":"0123456789abcdef","Options":{options},"IPv4Data":[{{"Pool":"10.9.0.0/24",
                "Gateway":"10.9.0.254/24","AuxAddresses":{{"a":"10.9.0.7/24"}}}}],
                "IPv6Data":[{{"Pool":"fd00:9::/64","Gateway":"fd00:9::1/64"}}]}}"#
        );
        wanted(&serde_json::from_str(&text).unwrap())
    }

    fn with(options: &str) -> Result<Wanted, String> {
        read(&format!(r#"{{"com.docker.network.generic":{{{options}}}}}"#))
    }

    #[test]
    fn a_network_of_dockers() {
        let Wanted { spec, known } = read("{}").unwrap();
        assert_eq!(
            (spec.name.as_str(), known.network.as_str()),
            ("docker-0123456789ab", "docker-0123456789ab")
        );
        assert_eq!(spec.subnets, ["10.9.0.0/24".parse::<IpNet>().unwrap(), "fd00:9::/64".parse().unwrap()]);
        assert_eq!(spec.gateways[0].to_string(), "10.9.0.254");
        assert!(spec.masquerade && spec.host_access && !spec.isolate_ports && known.made && !spec.internal);
        assert_eq!(known.reserved, ["10.9.0.7".parse().unwrap()].into());
        assert!(read(r#"{"com.docker.network.internal":true}"#).unwrap().spec.internal);
    }

    #[test]
    fn options_say_what_the_network_is_like() {
        let Wanted { spec, known } = with(
            r#""name":"web","icc":"false","mtu":"1400","com.docker.network.bridge.enable_ip_masquerade":"false",
               "host-access":"false","mapping":"address-and-port-dependent","filtering":"endpoint-independent",
               "host-ip":"127.0.0.1","prefix":"net""#,
        )
        .unwrap();
        assert_eq!((spec.name.as_str(), spec.mtu, known.prefix.as_str()), ("web", Some(1400), "net"));
        assert!(spec.isolate_ports && !spec.masquerade && !spec.host_access);
        assert_eq!(spec.mapping, Mapping::AddressAndPortDependent);
        assert_eq!(spec.filtering, Filtering::EndpointIndependent);
        assert_eq!(known.host_ip, Some("127.0.0.1".parse().unwrap()));
        let shared = with(r#""network":"default""#).unwrap();
        assert!(!shared.known.made && shared.known.network == "default");
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (options, said) in [
            (r#""icc":"maybe""#, "'maybe' is not true or false"),
            (r#""mtu":"big""#, "is not a number"),
            (r#""mapping":"none""#, "is not endpoint-independent or address-and-port-dependent"),
            (r#""parent":"eth0""#, "option parent is not known; there are name, network, icc"),
            (r#""prefix":"a/b""#, "the beginning of an interface's name"),
            (r#""name":"a","network":"b""#, "is for a new network"),
            (r#""icc":"false","network":"b""#, "option icc is for a new network"),
        ] {
            let error = with(options).unwrap_err();
            assert!(error.contains(said), "{options}: {error}");
        }
        let none =
            r#"{"NetworkID":"0123456789abcdef","IPv4Data":[{"Pool":"0.0.0.0/0","Gateway":"0.0.0.0/0"}]}"#;
        assert!(wanted(&serde_json::from_str(none).unwrap()).unwrap_err().contains("needs a subnet"));
        let two =
            r#"{"NetworkID":"0123456789abcdef","IPv4Data":[{"Pool":"10.0.0.0/24"},{"Pool":"10.0.1.0/24"}]}"#;
        assert!(wanted(&serde_json::from_str(two).unwrap()).unwrap_err().contains("one subnet"));
    }
}
