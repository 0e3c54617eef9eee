//! What the runtime is answered: results and errors.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::request::Config;
use crate::api::{Network, Port};
use crate::client::ClientError;

/// Versions of the specification whose results are made here.
pub(super) const SUPPORTED: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// An error with its code in the specification.
#[derive(Debug)]
pub struct Failure {
    code: u32,
    message: String,
}

impl Failure {
    const fn new(code: u32, message: String) -> Self {
        Self { code, message }
    }

    /// A version that is not known.
    pub(super) const fn version(message: String) -> Self {
        Self::new(1, message)
    }

    /// A field that cannot be honoured.
    pub(super) const fn unsupported(message: String) -> Self {
        Self::new(2, message)
    }

    /// The environment is wrong.
    pub(super) const fn environment(message: String) -> Self {
        Self::new(4, message)
    }

    /// Reading failed.
    pub const fn io(message: String) -> Self {
        Self::new(5, message)
    }

    /// Not what it should be.
    pub(super) const fn decode(message: String) -> Self {
        Self::new(6, message)
    }

    /// The configuration is wrong.
    pub(super) const fn config(message: String) -> Self {
        Self::new(7, message)
    }

    /// Not ready for `ADD`.
    pub(super) const fn unavailable(message: String) -> Self {
        Self::new(50, message)
    }

    /// `CHECK` has found something wrong.
    pub(super) const fn broken(message: String) -> Self {
        Self::new(100, message)
    }

    /// Its code.
    pub const fn code(&self) -> u32 {
        self.code
    }

    /// In words.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// As the runtime wants it.
    pub fn to_json(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "code": self.code, "msg": self.message })
    }
}

impl From<ClientError> for Failure {
    fn from(e: ClientError) -> Self {
        // What swd refuses it will refuse again; that it does not answer may pass.
        let code = match &e {
            ClientError::Problem(problem) if problem.status < 500 => 7,
            ClientError::Problem(_) => 999,
            _ => 11,
        };
        Self::new(code, e.to_string())
    }
}

/// The answer to `VERSION`.
pub fn versions(version: &str) -> Value {
    json!({ "cniVersion": version, "supportedVersions": SUPPORTED })
}

/// The answer to `ADD`: what a plugin before has answered, and this interface.
pub fn added(config: &Config, netns: &str, ifname: &str, port: &Port, network: &Network) -> Value {
    let before = config.prev_result.clone().unwrap_or_default();
    let list = |key: &str| before.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let (mut interfaces, mut ips, mut routes) = (list("interfaces"), list("ips"), list("routes"));
    let at = interfaces.len();
    let mut interface = json!({ "name": ifname, "mac": port.mac, "sandbox": netns });
    if config.cni_version == "1.1.0" {
        interface["mtu"] = json!(network.mtu);
    }
    interfaces.push(interface);
    for address in &port.addresses {
        let mut ip = json!({ "address": address.to_string(), "interface": at });
        if config.cni_version.starts_with("0.") {
            ip["version"] = json!(if address.addr().is_ipv4() { "4" } else { "6" });
        }
        if let Some(gateway) = gateway_of(network, address) {
            ip["gateway"] = json!(gateway.to_string());
            let everywhere = if address.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            routes.push(json!({ "dst": everywhere, "gw": gateway.to_string() }));
        }
        ips.push(ip);
    }
    let mut result = before;
    result.insert("cniVersion".into(), json!(config.cni_version));
    result.insert("interfaces".into(), interfaces.into());
    result.insert("ips".into(), ips.into());
    result.insert("routes".into(), routes.into());
    if let Some(dns) = dns(config, result.get("dns"), network) {
        result.insert("dns".into(), dns.into());
    }
    Value::Object(result)
}

fn gateway_of(network: &Network, address: &IpNet) -> Option<IpAddr> {
    let mut all = network.subnets.iter().zip(&network.gateways);
    all.find(|(subnet, _)| subnet.contains(&address.addr())).map(|(_, gateway)| *gateway)
}

/// What the runtime says counts, else the configuration, else what a plugin before has answered. Where no server is named, it is the
/// gateway, which knows the names of its network, and a name without a dot is one of those.
fn dns(config: &Config, before: Option<&Value>, network: &Network) -> Option<Map<String, Value>> {
    let said = match &config.runtime_config.dns {
        None => config.dns.as_ref().or(before).and_then(Value::as_object).cloned(),
        Some(given) => {
            let ours = [("servers", "nameservers"), ("searches", "search"), ("options", "options")];
            let given =
                ours.iter().filter_map(|(theirs, ours)| Some(((*ours).to_owned(), given.get(*theirs)?)));
            Some(given.map(|(key, value)| (key, value.clone())).collect())
        }
    };
    let has = |key: &str| {
        let list = said.as_ref().and_then(|dns| dns.get(key)).and_then(Value::as_array);
        list.is_some_and(|list| !list.is_empty())
    };
    if !network.dns || network.gateways.is_empty() || has("nameservers") {
        return said;
    }
    let has_search = has("search");
    let mut dns = said.unwrap_or_default();
    let servers: Vec<String> = network.gateways.iter().map(ToString::to_string).collect();
    dns.insert("nameservers".into(), json!(servers));
    if !has_search {
        dns.insert("search".into(), json!([network.name]));
    }
    Some(dns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> Port {
        serde_json::from_str(
            r#"{"name":"cni-1","ifname":"cni-1.p","network":"dual","kind":"packet","state":"up","mac":"02:00:0a:00:00:02",
                "mtu":1400,"netns":"/run/netns/x","container_ifname":"eth0","addresses":["10.0.0.2/24","fd00::2/64"],
                "since":"2026-11-22T00:00:00Z","rx_packets":0,"tx_packets":0,"rx_bytes":0,"tx_bytes":0,"rx_dropped":0,
                "tx_dropped":0}"#,
        )
        .unwrap()
    }

    fn network() -> Network {
        serde_json::from_str(
            r#"{"name":"dual","subnets":["10.0.0.0/24","fd00::/64"],"gateways":["10.0.0.1","fd00::1"],"gateway_mac":
                "02:00:00:00:00:01","mtu":1400,"isolate_ports":false,"masquerade":true,"host_access":true,
                "host_ifname":"sw1","dns":true,"ports":[],"leases":1}"#,
        )
        .unwrap()
    }

    fn result(version: &str, more: &str) -> Value {
        let text = format!(r#"{{"cniVersion":"{version}","name":"lan","type":"swd-cni"{more}}}"#);
        added(&Config::read(text.as_bytes()).unwrap(), "/run/netns/x", "eth0", &port(), &network())
    }

    #[test]
    fn results_are_of_the_version_that_was_asked_for() {
        let new = result("1.1.0", "");
        assert_eq!(new["interfaces"][0]["mtu"], 1400);
        assert_eq!(new["ips"][1], json!({"address": "fd00::2/64", "gateway": "fd00::1", "interface": 0}));
        assert_eq!(new["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "10.0.0.1"}));
        let old = result("0.4.0", "");
        assert_eq!((&old["ips"][0]["version"], &old["interfaces"][0]["mtu"]), (&json!("4"), &Value::Null));
    }

    #[test]
    fn what_came_before_stays() {
        let before = r#","prevResult":{"interfaces":[{"name":"lo"}],"ips":[{"address":"127.0.0.1/8","interface":0}],"x":1}"#;
        let all = result("1.0.0", before);
        assert_eq!(
            (&all["interfaces"][0]["name"], &all["interfaces"][1]["name"]),
            (&json!("lo"), &json!("eth0"))
        );
        assert_eq!((&all["ips"][1]["interface"], &all["x"]), (&json!(1), &json!(1)));
    }

    #[test]
    fn dns_is_the_runtimes_or_the_configurations_or_the_gateway() {
        let gateway = json!({"nameservers": ["10.0.0.1", "fd00::1"], "search": ["dual"]});
        for nothing in ["", r#","dns":{}"#, r#","runtimeConfig":{"dns":{"servers":[]}}"#] {
            assert_eq!(result("1.0.0", nothing)["dns"], gateway, "{nothing}");
        }
        let before = r#","prevResult":{"dns":{"nameservers":["9.9.9.9"]}}"#;
        assert_eq!(result("1.0.0", before)["dns"], json!({"nameservers": ["9.9.9.9"]}));
        let search = result("1.0.0", r#","runtimeConfig":{"dns":{"searches":["lan"]}}"#)["dns"].clone();
        assert_eq!(search, json!({"nameservers": ["10.0.0.1", "fd00::1"], "search": ["lan"]}));
        let given = r#","dns":{"nameservers":["9.9.9.9"]}"#;
        assert_eq!(result("1.0.0", given)["dns"]["nameservers"][0], "9.9.9.9");
        let both =
            format!(r#"{given},"runtimeConfig":{{"dns":{{"servers":["8.8.8.8"],"searches":["lan"]}}}}"#);
        assert_eq!(result("1.0.0", &both)["dns"], json!({"nameservers": ["8.8.8.8"], "search": ["lan"]}));
    }
}
