//! What travels: libnetwork's `drivers/remote/api` and `ipams/remote/api`. Fields that mean nothing to swd are left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// What a map holds that may also be `null`, as Go writes an empty one.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// `NetworkDriver.CreateNetwork`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CreateNetwork {
    #[serde(rename = "NetworkID")]
    pub(super) network_id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) options: NetworkOptions,
    #[serde(rename = "IPv4Data", default, deserialize_with = "or_default")]
    pub(super) ipv4_data: Vec<IpamData>,
    #[serde(rename = "IPv6Data", default, deserialize_with = "or_default")]
    pub(super) ipv6_data: Vec<IpamData>,
}

/// What is wanted of a network besides its addresses.
#[derive(Debug, Default, Deserialize)]
pub(super) struct NetworkOptions {
    #[serde(rename = "com.docker.network.internal", default)]
    pub(super) internal: bool,
    /// What the user gave with `-o`.
    #[serde(rename = "com.docker.network.generic", default, deserialize_with = "or_default")]
    pub(super) generic: BTreeMap<String, Value>,
}

/// A subnet.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct IpamData {
    /// With a prefix length.
    #[serde(default)]
    pub(super) pool: String,
    /// With a prefix length; may be missing.
    #[serde(default)]
    pub(super) gateway: String,
    /// With prefix lengths, by names of the user's.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) aux_addresses: BTreeMap<String, String>,
}

/// Requests about a network: `NetworkDriver.DeleteNetwork`.
#[derive(Debug, Deserialize)]
pub(super) struct OfNetwork {
    #[serde(rename = "NetworkID")]
    pub(super) network_id: String,
}

/// Requests about an endpoint: `NetworkDriver.DeleteEndpoint`, `EndpointOperInfo`, `Join`, `Leave`,
/// `RevokeExternalConnectivity`.
#[derive(Debug, Deserialize)]
pub(super) struct OfEndpoint {
    #[serde(rename = "NetworkID")]
    pub(super) network_id: String,
    #[serde(rename = "EndpointID")]
    pub(super) endpoint_id: String,
}

/// `NetworkDriver.CreateEndpoint`.
#[derive(Debug, Deserialize)]
pub(super) struct CreateEndpoint {
    #[serde(flatten)]
    pub(super) of: OfEndpoint,
    #[serde(rename = "Interface", default, deserialize_with = "or_default")]
    pub(super) interface: Interface,
}

/// The container's interface. Addresses are with prefix lengths.
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Interface {
    #[serde(default)]
    pub(super) address: String,
    #[serde(rename = "AddressIPv6", default)]
    pub(super) address_ipv6: String,
    #[serde(default)]
    pub(super) mac_address: String,
}

/// The answer: what was left open.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct EndpointCreated {
    pub(super) interface: Interface,
}

/// The answer to `NetworkDriver.EndpointOperInfo`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct EndpointInfo {
    pub(super) value: Map<String, Value>,
}

/// The answer to `NetworkDriver.Join`.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Joined {
    pub(super) interface_name: InterfaceName,
    /// Empty for none.
    pub(super) gateway: String,
    #[serde(rename = "GatewayIPv6")]
    pub(super) gateway_ipv6: String,
    /// No bridge of Docker's own in place of a gateway.
    pub(super) disable_gateway_service: bool,
}

/// Which interface Docker takes, and what its name in the container begins with.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InterfaceName {
    pub(super) src_name: String,
    pub(super) dst_prefix: String,
}

/// `NetworkDriver.ProgramExternalConnectivity`.
#[derive(Debug, Deserialize)]
pub(super) struct Program {
    #[serde(flatten)]
    pub(super) of: OfEndpoint,
    #[serde(rename = "Options", default, deserialize_with = "or_default")]
    pub(super) options: ProgramOptions,
}

/// The part of them that swd wants.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ProgramOptions {
    #[serde(rename = "com.docker.network.portmap", default, deserialize_with = "or_default")]
    pub(super) mappings: Vec<Binding>,
}

/// A port mapping. Of a host port 0 any will do; of an end after it, any in between.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Binding {
    /// As IP has it: 6 is TCP, 17 is UDP.
    pub(super) proto: u8,
    /// The container's port.
    pub(super) port: u16,
    /// Empty for all.
    #[serde(rename = "HostIP", default)]
    pub(super) host_ip: String,
    #[serde(default)]
    pub(super) host_port: u16,
    #[serde(default)]
    pub(super) host_port_end: u16,
}

/// `IpamDriver.RequestPool`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RequestPool {
    /// Empty: swd chooses.
    #[serde(default)]
    pub(super) pool: String,
    /// The part from which addresses are given; empty for all.
    #[serde(default)]
    pub(super) sub_pool: String,
    /// Of a pool that swd chooses.
    #[serde(default)]
    pub(super) v6: bool,
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PoolGiven {
    #[serde(rename = "PoolID")]
    pub(super) pool_id: String,
    pub(super) pool: String,
    pub(super) data: Map<String, Value>,
}

/// `IpamDriver.ReleasePool`.
#[derive(Debug, Deserialize)]
pub(super) struct ReleasePool {
    #[serde(rename = "PoolID")]
    pub(super) pool_id: String,
}

/// `IpamDriver.RequestAddress` and `IpamDriver.ReleaseAddress`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct OfAddress {
    #[serde(rename = "PoolID")]
    pub(super) pool_id: String,
    /// Empty: swd chooses.
    #[serde(default)]
    pub(super) address: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) options: BTreeMap<String, String>,
}

impl OfAddress {
    /// Asked for as a network's gateway.
    pub(super) fn is_gateway(&self) -> bool {
        self.options.get("RequestAddressType").is_some_and(|t| t == "com.docker.network.gateway")
    }
}

/// The answer: with a prefix length.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AddressGiven {
    pub(super) address: String,
    pub(super) data: Map<String, Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_sends_is_read() {
        // As Docker 20.10 writes them.
        let text = r#"{"NetworkID":"5f2e","Options":{"com.docker.network.enable_ipv6":true,"com.docker.network.generic":
            {"icc":"false"},"com.docker.network.internal":true},"IPv4Data":[{"AddressSpace":"LocalDefault","AuxAddresses":
            {"printer":"172.20.0.9/16"},"Gateway":"172.20.0.1/16","Pool":"172.20.0.0/16"}],"IPv6Data":null}"#;
        let create: CreateNetwork = serde_json::from_str(text).unwrap();
        assert!(create.options.internal && create.options.generic["icc"] == "false");
        assert_eq!(create.ipv4_data[0].aux_addresses["printer"], "172.20.0.9/16");
        assert!(create.ipv6_data.is_empty());
        let text = r#"{"NetworkID":"5f2e","EndpointID":"77aa","Options":{"com.docker.network.endpoint.exposedports":
            [{"Proto":6,"Port":80}],"com.docker.network.portmap":[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":5000,
            "HostPortEnd":5000}]}}"#;
        let program: Program = serde_json::from_str(text).unwrap();
        assert_eq!((program.of.endpoint_id.as_str(), program.options.mappings[0].host_port), ("77aa", 5000));
        let text = r#"{"NetworkID":"5f2e","EndpointID":"77aa","Interface":{"Address":"172.20.0.2/16","AddressIPv6":"",
            "MacAddress":""},"Options":{"com.docker.network.endpoint.macaddress":"AkKs"}}"#;
        let create: CreateEndpoint = serde_json::from_str(text).unwrap();
        assert_eq!(create.interface.address, "172.20.0.2/16");
        for options in ["null", "{}", r#"{"com.docker.network.portmap":null}"#] {
            let text = format!(r#"{{"NetworkID":"5f2e","EndpointID":"77aa","Options":{options}}}"#);
            assert!(serde_json::from_str::<Program>(&text).unwrap().options.mappings.is_empty(), "{options}");
        }
    }

    #[test]
    fn answers_have_dockers_names() {
        let joined = Joined {
            interface_name: InterfaceName { src_name: "ep-1".into(), dst_prefix: "eth".into() },
            gateway: "10.0.0.1".into(),
            gateway_ipv6: String::new(),
            disable_gateway_service: false,
        };
        let expected = r#"{"InterfaceName":{"SrcName":"ep-1","DstPrefix":"eth"},"Gateway":"10.0.0.1","GatewayIPv6":"","DisableGatewayService":false}"#;
        assert_eq!(serde_json::to_string(&joined).unwrap(), expected);
        let interface = Interface { mac_address: "02:00:00:00:00:01".into(), ..Interface::default() };
        let expected = r#"{"Interface":{"Address":"","AddressIPv6":"","MacAddress":"02:00:00:00:00:01"}}"#;
        assert_eq!(serde_json::to_string(&EndpointCreated { interface }).unwrap(), expected);
    }
}
