//! Types of `/v1/trace`, `/v1/trace/live`, `/v1/capture`, `/v1/mirrors` and `/v1/inspect`.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/trace`: what to trace. Either `packet` or `frames`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TraceSpec {
    /// The port that the packet comes from, or `uplink`, or the name of an uplink.
    pub from: String,
    /// The packet in words: `tcp 172.18.0.10:40000 > 1.1.1.1:443 syn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet: Option<String>,
    /// Recorded frames in hexadecimal, from the destination MAC on; each sees what the ones before it did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frames: Vec<String>,
}

/// What would become of a packet.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Traced {
    /// Its headers, as it comes in.
    pub packet: String,
    /// What each stage decides, in order; the last one has the last word.
    pub steps: Vec<TraceStep>,
    /// `forwarded`, `answered`, `dropped`, `waits` (for the next hop's MAC or its first fragment) or `host` (from outside,
    /// and none of swd's).
    pub outcome: String,
    /// Why it is dropped: a name as in `/v1/drops`.
    pub reason: Option<String>,
    /// What to do about that.
    pub help: Option<String>,
    /// What is sent of it, and where to.
    pub sent: Vec<TraceSent>,
    /// What is sent besides: questions for MACs, ICMP errors, frames that had waited.
    pub besides: Vec<TraceSent>,
}

/// What a stage decides about a traced packet.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct TraceStep {
    /// Its name.
    pub stage: String,
    /// `next`, `drop`, `flood`, `forward`, `reply`, `uplink`, `waits` or `ignore`.
    pub verdict: String,
    /// By what it decides.
    pub why: Vec<String>,
    /// The headers as it made them; null where it changed nothing.
    pub after: Option<String>,
}

/// A frame that would be sent.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct TraceSent {
    /// The port, or the uplink.
    pub to: String,
    /// Its headers.
    pub packet: String,
    /// Why it could not be sent: a name as in `/v1/drops`.
    pub lost: Option<String>,
}

/// What to trace as it passes: the query of `GET /v1/trace/live`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LiveTraceSpec {
    /// The port whose frames are traced, or `uplink`, or the name of an uplink.
    pub from: String,
    /// Which frames, as in pcap-filter(7); all of them when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// How many frames; without end when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// A frame that passed, and what was decided about it: a line of `GET /v1/trace/live`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct LiveTraced {
    /// When it came.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// Frames that passed before it and were not explained: more came than could be told.
    pub missed: u64,
    /// What became of it. `besides` is empty: what was sent besides is not known by frame.
    #[serde(flatten)]
    pub traced: Traced,
}

/// Header of the answer to `GET /v1/capture`: the number by which `DELETE /v1/capture/{id}` ends it.
pub const CAPTURE_ID: &str = "capture-id";

/// Where frames are captured.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Watched {
    /// What comes from a port and what is sent to it.
    Port,
    /// What comes from the ports of a network, and what comes into it from elsewhere.
    Network,
    /// What comes from outside and is swd's, and what leaves.
    Uplink,
    /// What is dropped.
    Drops,
}

/// How captured frames are told.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CaptureFormat {
    /// As a pcapng file.
    #[default]
    Pcapng,
    /// A line each.
    Text,
}

/// What to capture: the query of `GET /v1/capture`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CaptureSpec {
    /// Where.
    pub what: Watched,
    /// The port or network; the uplink if there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which frames, as in pcap-filter(7); all of them when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Bytes kept of each frame; all of them when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<u32>,
    /// How many frames; without end when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// In which form.
    #[serde(default)]
    pub format: CaptureFormat,
}

/// What a mirror is of.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MirrorKind {
    /// A port.
    #[default]
    Port,
    /// All ports of a network: what comes from them, and what comes into the network from elsewhere.
    Network,
}

/// Which ways are mirrored.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ways {
    /// What comes from it.
    In,
    /// What is sent to it.
    Out,
    /// Both.
    #[default]
    Both,
}

/// `POST /v1/mirrors`: a port that gets copies of what passes another, or a network.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// What `from` is.
    #[serde(default)]
    pub kind: MirrorKind,
    /// The port or network.
    pub from: String,
    /// The port that gets the copies.
    pub to: String,
    /// Which ways.
    #[serde(default)]
    pub ways: Ways,
}

impl Mirror {
    /// Whether it is the one from here to there.
    pub fn is(&self, kind: MirrorKind, from: &str, to: &str) -> bool {
        self.kind == kind && self.from == from && self.to == to
    }
}

/// A mirror, and whether its ports are there.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct MirrorState {
    /// What `from` is.
    pub kind: MirrorKind,
    /// The port or network.
    pub from: String,
    /// The port that gets the copies.
    pub to: String,
    /// Which ways.
    pub ways: Ways,
    /// False while one of the ports is missing.
    pub active: bool,
}

/// `GET /v1/inspect`: what a network namespace looks like from within, and which ports it has.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct Inspected {
    /// Path of the namespace.
    pub netns: String,
    /// Ports of the switch that it has.
    pub ports: Vec<String>,
    /// Its interfaces.
    pub devices: Vec<InspectedDevice>,
    /// Its main routing table, both families.
    pub routes: Vec<InspectedRoute>,
    /// The MACs that it knows.
    pub neighbors: Vec<InspectedNeighbor>,
    /// The file that names its DNS servers, as far as that can be told from outside.
    pub dns_file: Option<String>,
    /// Its DNS servers.
    pub dns: Vec<String>,
}

/// An interface of a namespace.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct InspectedDevice {
    /// Its name.
    pub name: String,
    /// `veth`, `tun`, `bridge` … where the driver tells.
    pub kind: Option<String>,
    /// Its MAC; none for the loopback device.
    pub mac: Option<String>,
    /// Its MTU.
    pub mtu: u32,
    /// Set up.
    pub up: bool,
    /// Up, with a link.
    pub carrier: bool,
    /// Its addresses.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpNet>,
    /// The port of the switch that it is.
    pub port: Option<String>,
}

/// A route of a namespace.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct InspectedRoute {
    /// Where to.
    #[schema(value_type = String)]
    pub destination: IpNet,
    /// `forward`, `blackhole`, `unreachable` or `prohibit`.
    pub action: String,
    /// The next router; null where the destination is on the link.
    #[schema(value_type = Option<String>)]
    pub via: Option<IpAddr>,
    /// By which interface.
    pub device: Option<String>,
    /// Lower is better.
    pub metric: u32,
}

/// A neighbor that a namespace knows.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct InspectedNeighbor {
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its MAC.
    pub mac: String,
    /// Behind which interface.
    pub device: String,
}
