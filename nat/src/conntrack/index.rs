//! The hash index from tuples to connections: chains through the entries themselves.
//!
//! The number of chains is fixed when the table is made, two per connection of its limit, so nothing is ever rehashed
//! and no packet waits for it. A chain link names an entry and which of its two tuples is meant.

use std::hash::BuildHasher;

use foldhash::quality::RandomState;

use super::Entry;
use crate::heads::Heads;
use crate::slab::{NONE, Slab};
use crate::tuple::{Direction, Tuple};

#[derive(Clone, Debug)]
pub(super) struct Index {
    heads: Heads,
    /// Keyed at random, since addresses and ports are the attacker's choice.
    hash: RandomState,
}

impl Index {
    pub(super) fn new(connections: u32) -> Self {
        Self { heads: Heads::new((connections as usize).saturating_mul(2)), hash: RandomState::default() }
    }

    /// The connection with this tuple, and in which of its directions.
    pub(super) fn find(&self, slab: &Slab<Entry>, tuple: &Tuple) -> Option<(u32, Direction)> {
        let mut link = self.heads.first(self.chain(tuple));
        while link != NONE {
            let (index, direction) = unpack(link);
            let entry = slab.get(index)?;
            if entry.connection.is(direction, tuple) {
                return Some((index, direction));
            }
            link = entry.chain[direction.index()];
        }
        None
    }

    pub(super) fn insert(&mut self, slab: &mut Slab<Entry>, index: u32, direction: Direction) {
        let Some(entry) = slab.get_mut(index) else { return };
        let chain = self.chain(&entry.connection.tuple(direction));
        entry.chain[direction.index()] = self.heads.first(chain);
        self.heads.set_first(chain, pack(index, direction));
    }

    pub(super) fn remove(&mut self, slab: &mut Slab<Entry>, index: u32, direction: Direction) {
        let Some(entry) = slab.get(index) else { return };
        let next = entry.chain[direction.index()];
        let chain = self.chain(&entry.connection.tuple(direction));
        let mut link = self.heads.first(chain);
        if link == pack(index, direction) {
            self.heads.set_first(chain, next);
            return;
        }
        while link != NONE {
            let (at, at_direction) = unpack(link);
            let Some(entry) = slab.get_mut(at) else { return };
            let following = &mut entry.chain[at_direction.index()];
            if *following == pack(index, direction) {
                *following = next;
                return;
            }
            link = *following;
        }
    }

    fn chain(&self, tuple: &Tuple) -> usize {
        self.heads.chain(self.hash.hash_one(tuple))
    }
}

const fn pack(index: u32, direction: Direction) -> u32 {
    index << 1
        | match direction {
            Direction::Original => 0,
            Direction::Reply => 1,
        }
}

const fn unpack(link: u32) -> (u32, Direction) {
    (link >> 1, if link & 1 == 0 { Direction::Original } else { Direction::Reply })
}
