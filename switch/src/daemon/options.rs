//! The command line of `swd`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use ctl::api::DEFAULT_NAME;
use ctl::config::{Guards, MAX_WORKERS, Uplink};

/// A virtual Ethernet switch and NAT router that is an ordinary process.
#[derive(Clone, Debug, Parser)]
#[command(name = "swd", version, args_conflicts_with_subcommands = true)]
pub struct Options {
    /// Configuration file (TOML); `swctl config check FILE` checks one.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of this instance: of its namespace (/run/netns/NAME), socket and state.
    #[arg(long, default_value = DEFAULT_NAME)]
    pub name: String,
    /// Folder of the API socket.
    #[arg(long, value_name = "DIR", default_value = ctl::api::DEFAULT_RUNTIME_DIR)]
    pub runtime_dir: PathBuf,
    /// Folder in which networks and ports are remembered.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/swd")]
    pub state_dir: PathBuf,
    /// The host's interface towards the outside [default: auto, or what the configuration says].
    #[arg(long, value_name = "IFNAME|auto|none")]
    pub uplink: Option<Uplink>,
    /// Threads that forward frames [default: 1, or what the configuration says].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_WORKERS)))]
    pub workers: Option<u32>,
    /// How the host is kept from answering for swd's ports [default: auto, or what the configuration says].
    #[arg(long, value_name = "auto|bpf|sockets")]
    pub guards: Option<Guards>,
    /// Serve Docker's network and IPAM plugin protocols: 'docker network create -d NAME'.
    #[arg(long)]
    pub docker: bool,
    /// Folder in which Docker looks for sockets of plugins.
    #[arg(long, value_name = "DIR", default_value = super::docker::PLUGINS)]
    pub docker_plugins: PathBuf,
    /// Take over from the instance of this name that runs: its connections, and those of its relay, go on.
    #[arg(long)]
    pub replace: bool,
    #[command(subcommand)]
    pub(super) internal: Option<Internal>,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum Internal {
    /// Holds what must outlive the daemon; started by it.
    #[command(name = super::keeper::SUBCOMMAND, hide = true)]
    Keeper { socket: PathBuf, pin: PathBuf },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses() {
        let o = Options::try_parse_from(["swd"]).unwrap();
        assert_eq!((o.name.as_str(), o.uplink, o.workers), ("swd", None, None));
        assert_eq!(o.runtime_dir, PathBuf::from("/run/swd"));
        let o =
            Options::try_parse_from(["swd", "--uplink", "none", "--workers", "2", "--name", "x"]).unwrap();
        assert_eq!((o.name.as_str(), o.uplink, o.workers), ("x", Some(Uplink::None), Some(2)));
        for bad in [&["--workers", "0"][..], &["--uplink", "a/b"], &["--guards", "no"], &["--nope"]] {
            assert!(Options::try_parse_from([&["swd"], bad].concat()).is_err(), "{bad:?}");
        }
    }
}
