//! Names for the host itself, where the configuration asks for them.

use std::fs;

use tests::names::{attach, dig_at};
use tests::netns::Namespace;
use tests::process::{Background, s, wait_for_answer};
use tests::site::Site;

const CONFIG: &str = "[dns]\nlisten = \"127.0.0.1:5353\"\n";

#[track_caller]
fn dig(site: &Site, words: &[&str]) -> String {
    dig_at(&site.host, "127.0.0.1", &[&["-p", "5353"], words].concat())
}

#[test]
fn the_host_knows_the_names_of_all_networks() {
    let mut site = Site::with_config(CONFIG);
    site.ctl(&["network", "add", "dark", "--subnet", "10.7.0.0/16", "--no-host-access"]);
    let _web = attach(&site, "web", "172.18.0.10", &["--alias", "shop"]);
    let _db = attach(&site, "db", "10.7.0.10", &["--network", "dark"]);
    let short = |site: &Site, name: &str| dig(site, &["+short", name]).trim().to_owned();
    for _ in 0..2 {
        for name in ["web.default.swd.internal", "WEB.default", "shop.default.swd.internal"] {
            assert_eq!(short(&site, name), "172.18.0.10", "{name}");
        }
        assert_eq!(dig(&site, &["+tcp", "+short", "db.dark.swd.internal"]).trim(), "10.7.0.10");
        assert_eq!(dig(&site, &["+short", "-x", "10.7.0.10"]).trim(), "db.dark.swd.internal.");
        for (name, status) in [
            ("nobody.default.swd.internal", "NXDOMAIN"),
            ("web.dark.swd.internal", "NXDOMAIN"),
            ("example.org", "REFUSED"),
            ("web", "REFUSED"),
        ] {
            assert!(dig(&site, &[name]).contains(&format!("status: {status}")), "{name}");
        }
        // The next one has the address, too.
        assert_eq!(site.replace(), 0);
    }
    site.ctl(&["detach", "web"]);
    assert!(dig(&site, &["web.default.swd.internal"]).contains("status: NXDOMAIN"));
}

/// As a resolver of the host's asks: that domain there, and nothing else.
#[test]
fn a_resolver_of_the_host_sends_its_questions() {
    let site = Site::with_config(CONFIG);
    let _web = attach(&site, "web", "172.18.0.10", &[]);
    let words = [
        "dnsmasq",
        "--no-daemon",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--listen-address=127.0.0.54",
        "--bind-interfaces",
        "--server=/swd.internal/127.0.0.1#5353",
        "--rev-server=172.18.0.0/16,127.0.0.1#5353",
    ];
    let _dnsmasq: Background = site.host.start(&words, &site.file("dnsmasq.log"));
    let ask = |words: &[&str]| dig_at(&site.host, "127.0.0.54", words).trim().to_owned();
    wait_for_answer("172.18.0.10", || Ok(ask(&["+short", "web.default.swd.internal"])));
    assert_eq!(ask(&["+short", "-x", "172.18.0.10"]), "web.default.swd.internal.");
}

#[test]
fn an_address_that_cannot_be_had_is_named() {
    for (listen, why) in [
        ("9.9.9.9:5353", "cannot answer for names at 9.9.9.9:5353 ([dns] listen)"),
        ("127.0.0.1:5354", "a port that nobody has"),
        ("0.0.0.0:53", "is not one address and port of the host"),
        ("localhost", "not an address with a port"),
    ] {
        let host = Namespace::new();
        let _other = host.udp("127.0.0.1:5354");
        let mut site = Site::stopped_on(host);
        let path = site.file("swd.toml");
        fs::write(&path, format!("[dns]\nlisten = \"{listen}\"\n")).expect("write");
        let file = path.display().to_string();
        site = site.arguments(&["--uplink", "none", "--config", &file]);
        site.spawn();
        tests::process::wait_until("swd ends", s(20), || !site.alive());
        assert!(site.log().contains(why), "{listen}: {}", site.log());
    }
}
