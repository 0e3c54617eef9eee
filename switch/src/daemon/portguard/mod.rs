//! Port guards: ports of the host's addresses that are swd's, so that the host's stack does not answer for them.
//!
//! # Theory of operation
//!
//! Masqueraded connections leave with the host's own address, and published ports are reached at it. The frames that come
//! back reach the host's stack as well as swd. Left alone, the stack would answer with a reset or with "port unreachable"
//! and end the connection. A *guard* makes it stay silent, without a firewall rule and without touching any port but ours.
//!
//! **With BPF** ([`Mechanism::Lookup`]) an `sk_lookup` program is in force in the host's namespace (see `program.rs`). It knows
//! owned ports from two bitmaps per protocol and hands their packets to one of eight sockets: *silent* ones that drop
//! everything, *relay* ones that drop what did not come in by `lo`, each for TCP and UDP, v4 and v6. A range of any width
//! costs a system call. The program is asked after connected sockets and before listening ones: connections of the host are
//! never touched.
//!
//! Besides, a port that is published alone gets a *door*: an ordinary socket bound to it, one per family. It keeps other
//! programs from taking the port (`EADDRINUSE`), shows in `ss -l`, and is the quickest way to find out that somebody has the
//! port already. Past [`GuardLimits::doors`] sockets, and for ranges, there are none: a program that binds such a port later
//! succeeds and gets no packets. [`Guards::intruders`] finds it.
//!
//! **Without BPF** ([`Mechanism::Sockets`]) every port needs a door, and the door's filter does what the program does: it drops
//! what did not come in by `lo` (published) or everything (pool). [`GuardLimits::ports`] bounds that. A client on the host that
//! dials a port of the pool waits in vain here; with BPF it is refused.
//!
//! # Lifecycle
//!
//! Everything is a descriptor: program, maps, link, doors. Dropping [`Guards`] or killing the process gives all ports back, but for what the
//! keeper has duplicates of: those last until the next daemon takes them up, or for two minutes.
//! Claims are counted: a port is guarded for as long as one claim covers it, and published for as long as one says so. So a
//! publish within the pool leaves the pool's guard when it goes.
//!
//! # What is not covered
//!
//! A connection of the host whose local port is in a range that is claimed *later* is undisturbed, but swd might choose the
//! same port towards the same destination; so ports that connections have are left out of a pool. One that is opened *after*
//! is not seen: the pool should lie outside `net.ipv4.ip_local_port_range`, as the default pool does.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

pub(crate) mod door;
mod error;
mod holders;
mod ledger;
mod program;

pub use door::RelaySockets;
pub use error::{GuardError, Taken};
pub use program::BpfError;

pub(crate) use door::Kept;
use door::{Doors, Key};
use error::socket_error;
use holders::Which;
use ledger::{Claim, Ledger};
use program::{Lookup, MAX_ADDRESSES, Role};

use super::keeper::Safe;
use crate::sys::filter::Filter;
use crate::sys::netns::NetNs;

/// By which the keeper knows the program.
const LOOKUP: &str = "=lookup";
/// How often a socket without a process is looked at again before it is believed: a process that has just been forked has
/// copies of our own sockets, closed or not, until it runs its program.
const LOOKS: usize = 3;
/// How long to wait before that.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A transport whose ports can be guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What ports are owned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Masquerade draws from them. Nobody answers there.
    Pool,
    /// They lead to a container; the relay serves clients on the host itself.
    Publish,
}

/// How ports are guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// By a BPF program: ranges of any width.
    Lookup,
    /// By a socket for each port.
    Sockets,
}

/// What a user may set.
#[derive(Clone, Copy, Debug)]
pub struct GuardLimits {
    /// `None`: by BPF if the kernel lets us, else by sockets.
    pub mechanism: Option<Mechanism>,
    /// With BPF: sockets that keep singly published ports from other programs.
    pub doors: usize,
    /// Without BPF: ports that can be guarded in all. Each takes a socket per family.
    pub ports: usize,
    /// A process whose sockets are in nobody's way: it hands over to this one.
    pub predecessor: Option<u32>,
}

impl Default for GuardLimits {
    fn default() -> Self {
        Self { mechanism: None, doors: 1024, ports: 4096, predecessor: None }
    }
}

/// What came of claiming ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// Ports of a pool that are in use by the host and so not ours, ascending. Nothing must be sent from them.
    pub left_out: Vec<u16>,
}

/// The guarded ports of a host.
#[derive(Debug)]
pub struct Guards {
    host: NetNs,
    limits: GuardLimits,
    ledger: Ledger,
    doors: Arc<Doors>,
    safe: Option<Arc<Safe>>,
    lookup: Option<Lookup>,
    refusal: Option<BpfError>,
    v6: bool,
}

impl Guards {
    /// Guards for the ports of a network namespace, with BPF if the kernel lets us. No port is guarded yet.
    ///
    /// # Errors
    /// When not even sockets can be opened.
    pub fn start(host: &NetNs) -> Result<(Self, RelaySockets), GuardError> {
        Self::with_limits(host, GuardLimits::default())
    }

    /// The same, with limits and perhaps a mechanism of the user's.
    ///
    /// # Errors
    /// As [`start`](Self::start), and when BPF is demanded and refused.
    pub fn with_limits(host: &NetNs, limits: GuardLimits) -> Result<(Self, RelaySockets), GuardError> {
        Self::with_safe(host, limits, None, &mut Kept::new())
    }

    /// The same. Duplicates of all that guards are left in `safe`, so that ports are guarded on after this process; what an
    /// earlier one left is in `kept` and is taken from there as it is wanted. See [`Guards::settle`].
    ///
    /// # Errors
    /// As [`with_limits`](Self::with_limits).
    pub(crate) fn with_safe(
        host: &NetNs,
        limits: GuardLimits,
        safe: Option<Arc<Safe>>,
        kept: &mut Kept,
    ) -> Result<(Self, RelaySockets), GuardError> {
        let duplicate = || NetNs::try_from(host.as_fd().try_clone_to_owned()?);
        let doors = Arc::new(Doors::new(safe.clone(), kept)?);
        let mut guards = Self {
            host: duplicate()?,
            limits,
            ledger: Ledger::default(),
            doors: Arc::clone(&doors),
            safe,
            lookup: None,
            refusal: None,
            v6: {
                let _inside = host.enter()?;
                std::fs::exists("/proc/thread-self/net/if_inet6")?
            },
        };
        match limits.mechanism {
            Some(Mechanism::Sockets) => guards.refusal = Some(BpfError::Off),
            mechanism => match guards.start_lookup() {
                Ok(lookup) => guards.lookup = Some(lookup),
                Err(GuardError::Bpf(refusal)) if mechanism.is_none() => guards.refusal = Some(refusal),
                Err(e) => return Err(e),
            },
        }
        Ok((guards, RelaySockets { doors, host: duplicate()? }))
    }

    /// Everything is claimed that an earlier daemon may have had: what else it left guards nothing any more.
    pub(crate) fn settle(&self) {
        self.doors.settle();
        let Some(safe) = &self.safe else { return };
        match &self.lookup {
            // Takes the place of the former program, whose ports are guarded by this one from here on.
            Some(lookup) => safe.put(LOOKUP, &[lookup.link()]),
            None => safe.delete(LOOKUP),
        }
    }

    /// Leaves everything in the safe again.
    pub(crate) fn put_again(&self) {
        self.doors.put_again();
        self.settle();
    }

    /// How ports are guarded.
    pub fn mechanism(&self) -> Mechanism {
        if self.lookup.is_some() { Mechanism::Lookup } else { Mechanism::Sockets }
    }

    /// Why not by BPF.
    pub fn refusal(&self) -> Option<&BpfError> {
        self.refusal.as_ref()
    }

    /// Claims ports at every address of the host, v4 and v6.
    ///
    /// A pool's ports that the host uses are left out; see [`Owned`].
    ///
    /// # Errors
    /// [`GuardError::Taken`] when a program of the host listens at one of the ports to publish; then nothing has changed.
    pub fn own(
        &mut self,
        protocol: Protocol,
        ports: RangeInclusive<u16>,
        purpose: Purpose,
    ) -> Result<Owned, GuardError> {
        self.own_at(None, protocol, ports, purpose)
    }

    /// Claims ports at one address of the host, which need not be there yet; `None`: at every one.
    ///
    /// # Errors
    /// As [`own`](Self::own).
    pub fn own_at(
        &mut self,
        address: Option<IpAddr>,
        protocol: Protocol,
        ports: RangeInclusive<u16>,
        purpose: Purpose,
    ) -> Result<Owned, GuardError> {
        // An unspecified address is every address; one of its family only is not worth a third kind of claim.
        let address = address.filter(|a| !a.is_unspecified());
        let mut claim = Claim { protocol, address, ports, purpose, without: Vec::new() };
        if self.lookup.is_some() {
            self.claim_by_lookup(&mut claim)?;
        } else {
            self.claim_by_sockets(&mut claim)?;
        }
        Ok(Owned { left_out: claim.without })
    }

    /// Gives back what one [`own`](Self::own) with the same arguments has claimed.
    ///
    /// # Errors
    /// [`GuardError::NotOwned`] when there was none.
    pub fn release(
        &mut self,
        protocol: Protocol,
        ports: RangeInclusive<u16>,
        purpose: Purpose,
    ) -> Result<(), GuardError> {
        self.release_at(None, protocol, ports, purpose)
    }

    /// Gives back what one [`own_at`](Self::own_at) with the same arguments has claimed.
    ///
    /// # Errors
    /// [`GuardError::NotOwned`] when there was none.
    pub fn release_at(
        &mut self,
        address: Option<IpAddr>,
        protocol: Protocol,
        ports: RangeInclusive<u16>,
        purpose: Purpose,
    ) -> Result<(), GuardError> {
        let address = address.filter(|a| !a.is_unspecified());
        let (first, last) = (*ports.start(), *ports.end());
        let like = Claim { protocol, address, ports, purpose, without: Vec::new() };
        let claim = self.ledger.remove(&like).ok_or(GuardError::NotOwned { first, last, protocol })?;
        if self.lookup.is_some() {
            self.close_unclaimed(&claim);
            self.publish_bits(&claim)
        } else {
            self.settle_doors(&claim)
        }
    }

    /// Programs of the host that sit at ports of ours and get nothing: they came after us, at ports that no door keeps.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn intruders(&self) -> Result<Vec<Taken>, GuardError> {
        let mut found = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let all = holders::used(
                &self.host,
                Which::Open,
                protocol,
                None,
                &(0..=u16::MAX),
                &self.doors.inodes(),
            )?;
            let ours = all.into_iter().filter(|u| self.ledger.covers(protocol, u.address, u.port));
            found.extend(name(protocol, ours.collect()));
        }
        Ok(found)
    }

    /// Loads the program and opens its sockets.
    fn start_lookup(&self) -> Result<Lookup, GuardError> {
        let lookup = Lookup::start(&self.host)?;
        let _inside = self.host.enter()?;
        for (role, number, filter) in [(Role::Silent, 2, Filter::Nothing), (Role::Relay, 1, Filter::Loopback)]
        {
            // Documentation addresses (RFC 5737, RFC 3849): nobody reaches these sockets but by the program.
            let v4 = IpAddr::from(Ipv4Addr::new(192, 0, 2, number));
            let v6 = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)));
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for address in [Some(v4), self.v6.then_some(v6)].into_iter().flatten() {
                    let key = Key { protocol, address, port: 0 };
                    self.doors.open(key, filter).map_err(|e| socket_error(key, e))?;
                    if let Some(door) = self.doors.get(key) {
                        lookup
                            .set_socket(role, protocol, address.is_ipv6(), door.as_fd())
                            .map_err(BpfError::Map)?;
                    }
                }
            }
        }
        Ok(lookup)
    }

    fn claim_by_lookup(&mut self, claim: &mut Claim) -> Result<(), GuardError> {
        if self.lookup.as_ref().is_some_and(|l| !l.has_room_for(claim.address)) {
            return Err(GuardError::TooManyAddresses { limit: MAX_ADDRESSES });
        }
        match claim.purpose {
            Purpose::Pool => {
                claim.without = self.in_use(claim, Which::All)?.iter().map(|u| u.port).collect();
                claim.without.dedup();
            }
            Purpose::Publish => self.check(claim)?,
        }
        self.ledger.add(claim.clone());
        if let Err(e) = self.publish_bits(claim) {
            self.ledger.remove(claim);
            self.close_unclaimed(claim);
            return Err(e);
        }
        Ok(())
    }

    /// Nobody else must have a port to publish. A port alone gets its door here. If there is no room for one, it is closed
    /// again: that it could be opened is all that is to be known, and quicker than a look at all sockets of the host.
    fn check(&self, claim: &Claim) -> Result<(), GuardError> {
        if claim.ports.start() == claim.ports.end() {
            let keys = Key::of(claim.protocol, claim.address, *claim.ports.start(), self.v6);
            // The sockets of the program are doors, too.
            let room = self.doors.len() + keys.len() <= self.limits.doors + 8;
            let inside = self.host.enter()?;
            match self.open_all(&keys, Filter::Loopback) {
                Err((_, e)) if e.kind() == io::ErrorKind::AddrInUse => {}
                Err((key, e)) => return Err(socket_error(key, e)),
                Ok(opened) => {
                    if !room {
                        opened.into_iter().for_each(|k| self.doors.close(k));
                    }
                    return Ok(());
                }
            }
            drop(inside);
        }
        // A connection that has the port is nothing to worry about, and our own sockets are not either: no door then.
        self.first_taken(claim, Which::Open)?.map_or(Ok(()), |taken| Err(GuardError::Taken(taken)))
    }

    /// The first port of a claim that a program has.
    fn first_taken(&self, claim: &Claim, which: Which) -> io::Result<Option<Taken>> {
        let mut first = None;
        for _ in 0..LOOKS {
            let in_the_way = |taken: &Taken| taken.pid.is_none() || taken.pid != self.limits.predecessor;
            first = name(claim.protocol, self.in_use(claim, which)?).into_iter().find(in_the_way);
            match &first {
                Some(Taken { pid: None, .. }) => std::thread::sleep(LOOK_AGAIN),
                _ => break,
            }
        }
        Ok(first)
    }

    /// Opens all of these doors or none; tells which were not open before.
    fn open_all(&self, keys: &[Key], filter: Filter) -> Result<Vec<Key>, (Key, io::Error)> {
        let mut opened = Vec::new();
        for key in keys {
            let in_use = |e: &io::Error| e.kind() == io::ErrorKind::AddrInUse;
            let door = self.doors.open(*key, filter).or_else(|e| {
                // Perhaps by a copy of a socket that we have closed; see LOOKS.
                if !in_use(&e) {
                    return Err(e);
                }
                std::thread::sleep(LOOK_AGAIN);
                self.doors.open(*key, filter)
            });
            match door {
                Ok(true) => opened.push(*key),
                Ok(false) => {}
                Err(e) => {
                    opened.into_iter().for_each(|k| self.doors.close(k));
                    return Err((*key, e));
                }
            }
        }
        Ok(opened)
    }

    /// Closes the doors of a port that was published alone and is not any more.
    fn close_unclaimed(&self, claim: &Claim) {
        let port = *claim.ports.start();
        let single = claim.purpose == Purpose::Publish && port == *claim.ports.end();
        if single && !self.ledger.singles().any(|s| s == (claim.protocol, claim.address, port)) {
            Key::of(claim.protocol, claim.address, port, self.v6)
                .into_iter()
                .for_each(|k| self.doors.close(k));
        }
    }

    /// Makes the program know what the ledger says, where this claim has changed it.
    fn publish_bits(&mut self, claim: &Claim) -> Result<(), GuardError> {
        let Some(lookup) = &mut self.lookup else { return Ok(()) };
        lookup.set_ports(claim.protocol, claim.address, &self.ledger.ports(claim.protocol, claim.address))?;
        match claim.address {
            Some(address) if !self.ledger.has_address(claim.address) => Ok(lookup.forget(address)?),
            _ => Ok(()),
        }
    }

    fn claim_by_sockets(&mut self, claim: &mut Claim) -> Result<(), GuardError> {
        // Each port has one door or two, by its families.
        let families = Key::of(claim.protocol, claim.address, 1, self.v6).len();
        let wanted = self.doors.len() / families + claim.ports.len();
        if wanted > self.limits.ports {
            return Err(GuardError::TooManyPorts { limit: self.limits.ports, wanted });
        }
        let mut failed = None;
        {
            let _inside = self.host.enter()?;
            for port in claim.ports.clone() {
                let keys = Key::of(claim.protocol, claim.address, port, self.v6);
                let old = self.ledger.purpose(claim.protocol, claim.address, port);
                match self.open_all(&keys, filter_for(claim.purpose.or(old))) {
                    Ok(_) => {}
                    Err((_, e)) if e.kind() == io::ErrorKind::AddrInUse && claim.purpose == Purpose::Pool => {
                        claim.without.push(port);
                    }
                    Err((key, e)) => {
                        failed = Some((key, e));
                        break;
                    }
                }
            }
        }
        let Some((key, e)) = failed else {
            self.ledger.add(claim.clone());
            return Ok(());
        };
        self.settle_doors(claim)?;
        if e.kind() == io::ErrorKind::AddrInUse {
            let only = Claim { ports: key.port..=key.port, ..claim.clone() };
            let taken = self.first_taken(&only, Which::All)?;
            let unknown = Taken { port: key.port, protocol: claim.protocol, pid: None, name: String::new() };
            return Err(GuardError::Taken(taken.unwrap_or(unknown)));
        }
        Err(socket_error(key, e))
    }

    /// Makes the doors of a claim's ports what the ledger says.
    fn settle_doors(&self, claim: &Claim) -> Result<(), GuardError> {
        let _inside = self.host.enter()?;
        for port in claim.ports.clone() {
            let keys = Key::of(claim.protocol, claim.address, port, self.v6);
            match self.ledger.purpose(claim.protocol, claim.address, port) {
                Some(purpose) => {
                    self.open_all(&keys, filter_for(purpose)).map_err(|(k, e)| socket_error(k, e))?;
                }
                None => keys.into_iter().for_each(|k| self.doors.close(k)),
            }
        }
        Ok(())
    }

    fn in_use(&self, claim: &Claim, which: Which) -> io::Result<Vec<holders::Used>> {
        let own = self.doors.inodes();
        holders::used(&self.host, which, claim.protocol, claim.address, &claim.ports, &own)
    }
}

impl Purpose {
    /// To publish comes before the pool.
    fn or(self, other: Option<Self>) -> Self {
        if other == Some(Self::Publish) { Self::Publish } else { self }
    }
}

fn filter_for(purpose: Purpose) -> Filter {
    match purpose {
        Purpose::Pool => Filter::Nothing,
        Purpose::Publish => Filter::Loopback,
    }
}

/// The programs behind sockets; those of this process are nobody's.
fn name(protocol: Protocol, used: Vec<holders::Used>) -> Vec<Taken> {
    if used.is_empty() {
        return Vec::new();
    }
    let inodes: HashSet<u64> = used.iter().map(|u| u.inode).filter(|i| *i != 0).collect();
    let processes = holders::processes(&inodes);
    let named = used.into_iter().map(|u| {
        let process = processes.get(&u.inode);
        let name = process.map(|p| p.name.clone()).unwrap_or_default();
        Taken { port: u.port, protocol, pid: process.map(|p| p.pid), name }
    });
    let mut taken: Vec<_> = named.filter(|t| t.pid != Some(std::process::id())).collect();
    taken.dedup();
    taken
}
