//! Connections as values: what is to be known of one to bring it back after the process that tracked it.
//!
//! A record has no sequence numbers: those move on with every packet, also while nobody looks. A connection that comes back
//! is met in the middle. Mappings have no records of their own: each connection names the external endpoint that it is leased,
//! and how it shares it, and the first of a mapping's connections brings the mapping back.

use std::fmt;

use crate::conntrack::{Counters, State};
use crate::time::Time;
use crate::tuple::{OwnerId, Tuple};

/// Who else may use the external endpoint of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// It has none that is leased.
    Unleased,
    /// Nobody, but for who sends to it from outside (address-and-port-dependent mapping).
    Dependent,
    /// All connections of its inside endpoint.
    Independent,
    /// Everyone, towards other destinations (RFC 7857 section 3).
    Overloaded,
}

/// A connection, written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What packets look like as they arrive, in the original direction and in reply.
    pub tuples: [Tuple; 2],
    /// Who sends them.
    pub owners: [OwnerId; 2],
    /// How far it has come.
    pub state: State,
    /// TCP: flags and window shift of each end.
    pub ends: [[u8; 2]; 2],
    /// A publish rule let it in, or gave it its external port.
    pub ruled: bool,
    /// How it has its external endpoint.
    pub shared: Shared,
    /// When it was opened, to the second.
    pub created: Time,
    /// When it ends if no packet comes.
    pub deadline: Time,
    /// What went each way.
    pub counters: [Counters; 2],
}

/// Why a connection was not brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unrestored {
    /// Another one has its addresses and ports, or its external port.
    Clash,
    /// Its time was over.
    Expired,
    /// The host has its external address no more.
    External,
    /// The table is full.
    Full,
    /// It cannot have been.
    Malformed,
    /// What let it in is published no more, or leads elsewhere.
    Rule,
}

impl Unrestored {
    /// All of them, in order.
    pub const ALL: &[Self] =
        &[Self::Clash, Self::Expired, Self::External, Self::Full, Self::Malformed, Self::Rule];

    /// A name for counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clash => "clash",
            Self::Expired => "expired",
            Self::External => "external-address",
            Self::Full => "full",
            Self::Malformed => "malformed",
            Self::Rule => "unpublished",
        }
    }
}

impl fmt::Display for Unrestored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
