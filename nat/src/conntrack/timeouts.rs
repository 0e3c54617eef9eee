//! How long a connection lives without packets, by protocol and state.

use std::time::Duration;

use super::State;
use crate::tuple::{Protocol, Tuple};

/// Lifetimes of idle connections. Every value can be set; the defaults keep to the RFCs' floors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A SYN without an answer. RFC 5382 REQ-5: a transitory state lasts at least 4 minutes.
    pub tcp_syn_sent: Duration,
    /// A SYN answered, the handshake not finished. RFC 5382 REQ-5.
    pub tcp_syn_received: Duration,
    /// An open connection. RFC 5382 REQ-5: at least 2 hours and 4 minutes.
    pub tcp_established: Duration,
    /// At least one FIN seen. RFC 5382 REQ-5, transitory.
    pub tcp_closing: Duration,
    /// Both FINs seen and acknowledged. RFC 5382 REQ-5, transitory.
    pub tcp_closed: Duration,
    /// A RST seen. RFC 7857 section 2.2: 4 minutes.
    pub tcp_reset: Duration,
    /// UDP without an answer so far. RFC 4787 REQ-5: at least 2 minutes.
    pub udp_unreplied: Duration,
    /// UDP both ways. RFC 4787 REQ-5c: 5 minutes recommended.
    pub udp_replied: Duration,
    /// UDP to port 53: one question, one answer. RFC 4787 REQ-5a allows less for well-known ports; without
    /// it a resolver that changes its port for each question would use up the pool at 15 questions per second.
    pub udp_dns: Duration,
    /// An ICMP query. RFC 5508 REQ-2: at least 60 seconds.
    pub icmp_query: Duration,
    /// Any other protocol.
    pub other: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_syn_sent: Duration::from_secs(240),
            tcp_syn_received: Duration::from_secs(240),
            tcp_established: Duration::from_secs(7440),
            tcp_closing: Duration::from_secs(240),
            tcp_closed: Duration::from_secs(240),
            tcp_reset: Duration::from_secs(240),
            udp_unreplied: Duration::from_secs(120),
            udp_replied: Duration::from_secs(300),
            udp_dns: Duration::from_secs(10),
            icmp_query: Duration::from_secs(60),
            other: Duration::from_secs(600),
        }
    }
}

impl Timeouts {
    /// The lifetime of an idle connection whose first packet had `original`.
    pub(crate) const fn of(&self, original: &Tuple, state: State) -> Duration {
        match (state, original.protocol) {
            (State::SynSent, _) => self.tcp_syn_sent,
            (State::SynReceived, _) => self.tcp_syn_received,
            (State::Established, _) => self.tcp_established,
            (State::Closing, _) => self.tcp_closing,
            (State::Closed, _) => self.tcp_closed,
            (State::Reset, _) => self.tcp_reset,
            (_, Protocol::Udp) if original.destination.port == 53 => self.udp_dns,
            (State::Unreplied, Protocol::Udp) => self.udp_unreplied,
            (State::Replied, Protocol::Udp) => self.udp_replied,
            (_, Protocol::Icmp | Protocol::Icmpv6) => self.icmp_query,
            _ => self.other,
        }
    }
}
