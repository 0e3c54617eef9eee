//! Words of memory that the kernel's BPF programs and this process share.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use super::bpf::{Map, MapKind};

/// Words, in the one value of a mapped array: two cache lines of them.
pub const COUNT: usize = 32;
const BYTES: usize = COUNT * size_of::<u32>();

/// The words, and the map by which programs have them.
#[derive(Debug)]
pub struct Words {
    map: Map,
    memory: NonNull<AtomicU32>,
}

// SAFETY: the memory is atomic words, mapped until this is dropped.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Words of value 0.
    ///
    /// # Errors
    /// As bpf(2) and mmap(2): `EPERM` without `CAP_BPF`; a kernel before 5.5 has no such maps.
    pub fn create(name: &str) -> io::Result<Self> {
        let map = Map::create(MapKind::Mappable, name, size_of::<u32>(), BYTES, 1)?;
        // SAFETY: a new mapping of the map's memory, at an address of the kernel's choice.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { map, memory })
    }

    /// The map with the words as the value of key 0.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// The words.
    pub fn get(&self) -> &[AtomicU32; COUNT] {
        // SAFETY: the mapping has room for COUNT aligned words, is zeroed by the kernel and lives as long as `self`.
        unsafe { self.memory.cast().as_ref() }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `create` with this length and nothing refers to it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), BYTES) };
    }
}
