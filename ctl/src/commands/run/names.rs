//! The command's resolv.conf: its names are those of its network.
//!
//! As `ip netns exec` does with /etc/netns: a mount namespace of the command's own, in which another file is on the place of
//! /etc/resolv.conf. Nobody else sees it, and it ends with the command. systemd-resolved's socket is bypassed as well by whoever reads
//! the file; nss-resolve, which does not read it, asks the host's resolver as before.

use std::{fs, io, io::Write, net::IpAddr};

use ctl::api::Network;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What a container of a network is to have in its resolv.conf; none if the network's gateway answers for no names.
pub(super) fn resolv_conf(network: &Network) -> Option<Settings> {
    let nameservers = network.gateways.clone();
    (network.dns && !nameservers.is_empty()).then(|| Settings { nameservers, search: network.name.clone() })
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Whom to ask.
    pub(crate) nameservers: Vec<IpAddr>,
    /// What to try behind a name.
    pub(crate) search: String,
}

impl Settings {
    fn text(&self) -> String {
        let servers = self.nameservers.iter().map(|ip| format!("nameserver {ip}\n"));
        servers.chain([format!("search {}\n", self.search)]).collect()
    }

    /// Puts the file in its place, for this process and what it starts.
    ///
    /// # Errors
    /// When there is no file to put it over, or the kernel refuses (it takes CAP_SYS_ADMIN).
    pub(super) fn mount(&self) -> io::Result<()> {
        // The kernel mounts over what a symbolic link leads to.
        let place = fs::canonicalize(RESOLV_CONF)?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        // The mount keeps the file; its name goes with `file`.
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(self.text().as_bytes())?;
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(readable)?;
        mount(Some(file.path()), &place, none, MsFlags::MS_BIND, none)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_says() {
        let settings = Settings {
            nameservers: vec![[172, 18, 0, 1].into(), "fd00::1".parse().unwrap()],
            search: "default".into(),
        };
        assert_eq!(settings.text(), "nameserver 172.18.0.1\nnameserver fd00::1\nsearch default\n");
    }
}
