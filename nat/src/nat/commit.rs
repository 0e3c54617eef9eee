//! Making a connection: from a decision to entries in the tables.

use std::collections::HashSet;

use foldhash::quality::RandomState;

use super::{Filtering, Mapping, Nat, NetworkConfig};
use crate::conntrack::tcp::Ends;
use crate::conntrack::{Connection, ConnectionId, InsertError, RuleId};
use crate::masquerade::{Inside, Scope};
use crate::packet::Packet;
use crate::ports::{Kind, Lease, Rest};
use crate::publish::Rules;
use crate::slab::NONE;
use crate::time::Time;
use crate::tuple::{Address, Direction, Endpoint, NetworkId, Protocol, Tuple};
use crate::verdict::{DropReason, Pending, Plan, Refusal, Verdict};

/// Ports in use that are tried for sharing.
const SHARE_TRIES: usize = 64;

/// Closed connections that are ended for one new port: several of them may have used the same one.
const RECYCLE_TRIES: usize = 16;

/// What a connection got for its reply tuple.
struct Leased {
    reply: Tuple,
    /// The mapping that it now uses, or [`NONE`].
    mapping: u32,
    /// The rule whose port it has.
    rule: Option<RuleId>,
}

impl Nat {
    /// Makes the connection that `packet` was found to begin, and translates the packet in place.
    ///
    /// The packet must be the untouched one that [`Verdict::New`] was about. The answer is [`Verdict::Forward`], or
    /// [`Verdict::Refuse`] or [`Verdict::Drop`] with the packet still untouched and no state left behind.
    pub fn commit(&mut self, now: Time, packet: &mut Packet<'_>, pending: Pending) -> Verdict {
        if packet.tuple(pending.from.network) != Some(pending.tuple) {
            return Verdict::Refuse(Refusal::Stale);
        }
        let (id, direction) = match self.lookup(now, &pending.tuple) {
            // Another packet of the connection was committed since.
            Some((id, direction)) => match self.table.get(id) {
                Some(connection) if connection.owner(direction) == pending.from.owner => (id, direction),
                _ => return Verdict::Drop(DropReason::Clash),
            },
            None => match self.open(now, packet, &pending) {
                Ok(id) => (id, Direction::Original),
                Err(verdict) => return verdict,
            },
        };
        match self.travel(now, packet, id, direction) {
            Ok(forward) => Verdict::Forward(forward),
            Err(verdict) => {
                if self.table.get(id).is_some_and(Connection::is_untravelled) {
                    self.end(now, id);
                }
                verdict
            }
        }
    }

    /// Makes the connection, with no packet counted yet.
    fn open(&mut self, now: Time, packet: &Packet<'_>, pending: &Pending) -> Result<ConnectionId, Verdict> {
        self.check_limits(now, pending).map_err(Verdict::Refuse)?;
        if pending.rule().is_some_and(|rule| !self.rules.contains(rule)) {
            return Err(Verdict::Refuse(Refusal::Stale));
        }
        let Pending { tuple, from, to, plan } = *pending;
        let answered_by = |endpoint| Tuple { source: endpoint, ..tuple.reversed(to.network) };
        let Leased { reply, mapping, rule } = match plan {
            Plan::Hairpin { target, external, .. } => self.lease(now, pending, external, target)?,
            Plan::Mapped { target } => {
                let mapping = self.masquerade.at(self.table.filters(), tuple.protocol, tuple.destination);
                let mapping = mapping.ok_or(Verdict::Refuse(Refusal::Stale))?;
                self.masquerade.acquire(mapping);
                Leased { reply: answered_by(target), mapping, rule: None }
            }
            Plan::Masquerade { external } => self.lease(now, pending, external, tuple.destination)?,
            Plan::Published { target, .. } => {
                Leased { reply: answered_by(target), mapping: NONE, rule: None }
            }
            Plan::Routed => Leased { reply: tuple.reversed(to.network), mapping: NONE, rule: None },
        };
        let rule = pending.rule().or(rule);
        let inside = if from.network == NetworkId::OUTSIDE { to.network } else { from.network };
        let mut connection = Connection::new(now, [tuple, reply], [from.owner, to.owner], rule);
        connection.mapping = mapping;
        connection.generation = self.generation;
        connection.profile = self.networks.get(&inside).copied().unwrap_or_default();
        if let Some((ends, state)) = packet.tcp().and_then(|segment| Ends::open(&segment)) {
            connection.set_ends(ends);
            connection.state = state;
        }
        let config = self.profile(inside);
        connection.deadline = now + config.timeouts.of(&tuple, connection.state);
        let leads_out = matches!(plan, Plan::Masquerade { .. } | Plan::Hairpin { .. }) && mapping != NONE;
        connection.contact = leads_out && config.filtering == Filtering::AddressDependent;
        let (charged, contact) = (connection.charged(), connection.contact);
        match self.table.insert(connection) {
            Ok(id) => {
                self.owners.opened(now, charged);
                if let Some(rule) = rule {
                    self.rules.opened(rule);
                }
                if contact {
                    self.masquerade.add_contact(mapping, tuple.destination.address);
                }
                Ok(id)
            }
            Err(error) => {
                self.release(now, mapping, Rest::Unneeded);
                Err(match error {
                    InsertError::Clash => Verdict::Drop(DropReason::Clash),
                    InsertError::Full => Verdict::Refuse(Refusal::TableFull),
                })
            }
        }
    }

    /// An endpoint of `external` for the source of a connection that is answered by `answers`.
    fn lease(
        &mut self,
        now: Time,
        pending: &Pending,
        external: Address,
        answers: Endpoint,
    ) -> Result<Leased, Verdict> {
        let Pending { tuple, from, to, .. } = *pending;
        let protocol = tuple.protocol;
        let reply = |port| Tuple {
            source: answers,
            destination: Endpoint { address: external, port },
            protocol,
            network: to.network,
        };
        // A published endpoint is known by its published port, whoever sends first.
        if let Some((rule, port)) = self.rules.source(protocol, from.network, tuple.source, external)
            && self.lookup(now, &reply(port)).is_none()
        {
            return Ok(Leased { reply: reply(port), mapping: NONE, rule: Some(rule) });
        }
        let Some(pool) = self.masquerade.pool(external, protocol) else {
            // By addresses alone. If another connection looks the same the table will say so.
            return Ok(Leased { reply: reply(tuple.source.port), mapping: NONE, rule: None });
        };
        let NetworkConfig { mapping, filtering, .. } = self.profile(from.network);
        let inside = Inside { endpoint: tuple.source, protocol, network: from.network, owner: from.owner };
        let mut scope = Scope::Dependent;
        if mapping == Mapping::EndpointIndependent {
            match self.masquerade.find(self.table.filters(), &inside, pool) {
                None => scope = Scope::Independent,
                Some(found) => {
                    let reply = reply(self.masquerade.get(found).map_or(0, |mapping| mapping.port()));
                    if self.lookup(now, &reply).is_none() {
                        self.masquerade.acquire(found);
                        return Ok(Leased { reply, mapping: found, rule: None });
                    }
                    // One that shares the port leads to the same destination: this connection needs another port.
                }
            }
        }
        let exhausted = Verdict::Refuse(Refusal::PortsExhausted);
        let Some(id) = self.masquerade.insert(self.table.filters(), inside, pool) else {
            return Err(exhausted);
        };
        let lease = match self.lease_alone(now, id, pool, &inside, external, filtering) {
            Some(lease) => Some(lease),
            None => self.lease_shared(now, pool, protocol, external, reply),
        };
        let Some(lease) = lease else {
            self.release(now, id, Rest::Unneeded);
            return Err(exhausted);
        };
        let port = lease.port();
        if !lease.is_shared()
            && let Some(kind) = Kind::new(protocol, external)
        {
            self.owners.leased(now, from.owner, kind);
        }
        self.masquerade.settle(id, lease, scope);
        self.masquerade.acquire(id);
        Ok(Leased { reply: reply(port), mapping: id, rule: None })
    }

    /// A port for mapping `id` alone: a free one; else that of the connection that closed first; else, where filtering
    /// keeps strangers out (RFC 6888 REQ-8 C), the one that has rested longest.
    fn lease_alone(
        &mut self,
        now: Time,
        id: u32,
        pool: u16,
        inside: &Inside,
        external: Address,
        filtering: Filtering,
    ) -> Option<Lease> {
        let kind = Kind::new(inside.protocol, external)?;
        let ports = u32::try_from(self.masquerade.pool_mut(pool)?.len()).unwrap_or(u32::MAX);
        let share = ports - ports / 16;
        for _ in 0..=RECYCLE_TRIES {
            if self.owners.ports(inside.owner, kind) < share {
                let usable = usable(&self.rules, &self.blocked, inside.protocol, external);
                if let Some(lease) = self.masquerade.lease(now, id, usable) {
                    return Some(lease);
                }
            }
            let Some(closed) = self.masquerade.pool_mut(pool)?.next_closed() else { break };
            match self.table.get_mut(closed) {
                Some(connection) if connection.state.is_over() => self.end(now, closed),
                // Open again: it will be noted again when it closes.
                Some(connection) => connection.closed_noted = false,
                None => {}
            }
        }
        if self.owners.ports(inside.owner, kind) >= share || filtering == Filtering::EndpointIndependent {
            return None;
        }
        let usable = usable(&self.rules, &self.blocked, inside.protocol, external);
        self.masquerade.pool_mut(pool)?.lease_resting(id, usable)
    }

    /// A port that others use, but not towards this destination (RFC 7857 section 3).
    fn lease_shared(
        &mut self,
        now: Time,
        pool: u16,
        protocol: Protocol,
        external: Address,
        reply: impl Fn(u16) -> Tuple,
    ) -> Option<Lease> {
        for port in self.masquerade.pool_mut(pool)?.candidates(SHARE_TRIES) {
            let usable = usable(&self.rules, &self.blocked, protocol, external)(port);
            // The lookup may have collected the port's last user.
            if usable
                && self.lookup(now, &reply(port)).is_none()
                && let Some(lease) = self.masquerade.pool_mut(pool)?.share(port)
            {
                return Some(lease);
            }
        }
        None
    }

    /// Collects a connection and gives back what it had.
    pub(super) fn end(&mut self, now: Time, id: ConnectionId) {
        let Some(connection) = self.table.remove(id) else { return };
        self.owners.closed(connection.charged());
        if let Some(rule) = connection.rule() {
            self.rules.closed(rule);
        }
        if connection.contact {
            let destination = connection.tuple(Direction::Original).destination.address;
            self.masquerade.remove_contact(connection.mapping, destination);
        }
        // RFC 6888 REQ-8 A: a TCP connection that was seen to close needs no rest.
        let rest = if connection.state.is_over() { Rest::Unneeded } else { Rest::Needed };
        self.release(now, connection.mapping, rest);
    }

    pub(super) fn release(&mut self, now: Time, mapping: u32, rest: Rest) {
        if let Some(ended) = self.masquerade.release(now, mapping, rest)
            && let Some(kind) = ended.kind
        {
            self.owners.released(ended.owner, kind);
        }
    }
}

/// Which ports of `external` may be leased: publish rules and the host's own programs come first.
pub(super) fn usable(
    rules: &Rules,
    blocked: &HashSet<(Protocol, u16), RandomState>,
    protocol: Protocol,
    external: Address,
) -> impl Fn(u16) -> bool {
    move |port| !blocked.contains(&(protocol, port)) && !rules.covers(protocol, external, port)
}
