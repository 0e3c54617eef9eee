//! Two Docker engines beside each other: one whose networks are swd's, one whose networks are the kernel's bridge.

use std::process::Command;

use anyhow::Result;
use benches::attempt::go_on;
use benches::machine::first_line;
use tests::containers::Containers;
use tests::crowd::at_once;
use tests::docker::{Engine, IMAGE, plugins};
use tests::netns::Namespace;
use tests::outside;
use tests::site::Site;

use crate::{CALLERS, Run, Side, Task, time};

/// The network of the containers, and the one that they are connected to while they run.
const NETWORKS: [(&str, &str); 2] = [("web", "172.20.0.0/16"), ("back", "172.21.0.0/16")];

/// Which engine it is.
pub(crate) fn version() -> String {
    first_line(Command::new("dockerd").arg("--version"))
}

/// An engine on a host of its own. What is dropped first comes first.
struct Contender {
    side: Side,
    engine: Engine,
    _outside: Namespace,
    _site: Site,
}

impl Contender {
    fn start(side: Side) -> Self {
        let mut site = Site::stopped();
        let outside = outside::unwatched(&site.host);
        let engine = match side {
            Side::Swd => {
                let folder = plugins(&site).display().to_string();
                site = site.arguments(&["--uplink", "auto", "--docker", "--docker-plugins", &folder]);
                site.start();
                Engine::start(&site, &[])
            }
            // As Docker comes: with its rules, forwarding and its proxy.
            Side::Bridge => {
                Engine::start(&site, &["--iptables=true", "--ip-forward=true", "--userland-proxy=true"])
            }
        };
        let contender = Self { side, engine, _outside: outside, _site: site };
        for (name, subnet) in NETWORKS {
            match side {
                Side::Swd => contender.engine.network(name, &["--subnet", subnet]),
                Side::Bridge => contender.engine.docker(&["network", "create", "--subnet", subnet, name]),
            };
        }
        // The first container of an engine takes longer.
        contender.start_container("first", "web", &[]);
        contender.engine.remove(&["first"]);
        contender
    }

    fn start_container(&self, name: &str, network: &str, options: &[&str]) {
        let words = ["run", "-d", "--name", name, "--network", network];
        self.engine.docker(&[&words, options, &[IMAGE, "sleep", "1000"]].concat());
    }

    fn round(&self, run: &mut Run, number: u32) {
        let (engine, side) = (&self.engine, self.side);
        let none = time(|| self.start_container("none", "none", &[]));
        engine.remove(&["none"]);
        let whole = time(|| self.start_container("one", "web", &[]));
        run.note(side, Task::None, none);
        run.note(side, Task::Run, whole);
        run.note(side, Task::Share, whole - none);
        let alive = engine.try_exec("one", &["ping", "-c1", "-W1", "172.16.0.1"]);
        assert!(alive.status.success(), "{side:?}: the container does not reach the outside: {alive}");
        run.note(side, Task::Connect, time(|| engine.docker(&["network", "connect", "back", "one"])));
        run.note(side, Task::Disconnect, time(|| engine.docker(&["network", "disconnect", "back", "one"])));
        run.note(side, Task::Remove, time(|| engine.remove(&["one"])));
        let mut published = vec![(Task::Publish, "5000:80")];
        // With a rule or four and a process for each port this takes seconds.
        if number.is_multiple_of(3) {
            published.push((Task::Range, "6000-6099:6000-6099"));
        }
        for (task, ports) in published {
            run.note(side, task, time(|| self.start_container("one", "web", &["-p", ports])));
            engine.remove(&["one"]);
        }
    }

    fn crowd(&self, run: &mut Run) {
        let names: Vec<_> = (0..run.crowd).map(|n| format!("c{n}")).collect();
        let all = names.iter().map(String::as_str).collect();
        let took = time(|| at_once(CALLERS, all, |name| self.start_container(name, "web", &[])));
        run.note(self.side, Task::Crowd, took / f64::from(run.crowd));
        self.engine.remove(&names.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// Rounds of one container at a time, then those in which many come at once.
pub(crate) fn measure(run: &mut Run, crowds: u32) -> Result<()> {
    let contenders = Side::ALL.map(Contender::start);
    let of = |side| contenders.iter().filter(move |c| c.side == side);
    for round in 0..run.rounds {
        for contender in Side::in_turn(round).into_iter().flat_map(of) {
            go_on()?;
            contender.round(run, round);
        }
    }
    for round in 0..crowds {
        for contender in Side::in_turn(round).into_iter().flat_map(of) {
            go_on()?;
            contender.crowd(run);
        }
    }
    Ok(())
}
