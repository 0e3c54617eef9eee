//! TCP as seen from the middle: enough of both ends to know the state, liberal about everything else.
//!
//! Each end is described by what it sent, what the other end acknowledged and how far the other end's window lets it go.
//! A segment outside (with slack for retransmissions, probes and lost observations) is passed on all the same, since the
//! ends know better; but it neither changes the state nor refreshes the connection, so a blind RST or FIN from a third
//! party ends nothing.
//!
//! Handshakes in any order are followed by flags instead of a sequence of states: a connection is established when both
//! SYNs were seen and acknowledged, which covers simultaneous open (RFC 5382 REQ-2a), and closed when both FINs were.
//! A RST begins a wait in which data brings the connection back (RFC 6146 section 3.5.2.2, RFC 7857 section 2.2).
//!
//! A connection can also be met in the middle (after a restart): both SYNs then count as seen, windows as unknown.

use super::State;
use crate::nat::elsewhere::LastSegment;
use crate::packet::{TcpSegment, tcp_flag};
use crate::tuple::Direction;

/// Segments may lie this far outside the window: an unscaled window.
const SLACK: u32 = 0xffff;

/// The window shift assumed for a connection met in the middle, the largest (RFC 7323 section 2.3).
const MAX_SHIFT: u8 = 14;

/// No window is larger (RFC 7323 section 2.3).
const LARGEST_WINDOW: u32 = 1 << 30;

/// Both ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends([End; 2]);

/// One end, named by the direction in which it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    /// The sequence number after the last that it sent.
    end: u32,
    /// The highest acknowledgment of the other end: what is before was received.
    acked: u32,
    /// The highest sequence number that the other end's window allows.
    limit: u32,
    /// The shift of the windows that it announces.
    shift: u8,
    flags: u8,
}

/// The numbers above are known.
const KNOWN: u8 = 1;
/// It sent a SYN.
const SYN: u8 = 2;
/// Its SYN was acknowledged.
const SYN_ACKED: u8 = 4;
/// It sent a FIN.
const FIN: u8 = 8;
/// Its FIN was acknowledged.
const FIN_ACKED: u8 = 16;
/// It offered window scaling.
const SCALES: u8 = 32;

impl End {
    const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

/// What a segment means for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing: out of window.
    Ignored,
    /// It opens the connection anew, after the last one with the same tuple ended.
    Reopened,
    /// It leads to this state, perhaps the same as before.
    State(State),
}

impl Ends {
    /// Nothing known; also for connections that are not TCP.
    pub(crate) const NEW: Self = Self([End { end: 0, acked: 0, limit: 0, shift: 0, flags: 0 }; 2]);

    /// The ends after the first segment, and the state. `None` if a segment like this cannot begin a connection.
    pub(crate) fn open(segment: &TcpSegment) -> Option<(Self, State)> {
        let mut ends = Self::NEW;
        let [original, reply] = &mut ends.0;
        if segment.has(tcp_flag::RST) || segment.has(tcp_flag::FIN) {
            return None;
        }
        if segment.has(tcp_flag::SYN) {
            if segment.has(tcp_flag::ACK) {
                return None;
            }
            original.send_syn(segment);
            return Some((ends, State::SynSent));
        }
        if !segment.has(tcp_flag::ACK) {
            return None;
        }
        // One less acknowledged than sent, as after a SYN: the answer that acknowledges this counts as its handshake.
        *original = End {
            end: segment.sequence.wrapping_add(length(segment)),
            acked: segment.sequence.wrapping_sub(1),
            limit: segment.sequence.wrapping_add(SLACK << MAX_SHIFT),
            shift: MAX_SHIFT,
            flags: KNOWN | SYN | SCALES,
        };
        reply.flags = SYN | SYN_ACKED | SCALES;
        reply.shift = MAX_SHIFT;
        Some((ends, State::SynReceived))
    }

    /// What is worth keeping of each end where sequence numbers go on without us: its flags and its shift.
    pub(crate) const fn essence(&self) -> [[u8; 2]; 2] {
        let [a, b] = &self.0;
        [[a.flags, a.shift], [b.flags, b.shift]]
    }

    /// The ends as [`Self::essence`] told them. Their numbers are learned anew, as of a connection that is met in the middle.
    /// `None` if there are no such ends, or not in this state.
    pub(crate) fn from_essence(essence: [[u8; 2]; 2], state: State) -> Option<Self> {
        const ALL: u8 = KNOWN | SYN | SYN_ACKED | FIN | FIN_ACKED | SCALES;
        let mut ends = Self::NEW;
        for (end, [flags, shift]) in ends.0.iter_mut().zip(essence) {
            if flags & !ALL != 0 || shift > MAX_SHIFT {
                return None;
            }
            end.flags = flags & !KNOWN;
            end.shift = shift;
        }
        (state == State::Reset || ends.state() == state).then_some(ends)
    }

    /// The sender and the receiver of what travels in `direction`.
    const fn by(&mut self, direction: Direction) -> (&mut End, &mut End) {
        match (&mut self.0, direction) {
            ([sender, receiver], Direction::Original) | ([receiver, sender], Direction::Reply) => {
                (sender, receiver)
            }
        }
    }

    /// Takes note of a segment that travels in `direction`.
    pub(crate) fn follow(&mut self, state: State, direction: Direction, segment: &TcpSegment) -> Effect {
        let (sender, receiver) = self.by(direction);
        let opening = segment.has(tcp_flag::SYN) && !segment.has(tcp_flag::ACK);
        let over = matches!(state, State::Closed | State::Reset);
        if opening && direction == Direction::Original && (over || state == State::SynSent) {
            *self = Self::NEW;
            self.0[0].send_syn(segment);
            return if over { Effect::Reopened } else { Effect::State(State::SynSent) };
        }
        if segment.has(tcp_flag::RST) {
            let valid = match sender.has(KNOWN) {
                true => {
                    after_or_at(segment.sequence, sender.acked) && after_or_at(sender.limit, segment.sequence)
                }
                // The refusal of a SYN, or the first thing seen of this end: it must acknowledge what was sent.
                false => segment.has(tcp_flag::ACK) && segment.acknowledgment == receiver.end,
            };
            return if valid { Effect::State(State::Reset) } else { Effect::Ignored };
        }
        if !receiver.acknowledgment_is_possible(segment) {
            return Effect::Ignored;
        }
        if segment.has(tcp_flag::SYN) && !sender.has(SYN_ACKED) {
            // Until it is acknowledged a SYN may differ from an earlier one, which may have been forged.
            sender.send_syn(segment);
        } else if sender.allows(segment) {
            sender.send(segment);
        } else {
            return Effect::Ignored;
        }
        if segment.has(tcp_flag::ACK) {
            receiver.acknowledge(segment, sender);
        }
        Effect::State(self.state())
    }

    /// Goes on after segments that passed elsewhere, by the last of each direction. There may have been any number of them: what
    /// was known before is no measure for it, but for a SYN that waits for its acknowledgment: that can be told only by what
    /// acknowledges no more than was sent. `fins` are the numbers after FINs among them. Tells the state.
    pub(crate) fn resume(&mut self, last: [Option<LastSegment>; 2], fins: [Option<u32>; 2]) -> State {
        for (end, last) in self.0.iter_mut().zip(last) {
            end.end = last.map_or(end.end, |last| last.end);
        }
        for direction in [Direction::Original, Direction::Reply] {
            let Some(last) = last[direction.index()] else { continue };
            let (sender, receiver) = self.by(direction);
            let acknowledged = last.acknowledgment.wrapping_sub(receiver.acked);
            if receiver.has(KNOWN | SYN)
                && (1..=receiver.end.wrapping_sub(receiver.acked)).contains(&acknowledged)
            {
                receiver.flags |= SYN_ACKED;
            }
            receiver.acked = last.acknowledgment;
            let shift = if receiver.has(SCALES) && sender.has(SCALES) { sender.shift } else { 0 };
            receiver.limit = last.acknowledgment.wrapping_add(u32::from(last.window) << shift);
        }
        // The last one may have been sent again, or not at its turn; what the other end has acknowledged was sent for sure.
        for end in &mut self.0 {
            if end.acked.wrapping_sub(end.end) < LARGEST_WINDOW {
                end.end = end.acked;
            }
        }
        for (end, fin) in self.0.iter_mut().zip(fins) {
            // As for a FIN that is seen: one that lies elsewhere is a third party's, and one that more was sent after, too.
            if let Some(fin) = fin
                && end.allows_up_to(fin)
                && after_or_at(fin, end.end)
            {
                end.end = fin;
                end.flags |= FIN;
            }
            if end.has(FIN) && end.acked == end.end {
                end.flags |= FIN_ACKED;
            }
        }
        self.state()
    }

    const fn state(&self) -> State {
        let [a, b] = &self.0;
        if a.has(FIN | FIN_ACKED) && b.has(FIN | FIN_ACKED) {
            State::Closed
        } else if a.has(FIN) || b.has(FIN) {
            State::Closing
        } else if a.has(SYN | SYN_ACKED) && b.has(SYN | SYN_ACKED) {
            State::Established
        } else if b.has(SYN) {
            State::SynReceived
        } else {
            State::SynSent
        }
    }
}

impl End {
    fn send_syn(&mut self, segment: &TcpSegment) {
        self.acked = segment.sequence;
        self.end = segment.sequence.wrapping_add(length(segment));
        self.limit = self.end.wrapping_add(SLACK);
        self.flags |= KNOWN | SYN;
        if let Some(shift) = segment.window_scale {
            self.flags |= SCALES;
            self.shift = shift.min(MAX_SHIFT);
        }
    }

    fn send(&mut self, segment: &TcpSegment) {
        let end = segment.sequence.wrapping_add(length(segment));
        if !self.has(KNOWN) {
            self.flags |= KNOWN;
            // As after a SYN, if that is not known to be acknowledged: what acknowledges this, acknowledges it.
            self.acked = segment.sequence.wrapping_sub(u32::from(!self.has(SYN_ACKED)));
            self.end = end;
            self.limit = end.wrapping_add(SLACK << MAX_SHIFT);
        }
        if after_or_at(end, self.end) {
            self.end = end;
            if segment.has(tcp_flag::FIN) {
                self.flags |= FIN;
            }
        }
    }

    /// True if the segment lies where this end may send, give or take the slack.
    fn allows(&self, segment: &TcpSegment) -> bool {
        self.allows_up_to(segment.sequence.wrapping_add(length(segment)))
    }

    /// The same of a segment by the number after it.
    fn allows_up_to(&self, end: u32) -> bool {
        !self.has(KNOWN)
            || after_or_at(self.limit.wrapping_add(SLACK), end)
                && after_or_at(end.wrapping_add(SLACK), self.acked)
    }

    /// True if the segment acknowledges nothing that this end cannot have sent. In the handshake that is what it was seen to
    /// send, later all that it was allowed to: what passes elsewhere may be told too late, or never.
    fn acknowledgment_is_possible(&self, segment: &TcpSegment) -> bool {
        let most = if self.has(SYN_ACKED) { self.limit.wrapping_add(SLACK) } else { self.end };
        !segment.has(tcp_flag::ACK)
            || !self.has(KNOWN)
            || after_or_at(self.end, segment.acknowledgment)
            || after_or_at(most, segment.acknowledgment)
    }

    /// Takes note that `sender` acknowledged what this end sent.
    fn acknowledge(&mut self, segment: &TcpSegment, sender: &Self) {
        let ack = segment.acknowledgment;
        if !self.has(KNOWN) {
            // Met in the middle: the acknowledgment is all that is known of this end, or all but what a restart has left. Its SYN
            // may have been let through unseen, shortly before.
            if !self.has(SYN) {
                self.flags |= SYN | SCALES;
                self.shift = MAX_SHIFT;
            }
            self.flags |= KNOWN | SYN_ACKED;
            (self.acked, self.end, self.limit) = (ack, ack, ack.wrapping_add(SLACK << MAX_SHIFT));
        }
        if !after_or_at(ack, self.acked) {
            return;
        }
        // A SYN takes one number, so an acknowledgment beyond the first covers it.
        if ack != self.acked {
            self.flags |= SYN_ACKED;
        }
        self.acked = ack;
        if !after_or_at(self.end, ack) {
            self.end = ack;
        }
        let shift = match segment.has(tcp_flag::SYN) {
            true => 0,
            false if self.has(SCALES) && sender.has(SCALES) => sender.shift,
            false => 0,
        };
        let limit = ack.wrapping_add(u32::from(segment.window) << shift);
        if after_or_at(limit, self.limit) {
            self.limit = limit;
        }
        if self.has(FIN) && ack == self.end {
            self.flags |= FIN_ACKED;
        }
    }
}

/// The sequence numbers that a segment takes.
fn length(segment: &TcpSegment) -> u32 {
    segment.payload + u32::from(segment.has(tcp_flag::SYN)) + u32::from(segment.has(tcp_flag::FIN))
}

/// `a >= b` in sequence space (RFC 9293 section 3.4).
const fn after_or_at(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) < 1 << 31
}

#[cfg(test)]
mod tests;
