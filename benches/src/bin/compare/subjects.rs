//! What is measured: roads and works.

use anyhow::Result;
use benches::figures::Figures;
use benches::load::{Protocol, SMALL};
use benches::machine::resident;
use benches::measure::{Cpus, Meter, Path};

use crate::topology::{C1, HOST, OUTSIDE, PUBLISHED, Topology};

/// From where to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Road {
    /// From the second container to the first.
    Between,
    /// From the first container to the outside, behind the host's address.
    Out,
    /// From the outside to a published port.
    Published,
    /// From the host itself to its published port.
    Local,
}

impl Road {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Between, Self::Out, Self::Published, Self::Local];

    /// Short name.
    pub(crate) const fn key(self) -> &'static str {
        match self {
            Self::Between => "c2c",
            Self::Out => "out",
            Self::Published => "pub",
            Self::Local => "local",
        }
    }

    /// Name for people.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Between => "Container to container",
            Self::Out => "Container to outside (masqueraded)",
            Self::Published => "Outside to container (published port)",
            Self::Local => "Host to its own published port",
        }
    }

    /// Its ends.
    pub(crate) fn path<'a>(self, topology: &'a Topology, pids: &'a [u32]) -> Path<'a> {
        let Topology { c1, c2, host, outside, .. } = topology;
        let (server, client, address, port) = match self {
            Self::Between => (c1, c2, C1, 5201),
            Self::Out => (outside, c1, OUTSIDE, 5201),
            Self::Published => (c1, outside, HOST, PUBLISHED),
            Self::Local => (c1, host, HOST, PUBLISHED),
        };
        Path { server, client, address, port, pids }
    }
}

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// TCP streams.
    Bulk(u16),
    /// 64-byte datagrams, at a rate or as many as go.
    Datagrams(Option<u32>),
    /// Requests and answers.
    RoundTrips(Protocol, Cpus),
    /// Short connections.
    Connections,
    /// Many flows at once, and short connections beside them.
    Flows,
}

/// Whether more is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    /// It is.
    More,
    /// Less is.
    Less,
}

/// A figure of a work, as a column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    /// Its name in [`Figures`].
    pub(crate) figure: &'static str,
    /// Its title with the unit.
    pub(crate) title: &'static str,
    /// Which way is better.
    pub(crate) better: Better,
}

const fn more(figure: &'static str, title: &'static str) -> Column {
    Column { figure, title, better: Better::More }
}

const fn less(figure: &'static str, title: &'static str) -> Column {
    Column { figure, title, better: Better::Less }
}

/// A load on a road.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    /// Where.
    pub(crate) road: Road,
    /// Short name of the load.
    pub(crate) key: &'static str,
    /// Name for people.
    pub(crate) title: &'static str,
    /// What.
    pub(crate) work: Work,
}

/// Datagrams a second that every rival carries.
const RATE: u32 = 100_000;

/// The loads by name, with the roads that they are run on.
const WORKS: [(&str, &str, Work, &[Road]); 11] = {
    use Road::{Between, Local, Out, Published};
    const ALL: &[Road] = &[Between, Out, Published, Local];
    const REMOTE: &[Road] = &[Between, Out, Published];
    [
        ("tcp1", "TCP, one stream", Work::Bulk(1), ALL),
        ("tcp4", "TCP, four streams", Work::Bulk(4), &[Between, Out]),
        ("udp", "64 B UDP at saturation", Work::Datagrams(None), REMOTE),
        ("udp100k", "64 B UDP, 100,000 offered a second", Work::Datagrams(Some(RATE)), &[Between, Out]),
        ("rtt", "TCP round trip", Work::RoundTrips(Protocol::Tcp, Cpus::Any), ALL),
        (
            "rtt-1cpu",
            "TCP round trip, all on one CPU",
            Work::RoundTrips(Protocol::Tcp, Cpus::One),
            &[Between, Out],
        ),
        (
            "rtt-2cpu",
            "TCP round trip, ends on two CPUs",
            Work::RoundTrips(Protocol::Tcp, Cpus::Two),
            &[Between],
        ),
        ("rtt-udp", "UDP round trip", Work::RoundTrips(Protocol::Udp, Cpus::Any), &[Between, Out]),
        (
            "rtt-udp-1cpu",
            "UDP round trip, all on one CPU",
            Work::RoundTrips(Protocol::Udp, Cpus::One),
            &[Between],
        ),
        ("crr", "Connections (connect, request, answer, close)", Work::Connections, ALL),
        // The last of all: it leaves full tables behind.
        ("flows", "UDP flows, a datagram each way", Work::Flows, &[Out]),
    ]
};

/// All subjects, in the order in which they are measured.
pub(crate) fn all() -> impl Iterator<Item = Subject> {
    let on = |road: Road| {
        WORKS
            .iter()
            .filter(move |(.., roads)| roads.contains(&road))
            .map(move |&(key, title, work, _)| Subject { road, key, title, work })
    };
    let (last, first): (Vec<_>, Vec<_>) =
        Road::ALL.into_iter().flat_map(on).partition(|s| s.work == Work::Flows);
    first.into_iter().chain(last)
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// UDP flows.
    pub(crate) flows: u32,
    /// Seconds in which they must have been opened.
    pub(crate) flows_limit: f64,
}

impl Subject {
    /// Its figures: the first is what it is about.
    pub(crate) const fn columns(&self) -> &'static [Column] {
        match self.work {
            Work::Bulk(_) => {
                const {
                    &[
                        more("gbit_s", "Gbit/s"),
                        less("cpu_s_per_gb", "CPU s/GB, system"),
                        less("daemon_s_per_gb", "CPU s/GB, daemon"),
                        less("retransmits", "retransmits"),
                    ]
                }
            }
            Work::Datagrams(None) => {
                const {
                    &[
                        more("rx_per_s", "received/s"),
                        more("tx_per_s", "sent/s"),
                        less("cpu_us_each", "CPU µs each, system"),
                    ]
                }
            }
            Work::Datagrams(Some(_)) => {
                const {
                    &[
                        less("cpu_us_each", "CPU µs each, system"),
                        less("daemon_us_each", "CPU µs each, daemon"),
                        more("rx_per_s", "received/s"),
                    ]
                }
            }
            Work::RoundTrips(..) => {
                const {
                    &[
                        less("p50_us", "p50 µs"),
                        less("p99_us", "p99 µs"),
                        less("p999_us", "p99.9 µs"),
                        less("lost", "lost"),
                    ]
                }
            }
            Work::Connections => {
                const {
                    &[
                        more("per_s", "connections/s"),
                        less("p99_us", "p99 µs"),
                        less("cpu_us_each", "CPU µs each, system"),
                        less("errors", "errors"),
                    ]
                }
            }
            Work::Flows => {
                const {
                    &[
                        more("per_s", "flows/s"),
                        more("answered", "answered"),
                        less("cpu_us_each", "CPU µs each, system"),
                        less("bytes_each", "daemon's bytes each"),
                        more("beside_per_s", "connections/s beside them"),
                    ]
                }
            }
        }
    }

    /// Measures it.
    pub(crate) fn measure(
        &self,
        meter: &Meter,
        size: Size,
        topology: &Topology,
        pids: &[u32],
    ) -> Result<Figures> {
        let path = self.road.path(topology, pids);
        match self.work {
            Work::Bulk(streams) => meter.bulk(path, streams),
            Work::Datagrams(rate) => meter.datagrams(path, rate, SMALL),
            Work::RoundTrips(protocol, cpus) => meter.round_trips(path, protocol, cpus),
            Work::Connections => meter.connections(path),
            Work::Flows => {
                let before = resident(pids);
                let ports = Path { port: 20_000, ..path };
                let mut figures = meter.flows(ports, size.flows, size.flows_limit)?;
                let grown = resident(pids) - before;
                if let Some(answered) = figures.get("answered").filter(|_| !pids.is_empty()) {
                    figures.set("bytes_each", grown / answered);
                }
                let beside = meter.connections(path)?;
                figures.set("beside_per_s", beside.get("per_s").unwrap_or(f64::NAN));
                Ok(figures)
            }
        }
    }
}
