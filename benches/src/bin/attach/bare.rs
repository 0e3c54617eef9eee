//! Bare namespaces: `swctl attach` beside the `ip` commands that do the same with the kernel's bridge.

use std::net::Ipv4Addr;

use anyhow::Result;
use benches::attempt::go_on;
use tests::crowd::at_once;
use tests::netns::Namespace;
use tests::process::{TIMEOUT, run as run_program};
use tests::site::{GATEWAY, Site};

use crate::{CALLERS, Run, Side, Task, time};

/// The first address that the commands give; swd chooses its own.
const FIRST: Ipv4Addr = Ipv4Addr::new(172, 18, 1, 1);

/// `$1` is the namespace, `$2` its address.
const ATTACH: &str = r#"set -e
ip link add "v$1" type veth peer name eth0 netns "$1"
ip link set "v$1" master br0
ip link set "v$1" up
ip -n "$1" link set lo up
ip -n "$1" addr add "$2/16" dev eth0
ip -n "$1" link set eth0 up
ip -n "$1" route add default via 172.18.0.1"#;
const DETACH: &str = r#"ip link del "v$1""#;

/// Two hosts: one with swd, one with a bridge.
struct Hosts {
    site: Site,
    bridge: Namespace,
}

impl Hosts {
    fn new() -> Self {
        let bridge = Namespace::new();
        bridge.ip(&["link", "add", "br0", "type", "bridge"]);
        bridge.ip(&["addr", "add", &format!("{GATEWAY}/16"), "dev", "br0"]);
        bridge.ip(&["link", "set", "br0", "up"]);
        Self { site: Site::new(), bridge }
    }

    fn attach(&self, side: Side, ns: &Namespace, number: u32) {
        match side {
            Side::Swd => drop(self.site.ctl(&["attach", ns.name()])),
            Side::Bridge => {
                let address = Ipv4Addr::from_bits(FIRST.to_bits() + number).to_string();
                self.script(ATTACH, &[ns.name(), &address]);
            }
        }
    }

    fn detach(&self, side: Side, ns: &Namespace) {
        match side {
            Side::Swd => drop(self.site.ctl(&["detach", ns.name()])),
            Side::Bridge => self.script(DETACH, &[ns.name()]),
        }
    }

    fn script(&self, script: &str, arguments: &[&str]) {
        let words = [&["sh", "-c", script, "sh"], arguments].concat();
        run_program(&mut self.bridge.command(&words), TIMEOUT).ok();
    }
}

/// Rounds of one namespace at a time, and of many at once.
pub(crate) fn measure(run: &mut Run, crowds: u32) -> Result<()> {
    let hosts = Hosts::new();
    // They are quick: more of them, for a median that holds.
    for round in 0..run.rounds * 3 {
        for side in Side::in_turn(round) {
            go_on()?;
            let ns = Namespace::bare();
            run.note(side, Task::Attach, time(|| hosts.attach(side, &ns, round)));
            assert!(ns.pings(GATEWAY), "{side:?}: the namespace does not reach its gateway");
            run.note(side, Task::Detach, time(|| hosts.detach(side, &ns)));
        }
    }
    for round in 0..crowds * 3 {
        for side in Side::in_turn(round) {
            go_on()?;
            let spaces: Vec<_> = (0..run.crowd).map(|n| (n, Namespace::bare())).collect();
            let all = spaces.iter().collect();
            let took = time(|| at_once(CALLERS, all, |(n, ns)| hosts.attach(side, ns, *n)));
            run.note(side, Task::AttachCrowd, took / f64::from(run.crowd));
            at_once(CALLERS, spaces.iter().collect(), |(_, ns)| hosts.detach(side, ns));
        }
    }
    Ok(())
}
