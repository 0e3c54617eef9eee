//! The state on the disk: so that a restart or a reboot brings everything back.
//!
//! The *state file* is the desired state as JSON. It is written to a temporary file, synced, renamed, and the folder is
//! synced: after a power cut there is the old state or the new one, never half of one. A file that cannot be read is never
//! thrown away.
//!
//! Publishes and leases come by the thousand, and the file grows with them. So one of them (or its end) is a line in the *journal*: a
//! checksum and the change as JSON, synced before the call returns, the same work whatever there is already. The
//! journal's first line names the state file that it goes on from, by a number that grows with each file written; a
//! journal of an earlier one is stale and is begun anew. A last line that is not whole was never acknowledged and is
//! dropped; anything else that is wrong is damage. [`Store::tidy`] writes the state file anew when the journal has become
//! longer than it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::desired::{Desired, Lease};
use super::publishes::Publish;

/// Format of the file. Raise it when an older daemon could not read what this one writes.
const VERSION: u32 = 2;
/// A journal shorter than this stays as it is.
const SHORT: u64 = 64 << 10;
/// A journal longer than this is not added to: the state file is written anew at once.
const LONG: u64 = 16 << 20;

/// Where the state is kept.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// The number of the state file.
    serial: u64,
    /// Its length.
    length: u64,
    /// The journal has what the file has not, and is of an earlier run.
    behind: bool,
    journal: Option<Journal>,
}

/// The journal of the present state file.
#[derive(Debug)]
struct Journal {
    file: File,
    /// Up to where it is whole.
    length: u64,
}

/// A change that is kept in the journal.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Ports were published.
    Publish(Publish),
    /// They were taken back.
    Unpublish(Publish),
    /// A port's lease became this; none: it has none any more.
    Lease {
        /// The port.
        port: String,
        /// Its lease.
        lease: Option<Lease>,
    },
}

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading failed.
    #[error("cannot read the state file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not what was noted.
    #[error(
        "the journal {path} is damaged in line {line}; restore it from a backup, or move it away to start without its changes"
    )]
    Journal {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// Not what was written.
    #[error(
        "the state file {path} is damaged ({source}); restore it from a backup, or move it away to start with no networks and ports"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Written by a newer daemon.
    #[error(
        "the state file {path} has format {version}, and this swd knows {VERSION} only; start the newer swd that wrote it, or move the file away"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u32,
    },
    /// Writing failed.
    #[error("cannot write the state file {path}: {source}; nothing was changed")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    serial: u64,
    state: &'a Desired,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    serial: u64,
    state: Desired,
}

/// The first line of a journal.
#[derive(Deserialize, Serialize)]
struct Head {
    serial: u64,
}

impl Change {
    /// Makes it so in `state`.
    fn carry_out(self, state: &mut Desired) {
        match self {
            Self::Publish(publish) => state.publishes.insert(Arc::new(publish)),
            Self::Unpublish(publish) => drop(state.publishes.remove(&publish.key())),
            Self::Lease { port, lease } => state.set_lease(&port, lease),
        }
    }
}

/// Why bytes are no state.
#[derive(Debug)]
pub enum Unreadable {
    /// Not what was written.
    Damaged(serde_json::Error),
    /// Written by a newer daemon, in this format.
    Newer(u32),
}

impl From<serde_json::Error> for Unreadable {
    fn from(e: serde_json::Error) -> Self {
        Self::Damaged(e)
    }
}

/// The state that a state file's bytes hold, and its serial number.
///
/// # Errors
/// When they hold none that this daemon knows.
pub fn parse(bytes: &[u8]) -> Result<(u64, Desired), Unreadable> {
    let version = serde_json::from_slice::<Version>(bytes)?.version;
    if version > VERSION {
        return Err(Unreadable::Newer(version));
    }
    let Read { serial, mut state } = serde_json::from_slice(bytes)?;
    if let Some(missing) = missing(&state) {
        return Err(Unreadable::Damaged(serde::de::Error::custom(missing)));
    }
    state.take_over_allowed();
    state.take_over_internal();
    Ok((serial, state))
}

/// What something in the state needs and is not there. swd writes no such state: what stands on something goes with it.
fn missing(state: &Desired) -> Option<String> {
    let port = state.ports.iter().find(|(_, port)| !state.networks.contains_key(&port.network));
    let fixed = state.statics.values().find(|fixed| !state.ports.contains_key(&fixed.port));
    let of_port = port.map(|(name, port)| {
        format!(
            "port {} is of network {}, which is missing",
            name.escape_debug(),
            port.network.escape_debug()
        )
    });
    let of_static = || {
        let fixed = fixed?;
        Some(format!(
            "the entry for {} is of port {}, which is missing",
            fixed.mac,
            fixed.port.escape_debug()
        ))
    };
    of_port.or_else(of_static)
}

/// The bytes of a state file.
///
/// # Errors
/// When it cannot be written as JSON, which would be a mistake in its types.
pub fn to_bytes(serial: u64, state: &Desired) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(&Written { version: VERSION, serial, state })?;
    bytes.push(b'\n');
    Ok(bytes)
}

impl Store {
    /// The state of instance `name` in `folder`, which is made when missing.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(folder: &Path, name: &str) -> Result<Self, StateError> {
        let path = folder.join(format!("{name}.json"));
        fs::create_dir_all(folder).map_err(|source| StateError::Write { path: folder.to_owned(), source })?;
        Ok(Self { path, serial: 0, length: 0, behind: false, journal: None })
    }

    /// What was saved last; none at first start.
    ///
    /// # Errors
    /// When there is something that cannot be read.
    pub fn load(&mut self) -> Result<Option<Desired>, StateError> {
        let Some(bytes) = read(&self.path)? else { return Ok(None) };
        let (serial, mut state) = parse(&bytes).map_err(|e| match e {
            Unreadable::Damaged(source) => StateError::Damaged { path: self.path.clone(), source },
            Unreadable::Newer(version) => StateError::Newer { path: self.path.clone(), version },
        })?;
        let path = self.journal_path();
        if let Some(bytes) = read(&path)? {
            let changes = replay(&bytes, serial).map_err(|line| StateError::Journal { path, line })?;
            self.behind = !changes.is_empty();
            changes.into_iter().for_each(|change| change.carry_out(&mut state));
        }
        self.serial = serial;
        Ok(Some(state))
    }

    /// Saves; when this returns, it is on the disk.
    ///
    /// # Errors
    /// When it is not; what was saved before still is.
    pub fn save(&mut self, state: &Desired) -> Result<(), StateError> {
        let temporary = self.path.with_extension("json.new");
        let serial = self.serial + 1;
        match self.write(&temporary, serial, state) {
            Ok(length) => {
                (self.serial, self.length, self.behind, self.journal) = (serial, length, false, None);
                Ok(())
            }
            Err(source) => {
                let _ = fs::remove_file(&temporary);
                Err(StateError::Write { path: self.path.clone(), source })
            }
        }
    }

    /// Notes a change that was made to `state` in the journal; when this returns, it is on the disk.
    ///
    /// # Errors
    /// When it is not; what was noted before still is.
    pub fn note(&mut self, change: &Change, state: &Desired) -> Result<(), StateError> {
        if self.serial == 0 || self.behind || self.journal.as_ref().is_some_and(|j| j.length > LONG) {
            return self.save(state);
        }
        let noted = self.journal().and_then(|journal| journal.append(&line(change)?));
        noted.map_err(|source| StateError::Write { path: self.journal_path(), source })
    }

    /// Writes the state file anew where the journal has become longer than it. For a moment in which nobody waits.
    ///
    /// # Errors
    /// As [`Store::save`]; the journal is good still.
    pub fn tidy(&mut self, state: &Desired) -> Result<(), StateError> {
        match &self.journal {
            Some(journal) if journal.length > self.length.max(SHORT) => self.save(state),
            _ => Ok(()),
        }
    }

    fn journal_path(&self) -> PathBuf {
        self.path.with_extension("journal")
    }

    /// The journal of the present state file, begun if need be.
    fn journal(&mut self) -> io::Result<&mut Journal> {
        if self.journal.is_none() {
            let file = File::options().create(true).write(true).truncate(true).open(self.journal_path())?;
            let mut journal = Journal { file, length: 0 };
            journal.append(&line(&Head { serial: self.serial })?)?;
            sync_folder(&self.path)?;
            self.journal = Some(journal);
        }
        self.journal.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn write(&self, temporary: &Path, serial: u64, state: &Desired) -> io::Result<u64> {
        let bytes = to_bytes(serial, state)?;
        let mut file = File::create(temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(temporary, &self.path)?;
        sync_folder(&self.path)?;
        Ok(bytes.len() as u64)
    }
}

impl Journal {
    /// Adds a line at the end of what is whole.
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let done = self.file.write_all_at(line, self.length).and_then(|()| self.file.sync_data());
        match done {
            Ok(()) => self.length += line.len() as u64,
            // Else half a line could be followed by a whole one.
            Err(_) => self.file.set_len(self.length)?,
        }
        done
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::Read { path: path.to_owned(), source }),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// A line of a journal: `checksum JSON`.
fn line(of: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(of)?;
    let mut line = format!("{:016x} ", checksum(&json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    Ok(line)
}

/// The changes of a journal that goes on from the state file `serial`; none if it goes on from another. `Err` is the
/// line that is damaged.
fn replay(bytes: &[u8], serial: u64) -> Result<Vec<Change>, usize> {
    let mut lines = bytes.split_inclusive(|b| *b == b'\n').peekable();
    match lines.next().map(parse_line::<Head>) {
        Some(Some(head)) if head.serial == serial => {}
        // Not whole: it ended before its first change.
        Some(None) if lines.peek().is_some() => return Err(1),
        _ => return Ok(Vec::new()),
    }
    let mut changes = Vec::new();
    while let Some(line) = lines.next() {
        match parse_line(line) {
            Some(change) => changes.push(change),
            None if lines.peek().is_none() => break,
            None => return Err(changes.len() + 2),
        }
    }
    Ok(changes)
}

fn parse_line<T: for<'de> Deserialize<'de>>(line: &[u8]) -> Option<T> {
    let (sum, json) = line.strip_suffix(b"\n")?.split_at_checked(17)?;
    let sum = u64::from_str_radix(std::str::from_utf8(sum).ok()?.trim_end(), 16).ok()?;
    if sum == checksum(json) { serde_json::from_slice(json).ok() } else { None }
}

/// FNV-1a: the same in every version of swd.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctl::config::Network;

    fn some() -> Desired {
        let mut d = Desired::default();
        d.add_network("swd", &Network::default().spec("default"), |_| false).unwrap();
        d
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("made"), "swd").unwrap();
        assert_eq!(store.load().unwrap(), None);
        store.save(&some()).unwrap();
        assert_eq!(store.load().unwrap(), Some(some()));
        store.save(&Desired::default()).unwrap();
        assert_eq!(store.load().unwrap(), Some(Desired::default()));
        let left: Vec<_> = fs::read_dir(folder.path().join("made")).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file stays");
    }

    /// Found by the fuzzer: the plan from such a state to itself was not empty.
    #[test]
    fn what_stands_on_something_missing_is_damage() {
        let mut state = some();
        let spec: ctl::api::PortSpec = serde_json::from_str(r#"{"ifname":"v1"}"#).unwrap();
        state.add_port(&spec, jiff::Timestamp::UNIX_EPOCH).unwrap();
        state.add_static("02:00:00:00:00:01", "v1").unwrap();
        let said = |state: &Desired| match parse(&to_bytes(1, state).unwrap()) {
            Err(Unreadable::Damaged(e)) => e.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(parse(&to_bytes(1, &state).unwrap()).is_ok());
        let mut without = state.clone();
        without.networks.clear();
        assert_eq!(said(&without), "port v1 is of network default, which is missing");
        state.ports.clear();
        assert_eq!(said(&state), "the entry for 02:00:00:00:00:01 is of port v1, which is missing");
    }

    #[test]
    fn a_damaged_file_is_an_error_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), "swd").unwrap();
        for bad in ["", "{", "{\"version\":1}", "{\"version\":1,\"state\":{\"networks\":3}}", "null"] {
            fs::write(&store.path, bad).unwrap();
            let said = store.load().unwrap_err().to_string();
            assert!(said.contains("is damaged") && said.contains("move it away"), "{said}");
            assert_eq!(fs::read_to_string(&store.path).unwrap(), bad);
        }
        fs::write(&store.path, "{\"version\":7,\"more\":1}").unwrap();
        assert!(store.load().unwrap_err().to_string().contains("has format 7"));
    }

    fn change(port: u16) -> Change {
        let text = format!(
            r#"{{"host":null,"first":{port},"last":{port},"transport":"tcp","target":"172.18.0.10:80",
                "network":"default","from":[],"since":"2026-11-21T20:00:00Z"}}"#
        );
        Change::Publish(serde_json::from_str(&text).unwrap())
    }

    fn note(store: &mut Store, state: &mut Desired, change: &Change) {
        change.clone().carry_out(state);
        store.note(change, state).unwrap();
    }

    #[test]
    fn what_is_noted_is_loaded_and_a_later_file_makes_it_stale() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, mut state) = (Store::open(folder.path(), "swd").unwrap(), some());
        let load = || Store::open(folder.path(), "swd").unwrap().load().unwrap().unwrap();
        store.save(&state).unwrap();
        for port in 1..=3 {
            note(&mut store, &mut state, &change(port));
            assert_eq!(load(), state);
        }
        let Change::Publish(first) = change(1) else { panic!() };
        note(&mut store, &mut state, &Change::Unpublish(first));
        assert_eq!((load(), state.publishes.len()), (state.clone(), 2));
        // The journal is there still, and not looked at.
        store.save(&some()).unwrap();
        assert_eq!(load(), some());
        let mut state = some();
        note(&mut store, &mut state, &change(9));
        assert_eq!((load(), state.publishes.len()), (state, 1));
    }

    #[test]
    fn half_a_last_line_is_dropped_and_any_other_damage_told() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, mut state) = (Store::open(folder.path(), "swd").unwrap(), some());
        store.save(&state).unwrap();
        let mut before = Vec::new();
        for port in 1..=3 {
            before.push(state.clone());
            note(&mut store, &mut state, &change(port));
        }
        let path = store.journal_path();
        let whole = fs::read(&path).unwrap();
        let ends: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
        assert_eq!(ends.len(), 4, "a head and three changes");
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let kept = ends.iter().skip(1).filter(|end| **end < cut).count();
            assert_eq!(store.load().unwrap().as_ref(), before.get(kept), "cut at {cut}");
        }
        for at in 0..ends[2] {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let said = store.load().unwrap_err().to_string();
            assert!(said.contains("is damaged in line"), "{said}");
            assert_eq!(fs::read(&path).unwrap(), bad, "it stays");
        }
    }

    #[test]
    fn a_long_journal_becomes_a_state_file() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, mut state) = (Store::open(folder.path(), "swd").unwrap(), some());
        store.save(&state).unwrap();
        note(&mut store, &mut state, &change(1));
        store.tidy(&state).unwrap();
        assert!(store.journal.is_some(), "it is short");
        for port in 2..=400 {
            note(&mut store, &mut state, &change(port));
        }
        store.tidy(&state).unwrap();
        assert!(store.journal.is_none());
        assert_eq!(store.load().unwrap(), Some(state));
    }

    #[test]
    fn a_failed_write_leaves_the_old_state() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), "swd").unwrap();
        store.save(&some()).unwrap();
        fs::create_dir(store.path.with_extension("json.new")).unwrap();
        let said = store.save(&Desired::default()).unwrap_err().to_string();
        assert!(said.ends_with("nothing was changed"), "{said}");
        assert_eq!(store.load().unwrap(), Some(some()));
    }
}
