//! `swd-cni` under the CNI project's own library, libcni: what it reads of results, errors and versions is judged by the
//! specification's authors, alone and in a chain with plugins of theirs.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::containers::{attached, nothing_is_left};
use tests::netns::Namespace;
use tests::outside::Outside;
use tests::process::{Output, TIMEOUT, binary, program, run, s};
use tests::site::Site;

/// A runtime of libcni's, with a network of these plugins.
struct Runtime<'a> {
    site: &'a Site,
    dir: TempDir,
}

impl<'a> Runtime<'a> {
    fn new(site: &'a Site, version: &str, plugins: &[Value]) -> Self {
        let dir = TempDir::with_prefix("swd-libcni-").expect("a temporary folder");
        let new = Self { site, dir };
        let list = json!({ "cniVersion": version, "name": "lan", "plugins": plugins });
        fs::write(new.list(), list.to_string()).expect("write");
        new
    }

    fn list(&self) -> PathBuf {
        self.dir.path().join("10-swd.conflist")
    }

    fn run(&self, words: &[&str]) -> Output {
        // Where Debian has the plugins of the CNI project.
        let path = format!("{}:/usr/lib/cni", binary("swd-cni").parent().expect("a folder").display());
        let runtime = program("bin/libcni");
        let mut command = self.site.host.command(&["env", &format!("CNI_PATH={path}")]);
        command.arg(format!("CACHE={}", self.dir.path().join("cache").display())).arg(runtime).args(words);
        run(&mut command, TIMEOUT)
    }

    /// Does it for the container in `ns`.
    fn call(&self, what: &str, ns: &Namespace, capabilities: &Value) -> Output {
        let (list, netns) = (self.list(), ns.path());
        let [list, netns] = [list, netns].map(|path| path.display().to_string());
        self.run(&[what, &list, ns.name(), &netns, "eth0", &capabilities.to_string()])
    }
}

/// The plugin as configurations have it.
fn swd(site: &Site, more: &Value) -> Value {
    let mut plugin = json!({
        "type": "swd-cni",
        "socket": site.socket(),
        "capabilities": { "portMappings": true, "ips": true, "mac": true, "dns": true, "aliases": true, "bandwidth": true },
    });
    plugin.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    plugin
}

/// The code and the words of a plugin's error, as libcni has read it.
#[track_caller]
fn failed(output: &Output) -> (u64, String) {
    assert_eq!(output.code(), 1, "{output}");
    let error = output.json();
    (error["code"].as_u64().expect("a code"), error["msg"].as_str().expect("words").to_owned())
}

#[test]
fn libcni_takes_the_results_of_every_version_that_it_knows() {
    let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
    let wan = Outside::new(&site.host);
    site.start();
    let capabilities = json!({
        "portMappings": [{ "hostPort": 5000, "containerPort": 80, "protocol": "tcp" }],
        "ips": ["172.20.0.77/16"],
        "mac": "02:42:00:00:00:77",
        "aliases": ["shop"],
        "bandwidth": { "ingressRate": 1_000_000_000, "egressRate": 1_000_000_000 },
        "unknown": 1,
    });
    let network = json!({ "network": "web", "subnets": ["172.20.0.0/16", "fd00:20::/64"] });
    for (version, checks) in [("0.3.0", false), ("0.3.1", false), ("0.4.0", true), ("1.0.0", true)] {
        let runtime = Runtime::new(&site, version, &[swd(&site, &network)]);
        let ns = Namespace::bare();
        let validated = runtime.call("validate", &ns, &json!({})).ok().json();
        assert!(validated.to_string().contains("portMappings"), "{version}: {validated}");
        let results = runtime.call("add", &ns, &capabilities).ok().json();
        let newest = &results[0];
        assert_eq!(newest["cniVersion"], version, "{results}");
        assert_eq!(newest["interfaces"][0]["mac"], "02:42:00:00:00:77", "{results}");
        assert_eq!(newest["dns"]["nameservers"][0], "172.20.0.1", "{results}");
        // What libcni makes of it for older runtimes still has both addresses and the ways out.
        for result in results.as_array().expect("results") {
            let text = result.to_string();
            for part in ["172.20.0.77/16", "fd00:20::", "172.20.0.1", "0.0.0.0/0", "::/0"] {
                assert!(text.contains(part), "{version}, {part}: {result}");
            }
        }
        ns.ping("172.16.0.1");
        let listener = ns.tcp_listen("[::]:80");
        wan.tcp_connect("172.16.0.2:5000", s(3)).expect("published");
        drop(listener);
        let checked = runtime.call("check", &ns, &capabilities);
        if checks {
            checked.ok();
            site.ctl(&["unpublish", "5000"]);
            let (code, said) = failed(&runtime.call("check", &ns, &capabilities));
            assert_eq!((code, said.as_str()), (100, "port 5000/tcp is not published"), "{version}");
        } else {
            assert!(failed(&checked).1.contains("does not support the CHECK command"), "{checked}");
        }
        // Twice: the specification wants that to be fine.
        for _ in 0..2 {
            runtime.call("del", &ns, &capabilities).ok();
        }
        assert_eq!((attached(&site), ns.links()), (Vec::new(), vec!["lo".to_owned()]), "{version}");
    }
    nothing_is_left(&site);
}

/// Upstream's plugins read our result as theirs before, and we read theirs.
#[test]
fn a_chain_with_plugins_of_the_cni_project() {
    let site = Site::new();
    let ns = Namespace::bare();
    let tuning = json!({ "type": "tuning", "mtu": 1400, "sysctl": { "net.ipv4.conf.eth0.arp_notify": "1" } });
    for version in ["0.4.0", "1.0.0"] {
        let plugins = [json!({ "type": "loopback" }), swd(&site, &json!({})), tuning.clone()];
        let runtime = Runtime::new(&site, version, &plugins);
        let results = runtime.call("add", &ns, &json!({})).ok().json();
        let names: Vec<_> = results[0]["interfaces"].as_array().into_iter().flatten().collect();
        let names: Vec<_> = names.iter().filter_map(|i| i["name"].as_str()).collect();
        assert_eq!(names, ["lo", "eth0"], "{results}");
        assert_eq!(results[0]["ips"][2]["interface"], 1, "ours, after both of the loopback's: {results}");
        assert_eq!(ns.link("eth0")["mtu"], 1400);
        ns.ping("172.18.0.1");
        runtime.call("check", &ns, &json!({})).ok();
        // What the last one has set is not as it was: its error reaches the runtime past us.
        ns.ip(&["link", "set", "eth0", "mtu", "1300"]);
        assert!(failed(&runtime.call("check", &ns, &json!({}))).1.contains("MTU"));
        runtime.call("del", &ns, &json!({})).ok();
        assert!(!ns.links().contains(&"eth0".to_owned()));
    }
    nothing_is_left(&site);
}

#[test]
fn libcni_reads_our_versions_and_errors() {
    let mut site = Site::new();
    let runtime = Runtime::new(&site, "1.0.0", &[swd(&site, &json!({ "network": "none" }))]);
    let versions = runtime.run(&["versions", "swd-cni"]).ok().json();
    assert_eq!(versions, json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    let ns = Namespace::bare();
    let (code, said) = failed(&runtime.call("add", &ns, &json!({})));
    assert!(code == 7 && said.contains("there is no network none"), "{code} {said}");
    // One that the plugin does not say it speaks is not asked of it.
    let old = Runtime::new(&site, "0.2.0", &[swd(&site, &json!({}))]);
    let said = failed(&old.call("validate", &ns, &json!({}))).1;
    assert!(said.contains("0.2.0"), "{said}");

    let bad = json!({ "portMappings": [{ "hostPort": 1, "containerPort": 1, "protocol": "sctp" }] });
    let plugins = [swd(&site, &json!({}))];
    let runtime = Runtime::new(&site, "1.0.0", &plugins);
    assert_eq!(failed(&runtime.call("add", &ns, &bad)).0, 2);
    site.terminate();
    let runtime = Runtime::new(&site, "1.0.0", &plugins);
    let (code, said) = failed(&runtime.call("add", &ns, &json!({})));
    assert!(code == 11 && said.contains("cannot reach swd"), "{code} {said}");
}
