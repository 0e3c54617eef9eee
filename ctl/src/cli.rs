//! The command line.

mod limits;
mod observe;
mod policy;

use std::{
    net::IpAddr,
    path::{self, PathBuf},
    process,
};

use clap::{
    Args, Parser, Subcommand,
    builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser},
};
use clap_complete::Shell;
use ctl::{
    api::{
        AttachSpec, ConnectionFilter, DEFAULT_NETWORK, DEFAULT_SOCKET, Filtering, Mapping, NetworkSpec,
        PortSpec, PublishSpec,
    },
    spec::{self, PublishedPorts},
};
use ipnet::IpNet;

pub(crate) use limits::PortSet;
pub(crate) use observe::{Capture, Mirror, Trace};
pub(crate) use policy::{Policy, RuleArgs};

/// Drives swd, the userspace Ethernet switch and NAT router.
#[derive(Debug, Parser)]
#[command(
    name = "swctl",
    version,
    after_help = "Exit status: 0 done; 1 failed, with one line on standard error that says why; 2 wrong usage.\n\
                  'swctl run' exits with the status of its command."
)]
pub(crate) struct Cli {
    /// Socket of the swd to talk to
    #[arg(long, value_name = "PATH", env = "SWD_SOCKET", default_value = DEFAULT_SOCKET, global = true)]
    pub(crate) socket: PathBuf,
    /// Print JSON in place of tables and sentences
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Tell whether swd is up, and what it holds
    Status,
    /// Networks: broadcast domains with subnets and a gateway
    #[command(subcommand)]
    Network(Network),
    /// Ports: interfaces of the host given to the switch
    #[command(subcommand)]
    Port(Port),
    /// Give a network namespace an interface, an address and a default route
    Attach(Attach),
    /// Take an attached interface away
    Detach {
        /// Name of the port
        #[arg(value_name = "PORT", value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// Run a command in a network namespace of its own, attached
    ///
    /// Standard input, output and error, signals and the exit status are the command's (128+N when signal N killed
    /// it, 127 when it is not found, 126 when it cannot be executed). When it ends, its port and address are given back.
    Run(Run),
    /// What 'run' starts in the namespace, and what becomes its command there
    #[command(hide = true)]
    RunChild {
        /// Process id of 'swctl run'
        parent: i32,
        /// A nameserver of the command's resolv.conf
        #[arg(long = "nameserver", value_name = "IP")]
        nameservers: Vec<IpAddr>,
        /// What its resolv.conf says to try behind a name
        #[arg(long, default_value = "")]
        search: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// The MAC table
    #[command(subcommand)]
    Fdb(Fdb),
    /// Publish ports of the host: who connects to them reaches a container
    ///
    /// A client keeps its address, but for those on the host itself. The container need not exist yet.
    Publish(Publish),
    /// Take published ports back, and end their connections
    Unpublish {
        /// The ports, as they were published
        #[arg(value_name = "[HOSTIP:]PORT[-PORT][/tcp|/udp]", value_parser = published_text)]
        ports: String,
    },
    /// List the published ports
    Published,
    /// Let one open connections to another
    ///
    /// FROM and TO are each the name of a network or a port of the switch, 'host' or 'outside' ('network:NAME' and 'port:NAME'
    /// where a name is both). Without a rule ports of a network reach each other unless it isolates them, networks are
    /// closed to each other, and everybody reaches the host and the outside. Of several rules the most specific one
    /// decides, in whatever order they were made: ports before networks, then fewer services before more; of two alike the
    /// one that denies. Answers always pass.
    Allow(RuleArgs),
    /// Keep one from opening connections to another, and end those that there are
    ///
    /// FROM, TO and SERVICE are as for 'allow'.
    Deny(RuleArgs),
    /// The rules that 'allow' and 'deny' have made
    Policy {
        #[command(subcommand)]
        command: Option<Policy>,
    },
    /// The connection table
    #[command(subcommand)]
    Conntrack(Conntrack),
    /// Packets and bytes of each port
    Stats {
        /// Only this port
        #[arg(value_name = "PORT", value_parser = NonEmptyStringValueParser::new())]
        name: Option<String>,
    },
    /// Tell what each stage would do with a packet, and why; nothing is sent and nothing changes
    ///
    /// PACKET is in words: 'tcp 172.18.0.10:40000 > 1.1.1.1:443 syn', 'udp SRC:PORT > DST:PORT', 'icmp SRC > DST',
    /// 'arp SRC > DST', each with 'ttl N', 'len N', 'mac MAC' and 'to-mac MAC' if wanted.
    Trace(Trace),
    /// Capture frames as they pass, or as they are dropped
    ///
    /// WHAT is a port, 'network NAME', 'uplink' or 'drops', then a filter as for tcpdump: 'swctl capture web tcp port 80'.
    /// 'port NAME' names a port that is called like one of these. Without -w a line is printed for each frame.
    Capture(Capture),
    /// Ports that get copies of what passes others (SPAN)
    #[command(subcommand)]
    Mirror(Mirror),
    /// Watch ports, rates, connections and drops
    Top {
        /// Sort by this at first; keys change it
        #[arg(long, value_enum, default_value_t = crate::commands::top::Sort::Rate)]
        sort: crate::commands::top::Sort,
        /// Seconds between looks
        #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
        interval: u64,
    },
    /// Show what a container sees of its network, and which port it is
    Inspect {
        /// The namespace: its name, as in 'ip netns', the path of its file, or a process in it
        #[arg(value_name = "NETNS|PID", value_parser = NonEmptyStringValueParser::new())]
        netns: String,
    },
    /// Why frames were dropped, and what to do about it
    Drops {
        /// Also the reasons that never occurred
        #[arg(long)]
        all: bool,
    },
    /// What happens to ports, networks and MAC addresses, as it happens
    Events,
    /// The daemon's configuration
    #[command(subcommand)]
    Config(Config),
    /// Print a shell's completions of this command
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a manual page, in roff
    Man {
        /// The command it is about, as in 'swctl man port add'
        #[arg(value_name = "COMMAND")]
        command: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Network {
    /// Add a network
    Add(NetworkAdd),
    /// List the networks
    Ls,
    /// Show one network
    Show {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// Remove a network that has no ports
    Rm {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct NetworkAdd {
    /// Its name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// Its subnet; a second one of the other family is allowed
    #[arg(long = "subnet", value_name = "CIDR", value_parser = subnet, required = true)]
    subnets: Vec<IpNet>,
    /// The gateway's address in a subnet [default: the first one]
    #[arg(long = "gateway", value_name = "IP", value_parser = address)]
    gateways: Vec<IpAddr>,
    /// Largest IP packet in bytes [default: 1500]
    #[arg(long)]
    mtu: Option<u32>,
    /// Let ports talk to the gateway only, not to each other
    #[arg(long)]
    isolate_ports: bool,
    /// Leave the network no way out, neither to the outside nor to the names that the host's resolvers know
    #[arg(long)]
    internal: bool,
    /// Do not hide connections to the outside behind the host's address
    #[arg(long)]
    no_masquerade: bool,
    /// Which connections to the outside share an external port: all of a container's port, or none
    #[arg(long, value_name = "HOW", default_value = Mapping::default().name(), value_parser = mapping())]
    mapping: Mapping,
    /// Who may send to such a port from outside: whom the container has sent to, any port there, or everyone
    #[arg(long, value_name = "WHO", default_value = Filtering::default().name(), value_parser = filtering())]
    filtering: Filtering,
    /// Do not let the gateway answer for names
    #[arg(long)]
    no_dns: bool,
    /// Do not let the gateway give addresses to ports that ask by DHCP
    #[arg(long)]
    no_dhcp: bool,
    /// Seconds that such an address may be used without asking again [default: 3600]
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_dhcp")]
    dhcp_lease: Option<u32>,
    /// Do not let the gateway advertise itself as an IPv6 router to ports without an IPv6 address of swd's
    #[arg(long)]
    no_ra: bool,
    /// Give the host no interface in this network
    #[arg(long)]
    no_host_access: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Port {
    /// Make a port of an interface of the host: the host end of a veth pair, or a TAP device
    Add(PortAdd),
    /// List the ports
    Ls,
    /// Show one port
    Show {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// Change what is limited of a port, and what it may send from; at once and for good
    Set(PortSet),
    /// Remove a port and give its interface back to the host
    Rm {
        /// Its name
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct PortAdd {
    /// The interface
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    ifname: String,
    /// The port's network [default: default]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    network: Option<String>,
    /// The port's name [default: the interface's]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// The IPv4 address that it gets when it asks by DHCP [default: a free one]
    #[arg(long = "ip", value_name = "IP", value_parser = address)]
    address: Option<IpAddr>,
}

#[derive(Args, Debug)]
pub(crate) struct Attach {
    /// The namespace: its name, as in 'ip netns', the path of its file, or a process in it
    #[arg(value_name = "NETNS|PID", value_parser = NonEmptyStringValueParser::new())]
    netns: String,
    /// Name of the interface in the namespace [default: eth0]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    ifname: Option<String>,
    #[command(flatten)]
    pub(crate) endpoint: Endpoint,
}

#[derive(Args, Debug)]
pub(crate) struct Publish {
    /// The host's ports
    #[arg(value_name = "[HOSTIP:]PORT[-PORT][/tcp|/udp]", value_parser = spec::parse_published)]
    ports: PublishedPorts,
    /// The container's address and port; of a range the first port is enough
    #[arg(value_name = "IP:PORT[-PORT]", value_parser = spec::parse_target)]
    target: (IpAddr, u16, u16),
    /// Only clients with these addresses; may be given several times
    #[arg(long, value_name = "CIDR", value_parser = subnet)]
    from: Vec<IpNet>,
}

impl Publish {
    /// What to ask swd for.
    pub(crate) fn spec(self) -> PublishSpec {
        let PublishedPorts { host_ip, first, last, protocol } = self.ports;
        PublishSpec {
            host_ip,
            host_port: first,
            host_port_end: Some(last),
            protocol,
            target_ip: self.target.0,
            target_port: self.target.1,
            from: self.from,
            port: None,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Conntrack {
    /// List connections
    Ls(ConnectionArgs),
    /// Count connections
    Count(ConnectionArgs),
    /// End connections
    Flush(ConnectionArgs),
    /// Show connections as they come, change their state, and end
    Watch(ConnectionArgs),
}

/// Which connections; all of them when nothing is given.
#[derive(Args, Debug)]
pub(crate) struct ConnectionArgs {
    /// Of this port of the switch
    #[arg(long, value_name = "PORT")]
    container: Option<String>,
    /// Of this protocol: tcp, udp, icmp, icmpv6, sctp or a number
    #[arg(long)]
    protocol: Option<String>,
    /// With this address on one side
    #[arg(long, value_parser = address)]
    address: Option<IpAddr>,
    /// With this port on one side
    #[arg(long)]
    port: Option<u16>,
    /// In this state
    #[arg(long)]
    state: Option<String>,
}

impl ConnectionArgs {
    /// What to ask swd for.
    pub(crate) fn filter(self) -> ConnectionFilter {
        let Self { container, protocol, address, port, state } = self;
        ConnectionFilter { container, protocol, address, port, state }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) endpoint: Endpoint,
    /// Leave the command the host's /etc/resolv.conf, in place of one that names the gateway
    #[arg(long)]
    pub(crate) no_resolv_conf: bool,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// What `attach` and `run` have in common.
#[derive(Args, Debug)]
pub(crate) struct Endpoint {
    /// The port's name [default: after the namespace; 'run-' and the process id for 'run']
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) name: Option<String>,
    /// The port's network [default: default]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    network: Option<String>,
    /// The address wanted, one of each family [default: a free one]
    #[arg(long = "ip", value_name = "IP", value_parser = address)]
    addresses: Vec<IpAddr>,
    /// A further name of the container in its network; may be given several times, and to several containers
    #[arg(long = "alias", value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    aliases: Vec<String>,
    /// Make the interface a TAP device that swd holds, in place of a veth pair
    #[arg(long)]
    tap: bool,
    /// Publish ports of the host for as long as the container is attached; may be given several times
    #[arg(short = 'p', long = "publish", value_name = "[HOSTIP:]PORT[-PORT]:PORT[/tcp|/udp]", value_parser = port_publish)]
    pub(crate) publish: Vec<(PublishedPorts, u16)>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Fdb {
    /// List the MAC addresses
    Ls,
    /// Add a static entry: it never ages nor moves
    Add {
        /// The MAC address
        mac: String,
        /// The port it is behind
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        port: String,
    },
    /// Remove an entry
    Rm {
        /// The MAC address
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        mac: String,
        /// The network it is in
        #[arg(long, default_value = DEFAULT_NETWORK, value_parser = NonEmptyStringValueParser::new())]
        network: String,
    },
    /// Forget what was learned; static entries stay
    Flush {
        /// Only what was learned on this port
        #[arg(long, value_parser = NonEmptyStringValueParser::new())]
        port: Option<String>,
        /// Only what was learned in this network
        #[arg(long, value_parser = NonEmptyStringValueParser::new())]
        network: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check a configuration file without starting anything
    Check {
        /// The file
        file: PathBuf,
    },
}

impl NetworkAdd {
    /// What to ask swd for.
    pub(crate) fn spec(self) -> NetworkSpec {
        NetworkSpec {
            name: self.name,
            subnets: self.subnets,
            gateways: self.gateways,
            mtu: self.mtu,
            isolate_ports: self.isolate_ports,
            internal: self.internal,
            masquerade: !self.no_masquerade,
            mapping: self.mapping,
            filtering: self.filtering,
            dns: !self.no_dns,
            dhcp: !self.no_dhcp,
            dhcp_lease: self.dhcp_lease,
            ra: !self.no_ra,
            host_access: !self.no_host_access,
        }
    }
}

impl PortAdd {
    /// What to ask swd for.
    pub(crate) fn spec(self) -> PortSpec {
        PortSpec { ifname: self.ifname, name: self.name, network: self.network, address: self.address }
    }
}

impl Attach {
    /// What to ask swd for.
    pub(crate) fn spec(self) -> std::io::Result<AttachSpec> {
        let netns = namespace(&self.netns)?;
        Ok(AttachSpec { ifname: self.ifname, ..self.endpoint.spec(netns) })
    }
}

impl Endpoint {
    /// What to ask swd for.
    pub(crate) fn spec(self, netns: String) -> AttachSpec {
        AttachSpec {
            netns,
            name: self.name,
            network: self.network,
            addresses: self.addresses,
            ifname: None,
            mac: None,
            aliases: self.aliases,
            tap: self.tap,
        }
    }
}

/// The namespace as swd must read it: it has another working directory, and another `/proc/self`.
pub(crate) fn namespace(text: &str) -> std::io::Result<String> {
    if !text.contains('/') {
        return Ok(text.to_owned());
    }
    let path = path::absolute(text)?.to_string_lossy().into_owned();
    Ok(match path.strip_prefix("/proc/self/") {
        Some(rest) => format!("/proc/{}/{rest}", process::id()),
        None => path,
    })
}

/// Checked here, told to swd as it is.
fn published_text(text: &str) -> Result<String, String> {
    spec::parse_published(text).map(|_| text.to_owned())
}

/// `[HOSTIP:]HOSTPORT[-HOSTPORT]:PORT[/protocol]`.
fn port_publish(text: &str) -> Result<(PublishedPorts, u16), String> {
    let (ports, protocol) = match text.rsplit_once('/') {
        Some((ports, protocol)) => (ports, format!("/{protocol}")),
        None => (text, String::new()),
    };
    let (host, container) =
        ports.rsplit_once(':').ok_or_else(|| "write HOSTPORT:PORT, for example 8080:80".to_owned())?;
    let container = container
        .parse::<u16>()
        .ok()
        .filter(|p| *p > 0)
        .ok_or_else(|| "the container's port is one of 1 to 65535".to_owned())?;
    Ok((spec::parse_published(&format!("{host}{protocol}"))?, container))
}

fn mapping() -> impl TypedValueParser<Value = Mapping> {
    let find = |name: String| Mapping::ALL.into_iter().find(|m| m.name() == name);
    PossibleValuesParser::new(Mapping::ALL.map(Mapping::name)).map(move |name| find(name).unwrap_or_default())
}

fn filtering() -> impl TypedValueParser<Value = Filtering> {
    let find = |name: String| Filtering::ALL.into_iter().find(|f| f.name() == name);
    PossibleValuesParser::new(Filtering::ALL.map(Filtering::name))
        .map(move |name| find(name).unwrap_or_default())
}

fn subnet(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(address) => {
            let length = if address.is_ipv4() { 24 } else { 64 };
            format!("the prefix length is missing; write {address}/{length}, for example")
        }
        Err(_) => "not a subnet; write one like 172.18.0.0/16 or fd00:18::/64".to_owned(),
    })
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| match text.parse::<IpNet>() {
        Ok(net) => format!("the prefix length is that of the network; write {} only", net.addr()),
        Err(_) => "not an IP address; write one like 172.18.0.10 or fd00:18::10".to_owned(),
    })
}

#[cfg(test)]
mod tests;
