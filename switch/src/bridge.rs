//! Bridge: the last stage. Where the destination address lives, or everywhere.

use crate::frame::Frame;
use crate::mac::Mac;
use crate::snapshot::PortId;
use crate::stage::{Cx, Stage};
use crate::verdict::{DropReason, Verdict};

/// Forwards to the port of a known unicast address, floods the rest within the network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bridge;

impl Stage for Bridge {
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn process(&mut self, frame: &mut Frame<'_>, cx: &mut Cx<'_>) -> Verdict {
        let dst = frame.dst();
        let known = if dst.is_multicast() { None } else { cx.fdb.lookup(cx.network.id, dst, cx.now) };
        match known {
            Some(port) if port == frame.port => Verdict::Drop(DropReason::SamePort),
            Some(port) if isolated(frame.port, Some(port), cx) => Verdict::Drop(DropReason::Isolated),
            Some(port) => Verdict::Forward(port),
            // In an isolated network the only other station that may hear a container is the host.
            None if isolated(frame.port, None, cx) => {
                cx.network.host_port.map_or(Verdict::Drop(DropReason::Isolated), Verdict::Forward)
            }
            None => Verdict::Flood,
        }
    }

    fn explain(&self, frame: &Frame<'_>, cx: &Cx<'_>) -> Option<String> {
        let dst = frame.dst();
        let isolates = if cx.network.isolate_ports { "; ports of this network are isolated" } else { "" };
        if dst.is_multicast() {
            let what = if dst == Mac::BROADCAST { "broadcast" } else { "multicast" };
            return Some(format!("{dst} is {what}: for every other port{isolates}"));
        }
        Some(match cx.fdb.lookup(cx.network.id, dst, cx.now).map(|port| cx.snapshot.port(port)) {
            Some(Some(port)) => format!("{dst} is known at port {}{isolates}", port.name),
            Some(None) => format!("{dst} is known at a port that is gone"),
            None => format!("{dst} is unknown: for every other port{isolates}"),
        })
    }
}

/// Whether two ports (or a port and all others) must not talk: the network isolates, and neither is the host's.
fn isolated(from: PortId, to: Option<PortId>, cx: &Cx<'_>) -> bool {
    let host = cx.network.host_port;
    cx.network.isolate_ports && host != Some(from) && (to.is_none() || host != to)
}
