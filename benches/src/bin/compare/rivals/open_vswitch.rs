//! Open vSwitch's userspace datapath: the nearest relative.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use tests::process::{Background, TIMEOUT, run, s, wait_until};

use super::{Rival, Running, find, version_of};
use crate::subjects::Road;
use crate::topology::{C1, C2, GATEWAY, HOST, PUBLISHED, Topology};

/// The gateway's MAC address, which the flows answer ARP with.
const GATEWAY_MAC: &str = "02:00:00:00:00:01";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// `ovs-vswitchd` with `datapath_type=netdev` and `userspace-tso-enable`, run by hand with files of its own: no service
/// of the system is started or asked.
#[derive(Debug)]
pub(super) struct OpenVswitch;

impl Rival for OpenVswitch {
    fn name(&self) -> &'static str {
        "ovs"
    }

    fn about(&self) -> &'static str {
        "Open vSwitch, userspace datapath (netdev) on the same veth pairs, userspace-tso-enable=true; routing and NAT by \
         OpenFlow ct(nat) flows"
    }

    fn needs(&self) -> &'static [(&'static str, &'static str)] {
        const PACKAGE: &str = "openvswitch-switch";
        &[
            ("ovs-vswitchd", PACKAGE),
            ("ovsdb-server", PACKAGE),
            ("ovsdb-tool", PACKAGE),
            ("ovs-vsctl", PACKAGE),
            ("ovs-ofctl", PACKAGE),
        ]
    }

    fn roads(&self) -> &'static [Road] {
        &[Road::Between, Road::Out, Road::Published]
    }

    fn version(&self) -> Result<String> {
        version_of("ovs-vswitchd", "--version")
    }

    fn set_up(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        let dir = topology.file("ovs");
        fs::create_dir_all(&dir).context("a folder for Open vSwitch")?;
        let daemons = start(topology, &dir)?;
        let host = &topology.host;
        let macs = Macs {
            c1: topology.c1.mac("eth0"),
            c2: topology.c2.mac("eth0"),
            host: host.mac("eth0"),
            outside: topology.outside.mac("eth0"),
        };
        host.ip(&["addr", "flush", "dev", "eth0"]);
        vsctl(&dir, "add-br br0 -- set bridge br0 datapath_type=netdev fail-mode=secure")?;
        for (number, port) in [(1, "vc1"), (2, "vc2"), (3, "eth0")] {
            vsctl(&dir, &format!("add-port br0 {port} -- set Interface {port} ofport_request={number}"))?;
        }
        let file = dir.join("flows");
        fs::write(&file, flows(&macs)?).context("flows")?;
        let bridge = format!("unix:{}", dir.join("br0.mgmt").display());
        run(Command::new(find("ovs-ofctl")?).arg("add-flows").arg(bridge).arg(&file), TIMEOUT).ok();
        host.ip(&["link", "set", "br0", "up"]);
        Ok(Box::new(daemons))
    }
}

struct Macs {
    c1: String,
    c2: String,
    host: String,
    outside: String,
}

/// Database and switch, in the foreground.
fn start(topology: &Topology, dir: &Path) -> Result<Vec<Background>> {
    let file = |name: &str| dir.join(name).display().to_string();
    let (database, socket) = (file("conf.db"), format!("unix:{}", file("db.sock")));
    run(Command::new(find("ovsdb-tool")?).args(["create", &database, SCHEMA]), TIMEOUT).ok();
    let program = |name: &str, arguments: &[&str]| -> Result<Background> {
        let path = find(name)?;
        let environment: Vec<_> =
            ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"].map(|v| format!("{v}={}", dir.display())).to_vec();
        let mut words = vec!["env"];
        words.extend(environment.iter().map(String::as_str));
        words.push(path.to_str().context("a path in UTF-8")?);
        words.extend(arguments);
        Ok(topology.host.start(&words, &dir.join(name).with_extension("log")))
    };
    let pid = format!("--pidfile={}", file("db.pid"));
    let control = format!("--unixctl={}", file("db.ctl"));
    let server = program("ovsdb-server", &[&database, &format!("--remote=p{socket}"), &pid, &control])?;
    wait_until("ovsdb-server listens", s(10), || dir.join("db.sock").exists());
    vsctl(dir, "--no-wait init")?;
    vsctl(dir, "--no-wait set Open_vSwitch . other_config:userspace-tso-enable=true")?;
    let pid = format!("--pidfile={}", file("vs.pid"));
    let control = format!("--unixctl={}", file("vs.ctl"));
    let switch = program("ovs-vswitchd", &[&socket, &pid, &control])?;
    Ok(vec![server, switch])
}

fn vsctl(dir: &Path, words: &str) -> Result<()> {
    let mut command = Command::new(find("ovs-vsctl")?);
    command.args(["--timeout=10", &format!("--db=unix:{}", dir.join("db.sock").display())]);
    run(command.args(words.split(' ')), TIMEOUT).ok();
    Ok(())
}

fn hex(mac: &str) -> String {
    format!("0x{}", mac.replace(':', ""))
}

/// A flow that answers ARP for an address.
fn arp(port: u8, address: &str, mac: &str) -> Result<String> {
    let number = u32::from(address.parse::<Ipv4Addr>().context("an address")?);
    Ok(format!(
        "table=0,priority=200,arp,arp_op=1,in_port={port},arp_tpa={address},actions=\
         move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],mod_dl_src:{mac},load:0x2->NXM_OF_ARP_OP[],\
         move:NXM_NX_ARP_SHA[]->NXM_NX_ARP_THA[],load:{}->NXM_NX_ARP_SHA[],\
         move:NXM_OF_ARP_SPA[]->NXM_OF_ARP_TPA[],load:{number:#x}->NXM_OF_ARP_SPA[],in_port\n",
        hex(mac)
    ))
}

/// A switch of two ports, a router with masquerade and published ports.
fn flows(macs: &Macs) -> Result<String> {
    let Macs { c1, c2, host, outside } = macs;
    let mut flows =
        [arp(1, GATEWAY, GATEWAY_MAC)?, arp(2, GATEWAY, GATEWAY_MAC)?, arp(3, HOST, host)?].concat();
    let lines = [
        // What comes from outside, what goes there, what stays.
        format!("table=0,priority=100,in_port=3,ip,nw_dst={HOST},actions=ct(table=1,zone=1,nat)"),
        format!("table=0,priority=100,ip,dl_dst={GATEWAY_MAC},actions=ct(table=2,zone=1,nat)"),
        "table=0,priority=90,in_port=3,actions=drop".to_owned(),
        "table=0,priority=50,in_port=1,actions=2".to_owned(),
        "table=0,priority=50,in_port=2,actions=1".to_owned(),
        // In: known connections, and new ones to the published port.
        "table=1,priority=10,ct_state=+trk+est,ip,actions=resubmit(,3)".to_owned(),
        "table=1,priority=10,ct_state=+trk+rel,ip,actions=resubmit(,3)".to_owned(),
        format!(
            "table=1,priority=9,ct_state=+trk+new,tcp,tp_dst={PUBLISHED},actions=\
             ct(commit,zone=1,nat(dst={C1}:{PUBLISHED}),table=3)"
        ),
        format!(
            "table=1,priority=9,ct_state=+trk+new,udp,tp_dst={PUBLISHED},actions=\
             ct(commit,zone=1,nat(dst={C1}:{PUBLISHED}),table=3)"
        ),
        // Out: known connections, and new ones behind the host's address.
        "table=2,priority=10,ct_state=+trk+est,ip,actions=resubmit(,4)".to_owned(),
        format!("table=2,priority=9,ct_state=+trk+new,ip,actions=ct(commit,zone=1,nat(src={HOST}),table=4)"),
        format!("table=3,ip,nw_dst={C1},actions=mod_dl_src:{GATEWAY_MAC},mod_dl_dst:{c1},dec_ttl,1"),
        format!("table=3,ip,nw_dst={C2},actions=mod_dl_src:{GATEWAY_MAC},mod_dl_dst:{c2},dec_ttl,2"),
        format!("table=4,ip,actions=mod_dl_src:{host},mod_dl_dst:{outside},dec_ttl,3"),
    ];
    for line in lines {
        writeln!(flows, "{line}")?;
    }
    Ok(flows)
}
