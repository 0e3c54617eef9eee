//! Loads: small programs that run inside namespaces, one for each end of a path.
//!
//! They are hidden subcommands of the programs of this package. A server prints `ready` when it listens. Whoever has
//! something to tell ends by printing its figures as one line of JSON. Each ends by itself: a server at its `limit` at
//! the latest, a client when its time is over.

mod bulk;
mod connections;
mod datagrams;
mod flood;
mod flows;
mod round_trips;
mod socket;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use switch::mac::Mac;

use crate::figures::Figures;

pub use flood::Kind as FloodKind;

/// Payload of a small datagram and of a request, in bytes.
pub const SMALL: usize = 64;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// TCP, without Nagle's delay.
    Tcp,
    /// UDP.
    Udp,
}

/// One end of a load.
#[derive(Clone, Copy, Debug, Args)]
pub struct Load {
    /// The CPU to stay on
    #[arg(long, global = true)]
    cpu: Option<usize>,
    #[command(subcommand)]
    part: Part,
}

/// Where a server listens, and for how long.
#[derive(Clone, Copy, Debug, Args)]
struct Serve {
    #[arg(long)]
    port: u16,
    /// Seconds after which it ends in any case
    #[arg(long)]
    limit: f64,
}

impl Serve {
    fn end(self) -> Instant {
        Instant::now() + Duration::from_secs_f64(self.limit)
    }
}

/// Where a client sends, and for how long.
#[derive(Clone, Copy, Debug, Args)]
struct Send {
    #[arg(long)]
    to: SocketAddrV4,
    #[arg(long)]
    seconds: f64,
}

impl Send {
    fn end(self) -> Instant {
        Instant::now() + Duration::from_secs_f64(self.seconds)
    }
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Part {
    /// Receives TCP streams until all have ended
    Sink {
        #[command(flatten)]
        serve: Serve,
        #[arg(long, default_value_t = 1)]
        streams: usize,
    },
    /// Sends TCP streams
    Source {
        #[command(flatten)]
        send: Send,
        #[arg(long, default_value_t = 1)]
        streams: usize,
    },
    /// Counts datagrams for some seconds, a warm-up after the first
    Count {
        #[command(flatten)]
        serve: Serve,
        #[arg(long)]
        warm_up: f64,
        #[arg(long)]
        seconds: f64,
    },
    /// Sends datagrams, as many as it can or at a rate
    Blast {
        #[command(flatten)]
        send: Send,
        /// Bytes of payload
        #[arg(long, default_value_t = SMALL)]
        size: usize,
        /// Datagrams a second; no limit when left out
        #[arg(long)]
        rate: Option<f64>,
    },
    /// Answers requests
    Echo {
        #[command(flatten)]
        serve: Serve,
        #[arg(long)]
        protocol: Protocol,
    },
    /// Sends a request as soon as the last one was answered
    Ask {
        #[command(flatten)]
        send: Send,
        #[arg(long)]
        protocol: Protocol,
    },
    /// Accepts connections, and answers a byte by a byte
    Accept {
        #[command(flatten)]
        serve: Serve,
    },
    /// Connects, sends a byte, awaits a byte, closes; several at a time
    Connect {
        #[command(flatten)]
        send: Send,
        #[arg(long, default_value_t = 16)]
        parallel: usize,
    },
    /// Answers datagrams on several ports in a row
    EchoMany {
        #[command(flatten)]
        serve: Serve,
        #[arg(long, default_value_t = flows::PORTS)]
        ports: u16,
    },
    /// Sends frames that nobody wants from `eth0`, as many as it can
    Flood {
        #[arg(long)]
        kind: flood::Kind,
        /// The MAC to send from
        #[arg(long)]
        mac: Mac,
        /// The address to send from
        #[arg(long)]
        address: Ipv4Addr,
        /// The MAC of the gateway
        #[arg(long)]
        gateway: Mac,
        #[arg(long)]
        seconds: f64,
    },
    /// Opens UDP flows, with an answer to each
    OpenFlows {
        #[command(flatten)]
        send: Send,
        #[arg(long, default_value_t = flows::PORTS)]
        ports: u16,
        /// Source ports: each has a flow to every destination port
        #[arg(long)]
        sockets: usize,
    },
}

/// Destination ports of the flow-table load: flows are this many times the source ports.
pub const FLOW_PORTS: u16 = flows::PORTS;

impl Load {
    /// Does it, and prints what is to be told.
    ///
    /// # Errors
    /// When a socket cannot be made, or nobody answers at all.
    pub fn run(self) -> Result<()> {
        if let Some(cpu) = self.cpu {
            let mut set = CpuSet::new();
            set.set(cpu).context("the CPU's number")?;
            sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("stay on CPU {cpu}"))?;
        }
        let figures = match self.part {
            Part::Sink { serve, streams } => bulk::sink(serve, streams)?,
            Part::Source { send, streams } => bulk::source(send, streams)?,
            Part::Count { serve, warm_up, seconds } => datagrams::count(serve, warm_up, seconds)?,
            Part::Blast { send, size, rate } => datagrams::blast(send, rate, size)?,
            Part::Echo { serve, protocol } => round_trips::echo(serve, protocol)?,
            Part::Ask { send, protocol } => round_trips::ask(send, protocol)?,
            Part::Accept { serve } => connections::accept(serve)?,
            Part::Connect { send, parallel } => connections::connect(send, parallel)?,
            Part::EchoMany { serve, ports } => flows::echo(serve, ports)?,
            Part::Flood { kind, mac, address, gateway, seconds } => {
                flood::flood(kind, (mac, address), gateway, seconds)?
            }
            Part::OpenFlows { send, ports, sockets } => flows::open(send, ports, sockets)?,
        };
        println!("{}", serde_json::to_string(&figures)?);
        Ok(())
    }
}

/// Tells whoever waits that the server listens.
fn ready() {
    println!("ready");
}

/// Percentiles of times in nanoseconds, as microseconds.
pub(crate) fn percentiles(mut times: Vec<u32>) -> Figures {
    times.sort_unstable();
    let at = |permille: usize| {
        let last = times.len().saturating_sub(1);
        times.get((times.len() * permille / 1000).min(last)).map_or(f64::NAN, |t| f64::from(*t) / 1e3)
    };
    Figures::from([("p50_us", at(500)), ("p99_us", at(990)), ("p999_us", at(999))])
}
