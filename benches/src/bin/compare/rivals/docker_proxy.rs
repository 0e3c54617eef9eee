//! Docker's userland proxy.

use anyhow::{Context as _, Result};
use tests::process::{Background, s, wait_until};

use super::bridge::{self, Publish};
use super::{Rival, Running, find, package_version};
use crate::subjects::Road;
use crate::topology::{C1, PUBLISHED, Topology};

/// `docker-proxy` in front of a kernel bridge.
#[derive(Debug)]
pub(super) struct DockerProxy;

impl Rival for DockerProxy {
    fn name(&self) -> &'static str {
        "docker-proxy"
    }

    fn about(&self) -> &'static str {
        "Docker's userland proxy in front of a kernel bridge, without DNAT rules; hides the client's address"
    }

    fn needs(&self) -> &'static [(&'static str, &'static str)] {
        &[("docker-proxy", "docker.io"), ("iptables", "iptables")]
    }

    fn roads(&self) -> &'static [Road] {
        &[Road::Published, Road::Local]
    }

    fn version(&self) -> Result<String> {
        // The program itself does not tell; its package does where it was installed or unpacked from one.
        let beside = find("docker-proxy")?.with_extension("version");
        let unpacked = std::fs::read_to_string(beside).ok().map(|v| v.trim().to_owned());
        Ok(unpacked.unwrap_or_else(|| package_version("docker.io")))
    }

    fn set_up(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        bridge::set_up(topology, Publish::Elsewhere);
        let program = find("docker-proxy")?;
        let program = program.to_str().context("a path in UTF-8")?;
        let port = PUBLISHED.to_string();
        let proxies: Vec<_> = ["tcp", "udp"]
            .into_iter()
            .map(|protocol| {
                // It reports to dockerd on descriptor 3.
                let shell = "exec \"$0\" \"$@\" 3>/dev/null";
                let words = [
                    "sh",
                    "-c",
                    shell,
                    program,
                    "-proto",
                    protocol,
                    "-host-ip",
                    "0.0.0.0",
                    "-host-port",
                    &port,
                    "-container-ip",
                    C1,
                    "-container-port",
                    &port,
                ];
                topology.host.start(&words, &topology.file("docker-proxy.log"))
            })
            .collect();
        wait_until("docker-proxy listens", s(5), || listens(topology, "-t") && listens(topology, "-u"));
        Ok(Box::new(proxies))
    }
}

/// Whether something has the published port on the host: of TCP (`-t`) or UDP (`-u`).
pub(super) fn listens(topology: &Topology, kind: &str) -> bool {
    let words = ["ss", "-Hln", kind, &format!("sport = :{PUBLISHED}")];
    !topology.host.run(&words).ok().stdout.trim().is_empty()
}

/// Waits for processes that a test would not: they must still be alive.
pub(super) fn alive(mut daemon: Background, name: &str) -> Result<Background> {
    let ended = daemon.wait(std::time::Duration::ZERO);
    anyhow::ensure!(ended.is_none(), "{name} ended: {}", daemon.log().trim());
    Ok(daemon)
}
