//! Addresses for ports that ask, with the programs that ask in earnest.

use std::fs;

use tests::dhcp::{Client, Program};
use tests::names::dig_at;
use tests::netns::Namespace;
use tests::process::{Background, s, wait_until};
use tests::raw::{BROADCAST, Frame, Raw, mac, udp4};
use tests::site::{GATEWAY, Site};

/// A namespace at the switch, by a veth pair of the host's and without an address.
fn plug(site: &Site, name: &str, more: &[&str]) -> Namespace {
    let ns = Namespace::new();
    let host_end = format!("v-{name}");
    site.host.ip(&["link", "add", &host_end, "type", "veth", "peer", "name", "eth0", "netns", ns.name()]);
    site.host.ip(&["link", "set", &host_end, "up"]);
    ns.ip(&["link", "set", "eth0", "up"]);
    site.ctl(&[&["port", "add", &host_end, "--name", name], more].concat());
    ns
}

/// `swctl events`, running. What is told before it listens is not for it.
fn events(site: &Site) -> Background {
    Background::start(&mut site.swctl_command(&["events"]), &site.file("events.log"))
}

/// The addresses of a port, as `swctl port ls` has them, without prefix lengths.
fn addresses(site: &Site, port: &str) -> Vec<String> {
    let port = site.port(port);
    let all = port["addresses"].as_array().expect("a list").clone();
    all.iter().filter_map(|a| a.as_str()?.split('/').next().map(str::to_owned)).collect()
}

/// Gets, uses, renews and gives back an address, beside another container that has done so.
fn client_gets_renews_and_releases(program: Program) {
    let site = Site::new();
    site.ctl(&["network", "add", "short", "--subnet", "10.7.0.0/24", "--mtu", "1400", "--dhcp-lease", "12"]);
    let network = ["--network", "short"];
    let (a, b) = (plug(&site, "a", &network), plug(&site, "b", &network));
    let first = Client::start(&site, &a, program, &[]);
    let second = Client::start(&site, &b, Program::Udhcpc, &[]);
    let (one, two) = (first.bound(), second.bound());
    assert_ne!(one, two);
    assert_eq!(addresses(&site, "a"), [one.as_str()]);
    assert_eq!(addresses(&site, "b"), [two.as_str()]);
    for (what, value) in
        [("router", "10.7.0.1"), ("dns", "10.7.0.1"), ("domain", "short"), ("mtu", "1400"), ("lease", "12")]
    {
        let told = first.events().join("\n");
        assert!(told.contains(&format!(" {what}={value}")), "{what}: {told}");
    }
    a.ping("10.7.0.1");
    a.ping(&two);
    assert_eq!(a.run(&["dig", "@10.7.0.1", "+short", "b"]).ok().stdout.trim(), two, "it has a name");

    let renewed = first.renew();
    assert!(renewed.contains(&format!(" {one} ")), "{renewed}");
    b.ping(&one);

    first.release();
    wait_until("the address is given back", s(10), || addresses(&site, "a").is_empty());
    assert_eq!(addresses(&site, "b"), [two.as_str()]);
}

#[test]
fn udhcpc_gets_renews_and_releases() {
    client_gets_renews_and_releases(Program::Udhcpc);
}

#[test]
fn dhclient_gets_renews_and_releases() {
    client_gets_renews_and_releases(Program::Dhclient);
}

#[test]
fn dhcpcd_gets_renews_and_releases() {
    client_gets_renews_and_releases(Program::Dhcpcd);
}

/// What a port was attached with, or added for, is what it gets; it stays the port's when the client gives it back.
#[test]
fn a_port_with_an_address_gets_that_one() {
    let site = Site::new();
    let web = Namespace::new();
    site.ctl(&["attach", web.name(), "--name", "web", "--ip", "172.18.0.10"]);
    web.ip(&["-4", "addr", "flush", "dev", "eth0"]);
    let db = plug(&site, "db", &["--ip", "172.18.0.20"]);
    for (ns, port, address) in [(&web, "web", "172.18.0.10"), (&db, "db", "172.18.0.20")] {
        let client = Client::start(&site, ns, Program::Udhcpc, &[]);
        assert_eq!(client.bound(), address);
        ns.ping(GATEWAY);
        client.release();
        assert_eq!(addresses(&site, port), [address]);
    }
    let taken = site.try_ctl(&["port", "add", "v-none", "--ip", "172.18.0.20"]).one_line_error();
    assert!(taken.contains("172.18.0.20 is leased to another container"), "{taken}");
    for (wrong, why) in [("10.0.0.1", "is outside network default"), ("172.18.0.1", "is the gateway")] {
        let said = site.try_ctl(&["port", "add", "v-none", "--ip", wrong]).one_line_error();
        assert!(said.contains(why), "{said}");
    }
    // It goes with the port.
    site.ctl(&["port", "rm", "db"]);
    let other = plug(&site, "other", &["--ip", "172.18.0.20"]);
    assert_eq!(Client::start(&site, &other, Program::Udhcpc, &[]).bound(), "172.18.0.20");
}

#[test]
fn a_lease_outlives_the_daemon() {
    let mut site = Site::new();
    let a = plug(&site, "a", &[]);
    let client = Client::start(&site, &a, Program::Udhcpc, &[]);
    let address = client.bound();
    site.kill();
    site.start();
    assert_eq!(addresses(&site, "a"), [address.as_str()]);
    let b = plug(&site, "b", &[]);
    assert_ne!(Client::start(&site, &b, Program::Udhcpc, &[]).bound(), address);
    assert!(client.renew().contains(&format!(" {address} ")));
    a.ping(GATEWAY);
    // What the journal had is in the state file by now.
    assert_eq!(site.terminate(), 0);
    site.start();
    assert_eq!(addresses(&site, "a"), [address.as_str()]);
}

#[test]
fn an_exhausted_pool_is_told_of() {
    let site = Site::new();
    site.ctl(&["network", "add", "small", "--subnet", "10.7.0.0/30"]);
    let network = ["--network", "small"];
    let (a, b) = (plug(&site, "a", &network), plug(&site, "b", &network));
    let first = Client::start(&site, &a, Program::Udhcpc, &[]);
    assert_eq!(first.bound(), "10.7.0.2");
    let events = events(&site);
    let second = Client::start(&site, &b, Program::Udhcpc, &[]);
    let told = "cannot attach b to network small: no free address in 10.7.0.0/30: 1 leased";
    wait_until("it is told of", s(10), || events.log().contains(told));
    assert!(addresses(&site, "b").is_empty() && !second.said().contains("obtained"));
    // Nobody has to do anything when there is one again.
    first.release();
    assert_eq!(second.bound(), "10.7.0.2");
}

/// A DHCP message of a client's that is broadcast: its type, its `ciaddr`, and options.
fn message(kind: u8, from: [u8; 6], has: [u8; 4], relay: [u8; 4], options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 236];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(b"test");
    bytes[10] = 0x80;
    bytes[12..16].copy_from_slice(&has);
    bytes[24..28].copy_from_slice(&relay);
    bytes[28..34].copy_from_slice(&from);
    bytes.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind]);
    for (kind, data) in options {
        bytes.extend([*kind, u8::try_from(data.len()).expect("short")]);
        bytes.extend(*data);
    }
    bytes.push(255);
    udp4((BROADCAST, from), (has, 68), ([255; 4], 67), &bytes)
}

/// Whether a frame is a DHCP answer of this type; and the address that it is about.
fn is_answer(frame: &Frame, kind: u8) -> bool {
    frame.contains(b"\x02\x01\x06\x00test") && frame.contains(&[0x63, 0x82, 0x53, 0x63, 53, 1, kind])
}

const OFFER: u8 = 2;
const ACK: u8 = 5;
const NAK: u8 = 6;

#[test]
fn wrong_messages_get_what_they_deserve() {
    let site = Site::new();
    let a = plug(&site, "a", &[]);
    let b = plug(&site, "b", &[]);
    let (own, none) = (mac(&a.mac("eth0")), [0; 4]);
    let mut raw = Raw::open(&a, "eth0");
    let overhears = Raw::open(&b, "eth0");
    raw.send(&message(1, own, none, none, &[(50, &[172, 18, 0, 50])]));
    raw.expect("an offer of what was wished for", |f| is_answer(f, OFFER) && f.contains(&[172, 18, 0, 50]));
    raw.send(&message(3, own, none, none, &[(50, &[172, 18, 0, 99]), (54, &[172, 18, 0, 1])]));
    raw.expect("a refusal of another", |f| is_answer(f, NAK));
    raw.send(&message(3, own, none, none, &[(50, &[172, 18, 0, 50])]));
    raw.expect("an acknowledgement after a reboot", |f| is_answer(f, ACK) && f.contains(&[172, 18, 0, 50]));
    raw.send(&message(3, own, [172, 18, 0, 99], none, &[]));
    raw.expect("a refusal of what cannot be renewed", |f| is_answer(f, NAK));
    raw.send(&message(8, own, [172, 18, 0, 50], none, &[]));
    raw.expect("what else there is to know", |f| is_answer(f, ACK) && f.contains(&[3, 4, 172, 18, 0, 1]));

    // Somebody else has it: another one then, and the first is not offered again.
    raw.send(&message(4, own, none, none, &[(50, &[172, 18, 0, 50]), (54, &[172, 18, 0, 1])]));
    wait_until("it was declined", s(5), || addresses(&site, "a").is_empty());
    raw.clear();
    raw.send(&message(1, own, none, none, &[(50, &[172, 18, 0, 50])]));
    let offer = raw.expect("another offer", |f| is_answer(f, OFFER));
    assert!(!offer.contains(&[172, 18, 0, 50]));

    // Not for others to hear, not through relays, not in another's name, and not for two behind one port.
    raw.clear();
    let (other, relayed) = ([2, 9, 9, 9, 9, 9], [172, 18, 0, 9]);
    raw.send(&message(1, own, none, relayed, &[]));
    let mut forged = message(1, other, none, none, &[]);
    forged[6..12].copy_from_slice(&own);
    raw.send(&forged);
    let events = events(&site);
    wait_until("the second MAC is told of", s(10), || {
        raw.send(&message(1, other, none, none, &[]));
        events.log().contains("02:09:09:09:09:09 asks for an address")
    });
    assert!(raw.frames().iter().all(|f| !is_answer(f, OFFER)));
    assert!(overhears.frames().iter().all(|f| !f.contains(b"\x06\x00test")));
}

/// Who may send only from its own may send from what it was given, and from nothing else.
#[test]
fn a_guarded_port_may_use_what_it_was_given() {
    let site = Site::new();
    let a = plug(&site, "a", &[]);
    site.ctl(&["port", "set", "a", "--guard", "on", "--source", &a.mac("eth0")]);
    let client = Client::start(&site, &a, Program::Udhcpc, &[]);
    let address = client.bound();
    a.ping(GATEWAY);
    assert_eq!(site.port("a")["guard"]["addresses"][0], format!("{address}/32"));
    let before = site.drops("spoofed-neighbor") + site.drops("spoofed-source");
    a.ip(&["addr", "add", "172.18.9.9/16", "dev", "eth0"]);
    a.run(&["ping", "-n", "-c1", "-W1", "-I", "172.18.9.9", GATEWAY]);
    assert!(site.drops("spoofed-neighbor") + site.drops("spoofed-source") > before);
    client.release();
    wait_until("it is no more its own", s(5), || {
        site.port("a")["guard"]["addresses"][0].as_str() != Some(&address)
    });
}

/// A network may have a server of the user's own.
#[test]
fn a_network_without_it_leaves_asking_to_others() {
    let site = Site::new();
    site.ctl(&["network", "add", "own", "--subnet", "10.7.0.0/24", "--no-dhcp"]);
    let network = ["--network", "own"];
    let server = Namespace::new();
    site.ctl(&["attach", server.name(), "--name", "server", "--network", "own", "--ip", "10.7.0.2"]);
    let (conf, leases) = (site.file("dnsmasq.conf"), site.file("dnsmasq.leases"));
    let text = format!(
        "port=0\ninterface=eth0\ndhcp-range=10.7.0.200,10.7.0.220\ndhcp-leasefile={}\n",
        leases.display()
    );
    fs::write(&conf, text).expect("write");
    let conf = format!("--conf-file={}", conf.display());
    let words = ["dnsmasq", "--keep-in-foreground", "--pid-file=", "--user=root", &conf];
    let _running = server.start(&words, &site.file("dnsmasq.log"));
    let a = plug(&site, "a", &network);
    let client = Client::start(&site, &a, Program::Udhcpc, &[]);
    let address = client.bound();
    assert!(address.starts_with("10.7.0.2") && address.len() == 10, "{address}");
    assert!(addresses(&site, "a").is_empty());
    let said =
        site.try_ctl(&["port", "add", "v-none", "--network", "own", "--ip", "10.7.0.9"]).one_line_error();
    assert!(said.contains("--no-dhcp"), "{said}");
}

#[test]
fn a_trace_tells_of_the_service() {
    let site = Site::new();
    let a = plug(&site, "a", &[]);
    let packet = format!("udp 0.0.0.0:68 > 255.255.255.255:67 len 300 mac {}", a.mac("eth0"));
    let traced = site.json(&["trace", "a", &packet]).to_string();
    assert!(traced.contains("to the gateway's own service: dhcp"), "{traced}");
    assert!(addresses(&site, "a").is_empty(), "a trace changes nothing");
}

const SIX: [&str; 7] = ["network", "add", "six", "--subnet", "10.6.0.0/24", "--subnet", "fd00:6::/64"];

/// Global IPv6 addresses of `eth0` that may be used.
fn global6(ns: &Namespace) -> Vec<String> {
    let shown = ns.ip_json(&["-6", "addr", "show", "dev", "eth0", "scope", "global", "-tentative"]);
    let all = shown.iter().flat_map(|link| link["addr_info"].as_array().cloned().unwrap_or_default());
    all.filter_map(|a| a["local"].as_str().map(str::to_owned)).collect()
}

/// Whether a default route by a router that has advertised itself is there.
fn has_advertised_route(ns: &Namespace) -> bool {
    ns.ip(&["-6", "route", "show", "default"]).contains("proto ra")
}

/// The kernel makes an address of the prefix, and finds the way out; with the host as gateway and without.
#[test]
fn a_port_without_an_address_makes_its_own() {
    for more in [&[][..], &["--no-host-access"]] {
        let site = Site::new();
        site.ctl(&[&SIX[..], more].concat());
        let web = Namespace::new();
        site.ctl(&["attach", web.name(), "--name", "web", "--network", "six", "--ip", "fd00:6::10"]);
        let a = plug(&site, "a", &["--network", "six"]);
        wait_until("it has an address", s(20), || global6(&a).iter().any(|x| x.starts_with("fd00:6::")));
        assert!(has_advertised_route(&a));
        a.ping("fd00:6::1");
        a.ping("fd00:6::10");
        let told = a.run(&["rdisc6", "-1", "eth0"]).ok().stdout;
        for part in [
            "fd00:6::/64",
            "Recursive DNS server",
            "fd00:6::1",
            "1500",
            "Stateful other conf.      :          Yes",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(told.contains("DNS search list") && told.contains("six"), "{told}");

        // Who has an address of swd's hears nothing of it, asked or not.
        assert_ne!(web.run(&["rdisc6", "-1", "-r", "2", "-w", "300", "eth0"]).code(), 0);
        assert_eq!(global6(&web), ["fd00:6::10"]);
        assert!(!has_advertised_route(&web));
    }
}

/// By name it is reached there, too, for as long as it is that port's: nobody else can have the name lead to him.
#[test]
fn what_a_port_makes_of_its_mac_has_its_name() {
    let site = Site::new();
    site.ctl(&SIX);
    let web = Namespace::new();
    site.ctl(&["attach", web.name(), "--name", "web", "--network", "six"]);
    let own = plug(&site, "own", &["--network", "six", "--ip", "10.6.0.9"]);
    wait_until("it has an address", s(20), || !global6(&own).is_empty());
    let made = global6(&own).remove(0);
    let ask = |words: &[&str]| dig_at(&web, "10.6.0.1", &[&["+short"], words].concat()).trim().to_owned();
    own.ping("fd00:6::1");
    assert_eq!(ask(&["AAAA", "own"]), "", "nobody was seen with the address that swd has for the port");
    own.ip(&["addr", "add", "10.6.0.9/24", "dev", "eth0"]);
    own.ping("10.6.0.1");
    assert_eq!((ask(&["AAAA", "own"]), ask(&["A", "own"])), (made.clone(), "10.6.0.9".to_owned()));
    assert_eq!(ask(&["-x", &made]), "own.six.swd.internal.");
    web.run(&["ping", "-6", "-n", "-c1", "-W2", &made]).ok();
    // An address of its own choice is not told, nor one that somebody else says he has.
    own.ip(&["addr", "add", "fd00:6::99/64", "dev", "eth0", "nodad"]);
    own.run(&["ping", "-n", "-c1", "-W2", "-I", "fd00:6::99", "fd00:6::1"]).ok();
    assert_eq!((ask(&["AAAA", "own"]), ask(&["-x", "fd00:6::99"])), (made.clone(), String::new()));
    let other = plug(&site, "other", &["--network", "six"]);
    other.ip(&["addr", "add", &format!("{made}/64"), "dev", "eth0", "nodad"]);
    other.run(&["ping", "-n", "-c1", "-W1", "-I", &made, "fd00:6::1"]);
    wait_until("it is no longer known whose it is", s(5), || ask(&["AAAA", "own"]).is_empty());
    other.delete();
    own.ip(&["neigh", "flush", "dev", "eth0"]);
    own.run(&["ping", "-n", "-c1", "-W1", "-I", &made, "fd00:6::1"]);
    assert_eq!(ask(&["AAAA", "own"]), made, "it says so again");
    site.ctl(&["port", "rm", "own"]);
    assert_eq!((ask(&["AAAA", "own"]), ask(&["-x", &made])), (String::new(), String::new()));
}

/// Who may send only from its own may send from what it makes of prefix and MAC.
#[test]
fn a_guarded_port_may_use_what_it_made_of_its_mac() {
    let site = Site::new();
    site.ctl(&SIX);
    let a = plug(&site, "a", &["--network", "six"]);
    site.ctl(&["port", "set", "a", "--guard", "on", "--source", &a.mac("eth0")]);
    wait_until("it has an address", s(20), || !global6(&a).is_empty());
    a.ping("fd00:6::1");
    let before = site.drops("spoofed-source") + site.drops("spoofed-neighbor");
    a.ip(&["addr", "add", "fd00:6::99/64", "dev", "eth0", "nodad"]);
    a.run(&["ping", "-n", "-c1", "-W1", "-I", "fd00:6::99", "fd00:6::1"]);
    assert!(site.drops("spoofed-source") + site.drops("spoofed-neighbor") > before);
}

#[test]
fn a_network_may_do_without_advertisements() {
    let site = Site::new();
    site.ctl(&[&SIX[..], &["--no-ra"]].concat());
    let a = plug(&site, "a", &["--network", "six"]);
    a.link_local("eth0");
    assert_ne!(a.run(&["rdisc6", "-1", "-r", "2", "-w", "300", "eth0"]).code(), 0);
    assert!(global6(&a).is_empty() && !has_advertised_route(&a));
}

#[test]
fn what_else_there_is_to_know_is_told_over_ipv6() {
    let site = Site::new();
    site.ctl(&SIX);
    let a = plug(&site, "a", &["--network", "six"]);
    // What it asks is sent from its link-local address.
    a.link_local("eth0");
    let client = Client::start(&site, &a, Program::Dhclient6, &[]);
    wait_until("it is told", s(20), || {
        client.events().iter().any(|e| e.contains("dns6=fd00:6::1 search=six"))
    });
}
