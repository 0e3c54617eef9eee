//! The state file: the desired state as JSON, so that a restart or a reboot brings everything back.
//!
//! It is written to a temporary file, synced, renamed, and the folder is synced: after a power cut there is the old
//! state or the new one, never half of one. A file that cannot be read is never thrown away.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::desired::Desired;

/// Format of the file. Raise it when an older daemon could not read what this one writes.
const VERSION: u32 = 1;

/// Where the state is kept.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
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
    state: &'a Desired,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Read {
    state: Desired,
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

/// The state that a file's bytes hold.
///
/// # Errors
/// When they hold none that this daemon knows.
pub fn parse(bytes: &[u8]) -> Result<Desired, Unreadable> {
    let version = serde_json::from_slice::<Version>(bytes)?.version;
    if version > VERSION {
        return Err(Unreadable::Newer(version));
    }
    Ok(serde_json::from_slice::<Read>(bytes)?.state)
}

/// The bytes of a file that holds a state.
///
/// # Errors
/// When it cannot be written as JSON, which would be a mistake in its types.
pub fn to_bytes(state: &Desired) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(&Written { version: VERSION, state })?;
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
        Ok(Self { path })
    }

    /// What was saved last; none at first start.
    ///
    /// # Errors
    /// When there is something that cannot be read.
    pub fn load(&self) -> Result<Option<Desired>, StateError> {
        let path = || self.path.clone();
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Read { path: path(), source }),
        };
        parse(&bytes).map(Some).map_err(|e| match e {
            Unreadable::Damaged(source) => StateError::Damaged { path: path(), source },
            Unreadable::Newer(version) => StateError::Newer { path: path(), version },
        })
    }

    /// Saves; when this returns, it is on the disk.
    ///
    /// # Errors
    /// When it is not; what was saved before still is.
    pub fn save(&self, state: &Desired) -> Result<(), StateError> {
        let temporary = self.path.with_extension("json.new");
        self.write(&temporary, state).map_err(|source| {
            let _ = fs::remove_file(&temporary);
            StateError::Write { path: self.path.clone(), source }
        })
    }

    fn write(&self, temporary: &Path, state: &Desired) -> io::Result<()> {
        let bytes = to_bytes(state)?;
        let mut file = File::create(temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(temporary, &self.path)?;
        match self.path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
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
        let store = Store::open(&folder.path().join("made"), "swd").unwrap();
        assert_eq!(store.load().unwrap(), None);
        store.save(&some()).unwrap();
        assert_eq!(store.load().unwrap(), Some(some()));
        store.save(&Desired::default()).unwrap();
        assert_eq!(store.load().unwrap(), Some(Desired::default()));
        let left: Vec<_> = fs::read_dir(folder.path().join("made")).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file stays");
    }

    #[test]
    fn a_damaged_file_is_an_error_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), "swd").unwrap();
        for bad in ["", "{", "{\"version\":1}", "{\"version\":1,\"state\":{\"networks\":3}}", "null"] {
            fs::write(&store.path, bad).unwrap();
            let said = store.load().unwrap_err().to_string();
            assert!(said.contains("is damaged") && said.contains("move it away"), "{said}");
            assert_eq!(fs::read_to_string(&store.path).unwrap(), bad);
        }
        fs::write(&store.path, "{\"version\":7,\"more\":1}").unwrap();
        assert!(store.load().unwrap_err().to_string().contains("has format 7"));
    }

    #[test]
    fn a_failed_write_leaves_the_old_state() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), "swd").unwrap();
        store.save(&some()).unwrap();
        fs::create_dir(store.path.with_extension("json.new")).unwrap();
        let said = store.save(&Desired::default()).unwrap_err().to_string();
        assert!(said.ends_with("nothing was changed"), "{said}");
        assert_eq!(store.load().unwrap(), Some(some()));
    }
}
