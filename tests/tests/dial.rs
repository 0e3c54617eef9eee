//! Clients on the host, led to published ports at connect(2), past the relay.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use tests::netns::Namespace;
use tests::outside::Outside;
use tests::process::{s, wait_until};
use tests::site::{Container, Site, Way};

fn world(arguments: &[&str]) -> (Site, Outside) {
    let mut site = Site::stopped().arguments(&["--uplink", "auto"]).arguments(arguments);
    let wan = Outside::new(&site.host);
    site.start();
    (site, wan)
}

/// Echoes, after it has said who its client is.
fn serve(listener: TcpListener) {
    thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            thread::spawn(move || {
                let _ = stream.write_all(format!("{}\n", from.ip()).as_bytes());
                let _ = std::io::copy(&mut stream.try_clone().expect("clone"), &mut stream);
            });
        }
    });
}

/// Connects, and hears who the server takes it for.
fn dial(ns: &Namespace, address: &str) -> std::io::Result<(TcpStream, String)> {
    let mut stream = ns.tcp_connect(address, s(3))?;
    stream.set_read_timeout(Some(s(5)))?;
    let mut heard = Vec::new();
    while !heard.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        heard.push(byte[0]);
    }
    Ok((stream, String::from_utf8_lossy(&heard).trim().to_owned()))
}

/// Whether the host has a connection straight to this address.
fn is_led(site: &Site, target: &str) -> bool {
    let shown = site.host.run(&["ss", "-tnH", "state", "established", "dst", target]);
    !shown.stdout.trim().is_empty()
}

fn web(site: &Site, name: &str, address: &str) -> Container {
    let c = site.container(name, Way::PortAdd, address);
    serve(c.ns.tcp_listen("0.0.0.0:80"));
    c
}

#[test]
fn the_hosts_clients_go_straight_to_the_container_and_see_what_they_dialled() {
    let (site, _wan) = world(&[]);
    let _c1 = web(&site, "c1", "172.18.0.10");
    site.ctl(&["publish", "5000", "172.18.0.10:80"]);
    site.ctl(&["publish", "172.16.0.2:5001", "172.18.0.10:80"]);
    site.ctl(&["publish", "6000-6999", "172.18.0.10:79"]);
    for address in [
        "172.16.0.2:5000",
        "127.0.0.1:5000",
        "127.9.9.9:5000",
        "172.18.0.1:5000",
        "172.16.0.2:5001",
        "172.16.0.2:6001",
        // An IPv6 socket that dials IPv4.
        "[::ffff:127.0.0.1]:5000",
    ] {
        let (mut stream, client) = dial(&site.host, address).expect(address);
        assert_eq!(client, "172.18.0.1", "{address}");
        assert_eq!(stream.peer_addr().expect("peer").to_string(), address);
        assert!(is_led(&site, "172.18.0.10"), "{address}");
        // Half a connection at a time.
        stream.write_all(b"all of it").expect("send");
        stream.shutdown(Shutdown::Write).expect("shutdown");
        let mut echoed = String::new();
        stream.read_to_string(&mut echoed).expect("echo");
        assert_eq!(echoed, "all of it");
    }
    // One address only; another port; a port of another's.
    for address in ["127.0.0.1:5001", "172.18.0.1:5001", "127.0.0.1:5002"] {
        assert!(dial(&site.host, address).is_err(), "{address}");
    }
    let (_straight, _) = dial(&site.host, "172.18.0.10:80").expect("the container itself");
    // What the same port leads to for others is not ours to say.
    let elsewhere = Namespace::new();
    serve(elsewhere.tcp_listen("127.0.0.1:5000"));
    let (stream, client) = dial(&elsewhere, "127.0.0.1:5000").expect("its own server");
    assert_eq!((client.as_str(), stream.peer_addr().expect("peer").port()), ("127.0.0.1", 5000));
}

#[test]
fn ipv6_is_led_and_localhost_is_relayed_where_only_ipv4_is_published() {
    let (site, _wan) = world(&[]);
    site.ctl(&["network", "add", "six", "--subnet", "fd00:18::/64"]);
    let c = site.container_in("six", "c6", Way::Attach, "fd00:18::10");
    serve(c.ns.tcp_listen("[::]:80"));
    site.ctl(&["publish", "[::]:5000", "[fd00:18::10]:80"]);
    for address in ["[::1]:5000", "[2001:db8::2]:5000"] {
        let (stream, client) = dial(&site.host, address).expect(address);
        assert_eq!(client, "fd00:18::1");
        assert_eq!(stream.peer_addr().expect("peer").to_string(), address);
        assert!(is_led(&site, "[fd00:18::10]"));
    }
    let _c1 = web(&site, "c1", "172.18.0.10");
    site.ctl(&["publish", "5001", "172.18.0.10:80"]);
    assert_eq!(dial(&site.host, "[::1]:5001").expect("relayed").1, "172.18.0.1");
}

#[test]
fn led_connections_end_with_their_publish_and_others_do_not() {
    let (site, wan) = world(&[]);
    let c1 = web(&site, "c1", "172.18.0.10");
    for port in ["5000", "5001"] {
        site.ctl(&["publish", port, "172.18.0.10:80"]);
    }
    let open = |address: &str| dial(&site.host, address).expect(address).0;
    let (mut first, mut second, mut own) =
        (open("127.0.0.1:5000"), open("172.16.0.2:5001"), open("172.18.0.10:80"));
    let echoes =
        |stream: &mut TcpStream| stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0])).is_ok();
    site.ctl(&["unpublish", "5000"]);
    wait_until("the first is over", s(5), || !echoes(&mut first));
    assert!(echoes(&mut second) && echoes(&mut own));
    assert!(dial(&site.host, "127.0.0.1:5000").is_err());
    drop(wan);
    drop(c1);
    site.ctl(&["port", "rm", "c1"]);
    wait_until("the second is over", s(5), || !echoes(&mut second));
}

#[test]
fn who_may_connect_and_what_cannot_be_led_is_the_relays() {
    let (site, _wan) = world(&[]);
    let _c1 = web(&site, "c1", "172.18.0.10");
    site.ctl(&["publish", "5000", "172.18.0.10:80", "--from", "172.16.0.0/24"]);
    let (stream, client) = dial(&site.host, "172.16.0.2:5000").expect("one of its addresses");
    assert_eq!((client.as_str(), is_led(&site, "172.18.0.10")), ("172.18.0.1", true), "the relay's own");
    drop(stream);

    let (site, _wan) = world(&["--guards", "sockets"]);
    let _c1 = web(&site, "c1", "172.18.0.10");
    site.ctl(&["publish", "5000", "172.18.0.10:80"]);
    let (stream, _) = dial(&site.host, "127.0.0.1:5000").expect("relayed");
    let here = stream.local_addr().expect("address").to_string();
    assert!(here.starts_with("127."), "{here}: it is led, without BPF");
}

#[test]
fn led_connections_outlast_swd() {
    let (mut site, _wan) = world(&[]);
    let _c1 = web(&site, "c1", "172.18.0.10");
    site.ctl(&["publish", "5000", "172.18.0.10:80"]);
    let (mut stream, _) = dial(&site.host, "127.0.0.1:5000").expect("connect");
    stream.set_read_timeout(Some(s(20))).expect("timeout");
    site.kill();
    assert!(dial(&site.host, "127.0.0.1:5000").is_err(), "nobody leads while swd is dead");
    site.start();
    stream.write_all(b"x").expect("send");
    stream.read_exact(&mut [0]).expect("it goes on");
    wait_until("new ones are led", s(5), || dial(&site.host, "127.0.0.1:5000").is_ok());
}
