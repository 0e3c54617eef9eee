//! Mappings: which external endpoint stands for which inside endpoint.
//!
//! **What it stores.** A mapping ties an inside endpoint to a leased port of an external address, and counts the
//! connections that use it; with the last one it ends and the port goes back to its pool. By default all connections of
//! an inside endpoint share one mapping (*independent*, RFC 4787 REQ-1). Where the network asks for
//! address-and-port-dependent mapping, each connection has its own (*dependent*). When ports run out, a connection can
//! get a mapping on a port that others use (*shared*, RFC 7857 section 3); replies are then told apart by their source.
//!
//! **Limits.** One mapping per connection at most, so the connection table bounds them. An owner leases at most fifteen
//! sixteenths of a pool; beyond, its connections share ports, and what is left is for others.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::ops::RangeInclusive;

use foldhash::quality::RandomState;

use crate::conntrack::{Filter, Filters};
use crate::heads::Heads;
use crate::ports::{HoldDown, Kind, Lease, Pool, Rest};
use crate::slab::{NONE, Slab};
use crate::time::Time;
use crate::tuple::{Address, Endpoint, NetworkId, OwnerId, Protocol, Tuple};

/// How a mapping is found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// It serves one connection and what comes in from outside.
    Dependent,
    /// Ended by a filter: it keeps its port until its connections are collected, and serves nothing.
    Ended,
    /// It serves all connections of its inside endpoint.
    Independent,
    /// It serves one connection, on a port that others use.
    Shared,
}

/// An inside endpoint and the external address it is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inside {
    pub(crate) endpoint: Endpoint,
    pub(crate) protocol: Protocol,
    pub(crate) network: NetworkId,
    pub(crate) owner: OwnerId,
}

#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    inside: Inside,
    lease: Option<Lease>,
    users: u32,
    next: u32,
    /// The filters up to this one do not end it.
    passed: u32,
    pool: u16,
    scope: Scope,
    rest: Rest,
}

impl Mapping {
    pub(crate) const fn inside(&self) -> &Inside {
        &self.inside
    }

    pub(crate) fn port(&self) -> u16 {
        self.lease.as_ref().map_or(0, Lease::port)
    }
}

/// What a mapping left behind when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) owner: OwnerId,
    /// The kind of pool in which the owner has one port less, if the mapping had a port to itself.
    pub(crate) kind: Option<Kind>,
}

#[derive(Clone, Debug)]
pub(crate) struct Masquerade {
    slab: Slab<Mapping>,
    /// Chains of independent mappings by inside endpoint and pool.
    heads: Heads,
    hash: RandomState,
    pools: Vec<Option<Pool>>,
    pool_index: HashMap<(Address, Protocol), u16, RandomState>,
    /// How many connections of a mapping lead to an address, where the network filters by address.
    contacts: HashMap<(u32, Address), u32, RandomState>,
    ports: RangeInclusive<u16>,
    hold: HoldDown,
    seed: u64,
}

impl Masquerade {
    pub(crate) fn new(limit: u32, ports: RangeInclusive<u16>, hold: HoldDown, seed: u64) -> Self {
        Self {
            slab: Slab::new(),
            heads: Heads::new(limit as usize),
            hash: RandomState::default(),
            pools: Vec::new(),
            pool_index: HashMap::default(),
            contacts: HashMap::default(),
            ports,
            hold,
            seed,
        }
    }

    /// The pool of `external` for `protocol`, made when first asked for. `None` for protocols without ports of ours.
    pub(crate) fn pool(&mut self, external: Address, protocol: Protocol) -> Option<u16> {
        let kind = Kind::new(protocol, external)?;
        if let Some(&pool) = self.pool_index.get(&(external, protocol)) {
            return Some(pool);
        }
        let place = self.pools.iter().position(Option::is_none).unwrap_or(self.pools.len());
        let id = u16::try_from(place).ok()?;
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let pool = Some(Pool::new(external, kind, &self.ports, self.seed));
        match self.pools.get_mut(place) {
            Some(slot) => *slot = pool,
            None => self.pools.push(pool),
        }
        self.pool_index.insert((external, protocol), id);
        Some(id)
    }

    pub(crate) fn pool_mut(&mut self, id: u16) -> Option<&mut Pool> {
        self.pools.get_mut(usize::from(id))?.as_mut()
    }

    pub(crate) fn pools_mut(&mut self) -> impl Iterator<Item = &mut Pool> {
        self.pools.iter_mut().flatten()
    }

    pub(crate) fn get(&self, id: u32) -> Option<&Mapping> {
        self.slab.get(id)
    }

    /// The pool that a mapping's port is from.
    pub(crate) fn pool_of(&mut self, id: u32) -> Option<&mut Pool> {
        let pool = self.slab.get(id)?.pool;
        self.pool_mut(pool)
    }

    /// The mapping that serves all connections of an inside endpoint behind a pool.
    pub(crate) fn find(&mut self, filters: &Filters, inside: &Inside, pool: u16) -> Option<u32> {
        let mut id = self.heads.first(self.chain(inside, pool));
        while id != NONE {
            let mapping = self.slab.get(id)?;
            let same = mapping.pool == pool
                && mapping.inside.endpoint == inside.endpoint
                && mapping.inside.protocol == inside.protocol
                && mapping.inside.network == inside.network;
            if same {
                // Another owner at the same address is another container: it gets nothing of its predecessor's.
                let live = mapping.inside.owner == inside.owner && self.is_live(filters, id);
                if !live {
                    self.unlink(id);
                }
                return live.then_some(id);
            }
            id = mapping.next;
        }
        None
    }

    /// The mapping that has `port` of `external` to itself.
    pub(crate) fn at(&mut self, filters: &Filters, protocol: Protocol, external: Endpoint) -> Option<u32> {
        let pool = *self.pool_index.get(&(external.address, protocol))?;
        let id = self.pool_mut(pool)?.mapping(external.port)?;
        if !self.is_live(filters, id) {
            self.unlink(id);
            return None;
        }
        Some(id)
    }

    /// True if the mapping serves, and is ended by no filter noted since it was looked at last.
    fn is_live(&mut self, filters: &Filters, id: u32) -> bool {
        let external = self.pool_of(id).map(|pool| pool.external());
        let Some(mapping) = self.slab.get_mut(id) else { return false };
        let ends = |filter: &Filter| {
            let Inside { protocol, network, owner, .. } = mapping.inside;
            let all = Filter {
                external: filter.external,
                network: filter.network,
                owner: filter.owner,
                protocol: filter.protocol,
                ..Filter::default()
            };
            // A filter by anything else ends single connections only.
            *filter == all
                && filter.external.is_none_or(|wanted| Some(wanted) == external)
                && filter.network.is_none_or(|wanted| wanted == network)
                && filter.owner.is_none_or(|wanted| wanted == owner)
                && filter.protocol.is_none_or(|wanted| wanted == protocol)
        };
        if mapping.scope == Scope::Ended || filters.since(mapping.passed).iter().any(ends) {
            return false;
        }
        mapping.passed = filters.count();
        true
    }

    /// Adds a mapping without a port and without users; see [`Self::settle`].
    pub(crate) fn insert(&mut self, filters: &Filters, inside: Inside, pool: u16) -> Option<u32> {
        let mapping = Mapping {
            inside,
            lease: None,
            users: 0,
            next: NONE,
            passed: filters.count(),
            pool,
            scope: Scope::Dependent,
            rest: Rest::Unneeded,
        };
        self.slab.insert(mapping).map(|(id, _)| id)
    }

    /// Gives a mapping its port. It gets the scope that it asks for if it has the port to itself.
    pub(crate) fn settle(&mut self, id: u32, lease: Lease, scope: Scope) {
        let Some(mapping) = self.slab.get_mut(id) else { return };
        mapping.scope = if lease.is_shared() { Scope::Shared } else { scope };
        mapping.lease = Some(lease);
        if mapping.scope == Scope::Independent {
            let (inside, pool) = (mapping.inside, mapping.pool);
            let chain = self.chain(&inside, pool);
            let next = self.heads.first(chain);
            self.heads.set_first(chain, id);
            if let Some(mapping) = self.slab.get_mut(id) {
                mapping.next = next;
            }
        }
    }

    /// Leases a free port to a mapping.
    pub(crate) fn lease(&mut self, now: Time, id: u32, usable: impl Fn(u16) -> bool) -> Option<Lease> {
        let hold = self.hold;
        self.pool_of(id)?.lease(now, hold, id, usable)
    }

    /// The scope of a mapping that serves.
    pub(crate) fn scope(&self, id: u32) -> Option<Scope> {
        self.slab.get(id).map(|mapping| mapping.scope)
    }

    /// Brings a mapping back for one connection more, with its port of before this process. Tells whether the port was leased
    /// just now to it alone. `None` if the port is not to be had, or another mapping contradicts.
    pub(crate) fn restore(
        &mut self,
        filters: &Filters,
        inside: Inside,
        external: Endpoint,
        scope: Scope,
        usable: impl Fn(u16) -> bool,
    ) -> Option<(u32, bool)> {
        let pool = self.pool(external.address, inside.protocol)?;
        let alone = scope != Scope::Shared;
        if alone && let Some(known) = self.at(filters, inside.protocol, external) {
            let mapping = self.slab.get(known).filter(|m| m.inside == inside && m.scope == scope)?;
            debug_assert_eq!(mapping.port(), external.port);
            self.acquire(known);
            return Some((known, false));
        }
        let elsewhere = scope == Scope::Independent && self.find(filters, &inside, pool).is_some();
        if elsewhere || (alone && !usable(external.port)) {
            return None;
        }
        let id = self.insert(filters, inside, pool)?;
        let Some(lease) = self.pool_mut(pool)?.lease_again(external.port, alone.then_some(id)) else {
            self.slab.remove(id);
            return None;
        };
        self.settle(id, lease, scope);
        self.acquire(id);
        Some((id, alone))
    }

    /// Notes that a connection uses the mapping.
    pub(crate) fn acquire(&mut self, id: u32) {
        if let Some(mapping) = self.slab.get_mut(id) {
            mapping.users += 1;
        }
    }

    /// Notes that a connection uses it no more, and whether its port should rest. Says what ended with the last one.
    pub(crate) fn release(&mut self, now: Time, id: u32, rest: Rest) -> Option<Ended> {
        let mapping = self.slab.get_mut(id)?;
        mapping.users = mapping.users.saturating_sub(1);
        if rest == Rest::Needed {
            mapping.rest = Rest::Needed;
        }
        if mapping.users > 0 {
            return None;
        }
        self.unlink(id);
        let mapping = self.slab.remove(id)?;
        let owner = mapping.inside.owner;
        let Some(lease) = mapping.lease else { return Some(Ended { owner, kind: None }) };
        let hold = self.hold;
        let alone = !lease.is_shared();
        let pool = self.pool_mut(mapping.pool)?;
        pool.release(now, hold, lease, mapping.rest);
        let (kind, address) = (pool.kind(), pool.external());
        let unused = pool.used() == 0;
        let known = self.pool_index.get(&(address, mapping.inside.protocol)) == Some(&mapping.pool);
        // The pool of an address that was removed goes with its last mapping.
        if unused
            && !known
            && let Some(slot) = self.pools.get_mut(usize::from(mapping.pool))
        {
            *slot = None;
        }
        Some(Ended { owner, kind: alone.then_some(kind) })
    }

    /// Forgets the pools of an address. What is leased from them is given back as connections are collected.
    pub(crate) fn remove_external(&mut self, external: Address) {
        self.pool_index.retain(|(address, _), _| *address != external);
        for pool in &mut self.pools {
            if pool.as_ref().is_some_and(|pool| pool.external() == external && pool.used() == 0) {
                *pool = None;
            }
        }
    }

    /// Notes that the mapping's inside endpoint has sent to `address`.
    pub(crate) fn add_contact(&mut self, id: u32, address: Address) {
        *self.contacts.entry((id, address)).or_default() += 1;
    }

    /// Takes back one [`Self::add_contact`].
    pub(crate) fn remove_contact(&mut self, id: u32, address: Address) {
        if let Some(count) = self.contacts.get_mut(&(id, address)) {
            *count -= 1;
            if *count == 0 {
                self.contacts.remove(&(id, address));
            }
        }
    }

    /// True if the mapping's inside endpoint has a connection to `address`.
    pub(crate) fn has_contact(&self, id: u32, address: Address) -> bool {
        self.contacts.contains_key(&(id, address))
    }

    /// Takes a mapping out of its chain and off its port, so that nothing finds it any more.
    fn unlink(&mut self, id: u32) {
        let Some(mapping) = self.slab.get_mut(id) else { return };
        let scope = std::mem::replace(&mut mapping.scope, Scope::Ended);
        if scope != Scope::Independent {
            return;
        }
        let (inside, pool, next) = (mapping.inside, mapping.pool, mapping.next);
        let chain = self.chain(&inside, pool);
        let mut at = self.heads.first(chain);
        if at == id {
            self.heads.set_first(chain, next);
            return;
        }
        while let Some(mapping) = self.slab.get_mut(at) {
            if mapping.next == id {
                mapping.next = next;
                return;
            }
            at = mapping.next;
        }
    }

    fn chain(&self, inside: &Inside, pool: u16) -> usize {
        let key = Tuple {
            source: inside.endpoint,
            destination: Endpoint { address: Address::default(), port: pool },
            protocol: inside.protocol,
            network: inside.network,
        };
        self.heads.chain(self.hash.hash_one(key))
    }

    /// The number of mappings.
    pub(crate) const fn len(&self) -> u32 {
        self.slab.len()
    }

    /// True if no mapping, contact or lost port is left.
    #[cfg(test)]
    pub(crate) fn is_clean(&self, usable: impl Fn(Address, Protocol, u16) -> bool) -> bool {
        let pools = self.pool_index.iter().all(|((address, protocol), id)| {
            let pool = self.pools[usize::from(*id)].as_ref().unwrap();
            pool.used() == 0 && pool.lost(|port| usable(*address, *protocol, port)) == 0
        });
        pools && self.slab.len() == 0 && self.contacts.is_empty() && self.heads.are_empty()
    }
}
