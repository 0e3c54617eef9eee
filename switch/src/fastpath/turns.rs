//! Who takes turns: a short question, its answer, the next question. Pure.
//!
//! A worker that has just forwarded a frame looks for the next one and so keeps a CPU awake, which the kernel's way does not: each
//! of its frames wakes a receiver from sleep. So two programs that talk by turns, fast enough to find the worker looking, have the shorter round trip by
//! the worker (docs/performance.md). Everything else is faster by the kernel.
//!
//! What turns are to a worker is not known to the kernel's counters, which tell flows by their addresses and have seen all of
//! their connections. From them follows who *may* have taken turns: he goes back to the worker, who sees it at once.

use std::collections::HashMap;
use std::time::Duration;

use nat::Time;

use super::offer::place;
use crate::mac::Mac;

/// Pairs of MACs that are watched at a time. Two that share a place do not seem to take turns.
const PLACES: usize = 256;
/// A frame that comes so soon after the one that it answers finds the worker looking (30 us from the last frame on).
const SOON: Duration = Duration::from_micros(50);
/// Longer frames than this carry bulk, where copies cost more than wake-ups. Bytes.
const SHORT: u64 = 512;
/// Who takes turns that last longer than [`SOON`] has fewer frames a second each way.
const LEAST_RATE: u64 = 8_000;

/// What goes from one MAC to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Line {
    /// The sender.
    pub(super) src: Mac,
    /// The receiver.
    pub(super) dst: Mac,
}

impl Line {
    const fn reverse(self) -> Self {
        Self { src: self.dst, dst: self.src }
    }

    /// The same both ways.
    fn place(self) -> usize {
        let ends = if self.src.0 < self.dst.0 { [self.src, self.dst] } else { [self.dst, self.src] };
        place(ends.iter().flat_map(|mac| mac.0), PLACES)
    }
}

/// The last frame of each pair, as a worker saw them.
#[derive(Debug)]
pub(super) struct Turns {
    last: Vec<Option<Last>>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    line: Line,
    at: Time,
    /// Whether it answered one that came just before.
    answered: bool,
}

impl Default for Turns {
    fn default() -> Self {
        Self { last: vec![None; PLACES] }
    }
}

impl Turns {
    /// Notes a frame of so many bytes. Tells whether it takes its turn: it is short, and it and what it answers found a worker looking.
    pub(super) fn takes(&mut self, line: Line, bytes: usize, now: Time) -> bool {
        let last = &mut self.last[line.place()];
        let before = last.filter(|last| last.line == line.reverse() && now.since(last.at) <= SOON);
        *last = Some(Last { line, at: now, answered: before.is_some() });
        before.is_some_and(|before| before.answered) && bytes as u64 <= SHORT
    }
}

/// What the kernel forwarded on each line meanwhile.
#[derive(Debug, Default)]
pub(super) struct Tally(HashMap<Line, Sum>);

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    frames: u64,
    bytes: u64,
}

impl Tally {
    /// Adds what one flow of a line had.
    pub(super) fn add(&mut self, line: Line, frames: u64, bytes: u64) {
        let sum = self.0.entry(line).or_default();
        sum.frames += frames;
        sum.bytes += bytes;
    }

    /// Whether both ends of a line may have taken turns for all of a period: many short frames, and as many one way as the other.
    pub(super) fn is_by_turns(&self, line: Line, period: Duration) -> bool {
        let sum = |line| self.0.get(&line).copied().unwrap_or_default();
        let (one, other) = (sum(line), sum(line.reverse()));
        let many = u128::from(one.frames) * 1_000_000 >= u128::from(LEAST_RATE) * period.as_micros();
        let short = [one, other].iter().all(|sum| sum.bytes <= sum.frames * SHORT);
        // Some of those that are under way are counted one way only, and a program may have begun within the period.
        many && short && one.frames.abs_diff(other.frames) <= one.frames / 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: Line = Line { src: Mac([2; 6]), dst: Mac([4; 6]) };

    fn at(micros: u64) -> Time {
        Time::from_nanos(micros * 1000)
    }

    #[test]
    fn short_frames_one_way_and_the_other_take_turns() {
        let mut turns = Turns::default();
        for n in 0..10 {
            let line = if n % 2 == 0 { LINE } else { LINE.reverse() };
            assert_eq!(turns.takes(line, 60, at(n * 20)), n >= 2, "frame {n}");
        }
    }

    #[test]
    fn a_question_now_and_then_is_no_turn_and_neither_is_its_answer() {
        let mut turns = Turns::default();
        for n in 0..10 {
            assert!(!turns.takes(LINE, 60, at(n * 1000)), "question {n}");
            assert!(!turns.takes(LINE.reverse(), 60, at(n * 1000 + 20)), "answer {n}");
        }
    }

    #[test]
    fn what_is_long_or_a_second_one_takes_no_turn() {
        let mut turns = Turns::default();
        for (n, (line, bytes, takes)) in [
            (LINE, 60, false),
            (LINE.reverse(), 60, false),
            (LINE, 60, true),
            (LINE, 60, false),
            (LINE.reverse(), 60, false),
            (LINE, 1514, false),
            (LINE.reverse(), 60, true),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(turns.takes(line, bytes, at(n as u64 * 10)), takes, "frame {n}");
        }
    }

    #[test]
    fn pairs_do_not_answer_each_other() {
        let mut turns = Turns::default();
        let other = Line { src: Mac([6; 6]), dst: LINE.src };
        for (n, (line, takes)) in
            [(LINE, false), (other, false), (LINE.reverse(), false), (other, false), (LINE, true)]
                .into_iter()
                .enumerate()
        {
            assert_eq!(
                turns.takes(line, 60, at(n as u64 * 10)),
                takes,
                "frame {n}: they have places of their own"
            );
        }
    }

    #[test]
    fn as_many_short_frames_both_ways_may_have_been_turns() {
        let second = Duration::from_secs(1);
        for (one, other, by_turns) in [
            ((20_000, 1_400_000), (20_000, 1_400_000), true),
            ((20_000, 1_400_000), (19_900, 1_400_000), true),
            ((20_000, 1_400_000), (18_000, 1_300_000), false),
            ((20_000, 1_400_000), (0, 0), false),
            ((2_000, 140_000), (2_000, 140_000), false),
            ((20_000, 1_400_000), (20_000, 30_000_000), false),
        ] {
            let mut tally = Tally::default();
            tally.add(LINE, one.0, one.1);
            // By two flows.
            tally.add(LINE.reverse(), other.0 / 2, other.1 / 2);
            tally.add(LINE.reverse(), other.0 - other.0 / 2, other.1 - other.1 / 2);
            assert_eq!(tally.is_by_turns(LINE, second), by_turns, "{one:?} {other:?}");
            assert_eq!(tally.is_by_turns(LINE.reverse(), second), by_turns, "{other:?} {one:?}");
        }
    }
}
