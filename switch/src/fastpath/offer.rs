//! Which flows are worth to be handed to the kernel. Pure: part of the engine.

use nat::{Direction, Time};

use super::answers::Answers;
use super::awaited::Question;
use super::carry::Carry;
use super::turns::{Line, Turns};
use crate::frame::{ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame};
use crate::mac::Mac;
use crate::snapshot::{Network, Port, PortId};

/// A flow is offered from this many points on: fewer frames are cheaper to forward than to hand over.
const POINTS: u16 = 16;
/// A frame counts so many points, but one that takes its turn counts against its flow: [`super::turns`].
const FRAME: u16 = 2;
const TURN: u16 = 1;
/// So many frames make a flow overdue whose port always has some in the ring.
const OVERDUE: u16 = 1024;
/// Flows that are counted at a time. Two that share a place push each other out, and are offered later for it.
const PLACES: usize = 256;
/// Connections that are noted between SYN and answer. Two that share a place push each other out, and are offered later for it.
const OPENERS: usize = 512;
/// Next headers of IPv6 that the kernel may forward: TCP and UDP. Behind any other may be neighbor discovery, which is for the
/// switch to see.
pub(super) const V6_HEADERS: [u8; 2] = [6, 17];

/// Which of the connections that may be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those whose SYN, or the answer to it, passes just now.
    JustOpened,
    /// All of them.
    Any,
}

/// Unicast frames from one port to another, between two MACs, from one address: IPv4 or IPv6. ARP is for the switch to see, tagged
/// frames are for it to edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Whence.
    pub from: PortId,
    /// Whereto.
    pub to: PortId,
    /// The sender.
    pub src: Mac,
    /// The receiver.
    pub dst: Mac,
    /// Network protocol.
    pub ethertype: u16,
    /// The sender's address: of IPv4 the first four bytes. What a guarded port sends from is not the kernel's to judge.
    pub source: [u8; 16],
}

impl Flow {
    /// The flow of a frame that the bridge forwards, if the kernel may forward it as well: between two veth ports, so that
    /// none who receives it has a smaller MTU than its sender, neither to a gateway nor from the host, where the router has a
    /// word in it, and of no port whose rate is limited.
    pub fn of(frame: &Frame<'_>, network: &Network, from: &Port, to: &Port) -> Option<Self> {
        let fits = from.veth_mtu? <= to.veth_mtu?;
        let (src, dst, ethertype) = (frame.src(), frame.dst(), frame.ethertype());
        let routed = dst == network.gateway_mac || network.host_port == Some(from.id);
        let may = fits && to.up && !routed && !from.sees_all() && !to.sees_all();
        let source = source(ethertype, frame.bytes().get(ETHERNET_HEADER..)?)?;
        may.then_some(Self { from: from.id, to: to.id, src, dst, ethertype, source })
    }

    /// The MACs.
    pub(super) const fn line(&self) -> Line {
        Line { src: self.src, dst: self.dst }
    }

    fn place(&self) -> usize {
        let ethertype = self.ethertype.to_ne_bytes();
        let bytes = self.src.0.iter().chain(&self.dst.0).chain(&ethertype).chain(&self.source).copied();
        place(bytes, PLACES)
    }
}

/// Which of so many places, 256 at most, what has these few bytes takes: by FNV-1a. Who collides on purpose slows himself down.
pub(super) fn place(bytes: impl Iterator<Item = u8>, places: usize) -> usize {
    let hash = bytes.fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    (hash >> 24) as usize % places
}

/// The source address, where a packet is of a kind that the kernel may forward.
fn source(ethertype: u16, packet: &[u8]) -> Option<[u8; 16]> {
    match ethertype {
        ETHERTYPE_IPV4 => {
            let mut source = [0; 16];
            source[..4].copy_from_slice(packet.get(12..16)?);
            Some(source)
        }
        ETHERTYPE_IPV6 if V6_HEADERS.contains(packet.get(6)?) => packet.get(8..24)?.try_into().ok(),
        _ => None,
    }
}

/// A flow to be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The flow.
    pub flow: Flow,
    /// Frames that came by themselves, so far, and half of a frame each less for those that took their turn.
    points: u16,
}

impl Offer {
    /// Whether it has had so many frames that it may be handed over while earlier ones wait.
    pub const fn is_overdue(&self) -> bool {
        self.points >= OVERDUE * FRAME
    }
}

/// Counts flows by their frames.
#[derive(Debug)]
pub struct Offers {
    places: Vec<Option<Offer>>,
    turns: Turns,
    ready: Vec<Offer>,
    carries: Vec<Carry>,
    /// SYNs without an answer so far, and the epoch in which they were decided about.
    openers: Vec<Option<(Carry, u32)>>,
    answers: Answers,
    questions: Vec<Question>,
    epoch: u32,
    now: Time,
}

impl Default for Offers {
    fn default() -> Self {
        Self {
            places: vec![None; PLACES],
            turns: Turns::default(),
            ready: Vec::new(),
            carries: Vec::new(),
            openers: vec![None; OPENERS],
            answers: Answers::default(),
            questions: Vec::new(),
            epoch: 0,
            now: Time::ZERO,
        }
    }
}

impl Offers {
    /// Counts a frame of so many bytes.
    pub fn saw(&mut self, flow: Flow, bytes: usize) {
        let takes_turn = self.turns.takes(flow.line(), bytes, self.now);
        let place = &mut self.places[flow.place()];
        let before = place.filter(|offer| offer.flow == flow).map_or(0, |offer| offer.points);
        let points = if takes_turn { before.saturating_sub(TURN) } else { before.saturating_add(FRAME) };
        let offer = Offer { flow, points };
        *place = Some(offer);
        if offer.points >= POINTS && !self.ready.iter().any(|o| o.flow == flow) {
            self.ready.push(offer);
        }
    }

    /// A flow that was refused, or was handed over and comes back, is counted anew.
    pub fn forget(&mut self, flow: &Flow) {
        self.places[flow.place()] = None;
    }

    /// What is noted from `now` on is decided in this epoch, or a later one.
    pub const fn begin(&mut self, epoch: u32, now: Time) {
        (self.epoch, self.now) = (epoch, now);
    }

    /// Notes a direction of a connection that may be handed over. With the answer to a SYN the SYN's direction is, too, and with a
    /// SYN its answer's, if it is known how that will go.
    pub fn carried(&mut self, carry: Carry) {
        let connection = carry.routed.connection;
        let opener = &mut self.openers[carry.opener_port() % OPENERS];
        if carry.opens() {
            match self.answers.to(&carry, self.epoch, self.now) {
                Some(answer) => self.carries.extend([carry, answer]),
                None => *opener = Some((carry, self.epoch)),
            }
            return;
        }
        if carry.is_new() {
            if carry.routed.direction == Direction::Reply {
                self.answers.went(&carry, self.epoch, self.now);
            }
            if let Some((opener, epoch)) =
                opener.take_if(|(opener, _)| opener.routed.connection == connection)
                && epoch == self.epoch
            {
                self.carries.push(Carry { state: carry.state, ..opener });
            }
        }
        let same = |c: &&mut Carry| {
            (c.routed.connection, c.routed.direction) == (connection, carry.routed.direction)
        };
        match self.carries.iter_mut().find(same) {
            Some(known) => *known = carry,
            None => self.carries.push(carry),
        }
    }

    /// Notes a packet that leaves by an uplink.
    pub fn asked(&mut self, question: Question) {
        self.questions.push(question);
    }

    /// Packets that leave by uplinks, since the last call.
    pub fn take_questions(&mut self) -> impl Iterator<Item = Question> {
        self.questions.drain(..)
    }

    /// A connection that may be handed over, since the last call.
    pub fn take_carry(&mut self, which: Which) -> Option<Carry> {
        match which {
            Which::JustOpened => self.carries.extract_if(.., |carry| carry.opens() || carry.is_new()).next(),
            Which::Any => self.carries.pop(),
        }
    }

    /// What is worth to be handed over, since the last call.
    pub fn take(&mut self) -> Option<Offer> {
        self.ready.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(last: u8) -> Flow {
        let mac = |n| Mac([2, 0, 0, 0, 0, n]);
        Flow {
            from: PortId(0),
            to: PortId(1),
            src: mac(last),
            dst: mac(200),
            ethertype: 0x0800,
            source: [0; 16],
        }
    }

    #[test]
    fn a_busy_flow_is_offered_and_goes_on_being_offered() {
        let mut offers = Offers::default();
        for _ in 1..POINTS / FRAME {
            offers.saw(flow(1), 60);
            assert_eq!(offers.take(), None);
        }
        for _ in 0..2 {
            offers.saw(flow(1), 60);
            let offer = offers.take().expect("busy");
            assert!(offer.flow == flow(1) && !offer.is_overdue(), "{offer:?}");
        }
        offers.forget(&flow(1));
        offers.saw(flow(1), 60);
        assert_eq!(offers.take(), None);
        for _ in 0..OVERDUE {
            offers.saw(flow(1), 60);
        }
        assert!(offers.take().is_some_and(|_| offers.places[flow(1).place()].unwrap().is_overdue()));
    }

    #[test]
    fn a_flow_is_offered_once_a_batch() {
        let mut offers = Offers::default();
        for _ in 0..POINTS {
            offers.saw(flow(1), 60);
        }
        assert_eq!(offers.take().map(|o| o.flow), Some(flow(1)));
        assert_eq!(offers.take(), None);
    }

    #[test]
    fn who_takes_turns_is_not_offered_and_who_stops_to_is() {
        let mut offers = Offers::default();
        let there = flow(1);
        let back = Flow { from: there.to, to: there.from, src: there.dst, dst: there.src, ..there };
        for n in 0..1000 {
            offers.begin(1, Time::from_nanos(n * 10_000));
            offers.saw(if n % 2 == 0 { there } else { back }, 60);
            assert_eq!(offers.take(), None, "frame {n}");
        }
        // Data, which is long, and acknowledgements, which are not: the data goes first, and then nothing is left to be answered.
        let mut taken = Vec::new();
        for n in 1000..1100 {
            offers.begin(1, Time::from_nanos(n * 10_000));
            for (flow, bytes) in [(there, 1514), (back, 66)] {
                if !taken.contains(&flow) {
                    offers.saw(flow, bytes);
                }
            }
            taken.extend(offers.take().map(|offer| offer.flow));
        }
        assert_eq!(taken, [there, back]);
    }
}
