//! `POST /v1/trace`: from words and recorded frames to what would become of them, and back to words.

use ctl::api::{TraceSent, TraceSpec, TraceStep, Traced};
use ctl::packet::{Kind, Packet};
use nat::Time;

use super::control::Daemon;
use crate::batch::Source;
use crate::frame::{MAX_FRAME, Offload};
use crate::mac::{Mac, ParseMacError};
use crate::show::describe;
use crate::snapshot::Snapshot;
use crate::trace::{self, Outcome, Sent, Step, Tracer};
use crate::verdict::Verdict;
use crate::worker;

/// Frames of one request.
pub(super) const MAX_FRAMES: usize = 1000;
/// Who sends what comes from outside, where nothing is said: any MAC, as the switch does not look at it.
const OUTSIDER: Mac = Mac([2, 0, 0, 0, 0, 1]);

/// Why nothing can be traced.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// No such port.
    #[error(
        "there is neither a port nor an uplink named {0}; 'swctl port ls' lists ports, 'swctl status' names the uplink"
    )]
    NoPort(String),
    /// A missing interface.
    #[error("port {0} has no interface now, so no packet can come from it; 'swctl port show {0}' says more")]
    Missing(String),
    /// The packet's text.
    #[error(transparent)]
    Packet(#[from] ctl::packet::PacketError),
    /// A MAC.
    #[error(transparent)]
    Mac(#[from] ParseMacError),
    /// No source MAC.
    #[error("what MAC {0} has behind port {1} is not known yet; name it: '… mac 02:00:00:00:00:01'")]
    NoSource(std::net::IpAddr, String),
    /// No destination MAC.
    #[error(
        "what MAC {0} has is not known: its neighbor would ask first (trace 'arp {1} > {0}'), or name it: '… to-mac 02:00:00:00:00:02'"
    )]
    NoDestination(std::net::IpAddr, std::net::IpAddr),
    /// Too long.
    #[error("the packet is longer than an IP packet may be; make 'len' smaller")]
    TooLong,
    /// Not hexadecimal.
    #[error("frame {0} is not hexadecimal, or longer than 64 KiB")]
    Hex(usize),
    /// Nothing, or everything.
    #[error("give either a packet or up to {MAX_FRAMES} frames")]
    What,
}

impl Daemon {
    /// `POST /v1/trace`. Nothing is sent and nothing changes.
    ///
    /// # Errors
    /// When the request says nothing that could be traced.
    pub fn trace(&self, spec: &TraceSpec) -> Result<Vec<Traced>, TraceError> {
        // How old MACs are is known once the kernel was asked for what it forwarded.
        self.dataplane.collect();
        let now = worker::now();
        let mut tracer = self.dataplane.tracer();
        let result = self.trace_with(&mut tracer, now, spec);
        self.dataplane.return_tracer(tracer);
        result
    }

    fn trace_with(
        &self,
        tracer: &mut Tracer,
        now: Time,
        spec: &TraceSpec,
    ) -> Result<Vec<Traced>, TraceError> {
        let snapshot = tracer.snapshot();
        let source = self.trace_source(&snapshot, &spec.from)?;
        let frames = match &spec.packet {
            Some(text) if spec.frames.is_empty() => {
                vec![self.built(tracer, &snapshot, now, source, &text.parse()?)?]
            }
            None if (1..=MAX_FRAMES).contains(&spec.frames.len()) => {
                let parsed = spec.frames.iter().enumerate();
                parsed.map(|(n, text)| unhex(text).ok_or(TraceError::Hex(n + 1))).collect::<Result<_, _>>()?
            }
            _ => return Err(TraceError::What),
        };
        let mut one =
            |bytes: &Vec<u8>| view(&snapshot, bytes, &tracer.trace(now, source, bytes, Offload::default()));
        Ok(frames.iter().map(&mut one).collect())
    }

    /// Where a packet comes from that is said to come from `name`.
    pub(super) fn trace_source(&self, snapshot: &Snapshot, name: &str) -> Result<Source, TraceError> {
        if let Some(port) = self.live.port(name) {
            return match snapshot.port(port.id) {
                Some(port) => Ok(Source::Port(port.id)),
                None => Err(TraceError::Missing(name.to_owned())),
            };
        }
        let default = if name == "uplink" { self.outside.default_uplink() } else { None };
        let wanted = default.unwrap_or(name);
        let uplink = snapshot.uplinks.iter().find(|u| &*u.name == wanted);
        uplink.map(|u| Source::Uplink(u.ifindex)).ok_or_else(|| TraceError::NoPort(name.to_owned()))
    }

    /// The frame by which a station would send the packet: between the MACs that it and its next hop have.
    fn built(
        &self,
        tracer: &Tracer,
        snapshot: &Snapshot,
        now: Time,
        source: Source,
        packet: &Packet,
    ) -> Result<Vec<u8>, TraceError> {
        let named = |mac: &Option<String>| mac.as_deref().map(str::parse::<Mac>).transpose();
        let (from, to) = (named(&packet.mac)?, named(&packet.to_mac)?);
        let port = source.port(snapshot);
        let network = port.and_then(|p| snapshot.network(p.network));
        let (from, to) = match (port, network, source) {
            (Some(port), Some(network), _) => {
                let own = || {
                    let seen = tracer.mac_of(network.id, packet.source, now).filter(|(at, _)| *at == port.id);
                    let host = (network.host_port == Some(port.id)).then_some(network.gateway_mac);
                    let attached = || self.live.port_name(port.id).and_then(|name| self.container_mac(name));
                    seen.map(|(_, mac)| mac)
                        .or(host)
                        .or_else(attached)
                        .or_else(|| tracer.mac_at(port.id, now))
                };
                let from = from.or_else(own);
                let from = from.ok_or_else(|| TraceError::NoSource(packet.source, port.name.to_string()))?;
                let next = || match (packet.kind, packet.destination) {
                    (Kind::Arp { reply: false }, _) => Some(Mac::BROADCAST),
                    (_, destination) if is_group(destination) => Some(Mac::group(destination)),
                    (_, destination) => {
                        let gateway = network.gateways.iter().any(|g| g.address == destination);
                        if gateway || !network.contains(destination) {
                            return Some(network.gateway_mac);
                        }
                        let leased = snapshot.leases.get(&(network.id, destination));
                        let leased = || self.container_mac(self.live.port_name(*leased?)?);
                        tracer.mac_of(network.id, destination, now).map(|(_, mac)| mac).or_else(leased)
                    }
                };
                let to = to.or_else(next);
                (from, to.ok_or(TraceError::NoDestination(packet.destination, packet.source))?)
            }
            (_, _, Source::Uplink(ifindex)) => {
                let own = snapshot.uplink(ifindex).map_or(Mac::BROADCAST, |u| u.mac);
                (from.unwrap_or(OUTSIDER), to.unwrap_or(own))
            }
            _ => return Err(TraceError::What),
        };
        trace::build::frame(packet, from, to).ok_or(TraceError::TooLong)
    }
}

fn is_group(address: std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        std::net::IpAddr::V6(v6) => v6.is_multicast(),
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() > 2 * MAX_FRAME || !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// A trace, for the API.
pub(super) fn view(snapshot: &Snapshot, bytes: &[u8], traced: &trace::Traced) -> Traced {
    let (outcome, reason) = match traced.outcome {
        Outcome::Forwarded => ("forwarded", None),
        Outcome::Answered => ("answered", None),
        Outcome::Dropped(reason) => ("dropped", Some(reason)),
        Outcome::Waits => ("waits", None),
        Outcome::Host => ("host", None),
    };
    Traced {
        packet: describe(bytes),
        steps: traced.steps.iter().map(|step| step_view(snapshot, step)).collect(),
        outcome: outcome.to_owned(),
        reason: reason.map(|r| r.name().to_owned()),
        help: reason.map(|r| r.help().to_owned()),
        sent: traced.sent.iter().map(sent_view).collect(),
        besides: traced.besides.iter().map(sent_view).collect(),
    }
}

fn step_view(snapshot: &Snapshot, step: &Step) -> TraceStep {
    let mut why = step.why.clone();
    let verdict = match step.verdict {
        Verdict::Next => "next",
        Verdict::Drop(_) => "drop",
        Verdict::Flood => "flood",
        Verdict::Forward(to) => {
            why.push(format!("to port {}", snapshot.port(to).map_or("-", |port| &*port.name)));
            "forward"
        }
        Verdict::Reply => "reply",
        Verdict::Uplink(ifindex) => {
            why.push(format!("out by {}", snapshot.uplink(ifindex).map_or("-", |uplink| &*uplink.name)));
            "uplink"
        }
        Verdict::Serve(service) => {
            why.push(format!("to the gateway's own service: {}", service.name()));
            "serve"
        }
        Verdict::Absorbed => "waits",
        Verdict::Ignore => "ignore",
    };
    TraceStep { stage: step.stage.to_owned(), verdict: verdict.to_owned(), why, after: step.after.clone() }
}

fn sent_view(sent: &Sent) -> TraceSent {
    TraceSent {
        to: sent.to.to_string(),
        packet: describe(&sent.bytes),
        lost: sent.lost.map(|reason| reason.name().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_or_nothing() {
        assert_eq!(unhex("00fFa1"), Some(vec![0, 255, 0xa1]));
        assert_eq!(unhex(""), Some(Vec::new()));
        for bad in ["0", "0g", "é", "+1"] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
        assert_eq!(unhex(&"0".repeat(2 * MAX_FRAME + 2)), None);
    }
}
