//! Containers of an engine on swd, whichever engine it is: what Docker's, Podman's and runc's have in common.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::netns::Namespace;
use crate::process::{Output, TIMEOUT, ms, run, s, wait_for_answer, wait_until};
use crate::site::Site;

/// How much longer a container may take to start with a thousand published ports.
const FOR_A_THOUSAND: Duration = ms(500);
/// How often that is tried at most.
const TRIALS: usize = 5;

/// Containers, known by their names.
pub trait Containers {
    /// Runs a command in a container.
    fn try_exec(&self, container: &str, words: &[&str]) -> Output;

    /// Whether it gets an answer to a ping.
    fn pings(&self, container: &str, whom: &str) -> bool {
        self.try_exec(container, &["ping", "-c1", "-W1", whom]).status.success()
    }

    /// What it gets by HTTP, without the last line's end.
    fn ask(&self, container: &str, address: &str) -> Result<String, String> {
        // Debian's wget of busybox has no patience of its own: it crashes when it is given any.
        let words = ["timeout", "5", "wget", "-q", "-O", "-", &format!("http://{address}/")];
        let out = self.try_exec(container, &words);
        if out.status.success() { Ok(out.stdout.trim().to_owned()) } else { Err(out.stderr) }
    }

    /// What is published at the host's port is reached from outside, from the host by its own address and by loopback, and from these
    /// containers.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    fn reach_published(&self, site: &Site, wan: &Namespace, port: u16, says: &str, from: &[&str]) {
        let (outside, loopback) = (format!("172.16.0.2:{port}"), format!("127.0.0.1:{port}"));
        wait_for_answer(says, || wan.http(&outside));
        for address in [&outside, &loopback] {
            assert_eq!(site.host.http(address).as_deref(), Ok(says), "the host, at {address}");
        }
        for container in from {
            assert_eq!(self.ask(container, &outside).as_deref(), Ok(says), "{container}");
        }
    }
}

/// The script of a container that answers HTTP on port 80 with its name.
pub fn server(name: &str) -> String {
    format!("echo I am {name} > /index.html; exec httpd -f -p 80 -h /")
}

/// Ports of containers.
#[track_caller]
pub fn attached(site: &Site) -> Vec<Value> {
    site.rows(&["port", "ls"]).into_iter().filter(|p| p["kind"] != "host").collect()
}

/// The address of the only port of a network.
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn address_in(site: &Site, network: &str) -> String {
    let port = attached(site).into_iter().find(|p| p["network"] == network).expect("a port of the network");
    port["addresses"][0].as_str().and_then(|a| a.split('/').next()).expect("an address").to_owned()
}

/// Neither port, interface, lease, publish nor connection.
///
/// # Panics
/// When there is one.
#[track_caller]
pub fn nothing_is_left(site: &Site) {
    wait_until("no port is left", s(10), || attached(site).is_empty());
    assert_eq!(site.rows(&["published"]), Vec::<Value>::new(), "publishes are left");
    assert_eq!(site.ctl(&["conntrack", "count"]).trim(), "0", "connections are left");
    for network in site.rows(&["network", "ls"]) {
        assert_eq!(network["leases"], 0, "{network}");
    }
    let strange = |links: Vec<String>| {
        let known = |l: &String| l == "lo" || l == "eth0" || l.starts_with("sw");
        links.into_iter().filter(|l| !known(l)).collect::<Vec<_>>()
    };
    let none = Vec::<String>::new();
    assert_eq!((strange(site.host.links()), strange(switch_links(site))), (none.clone(), none));
}

/// Names of the interfaces in the switch namespace, whose file may be in a mount namespace of swd's own.
#[track_caller]
fn switch_links(site: &Site) -> Vec<String> {
    let mounts = format!("--mount=/proc/{}/ns/mnt", site.pid());
    let links = run(Command::new("nsenter").args([&mounts, "ip", "-n", site.name(), "-j", "link"]), TIMEOUT);
    let links = links.ok().json();
    links.as_array().into_iter().flatten().filter_map(|l| l["ifname"].as_str().map(str::to_owned)).collect()
}

/// A thousand ports make the start of a container little longer: `timed` starts one, with them or without, and removes it again.
///
/// # Panics
/// When they take longer than they may.
#[track_caller]
pub fn a_thousand_ports_cost_little(what: &str, mut timed: impl FnMut(bool) -> Duration) {
    // The shortest of some, in turns: the first container of an engine takes longer, and the machine may have more to do.
    let (mut without, mut with) = (Duration::MAX, Duration::MAX);
    for _ in 0..TRIALS {
        without = without.min(timed(false));
        with = with.min(timed(true));
        if with < without + FOR_A_THOUSAND && without < with + FOR_A_THOUSAND {
            break;
        }
    }
    println!("{what}: {without:?}; with a thousand ports: {with:?}");
    assert!(with < without + FOR_A_THOUSAND, "{what}: {without:?}; with a thousand ports: {with:?}");
}
