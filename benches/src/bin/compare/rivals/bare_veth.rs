//! No switch at all: what the load programs can do on this machine.

use anyhow::Result;
use tests::netns::veth;

use super::{Rival, Running};
use crate::subjects::Road;
use crate::topology::Topology;

/// One veth pair straight between the containers.
#[derive(Debug)]
pub(super) struct BareVeth;

impl Rival for BareVeth {
    fn name(&self) -> &'static str {
        "veth"
    }

    fn about(&self) -> &'static str {
        "one veth pair straight between the containers, no switch: the ceiling of this machine"
    }

    fn needs(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    fn roads(&self) -> &'static [Road] {
        &[Road::Between]
    }

    fn version(&self) -> Result<String> {
        Ok("the kernel's".to_owned())
    }

    fn set_up(&self, topology: &Topology) -> Result<Box<dyn Running>> {
        let Topology { c1, c2, .. } = topology;
        for container in [c1, c2] {
            container.ip(&["link", "del", "eth0"]);
        }
        veth(("eth0", c1), ("eth0", c2));
        topology.address(c1);
        topology.address(c2);
        Ok(Box::new(Vec::new()))
    }
}
