//! What cannot be done is refused: in one line that says what to do, with exit code 1 or 2, and nothing has changed.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::netns::{Namespace, veth};
use tests::process::{Output, TIMEOUT, binary, copy_program, run, s};
use tests::site::{Site, Way};

/// Runs swctl, which must refuse with a line that has all of `words` in it, and change nothing.
#[track_caller]
fn refuses(site: &Site, command: &[&str], words: &[&str]) {
    let before = site.desired();
    let links = (site.host.links(), site.switch().links());
    let error = site.try_ctl(command).one_line_error();
    for word in words {
        assert!(error.contains(word), "swctl {command:?}: no '{word}' in: {error}");
    }
    assert!(error.len() < 400, "swctl {command:?}: too long: {error}");
    assert_eq!(before, site.desired(), "swctl {command:?} changed something");
    assert_eq!(links, (site.host.links(), site.switch().links()), "swctl {command:?} changed interfaces");
}

#[test]
fn interfaces() {
    let site = Site::new();
    let peer = Namespace::new();
    veth(("v1", &site.host), ("eth0", &peer));
    refuses(&site, &["port", "add", "nosuch0"], &["nosuch0"]);
    refuses(&site, &["port", "add", "v1", "--network", "nowhere"], &["nowhere"]);
    refuses(&site, &["port", "add", "lo"], &["lo"]);
    refuses(&site, &["port", "add", "sw0"], &["sw0"]);
    site.ctl(&["port", "add", "v1"]);
    refuses(&site, &["port", "add", "v1"], &["v1"]);
    veth(("v2", &site.host), ("eth1", &peer));
    refuses(&site, &["port", "add", "v2", "--name", "v1"], &["v1"]);
    refuses(&site, &["port", "rm", "nosuch"], &["nosuch"]);
    refuses(&site, &["port", "show", "nosuch"], &["nosuch"]);
    refuses(&site, &["detach", "nosuch"], &["nosuch"]);

    // An interface that another instance on the same host has.
    let name = tests::netns::unique_name();
    let folders = (site.file("run2"), site.file("state2"));
    let config = site.file("other.toml");
    fs::write(&config, "[network.default]\nsubnets = [\"172.28.0.0/16\"]\n").expect("write");
    let more = ["--uplink", "none", "--config", config.to_str().expect("UTF-8")].map(str::to_owned);
    let mut command = site.swd_command(&name, &folders.0, &folders.1, &more);
    let log = site.file("swd2.log");
    let other = tests::process::Background::start(&mut command, &log);
    let _namespace = Namespace::adopt(&name);
    tests::process::wait_until("the second swd is ready", s(10), || {
        let log = other.log();
        assert!(!log.contains("error: "), "{log}");
        log.lines().any(|l| l == "ready")
    });
    let socket = folders.0.join(format!("{name}.sock"));
    let swctl = |words: &[&str]| {
        let mut command = site.host.command(&[binary("swctl").to_str().expect("UTF-8"), "--socket"]);
        run(command.arg(&socket).args(words), TIMEOUT)
    };
    let error = swctl(&["port", "add", "v1"]).one_line_error();
    assert!(error.contains("v1") && error.contains(site.name()), "{error}");
    // What one of them has is not taken along when the other one ends.
    swctl(&["port", "add", "v2"]).ok();
    refuses(&site, &["port", "add", "v2"], &["v2"]);
}

#[test]
fn networks() {
    let site = Site::new();
    let add = |name: &str, more: &[&str], words: &[&str]| {
        let mut command = vec!["network", "add", name];
        command.extend(more);
        refuses(&site, &command, words);
    };
    add("n1", &["--subnet", "172.19.0.0"], &["172.19.0.0"]);
    add("n1", &["--subnet", "172.19.0.0/33"], &["172.19.0.0/33"]);
    add("n1", &["--subnet", "bogus"], &["bogus"]);
    add("n1", &["--subnet", "172.19.5.0/16"], &["172.19.0.0/16"]);
    add("n1", &["--subnet", "172.18.4.0/24"], &["172.18.4.0/24", "default"]);
    add("n1", &["--subnet", "172.16.0.0/12"], &["default"]);
    add("n1", &["--subnet", "172.19.0.0/16", "--gateway", "172.20.0.1"], &["172.20.0.1"]);
    add("n1", &["--subnet", "172.19.0.0/16", "--gateway", "172.19.255.255"], &["172.19.255.255"]);
    add("n1", &["--subnet", "172.19.0.0/31"], &["172.19.0.0/31"]);
    add("n1", &["--subnet", "224.0.0.0/16"], &["224.0.0.0/16"]);
    add("n1", &["--subnet", "172.19.0.0/16", "--subnet", "172.20.0.0/16"], &["172.20.0.0/16"]);
    add("n1", &["--subnet", "172.19.0.0/16", "--mtu", "100"], &["100"]);
    add("n1", &["--subnet", "172.19.0.0/16", "--mtu", "70000"], &["70000"]);
    add("default", &["--subnet", "172.19.0.0/16"], &["default"]);
    for name in ["a/b", "../../etc/passwd", "", ".", "a b", "a\nb", "-x", "é", &"n".repeat(300)] {
        // An option to clap's eyes: after `--` it is a name.
        refuses(&site, &["network", "add", "--subnet", "172.19.0.0/16", "--", name], &[]);
    }
    refuses(&site, &["network", "rm", "nosuch"], &["nosuch"]);
    refuses(&site, &["network", "show", "nosuch"], &["nosuch"]);
    // Not while somebody is in it.
    let c1 = site.container("c1", Way::Attach, "172.18.0.10");
    refuses(&site, &["network", "rm", "default"], &["default"]);
    c1.ns.ping(tests::site::GATEWAY);
    // The subnet of a route of the host's.
    let peer = Namespace::new();
    veth(("lan0", &site.host), ("eth0", &peer));
    site.host.ip(&["addr", "add", "10.99.0.1/24", "dev", "lan0"]);
    add("n1", &["--subnet", "10.99.0.0/16"], &["10.99.0.0/24", "lan0"]);
}

#[test]
fn names_of_ports() {
    let site = Site::new();
    let ns = Namespace::new();
    let peer = Namespace::new();
    veth(("v1", &site.host), ("eth0", &peer));
    for name in ["a/b", "../x", "", ".", "a b", "a\tb", "é", &"n".repeat(300)] {
        refuses(&site, &["attach", ns.name(), "--name", name], &[]);
        refuses(&site, &["port", "add", "v1", "--name", name], &[]);
        refuses(&site, &["port", "add", "--", name], &[]);
        refuses(&site, &["run", "--name", name, "--", "true"], &[]);
    }
    refuses(&site, &["attach", ns.name(), "--ifname", &"e".repeat(300)], &[]);
    refuses(&site, &["attach", ns.name(), "--ifname", "a/b"], &[]);
    assert_eq!(ns.links(), ["lo"]);
}

#[test]
fn attachments() {
    let site = Site::new();
    let ns = Namespace::new();
    refuses(&site, &["attach", "nosuch-namespace"], &["nosuch-namespace"]);
    refuses(&site, &["attach", "/etc/passwd"], &["/etc/passwd"]);
    refuses(&site, &["attach", "999999999"], &["999999999"]);
    refuses(&site, &["attach", ns.name(), "--ip", "172.19.0.10"], &["172.19.0.10"]);
    refuses(&site, &["attach", ns.name(), "--ip", "172.18.0.1"], &["172.18.0.1"]);
    refuses(&site, &["attach", ns.name(), "--ip", "172.18.255.255"], &["172.18.255.255"]);
    refuses(&site, &["attach", ns.name(), "--ip", "bogus"], &["bogus"]);
    refuses(&site, &["attach", ns.name(), "--ip", "fd00::1"], &["fd00::1"]);
    refuses(&site, &["attach", ns.name(), "--network", "nowhere"], &["nowhere"]);
    refuses(&site, &["attach", ns.name(), "--ifname", "lo"], &["lo"]);
    for tap in [&[][..], &["--tap"]] {
        let c1 = site.container("c1", Way::Attach, "172.18.0.10");
        let mut words = vec!["attach", ns.name(), "--name", "c2", "--ip", "172.18.0.10"];
        words.extend(tap);
        refuses(&site, &words, &["172.18.0.10"]);
        let mut words = vec!["attach", ns.name(), "--name", "c1"];
        words.extend(tap);
        refuses(&site, &words, &["c1"]);
        // The container has an interface of that name already.
        let mut words = vec!["attach", c1.ns.name(), "--name", "c3"];
        words.extend(tap);
        refuses(&site, &words, &["eth0"]);
        c1.ns.ping(tests::site::GATEWAY);
        site.ctl(&["detach", "c1"]);
    }
    assert_eq!(ns.links(), ["lo"], "something was left behind");
    // And now that nothing is in the way, it works.
    site.ctl(&["attach", ns.name(), "--ip", "172.18.0.10"]);
    ns.ping(tests::site::GATEWAY);
}

#[test]
fn mac_table() {
    let site = Site::new();
    let _c1 = site.container("c1", Way::Attach, "172.18.0.10");
    refuses(&site, &["fdb", "add", "02:00:00:00:00:01", "nosuch"], &["nosuch"]);
    for mac in ["bogus", "02:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
        refuses(&site, &["fdb", "add", mac, "c1"], &[mac]);
    }
    refuses(&site, &["fdb", "rm", "02:00:00:00:00:01"], &["02:00:00:00:00:01"]);
    let network = site.row(&["network", "ls"], "name", "default").expect("default");
    let gateway = network["gateway_mac"].as_str().expect("a MAC");
    refuses(&site, &["fdb", "add", gateway, "c1"], &[gateway]);
    refuses(&site, &["fdb", "flush", "--port", "nosuch"], &["nosuch"]);
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let site = Site::new();
    for words in [
        &[][..],
        &["nosuch"],
        &["port"],
        &["port", "add"],
        &["attach"],
        &["run", "--"],
        &["status", "--nosuch"],
    ] {
        let out = site.try_ctl(words);
        assert_eq!(out.code(), 2, "{out}");
        assert!(!out.stderr.is_empty(), "{out}");
    }
    let out = run(Command::new(binary("swd")).arg("--nosuch"), TIMEOUT);
    assert_eq!(out.code(), 2, "{out}");
}

#[test]
fn no_daemon() {
    let site = Site::stopped();
    for words in [&["status"][..], &["port", "ls"], &["run", "--", "true"], &["attach", "x"]] {
        let error = site.try_ctl(words).one_line_error();
        assert!(error.contains(site.socket().to_str().expect("UTF-8")), "{error}");
    }
}

/// What swd says when it does not start, which must be one line and exit code 1 or 2.
fn swd_refuses(command: &mut Command) -> String {
    let out = run(command, s(15));
    let error =
        Output { stderr: out.stderr.lines().filter(|l| l.starts_with("error: ")).collect(), ..out.clone() };
    let line = error.one_line_error();
    // Log lines may stand before it, but the last word is the error.
    assert_eq!(out.stderr.lines().last(), Some(line.as_str()), "{out}");
    assert!(!out.stdout.contains("ready"), "{out}");
    line
}

#[test]
fn configuration_with_line_and_column() {
    let site = Site::stopped();
    let path = site.file("bad.toml");
    let file = path.to_str().expect("UTF-8");
    let cases: [(&[u8], &str); 8] = [
        (b"uplink = \"none\"\nworkers = \n", "bad.toml:2:11"),
        (b"uplink = \"none\"\n\n[fdb]\n  agin_s = 5\n", "bad.toml:4:3"),
        (b"workers = \"two\"\n", "bad.toml:1:11"),
        (b"workers = 0\n", "bad.toml:1:11"),
        (b"[network.n1]\nsubnets = [\"172.19.0.0/33\"]\n", "bad.toml:2:"),
        (b"[network.n1]\nsubnets = [\"172.18.0.0/24\"]\n", "n1"),
        (b"[network.n1]\nsubnets = [\"172.19.0.0/16\"]\ngateways = [\"172.20.0.1\"]\n", "172.20.0.1"),
        (b"# comment\nuplink = \"\xff\"\n", "bad.toml"),
    ];
    for (text, want) in cases {
        fs::write(&path, text).expect("write");
        let shown = String::from_utf8_lossy(text);
        let error = site.try_ctl(&["config", "check", file]).one_line_error();
        assert!(error.contains(want), "no '{want}' in: {error}\nfor: {shown}");
        let mut swd = site.swd_command(
            site.name(),
            &site.runtime_dir(),
            &site.state_dir(),
            &["--config".into(), file.into()],
        );
        let error = swd_refuses(&mut swd);
        assert!(error.contains(want), "no '{want}' in: {error}\nfor: {shown}");
    }
    for missing in ["/nonexistent/swd.toml", "/proc/self/mem", "/tmp"] {
        let error = site.try_ctl(&["config", "check", missing]).one_line_error();
        assert!(error.contains(missing), "{error}");
    }
    assert!(!site.switch().exists(), "a switch namespace was made");
    fs::write(&path, "uplink = \"none\"\nworkers = 2\n[fdb]\naging_s = 60\n").expect("write");
    site.ctl(&["config", "check", file]);
}

#[test]
fn the_shipped_configuration_is_right() {
    let site = Site::stopped();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/swd.toml");
    site.ctl(&["config", "check", shipped.to_str().expect("UTF-8")]);
}

#[test]
fn a_name_that_is_taken() {
    let site = Site::new();
    let c1 = site.container("c1", Way::Attach, "172.18.0.10");
    let none = ["--uplink".to_owned(), "none".to_owned()];
    // Whether the second one shares the folders of the first or not: the name is taken.
    for (runtime, state) in [(site.runtime_dir(), site.state_dir()), (site.file("run2"), site.file("state2"))]
    {
        let error = swd_refuses(&mut site.swd_command(site.name(), &runtime, &state, &none));
        assert!(error.contains(site.name()), "{error}");
    }
    site.ctl(&["status"]);
    c1.ns.ping(tests::site::GATEWAY);
}

#[test]
fn names_of_instances() {
    let site = Site::stopped();
    for name in ["a/b", "..", "", &"n".repeat(300)] {
        swd_refuses(&mut site.swd_command(name, &site.runtime_dir(), &site.state_dir(), &[]));
    }
    let error = swd_refuses(&mut site.swd_command(
        site.name(),
        &site.runtime_dir(),
        &site.state_dir(),
        &["--uplink".into(), "nosuch0".into()],
    ));
    assert!(error.contains("nosuch0"), "{error}");
}

#[test]
fn without_privileges() {
    let site = Site::stopped();
    fs::set_permissions(site.file(""), fs::Permissions::from_mode(0o755)).expect("chmod");
    for folder in [site.runtime_dir(), site.state_dir()] {
        fs::create_dir_all(&folder).expect("mkdir");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("chmod");
    }
    // The binary where anybody may read it: the workspace may be in root's home.
    let swd = site.file("swd");
    copy_program(&binary("swd"), &swd);
    let drop_all =
        ["setpriv", "--reuid", "65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
    let mut command = site.host.command(&drop_all);
    command.arg(swd).args(["--name", site.name(), "--runtime-dir"]).arg(site.runtime_dir());
    command.arg("--state-dir").arg(site.state_dir());
    let error = swd_refuses(&mut command);
    assert!(error.contains("CAP_NET_ADMIN") || error.contains("CAP_SYS_ADMIN"), "{error}");

    // Root, but one capability short.
    let drop_raw = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"];
    let mut command = site.host.command(&drop_raw);
    command
        .arg(binary("swd"))
        .args(["--name", site.name(), "--uplink", "none", "--runtime-dir"])
        .arg(site.runtime_dir());
    command.arg("--state-dir").arg(site.state_dir());
    let error = swd_refuses(&mut command);
    assert!(error.contains("CAP_NET_RAW"), "{error}");
    assert!(!site.switch().exists(), "the switch namespace was left behind");
}

#[test]
fn other_users_are_kept_out() {
    let site = Site::new();
    // Let them come as far as the socket, if the daemon let them.
    fs::set_permissions(site.file(""), fs::Permissions::from_mode(0o755)).expect("chmod");
    let swctl = site.file("swctl");
    copy_program(&binary("swctl"), &swctl);
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&swctl)
        .arg("--socket")
        .arg(site.socket());
    let error = run(command.args(["network", "rm", "default"]), TIMEOUT).one_line_error();
    assert!(error.to_lowercase().contains("permission") || error.contains("root"), "{error}");
    assert!(site.row(&["network", "ls"], "name", "default").is_some());
}

#[test]
fn a_group_of_the_configuration_may_come_in() {
    let site = Site::with_config("[api]\ngroup = \"nogroup\"\n");
    fs::set_permissions(site.file(""), fs::Permissions::from_mode(0o755)).expect("chmod");
    let swctl = site.file("swctl");
    copy_program(&binary("swctl"), &swctl);
    let as_user = |user: &str, group: &str| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", user, "--regid", group, "--clear-groups"])
            .arg(&swctl)
            .arg("--socket")
            .arg(site.socket());
        run(command.arg("status"), TIMEOUT)
    };
    as_user("65534", "65534").ok();
    let _ = as_user("65533", "65533").one_line_error();
}

/// Sends bytes to the API and gives what comes back until swd closes.
fn talk(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).expect("connect");
    stream.set_read_timeout(Some(s(5))).expect("timeout");
    stream.write_all(request).expect("send");
    drop(stream.shutdown(std::net::Shutdown::Write));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

fn problem(out: &Output, status: u64) -> Value {
    let (head, body) = out.stdout.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {out}"));
    assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{out}");
    assert!(head.to_lowercase().contains("content-type: application/problem+json"), "{out}");
    let problem: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {out}"));
    assert_eq!(problem["status"], status, "{problem}");
    for key in ["type", "title", "detail"] {
        assert!(
            problem[key].as_str().is_some_and(|t| !t.is_empty() && !t.contains('\n')),
            "{key}: {problem}"
        );
    }
    problem
}

#[test]
fn the_api_answers_mistakes_with_problems() {
    let site = Site::new();
    let before = site.desired();
    let socket = site.socket();
    let curl = |words: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-sSi", "--max-time", "5", "--unix-socket"]).arg(&socket).args(words);
        run(&mut command, TIMEOUT).ok()
    };
    let json = "content-type: application/json";
    let url = |path: &str| format!("http://swd/v1/{path}");
    let not_found = problem(&curl(&[&url("nosuch")]), 404);
    assert_eq!(not_found["type"], "urn:swd:not-found");
    problem(&curl(&["http://swd/"]), 404);
    problem(&curl(&[&url("ports/nosuch")]), 404);
    problem(&curl(&["-X", "DELETE", &url("networks/nosuch")]), 404);
    problem(&curl(&["-X", "PATCH", &url("ports")]), 405);
    for bad in
        ["{", "[]", "null", "{\"name\": 5}", "\"text\"", "{\"name\": \"x\", \"subnets\": [\"nonsense\"]}"]
    {
        let out = curl(&["-H", json, "-d", bad, &url("networks")]);
        let status = if out.stdout.starts_with("HTTP/1.1 422") { 422 } else { 400 };
        assert_eq!(problem(&out, status)["type"], "urn:swd:invalid", "{bad}");
    }
    let typo = r#"{"name": "n1", "subnets": ["172.19.0.0/16"], "no_such_key": 1}"#;
    let out = curl(&["-H", json, "-d", typo, &url("networks")]);
    assert!(out.stdout.contains("no_such_key"), "{out}");
    let overlap = r#"{"name": "n1", "subnets": ["172.18.0.0/24"]}"#;
    assert_eq!(
        problem(&curl(&["-H", json, "-d", overlap, &url("networks")]), 409)["type"],
        "urn:swd:conflict"
    );
    // Larger than anything that makes sense.
    let huge = site.file("huge.json");
    fs::write(&huge, vec![b' '; 16 << 20]).expect("write");
    let out = curl(&[
        "-H",
        json,
        "-H",
        "expect:",
        "--data-binary",
        &format!("@{}", huge.display()),
        &url("networks"),
    ]);
    assert!(out.stdout.starts_with("HTTP/1.1 4"), "{out}");

    for garbage in [
        &b"\x00\xff\x16\x03\x01garbage\r\n\r\n"[..],
        b"GET",
        b"\r\n\r\n\r\n",
        b"GET /v1/status HTTP/9.9\r\n\r\n",
        &[b'A'; 1 << 17],
    ] {
        let answer = talk(&socket, garbage);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1."), "{answer}");
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    let open: Value = serde_json::from_str(
        &run(
            Command::new("curl").arg("-sS").arg("--unix-socket").arg(&socket).arg(url("openapi.json")),
            TIMEOUT,
        )
        .ok()
        .stdout,
    )
    .expect("JSON");
    assert!(open["openapi"].as_str().is_some_and(|v| v.starts_with("3.")), "{open}");
    for path in
        ["/v1/status", "/v1/networks", "/v1/ports", "/v1/attach", "/v1/fdb", "/v1/drops", "/v1/events"]
    {
        assert!(open["paths"][path].is_object(), "{path} is not in the OpenAPI description");
    }
    assert_eq!(before, site.desired());
}

#[test]
fn many_idle_clients_do_not_lock_others_out() {
    let site = Site::new();
    let idle: Vec<_> = (0..200).map(|_| UnixStream::connect(site.socket()).expect("connect")).collect();
    site.ctl(&["status"]);
    drop(idle);
    site.ctl(&["status"]);
}

#[test]
fn a_full_disk() {
    let mut site = Site::stopped();
    let state = site.state_dir();
    fs::create_dir_all(&state).expect("mkdir");
    let path = state.to_str().expect("UTF-8").to_owned();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs", &path]), TIMEOUT).ok();
    let _unmount = Unmount(path);
    site.start();
    let c1 = site.container("c1", Way::Attach, "172.18.0.10");
    let peer = Namespace::new();
    veth(("v1", &site.host), ("eth0", &peer));
    let ns = Namespace::new();

    let ballast = state.join("ballast");
    let mut file = fs::File::create(&ballast).expect("create");
    while file.write_all(&[0; 4096]).is_ok() {}
    while file.write_all(&[0]).is_ok() {}
    drop(file);
    let space = "space";
    refuses(&site, &["network", "add", "n1", "--subnet", "172.19.0.0/16"], &[space]);
    refuses(&site, &["port", "add", "v1"], &[space]);
    refuses(&site, &["attach", ns.name(), "--name", "c2"], &[space]);
    refuses(&site, &["attach", ns.name(), "--name", "c2", "--tap"], &[space]);
    refuses(&site, &["fdb", "add", "02:00:00:00:0f:01", "c1"], &[space]);
    assert_eq!(ns.links(), ["lo"]);
    c1.ns.ping(tests::site::GATEWAY);
    // What was saved before is still there after a restart, and with room it goes on.
    site.kill();
    site.start();
    assert!(site.row(&["port", "ls"], "name", "c1").is_some());
    fs::remove_file(&ballast).expect("rm");
    site.ctl(&["network", "add", "n1", "--subnet", "172.19.0.0/16"]);
    site.ctl(&["port", "add", "v1"]);
    site.kill();
    site.start();
    assert!(site.row(&["network", "ls"], "name", "n1").is_some());
    assert!(site.row(&["port", "ls"], "name", "v1").is_some());
}

struct Unmount(String);

impl Drop for Unmount {
    fn drop(&mut self) {
        drop(Command::new("umount").args(["-l", &self.0]).output());
    }
}

#[test]
fn a_state_that_is_damaged_is_named() {
    let mut site = Site::new();
    site.ctl(&["network", "add", "n1", "--subnet", "172.19.0.0/16"]);
    assert_eq!(site.terminate(), 0);
    let files: Vec<_> =
        fs::read_dir(site.state_dir()).expect("the state").map(|f| f.expect("a file").path()).collect();
    assert!(!files.is_empty());
    for file in &files {
        fs::write(file, "{ not what it was").expect("write");
    }
    let none = ["--uplink".to_owned(), "none".to_owned()];
    let error =
        swd_refuses(&mut site.swd_command(site.name(), &site.runtime_dir(), &site.state_dir(), &none));
    assert!(files.iter().any(|f| error.contains(f.to_str().expect("UTF-8"))), "{error}");
}

#[test]
fn a_default_subnet_that_the_host_uses() {
    let site = Site::stopped();
    let peer = Namespace::new();
    veth(("lan0", &site.host), ("eth0", &peer));
    site.host.ip(&["addr", "add", "172.18.5.1/24", "dev", "lan0"]);
    let none = ["--uplink".to_owned(), "none".to_owned()];
    let error =
        swd_refuses(&mut site.swd_command(site.name(), &site.runtime_dir(), &site.state_dir(), &none));
    for word in ["172.18.0.0/16", "172.18.5.0/24", "lan0", "172.19.0.0/16"] {
        assert!(error.contains(word), "no '{word}' in: {error}");
    }
}
