//! Records what a real Docker engine and swd say to each other: the lines of `recorded/docker.jsonl`, which `docker_recorded.rs` plays
//! back.
//!
//! `cargo build --bins && cargo run -p tests --example record_docker -- tests/recorded/docker.jsonl` as root. To be run anew when
//! the engine is another one.

use std::env;
use std::fs;

use tests::docker::{Engine, IMAGE, plugins};
use tests::outside::unwatched;
use tests::process::{s, wait_until};
use tests::site::Site;

fn main() {
    let file = env::args().nth(1).expect("a file to write to");
    drop(fs::remove_file(&file));
    let mut site = Site::stopped();
    // swd's socket is elsewhere than where the engine looks: the relay stands between.
    let own = site.file("own").display().to_string();
    site = site.arguments(&["--uplink", "auto", "--docker", "--docker-plugins", &own]);
    let _wan = unwatched(&site.host);
    site.start();
    let socket = format!("{}.sock", site.name());
    fs::create_dir_all(plugins(&site)).expect("a folder");
    let listen = plugins(&site).join(&socket).display().to_string();
    let relay = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/exchanges.py");
    let _relay = site
        .host
        .start(&["python3", relay, &listen, &format!("{own}/{socket}"), &file], &site.file("relay.log"));
    wait_until("the relay listens", s(5), || fs::exists(&listen).unwrap_or(false));

    let mut engine = Engine::start(&site, &[]);
    engine.network("web", &["--subnet", "172.20.0.0/16", "--gateway", "172.20.0.254", "-o", "icc=false"]);
    engine.network("six", &["--subnet", "10.9.0.0/24", "--ipv6", "--subnet", "fd00:9::/64"]);
    engine.network("shut", &["--subnet", "10.10.0.0/24", "--internal"]);
    engine.network("any", &[]);
    let ipam = ["--ipam-driver", site.name(), "--subnet", "10.11.0.0/24", "--aux-address", "host=10.11.0.9"];
    engine.network("ours", &ipam);
    engine.serve("one", "web", &["-p", "5000:80", "-p", "6000-6003:60-63/udp", "--network-alias", "shop"]);
    engine.serve("two", "web", &["--ip", "172.20.0.77", "--mac-address", "02:42:ac:14:00:4d"]);
    engine.serve("three", "six", &[]);
    engine.docker(&["run", "-d", "--name", "four", "--network", "shut", IMAGE, "sleep", "1000"]);
    engine.docker(&["run", "-d", "--name", "five", "--network", "ours", IMAGE, "sleep", "1000"]);
    engine.docker(&["network", "connect", "--ip", "10.11.0.5", "ours", "three"]);
    engine.docker(&["network", "connect", "--alias", "till", "six", "one"]);
    engine.docker(&["network", "disconnect", "web", "two"]);
    engine.docker(&["network", "connect", "any", "two"]);
    // Refused: an address that is taken, a port that is taken, a subnet that overlaps.
    engine.try_docker(&["run", "--name", "late", "--network", "web", "--ip", "172.20.0.1", IMAGE, "true"]);
    engine.try_docker(&["run", "--name", "later", "--network", "web", "-p", "5000:80", IMAGE, "true"]);
    engine.try_docker(&["network", "create", "-d", site.name(), "--subnet", "10.9.0.0/16", "wide"]);
    engine.docker(&["restart", "-t", "0", "three"]);
    engine.stop_daemon();
    engine.start_daemon();
    engine.docker(&["start", "one"]);
    engine.docker(&["network", "inspect", "six"]);
    engine.remove(&["one", "two", "three", "four", "five", "late", "later"]);
    engine.docker(&["network", "rm", "web", "six", "shut", "any", "ours"]);
    let version = engine.docker(&["version", "--format", "{{.Server.Version}}"]);
    let lines = fs::read_to_string(&file).expect("what was recorded");
    let lines = lines.replace(&engine.exec_root().display().to_string(), "/var/run/docker");
    fs::write(&file, &lines).expect("write");
    println!("{} exchanges with Docker {version}", lines.lines().count());
}
