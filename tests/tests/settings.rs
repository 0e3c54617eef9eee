//! `[nat]` of the configuration, and how networks are translated: with traffic.

use std::io::ErrorKind;
use std::net::UdpSocket;

use tests::netns::Namespace;
use tests::outside::Outside;
use tests::process::{TIMEOUT, ms, run, s, wait_until};
use tests::site::{Container, Site, Way};

const WAN: &str = "172.16.0.1";
const OTHER: &str = "172.16.0.9";

/// A host with an uplink and this configuration, on which swd does not run yet, and the outside with two addresses.
fn stopped(config: &str) -> (Site, Outside) {
    let site = Site::stopped();
    let path = site.file("swd.toml");
    std::fs::write(&path, config).expect("write the configuration");
    let site = site.arguments(&["--uplink", "auto", "--config", path.to_str().expect("UTF-8")]);
    let wan = Outside::new(&site.host);
    wan.ip(&["addr", "add", &format!("{OTHER}/16"), "dev", "eth0"]);
    (site, wan)
}

fn started(config: &str) -> (Site, Outside) {
    let (mut site, wan) = stopped(config);
    site.start();
    (site, wan)
}

/// A UDP socket that waits for an answer for some seconds at most.
fn udp(ns: &Namespace, address: &str) -> UdpSocket {
    let socket = ns.udp(address);
    socket.set_read_timeout(Some(s(5))).expect("timeout");
    socket
}

/// The port by which a server outside knows a new socket of a container; what its socket is told if it is refused.
fn external_port(c: &Container, server: &UdpSocket, keep: &mut Vec<UdpSocket>) -> Result<u16, ErrorKind> {
    let socket = udp(&c.ns, "0.0.0.0:0");
    socket.connect(server.local_addr().expect("address")).expect("connect");
    let port = ask(&socket, server);
    keep.push(socket);
    port
}

fn ask(socket: &UdpSocket, server: &UdpSocket) -> Result<u16, ErrorKind> {
    let told = |e: std::io::Error| e.kind();
    socket.send(b"question").map_err(told)?;
    let mut buffer = [0; 64];
    socket.set_nonblocking(true).expect("nonblocking");
    server.set_nonblocking(true).expect("nonblocking");
    for _ in 0..200 {
        if let Ok((_, from)) = server.recv_from(&mut buffer) {
            return Ok(from.port());
        }
        match socket.recv(&mut buffer) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.kind()),
            Ok(_) => panic!("an answer to nothing"),
        }
        std::thread::sleep(ms(10));
    }
    Err(ErrorKind::TimedOut)
}

#[test]
fn a_pool_among_the_hosts_own_ports_needs_consent() {
    let pool = "[nat]\npool = \"40000-40009\"\n";
    let (site, _wan) = stopped(pool);
    let config = site.file("swd.toml");
    let more = ["--uplink", "auto", "--config", config.to_str().expect("UTF-8")].map(str::to_owned);
    let command = || site.swd_command(site.name(), &site.runtime_dir(), &site.state_dir(), &more);
    let said = run(&mut command(), TIMEOUT).one_line_error();
    assert!(
        said.contains("the pool 40000-40009") && said.contains("ip_local_port_range 32768-60999"),
        "{said}"
    );
    assert!(said.contains("pool_overlaps_ephemeral = true"), "{said}");

    // Ten ports, and each question's is one of them; the eleventh finds none.
    let (site, wan) = started(&format!("{pool}pool_overlaps_ephemeral = true\n"));
    assert_eq!(site.json(&["status"])["pool"], "40000-40009");
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    c1.ns.ping(WAN);
    let server = udp(&wan, "172.16.0.1:5353");
    let mut keep = Vec::new();
    let mut ports: Vec<u16> =
        (0..10).map(|_| external_port(&c1, &server, &mut keep).expect("a port")).collect();
    ports.sort_unstable();
    assert_eq!(ports, (40_000..40_010).collect::<Vec<u16>>());
    assert_eq!(external_port(&c1, &server, &mut keep), Err(ErrorKind::HostUnreachable));
    assert_eq!(site.drops("ports-exhausted"), 1);
}

#[test]
fn a_container_has_its_limit_and_others_do_not_feel_it() {
    let (site, wan) = started("[nat]\nmax_connections = 100\nmax_per_container = 5\n");
    assert_eq!(site.json(&["status"])["max_connections"], 100);
    let (c1, c2) = (
        site.container("c1", Way::PortAdd, "172.18.0.10"),
        site.container("c2", Way::PortAdd, "172.18.0.20"),
    );
    let server = udp(&wan, "172.16.0.1:5353");
    let mut keep = Vec::new();
    for _ in 0..5 {
        external_port(&c1, &server, &mut keep).expect("within the limit");
    }
    for _ in 0..2 {
        // ICMP 3/13.
        assert_eq!(external_port(&c1, &server, &mut keep), Err(ErrorKind::HostUnreachable));
    }
    assert_eq!(site.drops("connection-limit"), 2);
    external_port(&c2, &server, &mut keep).expect("another container");
    // What is open stays open.
    ask(&keep[0], &server).expect("an old connection");
}

#[test]
fn new_connections_per_second_are_limited() {
    let (site, wan) = started("[nat]\nnew_per_second = 5\n");
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    c1.ns.ping(WAN);
    let socket = c1.ns.udp("0.0.0.0:4000");
    let _server = udp(&wan, "172.16.0.1:5353");
    // To a port each: a connection each.
    let burst = std::time::Instant::now();
    (1..=200).for_each(|port| drop(socket.send_to(b"x", (WAN, 10_000 + port))));
    wait_until("what was sent is counted", s(5), || {
        let open = site.json(&["conntrack", "count", "--protocol", "udp"])["connections"].as_u64();
        open.unwrap_or_default() + site.drops("connection-rate") + site.drops("unresolved") >= 200
    });
    let open = site.json(&["conntrack", "count", "--protocol", "udp"])["connections"].as_u64();
    let most = 10 + 5 * (burst.elapsed().as_secs() + 1);
    assert!(open >= Some(1) && open <= Some(most), "{open:?} of {most}");
    assert!(site.drops("connection-rate") > 0);
}

#[test]
fn timeouts_are_those_of_the_configuration() {
    let (site, wan) = started("[nat.timeouts]\nudp_unreplied = 1\nicmp_query = 2\n");
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    let server = udp(&wan, "172.16.0.1:5353");
    let mut keep = Vec::new();
    external_port(&c1, &server, &mut keep).expect("a port");
    c1.ns.ping(WAN);
    for row in site.rows(&["conntrack", "ls"]) {
        assert!(row["timeout_s"].as_u64() <= Some(2), "{row}");
    }
    wait_until("both have ended", s(10), || site.json(&["conntrack", "count"])["connections"] == 0);
}

/// Who reaches a container's socket that has asked `WAN:5353`: that server by another port, and another host.
fn reaches(site: &Site, wan: &Namespace, network: &str, address: &str) -> (bool, bool, bool) {
    let c = site.container_in(network, &format!("c-{network}"), Way::PortAdd, address);
    let servers =
        [format!("{WAN}:5353"), format!("{WAN}:5354"), format!("{OTHER}:5353")].map(|a| udp(wan, &a));
    let here = udp(&c.ns, "0.0.0.0:4000");
    let mut buffer = [0; 64];
    let mut external = Vec::new();
    // Asks the first server, then lets all answer to what that one saw; then asks the second one, too.
    c.ns.ping(WAN);
    here.send_to(b"question", (WAN, 5353)).expect("send");
    external.push(servers[0].recv_from(&mut buffer).expect("the question").1);
    let mut heard = Vec::new();
    for (at, server) in servers.iter().enumerate() {
        server.send_to(&[u8::try_from(at).expect("small")], external[0]).expect("send");
    }
    here.set_read_timeout(Some(ms(500))).expect("timeout");
    while let Ok((n, _)) = here.recv_from(&mut buffer) {
        heard.extend_from_slice(&buffer[..n]);
    }
    assert!(heard.contains(&0), "the one that was asked");
    here.send_to(b"question", (WAN, 5354)).expect("send");
    external.push(servers[1].recv_from(&mut buffer).expect("the question").1);
    (external[0].port() == external[1].port(), heard.contains(&1), heard.contains(&2))
}

#[test]
fn mapping_and_filtering_are_a_networks_own() {
    let (mut site, wan) =
        started("[network.open]\nsubnets = [\"172.19.0.0/16\"]\nfiltering = \"endpoint-independent\"\n");
    site.ctl(&[
        "network",
        "add",
        "strict",
        "--subnet",
        "172.20.0.0/16",
        "--mapping",
        "address-and-port-dependent",
    ]);
    site.ctl(&["network", "add", "near", "--subnet", "172.21.0.0/16", "--filtering", "address-dependent"]);
    for start in 0..2 {
        let shown = |network| {
            let shown = site.json(&["network", "show", network]);
            [&shown["mapping"], &shown["filtering"]].map(|s| s.as_str().unwrap_or_default().to_owned())
        };
        assert_eq!(shown("default"), ["endpoint-independent", "address-and-port-dependent"]);
        assert_eq!(shown("open"), ["endpoint-independent", "endpoint-independent"]);
        assert_eq!(shown("strict"), ["address-and-port-dependent"; 2]);
        assert_eq!(shown("near"), ["endpoint-independent", "address-dependent"]);
        for (network, address, expected) in [
            ("default", "172.18.0.10", (true, false, false)),
            ("open", "172.19.0.10", (true, true, true)),
            ("strict", "172.20.0.10", (false, false, false)),
            ("near", "172.21.0.10", (true, true, false)),
        ] {
            assert_eq!(reaches(&site, &wan, network, address), expected, "{network}, start {start}");
            site.ctl(&["port", "rm", &format!("c-{network}")]);
        }
        if start == 0 {
            site.kill();
            site.start();
        }
    }
    let listed = site.ctl(&["network", "ls"]);
    assert!(
        listed.contains("apdm/apdf") && listed.contains("eim/eif") && listed.contains("eim/adf"),
        "{listed}"
    );
}
