//! A systemd-resolved of a test's own on a host: Debian's, started by hand, without systemd.
//!
//! It needs no more than a `/run` of its own, its user and, for `resolvectl`, a message bus; all of that is in an [`Enclosure`].

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::enclosure::Enclosure;
use crate::netns::Namespace;
use crate::process::{Background, Output, TIMEOUT, program, run, s, wait_until};

/// Where its stub listens.
pub const STUB: &str = "127.0.0.53";
/// Debian's package is only unpacked, so its user may be missing. The resolver of whoever runs in here is the stub.
const MOUNTS: &str = r#"
mkdir -p "$1/run/dbus" "$1/run/systemd/resolved.conf.d"
cp /etc/passwd /etc/group "$1"
grep -q ^systemd-resolve: "$1/passwd" || echo systemd-resolve:x:997:997::/:/usr/sbin/nologin >>"$1/passwd"
grep -q ^systemd-resolve: "$1/group" || echo systemd-resolve:x:997: >>"$1/group"
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
mount --bind "$1/run" /run
echo "nameserver 127.0.0.53" >"$1/resolv.conf"
mount --bind "$1/resolv.conf" /etc/resolv.conf
"#;
/// A bus on which everybody may do everything: there is only resolved on it, and who asks it.
const BUS: &str = r#"<busconfig>
<type>system</type>
<listen>unix:path=/run/dbus/system_bus_socket</listen>
<auth>EXTERNAL</auth>
<policy context="default">
<allow user="*"/><allow own="*"/>
<allow send_type="method_call"/><allow send_type="signal"/>
<allow send_type="method_return"/><allow send_type="error"/>
<allow receive_type="method_call"/><allow receive_type="signal"/>
<allow receive_type="method_return"/><allow receive_type="error"/>
</policy>
</busconfig>
"#;

/// A resolved that runs.
#[derive(Debug)]
pub struct Resolved {
    // The processes and mounts go before the folder that they are in.
    daemon: Option<Background>,
    _bus: Background,
    enclosure: Enclosure,
    dir: TempDir,
}

impl Resolved {
    /// Starts it on `host` with these lines of `resolved.conf`, and waits until its stub answers.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn start(host: &Namespace, settings: &str) -> Self {
        let dir = TempDir::with_prefix("swd-resolved-").expect("a temporary folder");
        let enclosure = Enclosure::new(host, dir.path(), MOUNTS, host.name());
        fs::write(dir.path().join("bus.conf"), BUS).expect("write");
        let mut bus = enclosure.command();
        bus.args(["dbus-daemon", "--nofork", "--nopidfile", "--config-file"])
            .arg(dir.path().join("bus.conf"));
        let bus = Background::start(&mut bus, &dir.path().join("bus.log"));
        let socket = dir.path().join("run/dbus/system_bus_socket");
        wait_until("the bus is there", s(10), || socket.exists());
        let mut resolved = Self { daemon: None, _bus: bus, enclosure, dir };
        // An empty list forgets what the machine's own configuration says.
        let usual = "[Resolve]\nDNS=\nFallbackDNS=\nDomains=\nDNSSEC=no\nLLMNR=no\nMulticastDNS=no\n";
        resolved.drop_in("50-test.conf", &format!("{usual}{settings}\n"));
        resolved.restart();
        resolved
    }

    /// Writes a file of `resolved.conf.d`, which counts from the next [`Resolved::restart`] on.
    ///
    /// # Panics
    /// When it cannot be written.
    #[track_caller]
    pub fn drop_in(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join("run/systemd/resolved.conf.d").join(name), text).expect("write");
    }

    /// `systemctl restart systemd-resolved`, were there a systemd: waits until its stub answers.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        let mut command = self.enclosure.command();
        // Its process id inside, where a signal reaches it: `nsenter` stays in front of it.
        command.args(["sh", "-c", "echo $$ >/run/pid; exec \"$0\""]);
        command.arg(program("lib/systemd/systemd-resolved"));
        let log = self.dir.path().join("resolved.log");
        let mut daemon = Background::start(&mut command, &log);
        wait_until("systemd-resolved answers", s(20), || {
            if let Some(code) = daemon.wait(s(0)) {
                panic!("systemd-resolved ended with code {code}:\n{}", daemon.log());
            }
            // By the bus, which it joins last.
            self.try_ctl(&["status"]).status.success()
        });
        self.daemon = Some(daemon);
    }

    /// Ends it, as systemd would.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn stop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        self.try_run(&["sh", "-c", "kill $(cat /run/pid)"]).ok();
        assert!(daemon.wait(s(10)).is_some(), "systemd-resolved does not end:\n{}", daemon.log());
    }

    /// Runs a program where the resolver is the stub.
    pub fn try_run(&self, words: &[&str]) -> Output {
        run(self.enclosure.command().args(words), TIMEOUT)
    }

    /// Runs `resolvectl`, which must succeed: what it wrote.
    #[track_caller]
    pub fn ctl(&self, words: &[&str]) -> String {
        self.try_ctl(words).ok().stdout
    }

    fn try_ctl(&self, words: &[&str]) -> Output {
        run(self.enclosure.command().arg(program("bin/resolvectl")).args(words), TIMEOUT)
    }

    /// The `resolv.conf` that it keeps for programs of the host: it names the stub.
    pub fn resolv_conf(&self) -> PathBuf {
        self.dir.path().join("run/systemd/resolve/stub-resolv.conf")
    }
}
