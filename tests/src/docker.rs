//! A Docker engine of a test's own: Debian's, started by hand beside the swd of a [`Site`].
//!
//! It runs in the network namespace of the site's host and in an [`Enclosure`], which stays while the engine is restarted and
//! takes all of it along in the end. Images are made of Debian's static busybox; no registry is asked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::containers::{Containers, server};
use crate::enclosure::{Enclosure, busybox};
use crate::process::{Background, Output, run, s, wait_until};
use crate::site::Site;

/// The image of every container here: busybox, and nothing else.
pub const IMAGE: &str = "box";
/// How long a command of Docker's may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// `/run` and Docker's folder of plugins are the test's own.
const MOUNTS: &str = r#"
mount --bind "$1/run" /run
mkdir -p /run/docker/plugins
mount --bind "$1/plugins" /run/docker/plugins
"#;

/// An engine.
#[derive(Debug)]
pub struct Engine {
    // The mounts go before the folder that they are in.
    enclosure: Enclosure,
    dir: TempDir,
    daemon: Option<Background>,
    name: String,
    arguments: Vec<String>,
}

/// Where swd of a site is to put its socket: an argument for it, so that an engine of the site finds it.
pub fn plugins(site: &Site) -> PathBuf {
    site.file("plugins")
}

impl Engine {
    /// An engine on the site's host, with the image [`IMAGE`] and these arguments besides the usual ones.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn start(site: &Site, arguments: &[&str]) -> Self {
        let dir = TempDir::with_prefix("swd-docker-").expect("a temporary folder");
        let plugins = plugins(site);
        for folder in [&plugins, &dir.path().join("run")] {
            fs::create_dir_all(folder).expect("a folder");
        }
        std::os::unix::fs::symlink(&plugins, dir.path().join("plugins")).expect("a link");
        let mut engine = Self {
            enclosure: Enclosure::new(&site.host, dir.path(), MOUNTS, site.name()),
            daemon: None,
            name: site.name().to_owned(),
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            dir,
        };
        engine.start_daemon();
        let tar = busybox(engine.dir.path());
        engine.docker(&["import", tar.to_str().expect("UTF-8"), IMAGE]);
        engine
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the engine and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn start_daemon(&mut self) {
        let mut command = self.enclosure.command();
        command.args([
            "dockerd",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
        ]);
        command.args([
            "--userland-proxy=false",
            "--dns=172.16.0.1",
            "--storage-driver=overlay2",
            "--exec-opt",
        ]);
        command.arg("native.cgroupdriver=cgroupfs").arg("--cgroup-parent").arg(format!("/{}", self.name));
        command.arg("-H").arg(format!("unix://{}", self.file("sock").display()));
        command.arg("--exec-root").arg(self.exec_root());
        for (option, name) in [("--data-root", "data"), ("--pidfile", "pid")] {
            command.arg(option).arg(self.file(name));
        }
        command.args(&self.arguments);
        let log = self.file("dockerd.log");
        let mut daemon = Background::start(&mut command, &log);
        wait_until("dockerd answers", s(60), || {
            if let Some(code) = daemon.wait(Duration::ZERO) {
                panic!("dockerd ended with code {code}:\n{}", daemon.log());
            }
            self.try_docker(&["version"]).status.success()
        });
        self.daemon = Some(daemon);
    }

    /// Ends the engine by SIGTERM, and waits until it has ended.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn stop_daemon(&mut self) {
        self.end_daemon(Signal::SIGTERM);
    }

    /// `kill -9`.
    #[track_caller]
    pub fn kill_daemon(&mut self) {
        self.end_daemon(Signal::SIGKILL);
        // It had no time to remove it, and the next one must not take it for a running engine's.
        drop(fs::remove_file(self.file("pid")));
    }

    #[track_caller]
    fn end_daemon(&mut self, signal: Signal) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let pid = fs::read_to_string(self.file("pid")).expect("dockerd's pid file");
        let number = (signal as i32).to_string();
        run(self.enclosure.command().args(["sh", "-c", "kill -$0 $1", &number, pid.trim()]), PATIENCE).ok();
        assert!(daemon.wait(s(40)).is_some(), "dockerd does not end:\n{}", daemon.log());
    }

    /// Runs a command of Docker's.
    pub fn try_docker(&self, words: &[&str]) -> Output {
        // Debian's client fits Debian's engine; another one may be first in the path.
        let client =
            ["/usr/bin/docker", "docker"].into_iter().find(|c| Path::new(c).exists()).unwrap_or("docker");
        let mut command = Command::new(client);
        command.env("DOCKER_CONFIG", self.file("config"));
        command.arg("-H").arg(format!("unix://{}", self.file("sock").display())).args(words);
        run(&mut command, PATIENCE)
    }

    /// Runs a command of Docker's, which must succeed: what it wrote, without the last line's end.
    #[track_caller]
    pub fn docker(&self, words: &[&str]) -> String {
        self.try_docker(words).ok().stdout.trim_end().to_owned()
    }

    /// `docker network create` with swd as the driver.
    #[track_caller]
    pub fn network(&self, name: &str, options: &[&str]) -> String {
        self.docker(&[&["network", "create", "-d", &self.name], options, &[name]].concat())
    }

    /// `docker run -d` of a container that answers HTTP on port 80 with its name.
    #[track_caller]
    pub fn serve(&self, name: &str, network: &str, options: &[&str]) -> String {
        let words = ["run", "-d", "--name", name, "--network", network];
        self.docker(&[&words, options, &[IMAGE, "sh", "-c", &server(name)]].concat())
    }

    /// Runs a program beside the engine: where its folders are what the engine sees.
    pub fn run_beside(&self, words: &[&str]) -> Output {
        run(self.enclosure.command().args(words), PATIENCE)
    }

    /// `docker inspect`.
    #[track_caller]
    pub fn inspect(&self, name: &str) -> Value {
        self.try_docker(&["inspect", name]).ok().json()[0].take()
    }

    /// A container's address in a network, of the family whose key this is: `IPAddress`, `GlobalIPv6Address`.
    #[track_caller]
    pub fn address(&self, container: &str, network: &str, key: &str) -> String {
        let shown = self.inspect(container);
        let address = shown["NetworkSettings"]["Networks"][network][key].as_str();
        address.unwrap_or_else(|| panic!("no {key} in {network}: {shown}")).to_owned()
    }

    /// Removes containers, running or not.
    #[track_caller]
    pub fn remove(&self, containers: &[&str]) {
        self.docker(&[&["rm", "-f"], containers].concat());
    }

    /// Where the engine keeps what lives as long as its containers: `/var/run/docker` of one that is not a test's.
    pub fn exec_root(&self) -> PathBuf {
        self.file("exec")
    }

    /// What the engine wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.file("dockerd.log")).unwrap_or_default()
    }
}

impl Containers for Engine {
    fn try_exec(&self, container: &str, words: &[&str]) -> Output {
        self.try_docker(&[&["exec", container], words].concat())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(6000);
            eprintln!("--- dockerd's log\n{}\n--- end of dockerd's log", log.get(from..).unwrap_or(&log));
        }
    }
}
