//! Two workers: the kernel spreads flows over two sockets and over a TAP device's two queues, and all that one worker
//! does works.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use tests::for_each_port_kind;
use tests::netns::Namespace;
use tests::outside::Outside;
use tests::process::{s, wait_until};
use tests::site::{GATEWAY, Site, Way};
use tests::stream::tcp_echoes;

/// How often each worker was woken.
fn wakes(site: &Site) -> Vec<u64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", site.pid())).expect("swd runs").flatten();
    let mut workers: Vec<(String, u64)> = tasks
        .filter_map(|task| {
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let wakes = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"))?;
            name.starts_with("worker-").then(|| Some((name.clone(), wakes.trim().parse().ok()?)))?
        })
        .collect();
    workers.sort();
    workers.into_iter().map(|(_, wakes)| wakes).collect()
}

/// Answers each connection by `hello`.
fn greet(listener: TcpListener) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"hello");
        }
    });
}

fn greets(from: &Namespace, address: &str) -> bool {
    let Ok(mut stream) = from.tcp_connect(address, s(3)) else { return false };
    stream.set_read_timeout(Some(s(3))).expect("timeout");
    let mut said = String::new();
    stream.read_to_string(&mut said).is_ok() && said == "hello"
}

for_each_port_kind! {
    fn two_workers_share_the_work(way) {
        let mut site = Site::stopped();
        let wan = Outside::new(&site.host);
        fs::write(site.file("swd.toml"), "uplink = \"eth0\"\nworkers = 2\n").expect("write");
        let config = site.file("swd.toml").display().to_string();
        site = site.arguments(&["--config", &config]);
        site.start();
        assert_eq!(site.json(&["status"])["workers"], 2);
        let c1 = site.container("c1", way, "172.18.0.10");
        let c2 = site.container("c2", way, "172.18.0.20");
        c1.ping(&c2);
        c1.ns.ping(GATEWAY);
        c1.ns.ping("172.16.0.1");
        let before = wakes(&site);
        assert_eq!(before.len(), 2);

        // Flows of all kinds: to a neighbour, to the host, to the from the outside, from the host itself.
        greet(wan.tcp_listen("0.0.0.0:80"));
        greet(site.host.tcp_listen("0.0.0.0:81"));
        greet(c2.ns.tcp_listen("0.0.0.0:80"));
        site.ctl(&["publish", "8080", "172.18.0.20:80"]);
        let ways: [(&str, &Namespace, &str); 6] = [
            ("a neighbour", &c1.ns, "172.18.0.20:80"),
            ("the host", &c1.ns, "172.18.0.1:81"),
            ("the outside", &c1.ns, "172.16.0.1:80"),
            ("a published port from outside", &wan, "172.16.0.2:8080"),
            ("a published port from a container", &c1.ns, "172.16.0.2:8080"),
            ("a published port from the host", &site.host, "127.0.0.1:8080"),
        ];
        for (what, from, to) in ways {
            for n in 0..16 {
                assert!(greets(from, to), "{what}, connection {n}: {:?}", site.rows(&["drops"]));
            }
        }
        let after = wakes(&site);
        assert!(before.iter().zip(&after).all(|(b, a)| a > b), "a worker has slept all the time: {before:?} {after:?}");

        // Connections outlive a restart of the daemon where they need no state of its own.
        let listener = c2.ns.tcp_listen("0.0.0.0:90");
        site.kill();
        site.start();
        wait_until("the neighbour is reached again", s(10), || c1.ns.pings("172.18.0.20"));
        assert!(tcp_echoes(c1.ns.tcp_connect("172.18.0.20:90", s(5)), &listener));
        assert!(greets(&wan, "172.16.0.2:8080"), "a published port after a restart");
        if way == Way::Tap {
            site.ctl(&["detach", "c1"]);
            wait_until("a device of two queues ends with both", s(5), || c1.ns.links() == ["lo"]);
        }
    }
}
