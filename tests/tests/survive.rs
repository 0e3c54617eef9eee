//! Connections outlive the daemon: SIGTERM and start, `swd --replace`, kill -9 and start.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use switch::journal::{file, record};
use tests::http::{self, Http};
use tests::netns::Namespace;
use tests::process::{Background, ms, s, wait_until};
use tests::site::{Site, heavy};
use tests::ssh::{Session, Sshd};
use tests::world::{Change, World};

/// HTTP connections in each direction, and ssh sessions: 200 in all.
const HTTP: usize = 90;
const SSH: usize = 10;

/// The longest pause in a ping that a change may make.
const fn gap_of(change: Change) -> Duration {
    match change {
        Change::Replace => ms(100),
        Change::Terminate | Change::Kill => s(1),
    }
}

/// A ping that goes on.
struct Ping(Background);

impl Ping {
    fn start(site: &Site, from: &Namespace, to: &str, name: &str) -> Self {
        let ping = from.start(&["ping", "-D", "-n", "-i", "0.001", to], &site.file(name));
        wait_until("the first answers", s(10), || ping.log().matches(" ttl=").count() > 200);
        Self(ping)
    }

    /// The longest pause between two answers so far, and since the answer with this number.
    fn gap(&self, since: usize) -> Duration {
        let log = self.0.log();
        let times = log
            .lines()
            .filter(|line| line.contains(" ttl="))
            .filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse::<f64>().ok());
        let times: Vec<f64> = times.skip(since.saturating_sub(1)).collect();
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        Duration::from_secs_f64(gaps.fold(0.0, f64::max).max(0.0))
    }

    fn answers(&self) -> usize {
        self.0.log().matches(" ttl=").count()
    }

    fn goes_on(&self) {
        let before = self.answers();
        wait_until("the ping goes on", s(20), || self.answers() > before + 200);
    }
}

/// Many connections of the programs that people use, out and in, and one busy one.
#[test]
fn two_hundred_connections_outlive_the_daemon() {
    let _alone = heavy();
    let mut world = World::new(&[]);
    for rule in ["2000-2999/tcp", "2000-2999/udp"] {
        world.site.ctl(&["publish", rule, "172.18.0.10:2000"]);
    }
    for ns in [&world.far, &world.web.ns] {
        http::serve(ns.tcp_listen("0.0.0.0:2080"));
    }
    let folder = world.site.file("");
    let (out, inward) = (Sshd::start(&world.far, &folder, "far"), Sshd::start(&world.web.ns, &folder, "web"));
    let mut http: Vec<Http> = Vec::new();
    let mut ssh: Vec<Session> = Vec::new();
    for n in 0..HTTP {
        let from = if n % 2 == 0 { &world.web.ns } else { &world.job.ns };
        http.push(Http::open(from, "203.0.113.7:2080"));
        http.push(Http::open(&world.far, "172.16.0.2:2080"));
    }
    for n in 0..SSH {
        let from = if n % 2 == 0 { &world.web.ns } else { &world.job.ns };
        ssh.push(out.session(from, "203.0.113.7"));
        ssh.push(inward.session(&world.far, "172.16.0.2"));
    }
    let _server = world.far.start(&["iperf3", "-s", "-1"], &world.site.file("iperf3-server.log"));
    wait_until("iperf3 listens", s(10), || {
        world.far.run(&["ss", "-Hltn", "sport = :5201"]).stdout.contains("5201")
    });
    // It ends by SIGINT, when everything has happened.
    let mut iperf = world
        .job
        .ns
        .start(&["iperf3", "-c", "203.0.113.7", "-t", "120", "-b", "200M"], &world.site.file("iperf3.log"));
    let ping = Ping::start(&world.site, &world.web.ns, "203.0.113.7", "ping.log");
    // Somebody who goes on sending to a published port: the host's stack must not answer, whoever runs.
    let stop = Arc::new(AtomicBool::new(false));
    let flood = {
        let (socket, stop) = (world.far.udp("0.0.0.0:0"), Arc::clone(&stop));
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let _ = socket.send_to(b"x", "172.16.0.2:2053");
                thread::sleep(ms(2));
            }
        })
    };
    let _target = world.web.ns.udp("0.0.0.0:2053");

    let mut round = 0;
    let mut talk = |before: &mut dyn FnMut()| {
        round += 1;
        let words = |n: usize| format!("round-{round}-{n}");
        // Asked while there is no daemon, or a change of daemons: what is under way is not lost either.
        for (n, http) in http.iter_mut().enumerate().skip(HTTP) {
            http.ask(&words(n));
        }
        before();
        for (n, http) in http.iter_mut().enumerate().take(HTTP) {
            http.ask(&words(n));
        }
        for (n, http) in http.iter_mut().enumerate() {
            http.answered(&words(n));
        }
        for (n, ssh) in ssh.iter_mut().enumerate() {
            ssh.say(&words(n));
        }
        for (n, ssh) in ssh.iter_mut().enumerate() {
            assert_eq!(ssh.hear(), words(n), "session {n}");
        }
    };
    talk(&mut || {});
    for change in Change::ALL {
        // What the machine itself makes a ping wait, today.
        let quiet = ping.answers();
        ping.goes_on();
        let (start, before) = (ping.answers(), ping.gap(quiet));
        talk(&mut || change.happen(&mut world.site));
        ping.goes_on();
        assert_eq!(iperf.wait(Duration::ZERO), None, "iperf3 has ended:\n{}", iperf.log());
        let gap = ping.gap(start);
        eprintln!("{change:?}: a gap of {gap:?}, {before:?} without");
        assert!(gap < gap_of(change) + before, "{change:?}: a gap of {gap:?}, {before:?} without");
        // ssh, HTTP, iperf3 with two connections, the ping.
        world.all_taken_over(2 * (HTTP + SSH) + 3);
    }
    stop.store(true, Ordering::Relaxed);
    flood.join().expect("no panic");
    iperf.signal(Signal::SIGINT);
    iperf.wait(s(10));
    let log = iperf.log();
    assert!(!log.contains("error") || log.contains("interrupt"), "{log}");
    assert!(log.contains("sender"), "{log}");
    drop(world.wan);
}

/// Clients on the host itself: what the relay carries, half-sent bytes and sessions included.
#[test]
fn what_the_relay_carries_goes_on() {
    let mut world = World::new(&[]);
    for rule in ["5000/tcp", "5000/udp", "6000-6010/tcp"] {
        // Who may connect is said: such clients are relayed, not led.
        let from = ["--from", "127.0.0.0/8", "--from", "172.16.0.0/16"];
        world.site.ctl(&[&["publish", rule, "172.18.0.10:2080"], &from[..]].concat());
    }
    http::serve(world.web.ns.tcp_listen("0.0.0.0:2080"));
    let listener = world.web.ns.tcp_listen("0.0.0.0:2081");
    let server = world.web.ns.udp("0.0.0.0:2080");
    server.set_read_timeout(Some(s(10))).expect("timeout");
    let mut http: Vec<Http> = ["127.0.0.1:5000", "172.16.0.2:5000", "127.0.0.1:6000"]
        .map(|to| Http::open(&world.site.host, to))
        .into();
    let client = world.site.host.udp("127.0.0.1:0");
    client.connect("127.0.0.1:5000").expect("connect");
    client.set_read_timeout(Some(s(10))).expect("timeout");
    let mut ends: Option<SocketAddr> = None;
    let mut datagram = |client: &UdpSocket| {
        client.send(b"question").expect("send");
        let (_, from) = server.recv_from(&mut [0; 20]).expect("the question");
        assert_eq!(*ends.get_or_insert(from), from, "the same session");
        server.send_to(b"answer", from).expect("send");
        client.recv(&mut [0; 20]).expect("the answer");
    };
    // Nobody reads yet, so the relay's pipe is full of it; and one half has ended.
    let mut sender = world.site.host.tcp_connect("127.0.0.1:6001", s(5)).expect("connect");
    let (mut receiver, _) = listener.accept().expect("accept");
    sender.set_write_timeout(Some(ms(300))).expect("timeout");
    let mut sent = 0;
    let chunk: Vec<u8> = (0..=250).cycle().take(251 * 256).collect();
    while let Ok(n @ 1..) = sender.write(&chunk[sent % 251..]) {
        sent += n;
    }
    sender.shutdown(std::net::Shutdown::Write).expect("shutdown");
    for (round, change) in [Change::Replace, Change::Terminate, Change::Replace].into_iter().enumerate() {
        for http in &mut http {
            http.ask(&format!("{round}"));
            http.answered(&format!("{round}"));
        }
        datagram(&client);
        change.happen(&mut world.site);
        for http in &mut http {
            http.ask(&format!("after-{round}"));
            http.answered(&format!("after-{round}"));
        }
        datagram(&client);
        let mut new = Http::open(&world.site.host, "127.0.0.1:5000");
        new.ask("new");
        new.answered("new");
    }
    receiver.set_read_timeout(Some(s(20))).expect("timeout");
    let mut got = Vec::new();
    receiver.read_to_end(&mut got).expect("all of it, and its end");
    let right = got.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at % 251);
    assert!(got.len() == sent && right, "{} of {sent} bytes", got.len());
    receiver.write_all(b"thanks").expect("the other half is open");
    drop(receiver);
    let mut thanks = String::new();
    sender.set_read_timeout(Some(s(10))).expect("timeout");
    sender.read_to_string(&mut thanks).expect("the answer");
    assert_eq!(thanks, "thanks");
    // After kill -9 clients on the host dial anew, and get through.
    Change::Kill.happen(&mut world.site);
    let mut new = Http::open(&world.site.host, "127.0.0.1:5000");
    new.ask("again");
    new.answered("again");
}

/// Without BPF, too: a socket for each port.
#[test]
fn the_host_stays_silent_with_sockets_for_guards() {
    let mut world = World::new(&["--guards", "sockets"]);
    world.site.ctl(&["publish", "2080", "172.18.0.10:2080"]);
    for ns in [&world.far, &world.web.ns] {
        http::serve(ns.tcp_listen("0.0.0.0:2080"));
    }
    let mut out = Http::open(&world.web.ns, "203.0.113.7:2080");
    let mut inward = Http::open(&world.far, "172.16.0.2:2080");
    let mut local = Http::open(&world.site.host, "127.0.0.1:2080");
    for change in [Change::Replace, Change::Terminate, Change::Kill] {
        out.ask("before");
        out.answered("before");
        change.happen(&mut world.site);
        for http in [&mut out, &mut inward] {
            http.ask("after");
            http.answered("after");
        }
        if change != Change::Kill {
            local.ask("after");
            local.answered("after");
        }
        world.all_taken_over(2);
    }
}

/// A journal that is damaged, cut off, another's or older: what is whole is taken over, the rest is counted, and swd starts.
#[test]
fn a_damaged_journal_is_refused_record_by_record() {
    let mut world = World::new(&[]);
    let servers: Vec<UdpSocket> = (0..6).map(|n| world.far.udp(&format!("0.0.0.0:{}", 4000 + n))).collect();
    let clients: Vec<UdpSocket> = (0..6).map(|_| world.web.ns.udp("0.0.0.0:0")).collect();
    for (n, client) in clients.iter().enumerate() {
        client.connect(("203.0.113.7", 4000 + u16::try_from(n).expect("few"))).expect("connect");
        client.send(b"x").expect("send");
        servers[n].set_read_timeout(Some(s(10))).expect("timeout");
        servers[n].recv(&mut [0; 4]).expect("it arrives");
    }
    let journal = world.site.runtime_dir().join(format!("{}.connections", world.site.name()));
    let restored = |site: &Site| site.json(&["status"])["restored"].clone();
    let restart = |site: &mut Site, damage: &dyn Fn(&fs::File)| {
        site.kill();
        let file = fs::File::options().read(true).write(true).open(&journal).expect("the journal");
        damage(&file);
        site.start();
        restored(site)
    };
    let place = |n: usize| u64::try_from(file::PLACES + record::SIZE * n).expect("a small file");
    let flipped = restart(&mut world.site, &|file| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place(1) + 40).expect("read");
        file.write_all_at(&[byte[0] ^ 1], place(1) + 40).expect("write");
    });
    assert_eq!(flipped, serde_json::json!({"connections": 5, "refused": {"torn": 1}}));
    assert!(world.site.ctl(&["status"]).contains("5 (not: 1 torn)"));
    assert!(world.site.log().contains("1 torn"), "{}", world.site.log());
    let cut = restart(&mut world.site, &|file| file.set_len(place(2) + 9).expect("truncate"));
    assert_eq!(cut["connections"], 2);
    assert!(cut["refused"]["truncated"].as_u64() >= Some(1), "{cut}");
    let older = restart(&mut world.site, &|file| file.write_all_at(&[0], 8).expect("write"));
    assert_eq!(older, serde_json::json!({"connections": 0, "refused": {"version": 2}}));
    let foreign = restart(&mut world.site, &|file| file.write_all_at(b"something else", 0).expect("write"));
    assert_eq!(foreign["connections"], 0);
    assert!(foreign["refused"]["foreign"].as_u64() >= Some(1), "{foreign}");
    // A container that is gone takes its connections along, and the address of another is not its.
    clients[0].send(b"x").expect("send");
    servers[0].recv(&mut [0; 4]).expect("it arrives");
    let kept = restart(&mut world.site, &|_| {});
    assert_eq!(kept, serde_json::json!({"connections": 1, "refused": {}}));
    world.site.kill();
    let World { wan, far: _far, web, job: _job, mut site } = world;
    drop(clients);
    web.ns.delete();
    site.start();
    assert_eq!(restored(&site), serde_json::json!({"connections": 0, "refused": {"gone": 1}}));
    // The watch ends while swd runs.
    drop(wan);
}

#[test]
fn there_must_be_somebody_to_replace() {
    let mut site = Site::stopped();
    let replace = |site: &Site| {
        let more = ["--uplink", "none", "--replace"].map(str::to_owned);
        let mut command = site.swd_command(site.name(), &site.runtime_dir(), &site.state_dir(), &more);
        tests::process::run(&mut command, s(30)).one_line_error()
    };
    assert!(replace(&site).contains("no instance named"), "{}", replace(&site));
    site.start();
    let pid = site.pid();
    // It does not answer: its process stands still.
    site.signal(Signal::SIGSTOP);
    let said = replace(&site);
    site.signal(Signal::SIGCONT);
    assert!(said.contains("does not hand over") && said.contains("did not answer"), "{said}");
    // Another protocol.
    let client = |body: &str, path: &str| {
        let socket = site.socket();
        let words =
            ["curl", "-sS", "--unix-socket", socket.to_str().expect("UTF-8"), "-X", "POST", "-d", body];
        site.host.run(&[&words[..], &[&format!("http://swd{path}")]].concat()).ok().stdout
    };
    let said = client("{\"protocol\":99,\"pid\":1}", "/v1/handover");
    assert!(said.contains("hands over by protocol 1, not 99"), "{said}");
    assert!(client("", "/v1/handover/end").contains("goes on"));
    // One that fails half way: the running one goes on, and can be changed.
    fs::write(site.file("bad.toml"), "[network.other]\nsubnets = [\"172.18.0.0/24\"]\n").expect("write");
    let config = site.file("bad.toml").display().to_string();
    let more = ["--uplink", "none", "--replace", "--config", &config].map(str::to_owned);
    let mut command = site.swd_command(site.name(), &site.runtime_dir(), &site.state_dir(), &more);
    let said = tests::process::run(&mut command, s(30)).one_line_error();
    assert!(said.contains("172.18.0.0/24"), "{said}");
    site.ctl(&["network", "add", "more", "--subnet", "172.20.0.0/16"]);
    assert_eq!(site.json(&["status"])["pid"], pid);
    // A command that is under way is finished, and what was done is there.
    assert_eq!(site.replace(), 0);
    assert!(site.row(&["network", "ls"], "name", "more").is_some());
    site.kill();
    assert!(replace(&site).contains("nobody listens"), "{}", replace(&site));
}
