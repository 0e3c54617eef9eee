//! A connection, as the table has it.

use std::time::Duration;

use super::pair::Pair;
use super::tcp::Ends;
use super::{RuleId, State};
use crate::slab::NONE;
use crate::time::Time;
use crate::tuple::{Direction, OwnerId, Tuple};

/// Which part of its lifetime a connection may have lived on since it was written down.
pub(crate) const FRESH: u32 = 8;

/// Seconds of a unit of [`coarse`].
const COARSE: u64 = 4;

/// A time in two bytes, which is what an entry has left: they go round in three days.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the difference of two is meant, as with sequence numbers"
)]
const fn coarse(time: Time) -> u16 {
    (time.as_secs() / COARSE) as u16
}

/// What went one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets; a frame of many segments (GSO) counts once.
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

/// A connection.
#[derive(Clone, Debug)]
pub struct Connection {
    pair: Pair,
    counters: [Counters; 2],
    /// Seconds; there are few uses for it, and there may be many connections.
    created: u32,
    pub(crate) deadline: Time,
    /// The deadline as it was written down last, by [`coarse`].
    recorded: u16,
    /// Of TCP, elsewhere: no other protocol pays for them. None is [`Ends::NEW`].
    ends: Option<Box<Ends>>,
    pub(super) owners: [OwnerId; 2],
    /// The publish rule's number, or [`RuleId::NONE`].
    rule: u32,
    /// The caller's generation under which the connection was last admitted.
    pub(crate) generation: u32,
    /// The mapping that its external endpoint is leased through, or [`NONE`].
    pub(crate) mapping: u32,
    pub(crate) state: State,
    /// Which of the caller's network settings apply.
    pub(crate) profile: u16,
    /// True once it was noted as a donor of its port.
    pub(crate) closed_noted: bool,
    /// True if it counts as a contact of its mapping.
    pub(crate) contact: bool,
}

impl Connection {
    /// A connection whose packets arrive with these tuples, sent by these owners, in each direction.
    pub(crate) fn new(now: Time, tuples: [Tuple; 2], owners: [OwnerId; 2], rule: Option<RuleId>) -> Self {
        Self {
            pair: Pair::new(tuples),
            counters: [Counters { packets: 0, bytes: 0 }; 2],
            created: seconds(now),
            deadline: now,
            recorded: 0,
            ends: None,
            owners,
            rule: match rule {
                Some(RuleId(number)) => number,
                None => RuleId::NONE,
            },
            generation: 0,
            mapping: NONE,
            state: State::Unreplied,
            profile: 0,
            closed_noted: false,
            contact: false,
        }
    }

    /// True before the first packet was counted.
    pub(crate) const fn is_untravelled(&self) -> bool {
        self.counters[0].packets == 0 && self.counters[1].packets == 0
    }

    /// What packets of `direction` look like as they arrive.
    pub fn tuple(&self, direction: Direction) -> Tuple {
        self.pair.tuple(direction)
    }

    /// Both, the original direction's first.
    pub(crate) fn tuples(&self) -> [Tuple; 2] {
        [Direction::Original, Direction::Reply].map(|direction| self.tuple(direction))
    }

    /// Whether packets of `direction` look like this as they arrive.
    pub(super) fn is(&self, direction: Direction, tuple: &Tuple) -> bool {
        self.pair.is(direction, tuple)
    }

    /// What is known of both ends, of TCP.
    pub(crate) fn ends(&self) -> Ends {
        self.ends.as_deref().copied().unwrap_or(Ends::NEW)
    }

    /// Notes what is known of them now.
    pub(crate) fn set_ends(&mut self, ends: Ends) {
        match &mut self.ends {
            Some(known) => **known = ends,
            None if ends == Ends::NEW => {}
            None => self.ends = Some(Box::new(ends)),
        }
    }

    /// Who sends the packets of `direction`; [`OwnerId::OUTSIDE`] for someone beyond the uplink.
    pub const fn owner(&self, direction: Direction) -> OwnerId {
        self.owners[direction.index()]
    }

    /// The owner whose limits the connection counts against: the one who opened it, else the one it was opened to.
    pub fn charged(&self) -> OwnerId {
        match self.owners {
            [OwnerId::OUTSIDE, target] => target,
            [opener, _] => opener,
        }
    }

    /// The publish rule that let it in.
    pub const fn rule(&self) -> Option<RuleId> {
        if self.rule == RuleId::NONE { None } else { Some(RuleId(self.rule)) }
    }

    /// How far it has come.
    pub const fn state(&self) -> State {
        self.state
    }

    /// What went in `direction`.
    pub const fn counters(&self, direction: Direction) -> Counters {
        self.counters[direction.index()]
    }

    /// When it was opened, to the second.
    pub const fn created(&self) -> Time {
        Time::from_secs(self.created as u64)
    }

    /// When it ends if no packet comes.
    pub const fn deadline(&self) -> Time {
        self.deadline
    }

    /// Takes over what a connection had before this process: counters and age.
    pub(crate) const fn resume(&mut self, created: Time, counters: [Counters; 2]) {
        self.created = seconds(created);
        self.counters = counters;
    }

    /// True if what was written down of the deadline is too old: by an eighth of the connection's lifetime.
    pub(crate) fn is_stale(&self, lifetime: Duration) -> bool {
        let units = coarse(self.deadline).wrapping_sub(self.recorded);
        Duration::from_secs(u64::from(units) * COARSE) > lifetime / FRESH
    }

    /// Notes that it is written down as it is now.
    pub(crate) const fn note_recorded(&mut self) {
        self.recorded = coarse(self.deadline);
    }

    /// Counts a packet of `bytes` bytes.
    pub(crate) const fn count(&mut self, direction: Direction, bytes: usize) {
        self.count_many(direction, 1, bytes as u64);
    }

    /// Counts packets of `bytes` bytes together.
    pub(crate) const fn count_many(&mut self, direction: Direction, packets: u64, bytes: u64) {
        let counters = &mut self.counters[direction.index()];
        counters.packets = counters.packets.saturating_add(packets);
        counters.bytes = counters.bytes.saturating_add(bytes);
    }
}

/// Seconds of a time: for some hundred years.
#[expect(clippy::cast_possible_truncation, reason = "cut to what fits")]
const fn seconds(time: Time) -> u32 {
    let seconds = time.as_secs();
    if seconds > u32::MAX as u64 { u32::MAX } else { seconds as u32 }
}
