//! Network namespaces of a test's own.
//!
//! A name is made of this process's id and a counter, so tests run in parallel and beside other runs. A namespace is
//! deleted when its handle is dropped, also when the test panics.

use std::fs::File;
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::process::{self, Background, Output, TIMEOUT, run};

/// A name that nobody else has: at most 10 characters, so that interface names can be made from it.
pub fn unique_name() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", base36(std::process::id()), base36(COUNTER.fetch_add(1, Ordering::Relaxed)))
}

fn base36(mut n: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(n % 36, 36).expect("below 36"));
        n /= 36;
        if n == 0 {
            return digits.iter().rev().collect();
        }
    }
}

/// A network namespace in `/run/netns`, with `lo` up.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one with a name of its own.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    pub fn new() -> Self {
        Self::named(&unique_name())
    }

    /// A new one in which nothing is set up: `lo` is down.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    pub fn bare() -> Self {
        process::require();
        let new = Self { name: unique_name() };
        ip(&["netns", "add", &new.name]);
        new
    }

    /// A new one of this name.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    pub fn named(name: &str) -> Self {
        process::require();
        let new = Self { name: name.to_owned() };
        ip(&["netns", "add", name]);
        new.ip(&["link", "set", "lo", "up"]);
        new
    }

    /// One that exists already: it is deleted with this handle.
    pub fn adopt(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Does it exist?
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Deletes it now.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn delete(self) {
        ip(&["netns", "del", &self.name]);
        std::mem::forget(self);
    }

    /// A command that will run inside.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).args(words);
        command
    }

    /// Runs a program inside.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Output {
        run(&mut self.command(words), TIMEOUT)
    }

    /// Runs `ip` inside; it must succeed.
    #[track_caller]
    pub fn ip(&self, words: &[&str]) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(words);
        ip(&all)
    }

    /// Runs `ip -j` inside: its JSON.
    #[track_caller]
    pub fn ip_json(&self, words: &[&str]) -> Vec<Value> {
        let mut all = vec!["-j", "-n", &self.name];
        all.extend(words);
        let text = ip(&all);
        // `ip -j` says nothing at all where it has nothing to say.
        if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).expect("JSON of ip") }
    }

    /// Starts a program inside, in the background.
    #[track_caller]
    pub fn start(&self, words: &[&str], log: &Path) -> Background {
        Background::start(&mut self.command(words), log)
    }

    /// Does an address answer a ping within a second?
    #[track_caller]
    pub fn pings(&self, address: &str) -> bool {
        self.run(&["ping", "-n", "-c1", "-W1", address]).status.success()
    }

    /// What is answered to `GET http://address/`, without white space around it; or what curl says.
    ///
    /// # Errors
    /// When there is no answer within five seconds.
    #[track_caller]
    pub fn http(&self, address: &str) -> Result<String, String> {
        let out = self.run(&["curl", "-sS", "--noproxy", "*", "-m", "5", &format!("http://{address}/")]);
        if out.status.success() { Ok(out.stdout.trim().to_owned()) } else { Err(out.stderr) }
    }

    /// An address must answer three pings in a row.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn ping(&self, address: &str) {
        self.run(&["ping", "-n", "-c3", "-i0.05", "-W2", address]).ok();
    }

    /// The MAC address of an interface inside.
    #[track_caller]
    pub fn mac(&self, ifname: &str) -> String {
        self.link(ifname)["address"].as_str().expect("a MAC address").to_owned()
    }

    /// The link-local IPv6 address of an interface inside.
    #[track_caller]
    pub fn link_local(&self, ifname: &str) -> String {
        process::wait_for("an IPv6 link-local address", process::s(20), || {
            let shown = self.ip_json(&["-6", "addr", "show", "dev", ifname, "scope", "link", "-tentative"]);
            let local = shown.iter().flat_map(|l| l["addr_info"].as_array().cloned().unwrap_or_default());
            local.filter_map(|a| a["local"].as_str().map(str::to_owned)).next()
        })
    }

    /// `ip -d -j link show` of an interface inside.
    #[track_caller]
    pub fn link(&self, ifname: &str) -> Value {
        self.ip_json(&["-d", "link", "show", "dev", ifname]).remove(0)
    }

    /// Names of all interfaces inside.
    pub fn links(&self) -> Vec<String> {
        let links = self.ip_json(&["link"]);
        links.iter().filter_map(|l| l["ifname"].as_str().map(str::to_owned)).collect()
    }

    /// Runs `f` in a thread that is inside: the sockets which it makes belong to the namespace for good.
    ///
    /// # Panics
    /// When `f` does.
    #[track_caller]
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).expect("the namespace's file");
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET).expect("setns");
                f()
            });
            inside.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
        })
    }

    /// A listening TCP socket inside.
    #[track_caller]
    pub fn tcp_listen(&self, address: &str) -> TcpListener {
        self.enter(|| TcpListener::bind(address).unwrap_or_else(|e| panic!("bind {address}: {e}")))
    }

    /// A TCP connection from inside.
    pub fn tcp_connect(&self, address: &str, timeout: Duration) -> std::io::Result<TcpStream> {
        self.enter(|| {
            let to = address.to_socket_addrs()?.next().expect("an address");
            TcpStream::connect_timeout(&to, timeout)
        })
    }

    /// A bound UDP socket inside.
    #[track_caller]
    pub fn udp(&self, address: &str) -> UdpSocket {
        self.enter(|| UdpSocket::bind(address).unwrap_or_else(|e| panic!("bind {address}: {e}")))
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Deletes a namespace if there is one, and says so when it stays: nothing may be left behind, least of all in silence.
pub(crate) fn remove(name: &str) {
    let mut said = String::new();
    for _ in 0..20 {
        if !Path::new("/run/netns").join(name).exists() {
            return;
        }
        if let Ok(out) = Command::new("ip").args(["netns", "del", name]).output() {
            said = String::from_utf8_lossy(&out.stderr).into_owned();
        }
        thread::sleep(Duration::from_millis(5));
    }
    if Path::new("/run/netns").join(name).exists() {
        eprintln!("namespace {name} was left behind: {said}");
    }
}

/// Runs `ip`; it must succeed.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn ip(words: &[&str]) -> String {
    run(Command::new("ip").args(words), TIMEOUT).ok().stdout
}

/// A veth pair with offloads at their defaults: `a.0` is an interface in namespace `a.1`, and so is `b`. Both are up.
#[track_caller]
pub fn veth(a: (&str, &Namespace), b: (&str, &Namespace)) {
    a.1.ip(&["link", "add", a.0, "type", "veth", "peer", "name", b.0, "netns", b.1.name()]);
    a.1.ip(&["link", "set", a.0, "up"]);
    b.1.ip(&["link", "set", b.0, "up"]);
}
