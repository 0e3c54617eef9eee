//! Docker: its network and IPAM plugin protocols (libnetwork's `docs/remote.md` and `docs/ipam.md`), JSON over a Unix
//! socket where Docker looks for it.
//!
//! A translation and nothing more. A network of Docker's is a network, an endpoint is a port, a port mapping is a publish
//! that goes with the port; all of it is kept with the rest of the desired state ([`super::desired::docker`]), because
//! Docker does not tell again after a restart. [`wire`] is what travels, [`options`], [`mappings`] and [`pools`] say what
//! it means (pure), [`driver`] and [`ipam`] do it by what the API uses too, [`server`] listens.
//!
//! For an endpoint swd makes a pair: one end is the port, the other one waits on the host until Docker has taken it into
//! the container, where Docker gives it name, addresses and routes.

mod driver;
mod ipam;
mod mappings;
mod options;
mod pools;
mod server;
mod wire;

use std::path::{Path, PathBuf};

pub use options::network_asked_for;
pub(super) use pools::Promised;
pub(super) use server::serve;

/// Where Docker looks for sockets of plugins.
pub(super) const PLUGINS: &str = "/run/docker/plugins";

/// The socket of an instance: Docker calls the driver by the file's name.
pub(super) fn socket(plugins: &Path, instance: &str) -> PathBuf {
    plugins.join(format!("{instance}.sock"))
}
