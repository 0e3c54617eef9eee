//! A file that is written through memory: what is stored is the file's from that moment on, whatever becomes of the process.
//!
//! It consists of areas, one after the other, each given its memory from its beginning on. What an area was not given costs nothing,
//! as a hole in the file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use nix::fcntl::posix_fallocate;

/// A new file, mapped as a whole from the start and given its memory bit by bit.
#[derive(Debug)]
pub struct MappedFile {
    file: File,
    memory: NonNull<u8>,
    /// Bytes of the mapping.
    reserved: usize,
    /// What the file has memory for: to touch what lies elsewhere could end the process (`SIGBUS`).
    usable: Vec<Range<usize>>,
}

// SAFETY: the memory is this value's alone, and is only written through `&mut`.
unsafe impl Send for MappedFile {}

impl MappedFile {
    /// A file without contents whose areas may grow to so many bytes, readable by its owner only. One that is there is emptied.
    ///
    /// # Errors
    /// As open(2) and mmap(2).
    pub fn create(path: &Path, areas: &[usize]) -> io::Result<Self> {
        let usable = areas.iter().scan(0, |end, bytes| {
            let start = *end;
            *end += bytes;
            Some(start..start)
        });
        let (usable, reserved) = (usable.collect(), areas.iter().sum());
        let mut options = File::options();
        let file = options.create(true).truncate(true).read(true).write(true).mode(0o600).open(path)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserved,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { file, memory, reserved, usable })
    }

    /// Gives an area memory for its first `len` bytes. New bytes are zero.
    ///
    /// # Errors
    /// `ENOSPC`, or more than was reserved.
    pub fn grow(&mut self, area: usize, len: usize) -> io::Result<()> {
        let most = self.usable.get(area + 1).map_or(self.reserved, |next| next.start);
        let usable = self.usable.get_mut(area).ok_or(io::ErrorKind::NotFound)?;
        if len <= usable.len() {
            return Ok(());
        }
        if len > most - usable.start {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let offset = |n: usize| libc::off_t::try_from(n).map_err(|_| io::ErrorKind::FileTooLarge);
        posix_fallocate(&self.file, offset(usable.end)?, offset(len - usable.len())?)?;
        usable.end = usable.start + len;
        Ok(())
    }

    /// Whether all of it can be written.
    pub fn has(&self, at: usize, bytes: usize) -> bool {
        let end = at.checked_add(bytes);
        self.usable.iter().any(|usable| at >= usable.start && end.is_some_and(|end| end <= usable.end))
    }

    /// Writes bytes, after everything written before. False, and nothing written, where the file has no such place.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> bool {
        if !self.has(at, bytes.len()) {
            return false;
        }
        // A process that is killed stops between two instructions: what counts is that they are in this order.
        fence(Ordering::SeqCst);
        // SAFETY: the range was just found to lie in the part of the mapping that the file has; `bytes` is not in it, since
        // nobody gets a reference to the mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory.as_ptr().add(at), bytes.len());
        }
        fence(Ordering::SeqCst);
        true
    }

    /// Writes a word at a multiple of eight, in one instruction. As [`MappedFile::write`].
    pub fn store(&mut self, at: usize, word: u64) -> bool {
        if !at.is_multiple_of(8) || !self.has(at, 8) {
            return false;
        }
        // SAFETY: the place lies in the part of the mapping that the file has, and is aligned: the mapping begins on a page.
        let place = unsafe { AtomicU64::from_ptr(self.memory.as_ptr().add(at).cast()) };
        place.store(word, Ordering::SeqCst);
        true
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nobody else has a reference. Nothing can be done about a failure.
        let _ = unsafe { libc::munmap(self.memory.as_ptr().cast(), self.reserved) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mapped");
        let mut mapped = MappedFile::create(&path, &[1 << 20, 1 << 10]).unwrap();
        assert!(!mapped.write(0, b"x") && !mapped.store(0, 1), "there is no room yet");
        mapped.grow(0, 8192).unwrap();
        assert!(mapped.grow(0, (1 << 20) + 1).is_err() && mapped.grow(2, 1).is_err());
        assert!(mapped.write(8190, b"ab") && !mapped.write(8191, b"ab") && !mapped.store(4, 1));
        assert!(mapped.store(8, 7_u64.to_le()));
        let file = std::fs::read(&path).unwrap();
        assert_eq!((file.len(), &file[8190..], file[8]), (8192, &b"ab"[..], 7));
        drop(mapped);
        assert_eq!(std::fs::read(&path).unwrap(), file, "and stays there");
    }

    #[test]
    fn what_lies_between_areas_is_a_hole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mapped");
        let mut mapped = MappedFile::create(&path, &[1 << 20, 1 << 20]).unwrap();
        mapped.grow(0, 4096).unwrap();
        mapped.grow(1, 4096).unwrap();
        assert!(mapped.write(4095, b"a") && mapped.write(1 << 20, b"b"));
        assert!(!mapped.write(4095, b"ab") && !mapped.write((1 << 20) - 1, b"ab"), "over an area's end");
        assert!(mapped.grow(1, (1 << 20) + 1).is_err());
        let metadata = std::fs::metadata(&path).unwrap();
        let blocks = std::os::unix::fs::MetadataExt::blocks(&metadata);
        assert_eq!(metadata.len(), (1 << 20) + 4096);
        assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
    }
}
