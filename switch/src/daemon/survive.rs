//! Connections that were there before this process: read from the journal, looked up, given back to the translator.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use ctl::api;
use nat::{NetworkId, OwnerId, Record, Unrestored};

use super::control::Daemon;
use crate::journal::Key;
use crate::journal::file::{self, Origin, Writer};
use crate::journal::record::{Party, Stored};
use crate::router::{nat_network, owner};
use crate::snapshot::{self, PortId, Snapshot};
use crate::worker;

/// Where the machine says which life of its this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Who the journal's parties are now.
struct Names<'a> {
    snapshot: &'a Snapshot,
    ports: HashMap<Party, (&'a snapshot::Network, PortId)>,
}

impl<'a> Names<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        let named = |port: &snapshot::Port| {
            let network = snapshot.network(port.network)?;
            Some((Party::of(&network.name, &port.name), (network, port.id)))
        };
        Self { snapshot, ports: snapshot.ports().filter_map(named).collect() }
    }

    /// Who sends from an address now; `None` if the port, its network or the address is there no more.
    fn find(&self, party: Party, address: IpAddr) -> Option<(NetworkId, OwnerId)> {
        if party == Party::OUTSIDE {
            return Some((NetworkId::OUTSIDE, OwnerId::OUTSIDE));
        }
        let (network, port) = self.ports.get(&party)?;
        let leased = self.snapshot.leases.get(&(network.id, address)).is_none_or(|to| to == port);
        let there = network.contains(address) && leased;
        there.then(|| (nat_network(network.id), owner(*port)))
    }

    /// A record in the numbers of now.
    fn translate(&self, stored: &Stored) -> Option<Record> {
        let mut record = stored.record;
        for ((tuple, owner), party) in record.tuples.iter_mut().zip(&mut record.owners).zip(stored.parties) {
            (tuple.network, *owner) = self.find(party, tuple.source.address.to_ip())?;
        }
        Some(record)
    }
}

impl Daemon {
    /// The journal's file.
    fn journal_path(&self) -> PathBuf {
        self.runtime_dir.join(format!("{}.connections", self.name))
    }

    /// Takes the connections of the process before this one over, and writes down all there are from now on. What is wanted
    /// must be set up, and no frame received yet.
    ///
    /// Nothing here stops a start: what cannot be taken over is counted.
    pub(super) fn restore_connections(&mut self) {
        let path = self.journal_path();
        let boot = match boot_id() {
            Ok(boot) => boot,
            Err(e) => {
                tracing::error!("connections will not survive this process: cannot read {BOOT_ID}: {e}");
                return;
            }
        };
        let origin = Origin { instance: Key::of(&self.name), boot };
        self.restored = self.restore_from(&path, origin);
        let seed = std::hash::RandomState::new().hash_one(0);
        let capacity = self.nat.max_connections;
        let begun = Writer::create(&path, origin, capacity, seed).and_then(|writer| {
            let snapshot = self.dataplane.snapshot();
            let mut state = self.dataplane.forwarding();
            let state = &mut *state;
            state.journal.begin(&mut state.nat, writer);
            state.write_down(&snapshot);
            state.journal.writer().map_or(Ok(()), |writer| writer.publish())
        });
        if let Err(e) = begun {
            tracing::error!("connections will not survive this process: cannot use {}: {e}", path.display());
        }
        self.dataplane.wake();
        let api::Restored { connections, refused } = &self.restored;
        let reasons: Vec<String> = refused.iter().map(|(why, count)| format!("{count} {why}")).collect();
        match (connections, reasons.is_empty()) {
            (0, true) => {}
            (_, true) => tracing::info!("{connections} connections go on"),
            _ => tracing::warn!("{connections} connections go on; others do not: {}", reasons.join(", ")),
        }
    }

    fn restore_from(&self, path: &Path, origin: Origin) -> api::Restored {
        let mut refused: BTreeMap<String, u64> = BTreeMap::new();
        let mut refuse = |why: &str, count: u64| {
            if count > 0 {
                *refused.entry(why.to_owned()).or_default() += count;
            }
        };
        let found = match fs::read(path) {
            Ok(bytes) => file::read(&bytes, origin),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(file::Found::default()),
            Err(e) => {
                tracing::error!("the connections of before are lost: cannot read {}: {e}", path.display());
                Ok(file::Found::default())
            }
        };
        let found = found.unwrap_or_else(|(why, seeming)| {
            refuse(why.name(), seeming.max(1));
            file::Found::default()
        });
        refuse("torn", found.torn);
        refuse("malformed", found.malformed);
        refuse("truncated", found.truncated);
        let snapshot = self.dataplane.snapshot();
        let names = Names::new(&snapshot);
        let now = worker::now();
        let mut connections = 0;
        let mut state = self.dataplane.forwarding();
        for stored in &found.stored {
            let Some(record) = names.translate(stored) else {
                refuse("gone", 1);
                continue;
            };
            let external = |address: nat::Address| snapshot.host_addresses.contains(&address.to_ip());
            match state.nat.restore(now, &record, external) {
                Ok(_) => connections += 1,
                // It would have ended by now in any case.
                Err(Unrestored::Expired) => {}
                Err(why) => refuse(why.name(), 1),
            }
        }
        api::Restored { connections, refused }
    }

    /// Writes down what no worker has come to.
    pub(super) fn write_connections_down(&self) {
        let snapshot = self.dataplane.snapshot();
        self.dataplane.forwarding().write_down(&snapshot);
    }

    /// Connections that would not survive, for want of room for the journal.
    pub(super) fn unjournalled(&self) -> u64 {
        self.dataplane.forwarding().journal.writer().map_or(0, |writer| writer.lost())
    }
}

/// The machine's present life.
fn boot_id() -> io::Result<[u8; 16]> {
    let text = fs::read_to_string(BOOT_ID)?;
    let digits = text.trim().replace('-', "");
    let number = u128::from_str_radix(&digits, 16).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_says_which_life_it_is() {
        let boot = boot_id().unwrap();
        assert!(boot != [0; 16] && boot == boot_id().unwrap());
    }
}
