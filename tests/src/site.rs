//! A host with swd on it, and containers: each of them a namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::{Namespace, ip, remove, unique_name};
use crate::process::{Background, Output, TIMEOUT, binary, ms, run, s, wait_until};

/// The host's address in the network `default`.
pub const GATEWAY: &str = "172.18.0.1";

/// How a container comes to the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The test makes a veth pair in the host's namespace, as the classic walk does, and `swctl port add`s its host end.
    PortAdd,
    /// `swctl attach`: swd makes the veth pair.
    Attach,
    /// `swctl attach --tap`: no veth pair; swd holds the queue of the container's interface.
    Tap,
}

/// Makes a test of a function that takes a [`Way`] for each kind of port: veth and TAP.
#[macro_export]
macro_rules! for_each_port_kind {
    ($($(#[$meta:meta])* fn $name:ident($way:ident) $body:block)*) => {$(
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $(#[$meta])*
            fn check($way: $crate::site::Way) $body

            #[test]
            fn veth() {
                check($crate::site::Way::PortAdd);
            }

            #[test]
            fn tap() {
                check($crate::site::Way::Tap);
            }
        }
    )*};
}

/// A host namespace with its own swd: the binaries that cargo built. Everything goes when this is dropped.
#[derive(Debug)]
pub struct Site {
    /// The host.
    pub host: Namespace,
    name: String,
    dir: TempDir,
    arguments: Vec<String>,
    swd: Option<Background>,
}

impl Site {
    /// A host on which swd runs and forwards.
    ///
    /// # Panics
    /// When swd does not start.
    #[track_caller]
    pub fn new() -> Self {
        let mut site = Self::stopped();
        site.start();
        site
    }

    /// A host on which swd runs with this configuration.
    ///
    /// # Panics
    /// When swd does not start.
    #[track_caller]
    pub fn with_config(config: &str) -> Self {
        let mut site = Self::stopped();
        let path = site.file("swd.toml");
        fs::write(&path, config).expect("write the configuration");
        site.arguments.extend(["--config".to_owned(), path.display().to_string()]);
        site.start();
        site
    }

    /// A host on which swd does not run yet.
    ///
    /// # Panics
    /// When the namespace cannot be made.
    #[track_caller]
    pub fn stopped() -> Self {
        Self::stopped_on(Namespace::new())
    }

    /// A host that exists already, on which swd does not run yet.
    ///
    /// # Panics
    /// When there is no room for swd's files.
    #[track_caller]
    pub fn stopped_on(host: Namespace) -> Self {
        let dir = TempDir::with_prefix("swd-test-").expect("a temporary folder");
        let arguments = vec!["--uplink".to_owned(), "none".to_owned()];
        Self { host, name: unique_name(), dir, arguments, swd: None }
    }

    /// Arguments for swd in place of `--uplink none`.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        self
    }

    /// The instance's name: also that of the switch namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path in the test's own folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where swd keeps its sockets.
    pub fn runtime_dir(&self) -> PathBuf {
        self.file("run")
    }

    /// Where swd keeps its state.
    pub fn state_dir(&self) -> PathBuf {
        self.file("state")
    }

    /// The API socket.
    pub fn socket(&self) -> PathBuf {
        self.runtime_dir().join(format!("{}.sock", self.name))
    }

    /// The command that starts swd on this host, under an instance name and with folders of the caller's choice.
    pub fn swd_command(&self, name: &str, runtime: &Path, state: &Path, more: &[String]) -> Command {
        let mut command = self.host.command(&[binary("swd").to_str().expect("UTF-8")]);
        command.args(["--name", name, "--runtime-dir"]).arg(runtime).arg("--state-dir").arg(state).args(more);
        command
    }

    /// Starts swd and waits until it is ready.
    ///
    /// # Panics
    /// When it does not get ready.
    #[track_caller]
    pub fn start(&mut self) {
        self.start_by(&[]);
    }

    /// The same by a program that runs swd: `prlimit --nofile=100`, say.
    ///
    /// # Panics
    /// When it does not get ready.
    #[track_caller]
    pub fn start_by(&mut self, program: &[&str]) {
        self.spawn_by(program);
        let log = self.log_path();
        let swd = self.swd.as_mut().expect("just started");
        wait_until("swd is ready", s(20), || {
            if let Some(code) = swd.wait(Duration::ZERO) {
                panic!("swd ended with code {code}:\n{}", swd.log());
            }
            fs::read_to_string(&log).unwrap_or_default().lines().any(|l| l == "ready")
        });
    }

    /// `swd --replace`: waits until the new one is ready and the old one has ended. Gives the old one's exit code.
    ///
    /// # Panics
    /// When either does not happen.
    #[track_caller]
    pub fn replace(&mut self) -> i32 {
        let mut old = self.swd.take().expect("swd runs");
        self.arguments.push("--replace".to_owned());
        self.start();
        self.arguments.pop();
        old.wait(s(5)).unwrap_or_else(|| panic!("the old swd does not end:\n{}", old.log()))
    }

    /// Starts swd and does not wait.
    #[track_caller]
    pub fn spawn(&mut self) {
        self.spawn_by(&[]);
    }

    #[track_caller]
    fn spawn_by(&mut self, program: &[&str]) {
        assert!(self.swd.is_none(), "swd runs already");
        // Each run has a log of its own, so that one run's `ready` is not taken for another's.
        let earlier = self.log();
        if !earlier.is_empty() {
            let mut all = fs::read_to_string(self.file("earlier.log")).unwrap_or_default();
            all.push_str(&earlier);
            all.push_str("--- started again\n");
            fs::write(self.file("earlier.log"), all).expect("write");
        }
        drop(fs::remove_file(self.log_path()));
        let swd = binary("swd");
        let mut command = self.host.command(&[program, &[swd.to_str().expect("UTF-8")]].concat());
        command.args(["--name", &self.name, "--runtime-dir"]).arg(self.runtime_dir());
        command.arg("--state-dir").arg(self.state_dir()).args(&self.arguments);
        self.swd = Some(Background::start(&mut command, &self.log_path()));
    }

    fn log_path(&self) -> PathBuf {
        self.file("swd.log")
    }

    /// What swd wrote since it was started last.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// swd's process id.
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.swd.as_ref().expect("swd runs").pid()
    }

    /// Sends swd a signal.
    pub fn signal(&self, signal: Signal) {
        self.swd.as_ref().expect("swd runs").signal(signal);
    }

    /// Does something while swd stands still: only the kernel forwards.
    #[track_caller]
    pub fn without_swd<T>(&self, body: impl FnOnce() -> T) -> T {
        self.signal(Signal::SIGSTOP);
        // Each thread stops when it comes to it.
        wait_until("swd stands still", s(5), || {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("its threads");
            let stat = |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            tasks
                .flatten()
                .all(|task| stat(task).rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
        });
        let result = body();
        self.signal(Signal::SIGCONT);
        result
    }

    /// `kill -9`.
    #[track_caller]
    pub fn kill(&mut self) {
        drop(self.swd.take().expect("swd runs"));
    }

    /// SIGTERM: swd must end by itself within five seconds. Gives its exit code.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn terminate(&mut self) -> i32 {
        let mut swd = self.swd.take().expect("swd runs");
        swd.signal(Signal::SIGTERM);
        swd.wait(s(5)).unwrap_or_else(|| panic!("swd does not end on SIGTERM:\n{}", swd.log()))
    }

    /// The processes that keep what outlives swd: one, but for a moment.
    ///
    /// # Panics
    /// When there is no /proc.
    pub fn keepers(&self) -> Vec<i32> {
        let socket = self.runtime_dir().join(format!("{}.keeper", self.name));
        let socket = socket.to_str().expect("UTF-8");
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        processes
            .filter_map(|p| {
                let pid = p.file_name().to_str()?.parse().ok()?;
                let line = fs::read(p.path().join("cmdline")).ok()?;
                let mut words = line.split(|b| *b == 0);
                (words.next() == Some(b"swd-keeper") && words.any(|w| w == socket.as_bytes())).then_some(pid)
            })
            .collect()
    }

    /// Is swd alive?
    pub fn alive(&mut self) -> bool {
        self.swd.as_mut().is_some_and(|swd| swd.wait(Duration::ZERO).is_none())
    }

    /// The switch namespace. It goes with the site, not with this handle.
    pub fn switch(&self) -> std::mem::ManuallyDrop<Namespace> {
        std::mem::ManuallyDrop::new(Namespace::adopt(&self.name))
    }

    /// A swctl command on this host.
    pub fn swctl_command(&self, words: &[&str]) -> Command {
        // Whoever runs the tests may ignore signals (nohup, a shell's background jobs), which commands would inherit.
        let mut command =
            self.host.command(&["env", "--default-signal", binary("swctl").to_str().expect("UTF-8")]);
        command.arg("--socket").arg(self.socket()).args(words);
        command
    }

    /// Runs swctl to its end.
    #[track_caller]
    pub fn try_ctl(&self, words: &[&str]) -> Output {
        run(&mut self.swctl_command(words), TIMEOUT)
    }

    /// Runs swctl, which must succeed. Gives what it wrote.
    #[track_caller]
    pub fn ctl(&self, words: &[&str]) -> String {
        self.try_ctl(words).ok().stdout
    }

    /// Runs swctl with `--json`: its answer.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Value {
        let mut all = words.to_vec();
        all.push("--json");
        self.try_ctl(&all).ok().json()
    }

    /// A listing of swctl's: its rows.
    ///
    /// # Panics
    /// When it is not a list.
    #[track_caller]
    pub fn rows(&self, words: &[&str]) -> Vec<Value> {
        match self.json(words) {
            Value::Array(rows) => rows,
            other => panic!("swctl {words:?} --json is not a list: {other}"),
        }
    }

    /// The row of a listing in which `key` is `value`.
    #[track_caller]
    pub fn row(&self, words: &[&str], key: &str, value: &str) -> Option<Value> {
        self.rows(words).into_iter().find(|r| r[key].as_str() == Some(value))
    }

    /// A port.
    ///
    /// # Panics
    /// When there is none of this name.
    #[track_caller]
    pub fn port(&self, name: &str) -> Value {
        self.row(&["port", "ls"], "name", name).unwrap_or_else(|| panic!("no port '{name}'"))
    }

    /// Frames dropped so far for a reason.
    #[track_caller]
    pub fn drops(&self, reason: &str) -> u64 {
        self.row(&["drops"], "reason", reason).map_or(0, |r| r["count"].as_u64().expect("a number"))
    }

    /// The port behind which the MAC table has an address.
    #[track_caller]
    pub fn fdb_port(&self, mac: &str) -> Option<String> {
        self.row(&["fdb", "ls"], "mac", mac)?["port"].as_str().map(str::to_owned)
    }

    /// What must not change when a command fails: networks and ports without their counters.
    #[track_caller]
    pub fn desired(&self) -> Vec<Value> {
        let mut rows = self.rows(&["network", "ls"]);
        for mut port in self.rows(&["port", "ls"]) {
            let fields = port.as_object_mut().expect("an object");
            fields.retain(|key, _| !key.starts_with("rx_") && !key.starts_with("tx_"));
            rows.push(port);
        }
        rows.extend(self.rows(&["fdb", "ls"]).into_iter().filter(|e| e["kind"] == "static"));
        rows
    }

    /// A container in the network `default`.
    #[track_caller]
    pub fn container(&self, name: &str, way: Way, address: &str) -> Container {
        self.container_in("default", name, way, address)
    }

    /// A container with an address in a /16 network, and a default route by the network's gateway.
    #[track_caller]
    pub fn container_in(&self, network: &str, name: &str, way: Way, address: &str) -> Container {
        let ns = Namespace::new();
        self.join(&ns, network, name, way, address);
        Container { ns, port: name.to_owned(), address: address.to_owned() }
    }

    /// Brings a namespace to the switch as port `name`.
    #[track_caller]
    pub fn join(&self, ns: &Namespace, network: &str, name: &str, way: Way, address: &str) {
        match way {
            Way::PortAdd => {
                let host_end = format!("v-{name}");
                // The MAC follows from the address, so that a container which is made again is known to its neighbours.
                let mac = address.split('.').fold("02:42".to_owned(), |mac, n| {
                    format!("{mac}:{:02x}", n.parse::<u8>().expect("an IPv4 address"))
                });
                self.host.ip(&[
                    "link",
                    "add",
                    &host_end,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "eth0",
                    "address",
                    &mac,
                    "netns",
                    ns.name(),
                ]);
                self.host.ip(&["link", "set", &host_end, "up"]);
                ns.ip(&["link", "set", "eth0", "up"]);
                ns.ip(&["addr", "add", &format!("{address}/16"), "dev", "eth0"]);
                let gateway = self.row(&["network", "ls"], "name", network).expect("the network");
                if let Some(gateway) = gateway["gateways"][0].as_str().filter(|g| g.contains('.')) {
                    ns.ip(&["route", "add", "default", "via", gateway]);
                }
                self.ctl(&["port", "add", &host_end, "--name", name, "--network", network]);
            }
            Way::Attach | Way::Tap => {
                let mut words =
                    vec!["attach", ns.name(), "--name", name, "--network", network, "--ip", address];
                if way == Way::Tap {
                    words.push("--tap");
                }
                self.ctl(&words);
            }
        }
    }

    /// Lets ports send from any MAC and address: for tests that play others, or a whole network, behind one.
    #[track_caller]
    pub fn unguard(&self, ports: &[&str]) {
        for port in ports {
            self.ctl(&["port", "set", port, "--guard", "off"]);
        }
    }

    /// Memory that swd has in RAM, in bytes.
    ///
    /// # Panics
    /// When swd does not run.
    #[track_caller]
    pub fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("swd runs");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
    }

    /// Processor time that swd has used, in clock ticks.
    ///
    /// # Panics
    /// When swd does not run.
    #[track_caller]
    pub fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("swd runs");
        let fields: Vec<_> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        // utime and stime are fields 14 and 15 of proc_pid_stat(5); the first two are cut off.
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut swd) = self.swd.take() {
            swd.signal(Signal::SIGCONT);
            swd.signal(Signal::SIGTERM);
            if swd.wait(s(3)).is_none() {
                eprintln!("swd did not end on SIGTERM within 3 s");
            }
        }
        remove(&self.name);
        if thread::panicking() {
            let earlier = fs::read_to_string(self.file("earlier.log")).unwrap_or_default();
            eprintln!("--- swd's log\n{earlier}{}--- end of swd's log", self.log());
        }
    }
}

/// A namespace with an `eth0` at the switch.
#[derive(Debug)]
pub struct Container {
    /// Its namespace.
    pub ns: Namespace,
    /// Name of its port.
    pub port: String,
    /// Its IPv4 address.
    pub address: String,
}

impl Container {
    /// The MAC address of `eth0`.
    #[track_caller]
    pub fn mac(&self) -> String {
        self.ns.mac("eth0")
    }

    /// A container's answer to three pings must come.
    #[track_caller]
    pub fn ping(&self, other: &Self) {
        self.ns.ping(&other.address);
    }
}

/// All namespaces of the machine.
pub fn namespaces() -> Vec<String> {
    ip(&["netns", "list"]).lines().filter_map(|l| l.split_whitespace().next().map(str::to_owned)).collect()
}

/// One heavy test at a time, over all processes: a flood of one must not starve another's ping. Held until dropped.
///
/// # Panics
/// When the lock file cannot be made.
#[must_use]
pub fn heavy() -> nix::fcntl::Flock<fs::File> {
    let path = std::env::temp_dir().join("swd-tests.lock");
    let file = fs::File::options().create(true).append(true).open(&path).expect("lock file");
    let mut file = file;
    loop {
        match nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive) {
            Ok(lock) => return lock,
            Err((back, nix::errno::Errno::EINTR)) => file = back,
            Err((_, e)) => panic!("{}: {e}", path.display()),
        }
    }
}

/// A pause in which nothing is expected to happen: the only kind of sleep that tests should have.
pub fn quiet() {
    thread::sleep(ms(300));
}
