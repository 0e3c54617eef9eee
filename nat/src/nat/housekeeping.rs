//! Settings, rules, removal, expiry and listings.

use std::ops::RangeInclusive;

use super::{Nat, NetworkConfig};
use crate::conntrack::{Connection, ConnectionId, Filter, RuleId, Step};
use crate::owners::OwnerLimits;
use crate::publish::{PublishError, Rule};
use crate::time::Time;
use crate::tuple::{Address, NetworkId, OwnerId, Protocol};
use crate::verdict::Forward;

impl Nat {
    /// Does up to `budget` steps of housekeeping (a step is well under a microsecond): collects what has expired or was
    /// ended. Returns true if there may be more to do now.
    ///
    /// A connection takes a step or two in its life, plus one every 68 minutes: a budget of twice the packets handled
    /// since the last call keeps pace.
    pub fn expire(&mut self, now: Time, budget: usize) -> bool {
        let left = budget.saturating_sub(self.fragments.expire(now, budget));
        self.collect(now, left)
    }

    /// The part of [`Self::expire`] that concerns connections.
    pub(super) fn collect(&mut self, now: Time, budget: usize) -> bool {
        for _ in 0..budget {
            match self.table.step(now) {
                Step::Busy => {}
                Step::Dead(id) => self.end(now, id),
                Step::Idle => return false,
            }
        }
        true
    }

    /// When [`Self::expire`] should be called next; `None` while there is nothing to wait for. In the past if there is
    /// something to do at once. Changes with every call that takes `&mut self`.
    pub fn poll_at(&self) -> Option<Time> {
        [self.table.poll_at(), self.fragments.poll_at()].into_iter().flatten().min()
    }

    /// The next fragment that had come before the first of its datagram and is translated now, with its way. To be asked
    /// after each [`crate::Verdict::Forward`], and sent after that packet. Its hop limit is as it arrived.
    pub fn next_released(&mut self) -> Option<(Forward, Vec<u8>)> {
        self.released.pop_front().map(|(forward, bytes, _)| (forward, bytes))
    }

    /// Drops what [`Self::next_released`] has not given: the packet that it was to follow was not sent.
    pub fn discard_released(&mut self) {
        while let Some((_, _, only_here)) = self.released.pop_front() {
            self.fragments.lose(1, only_here);
        }
    }

    /// How many fragments of [`Self::outbound`] and [`Self::routed`] are held.
    pub const fn held_fragments(&self) -> usize {
        self.fragments.waiting()
    }

    /// How many of them were dropped since this was asked last, because their first one did not come in time or was not
    /// sent. Of [`Self::inbound`] and [`Self::hairpin`] copies are held, which nobody misses.
    pub const fn take_lost_fragments(&mut self) -> u64 {
        self.fragments.take_lost()
    }

    /// Sets how a network is translated. Holds for connections from now on; timeouts also for existing ones.
    pub fn set_network(&mut self, network: NetworkId, config: NetworkConfig) {
        if let Some(&profile) = self.networks.get(&network) {
            if let Some(known) = self.profiles.get_mut(usize::from(profile)) {
                *known = config;
            }
            return;
        }
        let used = |place: &usize| self.networks.values().any(|profile| usize::from(*profile) == *place);
        let place = (1..self.profiles.len()).find(|place| !used(place)).unwrap_or(self.profiles.len());
        // Beyond 65,535 networks with settings of their own the default serves.
        let Ok(profile) = u16::try_from(place) else { return };
        match self.profiles.get_mut(place) {
            Some(free) => *free = config,
            None => self.profiles.push(config),
        }
        self.networks.insert(network, profile);
    }

    /// Ends all connections of a network and forgets its settings.
    pub fn remove_network(&mut self, now: Time, network: NetworkId) {
        self.networks.remove(&network);
        self.end_all(now, Filter { network: Some(network), ..Filter::default() });
    }

    pub(super) fn profile(&self, network: NetworkId) -> NetworkConfig {
        let profile = self.networks.get(&network).copied().unwrap_or_default();
        self.profiles.get(usize::from(profile)).copied().unwrap_or_default()
    }

    /// Gives an owner limits of its own; `None` goes back to the default.
    pub fn set_owner_limits(&mut self, now: Time, owner: OwnerId, limits: Option<OwnerLimits>) {
        self.owners.set_limits(now, owner, limits);
    }

    /// Ends all connections and mappings of an owner that leaves. Another one with the same address gets no packet of
    /// theirs from here on.
    pub fn remove_owner(&mut self, now: Time, owner: OwnerId) {
        self.end_all(now, Filter { owner: Some(owner), ..Filter::default() });
        self.owners.remove(owner);
    }

    /// Ends all connections and mappings behind an address that the host no longer has.
    pub fn remove_external(&mut self, now: Time, external: Address) {
        self.end_all(now, Filter { external: Some(external), ..Filter::default() });
        self.masquerade.remove_external(external);
    }

    /// Ends all connections that `filter` selects, in constant time: none of them carries a packet from here on, and
    /// [`Self::expire`] collects them.
    pub fn end_all(&mut self, now: Time, filter: Filter) {
        for id in self.table.end_all(filter) {
            self.end(now, id);
        }
    }

    /// Ends one connection. False if it has ended before.
    pub fn end_one(&mut self, now: Time, id: ConnectionId) -> bool {
        let live = self.table.is_live(now, id);
        self.end(now, id);
        live
    }

    /// Publishes ports. Mappings that have one of the ports keep it as long as they last; no other will get it.
    pub fn publish(&mut self, rule: Rule) -> Result<RuleId, PublishError> {
        self.rules.add(rule)
    }

    /// Takes a rule back and ends its connections. `None` if there is no such rule.
    pub fn unpublish(&mut self, now: Time, id: RuleId) -> Option<Rule> {
        let rule = self.rules.remove(id)?;
        self.end_all(now, Filter { rule: Some(id), ..Filter::default() });
        self.restore_ports(rule.protocol, &rule.ports);
        Some(rule)
    }

    /// The publish rules in order, each with the number of its connections.
    pub fn published(&self) -> impl Iterator<Item = (RuleId, &Rule, u32)> {
        self.rules.iter()
    }

    /// Takes a port out of the pools, because the host has it. Mappings that have it keep it.
    pub fn block_port(&mut self, protocol: Protocol, port: u16) {
        self.blocked.insert((protocol, port));
    }

    /// Gives a port back to the pools.
    pub fn unblock_port(&mut self, protocol: Protocol, port: u16) {
        if self.blocked.remove(&(protocol, port)) {
            self.restore_ports(protocol, &(port..=port));
        }
    }

    fn restore_ports(&mut self, protocol: Protocol, ports: &RangeInclusive<u16>) {
        for pool in self.masquerade.pools_mut() {
            if pool.kind().protocol() == protocol {
                pool.restore(ports);
            }
        }
    }

    /// Sets the generation under which connections are admitted from now on. A [`Forward`] tells under which one its
    /// connection was; where they differ, the caller checks anew and calls [`Self::readmit`] or [`Self::end_one`].
    pub const fn set_generation(&mut self, generation: u32) {
        self.generation = generation;
    }

    /// Notes that a connection is admitted under the present generation too.
    pub fn readmit(&mut self, id: ConnectionId) {
        let generation = self.generation;
        if let Some(connection) = self.table.get_mut(id) {
            connection.generation = generation;
        }
    }

    /// A connection, until it is collected.
    pub fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        self.table.get(id)
    }

    /// The live connections that `filter` selects, in no order. Walks the whole table.
    pub fn connections(
        &self,
        now: Time,
        filter: Filter,
    ) -> impl Iterator<Item = (ConnectionId, &Connection)> {
        self.table.iter(now).filter(move |(_, connection)| filter.selects(connection))
    }

    /// The number of connections in the table, those included that have ended and are not collected yet.
    pub const fn connection_count(&self) -> u32 {
        self.table.len()
    }

    /// The number of mappings.
    pub const fn mapping_count(&self) -> u32 {
        self.masquerade.len()
    }

    /// The connections that count against an owner, those included that have ended and are not collected yet.
    pub fn owner_connections(&self, owner: OwnerId) -> u32 {
        self.owners.connections(owner)
    }
}
