//! A port that is no veth: a TAP device in the host's namespace, as a virtual machine has one. It filters by MAC address, so
//! it must be promiscuous while it is a port, and only then.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread;

use switch::frame::OFFLOAD_HEADER;
use switch::sys::tun;
use tests::process::{s, wait_until};
use tests::raw::{arp_request, experiment, mac};
use tests::site::{GATEWAY, Site, Way};

const MACHINE: [u8; 6] = [2, 0, 0, 0, 0x77, 1];
const ADDRESS: [u8; 4] = [172, 18, 0, 77];

/// The far side of a TAP device: what a virtual machine's network card is.
struct Machine {
    queue: File,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Machine {
    fn new(site: &Site, ifname: &str) -> Self {
        let mut queues = site.host.enter(|| tun::open_tap(ifname, 1).expect("a TAP device"));
        let queue = File::from(queues.remove(0));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, shared) = (queue.try_clone().expect("dup"), Arc::clone(&seen));
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 17];
            loop {
                match reader.read(&mut buffer) {
                    Ok(n) => shared.lock().expect("lock").push(buffer[OFFLOAD_HEADER..n].to_vec()),
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                        thread::sleep(tests::process::ms(5));
                    }
                    Err(_) => return, // the device is gone
                }
            }
        });
        Self { queue, seen }
    }

    fn send(&mut self, frame: &[u8]) {
        self.queue.write_all(&[&[0; OFFLOAD_HEADER][..], frame].concat()).expect("write");
    }

    fn expect(&self, what: &str, matches: impl Fn(&[u8]) -> bool) {
        wait_until(what, s(5), || self.seen.lock().expect("lock").iter().any(|f| matches(f)));
    }
}

fn promiscuity(link: &serde_json::Value) -> u64 {
    link["promiscuity"].as_u64().expect("promiscuity")
}

fn is_promiscuous(link: &serde_json::Value) -> bool {
    link["flags"].as_array().expect("flags").contains(&"PROMISC".into())
}

#[test]
fn a_tap_device_of_the_host_is_a_port() {
    let mut site = Site::new();
    let c1 = site.container("c1", Way::Attach, "172.18.0.10");
    let mut machine = Machine::new(&site, "vm0");
    let before = site.host.link("vm0");
    assert!(!is_promiscuous(&before), "{before}");

    for name in ["first", "again"] {
        machine.seen.lock().expect("lock").clear();
        site.ctl(&["port", "add", "vm0", "--name", name]);
        let port = site.switch().link("vm0");
        assert!(is_promiscuous(&port) && promiscuity(&port) >= 1, "not promiscuous as a port: {port}");
        wait_until("the port is up", s(5), || site.port(name)["state"] == "up");
        assert_eq!(site.port(name)["kind"], "packet");
        // Broadcast, and unicast to an address that is not the device's own, both ways.
        machine.send(&arp_request(MACHINE, ADDRESS, [172, 18, 0, 10]));
        let m1 = mac(&c1.mac());
        machine.expect("the container's ARP reply", |f| f[..6] == MACHINE && f[6..12] == m1);
        assert_eq!(site.fdb_port("02:00:00:00:77:01").as_deref(), Some(name));
        machine.send(&experiment(m1, MACHINE, b"from the machine"));
        wait_until("it is counted", s(5), || site.port(name)["rx_packets"].as_u64() >= Some(2));
        // It stays what it is when swd is killed and started.
        site.kill();
        site.start();
        wait_until("the port is up again", s(5), || site.port(name)["state"] == "up");
        assert!(is_promiscuous(&site.switch().link("vm0")));
        machine.send(&arp_request(MACHINE, ADDRESS, [172, 18, 0, 1]));
        machine.expect("the gateway's ARP reply", |f| f[..6] == MACHINE && f[28..32] == [172, 18, 0, 1]);

        site.ctl(&["port", "rm", name]);
        let after = site.host.link("vm0");
        assert!(!is_promiscuous(&after) && promiscuity(&after) == 0, "given back promiscuous: {after}");
        assert_eq!(after["address"], before["address"]);
    }
    c1.ns.ping(GATEWAY);
    // The device ends with the machine: the port waits.
    site.ctl(&["port", "add", "vm0"]);
    let queue: OwnedFd = machine.queue.into();
    assert!(tun::is_alive(std::os::fd::AsFd::as_fd(&queue)));
    site.switch().ip(&["link", "del", "vm0"]);
    wait_until("the port is missing", s(10), || site.port("vm0")["state"] == "missing");
}
