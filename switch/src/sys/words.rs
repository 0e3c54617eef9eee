//! Words of memory that the kernel's BPF programs and this process share.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use super::bpf::{Map, MapKind};

/// The words, and the map by which programs have them: an array whose values are words.
#[derive(Debug)]
pub struct Words {
    map: Map,
    memory: NonNull<AtomicU32>,
    count: usize,
}

// SAFETY: the memory is atomic words, mapped until this is dropped.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// So many values of so many words each, an even number of them; all are 0.
    ///
    /// # Errors
    /// As bpf(2) and mmap(2): `EPERM` without `CAP_BPF`; a kernel before 5.5 has no such maps.
    pub fn create(name: &str, values: u32, words: usize) -> io::Result<Self> {
        // The kernel begins each value at a multiple of eight bytes.
        let words = words.next_multiple_of(2);
        let map = Map::create(MapKind::Mappable, name, size_of::<u32>(), words * size_of::<u32>(), values)?;
        let count = values as usize * words;
        // SAFETY: a new mapping of the map's memory, at an address of the kernel's choice.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * size_of::<u32>(),
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
        Ok(Self { map, memory, count })
    }

    /// The map with the words as values.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// The words of all values, one after the other.
    pub fn get(&self) -> &[AtomicU32] {
        // SAFETY: the mapping has room for `count` aligned words, is zeroed by the kernel and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.count) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `create` with this length and nothing refers to it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.count * size_of::<u32>()) };
    }
}
