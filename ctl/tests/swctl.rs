//! The binary as scripts see it: exit codes, and what is on which stream. The servers are a thread each.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of tests for ordinary code")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use tempfile::TempDir;

fn swctl(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swctl"));
    command.env("SWD_SOCKET", socket).args(arguments).stdin(Stdio::null());
    command
}

fn run(socket: &Path, arguments: &[&str]) -> Output {
    swctl(socket, arguments).output().unwrap()
}

/// Asserts that a command failed with this code, one line on standard error and none on standard output.
fn assert_fails(output: &Output, code: i32, told: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.starts_with("error: ") && text.contains(told), "{text}");
    assert_eq!((text.lines().count(), output.stdout.len()), (1, 0), "{text}");
}

/// Answers each request with a status line and a body.
fn serve(status: &'static str, body: String) -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("swd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while head.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            // The client may have read enough before all is written.
            let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    (dir, socket)
}

fn drops(count: usize) -> String {
    let entry = r#"{"reason": "too-short", "count": 1, "help": "A frame below 14 bytes."}"#;
    format!("[{}]", vec![entry; count].join(","))
}

#[test]
fn no_daemon() {
    let socket = Path::new("/nonexistent/swd.sock");
    assert_fails(&run(socket, &["status"]), 1, "cannot reach swd at /nonexistent/swd.sock: no such file; ");
    // The option is stronger than the environment.
    assert_fails(&run(socket, &["status", "--socket", "/nonexistent/b"]), 1, "at /nonexistent/b: ");
}

#[test]
fn a_problem_is_one_line_even_where_the_reason_has_more() {
    let body =
        r#"{"type": "urn:swd:not-found", "title": "Not Found", "status": 404, "detail": "no port\n'web'"}"#;
    let (_dir, socket) = serve("404 Not Found", body.to_owned());
    assert_fails(&run(&socket, &["port", "show", "web"]), 1, "error: no port 'web'\n");
}

#[test]
fn a_bad_value_is_one_line() {
    let output = run(Path::new("/x"), &["network", "add", "blue", "--subnet", "10.0.0.0/40"]);
    assert_fails(
        &output,
        2,
        "'10.0.0.0/40' for '--subnet <CIDR>': not a subnet; write one like 172.18.0.0/16",
    );
}

#[test]
fn wrong_usage_and_help() {
    assert_eq!(run(Path::new("/x"), &["network", "add"]).status.code(), Some(2));
    let help = run(Path::new("/x"), &["--help"]);
    assert!(help.status.success() && help.stderr.is_empty());
    assert!(String::from_utf8_lossy(&help.stdout).contains("Exit status: "));
}

#[test]
fn tables_and_json() {
    let (_dir, socket) = serve("200 OK", drops(1));
    let table = run(&socket, &["drops"]);
    assert_eq!(
        String::from_utf8_lossy(&table.stdout),
        "COUNT  REASON     HELP\n    1  too-short  A frame below 14 bytes.\n"
    );
    let json = run(&socket, &["drops", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json, serde_json::from_str::<serde_json::Value>(&drops(1)).unwrap());
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    // Far more than a pipe holds.
    let (_dir, socket) = serve("200 OK", drops(20_000));
    let mut child = swctl(&socket, &["drops"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::with_capacity(64, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "COUNT  REASON     HELP\n");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn events_end_with_their_reader_though_nothing_happens() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("swd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut child = swctl(&socket, &["events"]).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn events_end_with_the_daemon() {
    for end in ["0\r\n\r\n", ""] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("swd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let child =
            swctl(&socket, &["events"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{end}").unwrap();
        drop(stream);
        assert_fails(&child.wait_with_output().unwrap(), 1, "swd ended the stream of events");
    }
}

#[test]
fn full_standard_output() {
    let (_dir, socket) = serve("200 OK", drops(1));
    let full = fs::File::create("/dev/full").unwrap();
    let child = swctl(&socket, &["drops"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    assert_fails(&child.wait_with_output().unwrap(), 1, "cannot write to standard output: No space left");
}

#[test]
fn a_configuration_is_checked_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("swd.toml");
    fs::write(&file, "workers = 1\n").unwrap();
    let path = file.to_str().unwrap();
    let output = run(Path::new("/x"), &["config", "check", path]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{path}: no mistake found\n"));
    fs::write(&file, "workers = 1\n  workrs = 2\n").unwrap();
    assert_fails(&run(Path::new("/x"), &["config", "check", path]), 1, &format!("{path}:2:3: unknown field"));
    assert_fails(&run(Path::new("/x"), &["config", "check", "/nonexistent"]), 1, "/nonexistent");
}

#[test]
fn completions_and_manual() {
    for (arguments, text) in [
        (&["completions", "bash"][..], "complete -F _swctl"),
        (&["completions", "fish"], "complete -c swctl"),
        (&["man"], ".TH swctl 1"),
        (&["man", "fdb", "flush"], ".TH swctl-fdb-flush 1"),
    ] {
        let output = run(Path::new("/x"), arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(text), "{arguments:?}");
    }
    assert_fails(&run(Path::new("/x"), &["man", "eat"]), 1, "no command 'eat'");
}
