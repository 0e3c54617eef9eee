//! A new port's addresses are announced: neighbours do not go on sending to their former owner.

use tests::for_each_port_kind;
use tests::netns::Namespace;
use tests::process::{s, wait_until};
use tests::raw::{Frame, Raw, mac};
use tests::site::{Site, Way};

const V4: &str = "172.19.0.50";
const V6: &str = "fd00:19::50";
const ARP: u16 = 0x0806;

/// The MAC that a namespace's own cache has for an address.
fn cached(ns: &Namespace, address: &str) -> Option<String> {
    let all = ns.ip_json(&["neigh", "show", address]);
    all.first()?["lladdr"].as_str().map(str::to_owned)
}

fn attach(site: &Site, way: Way, ns: &Namespace, words: &[&str]) {
    let mut all = [&["attach", ns.name()], words].concat();
    if way == Way::Tap {
        all.push("--tap");
    }
    site.ctl(&all);
}

fn is_arp_for(frame: &Frame, address: [u8; 4]) -> bool {
    frame.ethertype() == ARP && frame.bytes[28..32] == address
}

for_each_port_kind! {
    fn a_stale_neighbour_is_replaced_at_once(way) {
        let site = Site::new();
        site.ctl(&["network", "add", "dual", "--subnet", "172.19.0.0/16", "--subnet", "fd00:19::/64"]);
        let neighbour = Namespace::new();
        attach(&site, way, &neighbour, &["--network", "dual", "--name", "neighbour"]);
        let former = site.container_in("dual", "former", Way::PortAdd, V4);
        former.ns.ip(&["addr", "add", &format!("{V6}/64"), "dev", "eth0", "nodad"]);
        let caches = || {
            let seen = |ns: &Namespace| [V4, V6].map(|address| cached(ns, address));
            [seen(&neighbour), seen(&site.host)].concat()
        };
        for address in [V4, V6] {
            neighbour.ping(address);
            site.host.ping(address);
        }
        assert_eq!(caches(), vec![Some(former.mac()); 4]);

        site.ctl(&["port", "rm", "former"]);
        let new = Namespace::new();
        attach(&site, way, &new, &["--network", "dual", "--name", "new", "--ip", V4, "--ip", V6]);
        let mac = new.mac("eth0");
        assert_ne!(mac, former.mac());
        // Nobody sends anything to the address in between.
        wait_until("all four entries are the new one's", s(3), || caches() == vec![Some(mac.clone()); 4]);
        neighbour.ping(V4);
        site.host.ping(V6);
        // A container that is told of its own address complains.
        assert_eq!(cached(&new, V4), None);
    }

    fn isolated_neighbours_hear_nothing(way) {
        let site = Site::new();
        site.ctl(&["network", "add", "alone", "--subnet", "172.20.0.0/16", "--isolate-ports"]);
        let (alone, open) = (Namespace::new(), Namespace::new());
        attach(&site, way, &alone, &["--network", "alone", "--name", "alone"]);
        attach(&site, way, &open, &["--name", "open"]);
        let (deaf, hearing) = (Raw::open(&alone, "eth0"), Raw::open(&open, "eth0"));
        let host = Raw::open(&site.host, "sw1");
        let (a, b) = (Namespace::new(), Namespace::new());
        attach(&site, way, &a, &["--network", "alone", "--name", "a", "--ip", "172.20.0.60"]);
        attach(&site, way, &b, &["--name", "b", "--ip", "172.18.0.60"]);
        let heard = hearing.expect("an announcement", |f| is_arp_for(f, [172, 18, 0, 60]));
        assert_eq!(heard.bytes[6..12], mac(&b.mac("eth0")));
        host.expect("an announcement", |f| is_arp_for(f, [172, 20, 0, 60]));
        // What was sent to the isolated port before this has arrived.
        alone.ping("172.20.0.1");
        assert!(!deaf.frames().iter().any(|f| is_arp_for(f, [172, 20, 0, 60])));
    }
}
