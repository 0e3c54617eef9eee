//! The first links of the chains of a hash table.
//!
//! Their number is fixed when they are made, so nothing is ever rehashed. An empty chain is a zero: memory that was never written to,
//! which the kernel does not give before that. A table for a quarter of a million connections costs nothing while it is empty.

use crate::slab::NONE;

/// The first link of each chain, [`NONE`] where it is empty.
#[derive(Clone, Debug)]
pub(crate) struct Heads(Vec<u32>);

impl Heads {
    /// So many empty chains at least; a power of two.
    pub(crate) fn new(chains: usize) -> Self {
        Self(vec![!NONE; chains.next_power_of_two()])
    }

    /// The chain of what has this hash.
    #[expect(clippy::cast_possible_truncation, reason = "the mask leaves fewer bits than a usize has")]
    pub(crate) const fn chain(&self, hash: u64) -> usize {
        hash as usize & (self.0.len() - 1)
    }

    /// The first link of a chain.
    pub(crate) fn first(&self, chain: usize) -> u32 {
        self.0.get(chain).map_or(NONE, |head| !head)
    }

    /// Sets it.
    pub(crate) fn set_first(&mut self, chain: usize, link: u32) {
        if let Some(head) = self.0.get_mut(chain) {
            *head = !link;
        }
    }

    /// Whether there is nothing in any chain.
    #[cfg(test)]
    pub(crate) fn are_empty(&self) -> bool {
        self.0.iter().all(|head| *head == !NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_found_and_what_was_never_set_is_empty() {
        let mut heads = Heads::new(5);
        assert_eq!((heads.chain(8), heads.first(7), heads.first(8)), (0, NONE, NONE));
        for link in [0, 1, NONE - 1] {
            heads.set_first(7, link);
            assert_eq!((heads.first(7), heads.are_empty()), (link, false));
        }
        heads.set_first(7, NONE);
        assert!(heads.are_empty());
    }
}
