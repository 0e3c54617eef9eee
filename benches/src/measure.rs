//! One measurement: a load at both ends of a path, and what it cost meanwhile.

use std::path::Path as FilePath;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use tempfile::TempDir;
use tests::netns::Namespace;
use tests::process::{Background, run, wait_until};

use crate::attempt::go_on;
use crate::figures::Figures;
use crate::load::{FLOW_PORTS, Protocol};
use crate::machine::{Cpu, threads};

/// What setting up and winding down a load may take beyond its own time: a stalled stream's or a slow machine's.
const MARGIN: f64 = 10.0;
/// Datagrams that are lost while a rival learns who is where must not spoil the count.
const WARM_UP: f64 = 0.2;

/// On which CPUs a load runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpus {
    /// Where the kernel likes.
    Any,
    /// Both ends and the daemon on CPU 0: no wake-up crosses CPUs, so the path's own cost is what remains.
    One,
    /// The client on CPU 0, the server on CPU 1.
    Two,
}

/// From where to where a load goes, through what.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    /// Where the server listens.
    pub server: &'a Namespace,
    /// Where the client is.
    pub client: &'a Namespace,
    /// The address and port that the client sends to.
    pub address: &'a str,
    /// The port that the client sends to, and the server listens on.
    pub port: u16,
    /// The daemons in between.
    pub pids: &'a [u32],
}

/// Runs loads.
#[derive(Debug)]
pub struct Meter {
    dir: TempDir,
    /// How long a load lasts, in seconds.
    pub seconds: f64,
}

impl Meter {
    /// One whose loads last this long.
    ///
    /// # Errors
    /// When there is no room for logs.
    pub fn new(seconds: f64) -> Result<Self> {
        Ok(Self { dir: TempDir::with_prefix("swd-bench-").context("a temporary folder")?, seconds })
    }

    /// A folder for files of the run.
    pub fn dir(&self) -> &FilePath {
        self.dir.path()
    }

    /// TCP in bulk: `gbit_s`, `cpu_s_per_gb`, `daemon_s_per_gb`, `retransmits`.
    ///
    /// # Errors
    /// When nothing comes through.
    pub fn bulk(&self, path: Path<'_>, streams: u16) -> Result<Figures> {
        let streams = streams.to_string();
        let serve = words(["sink", "--streams", &streams]);
        let send = words(["source", "--streams", &streams]);
        let (mut figures, used) = self.run(path, Cpus::Any, serve, send, End::Server, self.seconds)?;
        let gigabytes = figures.get("gigabytes").filter(|g| *g > 0.0).context("nothing came through")?;
        figures.set("cpu_s_per_gb", used.system / gigabytes);
        figures.set("daemon_s_per_gb", used.processes / gigabytes);
        figures.set("stolen_s", used.stolen);
        Ok(figures)
    }

    /// Datagrams with so many bytes of payload, all that the sender can give or at a rate: `rx_per_s`, `tx_per_s`, `cpu_us_each`,
    /// `daemon_us_each`.
    ///
    /// # Errors
    /// When nothing comes through.
    pub fn datagrams(&self, path: Path<'_>, rate: Option<u32>, size: usize) -> Result<Figures> {
        let (seconds, warm_up) = (self.seconds.to_string(), WARM_UP.to_string());
        let serve = words(["count", "--seconds", &seconds, "--warm-up", &warm_up]);
        let mut send = words(["blast", "--size", &size.to_string()]);
        send.extend(rate.into_iter().flat_map(|rate| ["--rate".to_owned(), rate.to_string()]));
        // The sender outlasts the receiver's window.
        let length = self.seconds + WARM_UP + 0.1;
        let (mut figures, used) = self.run(path, Cpus::Any, serve, send, End::Server, length)?;
        let received = figures.get("received").filter(|n| *n > 0.0).context("nothing came through")?;
        figures.set("cpu_us_each", used.system * 1e6 / received);
        figures.set("daemon_us_each", used.processes * 1e6 / received);
        Ok(figures)
    }

    /// Requests and answers, one at a time: `p50_us`, `p99_us`, `p999_us`, `lost`.
    ///
    /// # Errors
    /// When nothing comes through.
    pub fn round_trips(&self, path: Path<'_>, protocol: Protocol, cpus: Cpus) -> Result<Figures> {
        let name = if protocol == Protocol::Tcp { "tcp" } else { "udp" };
        let serve = words(["echo", "--protocol", name]);
        let send = words(["ask", "--protocol", name]);
        // Thousands of samples come in a second.
        let seconds = self.seconds / 2.0;
        Ok(self.run(path, cpus, serve, send, End::Client, seconds)?.0)
    }

    /// Short connections, 16 at a time: `per_s`, `p50_us`, `p99_us`, `cpu_us_each`, `errors`.
    ///
    /// # Errors
    /// When nothing comes through.
    pub fn connections(&self, path: Path<'_>) -> Result<Figures> {
        let (serve, send) = (words(["accept"]), words(["connect"]));
        let (mut figures, used) = self.run(path, Cpus::Any, serve, send, End::Client, self.seconds)?;
        if let Some(done) = figures.get("done") {
            figures.set("cpu_us_each", used.system * 1e6 / done);
        }
        Ok(figures)
    }

    /// UDP flows, a datagram each way, within `limit` seconds: `flows`, `answered`, `per_s`, `cpu_us_each`.
    ///
    /// # Errors
    /// When nothing comes through.
    pub fn flows(&self, path: Path<'_>, flows: u32, limit: f64) -> Result<Figures> {
        let sockets = flows.div_ceil(u32::from(FLOW_PORTS)).to_string();
        let (serve, send) = (words(["echo-many"]), words(["open-flows", "--sockets", &sockets]));
        let (mut figures, used) = self.run(path, Cpus::Any, serve, send, End::Client, limit)?;
        let answered = figures.get("answered").filter(|n| *n > 0.0).context("no flow was answered")?;
        figures.set("cpu_us_each", used.system * 1e6 / answered);
        Ok(figures)
    }

    /// Runs the two ends of a load, the client for `seconds`. The end that tells is waited for; the server of a client
    /// that tells is stopped.
    fn run(
        &self,
        path: Path<'_>,
        cpus: Cpus,
        serve: Vec<String>,
        send: Vec<String>,
        tells: End,
        seconds: f64,
    ) -> Result<(Figures, Cpu)> {
        go_on()?;
        let limit = seconds + MARGIN;
        let log = self.dir().join("server.log");
        drop(std::fs::remove_file(&log));
        let _pinned = (cpus == Cpus::One).then(|| Pinned::to_first_cpu(path.pids));
        let (port, limit_word) = (path.port.to_string(), limit.to_string());
        let mut server = self.command(path.server, cpus, End::Server, serve);
        server.args(["--port", &port, "--limit", &limit_word]);
        let mut server = Background::start(&mut server, &log);
        wait_until("the load's server listens", Duration::from_secs(20), || {
            server.log().lines().any(|l| l == "ready") || server.wait(Duration::ZERO).is_some()
        });
        ensure!(server.log().contains("ready"), "the load's server ended: {}", server.log().trim());
        let mut client = self.command(path.client, cpus, End::Client, send);
        let to = format!("{}:{}", path.address, path.port);
        client.args(["--to", &to, "--seconds", &seconds.to_string()]);
        let before = Cpu::read(path.pids);
        let client = run(&mut client, Duration::from_secs_f64(limit));
        let mut used = Cpu::read(path.pids).since(before);
        go_on()?;
        ensure!(client.status.success(), "the load failed: {}", client.stderr.trim());
        let mut figures = parse(&client.stdout)?;
        if tells == End::Server {
            let code =
                server.wait(Duration::from_secs_f64(limit)).context("the load's server does not end")?;
            ensure!(code == 0, "the load's server failed: {}", server.log().trim());
            used = Cpu::read(path.pids).since(before);
            figures.merge(parse(&server.log())?);
        }
        Ok((figures, used))
    }

    fn command(&self, at: &Namespace, cpus: Cpus, end: End, part: Vec<String>) -> Command {
        let me = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
        let mut command = at.command(&[]);
        command.arg(me).arg("load").args(part);
        match (cpus, end) {
            (Cpus::Any, _) => {}
            (Cpus::One, _) | (Cpus::Two, End::Client) => {
                command.args(["--cpu", "0"]);
            }
            (Cpus::Two, End::Server) => {
                command.args(["--cpu", "1"]);
            }
        }
        command.current_dir(self.dir());
        command
    }
}

/// An end of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Client,
    Server,
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn parse(output: &str) -> Result<Figures> {
    let line = output.lines().rev().find(|l| l.starts_with('{')).context("a load that told nothing")?;
    serde_json::from_str(line).with_context(|| format!("not figures: {line}"))
}

/// Daemons whose threads stay on CPU 0 until this is dropped.
struct Pinned(Vec<(Pid, CpuSet)>);

impl Pinned {
    fn to_first_cpu(pids: &[u32]) -> Self {
        let mut first = CpuSet::new();
        // The first CPU is always within a set.
        let _ = first.set(0);
        let mut kept = Vec::new();
        for thread in threads(pids).into_iter().map(Pid::from_raw) {
            // A thread that has ended meanwhile needs no place.
            if let Ok(before) = sched_getaffinity(thread)
                && sched_setaffinity(thread, &first).is_ok()
            {
                kept.push((thread, before));
            }
        }
        Self(kept)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        for (thread, before) in &self.0 {
            let _ = sched_setaffinity(*thread, before);
        }
    }
}
