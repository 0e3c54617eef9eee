//! Which ports the host's own programs use, and which programs those are: from /proc/net and /proc/PID/fd.
//!
//! Sockets that are bound and neither listen nor are connected are not shown there (TCP). Nor do they get packets.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::Protocol;
use crate::sys::netns::NetNs;

/// A port that a socket of the host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) port: u16,
    /// Where; unspecified: at every address.
    pub(super) address: IpAddr,
    /// The socket's, 0 where it has none any more.
    pub(super) inode: u64,
}

/// Which sockets count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Those that get packets from anybody: listening, or UDP and not connected.
    Open,
    /// Connected ones as well.
    All,
}

/// State numbers of /proc/net (include/net/tcp_states.h); UDP sockets use two of them.
const ESTABLISHED: &str = "01";
const TIME_WAIT: &str = "06";
const LISTEN: &str = "0A";

/// The sockets of the namespace that have a port of the range at this address (`None`: at any), one for each port.
pub(super) fn used(
    host: &NetNs,
    which: Which,
    protocol: Protocol,
    address: Option<IpAddr>,
    ports: &RangeInclusive<u16>,
    except: &HashSet<u64>,
) -> io::Result<Vec<Used>> {
    let _inside = host.enter()?;
    let mut all = Vec::new();
    for file in match protocol {
        Protocol::Tcp => ["tcp", "tcp6"],
        Protocol::Udp => ["udp", "udp6"],
    } {
        // /proc/net would be that of the process's first thread, wherever this one is.
        match File::open(format!("/proc/thread-self/net/{file}")) {
            Ok(file) => read(BufReader::with_capacity(1 << 16, file), which, protocol, &mut |used| {
                if ports.contains(&used.port)
                    && overlaps(address, used.address)
                    && !except.contains(&used.inode)
                {
                    all.push(used);
                }
            })?,
            // No IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    all.sort_by_key(|u| u.port);
    Ok(all)
}

fn read(
    lines: impl BufRead,
    which: Which,
    protocol: Protocol,
    found: &mut impl FnMut(Used),
) -> io::Result<()> {
    for line in lines.lines().skip(1) {
        let line = line?;
        let mut fields = line.split_ascii_whitespace();
        let (Some(local), Some(state)) = (fields.nth(1), fields.nth(1)) else { continue };
        match (which, protocol) {
            // The listening ones come first, and of the others there may be very many.
            (Which::Open, Protocol::Tcp) if state != LISTEN => return Ok(()),
            (Which::Open, Protocol::Udp) if state == ESTABLISHED => continue,
            _ if state == TIME_WAIT => continue,
            _ => {}
        }
        let inode = fields.nth(5).and_then(|i| i.parse().ok()).unwrap_or(0);
        let Some((address, port)) = parse_address(local) else { continue };
        found(Used { port, address, inode });
    }
    Ok(())
}

/// `0100007F:1F90`: words in the machine's byte order, the port in hexadecimal.
fn parse_address(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let digits = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let address = match address.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let mut octets = [0; 16];
            for (at, part) in octets.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some((address, port))
}

/// Would a socket at `used` get packets for `address`? A socket at `::` may have IPv4 packets too.
fn overlaps(address: Option<IpAddr>, used: IpAddr) -> bool {
    match (address, used) {
        (None, _) | (_, IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => true,
        (Some(IpAddr::V4(_)), IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => true,
        (Some(address), used) => address == used,
    }
}

/// A process that has a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) name: String,
}

/// The processes that have these sockets, as far as /proc shows them.
pub(super) fn processes(inodes: &HashSet<u64>) -> HashMap<u64, Process> {
    let mut found = HashMap::new();
    let Ok(all) = std::fs::read_dir("/proc") else { return found };
    for entry in all.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = std::fs::read_dir(entry.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Ok(target) = std::fs::read_link(descriptor.path()) else { continue };
            let inode = target
                .to_str()
                .and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok())
                .filter(|i| inodes.contains(i) && !found.contains_key(i));
            if let Some(inode) = inode {
                let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                found.insert(inode, Process { pid, name: name.trim_end().to_owned() });
                if found.len() == inodes.len() {
                    return found;
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17 1 0 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 18 1 0 100 0 0 10 0
   2: 0A00020F:EE48 08080808:01BB 01 00000000:00000000 00:00000000 00000000     0        0 19 1 0 20 4 30 10 -1
   3: 0A00020F:EE49 08080808:01BB 06 00000000:00000000 03:00000b4a 00000000     0        0 0 3 0
";

    fn ports(which: Which) -> Vec<(u16, u64)> {
        let mut all = Vec::new();
        read(TCP.as_bytes(), which, Protocol::Tcp, &mut |u| all.push((u.port, u.inode))).unwrap();
        all
    }

    #[test]
    fn listening_ones_or_all_but_time_wait() {
        assert_eq!(ports(Which::Open), [(8080, 17), (22, 18)]);
        assert_eq!(ports(Which::All), [(8080, 17), (22, 18), (61_000, 19)]);
    }

    #[test]
    fn addresses() {
        let parsed = |text| parse_address(text).map(|(a, p)| (a.to_string(), p));
        assert_eq!(parsed("0100007F:1F90"), Some(("127.0.0.1".into(), 8080)));
        assert_eq!(parsed("00000000000000000000000001000000:0035"), Some(("::1".into(), 53)));
        assert_eq!(parsed("0000000000000000FFFF00000100007F:0035"), Some(("127.0.0.1".into(), 53)));
        assert_eq!(parsed("01:35"), None);
    }

    #[test]
    fn a_wildcard_is_in_the_way_of_its_family_and_v6_of_both() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(overlaps(None, ip("192.0.2.1")));
        assert!(overlaps(Some(ip("192.0.2.1")), ip("0.0.0.0")));
        assert!(overlaps(Some(ip("192.0.2.1")), ip("::")));
        assert!(overlaps(Some(ip("192.0.2.1")), ip("192.0.2.1")));
        assert!(!overlaps(Some(ip("192.0.2.1")), ip("192.0.2.2")));
        assert!(!overlaps(Some(ip("2001:db8::1")), ip("0.0.0.0")));
    }

    #[test]
    fn a_process_is_found_by_its_socket() {
        use std::os::unix::fs::MetadataExt;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(socket));
        let inode = file.metadata().unwrap().ino();
        let found = processes(&HashSet::from([inode]));
        assert_eq!(found[&inode].pid, std::process::id());
    }
}
