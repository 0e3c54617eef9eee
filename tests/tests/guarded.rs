//! Ports of the host that are swd's, through the daemon: without BPF, without descriptors, and with programs of the host in
//! the way. `portguard.rs` has the guards themselves.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::netns::Namespace;
use tests::outside::unwatched;
use tests::process::{python, run, s, tool, wait_for, wait_until};
use tests::site::{Site, Way};

const WAN: &str = "172.16.0.1";

fn stopped(arguments: &[&str]) -> (Site, Namespace) {
    let site = Site::stopped().arguments(&[&["--uplink", "auto"], arguments].concat());
    let wan = unwatched(&site.host);
    (site, wan)
}

/// Answers each connection with its client's address.
fn serve(listener: TcpListener) {
    thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(from.ip().to_string().as_bytes());
            // To close with a question unread would be a reset, which may overtake the answer.
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.set_read_timeout(Some(s(2)));
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
}

fn ask(ns: &Namespace, address: &str) -> std::io::Result<String> {
    let mut stream = ns.tcp_connect(address, s(2))?;
    stream.set_read_timeout(Some(s(2)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn without_bpf_sockets_guard_the_ports_up_to_a_limit_that_is_told() {
    let (mut site, wan) = stopped(&[]);
    site.start_by(&[python().to_str().expect("UTF-8"), tool("without.py").to_str().expect("UTF-8"), "bpf"]);
    assert!(site.log().contains("guarded by a socket each, at most 4096"), "{}", site.log());
    let status = site.json(&["status"]);
    assert_eq!((status["guards"].as_str(), status["pool"].as_str()), (Some("sockets"), Some("61000-62023")));
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    let c2 = site.container("c2", Way::PortAdd, "172.18.0.20");
    // Out: by a port of the smaller pool, and the host's stack does not interfere.
    let server = wan.tcp_listen("172.16.0.1:80");
    for _ in 0..5 {
        let mut here = c1.ns.tcp_connect("172.16.0.1:80", s(3)).expect("connect");
        let (mut there, from) = server.accept().expect("accept");
        assert!((61_000..62_024).contains(&from.port()), "{from}");
        there.write_all(b"x").expect("write");
        here.read_exact(&mut [0]).expect("read");
    }
    // In: from everywhere.
    serve(c1.ns.tcp_listen("0.0.0.0:5000"));
    site.ctl(&["publish", "5000", "172.18.0.10:5000"]);
    for (who, address, expected) in [
        (&wan, "172.16.0.2:5000", WAN),
        (&c2.ns, "172.16.0.2:5000", "172.16.0.2"),
        (&site.host, "172.16.0.2:5000", "172.18.0.1"),
        (&site.host, "127.0.0.1:5000", "172.18.0.1"),
    ] {
        assert_eq!(ask(who, address).expect(address), expected);
    }
    let said = site.try_ctl(&["publish", "10000-12100", "172.18.0.10:10000"]).one_line_error();
    assert!(said.contains("without BPF at most 4096 ports") && said.contains("CAP_BPF"), "{said}");
    site.ctl(&["publish", "10000-10099", "172.18.0.10:10000"]);
}

#[test]
fn bpf_that_is_demanded_and_refused_is_said_and_nothing_leaks() {
    let (mut site, _wan) = stopped(&["--guards", "bpf"]);
    site.start_by(&[python().to_str().expect("UTF-8"), tool("without.py").to_str().expect("UTF-8"), "bpf"]);
    assert!(
        site.log().contains("no connections to the outside: cannot guard ports by BPF"),
        "{}",
        site.log()
    );
    let status = site.json(&["status"]);
    assert!(status["pool"].is_null() && status["guards"].is_null(), "{status}");
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    assert!(!c1.ns.pings(WAN));
    let said = site.try_ctl(&["publish", "5000", "172.18.0.10:5000"]).one_line_error();
    assert!(said.contains("cannot guard ports by BPF"), "{said}");
    assert!(site.rows(&["published"]).is_empty());
}

#[test]
fn a_pool_that_was_refused_is_asked_for_again() {
    let (mut site, _wan) = stopped(&[]);
    site.start();
    site.ctl(&["publish", "10000-12999", "172.18.0.10:10000"]);
    site.kill();
    // By sockets, what is published leaves too few for the pool.
    let mut site = site.arguments(&["--uplink", "auto", "--guards", "sockets"]);
    site.start();
    assert!(
        site.log().contains("no connections to the outside: without BPF at most 4096 ports"),
        "{}",
        site.log()
    );
    assert!(site.json(&["status"])["pool"].is_null());
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    assert!(!c1.ns.pings(WAN));
    site.ctl(&["unpublish", "10000-12999"]);
    wait_until("the ports are had", s(30), || !site.json(&["status"])["pool"].is_null());
    wait_until("the outside is reached", s(5), || c1.ns.pings(WAN));
}

#[test]
fn descriptors_are_as_many_as_swd_may_have() {
    let (mut site, _wan) = stopped(&[]);
    site.start_by(&["prlimit", "--nofile=512:9000"]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", site.pid())).expect("limits");
    let line = limits.lines().find(|l| l.starts_with("Max open files")).expect("the limit");
    let soft_and_hard: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(soft_and_hard, ["9000", "9000"]);
}

#[test]
fn a_program_that_takes_a_port_of_ours_is_told_of() {
    let (mut site, _wan) = stopped(&[]);
    site.start();
    let mut events =
        tests::process::Background::start(&mut site.swctl_command(&["events"]), &site.file("events"));
    site.ctl(&["publish", "7000-7009", "172.18.0.10:7000"]);
    site.ctl(&["publish", "5000", "172.18.0.10:5000"]);
    // Published alone: refused. In a range: there is no socket in its way.
    assert!(site.host.enter(|| TcpListener::bind("0.0.0.0:5000")).is_err());
    let taken = site.host.tcp_listen("0.0.0.0:7003");
    let me = format!("(pid {})", std::process::id());
    let problem = |name| site.row(&["published"], "name", name).expect("listed")["problem"].clone();
    wait_until("it is found", s(30), || problem("7000-7009/tcp").as_str().is_some_and(|p| p.contains(&me)));
    assert!(problem("5000/tcp").is_null());
    let said = site.ctl(&["published"]);
    assert!(said.contains("7000-7009/tcp does not work: port 7003/tcp is used by"), "{said}");
    wait_until("it is told", s(5), || events.log().contains("port-taken") && events.log().contains(&me));
    drop(taken);
    wait_until("it is gone", s(30), || problem("7000-7009/tcp").is_null());
    events.signal(Signal::SIGTERM);
    events.wait(s(5));
}

#[test]
fn a_port_that_was_taken_while_swd_was_away_is_had_when_it_is_free() {
    let (mut site, wan) = stopped(&[]);
    site.start();
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    serve(c1.ns.tcp_listen("0.0.0.0:5000"));
    site.ctl(&["publish", "5000", "172.18.0.10:5000"]);
    site.kill();
    // The port is kept for the next swd, but not by a keeper that is killed as well.
    let take = || site.host.enter(|| TcpListener::bind("0.0.0.0:5000"));
    assert!(take().is_err());
    for keeper in site.keepers() {
        kill(Pid::from_raw(keeper), Signal::SIGKILL).expect("kill");
    }
    let taken = wait_for("the port is free", s(5), || take().ok());
    site.start();
    let problem = || site.row(&["published"], "name", "5000/tcp").expect("listed")["problem"].clone();
    assert!(problem().as_str().is_some_and(|p| p.contains("5000/tcp is used by")), "{}", problem());
    // The host's own program is undisturbed meanwhile.
    let waiting = wan.tcp_connect("172.16.0.2:5000", s(2)).expect("the host's program");
    taken.accept().expect("accept");
    drop((waiting, taken));
    wait_until("it is published again", s(30), || problem().is_null());
    assert_eq!(ask(&wan, "172.16.0.2:5000").expect("the container"), WAN);
}

#[test]
fn who_may_connect_is_asked_of_the_hosts_own_clients_too() {
    let (mut site, wan) = stopped(&[]);
    site.host.ip(&["addr", "add", "172.16.0.3/16", "dev", "eth0"]);
    site.start();
    let c1 = site.container("c1", Way::PortAdd, "172.18.0.10");
    serve(c1.ns.tcp_listen("0.0.0.0:5000"));
    let from_host = |source: &str, to: &str| {
        let words = ["curl", "-sS", "--http0.9", "-m3", "--interface", source, to];
        run(&mut site.host.command(&words), s(10)).status.success()
    };
    // For the outside only: 198.51.100.0/24 is none of the host's addresses.
    site.ctl(&["publish", "5001", "172.18.0.10:5000", "--from", "198.51.100.0/24"]);
    for address in ["127.0.0.1:5001", "172.16.0.2:5001", "172.18.0.1:5001"] {
        assert!(ask(&site.host, address).is_err(), "{address}");
    }
    // For one of its addresses: those who use it, and 127.0.0.1, which is the host.
    site.ctl(&["publish", "5002", "172.18.0.10:5000", "--from", "172.16.0.3/32"]);
    assert!(from_host("172.16.0.3", "172.16.0.2:5002"));
    assert!(!from_host("172.16.0.2", "172.16.0.2:5002"));
    assert!(ask(&site.host, "127.0.0.1:5002").is_ok());
    assert!(ask(&wan, "172.16.0.2:5002").is_err());
    // For the host only.
    site.ctl(&["publish", "5003", "172.18.0.10:5000", "--from", "127.0.0.0/8"]);
    assert!(ask(&site.host, "127.0.0.1:5003").is_ok());
    assert!(ask(&wan, "172.16.0.2:5003").is_err());
}
