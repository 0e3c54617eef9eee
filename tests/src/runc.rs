//! Containers of runc, which know of swd by a hook only: `swctl attach`, as docs/cni.md has it.
//!
//! They run in an [`Enclosure`] on a site's host, and so does swd: process ids mean the same to both.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::containers::{Containers, server};
use crate::enclosure::{Enclosure, busybox};
use crate::process::{Output, TIMEOUT, binary, run};
use crate::site::Site;

/// `/run` is the test's own.
const MOUNTS: &str = r#"
mkdir -p "$1/run/netns"
mount --bind "$1/run" /run
"#;

/// runc.
#[derive(Debug)]
pub struct Runc {
    /// Where it runs, and swd. First: the mounts go before the folder that they are in.
    pub enclosure: Enclosure,
    dir: TempDir,
    group: String,
    swctl: String,
}

impl Runc {
    /// runc on the site's host. Starts swd.
    ///
    /// # Panics
    /// When one of them cannot be had.
    #[track_caller]
    pub fn start(site: &mut Site) -> Self {
        let dir = TempDir::with_prefix("swd-runc-").expect("a temporary folder");
        let enclosure = Enclosure::new(&site.host, dir.path(), MOUNTS, site.name());
        let swctl = format!("{} --socket {}", binary("swctl").display(), site.socket().display());
        enclosure.start_swd(site);
        Self { enclosure, dir, group: site.name().to_owned(), swctl }
    }

    /// Runs a command of runc's.
    pub fn try_runc(&self, words: &[&str]) -> Output {
        let mut command = self.enclosure.command();
        command.args(["runc", "--root"]).arg(self.dir.path().join("state"));
        run(command.args(words), TIMEOUT)
    }

    /// Runs a command of runc's, which must succeed.
    #[track_caller]
    pub fn runc(&self, words: &[&str]) -> Output {
        self.try_runc(words).ok()
    }

    /// Makes a container's folder: its program is this script, its resolver this address, and its hook attaches it with these options.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    pub fn bundle(&self, name: &str, script: &str, resolver: &str, options: &[&str]) -> PathBuf {
        let bundle = self.dir.path().join(name);
        if !bundle.exists() {
            fs::create_dir_all(&bundle).expect("a folder");
            busybox(&bundle);
            fs::create_dir_all(bundle.join("root/etc")).expect("a folder");
        }
        fs::write(bundle.join("root/etc/resolv.conf"), format!("nameserver {resolver}\n")).expect("write");
        let path = bundle.join("config.json");
        drop(fs::remove_file(&path));
        self.runc(&["spec", "--bundle", bundle.to_str().expect("UTF-8")]);
        let text = fs::read_to_string(&path).expect("runc's specification");
        let mut spec: Value = serde_json::from_str(&text).expect("JSON");
        spec["root"] = json!({ "path": "root", "readonly": false });
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["sh", "-c", script]);
        for set in ["bounding", "effective", "permitted"] {
            // For ping.
            let capabilities = spec["process"]["capabilities"][set].as_array_mut().expect("capabilities");
            capabilities.push(json!("CAP_NET_RAW"));
        }
        spec["linux"]["cgroupsPath"] = json!(format!("/{}/{name}", self.group));
        // As docs/cni.md has it.
        let attach = format!(
            "exec {} attach $(grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*') --name {name} {}",
            self.swctl,
            options.join(" ")
        );
        let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", attach], "env": ["PATH=/usr/bin:/bin"] });
        spec["hooks"] = json!({ "createRuntime": [hook] });
        fs::write(&path, spec.to_string()).expect("write");
        bundle
    }

    /// Starts a container that answers HTTP on port 80 with its name.
    pub fn try_serve(&self, name: &str, resolver: &str, options: &[&str]) -> Output {
        let bundle = self.bundle(name, &server(name), resolver, options);
        // What it writes goes to a file: it outlives the command that starts it.
        let script = r#"exec runc --root "$1" run -d --bundle "$2" "$3" </dev/null >"$2/log" 2>&1"#;
        let mut command = self.enclosure.command();
        command.args(["sh", "-c", script, "sh"]).arg(self.dir.path().join("state")).arg(&bundle).arg(name);
        let mut out = run(&mut command, TIMEOUT);
        out.stderr = fs::read_to_string(bundle.join("log")).expect("its log");
        out
    }

    /// The same, which must succeed.
    #[track_caller]
    pub fn serve(&self, name: &str, resolver: &str, options: &[&str]) {
        self.try_serve(name, resolver, options).ok();
    }

    /// The id of a container's first process.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn pid(&self, name: &str) -> String {
        self.runc(&["state", name]).json()["pid"].as_u64().expect("a process id").to_string()
    }

    /// Removes containers, running or not.
    #[track_caller]
    pub fn remove(&self, containers: &[&str]) {
        for name in containers {
            self.runc(&["delete", "--force", name]);
        }
    }
}

impl Containers for Runc {
    fn try_exec(&self, container: &str, words: &[&str]) -> Output {
        self.try_runc(&[&["exec", container], words].concat())
    }
}
