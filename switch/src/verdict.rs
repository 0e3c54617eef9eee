//! What a stage decides about a frame, and the reasons for which frames are dropped.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::services::Service;
use crate::snapshot::PortId;

/// What a stage decides about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let the next stage decide.
    Next,
    /// Count it and forget it.
    Drop(DropReason),
    /// Send it to every other port of its network.
    Flood,
    /// Send it to one port.
    Forward(PortId),
    /// The frame was turned into its own answer: send it back to where it came from.
    Reply,
    /// It is for a service of the gateway's own, which answers in its own time.
    Serve(Service),
    /// Send it out of an interface of the host.
    Uplink(u32),
    /// It waits for something (its next hop's MAC, its first fragment) and comes back by itself, or is dropped then.
    Absorbed,
    /// It is not the switch's business: the host has it. Not counted.
    Ignore,
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $help:literal;)*) => {
        /// Why a frame was dropped. Each has a counter, a name for programs and a sentence for people.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its name in `swctl drops`, metrics and events.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it means and what to do about it.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

drop_reasons! {
    /// Lost before a worker received it. The one reason that is not among the frames received.
    NotReceived = "not-received", "swd did not take frames as fast as they came, so the kernel dropped some unseen: first those of a port of which a quarter of the ring waits. Give swd more CPU ('workers' in the configuration), or the senders less ('swctl port set --rate-in').";
    /// Shorter than an Ethernet header, or a length that its own headers contradict.
    Malformed = "malformed", "The frame is too short or contradicts itself. Capture on the port to see who sends it.";
    /// The offload header asks for something that the frame cannot satisfy.
    BadOffload = "bad-offload", "The frame's checksum or segmentation request points outside the frame. The sender's driver is at fault, or hostile: 'swctl capture drops' shows whose it is.";
    /// Longer than what swd can carry whole.
    Oversized = "oversized", "The frame is longer than 64 KiB. Turn off 'big TCP' (ip link set gso_max_size 65536) on the sender.";
    /// Source is a multicast address or zero.
    BadSource = "bad-source", "The source MAC is multicast or zero, which no station may send. 'swctl capture drops' shows the port: correct the MAC there.";
    /// Destination is 01:80:C2:00:00:00 to 0F.
    LinkLocal = "link-local", "Spanning tree, LLDP, pause and the like end at the first bridge (IEEE 802.1D): normal, nothing to do.";
    /// Came from an interface that is not a port.
    NotAPort = "not-a-port", "The frame came from an interface in the switch namespace that is no port. Add it with 'swctl port add' or move it out.";
    /// Source is the gateway's MAC, from a port that is not the gateway.
    GatewaySpoofed = "gateway-spoofed", "A container sent with the gateway's MAC as source: a loop, or an attempt to take the gateway over. 'swctl capture drops' shows which port it came from.";
    /// Source is a MAC that the port may not send from.
    SpoofedMac = "spoofed-mac", "A guarded port sent from a MAC that is not its own: a loop, a bridge in the container, or an attempt to be another. 'swctl port show' lists what it may send from; 'swctl port set PORT --source MAC' adds to it.";
    /// ARP or neighbor discovery that claims what is another's.
    SpoofedNeighbor = "spoofed-neighbor", "A guarded port claimed an address or a MAC that is not its own by ARP or neighbor discovery, or played router. An address that it should have: 'swctl port set PORT --source ADDRESS'.";
    /// Source is a static MAC of another port.
    StaticElsewhere = "static-elsewhere", "The source MAC is bound to another port by a static entry. See 'swctl fdb ls', and 'swctl fdb rm' if the station has moved.";
    /// The MAC moves between ports faster than a station can.
    MacDamped = "mac-damped", "The same source MAC arrives on several ports in turn: a loop between ports, or two containers with one MAC. See 'swctl events'.";
    /// Destination lives behind the port that the frame came from.
    SamePort = "same-port", "The destination is behind the same port as the sender, which has it already: normal for hubs and bridges behind a port.";
    /// There was no other port to send to.
    NoEgress = "no-egress", "Nobody else is in the network, so there was no port to flood to: normal in a network with one port.";
    /// More broadcasts, multicasts and unknown unicasts than the port may send.
    Storm = "storm", "The port sends more broadcasts, multicasts and frames for unknown receivers than its storm limit lets pass: a loop or a flood. 'swctl port set PORT --storm RATE' changes the limit.";
    /// Faster than the port's limit, for longer than its queue.
    RateLimited = "rate-limited", "The port sends or is sent more than its limit lets pass. TCP slows down by itself; of UDP the rest is lost. 'swctl port set PORT --rate-in RATE --rate-out RATE' changes the limit.";
    /// Ports of this network are isolated from each other.
    Isolated = "isolated", "The network was made with --isolate-ports: its ports reach the gateway only. 'swctl allow FROM TO' lets some of them talk.";
    /// Addressed to the gateway, for an address which is neither the host's nor reachable.
    NotRouted = "not-routed", "Sent to the gateway for something that cannot be routed: a broadcast, a loopback address, the sender's own subnet, or not IP at all. Usually harmless; if not, look at the sender's addresses and prefix lengths with 'swctl inspect'.";
    /// The host has no route, or swd no uplink.
    NoRoute = "no-route", "The host has no route to that destination ('ip route get ADDRESS' there), or the route's interface is not an uplink of swd ('swctl status').";
    /// Policy does not let it pass.
    Prohibited = "prohibited", "A rule denies it, it is for a container of another network, or it would leave an internal one: networks are closed to each other, internal ones to the outside. 'swctl policy' lists the rules, 'swctl trace' tells which one it is, 'swctl allow FROM TO' lets it pass.";
    /// The source is not one of the sender's network, or is another container's.
    SpoofedSource = "spoofed-source", "A container sent from an address that is not its own. Look for a wrong address with 'swctl inspect'; one that it should have: 'swctl port set PORT --source ADDRESS'.";
    /// Hop limit used up.
    TtlExpired = "ttl-expired", "The packet's hop limit was used up here: a traceroute, which is normal, or a routing loop: 'traceroute' from the container shows it.";
    /// Longer than the next link takes, and must not be cut.
    TooBig = "too-big", "The packet is longer than the next link's MTU and must not be fragmented; its sender was told the right size. If it does not listen, lower the MTU of its interface.";
    /// The next hop does not answer.
    NoNeighbor = "no-neighbor", "The next hop does not answer ARP or neighbor discovery. Is the gateway ('ip route') or the container up?";
    /// Too much waits already.
    ParkedFull = "parked-full", "Too many packets wait for next hops that do not answer. See 'no-neighbor'; 'swctl top' shows who sends so many.";
    /// No translation is possible, and the inside address must not leave.
    Untranslatable = "untranslatable", "The packet cannot be translated, and must not leave with an inside address. Only TCP, UDP, ICMP queries and errors, and unambiguous other protocols can; others need a network with --no-masquerade.";
    /// The host has no address of the family on the way out.
    NoExternalAddress = "no-external-address", "The uplink has no address of this family to leave from: 'ip addr show' on the host; give it one, or let the container use the other family.";
    /// A limit on connections.
    ConnectionLimit = "connection-limit", "The container has as many connections as it may, or the table is full. See 'swctl conntrack count --container NAME'; 'swctl conntrack flush' ends some.";
    /// A limit on new connections.
    ConnectionRate = "connection-rate", "The container opens connections faster than it may: a scan or a flood, else it recovers by itself. 'swctl conntrack watch' shows them.";
    /// No external port.
    PortsExhausted = "ports-exhausted", "All external ports are in use towards this destination. Widen the pool (nat.pool in the configuration), or end some with 'swctl conntrack flush'.";
    /// The target of a published port is not there.
    NoTarget = "no-target", "Nobody answers at the address that a published port leads to. See 'swctl published'; is the container attached with that address?";
    /// Not for this sender.
    SourceDenied = "source-denied", "The published port is for other senders. Publish it with another --from if they should get in.";
    /// Nobody inside asked for it.
    Filtered = "filtered", "An unasked packet from outside to a port in use: the container has sent that sender nothing. Normal on the internet; publish the port if it should get in.";
    /// Belongs to no connection, and cannot begin one.
    NoConnection = "no-connection", "The packet belongs to no connection and cannot begin one: late packets of a connection that has ended, or a scan. Normal now and then; if a program hangs, it must connect anew.";
    /// Cannot be told from another connection.
    Clash = "clash", "The packet's addresses and ports are those of another container's connection. Two containers with one address? See 'swctl conntrack ls --address IP'.";
    /// Fragments that cannot be matched.
    FragmentLimit = "fragment-limit", "Fragments without their first one, more than may wait, or contradicting each other. Usually loss on the way; avoid fragments by a smaller MTU or payload.";
    /// An ICMP error about nothing that is known.
    IcmpUnrelated = "icmp-unrelated", "An ICMP error about a packet that no connection here has sent, or damaged: late ones are normal, many are forged.";
    /// Addressed to a gateway without host access, for something that it does not answer.
    NoHostAccess = "no-host-access", "The network was made with --no-host-access: the gateway answers ARP, ND, ping, DNS and DHCP only. Services of the host need a network with host access.";
    /// The gateway's services do not keep up.
    ServiceBusy = "service-busy", "Containers ask the gateway for names or addresses faster than it answers, or send it frames longer than any question: one of them floods it. 'swctl top' shows which; 'swctl port set PORT --rate-in RATE' slows it down.";
    /// A stage of the user's did not want it.
    Unwanted = "unwanted", "A stage that was added to this swd dropped the frame. Ask whoever built it.";
    /// The egress port has no link.
    PortDown = "port-down", "The destination's interface is down or gone. See 'swctl port ls'; bring the interface up in the container.";
    /// The egress queue is full.
    TxFull = "tx-full", "The destination does not take frames as fast as they come. Give the container more CPU, or the sender less.";
    /// The kernel refused the frame.
    TxFailed = "tx-failed", "The kernel refused to send the frame: usually longer than the egress interface's MTU. Compare MTUs with 'swctl port ls'.";
}

/// One counter per reason.
#[derive(Debug)]
pub struct DropCounters([AtomicU64; DropReason::ALL.len()]);

impl Default for DropCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl DropCounters {
    /// Counts one frame.
    pub fn count(&self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Counts some.
    pub fn add(&self, reason: DropReason, frames: u64) {
        self.0[reason as usize].fetch_add(frames, Ordering::Relaxed);
    }

    /// Frames dropped for this reason so far.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// Frames dropped so far, by the number of the reason.
    pub fn all(&self) -> [u64; DropReason::ALL.len()] {
        std::array::from_fn(|n| self.0[n].load(Ordering::Relaxed))
    }
}
