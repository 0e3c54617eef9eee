//! The types of swd's API, version 1: what travels as JSON over the Unix socket.
//!
//! Keys are stable: scripts read them through `swctl --json`. Times are RFC 3339, numbers are raw. New keys may be
//! added; none changes its meaning.

mod limits;
mod network;
mod observe;
mod policy;
mod survive;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use limits::*;
pub use network::*;
pub use observe::*;
pub use policy::*;
pub use survive::*;

/// `GET /v1/status`: is it up, and what does it hold.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Status {
    /// True once frames are forwarded.
    pub ready: bool,
    /// Version of the daemon.
    pub version: String,
    /// Instance name (`--name`): also the name of the switch namespace.
    pub name: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// When the daemon started.
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// Host interface towards the outside, if there is one.
    pub uplink: Option<String>,
    /// Number of worker threads.
    pub workers: u32,
    /// Number of networks.
    pub networks: u64,
    /// Number of ports.
    pub ports: u64,
    /// Number of tracked connections.
    pub connections: u64,
    /// Frames received and dropped since the start, all reasons.
    pub drops: u64,
    /// The same by reason, of those that occurred.
    #[serde(default)]
    pub dropped: BTreeMap<String, u64>,
    /// Frames received since the start: at any moment as many as were forwarded, answered or dropped, and are parked.
    pub received: u64,
    /// Frames forwarded or flooded since the start.
    pub forwarded: u64,
    /// Frames answered by the switch itself since the start.
    pub answered: u64,
    /// Frames that wait now: for a next hop's MAC, for the first fragment of their datagram, or for a limit.
    #[serde(default)]
    pub parked: u64,
    /// Frames lost since the start before they were received, because swd did not keep up.
    #[serde(default)]
    pub not_received: u64,
    /// Questions for names since the start, by what became of them: `answered`, `cached`, `forwarded`, `refused`, `failed`.
    #[serde(default)]
    pub names: BTreeMap<String, u64>,
    /// MAC addresses in the forwarding table.
    pub fdb_entries: u64,
    /// Most tracked connections.
    pub max_connections: u64,
    /// The external ports of masquerade that are in use: `FIRST-LAST`. Null while there are none.
    pub pool: Option<String>,
    /// How the host is kept from answering for ports that are swd's. Null while no port is.
    pub guards: Option<Guards>,
    /// The kernel may forward busy flows between veth ports for the switch.
    pub fast_path: bool,
    /// Flows that it forwards now; of a connection to the outside each direction is one.
    pub fast_flows: u64,
    /// Connections of the daemon before this one.
    #[serde(default)]
    pub restored: Restored,
    /// Times that a connection found no room in the journal, and would not survive this daemon.
    #[serde(default)]
    pub unjournalled: u64,
}

/// How ports are guarded.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Guards {
    /// By a BPF program, at any number.
    Bpf,
    /// By a socket for each port.
    Sockets,
}

impl Guards {
    /// `bpf` or `sockets`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Sockets => "sockets",
        }
    }
}

/// What kind of device stands behind a port.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PortKind {
    /// The host end of a network: the other end is an interface of the host.
    Host,
    /// Any netdev in the switch namespace, usually the host end of a veth pair.
    Packet,
    /// A TAP device in the container, whose queue swd holds.
    Tap,
}

/// What a port is doing.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// Its link is up: frames pass.
    Up,
    /// Its link is down, at this end or at the other.
    Down,
    /// Its interface is gone; the port waits for one of that name to come back.
    Missing,
}

/// A port of the switch.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Name of the interface in the switch namespace; of the container's interface for a TAP port.
    pub ifname: String,
    /// The network it belongs to.
    pub network: String,
    /// What stands behind it.
    pub kind: PortKind,
    /// What it is doing.
    pub state: PortState,
    /// MAC address of the interface behind the port: of the container's for attached ones.
    pub mac: String,
    /// MTU of the interface.
    pub mtu: u32,
    /// The container's namespace, for attached ports.
    pub netns: Option<String>,
    /// Name of the interface inside the container, for attached ports.
    pub container_ifname: Option<String>,
    /// Addresses leased to it: those that it was attached with, or has by DHCP.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpNet>,
    /// Further names in its network.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Since when the port exists.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Frames received from it.
    pub rx_packets: u64,
    /// Frames sent to it.
    pub tx_packets: u64,
    /// Bytes received from it, without preamble and FCS; a super-frame counts whole.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Frames received from it and dropped.
    pub rx_dropped: u64,
    /// Frames that could not be sent to it.
    pub tx_dropped: u64,
    /// Connections that count for it.
    #[serde(default)]
    pub connections: u64,
    /// What is limited of it.
    #[serde(default)]
    pub limits: PortLimits,
    /// What it may send from.
    #[serde(default)]
    pub guard: PortGuard,
}

/// `POST /v1/ports`: an existing interface of the host to make a port of.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Name of the interface on the host.
    pub ifname: String,
    /// The port's name; that of the interface when left out.
    #[serde(default)]
    pub name: Option<String>,
    /// Its network; `default` when left out.
    #[serde(default)]
    pub network: Option<String>,
    /// The IPv4 address that it gets when it asks by DHCP; a free one when left out.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
}

/// `POST /v1/attach`: a container to give an interface.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachSpec {
    /// A name below /run/netns, a path of a namespace file, or a process id.
    pub netns: String,
    /// The port's name; taken from the namespace when left out.
    #[serde(default)]
    pub name: Option<String>,
    /// Its network; `default` when left out.
    #[serde(default)]
    pub network: Option<String>,
    /// Addresses wanted, at most one of each family; from the network's pool when left out.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// Name of the interface inside the container; `eth0` when left out.
    #[serde(default)]
    pub ifname: Option<String>,
    /// MAC address of the container's interface; derived from its address when left out.
    #[serde(default)]
    pub mac: Option<String>,
    /// Further names in its network.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// A TAP device whose queue swd holds, in place of a veth pair.
    #[serde(default)]
    pub tap: bool,
}

/// How an entry came into the FDB.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FdbKind {
    /// Learned from a frame's source; ages.
    Dynamic,
    /// Set by the user; never ages nor moves.
    Static,
    /// An address of the switch itself: the gateway's.
    Local,
}

/// An entry of the forwarding database.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct FdbEntry {
    /// The MAC address.
    pub mac: String,
    /// The port behind which it lives; none for a gateway that swd answers for itself.
    pub port: Option<String>,
    /// The network it was seen in.
    pub network: String,
    /// How it came into the table.
    pub kind: FdbKind,
    /// Seconds since it was last seen as a source; 0 for static and local ones.
    pub age_s: u64,
}

/// `POST /v1/fdb`: a static entry.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FdbSpec {
    /// A unicast MAC address.
    pub mac: String,
    /// Name of the port.
    pub port: String,
}

/// `POST /v1/fdb/flush`: what to forget. All fields empty: every dynamic entry.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FdbFlush {
    /// Only what was learned on this port.
    #[serde(default)]
    pub port: Option<String>,
    /// Only what was learned in this network.
    #[serde(default)]
    pub network: Option<String>,
}

/// How many entries were forgotten.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Flushed {
    /// Number of entries.
    pub flushed: u64,
}

/// Why frames were dropped.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct DropCount {
    /// Name of the reason, as in `docs/`.
    pub reason: String,
    /// Frames since the start.
    pub count: u64,
    /// What it means and what to do about it.
    pub help: String,
}

/// A protocol whose ports can be published.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// `tcp` or `udp`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Ports of the host that lead to a container.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Published {
    /// What `swctl unpublish` calls it.
    pub name: String,
    /// The host's address; null: every address of the target's family.
    #[schema(value_type = Option<String>)]
    pub host_ip: Option<IpAddr>,
    /// First port.
    pub host_port: u16,
    /// Last port.
    pub host_port_end: u16,
    /// The protocol.
    pub protocol: Transport,
    /// Where it leads.
    #[schema(value_type = String)]
    pub target_ip: IpAddr,
    /// The port where the first one leads; the others follow.
    pub target_port: u16,
    /// The target's network.
    pub network: String,
    /// Who may connect; everyone if empty.
    #[schema(value_type = Vec<String>)]
    pub from: Vec<IpNet>,
    /// Connections that came by it.
    pub connections: u64,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// The port that it goes with: when that ends, so does this.
    #[serde(default)]
    pub port: Option<String>,
    /// Why nobody gets through by it, or by one of its ports: a program of the host has it. Null: all is well.
    #[serde(default)]
    pub problem: Option<String>,
}

/// `POST /v1/publishes`: ports to publish.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishSpec {
    /// The host's address; every address of the target's family when left out.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub host_ip: Option<IpAddr>,
    /// First port.
    pub host_port: u16,
    /// Last port; the first when left out.
    #[serde(default)]
    pub host_port_end: Option<u16>,
    /// TCP when left out.
    #[serde(default)]
    pub protocol: Transport,
    /// A container's address. The container need not exist yet.
    #[schema(value_type = String)]
    pub target_ip: IpAddr,
    /// The port where the first one leads; the others follow.
    pub target_port: u16,
    /// Who may connect; everyone if empty.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub from: Vec<IpNet>,
    /// A port of the switch that it goes with: when that ends, so does this.
    #[serde(default)]
    pub port: Option<String>,
}

/// One direction of a connection: what its packets look like as they arrive.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Flow {
    /// Source address.
    #[schema(value_type = String)]
    pub src: IpAddr,
    /// Source port; of an ICMP query its identifier.
    pub sport: u16,
    /// Destination address.
    #[schema(value_type = String)]
    pub dst: IpAddr,
    /// Destination port.
    pub dport: u16,
}

/// A connection.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Connection {
    /// `tcp`, `udp`, `icmp` …
    pub protocol: String,
    /// How far it has come.
    pub state: String,
    /// The container's network.
    pub network: String,
    /// The container's port.
    pub container: Option<String>,
    /// The way of the packet that opened it.
    pub original: Flow,
    /// The way of the answers: the difference is the translation.
    pub reply: Flow,
    /// Packets in both directions; a super-frame counts once.
    pub packets: u64,
    /// Bytes in both directions, IP headers included.
    pub bytes: u64,
    /// Seconds since it was opened.
    pub age_s: u64,
    /// Seconds until it ends if no packet comes.
    pub timeout_s: u64,
}

/// Selects connections: those that match everything that is set. Of `GET /v1/connections` the query.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectionFilter {
    /// A port of the switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp` or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// An address of either direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// A port of either direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// How many connections there are.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Count {
    /// Number of connections.
    pub connections: u64,
}

/// Something that happened: one line of `GET /v1/events` (JSON lines, as it happens).
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Event {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// What: `port-added`, `port-removed`, `port-up`, `port-down`, `port-missing`, `network-added`, `network-removed`,
    /// `mac-moved`, `mac-damped`, `fdb-full`, `address-leased`, `address-released`, `address-declined`, `address-refused`,
    /// `limits-changed`, `policy-changed`,
    /// `events-lost`.
    pub kind: String,
    /// The port, network or address it happened to.
    pub subject: String,
    /// In words.
    pub message: String,
}

/// An error, as RFC 9457 has it (`application/problem+json`).
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Problem {
    /// A URN that names the kind of error: `urn:swd:conflict`, `urn:swd:not-found`, `urn:swd:invalid`,
    /// `urn:swd:forbidden`, `urn:swd:failed`.
    #[serde(rename = "type")]
    pub kind: String,
    /// HTTP's phrase for the status.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What failed, on what, and what to do: one line.
    pub detail: String,
}

/// Default name of a daemon instance.
pub const DEFAULT_NAME: &str = "swd";
/// Default folder of the API socket.
pub const DEFAULT_RUNTIME_DIR: &str = "/run/swd";
/// Default path of the API socket.
pub const DEFAULT_SOCKET: &str = "/run/swd/swd.sock";
/// Name of the network that exists at first start, and is meant where none is named.
pub const DEFAULT_NETWORK: &str = "default";
