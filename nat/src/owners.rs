//! What each owner (container) has, and how much it may have.
//!
//! An owner is known from its first connection until it was removed and its last connection is collected. Three limits keep one from spoiling it for
//! the others (RFC 6888 REQ-4 and REQ-5): connections held, new connections per second (a token bucket that holds twice
//! the rate) and ports leased from each kind of pool.

use std::collections::HashMap;
use std::time::Duration;

use foldhash::quality::RandomState;

use crate::ports::Kind;
use crate::time::Time;
use crate::tuple::OwnerId;

/// What an owner may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerLimits {
    /// Connections at once.
    pub connections: u32,
    /// New connections per second; twice as many at once after a pause of two seconds.
    pub new_per_second: u32,
}

#[derive(Clone, Debug)]
struct Owner {
    limits: Option<OwnerLimits>,
    connections: u32,
    /// Leased ports for each [`Kind`].
    ports: [u32; Kind::COUNT],
    /// New connections that may still be opened, in billionths.
    tokens: u64,
    /// When `tokens` was reckoned.
    at: Time,
    /// The caller removed it; a connection opened since says that it is back.
    removed: bool,
}

/// Why an owner may have no new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    Connections,
    Rate,
}

#[derive(Clone, Debug)]
pub(crate) struct Owners {
    default: OwnerLimits,
    owners: HashMap<OwnerId, Owner, RandomState>,
}

const TOKEN: u64 = 1_000_000_000;

impl Owners {
    pub(crate) fn new(default: OwnerLimits) -> Self {
        Self { default, owners: HashMap::default() }
    }

    /// Sets limits of `owner`'s own; `None` goes back to the default.
    pub(crate) fn set_limits(&mut self, now: Time, owner: OwnerId, limits: Option<OwnerLimits>) {
        let default = self.default;
        let entry = self.owners.entry(owner).or_insert_with(|| Owner::new(now, limits.unwrap_or(default)));
        entry.limits = limits;
    }

    /// Takes back the limits of its own; what it still holds is given back as its connections are collected.
    pub(crate) fn remove(&mut self, owner: OwnerId) {
        if let Some(entry) = self.owners.get_mut(&owner) {
            entry.limits = None;
            entry.removed = true;
        }
        self.forget_if_gone(owner);
    }

    /// Whether `owner` may open a connection now. Changes nothing that counts.
    pub(crate) fn may_open(&mut self, now: Time, owner: OwnerId) -> Result<(), Denied> {
        if owner == OwnerId::OUTSIDE {
            return Ok(());
        }
        let default = self.default;
        let Some(entry) = self.owners.get_mut(&owner) else {
            return match default {
                OwnerLimits { connections: 0, .. } => Err(Denied::Connections),
                OwnerLimits { new_per_second: 0, .. } => Err(Denied::Rate),
                _ => Ok(()),
            };
        };
        let limits = entry.limits.unwrap_or(default);
        if entry.connections >= limits.connections {
            return Err(Denied::Connections);
        }
        entry.refill(now, limits);
        if entry.tokens < TOKEN { Err(Denied::Rate) } else { Ok(()) }
    }

    /// Notes that `owner` opened a connection anew under a tuple that it had before.
    pub(crate) fn reopened(&mut self, owner: OwnerId) {
        if let Some(entry) = self.owners.get_mut(&owner) {
            entry.tokens = entry.tokens.saturating_sub(TOKEN);
        }
    }

    /// Notes a connection.
    pub(crate) fn opened(&mut self, now: Time, owner: OwnerId) {
        self.restored(now, owner);
        self.reopened(owner);
    }

    /// Notes a connection that was opened before this process.
    pub(crate) fn restored(&mut self, now: Time, owner: OwnerId) {
        if owner == OwnerId::OUTSIDE {
            return;
        }
        let default = self.default;
        let entry = self.owners.entry(owner).or_insert_with(|| Owner::new(now, default));
        entry.connections += 1;
        entry.removed = false;
    }

    /// Notes the end of a connection.
    pub(crate) fn closed(&mut self, owner: OwnerId) {
        if let Some(entry) = self.owners.get_mut(&owner) {
            entry.connections = entry.connections.saturating_sub(1);
        }
        self.forget_if_gone(owner);
    }

    /// The connections that count against `owner`.
    pub(crate) fn connections(&self, owner: OwnerId) -> u32 {
        self.owners.get(&owner).map_or(0, |entry| entry.connections)
    }

    /// The ports that `owner` has leased.
    pub(crate) fn ports(&self, owner: OwnerId, kind: Kind) -> u32 {
        self.owners.get(&owner).map_or(0, |entry| entry.ports[kind.index()])
    }

    pub(crate) fn leased(&mut self, now: Time, owner: OwnerId, kind: Kind) {
        let default = self.default;
        let entry = self.owners.entry(owner).or_insert_with(|| Owner::new(now, default));
        entry.ports[kind.index()] += 1;
    }

    pub(crate) fn released(&mut self, owner: OwnerId, kind: Kind) {
        if let Some(entry) = self.owners.get_mut(&owner) {
            entry.ports[kind.index()] = entry.ports[kind.index()].saturating_sub(1);
        }
        self.forget_if_gone(owner);
    }

    /// The owners known.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.owners.len()
    }

    fn forget_if_gone(&mut self, owner: OwnerId) {
        if self
            .owners
            .get(&owner)
            .is_some_and(|entry| entry.removed && entry.connections == 0 && entry.ports == [0; Kind::COUNT])
        {
            self.owners.remove(&owner);
        }
    }
}

impl Owner {
    fn new(now: Time, limits: OwnerLimits) -> Self {
        Self {
            limits: None,
            connections: 0,
            ports: [0; Kind::COUNT],
            tokens: Self::full(limits),
            at: now,
            removed: false,
        }
    }

    /// The tokens of a full bucket.
    fn full(limits: OwnerLimits) -> u64 {
        u64::from(limits.new_per_second) * 2 * TOKEN
    }

    fn refill(&mut self, now: Time, limits: OwnerLimits) {
        let elapsed = now.since(self.at).min(Duration::from_secs(2));
        let elapsed = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let gained = elapsed.saturating_mul(u64::from(limits.new_per_second));
        self.tokens = self.tokens.saturating_add(gained).min(Self::full(limits));
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: OwnerId = OwnerId(1);

    #[test]
    fn a_bucket_holds_two_seconds() {
        let mut owners = Owners::new(OwnerLimits { connections: 1000, new_per_second: 10 });
        let open = |owners: &mut Owners, now| {
            let answer = owners.may_open(now, A);
            if answer.is_ok() {
                owners.opened(now, A);
            }
            answer
        };
        for _ in 0..20 {
            assert_eq!(open(&mut owners, Time::ZERO), Ok(()));
        }
        assert_eq!(open(&mut owners, Time::ZERO), Err(Denied::Rate));
        assert_eq!(open(&mut owners, Time::from_millis(99)), Err(Denied::Rate));
        assert_eq!(open(&mut owners, Time::from_millis(100)), Ok(()));
        assert_eq!(open(&mut owners, Time::from_millis(100)), Err(Denied::Rate));
        for _ in 0..20 {
            assert_eq!(open(&mut owners, Time::from_secs(100)), Ok(()));
        }
        assert_eq!(open(&mut owners, Time::from_secs(100)), Err(Denied::Rate));
    }

    #[test]
    fn a_limit_of_its_own_replaces_the_default() {
        let mut owners = Owners::new(OwnerLimits { connections: 1, new_per_second: 10 });
        owners.opened(Time::ZERO, A);
        assert_eq!(owners.may_open(Time::ZERO, A), Err(Denied::Connections));
        owners.set_limits(Time::ZERO, A, Some(OwnerLimits { connections: 2, new_per_second: 10 }));
        assert_eq!(owners.may_open(Time::ZERO, A), Ok(()));
        owners.remove(A);
        assert_eq!(owners.may_open(Time::ZERO, A), Err(Denied::Connections));
        assert_eq!(owners.connections(A), 1);
    }
}
