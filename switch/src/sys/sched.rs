//! A thread's share of the CPU.

use std::io;

/// Sets the calling thread's nice value, -20 (most) to 19 (least). Needs `CAP_SYS_NICE` below 0.
pub fn set_nice(nice: i32) -> io::Result<()> {
    // On Linux this is the thread's own: setpriority(2), "C library/kernel differences".
    // SAFETY: setpriority(2) takes no pointers; 0 means the calling thread.
    let rc = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
