//! What is decided about a packet, and why.

use std::fmt;

use crate::conntrack::{ConnectionId, RuleId};
use crate::tuple::{Address, Direction, Endpoint, NetworkId, OwnerId, Tuple};

/// Where a packet comes from or goes to: a network, and whom in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    /// The network.
    pub network: NetworkId,
    /// The container.
    pub owner: OwnerId,
}

impl Party {
    /// Someone beyond the uplink.
    pub const OUTSIDE: Self = Self { network: NetworkId::OUTSIDE, owner: OwnerId::OUTSIDE };
}

/// What to do with a packet.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Drop it without an answer.
    Drop(DropReason),
    /// It belongs to a connection and was translated in place: send it on.
    Forward(Forward),
    /// A fragment that came before the first of its datagram was copied. The copy comes back by
    /// [`crate::Nat::next_released`] after the first fragment was translated. The packet itself is done with, unless it was
    /// for one of the host's addresses ([`crate::Nat::inbound`], [`crate::Nat::hairpin`]): then it may be the host's.
    Held,
    /// It would open a connection. The packet is untouched: decide, then [`crate::Nat::commit`] or drop it.
    New(Pending),
    /// It concerns nothing here: it is the host's.
    NotOurs,
    /// Drop it, untouched, and tell the sender that this is prohibited: ICMP type 3 code 13, ICMPv6 type 1 code 1.
    Refuse(Refusal),
}

/// A translated packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The connection it belongs to.
    pub connection: ConnectionId,
    /// Its direction in the connection.
    pub direction: Direction,
    /// Whom it goes to now.
    pub to: Party,
    /// The caller's generation under which the connection was last admitted; see [`crate::Nat::readmit`].
    pub generation: u32,
}

/// A connection that would be opened by a packet: a decision, of which the state knows nothing yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Pending {
    pub(crate) tuple: Tuple,
    pub(crate) from: Party,
    pub(crate) to: Party,
    pub(crate) plan: Plan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Both ends are translated: the destination to `target`, the source to an endpoint of `external`.
    Hairpin { target: Endpoint, external: Address, rule: Option<RuleId> },
    /// From outside to the endpoint that an existing mapping stands for.
    Mapped { target: Endpoint },
    /// The source is translated to an endpoint of this address.
    Masquerade { external: Address },
    /// From outside to a published endpoint.
    Published { target: Endpoint, rule: RuleId },
    /// Nothing is translated.
    Routed,
}

impl Pending {
    /// Whom the packet comes from.
    pub const fn from(&self) -> Party {
        self.from
    }

    /// Whom it is for.
    pub const fn to(&self) -> Party {
        self.to
    }

    /// What the packet looks like as it arrived.
    pub const fn tuple(&self) -> &Tuple {
        &self.tuple
    }

    /// Where it is going, after translation.
    pub const fn destination(&self) -> Endpoint {
        match self.plan {
            Plan::Hairpin { target, .. } | Plan::Mapped { target } | Plan::Published { target, .. } => target,
            Plan::Masquerade { .. } | Plan::Routed => self.tuple.destination,
        }
    }

    /// The publish rule that lets it in.
    pub const fn rule(&self) -> Option<RuleId> {
        match self.plan {
            Plan::Hairpin { rule, .. } => rule,
            Plan::Published { rule, .. } => Some(rule),
            Plan::Mapped { .. } | Plan::Masquerade { .. } | Plan::Routed => None,
        }
    }
}

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $sentence:literal])+ $variant:ident = $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[doc = $sentence])+ $variant,)+
        }

        impl $name {
            /// All of them, in order.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// A name for counters.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// A sentence for people.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => concat!($($sentence),+).trim_ascii(),)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

reasons! {
    /// Why a packet was dropped.
    DropReason {
        /// The packet's addresses and ports belong to another connection already; it cannot be told from it.
        Clash = "clash",
        /// The network's filtering keeps this sender out: the container has sent it nothing.
        Filtered = "filtered",
        /// Fragments that wait for the first of their datagram fill their share of memory.
        FragmentLimit = "fragment_limit",
        /// A second first fragment says that the datagram belongs to another flow, which can only mislead.
        FragmentMismatch = "fragment_mismatch",
        /// The ICMP checksum is wrong.
        IcmpChecksum = "icmp_checksum",
        /// The ICMP error quotes too little, or a damaged header, to say which connection it is about.
        IcmpQuote = "icmp_quote",
        /// The ICMP error is about a packet that no connection here has sent.
        IcmpUnrelated = "icmp_unrelated",
        /// The packet cannot begin a connection (a TCP segment without SYN or data, an answer without a question), and belongs to none.
        NoConnection = "no_connection",
        /// The publish rule is for other senders (--from).
        SourceDenied = "source_denied",
        /// ICMP messages other than queries and errors do not pass a NAT.
        Unsupported = "unsupported",
    }
}

reasons! {
    /// Why a connection was refused.
    Refusal {
        /// The host has no address of this family on the way out.
        NoExternalAddress = "no_external_address",
        /// Nothing is attached at the address that the publish rule leads to.
        NoTarget = "no_target",
        /// The container has as many connections as it may (--max-connections).
        OwnerLimit = "owner_limit",
        /// All external ports are in use towards this destination; widen the port pool or wait.
        PortsExhausted = "ports_exhausted",
        /// The container opens connections faster than it may.
        RateLimit = "rate_limit",
        /// The decision was about another packet, or what it relied on has changed; the sender will try again.
        Stale = "stale",
        /// The connection table is full.
        TableFull = "table_full",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_a_name_and_a_sentence() {
        let all = DropReason::ALL.iter().map(|reason| (reason.name(), reason.sentence()));
        let all: Vec<_> =
            all.chain(Refusal::ALL.iter().map(|reason| (reason.name(), reason.sentence()))).collect();
        let names: HashSet<_> = all.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|(_, sentence)| sentence.ends_with('.') && !sentence.starts_with(' ')));
        assert_eq!(Refusal::TableFull.sentence(), "The connection table is full.");
    }
}
