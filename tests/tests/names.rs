//! Names: what containers are called, asked of the gateway with the programs that ask in earnest.

use std::collections::HashSet;
use std::fs;
use std::net::UdpSocket;
use std::thread;

use tests::names::{addresses, answer, attach, dig, dig_at, query};
use tests::process::{ms, s, wait_until};
use tests::site::{GATEWAY, Site};

#[test]
fn a_container_is_known_by_its_names_while_it_is_there() {
    let mut site = Site::new();
    let web = attach(&site, "web", "172.18.0.10", &["--alias", "shop"]);
    let tap = attach(&site, "web2", "172.18.0.11", &["--alias", "shop", "--tap"]);
    for ns in [&web.ns, &tap.ns] {
        for name in ["web", "WEB", "web.default", "web.swd.internal", "web.default.swd.internal"] {
            assert_eq!(addresses(ns, name), ["172.18.0.10"], "{name}");
        }
        let shop: HashSet<_> = addresses(ns, "shop").into_iter().collect();
        assert_eq!(shop, HashSet::from(["172.18.0.10".to_owned(), "172.18.0.11".to_owned()]));
        assert_eq!(dig(ns, &["+short", "-x", "172.18.0.11"]).trim(), "web2.default.swd.internal.");
        assert!(
            dig(ns, &["-x", "172.18.0.99"]).contains("status: NXDOMAIN"),
            "nobody's, and not for others to know"
        );
        let no_such_type = dig(ns, &["web", "AAAA"]);
        assert!(
            no_such_type.contains("status: NOERROR") && no_such_type.contains("ANSWER: 0"),
            "{no_such_type}"
        );
        let missing = dig(ns, &["nobody"]);
        assert!(missing.contains("status: NXDOMAIN") && missing.contains("SOA"), "{missing}");
    }
    // In turn.
    let first: HashSet<_> = (0..8).filter_map(|_| addresses(&web.ns, "shop").into_iter().next()).collect();
    assert_eq!(first.len(), 2, "always the same one first");

    site.kill();
    site.start();
    assert_eq!(addresses(&web.ns, "web2"), ["172.18.0.11"]);
    site.ctl(&["detach", "web2"]);
    assert_eq!(addresses(&web.ns, "shop"), ["172.18.0.10"]);
    assert!(dig(&web.ns, &["web2"]).contains("status: NXDOMAIN"));
}

#[test]
fn aliases_of_a_port_that_is_there() {
    let mut site = Site::new();
    let web = attach(&site, "web", "172.18.0.10", &["--alias", "old"]);
    let said = site.ctl(&["port", "set", "web", "--alias", "shop", "--alias", "www"]);
    assert!(said.contains("aliases: shop, www"), "{said}");
    assert_eq!((addresses(&web.ns, "old"), addresses(&web.ns, "www")), (vec![], vec!["172.18.0.10".into()]));
    // A change of something else leaves them, and so does a start.
    site.ctl(&["port", "set", "web", "--rate-in", "100mbit"]);
    site.kill();
    site.start();
    assert_eq!(site.port("web")["aliases"], serde_json::json!(["shop", "www"]));
    assert_eq!(addresses(&web.ns, "shop"), ["172.18.0.10"]);
    let wrong = site.try_ctl(&["port", "set", "web", "--alias", "a b"]).one_line_error();
    assert!(wrong.contains("the alias name 'a b' contains a space"), "{wrong}");
    site.ctl(&["port", "set", "web", "--alias", ""]);
    assert_eq!(site.port("web")["aliases"], serde_json::json!([]));
    assert!(dig(&web.ns, &["shop"]).contains("status: NXDOMAIN"));
}

#[test]
fn a_network_has_names_of_its_own_or_none() {
    let site = Site::new();
    site.ctl(&["network", "add", "dark", "--subnet", "10.7.0.0/16", "--no-host-access"]);
    site.ctl(&["network", "add", "mute", "--subnet", "10.8.0.0/16", "--no-host-access", "--no-dns"]);
    let web = attach(&site, "web", "172.18.0.10", &[]);
    let dark = attach(&site, "db", "10.7.0.10", &["--network", "dark"]);
    let mute = attach(&site, "deaf", "10.8.0.10", &["--network", "mute"]);
    assert_eq!(dig_at(&dark.ns, "10.7.0.1", &["+short", "db"]).trim(), "10.7.0.10");
    for name in ["web", "web.default.swd.internal"] {
        assert!(dig_at(&dark.ns, "10.7.0.1", &[name]).contains("status: NXDOMAIN"), "{name}");
    }
    assert!(dig(&web.ns, &["db"]).contains("status: NXDOMAIN"));
    let said = mute.ns.run(&["dig", "@10.8.0.1", "+tries=1", "+timeout=1", "deaf"]);
    assert!(said.code() != 0 && site.drops("no-host-access") > 0, "{}", said.stdout);
}

/// The host's own program on port 53 never sees what is for the gateway, and no rule stands in the way.
#[test]
fn neither_the_host_nor_a_rule_stands_between() {
    let site = Site::new();
    let web = attach(&site, "web", "172.18.0.10", &[]);
    let hosts_own = site.host.udp("0.0.0.0:53");
    hosts_own.set_read_timeout(Some(ms(50))).expect("timeout");
    site.ctl(&["deny", "default", "host"]);
    assert_eq!(addresses(&web.ns, "web"), ["172.18.0.10"]);
    assert!(hosts_own.recv(&mut [0; 512]).is_err(), "the host was asked");
    let packet = "udp 172.18.0.10:4000 > 172.18.0.1:53 len 20";
    let traced = site.json(&["trace", "web", packet]);
    assert!(traced.to_string().contains("for a service that the gateway has itself"), "{traced}");
}

/// What musl does for each name: both questions at once, from one socket, ten thousand times.
#[test]
fn no_answer_of_two_at_once_is_lost() {
    let site = Site::new();
    let web = attach(&site, "web", "172.18.0.10", &[]);
    let socket = web.ns.udp("0.0.0.0:0");
    socket.connect((GATEWAY, 53)).expect("connect");
    socket.set_read_timeout(Some(s(5))).expect("timeout");
    for n in 0..10_000_u16 {
        let ids = [n * 2, n * 2 + 1];
        socket.send(&query(ids[0], "web", 1)).expect("send");
        socket.send(&query(ids[1], "web", 28)).expect("send");
        let got: HashSet<u16> = ids.iter().map(|_| answered(&socket, n)).collect();
        assert_eq!(got, HashSet::from(ids));
    }
}

/// The id of the next answer.
#[track_caller]
fn answered(socket: &UdpSocket, n: u16) -> u16 {
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("no answer to pair {n}: {e}"));
    let (id, code, _) = answer(&buffer[..length]);
    assert_eq!(code, 0, "pair {n}");
    id
}

/// What others know comes from the host's resolvers; without one there is a failure, soon, and not silence.
#[test]
fn without_a_resolver_there_is_a_failure() {
    let site = Site::new();
    let web = attach(&site, "web", "172.18.0.10", &[]);
    let said = dig(&web.ns, &["example.org"]);
    assert!(said.contains("status: SERVFAIL"), "{said}");
}

/// The host's own resolv.conf is followed, a server that does not answer is passed over, and what was said is kept.
#[test]
fn the_hosts_resolvers_are_asked_as_they_change() {
    let mut site = Site::stopped();
    let file = site.file("resolv.conf");
    fs::write(&file, "nameserver 127.0.0.52\n").expect("write");
    let mounted = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", file.display());
    // What is mounted on the machine later, namespaces of containers among it, swd is to see.
    site.start_by(&["unshare", "--mount", "--propagation", "slave", "sh", "-c", &mounted, "sh"]);
    let web = attach(&site, "web", "172.18.0.10", &[]);
    assert!(dig(&web.ns, &["one.example"]).contains("status: SERVFAIL"));

    // As systemd-resolved has it: a stub of the host's on a loopback address.
    let stub = site.host.udp("127.0.0.53:53");
    stub.set_read_timeout(Some(s(20))).expect("timeout");
    fs::write(&file, "nameserver 127.0.0.52\nnameserver 127.0.0.53\n").expect("write");
    let asked = thread::spawn(move || {
        let mut buffer = [0; 1500];
        let (length, from) = stub.recv_from(&mut buffer).expect("a question");
        let answer = answer_of(&buffer[..length]);
        let mut forged = answer.clone();
        forged[0] ^= 1;
        stub.send_to(&forged, from).expect("send");
        stub.send_to(&answer, from).expect("send");
        stub
    });
    assert_eq!(addresses(&web.ns, "one.example"), ["192.0.2.7"]);
    let stub = asked.join().expect("the stub");
    // Nobody answers any more; nobody has to.
    drop(stub);
    assert_eq!(addresses(&web.ns, "ONE.example"), ["192.0.2.7"]);
    assert!(dig(&web.ns, &["two.example"]).contains("status: SERVFAIL"));
}

/// Says 192.0.2.7 to any question.
fn answer_of(question: &[u8]) -> Vec<u8> {
    let name = question[12..].iter().position(|b| *b == 0).expect("a name");
    let head = [&question[..2], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]].concat();
    let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7];
    [&head, &question[12..12 + name + 5], &record[..]].concat()
}

#[test]
fn a_command_of_run_finds_its_neighbours_by_name() {
    let site = Site::new();
    let _web = attach(&site, "web", "172.18.0.10", &[]);
    let script = "cat /etc/resolv.conf; getent hosts web; busybox nslookup web.default";
    let said = site.ctl(&["run", "--name", "job", "--", "sh", "-c", script]);
    assert!(said.contains(&format!("nameserver {GATEWAY}\nsearch default\n")), "{said}");
    assert_eq!(said.matches("172.18.0.10").count(), 2, "{said}");
    let own = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let kept = site.ctl(&["run", "--no-resolv-conf", "--", "sh", "-c", "cat /etc/resolv.conf || true"]);
    assert_eq!(kept, own);
    wait_until("the port is gone", s(5), || site.row(&["port", "ls"], "name", "job").is_none());
}
