//! The keeper is killed: what it held is given to another, or made again.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::process::{s, wait_for, wait_until};
use tests::site::{Container, GATEWAY, Site, Way};

#[track_caller]
fn keeper(site: &Site) -> i32 {
    wait_for("one keeper", s(10), || match site.keepers()[..] {
        [one] => Some(one),
        _ => None,
    })
}

fn world() -> (Site, [Container; 3]) {
    let site = Site::with_config("uplink = \"none\"\nworkers = 2\n");
    let c1 = site.container("c1", Way::Tap, "172.18.0.10");
    let c2 = site.container("c2", Way::Tap, "172.18.0.20");
    let c3 = site.container("c3", Way::PortAdd, "172.18.0.30");
    all_reach_each_other(&c1, &c2, &c3);
    (site, [c1, c2, c3])
}

fn all_reach_each_other(c1: &Container, c2: &Container, c3: &Container) {
    c1.ping(c2);
    c2.ping(c3);
    c3.ns.ping(GATEWAY);
}

#[test]
fn another_keeper_gets_the_queues_of_tap_ports() {
    let (mut site, [c1, c2, c3]) = world();
    let macs = [c1.mac(), c2.mac()];
    let indices = [&c1, &c2].map(|c| c.ns.link("eth0")["ifindex"].clone());
    for round in 1..=2 {
        let first = keeper(&site);
        kill(Pid::from_raw(first), Signal::SIGKILL).expect("kill");
        wait_until("another keeper", s(10), || site.keepers().iter().any(|k| *k != first));
        // Whoever is answered finds it at work: the control plane is one thread.
        site.ctl(&["status"]);
        all_reach_each_other(&c1, &c2, &c3);
        site.kill();
        for c in [&c1, &c2] {
            assert!(c.ns.links().contains(&"eth0".to_owned()), "round {round}: the interface ended with swd");
        }
        site.start();
        all_reach_each_other(&c1, &c2, &c3);
        assert_eq!([c1.mac(), c2.mac()], macs, "round {round}");
        let now = [&c1, &c2].map(|c| c.ns.link("eth0")["ifindex"].clone());
        assert_eq!(now, indices, "round {round}: not the same interfaces");
    }
    // What is removed now is let go of: the interface ends.
    site.ctl(&["detach", "c1"]);
    wait_until("the interface of a detached port is gone", s(5), || c1.ns.links() == ["lo"]);
}

#[test]
fn without_swd_and_keeper_tap_ports_are_made_again() {
    let (mut site, [c1, c2, c3]) = world();
    let killed = keeper(&site);
    site.signal(Signal::SIGSTOP);
    kill(Pid::from_raw(killed), Signal::SIGKILL).expect("kill");
    site.kill();
    wait_until("a TAP device ends with its last descriptor", s(10), || c1.ns.links() == ["lo"]);
    let mac = site.file("state").exists().then(|| c3.mac());
    site.start();
    all_reach_each_other(&c1, &c2, &c3);
    assert_eq!(mac, Some(c3.mac()), "veth pairs are the namespace's, which the pin holds");
    assert_ne!(keeper(&site), killed);
}
