//! The operations. An attachment is a port whose name follows from the network, the container and the interface, so that
//! every call finds what another one made.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::Value;

use super::outcome::{self, Failure};
use super::request::{Config, Environment};
use crate::api::{AttachSpec, Inspected, NetworkSpec, Port, PortChange, PortState, PublishSpec, Published};
use crate::client::{Client, ClientError};
use crate::mapping::{self, PortMapping};

/// Does what is asked. Null is no answer.
///
/// # Errors
/// When something of the request cannot be honoured, swd refuses it, or does not answer.
pub async fn run(environment: &Environment, config: &Config) -> Result<Value, Failure> {
    let client = Client::new(&config.socket);
    match environment.command.as_str() {
        "ADD" => add(&client, environment, config).await,
        "DEL" => delete(&client, &port_of(config, &environment.container, &environment.ifname)).await,
        "CHECK" => check(&client, environment, config).await,
        "STATUS" => status(&client, config).await,
        _ => collect(&client, config).await,
    }
}

/// What names of ports of a network begin with.
fn prefix(config: &Config) -> String {
    format!("cni-{:08x}-", hash(config.name.as_bytes()) >> 32)
}

/// The port of an attachment.
fn port_of(config: &Config, container: &str, ifname: &str) -> String {
    format!("{}{:016x}", prefix(config), hash(format!("{container}/{ifname}").as_bytes()))
}

/// FNV-1a: the same in every version.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What an `ADD` wants of swd.
#[derive(Debug)]
pub struct Wanted {
    /// The port.
    pub attach: AttachSpec,
    /// The network, should it be missing; none where the configuration does not say what it is like.
    pub network: Option<NetworkSpec>,
    /// Limits of the port, if there are any.
    pub limits: Option<PortChange>,
    /// Ports to publish.
    pub mappings: Vec<PortMapping>,
}

impl Wanted {
    /// By what the runtime says.
    ///
    /// # Errors
    /// When something of it cannot be honoured.
    pub fn of(environment: &Environment, config: &Config) -> Result<Self, Failure> {
        let attach = AttachSpec {
            netns: environment.netns.clone(),
            name: Some(port_of(config, &environment.container, &environment.ifname)),
            network: Some(config.network.clone()),
            addresses: config.addresses(environment)?,
            ifname: Some(environment.ifname.clone()),
            mac: config.mac(environment),
            aliases: config.aliases(environment),
            tap: false,
        };
        let (mappings, limits) = (config.mappings()?, config.limits()?);
        Ok(Self { attach, network: config.network()?, limits, mappings })
    }
}

/// What is published for a container with these addresses, and goes with its port.
fn publishes(mappings: &[PortMapping], addresses: &[IpNet], port: &str) -> Result<Vec<PublishSpec>, Failure> {
    let addresses: Vec<_> = addresses.iter().map(IpNet::addr).collect();
    mapping::publishes(mappings, &addresses, port).map_err(|e| Failure::config(e.to_string()))
}

async fn add(client: &Client, environment: &Environment, config: &Config) -> Result<Value, Failure> {
    let wanted = Wanted::of(environment, config)?;
    need_network(client, &config.network, wanted.network.as_ref()).await?;
    let port = client.attach(&wanted.attach).await?;
    let finish = async {
        if let Some(limits) = &wanted.limits {
            client.change_port(&port.name, limits).await?;
        }
        for spec in publishes(&wanted.mappings, &port.addresses, &port.name)? {
            if let Err(refused) = client.publish(&spec).await
                // Where that cannot be told, the refusal is what there is to say.
                && !leads_already(client, &environment.netns, &spec).await.unwrap_or(false)
            {
                return Err(refused.into());
            }
        }
        Ok(client.network(&config.network).await?)
    };
    match finish.await {
        Ok(network) => Ok(outcome::added(config, &environment.netns, &environment.ifname, &port, &network)),
        Err(failure) => {
            // What was published goes with the port.
            let _ = client.detach(&port.name).await;
            Err(failure)
        }
    }
}

/// Whether ports lead to the container already, by another of its interfaces: a runtime that attaches it to one more network says them
/// again (Podman does).
async fn leads_already(client: &Client, netns: &str, spec: &PublishSpec) -> Result<bool, ClientError> {
    let container = client.inspect(netns).await?;
    Ok(client.published().await?.iter().any(|published| leads(published, spec, &container)))
}

/// Whether these ports of the host lead to that of a container which is wanted.
fn leads(published: &Published, spec: &PublishSpec, container: &Inspected) -> bool {
    let end = spec.host_port_end.unwrap_or(spec.host_port);
    published.port.as_ref().is_some_and(|port| container.ports.contains(port))
        && (published.host_ip, published.host_port, published.host_port_end)
            == (spec.host_ip, spec.host_port, end)
        && (published.protocol, published.target_port) == (spec.protocol, spec.target_port)
        && published.target_ip.is_ipv4() == spec.target_ip.is_ipv4()
}

/// Makes the network where it is missing and it is known what it is to be like.
async fn need_network(client: &Client, name: &str, spec: Option<&NetworkSpec>) -> Result<(), Failure> {
    let Err(missing) = client.network(name).await else { return Ok(()) };
    let Some(spec) = spec.filter(|_| missing.is_not_found()) else { return Err(missing.into()) };
    let Err(made) = client.add_network(spec).await else { return Ok(()) };
    // Another container's call may have been faster.
    match client.network(name).await {
        Ok(_) => Ok(()),
        Err(_) => Err(made.into()),
    }
}

async fn delete(client: &Client, port: &str) -> Result<Value, Failure> {
    match client.detach(port).await {
        Ok(()) => Ok(Value::Null),
        Err(e) if e.is_not_found() => Ok(Value::Null),
        Err(e) => Err(e.into()),
    }
}

async fn check(client: &Client, environment: &Environment, config: &Config) -> Result<Value, Failure> {
    let Some(result) = &config.prev_result else {
        return Err(Failure::config("prevResult is missing: CHECK needs what ADD has answered".into()));
    };
    let name = port_of(config, &environment.container, &environment.ifname);
    let port = client.port(&name).await.map_err(|e| match e {
        e if e.is_not_found() => Failure::broken(format!("the container is not attached: {e}")),
        e => e.into(),
    })?;
    if port.state != PortState::Up {
        return Err(Failure::broken(format!("the link of {} is not up", environment.ifname)));
    }
    let seen = client.inspect(&environment.netns).await?;
    let device =
        seen.devices.iter().find(|d| d.name == environment.ifname && d.port.as_deref() == Some(&name));
    let Some(device) = device else {
        return Err(Failure::broken(format!(
            "the container has no interface {} of swd's",
            environment.ifname
        )));
    };
    for address in &port.addresses {
        let listed = result.get("ips").and_then(Value::as_array);
        let expected = |ip: &Value| ip["address"].as_str() == Some(&address.to_string());
        if !listed.is_some_and(|ips| ips.iter().any(expected)) {
            return Err(Failure::broken(format!("{address} is not among prevResult's ips")));
        }
        if !device.addresses.contains(address) {
            return Err(Failure::broken(format!("{} has lost its address {address}", environment.ifname)));
        }
    }
    check_published(client, config, &port, &seen).await
}

async fn check_published(
    client: &Client,
    config: &Config,
    port: &Port,
    container: &Inspected,
) -> Result<Value, Failure> {
    let wanted = publishes(&config.mappings()?, &port.addresses, &port.name)?;
    let published = client.published().await?;
    for spec in wanted {
        if !published.iter().any(|p| leads(p, &spec, container)) {
            let protocol = spec.protocol.name();
            return Err(Failure::broken(format!("port {}/{protocol} is not published", spec.host_port)));
        }
    }
    Ok(Value::Null)
}

async fn status(client: &Client, config: &Config) -> Result<Value, Failure> {
    let unavailable = |e: ClientError| Failure::unavailable(e.to_string());
    client.status().await.map_err(unavailable)?;
    match client.network(&config.network).await {
        // It is made when it is needed.
        Err(e) if e.is_not_found() && !config.subnets.is_empty() => Ok(Value::Null),
        Err(e) => Err(unavailable(e)),
        Ok(_) => Ok(Value::Null),
    }
}

/// Removes attachments that are not valid any more; past errors, the first of which is told.
async fn collect(client: &Client, config: &Config) -> Result<Value, Failure> {
    let Some(valid) = &config.valid else {
        return Err(Failure::config(
            "cni.dev/valid-attachments is missing: GC needs to know what is to stay".into(),
        ));
    };
    let valid: BTreeSet<String> = valid.iter().map(|a| port_of(config, &a.container, &a.ifname)).collect();
    let prefix = prefix(config);
    let mut first = Ok(Value::Null);
    for port in client.ports().await? {
        if port.name.starts_with(&prefix)
            && !valid.contains(&port.name)
            && let Err(e) = delete(client, &port.name).await
        {
            first = first.and(Err(e));
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_again_and_no_others() {
        let config = |name: &str| {
            Config::read(format!(r#"{{"cniVersion":"1.1.0","name":"{name}"}}"#).as_bytes()).unwrap()
        };
        let port = port_of(&config("lan"), "abc", "eth0");
        assert_eq!(port, port_of(&config("lan"), "abc", "eth0"));
        assert!(port.starts_with(&prefix(&config("lan"))) && port.len() <= crate::spec::MAX_NAME);
        assert!(crate::spec::check_name("port", &port).is_ok());
        let others = [("lan", "abc", "eth1"), ("lan", "abcd", "eth0"), ("wan", "abc", "eth0")];
        for (name, container, ifname) in others {
            assert_ne!(port, port_of(&config(name), container, ifname));
        }
        assert!(!port.starts_with(&prefix(&config("wan"))));
    }
}
