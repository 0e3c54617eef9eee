//! Connections and publishes, as the API shows them.

use ctl::api;
use nat::{ConnectionId, Direction, Filter, OwnerId, Protocol, State, Tuple};

use super::control::{Daemon, Error};
use super::desired::EditError;
use super::outside::guarded;
use super::publishes::Publish;
use crate::router::{network_of, owner, port_of};
use crate::worker;

impl Daemon {
    /// `GET /v1/publishes`.
    pub fn published(&self) -> Vec<api::Published> {
        let counts: std::collections::HashMap<_, _> =
            self.dataplane.forwarding().nat.published().map(|(id, _, n)| (id, n)).collect();
        let count = |key| self.outside.rules.get(key).and_then(|id| counts.get(id)).copied();
        let all = self.desired.publishes.iter();
        all.map(|(key, publish)| self.published_view(publish, count(key).unwrap_or_default())).collect()
    }

    pub(super) fn published_view(&self, publish: &Publish, connections: u32) -> api::Published {
        let key = publish.key();
        let protocol = guarded(publish.protocol());
        let taken = self
            .outside
            .intruders
            .iter()
            .find(|t| t.protocol == protocol && publish.ports().contains(&t.port));
        let problem = self.outside.refused.get(&key).cloned().or_else(|| taken.map(ToString::to_string));
        api::Published {
            name: key.name(),
            host_ip: publish.host,
            host_port: publish.first,
            host_port_end: publish.last,
            protocol: publish.transport,
            target_ip: publish.target.ip(),
            target_port: publish.target.port(),
            network: publish.network.clone(),
            from: publish.from.clone(),
            connections: connections.into(),
            since: publish.since,
            port: publish.port.clone(),
            problem,
        }
    }

    /// `GET /v1/connections`.
    ///
    /// # Errors
    /// When the filter names something that is not there.
    pub fn connections(&self, filter: &api::ConnectionFilter) -> Result<Vec<api::Connection>, Error> {
        let filter = self.filter(filter)?;
        self.dataplane.collect();
        let now = worker::now();
        // Copied under the lock, written out without it.
        let found: Vec<nat::Connection> = {
            let state = self.dataplane.forwarding();
            state.nat.connections(now, filter).map(|(_, c)| c.clone()).collect()
        };
        Ok(found.iter().map(|c| self.connection_view(now, c)).collect())
    }

    /// `GET /v1/connections/count`.
    ///
    /// # Errors
    /// As [`Daemon::connections`].
    pub fn count_connections(&self, filter: &api::ConnectionFilter) -> Result<u64, Error> {
        let filter = self.filter(filter)?;
        self.dataplane.collect();
        Ok(self.dataplane.forwarding().nat.connections(worker::now(), filter).count() as u64)
    }

    /// `POST /v1/connections/flush`: ends them; tells how many.
    ///
    /// # Errors
    /// As [`Daemon::connections`].
    pub fn flush_connections(&self, filter: &api::ConnectionFilter) -> Result<u64, Error> {
        let filter = self.filter(filter)?;
        self.dataplane.collect();
        let now = worker::now();
        let mut state = self.dataplane.forwarding();
        let ids: Vec<ConnectionId> = state.nat.connections(now, filter).map(|(id, _)| id).collect();
        state.nat.end_all(now, filter);
        drop(state);
        self.dataplane.end_epoch();
        self.dataplane.wake();
        Ok(ids.len() as u64)
    }

    fn filter(&self, wanted: &api::ConnectionFilter) -> Result<Filter, EditError> {
        let wrong = |what: &'static str, name: &str, hint: &str| EditError::NotFound {
            what,
            name: name.chars().take(64).collect(),
            hint: hint.to_owned(),
        };
        let owner = match &wanted.container {
            Some(name) => match self.live.port(name) {
                Some(port) => Some(owner(port.id)),
                None => return Err(wrong("port", name, "'swctl port ls' lists them")),
            },
            None => None,
        };
        let protocol = match wanted.protocol.as_deref() {
            Some(name) => match protocol(name) {
                Some(protocol) => Some(protocol),
                None => return Err(wrong("protocol", name, "use tcp, udp, icmp, icmpv6, sctp or a number")),
            },
            None => None,
        };
        let state = match wanted.state.as_deref() {
            Some(name) => match STATES.iter().find(|s| s.to_string() == name) {
                Some(state) => Some(*state),
                None => {
                    let all: Vec<String> = STATES.iter().map(ToString::to_string).collect();
                    return Err(wrong("state", name, &format!("use one of {}", all.join(", "))));
                }
            },
            None => None,
        };
        let address = wanted.address.map(Into::into);
        Ok(Filter { owner, protocol, state, address, port: wanted.port, ..Filter::default() })
    }

    fn connection_view(&self, now: nat::Time, c: &nat::Connection) -> api::Connection {
        let (original, reply) = (c.tuple(Direction::Original), c.tuple(Direction::Reply));
        let sum = |of: fn(nat::Counters) -> u64| {
            of(c.counters(Direction::Original)) + of(c.counters(Direction::Reply))
        };
        let owners = [c.owner(Direction::Original), c.owner(Direction::Reply)];
        let inside = owners.into_iter().find(|o| *o != OwnerId::OUTSIDE);
        let network = [original.network, reply.network].into_iter().find_map(network_of);
        let name = |port| self.live.port_name(port).map(str::to_owned);
        api::Connection {
            protocol: original.protocol.to_string(),
            state: c.state().to_string(),
            network: network.and_then(|n| self.live.network_name(n)).unwrap_or_default().to_owned(),
            container: inside.and_then(port_of).and_then(name),
            original: flow(&original),
            reply: flow(&reply),
            packets: sum(|c| c.packets),
            bytes: sum(|c| c.bytes),
            age_s: now.since(c.created()).as_secs(),
            timeout_s: c.deadline().since(now).as_secs(),
        }
    }
}

const STATES: [State; 8] = [
    State::Closed,
    State::Closing,
    State::Established,
    State::Replied,
    State::Reset,
    State::SynReceived,
    State::SynSent,
    State::Unreplied,
];

fn protocol(name: &str) -> Option<Protocol> {
    let named = [Protocol::Icmp, Protocol::Icmpv6, Protocol::Sctp, Protocol::Tcp, Protocol::Udp];
    let found = named.into_iter().find(|p| p.to_string() == name);
    found.or_else(|| name.parse::<u8>().ok().map(Protocol::from))
}

fn flow(tuple: &Tuple) -> api::Flow {
    api::Flow {
        src: tuple.source.address.to_ip(),
        sport: tuple.source.port,
        dst: tuple.destination.address.to_ip(),
        dport: tuple.destination.port,
    }
}
