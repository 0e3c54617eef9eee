//! A file that is written through memory: what is stored is the file's from that moment on, whatever becomes of the process.

use std::fs::File;
use std::io;
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
    /// Bytes that the file has: to touch what lies beyond would end the process (`SIGBUS`).
    usable: usize,
}

// SAFETY: the memory is this value's alone, and is only written through `&mut`.
unsafe impl Send for MappedFile {}

impl MappedFile {
    /// A file without contents that may grow to `reserved` bytes, readable by its owner only. One that is there is emptied.
    ///
    /// # Errors
    /// As open(2) and mmap(2).
    pub fn create(path: &Path, reserved: usize) -> io::Result<Self> {
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
        Ok(Self { file, memory, reserved, usable: 0 })
    }

    /// Bytes that can be written.
    pub const fn len(&self) -> usize {
        self.usable
    }

    /// None.
    pub const fn is_empty(&self) -> bool {
        self.usable == 0
    }

    /// Gives the file memory for its first `len` bytes. New bytes are zero.
    ///
    /// # Errors
    /// `ENOSPC`, or more than was reserved.
    pub fn grow(&mut self, len: usize) -> io::Result<()> {
        if len <= self.usable {
            return Ok(());
        }
        if len > self.reserved {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let offset = |n: usize| libc::off_t::try_from(n).map_err(|_| io::ErrorKind::FileTooLarge);
        posix_fallocate(&self.file, offset(self.usable)?, offset(len - self.usable)?)?;
        self.usable = len;
        Ok(())
    }

    /// Writes bytes, after everything written before. False, and nothing written, where the file has no such place.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> bool {
        if at.checked_add(bytes.len()).is_none_or(|end| end > self.usable) {
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
        if !at.is_multiple_of(8) || at.checked_add(8).is_none_or(|end| end > self.usable) {
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
        let mut mapped = MappedFile::create(&path, 1 << 20).unwrap();
        assert!(!mapped.write(0, b"x") && !mapped.store(0, 1), "there is no room yet");
        mapped.grow(8192).unwrap();
        assert!(mapped.grow((1 << 20) + 1).is_err());
        assert!(mapped.write(8190, b"ab") && !mapped.write(8191, b"ab") && !mapped.store(4, 1));
        assert!(mapped.store(8, 7_u64.to_le()));
        let file = std::fs::read(&path).unwrap();
        assert_eq!((file.len(), &file[8190..], file[8]), (8192, &b"ab"[..], 7));
        drop(mapped);
        assert_eq!(std::fs::read(&path).unwrap(), file, "and stays there");
    }
}
