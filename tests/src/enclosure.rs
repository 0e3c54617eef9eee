//! Mount and process namespaces of a test's own on a host: for container engines, which mount, fork and leave behind.
//!
//! A process holds them. When it is killed, everything inside ends with it: engines, shims, containers, mounts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::sys::signal::Signal;

use crate::netns::Namespace;
use crate::process::{Background, TIMEOUT, copy_program, ms, run, s, wait_until};
use crate::site::Site;

/// The namespaces, and the control groups of a name.
#[derive(Debug)]
pub struct Enclosure {
    holder: Background,
    _groups: Groups,
}

/// Control groups of a name, in every hierarchy. They are removed when this is dropped.
#[derive(Debug)]
pub struct Groups(pub String);

impl Enclosure {
    /// Namespaces on `host` in which `mounts` (a script; `$1` is `dir`) has been run. Control groups called `group` are removed
    /// at the end.
    ///
    /// # Panics
    /// When they cannot be made.
    #[track_caller]
    pub fn new(host: &Namespace, dir: &Path, mounts: &str, group: &str) -> Self {
        let script = format!("set -e\n{mounts}\necho held\nwhile :; do sleep 1000; done");
        let words = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ];
        let holder = ["sh", "-c", &script, "holder", dir.to_str().expect("UTF-8")];
        let holder = host.start(&[&words[..], &holder].concat(), &dir.join("holder.log"));
        wait_until("the namespaces are there", s(10), || holder.log().contains("held"));
        Self { holder, _groups: Groups(group.to_owned()) }
    }

    /// Words that run a program inside.
    ///
    /// # Panics
    /// When the holder has ended.
    #[track_caller]
    pub fn enter(&self) -> Vec<String> {
        // The holder is the child of `unshare`, which has stayed outside.
        let children = format!("/proc/{0}/task/{0}/children", self.holder.pid());
        let pid = fs::read_to_string(children).expect("the holder lives");
        ["nsenter", "-t", pid.trim(), "--mount", "--pid", "--net"].map(str::to_owned).to_vec()
    }

    /// A command that will run inside, without a proxy of the machine's.
    #[track_caller]
    pub fn command(&self) -> Command {
        let words = self.enter();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("env");
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.args(["-u", name]);
        }
        command
    }
}

impl Enclosure {
    /// Starts the site's swd inside: where it sees processes and files of namespaces as engines there do.
    ///
    /// # Panics
    /// When it does not get ready.
    #[track_caller]
    pub fn start_swd(&self, site: &mut Site) {
        let words = self.enter();
        site.start_by(&words.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Ends the site's swd, which is inside, by a signal.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn stop_swd(&self, site: &mut Site, signal: Signal) {
        // By the process id that swd knows of itself: what was started outside is `nsenter`.
        let lock = site.runtime_dir().join(format!("{}.lock", site.name()));
        let pid = fs::read_to_string(lock).expect("swd's lock");
        let number = (signal as i32).to_string();
        run(self.command().args(["kill", "-s", &number, pid.trim()]), TIMEOUT).ok();
        wait_until("swd has ended", s(10), || !site.alive());
        site.kill();
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        self.holder.signal(Signal::SIGKILL);
        self.holder.wait(s(10));
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let groups = || {
            let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path());
            let all = roots.chain([PathBuf::from("/sys/fs/cgroup")]).map(|root| root.join(&self.0));
            all.filter(|path| path.is_dir())
        };
        // What was killed ends a moment later; only then can they go.
        for _ in 0..500 {
            groups().for_each(|group| remove_group(&group));
            if groups().next().is_none() {
                return;
            }
            thread::sleep(ms(10));
        }
        eprintln!("control groups were left behind: {:?}", groups().collect::<Vec<_>>());
    }
}

/// Removes a control group and those below it, if nobody is in them.
fn remove_group(path: &Path) {
    for below in fs::read_dir(path).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        remove_group(&below.path());
    }
    drop(fs::remove_dir(path));
}

/// A root file system of Debian's static busybox and nothing else, as `box.tar` below `dir`.
///
/// # Panics
/// When it cannot be made.
#[track_caller]
pub fn busybox(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    fs::create_dir_all(root.join("bin")).expect("a folder");
    copy_program(Path::new("/bin/busybox"), &root.join("bin/busybox"));
    let listed = run(Command::new("/bin/busybox").arg("--list"), TIMEOUT).ok().stdout;
    for applet in listed.lines().filter(|a| *a != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("a link");
    }
    let tar = dir.join("box.tar");
    run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg("."), TIMEOUT).ok();
    tar
}
