//! The comparison runs, measures, and leaves nothing behind. How fast anything is, is not looked at.

use std::process::Command;

use serde_json::Value;
use tests::process::{require, run, s};
use tests::site::heavy;

/// Runs a program of this package: its status, and what it said.
fn program(path: &str, arguments: &[&str]) -> (bool, String) {
    let output = run(Command::new(path).args(arguments), s(120));
    (output.status.success(), format!("{output}"))
}

fn json(path: &std::path::Path) -> Value {
    let text = std::fs::read_to_string(path).expect("a report");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn compare_measures_swd_and_a_cable() {
    require();
    let _alone = heavy();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = dir.path().to_str().expect("UTF-8");
    let words = ["--only", "veth,swd", "--rounds", "1", "--seconds", "0.2", "--flows", "640", "--out", out];
    let (well, said) = program(env!("CARGO_BIN_EXE_compare"), &words);
    assert!(well, "{said}");
    let report = json(&dir.path().join("compare.json"));
    let samples = report["samples"].as_array().expect("samples");
    let failed: Vec<_> = samples.iter().filter(|s| !s["error"].is_null()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    for (rival, road, load, figure) in [
        ("veth", "c2c", "tcp1", "gbit_s"),
        ("swd-veth", "c2c", "udp", "received"),
        ("swd-tap", "out", "crr", "per_s"),
        ("swd-veth", "pub", "rtt", "p50_us"),
        ("swd-tap", "local", "tcp1", "gbit_s"),
        ("swd-veth", "out", "flows", "answered"),
    ] {
        let sample = samples.iter().find(|s| s["rival"] == rival && s["road"] == road && s["load"] == load);
        let value = sample.and_then(|s| s["figures"][figure].as_f64());
        assert!(value.is_some_and(|v| v > 0.0), "{rival} {road} {load}: {sample:?}");
    }
    let table = std::fs::read_to_string(dir.path().join("compare.md")).expect("a table");
    assert!(table.contains("### TCP, one stream") && table.contains("swd-tap"), "{table}");
    let plot = std::fs::read_to_string(dir.path().join("compare-c2c.svg")).expect("a plot");
    assert!(plot.starts_with("<svg") && plot.contains("swd-veth"), "{plot}");
}

#[test]
fn what_a_rival_cannot_do_is_told() {
    require();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = dir.path().to_str().expect("UTF-8");
    let (well, said) = program(env!("CARGO_BIN_EXE_compare"), &["--only", "nobody", "--out", out]);
    assert!(!well && said.contains("error: --only names no rival"), "{said}");
}

#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    require();
    let _alone = heavy();
    // In a namespace of mounts of its own, all that is left in /run/netns is the run's. And of processes: swd's keeper looks for
    // the mounts from which swd was started, among its parents, and would pin the switch namespace there as well.
    let shell = "mount -t tmpfs none /run/netns && \
                 { timeout -s INT 3 \"$0\" --only swd --rounds 1 --seconds 1 --out /dev/null; code=$?; \
                   echo code $code; ls -A /run/netns; }";
    let allowed = || std::fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control").ok();
    let before = allowed();
    let words = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", shell];
    let output = run(Command::new("unshare").args(words).arg(env!("CARGO_BIN_EXE_compare")), s(120));
    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!(lines, ["code 124"], "{output}");
    assert!(output.stderr.contains("error: interrupted"), "{output}");
    assert_eq!(allowed(), before);
}

#[test]
fn strain_measures_each_trial() {
    require();
    let _alone = heavy();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = dir.path().to_str().expect("UTF-8");
    let (well, said) = program(env!("CARGO_BIN_EXE_strain"), &["--quick", "--seconds", "0.3", "--out", out]);
    assert!(well, "{said}");
    let report = json(&dir.path().join("strain.json"));
    let tables = report["tables"].as_array().expect("tables");
    assert_eq!(tables.len(), 5);
    for table in tables {
        assert!(table["failed"].is_null(), "{}: {}", table["title"], table["failed"]);
        for row in table["rows"].as_array().expect("rows") {
            let figures = row["rounds"][0].as_object().expect("figures");
            assert!(figures.values().all(Value::is_f64), "{row}");
        }
    }
    let flood = &tables[1]["rows"][1]["rounds"][0]["flood_per_s"];
    assert!(flood.as_f64().is_some_and(|n| n > 1000.0), "{flood}");
    let text = std::fs::read_to_string(dir.path().join("strain.md")).expect("a report");
    assert!(text.contains("## Gaps of a restart") && text.contains("| `--replace` |"), "{text}");
}
