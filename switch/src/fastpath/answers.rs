//! How the answers to SYNs go: what lets the kernel forward the next ones. Pure: part of the engine.
//!
//! A direction is handed over once the router has decided about a packet of it. The answer to a SYN is the first of its
//! direction, so it would always be a worker's. Not if the answer to another SYN has just gone the same way: then both
//! directions are handed over with the SYN, and the kernel reports the answer ([`super::report`]).

use std::time::Duration;

use nat::{Address, Direction, Time};

use super::carry::{Carry, Routed};
use super::offer::place;
use crate::mac::Mac;
use crate::router::resolve::Ingress;

/// An answer goes as another went before for so long. It delays what is learned of neighbors by as much.
const FRESH: Duration = Duration::from_secs(1);
/// Ways that are known at a time. Two that share a place push each other out.
const PLACES: usize = 64;

/// What an answer's way depends on: whence and whereto, its addresses as it arrives, and those of the other direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    from: Ingress,
    to: Ingress,
    addresses: [Address; 4],
}

impl Key {
    fn new(from: Ingress, to: Ingress, [answer, question]: [nat::Tuple; 2]) -> Self {
        let of = |tuple: nat::Tuple| [tuple.source.address, tuple.destination.address];
        let ([a, b], [c, d]) = (of(answer), of(question));
        Self { from, to, addresses: [a, b, c, d] }
    }

    fn place(&self) -> usize {
        place(self.addresses.iter().flat_map(|address| address.v4_octets()), PLACES)
    }
}

/// The way of an answer, decided about by the router.
#[derive(Clone, Copy, Debug)]
struct Way {
    key: Key,
    carry: Carry,
    epoch: u32,
    at: Time,
}

/// The ways of the answers that came last.
#[derive(Debug)]
pub(super) struct Answers {
    places: Vec<Option<Way>>,
}

impl Default for Answers {
    fn default() -> Self {
        Self { places: vec![None; PLACES] }
    }
}

impl Answers {
    /// Notes how an answer went at `now`, in this epoch.
    pub(super) fn went(&mut self, answer: &Carry, epoch: u32, now: Time) {
        let key = Key::new(answer.from, answer.to, answer.tuples);
        self.places[key.place()] = Some(Way { key, carry: *answer, epoch, at: now });
    }

    /// The answer to a SYN, where it is known to go back the way that the SYN comes, and both ways take packets of the same length: of
    /// the segment size that an answer offers, which the router may lower, one who sends by such a way cannot use more anyway.
    pub(super) fn to(&self, opener: &Carry, epoch: u32, now: Time) -> Option<Carry> {
        let [question, answer] = opener.tuples;
        let key = Key::new(opener.to, opener.from, [answer, question]);
        let way = self.places[key.place()].filter(|way| way.key == key && way.epoch == epoch)?;
        let Carry { routed, leaves, .. } = way.carry;
        let back = |[to, from]: [Mac; 2]| [from, to];
        let may = now.since(way.at) < FRESH
            && routed.mtu == opener.routed.mtu
            && routed.arrived == back(opener.leaves)
            && leaves == back(opener.routed.arrived);
        let (connection, direction) = (opener.routed.connection, Direction::Reply);
        may.then_some(Carry {
            routed: Routed { connection, direction, ..routed },
            tuples: [answer, question],
            packets: 0,
            state: opener.state,
            ..way.carry
        })
    }
}
