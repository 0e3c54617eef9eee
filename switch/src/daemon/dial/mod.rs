//! Dials: TCP clients on the host itself, led straight to published ports of containers.
//!
//! # Theory of operation
//!
//! The relay stands between a client on the host and the container: two connections, and every byte through a pipe. Where the
//! kernel lets us, there is no need for it: a BPF program on connect(2) (`program.rs`) puts the container's address and port
//! in place of what was dialled before the first packet is made. The connection is then an ordinary one of the host's, by
//! `sw0`, from the gateway's address. What the client dialled is noted, for getpeername(2) and for ending.
//!
//! The program is in force for the root of the control groups (version 2) and asks for the network namespace first: only the
//! host's is ours. Everything is a descriptor and ends with the process; connections that were led last.
//!
//! The relay stays for what is not led: UDP, `--from` (it is the source that decides, which is not known yet), `localhost`
//! as ::1 where IPv4 is published, kernels and machines without the above.
//!
//! # Limits
//!
//! [`DOORS`] prefixes of ports: 1 for a port, at most 30 for a range; what is too much is relayed. The last [`DIALLED`]
//! connections are remembered: older ones say where they really lead, and outlast an `unpublish`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

mod program;
mod sockets;

use program::{MAPPED, Maps};
use sockets::Sockets;

use super::publishes::{Key, Publish};
use crate::sys::bpf::{Link, LoadError, Map, MapKind, Program, ProgramKind};
use crate::sys::netns::NetNs;

/// Prefixes of ports that can be led.
const DOORS: u32 = 1 << 16;
/// Connections that are remembered: some 100 bytes of kernel memory each.
const DIALLED: u32 = 1 << 14;
/// Addresses that the host may have.
const ADDRESSES: u32 = 1 << 12;
/// Bits of an address in a key.
const ADDRESS_BITS: u32 = 128;

/// Why clients on the host are relayed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("there is no cgroup2 file system")]
    NoControlGroups,
    #[error("cannot attach the program to {}: {source}", path.display())]
    Attach { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("cannot make or fill a BPF map: {0}")]
    System(#[from] io::Error),
}

/// The programs in force, and what they know.
#[derive(Debug)]
pub(super) struct Dials {
    maps: Maps,
    own: BTreeSet<IpAddr>,
    /// Publishes that are led, and the prefixes of their ports.
    led: BTreeMap<Key, Vec<[u8; 22]>>,
    sockets: Sockets,
    _links: Vec<Link>,
}

impl Dials {
    /// Puts the programs in force; nothing is led yet.
    pub(super) fn start(host: &NetNs) -> Result<Self, DialError> {
        let maps = Maps {
            addresses: Map::create(MapKind::Prefixes, "swd_own", 20, 4, ADDRESSES)?,
            doors: Map::create(MapKind::Prefixes, "swd_doors", 22, 20, DOORS)?,
            dialled: Map::create(MapKind::Recent, "swd_dialled", 8, 20, DIALLED)?,
        };
        for (address, bits) in
            [(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 104), (Ipv6Addr::LOCALHOST.into(), ADDRESS_BITS)]
        {
            maps.addresses.update(&own_key(address, bits), &any(address))?;
        }
        let (path, cookie) = (control_groups()?, host.cookie()?);
        let root = File::open(&path)?;
        let mut links = Vec::new();
        for v6 in [false, true] {
            for (kind, name, code) in [
                (ProgramKind::Connect { v6 }, "swd_connect", program::connect(v6, &maps, cookie)),
                (ProgramKind::PeerName { v6 }, "swd_peername", program::peer_name(v6, &maps)),
            ] {
                let link = Program::load(kind, name, &code)?
                    .attach_cgroup(&root)
                    .map_err(|source| DialError::Attach { path: path.clone(), source })?;
                links.push(link);
            }
        }
        let sockets = Sockets::of(host)?;
        Ok(Self { maps, own: BTreeSet::new(), led: BTreeMap::new(), sockets, _links: links })
    }

    /// Takes the host's addresses over.
    pub(super) fn set_addresses(&mut self, addresses: &BTreeSet<IpAddr>) {
        for gone in self.own.difference(addresses) {
            told(self.maps.addresses.delete(&own_key(*gone, ADDRESS_BITS)));
        }
        for new in addresses.difference(&self.own) {
            told(self.maps.addresses.update(&own_key(*new, ADDRESS_BITS), &any(*new)));
        }
        self.own.clone_from(addresses);
    }

    /// Leads the clients of a publish, unless it is one for the relay.
    pub(super) fn add(&mut self, publish: &Publish) {
        if publish.protocol() != nat::Protocol::Tcp || !publish.from.is_empty() {
            return;
        }
        let at = publish.host.map_or_else(
            || match publish.target.ip() {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED,
            },
            mapped,
        );
        let delta = u32::from(publish.target.port().wrapping_sub(publish.first));
        let mut value = [0; 20];
        value[..16].copy_from_slice(&mapped(publish.target.ip()).octets());
        value[16..].copy_from_slice(&delta.to_ne_bytes());
        let keys: Vec<_> = prefixes(publish.ports()).map(|(port, bits)| door_key(at, port, bits)).collect();
        if let Err(e) = keys.iter().try_for_each(|key| self.maps.doors.update(key, &value)) {
            tracing::warn!("clients on the host are relayed to {}: {e}", publish.name());
            self.forget(&keys);
            return;
        }
        self.led.insert(publish.key(), keys);
    }

    /// Leads nobody there any more, and ends the connections that were led.
    pub(super) fn remove(&mut self, publish: &Publish) {
        let Some(keys) = self.led.remove(&publish.key()) else { return };
        self.forget(&keys);
        let at = publish.host;
        self.end(publish.target.ip(), |dialled| {
            publish.ports().contains(&dialled.port()) && at.is_none_or(|at| at == dialled.ip())
        });
    }

    /// Ends the connections that were led to an address: its container is gone.
    pub(super) fn end_target(&mut self, target: IpAddr) {
        self.end(target, |_| true);
    }

    fn forget(&self, keys: &[[u8; 22]]) {
        for key in keys {
            // One that was refused is not there.
            let _ = self.maps.doors.delete(key);
        }
    }

    fn end(&mut self, target: IpAddr, dialled: impl Fn(SocketAddr) -> bool) {
        let noted = &self.maps.dialled;
        let wanted = |c: &sockets::Connection| {
            c.peer().ip() == target
                && noted
                    .lookup(&c.cookie().to_ne_bytes())
                    .ok()
                    .and_then(|v| noted_address(&v))
                    .is_some_and(&dialled)
        };
        let found = self.sockets.find(wanted).and_then(|found| {
            found.iter().try_for_each(|connection| match self.sockets.end(connection) {
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                ended => ended,
            })
        });
        if let Err(e) = found {
            tracing::warn!(
                "connections of the host to {target} last, although what they dialled is not published: {e}"
            );
        }
    }
}

/// A map of the host's addresses that is full leaves its client to the relay.
fn told(done: io::Result<()>) {
    if let Err(e) = done {
        tracing::warn!("cannot tell the kernel of an address of the host: {e}");
    }
}

/// Where the root of the control groups is.
fn control_groups() -> Result<PathBuf, DialError> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let path = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| Path::new(path).to_owned())
    });
    path.ok_or(DialError::NoControlGroups)
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    }
}

/// The third word of "all addresses" of an address's family.
fn any(address: IpAddr) -> [u8; 4] {
    if address.is_ipv4() { MAPPED } else { [0; 4] }
}

fn own_key(address: IpAddr, bits: u32) -> [u8; 20] {
    let mut key = [0; 20];
    key[..4].copy_from_slice(&bits.to_ne_bytes());
    key[4..].copy_from_slice(&mapped(address).octets());
    key
}

fn door_key(at: Ipv6Addr, port: u16, bits: u32) -> [u8; 22] {
    let mut key = [0; 22];
    key[..4].copy_from_slice(&(ADDRESS_BITS + bits).to_ne_bytes());
    key[4..20].copy_from_slice(&at.octets());
    key[20..].copy_from_slice(&port.to_be_bytes());
    key
}

/// What was dialled, as the program notes it.
fn noted_address(value: &[u8]) -> Option<SocketAddr> {
    let octets: [u8; 16] = value.get(..16)?.try_into().ok()?;
    let port = u16::from_be_bytes([*value.get(16)?, *value.get(17)?]);
    Some(SocketAddr::new(Ipv6Addr::from(octets).to_canonical(), port))
}

/// The prefixes that a range of ports consists of: first port and bits that count.
fn prefixes(ports: RangeInclusive<u16>) -> impl Iterator<Item = (u16, u32)> {
    let (mut next, last) = (u32::from(*ports.start()), u32::from(*ports.end()));
    std::iter::from_fn(move || {
        if next > last {
            return None;
        }
        // As many as begin at a multiple of their number and are not too many.
        let aligned = next.trailing_zeros().min(16);
        let fitting = (last - next + 1).ilog2();
        let size = aligned.min(fitting);
        let first = u16::try_from(next).ok()?;
        next += 1 << size;
        Some((first, 16 - size))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_ports_are_one_prefix() {
        assert_eq!(prefixes(0..=65535).collect::<Vec<_>>(), [(0, 0)]);
        assert_eq!(prefixes(80..=80).collect::<Vec<_>>(), [(80, 16)]);
        assert_eq!(prefixes(5..=8).collect::<Vec<_>>(), [(5, 16), (6, 15), (8, 16)]);
    }

    proptest! {
        #[test]
        fn prefixes_cover_the_range_and_nothing_else(a: u16, b: u16) {
            let (first, last) = (a.min(b), a.max(b));
            let all: Vec<_> = prefixes(first..=last).collect();
            prop_assert!(all.len() <= 30);
            let mut next = u32::from(first);
            for (port, bits) in all {
                prop_assert_eq!(u32::from(port), next);
                prop_assert_eq!(next % (1 << (16 - bits)), 0);
                next += 1 << (16 - bits);
            }
            prop_assert_eq!(next, u32::from(last) + 1);
        }
    }
}
