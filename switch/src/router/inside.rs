//! Who may talk to whom within a network, and with the host: asked between router and bridge, where policy has a word in it.
//!
//! Two that may talk about everything in both directions are let through without a look into any table, and so is the fast path. For
//! all others it is the connection that counts: who opens one is asked about once, and `nat` keeps account of it without
//! translating anything, so that its answers pass. The middle of a TCP connection that is not known is older than the rules, or
//! than this swd: it passes if the rules would have let it begin. Only a rule ends connections, not the fact that there is one. Who
//! had opened it nobody knows any more; the side with the higher port is taken for it, since services have the lower ones.
//!
//! ARP and neighbor discovery pass between those who may talk about anything in either direction. Other broadcasts and multicasts have no
//! answers: each is asked about for every port that it is flooded to. Below a VLAN tag nothing is looked at: such frames pass only
//! between those who may talk about everything.

use nat::packet::{Transport, tcp_flag};
use nat::{Packet, Party, Tuple};

use super::Router;
use super::complain::Complaint;
use super::forward::{Ways, checksum_of, dropped, party, refused};
use super::resolve::Ingress;
use crate::frame::{
    ETHERNET_HEADER, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Frame,
};
use crate::policy::{Peer, Policy, Reach, Service, by_default};
use crate::router::Lock;
use crate::snapshot::{Network, Port, Snapshot};
use crate::stage::Cx;
use crate::verdict::{DropReason, Verdict};

const ICMPV6: u8 = 58;

/// What policy has to know of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ARP or neighbor discovery: what comes before any talk.
    Finding,
    /// It asks for this.
    Asking(Service),
    /// It cannot be looked into.
    Tagged,
}

impl Kind {
    fn of(frame: &mut Frame<'_>) -> Self {
        match frame.ethertype() {
            ETHERTYPE_ARP => return Self::Finding,
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => return Self::Tagged,
            ETHERTYPE_IPV4 => {}
            ETHERTYPE_IPV6 if is_discovery(&frame.bytes()[ETHERNET_HEADER..]) => return Self::Finding,
            ETHERTYPE_IPV6 => {}
            _ => return Self::Asking(Service::OTHER),
        }
        let offload = frame.offload();
        let Ok(packet) = Packet::parse(frame.payload_mut(), checksum_of(offload)) else {
            return Self::Asking(Service::OTHER);
        };
        let port = packet.tuple(nat::NetworkId::OUTSIDE).map_or(0, |tuple| tuple.destination.port);
        Self::Asking(Service::new(packet.protocol(), port))
    }
}

/// RFC 4861: with any other hop limit it is ignored by who receives it.
fn is_discovery(packet: &[u8]) -> bool {
    packet.get(6..8) == Some(&[ICMPV6, 255]) && matches!(packet.get(40), Some(133..=137))
}

/// Two who are about to talk.
struct Pair<'a> {
    policy: &'a Policy,
    from: Peer,
    to: Peer,
    isolates: bool,
}

impl<'a> Pair<'a> {
    fn new(snapshot: &'a Snapshot, network: &Network, from: &Port, to: &Port) -> Self {
        let (from, to) = (snapshot.peer(from), snapshot.peer(to));
        Self { policy: &snapshot.policy, from, to, isolates: network.isolate_ports }
    }

    /// How far each reaches the other.
    fn reach(&self) -> (Reach, Reach) {
        let reach = |from, to| self.policy.reach(from, to, self.isolates);
        (reach(self.from, self.to), reach(self.to, self.from))
    }

    fn is_free(&self) -> bool {
        self.reach() == (Reach::All, Reach::All)
    }

    /// Whether a frame that has no answers may pass.
    fn hears(&self, kind: Kind) -> bool {
        match kind {
            Kind::Finding => self.reach() != (Reach::Nothing, Reach::Nothing),
            Kind::Asking(service) => self.policy.allows(self.from, self.to, service, self.isolates),
            Kind::Tagged => self.is_free(),
        }
    }

    /// Why it does not.
    fn reason(&self, kind: Kind) -> DropReason {
        let service = if let Kind::Asking(service) = kind { service } else { Service::OTHER };
        match self.policy.rule(self.from, self.to, service) {
            None if !by_default(self.from, self.to, self.isolates) => DropReason::Isolated,
            _ => DropReason::Prohibited,
        }
    }
}

/// Whether two ports of a network may talk about everything, without anybody looking.
pub fn is_free(snapshot: &Snapshot, network: &Network, from: &Port, to: &Port) -> bool {
    !snapshot.is_governed(network) || Pair::new(snapshot, network, from, to).is_free()
}

/// Whether a port may know of another what it takes to find it.
pub fn finds(snapshot: &Snapshot, network: &Network, from: &Port, to: &Port) -> bool {
    !snapshot.is_governed(network) || Pair::new(snapshot, network, from, to).hears(Kind::Finding)
}

/// Whether a port may have a frame that is flooded. A frame of no known kind is for those who may talk about everything.
pub fn hears(snapshot: &Snapshot, network: &Network, from: &Port, to: &Port, kind: Option<Kind>) -> bool {
    Pair::new(snapshot, network, from, to).hears(kind.unwrap_or(Kind::Tagged))
}

impl Router {
    /// The name of what [`Router::admit`] decides, in traces.
    pub const POLICY: &'static str = "policy";

    /// Whether a frame may go where the bridge is about to take it: [`Verdict::Next`] if so. Asked of frames of
    /// [governed](Snapshot::is_governed) networks only.
    pub fn admit(&mut self, frame: &mut Frame<'_>, cx: &Cx<'_>, lock: &mut Lock<'_>) -> Verdict {
        let kind = Kind::of(frame);
        let dst = frame.dst();
        let known = if dst.is_multicast() { None } else { cx.fdb.lookup(cx.network.id, dst, cx.now) };
        let Some(to) = known.and_then(|port| cx.snapshot.port(port)) else {
            self.heard = Some(kind);
            self.notes.add(|| "for several: each port is asked about".to_owned());
            return Verdict::Next;
        };
        if to.id == frame.port {
            return Verdict::Next;
        }
        let pair = Pair::new(cx.snapshot, cx.network, cx.port, to);
        let reach = pair.reach();
        if reach == (Reach::All, Reach::All) {
            self.notes.add(|| format!("{} and {} may talk about everything", cx.port.name, to.name));
            return Verdict::Next;
        }
        match kind {
            Kind::Asking(Service { protocol: Some(_), .. }) => {
                self.ways(cx.now, cx.snapshot, cx.neighbors, lock).inside(frame, cx, to, &pair)
            }
            _ if pair.hears(kind) => Verdict::Next,
            _ => {
                self.notes.add(|| match kind {
                    Kind::Finding => format!("{} and {} may not talk at all", cx.port.name, to.name),
                    _ => format!("what is not IP may not pass from {} to {}", cx.port.name, to.name),
                });
                Verdict::Drop(pair.reason(kind))
            }
        }
    }
}

impl Ways<'_> {
    /// A packet between two ports of a network, of which one may be the host's.
    fn inside(&mut self, frame: &mut Frame<'_>, cx: &Cx<'_>, to: &Port, pair: &Pair<'_>) -> Verdict {
        let (from, sender, offload) = (Ingress::Port(cx.port.id), frame.src(), frame.offload());
        self.begin(false);
        let Ok(mut packet) = Packet::parse(frame.payload_mut(), checksum_of(offload)) else {
            return Verdict::Drop(DropReason::Malformed);
        };
        let tuple = packet.tuple(nat::NetworkId::OUTSIDE);
        let service = service(&packet, tuple.as_ref());
        if pair.reach() == (Reach::Nothing, Reach::Nothing) {
            self.may_open(pair.from, pair.to, service, by_default(pair.from, pair.to, pair.isolates));
            let reason = pair.reason(Kind::Asking(service));
            // Without a rule they do not know of each other: there is nobody who waits for an answer.
            if reason == DropReason::Prohibited {
                self.complain(&packet, Complaint::Prohibited, from, sender);
            }
            return Verdict::Drop(reason);
        }
        // As `hosts_own` names the host: a connection is in the table once.
        let who = |peer, port| if peer == Peer::Host { Party::OUTSIDE } else { party(cx.network, port) };
        let (caller, called) = (who(pair.from, cx.port.id), who(pair.to, to.id));
        let verdict = self.state.nat.routed(self.now, &mut packet, caller, called);
        self.notes.of_nat(&self.state.nat, &verdict);
        let default = by_default(pair.from, pair.to, pair.isolates);
        let begins = middle(&packet).is_none();
        let verdict = match verdict {
            nat::Verdict::New(pending) if begins && self.may_open(pair.from, pair.to, service, default) => {
                self.state.nat.commit(self.now, &mut packet, pending)
            }
            nat::Verdict::New(_)
            | nat::Verdict::Drop(nat::DropReason::NoConnection | nat::DropReason::Unsupported)
                if is_elder(pair, &packet, service) =>
            {
                self.notes.add(|| "its connection is older than the rules, which let it pass".to_owned());
                return Verdict::Next;
            }
            known => known,
        };
        match verdict {
            nat::Verdict::Forward(_) => {
                let header = &frame.bytes()[..ETHERNET_HEADER];
                self.send_held(header, cx.network.mtu, Verdict::Forward(to.id), from);
                Verdict::Next
            }
            nat::Verdict::Held => Verdict::Absorbed,
            nat::Verdict::Drop(
                reason @ (nat::DropReason::Clash
                | nat::DropReason::FragmentLimit
                | nat::DropReason::FragmentMismatch
                | nat::DropReason::IcmpChecksum
                | nat::DropReason::IcmpQuote
                | nat::DropReason::IcmpUnrelated),
            ) => Verdict::Drop(dropped(reason)),
            nat::Verdict::Refuse(refusal) => {
                self.complain(&packet, Complaint::Prohibited, from, sender);
                Verdict::Drop(refused(refusal))
            }
            nat::Verdict::New(_) | nat::Verdict::Drop(_) | nat::Verdict::NotOurs => {
                self.complain(&packet, Complaint::Prohibited, from, sender);
                Verdict::Drop(pair.reason(Kind::Asking(service)))
            }
        }
    }

    /// Whether a routed packet may begin a connection. What is the middle of one begins it anew, as after a restart, but not where it
    /// may be an answer in one that the rules have ended.
    pub(super) fn may_begin(
        &mut self,
        packet: &Packet<'_>,
        from: Peer,
        to: Peer,
        service: Service,
        default: bool,
    ) -> bool {
        if let Some((source, destination)) = middle(packet)
            && source < destination
            && let Some(rule) = self.snapshot.policy.rule(to, from, Service { port: source, ..service })
            && !rule.allow
        {
            self.notes
                .add(|| format!("it may be an answer in what '{}' forbids ('swctl policy')", rule.text));
            return false;
        }
        self.may_open(from, to, service, default)
    }

    /// Whether a connection may be opened; `default` is what holds without a rule.
    pub(super) fn may_open(&mut self, from: Peer, to: Peer, service: Service, default: bool) -> bool {
        let rule = self.snapshot.policy.rule(from, to, service);
        self.notes.add(|| match rule {
            Some(rule) if rule.allow => format!("the rule '{}' lets it pass ('swctl policy')", rule.text),
            Some(rule) => format!("the rule '{}' forbids it ('swctl policy')", rule.text),
            None if default => "no rule forbids it ('swctl policy')".to_owned(),
            None => "no rule lets it pass ('swctl policy')".to_owned(),
        });
        rule.map_or(default, |rule| rule.allow)
    }
}

/// What a packet asks for.
fn service(packet: &Packet<'_>, tuple: Option<&Tuple>) -> Service {
    Service::new(packet.protocol(), tuple.map_or(0, |tuple| tuple.destination.port))
}

/// The ports of a TCP segment that can only be the middle or the end of a connection: not what begins one.
fn middle(packet: &Packet<'_>) -> Option<(u16, u16)> {
    let segment = packet.tcp()?;
    if segment.has(tcp_flag::SYN) && !segment.has(tcp_flag::ACK) {
        return None;
    }
    let ports = packet.tuple(nat::NetworkId::OUTSIDE)?;
    Some((ports.source.port, ports.destination.port))
}

/// Whether a packet of no known connection may belong to one that the rules would have let begin.
fn is_elder(pair: &Pair<'_>, packet: &Packet<'_>, service: Service) -> bool {
    let may = |from, to, port| pair.policy.allows(from, to, Service { port, ..service }, pair.isolates);
    let (from, to) = (pair.from, pair.to);
    match (packet.transport(), middle(packet)) {
        (Transport::Tcp, Some((source, destination))) => {
            (source < destination || may(from, to, destination))
                && (destination < source || may(to, from, source))
        }
        (Transport::QueryReply, _) => may(to, from, 0),
        // ICMP that is neither question, answer nor error.
        (Transport::Opaque, _) => may(from, to, 0),
        _ => false,
    }
}
