//! Looking: trace, capture, metrics, inspect, top and mirrors, with real containers and real programs as judges.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::captured::{frames, interrupt, start};
use tests::netns::Namespace;
use tests::outside::Outside;
use tests::process::{Background, ms, run, s, wait_until};
use tests::site::{Site, Way};

/// What tcpdump reads in a file of swd's.
#[track_caller]
fn tcpdump(file: &std::path::Path, filter: &str) -> String {
    let mut command = std::process::Command::new("tcpdump");
    command.args(["-nne", "-r"]).arg(file).arg(filter);
    run(&mut command, s(10)).ok().stdout
}

/// The counters that asking must not move.
fn counts(site: &Site) -> Value {
    let mut status = site.json(&["status"]);
    let keys = ["received", "forwarded", "answered", "drops", "connections", "fdb_entries"];
    Value::Object(keys.iter().map(|k| ((*k).to_owned(), status[*k].take())).collect())
}

#[track_caller]
fn trace(site: &Site, from: &str, packet: &str) -> Value {
    let mut all = site.rows(&["trace", from, packet]);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[test]
fn a_trace_says_what_then_happens() {
    let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
    let wan = Outside::new(&site.host);
    site.start();
    let (web, db) = (
        site.container("web", Way::PortAdd, "172.18.0.10"),
        site.container("db", Way::Attach, "172.18.0.20"),
    );
    web.ping(&db);
    web.ns.ping("172.16.0.1");
    site.ctl(&["conntrack", "flush"]);

    // To another container.
    let traced = trace(&site, "web", "icmp 172.18.0.10 > 172.18.0.20");
    assert_eq!(
        (traced["outcome"].as_str(), traced["sent"][0]["to"].as_str()),
        (Some("forwarded"), Some("db")),
        "{traced:#}"
    );
    let stages: Vec<_> =
        traced["steps"].as_array().expect("steps").iter().map(|step| step["stage"].as_str()).collect();
    assert_eq!(stages, [Some("guard"), Some("learn"), Some("router"), Some("bridge")]);
    // To the outside: the very port that the translation takes is told, and nothing is taken.
    let syn = "tcp 172.18.0.10:40000 > 172.16.0.1:443 syn";
    let traced = trace(&site, "web", syn);
    assert_eq!(
        (traced["outcome"].as_str(), traced["sent"][0]["to"].as_str()),
        (Some("forwarded"), Some("eth0")),
        "{traced:#}"
    );
    let told = traced["sent"][0]["packet"].as_str().expect("its headers").to_owned();
    assert!(told.contains("tcp 172.16.0.2:6") && told.contains("> 172.16.0.1:443 syn ttl 63"), "{told}");
    // What must not pass, and why.
    let spoofed = trace(&site, "web", "tcp 172.18.0.20:1 > 172.16.0.1:443 syn");
    assert_eq!(
        (spoofed["outcome"].as_str(), spoofed["reason"].as_str()),
        (Some("dropped"), Some("spoofed-source"))
    );
    let stranger = trace(&site, "uplink", "udp 172.16.0.1:53 > 172.16.0.2:61000");
    assert_eq!(stranger["outcome"].as_str(), Some("host"), "{stranger:#}");
    // Kernels talk by themselves now and then, so not every look finds silence; were it the asking, none would.
    wait_until("asking changes nothing", s(15), || {
        let quiet = counts(&site);
        trace(&site, "web", syn);
        trace(&site, "web", "arp 172.18.0.10 > 172.18.0.1");
        counts(&site) == quiet
    });
    assert_eq!(site.json(&["conntrack", "count"])["connections"], 0);
    // For people.
    let text = site.ctl(&["trace", "web", syn]);
    for part in ["router  uplink", "the host's route leads by eth0 to 172.16.0.1", "= forwarded"] {
        assert!(text.contains(part), "{text}");
    }

    // And so it happens: the server sees the SYN come from the port that was told.
    let server = wan.tcp_listen("172.16.0.1:443");
    let port: u16 = told
        .split("172.16.0.2:")
        .nth(1)
        .and_then(|t| t.split(' ').next())
        .and_then(|t| t.parse().ok())
        .expect("a port");
    let python =
        "import socket\ns = socket.socket()\ns.bind(('172.18.0.10', 40000))\ns.connect(('172.16.0.1', 443))";
    web.ns.run(&[tests::process::python().to_str().expect("UTF-8"), "-c", python]).ok();
    let (_, peer) = server.accept().expect("the connection");
    assert_eq!(peer.port(), port, "the port that was told");
    let before = site.drops("same-port");
    let again = trace(&site, "web", &format!("icmp 172.18.0.10 > 172.18.0.77 to-mac {}", web.mac()));
    assert_eq!((again["reason"].as_str(), site.drops("same-port")), (Some("same-port"), before));

    // Recorded frames, in a sequence: the answer belongs to what the question opened.
    let file = site.file("two.pcap");
    let mut writer =
        pcap_file::pcap::PcapWriter::new(std::fs::File::create(&file).expect("a file")).expect("a header");
    let gateway = site.row(&["network", "ls"], "name", "default").expect("the network")["gateway_mac"]
        .as_str()
        .expect("a MAC")
        .to_owned();
    let mac = |text: &str| tests::raw::mac(text);
    for frame in [
        tests::raw::syn4((mac(&gateway), mac(&web.mac())), ([172, 18, 0, 10], 40_001), ([172, 16, 0, 1], 80)),
        tests::raw::experiment(mac("ff:ff:ff:ff:ff:ff"), mac(&web.mac()), b"hello"),
    ] {
        let len = u32::try_from(frame.len()).expect("short");
        writer.write_packet(&pcap_file::pcap::PcapPacket::new(s(1), len, &frame)).expect("write");
    }
    drop(writer);
    let all = site.rows(&["trace", "web", "--pcap", file.to_str().expect("UTF-8")]);
    let outcomes: Vec<_> = all.iter().map(|t| t["sent"][0]["to"].as_str()).collect();
    assert_eq!((outcomes[0], all[1]["outcome"].as_str()), (Some("eth0"), Some("forwarded")), "{all:#?}");

    // Mistakes.
    for (words, part) in [
        (&["trace", "nobody", "arp 1.1.1.1 > 1.1.1.2"][..], "neither a port nor an uplink named nobody"),
        (&["trace", "web", "icmp 172.18.0.10 > 172.18.0.99"], "trace 'arp 172.18.0.10 > 172.18.0.99'"),
    ] {
        let output = site.try_ctl(words);
        assert_eq!(output.code(), 1);
        assert!(output.one_line_error().contains(part), "{output:?}");
    }
    let output = site.try_ctl(&["trace", "web", "tcp nonsense"]);
    assert_eq!(output.code(), 2);
    assert!(output.one_line_error().contains("write 'tcp SRC:PORT"), "{output:?}");
}

#[test]
fn captures_show_what_passes_and_what_is_dropped() {
    let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
    let wan = Outside::new(&site.host);
    site.start();
    let (web, db) = (
        site.container("web", Way::PortAdd, "172.18.0.10"),
        site.container("db", Way::PortAdd, "172.18.0.20"),
    );
    web.ping(&db);
    // The kernel forwards this flow by itself now, where it can; those who watch see it all the same.
    if site.json(&["status"])["fast_path"] == true {
        wait_until("the kernel has the flow", s(20), || {
            web.ns.run(&["ping", "-n", "-c12", "-i0.02", "-W2", "172.18.0.20"]).ok();
            site.json(&["status"])["fast_flows"].as_u64() > Some(0)
        });
    }
    let port = start(&site, &["web", "icmp and host 172.18.0.20"], "web.pcapng");
    let network = start(&site, &["network", "default", "icmp"], "network.pcapng");
    let uplink = start(&site, &["uplink"], "uplink.pcapng");
    let drops = start(&site, &["drops"], "drops.pcapng");
    web.ns.run(&["ping", "-n", "-c2", "-i0.2", "-W2", "172.18.0.20"]).ok();
    web.ns.run(&["ping", "-n", "-c1", "-W2", "172.16.0.1"]).ok();
    // A container that uses another's address is dropped.
    web.ns.ip(&["addr", "add", "172.18.0.99/32", "dev", "lo"]);
    web.ns.ip(&["addr", "add", "10.99.0.1/32", "dev", "lo"]);
    web.ns.run(&["ping", "-n", "-c1", "-W1", "-I", "10.99.0.1", "172.16.0.1"]);
    wait_until("it was dropped", s(5), || site.drops("spoofed-source") > 0);

    assert!(interrupt(port).contains("4 frames captured, 0 lost"));
    let seen = tcpdump(&site.file("web.pcapng"), "icmp");
    assert_eq!(seen.matches("ICMP echo request").count(), 2, "{seen}");
    assert_eq!(seen.matches("ICMP echo reply").count(), 2, "{seen}");
    // In the network each is seen once, with those to the outside as they came from the container.
    interrupt(network);
    let seen = tcpdump(&site.file("network.pcapng"), "icmp");
    assert_eq!(seen.matches("172.18.0.10 > 172.18.0.20: ICMP echo request").count(), 2, "{seen}");
    assert_eq!(seen.matches("172.18.0.10 > 172.16.0.1: ICMP echo request").count(), 1, "{seen}");
    assert_eq!(seen.matches("172.16.0.1 > 172.18.0.10: ICMP echo reply").count(), 1, "{seen}");
    // At the uplink they are translated.
    interrupt(uplink);
    let seen = tcpdump(&site.file("uplink.pcapng"), "icmp");
    assert_eq!(seen.matches("172.16.0.2 > 172.16.0.1: ICMP echo request").count(), 1, "{seen}");
    assert_eq!(seen.matches("172.16.0.1 > 172.16.0.2: ICMP echo reply").count(), 1, "{seen}");
    assert!(!seen.contains("172.18."), "{seen}");
    // What was dropped, with the reason beside it.
    interrupt(drops);
    let seen = tcpdump(&site.file("drops.pcapng"), "src host 10.99.0.1");
    assert_eq!(seen.matches("10.99.0.1 > 172.16.0.1: ICMP echo request").count(), 1, "{seen}");
    let bytes = std::fs::read(site.file("drops.pcapng")).expect("the file");
    let has = |text: &[u8]| bytes.windows(text.len()).any(|w| w == text);
    assert!(has(b"spoofed-source: "), "the reason is the packet's comment");
    // Times are of today's clock.
    let times: Vec<_> = frames(&site.file("drops.pcapng")).iter().map(|frame| frame.at).collect();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    assert!(times.iter().all(|t| *t <= now && now - *t < s(300)), "{times:?} at {now:?}");
    drop(wan);
}

#[test]
fn a_capture_goes_through_a_pipe_and_ends_by_itself() {
    let site = Site::new();
    let (web, db) =
        (site.container("web", Way::Tap, "172.18.0.10"), site.container("db", Way::PortAdd, "172.18.0.20"));
    web.ping(&db);
    let mut swctl = site
        .swctl_command(&["capture", "web", "icmp", "-c", "4", "-w", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("swctl");
    let pipe = swctl.stdout.take().expect("a pipe");
    let reader = std::process::Command::new("tcpdump")
        .args(["-nnr", "-"])
        .stdin(pipe)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("tcpdump");
    // Pings until the capture has its four: it begins when it begins.
    wait_until("four frames", s(20), || {
        web.ns.run(&["ping", "-n", "-c1", "-W1", "172.18.0.20"]);
        swctl.try_wait().expect("wait").is_some()
    });
    let seen = reader.wait_with_output().expect("tcpdump ends with its input");
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert_eq!(
        (seen.matches("ICMP echo request").count(), seen.matches("ICMP echo reply").count()),
        (2, 2),
        "{seen}"
    );

    // As text, and ended by a reader who has enough; no capture is left behind.
    let output =
        site.swctl_command(&["capture", "db", "-c", "1"]).stdout(Stdio::piped()).spawn().expect("swctl");
    wait_until("captures run", s(5), || metric(&site, "swd_captures") == 1);
    web.ping(&db);
    let line = output.wait_with_output().expect("swctl ends");
    let line = String::from_utf8_lossy(&line.stdout).into_owned();
    assert!(line.lines().count() == 1 && line.contains("  db "), "{line}");
    wait_until("captures have ended", s(5), || metric(&site, "swd_captures") == 0);
    let mut gone = site
        .swctl_command(&["capture", "network", "default", "-w", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("swctl");
    wait_until("the capture runs", s(5), || metric(&site, "swd_captures") == 1);
    gone.kill().expect("kill");
    gone.wait().expect("wait");
    wait_until("a killed reader's capture has ended", s(5), || metric(&site, "swd_captures") == 0);

    // One of a port ends with the port.
    let mut watching = start(&site, &["db"], "db.pcapng");
    site.ctl(&["port", "rm", "db"]);
    assert_eq!(watching.wait(s(5)), Some(0), "{}", watching.log());

    for (words, code, part) in [
        (&["capture", "nobody"][..], 1, "no port named nobody"),
        (&["capture", "network", "nowhere"], 1, "no network named nowhere"),
        (&["capture", "uplink"], 1, "no uplink"),
        (&["capture", "web", "tcp", "80"], 2, "'80' means nothing here"),
        (&["capture", "network"], 2, "wants a name"),
    ] {
        let output = site.try_ctl(words);
        assert_eq!(output.code(), code, "{output:?}");
        assert!(output.one_line_error().contains(part), "{output:?}");
    }
}

/// Asks for the metrics as Prometheus would; over the socket.
#[track_caller]
fn metrics(site: &Site) -> String {
    let mut curl = std::process::Command::new("curl");
    curl.args(["-sS", "--unix-socket"]).arg(site.socket()).arg("http://swd/metrics");
    run(&mut curl, s(10)).ok().stdout
}

/// One number of them.
#[track_caller]
fn metric(site: &Site, name: &str) -> u64 {
    let all = metrics(site);
    let line = all.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{all}")).parse().expect("a number")
}

#[test]
fn every_number_is_in_the_metrics() {
    let site = Site::with_config("[metrics]\nlisten = \"127.0.0.1:9750\"\n");
    let (web, db) = (
        site.container("web", Way::PortAdd, "172.18.0.10"),
        site.container("db", Way::PortAdd, "172.18.0.20"),
    );
    web.ping(&db);
    let mut raw = tests::raw::Raw::open(&web.ns, "eth0");
    raw.send(&tests::raw::experiment([0x01, 0x80, 0xc2, 0, 0, 0], tests::raw::mac(&web.mac()), b"bpdu"));
    wait_until("the drop is counted", s(5), || {
        metric(&site, "swd_frames_dropped_total{reason=\"link-local\"}") == 1
    });
    let all = metrics(&site);
    assert!(all.ends_with("# EOF\n"), "{all}");
    for reason in site.rows(&["drops"]) {
        let line =
            format!("swd_frames_dropped_total{{reason=\"{}\"}} ", reason["reason"].as_str().expect("a name"));
        assert!(all.contains(&line), "{line} is not in\n{all}");
    }
    for part in [
        "swd_port_up{port=\"web\",network=\"default\"} 1",
        "swd_port_frames_total{port=\"db\",network=\"default\",direction=\"tx\"} ",
        "swd_port_bytes_total{port=\"web\",network=\"default\",direction=\"rx\"} ",
        "swd_fdb_entries{port=\"web\"} 1",
        "swd_connections 0",
        "swd_build_info{",
        "# TYPE swd_frames_received counter",
    ] {
        assert!(all.contains(part), "{part} is not in\n{all}");
    }
    // Every name that the dashboard asks for is there.
    let dashboard = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/grafana.json"))
        .expect("the dashboard");
    let _: Value = serde_json::from_str(&dashboard).expect("JSON");
    let asked =
        dashboard.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.starts_with("swd_"));
    let mut count = 0;
    for name in asked {
        assert!(
            all.contains(&format!("\n{name}{{"))
                || all.contains(&format!("\n{name} "))
                || name.starts_with("swd_uplink_"),
            "{name} is not in\n{all}"
        );
        count += 1;
    }
    assert!(count >= 8, "the dashboard asks for {count} metrics only");

    // The same over TCP, for Prometheus: and nothing else.
    let fetch = |path: &str| {
        let url = format!("http://127.0.0.1:9750{path}");
        site.host.run(&["curl", "-sS", "-w", "\n%{http_code}", &url]).ok().stdout
    };
    assert!(fetch("/metrics").ends_with("# EOF\n\n200"), "{}", fetch("/metrics"));
    assert!(fetch("/v1/ports").ends_with("404"), "the API is not there");
    // Clients that say nothing hold nobody up.
    let silent: Vec<TcpStream> =
        site.host.enter(|| (0..8).map(|_| TcpStream::connect("127.0.0.1:9750").expect("connect")).collect());
    assert!(fetch("/metrics").ends_with("200"));
    drop(silent);
}

#[test]
fn inspect_tells_what_a_container_sees() {
    let site = Site::new();
    let (web, db) = (
        site.container("web", Way::Attach, "172.18.0.10"),
        site.container("db", Way::PortAdd, "172.18.0.20"),
    );
    web.ping(&db);
    let seen = site.json(&["inspect", web.ns.name()]);
    assert_eq!(seen["ports"], serde_json::json!(["web"]), "{seen:#}");
    let device =
        seen["devices"].as_array().expect("devices").iter().find(|d| d["name"] == "eth0").expect("eth0");
    assert_eq!((device["port"].as_str(), device["mac"].as_str()), (Some("web"), Some(web.mac().as_str())));
    assert!(
        device["addresses"].as_array().expect("addresses").contains(&"172.18.0.10/16".into()),
        "{device:#}"
    );
    let default = seen["routes"]
        .as_array()
        .expect("routes")
        .iter()
        .find(|r| r["destination"] == "0.0.0.0/0")
        .expect("a default route");
    assert_eq!((default["via"].as_str(), default["device"].as_str()), (Some("172.18.0.1"), Some("eth0")));
    let neighbors = seen["neighbors"].as_array().expect("neighbors");
    let peer =
        neighbors.iter().find(|n| n["address"] == "172.18.0.20").expect("the neighbor that was pinged");
    assert_eq!(peer["mac"].as_str(), Some(db.mac().as_str()));
    // One whose interface was given by 'port add', by a process in it.
    let sleeper = db.ns.start(&["sleep", "60"], &site.file("sleep.log"));
    let comm = format!("/proc/{}/comm", sleeper.pid());
    wait_until("it is in there", s(5), || std::fs::read_to_string(&comm).is_ok_and(|comm| comm == "sleep\n"));
    let text = site.ctl(&["inspect", &sleeper.pid().to_string()]);
    for part in ["Ports      db", "172.18.0.20/16", "DEVICE", "NEIGHBOR"] {
        assert!(text.contains(part), "{text}");
    }
    // A namespace that is none of ours, and one that is not there.
    let stranger = Namespace::new();
    assert_eq!(site.json(&["inspect", stranger.name()])["ports"], serde_json::json!([]));
    let output = site.try_ctl(&["inspect", "no-such-namespace"]);
    assert_eq!(output.code(), 1);
    assert!(
        output.one_line_error().contains("no network namespace at /run/netns/no-such-namespace"),
        "{output:?}"
    );
}

#[test]
fn a_mirror_copies_both_ways_and_stays() {
    let mut site = Site::new();
    let (web, db) =
        (site.container("web", Way::PortAdd, "172.18.0.10"), site.container("db", Way::Tap, "172.18.0.20"));
    let probe = site.container("probe", Way::PortAdd, "172.18.0.30");
    web.ping(&db);
    site.ctl(&["mirror", "add", "web", "probe"]);
    assert_eq!(
        site.rows(&["mirror", "ls"]),
        [serde_json::json!({"kind": "port", "from": "web", "to": "probe", "ways": "both", "active": true})]
    );
    // A program that listens in on the probe's interface sees another container's conversation.
    let listen = |site: &Site, words: &dyn Fn()| {
        let file = site.file("probe.pcap");
        let _ = std::fs::remove_file(&file);
        let log = site.file("tcpdump.log");
        let _ = std::fs::remove_file(&log);
        let mut tcpdump = probe.ns.start(
            &["tcpdump", "--immediate-mode", "-i", "eth0", "-U", "-w", file.to_str().expect("UTF-8"), "icmp"],
            &log,
        );
        wait_until("tcpdump listens", s(5), || {
            std::fs::read_to_string(&log).unwrap_or_default().contains("listening on")
        });
        words();
        std::thread::sleep(ms(300)); // The last copy is on its way, or none is.
        tcpdump.signal(Signal::SIGTERM);
        tcpdump.wait(s(5));
        let seen = self::tcpdump(&file, "icmp");
        (seen.matches("ICMP echo request").count(), seen.matches("ICMP echo reply").count())
    };
    let ping = || _ = web.ns.run(&["ping", "-n", "-c2", "-i0.2", "-W2", "172.18.0.20"]).ok();
    assert_eq!(listen(&site, &ping), (2, 2));
    // One way only, and after a restart, which it survives.
    site.ctl(&["mirror", "add", "web", "probe", "--in"]);
    site.terminate();
    site.start();
    wait_until("the mirror is active", s(5), || {
        site.rows(&["mirror", "ls"]).iter().any(|m| m["active"] == true)
    });
    web.ping(&db); // MACs are learned anew: what is flooded comes to the probe by itself.
    assert_eq!(listen(&site, &ping), (2, 0));
    // Of a whole network each frame is seen once.
    site.ctl(&["mirror", "rm", "web", "probe"]);
    site.ctl(&["mirror", "add", "--network", "default", "probe"]);
    assert_eq!(listen(&site, &ping), (2, 2));
    site.ctl(&["mirror", "rm", "--network", "default", "probe"]);
    assert_eq!(listen(&site, &ping), (0, 0));
    for (words, part) in [
        (&["mirror", "add", "web", "web"][..], "cannot mirror itself"),
        (&["mirror", "add", "web", "nobody"], "nobody"),
        (&["mirror", "rm", "web", "probe"], "'swctl mirror ls'"),
    ] {
        let output = site.try_ctl(words);
        assert!(output.code() == 1 && output.one_line_error().contains(part), "{output:?}");
    }
    let status = site.json(&["status"]);
    let sum = ["forwarded", "answered", "drops"]
        .iter()
        .map(|k| status[*k].as_u64().expect("a number"))
        .sum::<u64>();
    assert_eq!(status["received"].as_u64(), Some(sum), "copies are not counted as frames that passed");
}

/// What swd logs when it is started with these variables, at a port that comes and goes.
fn logged(variables: &[(&str, &str)]) -> String {
    let mut site = Site::stopped();
    let more = ["--uplink".to_owned(), "none".to_owned()];
    let mut command = site.swd_command(site.name(), &site.runtime_dir(), &site.state_dir(), &more);
    command.env("SWD_LOG", "info").envs(variables.iter().copied());
    let mut swd = Background::start(&mut command, &site.file("own.log"));
    wait_until("swd answers", s(10), || site.try_ctl(&["status"]).code() == 0);
    site.ctl(&["network", "add", "other", "--subnet", "10.7.0.0/24"]);
    swd.signal(Signal::SIGTERM);
    assert_eq!(swd.wait(s(10)), Some(0));
    // The namespace and its keeper are the site's to clean up.
    site.start();
    swd.log()
}

#[test]
fn the_log_suits_the_journal_and_programs() {
    let log = logged(&[("JOURNAL_STREAM", "8:1")]);
    let line = log.lines().find(|l| l.contains("subject=\"other\"")).unwrap_or_else(|| panic!("{log}"));
    assert!(
        line.starts_with("<6>")
            && line.contains("kind=\"network-added\" subject=\"other\"")
            && !line.contains('\u{1b}'),
        "{line}"
    );
    let log = logged(&[("SWD_LOG_FORMAT", "json")]);
    let objects = log.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
    let event = objects.into_iter().find(|o| o["subject"] == "other").unwrap_or_else(|| panic!("{log}"));
    assert_eq!((event["level"].as_str(), event["subject"].as_str()), (Some("INFO"), Some("other")));
}

#[test]
fn top_draws_on_a_real_terminal_and_gives_it_back() {
    let site = Site::new();
    let _web = site.container("web", Way::PortAdd, "172.18.0.10");
    let swctl = tests::process::binary("swctl");
    let command =
        format!("stty rows 24 cols 80; {} --socket {} top", swctl.display(), site.socket().display());
    let mut script = std::process::Command::new("script");
    script
        .args(["-qfec", &command, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut script = script.spawn().expect("script");
    let mut out = script.stdout.take().expect("a pipe");
    let (sender, receiver) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(n) = out.read(&mut chunk) {
            if n == 0 || sender.send(chunk[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut seen = String::new();
    let mut look = |what: &str, done: &dyn Fn(&str) -> bool| {
        wait_until(what, s(15), || {
            while let Ok(bytes) = receiver.try_recv() {
                seen.push_str(&String::from_utf8_lossy(&bytes));
            }
            done(&seen)
        });
    };
    look("the port is on the screen", &|seen| seen.contains("web") && seen.contains("HISTORY"));
    let mut keys = script.stdin.take().expect("a pipe");
    keys.write_all(b"q").expect("a key");
    // The alternate screen is left.
    look("the terminal is given back", &|seen| seen.contains("\u{1b}[?1049l"));
    assert!(script.wait().expect("script ends").success());
    reader.join().expect("the reader");
    // Without a terminal it says so.
    let output = site.try_ctl(&["top"]);
    assert!(output.code() == 1 && output.one_line_error().contains("needs a terminal"), "{output:?}");
}
