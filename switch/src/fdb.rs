//! The forwarding database: which MAC lives behind which port of which network.

use std::time::Duration;

use nat::Time;

use crate::mac::Mac;
use crate::snapshot::{NetworkId, PortId};

/// Limits of the table.
#[derive(Clone, Copy, Debug)]
pub struct FdbConfig {
    /// A dynamic entry is forgotten when its MAC was not seen as a source for this long. 300 s by default.
    pub aging: Duration,
    /// Dynamic entries in total. 131,072 by default.
    pub max_entries: usize,
    /// Dynamic entries per port. 16,384 by default.
    pub max_per_port: usize,
}

impl Default for FdbConfig {
    fn default() -> Self {
        Self { aging: Duration::from_secs(300), max_entries: 131_072, max_per_port: 16_384 }
    }
}

/// How an entry came into the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Learned; ages and moves.
    Dynamic,
    /// Set by the user: never ages, never moves.
    Static,
    /// The switch's own: a gateway.
    Local,
}

/// An entry, as told to the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its network.
    pub network: NetworkId,
    /// Its address.
    pub mac: Mac,
    /// The port behind which it lives.
    pub port: PortId,
    /// How it came into the table.
    pub kind: Kind,
    /// Time since it was last a source.
    pub age: Duration,
}

/// The table.
#[derive(Debug)]
pub struct Fdb {}

impl Fdb {
    /// Sets an entry that neither ages nor moves, in place of what was there.
    pub fn set(&self, network: NetworkId, mac: Mac, port: PortId, kind: Kind) {
        todo!()
    }

    /// Removes an entry of any kind; tells whether there was one.
    pub fn remove(&self, network: NetworkId, mac: Mac) -> bool {
        todo!()
    }

    /// What is known of a MAC.
    pub fn get(&self, network: NetworkId, mac: Mac, now: Time) -> Option<Entry> {
        todo!()
    }

    /// Forgets the dynamic entries that `select` wants forgotten; tells how many.
    pub fn flush(&self, select: impl Fn(NetworkId, PortId) -> bool) -> usize {
        todo!()
    }

    /// Forgets every entry of a port, of any kind: the port is gone.
    pub fn remove_port(&self, port: PortId) {
        todo!()
    }

    /// Forgets entries that have aged out; called by the control plane every few seconds.
    pub fn sweep(&self, now: Time) {
        todo!()
    }

    /// All live entries.
    pub fn entries(&self, now: Time) -> Vec<Entry> {
        todo!()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        todo!()
    }
}
