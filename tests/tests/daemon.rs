//! The daemon as an init system and an administrator see it.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

use nix::sys::signal::Signal;
use tests::for_each_port_kind;
use tests::netns::Namespace;
use tests::process::{Background, python, s, wait_until};
use tests::raw::{Raw, mac};
use tests::site::{GATEWAY, Site, Way, quiet};

#[test]
fn it_tells_when_it_is_ready_and_when_it_stops() {
    let site = Site::stopped();
    let path = site.file("notify");
    let socket = UnixDatagram::bind(&path).expect("bind");
    socket.set_read_timeout(Some(s(10))).expect("timeout");
    let more = ["--uplink".to_owned(), "none".to_owned()];
    let mut command = site.swd_command(site.name(), &site.runtime_dir(), &site.state_dir(), &more);
    let mut swd = Background::start(command.env("NOTIFY_SOCKET", &path), &site.file("swd.log"));
    let mut message = [0; 4096];
    let mut wait_for = |word: &str| loop {
        let n = socket.recv(&mut message).unwrap_or_else(|e| panic!("no {word}: {e}"));
        if String::from_utf8_lossy(&message[..n]).lines().any(|l| l == word) {
            return;
        }
    };
    wait_for("READY=1");
    // Ready means ready: it answers, and forwards.
    assert_eq!(site.json(&["status"])["ready"], true);
    let c1 = site.container("c1", Way::Attach, "172.18.0.10");
    c1.ns.ping(GATEWAY);
    assert_eq!(swd.log().lines().filter(|l| *l == "ready").count(), 1, "{}", swd.log());
    swd.signal(Signal::SIGTERM);
    wait_for("STOPPING=1");
    assert_eq!(swd.wait(s(5)), Some(0), "{}", swd.log());
    assert!(!site.socket().exists(), "the socket was left behind");
}

/// Listens at its first argument as systemd does, and becomes the rest of them.
const ACTIVATE: &str = r#"
import os, socket, sys
path = sys.argv[1]
if os.path.exists(path):
    os.unlink(path)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"#;

#[test]
fn it_serves_the_socket_that_it_is_passed_and_leaves_it() {
    let mut site = Site::stopped();
    std::fs::create_dir_all(site.runtime_dir()).expect("a folder");
    let python = python().to_str().expect("UTF-8");
    let path = site.socket().display().to_string();
    site.start_by(&[python, "-c", ACTIVATE, &path]);
    assert_eq!(site.json(&["status"])["ready"], true);
    let inode = std::fs::metadata(&path).expect("the socket");
    assert_eq!((inode.mode() & 0o777, inode.uid()), (0o660, 0), "who may connect is as ever");
    assert_eq!(site.terminate(), 0);
    assert!(site.socket().exists(), "it is the service manager's");

    // One that listens elsewhere is not the API's.
    let other = site.file("other.sock").display().to_string();
    site.start_by(&[python, "-c", ACTIVATE, &other]);
    assert_eq!(site.json(&["status"])["ready"], true, "it made its own");
    assert_eq!(site.terminate(), 0);
    assert!(!site.socket().exists(), "and took it away");
}

#[test]
fn first_start_has_the_network_default() {
    let site = Site::new();
    let networks = site.rows(&["network", "ls"]);
    assert_eq!(networks.len(), 1);
    let default = &networks[0];
    assert_eq!(default["name"], "default");
    assert_eq!(default["subnets"][0], "172.18.0.0/16");
    assert_eq!(default["gateways"][0], GATEWAY);
    assert_eq!(default["host_ifname"], "sw0");
    assert_eq!(default["mtu"], 1500);
    let host_end = site.host.link("sw0");
    assert_eq!(host_end["address"], default["gateway_mac"], "the gateway's MAC is that of the host end");
    assert!(host_end["flags"].as_array().is_some_and(|f| f.contains(&"UP".into())), "{host_end}");
}

for_each_port_kind! {
    fn a_networks_mtu_is_that_of_its_interfaces(way) {
        let site = Site::new();
        for (name, subnet, mtu) in [("jumbo", "172.19.0.0/16", 9000_usize), ("small", "172.20.0.0/16", 1280)] {
            site.ctl(&["network", "add", name, "--subnet", subnet, "--mtu", &mtu.to_string()]);
            let way = if way == Way::PortAdd { Way::Attach } else { way };
            let base = subnet.trim_end_matches("0.0/16");
            let a = site.container_in(name, &format!("{name}-a"), way, &format!("{base}0.10"));
            let b = site.container_in(name, &format!("{name}-b"), way, &format!("{base}0.20"));
            for c in [&a, &b] {
                assert_eq!(c.ns.link("eth0")["mtu"], mtu, "{name}");
            }
            let network = site.row(&["network", "ls"], "name", name).expect("the network");
            let host_end = network["host_ifname"].as_str().expect("a host end");
            assert_eq!(site.host.link(host_end)["mtu"], mtu, "{name}");
            let full = (mtu - 28).to_string();
            for to in [&b.address, &format!("{base}0.1")] {
                a.ns.run(&["ping", "-n", "-c2", "-i0.1", "-Mdo", "-s", &full, to]).ok();
            }
        }
    }
}

#[test]
fn the_switch_namespace_is_mute_and_empty() {
    let site = Site::new();
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    let c2 = site.container("c2", Way::Attach, "172.18.0.20");
    let raw = Raw::open(&c1.ns, "eth0");
    c1.ping(&c2);
    let switch = site.switch();
    for link in switch.ip_json(&["addr"]) {
        let addresses = link["addr_info"].as_array().map_or(0, Vec::len);
        assert!(addresses == 0 || link["ifname"] == "lo", "an address in the switch namespace: {link}");
    }
    assert_eq!(switch.ip(&["route", "show", "table", "main"]), "");
    assert_eq!(switch.ip(&["-6", "route", "show", "table", "main"]), "");
    // Interfaces that come up would introduce themselves by IPv6.
    switch.ip(&["link", "set", "v-c1", "down"]);
    switch.ip(&["link", "set", "v-c1", "up"]);
    std::thread::sleep(s(2));
    let ours: Vec<_> = switch.links().iter().filter(|l| *l != "lo").map(|l| mac(&switch.mac(l))).collect();
    let spoken = raw.frames().into_iter().find(|f| ours.iter().any(|m| f.bytes[6..12] == *m));
    assert_eq!(spoken, None, "the switch namespace speaks for itself");
}

#[test]
fn everything_is_gone_when_the_namespaces_are() {
    let mut site = Site::new();
    let c1 = site.container("c1", Way::Attach, "172.18.0.10");
    let c2 = site.container("c2", Way::Tap, "172.18.0.20");
    c1.ping(&c2);
    assert_eq!(site.terminate(), 0);
    let name = site.name().to_owned();
    let holders = || -> Vec<String> {
        // Who has the instance's name on its command line, still.
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        processes
            .filter_map(|p| std::fs::read(p.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(&name) && !line.contains("cargo"))
            .collect()
    };
    Namespace::adopt(&name).delete();
    wait_until(&format!("no process is left: {:?}", holders()), s(10), || holders().is_empty());
}

#[test]
fn what_was_asked_for_is_kept_over_a_removal_of_the_runtime_folder() {
    // As after a reboot: /run is empty, the namespaces are gone, the state is there.
    let mut site = Site::new();
    site.ctl(&["network", "add", "n1", "--subnet", "172.19.0.0/16", "--isolate-ports"]);
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    assert_eq!(site.terminate(), 0);
    Namespace::adopt(site.name()).delete();
    std::fs::remove_dir_all(site.runtime_dir()).expect("rm");
    site.start();
    let n1 = site.row(&["network", "ls"], "name", "n1").expect("n1 is back");
    assert_eq!(n1["isolate_ports"], true);
    assert_eq!(site.port("c1")["state"], "missing");
    // The cable is made anew, as an init script would.
    site.host.ip(&["link", "add", "v-c1", "type", "veth", "peer", "name", "eth0", "netns", c1.ns.name()]);
    c1.ns.ip(&["link", "set", "eth0", "up"]);
    c1.ns.ip(&["addr", "add", "172.18.0.10/16", "dev", "eth0"]);
    wait_until("the port is up again", s(10), || site.port("c1")["state"] == "up");
    c1.ns.ping(GATEWAY);
    quiet();
}
