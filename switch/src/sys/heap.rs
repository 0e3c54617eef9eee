//! Gives memory back to the kernel that the allocator keeps after a peak.

/// Returns what the heap does not need. For moments after a peak: a thousand interfaces listed at start are 16 MB for
/// some milliseconds.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointer, may be called at any time and from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
