//! Containers of a real Docker engine on swd: they find each other by name, are published, come and go, and outlive restarts
//! of either side; afterwards nothing is left.

use std::fs;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::containers::{Containers, a_thousand_ports_cost_little, attached, nothing_is_left};
use tests::docker::{Engine, IMAGE, plugins};
use tests::netns::Namespace;
use tests::outside::Outside;
use tests::process::{TIMEOUT, run, s, wait_for, wait_for_answer, wait_until};
use tests::site::{Site, heavy};

/// A host with swd, an outside and an engine. What is dropped first comes last.
fn world(engine: &[&str]) -> (Site, Outside, Engine) {
    let mut site = Site::stopped();
    let folder = plugins(&site).display().to_string();
    site = site.arguments(&["--uplink", "auto", "--docker", "--docker-plugins", &folder]);
    let wan = Outside::new(&site.host);
    site.start();
    let engine = Engine::start(&site, engine);
    (site, wan, engine)
}

#[test]
fn containers_are_reached_by_name_by_address_and_by_their_published_ports() {
    let (site, wan, engine) = world(&[]);
    engine.network("web", &["--subnet", "172.20.0.0/16"]);
    engine.serve("one", "web", &["-p", "5000:80", "--network-alias", "shop"]);
    engine.serve("two", "web", &[]);
    let one = engine.address("one", "web", "IPAddress");
    assert!(one.starts_with("172.20.0."), "{one}");
    for whom in [one.as_str(), "one", "shop", "172.20.0.1"] {
        assert!(engine.pings("two", whom), "{whom} does not answer:\n{}", engine.log());
    }
    wait_for_answer("I am one", || engine.ask("two", "one"));
    engine.reach_published(&site, &wan, 5000, "I am one", &["two", "one"]);
    // Masquerade: nobody outside sees an inside address, which the watch holds.
    assert!(engine.pings("two", "172.16.0.1"));
    let endpoint = engine.inspect("one");
    let endpoint = endpoint["NetworkSettings"]["Networks"]["web"]["EndpointID"].as_str().expect("an id");
    let port = site.port(&format!("ep-{}", &endpoint[..10]));
    assert_eq!(port["addresses"][0].as_str(), Some(format!("{one}/16").as_str()), "{port}");
    let refused = engine.try_docker(&["network", "rm", "web"]);
    assert!(refused.stderr.contains("has active endpoints"), "{refused}");
    engine.remove(&["one", "two"]);
    assert!(site.host.http("127.0.0.1:5000").is_err());
    nothing_is_left(&site);
    engine.docker(&["network", "rm", "web"]);
    assert_eq!(site.rows(&["network", "ls"]).len(), 1, "the default network alone");
}

#[test]
fn networks_are_as_docker_asked_for_them() {
    let (site, _wan, engine) = world(&[]);
    let run = |name: &str, network: &str, options: &[&str]| {
        let words = ["run", "-d", "--name", name, "--network", network];
        engine.docker(&[&words, options, &[IMAGE, "sleep", "1000"]].concat())
    };

    // Addresses of the user's choice; two families.
    engine.network(
        "dual",
        &["--subnet", "172.20.0.0/16", "--ipv6", "--subnet", "fd00:20::/64", "-o", "mtu=1400"],
    );
    let chosen = ["--ip", "172.20.7.7", "--ip6", "fd00:20::77", "--mac-address", "02:42:00:00:07:07"];
    run("chosen", "dual", &chosen);
    run("other", "dual", &[]);
    let shown = engine.docker(&["exec", "chosen", "ip", "addr", "show", "eth0"]);
    for part in ["172.20.7.7/16", "fd00:20::77/64", "02:42:00:00:07:07", "mtu 1400"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let outside = engine.docker(&["exec", "other", "ip", "-6", "route", "show", "default"]);
    assert!(outside.contains("fd00:20::1"), "{outside}");
    for whom in ["172.20.7.7", "fd00:20::77", "172.16.0.1", "2001:db8::1"] {
        assert!(engine.pings("other", whom), "{whom}");
    }
    let taken = engine.try_docker(&["run", "--rm", "--network", "dual", "--ip", "172.20.7.7", IMAGE, "true"]);
    assert!(taken.stderr.contains("Address already in use"), "{taken}");

    // A second network, live, and gone again.
    engine.network("back", &["--subnet", "172.21.0.0/16", "-o", "prefix=back"]);
    run("db", "back", &[]);
    assert!(!engine.pings("other", "db"), "networks are closed to each other");
    engine.docker(&["network", "connect", "back", "other"]);
    assert!(engine.pings("other", "db") && engine.pings("other", "chosen"));
    assert!(engine.docker(&["exec", "other", "ip", "link"]).contains("back0"), "the interface's name");
    engine.docker(&["network", "disconnect", "back", "other"]);
    assert!(!engine.pings("other", "db") && engine.pings("other", "chosen"));

    // No way out, and ports are not published.
    engine.network("inner", &["--subnet", "172.22.0.0/16", "--internal"]);
    run("hidden", "inner", &["--cap-add", "NET_ADMIN", "-p", "5000:80"]);
    run("beside", "inner", &[]);
    assert!(engine.pings("beside", "hidden"));
    assert_eq!(site.rows(&["published"]), Vec::<Value>::new(), "nothing of it is published");
    assert!(!engine.pings("hidden", "172.16.0.1"));
    engine.docker(&["exec", "hidden", "ip", "route", "add", "default", "via", "172.22.0.1"]);
    assert!(!engine.pings("hidden", "172.16.0.1"), "a route of its own must not help");
    assert!(site.drops("prohibited") > 0);

    // Containers that may not talk to each other.
    engine
        .network("apart", &["--subnet", "172.23.0.0/16", "-o", "com.docker.network.bridge.enable_icc=false"]);
    run("left", "apart", &[]);
    run("right", "apart", &[]);
    assert!(engine.pings("left", "172.16.0.1") && !engine.pings("left", "right"));

    for (options, said) in [
        (
            &["--subnet", "172.24.0.0/16", "-o", "parent=eth0"][..],
            "option parent is not known; there are name",
        ),
        (&["--subnet", "172.16.5.0/24"], "overlaps"),
        (&["--subnet", "172.18.1.0/24"], "overlaps"),
    ] {
        let refused =
            engine.try_docker(&[&["network", "create", "-d", site.name()], options, &["bad"]].concat());
        assert!(!refused.status.success() && refused.stderr.contains(said), "{refused}");
    }
    engine.remove(&["chosen", "other", "db", "hidden", "beside", "left", "right"]);
    nothing_is_left(&site);
    engine.docker(&["network", "rm", "dual", "back", "inner", "apart"]);
    assert_eq!(site.rows(&["network", "ls"]).len(), 1, "the default network alone");
}

#[test]
fn docker_shares_a_network_and_its_addresses_with_others() {
    let (site, _wan, engine) = world(&[]);
    // swd's own IPAM: Docker and 'swctl attach' take from one pool.
    let attached = Namespace::new();
    site.ctl(&["attach", attached.name(), "--name", "attached", "--ip", "172.18.0.3"]);
    let ipam = ["--ipam-driver", site.name(), "--subnet", "172.18.0.0/16", "-o", "network=default"];
    engine.network("lan", &ipam);
    let addresses: Vec<_> = ["aa", "bb", "cc"]
        .into_iter()
        .map(|name| {
            engine.serve(name, "lan", &[]);
            engine.address(name, "lan", "IPAddress")
        })
        .collect();
    assert_eq!(addresses, ["172.18.0.2", "172.18.0.4", "172.18.0.5"], "one after the other, .3 is taken");
    attached.ping("172.18.0.2");
    assert!(engine.pings("aa", "172.18.0.3") && engine.pings("aa", "bb"));
    let taken = engine.try_docker(&["run", "--rm", "--network", "lan", "--ip", "172.18.0.3", IMAGE, "true"]);
    assert!(taken.stderr.contains("172.18.0.3 is another container's"), "{taken}");
    engine.remove(&["aa", "bb", "cc"]);
    engine.docker(&["network", "rm", "lan"]);
    assert!(site.row(&["network", "ls"], "name", "default").is_some(), "it was there before Docker");
    site.ctl(&["detach", "attached"]);
    nothing_is_left(&site);

    // A pool of swd's choice, and a part of one.
    let net = engine.docker(&["network", "create", "-d", site.name(), "--ipam-driver", site.name(), "free"]);
    let range = ["--ipam-driver", site.name(), "--subnet", "10.9.0.0/16", "--ip-range", "10.9.5.0/24"];
    engine.network("part", &[&range[..], &["--aux-address", "printer=10.9.5.1"]].concat());
    engine.serve("dd", "part", &[]);
    assert_eq!(engine.address("dd", "part", "IPAddress"), "10.9.5.2", "the range's first is the printer's");
    let made = format!("docker-{}", &net[..12]);
    assert!(site.row(&["network", "ls"], "name", &made).is_some(), "{made}");
    engine.remove(&["dd"]);
    engine.docker(&["network", "rm", "free", "part"]);
    nothing_is_left(&site);
}

#[test]
fn restarts_of_either_side_leave_containers_alone() {
    let (mut site, wan, mut engine) = world(&["--live-restore"]);
    engine.network("web", &["--subnet", "172.20.0.0/16"]);
    engine.serve("one", "web", &["-p", "5000:80"]);
    engine.serve("two", "web", &[]);
    wait_for_answer("I am one", || wan.http("172.16.0.2:5000"));
    engine.stop_daemon();
    assert_eq!(wan.http("172.16.0.2:5000").as_deref(), Ok("I am one"), "without dockerd");
    site.kill();
    site.start();
    wait_for_answer("I am one", || wan.http("172.16.0.2:5000"));
    engine.start_daemon();
    assert!(engine.pings("two", "one"), "names, after the restart:\n{}", engine.log());
    assert_eq!(site.terminate(), 0);
    let refused = engine.try_docker(&["network", "inspect", "web"]);
    assert!(refused.status.success(), "Docker lives without swd: {refused}");
    site.start();
    // What swd was told before is still known.
    engine.serve("three", "web", &["-p", "5001:80"]);
    wait_for_answer("I am three", || wan.http("172.16.0.2:5001"));
    engine.kill_daemon();
    engine.start_daemon();
    wait_for_answer("I am one", || engine.ask("three", "one"));
    engine.remove(&["one", "two", "three"]);
    nothing_is_left(&site);
    // A container that ends by itself leaves nothing either, and comes back with 'docker start'.
    engine.serve("four", "web", &["-p", "5000:80"]);
    engine.docker(&["kill", "four"]);
    nothing_is_left(&site);
    engine.docker(&["start", "four"]);
    wait_for_answer("I am four", || wan.http("172.16.0.2:5000"));
    engine.remove(&["four"]);
    engine.docker(&["network", "rm", "web"]);
    nothing_is_left(&site);
}

/// Without `live-restore` containers stop with the engine, or when it comes back: they get new ports, and nothing is left of
/// the old ones.
#[test]
fn containers_come_back_with_their_engine() {
    let (site, wan, mut engine) = world(&[]);
    engine.network("web", &["--subnet", "172.20.0.0/16"]);
    engine.serve("one", "web", &["-p", "5000:80", "--restart", "always", "--stop-signal", "KILL"]);
    let ports = || {
        let rows = attached(&site).into_iter();
        rows.map(|p| p["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    wait_for_answer("I am one", || wan.http("172.16.0.2:5000"));
    let before = ports();
    engine.stop_daemon();
    nothing_is_left(&site);
    engine.start_daemon();
    wait_for_answer("I am one", || wan.http("172.16.0.2:5000"));
    let after = ports();
    assert!(after.len() == 1 && after != before, "{before:?}, then {after:?}");
    // An engine that was killed has told nobody anything.
    engine.kill_daemon();
    assert_eq!(wan.http("172.16.0.2:5000").as_deref(), Ok("I am one"), "without dockerd");
    engine.start_daemon();
    wait_for_answer("I am one", || wan.http("172.16.0.2:5000"));
    wait_until("the old port is gone", s(10), || ports().len() == 1);
    engine.remove(&["one"]);
    nothing_is_left(&site);
    engine.docker(&["network", "rm", "web"]);
    assert_eq!(site.rows(&["network", "ls"]).len(), 1, "the default network alone");
}

/// What docs/docker.md says about `--network host`, `none` and `container:OTHER`.
#[test]
fn the_other_modes_of_docker() {
    let (site, wan, engine) = world(&[]);
    engine.network("web", &["--subnet", "172.20.0.0/16"]);
    engine.serve("host", "host", &[]);
    wait_for_answer("I am host", || wan.http("172.16.0.2:80"));
    let late = ["run", "-d", "--name", "late", "--network", "web", "-p", "80:80", IMAGE, "sleep", "9"];
    let refused = engine.try_docker(&late);
    assert!(refused.stderr.contains("cannot publish 80/tcp"), "{refused}");
    engine.remove(&["late"]);

    engine.serve("one", "web", &["-p", "5000:80"]);
    engine.docker(&["run", "-d", "--name", "beside", "--network", "container:one", IMAGE, "sleep", "1000"]);
    wait_for_answer("I am one", || engine.ask("beside", "127.0.0.1"));
    assert_eq!(
        engine.docker(&["exec", "beside", "ip", "-o", "-4", "addr", "show", "eth0"]),
        engine.docker(&["exec", "one", "ip", "-o", "-4", "addr", "show", "eth0"])
    );

    let marked = format!(": {}; sleep 1000; :", site.name());
    engine.docker(&["run", "-d", "--name", "none", "--network", "none", IMAGE, "sh", "-c", &marked]);
    assert!(!engine.pings("none", "172.18.0.1"), "it has nothing but loopback");
    // Docker knows it by its number in the engine's process namespace; swd is outside of that.
    let pid = wait_for("the container's process", s(5), || process_with(&marked));
    site.ctl(&["attach", &pid, "--name", "none"]);
    assert!(engine.pings("none", "172.18.0.1") && engine.pings("none", "172.16.0.1"));
    engine.remove(&["host", "one", "beside", "none"]);
    nothing_is_left(&site);
}

/// The shell that runs this script.
fn process_with(script: &str) -> Option<String> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes.filter_map(|p| p.file_name().into_string().ok()).find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|b| *b == 0).collect();
        words.first() == Some(&b"sh".as_slice()) && words.contains(&script.as_bytes())
    })
}

#[test]
fn ports_are_published_by_the_thousand_and_refused_clearly() {
    // The time that it takes is looked at.
    let _heavy = heavy();
    let (site, wan, engine) = world(&[]);
    engine.network("web", &["--subnet", "172.20.0.0/16", "--ipv6", "--subnet", "fd00:20::/64"]);
    let ranges = ["-p", "5000-5999:80-1079", "-p", "5000-5999:80-1079/udp"];
    a_thousand_ports_cost_little("docker run, ports of TCP and of UDP", |with| {
        let start = Instant::now();
        engine.serve("one", "web", if with { &ranges } else { &[] });
        let took = start.elapsed();
        wait_for_answer("I am one", || site.host.http(&engine.address("one", "web", "IPAddress")));
        engine.remove(&["one"]);
        took
    });
    engine.serve("one", "web", &ranges);
    wait_for_answer("I am one", || wan.http("172.16.0.2:5000"));
    let mut names: Vec<_> =
        site.rows(&["published"]).iter().filter_map(|p| p["name"].as_str().map(str::to_owned)).collect();
    names.sort();
    assert_eq!(names, ["5000-5999/tcp", "5000-5999/udp", "[::]:5000-5999/tcp", "[::]:5000-5999/udp"]);
    assert_eq!(wan.http("172.16.0.2:5000").as_deref(), Ok("I am one"));
    assert_eq!(wan.http("[2001:db8::2]:5000").as_deref(), Ok("I am one"));
    engine.remove(&["one"]);
    nothing_is_left(&site);

    // A port of swd's choice.
    engine.serve("any", "web", &["-p", "80"]);
    let published = site.rows(&["published"]);
    let port = published[0]["host_port"].as_u64().expect("a port");
    assert!((30000..32768).contains(&port) && published.len() == 2, "{published:?}");
    wait_for_answer("I am any", || wan.http(&format!("172.16.0.2:{port}")));
    // Taken: by a container, by a program.
    let command = ["run", "-d", "--name", "late", "--network", "web", "-p"];
    let late = |mapping: &str| engine.try_docker(&[&command[..], &[mapping, IMAGE, "sleep", "9"]].concat());
    let refused = late(&format!("{port}:80"));
    assert!(refused.stderr.contains("take it back first"), "{refused}");
    let listener = site.host.tcp_listen("0.0.0.0:6000");
    let refused_by_program = {
        engine.remove(&["late"]);
        late("6000:80")
    };
    assert!(refused_by_program.stderr.contains("cannot publish 6000/tcp"), "{refused_by_program}");
    drop(listener);
    assert_eq!(site.rows(&["published"]).len(), 2, "all or none");
    engine.remove(&["late", "any"]);
    nothing_is_left(&site);
}

/// Docker's protocol without Docker: what it sends twice, too late, or not at all.
#[test]
fn the_protocol_bears_repetition_and_refuses_nonsense() {
    let mut site = Site::stopped();
    let folder = plugins(&site).display().to_string();
    site = site.arguments(&["--uplink", "none", "--docker", "--docker-plugins", &folder]);
    site.start();
    let socket = plugins(&site).join(format!("{}.sock", site.name())).display().to_string();
    let post = |method: &str, body: &str| {
        let words = [
            "curl",
            "-sS",
            "--unix-socket",
            &socket,
            "-w",
            "\n%{http_code}",
            "-d",
            body,
            &format!("http://swd/{method}"),
        ];
        let out = site.host.run(&words).ok().stdout;
        let (json, code) = out.rsplit_once('\n').expect("a code");
        (code.to_owned(), json.to_owned())
    };
    let (id, endpoint) = ("a".repeat(64), "b".repeat(64));
    assert_eq!(post("Plugin.Activate", "").1, r#"{"Implements":["NetworkDriver","IpamDriver"]}"#);
    let create =
        format!(r#"{{"NetworkID":"{id}","IPv4Data":[{{"Pool":"10.9.0.0/24","Gateway":"10.9.0.1/24"}}]}}"#);
    for _ in 0..2 {
        assert_eq!(post("NetworkDriver.CreateNetwork", &create), ("200".into(), "{}".into()));
    }
    let of = format!(r#"{{"NetworkID":"{id}","EndpointID":"{endpoint}"}}"#);
    let join = post("NetworkDriver.Join", &of).1;
    assert!(join.contains("there is no endpoint") && join.contains("start the container again"), "{join}");
    let made = post("NetworkDriver.CreateEndpoint", &of).1;
    assert!(made.contains(r#""Address":"10.9.0.2/24""#) && made.contains(r#""MacAddress":"02:"#), "{made}");
    let join = post("NetworkDriver.Join", &of).1;
    assert!(
        join.contains(r#""SrcName":"ep-bbbbbbbbbb""#) && join.contains(r#""Gateway":"10.9.0.1""#),
        "{join}"
    );
    assert!(site.host.links().contains(&"ep-bbbbbbbbbb".to_owned()));
    let info = post("NetworkDriver.EndpointOperInfo", &of).1;
    assert!(info.contains("com.docker.network.endpoint.macaddress"), "{info}");
    let refused = site.try_ctl(&["port", "rm", "ep-bbbbbbbbbb"]).one_line_error();
    assert!(refused.contains("docker network disconnect"), "{refused}");
    let in_use = post("NetworkDriver.DeleteNetwork", &of).1;
    assert!(in_use.contains("it has ports (ep-bbbbbbbbbb)"), "{in_use}");
    for method in ["Leave", "DeleteEndpoint", "DeleteEndpoint", "DeleteNetwork", "DeleteNetwork"] {
        assert_eq!(post(&format!("NetworkDriver.{method}"), &of), ("200".into(), "{}".into()), "{method}");
    }
    let (code, said) = post("NetworkDriver.CreateEndpoint", &of);
    assert!(code == "200" && said.contains("docker network rm"), "{said}");
    for (method, body, expected) in [
        ("NetworkDriver.AllocateNetwork", "{}", "404"),
        ("NetworkDriver.CreateNetwork", "", "400"),
        ("NetworkDriver.CreateNetwork", "{}", "400"),
        ("NetworkDriver.Join", r#"{"NetworkID":"../..","EndpointID":"../../etc"}"#, "200"),
        ("IpamDriver.RequestAddress", r#"{"PoolID":"10.9.0.0/31","Address":""}"#, "200"),
        ("IpamDriver.RequestPool", r#"{"Pool":"","SubPool":"10.9.0.0/24"}"#, "200"),
    ] {
        let (code, said) = post(method, body);
        assert!(code == expected && said.contains("\"Err\""), "{method}: {code} {said}");
    }
    // Only root may speak to it, and it goes with swd.
    let stranger = ["setpriv", "--reuid", "65534", "--clear-groups", "curl", "-sS", "--unix-socket", &socket];
    let refused = run(
        &mut site.host.command(&[&stranger[..], &["-d", "", "http://swd/Plugin.Activate"]].concat()),
        TIMEOUT,
    );
    assert!(!refused.stdout.contains("Implements"), "{refused}");
    site.signal(Signal::SIGTERM);
    wait_until("the socket is gone", s(10), || !std::path::Path::new(&socket).exists());
    nothing_of(&mut site);
}

/// swd has ended by itself.
fn nothing_of(site: &mut Site) {
    wait_until("swd has ended", s(10), || !site.alive());
}
