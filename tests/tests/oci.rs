//! `swctl attach` as the hook of an OCI runtime: runc.

use std::fs;
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::enclosure::{Groups, busybox};
use tests::process::{TIMEOUT, binary, run, s, wait_until};
use tests::site::Site;

#[test]
fn a_hook_attaches_what_runc_starts() {
    let site = Site::new();
    let dir = TempDir::with_prefix("swd-runc-").expect("a temporary folder");
    busybox(dir.path());
    let group = format!("{}-runc", site.name());
    let _groups = Groups(group.clone());
    let runc = |words: &[&str]| {
        let mut command = site.host.command(&["runc", "--root"]);
        command.arg(dir.path().join("state")).args(words).current_dir(dir.path());
        run(&mut command, TIMEOUT).ok()
    };
    runc(&["spec"]);
    let path = dir.path().join("config.json");
    let text = fs::read_to_string(&path).expect("runc's specification");
    let mut spec: Value = serde_json::from_str(&text).expect("JSON");
    spec["root"]["path"] = json!("root");
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] =
        json!(["sh", "-c", "ip -o addr show eth0; ip route; nc -w 3 172.18.0.1 7 </dev/null && echo open"]);
    spec["linux"]["cgroupsPath"] = json!(format!("/{group}"));
    // As docs/cni.md has it.
    let attach = format!(
        "exec {} --socket {} attach $(grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*') --ip 172.18.0.66",
        binary("swctl").display(),
        site.socket().display()
    );
    spec["hooks"] = json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", attach], "env": ["PATH=/usr/bin:/bin"] }] });
    fs::write(&path, spec.to_string()).expect("write");
    let listener = site.host.tcp_listen("172.18.0.1:7");
    // One client, who is hung up on.
    let server = thread::spawn(move || drop(listener.accept()));
    let out = runc(&["run", &group]);
    server.join().expect("the client came");
    for part in ["172.18.0.66/16", "default via 172.18.0.1", "open"] {
        assert!(out.stdout.contains(part), "{part}: {out}");
    }
    wait_until("the port ends with the container", s(10), || {
        site.rows(&["port", "ls"]).iter().all(|p| p["kind"] == "host")
    });
}
