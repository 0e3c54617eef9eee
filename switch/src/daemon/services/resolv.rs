//! Whom the host asks: `nameserver` lines of resolv.conf(5), followed as they change.
//!
//! The file is looked at (one `stat`) before each question that is forwarded, and read where it is another one. A watch would have to
//! follow each symbolic link on the way to it (systemd-resolved and NetworkManager use them) and each replacement by a rename, and
//! could be late; this cannot be.

use std::cell::RefCell;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

const DNS: u16 = 53;
/// As many as the C library takes (`MAXNS`).
const MOST: usize = 3;

/// Which file, in which state.
type Stamp = (u64, u64, u64, i64, i64);

/// The host's resolvers.
#[derive(Debug)]
pub(super) struct Followed {
    path: PathBuf,
    known: RefCell<(Option<Stamp>, Vec<SocketAddr>)>,
}

impl Followed {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, known: RefCell::default() }
    }

    /// The resolvers as of now, in order. Without a file or without a line it is the host itself, as resolv.conf(5) has it.
    pub(super) fn servers(&self) -> Vec<SocketAddr> {
        let meta = fs::metadata(&self.path).ok();
        let stamp = meta.map(|m| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()));
        let mut known = self.known.borrow_mut();
        if known.1.is_empty() || known.0 != stamp {
            let text = fs::read_to_string(&self.path).unwrap_or_default();
            *known = (stamp, parse(&text));
        }
        known.1.clone()
    }
}

/// The servers that a file names.
fn parse(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        // A zone (`fe80::1%eth0`) would need the interface's number: such a server is left out.
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    });
    let mut servers: Vec<_> = lines.map(|ip| SocketAddr::new(ip, DNS)).take(MOST).collect();
    if servers.is_empty() {
        servers.push(SocketAddr::from(([127, 0, 0, 1], DNS)));
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let followed = Followed::new(path.clone());
        let ips = || followed.servers().iter().map(|s| s.ip().to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(ips(), "127.0.0.1");
        fs::write(&path, "# one\nnameserver 10.0.0.1 # near\n nameserver fd00::1\nsearch x\nnameserver no\n")
            .unwrap();
        assert_eq!(ips(), "10.0.0.1 fd00::1");
        fs::write(folder.path().join("new"), "nameserver 127.0.0.53\n").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(ips(), "127.0.0.53");
    }
}
