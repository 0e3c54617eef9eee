//! The CNI plugin, called as a runtime calls it.

use std::collections::BTreeSet;
use std::thread;

use serde_json::{Value, json};
use tests::containers::attached;
use tests::names::addresses;
use tests::netns::Namespace;
use tests::outside::Outside;
use tests::process::{Output, TIMEOUT, binary, run_with_input, s, wait_until};
use tests::site::Site;

/// Calls the plugin for a container on the site's host.
fn call(site: &Site, command: &str, container: (&str, &str), more: Value) -> Output {
    call_with(site, command, container, ("eth0", ""), more)
}

/// The same, for this interface, with these `CNI_ARGS`.
fn call_with(
    site: &Site,
    command: &str,
    container: (&str, &str),
    (ifname, arguments): (&str, &str),
    more: Value,
) -> Output {
    let mut config =
        json!({ "cniVersion": "1.1.0", "name": "lan", "type": "swd-cni", "socket": site.socket() });
    if let (Some(fields), Value::Object(more)) = (config.as_object_mut(), more) {
        fields.extend(more);
    }
    let variables = [
        format!("CNI_COMMAND={command}"),
        format!("CNI_CONTAINERID={}", container.0),
        format!("CNI_NETNS={}", container.1),
        format!("CNI_IFNAME={ifname}"),
        format!("CNI_ARGS={arguments}"),
    ];
    let plugin = binary("swd-cni");
    let mut words = vec!["env"];
    words.extend(variables.iter().map(String::as_str));
    words.push(plugin.to_str().expect("UTF-8"));
    run_with_input(&mut site.host.command(&words), config.to_string().as_bytes(), TIMEOUT)
}

/// The code and the words of an error.
#[track_caller]
fn failed(output: &Output) -> (u64, String) {
    assert!(!output.status.success(), "{output}");
    let error = output.json();
    (error["code"].as_u64().expect("a code"), error["msg"].as_str().expect("words").to_owned())
}

#[test]
fn a_container_is_added_checked_and_deleted() {
    let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
    let wan = Outside::new(&site.host);
    site.start();
    let ns = Namespace::bare();
    let path = ns.path().display().to_string();
    let container = ("4f2c", path.as_str());
    let mappings = json!([
        { "hostPort": 5000, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 5001, "containerPort": 81, "protocol": "tcp" },
        { "hostPort": 0, "containerPort": 9, "protocol": "tcp" },
    ]);
    let more = json!({
        "network": "web",
        "subnets": ["172.20.0.0/16", "fd00:20::/64"],
        "runtimeConfig": {
            "ips": ["172.20.0.77/16"],
            "mac": "02:42:00:00:00:77",
            "portMappings": mappings,
            "dns": { "servers": ["172.20.0.1"], "searches": ["lan"] },
        },
    });
    let result = call(&site, "ADD", container, more.clone()).ok().json();
    assert_eq!(result["interfaces"][0]["mac"], "02:42:00:00:00:77", "{result}");
    assert_eq!(result["interfaces"][0]["sandbox"], path, "{result}");
    assert_eq!(result["ips"][0]["address"], "172.20.0.77/16", "{result}");
    assert_eq!(result["ips"][1]["gateway"], "fd00:20::1", "{result}");
    assert_eq!(result["dns"], json!({ "nameservers": ["172.20.0.1"], "search": ["lan"] }));
    ns.ping("172.20.0.1");
    ns.ping("172.16.0.1");
    let listener = ns.tcp_listen("[::]:81");
    wan.tcp_connect("172.16.0.2:5001", s(3)).expect("published");
    drop(listener);
    assert_eq!(
        site.row(&["published"], "name", "5000-5001/tcp").expect("one range")["port"],
        attached(&site)[0]["name"]
    );

    let mut checked = more.clone();
    checked["prevResult"] = result.clone();
    call(&site, "CHECK", container, checked.clone()).ok();
    assert_eq!(failed(&call(&site, "CHECK", container, more.clone())).0, 7, "without what ADD has answered");
    assert_eq!(failed(&call(&site, "CHECK", ("other", &path), checked.clone())).0, 100);
    site.ctl(&["unpublish", "5000-5001"]);
    let (code, said) = failed(&call(&site, "CHECK", container, checked.clone()));
    assert_eq!((code, said.as_str()), (100, "port 5000/tcp is not published"));
    ns.ip(&["addr", "del", "172.20.0.77/16", "dev", "eth0"]);
    let (code, said) = failed(&call(&site, "CHECK", container, checked.clone()));
    assert_eq!((code, said.as_str()), (100, "eth0 has lost its address 172.20.0.77/16"));

    let (code, said) = failed(&call(&site, "ADD", container, more.clone()));
    assert!(code == 7 && said.contains("there is one of that name already"), "{code} {said}");
    for _ in 0..2 {
        assert_eq!(call(&site, "DEL", container, checked.clone()).ok().stdout, "");
    }
    assert_eq!(ns.links(), ["lo"]);
    assert_eq!((attached(&site), site.rows(&["published"])), (Vec::new(), Vec::new()));

    // What fails half-way leaves nothing.
    let taken = site.host.tcp_listen("0.0.0.0:5001");
    let (code, said) = failed(&call(&site, "ADD", container, more.clone()));
    assert!(code == 7 && said.contains("cannot publish"), "{code} {said}");
    assert_eq!((attached(&site), site.rows(&["published"])), (Vec::new(), Vec::new()));
    drop(taken);
    // With the namespace goes all of it, without a word from the runtime.
    call(&site, "ADD", container, more).ok();
    assert_eq!((attached(&site).len(), site.rows(&["published"]).len()), (1, 2), "one for each family");
    ns.delete();
    wait_until("port and publish are gone", s(10), || {
        attached(&site).is_empty() && site.rows(&["published"]).is_empty()
    });
    call(&site, "DEL", ("4f2c", ""), json!({ "network": "web" })).ok();
}

/// A runtime says a container's ports again with each network that it attaches it to. They lead to the first.
#[test]
fn published_ports_do_not_keep_a_container_from_a_second_network() {
    let site = Site::new();
    let ns = Namespace::bare();
    let path = ns.path().display().to_string();
    let ports = json!({ "portMappings": [{ "hostPort": 5000, "containerPort": 80, "protocol": "tcp" }] });
    let first = json!({ "runtimeConfig": ports });
    let second = json!({ "network": "web", "subnets": ["172.20.0.0/16"], "runtimeConfig": ports });
    call(&site, "ADD", ("a", &path), first.clone()).ok();
    let eth1 = |command, more: &Value| call_with(&site, command, ("a", &path), ("eth1", ""), more.clone());
    let result = eth1("ADD", &second).ok().json();
    let mut checked = second.clone();
    checked["prevResult"] = result;
    eth1("CHECK", &checked).ok();
    let published = || site.rows(&["published"]);
    assert_eq!((published().len(), published()[0]["network"].clone()), (1, json!("default")));

    // Another container is none of its, nor are other ports behind the same one.
    let other = Namespace::bare();
    let path = other.path().display().to_string();
    let (code, said) = failed(&call(&site, "ADD", ("b", &path), first));
    assert!(code == 7 && said.contains("5000/tcp leads to"), "{code} {said}");
    eth1("DEL", &second).ok();
    let ports = json!({ "portMappings": [{ "hostPort": 5000, "containerPort": 81, "protocol": "tcp" }] });
    let elsewhere = json!({ "network": "web", "runtimeConfig": ports });
    assert_eq!(failed(&eth1("ADD", &elsewhere)).0, 7);
    assert_eq!((ns.links(), published().len()), (vec!["lo".to_owned(), "eth0".to_owned()], 1));
}

#[test]
fn containers_have_their_names_for_the_runtime_and_the_gateway_as_resolver() {
    let site = Site::new();
    let (web, pod) = (Namespace::bare(), Namespace::bare());
    let path = |ns: &Namespace| ns.path().display().to_string();
    let aliases = json!({ "runtimeConfig": { "aliases": { "lan": ["shop"], "wan": ["other"] } } });
    let arguments = "IgnoreUnknown=1;K8S_POD_NAME=web";
    let result = call_with(&site, "ADD", ("a", &path(&web)), ("eth0", arguments), aliases).ok().json();
    assert_eq!(result["dns"], json!({ "nameservers": ["172.18.0.1"], "search": ["default"] }));
    let address = result["ips"][0]["address"].as_str().and_then(|a| a.split('/').next()).expect("an address");
    let arguments = "K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web";
    let more = json!({ "dns": { "nameservers": ["9.9.9.9"] } });
    let result = call_with(&site, "ADD", ("b", &path(&pod)), ("eth0", arguments), more).ok().json();
    assert_eq!(result["dns"], json!({ "nameservers": ["9.9.9.9"] }), "what the configuration says counts");
    for name in ["web", "shop", "web.default"] {
        assert_eq!(addresses(&pod, name), [address], "{name}");
    }
    assert_eq!(addresses(&web, "web.prod").len(), 1);
    assert_eq!(addresses(&web, "other"), Vec::<String>::new());
    call(&site, "DEL", ("a", &path(&web)), json!({})).ok();
    assert_eq!(addresses(&pod, "web"), Vec::<String>::new());
}

#[test]
fn bandwidth_is_the_ports_rates() {
    let site = Site::new();
    let ns = Namespace::bare();
    let path = ns.path().display().to_string();
    let more = json!({ "runtimeConfig": { "bandwidth": {
        "ingressRate": 20_000_000, "ingressBurst": 1_600_000, "egressRate": 10_000_000,
    } } });
    call(&site, "ADD", ("a", &path), more.clone()).ok();
    let limits = attached(&site)[0]["limits"].clone();
    // What enters the container is what goes out of its port. A burst is in bits there and in bytes here.
    assert_eq!(limits["rate_out"], json!({ "per_second": 20_000_000, "unit": "bits", "burst": 200_000 }));
    assert_eq!(limits["rate_in"]["per_second"], 10_000_000, "{limits}");
    ns.ping("172.18.0.1");
    call(&site, "DEL", ("a", &path), more).ok();
    // Nothing of it is left for the next one.
    call(&site, "ADD", ("a", &path), json!({})).ok();
    assert_eq!(attached(&site)[0]["limits"]["rate_out"], Value::Null);
}

#[test]
fn twenty_at_once_and_those_that_are_no_longer_valid() {
    let site = Site::new();
    let spaces: Vec<Namespace> = (0..20).map(|_| Namespace::bare()).collect();
    let each = |command: &'static str| -> Vec<Output> {
        thread::scope(|scope| {
            let calls = spaces.iter().map(|ns| {
                let site = &site;
                // The network is made by whoever comes first.
                let more = json!({ "network": "many", "subnets": ["172.20.0.0/16"] });
                scope.spawn(move || call(site, command, (ns.name(), &ns.path().display().to_string()), more))
            });
            let calls: Vec<_> = calls.collect();
            calls.into_iter().map(|c| c.join().expect("a call")).collect()
        })
    };
    let added: BTreeSet<String> = each("ADD")
        .into_iter()
        .map(|out| out.ok().json()["ips"][0]["address"].as_str().expect("an address").to_owned())
        .collect();
    assert_eq!(added.len(), 20, "an address was given twice: {added:?}");
    spaces[0].ping("172.20.0.1");

    let other = Namespace::bare();
    let elsewhere = json!({ "name": "wan", "network": "many" });
    call(&site, "ADD", ("other", &other.path().display().to_string()), elsewhere).ok();
    let valid: Vec<_> =
        spaces[..5].iter().map(|ns| json!({ "containerID": ns.name(), "ifname": "eth0" })).collect();
    let (code, _) = failed(&call(&site, "GC", ("", ""), json!({ "network": "many" })));
    assert_eq!((code, attached(&site).len()), (7, 21), "without a list of those that stay, all stay");
    call(&site, "GC", ("", ""), json!({ "network": "many", "cni.dev/valid-attachments": valid })).ok();
    assert_eq!(attached(&site).len(), 6, "five, and one of another network of the runtime's");
    assert_eq!(spaces[4].links(), ["eth0", "lo"].map(String::from).into_iter().rev().collect::<Vec<_>>());
    assert_eq!(spaces[5].links(), ["lo"]);
    each("DEL").into_iter().for_each(|out| drop(out.ok()));
    assert_eq!(attached(&site).len(), 1);
}

#[test]
fn what_cannot_be_is_told_with_its_code() {
    let mut site = Site::new();
    let ns = Namespace::bare();
    let path = ns.path().display().to_string();
    let versions = call(&site, "VERSION", ("", ""), json!({})).ok().json();
    assert!(
        versions["supportedVersions"].as_array().is_some_and(|v| v.contains(&json!("1.1.0"))),
        "{versions}"
    );
    call(&site, "STATUS", ("", ""), json!({})).ok();
    let none = json!({ "network": "none" });
    assert_eq!(failed(&call(&site, "STATUS", ("", ""), none.clone())).0, 50);
    let (code, said) = failed(&call(&site, "ADD", ("a", &path), none));
    assert!(code == 7 && said.contains("there is no network none"), "{code} {said}");
    for (container, more, expected) in [
        (("", path.as_str()), json!({}), 4),
        (("a", "/run/netns/not-there"), json!({}), 7),
        (("a", &path), json!({ "cniVersion": "0.1.0" }), 1),
        (("a", &path), json!({ "runtimeConfig": { "bandwidth": { "ingressRate": 1 } } }), 7),
        (("a", &path), json!({ "runtimeConfig": { "bandwidth": { "egressRate": -1 } } }), 6),
        (("a", &path), json!({ "runtimeConfig": { "ips": ["10.1.1.1"] } }), 7),
        (("a", &path), json!({ "runtimeConfig": { "mac": "01:00:00:00:00:00" } }), 7),
    ] {
        let out = call(&site, "ADD", container, more);
        assert_eq!(failed(&out).0, expected, "{out}");
    }
    assert_eq!((attached(&site), ns.links()), (Vec::new(), vec!["lo".to_owned()]));
    site.terminate();
    let (code, said) = failed(&call(&site, "ADD", ("a", &path), json!({})));
    assert!(code == 11 && said.contains("swd"), "{code} {said}");
    assert_eq!(failed(&call(&site, "DEL", ("a", &path), json!({}))).0, 11, "try again later");
    assert_eq!(failed(&call(&site, "STATUS", ("", ""), json!({}))).0, 50);
}
