//! A hundred containers come and go at once, round after round: nothing is left behind, and no address is given twice.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::thread;

use tests::netns::Namespace;
use tests::process::{s, wait_until};
use tests::site::{GATEWAY, Site};

const CONTAINERS: usize = 100;
/// Calls at once.
const CALLERS: usize = 8;

/// `SWD_CROWD_ROUNDS=10 make test` for more.
fn rounds() -> usize {
    std::env::var("SWD_CROWD_ROUNDS").map_or(2, |n| n.parse().expect("SWD_CROWD_ROUNDS is a number"))
}

/// Does something with all of them, several at once.
fn at_once<T: Send, R: Send>(all: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let (queue, results) = (Mutex::new(all), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                loop {
                    let Some(one) = queue.lock().expect("no panic").pop() else { return };
                    let result = work(one);
                    results.lock().expect("no panic").push(result);
                }
            });
        }
    });
    results.into_inner().expect("no panic")
}

/// What could be left behind: descriptors of swd, interfaces of the switch namespace and the host.
fn footprint(site: &Site) -> (usize, Vec<String>, Vec<String>) {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", site.pid())).expect("swd runs").count();
    (descriptors, site.switch().links(), site.host.links())
}

fn attach(site: &Site, ns: &Namespace) -> String {
    let port = site.json(&["attach", ns.name(), "--name", ns.name()]);
    port["addresses"][0].as_str().expect("an address").to_owned()
}

#[test]
fn a_hundred_come_and_go_at_once() {
    let site = Site::new();
    // What is opened at the first use stays open.
    let first = Namespace::bare();
    attach(&site, &first);
    first.ping(GATEWAY);
    site.ctl(&["detach", first.name()]);
    let before = footprint(&site);

    for round in 0..rounds() {
        let spaces = at_once(vec![(); CONTAINERS], |()| Namespace::bare());
        let given = at_once(spaces.iter().collect(), |ns| attach(&site, ns));
        let different: BTreeSet<_> = given.iter().collect();
        assert_eq!(different.len(), CONTAINERS, "round {round}: an address was given twice: {given:?}");
        spaces[0].ping(GATEWAY);
        // Half of them are detached, half just end.
        let numbered: Vec<_> = spaces.into_iter().enumerate().collect();
        at_once(numbered, |(number, ns)| {
            if number % 2 == 0 {
                site.ctl(&["detach", ns.name()]);
            }
            ns.delete();
        });
        wait_until("ports and leases are gone", s(20), || {
            let network = site.row(&["network", "ls"], "name", "default").expect("default");
            let ports = site.rows(&["port", "ls"]).into_iter().filter(|p| p["kind"] != "host").count();
            (ports, &network["leases"]) == (0, &0.into())
        });
        wait_until(&format!("round {round}: nothing is left behind of {before:?}"), s(20), || {
            footprint(&site) == before
        });
    }
}
