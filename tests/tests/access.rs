//! Who may use the API: root, and the members of the group that the configuration names.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tests::process::{Background, Output, TIMEOUT, binary, copy_program, python, run, s, wait_until};
use tests::site::Site;

/// Two groups, three users, and a user database in which the first is a member of the one, the second of the other.
const GROUP: &str = "41000";
const READERS: &str = "41003";
const READER: &str = "41004";
const MEMBER: &str = "41001";
const STRANGER: &str = "41002";

fn status_as(site: &Site, user: &str, groups: &[&str]) -> Output {
    swctl_as(site, user, groups, &["status"])
}

/// swctl as a user, with these groups beside the user's own.
fn swctl_as(site: &Site, user: &str, groups: &[&str], words: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user]);
    match groups {
        [] => command.arg("--clear-groups"),
        groups => command.arg("--groups").arg(groups.join(",")),
    };
    command.arg(site.file("swctl")).arg("--socket").arg(site.socket());
    run(command.args(words), TIMEOUT)
}

/// An instance with a user database of its own, and this in its configuration's `[api]`.
fn with_users(api: &str) -> (Site, Background) {
    let site = Site::stopped();
    fs::set_permissions(site.file(""), fs::Permissions::from_mode(0o755)).expect("chmod");
    let swctl = site.file("swctl");
    copy_program(&binary("swctl"), &swctl);
    fs::write(site.file("swd.toml"), format!("uplink = \"none\"\n[api]\n{api}\n")).expect("write");
    // The user database is swd's own: it is mounted over the machine's where swd alone sees it.
    let lines = |extra: &str| format!("root:x:0:0:root:/root:/bin/sh\n{extra}");
    let users = [MEMBER, STRANGER, READER].map(|id| format!("u{id}:x:{id}:{id}::/:/bin/false\n")).concat();
    fs::write(site.file("passwd"), lines(&users)).expect("write");
    fs::write(
        site.file("group"),
        format!("root:x:0:\nswd-users:x:{GROUP}:u{MEMBER}\nswd-readers:x:{READERS}:u{READER}\n"),
    )
    .expect("write");
    let script = "mount --bind \"$1/passwd\" /etc/passwd && mount --bind \"$1/group\" /etc/group && shift && exec \"$@\"";
    let config = ["--config".to_owned(), site.file("swd.toml").display().to_string()];
    let swd = site.swd_command(site.name(), &site.runtime_dir(), &site.state_dir(), &config);
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "slave", "sh", "-c", script, "sh"]).arg(site.file(""));
    command.arg(swd.get_program()).args(swd.get_args());
    let log = site.file("swd.log");
    let swd = Background::start(&mut command, &log);
    wait_until("swd is ready", s(10), || swd.log().lines().any(|l| l == "ready"));
    (site, swd)
}

#[test]
fn members_of_the_group_come_in_and_nobody_else() {
    let (site, swd) = with_users("group = \"swd-users\"");
    let swctl = site.file("swctl");
    status_as(&site, MEMBER, &[GROUP]).ok();
    // By way of the group that the user has at the moment (newgrp, sg).
    let mut current = Command::new("setpriv");
    current.args(["--reuid", STRANGER, "--regid", GROUP, "--clear-groups"]).arg(&swctl);
    run(current.arg("--socket").arg(site.socket()).arg("status"), TIMEOUT).ok();

    // Not a member: the socket's mode keeps the user out.
    let error = status_as(&site, STRANGER, &[]).one_line_error();
    assert!(error.to_lowercase().contains("permission"), "{error}");
    // Not a member by the user database, though the process was given the group: swd itself says no.
    let error = status_as(&site, STRANGER, &[GROUP]).one_line_error();
    assert!(error.contains("api.group"), "{error}");
    // Root needs no group.
    site.ctl(&["status"]);
    drop(swd);
}

#[test]
fn readers_look_and_change_nothing() {
    let (site, swd) = with_users("group = \"swd-users\"\nreaders = \"swd-readers\"");
    let as_reader = |words: &[&str]| swctl_as(&site, READER, &[READERS], words);
    for words in [&["status"][..], &["port", "ls"], &["conntrack", "ls"], &["drops"]] {
        as_reader(words).ok();
    }
    for words in [
        &["network", "add", "x", "--subnet", "10.9.0.0/24"][..],
        &["fdb", "flush"],
        &["capture", "default", "-c1"],
        &["inspect", "1"],
    ] {
        let error = as_reader(words).one_line_error();
        assert!(error.contains("api.readers"), "{words:?}: {error}");
    }
    swctl_as(&site, MEMBER, &[GROUP], &["fdb", "flush"]).ok();
    let error = status_as(&site, STRANGER, &[]).one_line_error();
    assert!(error.contains("api.group"), "{error}");
    // Strangers who come and stay do not keep the others out.
    let socket = site.socket();
    let idle = format!(
        "import socket,time\nall=[]\nfor _ in range(700):\n  s=socket.socket(socket.AF_UNIX); s.connect('{}'); all.append(s)\nprint('in',flush=True)\ntime.sleep(60)",
        socket.display()
    );
    let mut crowd = Command::new("setpriv");
    crowd
        .args(["--reuid", STRANGER, "--regid", STRANGER, "--clear-groups"])
        .arg(python())
        .args(["-c", &idle]);
    let crowd = Background::start(&mut crowd, &site.file("crowd.log"));
    wait_until("they are in", s(20), || crowd.log().contains("in"));
    status_as(&site, MEMBER, &[GROUP]).ok();
    drop((crowd, swd));
}

#[test]
fn a_group_that_does_not_exist_is_named() {
    let site = Site::stopped();
    fs::write(site.file("swd.toml"), "uplink = \"none\"\n[api]\ngroup = \"no-such-group\"\n").expect("write");
    let config = ["--config".to_owned(), site.file("swd.toml").display().to_string()];
    let mut swd = site.swd_command(site.name(), &site.runtime_dir(), &site.state_dir(), &config);
    let error = run(&mut swd, s(15)).one_line_error();
    assert!(error.contains("no-such-group") && error.contains("groupadd"), "{error}");
}
