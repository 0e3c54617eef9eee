//! The journal of connections: where a dead process leaves them.
//!
//! # Theory of operation
//!
//! A file in the runtime folder, mapped into memory: what was stored there is there, however the process ends. (A reboot ends
//! the connections, and the file is refused after it.) It has a place for each connection that the table may hold, with the
//! number of the table's own place; memory is given to it as it fills up.
//!
//! Workers write at the end of each batch, under the lock that they hold anyway, what [`nat::Nat::next_change`] tells: no
//! system call (but for one in a thousand new places), no allocation. A record is written to a *scratch* place first and then to
//! its own: a process that is killed in between leaves one of them whole.
//!
//! At a start the file is read ([`file::read`]), each record is checked by itself ([`record`]), its names are looked up in what
//! there is now, and [`nat::Nat::restore`] takes it or refuses it. The new process writes a file of its own, which takes
//! the old one's place when all of it was read. A record says who it is of by a hash of the names of port and network:
//! their numbers differ from run to run.

pub mod file;
pub mod record;

use std::fmt;

use nat::Nat;

use crate::router::{network_of, port_of};
use crate::snapshot::Snapshot;
use file::Writer;
pub use record::Key;
use record::Party;

/// Where the connections of a [`Nat`] are written; nowhere, unless somebody says where. A copy of it is nowhere.
#[derive(Default)]
pub struct Journal(Option<Writer>);

impl Journal {
    /// Writes to `writer` from now on, beginning with all that is there.
    pub fn begin(&mut self, nat: &mut Nat, writer: Writer) {
        nat.want_changes(true);
        self.0 = Some(writer);
    }

    /// Writes down what changed. Costs a look where nothing did.
    pub fn follow(&mut self, nat: &mut Nat, snapshot: &Snapshot) {
        let Some(writer) = &mut self.0 else { return };
        while let Some((place, record)) = nat.next_change() {
            match record {
                None => writer.remove(place),
                Some(record) => {
                    writer.put(
                        place,
                        &record,
                        party_of(&record, 0, snapshot),
                        party_of(&record, 1, snapshot),
                    );
                }
            }
        }
    }

    /// The file, if there is one.
    pub fn writer(&mut self) -> Option<&mut Writer> {
        self.0.as_mut()
    }
}

impl Clone for Journal {
    fn clone(&self) -> Self {
        Self(None)
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Journal").field(&self.0.is_some()).finish()
    }
}

/// Who sends the packets of one direction, by name.
fn party_of(record: &nat::Record, direction: usize, snapshot: &Snapshot) -> Party {
    let (tuple, owner) = (&record.tuples[direction], record.owners[direction]);
    let (Some(network), Some(port)) = (network_of(tuple.network), port_of(owner)) else {
        return Party::OUTSIDE;
    };
    let names = snapshot.network(network).zip(snapshot.port(port));
    names.map_or(Party::GONE, |(network, port)| Party::of(&network.name, &port.name))
}
