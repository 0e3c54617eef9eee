//! Very many published ports: one by one, and as ranges.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use serde_json::{Value, json};
use tests::netns::Namespace;
use tests::outside::unwatched;
use tests::process::{s, wait_until};
use tests::site::{Site, Way};

const WAN: &str = "172.16.0.1";
/// More than there are sockets to keep ports from others.
const PUBLISHES: u16 = 600;

fn world() -> (Site, Namespace) {
    let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
    let wan = unwatched(&site.host);
    site.start();
    (site, wan)
}

/// A connection to the API that is kept open: a swctl for each publish would be what is measured.
struct Api(UnixStream);

impl Api {
    fn open(site: &Site) -> Self {
        let stream = UnixStream::connect(site.socket()).expect("the API");
        stream.set_read_timeout(Some(s(20))).expect("timeout");
        Self(stream)
    }

    /// The status of the answer.
    fn send(&mut self, method: &str, path: &str, body: &Value) -> u16 {
        let body = body.to_string();
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: swd\r\nContent-Length: {length}\r\n\r\n{body}");
        self.0.write_all(request.as_bytes()).expect("write");
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            self.0.read_exact(&mut byte).expect("an answer");
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).expect("UTF-8").to_lowercase();
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok());
        self.0.read_exact(&mut vec![0; length.unwrap_or(0)]).expect("the body");
        head.split(' ').nth(1).and_then(|c| c.parse().ok()).expect("a status")
    }

    #[track_caller]
    fn publish(&mut self, port: u16, target: u16) {
        let body = json!({"host_port": port, "target_ip": "172.18.0.10", "target_port": target});
        assert_eq!(self.send("POST", "/v1/publishes", &body), 201, "port {port}");
    }
}

/// Answers each connection with its client's address.
fn serve(ns: &Namespace, port: u16) {
    let listener = ns.tcp_listen(&format!("0.0.0.0:{port}"));
    thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(from.ip().to_string().as_bytes());
        }
    });
}

fn ask(ns: &Namespace, address: &str) -> std::io::Result<String> {
    let mut stream = ns.tcp_connect(address, s(3))?;
    stream.set_read_timeout(Some(s(3)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn descriptors(site: &Site) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", site.pid())).expect("swd runs").count()
}

#[test]
fn hundreds_of_publishes_come_go_and_survive() {
    let (mut site, wan) = world();
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    serve(&c1.ns, 80);
    let mut api = Api::open(&site);
    let written = || {
        let io = std::fs::read_to_string(format!("/proc/{}/io", site.pid())).expect("swd runs");
        let line = io.lines().find_map(|l| l.strip_prefix("wchar: ")).expect("wchar");
        line.parse::<u64>().expect("a number")
    };
    let before = written();
    (0..PUBLISHES).for_each(|n| api.publish(2000 + 2 * n, 80));
    // What is there is not written again for each: that would be 40 MB.
    assert!(written() - before < 5_000_000, "{} bytes", written() - before);
    for n in [0, 1, 500, PUBLISHES - 1] {
        assert_eq!(ask(&wan, &format!("172.16.0.2:{}", 2000 + 2 * n)).expect("published"), WAN);
        assert_eq!(ask(&site.host, &format!("127.0.0.1:{}", 2000 + 2 * n)).expect("relayed"), "172.18.0.1");
    }
    for n in 0..10 {
        assert_eq!(api.send("DELETE", &format!("/v1/publishes/{}", 2000 + 2 * n), &Value::Null), 204);
    }
    assert!(ask(&wan, "172.16.0.2:2000").is_err());
    // Killed while it writes: what was acknowledged is there again.
    site.kill();
    let path = site.state_dir().join(format!("{}.journal", site.name()));
    let mut journal = std::fs::File::options().append(true).open(path).expect("the journal");
    journal.write_all(b"0123456789abcdef {\"publish\":").expect("half a line");
    site.start();
    assert_eq!(site.rows(&["published"]).len(), usize::from(PUBLISHES) - 10);
    wait_until("they lead on", s(5), || ask(&wan, "172.16.0.2:3000").is_ok());
    Api::open(&site).publish(1999, 80);
    assert_eq!(ask(&wan, "172.16.0.2:1999").expect("a new one"), WAN);
    assert!(ask(&wan, "172.16.0.2:2000").is_err());
    site.kill();
    site.start();
    assert_eq!(site.rows(&["published"]).len(), usize::from(PUBLISHES) - 9);
}

#[test]
fn all_ports_but_the_hosts_own_cost_next_to_nothing() {
    let (site, wan) = world();
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    let c2 = site.container("c2", Way::PortAdd, "172.18.0.20");
    // The host's own servers.
    for port in [22, 8080] {
        serve(&site.host, port);
    }
    // The first publish brings the relay.
    site.ctl(&["publish", "1", "172.18.0.10:1"]);
    let (rss, before) = (site.rss(), descriptors(&site));
    let me = format!("(pid {})", std::process::id());
    let said = site.try_ctl(&["publish", "2-65535", "172.18.0.10:2"]).one_line_error();
    assert!(said.contains("port 22/tcp is used by") && said.contains(&me), "{said}");
    for ports in ["2-21", "23-8079", "8081-60999", "1-60999/udp"] {
        let (range, _) = ports.split_once('/').unwrap_or((ports, ""));
        site.ctl(&["publish", ports, &format!("172.18.0.10:{range}")]);
    }
    let grown = site.rss().saturating_sub(rss);
    eprintln!("all ports: {} KB, {} descriptors, {before} before", grown >> 10, descriptors(&site));
    assert!(grown < 5 << 20, "{grown} bytes");
    assert!(descriptors(&site) < 100);
    assert_eq!(site.rows(&["published"]).len(), 5);

    for port in [2, 21, 23, 8079, 8081, 40_000, 60_999] {
        serve(&c1.ns, port);
        let address = format!("172.16.0.2:{port}");
        assert_eq!(ask(&wan, &address).expect("outside"), WAN, "{port}");
        assert_eq!(ask(&c2.ns, &address).expect("a container"), "172.16.0.2", "{port}");
        // The host's client has a port that is published, too: the answer is its own nonetheless.
        for address in [address, format!("127.0.0.1:{port}")] {
            assert_eq!(ask(&site.host, &address).expect("the host"), "172.18.0.1", "{address}");
        }
    }
    serve(&c2.ns, 1);
    assert_eq!(ask(&site.host, "172.18.0.20:1").expect("a container that nothing leads to"), "172.18.0.1");
    let there = c1.ns.udp("0.0.0.0:33333");
    there.set_read_timeout(Some(s(3))).expect("timeout");
    for (ns, from) in [(&wan, WAN), (&c2.ns, "172.16.0.2"), (&site.host, "172.18.0.1")] {
        // Connected: a socket of the host's that is not gets nothing at a port of ours (docs/portguard.md).
        let here = ns.udp("0.0.0.0:0");
        here.set_read_timeout(Some(s(3))).expect("timeout");
        here.connect("172.16.0.2:33333").expect("connect");
        here.send(b"x").expect("send");
        let (_, client) = there.recv_from(&mut [0; 9]).expect("a datagram");
        assert_eq!(client.ip().to_string(), from);
        there.send_to(b"y", client).expect("answer");
        here.recv(&mut [0; 9]).unwrap_or_else(|e| panic!("no answer to {}: {e}", ns.name()));
    }
    // What is the host's is the host's.
    for port in [22, 8080] {
        assert_eq!(ask(&wan, &format!("172.16.0.2:{port}")).expect("the host's server"), WAN);
    }
    let client = thread::spawn({
        let listener = wan.tcp_listen("172.16.0.1:80");
        move || listener.accept().is_ok()
    });
    drop(site.host.tcp_connect("172.16.0.1:80", s(3)).expect("the host's own connection"));
    assert!(client.join().expect("accept"));
    // The ports of the pool can be published, too; connections from containers find none to leave by then.
    site.ctl(&["publish", "61000-65535", "172.18.0.10:61000"]);
    serve(&c1.ns, 65_535);
    assert_eq!(ask(&wan, "172.16.0.2:65535").expect("outside"), WAN);
    assert!(c1.ns.tcp_connect("172.16.0.1:80", s(1)).is_err());
    site.ctl(&["unpublish", "61000-65535"]);
    let listener = wan.tcp_listen("172.16.0.1:81");
    drop(c1.ns.tcp_connect("172.16.0.1:81", s(3)).expect("there are ports again"));
    drop(listener);
}
