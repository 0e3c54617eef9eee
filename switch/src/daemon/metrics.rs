//! Every counter there is, as OpenMetrics: what Prometheus reads at `/metrics`.
//!
//! Counters live where they are counted; this reads them when asked. Names follow Prometheus' conventions: a unit at the end,
//! `_total` for what only grows, labels for what can be summed over.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::control::Daemon;
use crate::services::Tcp;
use ctl::api;

/// All numbers at one moment.
#[derive(Debug)]
struct Numbers {
    status: api::Status,
    ports: Vec<api::Port>,
    uplinks: Vec<(String, [u64; 6])>,
    drops: Vec<api::DropCount>,
    captures: Vec<(u64, u64)>,
    published: Vec<api::Published>,
    fdb: Vec<(String, u64)>,
    /// Connections for names by TCP.
    names_tcp: Tcp,
}

impl Daemon {
    /// `GET /metrics`.
    ///
    /// # Errors
    /// Never, unless memory refuses to be written to.
    pub fn metrics(&self) -> Result<String, fmt::Error> {
        let snapshot = self.dataplane.snapshot();
        let mut fdb = std::collections::BTreeMap::<String, u64>::new();
        for entry in self.dataplane.fdb().entries(crate::worker::now()) {
            if let Some(port) = self.live.port_name(entry.port) {
                *fdb.entry(port.to_owned()).or_default() += 1;
            }
        }
        let numbers = Numbers {
            status: self.status(),
            ports: self.ports(),
            uplinks: snapshot
                .uplinks
                .iter()
                .map(|u| {
                    let (rx, tx) = (&u.counters.rx, &u.counters.tx);
                    let counts =
                        [rx.packets(), rx.bytes(), rx.dropped(), tx.packets(), tx.bytes(), tx.dropped()];
                    (u.name.to_string(), counts)
                })
                .collect(),
            drops: self.drops(),
            captures: self.captures.counts(),
            published: self.published(),
            fdb: fdb.into_iter().collect(),
            names_tcp: self.dataplane.served().tcp(),
        };
        let mut registry = Registry::with_prefix("swd");
        registry.register_collector(Box::new(numbers));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(out)
    }
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// A family of counters: a number for each set of labels.
fn counters<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    values: impl IntoIterator<Item = (Labels<'a>, u64)>,
) -> fmt::Result {
    let kind = prometheus_client::metrics::MetricType::Counter;
    let mut family = encoder.encode_descriptor(name, help, unit, kind)?;
    for (labels, value) in values {
        if labels.is_empty() {
            family.encode_counter::<Labels<'_>, u64, u64>(&value, None)?;
        } else {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn gauges<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    values: impl IntoIterator<Item = (Labels<'a>, u64)>,
) -> fmt::Result {
    let kind = prometheus_client::metrics::MetricType::Gauge;
    let mut family = encoder.encode_descriptor(name, help, unit, kind)?;
    for (labels, value) in values {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        if labels.is_empty() {
            family.encode_gauge(&value)?;
        } else {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        let s = &self.status;
        let info = Info::new(vec![("version", s.version.clone()), ("name", s.name.clone())]);
        let kind = prometheus_client::metrics::MetricType::Info;
        info.encode(e.encode_descriptor("build", "Which swd this is", None, kind)?)?;
        let one = |value| [(Labels::new(), value)];
        let started = u64::try_from(s.started.as_second()).unwrap_or_default();
        gauges(e, "start_time", "When swd started, since the epoch", Some(&Unit::Seconds), one(started))?;
        gauges(e, "workers", "Threads that forward frames", None, one(s.workers.into()))?;
        gauges(e, "networks", "Networks", None, one(s.networks))?;
        gauges(e, "connections", "Connections that are tracked", None, one(s.connections))?;
        counters(e, "frames_received", "Frames taken from ports and uplinks", None, one(s.received))?;
        counters(e, "frames_forwarded", "Frames sent on to one port or several", None, one(s.forwarded))?;
        counters(e, "frames_answered", "Frames answered by the switch itself", None, one(s.answered))?;
        let drops = self.drops.iter().map(|d| (vec![("reason", d.reason.as_str())], d.count));
        counters(e, "frames_dropped", "Frames dropped, by reason as in 'swctl drops'", None, drops)?;
        self.encode_ports(e)?;
        self.encode_uplinks(e)?;
        self.encode_names(e)?;
        let fdb = self.fdb.iter().map(|(port, n)| (vec![("port", port.as_str())], *n));
        gauges(e, "fdb_entries", "MAC addresses known, by port", None, fdb)?;
        let owners = self.ports.iter().map(|p| (port_labels(p, None), p.connections));
        gauges(e, "port_connections", "Connections that count for a container", None, owners)?;
        let published = self.published.iter().map(|p| (vec![("publish", p.name.as_str())], p.connections));
        gauges(e, "published_connections", "Connections that came by a published port", None, published)?;
        gauges(e, "captures", "Captures that run", None, one(self.captures.len() as u64))
    }
}

impl Numbers {
    fn encode_ports(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let up = self.ports.iter().map(|p| (port_labels(p, None), u64::from(p.state == api::PortState::Up)));
        gauges(e, "port_up", "Whether a port's link is up", None, up)?;
        let both = |of: fn(&api::Port) -> [u64; 2]| {
            self.ports.iter().flat_map(move |p| {
                let [rx, tx] = of(p);
                [(port_labels(p, Some("rx")), rx), (port_labels(p, Some("tx")), tx)]
            })
        };
        let frames = both(|p| [p.rx_packets, p.tx_packets]);
        counters(e, "port_frames", "Frames from a port (rx) and to it (tx)", None, frames)?;
        let bytes = both(|p| [p.rx_bytes, p.tx_bytes]);
        counters(e, "port", "Bytes from a port (rx) and to it (tx)", Some(&Unit::Bytes), bytes)?;
        let dropped = both(|p| [p.rx_dropped, p.tx_dropped]);
        counters(
            e,
            "port_dropped",
            "Frames from a port that were dropped, and to it that were not sent",
            None,
            dropped,
        )
    }

    fn encode_names(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let questions =
            self.status.names.iter().map(|(what, count)| (vec![("outcome", what.as_str())], *count));
        counters(e, "dns_questions", "Questions for names, by what became of them", None, questions)?;
        let one = |value| [(Labels::new(), value)];
        let Tcp { open, opened, refused } = self.names_tcp;
        gauges(e, "dns_connections", "Connections of containers for names by TCP", None, one(open))?;
        counters(e, "dns_connections_opened", "Such connections so far", None, one(opened))?;
        counters(e, "dns_connections_refused", "Those for which there was no room", None, one(refused))
    }

    fn encode_uplinks(&self, e: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let both = |at: usize| {
            self.uplinks.iter().flat_map(move |(name, counts)| {
                let labels = |direction| vec![("uplink", name.as_str()), ("direction", direction)];
                [(labels("rx"), counts[at]), (labels("tx"), counts[at + 3])]
            })
        };
        counters(
            e,
            "uplink_frames",
            "Frames from outside that are swd's (rx), and to it (tx)",
            None,
            both(0),
        )?;
        counters(
            e,
            "uplink",
            "Bytes from outside that are swd's (rx), and to it (tx)",
            Some(&Unit::Bytes),
            both(1),
        )?;
        counters(e, "uplink_dropped", "Frames of an uplink that were dropped or not sent", None, both(2))
    }
}

fn port_labels<'a>(port: &'a api::Port, direction: Option<&'a str>) -> Labels<'a> {
    let mut labels = vec![("port", port.name.as_str()), ("network", port.network.as_str())];
    labels.extend(direction.map(|d| ("direction", d)));
    labels
}
