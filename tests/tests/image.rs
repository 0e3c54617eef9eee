//! swd in a container of its own, from the image that `make image` makes: it serves the host and the other containers.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use tests::containers::Containers;
use tests::docker::{Engine, IMAGE};
use tests::netns::Namespace;
use tests::outside::Outside;
use tests::process::{TIMEOUT, binary, run, s, wait_for_answer, wait_until};
use tests::site::Site;

/// As docs/operations.md has it.
const PLACES: [&str; 12] = [
    "--network",
    "host",
    "--pid",
    "host",
    "-v",
    "/run/swd:/run/swd",
    "-v",
    "/run/netns:/run/netns:rshared",
    "-v",
    "swd-state:/var/lib/swd",
    "-v",
    "/run/docker/plugins:/run/docker/plugins",
];
const CAPABILITIES: [&str; 12] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETPCAP",
    "SYS_ADMIN",
    "SYS_CHROOT",
    "SYS_NICE",
    "SYS_PTRACE",
];

/// Builds the image, of the binaries that cargo built.
fn build(engine: &Engine) {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../switch/image");
    let root = TempDir::with_prefix("swd-image-").expect("a temporary folder");
    let mut stage = Command::new(recipe.join("stage.sh"));
    stage.arg(root.path()).args(["swd", "swctl", "swd-cni"].map(binary));
    run(&mut stage, TIMEOUT).ok();
    let file = recipe.join("Containerfile");
    let [file, root] = [&file, root.path()].map(|p| p.to_str().expect("UTF-8"));
    engine.docker(&["build", "-t", "swd", "-f", file, root]);
}

/// A host without swd, but with an engine that has the image.
fn world() -> (Site, Outside, Engine) {
    let site = Site::stopped();
    let wan = Outside::new(&site.host);
    let engine = Engine::start(&site, &[]);
    // As systemd has it on a machine: mounts below /run are seen by containers that ask for it, and theirs are seen here.
    engine.run_beside(&["mount", "--make-rshared", "/"]).ok();
    engine.run_beside(&["mkdir", "-p", "/run/swd", "/run/netns"]).ok();
    build(&engine);
    (site, wan, engine)
}

/// A process id as the engine's process namespace has it, which swd shares.
fn pid(engine: &Engine, container: &str) -> String {
    engine.inspect(container)["State"]["Pid"].to_string()
}

#[track_caller]
fn ctl(engine: &Engine, words: &[&str]) -> String {
    engine.try_exec("swd", &[&["swctl"], words].concat()).ok().stdout
}

fn serves_the_host(privileges: &[&str]) {
    let (site, wan, engine) = world();
    let command = ["run", "-d", "--name", "swd"];
    engine.docker(&[&command, &PLACES[..], privileges, &["swd", "--docker"]].concat());
    let ready = || engine.docker(&["logs", "swd"]).lines().filter(|l| *l == "ready").count();
    wait_until("swd is ready", s(20), || {
        let running = engine.inspect("swd")["State"]["Running"] == true;
        assert!(running, "swd has ended: {}", engine.try_docker(&["logs", "swd"]));
        ready() == 1
    });
    let serve = |name: &str| {
        engine.serve(name, "none", &[]);
        ctl(&engine, &["attach", &pid(&engine, name), "--name", name]);
    };
    serve("web");
    serve("db");
    ctl(&engine, &["publish", "5000", "172.18.0.2:80"]);
    let works = |from: &str| {
        assert!(engine.pings("web", "172.18.0.3") && engine.pings("web", "172.16.0.1"), "{from}");
        for ns in [&wan as &Namespace, &site.host] {
            wait_for_answer("I am web", || ns.http("172.16.0.2:5000"));
        }
        wait_for_answer("I am web", || site.host.http("127.0.0.1:5000"));
    };
    works("at first");
    // Named namespaces of the host, those that were made later among them, and Docker's own networks.
    engine.run_beside(&["ip", "netns", "add", "later"]).ok();
    ctl(&engine, &["attach", "later"]);
    engine.run_beside(&["ip", "netns", "exec", "later", "ping", "-c1", "-W1", "172.18.0.1"]).ok();
    engine.run_beside(&["ip", "netns", "exec", "swd", "ip", "link", "show", "later.p"]).ok();
    engine.docker(&["network", "create", "-d", "swd", "--subnet", "172.20.0.0/16", "net"]);
    engine.docker(&["run", "--rm", "--network", "net", IMAGE, "ping", "-c1", "-W1", "172.16.0.1"]);
    // Everything it knows is outside of the container.
    engine.docker(&["restart", "swd"]);
    wait_until("swd is ready again", s(20), || ready() == 2);
    works("restarted");
    engine.docker(&["rm", "-f", "swd"]);
    engine.docker(&[&command, &PLACES[..], privileges, &["swd", "--docker"]].concat());
    wait_until("another one is ready", s(20), || ready() == 1);
    works("in another container");
    engine.run_beside(&["ip", "netns", "del", "later"]).ok();
    engine.remove(&["web", "db"]);
    engine.docker(&["network", "rm", "net"]);
    engine.docker(&["rm", "-f", "swd"]);
}

/// With `--privileged` there are more rights, and nothing else is different; machines that have given up some of their own cannot
/// start such a container.
#[test]
fn a_container_with_no_more_than_it_needs_serves_the_host() {
    let added = CAPABILITIES.iter().flat_map(|name| ["--cap-add", name]);
    let open = ["seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined"];
    let open = open.into_iter().flat_map(|what| ["--security-opt", what]);
    let options: Vec<_> = ["--cap-drop", "ALL"].into_iter().chain(open).chain(added).collect();
    serves_the_host(&options);
}
