//! An ssh server with keys of its own, and what it takes to get in.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::netns::Namespace;
use crate::process::{Background, run, s, wait_until};

/// The port of the server.
pub const PORT: u16 = 2022;

/// A running server.
#[derive(Debug)]
pub struct Sshd {
    key: PathBuf,
    _server: Background,
}

impl Sshd {
    /// A server in a namespace, with its files in `folder` under names that begin with `name`.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn start(ns: &Namespace, folder: &Path, name: &str) -> Self {
        let path = |what: &str| folder.join(format!("{name}-{what}"));
        let file = |what: &str| path(what).display().to_string();
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &file(key)]), s(20)).ok();
        }
        let config = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nPort {PORT}\nPidFile none\nUsePAM no\nStrictModes no\nUseDNS no\n\
             PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\nMaxStartups 100\n",
            file("host"),
            file("user.pub"),
        );
        fs::write(path("config"), config).expect("write");
        // sshd wants /run/sshd: it gets a /run of its own.
        let script = format!(
            "mount -t tmpfs none /run && mkdir /run/sshd && exec /usr/sbin/sshd -De -f {}",
            file("config")
        );
        let server = ns.start(&["unshare", "--mount", "sh", "-c", &script], &path("log"));
        wait_until("sshd listens", s(10), || server.log().contains("Server listening on 0.0.0.0"));
        Self { key: path("user"), _server: server }
    }

    /// What ssh and scp need to know to get in.
    pub fn options(&self) -> Vec<String> {
        let key = self.key.display().to_string();
        let fixed = ["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"];
        let quiet = ["-o", "BatchMode=yes", "-o", "LogLevel=ERROR"];
        let all = ["-i", &key].into_iter().chain(fixed).chain(quiet);
        all.map(str::to_owned).collect()
    }

    /// A session that stays: `cat` at the far end.
    ///
    /// # Panics
    /// When ssh does not run.
    #[track_caller]
    pub fn session(&self, client: &Namespace, address: &str) -> Session {
        let port = PORT.to_string();
        let mut command = client.command(&["ssh", "-p", &port]);
        command.args(self.options()).arg(format!("root@{address}")).arg("cat");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run ssh");
        let (to, from) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Session { child, to, from: BufReader::new(from) }
    }
}

/// An ssh session with `cat` at its far end.
#[derive(Debug)]
pub struct Session {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Session {
    /// Sends a line, without waiting for it to come back.
    ///
    /// # Panics
    /// When ssh has ended.
    #[track_caller]
    pub fn say(&mut self, line: &str) {
        writeln!(self.to, "{line}").and_then(|()| self.to.flush()).expect("ssh takes a line");
    }

    /// The next line that comes back; empty if ssh has ended.
    ///
    /// # Panics
    /// When it is not text.
    #[track_caller]
    pub fn hear(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).expect("text");
        line.trim_end().to_owned()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
