//! A small world in which the daemon changes: what is to outlive it is held against this.

use crate::netns::{Namespace, veth};
use crate::outside::Outside;
use crate::site::{Container, Site, Way};

/// How the daemon ends and the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// SIGTERM, and a start.
    Terminate,
    /// `swd --replace`.
    Replace,
    /// `kill -9`, and a start.
    Kill,
}

impl Change {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Terminate, Self::Replace, Self::Kill];

    /// Does it, and waits until the next one is ready.
    ///
    /// # Panics
    /// When one does not end or begin.
    #[track_caller]
    pub fn happen(self, site: &mut Site) {
        let before = site.pid();
        match self {
            Self::Terminate => {
                assert_eq!(site.terminate(), 0);
                site.start();
            }
            Self::Replace => assert_eq!(site.replace(), 0),
            Self::Kill => {
                site.kill();
                site.start();
            }
        }
        assert_ne!(site.pid(), before);
    }
}

/// A host with the outside and a host behind it, and two containers.
#[derive(Debug)]
pub struct World {
    /// The next hop of the host. First, so that its watch ends while swd runs.
    pub wan: Outside,
    /// 203.0.113.7, behind it.
    pub far: Namespace,
    /// 172.18.0.10, by a veth pair.
    pub web: Container,
    /// 172.18.0.20, by a TAP device.
    pub job: Container,
    /// The host.
    pub site: Site,
}

impl World {
    /// With more arguments for swd.
    ///
    /// # Panics
    /// When something of it cannot be made.
    #[track_caller]
    pub fn new(more: &[&str]) -> Self {
        let mut site = Site::stopped().arguments(&[&["--uplink", "auto"], more].concat());
        let wan = Outside::new(&site.host);
        let far = Namespace::new();
        veth(("eth1", &wan), ("eth0", &far));
        wan.ip(&["addr", "add", "203.0.113.1/24", "dev", "eth1"]);
        far.ip(&["addr", "add", "203.0.113.7/24", "dev", "eth0"]);
        far.ip(&["route", "add", "default", "via", "203.0.113.1"]);
        wan.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]).ok();
        site.start();
        let web = site.container("web", Way::Attach, "172.18.0.10");
        let job = site.container("job", Way::Tap, "172.18.0.20");
        Self { wan, far, web, job, site }
    }

    /// Nothing that there was before the change was refused.
    ///
    /// # Panics
    /// When something was.
    #[track_caller]
    pub fn all_taken_over(&self, at_least: usize) {
        let status = self.site.json(&["status"]);
        let restored = &status["restored"];
        assert_eq!(restored["refused"], serde_json::json!({}), "{restored}");
        assert!(restored["connections"].as_u64().expect("a number") >= at_least as u64, "{restored}");
        assert_eq!(status["unjournalled"], 0);
    }
}
