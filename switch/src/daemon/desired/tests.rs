use std::collections::HashSet;

use super::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const NS: NetNsId = NetNsId { dev: 4, ino: 7 };

fn network(name: &str, subnets: &[&str]) -> NetworkSpec {
    let subnets: Vec<String> = subnets.iter().map(|s| format!("\"{s}\"")).collect();
    serde_json::from_str(&format!(r#"{{"name":"{name}","subnets":[{}]}}"#, subnets.join(","))).unwrap()
}

fn world() -> Desired {
    let mut d = Desired::default();
    d.add_network("swd", &network("default", &["172.18.0.0/16", "fd00:18::/64"]), |_| false).unwrap();
    d
}

fn container(netns: &str) -> AttachSpec {
    serde_json::from_str(&format!(r#"{{"netns":"{netns}"}}"#)).unwrap()
}

fn attach(d: &mut Desired, spec: &AttachSpec) -> Result<String, EditError> {
    d.attach(spec, ("/run/netns/x".into(), NS), NOW, |_, _| false)
}

fn addresses(d: &Desired, port: &str) -> Vec<String> {
    d.ports[port].addresses().iter().map(ToString::to_string).collect()
}

fn port(ifname: &str) -> PortSpec {
    PortSpec { ifname: ifname.into(), name: None, network: None, address: None }
}

#[test]
fn networks_do_not_overlap_and_host_ends_are_numbered() {
    let mut d = world();
    let said = d.add_network("swd", &network("web", &["172.18.0.0/16"]), |_| false).unwrap_err().to_string();
    assert_eq!(
        said,
        "cannot add network web: subnet 172.18.0.0/16 overlaps network default (172.18.0.0/16); choose another, e.g. \
         172.19.0.0/16"
    );
    let said = d.add_network("swd", &network("default", &["10.0.0.0/8"]), |_| false).unwrap_err().to_string();
    assert_eq!(
        said,
        "cannot add network default: there is one of that name already; choose another name, or remove it with \
         'swctl network rm default'"
    );
    d.add_network("swd", &network("web", &["172.19.0.0/16"]), |name| name == "sw1").unwrap();
    assert_eq!(d.networks["default"].host_ifname.as_deref(), Some("sw0"));
    assert_eq!(d.networks["web"].host_ifname.as_deref(), Some("sw2"), "sw1 is somebody else's");
    assert_ne!(d.networks["web"].gateway_mac, d.networks["default"].gateway_mac);
    let dark = NetworkSpec { host_access: false, ..network("dark", &["10.1.0.0/16"]) };
    d.add_network("swd", &dark, |_| false).unwrap();
    assert_eq!(d.networks["dark"].host_ifname, None);
}

#[test]
fn a_network_with_ports_stays() {
    let mut d = world();
    d.add_port(&port("veth0"), NOW).unwrap();
    attach(&mut d, &container("web")).unwrap();
    let said = d.remove_network("default").unwrap_err().to_string();
    assert!(said.starts_with("cannot remove network default: it has ports (veth0, web);"), "{said}");
    d.remove_port("veth0").unwrap();
    d.detach("web").unwrap();
    d.remove_network("default").unwrap();
    let said = d.remove_network("default").unwrap_err();
    assert_eq!(said.to_string(), "there is no network default; 'swctl network ls' lists them");
    assert_eq!(said.class(), Class::NotFound);
}

#[test]
fn ports_are_added_once() {
    let mut d = world();
    assert_eq!(d.add_port(&port("veth0"), NOW).unwrap(), "veth0");
    let said = d.add_port(&port("veth0"), NOW).unwrap_err().to_string();
    assert_eq!(said, "cannot add interface veth0: it is port veth0 of network default already");
    let twice = PortSpec { name: Some("veth0".into()), ..port("veth1") };
    let said = d.add_port(&twice, NOW).unwrap_err().to_string();
    assert!(said.ends_with("or remove it with 'swctl port rm veth0'"), "{said}");
    for (spec, part) in [
        (port("sw0"), "it is port sw0 of network default already"),
        (PortSpec { name: Some("sw0".into()), ..port("veth1") }, "swctl network rm default"),
        (PortSpec { name: Some("a/b".into()), ..port("veth1") }, "contains '/'"),
        (PortSpec { name: Some("x".repeat(300)), ..port("veth1") }, "has 300 characters"),
        (port(&"x".repeat(300)), "has 300 characters"),
        (port("a/b"), "cannot be the name of an interface"),
        (PortSpec { network: Some("nope".into()), ..port("veth1") }, "there is no network nope"),
    ] {
        let said = d.add_port(&spec, NOW).unwrap_err().to_string();
        assert!(said.contains(part) && !said.contains('\n') && said.len() < 250, "{said}");
    }
    assert_eq!(d.ports.len(), 1);
}

#[test]
fn each_kind_is_removed_by_its_own_command() {
    let mut d = world();
    d.add_port(&port("veth0"), NOW).unwrap();
    attach(&mut d, &container("web")).unwrap();
    assert_eq!(
        d.remove_port("web").unwrap_err().to_string(),
        "port web was made by 'swctl attach'; remove it with 'swctl detach web'"
    );
    assert!(d.detach("veth0").unwrap_err().to_string().ends_with("'swctl port rm veth0'"));
    assert!(d.remove_port("sw0").unwrap_err().to_string().contains("host end of network default"));
}

#[test]
fn containers_get_addresses_macs_and_names() {
    let mut d = world();
    attach(&mut d, &container("/run/netns/web")).unwrap();
    attach(&mut d, &container("4711")).unwrap();
    assert_eq!(addresses(&d, "web"), ["172.18.0.2/16", "fd00:18::2/64"]);
    assert_eq!(addresses(&d, "pid4711"), ["172.18.0.3/16", "fd00:18::3/64"]);
    assert_eq!(d.ports["web"].ifname, "web.p");
    let Origin::Attached(a) = &d.ports["web"].origin else { panic!() };
    assert_eq!((a.ifname.as_str(), a.mac.0[0], &a.mac.0[2..]), ("eth0", 2, &[172, 18, 0, 2][..]));
    // Freed late: .2 comes back only after the pool went round.
    d.detach("web").unwrap();
    attach(&mut d, &container("web")).unwrap();
    assert_eq!(addresses(&d, "web")[0], "172.18.0.4/16");
    // A wanted one does not move the cursor.
    let wanted = AttachSpec { addresses: vec!["172.18.0.20".parse().unwrap()], ..container("db") };
    attach(&mut d, &wanted).unwrap();
    attach(&mut d, &container("next")).unwrap();
    assert_eq!(addresses(&d, "db")[0], "172.18.0.20/16");
    assert_eq!(addresses(&d, "next")[0], "172.18.0.5/16");
}

#[test]
fn addresses_in_use_on_the_wire_are_skipped() {
    let mut d = world();
    let used: IpAddr = "172.18.0.2".parse().unwrap();
    d.attach(&container("web"), ("/run/netns/x".into(), NS), NOW, |_, a| a == used).unwrap();
    assert_eq!(addresses(&d, "web")[0], "172.18.0.3/16");
}

#[test]
fn wanted_addresses_are_checked() {
    let mut d = world();
    attach(&mut d, &container("web")).unwrap();
    for (wanted, part, class) in [
        (&["10.0.0.1"][..], "is outside network default (172.18.0.0/16, fd00:18::/64)", Class::Invalid),
        (&["172.18.0.1"], "is the gateway of network default", Class::Invalid),
        (&["172.18.255.255"], "is the network or broadcast address", Class::Invalid),
        (&["172.18.0.2"], "is leased to another container", Class::Conflict),
        (&["172.18.0.8", "172.18.0.9"], "is the second one wanted", Class::Invalid),
    ] {
        let addresses = wanted.iter().map(|a| a.parse().unwrap()).collect();
        let said = attach(&mut d, &AttachSpec { addresses, ..container("db") }).unwrap_err();
        assert!(said.to_string().contains(part), "{said}");
        assert_eq!(said.class(), class, "{said}");
    }
    assert_eq!(d.ports.len(), 1);
}

#[test]
fn an_exhausted_pool_says_so() {
    let mut d = Desired::default();
    d.add_network("swd", &network("default", &["10.0.0.0/30"]), |_| false).unwrap();
    attach(&mut d, &container("a")).unwrap();
    let said = attach(&mut d, &container("b")).unwrap_err().to_string();
    assert!(
        said.starts_with("cannot attach b to network default: no free address in 10.0.0.0/30: 1 leased"),
        "{said}"
    );
}

#[test]
fn interface_names_are_short_and_unique() {
    let mut d = Desired::default();
    d.add_network("swd", &network("default", &["10.0.0.0/16"]), |_| false).unwrap();
    for n in 0..300 {
        let spec = AttachSpec { name: Some(format!("a-rather-long-name-{n}")), ..container("x") };
        attach(&mut d, &spec).unwrap();
    }
    let names: HashSet<&str> = d.ports.values().map(|p| p.ifname.as_str()).collect();
    assert_eq!(names.len(), 300);
    assert!(
        names.iter().all(|n| spec::check_ifname(n).is_ok() && n.starts_with("a-ra-") && n.ends_with(".p"))
    );
}

#[test]
fn static_macs_are_unicast_and_not_the_gateways() {
    let mut d = world();
    d.add_port(&port("veth0"), NOW).unwrap();
    let gateway = d.networks["default"].gateway_mac.to_string();
    for (mac, part) in [
        ("01:00:00:00:00:01", "multicast"),
        ("00:00:00:00:00:00", "zeroes"),
        ("nonsense", "six hex bytes"),
        (gateway.as_str(), "gateway of network default"),
    ] {
        let said = d.add_static(mac, "veth0").unwrap_err().to_string();
        assert!(said.contains(part), "{said}");
    }
    let made = d.add_static("02:00:00:00:00:0a", "veth0").unwrap();
    assert_eq!(made.network, "default");
    d.remove_port("veth0").unwrap();
    assert!(d.statics.is_empty(), "goes with its port");
}

#[test]
fn it_survives_json() {
    let mut d = world();
    d.add_port(&port("veth0"), NOW).unwrap();
    d.add_static("02:00:00:00:00:0a", "veth0").unwrap();
    attach(&mut d, &AttachSpec { tap: true, ..container("web") }).unwrap();
    let text = serde_json::to_string(&d).unwrap();
    assert_eq!(serde_json::from_str::<Desired>(&text).unwrap(), d);
}
