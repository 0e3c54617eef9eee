//! What a container sees of its network, and which port it is: `swctl inspect`.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ctl::api::{Inspected, InspectedDevice, InspectedNeighbor, InspectedRoute};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::control::{Daemon, resolve};
use super::desired::Origin;
use super::links::{Conn, LinkError};
use crate::router::route::Action;
use crate::sys::netns::NetNs;

/// Where `ip netns` keeps files that are another namespace's own.
const ETC: &str = "/etc/netns";
/// Longest file that is read of a container's.
const MAX_FILE: u64 = 64 << 10;

/// Why a namespace cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It is not there.
    #[error(
        "there is no network namespace at {path}: {source}; give a name that 'ip netns' lists, a path, or the id of a running process"
    )]
    NoNamespace {
        /// Where it should be.
        path: PathBuf,
        /// Why it is not.
        source: std::io::Error,
    },
    /// The kernel does not answer.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl Daemon {
    /// `GET /v1/inspect`.
    ///
    /// # Errors
    /// When there is no such namespace, or the kernel does not answer.
    pub async fn inspect(&self, wanted: &str) -> Result<Inspected, InspectError> {
        let (path, id) =
            resolve(wanted).map_err(|(path, source)| InspectError::NoNamespace { path, source })?;
        let path = PathBuf::from(path);
        let missing = |source| InspectError::NoNamespace { path: path.clone(), source };
        let netns = NetNs::open(&path).map_err(missing)?;
        let conn = Conn::within(&netns)?;
        let seen = look(&conn).await;
        conn.close().await;
        let (links, addresses, routes, neighbors) = seen?;
        let name_of = |index: u32| {
            let link = links.iter().find(|l| l.index == index);
            link.map_or_else(|| index.to_string(), |l| l.name.clone())
        };
        let ours = self.desired.ports.iter().filter_map(|(name, port)| match &port.origin {
            Origin::Attached(a) if a.id() == id => Some((name, a)),
            _ => None,
        });
        let ours: Vec<_> = ours.collect();
        let indices = self.live.indices();
        let devices = links.iter().map(|link| {
            let attached = ours.iter().find(|(_, a)| a.ifname == link.name).map(|(name, _)| (*name).clone());
            // A veth whose other end is a port that somebody added: indices are unique to a namespace, so the MAC that
            // was learned there decides.
            let added = || {
                let peer = link.peer.filter(|peer| indices.contains(peer))?;
                let name = self.live.by_index(peer)?;
                let port = self.live.port(name)?;
                let network = self.live.network(&port.network)?;
                let now = crate::worker::now();
                let known = self.dataplane.fdb().get(network, link.mac, now)?;
                (known.port == port.id).then(|| name.to_owned())
            };
            InspectedDevice {
                name: link.name.clone(),
                kind: link.kind.clone(),
                mac: (!link.loopback).then(|| link.mac.to_string()),
                mtu: link.mtu,
                up: link.up,
                carrier: link.running,
                addresses: addresses.iter().filter(|(i, _)| *i == link.index).map(|(_, a)| *a).collect(),
                port: attached.or_else(added),
            }
        });
        let devices: Vec<_> = devices.collect();
        let routes = routes.iter().map(|route| {
            let (action, via, device) = match route.action {
                Action::Forward { ifindex, gateway, .. } => ("forward", gateway, Some(name_of(ifindex))),
                Action::Blackhole => ("blackhole", None, None),
                Action::Unreachable => ("unreachable", None, None),
                Action::Prohibit => ("prohibit", None, None),
            };
            InspectedRoute {
                destination: route.destination,
                action: action.to_owned(),
                via,
                device,
                metric: route.metric,
            }
        });
        let neighbors = neighbors.iter().map(|(index, address, mac)| InspectedNeighbor {
            address: *address,
            mac: mac.to_string(),
            device: name_of(*index),
        });
        let (dns_file, dns) = nameservers(wanted, &path);
        Ok(Inspected {
            netns: path.display().to_string(),
            ports: devices.iter().filter_map(|d| d.port.clone()).collect(),
            routes: routes.collect(),
            neighbors: neighbors.collect(),
            devices,
            dns_file,
            dns,
        })
    }
}

type Seen = (
    Vec<super::links::Link>,
    Vec<(u32, ipnet::IpNet)>,
    Vec<crate::router::route::Route>,
    Vec<(u32, std::net::IpAddr, crate::mac::Mac)>,
);

async fn look(conn: &Conn) -> Result<Seen, LinkError> {
    Ok((conn.links().await?, conn.addresses().await?, conn.main_routes().await?, conn.neighbors().await?))
}

/// The resolver's file that programs in the namespace read, and the servers that it names.
fn nameservers(wanted: &str, path: &Path) -> (Option<String>, Vec<String>) {
    let mut candidates: Vec<(PathBuf, PathBuf)> = Vec::new();
    if let Ok(pid) = wanted.parse::<u32>() {
        candidates.push((format!("/proc/{pid}/root").into(), "etc/resolv.conf".into()));
    } else if let Some(name) = path.file_name() {
        candidates.push(("/".into(), Path::new(ETC).join(name).join("resolv.conf")));
        candidates.push(("/".into(), "/etc/resolv.conf".into()));
    }
    for (root, file) in candidates {
        if let Some(text) = read_bounded(&root, &file) {
            return (Some(root.join(file).display().to_string()), servers(&text));
        }
    }
    (None, Vec::new())
}

/// Reads an ordinary file below `root`. What a container put there may be a link out of its root, a pipe or a device:
/// links end at the root, and nothing but an ordinary file is opened.
fn read_bounded(root: &Path, path: &Path) -> Option<String> {
    let folder = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(root).ok()?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let found = File::from(openat2(&folder, path, how).ok()?);
    if !found.metadata().ok()?.is_file() {
        return None;
    }
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(text)
}

fn servers(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    lines.filter_map(|rest| rest.split_whitespace().next()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_found_and_nothing_else() {
        let text = "# nameserver 9.9.9.9\nsearch example.org\nnameserver 1.1.1.1 # first\n nameserver\tfe80::1%eth0\n";
        assert_eq!(servers(text), ["1.1.1.1", "fe80::1%eth0"]);
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::write(root.join("real"), text).unwrap();
        std::os::unix::fs::symlink("/real", root.join("inside")).unwrap();
        assert_eq!(read_bounded(root, Path::new("inside")).as_deref(), Some(text), "a link within");
        std::os::unix::fs::symlink("/etc/hostname", root.join("outside")).unwrap();
        assert_eq!(read_bounded(root, Path::new("outside")), None, "a link out of the root leads nowhere");
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read_bounded(root, Path::new("pipe")), None, "and nobody waits for a writer");
    }
}
