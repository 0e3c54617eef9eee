//! Why a port is not guarded, and who has it instead.

use std::fmt;
use std::io;

use super::Protocol;
use super::door::Key;
use super::program::BpfError;

/// A program of the host that has a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The port.
    pub port: u16,
    /// Of which protocol.
    pub protocol: Protocol,
    /// The process, if /proc shows it.
    pub pid: Option<u32>,
    /// Its name; empty if unknown.
    pub name: String,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, protocol, pid, name } = self;
        write!(f, "port {port}/{protocol} is used by ")?;
        match pid {
            Some(pid) => write!(f, "{name} (pid {pid})"),
            None => write!(f, "a process of the host that swd cannot see"),
        }
    }
}

/// Why a port is not guarded.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// BPF was asked for and is not to be had.
    #[error("cannot guard ports by BPF: {0}")]
    Bpf(#[from] BpfError),
    /// No more descriptors.
    #[error(
        "no file descriptors left to guard port {port}/{protocol}; raise the limit (ulimit -n, LimitNOFILE=)"
    )]
    Descriptors {
        /// The port.
        port: u16,
        /// Of which protocol.
        protocol: Protocol,
    },
    /// No such claim.
    #[error("ports {first}-{last}/{protocol} are not guarded")]
    NotOwned {
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
        /// Of which protocol.
        protocol: Protocol,
    },
    /// A socket of the guards' own.
    #[error("cannot open a socket to guard port {port}/{protocol}: {source}")]
    Socket {
        /// The port; 0 for the sockets that stand for all.
        port: u16,
        /// Of which protocol.
        protocol: Protocol,
        /// Why.
        source: io::Error,
    },
    /// A socket of the host's is in the way.
    #[error("{0}")]
    Taken(Taken),
    /// The kernel refuses something else.
    #[error("cannot guard ports: {0}")]
    System(#[from] io::Error),
    /// Too many addresses with ports of their own.
    #[error(
        "ports can be published at {limit} addresses of the host at a time; publish at all of them instead"
    )]
    TooManyAddresses {
        /// How many.
        limit: u32,
    },
    /// Too many ports for the mechanism.
    #[error(
        "without BPF at most {limit} ports can be guarded, {wanted} are wanted; give swd CAP_BPF and CAP_NET_ADMIN, or use \
         fewer ports"
    )]
    TooManyPorts {
        /// How many can be.
        limit: usize,
        /// How many it would be.
        wanted: usize,
    },
}

/// Why a socket of the guards' own could not be opened.
pub(super) fn socket_error(key: Key, source: io::Error) -> GuardError {
    let Key { protocol, port, .. } = key;
    match source.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => GuardError::Descriptors { port, protocol },
        _ => GuardError::Socket { port, protocol, source },
    }
}
