//! Containers of a real Podman on swd, by its CNI backend and the plugin `swd-cni`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::enclosure::{Enclosure, busybox};
use tests::outside::Outside;
use tests::process::{Output, TIMEOUT, binary, run, s, wait_for_answer, wait_until};
use tests::site::Site;

/// Whatever Podman keeps outside of the folders that it is given is the test's own.
const MOUNTS: &str = r#"
mkdir -p "$1/run/netns"
mount --bind "$1/run" /run
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /var/lib
"#;

struct Podman {
    // The mounts go before the folder that they are in.
    enclosure: Enclosure,
    dir: TempDir,
    group: String,
}

impl Podman {
    fn new(site: &Site) -> Self {
        let dir = TempDir::with_prefix("swd-podman-").expect("a temporary folder");
        let at = |name: &str| dir.path().join(name);
        for folder in ["run", "cni"] {
            fs::create_dir_all(at(folder)).expect("a folder");
        }
        let plugins = binary("swd-cni").parent().expect("a folder").display().to_string();
        let settings = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{plugins}\"]\nnetwork_config_dir = \"{}\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"runc\"\n\
             enable_port_reservation = false\ntmp_dir = \"{}\"\n",
            at("cni").display(),
            at("tmp").display(),
        );
        fs::write(at("containers.conf"), settings).expect("write");
        fs::write(at("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).expect("write");
        for (name, more) in [("lan", json!({})), ("web", json!({ "subnets": ["172.20.0.0/16"] }))] {
            let network = if name == "lan" { "default" } else { name };
            let mut plugin = json!({
                "type": "swd-cni",
                "network": network,
                "socket": site.socket(),
                "capabilities": { "portMappings": true, "ips": true, "mac": true, "aliases": true },
            });
            plugin.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            let list = json!({ "cniVersion": "1.0.0", "name": name, "plugins": [plugin] });
            fs::write(at(&format!("cni/{name}.conflist")), list.to_string()).expect("write");
        }
        let enclosure = Enclosure::new(&site.host, dir.path(), MOUNTS, site.name());
        Self { enclosure, dir, group: site.name().to_owned() }
    }

    /// Starts swd where it sees the namespaces that Podman makes.
    fn start_swd(&self, site: &mut Site) {
        let words = self.enclosure.enter();
        site.start_by(&words.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// `kill -9`, by the process id that swd knows of itself.
    fn kill_swd(&self, site: &mut Site) {
        let lock = site.runtime_dir().join(format!("{}.lock", site.name()));
        let pid = fs::read_to_string(lock).expect("swd's lock");
        run(self.enclosure.command().args(["kill", "-9", pid.trim()]), TIMEOUT).ok();
        wait_until("swd is gone", s(10), || !site.alive());
        site.kill();
    }

    fn try_podman(&self, words: &[&str]) -> Output {
        let at = |name: &str| self.dir.path().join(name);
        let mut command = self.enclosure.command();
        command.arg(format!("CONTAINERS_CONF={}", at("containers.conf").display())).arg("podman");
        command.arg("--root").arg(at("store")).arg("--runroot").arg(at("runroot"));
        run(command.args(["--storage-driver", "vfs"]).args(words), TIMEOUT)
    }

    #[track_caller]
    fn podman(&self, words: &[&str]) -> String {
        self.try_podman(words).ok().stdout.trim_end().to_owned()
    }

    fn import(&self) {
        let tar = busybox(self.dir.path());
        let path = |path: &Path| path.display().to_string();
        let policy = path(&self.dir.path().join("policy.json"));
        self.podman(&["import", "-q", "--signature-policy", &policy, &path(&tar), "box"]);
    }

    /// A container that answers HTTP on port 80 with its name.
    #[track_caller]
    fn serve(&self, name: &str, options: &[&str]) {
        let script = format!("echo I am {name} > /index.html; exec httpd -f -p 80 -h /");
        let group = format!("/{}", self.group);
        let words = ["run", "-d", "--name", name, "--cgroup-parent", &group];
        self.podman(&[&words[..], options, &["box", "sh", "-c", &script]].concat());
    }

    fn pings(&self, container: &str, address: &str) -> bool {
        self.try_podman(&["exec", container, "ping", "-c1", "-W1", address]).status.success()
    }
}

fn attached(site: &Site) -> Vec<Value> {
    site.rows(&["port", "ls"]).into_iter().filter(|p| p["kind"] != "host").collect()
}

/// Neither port, publish nor connection.
#[track_caller]
fn nothing_is_left(site: &Site) {
    wait_until("no port is left", s(10), || attached(site).is_empty());
    assert_eq!(site.rows(&["published"]), Vec::<Value>::new());
    assert_eq!(site.ctl(&["conntrack", "count"]).trim(), "0");
}

#[test]
fn containers_of_podman() {
    let mut site = Site::stopped().arguments(&["--uplink", "auto"]);
    let wan = Outside::new(&site.host);
    let podman = Podman::new(&site);
    podman.start_swd(&mut site);
    podman.import();
    let fixed = ["--network", "lan:ip=172.18.0.77,mac=02:42:00:00:00:77"];
    podman.serve("one", &[&fixed[..], &["-p", "5000:80", "-p", "6000-6099:6000-6099"]].concat());
    podman.serve("two", &["--network", "lan", "--network-alias", "second"]);
    assert_eq!(site.rows(&["published"]).len(), 2, "ports in a row are one publish");
    wait_for_answer("I am one", || wan.http("172.16.0.2:5000"));
    assert_eq!(site.host.http("127.0.0.1:5000").as_deref(), Ok("I am one"));
    assert_eq!(
        podman.podman(&["exec", "two", "wget", "-q", "-O", "-", "http://172.16.0.2:5000/"]),
        "I am one"
    );
    assert!(podman.pings("two", "172.18.0.77") && podman.pings("two", "172.16.0.1"));
    // By its name, with and without the network's, and by an alias.
    for (asks, name, says) in [("two", "one", "one"), ("two", "one.default", "one"), ("one", "second", "two")]
    {
        let fetch = ["exec", asks, "wget", "-q", "-O", "-", &format!("http://{name}/")];
        assert_eq!(podman.podman(&fetch), format!("I am {says}"), "{name}");
    }
    assert_eq!(podman.podman(&["port", "one", "80"]), "0.0.0.0:5000");
    let shown = podman.podman(&["exec", "one", "ip", "link", "show", "eth0"]);
    assert!(shown.contains("02:42:00:00:00:77"), "{shown}");

    // Another network, live.
    podman.serve("db", &["--network", "web"]);
    let db = attached(&site).into_iter().find(|p| p["network"] == "web").expect("db's port");
    let db = db["addresses"][0].as_str().and_then(|a| a.split('/').next()).expect("an address").to_owned();
    assert!(!podman.pings("two", &db), "networks are closed to each other");
    podman.podman(&["network", "connect", "web", "two"]);
    assert!(podman.pings("two", &db));
    podman.podman(&["network", "disconnect", "web", "two"]);
    assert!(!podman.pings("two", &db));

    // swd is killed, and says where it is missed.
    podman.kill_swd(&mut site);
    let refused = podman.try_podman(&["run", "--rm", "--network", "lan", "box", "true"]);
    assert!(refused.stderr.contains("cannot reach swd at"), "{refused}");
    podman.start_swd(&mut site);
    wait_for_answer("I am one", || wan.http("172.16.0.2:5000"));
    assert!(podman.pings("two", "172.18.0.77"));

    podman.podman(&["stop", "-t", "0", "one"]);
    assert_eq!((attached(&site).len(), site.rows(&["published"]).len()), (2, 0));
    podman.podman(&["start", "one"]);
    wait_for_answer("I am one", || wan.http("172.16.0.2:5000"));
    podman.podman(&["rm", "-f", "-t", "0", "one", "two", "db"]);
    nothing_is_left(&site);
}
