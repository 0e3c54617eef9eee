//! Run programs: with a time limit, their output kept, and never left behind.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;

/// How long a program may take where a test says nothing else.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// The programs that the tests run.
const PROGRAMS: [&str; 31] = [
    "ip",
    "nsenter",
    "setpriv",
    "ping",
    "curl",
    "iperf3",
    "dhclient",
    "dhcpcd",
    "dig",
    "dnsmasq",
    "dbus-daemon",
    "mtr",
    "nc",
    "scp",
    "sshd",
    "ssh-keygen",
    "traceroute",
    "tcpdump",
    "python3",
    "rdisc6",
    "ethtool",
    "nft",
    "iptables-save",
    "script",
    "sysctl",
    "mount",
    "unshare",
    "dockerd",
    "podman",
    "runc",
    "musl-gcc",
];

/// Fails the test where it cannot run. Never skips: a test that did not run has shown nothing.
///
/// # Panics
/// When not root, or when a program is missing.
pub fn require() {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let missing = MISSING.get_or_init(|| {
        if !geteuid().is_root() {
            return Some(
                "these tests make network namespaces and need root: run 'sudo -E make test'".to_owned(),
            );
        }
        let missing: Vec<_> = PROGRAMS.into_iter().filter(|p| which(p).is_none()).collect();
        let found = missing.is_empty();
        (!found).then(|| format!("missing programs: {}; run 'make install-deps'", missing.join(" ")))
    });
    if let Some(message) = missing {
        panic!("{message}");
    }
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file())
}

/// A binary of this workspace, built beside the running test or program.
///
/// # Panics
/// When it is not there: `make test` builds it first.
pub fn binary(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("the program's own path");
    let folder = me.parent().expect("target/<profile>, or a folder in it: of a test or an example");
    let within = ["deps", "examples"].iter().any(|within| folder.ends_with(within));
    let profile = if within { folder.parent().expect("target/<profile>") } else { folder };
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run 'cargo build --workspace --bins' (or 'make test')",
        path.display()
    );
    path
}

/// A program that need not be in the PATH: the machine's, or one that `make install-deps` has put into `target/programs`.
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn program(path: &str) -> PathBuf {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/programs");
    let places =
        [Path::new("/usr"), Path::new("/"), &unpacked.join("usr"), &unpacked].map(|at| at.join(path));
    let found = places.into_iter().find(|p| p.is_file());
    found.unwrap_or_else(|| panic!("{path} is missing: run 'make install-deps'"))
}

/// The Python interpreter itself: a `python3` that is a version manager's shell script takes long to start.
pub fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let out =
            run(Command::new("python3").args(["-c", "import sys; print(sys.executable)"]), TIMEOUT).ok();
        PathBuf::from(out.stdout.trim())
    })
}

/// A file of `tests/tools`.
pub fn tool(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(name)
}

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Its exit code; 128 + N when signal N ended it, as a shell has it.
    pub fn code(&self) -> i32 {
        code(self.status)
    }

    /// It must have succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// It must have failed with exit code 1 or 2 and one line on stderr, which is given back.
    ///
    /// # Panics
    /// When it did something else.
    #[track_caller]
    pub fn one_line_error(&self) -> String {
        assert!(matches!(self.code(), 1 | 2), "not exit code 1 or 2: {self}");
        let lines: Vec<_> = self.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "not one line on stderr: {self}");
        assert!(lines[0].starts_with("error: "), "does not begin with 'error: ': {self}");
        lines[0].to_owned()
    }

    /// Its standard output as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {self}"))
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, status, stdout, stderr } = self;
        write!(f, "$ {command}\n{status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Copies a program to where anybody may execute it.
///
/// Another process writes the copy: a descriptor of ours would be inherited by what a test beside this one starts at the same
/// moment, and until that has begun its own program the kernel refuses to execute the copy (ETXTBSY).
///
/// # Panics
/// When it cannot be copied.
#[track_caller]
pub fn copy_program(from: &Path, to: &Path) {
    run(Command::new("install").args(["-m", "755"]).arg(from).arg(to), Duration::from_secs(10)).ok();
}

/// Runs a program to its end.
///
/// # Panics
/// When it does not start, or does not end in time (it is killed then).
#[track_caller]
pub fn run(command: &mut Command, timeout: Duration) -> Output {
    run_with_input(command, &[], timeout)
}

/// Runs a program to its end, with `input` on its standard input.
///
/// # Panics
/// When it does not start, or does not end in time (it is killed then).
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8], timeout: Duration) -> Output {
    let line = show(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start '{line}': {e}"));
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    // A program that does not read its input must not block us, nor is it an error.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let status = wait(&mut child, timeout);
    let late = status.is_none();
    let status = status.unwrap_or_else(|| {
        drop(child.kill());
        child.wait().expect("wait")
    });
    writer.join().expect("writer");
    let output = Output { command: line, status, stdout: text(stdout), stderr: text(stderr) };
    assert!(!late, "took longer than {timeout:?}: {output}");
    output
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            drop(pipe.read_to_end(&mut bytes));
        }
        bytes
    })
}

fn text(reader: thread::JoinHandle<Vec<u8>>) -> String {
    String::from_utf8_lossy(&reader.join().expect("reader")).into_owned()
}

fn wait(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return Some(status);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(Duration::from_millis(3));
    }
}

/// A program in the background, its output in a file. It is killed when this is dropped.
#[derive(Debug)]
pub struct Background {
    child: Child,
    line: String,
    log: PathBuf,
}

impl Background {
    /// Starts it; stdout and stderr go to `log`.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let line = show(command);
        let out = File::options().create(true).append(true).open(log).expect("log file");
        let err = out.try_clone().expect("log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start '{line}': {e}"));
        Self { child, line, log: log.to_owned() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        let _ = kill(Pid::from_raw(pid), signal);
    }

    /// Its exit code, when it ends within `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Option<i32> {
        wait(&mut self.child, timeout).map(code)
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// It must end by itself, with exit code 0. Gives what it wrote.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn finish(mut self, timeout: Duration) -> String {
        let code = self.wait(timeout);
        let log = self.log();
        assert_eq!(code, Some(0), "$ {}\n{log}", self.line);
        log
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Waits for `condition`, asking again and again.
///
/// # Panics
/// When it does not come true in time: `what` is the message.
#[track_caller]
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + timeout;
    while !condition() {
        assert!(Instant::now() < end, "not within {timeout:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for a value, asking again and again.
///
/// # Panics
/// When there is none in time: `what` is the message.
#[track_caller]
pub fn wait_for<T>(what: &str, timeout: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    wait_until(what, timeout, || {
        found = ask();
        found.is_some()
    });
    found.expect("just found")
}

/// Waits until `ask` is answered so: what was started may not listen yet.
///
/// # Panics
/// When that takes longer than ten seconds: the last answer is the message.
#[track_caller]
pub fn wait_for_answer(expected: &str, mut ask: impl FnMut() -> Result<String, String>) {
    let end = Instant::now() + s(10);
    loop {
        match ask() {
            Ok(answer) if answer == expected => return,
            other => assert!(Instant::now() < end, "'{expected}' is not answered, but {other:?}"),
        }
        thread::sleep(ms(20));
    }
}

/// Seconds, for short test lines.
pub const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Milliseconds, for short test lines.
pub const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
