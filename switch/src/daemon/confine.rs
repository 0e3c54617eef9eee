//! What the process may do: no more than it needs, whoever started it.
//!
//! Three things, from before the first thread on, which the keeper inherits: capabilities other than [`KEPT`] are given up for good
//! (capabilities(7)), no program that is executed brings new ones (`no_new_privs`), and system calls that swd never makes, but
//! who has taken it over would, are refused with `EPERM` (seccomp(2)). What is left is in docs/security.md.

use std::collections::{BTreeMap, HashSet};
use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// What swd keeps, and what for.
const KEPT: [(Capability, &str); 14] = [
    (Capability::CAP_BPF, "port guards, dials, the fast path"),
    (Capability::CAP_CHOWN, "the API socket's group"),
    (Capability::CAP_DAC_OVERRIDE, "folders and namespaces of other users"),
    (Capability::CAP_DAC_READ_SEARCH, "which process has a port: /proc/PID/fd"),
    (Capability::CAP_FOWNER, "the mode of files that are another user's"),
    (Capability::CAP_NET_ADMIN, "interfaces, addresses, routes, TAP devices, attaching BPF programs"),
    (Capability::CAP_NET_BIND_SERVICE, "doors of published ports below 1024"),
    (Capability::CAP_NET_RAW, "packet sockets"),
    (Capability::CAP_PERFMON, "BPF programs that reckon with pointers"),
    (Capability::CAP_SYS_ADMIN, "entering, making and pinning network namespaces"),
    (Capability::CAP_SYS_CHROOT, "entering the mount namespace where a pin is to be seen"),
    (Capability::CAP_SYS_NICE, "the workers' priority"),
    (Capability::CAP_SYS_PTRACE, "namespaces and descriptors of processes: /proc/PID/ns, /proc/PID/fd"),
    (Capability::CAP_SYS_RESOURCE, "the limit of open files"),
];

/// System calls that are refused: of every machine, and those that only this one has.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_sethostname,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_settimeofday,
    libc::SYS_setuid,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Why rights could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Capabilities.
    #[error("cannot give up capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// `no_new_privs`.
    #[error("cannot set no_new_privs: {0}")]
    Privileges(io::Error),
    /// The filter.
    #[error("cannot set the filter of system calls: {0}")]
    Filter(#[from] seccompiler::Error),
    /// The machine.
    #[error("cannot set the filter of system calls: {0}")]
    Backend(#[from] seccompiler::BackendError),
}

/// Gives up what the calling thread does not need; threads that it starts have no more.
///
/// # Errors
/// As prctl(2), capset(2) and seccomp(2). A kernel without seccomp is no error.
pub(super) fn confine() -> Result<(), ConfineError> {
    let kept: CapsHashSet = KEPT.iter().map(|(capability, _)| *capability).collect();
    // Needs CAP_SETPCAP, which a caller may have taken away: then nobody can add to the set anyway.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, CapSet::Bounding)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    // Effective first: it cannot be more than what is permitted.
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        let has = caps::read(None, set)?;
        let left: HashSet<_> = has.intersection(&kept).copied().collect();
        if left.len() < has.len() {
            caps::set(None, set, &left)?;
        }
    }
    nix::sys::prctl::set_no_new_privs().map_err(|e| ConfineError::Privileges(e.into()))?;
    let refused: BTreeMap<_, _> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter =
        SeccompFilter::new(refused, SeccompAction::Allow, refuse, std::env::consts::ARCH.try_into()?)?;
    let program: BpfProgram = filter.try_into()?;
    match seccompiler::apply_filter(&program) {
        Err(seccompiler::Error::Seccomp(e)) if e.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        applied => Ok(applied?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread, which takes what it gave up with it.
    #[test]
    fn what_is_given_up_is_gone_and_the_rest_works() {
        let done = std::thread::spawn(|| {
            confine().unwrap();
            confine().expect("once more, as the keeper does");
            let effective = caps::read(None, CapSet::Effective).unwrap();
            assert!(effective.len() <= KEPT.len() && !effective.contains(&Capability::CAP_SYS_MODULE));
            assert_eq!(nix::unistd::chroot("/"), Err(nix::errno::Errno::EPERM));
            crate::sys::netns::NetNs::make().map(drop)
        });
        let made = done.join().unwrap();
        assert!(made.is_ok() || !nix::unistd::geteuid().is_root(), "{made:?}");
    }

    #[test]
    fn each_refused_call_is_named_once() {
        let all: HashSet<_> = REFUSED.iter().collect();
        assert_eq!(all.len(), REFUSED.len());
    }
}
