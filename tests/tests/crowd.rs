//! A hundred containers come and go at once, round after round: they are reached by their names, nothing is left behind,
//! and no address is given twice.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tests::crowd::at_once;
use tests::names::{answer, query};
use tests::netns::Namespace;
use tests::process::{Background, ms, s, wait_until};
use tests::site::{GATEWAY, Site, heavy};

const CONTAINERS: usize = 100;
/// Calls at once.
const CALLERS: usize = 8;
/// How long after its attach a container takes to be reached by its name: half of them less than this, on a machine that does other
/// things, too.
const REACHED: Duration = ms(50);
/// And none longer than this, half of what the kernel waits before it sends an ARP request again: nothing is lost on the way. On a
/// machine of two cores that does nothing else it is less than [`REACHED`] for each of a thousand, beside compilers 116 ms.
const LATEST: Duration = ms(500);

/// `SWD_CROWD_ROUNDS=10 make test` for more.
fn rounds() -> usize {
    std::env::var("SWD_CROWD_ROUNDS").map_or(2, |n| n.parse().expect("SWD_CROWD_ROUNDS is a number"))
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

/// Attaches a container; tells its address, and how long it takes from then on until `neighbor` has asked for its name, once,
/// and has its answer: to a datagram for a port that nobody has, by which frames have gone both ways.
fn attach_and_reach(site: &Site, ns: &Namespace, neighbor: &Namespace) -> (String, Duration) {
    let [names, datagrams] = [(); 2].map(|()| neighbor.udp("0.0.0.0:0"));
    names.connect((GATEWAY, 53)).expect("connect");
    for socket in [&names, &datagrams] {
        socket.set_read_timeout(Some(s(5))).expect("timeout");
    }
    let given = attach(site, ns);
    let start = Instant::now();
    names.send(&query(1, ns.name(), 1)).expect("send");
    let mut buffer = [0; 512];
    let length = names.recv(&mut buffer).unwrap_or_else(|e| panic!("no answer about {}: {e}", ns.name()));
    assert_eq!(answer(&buffer[..length]), (1, 0, 1), "{}", ns.name());
    let address = Ipv4Addr::from(*buffer[..length].last_chunk::<4>().expect("an address"));
    assert_eq!(format!("{address}/16"), given, "what {} is called by", ns.name());
    datagrams.connect((address, 9)).expect("connect");
    datagrams.send(b"there?").expect("send");
    let refused = datagrams.recv(&mut buffer).expect_err("nobody has the port");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{} at {address} is not reached", ns.name());
    (given, start.elapsed())
}

#[test]
fn a_hundred_come_and_go_at_once() {
    // The time that a container takes is looked at.
    let _heavy = heavy();
    let site = Site::new();
    let events = Background::start(&mut site.swctl_command(&["events"]), &site.file("events.log"));
    // What is opened at the first use stays open.
    let first = Namespace::bare();
    wait_until("events are told", s(20), || {
        attach(&site, &first);
        first.ping(GATEWAY);
        site.ctl(&["detach", first.name()]);
        events.log().contains("port-removed")
    });
    let neighbor = Namespace::bare();
    site.ctl(&["attach", neighbor.name(), "--name", "neighbor"]);
    let before = footprint(&site);

    for round in 0..rounds() {
        let spaces = at_once(CALLERS, vec![(); CONTAINERS], |()| Namespace::bare());
        let given = at_once(CALLERS, spaces.iter().collect(), |ns| attach_and_reach(&site, ns, &neighbor));
        let different: BTreeSet<_> = given.iter().map(|(address, _)| address).collect();
        assert_eq!(different.len(), CONTAINERS, "round {round}: an address was given twice: {given:?}");
        let mut took: Vec<_> = given.iter().map(|(_, took)| *took).collect();
        took.sort();
        let (median, latest) = (took[CONTAINERS / 2], took[CONTAINERS - 1]);
        println!("round {round}: reached by name {median:?} after the attach (median), {latest:?} at most");
        assert!(median < REACHED && latest < LATEST, "{median:?}, {latest:?}:\n{}", site.ctl(&["drops"]));
        // Once up, they stay up: old news of an interface that was just made takes none out of the floods.
        let told = events.log();
        let down = told
            .lines()
            .filter(|line| line.contains("port-down"))
            .find(|line| spaces.iter().any(|ns| line.split_whitespace().any(|word| word == ns.name())));
        assert_eq!(down, None, "round {round}");
        spaces[0].ping(GATEWAY);
        // Half of them are detached, half just end.
        let numbered: Vec<_> = spaces.into_iter().enumerate().collect();
        at_once(CALLERS, numbered, |(number, ns)| {
            if number % 2 == 0 {
                site.ctl(&["detach", ns.name()]);
            }
            ns.delete();
        });
        // The kernel has room for 1,024 neighbors, of all namespaces together (`gc_thresh3`).
        neighbor.ip(&["neigh", "flush", "all"]);
        wait_until("ports and leases are gone", s(20), || {
            let network = site.row(&["network", "ls"], "name", "default").expect("default");
            let ports = site.rows(&["port", "ls"]).into_iter().filter(|p| p["kind"] != "host").count();
            (ports, &network["leases"]) == (1, &1.into())
        });
        wait_until(&format!("round {round}: nothing is left behind of {before:?}"), s(20), || {
            footprint(&site) == before
        });
    }
}
