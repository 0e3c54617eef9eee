//! passt's pasta: a container's packets end in sockets of the host.

use anyhow::{Context as _, Result};
use tests::process::{s, wait_until};

use super::docker_proxy::{alive, listens};
use super::{Rival, Running, package_version};
use crate::subjects::Road;
use crate::topology::{PUBLISHED, Topology};

/// `pasta` for the first container.
#[derive(Debug)]
pub(super) struct Pasta;

impl Rival for Pasta {
    fn name(&self) -> &'static str {
        "pasta"
    }

    fn about(&self) -> &'static str {
        "pasta (passt), MTU 65520 as is its default: one container's way out and in, by sockets of the host; no switch"
    }

    fn needs(&self) -> &'static [(&'static str, &'static str)] {
        &[("pasta", "passt")]
    }

    fn roads(&self) -> &'static [Road] {
        &[Road::Out, Road::Published, Road::Local]
    }

    fn version(&self) -> Result<String> {
        Ok(package_version("passt"))
    }

    fn set_up(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        let c1 = &topology.c1;
        c1.ip(&["link", "del", "eth0"]);
        let (port, path, pid) = (PUBLISHED.to_string(), c1.path(), topology.file("pasta.pid"));
        let path = path.to_str().context("a path in UTF-8")?;
        let pid = pid.to_str().context("a path in UTF-8")?;
        let words = [
            "pasta",
            "--config-net",
            "--no-map-gw",
            "-4",
            "-m",
            "65520",
            "-t",
            &port,
            "-u",
            &port,
            "-T",
            "none",
            "-U",
            "none",
            "-f",
            "-P",
            pid,
            "--runas",
            "0",
            "--netns",
            path,
        ];
        let pasta = topology.host.start(&words, &topology.file("pasta.log"));
        wait_until("pasta listens", s(5), || listens(topology, "-t"));
        wait_until("pasta gave an address", s(5), || c1.ip(&["-4", "route"]).contains("default"));
        Ok(Box::new(vec![alive(pasta, "pasta")?]))
    }
}
