//! VDE: a userspace switch with TAP ports.

use anyhow::{Context as _, Result};
use tests::process::{s, wait_until};

use super::{Rival, Running, version_of};
use crate::subjects::Road;
use crate::topology::Topology;

/// `vde_switch`, and a `vde_plug2tap` for each container.
#[derive(Debug)]
pub(super) struct Vde;

impl Rival for Vde {
    fn name(&self) -> &'static str {
        "vde"
    }

    fn about(&self) -> &'static str {
        "vde_switch with a vde_plug2tap for each container: a userspace switch without offloads, NAT or routing"
    }

    fn needs(&self) -> &'static [(&'static str, &'static str)] {
        &[("vde_switch", "vde2"), ("vde_plug2tap", "vde2")]
    }

    fn roads(&self) -> &'static [Road] {
        &[Road::Between]
    }

    fn version(&self) -> Result<String> {
        version_of("vde_switch", "--version")
    }

    fn set_up(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        let folder = topology.file("vde");
        let folder = folder.to_str().context("a path in UTF-8")?;
        let log = topology.file("vde.log");
        // It ends when its standard input does: that of a pipe opened for both ways never does.
        let shell = "mkfifo \"$0\".in && exec vde_switch -s \"$0\" <>\"$0\".in";
        let mut processes = vec![topology.host.start(&["sh", "-c", shell, folder], &log)];
        wait_until("vde_switch listens", s(5), || topology.file("vde/ctl").exists());
        for container in [&topology.c1, &topology.c2] {
            container.ip(&["link", "del", "eth0"]);
            processes.push(container.start(&["vde_plug2tap", "-s", folder, "eth0"], &log));
            wait_until("vde_plug2tap made its device", s(5), || {
                container.links().iter().any(|l| l == "eth0")
            });
            topology.address(container);
        }
        Ok(Box::new(processes))
    }
}
