//! Writing connections down as they change, and bringing them back.
//!
//! The translator tells what changed ([`Nat::next_change`]); where it is written is the caller's business. After a start the
//! caller gives the records back, one by one, to [`Nat::restore`]. Each is believed only as far as it could have come from
//! this translator as it is now: rules and networks first, then connections.

use super::commit::usable;
use super::{Filtering, Nat};
use crate::conntrack::tcp::Ends;
use crate::conntrack::{Connection, ConnectionId, FRESH, InsertError, RuleId, State};
use crate::masquerade::{Inside, Scope};
use crate::ports::{Kind, Rest};
use crate::record::{Record, Shared, Unrestored};
use crate::slab::NONE;
use crate::time::Time;
use crate::tuple::{Address, Direction, Endpoint, NetworkId, OwnerId, Protocol, Tuple};

/// What a connection had besides its tuples.
struct Retraced {
    rule: Option<RuleId>,
    /// The inside endpoint and the external one that is leased to it.
    lease: Option<(Inside, Endpoint)>,
}

impl Nat {
    /// Notes what changes from now on, all there is included; or does so no more. It is off in a new translator.
    pub fn want_changes(&mut self, wanted: bool) {
        self.table.want_changes(wanted);
    }

    /// A place that changed, and what is there now: `None` if nothing is. Places have numbers below the number of connections
    /// that the table may hold. To be asked until there is no more: each place is told once, as it is by then.
    ///
    /// Opening, ending and each change of state are changes; packets that only prolong a connection are one for every eighth of
    /// its lifetime.
    pub fn next_change(&mut self) -> Option<(u32, Option<Record>)> {
        let (index, connection) = self.table.next_change()?;
        let Some(connection) = connection else { return Some((index, None)) };
        connection.note_recorded();
        let directions = [Direction::Original, Direction::Reply];
        let shared = match self.masquerade.scope(connection.mapping) {
            None => Shared::Unleased,
            Some(Scope::Dependent | Scope::Ended) => Shared::Dependent,
            Some(Scope::Independent) => Shared::Independent,
            Some(Scope::Shared) => Shared::Overloaded,
        };
        let record = Record {
            tuples: connection.tuples(),
            owners: directions.map(|d| connection.owner(d)),
            state: connection.state,
            ends: connection.ends().essence(),
            ruled: connection.rule().is_some(),
            shared,
            created: connection.created(),
            deadline: connection.deadline,
            counters: directions.map(|d| connection.counters(d)),
        };
        Some((index, Some(record)))
    }

    /// Brings a connection back. Networks, rules, blocked ports and limits must be set up before; networks and owners of the
    /// record are those of now. `is_external` says whether the host has an address.
    ///
    /// Since it was written down it may have lived on unnoticed, for an eighth of its lifetime: it gets as much on top. It is
    /// admitted under the generation before the present one, so a caller that checks generations checks it anew.
    ///
    /// # Errors
    /// When it is over, cannot have been, or contradicts what is there; then nothing has changed.
    pub fn restore(
        &mut self,
        now: Time,
        record: &Record,
        is_external: impl Fn(Address) -> bool,
    ) -> Result<ConnectionId, Unrestored> {
        let ends = sound(now, record).ok_or(Unrestored::Malformed)?;
        let [original, reply] = record.tuples;
        let inside = if original.network == NetworkId::OUTSIDE { reply.network } else { original.network };
        let config = self.profile(inside);
        let lifetime = config.timeouts.of(&original, record.state);
        let deadline = (record.deadline + lifetime / FRESH).min(now + lifetime);
        if deadline <= now {
            return Err(Unrestored::Expired);
        }
        let Retraced { rule, lease } = self.retrace(record, is_external)?;
        if record.tuples.iter().any(|tuple| self.lookup(now, tuple).is_some()) {
            return Err(Unrestored::Clash);
        }
        if self.table.is_full() {
            return Err(Unrestored::Full);
        }
        let mapping = match lease {
            Some((inside, external)) => self.lease_again(now, inside, external, record.shared)?,
            None => NONE,
        };
        let mut connection = Connection::new(now, record.tuples, record.owners, rule);
        connection.resume(record.created, record.counters);
        connection.deadline = deadline;
        connection.set_ends(ends);
        connection.state = record.state;
        connection.mapping = mapping;
        connection.generation = self.generation.wrapping_sub(1);
        connection.profile = self.networks.get(&inside).copied().unwrap_or_default();
        connection.closed_noted = record.state.is_over();
        connection.contact = mapping != NONE
            && original.network != NetworkId::OUTSIDE
            && config.filtering == Filtering::AddressDependent;
        let (charged, contact) = (connection.charged(), connection.contact);
        let id = self.table.insert(connection).map_err(|error| {
            self.release(now, mapping, Rest::Unneeded);
            match error {
                InsertError::Clash => Unrestored::Clash,
                InsertError::Full => Unrestored::Full,
            }
        })?;
        self.owners.restored(now, charged);
        if let Some(rule) = rule {
            self.rules.opened(rule);
        }
        if contact {
            self.masquerade.add_contact(mapping, original.destination.address);
        }
        if record.state.is_over()
            && let Some(pool) = self.masquerade.pool_of(mapping)
        {
            pool.note_closed(id);
        }
        Ok(id)
    }

    /// How the connection must have come about, by its tuples.
    fn retrace(
        &self,
        record: &Record,
        is_external: impl Fn(Address) -> bool,
    ) -> Result<Retraced, Unrestored> {
        let [original, reply] = record.tuples;
        let leased = record.shared != Shared::Unleased;
        if reply == original.reversed(reply.network) && !leased && !record.ruled {
            return Ok(Retraced { rule: None, lease: None });
        }
        let protocol = original.protocol;
        // The rule by which a packet to the host's endpoint is led to who answers.
        let entry = || {
            let target = self.rules.target(protocol, original.source.address, original.destination)?.ok()?;
            let leads = target.endpoint == reply.source && target.network == reply.network;
            leads.then_some(target.rule)
        };
        if original.network == NetworkId::OUTSIDE {
            if reply.destination != original.source || leased == record.ruled {
                return Err(Unrestored::Malformed);
            }
            if !is_external(original.destination.address) {
                return Err(Unrestored::External);
            }
            if leased {
                let inside = Inside {
                    endpoint: reply.source,
                    protocol,
                    network: reply.network,
                    owner: record.owners[1],
                };
                return Ok(Retraced { rule: None, lease: Some((inside, original.destination)) });
            }
            return Ok(Retraced { rule: Some(entry().ok_or(Unrestored::Rule)?), lease: None });
        }
        let hairpin = reply.network != NetworkId::OUTSIDE;
        if !hairpin && reply.source != original.destination {
            return Err(Unrestored::Malformed);
        }
        if !is_external(reply.destination.address) || (hairpin && !is_external(original.destination.address))
        {
            return Err(Unrestored::External);
        }
        let by_rule = || {
            let external = reply.destination;
            let found = self.rules.source(protocol, original.network, original.source, external.address);
            found.and_then(|(rule, port)| (port == external.port).then_some(rule))
        };
        let has_ports = Kind::new(protocol, reply.destination.address).is_some();
        let (lease, exit) = if leased {
            let inside = Inside {
                endpoint: original.source,
                protocol,
                network: original.network,
                owner: record.owners[0],
            };
            (Some((inside, reply.destination)), None)
        } else if has_ports {
            (None, Some(by_rule().ok_or(Unrestored::Rule)?))
        } else {
            (None, None)
        };
        let rule = if hairpin { entry().or(exit) } else { exit };
        match (record.ruled, rule) {
            (true, None) => Err(Unrestored::Rule),
            (true, rule) => Ok(Retraced { rule, lease }),
            (false, _) => Ok(Retraced { rule: None, lease }),
        }
    }

    /// The mapping that a connection was leased its external endpoint through.
    fn lease_again(
        &mut self,
        now: Time,
        inside: Inside,
        external: Endpoint,
        shared: Shared,
    ) -> Result<u32, Unrestored> {
        let scope = match shared {
            Shared::Independent => Scope::Independent,
            Shared::Overloaded => Scope::Shared,
            Shared::Dependent | Shared::Unleased => Scope::Dependent,
        };
        let kind = Kind::new(inside.protocol, external.address).ok_or(Unrestored::Malformed)?;
        let usable = usable(&self.rules, &self.blocked, inside.protocol, external.address);
        let restored = self.masquerade.restore(self.table.filters(), inside, external, scope, usable);
        let (mapping, alone) = restored.ok_or(Unrestored::Clash)?;
        if alone {
            self.owners.leased(now, inside.owner, kind);
        }
        Ok(mapping)
    }
}

/// The ends of a connection that can have been; whatever else is there.
fn sound(now: Time, record: &Record) -> Option<Ends> {
    let [original, reply] = &record.tuples;
    let v4 = original.source.address.is_v4();
    let endpoints = [original.source, original.destination, reply.source, reply.destination];
    let outside = |(tuple, owner): (&Tuple, &OwnerId)| {
        (tuple.network == NetworkId::OUTSIDE) == (*owner == OwnerId::OUTSIDE)
    };
    let fits = original.protocol == reply.protocol
        && endpoints.iter().all(|endpoint| endpoint.address.is_v4() == v4)
        && record.tuples.iter().zip(&record.owners).all(outside)
        && (original.network, reply.network) != (NetworkId::OUTSIDE, NetworkId::OUTSIDE)
        && record.created <= now;
    let state = record.state;
    match original.protocol {
        _ if !fits => None,
        Protocol::Icmp if !v4 => None,
        Protocol::Icmpv6 if v4 => None,
        Protocol::Tcp if matches!(state, State::Unreplied | State::Replied) => None,
        Protocol::Tcp => Ends::from_essence(record.ends, state),
        _ => matches!(state, State::Unreplied | State::Replied).then_some(Ends::NEW),
    }
}
