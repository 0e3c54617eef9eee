//! A host whose names are systemd-resolved's: swd asks its stub for what it does not know, and it asks swd for containers.

use std::fs;

use tests::names::{addresses, attach, dig, dig_at};
use tests::netns::Namespace;
use tests::outside;
use tests::process::{Background, s, wait_until};
use tests::resolved::{Resolved, STUB};
use tests::site::Site;

/// A server outside that knows one name of its own, and writes down what it is asked.
struct Server {
    ns: Namespace,
    dnsmasq: Background,
}

impl Server {
    fn outside_of(site: &Site) -> Self {
        let ns = outside::unwatched(&site.host);
        let words = [
            "dnsmasq",
            "--no-daemon",
            "--no-resolv",
            "--no-hosts",
            "--conf-file=/dev/null",
            "--log-queries",
            "--local-ttl=60",
            "--listen-address=172.16.0.1",
            "--bind-interfaces",
            "--host-record=shop.example,192.0.2.7",
            "--txt-record=long.example,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "--address=/example/",
        ];
        let dnsmasq = ns.start(&words, &site.file("dnsmasq.log"));
        wait_until("dnsmasq listens", s(10), || dnsmasq.log().contains("started"));
        Self { ns, dnsmasq }
    }

    fn asked(&self, name: &str) -> bool {
        self.dnsmasq.log().contains(name)
    }
}

/// Starts swd where resolv.conf is the one that resolved keeps.
fn start_swd(site: &mut Site, resolved: &Resolved) {
    let file = resolved.resolv_conf();
    let kept = fs::read_to_string(&file).expect("resolved keeps a resolv.conf");
    assert!(kept.lines().any(|l| l == format!("nameserver {STUB}")), "{kept}");
    let mounted = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", file.display());
    site.start_by(&["unshare", "--mount", "--propagation", "slave", "sh", "-c", &mounted, "sh"]);
}

#[test]
fn what_swd_does_not_know_is_asked_of_the_stub() {
    let mut site = Site::stopped();
    let server = Server::outside_of(&site);
    let mut resolved = Resolved::start(&site.host, "DNS=172.16.0.1");
    start_swd(&mut site, &resolved);
    let web = attach(&site, "web", "172.18.0.10", &[]);
    assert_eq!(addresses(&web.ns, "shop.example"), ["192.0.2.7"]);
    assert_eq!(dig(&web.ns, &["+short", "+tcp", "shop.example"]).trim(), "192.0.2.7");
    let long = dig(&web.ns, &["+short", "long.example", "TXT"]);
    assert!(long.contains(&"A".repeat(64)), "{long}");
    assert!(dig(&web.ns, &["nobody.example"]).contains("status: NXDOMAIN"));
    // What is swd's own goes neither to resolved nor beyond it.
    assert!(dig(&web.ns, &["nobody.default.swd.internal"]).contains("status: NXDOMAIN"));
    assert!(dig(&web.ns, &["-x", "172.18.0.77"]).contains("status: NXDOMAIN"));
    assert!(!server.asked("swd.internal") && !server.asked("172.18.0.77"), "{}", server.dnsmasq.log());

    // It may be restarted; what was said is kept meanwhile, and the rest is a failure, soon.
    resolved.stop();
    assert_eq!(addresses(&web.ns, "shop.example"), ["192.0.2.7"]);
    assert!(dig(&web.ns, &["other.example"]).contains("status: SERVFAIL"));
    resolved.restart();
    assert!(dig(&web.ns, &["other.example"]).contains("status: NXDOMAIN"));
    server.ns.ping("172.16.0.2");
}

/// As docs/names.md has it: for the names of containers resolved asks swd, and for nothing else.
#[test]
fn the_hosts_programs_find_containers_by_name() {
    let mut site = Site::with_config("[dns]\nlisten = \"127.0.0.1:5353\"\n");
    let server = Server::outside_of(&site);
    let mut resolved = Resolved::start(&site.host, "DNS=172.16.0.1");
    let _web = attach(&site, "web", "172.18.0.10", &["--alias", "shop"]);
    resolved.ctl(&["dns", "sw0", "127.0.0.1:5353"]);
    resolved.ctl(&["domain", "sw0", "~swd.internal", "~18.172.in-addr.arpa"]);
    resolved.ctl(&["default-route", "sw0", "no"]);
    // It asks by a link only once that has a carrier.
    let ready = |resolved: &Resolved| {
        wait_until("resolved asks by sw0", s(10), || {
            resolved.ctl(&["status", "sw0"]).contains("Current Scopes: DNS")
        });
    };
    ready(&resolved);
    let known = |resolved: &Resolved, site: &Site| {
        // The C library, by resolv.conf; resolved's own client, by the bus; a client of the stub.
        let found = resolved.try_run(&["getent", "ahostsv4", "web.default.swd.internal"]).ok().stdout;
        assert!(found.starts_with("172.18.0.10 "), "{found}");
        let found = resolved.ctl(&["query", "shop.default.swd.internal"]);
        assert!(found.contains("172.18.0.10"), "{found}");
        let stub = |words: &[&str]| dig_at(&site.host, STUB, words).trim().to_owned();
        assert_eq!(stub(&["+short", "-x", "172.18.0.10"]), "web.default.swd.internal.");
        assert!(stub(&["nobody.default.swd.internal"]).contains("status: NXDOMAIN"));
        assert_eq!(stub(&["+short", "shop.example"]), "192.0.2.7");
        assert!(stub(&["nobody.example"]).contains("status: NXDOMAIN"));
    };
    known(&resolved, &site);
    resolved.restart();
    ready(&resolved);
    known(&resolved, &site);
    assert_eq!(site.replace(), 0);
    resolved.ctl(&["flush-caches"]);
    known(&resolved, &site);
    assert!(!server.asked("swd.internal") && !server.asked("172.18.0.10"), "{}", server.dnsmasq.log());
    let refused = site.json(&["status"])["names"]["refused"].clone();
    assert_eq!(refused, 0, "swd was asked for names that are not its own");
}
