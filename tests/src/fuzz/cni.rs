//! What a container runtime gives the CNI plugin: environment and configuration.

use ctl::api::{DEFAULT_NETWORK, Network, Port};
use ctl::cni::{Config, Environment, Failure, Wanted, added, version_of, versions};
use ctl::mapping;
use jiff::Timestamp;
use serde_json::json;
use switch::daemon::desired::Desired;
use switch::sys::netns::NetNsId;

/// Most lines of the environment.
const MOST: usize = 16;

/// Lines `NAME=VALUE`, an empty line, and the configuration.
///
/// What is refused is refused with a code and in one line; what is understood makes requests that swd can read, and an answer of the
/// version that was asked for.
///
/// # Panics
/// When something is wrong with swd.
pub fn cni(data: &[u8]) {
    let end = data.windows(2).position(|two| two == b"\n\n");
    let (environment, input) = match end {
        None => (&[][..], data),
        Some(end) => (&data[..end], &data[end + 2..]),
    };
    let variables: Vec<(&str, &str)> = environment
        .split(|b| *b == b'\n')
        .take(MOST)
        .filter_map(|line| std::str::from_utf8(line).ok()?.split_once('='))
        .collect();
    let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| *v).to_owned();
    let version = version_of(input);
    assert!(versions(&version)["supportedVersions"].is_array());
    let environment = answered(Environment::of(get), &version);
    let config = answered(Config::read(input), &version);
    let (Some(environment), Some(config)) = (environment, config) else { return };
    let Some(wanted) = answered(Wanted::of(&environment, &config), &version) else { return };
    if let Some(limits) = &wanted.limits {
        assert!(limits.rate_in.is_some() || limits.rate_out.is_some(), "limits that limit nothing");
    }

    let name = wanted.attach.name.as_deref().expect("a name that is found again");
    ctl::spec::check_name("port", name).expect("a name that swd takes");
    let mut desired = Desired::default();
    let default = ctl::config::Network::default().spec(DEFAULT_NETWORK);
    desired.add_network("swd", &default, |_| false).expect("the shipped network");
    if let Some(network) = &wanted.network
        && let Err(e) = desired.add_network("swd", network, |_| false)
    {
        assert_eq!(e.to_string().lines().count(), 1, "{e}");
    }
    let netns = (wanted.attach.netns.clone(), NetNsId { dev: 1, ino: 2 });
    let attached = desired.attach(&wanted.attach, netns, Timestamp::UNIX_EPOCH, |_, _| false);
    let made = match attached {
        Ok(made) => made,
        Err(e) => return assert_eq!(e.to_string().lines().count(), 1, "{e}"),
    };
    assert_eq!(made, name);
    if let Some(limits) = &wanted.limits {
        desired.change_port(&made, limits).expect("limits that were checked");
    }
    let (port, network) = (port(), network());
    let addresses: Vec<_> = port.addresses.iter().map(ipnet::IpNet::addr).collect();
    for spec in mapping::publishes(&wanted.mappings, &addresses, &made).unwrap_or_default() {
        desired
            .check_publish(&spec, Timestamp::UNIX_EPOCH)
            .map_or_else(|e| assert_eq!(e.to_string().lines().count(), 1, "{e}"), drop);
    }

    let answer = added(&config, &wanted.attach.netns, "eth0", &port, &network);
    assert_eq!(answer["cniVersion"].as_str(), Some(version.as_str()));
    let list = |key: &str| answer[key].as_array().expect("a list").clone();
    let (interfaces, ips) = (list("interfaces"), list("ips"));
    assert_eq!(interfaces.last().map(|i| &i["name"]), Some(&json!("eth0")));
    let own = ips.iter().rev().take(port.addresses.len());
    assert!(own.clone().all(|ip| ip["interface"] == json!(interfaces.len() - 1)), "{ips:?}");
}

/// What is refused has a code of the specification, and is said in one line.
#[track_caller]
fn answered<T>(read: Result<T, Failure>, version: &str) -> Option<T> {
    let failure = match read {
        Ok(value) => return Some(value),
        Err(failure) => failure,
    };
    assert!(failure.code() > 0 && failure.message().lines().count() == 1, "{failure:?}");
    assert_eq!(failure.to_json(version)["cniVersion"], version);
    None
}

/// A port of both families, as swd tells about one.
fn port() -> Port {
    serde_json::from_value(json!({
        "name": "cni-1", "ifname": "cni-1.p", "network": "dual", "kind": "packet", "state": "up",
        "mac": "02:00:0a:00:00:02", "mtu": 1400, "netns": "/run/netns/x", "container_ifname": "eth0",
        "addresses": ["10.0.0.2/24", "fd00::2/64"], "since": "2026-11-22T00:00:00Z", "rx_packets": 0,
        "tx_packets": 0, "rx_bytes": 0, "tx_bytes": 0, "rx_dropped": 0, "tx_dropped": 0,
    }))
    .expect("a port")
}

/// Its network.
fn network() -> Network {
    serde_json::from_value(json!({
        "name": "dual", "subnets": ["10.0.0.0/24", "fd00::/64"], "gateways": ["10.0.0.1", "fd00::1"],
        "gateway_mac": "02:00:00:00:00:01", "mtu": 1400, "isolate_ports": false, "masquerade": true,
        "host_access": true, "host_ifname": "sw1", "dns": true, "ports": [], "leases": 1,
    }))
    .expect("a network")
}
