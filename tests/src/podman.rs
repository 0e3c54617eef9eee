//! A Podman of a test's own: Debian's, with its CNI backend and the plugin `swd-cni`, beside the swd of a [`Site`].
//!
//! It runs in an [`Enclosure`] on the site's host, and so does swd: it must see the namespaces that Podman makes.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::containers::{Containers, server};
use crate::enclosure::{Enclosure, busybox};
use crate::process::{Output, TIMEOUT, binary, run};
use crate::site::Site;

/// The image of every container here: busybox, and nothing else.
pub const IMAGE: &str = "box";
/// Whatever Podman keeps outside of the folders that it is given is the test's own.
const MOUNTS: &str = r#"
mkdir -p "$1/run/netns"
mount --bind "$1/run" /run
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /var/lib
"#;

/// Podman.
#[derive(Debug)]
pub struct Podman {
    /// Where it runs, and swd. First: the mounts go before the folder that they are in.
    pub enclosure: Enclosure,
    dir: TempDir,
    group: String,
    socket: PathBuf,
}

impl Podman {
    /// Podman on the site's host, with the image [`IMAGE`] and the network `lan`, which is swd's `default`. Starts swd.
    ///
    /// # Panics
    /// When one of them cannot be had.
    #[track_caller]
    pub fn start(site: &mut Site) -> Self {
        let dir = TempDir::with_prefix("swd-podman-").expect("a temporary folder");
        for folder in ["run", "cni"] {
            fs::create_dir_all(dir.path().join(folder)).expect("a folder");
        }
        let enclosure = Enclosure::new(&site.host, dir.path(), MOUNTS, site.name());
        let new = Self { enclosure, dir, group: site.name().to_owned(), socket: site.socket() };
        let plugins = binary("swd-cni").parent().expect("a folder").display().to_string();
        let settings = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{plugins}\"]\nnetwork_config_dir = \"{}\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"runc\"\n\
             enable_port_reservation = false\ntmp_dir = \"{}\"\n",
            new.file("cni").display(),
            new.file("tmp").display(),
        );
        fs::write(new.file("containers.conf"), settings).expect("write");
        fs::write(new.file("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)
            .expect("write");
        new.network("lan", &json!({ "network": "default" }));
        new.enclosure.start_swd(site);
        let (policy, tar) = (new.file("policy.json"), busybox(new.dir.path()));
        let [policy, tar] = [policy, tar].map(|path| path.display().to_string());
        new.podman(&["import", "-q", "--signature-policy", &policy, &tar, IMAGE]);
        new
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A network by a file of its own, as docs/podman.md has it: `settings` are those of the plugin.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn network(&self, name: &str, settings: &Value) {
        let mut plugin = json!({
            "type": "swd-cni",
            "network": name,
            "socket": self.socket,
            "capabilities": { "portMappings": true, "ips": true, "mac": true, "aliases": true },
        });
        let fields = plugin.as_object_mut().expect("an object");
        fields.extend(settings.as_object().expect("settings").clone());
        let list = json!({ "cniVersion": "1.0.0", "name": name, "plugins": [plugin] });
        fs::write(self.file(&format!("cni/{name}.conflist")), list.to_string()).expect("write");
    }

    /// Runs a command of Podman's.
    pub fn try_podman(&self, words: &[&str]) -> Output {
        let mut command = self.enclosure.command();
        command.arg(format!("CONTAINERS_CONF={}", self.file("containers.conf").display())).arg("podman");
        command.arg("--root").arg(self.file("store")).arg("--runroot").arg(self.file("runroot"));
        run(command.args(["--storage-driver", "vfs"]).args(words), TIMEOUT)
    }

    /// Runs a command of Podman's, which must succeed: what it wrote, without the last line's end.
    #[track_caller]
    pub fn podman(&self, words: &[&str]) -> String {
        self.try_podman(words).ok().stdout.trim_end().to_owned()
    }

    /// `podman run -d` of a container that answers HTTP on port 80 with its name.
    pub fn try_serve(&self, name: &str, network: &str, options: &[&str]) -> Output {
        let group = format!("/{}", self.group);
        let words = ["run", "-d", "--name", name, "--network", network, "--cgroup-parent", &group];
        self.try_podman(&[&words, options, &[IMAGE, "sh", "-c", &server(name)]].concat())
    }

    /// The same, which must succeed.
    #[track_caller]
    pub fn serve(&self, name: &str, network: &str, options: &[&str]) {
        self.try_serve(name, network, options).ok();
    }

    /// Removes containers, running or not.
    #[track_caller]
    pub fn remove(&self, containers: &[&str]) {
        self.podman(&[&["rm", "-f", "-t", "0"], containers].concat());
    }
}

impl Containers for Podman {
    fn try_exec(&self, container: &str, words: &[&str]) -> Output {
        self.try_podman(&[&["exec", container], words].concat())
    }
}
