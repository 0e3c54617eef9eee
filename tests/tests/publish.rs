//! Published ports: reached from the outside, from containers, from the target itself and from the host.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;

use tests::netns::Namespace;
use tests::outside::Outside;
use tests::process::{s, wait_until};
use tests::site::{Container, Site, Way, quiet};

const HOST: &str = "172.16.0.2";

fn world() -> (Site, Outside) {
    let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
    let wan = Outside::new(&site.host);
    site.start();
    (site, wan)
}

/// Answers each connection with its client's address.
fn serve(listener: TcpListener) {
    thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(from.ip().to_string().as_bytes());
        }
    });
}

/// Who a server that is asked from `ns` takes it for.
fn ask(ns: &Namespace, address: &str) -> std::io::Result<String> {
    let mut stream = ns.tcp_connect(address, s(3))?;
    stream.set_read_timeout(Some(s(3)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn web(site: &Site, way: Way) -> Container {
    let c1 = site.container("c1", way, "172.18.0.10");
    serve(c1.ns.tcp_listen("0.0.0.0:5000"));
    c1
}

#[test]
fn a_published_port_is_reached_from_everywhere() {
    for way in [Way::PortAdd, Way::Tap] {
        let (site, wan) = world();
        let c1 = web(&site, way);
        let c2 = site.container("c2", way, "172.18.0.20");
        wan.expect_refusals(5000, 1);
        assert!(ask(&wan, "172.16.0.2:5000").is_err(), "not published yet");
        site.ctl(&["publish", "5000", "172.18.0.10:5000"]);
        assert_eq!(
            ask(&wan, "172.16.0.2:5000").expect("outside"),
            "172.16.0.1",
            "the client keeps its address"
        );
        assert_eq!(ask(&c2.ns, "172.16.0.2:5000").expect("a container"), HOST);
        assert_eq!(ask(&c2.ns, "172.18.0.1:5000").expect("by the gateway"), HOST);
        assert_eq!(ask(&c1.ns, "172.16.0.2:5000").expect("itself"), HOST);
        for local in ["172.16.0.2:5000", "127.0.0.1:5000", "172.18.0.1:5000"] {
            assert_eq!(ask(&site.host, local).expect("the host"), "172.18.0.1");
        }
        let row = site.row(&["published"], "name", "5000/tcp").expect("listed");
        assert_eq!((row["target_port"].as_u64(), row["host_port_end"].as_u64()), (Some(5000), Some(5000)));
        assert!(row["connections"].as_u64() >= Some(1), "{row}");
    }
}

#[test]
fn udp_and_ipv6_and_ranges_are_published() {
    let (site, wan) = world();
    site.ctl(&["network", "add", "six", "--subnet", "fd00:18::/64", "--subnet", "172.19.0.0/16"]);
    let c = site.container_in("six", "c6", Way::Attach, "172.19.0.10");
    let shown = site.port("c6");
    let six = shown["addresses"].as_array().expect("addresses").iter().filter_map(|a| a.as_str());
    let six: IpAddr =
        six.filter_map(|a| a.split('/').next()?.parse().ok()).find(IpAddr::is_ipv6).expect("IPv6");
    serve(c.ns.tcp_listen("[::]:80"));
    site.ctl(&["publish", "[::]:8080", &SocketAddr::new(six, 80).to_string()]);
    assert_eq!(ask(&wan, "[2001:db8::2]:8080").expect("IPv6"), "2001:db8::1");
    assert!(ask(&site.host, "[::1]:8080").is_ok(), "the host, by ::1");

    site.ctl(&["publish", "7000-7999/udp", "172.19.0.10:7000"]);
    let there = c.ns.udp("0.0.0.0:7123");
    let here = wan.udp("172.16.0.1:4000");
    here.send_to(b"question", "172.16.0.2:7123").expect("send");
    for socket in [&here, &there] {
        socket.set_read_timeout(Some(s(2))).expect("timeout");
    }
    let mut buffer = [0; 100];
    let (n, from) = there.recv_from(&mut buffer).expect("the question");
    assert_eq!((&buffer[..n], from.to_string().as_str()), (&b"question"[..], "172.16.0.1:4000"));
    there.send_to(b"answer", from).expect("send");
    let (n, from) = here.recv_from(&mut buffer).expect("the answer");
    assert_eq!((&buffer[..n], from.to_string().as_str()), (&b"answer"[..], "172.16.0.2:7123"));
}

#[test]
fn publishes_are_kept_taken_back_and_refused() {
    let (mut site, wan) = world();
    // The target need not exist: then connections are refused, soon.
    site.ctl(&["publish", "5000", "172.18.0.10:5000"]);
    let start = std::time::Instant::now();
    let refused = ask(&wan, "172.16.0.2:5000").expect_err("nobody there");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(start.elapsed() < s(1));
    let _c1 = web(&site, Way::PortAdd);
    ask(&wan, "172.16.0.2:5000").expect("now it is there");

    let error = site.try_ctl(&["publish", "4999-5001", "172.18.0.20:1"]).one_line_error();
    assert!(error.contains("5000/tcp leads to 172.18.0.10:5000 since"), "{error}");
    let taken = site.host.tcp_listen("0.0.0.0:6000");
    let error = site.try_ctl(&["publish", "6000", "172.18.0.20:1"]).one_line_error();
    assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
    drop(taken);
    let error = site.try_ctl(&["publish", "6001", "10.9.9.9:1"]).one_line_error();
    assert!(error.contains("not a container's address"), "{error}");
    assert_eq!(site.rows(&["published"]).len(), 1);

    site.ctl(&["publish", "5001", "172.18.0.10:5000", "--from", "203.0.113.0/24"]);
    assert!(ask(&wan, "172.16.0.2:5001").is_err(), "for others only");

    site.kill();
    site.start();
    wait_until("it is back", s(5), || ask(&wan, "172.16.0.2:5000").is_ok());

    let mut open = wan.tcp_connect("172.16.0.2:5000", s(3)).expect("connect");
    site.ctl(&["unpublish", "5000"]);
    wan.expect_refusals(5000, 2);
    assert!(ask(&wan, "172.16.0.2:5000").is_err(), "the host's again");
    assert_eq!(site.json(&["conntrack", "count", "--port", "5000"])["connections"], 0);
    wait_until("the open connection is over", s(5), || open.write_all(b"x").is_err());
    site.try_ctl(&["unpublish", "5000"]).one_line_error();
}

#[test]
fn run_publishes_a_port_while_it_runs() {
    let (site, wan) = world();
    let python = tests::process::python().to_str().expect("UTF-8").to_owned();
    let words = ["run", "-p", "8080:80", "--", &python, "-m", "http.server", "80"];
    let mut run = tests::process::Background::start(&mut site.swctl_command(&words), &site.file("run.log"));
    wait_until("it is published", s(10), || !site.rows(&["published"]).is_empty());
    wait_until("it is reached", s(10), || {
        wan.run(&["curl", "-s", "-o", "/dev/null", "-m2", "http://172.16.0.2:8080/"]).status.success()
    });
    run.signal(nix::sys::signal::Signal::SIGTERM);
    run.wait(s(5));
    assert!(site.rows(&["published"]).is_empty());
}

/// What `kill -9` leaves: the port is published again by itself, and connections go on; published ones even where nobody
/// remembers them, since their ports are those of the rule. A masqueraded one's end is told at once then.
#[test]
fn connections_survive_kill_9_and_as_far_as_their_ports_allow_the_loss_of_the_journal() {
    let (mut site, wan) = world();
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    let listener = c1.ns.tcp_listen("0.0.0.0:5000");
    site.ctl(&["publish", "5000", "172.18.0.10:5000"]);
    let mut client = wan.tcp_connect("172.16.0.2:5000", s(3)).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    let outer = wan.tcp_listen("172.16.0.1:7000");
    let mut out = c1.ns.tcp_connect("172.16.0.1:7000", s(3)).expect("connect");
    let (mut far, _) = outer.accept().expect("accept");
    let says = |from: &mut TcpStream, to: &mut TcpStream| {
        to.set_read_timeout(Some(s(10))).expect("timeout");
        from.write_all(b"hello").expect("send");
        let mut heard = [0; 5];
        to.read_exact(&mut heard).expect("hear");
        assert_eq!(&heard, b"hello");
    };
    says(&mut client, &mut server);
    // From either side first.
    for from_outside in [true, false] {
        // Nothing is to be on its way, no late acknowledgement either.
        quiet();
        site.kill();
        if !from_outside {
            std::fs::remove_file(site.runtime_dir().join(format!("{}.connections", site.name())))
                .expect("remove");
        }
        site.start();
        wait_until("the uplink is back", s(10), || c1.ns.pings("172.16.0.1"));
        if from_outside {
            says(&mut client, &mut server);
            says(&mut out, &mut far);
        }
        says(&mut server, &mut client);
        says(&mut client, &mut server);
    }
    out.set_read_timeout(Some(s(10))).expect("timeout");
    out.write_all(b"hello").expect("send");
    let end = out.read(&mut [0; 5]).expect_err("nobody remembers");
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    drop(c1.ns.tcp_connect("172.16.0.1:7000", s(3)).expect("a new one"));
}
