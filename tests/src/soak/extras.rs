//! What comes and goes: containers and publishes, and what swd must know of them, no more and no less.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::noise::Random;
use crate::process::{s, wait_until};
use crate::site::{Container, Way};
use crate::world::World;

/// Most containers at a time.
const MOST: usize = 6;
/// Ports that are there all along: the host's ends of two networks, two containers with connections, two quiet ones.
pub(super) const OWN_PORTS: [&str; 6] = ["sw0", "sw1", "web", "job", "q1", "q2"];

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Extras {
    containers: BTreeMap<String, (Container, Way)>,
    published: BTreeSet<u16>,
    made: usize,
}

impl Extras {
    /// One more container, unless there are enough. It answers.
    #[track_caller]
    pub(super) fn attach(&mut self, random: &mut Random, world: &World) {
        if self.containers.len() == MOST {
            return self.remove(random, world);
        }
        self.made += 1;
        let way = random.pick(&[Way::Attach, Way::Tap, Way::PortAdd]);
        let (name, address) = (format!("x{}", self.made), format!("172.18.2.{}", 1 + self.made % 250));
        let container = world.site.container(&name, way, &address);
        container.ping(&world.web);
        self.containers.insert(name, (container, way));
    }

    /// The name of one, if there is one; made, if there is none.
    #[track_caller]
    pub(super) fn one(&mut self, random: &mut Random, world: &World) -> String {
        if self.containers.is_empty() {
            self.attach(random, world);
        }
        let names: Vec<&String> = self.containers.keys().collect();
        random.pick(&names).clone()
    }

    /// One of them.
    pub(super) fn container(&self, name: &str) -> (&Container, Way) {
        let (container, way) = &self.containers[name];
        (container, *way)
    }

    /// One is taken off the switch by a command.
    #[track_caller]
    pub(super) fn remove(&mut self, random: &mut Random, world: &World) {
        let name = self.one(random, world);
        let Some((container, way)) = self.containers.remove(&name) else { return };
        let site = &world.site;
        match way {
            Way::PortAdd => {
                let ifname = site.port(&name)["ifname"].as_str().expect("a name").to_owned();
                site.ctl(&["port", "rm", &name]);
                site.host.ip(&["link", "del", &ifname]);
            }
            Way::Attach | Way::Tap => drop(site.ctl(&["detach", &name])),
        }
        container.ns.delete();
    }

    /// One dies, with no word to swd.
    #[track_caller]
    pub(super) fn die(&mut self, random: &mut Random, world: &World) {
        let name = self.one(random, world);
        let Some((container, way)) = self.containers.remove(&name) else { return };
        container.ns.delete();
        let port = || world.site.row(&["port", "ls"], "name", &name);
        if way == Way::PortAdd {
            wait_until("the dead container's interface is missing", s(20), || {
                port().is_none_or(|p| p["state"] == "missing")
            });
            world.site.ctl(&["port", "rm", &name]);
        }
        wait_until("the dead container's port is gone", s(20), || port().is_none());
    }

    /// A port is published, or one that was is not any more.
    #[track_caller]
    pub(super) fn publish(&mut self, random: &mut Random, world: &World) {
        let port = 7000 + u16::from(random.byte() % 16);
        let rule = format!("{port}/udp");
        if self.published.remove(&port) {
            world.site.ctl(&["unpublish", &rule]);
        } else {
            world.site.ctl(&["publish", &rule, &format!("172.18.0.10:{port}")]);
            self.published.insert(port);
        }
    }

    /// swd knows of these, and of no others.
    #[track_caller]
    pub(super) fn check(&self, world: &World) {
        let names = |rows: Vec<Value>, key: &str| -> BTreeSet<String> {
            rows.iter().filter_map(|r| r[key].as_str().map(str::to_owned)).collect()
        };
        let site = &world.site;
        let expected: BTreeSet<String> =
            OWN_PORTS.iter().map(|p| (*p).to_owned()).chain(self.containers.keys().cloned()).collect();
        assert_eq!(
            names(site.rows(&["port", "ls"]), "name"),
            expected,
            "ports that should not be, or should"
        );
        let published = site.rows(&["published"]).len();
        assert_eq!(published, self.published.len() + 2, "publishes: {:?}", self.published);
        let default = site.row(&["network", "ls"], "name", "default").expect("the network");
        let leased = 2 + self.containers.values().filter(|(_, way)| *way != Way::PortAdd).count() as u64 + 2;
        assert_eq!(default["leases"], leased, "addresses that nobody has: {default}");
    }

    /// Takes all of it away.
    #[track_caller]
    pub(super) fn clear(&mut self, world: &World) {
        let mut random = Random(0);
        while !self.containers.is_empty() {
            self.remove(&mut random, world);
        }
        for port in std::mem::take(&mut self.published) {
            world.site.ctl(&["unpublish", &format!("{port}/udp")]);
        }
        self.check(world);
    }
}
