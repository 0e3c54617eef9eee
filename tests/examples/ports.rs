//! What a thousand ports cost two of them: forwarding on a switch of 2 ports and on one of 1,002, in turns.
//!
//! `cargo build --release --bins && cargo run --release -p tests --example ports` as root, on a machine that does nothing
//! else. Takes about a minute and a half.

use std::fmt::Write as _;
use std::process::Command;

use tests::netns::Namespace;
use tests::process::{run, s, wait_until};
use tests::site::{Container, Site, Way};

const PORTS: usize = 1000;
const ROUNDS: usize = 4;

/// A switch, two containers at it, and whoever else is.
struct Switch {
    site: Site,
    a: Container,
    b: Container,
    _crowd: Option<Namespace>,
}

impl Switch {
    fn new(ports: usize) -> Self {
        let site = Site::new();
        let a = site.container("a", Way::PortAdd, "172.18.0.10");
        let b = site.container("b", Way::PortAdd, "172.18.0.20");
        let crowd = (ports > 0).then(|| crowd(&site, ports));
        a.ping(&b);
        Self { site, a, b, _crowd: crowd }
    }

    /// What iperf3 says was received.
    fn iperf(&self, words: &[&str], value: &str) -> f64 {
        let server = self.b.ns.start(&["iperf3", "-s", "-1"], &self.site.file("iperf3.log"));
        wait_until("iperf3 listens", s(10), || {
            self.b.ns.run(&["ss", "-Hltn", "sport = :5201"]).stdout.contains("5201")
        });
        let all = [&["iperf3", "-c", "172.18.0.20", "-t", "3", "-O", "1", "-J"], words].concat();
        let end = self.a.ns.run(&all).ok().json()["end"].clone();
        drop(server);
        match value {
            "bits" => end["sum_received"]["bits_per_second"].as_f64().expect("bits"),
            _ => {
                let number = |key: &str| end["sum"][key].as_f64().expect("packets");
                (number("packets") - number("lost_packets")) / number("seconds")
            }
        }
    }

    fn tcp(&self) -> f64 {
        self.iperf(&[], "bits") / 1e9
    }

    /// Datagrams of 64 bytes.
    fn udp(&self) -> f64 {
        self.iperf(&["-u", "-b", "0", "-l", "64"], "packets") / 1e3
    }
}

/// Ports whose far ends are all in one namespace.
fn crowd(site: &Site, ports: usize) -> Namespace {
    let crowd = Namespace::new();
    crowd.run(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]).ok();
    let (mut here, mut there) = (String::new(), String::new());
    for n in 0..ports {
        let name = crowd.name();
        writeln!(here, "link add n{n} type veth peer name p{n} netns {name}\nlink set n{n} up")
            .expect("a String");
        writeln!(there, "link set p{n} up").expect("a String");
    }
    for (ns, lines) in [(&site.host, here), (&crowd, there)] {
        let script = site.file("links.batch");
        std::fs::write(&script, lines).expect("write");
        run(Command::new("ip").args(["-n", ns.name(), "-batch"]).arg(script), s(120)).ok();
    }
    for n in 0..ports {
        site.ctl(&["port", "add", &format!("n{n}")]);
    }
    crowd
}

fn main() {
    let few = Switch::new(0);
    let many = Switch::new(PORTS);
    println!("round  switch       TCP Gbit/s  UDP 64 B k/s");
    let mut sums = [[0.0; 2]; 2];
    for round in 1..=ROUNDS {
        for (n, switch) in [&few, &many].into_iter().enumerate() {
            let measured = [switch.tcp(), switch.udp()];
            for (sum, value) in sums[n].iter_mut().zip(measured) {
                *sum += value;
            }
            let ports = if n == 0 { 2 } else { PORTS + 2 };
            println!("{round:>5}  {ports:>4} ports  {:>11.2}  {:>12.0}", measured[0], measured[1]);
        }
    }
    let [few, many] = sums;
    println!(
        "with {} ports: TCP {:.3}, UDP {:.3} of what 2 ports do",
        PORTS + 2,
        many[0] / few[0],
        many[1] / few[1]
    );
}
