//! The command line as the contract has it.

use clap::{CommandFactory, error::ErrorKind};
use ctl::api::NetworkSpec;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn command(line: &str) -> Command {
    parse(line).unwrap_or_else(|e| panic!("{line}: {e}")).command
}

fn error(line: &str) -> clap::Error {
    parse(line).expect_err(line)
}

#[test]
fn clap_is_content() {
    Cli::command().debug_assert();
}

#[test]
fn every_line_of_the_contract() {
    for line in [
        "swctl status",
        "swctl status --json",
        "swctl --json --socket /tmp/a.sock status",
        "swctl network add blue --subnet 10.1.0.0/16 --subnet fd00:1::/64 --gateway 10.1.0.1 --gateway fd00:1::1 \
         --mapping address-and-port-dependent --filtering endpoint-independent --mtu 9000 --isolate-ports --no-masquerade --no-host-access",
        "swctl network ls --json",
        "swctl network show blue",
        "swctl network rm blue",
        "swctl port add veth0 --network blue --name web",
        "swctl port ls",
        "swctl port show web",
        "swctl port rm web",
        "swctl attach c1 --name web --network blue --ip 10.1.0.7 --ip fd00:1::7 --ifname eth1 --tap",
        "swctl attach 4711",
        "swctl detach web",
        "swctl run --name web --network blue --ip 10.1.0.7 --tap -- ip -br addr",
        "swctl fdb ls",
        "swctl fdb add 02:00:00:00:00:01 web",
        "swctl fdb rm 02:00:00:00:00:01 --network blue",
        "swctl fdb flush --port web --network blue",
        "swctl stats",
        "swctl stats web",
        "swctl drops --all",
        "swctl events --json",
        "swctl config check /etc/swd.toml",
        "swctl completions bash",
        "swctl man",
        "swctl man network add",
    ] {
        command(line);
    }
}

#[test]
fn a_network_with_nothing_but_a_subnet() {
    let Command::Network(Network::Add(add)) = command("swctl network add blue --subnet 10.1.0.0/16") else {
        panic!()
    };
    assert_eq!(
        add.spec(),
        NetworkSpec {
            name: "blue".into(),
            subnets: vec!["10.1.0.0/16".parse().unwrap()],
            gateways: vec![],
            mtu: None,
            isolate_ports: false,
            internal: false,
            masquerade: true,
            mapping: Mapping::default(),
            filtering: Filtering::default(),
            dns: true,
            dhcp: true,
            dhcp_lease: None,
            ra: true,
            host_access: true,
        }
    );
}

#[test]
fn options_of_attach() {
    let Command::Attach(attach) = command("swctl attach c1 --ip 10.1.0.7 --ip fd00::7 --ifname eth1 --tap")
    else {
        panic!()
    };
    let spec = attach.spec().unwrap();
    assert_eq!(spec.addresses, ["10.1.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
    assert_eq!((spec.netns.as_str(), spec.ifname.as_deref(), spec.tap), ("c1", Some("eth1"), true));
}

#[test]
fn what_is_published_with_a_port_is_a_port_or_a_range() {
    let Command::Attach(attach) = command("swctl attach c1 -p 127.0.0.1:5000:80 -p 6000-6009:60/udp") else {
        panic!()
    };
    let ranges: Vec<_> =
        attach.endpoint.publish.iter().map(|(p, target)| (p.first, p.last, *target)).collect();
    assert_eq!(ranges, [(5000, 5000, 80), (6000, 6009, 60)]);
    let mistake = error("swctl attach c1 -p 5000").render().to_string();
    assert!(mistake.contains("write HOSTPORT:PORT, for example 8080:80"), "{mistake}");
}

#[test]
fn the_words_of_a_command_are_its_own() {
    for line in ["swctl run --tap -- ping -c 1 --json x", "swctl run --tap ping -c 1 --json x"] {
        let cli = parse(line).unwrap();
        assert!(!cli.json);
        let Command::Run(run) = cli.command else { panic!() };
        assert_eq!(run.command, ["ping", "-c", "1", "--json", "x"]);
        assert!(run.endpoint.tap);
    }
    assert_eq!(error("swctl run --nmae x -- true").kind(), ErrorKind::UnknownArgument);
    assert_eq!(error("swctl run").kind(), ErrorKind::MissingRequiredArgument);
}

#[test]
fn bad_addresses_are_told_in_the_first_line() {
    for (line, told) in [
        (
            "swctl network add b --subnet 10.1.0.0/33",
            "not a subnet; write one like 172.18.0.0/16 or fd00:18::/64",
        ),
        (
            "swctl network add b --subnet 10.1.0.0",
            "the prefix length is missing; write 10.1.0.0/24, for example",
        ),
        ("swctl network add b --subnet fd00::", "the prefix length is missing; write fd00::/64, for example"),
        ("swctl network add b --subnet 10.1.0.0/16 --gateway x", "not an IP address; write one like"),
        ("swctl attach c1 --ip 10.1.0.7/16", "the prefix length is that of the network; write 10.1.0.7 only"),
        ("swctl run --ip 10.1.0.256 -- true", "not an IP address; write one like"),
    ] {
        let error = error(line);
        assert_eq!(error.kind(), ErrorKind::ValueValidation, "{line}");
        let text = error.render().to_string();
        assert!(text.lines().next().unwrap().contains(told), "{line}: {text}");
    }
}

#[test]
fn what_is_missing_or_too_much() {
    for (line, kind) in [
        ("swctl network add blue", ErrorKind::MissingRequiredArgument),
        ("swctl network rm a b", ErrorKind::UnknownArgument),
        ("swctl port show", ErrorKind::MissingRequiredArgument),
        ("swctl completions perl", ErrorKind::InvalidValue),
        ("swctl network add blue --subnet 10.0.0.0/8 --mtu -1", ErrorKind::UnknownArgument),
        ("swctl eat", ErrorKind::InvalidSubcommand),
    ] {
        assert_eq!(error(line).kind(), kind, "{line}");
    }
    let empty = Cli::try_parse_from(["swctl", "detach", ""]).unwrap_err();
    assert_eq!(empty.kind(), ErrorKind::InvalidValue);
}

#[test]
fn namespaces_as_swd_reads_them() {
    let here = std::env::current_dir().unwrap();
    for (text, read) in [
        ("web", "web".to_owned()),
        ("4711", "4711".to_owned()),
        ("/run/netns/web", "/run/netns/web".to_owned()),
        ("./web", here.join("web").to_string_lossy().into_owned()),
        ("/proc/self/ns/net", format!("/proc/{}/ns/net", process::id())),
    ] {
        assert_eq!(namespace(text).unwrap(), read);
    }
}
