//! What BPF programs report: a ring of records in memory that the kernel writes and this process reads
//! (`BPF_MAP_TYPE_RINGBUF`, Documentation/bpf/ringbuf.rst).
//!
//! Reading costs no system call, and nobody is woken by a record: it is read when its reader next looks.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::unistd::{SysconfVar, sysconf};

use super::bpf::{Map, MapKind};

/// The kernel puts this in front of each record, and begins records where this divides.
const HEADER: u64 = 8;
/// In a header: the record is still being written.
const BUSY: u32 = 1 << 31;
/// In a header: the record is void.
const DISCARDED: u32 = 1 << 30;

/// A ring of records of `SIZE` bytes, which is a multiple of 8.
#[derive(Debug)]
pub struct Reports<const SIZE: usize> {
    map: Map,
    bytes: usize,
    page: usize,
    /// One page: how far it was read.
    consumer: NonNull<AtomicU64>,
    /// One page: how far it was written. Then the ring, twice in a row, so that no record is cut.
    producer: NonNull<AtomicU64>,
    reading: Mutex<()>,
}

// SAFETY: the memory is mapped until this is dropped; it is read and written as atomic words, and the ring only by who holds
// `reading`.
unsafe impl<const SIZE: usize> Send for Reports<SIZE> {}
// SAFETY: as above.
unsafe impl<const SIZE: usize> Sync for Reports<SIZE> {}

impl<const SIZE: usize> Reports<SIZE> {
    /// An empty ring of so many bytes, headers included: a power of two, at least a page.
    ///
    /// # Errors
    /// As bpf(2) and mmap(2): `EPERM` without `CAP_BPF`, `EINVAL` for another size; a kernel before 5.8 has no such maps.
    pub fn create(name: &str, bytes: u32) -> io::Result<Self> {
        const { assert!(SIZE.is_multiple_of(8)) };
        let map = Map::create(MapKind::Reports, name, 0, 0, bytes)?;
        let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|page| usize::try_from(page).ok());
        let page = page.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        let bytes = bytes as usize;
        let consumer = mmap(&map, page, libc::PROT_READ | libc::PROT_WRITE, 0)?;
        let producer = mmap(&map, page + 2 * bytes, libc::PROT_READ, page).inspect_err(|_| {
            // SAFETY: mapped just now with this length, and not referred to any more.
            unsafe { libc::munmap(consumer.as_ptr().cast(), page) };
        })?;
        Ok(Self { map, bytes, page, consumer, producer, reading: Mutex::new(()) })
    }

    /// The map, for programs to write to.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        let [read, written] = self.positions();
        read.load(Ordering::Relaxed) == written.load(Ordering::Acquire)
    }

    /// The record that was written first of those that were not read yet.
    pub fn next(&self) -> Option<[u8; SIZE]> {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let [read, written] = self.positions();
        loop {
            let at = read.load(Ordering::Relaxed);
            if at == written.load(Ordering::Acquire) {
                return None;
            }
            let offset = usize::try_from(at).ok()? & (self.bytes - 1);
            // SAFETY: behind the producer's page there are twice `bytes` bytes; a record begins within the first half, at a
            // multiple of 8, with a header that the kernel writes as one word.
            let header = unsafe { self.producer.byte_add(self.page + offset).cast::<AtomicU32>().as_ref() };
            let header = header.load(Ordering::Acquire);
            if header & BUSY != 0 {
                return None;
            }
            let len = header & !(BUSY | DISCARDED);
            let fits = len as usize == SIZE && header & DISCARDED == 0;
            let record = fits.then(|| {
                let from = self.page + offset + HEADER as usize;
                // SAFETY: the record is whole, lies in the mapping (see above), and is not written to again before it is given
                // back below.
                unsafe { self.producer.byte_add(from).cast::<[u8; SIZE]>().read() }
            });
            read.store(at + (u64::from(len) + HEADER).next_multiple_of(HEADER), Ordering::Release);
            if record.is_some() {
                return record;
            }
        }
    }

    /// How far it was read, and written.
    fn positions(&self) -> [&AtomicU64; 2] {
        // SAFETY: both pages begin with an aligned word and are mapped as long as `self` lives.
        unsafe { [self.consumer.as_ref(), self.producer.as_ref()] }
    }
}

impl<const SIZE: usize> Drop for Reports<SIZE> {
    fn drop(&mut self) {
        // SAFETY: both mappings were made in `create` with these lengths and nothing refers to them any more.
        unsafe {
            libc::munmap(self.consumer.as_ptr().cast(), self.page);
            libc::munmap(self.producer.as_ptr().cast(), self.page + 2 * self.bytes);
        }
    }
}

fn mmap(map: &Map, bytes: usize, protection: i32, offset: usize) -> io::Result<NonNull<AtomicU64>> {
    let fd = map.as_fd().as_raw_fd();
    let offset = offset.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: a new mapping of the map's memory, at an address of the kernel's choice.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, offset) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(memory.cast()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
