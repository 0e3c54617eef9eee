//! The file: a header, a scratch place, a place for each connection, and one for each connection's wide part.

use std::io;
use std::path::{Path, PathBuf};

use super::record::{Party, SIZE, Stored, Unreadable, WIDE, checksum, decode, encode};
use crate::sys::mapped::MappedFile;

/// Begins every such file.
const MAGIC: u64 = u64::from_le_bytes(*b"swdconn\n");
/// The format. Raise it when a record's bytes mean something else.
pub const VERSION: u32 = 4;
/// Bytes of the header that its checksum is of; the checksum follows.
const HEADER: usize = 56;
/// How many places were ever used: a word that grows.
const USED: usize = 64;
/// Where a record is written before it is written to its place.
const SCRATCH: usize = 256;
/// Where places begin. Wide parts begin behind the last.
pub const PLACES: usize = 4096;
/// Places that the file grows by.
const GROWTH: usize = 1024;
/// No table is larger: a file that says so is damaged.
const MOST: u32 = 1 << 24;

/// Whose file it is, and of which life of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The instance's name.
    pub instance: super::Key,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: [u8; 16],
}

/// The file of a running process.
#[derive(Debug)]
pub struct Writer {
    file: MappedFile,
    path: PathBuf,
    seed: u64,
    capacity: u32,
    used: u32,
    /// Records that found no room.
    lost: u64,
}

impl Writer {
    /// A file for `capacity` connections that is to be at `path`: beside it, until [`Writer::publish`]. `seed` is a random number.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path, origin: Origin, capacity: u32, seed: u64) -> io::Result<Self> {
        let capacity = capacity.min(MOST);
        let areas = [at(capacity), capacity as usize * WIDE];
        let mut file = MappedFile::create(&beside(path), &areas)?;
        file.grow(NARROW, PLACES)?;
        let mut header = [0; HEADER + 8];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(8, &VERSION.to_le_bytes());
        put(12, &u32::try_from(SIZE).unwrap_or(0).to_le_bytes());
        put(16, &capacity.to_le_bytes());
        put(24, &origin.boot);
        put(40, &seed.to_le_bytes());
        put(48, &origin.instance.0.to_le_bytes());
        let sum = checksum(0, &header[..HEADER]);
        header[HEADER..].copy_from_slice(&sum.to_le_bytes());
        file.write(0, &header);
        Ok(Self { file, path: path.to_owned(), seed, capacity, used: 0, lost: 0 })
    }

    /// Takes the place of the file of an earlier process.
    ///
    /// # Errors
    /// As rename(2).
    pub fn publish(&self) -> io::Result<()> {
        std::fs::rename(beside(&self.path), &self.path)
    }

    /// Writes a connection at its place.
    pub fn put(&mut self, place: u32, record: &nat::Record, from: Party, to: Party) {
        let bytes = encode(&Stored { place, record: *record, parties: [from, to] }, self.seed);
        if place >= self.capacity || self.make_room(place, bytes.wide.is_some()).is_err() {
            self.lost += 1;
            return;
        }
        if let Some(wide) = &bytes.wide {
            self.file.write(SCRATCH + SIZE, wide);
        }
        self.file.write(SCRATCH, &bytes.narrow);
        if let Some(wide) = &bytes.wide {
            self.file.write(wide_at(self.capacity, place), wide);
        }
        self.file.write(at(place), &bytes.narrow);
        // What is in the scratch place must not bring back a connection that ends.
        self.file.store(SCRATCH, 0);
    }

    fn make_room(&mut self, place: u32, is_wide: bool) -> io::Result<()> {
        let places = (place as usize + 1).next_multiple_of(GROWTH).min(self.capacity as usize);
        if !self.file.has(at(place), SIZE) {
            self.file.grow(NARROW, PLACES + places * SIZE)?;
            self.used = self.used.max(u32::try_from(places).unwrap_or(self.capacity));
            self.file.store(USED, u64::from(self.used).to_le());
        }
        if is_wide && !self.file.has(wide_at(self.capacity, place), WIDE) {
            self.file.grow(WIDE_PARTS, places * WIDE)?;
        }
        Ok(())
    }

    /// Nothing is at a place any more.
    pub fn remove(&mut self, place: u32) {
        self.file.store(at(place), 0);
    }

    /// Records that found no room, because the file system is full: connections that will not survive.
    pub const fn lost(&self) -> u64 {
        self.lost
    }
}

/// The file's areas.
const NARROW: usize = 0;
const WIDE_PARTS: usize = 1;

const fn at(place: u32) -> usize {
    PLACES + place as usize * SIZE
}

const fn wide_at(capacity: u32, place: u32) -> usize {
    at(capacity) + place as usize * WIDE
}

/// Where a file is written until it is whole.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Connections.
    pub stored: Vec<Stored>,
    /// Records not written to their end, or changed since.
    pub torn: u64,
    /// Records that say what none says.
    pub malformed: u64,
    /// Places that the file should have and has not.
    pub truncated: u64,
}

/// Why nothing of a file is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is another instance's, of before the machine was started, or no such file at all.
    Foreign,
    /// It is of another version of swd.
    Version,
    /// Its header is damaged.
    Damaged,
}

impl Refused {
    /// A name for counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Version => "version",
            Self::Damaged => "damaged",
        }
    }
}

/// Reads a file's bytes.
///
/// # Errors
/// Where it is refused as a whole: why, and how many connections it seems to have.
pub fn read(bytes: &[u8], origin: Origin) -> Result<Found, (Refused, u64)> {
    let word =
        |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let half =
        |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    let places = bytes.get(PLACES..).unwrap_or_default();
    let seeming = |size: usize| {
        let size = if size.is_multiple_of(8) && size >= 64 { size } else { SIZE };
        let used = usize::try_from(word(USED)).unwrap_or(usize::MAX);
        let is_used = |place: &&[u8]| place.iter().take(8).any(|byte| *byte != 0);
        places.chunks(size).take(used).filter(is_used).count() as u64
    };
    let size = half(12) as usize;
    if word(0) != MAGIC {
        return Err((Refused::Foreign, seeming(SIZE)));
    }
    if half(8) != VERSION {
        return Err((Refused::Version, seeming(size)));
    }
    let header = bytes.get(..HEADER).unwrap_or_default();
    if word(HEADER) != checksum(0, header) || size != SIZE || half(16) > MOST {
        return Err((Refused::Damaged, seeming(SIZE)));
    }
    if header.get(24..40) != Some(&origin.boot[..]) || word(48) != origin.instance.0 {
        return Err((Refused::Foreign, seeming(SIZE)));
    }
    let (seed, capacity) = (word(40), half(16));
    let wide = |at: usize| bytes.get(at..at + WIDE).and_then(|b| b.try_into().ok());
    let scratch = bytes.get(SCRATCH..SCRATCH + SIZE).and_then(|b| b.try_into().ok());
    let scratch = scratch.and_then(|bytes| decode(bytes, wide(SCRATCH + SIZE), seed).ok().flatten());
    let mut found = Found::default();
    let whole = (places.len() / SIZE).min(capacity as usize);
    let used = usize::try_from(word(USED)).unwrap_or(usize::MAX).min(capacity as usize);
    found.truncated = used.saturating_sub(whole) as u64;
    for (place, bytes) in (0..).zip(places.chunks_exact(SIZE).take(whole)) {
        let Ok(bytes) = bytes.try_into() else { continue };
        let read = match decode(bytes, wide(wide_at(capacity, place)), seed) {
            // One of another place is as good as torn.
            Ok(Some(stored)) if stored.place != place => Err(Unreadable::Torn),
            read => read,
        };
        // What was in the scratch place was on its way here.
        let read = match scratch {
            Some(written) if written.place == place && read.is_err() => Ok(Some(written)),
            _ => read,
        };
        match read {
            Ok(stored) => found.stored.extend(stored),
            Err(Unreadable::Torn) => found.torn += 1,
            Err(Unreadable::Malformed) => found.malformed += 1,
        }
    }
    Ok(found)
}
