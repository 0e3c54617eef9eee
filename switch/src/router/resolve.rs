//! Next hops: which MAC an address has, and the frames that wait for the answer.
//!
//! **What it stores.** Addresses on the uplinks with their MACs: what the kernel knows is mirrored, the rest is asked for
//! by ARP and neighbor discovery, and asked for again once it is [`REACHABLE`] old and still used (RFC 4861 7.3, without
//! the states that only a listener to upper layers could tell). Addresses in the switch's networks are only here while
//! they are asked for: their MACs are in [`super::neighbor`].
//!
//! **Frames that wait** are copies. They come back by [`Resolver::answered`] or [`Resolver::tick`], to be sent or given up.
//!
//! **Limits.** [`MAX_ENTRIES`] addresses; [`PER_HOP`] frames for one of them, [`PER_SENDER`] of one sender, [`PARKED`] in
//! all. Where a limit is met the newcomer is refused.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use foldhash::quality::RandomState;
use nat::Time;

use crate::frame::OwnedFrame;
use crate::mac::Mac;
use crate::snapshot::{NetworkId, PortId};

/// How long an answer is believed without asking again.
pub const REACHABLE: Duration = Duration::from_secs(30);
/// Between two questions for the same address outside.
pub const RETRANSMIT: Duration = Duration::from_secs(1);
/// Between two questions for the same address inside: containers are near.
pub const RETRANSMIT_INSIDE: Duration = Duration::from_millis(100);
/// Questions before an address is given up.
pub const TRIES: u8 = 3;
/// Addresses known or asked for.
pub const MAX_ENTRIES: usize = 8192;
/// Frames that wait for one address.
pub const PER_HOP: usize = 64;
/// Frames of one sender that wait.
pub const PER_SENDER: usize = 256;
/// Frames that wait in all.
pub const PARKED: usize = 1024;

/// Where an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hop {
    /// On the link of an uplink, by its interface index.
    Outside(u32, IpAddr),
    /// In a network of the switch.
    Inside(NetworkId, IpAddr),
}

impl Hop {
    const fn patience(self) -> Duration {
        match self {
            Self::Outside(..) => RETRANSMIT,
            Self::Inside(..) => RETRANSMIT_INSIDE,
        }
    }
}

/// Where a frame came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ingress {
    /// A port.
    Port(PortId),
    /// An uplink, by its interface index.
    Uplink(u32),
}

/// How a frame goes on once its next hop is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// As if it had just come: nothing was decided.
    Again,
    /// It is translated and ready: it only lacks the MAC.
    Send,
}

/// A frame that waits.
#[derive(Clone, Debug)]
pub struct Parked {
    /// The frame.
    pub frame: OwnedFrame,
    /// Where it came from.
    pub from: Ingress,
    /// How it goes on.
    pub resume: Resume,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    mac: Option<Mac>,
    confirmed: Time,
    /// Questions asked since the last answer.
    asked: u8,
    /// When to ask again, or to give up; none while nothing is asked.
    next: Option<Time>,
    parked: Vec<Parked>,
}

/// A question to be asked now. With a MAC it is asked of that one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// About whom.
    pub hop: Hop,
    /// The MAC that it had.
    pub known: Option<Mac>,
}

/// What is known of a next hop.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Its MAC, and whether it is time to ask again.
    Known(Mac, Option<Question>),
    /// Not yet: park the frame.
    Unknown,
}

/// What [`Resolver::park`] did.
#[derive(Debug, PartialEq, Eq)]
pub enum Park {
    /// It waits; and that is to be asked.
    Waits(Option<Question>),
    /// There is no room.
    Full,
}

/// The table.
#[derive(Clone, Debug, Default)]
pub struct Resolver {
    entries: HashMap<Hop, Entry, RandomState>,
    timers: BTreeSet<(Time, Hop)>,
    parked: usize,
    by_sender: HashMap<Ingress, usize, RandomState>,
    waiting_inside: usize,
    /// Frames that were dropped with what they waited for, or with their sender.
    lost: u64,
    /// A next hop outside has another MAC, or none any more.
    changed: bool,
}

impl Resolver {
    /// The MAC of an address on an uplink.
    pub fn find(&mut self, now: Time, hop: Hop) -> Found {
        let Some(entry) = self.entries.get_mut(&hop) else { return Found::Unknown };
        let Some(mac) = entry.mac else { return Found::Unknown };
        if entry.next.is_some() || now.since(entry.confirmed) < REACHABLE {
            return Found::Known(mac, None);
        }
        entry.asked = 1;
        entry.next = Some(now + hop.patience());
        self.timers.insert((now + hop.patience(), hop));
        Found::Known(mac, Some(Question { hop, known: Some(mac) }))
    }

    /// Lets a frame wait for an address.
    pub fn park(
        &mut self,
        now: Time,
        hop: Hop,
        from: Ingress,
        resume: Resume,
        frame: impl FnOnce() -> OwnedFrame,
    ) -> Park {
        let of_sender = self.by_sender.get(&from).copied().unwrap_or_default();
        let known = self.entries.get(&hop);
        let full = self.parked >= PARKED
            || of_sender >= PER_SENDER
            || known.is_some_and(|e| e.parked.len() >= PER_HOP)
            || (known.is_none() && self.entries.len() >= MAX_ENTRIES && !self.make_room(now));
        if full {
            return Park::Full;
        }
        let entry = self.entries.entry(hop).or_default();
        entry.parked.push(Parked { frame: frame(), from, resume });
        self.parked += 1;
        self.waiting_inside += usize::from(matches!(hop, Hop::Inside(..)));
        *self.by_sender.entry(from).or_default() += 1;
        if entry.next.is_some() {
            return Park::Waits(None);
        }
        entry.asked = 1;
        entry.next = Some(now + hop.patience());
        self.timers.insert((now + hop.patience(), hop));
        Park::Waits(Some(Question { hop, known: None }))
    }

    /// Forgets addresses that were not used for long.
    fn make_room(&mut self, now: Time) -> bool {
        let old = |e: &Entry| e.next.is_none() && now.since(e.confirmed) >= 4 * REACHABLE;
        self.entries.retain(|_, e| !old(e));
        self.entries.len() < MAX_ENTRIES
    }

    /// Somebody says what MAC an address has. Believed only where it was asked for or is known; gives what waited.
    pub fn answered(&mut self, now: Time, hop: Hop, mac: Mac) -> Vec<Parked> {
        if mac.is_multicast() || mac == Mac::ZERO || !self.entries.contains_key(&hop) {
            return Vec::new();
        }
        self.set(now, hop, mac)
    }

    fn set(&mut self, now: Time, hop: Hop, mac: Mac) -> Vec<Parked> {
        if !self.entries.contains_key(&hop) && self.entries.len() >= MAX_ENTRIES && !self.make_room(now) {
            return Vec::new();
        }
        let entry = self.entries.entry(hop).or_default();
        self.changed |= entry.mac.is_some_and(|old| old != mac);
        entry.mac = Some(mac);
        entry.confirmed = now;
        entry.asked = 0;
        if let Some(next) = entry.next.take() {
            self.timers.remove(&(next, hop));
        }
        let parked = std::mem::take(&mut entry.parked);
        if matches!(hop, Hop::Inside(..)) {
            self.entries.remove(&hop);
        }
        self.unpark(hop, &parked);
        parked
    }

    /// The kernel's own table says what MAC an address has. Where frames wait, the answer to our question is awaited.
    pub fn mirror(&mut self, now: Time, hop: Hop, mac: Mac) {
        if !mac.is_multicast()
            && mac != Mac::ZERO
            && self.entries.get(&hop).is_none_or(|e| e.parked.is_empty())
        {
            self.set(now, hop, mac);
        }
    }

    fn unpark(&mut self, hop: Hop, parked: &[Parked]) {
        self.parked -= parked.len();
        if matches!(hop, Hop::Inside(..)) {
            self.waiting_inside -= parked.len();
        }
        for p in parked {
            if let Some(n) = self.by_sender.get_mut(&p.from) {
                *n -= 1;
                if *n == 0 {
                    self.by_sender.remove(&p.from);
                }
            }
        }
    }

    /// Asks again what is not answered, gives up what never is: questions, and frames that are given up.
    pub fn tick(&mut self, now: Time) -> (Vec<Question>, Vec<(Hop, Parked)>) {
        let (mut questions, mut given_up) = (Vec::new(), Vec::new());
        while let Some((at, hop)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let Some(entry) = self.entries.get_mut(&hop) else { continue };
            if entry.asked >= TRIES {
                if let Some(entry) = self.entries.remove(&hop) {
                    self.changed |= entry.mac.is_some();
                    self.unpark(hop, &entry.parked);
                    given_up.extend(entry.parked.into_iter().map(|p| (hop, p)));
                }
                continue;
            }
            entry.asked += 1;
            entry.next = Some(now + hop.patience());
            self.timers.insert((now + hop.patience(), hop));
            // The second question about a known MAC is asked of all: it may have moved.
            questions.push(Question { hop, known: None });
        }
        (questions, given_up)
    }

    /// Forgets what the selected hops are: an uplink or a network is gone, or the kernel says that it was wrong. Frames
    /// that waited for them are dropped.
    pub fn forget(&mut self, goes: impl Fn(&Hop) -> bool) {
        let gone: Vec<Hop> = self.entries.keys().filter(|h| goes(h)).copied().collect();
        for hop in gone {
            if let Some(entry) = self.entries.remove(&hop) {
                self.changed |= entry.mac.is_some();
                if let Some(next) = entry.next {
                    self.timers.remove(&(next, hop));
                }
                self.unpark(hop, &entry.parked);
                self.lost += entry.parked.len() as u64;
            }
        }
    }

    /// Whether a MAC changed since this was asked last: what is sent there by others is wrong.
    pub const fn take_changed(&mut self) -> bool {
        std::mem::replace(&mut self.changed, false)
    }

    /// Drops the frames of a sender that is gone.
    pub fn forget_sender(&mut self, from: Ingress) {
        if self.by_sender.remove(&from).is_none() {
            return;
        }
        for (hop, entry) in &mut self.entries {
            let before = entry.parked.len();
            entry.parked.retain(|p| p.from != from);
            let gone = before - entry.parked.len();
            self.parked -= gone;
            self.lost += gone as u64;
            if matches!(hop, Hop::Inside(..)) {
                self.waiting_inside -= gone;
            }
        }
    }

    /// When [`Resolver::tick`] has something to do; none while nothing is asked.
    pub fn poll_at(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Frames that wait.
    pub const fn waiting(&self) -> usize {
        self.parked
    }

    /// Frames that were forgotten since this was asked last.
    pub const fn take_lost(&mut self) -> u64 {
        std::mem::replace(&mut self.lost, 0)
    }

    /// Frames that wait for containers.
    pub const fn waiting_inside(&self) -> usize {
        self.waiting_inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Offload;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn hop(n: u32) -> Hop {
        Hop::Outside(2, IpAddr::V4((0x0a00_0000 + n).into()))
    }

    fn frame() -> OwnedFrame {
        OwnedFrame::new(&[0; 60], Offload::default())
    }

    fn park(r: &mut Resolver, now: Time, hop: Hop, from: Ingress) -> Park {
        r.park(now, hop, from, Resume::Again, frame)
    }

    #[test]
    fn asks_parks_and_gives_back() {
        let mut r = Resolver::default();
        let t = Time::from_secs(100);
        let from = Ingress::Port(PortId(1));
        assert_eq!(r.find(t, hop(1)), Found::Unknown);
        let question = Question { hop: hop(1), known: None };
        assert_eq!(park(&mut r, t, hop(1), from), Park::Waits(Some(question)));
        assert_eq!(park(&mut r, t, hop(1), from), Park::Waits(None));
        assert!(r.answered(t, hop(2), MAC).is_empty(), "not asked for");
        assert_eq!(r.answered(t, hop(1), MAC).len(), 2);
        assert_eq!((r.find(t, hop(1)), r.poll_at()), (Found::Known(MAC, None), None));
        // Later it is asked again, of itself first, then of all, and forgotten when it stays silent.
        let t = t + REACHABLE;
        let again = Question { hop: hop(1), known: Some(MAC) };
        assert_eq!(r.find(t, hop(1)), Found::Known(MAC, Some(again)));
        assert_eq!(r.find(t, hop(1)), Found::Known(MAC, None));
        assert_eq!(r.tick(t + RETRANSMIT).0, [question]);
        assert_eq!(r.tick(t + 2 * RETRANSMIT).0, [question]);
        assert!(r.tick(t + 3 * RETRANSMIT).0.is_empty());
        assert_eq!((r.find(t, hop(1)), r.poll_at()), (Found::Unknown, None));
    }

    #[test]
    fn what_is_never_answered_comes_back_and_room_is_bounded() {
        let mut r = Resolver::default();
        let mut t = Time::from_secs(100);
        let (a, b) = (Ingress::Port(PortId(1)), Ingress::Port(PortId(2)));
        for n in 0..1000 {
            park(&mut r, t, hop(n % 200), a);
        }
        assert_eq!(r.parked, PER_SENDER, "one sender has its share");
        assert!(matches!(park(&mut r, t, hop(0), b), Park::Waits(None)));
        for _ in 0..PER_HOP {
            park(&mut r, t, hop(5000), b);
        }
        assert_eq!(park(&mut r, t, hop(5000), b), Park::Full);
        r.forget_sender(b);
        assert_eq!((r.parked, r.take_lost(), r.take_lost()), (PER_SENDER, PER_HOP as u64 + 1, 0));
        let mut back = 0;
        for _ in 0..TRIES {
            t = t + RETRANSMIT;
            back += r.tick(t).1.len();
        }
        assert_eq!((back, r.parked, r.timers.len(), r.by_sender.len()), (PER_SENDER, 0, 0, 0));
    }
}
