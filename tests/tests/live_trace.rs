//! `swctl trace --live`: real packets, and what each stage decided about them.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use serde_json::Value;
use tests::outside::Outside;
use tests::process::{s, wait_until};
use tests::site::{Site, Way};

/// Begins a trace. When it runs is not told, so what it is to see has to be repeated.
fn trace(site: &Site, words: &[&str]) -> std::process::Child {
    let mut command = site.swctl_command(words);
    command.stdout(Stdio::piped()).spawn().expect("swctl")
}

fn lines(child: &mut std::process::Child) -> impl Iterator<Item = Value> {
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    stdout.lines().map(|line| serde_json::from_str(&line.expect("UTF-8")).expect("a JSON object a line"))
}

#[test]
fn real_packets_are_explained_as_they_pass() {
    let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
    let _wan = Outside::new(&site.host);
    site.start();
    let (web, db) =
        (site.container("web", Way::Attach, "172.18.0.10"), site.container("db", Way::Attach, "172.18.0.20"));
    web.ping(&db);

    // To a neighbor, with a filter, until there are enough; pings of others and to others are not among them.
    let mut child =
        trace(&site, &["trace", "web", "--live", "icmp and dst host 172.18.0.20", "-c", "3", "--json"]);
    wait_until("three pings are explained", s(10), || {
        web.ns.pings("172.16.0.1");
        db.ns.pings("172.18.0.10");
        web.ns.pings("172.18.0.20");
        child.try_wait().expect("wait").is_some()
    });
    let told: Vec<_> = lines(&mut child).collect();
    assert_eq!(told.len(), 3);
    for one in &told {
        let stages: Vec<_> =
            one["steps"].as_array().expect("steps").iter().map(|step| step["stage"].as_str()).collect();
        assert_eq!(stages, [Some("guard"), Some("learn"), Some("router"), Some("bridge")], "{one:#}");
        assert_eq!((&one["outcome"], &one["sent"][0]["to"]), (&"forwarded".into(), &"db".into()), "{one:#}");
    }

    // To the outside: what the translation makes of it; and the answers, at the uplink.
    let mut out = trace(&site, &["trace", "web", "--live", "host 172.16.0.1", "-c", "1", "--json"]);
    let mut back = trace(&site, &["trace", "uplink", "--live", "icmp", "-c", "1", "--json"]);
    wait_until("a ping and its answer are explained", s(10), || {
        web.ns.pings("172.16.0.1");
        out.try_wait().expect("wait").is_some() && back.try_wait().expect("wait").is_some()
    });
    let (out, back) = (lines(&mut out).next().expect("a line"), lines(&mut back).next().expect("a line"));
    let sent = out["sent"][0]["packet"].as_str().expect("its headers");
    assert!(out["packet"].as_str().expect("its headers").contains("172.18.0.10 >"), "{out:#}");
    assert!(sent.contains("172.16.0.2 > 172.16.0.1") && out["sent"][0]["to"] == "eth0", "{out:#}");
    assert_eq!((&back["outcome"], &back["sent"][0]["to"]), (&"forwarded".into(), &"web".into()), "{back:#}");

    // A drop, for people, with its reason; and the trace ends with its port.
    let mut child = trace(&site, &["trace", "web", "--live"]);
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let (sender, text) = mpsc::channel();
    let reader =
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let spoof = ["ping", "-c1", "-W1", "-I", "172.18.0.99", "172.18.0.20"];
    web.ns.run(&["ip", "address", "add", "172.18.0.99/32", "dev", "eth0"]).ok();
    wait_until("the drop is explained", s(10), || {
        web.ns.run(&spoof);
        text.try_iter().any(|line| line == "= dropped: spoofed-source")
    });
    site.ctl(&["detach", "web"]);
    assert!(child.wait().expect("wait").success(), "the end of the port is the trace's end");
    drop(text);
    drop(reader.join().expect("the reader"));

    for (words, code, part) in [
        (&["trace", "nobody", "--live"][..], 1, "neither a port nor an uplink named nobody"),
        (&["trace", "db", "--live", "tcp 80"], 2, "'80'"),
        (&["trace", "db", "arp 1.1.1.1 > 1.1.1.2", "--live"], 2, "cannot be used with"),
    ] {
        let output = site.try_ctl(words);
        assert_eq!(output.code(), code, "{output}");
        assert!(output.stderr.contains(part), "{output}");
    }
}
